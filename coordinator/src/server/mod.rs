//! Sockets of ZooKeeper's clients: accepting, framing, four-letter words, and the order of what goes out.
//!
//! | file | what it knows |
//! |---|---|
//! | `listener` | accepting, the limit on connections |
//! | `connection` | one socket: words or frames in, the outbox out |
//! | `outbox` | what waits to be sent to one client, in order, bounded |
//! | `request` | which requests are commands of the tree, and the answers to those that aren't |
//! | `four_letter` | texts for operators |
//!
//! Called by `Coordinator::start`; talks to `driver` by its bounded channel.

pub(crate) mod connection;
pub(crate) mod four_letter;
pub(crate) mod listener;
pub(crate) mod outbox;
pub(crate) mod request;
