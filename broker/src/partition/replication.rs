//! What consumers may see of a partition, and when a producer is answered (decision D5): the high watermark is the
//! least flushed end of all replicas in sync. Pure.
//!
//! The minimum runs over the committed and the pending set of replicas in sync: a smaller set counts only when the
//! registry has taken it, a larger one from the moment that it is asked for (KIP-497). Called by `partition`; the
//! simulation in `tests/replication_sim` runs the same code.

use std::collections::{BTreeMap, BTreeSet};

use loggos_protocol::ids::{BrokerEpoch, BrokerId, LeaderEpoch, Offset};

use super::lease::Moment;

/// The role that the registry gives a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Who leads.
    pub leader: BrokerId,
    /// In which epoch.
    pub leader_epoch: LeaderEpoch,
    /// The replicas in sync.
    pub isr: BTreeSet<BrokerId>,
    /// All replicas.
    pub replicas: Vec<BrokerId>,
    /// The version of the state that says so: views may come late, but a later state counts.
    pub version: i32,
}

/// What a topic asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether appended counts as flushed.
    pub exposes_appended: bool,
    /// How many replicas must be in sync for a producer that wants to hear of all of them.
    pub min_in_sync: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self { exposes_appended: false, min_in_sync: 1 }
    }
}

/// What a replica's neighbours may know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Consumers see nothing at or behind it.
    pub high_watermark: Offset,
    /// Whether there are enough replicas in sync for a producer that wants to hear of all of them.
    pub enough: bool,
}

/// A follower that asks for what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Who.
    pub broker: BrokerId,
    /// In which life: what an earlier one had may be gone (KIP-903).
    pub life: BrokerEpoch,
    /// It has flushed everything before.
    pub end: Offset,
}

/// A follower, as its leader knows it.
#[derive(Clone, Copy, Debug)]
struct Follower {
    life: BrokerEpoch,
    /// It has flushed everything before.
    flushed: Offset,
    /// When it last had all that there was.
    caught_up: Moment,
}

/// Other replicas in sync that the registry is to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsrChange {
    /// Those that there should be.
    pub isr: BTreeSet<BrokerId>,
    /// Who of them is new, and in which life it has caught up.
    pub joining: Vec<(BrokerId, BrokerEpoch)>,
    /// The version of the state that the change is based on.
    pub version: i32,
}

/// One replica's view of its partition.
#[derive(Clone, Debug)]
pub struct Replication {
    me: BrokerId,
    role: Role,
    /// A change that the registry was asked for, until a later state is seen.
    pending: Option<IsrChange>,
    own_flushed: Offset,
    own_end: Offset,
    /// What is known of each follower, as far as we lead.
    followers: BTreeMap<BrokerId, Follower>,
    high_watermark: Offset,
    /// Where our log ended when our leadership began: who is in sync has all before it.
    epoch_start: Offset,
    /// When our leadership began.
    led_since: Moment,
    policy: Policy,
}

impl Replication {
    /// A replica whose log is flushed up to `flushed`.
    pub fn new(me: BrokerId, flushed: Offset, end: Offset) -> Self {
        let role = Role {
            leader: BrokerId::NONE,
            leader_epoch: LeaderEpoch::NONE,
            isr: BTreeSet::new(),
            replicas: Vec::new(),
            version: -1,
        };
        Self {
            me,
            role,
            pending: None,
            own_flushed: flushed,
            own_end: end,
            followers: BTreeMap::new(),
            high_watermark: Offset::ZERO,
            epoch_start: Offset::ZERO,
            led_since: Moment::new(0),
            policy: Policy::default(),
        }
    }

    /// The role in force.
    pub const fn role(&self) -> &Role {
        &self.role
    }

    /// Whether this replica leads.
    pub fn leads(&self) -> bool {
        self.role.leader == self.me
    }

    /// Consumers see nothing at or behind it.
    pub const fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Whether a new leader knows again how far its predecessor's high watermark was: until then it must not tell
    /// anybody where the log ends (KIP-207).
    pub fn knows_its_end(&self) -> bool {
        self.high_watermark >= self.epoch_start
    }

    /// Whether this replica is one of those in sync.
    pub fn is_in_sync(&self) -> bool {
        self.role.isr.contains(&self.me)
    }

    /// How many replicas are in sync.
    pub fn in_sync_count(&self) -> usize {
        self.role.isr.len()
    }

    /// How far it has come, and whether it may say so.
    pub fn progress(&self) -> Progress {
        Progress {
            high_watermark: self.high_watermark,
            enough: self.role.isr.len() >= self.policy.min_in_sync,
        }
    }

    /// The registry says who leads; what is older than what we know is ignored. Whether it was news.
    pub fn set_role(&mut self, role: Role, now: Moment) -> bool {
        if role.leader_epoch < self.role.leader_epoch || role.version < self.role.version {
            return false;
        }
        if role.leader_epoch > self.role.leader_epoch || role.leader != self.role.leader {
            self.followers.clear();
            self.pending = None;
            self.epoch_start = self.own_end;
            self.led_since = now;
        }
        // A view from before our change, come late, says nothing about it.
        self.pending.take_if(|pending| role.version > pending.version);
        self.role = role;
        self.settle();
        true
    }

