//! The binary as a user runs it, with real clients on the other side of the wire. Everything listens on free
//! loopback ports, lives in a temporary directory, and ends with its test.

#![expect(clippy::print_stderr, reason = "what a test skips, and what a server said, is for whoever runs it")]

mod agent;
mod bad_batches;
mod bad_input;
mod cell;
mod clients;
mod cluster;
mod command_line;
mod coordinator_away;
mod cuts;
mod disk_full;
mod exposure;
mod fail_over;
mod failover;
mod failover_gaps;
mod group_clients;
mod group_consumer;
mod group_refusals;
mod groups;
mod kafka_on_zookeeper;
mod kafka_tools;
mod kill_storm;
mod librdkafka;
mod locks;
mod mirror;
mod moves;
mod power_cut;
mod process;
mod reconnect;
mod registry_sources;
mod replication;
mod storm;
mod streams;
mod versions;
mod wire;
mod zookeeper;
