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

.PHONY: test tools clients lint unit unit-serving unit-calling unit-rest unit-doc interface screenshots fuzz plain apart features features-alone counts expect package soak bench

# The last three compile one crate at a time, mostly, and partly in folders of their own: together they keep two cores busy.
test: tools clients lint unit fuzz plain apart
	$(MAKE) --jobs=3 --output-sync=target features counts package

# Debian packages that the tests need: program:package.
TOOLS = curl:curl java:default-jdk-headless node:nodejs /usr/bin/python3:python3 \
	mkfs.btrfs:btrfs-progs mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs fusermount3:fuse3 bindfs \
	prlimit:util-linux unshare:util-linux ip:iproute2 cc:gcc c++:g++ \
	litmus rclone cadaver mount.davfs:davfs2 \
	setpriv:util-linux valgrind nginx:nginx-light haproxy openssl faketime redis-server mariadbd:mariadb-server nats-server clickhouse-server promtool:prometheus \
	chromium chromedriver:chromium-driver

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

# All tests, with those that mount filesystems and start servers and clients. Each of these waits now and then, so two groups of them
# run at once. The rest is whatever the workspace has beside them; programs have no tests of their own. What takes minutes is run by `soak`.
TEST = $(CHECKED) STORAGE_GUARD_EXAMPLES=built RUST_TEST_THREADS=$$((3 * $$(nproc) / 2)) $(CARGO) test $(ALL)
SERVING = examples page stores
CALLING = adopters clients downstream guard
unit: clients lint
	$(MAKE) --jobs=2 --output-sync=target unit-serving unit-calling
	$(MAKE) --jobs=2 --output-sync=target unit-rest unit-doc
unit-serving:
	$(TEST) $(SERVING:%=--test %) -- --include-ignored --skip takes_minutes
unit-calling:
	$(TEST) $(CALLING:%=--test %) -- --include-ignored
unit-rest:
	rest=$$(/usr/bin/python3 tests/targets.py $(SERVING) $(CALLING)) && \
		$(TEST) --lib $$rest -- --include-ignored
unit-doc:
	STORAGE_GUARD_INTERFACE=$(INTERFACE) $(TEST) --doc
	$(LISTED)

# The public interface, one item a line. `interface` writes the list: its diff shows what a change does.
INTERFACE = $(abspath $(TARGET))/interface
LISTED = $(CHECKED) $(CARGO) build $(ALL) --bin interface && \
	$(TARGET)/debug/interface $(INTERFACE)/tower_storage_guard.json tests/public-api.txt
interface:
	STORAGE_GUARD_INTERFACE=$(INTERFACE) $(TEST) --doc
	$(LISTED) --accept

# The pictures of README: of the page of axum-upload, as a test finds it.
screenshots: tools
	$(CARGO) build -p axum-upload
	STORAGE_GUARD_EXAMPLES=built STORAGE_GUARD_SCREENSHOTS=$(CURDIR)/examples/axum-upload/screenshots \
		$(CARGO) test -p test-page -- --ignored screenshots

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

# The servers that README starts. In the workspace they may live on features that another member asks for. `features` looks
# at the first of them by itself, and `soak` at each.
SERVERS = axum-upload documents quota-admin tonic-upload tus-upload webdav

# No feature changes what another does, and none is needed: each of the builds has half of the features, and any two features
# are apart in one of them. Clippy has looked at all of the library in `lint`, so rustc alone does here, which takes two thirds
# of the time. It builds, because `check` has no use for what was built for the tests.
ALONE = RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/tests/wrappers/rustc $(CARGO) build --lib --no-default-features
FEATURES = /usr/bin/python3 tests/features/builds.py
features: tools
	$(ALONE) -p tower-storage-guard -p test-features
	builds=$$($(FEATURES)) && for build in $$builds; do \
		$(ALONE) -p tower-storage-guard -p test-features --features $$build || exit 1; \
	done
	$(CARGO) check -p axum-upload

# Each feature by itself, where no package brings what another needs: each run compiles the dependencies again.
features-alone: tools
	features=$$($(FEATURES) --all) && for feature in $$features; do \
		$(ALONE) --features $$feature || exit 1; \
	done
	for package in $(SERVERS); do $(CARGO) check -p $$package || exit 1; done

# No request may take 3 % more instructions or allocations than benches/expected.txt says. `expect` writes that file: say in
# the commit why a count rises. Its package has few dependencies, since they are compiled once more, optimised.
COUNT = $(CARGO) bench -p bench-guard --bench count --
counts: tools
	$(COUNT) --check
expect: tools
	$(COUNT) --accept

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

# Each writes its sections of BENCHMARKS.md. They are built one by one: the first is about a guard without stores.
bench: tools
	$(CARGO) bench -p bench-guard
	$(CARGO) bench -p bench-server
	$(CARGO) bench -p bench-stores
