//! ZooKeeper's records: bytes as its clients write and read them (3.5 and newer, 3.9's operations included).
//!
//! | file | what it knows |
//! |---|---|
//! | `code` | operation codes, error codes, special xids |
//! | `stat` | stat, ACL, watch event |
//! | [`jute`] | integers, buffers, strings and vectors, read with checks and written |
//! | [`request`] | the connect request and every operation's body |
//! | [`reply`] | the connect response, every reply's body, notifications |
//!
//! Called by the coordinator's server and tree.

pub mod code;
pub mod jute;
pub mod reply;
pub mod request;
mod stat;

pub use code::ErrorCode;
pub use jute::JuteError;
pub use reply::{ConnectResponse, PartReply, Reply, ReplyHeader};
pub use request::{ConnectRequest, Request, RequestHeader};
pub use stat::{Acl, EventType, Id, Stat, WatchEvent, perms};
