//! What the registry holds of a consumer group, whoever runs it: the mark that says who does, offsets, consumers.
//!
//! A group is run by a broker, for Kafka's clients, or by its own members straight on the registry (the 2011
//! algorithm). The first comer marks the group's node; the other kind is refused (decision D9).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::record::Record;
use crate::ids::{LeaderEpoch, Offset, Timestamp, TopicId};

/// Who runs a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunBy {
    /// The broker that `FindCoordinator` names.
    Broker,
    /// Its members, by claims on `/consumers/<group>/owners`.
    Members,
}

/// The value of `/consumers/<group>`, as far as both kinds know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMark {
    version: i32,
    /// Who runs it.
    pub run_by: RunBy,
}

impl GroupMark {
    /// A mark.
    pub const fn new(run_by: RunBy) -> Self {
        Self { version: 1, run_by }
    }
}

impl Record for GroupMark {
    const WHAT: &'static str = "a group's mark";
}

/// A committed offset: the value of `/consumers/<group>/offsets/<topic>/<partition>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetRecord {
    /// The next offset to read.
    pub offset: Offset,
    /// The leader epoch of the record before it, or -1.
    #[serde(default = "no_epoch")]
    pub leader_epoch: LeaderEpoch,
    /// What the client noted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// When it was committed.
    #[serde(default = "no_time")]
    pub timestamp: Timestamp,
    /// The topic's identity: a topic of the same name that is made later has no offsets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topic_id: Option<String>,
}

const fn no_epoch() -> LeaderEpoch {
    LeaderEpoch::NONE
}

const fn no_time() -> Timestamp {
    Timestamp::NONE
}

impl OffsetRecord {
    /// An offset of a topic's partition.
    pub fn new(
        topic: TopicId,
        (offset, leader_epoch): (Offset, LeaderEpoch),
        metadata: String,
        timestamp: Timestamp,
    ) -> Self {
        let topic_id = (topic != TopicId::NONE).then(|| topic.to_string());
        Self { offset, leader_epoch, metadata, timestamp, topic_id }
    }

    /// Reads what the registry holds: our JSON, or plain decimal text as consumers of Kafka 0.8 wrote it.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        if let Ok(offset) = text.trim().parse().map(Offset::new) {
            return Some(Self::new(
                TopicId::NONE,
                (offset, LeaderEpoch::NONE),
                String::new(),
                Timestamp::NONE,
            ));
        }
        serde_json::from_slice(bytes).ok()
    }

    /// Whether it is an offset of the topic that has this identity now.
    pub fn is_of(&self, topic: TopicId) -> bool {
        self.topic_id.as_ref().is_none_or(|id| *id == topic.to_string())
    }

    /// Whether it says the same, whenever it was committed.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let said = |record: &Self| {
            (record.offset, record.leader_epoch, record.metadata.clone(), record.topic_id.clone())
        };
        said(self) == said(other)
    }
}

impl Record for OffsetRecord {
    const WHAT: &'static str = "a committed offset";
}

/// A consumer: the value of `/consumers/<group>/ids/<consumer>`, as Kafka 0.8 wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerRecord {
    version: i32,
    /// Topics, and how many streams the consumer reads each with.
    pub subscription: BTreeMap<String, i32>,
    /// `static` for topics by name, `white_list` for a pattern.
    pub pattern: String,
    /// Since when, in milliseconds since 1970.
    pub timestamp: String,
}

impl ConsumerRecord {
    /// A consumer of these topics.
    pub fn new(subscription: BTreeMap<String, i32>, pattern: &str, now_ms: i64) -> Self {
        Self { version: 1, subscription, pattern: pattern.to_owned(), timestamp: now_ms.to_string() }
    }
}

impl Record for ConsumerRecord {
    const WHAT: &'static str = "a consumer";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_read_as_we_write_it_and_as_kafka_0_8_did() {
        let topic = TopicId::from_bytes([7; 16]);
        let ours = OffsetRecord::new(
            topic,
            (Offset::new(42), LeaderEpoch::new(3)),
            "note".to_owned(),
            Timestamp::new(1_700_000_000_000),
        );
        assert_eq!(OffsetRecord::read(&ours.to_bytes()), Some(ours.clone()));
        assert!(ours.is_of(topic) && !ours.is_of(TopicId::from_bytes([8; 16])));
        let old = OffsetRecord::read(b"17").expect("decimal text");
        assert_eq!((old.offset, old.leader_epoch), (Offset::new(17), LeaderEpoch::NONE));
        assert!(old.is_of(topic), "who didn't say which topic means the one of that name");
        assert_eq!(OffsetRecord::read(b"{"), None);
        assert_eq!(OffsetRecord::read(&[0xff]), None);
    }

    #[test]
    fn a_mark_is_read_out_of_a_longer_record() {
        let mark =
            GroupMark::from_bytes(br#"{"version":1,"run_by":"broker","generation":7}"#).expect("a mark");
        assert_eq!(mark.run_by, RunBy::Broker);
        assert_eq!(GroupMark::new(RunBy::Members).to_bytes(), br#"{"version":1,"run_by":"members"}"#);
    }
}
