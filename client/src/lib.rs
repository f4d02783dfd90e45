//! Clients of Loggos and of any Kafka.
//!
//! | room | what it does |
//! |---|---|
//! | [`connection`] | one socket to one broker: versions, pipelining, deadlines |
//! | [`cluster`], [`metadata`] | who leads what, and the connections to them |
//! | [`producer`] | records into batches, batches to leaders, retries that keep the order |
//! | [`simple`] | fetching by hand, at an offset, from a partition's leader |
//! | [`reader`] | many partitions read side by side |
//! | [`consumer`] | message streams of groups that their members run, and the consumer of groups that brokers run |
//! | [`admin`], [`group_admin`] | topics, partitions, configurations; groups and their offsets |
//! | [`registry`] | what brokers share through the coordinator, and the session with it |
//! | [`lock`] | locks, semaphores, elections and sequencers on the coordinator |
//! | [`config`] | every setting, with its default |
//!
//! Nothing here knows the broker's crate: all that crosses is Kafka's wire.

pub mod admin;
pub mod cluster;
pub mod config;
pub mod connection;
pub mod consumer;
pub mod error;
mod fetched;
pub mod group_admin;
pub mod lock;
pub mod message;
pub mod metadata;
pub mod producer;
pub mod reader;
pub mod registry;
pub mod simple;

pub use admin::Admin;
pub use cluster::{Cluster, Lane};
pub use config::{
    Acks, ClusterConfig, ConsumerConfig, GroupConfig, Isolation, OffsetReset, ProducerConfig, StreamsConfig,
};
pub use connection::Connection;
pub use consumer::{ConsumerConnector, ConsumerError, GroupConsumer, MessageStream, Received, Subscription};
pub use error::ClientError;
pub use message::Message;
pub use producer::{Delivery, MessageSet, Partitioner, Producer, RecordMeta, SetDelivery};
pub use reader::Reader;
pub use simple::{Fetched, OffsetSpec, SimpleConsumer};
