//! A fetch's answer around slices of files: the bytes between the records are made here, the records stay where
//! they are and are sent by whoever has the socket. Byte-equal to the message structs' own encoder (a test says
//! so), which would want the records in memory.
//!
//! Called by the broker's fetch handler.

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{RequestHeader, begin_response};
use super::error_code::ErrorCode;
use crate::frame::PREFIX_LEN;
use crate::ids::{BrokerId, LeaderEpoch, Offset, PartitionId, TopicId, TopicName};

/// The first version with compact lengths.
const FLEXIBLE: i16 = 12;
/// The first version that names topics by their ids.
const TOPIC_IDS: i16 = 13;

/// Records that can tell their length.
pub trait Records {
    /// Bytes.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Records for Bytes {
    fn len(&self) -> usize {
        Self::len(self)
    }
}

/// The answer.
#[derive(Debug)]
pub struct FetchAnswer<R> {
    /// What is wrong with the request as a whole.
    pub error: ErrorCode,
    /// The fetch session, or 0.
    pub session_id: i32,
    /// Its topics.
    pub topics: Vec<FetchedTopic<R>>,
}

/// A topic of the answer.
#[derive(Debug)]
pub struct FetchedTopic<R> {
    /// Its name.
    pub name: TopicName,
    /// Its identity.
    pub id: TopicId,
    /// Its partitions.
    pub partitions: Vec<FetchedPartition<R>>,
}

/// A partition of the answer.
#[derive(Debug)]
pub struct FetchedPartition<R> {
    /// Which.
    pub partition: PartitionId,
    /// What is wrong with it.
    pub error: ErrorCode,
    /// Consumers see nothing at or behind it.
    pub high_watermark: Offset,
    /// The first offset that can be read.
    pub log_start: Offset,
    /// Where the follower's log goes another way (KIP-595).
    pub diverging: Option<(LeaderEpoch, Offset)>,
    /// Who leads instead (KIP-951).
    pub leader: Option<(BrokerId, LeaderEpoch)>,
    /// The replica nearest to the consumer, that it should read from instead (KIP-392); from version 11 on.
    pub preferred: Option<BrokerId>,
    /// The records, if there are any.
    pub records: Option<R>,
}

/// A piece of the answer, in order.
#[derive(Debug)]
pub enum Part<R> {
    /// Bytes.
    Bytes(Bytes),
    /// Records.
    Records(R),
}

/// A builder that counts what it hasn't in its buffer.
struct Parts<R> {
    done: Vec<Part<R>>,
    buffer: BytesMut,
    len: usize,
    flexible: bool,
}

impl<R: Records> Parts<R> {
    fn records(&mut self, records: R) {
        self.len += self.buffer.len() + records.len();
        self.done.push(Part::Bytes(self.buffer.split().freeze()));
        self.done.push(Part::Records(records));
    }

    fn uvarint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.buffer.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.buffer.put_u8(value as u8);
    }

    fn count(&mut self, count: usize) {
        let count = u32::try_from(count).expect("fewer than 4 billion partitions");
        if self.flexible { self.uvarint(count + 1) } else { self.buffer.put_u32(count) }
    }

    fn no_tags(&mut self) {
        if self.flexible {
            self.buffer.put_u8(0);
        }
    }
}

/// The answer's pieces, the length prefix first.
///
/// # Panics
/// When the answer is 2 GiB or longer: a fetch is bounded far below.
pub fn encode_fetch<R: Records>(header: &RequestHeader, answer: FetchAnswer<R>) -> Vec<Part<R>> {
    let version = header.version;
    let flexible = version >= FLEXIBLE;
    let mut out = Parts { done: Vec::new(), buffer: begin_response(header), len: 0, flexible };
    out.buffer.put_i32(0);
    if version >= 7 {
        out.buffer.put_i16(answer.error.raw());
        out.buffer.put_i32(answer.session_id);
    }
    out.count(answer.topics.len());
    for topic in answer.topics {
        if version >= TOPIC_IDS {
            out.buffer.put_slice(&topic.id.to_bytes());
        } else {
            let name = topic.name.as_str().as_bytes();
            if flexible {
                out.count(name.len())
            } else {
                out.buffer.put_i16(name.len() as i16)
            }
            out.buffer.put_slice(name);
        }
        out.count(topic.partitions.len());
        for partition in topic.partitions {
            put_partition(&mut out, version, partition);
        }
        out.no_tags();
    }
    out.no_tags();
    let total = out.len + out.buffer.len() - PREFIX_LEN;
    let prefix = u32::try_from(total).ok().filter(|total| *total < 1 << 31).expect("a fetch is bounded");
    out.done.push(Part::Bytes(out.buffer.freeze()));
    set_prefix(&mut out.done, prefix);
    out.done
}

fn set_prefix<R>(parts: &mut [Part<R>], prefix: u32) {
    if let Some(Part::Bytes(first)) = parts.first_mut() {
        let mut bytes = BytesMut::from(std::mem::take(first));
        bytes[..PREFIX_LEN].copy_from_slice(&prefix.to_be_bytes());
        *first = bytes.freeze();
    }
}

