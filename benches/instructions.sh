#!/bin/sh
# Instructions per request, which are exact where times are not: benches/instructions.sh
#
# A request is made before it is served, and that costs instructions too: look at what is over the bare service.
set -eu

built() {
    cargo bench "$@" --no-run --message-format=json 2>/dev/null |
        sed -n 's/.*"kind":\["bench"\].*"executable":"\([^"]*\)".*/\1/p'
}
guard=$(built --bench guard)
stores=$(built -p bench-stores)

count() {
    case $1 in
        memory | leased) program=$stores ;;
        *) program=$guard ;;
    esac
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" --count "$1" "$2" 2>&1 |
        sed -n 's/.*refs: *//p' | tr -d ,
}

# Per request, or per one of so many messages of a request.
each() {
    requests=$((1000 / $2))
    few=$(count "$1" "$requests")
    many=$(count "$1" $((3 * requests)))
    echo $(((many - few) / 2000))
}

row() {
    messages=${4:-1}
    bare=$(each "$1/0" "$messages")
    echo "| $2 | $(($(each "$3" "$messages") - bare)) |"
}

echo "| over the bare service | instructions |"
echo "|---|---|"
row download "a request that is not guarded" download/1
row upload "tower-http RequestBodyLimit" upload/1
row upload "disk guard" upload/3
row upload "disk guard, memory quota, handle" upload/4
row call "a gRPC call that is not guarded" call/1
row call "a unary call, disk guard, memory quota" call/2
row from "a message in a client's stream" from/1 1000
row to "a message in a server's stream" to/1 1000

echo
echo "| reserve and commit | instructions |"
echo "|---|---|"
echo "| MemoryQuota | $(each memory 1) |"
echo "| LeasedQuota, decided in memory | $(each leased 1) |"