    /// What the topic asks for.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.settle();
    }

    /// Our own log has flushed up to `end`.
    pub fn flushed(&mut self, end: Offset) {
        self.own_flushed = self.own_flushed.max(end);
        self.settle();
    }

    /// Our own log ends at `end`.
    pub fn appended(&mut self, end: Offset, now: Moment) {
        if self.leads() {
            // Who had everything until now begins to lag now, however long nothing happened.
            for known in self.followers.values_mut().filter(|known| known.flushed >= self.own_end) {
                known.caught_up = now;
            }
        }
        self.own_end = self.own_end.max(end);
        self.settle();
    }

    /// Our own log was cut.
    pub fn truncated(&mut self, end: Offset) {
        self.own_end = end;
        self.own_flushed = self.own_flushed.min(end);
        self.high_watermark = self.high_watermark.min(end);
    }

    /// A follower whose log agrees with ours asks for what comes next.
    pub fn fetched(&mut self, by: Fetched, now: Moment) {
        if !self.leads() || !self.role.replicas.contains(&by.broker) {
            return;
        }
        let fresh = Follower { life: by.life, flushed: by.end, caught_up: self.led_since };
        let known = self.followers.entry(by.broker).or_insert(fresh);
        if known.life > by.life {
            return;
        }
        if known.life < by.life {
            *known = fresh;
        }
        known.flushed = by.end;
        if by.end >= self.own_end {
            known.caught_up = now;
        }
        self.settle();
    }

    /// The replicas in sync that there should be, if they are others than there are: without those that are dead or
    /// have lagged for longer than `lag_ms`, with those that have caught up in the life that `life_of` says they are
    /// in. Who joins counts for the high watermark at once, and until a later state is seen.
    pub fn isr_change(
        &mut self,
        now: Moment,
        lag_ms: i64,
        life_of: impl Fn(BrokerId) -> Option<BrokerEpoch>,
    ) -> Option<IsrChange> {
        if !self.leads() || self.pending.is_some() {
            return None;
        }
        let lags = |broker: &BrokerId| {
            let known = self.followers.get(broker);
            let has_all = known.is_some_and(|known| known.flushed >= self.own_end);
            let caught_up = known.map_or(self.led_since, |known| known.caught_up);
            life_of(*broker).is_none() || (!has_all && now.since(caught_up) > lag_ms)
        };
        let mut isr: BTreeSet<BrokerId> =
            self.role.isr.iter().copied().filter(|broker| *broker == self.me || !lags(broker)).collect();
        let reached = self.high_watermark.max(self.epoch_start);
        let mut joining = Vec::new();
        for (broker, known) in &self.followers {
            let lives = life_of(*broker) == Some(known.life);
            let is_replica = self.role.replicas.contains(broker);
            if lives && is_replica && known.flushed >= reached && !lags(broker) && isr.insert(*broker) {
                joining.push((*broker, known.life));
            }
        }
        joining.retain(|(broker, _)| !self.role.isr.contains(broker));
        if isr == self.role.isr {
            return None;
        }
        let change = IsrChange { isr, joining, version: self.role.version };
        self.pending = Some(change.clone());
        Some(change)
    }

    /// A change that it isn't known whether the registry has taken: to be asked again until it is known.
    pub fn pending_change(&self) -> Option<&IsrChange> {
        self.pending.as_ref().filter(|pending| self.leads() && pending.version == self.role.version)
    }

    /// As a follower we are told by the leader of our epoch how far its high watermark is.
    pub fn leader_says(&mut self, high_watermark: Offset) {
        if !self.leads() {
            let own = if self.policy.exposes_appended { self.own_end } else { self.own_flushed };
            self.high_watermark = self.high_watermark.max(high_watermark.min(own));
        }
    }

    /// The replicas in sync that have flushed everything before `offset`, furthest first: who may serve a consumer
    /// from there (KIP-392).
    pub fn holders_of(&self, offset: Offset) -> Vec<BrokerId> {
        let mut holders: Vec<(Offset, BrokerId)> = self
            .followers
            .iter()
            .filter(|(broker, known)| self.role.isr.contains(broker) && known.flushed >= offset)
            .map(|(broker, known)| (known.flushed, *broker))
            .collect();
        holders.sort_by(|a, b| b.cmp(a));
        holders.into_iter().map(|(_, broker)| broker).collect()
    }

    fn settle(&mut self) {
        if self.leads() {
            let own = if self.policy.exposes_appended { self.own_end } else { self.own_flushed };
            let own = own.min(self.own_end);
            let joining = self.pending.iter().flat_map(|pending| &pending.isr);
            let others = self.role.isr.iter().chain(joining).filter(|broker| **broker != self.me);
            let least = others
                .map(|broker| self.followers.get(broker).map_or(Offset::ZERO, |known| known.flushed))
                .fold(own, Offset::min);
            self.high_watermark = self.high_watermark.max(least);
        }
    }
}

#[cfg(test)]
#[path = "replication_tests.rs"]
mod tests;
