//! One entry → what it came to, what watchers are told, whose session ended. The order of the checks is
//! ZooKeeper's, as its clients and test suites observe which error wins.
//!
//! Called by the driver through [`Tree::apply`] alone.

use std::sync::Arc;

use bytes::Bytes;
use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::{Acl, ErrorCode, EventType, Id, Stat, WatchEvent, perms};

use super::command::{Command, CreateKind, Entry, Write};
use super::node::{Node, Owner};
use super::quota::Usage;
use super::{Applied, LINGER, NodeEvent, Outcome, Part, Tree, acl, path};

/// Nodes that are always there.
const ROOTS: [&str; 4] = ["/", "/zookeeper", "/zookeeper/quota", CONFIG];
/// Shows the membership.
const CONFIG: &str = "/zookeeper/config";

/// Who makes a change.
struct Caller<'a> {
    session: SessionId,
    ids: &'a [Id],
}

impl Tree {
    /// Applies the next entry of the log.
    pub fn apply(&mut self, entry: &Entry) -> Applied {
        self.time_ms = self.time_ms.max(entry.time_ms);
        if let Some(outcome) = self.apply_uncounted(&entry.command) {
            let skipped = !matches!(entry.command, Command::Attach { .. } | Command::Noop);
            return Applied { zxid: self.zxid, outcome, events: vec![], ended: vec![], skipped };
        }
        self.zxid = Zxid::new(self.zxid.raw() + 1);
        let mut events = Vec::new();
        let mut ended = Vec::new();
        let outcome = match &entry.command {
            Command::CreateSession { timeout_ms, password, fence } => {
                Ok(self.begin_session(*timeout_ms, *password, *fence))
            }
            Command::Close { session, .. } | Command::Expire { session, .. } => {
                let expired = matches!(entry.command, Command::Expire { .. });
                self.end_session(*session, expired, &mut events).map(|()| {
                    ended.push(*session);
                    Outcome::Done
                })
            }
            Command::Write { session, ids, write, .. } => {
                self.write(&Caller { session: *session, ids }, write, &mut events)
            }
            Command::Remove { path } => self.remove_if_unused(path, &mut events),
            Command::Attach { .. } | Command::Noop => Ok(Outcome::Done),
        };
        Applied { zxid: self.zxid, outcome, events, ended, skipped: false }
    }

    /// What comes of an entry that takes no zxid: it only moves a session, or does nothing, as it did before or
    /// must not any more. `None` for all others.
    fn apply_uncounted(&mut self, command: &Command) -> Option<Result<Outcome, ErrorCode>> {
        match command {
            Command::Noop => Some(Ok(Outcome::Done)),
            Command::Attach { session, before, fence } => Some(self.attach(*session, *before, *fence)),
            Command::CreateSession { password, .. } => {
                self.begun_with(password).map(|session| Ok(Outcome::Session(session)))
            }
            Command::Expire { epoch, .. } if *epoch != self.epoch => Some(Err(ErrorCode::SESSION_EXPIRED)),
            Command::Close { session, stamp } | Command::Write { session, stamp, .. } => {
                let admitted = self.admit(*session, *stamp);
                (!admitted).then_some(Err(ErrorCode::SESSION_EXPIRED))
            }
            Command::Expire { .. } | Command::Remove { .. } => None,
        }
    }

    /// A new leader's first word: what older leaders decided by themselves has no effect from now on.
    pub fn lead(&mut self, epoch: u64, time_ms: i64) {
        self.time_ms = self.time_ms.max(time_ms);
        self.epoch = epoch;
    }

    /// A change of the membership, as `/zookeeper/config` shows it. It takes a zxid; `text` makes the node's data
    /// of it.
    pub fn configure(&mut self, time_ms: i64, text: impl FnOnce(Zxid) -> Bytes) -> Applied {
        self.time_ms = self.time_ms.max(time_ms);
        self.zxid = Zxid::new(self.zxid.raw() + 1);
        let (zxid, time_ms, data) = (self.zxid, self.time_ms, text(self.zxid));
        let mut events = Vec::new();
        if let Some(node) = Self::for_change(&mut self.nodes, CONFIG) {
            self.data_bytes = self.data_bytes + data.len() - node.data_len();
            node.data = Some(data);
            node.version = next_version(node.version);
            (node.mzxid, node.mtime_ms) = (zxid, time_ms);
            events.push(event(EventType::NodeDataChanged, CONFIG, &node.acl));
        }
        Applied { zxid, outcome: Ok(Outcome::Done), events, ended: vec![], skipped: false }
    }

