# Every target is safe to run twice; `make verify` is what CI runs.
CARGO ?= cargo

.PHONY: verify fmt lint docs test fix build setup sim interop chaos compose bench fuzz

# What CI runs, read-only.
verify: setup fmt lint docs test

# Programs that the tests talk to: Debian's kcat and ZooKeeper, pinned client libraries. Says what it can't get.
setup:
	tests/setup

fmt:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet

# Unit, property and crash tests, slices of every simulation, and a round with each kind of real client.
test: setup
	$(CARGO) test --workspace --no-fail-fast

# Mends what can be mended by a tool.
fix:
	$(CARGO) fmt --all
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged

build:
	$(CARGO) build --release

# The simulations with many seeds: journal and log crashes, groups, replicas, the coordinator's
# ensemble.
sim:
	LOGGOS_SIM_SEEDS=$${LOGGOS_SIM_SEEDS:-200} LOGGOS_GROUP_SEEDS=$${LOGGOS_GROUP_SEEDS:-20000} \
	LOGGOS_REPLICA_SEEDS=$${LOGGOS_REPLICA_SEEDS:-5000} LOGGOS_PAXOS_SEEDS=$${LOGGOS_PAXOS_SEEDS:-5000} \
	$(CARGO) test --release -p loggos-storage -p loggos-broker -p loggos-coordinator -- --nocapture

# Hundreds of MB of real lines through every client and codec, byte by byte; thousands of random histories beside a
# real ZooKeeper.
interop: setup build
	benches/peers/fetch
	tests/setup --interop
	LOGGOS_DIFFERENTIAL_SEEDS=$${LOGGOS_DIFFERENTIAL_SEEDS:-3000} \
	$(CARGO) test --release -p loggos-coordinator --test differential
	LOGGOS_BINARY=$${LOGGOS_BINARY:-$${CARGO_TARGET_DIR:-target}/release/loggos} \
	$(CARGO) test --release -p loggos --test e2e -- --ignored --nocapture registry_sources apache_kafka_

# Hundreds of kills under load, power cuts on a loop device (root), and twenty minutes of three brokers that lose each other.
chaos: setup
	LOGGOS_KILLS=$${LOGGOS_KILLS:-200} LOGGOS_CHAOS_SECONDS=$${LOGGOS_CHAOS_SECONDS:-1200} \
	$(CARGO) test --release -p loggos --test e2e -- --nocapture kill_storm power_cut disk_full chaos_of_every_kind
	LOGGOS_FAIL_OVERS=$${LOGGOS_FAIL_OVERS:-50} $(CARGO) test --release -p loggos --test e2e -- --nocapture fail_over
	$(CARGO) test --release -p loggos --test e2e -- --ignored --nocapture failover_gaps

# docker-compose.yml brought up for real, a client outside, each container killed in turn (Docker, or podman as root).
compose: build
	tests/compose/run

# Loggos beside Apache Kafka, the same client, the same machine; figures for benches/RESULTS.md.
bench: build
	benches/peers/fetch
	tests/setup
	$(CARGO) bench -p loggos-benches --bench end_to_end -- $(BENCH)
	$(CARGO) bench -p loggos-benches --bench registry -- $(BENCH_REGISTRY)

# Each decoder for a minute (nightly and cargo-fuzz).
fuzz:
	@cargo +nightly fuzz --version >/dev/null 2>&1 || { echo "fuzz: needs a nightly toolchain and cargo install cargo-fuzz"; exit 1; }
	cd protocol && for target in frame batch kafka_request jute; do \
	  cargo +nightly fuzz run $$target -- -max_total_time=$${FUZZ_SECONDS:-60} || exit 1; done
