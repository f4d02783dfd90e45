//! What consumers tell each other inside JoinGroup and SyncGroup: subscriptions and assignments, which the broker
//! carries unread, save where it shows or converts them. A version stands in front of each. Source:
//! `ConsumerProtocolSubscription.json` and `ConsumerProtocolAssignment.json` of Kafka 4.1.
//!
//! Called by the broker's groups and by the client's tools.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::consumer_protocol_assignment::TopicPartition;
use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::guard::{GuardedBytes, REQUEST_FIELDS};
use crate::ids::{PartitionId, TopicName};

/// The newest version of a subscription that we read; of a newer one we read what this one has.
const SUBSCRIPTION_MAX: i16 = 3;
/// The same of an assignment.
const ASSIGNMENT_MAX: i16 = 3;

/// Partitions by topic.
pub type Partitions = BTreeMap<TopicName, Vec<PartitionId>>;

/// What a consumer asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// Topics.
    pub topics: Vec<TopicName>,
    /// What it holds and would keep; empty with the eager protocol.
    pub owned: Partitions,
    /// Its rack.
    pub rack: Option<String>,
}

/// Reads a subscription; `None` where the bytes aren't one.
pub fn subscription(bytes: &Bytes) -> Option<Subscription> {
    let (version, mut body) = versioned(bytes, SUBSCRIPTION_MAX)?;
    let read = ConsumerProtocolSubscription::decode(&mut body, version).ok()?;
    let owned = read.owned_partitions.iter().map(|owned| {
        let partitions = owned.partitions.iter().copied().map(PartitionId::new).collect();
        (TopicName::new(owned.topic.0.as_str()), partitions)
    });
    Some(Subscription {
        topics: read.topics.iter().map(|name| TopicName::new(name.as_str())).collect(),
        owned: owned.collect(),
        rack: read.rack_id.as_ref().map(ToString::to_string),
    })
}

/// Reads an assignment; `None` where the bytes aren't one.
pub fn assignment(bytes: &Bytes) -> Option<Partitions> {
    let (version, mut body) = versioned(bytes, ASSIGNMENT_MAX)?;
    let read = ConsumerProtocolAssignment::decode(&mut body, version).ok()?;
    let mut found = Partitions::new();
    for given in read.assigned_partitions {
        let partitions = found.entry(TopicName::new(given.topic.0.as_str())).or_default();
        partitions.extend(given.partitions.into_iter().map(PartitionId::new));
    }
    Some(found)
}

/// Writes an assignment in version 0, which every consumer reads.
pub fn write_assignment(partitions: &Partitions) -> Bytes {
    let given = partitions.iter().map(|(topic, partitions)| {
        TopicPartition::default()
            .with_topic(super::messages::TopicName(StrBytes::from_string(topic.as_str().to_owned())))
            .with_partitions(partitions.iter().map(|partition| partition.raw()).collect())
    });
    let body = ConsumerProtocolAssignment::default().with_assigned_partitions(given.collect());
    let mut out = BytesMut::new();
    out.put_i16(0);
    body.encode(&mut out, 0).expect("names are shorter than 32 KiB");
    out.freeze()
}

fn versioned(bytes: &Bytes, newest: i16) -> Option<(i16, GuardedBytes)> {
    let mut bytes = bytes.clone();
    let version = bytes.try_get_i16().ok().filter(|version| *version >= 0)?;
    Some((version.min(newest), GuardedBytes::new(bytes, false, REQUEST_FIELDS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_read_as_it_was_written() {
        let given: Partitions = [
            (TopicName::new("a"), vec![PartitionId::new(0), PartitionId::new(7)]),
            (TopicName::new("b"), Vec::new()),
        ]
        .into();
        assert_eq!(assignment(&write_assignment(&given)), Some(given));
    }

    #[test]
    fn what_is_not_a_subscription_or_lies_about_its_length_is_none() {
        for bytes in
            [&b""[..], b"\0", b"\0\0\0", b"\xff\xff", b"\0\x01\x7f\xff\xff\xff", b"\0\0\x7f\xff\xff\xff"]
        {
            let bytes = Bytes::copy_from_slice(bytes);
            assert_eq!(subscription(&bytes), None, "{bytes:?}");
            assert_eq!(assignment(&bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn subscriptions_of_every_version_and_of_the_future_are_read() {
        for version in 0..=4_i16 {
            let mut body =
                ConsumerProtocolSubscription::default().with_topics(vec![StrBytes::from_static_str("t")]);
            if version >= 2 {
                body.generation_id = 5;
            }
            let mut out = BytesMut::new();
            out.put_i16(version);
            body.encode(&mut out, version.min(SUBSCRIPTION_MAX)).expect("written");
            out.put_slice(if version > SUBSCRIPTION_MAX { b"more" } else { b"" });
            let read = subscription(&out.freeze()).expect("read");
            assert_eq!(read.topics, vec![TopicName::new("t")], "version {version}");
        }
    }
}
