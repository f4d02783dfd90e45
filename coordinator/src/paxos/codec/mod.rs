//! Bytes of everything that leaves a server's memory: peers' frames, the ledger's records, memberships, and the
//! engine's part of a snapshot. Versioned, big-endian; whatever is malformed is an error, never a panic.
//!
//! | file | what it knows |
//! |---|---|
//! | `codec` | primitives, values, memberships, records, the head of a snapshot |
//! | `message` | envelopes and messages, with their checksum |
//!
//! Called by `engine` (snapshot heads), `ledger` (records) and `peer` (frames). docs/FORMATS.md has the tables.

mod message;

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use loggos_protocol::ids::Timestamp;

use super::ballot::{Ballot, ServerId, Slot};
use super::event::Record;
use super::membership::{Config, ConfigHistory, MEMBERS_LIMIT, Member, Role};
use super::value::{Batch, Value};

pub use message::{decode_envelope, encode_envelope};

/// The version of all these formats.
const VERSION: u8 = 1;
/// The longest `host:port` that is taken.
const ADDRESS_LIMIT: usize = 300;
/// The most memberships that a history holds: one per window, and few windows are open.
const HISTORY_LIMIT: usize = 1024;

/// Bytes that nobody of us wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They end too early.
    #[error("the bytes end too early")]
    Short,
    /// They go on behind the end.
    #[error("there are bytes behind the end")]
    Long,
    /// Their checksum doesn't fit.
    #[error("the checksum doesn't fit")]
    Checksum,
    /// They are of another version.
    #[error("version {0} is not known here")]
    Version(u8),
    /// A field holds what it can't.
    #[error("{0} is out of range")]
    Range(&'static str),
}

/// Reads with checks. Byte strings are shared with the input, not copied.
#[derive(Debug)]
pub(crate) struct Reader(Bytes);

impl Reader {
    /// Begins at the front.
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        self.0.try_get_u8().map_err(|_| CodecError::Short)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, CodecError> {
        self.0.try_get_u16().map_err(|_| CodecError::Short)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        self.0.try_get_u32().map_err(|_| CodecError::Short)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        self.0.try_get_u64().map_err(|_| CodecError::Short)
    }

    /// Sixteen bytes.
    pub fn u128(&mut self) -> Result<u128, CodecError> {
        self.0.try_get_u128().map_err(|_| CodecError::Short)
    }

    /// 0 or 1.
    pub fn flag(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Range("a flag")),
        }
    }

    /// A slot.
    pub fn slot(&mut self) -> Result<Slot, CodecError> {
        self.u64().map(Slot::new)
    }

    /// A ballot.
    pub fn ballot(&mut self) -> Result<Ballot, CodecError> {
        self.u64().map(Ballot::from_raw)
    }

    /// A server's number.
    pub fn server(&mut self) -> Result<ServerId, CodecError> {
        self.u16().map(ServerId::new)
    }

    /// A length and so many bytes.
    pub fn bytes(&mut self) -> Result<Bytes, CodecError> {
        let len = self.u32()? as usize;
        if len > self.0.len() {
            return Err(CodecError::Short);
        }
        Ok(self.0.split_to(len))
    }

    /// A short text.
    pub fn text(&mut self) -> Result<String, CodecError> {
        let bytes = self.bytes()?;
        if bytes.len() > ADDRESS_LIMIT {
            return Err(CodecError::Range("a text's length"));
        }
        String::from_utf8(bytes.into()).map_err(|_| CodecError::Range("a text"))
    }

    /// A count and so many items.
    pub fn list<T>(
        &mut self,
        limit: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Vec<T>, CodecError> {
        let count = self.u32()? as usize;
        // Each item takes a byte at least: a false count costs no memory.
        if count > self.0.len().min(limit) {
            return Err(CodecError::Range("a count"));
        }
        (0..count).map(|_| item(self)).collect()
    }

    /// `value`, if nothing is left.
    pub fn end<T>(self, value: T) -> Result<T, CodecError> {
        if self.0.is_empty() { Ok(value) } else { Err(CodecError::Long) }
    }

    /// The version byte.
    pub fn version(&mut self) -> Result<(), CodecError> {
        match self.u8()? {
            VERSION => Ok(()),
            other => Err(CodecError::Version(other)),
        }
    }
}

/// Appends a length and the bytes.
pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).expect("nothing of ours is 4 GiB long"));
    out.put_slice(bytes);
}