    /// The first membership, which stands in the tree before any entry is applied.
    pub fn found(&mut self, text: Bytes) {
        if let Some(node) = Self::for_change(&mut self.nodes, CONFIG) {
            self.data_bytes = self.data_bytes + text.len() - node.data_len();
            node.data = Some(text);
        }
    }

    fn remove_if_unused(&mut self, path: &str, events: &mut Vec<NodeEvent>) -> Result<Outcome, ErrorCode> {
        if !self.is_unused(path, self.time_ms) {
            return Err(ErrorCode::NOT_EMPTY);
        }
        self.take_out(path, events);
        Ok(Outcome::Done)
    }

    fn write(
        &mut self,
        caller: &Caller<'_>,
        write: &Write,
        events: &mut Vec<NodeEvent>,
    ) -> Result<Outcome, ErrorCode> {
        match write {
            Write::Multi(parts) => Ok(Outcome::Parts(self.multi(caller, parts, events))),
            Write::Check { .. } => Err(ErrorCode::UNIMPLEMENTED),
            _ => self.part(caller, write, events).map(|part| match part {
                Part::Created { path, stat } => Outcome::Created { path, stat },
                Part::Changed(stat) => Outcome::Changed(stat),
                Part::Deleted | Part::Checked | Part::Failed(_) => Outcome::Done,
            }),
        }
    }

    /// All parts or none; each sees what the ones before it did.
    fn multi(&mut self, caller: &Caller<'_>, parts: &[Write], events: &mut Vec<NodeEvent>) -> Vec<Part> {
        // A clone shares its structure: going back costs no more than the changes did.
        let before = self.clone();
        let mut done = Vec::with_capacity(parts.len());
        for (at, part) in parts.iter().enumerate() {
            match self.part(caller, part, events) {
                Ok(part) => done.push(part),
                Err(code) => {
                    *self = before;
                    events.clear();
                    let code_of = |index: usize| match index.cmp(&at) {
                        std::cmp::Ordering::Less => ErrorCode::OK,
                        std::cmp::Ordering::Equal => code,
                        std::cmp::Ordering::Greater => ErrorCode::RUNTIME_INCONSISTENCY,
                    };
                    return (0..parts.len()).map(|index| Part::Failed(code_of(index))).collect();
                }
            }
        }
        done
    }

    fn part(
        &mut self,
        caller: &Caller<'_>,
        write: &Write,
        events: &mut Vec<NodeEvent>,
    ) -> Result<Part, ErrorCode> {
        match write {
            Write::Create { path, data, acl, kind } => {
                let (path, stat) = self.create(caller, (path, acl), data.clone(), *kind, events)?;
                Ok(Part::Created { path, stat })
            }
            Write::Delete { path, version } => {
                self.delete(caller, path, *version, events)?;
                Ok(Part::Deleted)
            }
            Write::SetData { path, data, .. } if path == LINGER => {
                self.set_linger(caller.session, data.as_ref()).map(Part::Changed)
            }
            Write::SetData { path, data, version } => {
                self.set_data(caller, path, data.clone(), *version, events).map(Part::Changed)
            }
            Write::SetAcl { path, acl, version } => {
                self.set_acl(caller, path, acl, *version).map(Part::Changed)
            }
            Write::Check { path, version } => {
                let node = self.permitted(caller, path, perms::READ)?;
                check_version(*version, node.version)?;
                Ok(Part::Checked)
            }
            Write::Refused(code) => Err(*code),
            Write::Multi(_) => Err(ErrorCode::MARSHALLING_ERROR),
        }
    }

