//! What a slot of the log holds: a request as it was made, evaluated when it is applied (decision C2), and the time
//! that its proposer gave it.
//!
//! The bytes are our own: a version, the kind, then fixed-width numbers and length-prefixed strings, big-endian.
//! Called by the driver, which makes commands, and by the ledger's replay.

use bytes::{Buf, BufMut, Bytes};
use loggos_protocol::ids::SessionId;
use loggos_protocol::zookeeper::{Acl, ErrorCode, Id};

use super::{Fence, Stamp, TreeError};

const VERSION: u8 = 2;
/// Multis hold no multis.
const DEPTH_MAX: usize = 2;

/// What kind of node a create makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateKind {
    /// Stays.
    Persistent,
    /// Goes with its session.
    Ephemeral,
    /// Stays; its name gets the parent's next number.
    PersistentSequential,
    /// Goes with its session; its name gets the parent's next number.
    EphemeralSequential,
    /// Goes when its last child has gone.
    Container,
    /// Goes when it has been left alone for so many milliseconds.
    Ttl(i64),
    /// As `Ttl`, with the parent's next number.
    TtlSequential(i64),
}

impl CreateKind {
    /// From the flags on the wire, and the time to live where the operation carries one.
    pub const fn from_flags(flags: i32, ttl_ms: Option<i64>) -> Option<Self> {
        match (flags, ttl_ms) {
            (0, None) => Some(Self::Persistent),
            (1, None) => Some(Self::Ephemeral),
            (2, None) => Some(Self::PersistentSequential),
            (3, None) => Some(Self::EphemeralSequential),
            (4, None) => Some(Self::Container),
            (5, Some(ttl)) if Self::allows(ttl) => Some(Self::Ttl(ttl)),
            (6, Some(ttl)) if Self::allows(ttl) => Some(Self::TtlSequential(ttl)),
            _ => None,
        }
    }

    const fn allows(ttl_ms: i64) -> bool {
        ttl_ms >= 1 && ttl_ms < 1 << 40
    }

    /// Whether the name gets a number.
    pub const fn is_sequential(self) -> bool {
        matches!(self, Self::PersistentSequential | Self::EphemeralSequential | Self::TtlSequential(_))
    }

    /// Whether it goes with its session.
    pub const fn is_ephemeral(self) -> bool {
        matches!(self, Self::Ephemeral | Self::EphemeralSequential)
    }

    const fn to_wire(self) -> (u8, i64) {
        match self {
            Self::Persistent => (0, 0),
            Self::Ephemeral => (1, 0),
            Self::PersistentSequential => (2, 0),
            Self::EphemeralSequential => (3, 0),
            Self::Container => (4, 0),
            Self::Ttl(ttl) => (5, ttl),
            Self::TtlSequential(ttl) => (6, ttl),
        }
    }
}

/// One client's write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Make a node.
    Create {
        /// Where.
        path: String,
        /// Its data; null differs from empty.
        data: Option<Bytes>,
        /// Who may do what.
        acl: Vec<Acl>,
        /// What kind.
        kind: CreateKind,
    },
    /// Remove a node.
    Delete {
        /// Which.
        path: String,
        /// The version that it must have, or -1.
        version: i32,
    },
    /// Replace a node's data.
    SetData {
        /// Which.
        path: String,
        /// The new data.
        data: Option<Bytes>,
        /// The version that it must have, or -1.
        version: i32,
    },
    /// Replace a node's ACL.
    SetAcl {
        /// Which.
        path: String,
        /// The new ACL.
        acl: Vec<Acl>,
        /// The ACL version that it must have, or -1.
        version: i32,
    },
    /// Check a node's version; only inside a multi.
    Check {
        /// Which.
        path: String,
        /// The version that it must have, or -1.
        version: i32,
    },
    /// Arguments that were found wrong before: it takes its place in the order, and fails.
    Refused(ErrorCode),
    /// All or nothing.
    Multi(Vec<Self>),
}

/// What changes the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A session begins; its id comes of the zxid.
    CreateSession {
        /// How long it lives without a sign, in milliseconds.
        timeout_ms: u32,
        /// What its client shows when it comes back. Proposed twice with one password, it is one session.
        password: [u8; 16],
        /// The connection that it is for.
        fence: Fence,
    },
    /// A session's client has come back, and showed its password.
    Attach {
        /// Which.
        session: SessionId,
        /// The attachment that it had; it has no effect if the session has moved on from there.
        before: Fence,
        /// The attachment that it gets.
        fence: Fence,
    },
    /// A client ends its session.
    Close {
        /// Which.
        session: SessionId,
        /// Its place among the session's entries.
        stamp: Stamp,
    },
    /// A session has given no sign for too long.
    Expire {
        /// Which.
        session: SessionId,
        /// The leadership that found it silent.
        epoch: u64,
    },
    /// A client's write.
    Write {
        /// Whose.
        session: SessionId,
        /// Its place among the session's entries.
        stamp: Stamp,
        /// Who the client has proved to be.
        ids: Vec<Id>,
        /// What.
        write: Write,
    },
    /// A container or a node with a time to live is to go, if it's still unused.
    Remove {
        /// Which.
        path: String,
    },
    /// Nothing.
    Noop,
}

