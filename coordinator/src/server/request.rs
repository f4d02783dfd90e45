//! Which requests are commands of the tree, and the answers to those that aren't. No socket, no order: `driver`
//! decides when; here is only what.
//!
//! Source: ZooKeeper 3.9's `FinalRequestProcessor`. Called by `driver/clients`.

use base64::Engine as _;
use loggos_protocol::ids::SessionId;
use loggos_protocol::zookeeper::request::{Create, SetWatches};
use loggos_protocol::zookeeper::{
    ErrorCode, EventType, Id, JuteError, PartReply, Reply, Request, WatchEvent, code::op,
};
use sha1::{Digest as _, Sha1};

use crate::tree::{Command, CreateKind, LINGER, Outcome, Part, Stamp, Tree, Write};
use crate::watches::{ConnectionId, Flood, WatchKind, Watches};

/// addWatch's mode of a persistent watch.
const MODE_PERSISTENT: i32 = 0;
/// addWatch's mode of a persistent watch of a whole subtree.
const MODE_RECURSIVE: i32 = 1;

/// What is to be done with a request.
pub(crate) enum Sorted {
    /// Answered at once, ahead of all others.
    Ping,
    /// A command; `last` ends the connection.
    Command { command: Command, shape: Shape, last: bool },
    /// An identity to prove.
    Auth { scheme: String, auth: bytes::Bytes },
    /// Answered from the tree as it is.
    Read(Request),
    /// Refused; `last` ends the connection.
    Refused { code: ErrorCode, last: bool },
}

/// What the reply to a write has to look like: that depends on the operation that asked.
pub(crate) struct Shape {
    op: i32,
    /// The operations of a multi's parts.
    parts: Vec<i32>,
}

/// Says what is to be done with a client's request of an operation; a command gets this stamp.
pub(crate) fn sort(
    (code, request): (i32, Result<Request, JuteError>),
    session: SessionId,
    stamp: Stamp,
    ids: &[Id],
) -> Sorted {
    let request = match request {
        Ok(request) => request,
        Err(JuteError::UnknownOperation { .. }) => {
            return Sorted::Refused { code: ErrorCode::UNIMPLEMENTED, last: true };
        }
        // A multi has its place in the order before it is read.
        Err(_) if code == op::MULTI => {
            let write = Write::Refused(ErrorCode::MARSHALLING_ERROR);
            let command = Command::Write { session, stamp, ids: ids.to_vec(), write };
            return Sorted::Command { command, shape: Shape { op: code, parts: Vec::new() }, last: false };
        }
        Err(_) => return Sorted::Refused { code: ErrorCode::MARSHALLING_ERROR, last: false },
    };
    let mut shape = Shape { op: request.op(), parts: Vec::new() };
    let write = match request {
        Request::Ping => return Sorted::Ping,
        Request::Auth { scheme, auth, .. } => return Sorted::Auth { scheme, auth },
        Request::CloseSession => {
            return Sorted::Command { command: Command::Close { session, stamp }, shape, last: true };
        }
        Request::Check { .. } | Request::DeleteContainer { .. } => {
            return Sorted::Refused { code: ErrorCode::UNIMPLEMENTED, last: true };
        }
        Request::Sasl { .. } => return Sorted::Refused { code: ErrorCode::AUTH_FAILED, last: true },
        Request::Reconfig { .. } => {
            return Sorted::Refused { code: ErrorCode::RECONFIG_DISABLED, last: false };
        }
        // One part that can't be read leaves none that can.
        Request::Multi(parts) if parts.iter().any(is_unreadable) => {
            Write::Refused(ErrorCode::MARSHALLING_ERROR)
        }
        Request::Multi(parts) => {
            let parts: Vec<Request> = parts.into_iter().map(settled).collect();
            shape.parts = parts.iter().map(Request::op).collect();
            Write::Multi(parts.into_iter().map(write_of).collect())
        }
        Request::Create(_) | Request::Delete { .. } | Request::SetData { .. } | Request::SetAcl { .. } => {
            write_of(request)
        }
        read => return Sorted::Read(read),
    };
    Sorted::Command {
        command: Command::Write { session, stamp, ids: ids.to_vec(), write },
        shape,
        last: false,
    }
}

/// Whether ZooKeeper's reader of multis stumbles over this part: flags that no create has, or a time to live where
/// the operation carries none.
fn is_unreadable(part: &Request) -> bool {
    matches!(part, Request::Create(create) if create.ttl_ms.is_none() && !(0..=4).contains(&create.flags))
}

/// A part of a multi as ZooKeeper reads it: of the creates, the flags alone decide which it is.
fn settled(part: Request) -> Request {
    match part {
        Request::Create(create) => Request::Create(match create.flags {
            5 | 6 => create,
            4 => Create { op: op::CREATE_CONTAINER, ttl_ms: None, ..create },
            _ if create.ttl_ms.is_some() => Create { op: op::CREATE, ttl_ms: None, ..create },
            _ => create,
        }),
        other => other,
    }
}

