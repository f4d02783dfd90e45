//! Sockets: connections are accepted, frames taken off them, answers sent in the order of the requests.
//!
//! | file | what it knows |
//! |---|---|
//! | `listener` | accepting, limits, the end |
//! | `connection` | one connection's two halves: requests begun in order, answers sent in order |
//! | `send` | an answer's pieces onto the socket, those in files by sendfile |
//!
//! Called by `broker`.

mod connection;
mod listener;
mod send;

pub(crate) use listener::Listener;