/// A command with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The proposer's clock, in milliseconds since 1970; the tree never lets time go back.
    pub time_ms: i64,
    /// The command.
    pub command: Command,
}

impl Command {
    /// The command's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        match self {
            Self::CreateSession { timeout_ms, password, fence } => {
                out.put_u8(1);
                out.put_u32(*timeout_ms);
                out.put_slice(password);
                out.put_u64(fence.0);
            }
            Self::Attach { session, before, fence } => {
                put_session(&mut out, 2, *session);
                out.put_u64(before.0);
                out.put_u64(fence.0);
            }
            Self::Close { session, stamp } => {
                put_session(&mut out, 3, *session);
                put_stamp(&mut out, *stamp);
            }
            Self::Expire { session, epoch } => {
                put_session(&mut out, 4, *session);
                out.put_u64(*epoch);
            }
            Self::Write { session, stamp, ids, write } => {
                put_session(&mut out, 5, *session);
                put_stamp(&mut out, *stamp);
                put_count(&mut out, ids.len());
                for id in ids {
                    put_text(&mut out, &id.scheme);
                    put_text(&mut out, &id.id);
                }
                put_write(&mut out, write);
            }
            Self::Remove { path } => {
                out.put_u8(6);
                put_text(&mut out, path);
            }
            Self::Noop => out.put_u8(7),
        }
        out.into()
    }

    /// Reads it back.
    ///
    /// # Errors
    /// `Malformed` for bytes that `encode` didn't give.
    pub fn decode(bytes: &[u8]) -> Result<Self, TreeError> {
        let mut reader = Reader(bytes);
        if reader.u8()? != VERSION {
            return Err(TreeError::Malformed);
        }
        let command = match reader.u8()? {
            1 => Self::CreateSession {
                timeout_ms: reader.u32()?,
                password: reader.array()?,
                fence: reader.fence()?,
            },
            2 => Self::Attach { session: reader.session()?, before: reader.fence()?, fence: reader.fence()? },
            3 => Self::Close { session: reader.session()?, stamp: reader.stamp()? },
            4 => Self::Expire { session: reader.session()?, epoch: reader.u64()? },
            5 => {
                let (session, stamp) = (reader.session()?, reader.stamp()?);
                let ids = reader.list(|reader| Ok(Id { scheme: reader.text()?, id: reader.text()? }))?;
                Self::Write { session, stamp, ids, write: reader.write(DEPTH_MAX)? }
            }
            6 => Self::Remove { path: reader.text()? },
            7 => Self::Noop,
            _ => return Err(TreeError::Malformed),
        };
        if reader.0.is_empty() { Ok(command) } else { Err(TreeError::Malformed) }
    }
}

impl Entry {
    /// The entry's bytes: its time, then the command's.
    pub fn encode(&self) -> Bytes {
        let command = self.command.encode();
        let mut out = Vec::with_capacity(8 + command.len());
        out.put_i64(self.time_ms);
        out.put_slice(&command);
        out.into()
    }

    /// Reads it back.
    ///
    /// # Errors
    /// `Malformed` for bytes that `encode` didn't give.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, TreeError> {
        let time_ms = bytes.try_get_i64().map_err(|_| TreeError::Malformed)?;
        Ok(Self { time_ms, command: Command::decode(bytes)? })
    }
}

fn put_stamp(out: &mut Vec<u8>, stamp: Stamp) {
    out.put_u64(stamp.fence.0);
    out.put_u64(stamp.number);
}

fn put_session(out: &mut Vec<u8>, kind: u8, session: SessionId) {
    out.put_u8(kind);
    out.put_i64(session.raw());
}

pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    out.put_u32(u32::try_from(count).expect("a frame of a client holds fewer than 4 billion of anything"));
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.put_slice(text.as_bytes());
}

pub(super) fn put_data(out: &mut Vec<u8>, data: Option<&Bytes>) {
    match data {
        None => out.put_u32(u32::MAX),
        Some(data) => {
            put_count(out, data.len());
            out.put_slice(data);
        }
    }
}

pub(super) fn put_acl(out: &mut Vec<u8>, acl: &[Acl]) {
    put_count(out, acl.len());
    for entry in acl {
        out.put_i32(entry.perms);
        put_text(out, &entry.id.scheme);
        put_text(out, &entry.id.id);
    }
}