    fn create(
        &mut self,
        caller: &Caller<'_>,
        (path, acl): (&str, &[Acl]),
        data: Option<Bytes>,
        kind: CreateKind,
        events: &mut Vec<NodeEvent>,
    ) -> Result<(String, Stat), ErrorCode> {
        let parent_path = parent_of(path)?;
        let acl = acl::resolve(acl, caller.ids).ok_or(ErrorCode::INVALID_ACL)?;
        let parent = self.nodes.get(parent_path).ok_or(ErrorCode::NO_NODE)?;
        if !acl::allows(&parent.acl, perms::CREATE, caller.ids) {
            return Err(ErrorCode::NO_AUTH);
        }
        let path =
            if kind.is_sequential() { format!("{path}{:010}", parent.creates) } else { path.to_owned() };
        if !path::is_valid(&path) {
            return Err(ErrorCode::BAD_ARGUMENTS);
        }
        if self.nodes.contains_key(path.as_str()) {
            return Err(ErrorCode::NODE_EXISTS);
        }
        if parent.owner.is_ephemeral() {
            return Err(ErrorCode::NO_CHILDREN_FOR_EPHEMERALS);
        }
        self.check_quota(&path, Usage::new(1, data.as_ref().map_or(0, Bytes::len)))?;
        let acl = self.shared(acl);
        let node = self.new_node(data, acl, owner_of(kind, caller.session));
        let stat = node.stat();
        self.put_in(&path, node, events);
        Ok((path, stat))
    }

    /// Adds a node without asking; its parent is there.
    fn put_in(&mut self, path: &str, node: Node, events: &mut Vec<NodeEvent>) {
        events.push(event(EventType::NodeCreated, path, &node.acl));
        let zxid = self.zxid;
        let key: Arc<str> = path.into();
        if let Some((parent_path, _)) = path::split(path)
            && let Some(parent) = Self::for_change(&mut self.nodes, parent_path)
        {
            parent.creates = parent.creates.wrapping_add(1);
            parent.pzxid = zxid;
            parent.children.insert(Arc::clone(&key));
            events.push(event(EventType::NodeChildrenChanged, parent_path, &parent.acl));
        }
        match node.owner {
            Owner::Ephemeral(session) => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.ephemerals.insert(Arc::clone(&key));
                }
            }
            Owner::Container | Owner::Ttl(_) => {
                self.mortal.insert(Arc::clone(&key));
            }
            // A node is made by a session that lives.
            Owner::None | Owner::Lingering { .. } => {}
        }
        let bytes = node.data_len();
        self.data_bytes += path.len() + bytes;
        self.nodes.insert(key, Arc::new(node));
        self.note_usage(path, Usage::new(1, bytes));
        self.begin_quota(path);
    }

    fn new_node(&self, data: Option<Bytes>, acl: Arc<[Acl]>, owner: Owner) -> Node {
        Node {
            data,
            acl,
            czxid: self.zxid,
            mzxid: self.zxid,
            pzxid: self.zxid,
            ctime_ms: self.time_ms,
            mtime_ms: self.time_ms,
            version: 0,
            aversion: 0,
            creates: 0,
            owner,
            children: Default::default(),
        }
    }

    fn delete(
        &mut self,
        caller: &Caller<'_>,
        path: &str,
        version: i32,
        events: &mut Vec<NodeEvent>,
    ) -> Result<(), ErrorCode> {
        if ROOTS.contains(&path) {
            return Err(ErrorCode::BAD_ARGUMENTS);
        }
        let parent = self.nodes.get(parent_of(path)?).ok_or(ErrorCode::NO_NODE)?;
        // Before the node is looked for: who may not remove doesn't learn what is there.
        if !acl::allows(&parent.acl, perms::DELETE, caller.ids) {
            return Err(ErrorCode::NO_AUTH);
        }
        let node = self.nodes.get(path).ok_or(ErrorCode::NO_NODE)?;
        check_version(version, node.version)?;
        if !node.children.is_empty() {
            return Err(ErrorCode::NOT_EMPTY);
        }
        self.take_out(path, events);
        Ok(())
    }

    /// Removes a node without asking.
    pub(super) fn take_out(&mut self, path: &str, events: &mut Vec<NodeEvent>) {
        let Some(node) = self.nodes.remove(path) else { return };
        self.data_bytes = self.data_bytes.saturating_sub(path.len() + node.data_len());
        match node.owner {
            Owner::Ephemeral(session) => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.ephemerals.remove(path);
                }
            }
            Owner::Lingering { until_ms, .. } => {
                self.lingering.remove(&(until_ms, Arc::from(path)));
            }
            Owner::Container | Owner::Ttl(_) => {
                self.mortal.remove(path);
            }
            Owner::None => {}
        }
        events.push(event(EventType::NodeDeleted, path, &node.acl));
        let Some((parent_path, _)) = path::split(path) else { return };
        let zxid = self.zxid;
        if let Some(parent) = Self::for_change(&mut self.nodes, parent_path) {
            parent.children.remove(path);
            parent.pzxid = zxid;
            events.push(event(EventType::NodeChildrenChanged, parent_path, &parent.acl));
        }
        self.note_usage(path, Usage::new(0, 0).since(Usage::new(1, node.data_len())));
    }

    fn set_data(
        &mut self,
        caller: &Caller<'_>,
        path: &str,
        data: Option<Bytes>,
        version: i32,
        events: &mut Vec<NodeEvent>,
    ) -> Result<Stat, ErrorCode> {
        let node = self.permitted(caller, path, perms::WRITE)?;
        let (zxid, time_ms, held) = (self.zxid, self.time_ms, node.data_len());
        let holds = data.as_ref().map_or(0, Bytes::len);
        let change = Usage::new(0, holds).since(Usage::new(0, held));
        // Before the version: that is the error which ZooKeeper gives.
        self.check_quota(path, change)?;
        check_version(version, node.version)?;
        let node = Self::for_change(&mut self.nodes, path).ok_or(ErrorCode::NO_NODE)?;
        node.data = data;
        node.version = next_version(node.version);
        (node.mzxid, node.mtime_ms) = (zxid, time_ms);
        events.push(event(EventType::NodeDataChanged, path, &node.acl));
        let stat = node.stat();
        self.data_bytes = self.data_bytes + holds - held;
        self.note_usage(path, change);
        Ok(stat)
    }

    fn set_acl(
        &mut self,
        caller: &Caller<'_>,
        path: &str,
        given: &[Acl],
        version: i32,
    ) -> Result<Stat, ErrorCode> {
        if !path::is_valid(path) {
            return Err(ErrorCode::BAD_ARGUMENTS);
        }
        let resolved = acl::resolve(given, caller.ids).ok_or(ErrorCode::INVALID_ACL)?;
        let node = self.permitted(caller, path, perms::ADMIN)?;
        check_version(version, node.aversion)?;
        let resolved = self.shared(resolved);
        let node = Self::for_change(&mut self.nodes, path).ok_or(ErrorCode::NO_NODE)?;
        node.acl = resolved;
        node.aversion = next_version(node.aversion);
        Ok(node.stat())
    }

    fn permitted(&self, caller: &Caller<'_>, path: &str, perm: i32) -> Result<&Node, ErrorCode> {
        if !path::is_valid(path) {
            return Err(ErrorCode::BAD_ARGUMENTS);
        }
        let node = self.nodes.get(path).ok_or(ErrorCode::NO_NODE)?;
        if acl::allows(&node.acl, perm, caller.ids) { Ok(node) } else { Err(ErrorCode::NO_AUTH) }
    }
}

