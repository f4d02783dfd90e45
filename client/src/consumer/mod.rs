//! Consuming in groups: message streams of groups that their members run (the 2011 API), and the everyday consumer of
//! groups that brokers run (KIP-848).
//!
//! | file | what it does |
//! |---|---|
//! | `connector`, `stream` | the 2011 API: a connector, its streams, their messages |
//! | `assignment`, `rebalance` (P) | Algorithm 1: who reads what, and in which order of steps that changes |
//! | `balancer`, `listen` | one member's task, and what wakes it |
//! | `group`, `member`, `group_broker` | the everyday consumer, its task, and its questions to the broker that runs the group |
//! | `prefetch`, `lane`, `queue`, `intake` | fetching ahead into bounded queues; positions; records out of them |
//! | `error` | why a consumer can't |
//!
//! Called by whoever embeds this crate, and by the tools.

mod assignment;
mod balancer;
mod connector;
mod error;
mod group;
mod group_broker;
mod intake;
mod lane;
mod listen;
mod member;
mod prefetch;
mod queue;
mod rebalance;
mod stream;

#[cfg(test)]
mod rebalance_sim;

pub use balancer::Offsets;
pub use connector::ConsumerConnector;
pub use error::ConsumerError;
pub use group::{GroupConsumer, Subscription};
pub use stream::{MessageStream, Messages, Received};
