//! ZooKeeper's tree as a state machine: commands are applied in the order of the log, and every check happens then,
//! never earlier (decision C2). Pure: no clock, no connection, no disk, no ballot.
//!
//! | file | what it knows |
//! |---|---|
//! | `command` | what a slot of the log holds |
//! | `apply` | one operation → its outcome and its events |
//! | `acl`, `path`, `node` | who may, what can be a name, what a node is |
//! | `linger` | ephemeral nodes that outlive their session for a while |
//! | `quota` | how much a subtree may hold |
//! | `sessions` | to which connection a session is attached, and which of its entries is the next |
//! | `snapshot` | all of it as bytes, and the digest that compares two trees |
//!
//! A clone shares its structure, so that a snapshot is written while the tree goes on. Called by `driver`.

mod acl;
mod apply;
mod command;
mod linger;
mod node;
mod path;
mod quota;
mod sessions;
mod snapshot;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use imbl::{OrdMap, OrdSet};
use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::{Acl, ErrorCode, Id, Stat, WatchEvent, perms};
use thiserror::Error;

pub use acl::digest_id;
pub use command::{Command, CreateKind, Entry, Write};
pub use linger::LINGER;
pub use sessions::{Fence, Stamp};

use node::{Node, Owner};
use sessions::Session;

/// The upper byte of our session ids: positive, and none of ZooKeeper's marks for containers and times to live.
const SESSION_TAG: i64 = 0x4c;
/// ACLs that are kept to be shared.
const SHARED_ACLS: usize = 1024;
/// A container that never had children is left alone for so long, in milliseconds.
const UNUSED_CONTAINER_MS: i64 = 300_000;

/// Bytes that are no entry and no snapshot of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TreeError {
    /// They end too early, or hold what can't be.
    #[error("malformed bytes of the tree")]
    Malformed,
    /// Their checksum doesn't fit.
    #[error("a snapshot of the tree is damaged")]
    Damaged,
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A session began or came back.
    Session(SessionId),
    /// A node was made.
    Created {
        /// Its path, with its number.
        path: String,
        /// Its stat.
        stat: Stat,
    },
    /// A node was changed.
    Changed(Stat),
    /// Something went, was checked, or ended.
    Done,
    /// Each part of a multi: all done, or none and each with its code.
    Parts(Vec<Part>),
}

/// What a part of a multi came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A node was made.
    Created {
        /// Its path, with its number.
        path: String,
        /// Its stat.
        stat: Stat,
    },
    /// A node was changed.
    Changed(Stat),
    /// A node was removed.
    Deleted,
    /// A version was as it should be.
    Checked,
    /// The multi failed: OK before the part that failed, its code, and RUNTIME_INCONSISTENCY behind it.
    Failed(ErrorCode),
}

/// A change of a node, for those who watch it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEvent {
    /// What happened, and where.
    pub event: WatchEvent,
    /// The node's ACL then: who may not read it is not told.
    acl: Arc<[Acl]>,
}

impl NodeEvent {
    /// Whether someone with these identities may be told.
    pub fn readable_by(&self, ids: &[Id]) -> bool {
        acl::allows(&self.acl, perms::READ, ids)
    }
}

/// What applying an entry gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The entry's own zxid, or the last one if it isn't counted.
    pub zxid: Zxid,
    /// What it came to.
    pub outcome: Result<Outcome, ErrorCode>,
    /// What watchers are to be told, in order.
    pub events: Vec<NodeEvent>,
    /// Sessions that ended with it.
    pub ended: Vec<SessionId>,
    /// It had taken effect before, or may not take effect: nothing has changed, nobody is answered.
    pub skipped: bool,
}

impl Applied {
    /// The session that began or came back.
    pub fn session(&self) -> Option<SessionId> {
        match &self.outcome {
            Ok(Outcome::Session(session)) => Some(*session),
            _ => None,
        }
    }
}

/// The tree and its sessions.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: OrdMap<Arc<str>, Arc<Node>>,
    /// ACLs that nodes have: most have one of a few.
    acls: OrdSet<Arc<[Acl]>>,
    sessions: OrdMap<SessionId, Session>,
    /// Which session was begun with which password: what its opener knows it by.
    passwords: OrdMap<[u8; 16], SessionId>,
    /// The ballot of the latest leader whose first word was applied.
    epoch: u64,
    /// Containers and nodes with a time to live.
    mortal: OrdSet<Arc<str>>,
    /// Ephemeral nodes of expired sessions, by the time at which they go.
    lingering: OrdSet<(i64, Arc<str>)>,
    zxid: Zxid,
    time_ms: i64,
    data_bytes: usize,
}

