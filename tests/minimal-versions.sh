#!/bin/sh
# Checks that the library builds with the oldest versions that it names: tests/minimal-versions.sh PACKAGED
#
# PACKAGED is the unpacked crate, which is changed. The libraries that are classified are left out, and so are the stores that
# need them: some require newer versions of what all of them share. cargo asks for `-Z` here, which takes RUSTC_BOOTSTRAP.
set -eu
cd "$1"
cargo=${CARGO:-cargo}

libraries='async-nats046 async-nats049 async-nats051 aws-smithy-types aws-smithy-types1 clickhouse013 clickhouse014 clickhouse015
diesel diesel2 fjall2 fjall3 heed020 heed021 heed022 heed023 lettre lettre011 mongodb2 mongodb3 mysql_async036
mysql_async037 object_store012 object_store013 object_store014 opendal054 opendal055 opendal059 redb2 redb3 redb4
redis redis027 redis029 redis032 redis1 rusqlite scylla scylla1 sea-orm1 sea-orm2 sqlx sqlx08 sqlx09 tantivy-fst
tantivy025 tantivy027 tiberius012 tiberius013 tokio-postgres tokio-postgres07'
awk -v left_out="$libraries store-postgres store-redis store-sqlite" '
    BEGIN { split(left_out, names); for (i in names) is_out["" names[i]] = 1 }
    # A table, up to the next one.
    /^\[/ {
        name = $0
        gsub(/^\[+|\]+$/, "", name)
        is_example = $0 ~ /^\[\[/
        sub(/^dependencies\./, "", name)
        skips_table = is_example || $0 ~ /dev-dependencies/ || (name in is_out)
        in_features = name == "features"
    }
    skips_table { next }
    # A feature, up to the end of its list.
    in_features && / = \[/ { skips_feature = ($1 in is_out) }
    in_features && skips_feature { if ($0 ~ /\]$/) skips_feature = 0; next }
    { print }
' Cargo.toml > Cargo.toml.minimal
mv Cargo.toml.minimal Cargo.toml
rm -rf Cargo.lock examples
# Of the features that are left out.
export RUSTFLAGS='-A unexpected_cfgs'
RUSTC_BOOTSTRAP=1 $cargo -Z direct-minimal-versions generate-lockfile
$cargo check --lib --no-default-features
$cargo check --lib --features anyhow1,axum-multipart,conformance,eyre06,metrics,test-util,tonic-health,webdav
