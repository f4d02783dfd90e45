//! What the server sends: the connect response, replies behind a header of xid, zxid and error, notifications.
//!
//! Source: `zookeeper.jute` of ZooKeeper 3.9 and `MultiResponse`. Called by the coordinator's connections, which
//! append whole frames to a connection's outbox.

use bytes::{Bytes, BytesMut};

use super::code::{ErrorCode, XID_NOTIFICATION, op};
use super::jute::{JuteError, Reader, Writer};
use super::request::multi_header;
use super::stat::{Acl, Id, Stat, WatchEvent};
use crate::ids::{SessionId, Zxid};

/// `SyncConnected`, the one state that a notification of ours carries.
const STATE_SYNC_CONNECTED: i32 = 3;

/// The answer to a connection's first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectResponse {
    /// Always 0 so far.
    pub protocol_version: i32,
    /// The time-out that was settled on, in milliseconds; 0 says that the session is no more.
    pub timeout_ms: i32,
    /// The session; 0 when it is no more.
    pub session: SessionId,
    /// What takes the session up again.
    pub password: [u8; 16],
    /// Present exactly if the request said something about it.
    pub read_only: Option<bool>,
}

impl ConnectResponse {
    /// The answer to a session that is no more, or whose password is another.
    pub const fn refused(read_only: Option<bool>) -> Self {
        Self { protocol_version: 0, timeout_ms: 0, session: SessionId::new(0), password: [0; 16], read_only }
    }

    /// Appends the whole frame.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut writer = Writer::new(out);
        let frame = writer.begin_frame();
        writer.int(self.protocol_version);
        writer.int(self.timeout_ms);
        writer.long(self.session.raw());
        writer.buffer(Some(&self.password));
        if let Some(read_only) = self.read_only {
            writer.bool(read_only);
        }
        writer.end_frame(frame);
    }

    /// Reads a frame's payload.
    pub fn decode(payload: Bytes) -> Result<Self, JuteError> {
        let mut reader = Reader::new(payload);
        let (protocol_version, timeout_ms) = (reader.int()?, reader.int()?);
        let session = SessionId::new(reader.long()?);
        let bytes = reader.buffer()?.unwrap_or_default();
        let password = bytes
            .as_ref()
            .try_into()
            .map_err(|_| JuteError::Truncated { missing: 16usize.abs_diff(bytes.len()) })?;
        let read_only = if reader.remaining() == 0 { None } else { Some(reader.bool()?) };
        Ok(Self { protocol_version, timeout_ms, session, password, read_only })
    }
}

/// What stands before every reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    /// The request's.
    pub xid: i32,
    /// A write's own, or the newest that a read has seen.
    pub zxid: Zxid,
    /// A body follows 0 alone.
    pub error: ErrorCode,
}

impl ReplyHeader {
    /// Reads a header; the body stays in the reader.
    pub fn decode(reader: &mut Reader) -> Result<Self, JuteError> {
        Ok(Self { xid: reader.int()?, zxid: Zxid::new(reader.long()?), error: ErrorCode::new(reader.int()?) })
    }
}

/// A successful reply's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Of delete, ping, auth, setWatches, checkWatches, removeWatches, closeSession.
    Empty,
    /// Of create and sync.
    Path(String),
    /// Of create2, createContainer, createTTL.
    PathStat(String, Stat),
    /// Of exists, setData, setACL.
    Stat(Stat),
    /// Of getData and reconfig.
    Data(Option<Bytes>, Stat),
    /// Of getACL.
    Acl(Vec<Acl>, Stat),
    /// Of getChildren and getEphemerals.
    Names(Vec<String>),
    /// Of getChildren2.
    NamesStat(Vec<String>, Stat),
    /// Of getAllChildrenNumber, and of addWatch (0).
    Number(i32),
    /// Of whoAmI.
    Ids(Vec<Id>),
    /// Of multi and multiRead.
    Parts(Vec<PartReply>),
}

/// What one part of a multi or multiRead came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartReply {
    /// Of create.
    Create(String),
    /// Of create2, createContainer, createTTL.
    Create2(String, Stat),
    /// Of delete.
    Delete,
    /// Of setData.
    SetData(Stat),
    /// Of check.
    Check,
    /// Of getData.
    Data(Option<Bytes>, Stat),
    /// Of getChildren.
    Names(Vec<String>),
    /// It failed, or a part beside it did.
    Error(ErrorCode),
}

/// Appends the whole frame of a reply: a body when it succeeded, an error code when not.
pub fn encode_reply(out: &mut BytesMut, xid: i32, zxid: Zxid, outcome: Result<&Reply, ErrorCode>) {
    let mut writer = Writer::new(out);
    let frame = writer.begin_frame();
    writer.int(xid);
    writer.long(zxid.raw());
    match outcome {
        Ok(reply) => {
            writer.int(ErrorCode::OK.raw());
            encode_body(reply, &mut writer);
        }
        Err(code) => writer.int(code.raw()),
    }
    writer.end_frame(frame);
}

/// Appends the whole frame of a notification; `zxid` is the change's, or -1 when setWatches made it.
pub fn encode_notification(out: &mut BytesMut, zxid: Zxid, event: &WatchEvent) {
    let mut writer = Writer::new(out);
    let frame = writer.begin_frame();
    writer.int(XID_NOTIFICATION);
    writer.long(zxid.raw());
    writer.int(ErrorCode::OK.raw());
    writer.int(event.event as i32);
    writer.int(STATE_SYNC_CONNECTED);
    writer.string(&event.path);
    writer.end_frame(frame);
}

