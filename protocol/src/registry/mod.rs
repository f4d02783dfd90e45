//! The nodes in which brokers and consumers keep what they share: paths and values as Kafka 0.8 to 3.9 kept them in
//! ZooKeeper, so that its tools can read ours.
//!
//! | file | what it knows |
//! |---|---|
//! | [`path`] | every node's path, built and taken apart |
//! | [`record`] | every node's value, to JSON and back |
//! | [`group`] | values of consumer groups |
//!
//! Called by the client's registry.

pub mod group;
pub mod path;
pub mod record;
