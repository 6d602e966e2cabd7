# What the project is checked with. `make test` is everything; CI runs it and nothing else.

CARGO ?= cargo
# Every run starts clean in CI, and rustc 1.95 has died over incremental state here.
export CARGO_INCREMENTAL = 0
# A panic says where it was without debug information too, and without it everything is built and linked in less time.
export CARGO_PROFILE_DEV_DEBUG = 0
# Fewer pieces of each crate take an eighth less of the time: there are more crates than cores anyway.
export CARGO_PROFILE_DEV_CODEGEN_UNITS = 4

TARGET = $(or $(CARGO_TARGET_DIR),target)
# Where the tests of clients find their Python.
CLIENTS = $(TARGET)/clients
# Servers and mkfs are outside of the PATH of other users than root.
export PATH := $(PATH):/usr/sbin:/sbin

ALL = --workspace --all-features
# Packages with a lock file of their own.
APART = $(LINKED) tests/downstream/rdkafka tests/downstream/rocksdb
# Of these, the ones that link another SQLite than the workspace.
LINKED = tests/downstream/newest-rusqlite tests/downstream/oldest-rusqlite tests/downstream/sqlx08

.PHONY: test tools clients lint unit fuzz plain apart features features-alone package soak bench

test: tools clients lint unit fuzz plain apart features package

# Debian packages that the tests need: program:package.
TOOLS = curl:curl java:default-jdk-headless node:nodejs /usr/bin/python3:python3 \
	mkfs.btrfs:btrfs-progs mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs fusermount3:fuse3 bindfs \
	prlimit:util-linux unshare:util-linux ip:iproute2 cc:gcc c++:g++ \
	litmus rclone cadaver mount.davfs:davfs2 \
	setpriv:util-linux nginx:nginx-light haproxy openssl faketime redis-server mariadbd:mariadb-server nats-server clickhouse-server

# Installs what is missing where it may, and says what is missing where it may not.
tools:
	@missing=; \
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
	@asked=tests/clients/programs/requirements.txt; \
	if ! cmp -s $$asked $(CLIENTS)/requirements.txt || \
		! $(CLIENTS)/bin/python -c 'import grpc_status, tusclient' 2>/dev/null; then \
		rm -rf $(CLIENTS) && \
		/usr/bin/python3 -m venv $(CLIENTS) && \
		$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $$asked && \
		cp $$asked $(CLIENTS)/; \
	fi

# Clippy compiles the workspace, and rustdoc documents it, where it is built for the tests: the many dependencies are compiled
# once.
CHECKED = RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/tests/wrappers/clippy RUSTDOC=$(CURDIR)/tests/wrappers/rustdoc
lint:
	$(CARGO) fmt --all --check
	for package in $(APART); do $(CARGO) fmt --check --manifest-path $$package/Cargo.toml || exit 1; done
	$(CHECKED) $(CARGO) build $(ALL) --all-targets

# All tests, with those that mount filesystems and start servers and clients. Most of them wait most of the time.
unit: clients lint
	$(CHECKED) STORAGE_GUARD_EXAMPLES=built RUST_TEST_THREADS=$$((2 * $$(nproc))) \
		$(CARGO) test $(ALL) -- --include-ignored

# The parsers, each for some seconds. The input that makes one fail is kept in target/fuzz.
FUZZ_SECONDS = 5
FUZZED = accept lengths content_range tus dav grpc_web
fuzz:
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/fuzz/instrument $(CARGO) build $(ALL) $(FUZZED:%=--bin fuzz-%)
	mkdir -p $(FUZZED:%=$(TARGET)/fuzz/%)
	printf '%s\n' $(FUZZED) | xargs -P $$(nproc) -I {} env $(TARGET)/debug/fuzz-{} -max_total_time=$(FUZZ_SECONDS) \
		-timeout=10 -dict=fuzz/dictionary.txt -artifact_prefix=$(TARGET)/fuzz/{}- $(TARGET)/fuzz/{} fuzz/seeds/{}

# What a user of the root package sees, who has no server installed.
plain:
	$(CARGO) test

