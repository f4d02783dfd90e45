//! Multi-Paxos: how the servers of a cell agree on a sequence of values.
//!
//! Pure: no clock, thread, socket, file or randomness of its own; values are opaque bytes and no znode is known
//! here. One `engine::Engine` per server takes an [`event::Event`] at a time and says what to do:
//!
//! ```text
//!   peers' messages ─┐                                ┌─> Persist ... (comes back as Persisted)
//!   Persisted        │     acceptor   promises, votes │─> Send to a peer
//!   Propose, Read    ├──>  proposer   phase 1 and 2   ├─> Apply the next chosen value
//!   Tick             │     learner    chosen prefix   │─> ReadReady, Leader, TakeSnapshot ...
//!   snapshots        ┘     lease      who may lead    └
//! ```
//!
//! `basic.rs` is the paper's single-decree algorithm by itself, to be read first. Only `driver` names this room.

pub mod acceptor;
pub mod ballot;
pub mod basic;
pub mod clocks;
pub mod codec;
pub mod engine;
pub mod event;
pub mod learner;
pub mod lease;
pub mod membership;
pub mod message;
pub mod moment;
pub mod mutation;
mod outbox;
mod proposer;
pub mod quorum;
pub mod recovery;
pub mod value;
