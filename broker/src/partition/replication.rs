//! What consumers may see of a partition, and when a producer is answered (decision D5): the high watermark is the
//! least flushed end of all replicas in sync. Pure.
//!
//! The minimum runs over the committed and the pending set of replicas in sync: a smaller set counts only when the
//! registry has taken it (KIP-497). Called by `partition`.

use std::collections::{BTreeMap, BTreeSet};

use loggos_protocol::ids::{BrokerId, LeaderEpoch, Offset, Timestamp};

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
}

/// A follower, as its leader knows it.
#[derive(Clone, Copy, Debug)]
struct Follower {
    /// It has flushed everything before.
    flushed: Offset,
    /// When it last had all that there was.
    caught_up: Timestamp,
}

/// One replica's view of its partition.
#[derive(Clone, Debug)]
pub struct Replication {
    me: BrokerId,
    role: Role,
    /// A larger set of replicas in sync that the registry was asked for.
    pending: BTreeSet<BrokerId>,
    own_flushed: Offset,
    own_end: Offset,
    /// What is known of each follower, as far as we lead.
    followers: BTreeMap<BrokerId, Follower>,
    high_watermark: Offset,
    /// Where our log ended when our leadership began: who is in sync has all before it.
    epoch_start: Offset,
    /// When our leadership began.
    led_since: Timestamp,
    /// Whether appended counts as flushed.
    exposes_appended: bool,
}

