//! What a log says to the commit journal: appends, and everything else that changes which bytes count (rule 1 of
//! docs/decisions/0006). Each entry names the replica by topic id, partition and incarnation, so that nothing old
//! comes back under a reused name.
//!
//! ```text
//! kind u8 | topic id 16 | partition i32 | incarnation u64 | a i64 | b u64 | then, for an append: the batch
//! ```
//! An append has a = its segment's base offset and b = its position in the file; so has a truncation, for the place
//! of its cut, and the log's new end behind it; a moved log start has a = the offset. Called by `commit` and
//! `recovery`.

use bytes::Bytes;
use loggos_protocol::ids::{Offset, PartitionId, TopicId};
use loggos_storage::journal;

use super::LogId;

/// Bytes in front of the batch.
const HEAD: usize = 1 + 16 + 4 + 8 + 8 + 8;
const APPEND: u8 = 1;
const TRUNCATE: u8 = 2;
const LOG_START: u8 = 3;
const CREATE: u8 = 4;
const DELETE: u8 = 5;

/// What happened to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Bytes of one batch went to this place.
    Append {
        /// The segment.
        segment: Offset,
        /// The position in its file.
        position: u64,
        /// The batch as it stands there.
        batch: Bytes,
    },
    /// Everything from this place on was cut.
    Truncate {
        /// The log's end since then.
        end: Offset,
        /// The segment that is the last one since then.
        segment: Offset,
        /// Its length since then.
        position: u64,
    },
    /// Everything before this offset was given up.
    LogStart(Offset),
    /// It came into being; the topic's name follows.
    Create(String),
    /// It ceased to be.
    Delete,
}

/// An append's entry: the head here, the batch's header behind it, its payload as the body.
pub(super) fn append(
    id: &LogId,
    segment: Offset,
    position: u64,
    header: &[u8],
    payload: Bytes,
) -> journal::Entry {
    let mut bytes = head(APPEND, id, segment.raw(), position, header.len());
    bytes.extend_from_slice(header);
    journal::Entry { head: bytes, body: payload }
}

/// Any other change's entry.
pub(super) fn change(id: &LogId, change: &Change) -> journal::Entry {
    let (kind, offset, body) = match change {
        Change::Append { segment, position, batch } => {
            return append(id, *segment, *position, &[], batch.clone());
        }
        Change::Truncate { end, segment, position } => {
            let body = Bytes::copy_from_slice(&end.raw().to_be_bytes());
            return journal::Entry { head: head(TRUNCATE, id, segment.raw(), *position, 0), body };
        }
        Change::LogStart(offset) => (LOG_START, offset.raw(), Bytes::new()),
        Change::Create(topic) => (CREATE, 0, Bytes::from(topic.clone())),
        Change::Delete => (DELETE, 0, Bytes::new()),
    };
    journal::Entry { head: head(kind, id, offset, 0, 0), body }
}

fn head(kind: u8, id: &LogId, a: i64, b: u64, more: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + more);
    bytes.push(kind);
    bytes.extend_from_slice(&id.topic_id.to_bytes());
    bytes.extend_from_slice(&id.partition.raw().to_be_bytes());
    bytes.extend_from_slice(&id.incarnation.to_be_bytes());
    bytes.extend_from_slice(&a.to_be_bytes());
    bytes.extend_from_slice(&b.to_be_bytes());
    bytes
}

/// Whose change it is, without the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Replica {
    /// The topic.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// Which life of the replica.
    pub incarnation: u64,
}

/// Reads an entry back; `None` for bytes that no version of ours wrote.
pub(super) fn decode(bytes: &Bytes) -> Option<(Replica, Change)> {
    let fixed: &[u8; HEAD] = bytes.first_chunk()?;
    let topic_id = TopicId::from_bytes(fixed[1..17].try_into().ok()?);
    let partition = PartitionId::new(i32::from_be_bytes(fixed[17..21].try_into().ok()?));
    let incarnation = u64::from_be_bytes(fixed[21..29].try_into().ok()?);
    let a = Offset::new(i64::from_be_bytes(fixed[29..37].try_into().ok()?));
    let b = u64::from_be_bytes(fixed[37..45].try_into().ok()?);
    let rest = bytes.slice(HEAD..);
    let change = match fixed[0] {
        APPEND => Change::Append { segment: a, position: b, batch: rest },
        TRUNCATE => {
            let end = Offset::new(i64::from_be_bytes(rest.as_ref().try_into().ok()?));
            Change::Truncate { end, segment: a, position: b }
        }
        LOG_START => Change::LogStart(a),
        CREATE => Change::Create(String::from_utf8(rest.to_vec()).ok()?),
        DELETE => Change::Delete,
        _ => return None,
    };
    Some((Replica { topic_id, partition, incarnation }, change))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id() -> LogId {
        LogId {
            topic_id: TopicId::from_bytes([7; 16]),
            topic: "t".into(),
            partition: PartitionId::new(3),
            incarnation: 9,
        }
    }

    #[test]
    fn every_change_reads_back() {
        let changes = [
            Change::Append { segment: Offset::new(5), position: 77, batch: Bytes::from_static(b"batch") },
            Change::Truncate { end: Offset::new(4), segment: Offset::new(2), position: 90 },
            Change::LogStart(Offset::new(2)),
            Change::Create("orders".to_owned()),
            Change::Delete,
        ];
        for expected in changes {
            let entry = change(&id(), &expected);
            let bytes = Bytes::from([&entry.head[..], &entry.body].concat());
            let (replica, found) = decode(&bytes).expect("ours");
            assert_eq!((replica, found), (id().replica(), expected));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            decode(&Bytes::from(bytes));
        }
    }
}
