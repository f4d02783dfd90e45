//! The whole tree as bytes and back, and a digest that compares two trees.
//!
//! ```text
//! magic u32 | version u8 | zxid i64 | time i64 | epoch u64 | sessions | nodes | crc32 of all before u32
//! ```
//! Called by the driver's snapshots and by its start.

use bytes::BufMut;
use imbl::{OrdMap, OrdSet};
use loggos_protocol::ids::{SessionId, Zxid};
use sha1::{Digest as _, Sha1};

use super::command::{Reader, put_acl, put_count, put_data, put_text};
use super::node::{Node, Owner};
use super::sessions::Session;
use super::{Tree, TreeError, path};

const MAGIC: u32 = 0x4c47_5452;
const VERSION: u8 = 3;

impl Tree {
    /// All of it.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.data_bytes + self.nodes.len() * 128);
        out.put_u32(MAGIC);
        out.put_u8(VERSION);
        out.put_i64(self.zxid.raw());
        out.put_i64(self.time_ms);
        out.put_u64(self.epoch);
        put_count(&mut out, self.sessions.len());
        for (id, session) in &self.sessions {
            put_session(&mut out, *id, session);
        }
        put_count(&mut out, self.nodes.len());
        for (path, node) in &self.nodes {
            put_node(&mut out, path, node);
        }
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out
    }

    /// The tree that a snapshot was taken of.
    ///
    /// # Errors
    /// `Damaged` and `Malformed`.
    pub fn restore(bytes: &[u8]) -> Result<Self, TreeError> {
        let (bytes, crc) = bytes.split_last_chunk::<4>().ok_or(TreeError::Malformed)?;
        if crc32fast::hash(bytes).to_be_bytes() != *crc {
            return Err(TreeError::Damaged);
        }
        let mut reader = Reader(bytes);
        if reader.u32()? != MAGIC || reader.u8()? != VERSION {
            return Err(TreeError::Malformed);
        }
        let (zxid, time_ms, epoch) = (Zxid::new(reader.i64()?), reader.i64()?, reader.u64()?);
        let sessions = reader.list(|reader| {
            let id = reader.session()?;
            let (timeout_ms, password) = (reader.u32()?, reader.array()?);
            let (fence, next_number, linger_ms) = (reader.fence()?, reader.u64()?, reader.u32()?);
            let ephemerals = OrdSet::new();
            Ok((id, Session { timeout_ms, password, fence, next_number, linger_ms, ephemerals }))
        })?;
        let passwords = sessions.iter().map(|(id, session)| (session.password, *id)).collect();
        let mut tree = Self {
            nodes: OrdMap::new(),
            acls: OrdSet::new(),
            sessions: sessions.into_iter().collect(),
            passwords,
            epoch,
            mortal: OrdSet::new(),
            lingering: OrdSet::new(),
            zxid,
            time_ms,
            data_bytes: 0,
        };
        for (path, node) in reader.list(take_node)? {
            tree.put_back(path, node)?;
        }
        if !reader.0.is_empty() {
            return Err(TreeError::Malformed);
        }
        Ok(tree)
    }

    /// Nodes come sorted by path, parents before their children.
    fn put_back(&mut self, path: String, node: Node) -> Result<(), TreeError> {
        let key: std::sync::Arc<str> = path.as_str().into();
        if let Some((parent, _)) = path::split(&path) {
            let parent = Self::for_change(&mut self.nodes, parent).ok_or(TreeError::Malformed)?;
            parent.children.insert(key.clone());
            self.data_bytes += path.len();
        }
        self.data_bytes += node.data_len();
        match node.owner {
            Owner::Ephemeral(session) => {
                let session = self.sessions.get_mut(&session).ok_or(TreeError::Malformed)?;
                session.ephemerals.insert(key.clone());
            }
            Owner::Container | Owner::Ttl(_) => {
                self.mortal.insert(key.clone());
            }
            Owner::Lingering { until_ms, .. } => {
                self.lingering.insert((until_ms, key.clone()));
            }
            Owner::None => {}
        }
        let node = Node { acl: self.shared(node.acl.to_vec()), ..node };
        self.nodes.insert(key, std::sync::Arc::new(node));
        Ok(())
    }

    /// Equal nodes and sessions have equal digests, whatever the zxid and the time.
    pub fn digest(&self) -> u64 {
        let mut bytes = Vec::new();
        let nodes = self.nodes.iter().fold(0u64, |sum, (path, node)| {
            bytes.clear();
            put_node(&mut bytes, path, node);
            sum.wrapping_add(hash(&bytes))
        });
        self.sessions.iter().fold(nodes, |sum, (id, session)| {
            bytes.clear();
            put_session(&mut bytes, *id, session);
            sum.wrapping_add(hash(&bytes))
        })
    }
}

/// Eight bytes of a SHA-1: two checksums of one polynomial would tell no more than one.
fn hash(bytes: &[u8]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 20]>::from(Sha1::digest(bytes));
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn put_session(out: &mut Vec<u8>, id: SessionId, session: &Session) {
    out.put_i64(id.raw());
    out.put_u32(session.timeout_ms);
    out.put_slice(&session.password);
    out.put_u64(session.fence.0);
    out.put_u64(session.next_number);
    out.put_u32(session.linger_ms);
}

fn put_node(out: &mut Vec<u8>, path: &str, node: &Node) {
    put_text(out, path);
    put_data(out, node.data.as_ref());
    put_acl(out, &node.acl);
    for zxid in [node.czxid, node.mzxid, node.pzxid] {
        out.put_i64(zxid.raw());
    }
    out.put_i64(node.ctime_ms);
    out.put_i64(node.mtime_ms);
    for count in [node.version, node.aversion, node.creates] {
        out.put_i32(count);
    }
    let (kind, value) = match node.owner {
        Owner::None => (0, 0),
        Owner::Ephemeral(session) => (1, session.raw()),
        Owner::Container => (2, 0),
        Owner::Ttl(ttl_ms) => (3, ttl_ms),
        Owner::Lingering { session, .. } => (4, session.raw()),
    };
    out.put_u8(kind);
    out.put_i64(value);
    if let Owner::Lingering { until_ms, .. } = node.owner {
        out.put_i64(until_ms);
    }
}

fn take_node(reader: &mut Reader<'_>) -> Result<(String, Node), TreeError> {
    let (path, data, acl) = (reader.text()?, reader.data()?, reader.acl()?);
    let mut zxid = || reader.i64().map(Zxid::new);
    let (czxid, mzxid, pzxid) = (zxid()?, zxid()?, zxid()?);
    let (ctime_ms, mtime_ms) = (reader.i64()?, reader.i64()?);
    let (version, aversion, creates) = (reader.i32()?, reader.i32()?, reader.i32()?);
    let (kind, value) = (reader.u8()?, reader.i64()?);
    let owner = match kind {
        0 => Owner::None,
        1 => Owner::Ephemeral(SessionId::new(value)),
        2 => Owner::Container,
        3 => Owner::Ttl(value),
        4 => Owner::Lingering { session: SessionId::new(value), until_ms: reader.i64()? },
        _ => return Err(TreeError::Malformed),
    };
    let acl = acl.into();
    let children = OrdSet::new();
    let node = Node {
        data,
        acl,
        czxid,
        mzxid,
        pzxid,
        ctime_ms,
        mtime_ms,
        version,
        aversion,
        creates,
        owner,
        children,
    };
    Ok((path, node))
}
