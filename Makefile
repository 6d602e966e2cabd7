# What the project is checked with. `make test` is everything; CI runs it and nothing else.

CARGO ?= cargo
# Every run starts clean in CI, and rustc 1.95 has died over incremental state here.
export CARGO_INCREMENTAL = 0
LOOM = RUSTFLAGS="--cfg storage_guard_loom" CARGO_TARGET_DIR=target/loom

# Where the test finds it, below cargo's own.
CLIENTS = $(or $(CARGO_TARGET_DIR),target)/clients

.PHONY: test tools clients lint doc unit features loom bench rdkafka rocksdb

test: tools clients lint doc unit features loom

# Debian packages that the tests need: program:package.
TOOLS = curl:curl java:default-jdk-headless node:nodejs /usr/bin/python3:python3 \
	mkfs.btrfs:btrfs-progs mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs fusermount3:fuse3 \
	prlimit:util-linux unshare:util-linux ip:iproute2 cc:gcc \
	litmus rclone cadaver mount.davfs:davfs2 \
	setpriv:util-linux faketime redis-server mariadbd:mariadb-server nats-server clickhouse-server

# Installs what is missing where it may, and says what is missing where it may not.
tools:
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	for tool in $(TOOLS); do \
		command -v "$${tool%%:*}" >/dev/null 2>&1 || missing="$$missing $${tool##*:}"; \
	done; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	/usr/bin/python3 -c 'import requests' 2>/dev/null || missing="$$missing python3-requests"; \
	/usr/bin/python3 -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -q && DEBIAN_FRONTEND=noninteractive \
				apt-get install -y -q --no-install-recommends $$missing; \
		else \
			echo "make test needs these packages:$$missing" >&2; exit 1; \
		fi; \
	fi

# Python packages that Debian does not have, in an environment of their own. What is there is kept while it works
# and is what is asked for: the list goes in last.
clients: tools
	@asked=tests/clients/requirements.txt; \
	if ! cmp -s $$asked $(CLIENTS)/requirements.txt || \
		! $(CLIENTS)/bin/python -c 'import grpc_status, tusclient' 2>/dev/null; then \
		rm -rf $(CLIENTS) && \
		/usr/bin/python3 -m venv $(CLIENTS) && \
		$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $$asked && \
		cp $$asked $(CLIENTS)/; \
	fi

# The tests that need databases, stores, engines and brokers, and all their clients.
DOWNSTREAM = --manifest-path tests/downstream/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)

lint:
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path tests/downstream/Cargo.toml
	$(CARGO) clippy --all-features --all-targets -- -D warnings
	$(CARGO) clippy $(DOWNSTREAM) --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --all-features

# All of them but RocksDB's, with those that mount filesystems and start other people's clients and servers. Most of ours
# wait for somebody most of the time.
unit: clients
	PATH="$$PATH:/usr/sbin:/sbin" RUST_TEST_THREADS=$$((2 * $$(nproc))) $(CARGO) test --all-features -- --include-ignored
	PATH="$$PATH:/usr/sbin:/sbin" $(CARGO) test $(DOWNSTREAM) -- --include-ignored --skip rocksdb_is_classified

# Libraries whose errors are classified, each behind a feature of its name.
LIBRARIES = async-nats aws-smithy-types clickhouse diesel fjall heed lettre mongodb mysql_async object_store opendal \
	redb redis rusqlite scylla sea-orm sqlx tantivy tiberius tokio-postgres

# No feature changes what another does, and none is needed.
features:
	$(CARGO) clippy --lib --no-default-features -- -D warnings
	$(CARGO) clippy --lib --no-default-features --features tokio -- -D warnings
	$(CARGO) clippy --lib --no-default-features --features axum -- -D warnings
	$(CARGO) clippy --lib --no-default-features --features postgres -- -D warnings
	$(CARGO) clippy --lib --no-default-features --features quick-xml -- -D warnings
	$(CARGO) clippy --lib --no-default-features --features redis-store -- -D warnings
	$(CARGO) clippy --lib --no-default-features --features rustix -- -D warnings
	$(CARGO) clippy --lib --no-default-features --features sqlite -- -D warnings
	$(CARGO) clippy --lib --no-default-features --features tonic-health -- -D warnings
	for library in $(LIBRARIES); do \
		$(CARGO) clippy --lib --no-default-features --features $$library -- -D warnings || exit 1; \
	done

# Every interleaving of the ledger's atomics.
loom:
	$(LOOM) $(CARGO) test --lib --release loom

# Each ends in tables that README shows. The second needs Debian's redis-server and postgresql.
bench:
	$(CARGO) bench --bench guard
	$(CARGO) bench --bench stores

# Apart from `test`: it builds librdkafka from C. Takes a C compiler and make.
rdkafka:
	CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),target)/rdkafka $(CARGO) test --manifest-path tests/rdkafka/Cargo.toml

# Apart from `test`: it compiles RocksDB, which takes many minutes. Needs Debian's clang and libclang-dev.
rocksdb:
	PATH="$$PATH:/usr/sbin:/sbin" $(CARGO) test $(DOWNSTREAM) rocksdb_is_classified -- --ignored --nocapture