/// The tree's name for one write; flags that no create has are refused.
fn write_of(request: Request) -> Write {
    match request {
        // A container by its operation, whatever its flags say; a numbered one there isn't.
        Request::Create(Create { op: op::CREATE_CONTAINER, path, data, acl, flags: 0 | 1, .. }) => {
            Write::Create { path, data, acl, kind: CreateKind::Container }
        }
        Request::Create(Create { op: op::CREATE_CONTAINER, flags: 2 | 3, .. }) => {
            Write::Refused(ErrorCode::BAD_ARGUMENTS)
        }
        Request::Create(Create { path, data, acl, flags, ttl_ms, .. }) => {
            match CreateKind::from_flags(flags, ttl_ms) {
                Some(kind) => Write::Create { path, data, acl, kind },
                None => Write::Refused(ErrorCode::BAD_ARGUMENTS),
            }
        }
        Request::Delete { path, version } => Write::Delete { path, version },
        Request::SetData { path, data, version } => Write::SetData { path, data, version },
        Request::SetAcl { path, acl, version } => Write::SetAcl { path, acl, version },
        Request::Check { path, version } => Write::Check { path, version },
        _ => Write::Refused(ErrorCode::BAD_ARGUMENTS),
    }
}

/// The reply to a write, as its operation wants it.
pub(crate) fn write_reply(shape: &Shape, outcome: Result<Outcome, ErrorCode>) -> Result<Reply, ErrorCode> {
    Ok(match outcome? {
        Outcome::Created { path, stat: _ } if shape.op == op::CREATE => Reply::Path(path),
        Outcome::Created { path, stat } => Reply::PathStat(path, stat),
        Outcome::Changed(stat) => Reply::Stat(stat),
        Outcome::Done | Outcome::Session(_) => Reply::Empty,
        Outcome::Parts(parts) => Reply::Parts(
            parts
                .into_iter()
                .zip(&shape.parts)
                .map(|(part, code)| match part {
                    Part::Created { path, stat: _ } if *code == op::CREATE => PartReply::Create(path),
                    Part::Created { path, stat } => PartReply::Create2(path, stat),
                    Part::Changed(stat) => PartReply::SetData(stat),
                    Part::Deleted => PartReply::Delete,
                    Part::Checked => PartReply::Check,
                    Part::Failed(code) => PartReply::Error(code),
                })
                .collect(),
        ),
    })
}

/// The identities that credentials prove, or that they prove nothing.
pub(crate) fn prove(scheme: &str, auth: &[u8], super_digest: Option<&str>) -> Result<Vec<Id>, ErrorCode> {
    let id = |scheme: &str, id: String| Id { scheme: scheme.to_owned(), id };
    match scheme {
        "digest" => {
            let text = std::str::from_utf8(auth).map_err(|_| ErrorCode::AUTH_FAILED)?;
            let user = text.split(':').next().unwrap_or_default();
            let hash = base64::engine::general_purpose::STANDARD.encode(Sha1::digest(auth));
            let digest = format!("{user}:{hash}");
            let mut proved = Vec::new();
            if super_digest == Some(&digest) {
                proved.push(id("super", String::new()));
            }
            proved.push(id("digest", digest));
            Ok(proved)
        }
        // The address is the connection's own: whatever is claimed, nothing is added.
        "ip" => Ok(Vec::new()),
        _ => Err(ErrorCode::AUTH_FAILED),
    }
}

/// Answers requests that change nothing in the tree.
pub(crate) struct Reader<'a> {
    pub tree: &'a Tree,
    pub watches: &'a mut Watches,
    pub connection: ConnectionId,
    pub session: SessionId,
    pub ids: &'a [Id],
    /// Events to be told before the reply.
    pub missed: Vec<WatchEvent>,
}