/// Appends a count and the items.
pub(crate) fn put_list<T>(
    out: &mut BytesMut,
    items: impl ExactSizeIterator<Item = T>,
    mut put: impl FnMut(&mut BytesMut, T),
) {
    out.put_u32(u32::try_from(items.len()).expect("no list of ours has 4 billion items"));
    items.for_each(|item| put(out, item));
}

/// Appends a value.
pub fn put_value(out: &mut BytesMut, value: &Value) {
    match value {
        Value::Noop => out.put_u8(0),
        Value::LeaderStart { ballot, time } => {
            out.put_u8(1);
            out.put_u64(ballot.raw());
            out.put_i64(time.raw());
        }
        Value::Config { config, time } => {
            out.put_u8(2);
            put_config(out, config);
            out.put_i64(time.raw());
        }
        Value::Batch(batch) => {
            out.put_u8(3);
            out.put_i64(batch.time.raw());
            put_list(out, batch.entries.iter(), |out, entry| put_bytes(out, entry));
        }
    }
}

fn take_value(reader: &mut Reader) -> Result<Value, CodecError> {
    Ok(match reader.u8()? {
        0 => Value::Noop,
        1 => Value::LeaderStart { ballot: reader.ballot()?, time: take_time(reader)? },
        2 => Value::Config { config: Arc::new(take_config(reader)?), time: take_time(reader)? },
        3 => {
            let time = take_time(reader)?;
            Value::Batch(Arc::new(Batch { time, entries: reader.list(usize::MAX, Reader::bytes)? }))
        }
        _ => return Err(CodecError::Range("the kind of a value")),
    })
}

fn take_time(reader: &mut Reader) -> Result<Timestamp, CodecError> {
    reader.u64().map(|raw| Timestamp::new(raw.cast_signed()))
}

/// Appends a membership.
pub(crate) fn put_config(out: &mut BytesMut, config: &Config) {
    out.put_u16(config.next_id.raw());
    put_list(out, config.members.iter(), put_member);
}

/// Reads a membership back.
pub(crate) fn take_config(reader: &mut Reader) -> Result<Config, CodecError> {
    let next_id = reader.server()?;
    let members = reader.list(MEMBERS_LIMIT, take_member)?;
    if !members.windows(2).all(|pair| pair[0].id < pair[1].id) {
        return Err(CodecError::Range("the order of members"));
    }
    Ok(Config { members, next_id })
}

/// Appends a member.
pub(crate) fn put_member(out: &mut BytesMut, member: &Member) {
    out.put_u16(member.id.raw());
    out.put_u8(match member.role {
        Role::Voter => 0,
        Role::Learner => 1,
        Role::Witness => 2,
    });
    put_bytes(out, member.peer.as_bytes());
    out.put_u16(member.bulk_port);
    put_bytes(out, member.client.as_bytes());
    out.put_u64(member.token);
}

/// Reads a member back.
pub(crate) fn take_member(reader: &mut Reader) -> Result<Member, CodecError> {
    Ok(Member {
        id: reader.server()?,
        role: match reader.u8()? {
            0 => Role::Voter,
            1 => Role::Learner,
            2 => Role::Witness,
            _ => return Err(CodecError::Range("a role")),
        },
        peer: reader.text()?,
        bulk_port: reader.u16()?,
        client: reader.text()?,
        token: reader.u64()?,
    })
}

/// A record of the ledger as bytes.
pub fn encode_record(record: &Record) -> Bytes {
    let mut out = BytesMut::new();
    match record {
        Record::Accepted { ballot, slot, value } => {
            out.reserve(32 + value.weight());
            out.put_u8(VERSION);
            out.put_u8(1);
            out.put_u64(slot.raw());
            out.put_u64(ballot.raw());
            put_value(&mut out, value);
        }
        Record::Learned { slot, value } => {
            out.reserve(32 + value.weight());
            out.put_u8(VERSION);
            out.put_u8(2);
            out.put_u64(slot.raw());
            put_value(&mut out, value);
        }
    }
    out.freeze()
}

/// Reads a record back.
///
/// # Errors
/// For bytes that `encode_record` didn't give.
pub fn decode_record(bytes: Bytes) -> Result<Record, CodecError> {
    let mut reader = Reader::new(bytes);
    reader.version()?;
    let (kind, slot) = (reader.u8()?, reader.slot()?);
    let record = match kind {
        1 => Record::Accepted { slot, ballot: reader.ballot()?, value: take_value(&mut reader)? },
        2 => Record::Learned { slot, value: take_value(&mut reader)? },
        _ => return Err(CodecError::Range("the kind of a record")),
    };
    reader.end(record)
}

