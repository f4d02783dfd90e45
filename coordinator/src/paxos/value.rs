//! What a slot holds. Paxos looks into three kinds only: the no-op, the leader's first word, and the membership;
//! all the rest is a batch of opaque entries.

use std::sync::Arc;

use bytes::Bytes;
use loggos_protocol::ids::Timestamp;

use super::ballot::Ballot;
use super::membership::Config;

/// The value of a slot. Cloning is cheap: payloads are shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Fills a gap, or pushes a membership change through its window.
    Noop,
    /// The first new value of each leadership; the latest applied one names the leadership epoch.
    LeaderStart {
        /// The leader's ballot.
        ballot: Ballot,
        /// The leader's wall clock, never before that of an earlier value.
        time: Timestamp,
    },
    /// A new membership, governing from alpha slots later on (design 1.12).
    Config {
        /// The membership.
        config: Arc<Config>,
        /// The leader's wall clock, never before that of an earlier value.
        time: Timestamp,
    },
    /// Entries that the servers admitted, in this order.
    Batch(Arc<Batch>),
}

/// A batch of opaque entries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Batch {
    /// The leader's wall clock, never before that of an earlier value.
    pub time: Timestamp,
    /// The entries; only the state machine knows what they say.
    pub entries: Vec<Bytes>,
}

impl Value {
    /// A batch of `entries` at `time`.
    pub fn batch(time: Timestamp, entries: Vec<Bytes>) -> Self {
        Self::Batch(Arc::new(Batch { time, entries }))
    }

    /// The wall clock that it carries; a no-op carries none.
    pub fn time(&self) -> Option<Timestamp> {
        match self {
            Self::Noop => None,
            Self::LeaderStart { time, .. } | Self::Config { time, .. } => Some(*time),
            Self::Batch(batch) => Some(batch.time),
        }
    }

    /// The membership, if it is one.
    pub fn config(&self) -> Option<&Arc<Config>> {
        match self {
            Self::Config { config, .. } => Some(config),
            _ => None,
        }
    }

    /// Roughly the bytes that it takes in memory, on the wire and on disk.
    pub fn weight(&self) -> usize {
        match self {
            Self::Noop | Self::LeaderStart { .. } => 32,
            Self::Config { config, .. } => 64 + 128 * config.members.len(),
            Self::Batch(batch) => 32 + batch.entries.iter().map(|entry| entry.len() + 8).sum::<usize>(),
        }
    }

    /// How many entries it counts towards the snapshot threshold.
    pub fn entry_count(&self) -> u64 {
        match self {
            Self::Batch(batch) => batch.entries.len() as u64,
            _ => 1,
        }
    }
}