impl Default for Tree {
    fn default() -> Self {
        let mut nodes: OrdMap<Arc<str>, Arc<Node>> = OrdMap::new();
        let anyone: Arc<[Acl]> = Acl::open().into();
        let readers: Arc<[Acl]> =
            Acl::open().into_iter().map(|acl| Acl { perms: perms::READ, ..acl }).collect();
        let made = |acl: &Arc<[Acl]>, children: &[&str]| Node {
            data: Some(Bytes::new()),
            acl: Arc::clone(acl),
            czxid: Zxid::new(0),
            mzxid: Zxid::new(0),
            pzxid: Zxid::new(0),
            ctime_ms: 0,
            mtime_ms: 0,
            version: 0,
            aversion: 0,
            // ZooKeeper doesn't count its own: the root's cversion begins at -1, its numbers at 0.
            creates: 0,
            owner: Owner::None,
            children: children.iter().map(|path| Arc::from(*path)).collect(),
        };
        let mut insert = |path: &str, node: Node| nodes.insert(path.into(), Arc::new(node));
        insert("/", made(&anyone, &["/zookeeper"]));
        insert("/zookeeper", made(&anyone, &["/zookeeper/config", "/zookeeper/quota"]));
        insert("/zookeeper/quota", made(&anyone, &[]));
        // Its ACL counts as set once less than never, as ZooKeeper's own.
        let config = Node { aversion: -1, ..made(&readers, &[]) };
        insert("/zookeeper/config", config);
        let data_bytes =
            nodes.keys().filter(|path| path::split(path).is_some()).map(|path: &Arc<str>| path.len()).sum();
        let (sessions, mortal, lingering) = (OrdMap::new(), OrdSet::new(), OrdSet::new());
        let passwords = OrdMap::new();
        let (epoch, zxid, time_ms) = (0, Zxid::new(0), 0);
        let acls = OrdSet::new();
        Self { nodes, acls, sessions, passwords, epoch, mortal, lingering, zxid, time_ms, data_bytes }
    }
}

impl Tree {
    /// The last counted entry's zxid.
    pub const fn zxid(&self) -> Zxid {
        self.zxid
    }

    /// The last entry's time.
    pub const fn last_time_ms(&self) -> i64 {
        self.time_ms
    }

    /// The leadership that entries of a leader's own must name to take effect.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of all paths and data.
    pub const fn data_bytes(&self) -> usize {
        self.data_bytes
    }

    /// How many nodes go with a session.
    pub fn ephemeral_count(&self) -> usize {
        self.sessions.values().map(|session| session.ephemerals.len()).sum()
    }

    /// How many sessions live.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// All sessions with their time-outs.
    pub fn sessions(&self) -> Vec<(SessionId, u32)> {
        self.sessions.iter().map(|(id, session)| (*id, session.timeout_ms)).collect()
    }

    /// What the session's client shows when it comes back.
    pub fn session_password(&self, session: SessionId) -> Option<[u8; 16]> {
        self.sessions.get(&session).map(|session| session.password)
    }

    /// How long the session lives without a sign.
    pub fn session_timeout_ms(&self, session: SessionId) -> Option<u32> {
        self.sessions.get(&session).map(|session| session.timeout_ms)
    }

    /// A node's data and stat.
    ///
    /// # Errors
    /// `NO_NODE`, `NO_AUTH`.
    pub fn get_data(&self, path: &str, ids: &[Id]) -> Result<(Option<Bytes>, Stat), ErrorCode> {
        let node = self.readable(path, ids)?;
        Ok((node.data.clone(), node.stat()))
    }

    /// A node's stat.
    ///
    /// # Errors
    /// `NO_NODE`, `NO_AUTH`.
    pub fn exists(&self, path: &str, ids: &[Id]) -> Result<Stat, ErrorCode> {
        self.readable(path, ids).map(Node::stat)
    }

    /// A node's stat, for the server's own use.
    pub fn stat(&self, path: &str) -> Option<Stat> {
        self.find(path).map(|node| node.stat())
    }