fn put_partition<R: Records>(out: &mut Parts<R>, version: i16, partition: FetchedPartition<R>) {
    out.buffer.put_i32(partition.partition.raw());
    out.buffer.put_i16(partition.error.raw());
    out.buffer.put_i64(partition.high_watermark.raw());
    // The last stable offset: there are no transactions.
    out.buffer.put_i64(partition.high_watermark.raw());
    if version >= 5 {
        out.buffer.put_i64(partition.log_start.raw());
    }
    // Aborted transactions: none, as a null list.
    if out.flexible {
        out.buffer.put_u8(0)
    } else {
        out.buffer.put_i32(-1)
    }
    if version >= 11 {
        out.buffer.put_i32(partition.preferred.unwrap_or(BrokerId::NONE).raw());
    }
    let len = partition.records.as_ref().map_or(0, Records::len);
    if out.flexible {
        out.uvarint(u32::try_from(len).expect("a fetch is bounded") + 1);
    } else {
        out.buffer.put_i32(i32::try_from(len).expect("a fetch is bounded"));
    }
    if let Some(records) = partition.records.filter(|records| !records.is_empty()) {
        out.records(records);
    }
    if !out.flexible {
        return;
    }
    let tags = u8::from(partition.diverging.is_some()) + u8::from(partition.leader.is_some());
    out.buffer.put_u8(tags);
    if let Some((epoch, end)) = partition.diverging {
        out.buffer.put_slice(&[0, 13]);
        out.buffer.put_i32(epoch.raw());
        out.buffer.put_i64(end.raw());
        out.buffer.put_u8(0);
    }
    if let Some((leader, epoch)) = partition.leader {
        out.buffer.put_slice(&[1, 9]);
        out.buffer.put_i32(leader.raw());
        out.buffer.put_i32(epoch.raw());
        out.buffer.put_u8(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::messages::fetch_response::{
        EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, PartitionData,
    };
    use crate::kafka::messages::{self, FetchResponse};
    use crate::kafka::{ApiKey, StrBytes, api, encode_response};

    fn answer(version: i16) -> (FetchAnswer<Bytes>, FetchResponse) {
        let topic = TopicId::from_bytes([9; 16]);
        let partition = |number: i32, records: &'static [u8]| FetchedPartition {
            partition: PartitionId::new(number),
            error: if number == 2 { ErrorCode::NOT_LEADER_OR_FOLLOWER } else { ErrorCode::NONE },
            high_watermark: Offset::new(77),
            log_start: Offset::new(5),
            diverging: (version >= FLEXIBLE && number == 1).then_some((LeaderEpoch::new(3), Offset::new(70))),
            leader: (version >= FLEXIBLE && number == 2).then_some((BrokerId::new(4), LeaderEpoch::new(8))),
            preferred: (version >= 11 && number == 1).then_some(BrokerId::new(6)),
            records: (!records.is_empty()).then(|| Bytes::from_static(records)),
        };
        let partitions = vec![partition(0, b"some records"), partition(1, b""), partition(2, &[7; 300])];
        let theirs = partitions.iter().map(|ours: &FetchedPartition<Bytes>| {
            let mut data = PartitionData::default()
                .with_partition_index(ours.partition.raw())
                .with_error_code(ours.error.raw())
                .with_high_watermark(77)
                .with_last_stable_offset(77)
                .with_log_start_offset(if version >= 5 { 5 } else { -1 })
                .with_aborted_transactions(None)
                .with_records(Some(ours.records.clone().unwrap_or_default()));
            if let Some((epoch, end)) = ours.diverging {
                data.diverging_epoch =
                    EpochEndOffset::default().with_epoch(epoch.raw()).with_end_offset(end.raw());
            }
            if let Some(preferred) = ours.preferred {
                data.preferred_read_replica = preferred.raw().into();
            }
            if let Some((leader, epoch)) = ours.leader {
                data.current_leader = LeaderIdAndEpoch::default()
                    .with_leader_id(leader.raw().into())
                    .with_leader_epoch(epoch.raw());
            }
            data
        });
        let mut response = FetchResponse::default();
        let mut entry = FetchableTopicResponse::default().with_partitions(theirs.collect());
        if version >= TOPIC_IDS {
            entry.topic_id = topic.raw();
        } else {
            entry.topic = messages::TopicName(StrBytes::from_static_str("orders"));
        }
        response.responses = vec![entry];
        let mut ours = FetchAnswer { error: ErrorCode::NONE, session_id: 0, topics: Vec::new() };
        if version >= 7 {
            (response.error_code, response.session_id) = (71, 9);
            (ours.error, ours.session_id) = (ErrorCode::new(71), 9);
        }
        ours.topics = vec![FetchedTopic { name: TopicName::new("orders"), id: topic, partitions }];
        (ours, response)
    }

    #[test]
    fn every_version_is_byte_equal_to_the_message_structs_encoder() {
        let api = api::find(ApiKey::Fetch as i16).expect("known");
        for version in api.versions.min..=api.versions.max {
            let header = RequestHeader { api, version, correlation_id: 42, client_id: None };
            let (ours, theirs) = answer(version);
            let expected = encode_response(&header, &theirs).expect("can be said");
            let mut found = Vec::new();
            for part in encode_fetch(&header, ours) {
                match part {
                    Part::Bytes(bytes) | Part::Records(bytes) => found.extend_from_slice(&bytes),
                }
            }
            assert_eq!(found, expected.to_vec(), "version {version}");
        }
    }
}
