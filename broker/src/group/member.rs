//! One member of a classic group: what it asked for, what it was given, and how long it may stay silent.
//! Pure; called by `state`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use loggos_protocol::ids::{MemberId, Timestamp};

/// A handle on a request that waits for its answer; the shell knows which connection stands behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Waiting(pub u64);

/// An assignment strategy that a member offers, with the bytes that only its peers understand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// The strategy's name, such as `range` or `cooperative-sticky`.
    pub name: String,
    /// The member's subscription, opaque to the broker.
    pub metadata: Bytes,
}

/// A member as it introduced itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// The static member's own name (KIP-345), if it has one.
    pub instance: Option<String>,
    /// When it came.
    pub since: Timestamp,
    /// What the client calls itself.
    pub client_id: String,
    /// The address it came from, as Kafka shows it: `/127.0.0.1`.
    pub client_host: String,
    /// How long the member may be silent.
    pub session_timeout: Duration,
    /// How long a rebalance waits for the member to rejoin.
    pub rebalance_timeout: Duration,
    /// What it can do, preferred first.
    pub protocols: Vec<Protocol>,
}

/// A member of the group.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id, drawn by the broker.
    pub id: MemberId,
    /// What it said of itself last.
    pub introduction: Introduction,
    /// What the group's leader gave it in the current generation.
    pub assignment: Bytes,
    /// The JoinGroup that waits for the rebalance to complete.
    pub joining: Option<Waiting>,
    /// The SyncGroup that waits for the leader's assignment.
    pub syncing: Option<Waiting>,
    /// Whether it asked for its assignment in this generation.
    pub synced: bool,
    /// When it is given up unless heard from.
    pub deadline: Instant,
}

impl Member {
    /// A member that was heard of at `now`.
    pub fn new(id: MemberId, introduction: Introduction, now: Instant) -> Self {
        let deadline = now + introduction.session_timeout;
        Self {
            id,
            introduction,
            assignment: Bytes::new(),
            joining: None,
            syncing: None,
            synced: false,
            deadline,
        }
    }

    /// Whether the member outlives its connection under a name of its own.
    pub fn is_static(&self) -> bool {
        self.introduction.instance.is_some()
    }

    /// It was heard from.
    pub fn touch(&mut self, now: Instant) {
        self.deadline = now + self.introduction.session_timeout;
    }

    /// Whether it is silent for too long: one that waits in JoinGroup or SyncGroup is known to be there.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.joining.is_none() && self.syncing.is_none() && self.deadline <= now
    }

    /// The bytes that it offers for `protocol`.
    pub fn metadata(&self, protocol: &str) -> Bytes {
        self.introduction
            .protocols
            .iter()
            .find(|offered| offered.name == protocol)
            .map_or_else(Bytes::new, |offered| offered.metadata.clone())
    }

    /// The first of its protocols that all members share.
    pub fn vote(&self, shared: &[String]) -> Option<&str> {
        self.introduction
            .protocols
            .iter()
            .map(|offered| offered.name.as_str())
            .find(|name| shared.iter().any(|candidate| candidate == name))
    }
}
