#!/bin/sh
# The public interface, one item a line, in tests/public-api.txt. With --check, compares it with what is kept there.
#
# It needs `cargo install --locked cargo-public-api` and a nightly toolchain, and takes three minutes the first time: it is not part
# of `make test`. The nightly can be chosen with NIGHTLY.
set -eu
cd "$(dirname "$0")/.."
kept=tests/public-api.txt
# Those of docs.rs.
features=$(sed -n '/^\[package.metadata.docs.rs\]/,/^\]/s/^ *"\(.*\)",$/\1/p' Cargo.toml | paste -sd, -)
now=$(mktemp)
trap 'rm -f "$now"' EXIT
# The guides are documentation only.
cargo "+${NIGHTLY:-nightly}" public-api -p tower-storage-guard -sss --features "$features" | grep -v '::guide' > "$now"
if [ "${1-}" = --check ]; then
	diff -u "$kept" "$now"
else
	cp "$now" "$kept"
fi
