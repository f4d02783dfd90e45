//! What clients send: the connect request, and every operation behind a header of xid and type.
//!
//! Source: `zookeeper.jute` of ZooKeeper 3.9 and `Request`/`MultiOperationRecord`. Called by the coordinator's
//! connections. A malformed body leaves the header readable, so that it can be answered with -5.

use bytes::{Bytes, BytesMut};

use super::code::op;
use super::jute::{JuteError, Reader, Writer};
use super::stat::Acl;
use crate::ids::{SessionId, Zxid};

/// A connection's first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Always 0 so far.
    pub protocol_version: i32,
    /// The newest zxid that the client has seen; a server behind it may not serve it.
    pub last_zxid_seen: Zxid,
    /// The session's time-out that it wishes for, in milliseconds.
    pub timeout_ms: i32,
    /// The session to take up again, or 0.
    pub session: SessionId,
    /// That session's password; may be empty.
    pub password: Bytes,
    /// Whether a server without a leader will do; old clients don't say.
    pub read_only: Option<bool>,
}

impl ConnectRequest {
    /// Reads the frame's payload.
    pub fn decode(payload: Bytes) -> Result<Self, JuteError> {
        let mut reader = Reader::new(payload);
        Ok(Self {
            protocol_version: reader.int()?,
            last_zxid_seen: Zxid::new(reader.long()?),
            timeout_ms: reader.int()?,
            session: SessionId::new(reader.long()?),
            password: reader.buffer()?.unwrap_or_default(),
            read_only: if reader.remaining() == 0 { None } else { Some(reader.bool()?) },
        })
    }

    /// Writes the frame's payload.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut writer = Writer::new(out);
        writer.int(self.protocol_version);
        writer.long(self.last_zxid_seen.raw());
        writer.int(self.timeout_ms);
        writer.long(self.session.raw());
        writer.buffer(Some(&self.password));
        if let Some(read_only) = self.read_only {
            writer.bool(read_only);
        }
    }
}

/// What stands before every operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// The client's number for it, echoed in the reply.
    pub xid: i32,
    /// One of [`op`].
    pub op: i32,
}

/// Body of create, create2, createContainer and createTTL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// Which of the four.
    pub op: i32,
    /// The node; a sequential one gets a suffix.
    pub path: String,
    /// Its data; null and empty differ.
    pub data: Option<Bytes>,
    /// Who may do what to it.
    pub acl: Vec<Acl>,
    /// 0 persistent, 1 ephemeral, 2 and 3 the same with a number, 4 container, 5 and 6 with a time to live.
    pub flags: i32,
    /// Its time to live; createTTL alone carries it.
    pub ttl_ms: Option<i64>,
}

/// Body of setWatches and setWatches2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetWatches {
    /// The newest zxid that the client had seen: changes behind it are told now.
    pub relative_zxid: Zxid,
    /// Watches on data.
    pub data: Vec<String>,
    /// Watches on nodes that weren't there.
    pub exist: Vec<String>,
    /// Watches on children.
    pub child: Vec<String>,
    /// Persistent watches; setWatches2 alone carries them.
    pub persistent: Vec<String>,
    /// Persistent watches of whole subtrees; setWatches2 alone carries them.
    pub recursive: Vec<String>,
}

/// One operation. The fields are those of its body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields carry the names that ZooKeeper's clients print")]
pub enum Request {
    Create(Create),
    Delete { path: String, version: i32 },
    DeleteContainer { path: String },
    Exists { path: String, watch: bool },
    GetData { path: String, watch: bool },
    SetData { path: String, data: Option<Bytes>, version: i32 },
    GetAcl { path: String },
    SetAcl { path: String, acl: Vec<Acl>, version: i32 },
    GetChildren { path: String, watch: bool },
    GetChildren2 { path: String, watch: bool },
    Sync { path: String },
    Ping,
    Check { path: String, version: i32 },
    Multi(Vec<Self>),
    MultiRead(Vec<Self>),
    Reconfig { joining: Option<String>, leaving: Option<String>, members: Option<String>, config: i64 },
    CheckWatches { path: String, kind: i32 },
    RemoveWatches { path: String, kind: i32 },
    Auth { kind: i32, scheme: String, auth: Bytes },
    SetWatches(SetWatches),
    SetWatches2(SetWatches),
    Sasl { token: Bytes },
    GetEphemerals { prefix: String },
    GetAllChildrenNumber { path: String },
    AddWatch { path: String, mode: i32 },
    WhoAmI,
    CloseSession,
}

impl Request {
    /// Reads one frame's payload. The outer error: not even a header is there; the inner one: the body isn't
    /// what the header says.
    pub fn decode(payload: Bytes) -> Result<(RequestHeader, Result<Self, JuteError>), JuteError> {
        let mut reader = Reader::new(payload);
        let header = RequestHeader { xid: reader.int()?, op: reader.int()? };
        Ok((header, Self::decode_body(header.op, &mut reader)))
    }