fn encode_body(reply: &Reply, w: &mut Writer<'_>) {
    match reply {
        Reply::Empty => {}
        Reply::Path(path) => w.string(path),
        Reply::PathStat(path, stat) => {
            w.string(path);
            w.stat(stat);
        }
        Reply::Stat(stat) => w.stat(stat),
        Reply::Data(data, stat) => {
            w.buffer(data.as_deref());
            w.stat(stat);
        }
        Reply::Acl(acl, stat) => {
            w.acl(acl);
            w.stat(stat);
        }
        Reply::Names(names) => w.strings(names),
        Reply::NamesStat(names, stat) => {
            w.strings(names);
            w.stat(stat);
        }
        Reply::Number(number) => w.int(*number),
        Reply::Ids(ids) => {
            w.length(ids.len());
            for id in ids {
                w.id(id);
            }
        }
        Reply::Parts(parts) => {
            for part in parts {
                encode_part(part, w);
            }
            multi_header(w, op::NONE, true, -1);
        }
    }
}

fn encode_part(part: &PartReply, w: &mut Writer<'_>) {
    let code = match part {
        PartReply::Create(_) => op::CREATE,
        PartReply::Create2(..) => op::CREATE2,
        PartReply::Delete => op::DELETE,
        PartReply::SetData(_) => op::SET_DATA,
        PartReply::Check => op::CHECK,
        PartReply::Data(..) => op::GET_DATA,
        PartReply::Names(_) => op::GET_CHILDREN,
        PartReply::Error(error) => {
            multi_header(w, op::NONE, false, error.raw());
            w.int(error.raw());
            return;
        }
    };
    multi_header(w, code, false, 0);
    match part {
        PartReply::Create(path) => w.string(path),
        PartReply::Create2(path, stat) => {
            w.string(path);
            w.stat(stat);
        }
        PartReply::SetData(stat) => w.stat(stat),
        PartReply::Data(data, stat) => {
            w.buffer(data.as_deref());
            w.stat(stat);
        }
        PartReply::Names(names) => w.strings(names),
        PartReply::Delete | PartReply::Check | PartReply::Error(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameDecoder;
    use crate::zookeeper::EventType;

    fn payload(mut frames: BytesMut) -> Reader {
        let frame =
            FrameDecoder::default().decode(&mut frames).expect("an honest frame").expect("a whole frame");
        assert!(frames.is_empty());
        Reader::new(frame)
    }

    #[test]
    fn an_error_has_no_body_and_a_success_has() {
        let mut out = BytesMut::new();
        encode_reply(&mut out, 9, Zxid::new(4), Err(ErrorCode::NO_NODE));
        let mut reader = payload(out);
        let header = ReplyHeader::decode(&mut reader).expect("a header");
        assert_eq!(header, ReplyHeader { xid: 9, zxid: Zxid::new(4), error: ErrorCode::NO_NODE });
        assert_eq!(reader.remaining(), 0);

        let mut out = BytesMut::new();
        encode_reply(&mut out, 9, Zxid::new(4), Ok(&Reply::Data(None, Stat::default())));
        let mut reader = payload(out);
        ReplyHeader::decode(&mut reader).expect("a header");
        assert_eq!(reader.buffer(), Ok(None));
        assert_eq!(reader.stat(), Ok(Stat::default()));
    }

    #[test]
    fn a_failed_multi_names_every_part() {
        let parts = [ErrorCode::OK, ErrorCode::BAD_VERSION, ErrorCode::RUNTIME_INCONSISTENCY];
        let mut out = BytesMut::new();
        let reply = Reply::Parts(parts.iter().map(|code| PartReply::Error(*code)).collect());
        encode_reply(&mut out, 1, Zxid::new(1), Ok(&reply));
        let mut reader = payload(out);
        ReplyHeader::decode(&mut reader).expect("a header");
        for code in parts {
            assert_eq!(reader.int(), Ok(op::NONE));
            assert_eq!(reader.bool(), Ok(false));
            assert_eq!(reader.int(), Ok(code.raw()));
            assert_eq!(reader.int(), Ok(code.raw()));
        }
        assert_eq!((reader.int(), reader.bool(), reader.int()), (Ok(-1), Ok(true), Ok(-1)));
        assert_eq!(reader.remaining(), 0);
    }

    #[test]
    fn a_notification_says_sync_connected() {
        let mut out = BytesMut::new();
        let event = WatchEvent { event: EventType::NodeDeleted, path: "/a".to_owned() };
        encode_notification(&mut out, Zxid::new(-1), &event);
        let mut reader = payload(out);
        let header = ReplyHeader::decode(&mut reader).expect("a header");
        assert_eq!((header.xid, header.zxid), (-1, Zxid::new(-1)));
        assert_eq!((reader.int(), reader.int()), (Ok(2), Ok(3)));
        assert_eq!(reader.string().as_deref(), Ok("/a"));
    }

    #[test]
    fn a_connect_response_survives_its_bytes() {
        for read_only in [None, Some(false)] {
            let response = ConnectResponse {
                protocol_version: 0,
                timeout_ms: 4000,
                session: SessionId::new(77),
                password: [3; 16],
                read_only,
            };
            let mut out = BytesMut::new();
            response.encode(&mut out);
            let frame =
                FrameDecoder::default().decode(&mut out).expect("an honest frame").expect("a whole frame");
            assert_eq!(ConnectResponse::decode(frame), Ok(response));
        }
    }
}
