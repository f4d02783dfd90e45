//! How fast replicas that catch up are copied (KIP-73): a bucket of bytes that fills at the configured rate. Pure.
//!
//! Only replicas that their topic names, and only while they are not in sync: who is in sync must not fall out for a
//! reassignment elsewhere. Called by the fetch handler for what is given, by `copying` for what is asked for.

use std::collections::BTreeSet;

use loggos_protocol::ids::{BrokerId, PartitionId};
use parking_lot::Mutex;

use super::lease::Moment;

/// No more than what comes in so many milliseconds is saved up.
const SAVED_MS: i64 = 1_000;

/// The replicas that a topic's `*.replication.throttled.replicas` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Throttled {
    /// None.
    #[default]
    None,
    /// All of them.
    All,
    /// These.
    These(BTreeSet<(PartitionId, BrokerId)>),
}

impl Throttled {
    /// From `*`, or `PARTITION:BROKER` separated by commas; what can't be read names nothing.
    pub fn parse(text: &str) -> Self {
        if text.trim() == "*" {
            return Self::All;
        }
        let pairs = text.split(',').filter_map(|pair| {
            let (partition, broker) = pair.trim().split_once(':')?;
            Some((PartitionId::new(partition.parse().ok()?), BrokerId::new(broker.parse().ok()?)))
        });
        let these: BTreeSet<_> = pairs.collect();
        if these.is_empty() { Self::None } else { Self::These(these) }
    }

    /// Whether it names this replica.
    pub fn names(&self, partition: PartitionId, broker: BrokerId) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::These(these) => these.contains(&(partition, broker)),
        }
    }
}

/// A bucket of bytes.
#[derive(Debug, Default)]
pub struct Bucket(Mutex<Level>);

#[derive(Debug, Default)]
struct Level {
    bytes: i64,
    filled: Option<Moment>,
}

impl Bucket {
    /// Whether anything may flow now, at `rate` bytes a second.
    pub fn flows(&self, rate: i64, now: Moment) -> bool {
        let mut level = self.0.lock();
        let elapsed = level.filled.map_or(SAVED_MS, |filled| now.since(filled).clamp(0, SAVED_MS * 60));
        let more = i128::from(rate) * i128::from(elapsed) / 1000;
        let most = i128::from(rate) * i128::from(SAVED_MS) / 1000;
        if more > 0 || elapsed > 0 {
            level.bytes = i64::try_from((i128::from(level.bytes) + more).min(most)).unwrap_or(i64::MAX);
            level.filled = Some(now);
        }
        level.bytes > 0
    }

    /// So many bytes have flowed: a batch goes whole, and is made up for afterwards.
    pub fn spend(&self, bytes: usize) {
        let mut level = self.0.lock();
        level.bytes = level.bytes.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_names_replicas_or_all_or_none() {
        let (one, two) = (PartitionId::new(1), BrokerId::new(2));
        assert!(Throttled::parse("*").names(one, two));
        assert!(Throttled::parse("0:1, 1:2").names(one, two));
        assert!(!Throttled::parse("0:1,1:3").names(one, two));
        assert_eq!(Throttled::parse(""), Throttled::None);
        assert_eq!(Throttled::parse("nonsense"), Throttled::None);
    }

    #[test]
    fn what_flows_in_the_long_run_is_the_rate() {
        let (bucket, mut flowed) = (Bucket::default(), 0);
        for at in (0..60_000).step_by(10) {
            if bucket.flows(1_000_000, Moment::new(at)) {
                bucket.spend(700_000);
                flowed += 700_000;
            }
        }
        assert!((59_000_000..62_000_000).contains(&flowed), "{flowed} bytes in a minute");
    }
}