impl Replication {
    /// A replica whose log is flushed up to `flushed`.
    pub fn new(me: BrokerId, flushed: Offset, end: Offset) -> Self {
        let role = Role {
            leader: BrokerId::NONE,
            leader_epoch: LeaderEpoch::NONE,
            isr: BTreeSet::new(),
            replicas: Vec::new(),
        };
        Self {
            me,
            role,
            pending: BTreeSet::new(),
            own_flushed: flushed,
            own_end: end,
            followers: BTreeMap::new(),
            high_watermark: Offset::ZERO,
            epoch_start: Offset::ZERO,
            led_since: Timestamp::NONE,
            exposes_appended: false,
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

    /// The registry says who leads; an older epoch is ignored. Gives the high watermark.
    pub fn set_role(&mut self, role: Role, now: Timestamp) -> Offset {
        if role.leader_epoch < self.role.leader_epoch {
            return self.high_watermark;
        }
        if role.leader_epoch > self.role.leader_epoch || role.leader != self.role.leader {
            self.followers.clear();
            self.epoch_start = self.own_end;
            self.led_since = now;
        }
        self.pending.clear();
        self.role = role;
        self.settle()
    }

    /// Whether appended records count as flushed ones.
    pub fn set_exposes_appended(&mut self, exposes: bool) -> Offset {
        self.exposes_appended = exposes;
        self.settle()
    }

    /// Our own log has flushed up to `end`.
    pub fn flushed(&mut self, end: Offset) -> Offset {
        self.own_flushed = self.own_flushed.max(end);
        self.settle()
    }

    /// Our own log ends at `end`.
    pub fn appended(&mut self, end: Offset) -> Offset {
        self.own_end = end;
        self.settle()
    }

    /// Our own log was cut.
    pub fn truncated(&mut self, end: Offset) {
        self.own_end = end;
        self.own_flushed = self.own_flushed.min(end);
        self.high_watermark = self.high_watermark.min(end);
    }

    /// A follower asks for what comes after `end`: it has flushed everything before.
    pub fn follower_at(&mut self, broker: BrokerId, end: Offset, now: Timestamp) -> Offset {
        if self.role.replicas.contains(&broker) {
            let known =
                self.followers.entry(broker).or_insert(Follower { flushed: end, caught_up: self.led_since });
            known.flushed = end;
            if end >= self.own_end {
                known.caught_up = now;
            }
        }
        self.settle()
    }

    /// The replicas in sync that there should be, if they are others than there are: without those that are dead or
    /// have lagged for longer than `lag_ms`, with those that have caught up. Who joins counts for the high watermark
    /// at once.
    pub fn isr_change(
        &mut self,
        now: Timestamp,
        lag_ms: i64,
        is_alive: impl Fn(BrokerId) -> bool,
    ) -> Option<BTreeSet<BrokerId>> {
        if !self.leads() || !self.pending.is_empty() {
            return None;
        }
        let lags = |broker: &BrokerId| {
            let caught_up = self.followers.get(broker).map_or(self.led_since, |known| known.caught_up);
            !is_alive(*broker) || now.raw().saturating_sub(caught_up.raw()) > lag_ms
        };
        let mut wanted: BTreeSet<BrokerId> =
            self.role.isr.iter().copied().filter(|broker| *broker == self.me || !lags(broker)).collect();
        let reached = self.high_watermark.max(self.epoch_start);
        for (broker, known) in &self.followers {
            if known.flushed >= reached && !lags(broker) {
                wanted.insert(*broker);
            }
        }
        if wanted == self.role.isr {
            return None;
        }
        self.pending = wanted.difference(&self.role.isr).copied().collect();
        // Something is pending in any case, so that one change is under way at a time.
        self.pending.insert(self.me);
        Some(wanted)
    }

    /// The registry didn't take a change: it may be asked again.
    pub fn isr_refused(&mut self) {
        self.pending.clear();
    }

    /// As a follower we are told how far the leader's high watermark is.
    pub fn leader_says(&mut self, high_watermark: Offset) -> Offset {
        let known = high_watermark.min(self.own_flushed);
        self.high_watermark = self.high_watermark.max(known);
        self.high_watermark
    }

    /// How many replicas are in sync.
    pub fn in_sync_count(&self) -> usize {
        self.role.isr.len()
    }

    fn settle(&mut self) -> Offset {
        if self.leads() {
            let own = if self.exposes_appended { self.own_end } else { self.own_flushed };
            let others = self.role.isr.union(&self.pending).filter(|broker| **broker != self.me);
            let least = others
                .map(|broker| self.followers.get(broker).map_or(Offset::ZERO, |known| known.flushed))
                .fold(own, Offset::min);
            self.high_watermark = self.high_watermark.max(least);
        }
        self.high_watermark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: BrokerId = BrokerId::new(1);
    const AT: Timestamp = Timestamp::new(1000);

    fn role(leader: i32, epoch: i32, isr: &[i32]) -> Role {
        let isr: BTreeSet<BrokerId> = isr.iter().copied().map(BrokerId::new).collect();
        let replicas = [1, 2, 3].map(BrokerId::new).to_vec();
        Role { leader: BrokerId::new(leader), leader_epoch: LeaderEpoch::new(epoch), isr, replicas }
    }

    #[test]
    fn alone_everything_flushed_is_seen_and_nothing_else() {
        let mut replica = Replication::new(ME, Offset::new(5), Offset::new(5));
        assert_eq!(replica.set_role(role(1, 0, &[1]), AT), Offset::new(5));
        assert!(replica.knows_its_end());
        assert_eq!(replica.appended(Offset::new(9)), Offset::new(5));
        assert_eq!(replica.flushed(Offset::new(7)), Offset::new(7));
        assert_eq!(replica.set_exposes_appended(true), Offset::new(9));
    }

    #[test]
    fn the_slowest_replica_in_sync_decides() {
        let mut replica = Replication::new(ME, Offset::new(10), Offset::new(10));
        assert_eq!(replica.set_role(role(1, 3, &[1, 2, 3]), AT), Offset::ZERO);
        assert!(!replica.knows_its_end());
        assert_eq!(replica.follower_at(BrokerId::new(2), Offset::new(8), AT), Offset::ZERO);
        assert_eq!(replica.follower_at(BrokerId::new(3), Offset::new(6), AT), Offset::new(6));
        assert_eq!(replica.set_role(role(1, 3, &[1, 2]), AT), Offset::new(8));
        assert_eq!(replica.set_role(role(2, 2, &[2]), AT), Offset::new(8), "an older epoch is ignored");
        assert_eq!(
            replica.follower_at(BrokerId::new(9), Offset::new(99), AT),
            Offset::new(8),
            "not a replica"
        );
    }

    #[test]
    fn a_follower_sees_what_it_has_flushed_itself() {
        let mut replica = Replication::new(ME, Offset::new(4), Offset::new(9));
        replica.set_role(role(2, 1, &[1, 2]), AT);
        assert_eq!(replica.leader_says(Offset::new(8)), Offset::new(4));
        replica.flushed(Offset::new(9));
        assert_eq!(replica.leader_says(Offset::new(8)), Offset::new(8));
        replica.truncated(Offset::new(3));
        assert_eq!(replica.high_watermark(), Offset::new(3));
    }

    #[test]
    fn who_lags_goes_and_who_has_caught_up_comes_back() {
        let (two, three) = (BrokerId::new(2), BrokerId::new(3));
        let mut replica = Replication::new(ME, Offset::new(10), Offset::new(10));
        replica.set_role(role(1, 3, &[1, 2, 3]), AT);
        replica.follower_at(two, Offset::new(10), Timestamp::new(1400));
        replica.follower_at(three, Offset::new(4), Timestamp::new(1400));
        assert_eq!(replica.isr_change(Timestamp::new(1500), 500, |_| true), None);
        let smaller = replica.isr_change(Timestamp::new(1600), 500, |_| true).expect("three has lagged");
        assert_eq!(smaller, BTreeSet::from([ME, two]));
        assert_eq!(replica.high_watermark(), Offset::new(4), "until the registry has taken it");
        assert_eq!(replica.isr_change(Timestamp::new(1600), 500, |_| true), None, "one change at a time");
        assert_eq!(replica.set_role(role(1, 3, &[1, 2]), AT), Offset::new(10));
        replica.follower_at(two, Offset::new(10), Timestamp::new(1700));
        replica.follower_at(three, Offset::new(10), Timestamp::new(1700));
        assert_eq!(
            replica.isr_change(Timestamp::new(1700), 500, |_| true),
            Some(BTreeSet::from([ME, two, three]))
        );
        replica.appended(Offset::new(12));
        replica.flushed(Offset::new(12));
        assert_eq!(
            replica.follower_at(two, Offset::new(12), Timestamp::new(1700)),
            Offset::new(10),
            "who joins counts at once"
        );
        replica.isr_refused();
        assert_eq!(replica.follower_at(two, Offset::new(12), Timestamp::new(1700)), Offset::new(12));
        let without_dead = replica.isr_change(Timestamp::new(1700), 500, |broker| broker == ME);
        assert_eq!(without_dead, Some(BTreeSet::from([ME])), "the dead go at once");
    }
}