const fn owner_of(kind: CreateKind, session: SessionId) -> Owner {
    match kind {
        CreateKind::Persistent | CreateKind::PersistentSequential => Owner::None,
        CreateKind::Ephemeral | CreateKind::EphemeralSequential => Owner::Ephemeral(session),
        CreateKind::Container => Owner::Container,
        CreateKind::Ttl(ttl_ms) | CreateKind::TtlSequential(ttl_ms) => Owner::Ttl(ttl_ms),
    }
}

const fn check_version(wanted: i32, found: i32) -> Result<(), ErrorCode> {
    if wanted == -1 || wanted == found { Ok(()) } else { Err(ErrorCode::BAD_VERSION) }
}

/// -1 means "any" in requests: no node ever has it (ZOOKEEPER-4743).
const fn next_version(version: i32) -> i32 {
    match version.wrapping_add(1) {
        -1 => 0,
        next => next,
    }
}

/// The parent of a path that may still be malformed, as ZooKeeper finds it: that the path can be a node's is found
/// out later, and other errors win.
fn parent_of(path: &str) -> Result<&str, ErrorCode> {
    let (parent, _) =
        path.rsplit_once('/').filter(|_| !path.contains('\0')).ok_or(ErrorCode::BAD_ARGUMENTS)?;
    Ok(if parent.is_empty() { "/" } else { parent })
}

fn event(event: EventType, path: &str, acl: &Arc<[Acl]>) -> NodeEvent {
    NodeEvent { event: WatchEvent { event, path: path.to_owned() }, acl: Arc::clone(acl) }
}
