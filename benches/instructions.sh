#!/bin/sh
# Instructions per request, which are exact where times are not: benches/instructions.sh
#
# A request is made before it is served, and that costs instructions too: look at what is over the bare service.
set -eu

guard=$(cargo bench --bench guard --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"guard".*"executable":"\([^"]*\)".*/\1/p')

count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$guard" --count "$1" "$2" 2>&1 |
        sed -n 's/.*refs: *//p' | tr -d ,
}

each() {
    few=$(count "$1" 1000)
    many=$(count "$1" 3000)
    echo $(((many - few) / 2000))
}

row() {
    bare=$(each "$1/0")
    echo "| $2 | $(($(each "$3") - bare)) |"
}

echo "| over the bare service | instructions |"
echo "|---|---|"
row download "a request that is not guarded" download/1
row upload "tower-http RequestBodyLimit" upload/1
row upload "disk guard" upload/3
row upload "disk guard, memory quota, handle" upload/4
