//! The coordination server: a tree of small nodes with sessions and watches, spoken to in ZooKeeper's protocol.
//!
//! | room | what it knows |
//! |---|---|
//! | [`config`] | options |
//! | [`error`] | why it can't start |
//! | `tree` | the state machine: nodes, ACLs, sessions |
//! | [`paxos`] | the agreement of several servers on one order of entries |
//! | [`ledger`] | promise, votes and snapshots on disk |
//! | `peer` | the wire between the servers of a cell |
//! | `forming` | how a cell begins, and how a server is let in |
//! | `driver` | one task that owns engine and tree: events, actions, application, replies |
//! | [`watches`] | who is told of which change |
//! | [`session_expiry`] | who was silent for too long |
//! | `start` | starting and stopping |
//! | `server` | sockets, connections, four-letter words |
//! | `metrics` | numbers |
//!
//! Called by the binary: [`Coordinator::start`], and [`CoordinatorHandle::shutdown`] at the end.

pub mod config;
mod driver;
pub mod error;
mod forming;
pub mod ledger;
mod metrics;
pub mod paxos;
mod peer;
mod server;
pub mod session_expiry;
mod start;
pub mod tree;
pub mod watches;

pub use config::CoordinatorOptions;
pub use driver::{CellStatus, MemberStatus};
pub use error::{CoordinatorError, DriverError, LedgerError};
pub use start::{Coordinator, CoordinatorHandle, Operator};
