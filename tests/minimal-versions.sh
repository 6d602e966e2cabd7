#!/bin/sh
# Checks that the library builds with the oldest versions that it names: tests/minimal-versions.sh PACKAGED
#
# PACKAGED is the unpacked crate, which is changed. The libraries that are classified are left out, and so are the stores that
# need them: some require newer versions of what all of them share. cargo asks for `-Z` here, which takes RUSTC_BOOTSTRAP.
set -eu
cd "$1"
cargo=${CARGO:-cargo}

libraries='async-nats aws-smithy-types clickhouse diesel fjall heed lettre mongodb mysql_async object_store opendal redb redis
rusqlite scylla sea-orm sqlx tantivy tantivy-fst tiberius tokio-postgres'
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
$cargo check --lib --features anyhow,axum-multipart,conformance,eyre,tonic-health,webdav
