//! Newtypes for everything that is counted, named or fenced: two integers of different meaning never meet in
//! one signature. All of them are plain values; `Display` prints what a user would type.

use std::fmt;
use std::sync::Arc;

/// Defines a newtype over an integer with the operations that its meaning allows.
macro_rules! integer_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Wraps a raw value as it stands on the wire or on disk.
            pub const fn new(raw: $inner) -> Self {
                Self(raw)
            }

            /// The raw value, for the wire and the disk.
            pub const fn raw(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

integer_id! {
    /// The position of a record in its partition: records are counted from 0 (decision D3).
    Offset(i64)
}
integer_id! {
    /// Counts the leaders that a partition has had; each batch carries the epoch of the leader that took it (KIP-101).
    LeaderEpoch(i32)
}
integer_id! {
    /// A broker's number, its name in `/brokers/ids`.
    BrokerId(i32)
}
integer_id! {
    /// One life of a broker: the czxid of its registration. A later life has a greater one (KIP-380).
    BrokerEpoch(i64)
}
integer_id! {
    /// A partition's number within its topic.
    PartitionId(i32)
}
integer_id! {
    /// An idempotent producer's number (KIP-98).
    ProducerId(i64)
}
integer_id! {
    /// Fences older lives of a producer (KIP-98).
    ProducerEpoch(i16)
}
integer_id! {
    /// The sequence number of a producer's record in one partition; wraps from `i32::MAX` to 0.
    Sequence(i32)
}
integer_id! {
    /// Milliseconds since 1970-01-01 UTC; `-1` where Kafka has no timestamp.
    Timestamp(i64)
}
integer_id! {
    /// Counts the rebalances of a consumer group; a member of an older one is fenced.
    Generation(i32)
}
integer_id! {
    /// A ZooKeeper transaction id: dense, never reset, one per counted entry.
    Zxid(i64)
}
integer_id! {
    /// A ZooKeeper session.
    SessionId(i64)
}

impl Offset {
    /// The first offset of a new partition.
    pub const ZERO: Self = Self(0);

    /// The offset `count` records further on.
    pub const fn plus(self, count: i64) -> Self {
        Self(self.0 + count)
    }

    /// The offset of the next record.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl LeaderEpoch {
    /// What the wire says when no epoch is known.
    pub const NONE: Self = Self(-1);

    /// The epoch of the next leader.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl BrokerId {
    /// What the wire says when there is no broker, for instance no leader.
    pub const NONE: Self = Self(-1);
}

impl ProducerId {
    /// What a batch carries whose producer is not idempotent.
    pub const NONE: Self = Self(-1);
}

impl Sequence {
    /// The sequence `count` records further on, past `i32::MAX` around to 0 as Kafka's does.
    pub const fn plus(self, count: i32) -> Self {
        let sum = self.0 as i64 + count as i64;
        Self((sum % (i32::MAX as i64 + 1)) as i32)
    }
}

impl Timestamp {
    /// Kafka's "no timestamp".
    pub const NONE: Self = Self(-1);
}

/// A topic's identity, which a recreated topic of the same name does not share (KIP-516).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(uuid::Uuid);

impl TopicId {
    /// The id that stands for "none" on the wire.
    pub const NONE: Self = Self(uuid::Uuid::nil());

    /// Wraps a UUID from the wire.
    pub const fn new(raw: uuid::Uuid) -> Self {
        Self(raw)
    }

    /// The UUID for the wire.
    pub const fn raw(self) -> uuid::Uuid {
        self.0
    }

    /// The sixteen bytes for the disk.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }

    /// The id that `bytes` are on disk.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(uuid::Uuid::from_bytes(bytes))
    }

    /// Reads the 22 characters (URL-safe base64 without padding) that `Display` writes and Kafka's tools show.
    pub fn parse(text: &str) -> Option<Self> {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()?;
        Some(Self::from_bytes(bytes.try_into().ok()?))
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use base64::Engine as _;
        f.write_str(&base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

/// Defines a newtype over a shared, immutable name.
macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps a name without checking it; the wire and the tree carry names that were checked when made.
            pub fn new(name: impl Into<Arc<str>>) -> Self {
                Self(name.into())
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self::new(name)
            }
        }
    };
}

name_id! {
    /// A topic's name.
    TopicName
}
name_id! {
    /// A consumer group's name.
    GroupId
}
name_id! {
    /// A member of a consumer group, as the group's broker or the member itself named it.
    MemberId
}

/// The longest topic name that Kafka allows, in bytes.
pub const TOPIC_NAME_LIMIT: usize = 249;

impl TopicName {
    /// Checks Kafka's rule: 1 to 249 of `a-z A-Z 0-9 . _ -`, and neither `.` nor `..`.
    pub fn is_valid(name: &str) -> bool {
        !name.is_empty()
            && name.len() <= TOPIC_NAME_LIMIT
            && name != "."
            && name != ".."
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    }
}

/// One partition of one topic, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicName,
    /// Its partition.
    pub partition: PartitionId,
}

impl TopicPartition {
    /// Names partition `partition` of `topic`.
    pub fn new(topic: impl Into<TopicName>, partition: PartitionId) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_wrap_to_zero_as_kafka_s_do() {
        assert_eq!(Sequence::new(i32::MAX).plus(1), Sequence::new(0));
        assert_eq!(Sequence::new(i32::MAX - 1).plus(3), Sequence::new(1));
    }

    #[test]
    fn topic_ids_survive_their_text() {
        let id = TopicId::from_bytes([7; 16]);
        assert_eq!(id.to_string().len(), 22);
        assert_eq!(TopicId::parse(&id.to_string()), Some(id));
        assert_eq!(TopicId::parse("short"), None);
    }

    #[test]
    fn topic_names_follow_kafka_s_rule() {
        for good in ["a", "orders.v1", "_x-Y"] {
            assert!(TopicName::is_valid(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "é", &"x".repeat(250)] {
            assert!(!TopicName::is_valid(bad), "{bad}");
        }
    }
}
