//! A tree written a second time, for comparison: one flat map, every rule spelt out, nothing shared with the real
//! one but the names of requests and outcomes. Open ACLs and no quotas, as the workload uses them.

use std::collections::BTreeMap;

use bytes::Bytes;
use loggos_coordinator::tree::{Command, CreateKind, Outcome, Part, Write};
use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::{ErrorCode, Stat};

use crate::replica::Fence;

/// The upper byte of session ids.
const SESSION_TAG: i64 = 0x4c;

#[derive(Clone, Debug, Default)]
struct Znode {
    data: Option<Bytes>,
    born: i64,
    changed: i64,
    children_changed: i64,
    born_ms: i64,
    changed_ms: i64,
    version: i32,
    born_children: i32,
    owner: i64,
}

/// The whole.
#[derive(Clone, Debug)]
pub struct Reference {
    nodes: BTreeMap<String, Znode>,
    /// Live sessions: the connection that each belongs to, and how many of its operations were done there.
    sessions: BTreeMap<i64, (Fence, u64)>,
    passwords: BTreeMap<[u8; 16], i64>,
    epoch: u64,
    /// The last zxid given.
    pub zxid: i64,
    time_ms: i64,
}

fn parent(path: &str) -> String {
    match path.rfind('/') {
        Some(0) | None => "/".to_owned(),
        Some(at) => path[..at].to_owned(),
    }
}

impl Reference {
    /// The tree that every cell begins with.
    pub fn new() -> Self {
        let names = ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"];
        let empty = || Znode { data: Some(Bytes::new()), ..Znode::default() };
        let nodes = names.into_iter().map(|name| (name.to_owned(), empty())).collect();
        Self { nodes, sessions: BTreeMap::new(), passwords: BTreeMap::new(), epoch: 0, zxid: 0, time_ms: 0 }
    }

    fn children_of(&self, path: &str) -> Vec<String> {
        let own = |other: &&String| other.as_str() != "/" && parent(other) == path;
        let name = |other: &String| other.rsplit('/').next().unwrap_or_default().to_owned();
        self.nodes.keys().filter(own).map(name).collect()
    }

    fn stat_of(&self, path: &str) -> Stat {
        let node = &self.nodes[path];
        let count = self.children_of(path).len() as i32;
        Stat {
            czxid: Zxid::new(node.born),
            mzxid: Zxid::new(node.changed),
            ctime_ms: node.born_ms,
            mtime_ms: node.changed_ms,
            version: node.version,
            cversion: 2 * node.born_children - count,
            aversion: 0,
            ephemeral_owner: SessionId::new(node.owner),
            data_length: node.data.as_ref().map_or(0, |data| data.len() as i32),
            num_children: count,
            pzxid: Zxid::new(node.children_changed),
        }
    }

    /// A node's data.
    pub fn data(&self, path: &str) -> Result<(Option<Bytes>, Stat), ErrorCode> {
        let node = self.nodes.get(path).ok_or(ErrorCode::NO_NODE)?;
        Ok((node.data.clone(), self.stat_of(path)))
    }

    /// A node's children.
    pub fn children(&self, path: &str) -> Result<(Vec<String>, Stat), ErrorCode> {
        if self.nodes.contains_key(path) {
            Ok((self.children_of(path), self.stat_of(path)))
        } else {
            Err(ErrorCode::NO_NODE)
        }
    }

    /// A leader's first word.
    pub fn lead(&mut self, epoch: u64, time_ms: i64) {
        self.epoch = epoch;
        self.time_ms = self.time_ms.max(time_ms);
    }

    /// A membership takes a zxid.
    pub fn configure(&mut self, time_ms: i64) {
        self.zxid += 1;
        self.time_ms = self.time_ms.max(time_ms);
    }

    /// Does what a command says; `None` if it is none of its turn, or changes nothing that is counted.
    pub fn apply(&mut self, command: &Command, time_ms: i64) -> Option<Result<Outcome, ErrorCode>> {
        self.time_ms = self.time_ms.max(time_ms);
        match command {
            Command::Attach { session, before, fence } => {
                if let Some(held) = self.sessions.get_mut(&session.raw())
                    && held.0 == *before
                    && before != fence
                {
                    *held = (*fence, 0);
                }
                None
            }
            Command::CreateSession { password, fence, .. } => {
                if self.passwords.get(password).is_some_and(|session| self.sessions.contains_key(session)) {
                    return None;
                }
                self.zxid += 1;
                let id = (SESSION_TAG << 56) + self.zxid;
                self.sessions.insert(id, (*fence, 0));
                self.passwords.insert(*password, id);
                None
            }
            Command::Expire { session, epoch } => {
                if *epoch == self.epoch {
                    self.zxid += 1;
                    self.end(session.raw());
                }
                None
            }
            Command::Close { session, stamp } => {
                self.takes_turn(session.raw(), stamp.fence, stamp.number).then(|| {
                    self.end(session.raw());
                    Ok(Outcome::Done)
                })
            }
            Command::Write { session, stamp, write, .. } => self
                .takes_turn(session.raw(), stamp.fence, stamp.number)
                .then(|| self.write(session.raw(), write)),
            other => panic!("the workload makes no {other:?}"),
        }
    }

