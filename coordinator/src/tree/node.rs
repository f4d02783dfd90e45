//! One node: its data, counters, children and owner.

use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdSet;
use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::{Acl, Stat};

/// Why a node goes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// It doesn't.
    None,
    /// With its session.
    Ephemeral(SessionId),
    /// With its last child.
    Container,
    /// After so many milliseconds without children or changes.
    Ttl(i64),
    /// At this time: its session has expired, and wished that others wait.
    Lingering {
        /// The session that it went with.
        session: SessionId,
        /// The tree's time from which on it goes.
        until_ms: i64,
    },
}

impl Owner {
    /// Whether it goes with a session, or would if the session weren't gone: it has no children.
    pub const fn is_ephemeral(self) -> bool {
        matches!(self, Self::Ephemeral(_) | Self::Lingering { .. })
    }
}

/// A node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub data: Option<Bytes>,
    pub acl: Arc<[Acl]>,
    pub czxid: Zxid,
    pub mzxid: Zxid,
    pub pzxid: Zxid,
    pub ctime_ms: i64,
    pub mtime_ms: i64,
    pub version: i32,
    pub aversion: i32,
    /// Children ever created: the next sequential child's number.
    pub creates: i32,
    pub owner: Owner,
    /// Their paths, the same texts as in the tree.
    pub children: OrdSet<Arc<str>>,
}

impl Node {
    /// What clients are shown. The visible cversion counts creations and deletions.
    pub fn stat(&self) -> Stat {
        let num_children = i32::try_from(self.children.len()).unwrap_or(i32::MAX);
        Stat {
            czxid: self.czxid,
            mzxid: self.mzxid,
            ctime_ms: self.ctime_ms,
            mtime_ms: self.mtime_ms,
            version: self.version,
            cversion: self.creates.wrapping_mul(2).wrapping_sub(num_children),
            aversion: self.aversion,
            ephemeral_owner: match self.owner {
                Owner::Ephemeral(session) | Owner::Lingering { session, .. } => session,
                _ => SessionId::new(0),
            },
            data_length: self.data.as_ref().map_or(0, |data| i32::try_from(data.len()).unwrap_or(i32::MAX)),
            num_children,
            pzxid: self.pzxid,
        }
    }

    pub fn data_len(&self) -> usize {
        self.data.as_ref().map_or(0, Bytes::len)
    }
}