# What cannot be in the workspace, each against its own lock file.
apart:
	for package in $(LINKED); do \
		$(CARGO) test --target-dir $(TARGET) --manifest-path $$package/Cargo.toml -- --include-ignored || exit 1; \
	done

# Libraries whose errors are classified, each behind a feature of its name and version.
LIBRARIES = anyhow1 async-nats051 aws-smithy-types1 clickhouse015 diesel2 eyre06 fjall3 heed023 lettre011 mongodb3 \
	mysql_async037 object_store014 opendal059 redb4 redis1 rusqlite scylla1 sea-orm2 sqlx09 tantivy027 tiberius013 \
	tokio-postgres07
# Their older versions, which are compiled from the same source.
OLDER = async-nats046 async-nats049 clickhouse013 clickhouse014 fjall2 heed020 heed021 heed022 mongodb2 mysql_async036 \
	object_store012 object_store013 opendal054 opendal055 redb2 redb3 redis027 redis029 redis032 sea-orm1 sqlx08 \
	tantivy025 tiberius012
# What brings more than a classifier.
MECHANISMS = axum axum-multipart conformance inodes store store-postgres store-redis store-sqlite test-util tonic tonic-health webdav

# The servers that README starts. In the workspace they may live on features that another member asks for. `features` looks
# at the first of them by itself, and `soak` at each.
SERVERS = axum-upload documents quota-admin tonic-upload tus-upload webdav

# No feature changes what another does, and none is needed. Clippy has looked at all of the library in `lint`, so rustc alone
# does here, which takes two thirds of the time. It builds, because `check` has no use for what was built for the tests. The
# older versions are built in one run: each is its newest one's source with other names, and `features-alone` builds each.
ALONE = RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/tests/wrappers/rustc $(CARGO) build --lib --no-default-features
features:
	$(ALONE) -p tower-storage-guard -p test-features
	for feature in $(MECHANISMS) $(LIBRARIES); do \
		$(ALONE) -p tower-storage-guard -p test-features --features tower-storage-guard/$$feature || exit 1; \
	done
	$(ALONE) -p tower-storage-guard -p test-features --features "$(OLDER:%=tower-storage-guard/%)"
	$(CARGO) check -p axum-upload

# The same, where no package brings what another needs: each run compiles the dependencies again.
features-alone:
	for feature in $(MECHANISMS) $(LIBRARIES) $(OLDER); do \
		$(ALONE) --features $$feature || exit 1; \
	done
	for package in $(SERVERS); do $(CARGO) check -p $$package || exit 1; done

# The crate as it is published: its examples build, and the library builds against the oldest versions of what it names.
PACKAGED = $(TARGET)/package/tower-storage-guard-$(shell sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
package:
	$(CARGO) package -p tower-storage-guard --allow-dirty --no-verify
	rm -rf $(PACKAGED) && tar -xzf $(PACKAGED).crate -C $(TARGET)/package
	cd $(PACKAGED) && CARGO_TARGET_DIR=../.. $(CARGO) build --examples --features axum
	CARGO=$(CARGO) CARGO_TARGET_DIR=../minimal tests/minimal-versions.sh $(PACKAGED)

# Long runs, which are no part of `test`: random and killed runs many times over, and what takes many minutes to compile.
# RocksDB needs Debian's clang and libclang-dev.
TIMES = 25
soak: tools clients features-alone
	$(MAKE) fuzz FUZZ_SECONDS=3600
	$(CARGO) build $(ALL) --bins --examples
	STORAGE_GUARD_EXAMPLES=built STORAGE_GUARD_TIMES=$(TIMES) $(CARGO) test $(ALL) --no-fail-fast -- --include-ignored
	$(CARGO) test --target-dir $(TARGET)/apart --manifest-path tests/downstream/rdkafka/Cargo.toml
	$(CARGO) test --target-dir $(TARGET)/apart --manifest-path tests/downstream/rocksdb/Cargo.toml -- --include-ignored

# Each ends in tables that README shows. The second needs Debian's redis-server and postgresql.
bench:
	$(CARGO) bench --bench guard
	$(CARGO) bench -p bench-stores