    fn takes_turn(&mut self, session: i64, fence: Fence, number: u64) -> bool {
        match self.sessions.get_mut(&session) {
            Some((held, done)) if *held == fence && *done + 1 == number => {
                *done += 1;
                self.zxid += 1;
                true
            }
            _ => false,
        }
    }

    fn end(&mut self, session: i64) {
        if self.sessions.remove(&session).is_some() {
            let owned = self.nodes.iter().filter(|(_, node)| node.owner == session);
            let paths: Vec<String> = owned.map(|(path, _)| path.clone()).collect();
            paths.iter().for_each(|path| self.unlink(path));
        }
    }

    fn write(&mut self, session: i64, write: &Write) -> Result<Outcome, ErrorCode> {
        let Write::Multi(parts) = write else {
            return self.one(session, write).map(|part| match part {
                Part::Created { path, stat } => Outcome::Created { path, stat },
                Part::Changed(stat) => Outcome::Changed(stat),
                _ => Outcome::Done,
            });
        };
        let mut copy = self.clone();
        let mut results = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            match copy.one(session, part) {
                Ok(result) => results.push(result),
                Err(code) => {
                    let mut failed = vec![Part::Failed(ErrorCode::OK); at];
                    failed.push(Part::Failed(code));
                    failed.resize(parts.len(), Part::Failed(ErrorCode::RUNTIME_INCONSISTENCY));
                    return Ok(Outcome::Parts(failed));
                }
            }
        }
        *self = copy;
        Ok(Outcome::Parts(results))
    }

    fn one(&mut self, session: i64, write: &Write) -> Result<Part, ErrorCode> {
        match write {
            Write::Create { path, data, kind, .. } => self.create(session, path, data.clone(), *kind),
            Write::Delete { path, version } => {
                let node = self.nodes.get(path).ok_or(ErrorCode::NO_NODE)?;
                fits(*version, node.version)?;
                if !self.children_of(path).is_empty() {
                    return Err(ErrorCode::NOT_EMPTY);
                }
                self.unlink(path);
                Ok(Part::Deleted)
            }
            Write::SetData { path, data, version } => {
                let (zxid, time_ms) = (self.zxid, self.time_ms);
                let node = self.nodes.get_mut(path).ok_or(ErrorCode::NO_NODE)?;
                fits(*version, node.version)?;
                node.data.clone_from(data);
                node.version += 1;
                (node.changed, node.changed_ms) = (zxid, time_ms);
                Ok(Part::Changed(self.stat_of(path)))
            }
            Write::Check { path, version } => {
                let node = self.nodes.get(path).ok_or(ErrorCode::NO_NODE)?;
                fits(*version, node.version)?;
                Ok(Part::Checked)
            }
            other => panic!("the workload makes no {other:?}"),
        }
    }

    fn create(
        &mut self,
        session: i64,
        path: &str,
        data: Option<Bytes>,
        kind: CreateKind,
    ) -> Result<Part, ErrorCode> {
        let above = parent(path);
        let parent = self.nodes.get(&above).ok_or(ErrorCode::NO_NODE)?;
        let sequential = matches!(kind, CreateKind::PersistentSequential | CreateKind::EphemeralSequential);
        let path = if sequential { format!("{path}{:010}", parent.born_children) } else { path.to_owned() };
        if self.nodes.contains_key(&path) {
            return Err(ErrorCode::NODE_EXISTS);
        }
        if parent.owner != 0 {
            return Err(ErrorCode::NO_CHILDREN_FOR_EPHEMERALS);
        }
        let ephemeral = matches!(kind, CreateKind::Ephemeral | CreateKind::EphemeralSequential);
        let (zxid, time_ms) = (self.zxid, self.time_ms);
        let node = Znode {
            data,
            born: zxid,
            changed: zxid,
            children_changed: zxid,
            born_ms: time_ms,
            changed_ms: time_ms,
            owner: if ephemeral { session } else { 0 },
            ..Znode::default()
        };
        self.nodes.insert(path.clone(), node);
        let parent = self.nodes.get_mut(&above).expect("it was just found");
        parent.born_children += 1;
        parent.children_changed = zxid;
        let stat = self.stat_of(&path);
        Ok(Part::Created { path, stat })
    }

    fn unlink(&mut self, path: &str) {
        self.nodes.remove(path);
        let zxid = self.zxid;
        if let Some(parent) = self.nodes.get_mut(&parent(path)) {
            parent.children_changed = zxid;
        }
    }
}

fn fits(wanted: i32, found: i32) -> Result<(), ErrorCode> {
    if wanted == -1 || wanted == found { Ok(()) } else { Err(ErrorCode::BAD_VERSION) }
}
