//! What a node is described by: its stat, its ACL, and the event of its change.

use crate::ids::{SessionId, Zxid};

/// A node's counters and times, 68 bytes on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// What created it.
    pub czxid: Zxid,
    /// What changed its data last.
    pub mzxid: Zxid,
    /// When it was created, in milliseconds since 1970.
    pub ctime_ms: i64,
    /// When its data changed last, in milliseconds since 1970.
    pub mtime_ms: i64,
    /// Changes of its data.
    pub version: i32,
    /// Creations and deletions of its children.
    pub cversion: i32,
    /// Changes of its ACL.
    pub aversion: i32,
    /// The session that it ends with; 0 if it is not ephemeral.
    pub ephemeral_owner: SessionId,
    /// Bytes of its data.
    pub data_length: i32,
    /// How many children it has.
    pub num_children: i32,
    /// What changed its list of children last.
    pub pzxid: Zxid,
}

/// Bits of an ACL's permissions.
pub mod perms {
    /// Read the data, list the children.
    pub const READ: i32 = 1;
    /// Write the data.
    pub const WRITE: i32 = 2;
    /// Make children.
    pub const CREATE: i32 = 4;
    /// Remove children.
    pub const DELETE: i32 = 8;
    /// Change the ACL.
    pub const ADMIN: i32 = 16;
    /// All of them.
    pub const ALL: i32 = 31;
}

/// Who someone is, under a scheme.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// `world`, `ip`, `digest`, `auth`, `super`.
    pub scheme: String,
    /// The name under that scheme.
    pub id: String,
}

/// What someone may do to a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Acl {
    /// Bits of [`perms`].
    pub perms: i32,
    /// To whom they are given.
    pub id: Id,
}

impl Acl {
    /// Anyone may do anything.
    pub fn open() -> Vec<Self> {
        vec![Self { perms: perms::ALL, id: Id { scheme: "world".to_owned(), id: "anyone".to_owned() } }]
    }
}

/// What happened to a node, as a watcher is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i32)]
pub enum EventType {
    /// It was made.
    NodeCreated = 1,
    /// It was removed.
    NodeDeleted = 2,
    /// Its data changed.
    NodeDataChanged = 3,
    /// A child of it was made or removed.
    NodeChildrenChanged = 4,
}

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// What happened.
    pub event: EventType,
    /// To which node.
    pub path: String,
}