    fn decode_body(code: i32, r: &mut Reader) -> Result<Self, JuteError> {
        Ok(match code {
            op::CREATE | op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL => Self::Create(Create {
                op: code,
                path: r.string()?,
                data: r.buffer()?,
                acl: r.acl()?,
                flags: r.int()?,
                ttl_ms: if code == op::CREATE_TTL { Some(r.long()?) } else { None },
            }),
            op::DELETE => Self::Delete { path: r.string()?, version: r.int()? },
            op::DELETE_CONTAINER => Self::DeleteContainer { path: r.string()? },
            op::EXISTS => Self::Exists { path: r.string()?, watch: r.bool()? },
            op::GET_DATA => Self::GetData { path: r.string()?, watch: r.bool()? },
            op::SET_DATA => Self::SetData { path: r.string()?, data: r.buffer()?, version: r.int()? },
            op::GET_ACL => Self::GetAcl { path: r.string()? },
            op::SET_ACL => Self::SetAcl { path: r.string()?, acl: r.acl()?, version: r.int()? },
            op::GET_CHILDREN => Self::GetChildren { path: r.string()?, watch: r.bool()? },
            op::GET_CHILDREN2 => Self::GetChildren2 { path: r.string()?, watch: r.bool()? },
            op::SYNC => Self::Sync { path: r.string()? },
            op::PING => Self::Ping,
            op::CHECK => Self::Check { path: r.string()?, version: r.int()? },
            op::MULTI => Self::Multi(decode_parts(r, is_write_part)?),
            op::MULTI_READ => Self::MultiRead(decode_parts(r, is_read_part)?),
            op::RECONFIG => Self::Reconfig {
                joining: r.nullable_string()?,
                leaving: r.nullable_string()?,
                members: r.nullable_string()?,
                config: r.long()?,
            },
            op::CHECK_WATCHES => Self::CheckWatches { path: r.string()?, kind: r.int()? },
            op::REMOVE_WATCHES => Self::RemoveWatches { path: r.string()?, kind: r.int()? },
            op::AUTH => {
                Self::Auth { kind: r.int()?, scheme: r.string()?, auth: r.buffer()?.unwrap_or_default() }
            }
            op::SET_WATCHES => Self::SetWatches(decode_set_watches(r, false)?),
            op::SET_WATCHES2 => Self::SetWatches2(decode_set_watches(r, true)?),
            op::SASL => Self::Sasl { token: r.buffer()?.unwrap_or_default() },
            op::GET_EPHEMERALS => Self::GetEphemerals { prefix: r.string()? },
            op::GET_ALL_CHILDREN_NUMBER => Self::GetAllChildrenNumber { path: r.string()? },
            op::ADD_WATCH => Self::AddWatch { path: r.string()?, mode: r.int()? },
            op::WHO_AM_I => Self::WhoAmI,
            op::CLOSE_SESSION => Self::CloseSession,
            _ => return Err(JuteError::UnknownOperation { op: code }),
        })
    }

    /// The operation's code.
    pub const fn op(&self) -> i32 {
        match self {
            Self::Create(create) => create.op,
            Self::Delete { .. } => op::DELETE,
            Self::DeleteContainer { .. } => op::DELETE_CONTAINER,
            Self::Exists { .. } => op::EXISTS,
            Self::GetData { .. } => op::GET_DATA,
            Self::SetData { .. } => op::SET_DATA,
            Self::GetAcl { .. } => op::GET_ACL,
            Self::SetAcl { .. } => op::SET_ACL,
            Self::GetChildren { .. } => op::GET_CHILDREN,
            Self::GetChildren2 { .. } => op::GET_CHILDREN2,
            Self::Sync { .. } => op::SYNC,
            Self::Ping => op::PING,
            Self::Check { .. } => op::CHECK,
            Self::Multi(_) => op::MULTI,
            Self::MultiRead(_) => op::MULTI_READ,
            Self::Reconfig { .. } => op::RECONFIG,
            Self::CheckWatches { .. } => op::CHECK_WATCHES,
            Self::RemoveWatches { .. } => op::REMOVE_WATCHES,
            Self::Auth { .. } => op::AUTH,
            Self::SetWatches(_) => op::SET_WATCHES,
            Self::SetWatches2(_) => op::SET_WATCHES2,
            Self::Sasl { .. } => op::SASL,
            Self::GetEphemerals { .. } => op::GET_EPHEMERALS,
            Self::GetAllChildrenNumber { .. } => op::GET_ALL_CHILDREN_NUMBER,
            Self::AddWatch { .. } => op::ADD_WATCH,
            Self::WhoAmI => op::WHO_AM_I,
            Self::CloseSession => op::CLOSE_SESSION,
        }
    }

