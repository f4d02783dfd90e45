//! The broker: partitions, their logs, and Kafka's protocol in front of them.
//!
//! | room | what it knows |
//! |---|---|
//! | [`log`] | one partition's bytes on disk |
//! | [`partition`] | log, role, who waits |
//! | [`metadata`] | this broker's view of the cluster |
//! | [`controller`] | what is decided for the whole cluster |
//! | [`group`] | consumer groups |
//! | [`api`] | one handler per API key |
//! | `server` | sockets, frames in, answers out in order |
//! | [`config`] | Kafka's configs, as far as they are known |
//! | `mend` | rot, found and mended |
//! | `registration` | presence in the ensemble, and the lease that it gives |
//! | [`broker`] | the wiring: [`Broker::start`] |

pub mod api;
pub mod broker;
mod clock;
pub mod config;
pub mod controller;
pub mod error;
pub mod group;
pub mod log;
mod mend;
pub mod metadata;
pub mod partition;
mod registration;
mod server;

pub use broker::{Broker, BrokerHandle, BrokerOptions};
pub use error::BrokerError;