impl Reader<'_> {
    /// The answer, with the watches set that it asks for.
    pub fn answer(&mut self, request: Request) -> Result<Reply, ErrorCode> {
        match request {
            Request::GetData { path, .. } if path == LINGER => {
                let (data, stat) = self.tree.linger(self.session);
                Ok(Reply::Data(Some(data), stat))
            }
            Request::Exists { path, .. } if path == LINGER => {
                Ok(Reply::Stat(self.tree.linger(self.session).1))
            }
            Request::GetData { path, watch } => {
                let (data, stat) = self.tree.get_data(&path, self.ids)?;
                self.watch(watch, WatchKind::Data, &path)?;
                Ok(Reply::Data(data, stat))
            }
            Request::Exists { path, .. } if path.contains('\0') => Err(ErrorCode::BAD_ARGUMENTS),
            Request::Exists { path, watch } => {
                let found = self.tree.exists(&path, self.ids);
                // Also where nothing is: the watch tells of the node's creation.
                if found.is_ok() || found == Err(ErrorCode::NO_NODE) {
                    self.watch(watch, WatchKind::Data, &path)?;
                }
                found.map(Reply::Stat)
            }
            Request::GetChildren { path, watch } => {
                let (names, _) = self.tree.children(&path, self.ids)?;
                self.watch(watch, WatchKind::Child, &path)?;
                Ok(Reply::Names(names))
            }
            Request::GetChildren2 { path, watch } => {
                let (names, stat) = self.tree.children(&path, self.ids)?;
                self.watch(watch, WatchKind::Child, &path)?;
                Ok(Reply::NamesStat(names, stat))
            }
            Request::GetAcl { path } => {
                let (acl, stat) = self.tree.get_acl(&path, self.ids)?;
                Ok(Reply::Acl(acl, stat))
            }
            Request::Sync { path } => Ok(Reply::Path(path)),
            Request::MultiRead(parts) => {
                Ok(Reply::Parts(parts.into_iter().map(|part| self.read_part(part)).collect()))
            }
            Request::GetEphemerals { prefix } => {
                let all = matches!(prefix.trim(), "" | "/");
                Ok(Reply::Names(self.tree.ephemerals(self.session, if all { "" } else { &prefix })))
            }
            Request::GetAllChildrenNumber { path } => {
                self.tree.descendants(&path, self.ids).map(|count| Reply::Number(clamped(count)))
            }
            Request::WhoAmI => Ok(Reply::Ids(self.ids.iter().map(shown).collect())),
            other => self.answer_watches(other),
        }
    }

    fn answer_watches(&mut self, request: Request) -> Result<Reply, ErrorCode> {
        match request {
            Request::AddWatch { path, mode } => {
                let kind = match mode {
                    MODE_PERSISTENT => WatchKind::Persistent,
                    MODE_RECURSIVE => WatchKind::Recursive,
                    // ZooKeeper finds it out while it reads the request.
                    _ => return Err(ErrorCode::MARSHALLING_ERROR),
                };
                self.watch(true, kind, &path)?;
                Ok(Reply::Number(0))
            }
            Request::CheckWatches { path, kind } => {
                let kinds = WatchKind::of_type(kind).ok_or(ErrorCode::MARSHALLING_ERROR)?;
                let found = self.watches.has(self.connection, kinds, &path);
                if found { Ok(Reply::Empty) } else { Err(ErrorCode::NO_WATCHER) }
            }
            Request::RemoveWatches { path, kind } => {
                let kinds = WatchKind::of_type(kind).ok_or(ErrorCode::MARSHALLING_ERROR)?;
                let found = self.watches.remove(self.connection, kinds, &path);
                if found { Ok(Reply::Empty) } else { Err(ErrorCode::NO_WATCHER) }
            }
            Request::SetWatches(watches) | Request::SetWatches2(watches) => {
                self.set_watches(watches)?;
                Ok(Reply::Empty)
            }
            _ => Err(ErrorCode::UNIMPLEMENTED),
        }
    }

    /// A multiRead sets no watches, whatever its parts ask for.
    fn read_part(&mut self, part: Request) -> PartReply {
        let part = match part {
            Request::GetData { path, .. } => Request::GetData { path, watch: false },
            Request::GetChildren { path, .. } => Request::GetChildren { path, watch: false },
            other => other,
        };
        match self.answer(part) {
            Ok(Reply::Data(data, stat)) => PartReply::Data(data, stat),
            Ok(Reply::Names(names)) => PartReply::Names(names),
            Ok(_) => PartReply::Error(ErrorCode::MARSHALLING_ERROR),
            Err(code) => PartReply::Error(code),
        }
    }

    fn watch(&mut self, wanted: bool, kind: WatchKind, path: &str) -> Result<(), ErrorCode> {
        if wanted {
            self.watches.add(self.connection, kind, path).map_err(|Flood| ErrorCode::THROTTLED_OP)?;
        }
        Ok(())
    }

    /// Sets a reconnected client's watches again, or tells what it has missed since `relative_zxid`.
    fn set_watches(&mut self, watches: SetWatches) -> Result<(), ErrorCode> {
        let since = watches.relative_zxid;
        for path in watches.data {
            match self.tree.stat(&path) {
                None => self.missed(EventType::NodeDeleted, path),
                Some(stat) if stat.mzxid > since => self.missed(EventType::NodeDataChanged, path),
                Some(_) => self.watch(true, WatchKind::Data, &path)?,
            }
        }
        for path in watches.exist {
            match self.tree.stat(&path) {
                Some(_) => self.missed(EventType::NodeCreated, path),
                None => self.watch(true, WatchKind::Data, &path)?,
            }
        }
        for path in watches.child {
            match self.tree.stat(&path) {
                None => self.missed(EventType::NodeDeleted, path),
                Some(stat) if stat.pzxid > since => self.missed(EventType::NodeChildrenChanged, path),
                Some(_) => self.watch(true, WatchKind::Child, &path)?,
            }
        }
        for path in watches.persistent {
            self.watch(true, WatchKind::Persistent, &path)?;
        }
        for path in watches.recursive {
            self.watch(true, WatchKind::Recursive, &path)?;
        }
        Ok(())
    }

    fn missed(&mut self, event: EventType, path: String) {
        self.missed.push(WatchEvent { event, path });
    }
}

/// How whoAmI shows an identity: of a digest, the user alone.
fn shown(id: &Id) -> Id {
    match id.scheme.as_str() {
        "digest" => {
            Id { scheme: id.scheme.clone(), id: id.id.split(':').next().unwrap_or_default().to_owned() }
        }
        _ => id.clone(),
    }
}

fn clamped(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