/// A membership as bytes, for the identity and the handshakes.
pub fn encode_config(config: &Config) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    put_config(&mut out, config);
    out.freeze()
}

/// Reads a membership back.
///
/// # Errors
/// For bytes that `encode_config` didn't give.
pub fn decode_config(bytes: Bytes) -> Result<Config, CodecError> {
    let mut reader = Reader::new(bytes);
    reader.version()?;
    let config = take_config(&mut reader)?;
    reader.end(config)
}

/// The memberships as bytes: the engine's part of a snapshot.
pub fn encode_history(history: &ConfigHistory) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    put_list(&mut out, history.entries().iter(), |out, (slot, config)| {
        out.put_u64(slot.raw());
        put_config(out, config);
    });
    out.freeze()
}

/// Reads the memberships back; `alpha` is the window of the cell.
///
/// # Errors
/// For bytes that `encode_history` didn't give.
pub fn decode_history(bytes: Bytes, alpha: u64) -> Result<ConfigHistory, CodecError> {
    let mut reader = Reader::new(bytes);
    reader.version()?;
    let entries =
        reader.list(HISTORY_LIMIT, |reader| Ok((reader.slot()?, Arc::new(take_config(reader)?))))?;
    let history = ConfigHistory::from_entries(entries, alpha).ok_or(CodecError::Range("a history"))?;
    reader.end(history)
}

#[cfg(test)]
pub(super) mod strategies {
    //! Anything that can be said, for the round trips.

    use super::*;
    use proptest::prelude::*;

    pub fn bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    pub fn slot() -> impl Strategy<Value = Slot> {
        any::<u64>().prop_map(Slot::new)
    }

    pub fn ballot() -> impl Strategy<Value = Ballot> {
        any::<u64>().prop_map(Ballot::from_raw)
    }

    fn member() -> impl Strategy<Value = Member> {
        let role = prop_oneof![Just(Role::Voter), Just(Role::Learner), Just(Role::Witness)];
        (role, "[a-z]{0,9}:[0-9]{1,5}", any::<u16>(), "[a-z.]{0,9}", any::<u64>()).prop_map(
            |(role, peer, bulk_port, client, token)| Member {
                id: ServerId::NONE,
                role,
                peer,
                bulk_port,
                client,
                token,
            },
        )
    }

    pub fn config() -> impl Strategy<Value = Config> {
        prop::collection::vec(member(), 0..5).prop_map(|mut members| {
            for (at, member) in members.iter_mut().enumerate() {
                member.id = ServerId::new(at as u16 + 1);
            }
            Config { next_id: ServerId::new(members.len() as u16 + 1), members }
        })
    }

    pub fn value() -> impl Strategy<Value = Value> {
        let time = || any::<i64>().prop_map(Timestamp::new);
        prop_oneof![
            Just(Value::Noop),
            (ballot(), time()).prop_map(|(ballot, time)| Value::LeaderStart { ballot, time }),
            (config(), time()).prop_map(|(config, time)| Value::Config { config: Arc::new(config), time }),
            (time(), prop::collection::vec(bytes(), 0..5))
                .prop_map(|(time, entries)| Value::batch(time, entries)),
        ]
    }

    pub fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            (ballot(), slot(), value()).prop_map(|(ballot, slot, value)| Record::Accepted {
                ballot,
                slot,
                value
            }),
            (slot(), value()).prop_map(|(slot, value)| Record::Learned { slot, value }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_and_memberships_read_back(
            record in strategies::record(),
            configs in prop::collection::vec(strategies::config(), 1..4),
        ) {
            prop_assert_eq!(decode_record(encode_record(&record)), Ok(record));
            let read = decode_config(encode_config(&configs[0]));
            prop_assert_eq!(read.as_ref(), Ok(&configs[0]));
            let entries = configs.into_iter().enumerate().map(|(at, c)| (Slot::new(at as u64 * 7), Arc::new(c)));
            let history = ConfigHistory::from_entries(entries.collect(), 64).expect("in order");
            prop_assert_eq!(decode_history(encode_history(&history), 64), Ok(history));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let bytes = Bytes::from(bytes);
            let _ = decode_record(bytes.clone());
            let _ = decode_config(bytes.clone());
            let _ = decode_history(bytes, 64);
        }

        #[test]
        fn what_is_cut_short_is_refused(record in strategies::record(), cut in 1..20usize) {
            let whole = encode_record(&record);
            let kept = whole.len().saturating_sub(cut);
            prop_assert!(decode_record(whole.slice(..kept)).is_err());
        }
    }
}
