//! Bytes and values that cross Loggos' borders, and nothing else: no socket, no file, no clock, no thread.
//!
//! | room | what it knows |
//! |---|---|
//! | [`ids`] | newtypes for everything that is counted, named or fenced |
//! | [`frame`] | the 4-byte length prefix that Kafka, ZooKeeper and the ensemble's own servers share |
//! | [`batch`] | Kafka's v2 record batch: view, scan and validate, build, read |
//! | [`kafka`] | Kafka's messages, the table of API keys and versions, error codes |
//! | [`zookeeper`] | ZooKeeper's records |
//! | [`registry`] | paths and values of the nodes in which brokers and consumers keep what they share |
//!
//! Bytes from the wire or the disk never panic here: every reader returns an [`error`].

pub mod batch;
pub mod error;
pub mod frame;
pub mod ids;
pub mod kafka;
pub mod registry;
pub mod zookeeper;