fn put_write(out: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Create { path, data, acl, kind } => {
            out.put_u8(1);
            put_text(out, path);
            put_data(out, data.as_ref());
            put_acl(out, acl);
            let (kind, ttl_ms) = kind.to_wire();
            out.put_u8(kind);
            out.put_i64(ttl_ms);
        }
        Write::Delete { path, version } => {
            out.put_u8(2);
            put_text(out, path);
            out.put_i32(*version);
        }
        Write::SetData { path, data, version } => {
            out.put_u8(3);
            put_text(out, path);
            put_data(out, data.as_ref());
            out.put_i32(*version);
        }
        Write::SetAcl { path, acl, version } => {
            out.put_u8(4);
            put_text(out, path);
            put_acl(out, acl);
            out.put_i32(*version);
        }
        Write::Check { path, version } => {
            out.put_u8(5);
            put_text(out, path);
            out.put_i32(*version);
        }
        Write::Refused(code) => {
            out.put_u8(6);
            out.put_i32(code.raw());
        }
        Write::Multi(parts) => {
            out.put_u8(7);
            put_count(out, parts.len());
            for part in parts {
                put_write(out, part);
            }
        }
    }
}

/// Reads with checks; also used for snapshots.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl Reader<'_> {
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], TreeError> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(TreeError::Malformed)?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub fn u8(&mut self) -> Result<u8, TreeError> {
        self.0.try_get_u8().map_err(|_| TreeError::Malformed)
    }

    pub fn u32(&mut self) -> Result<u32, TreeError> {
        self.0.try_get_u32().map_err(|_| TreeError::Malformed)
    }

    pub fn i32(&mut self) -> Result<i32, TreeError> {
        self.0.try_get_i32().map_err(|_| TreeError::Malformed)
    }

    pub fn i64(&mut self) -> Result<i64, TreeError> {
        self.0.try_get_i64().map_err(|_| TreeError::Malformed)
    }

    pub fn u64(&mut self) -> Result<u64, TreeError> {
        self.0.try_get_u64().map_err(|_| TreeError::Malformed)
    }

    pub fn fence(&mut self) -> Result<Fence, TreeError> {
        self.u64().map(Fence)
    }

    fn stamp(&mut self) -> Result<Stamp, TreeError> {
        Ok(Stamp { fence: self.fence()?, number: self.u64()? })
    }

    pub fn session(&mut self) -> Result<SessionId, TreeError> {
        self.i64().map(SessionId::new)
    }

    fn slice(&mut self) -> Result<&[u8], TreeError> {
        let len = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(TreeError::Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub fn text(&mut self) -> Result<String, TreeError> {
        let bytes = self.slice()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| TreeError::Malformed)
    }

    pub fn data(&mut self) -> Result<Option<Bytes>, TreeError> {
        if self.0.starts_with(&u32::MAX.to_be_bytes()) {
            self.u32()?;
            return Ok(None);
        }
        self.slice().map(|bytes| Some(Bytes::copy_from_slice(bytes)))
    }

    pub fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, TreeError>,
    ) -> Result<Vec<T>, TreeError> {
        let count = self.u32()? as usize;
        // Each item takes a byte at least: a false count costs no memory.
        if count > self.0.len() {
            return Err(TreeError::Malformed);
        }
        (0..count).map(|_| item(self)).collect()
    }

    pub fn acl(&mut self) -> Result<Vec<Acl>, TreeError> {
        self.list(|reader| {
            let perms = reader.i32()?;
            Ok(Acl { perms, id: Id { scheme: reader.text()?, id: reader.text()? } })
        })
    }

    fn write(&mut self, depth: usize) -> Result<Write, TreeError> {
        Ok(match self.u8()? {
            1 => {
                let (path, data, acl) = (self.text()?, self.data()?, self.acl()?);
                let (flags, ttl_ms) = (self.u8()?, self.i64()?);
                let ttl_ms = (flags >= 5).then_some(ttl_ms);
                let kind = CreateKind::from_flags(flags.into(), ttl_ms).ok_or(TreeError::Malformed)?;
                Write::Create { path, data, acl, kind }
            }
            2 => Write::Delete { path: self.text()?, version: self.i32()? },
            3 => Write::SetData { path: self.text()?, data: self.data()?, version: self.i32()? },
            4 => Write::SetAcl { path: self.text()?, acl: self.acl()?, version: self.i32()? },
            5 => Write::Check { path: self.text()?, version: self.i32()? },
            6 => Write::Refused(ErrorCode::new(self.i32()?)),
            7 if depth > 1 => Write::Multi(self.list(|reader| reader.write(depth - 1))?),
            _ => return Err(TreeError::Malformed),
        })
    }
}