    /// A node's children, sorted, and its stat.
    ///
    /// # Errors
    /// `NO_NODE`, `NO_AUTH`.
    pub fn children(&self, path: &str, ids: &[Id]) -> Result<(Vec<String>, Stat), ErrorCode> {
        let node = self.readable(path, ids)?;
        let name = |path: &Arc<str>| path::split(path).map_or_else(String::new, |(_, name)| name.to_owned());
        Ok((node.children.iter().map(name).collect(), node.stat()))
    }

    /// A node's ACL and stat; digests are shown to those alone who may change it.
    ///
    /// # Errors
    /// `NO_NODE`, `NO_AUTH`.
    pub fn get_acl(&self, path: &str, ids: &[Id]) -> Result<(Vec<Acl>, Stat), ErrorCode> {
        let node = self.find(path).ok_or(ErrorCode::NO_NODE)?;
        let may_admin = acl::allows(&node.acl, perms::ADMIN, ids);
        if !may_admin && !acl::allows(&node.acl, perms::READ, ids) {
            return Err(ErrorCode::NO_AUTH);
        }
        Ok((acl::shown(&node.acl, may_admin), node.stat()))
    }

    /// A session's ephemeral nodes whose paths begin with `prefix`.
    pub fn ephemerals(&self, session: SessionId, prefix: &str) -> Vec<String> {
        let Some(session) = self.sessions.get(&session) else { return Vec::new() };
        session
            .ephemerals
            .iter()
            .filter(|path| path.starts_with(prefix))
            .map(|path| path.to_string())
            .collect()
    }

    /// How many nodes are below `path`.
    ///
    /// # Errors
    /// `NO_NODE`, `NO_AUTH`.
    pub fn descendants(&self, path: &str, ids: &[Id]) -> Result<usize, ErrorCode> {
        self.readable(path, ids)?;
        Ok(self.below(path).count())
    }

    /// All nodes below `path`, without itself.
    fn below(&self, path: &str) -> impl Iterator<Item = (&Arc<str>, &Arc<Node>)> {
        let prefix = path::join(path, "");
        let from: Arc<str> = prefix.as_str().into();
        self.nodes
            .range(from..)
            .take_while(move |(other, _)| other.starts_with(prefix.as_str()))
            .filter(move |(other, _)| &***other != path)
    }

    /// At most `limit` containers and nodes with a time to live that nobody uses any more.
    pub fn removable(&self, now_ms: i64, limit: usize) -> Vec<String> {
        let unused = self.mortal.iter().filter(|path| self.is_unused(path, now_ms));
        unused.take(limit).map(|path| path.to_string()).collect()
    }

    fn is_unused(&self, path: &str, now_ms: i64) -> bool {
        let Some(node) = self.nodes.get(path).filter(|node| node.children.is_empty()) else { return false };
        match node.owner {
            Owner::Container => {
                node.creates > 0 || now_ms.saturating_sub(node.ctime_ms) > UNUSED_CONTAINER_MS
            }
            Owner::Ttl(ttl_ms) => now_ms.saturating_sub(node.mtime_ms) > ttl_ms,
            Owner::Lingering { until_ms, .. } => now_ms >= until_ms,
            Owner::None | Owner::Ephemeral(_) => false,
        }
    }

    fn readable(&self, path: &str, ids: &[Id]) -> Result<&Node, ErrorCode> {
        let node = self.find(path).ok_or(ErrorCode::NO_NODE)?;
        if acl::allows(&node.acl, perms::READ, ids) { Ok(node) } else { Err(ErrorCode::NO_AUTH) }
    }

    /// A node to be changed: nobody who holds an older tree sees it.
    fn for_change<'a>(nodes: &'a mut OrdMap<Arc<str>, Arc<Node>>, path: &str) -> Option<&'a mut Node> {
        nodes.get_mut(path).map(Arc::make_mut)
    }

    /// The same ACL, as other nodes have it.
    fn shared(&mut self, acl: Vec<Acl>) -> Arc<[Acl]> {
        if let Some(known) = self.acls.get(acl.as_slice()) {
            return Arc::clone(known);
        }
        // Whoever makes up a new one each time shares none; those that are shared come back.
        if self.acls.len() >= SHARED_ACLS {
            self.acls.clear();
        }
        let acl: Arc<[Acl]> = acl.into();
        self.acls.insert(Arc::clone(&acl));
        acl
    }

    /// A node to be read; the empty path is the root's second name, as in ZooKeeper.
    fn find(&self, path: &str) -> Option<&Node> {
        self.nodes.get(if path.is_empty() { "/" } else { path }).map(Arc::as_ref)
    }
}