    /// Writes header and body, without the frame's prefix.
    pub fn encode(&self, xid: i32, out: &mut BytesMut) {
        let mut writer = Writer::new(out);
        writer.int(xid);
        writer.int(self.op());
        self.encode_body(&mut writer);
    }

    fn encode_body(&self, w: &mut Writer<'_>) {
        match self {
            Self::Create(create) => {
                w.string(&create.path);
                w.buffer(create.data.as_deref());
                w.acl(&create.acl);
                w.int(create.flags);
                if let Some(ttl) = create.ttl_ms {
                    w.long(ttl);
                }
            }
            Self::Delete { path, version } | Self::Check { path, version } => {
                w.string(path);
                w.int(*version);
            }
            Self::Exists { path, watch }
            | Self::GetData { path, watch }
            | Self::GetChildren { path, watch }
            | Self::GetChildren2 { path, watch } => {
                w.string(path);
                w.bool(*watch);
            }
            Self::SetData { path, data, version } => {
                w.string(path);
                w.buffer(data.as_deref());
                w.int(*version);
            }
            Self::SetAcl { path, acl, version } => {
                w.string(path);
                w.acl(acl);
                w.int(*version);
            }
            Self::GetAcl { path }
            | Self::DeleteContainer { path }
            | Self::Sync { path }
            | Self::GetEphemerals { prefix: path }
            | Self::GetAllChildrenNumber { path } => w.string(path),
            Self::Multi(parts) | Self::MultiRead(parts) => encode_parts(parts, w),
            Self::Reconfig { joining, leaving, members, config } => {
                for text in [joining, leaving, members] {
                    w.buffer(text.as_deref().map(str::as_bytes));
                }
                w.long(*config);
            }
            Self::CheckWatches { path, kind: number }
            | Self::RemoveWatches { path, kind: number }
            | Self::AddWatch { path, mode: number } => {
                w.string(path);
                w.int(*number);
            }
            Self::Auth { kind, scheme, auth } => {
                w.int(*kind);
                w.string(scheme);
                w.buffer(Some(auth));
            }
            Self::SetWatches(watches) => encode_set_watches(watches, false, w),
            Self::SetWatches2(watches) => encode_set_watches(watches, true, w),
            Self::Sasl { token } => w.buffer(Some(token)),
            Self::Ping | Self::WhoAmI | Self::CloseSession => {}
        }
    }
}

const fn is_write_part(code: i32) -> bool {
    matches!(
        code,
        op::CREATE
            | op::CREATE2
            | op::CREATE_CONTAINER
            | op::CREATE_TTL
            | op::DELETE
            | op::SET_DATA
            | op::CHECK
    )
}

const fn is_read_part(code: i32) -> bool {
    matches!(code, op::GET_DATA | op::GET_CHILDREN)
}

fn decode_parts(r: &mut Reader, allowed: fn(i32) -> bool) -> Result<Vec<Request>, JuteError> {
    let mut parts = Vec::new();
    loop {
        let (code, done, _error) = (r.int()?, r.bool()?, r.int()?);
        if done {
            return Ok(parts);
        }
        if !allowed(code) {
            return Err(JuteError::Part { op: code });
        }
        parts.push(Request::decode_body(code, r)?);
    }
}

fn encode_parts(parts: &[Request], w: &mut Writer<'_>) {
    for part in parts {
        multi_header(w, part.op(), false, -1);
        part.encode_body(w);
    }
    multi_header(w, op::NONE, true, -1);
}

/// Writes the header of a multi's part, or of its end.
pub(super) fn multi_header(w: &mut Writer<'_>, code: i32, done: bool, error: i32) {
    w.int(code);
    w.bool(done);
    w.int(error);
}

fn decode_set_watches(r: &mut Reader, persistent: bool) -> Result<SetWatches, JuteError> {
    let mut watches = SetWatches {
        relative_zxid: Zxid::new(r.long()?),
        data: r.strings()?,
        exist: r.strings()?,
        child: r.strings()?,
        ..SetWatches::default()
    };
    if persistent {
        watches.persistent = r.strings()?;
        watches.recursive = r.strings()?;
    }
    Ok(watches)
}

fn encode_set_watches(watches: &SetWatches, persistent: bool, w: &mut Writer<'_>) {
    w.long(watches.relative_zxid.raw());
    w.strings(&watches.data);
    w.strings(&watches.exist);
    w.strings(&watches.child);
    if persistent {
        w.strings(&watches.persistent);
        w.strings(&watches.recursive);
    }
}

#[cfg(test)]
mod tests;
