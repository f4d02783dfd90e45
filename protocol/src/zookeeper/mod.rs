//! ZooKeeper's records: bytes as its clients write and read them (3.5 and newer, 3.9's operations included).
//!
//! | file | what it knows |
//! |---|---|
//! | `code` | operation codes, error codes, special xids |
//! | `stat` | stat, ACL, watch event |
//!
//! Called by the coordinator's server and tree.

pub mod code;
mod stat;

pub use code::ErrorCode;
pub use stat::{Acl, EventType, Id, Stat, WatchEvent, perms};
