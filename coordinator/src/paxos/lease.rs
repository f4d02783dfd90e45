//! Leases and the clock of elections (design 1.9, 1.10). Choosing never depends on any of this: a lease protects
//! reads that skip the quorum and spares a healthy leader from being disturbed.
//!
//! An acceptor that hears a leader at ballot b promises to answer no other server's prepare or canvass for the time
//! L *from receipt, on its own clock*. The leader may rely on it until L, shortened by what clock rates may differ,
//! *after it sent* the message that a majority has acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::ballot::{Ballot, ServerId};
use super::clocks::Clocks;
use super::event::Options;
use super::membership::Config;
use super::moment::Moment;
use super::mutation::{Mutation, Mutations};
use super::quorum::reached_by_majority;

/// Taken off every lease for the leader's own work between looking at the clock and answering.
const LEASE_MARGIN: Duration = Duration::from_millis(20);
/// Rounds remembered while their acknowledgements are under way.
const ROUNDS_LIMIT: usize = 256;

/// The acceptor's side: to whom it has granted what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    ballot: Ballot,
    until: Moment,
}

impl Grant {
    /// After a start: grants of the former life were not kept, so the longest possible one is assumed, to the
    /// ballot promised (I15).
    pub fn after_start(promised: Ballot, now: Moment, options: &Options, mutations: Mutations) -> Self {
        let wait = if mutations.has(Mutation::NoWaitAfterRestart) { Duration::ZERO } else { options.lease };
        Self { ballot: promised, until: if promised.is_none() { Moment::ZERO } else { now.after(wait) } }
    }

    /// A message of the leader at `ballot` has come in.
    pub fn extend(&mut self, ballot: Ballot, now: Moment, options: &Options) {
        *self = Self { ballot, until: now.after(options.lease) };
    }

    /// The leader at `ballot` has given its lease up.
    pub fn release(&mut self, ballot: Ballot) {
        if self.ballot == ballot {
            self.until = Moment::ZERO;
        }
    }

    /// What is left of a lease that stands in the way of `candidate`. None of its own does: a server that stands
    /// again has stopped leading, and a restarted one has no lease.
    pub fn left(&self, candidate: Ballot, now: Moment) -> Duration {
        if self.ballot.owner() == candidate.owner() { Duration::ZERO } else { self.until.since(now) }
    }

    /// Until when it stands in the way of others.
    pub fn until(&self) -> Moment {
        self.until
    }
}

/// The leader's side: which rounds of heartbeats were sent when, and who has acknowledged which.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tenure {
    round: u64,
    sent: VecDeque<(u64, Moment)>,
    /// Per acceptor the newest acknowledged round and the moment when it was sent.
    acknowledged: BTreeMap<ServerId, (u64, Moment)>,
    since: Moment,
    clocks: Clocks,
    /// Set for good when a transfer begins: the lease is not used again at this ballot.
    given_up: bool,
    mutations: Mutations,
}

impl Tenure {
    /// A leadership that begins now.
    pub fn new(now: Moment, mutations: Mutations) -> Self {
        Self {
            round: 0,
            sent: VecDeque::new(),
            acknowledged: BTreeMap::new(),
            since: now,
            clocks: Clocks::default(),
            given_up: false,
            mutations,
        }
    }

    /// Begins a round of heartbeats; its number goes into them.
    pub fn begin_round(&mut self, now: Moment) -> u64 {
        self.round += 1;
        if self.sent.len() == ROUNDS_LIMIT {
            self.sent.pop_front();
        }
        self.sent.push_back((self.round, now));
        self.round
    }

    /// The newest round begun.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// `server` has acknowledged `round`.
    pub fn acknowledge(&mut self, server: ServerId, round: u64, now: Moment) {
        let Some((_, sent)) = self.sent.iter().find(|(number, _)| *number == round) else { return };
        let counted = if self.mutations.has(Mutation::LeaseFromReceipt) { now } else { *sent };
        let entry = self.acknowledged.entry(server).or_insert((round, counted));
        *entry = (*entry).max((round, counted));
    }

    /// With the acknowledgement of `round` the clock of `server` was seen.
    pub fn watch_clock(
        &mut self,
        server: ServerId,
        round: u64,
        clock: Moment,
        now: Moment,
        options: &Options,
    ) {
        if let Some((_, sent)) = self.sent.iter().find(|(number, _)| *number == round) {
            self.clocks.sample(server, clock, *sent, now, options);
        }
    }

    /// Forgets what `server` acknowledged: it has restarted, and its grants of before are gone with that life
    /// (it waits before it helps another leader, but the rounds of a read must be answered anew).
    pub fn forget(&mut self, server: ServerId) {
        self.acknowledged.remove(&server);
        self.clocks.forget(server);
    }

    /// When the newest round acknowledged by `server` was sent.
    pub fn heard(&self, server: ServerId) -> Option<Moment> {
        self.acknowledged.get(&server).map(|(_, sent)| *sent)
    }

    /// The newest round acknowledged by majorities of all of `configs`.
    pub fn confirmed_round<'a>(&self, configs: impl Iterator<Item = &'a std::sync::Arc<Config>>) -> u64 {
        self.least(configs, |server| self.acknowledged.get(&server).map(|(round, _)| *round)).unwrap_or(0)
    }

    /// The latest moment such that majorities of all of `configs` acknowledged something sent then or later.
    pub fn confirmed_at<'a>(&self, configs: impl Iterator<Item = &'a std::sync::Arc<Config>>) -> Moment {
        self.least(configs, |server| self.heard(server)).unwrap_or(self.since).max(self.since)
    }

    fn least<'a, T: Ord + Copy>(
        &self,
        configs: impl Iterator<Item = &'a std::sync::Arc<Config>>,
        reached: impl Fn(ServerId) -> Option<T>,
    ) -> Option<T> {
        let mut least: Option<T> = None;
        for config in configs {
            let one = reached_by_majority(&config.voters(), &reached)?;
            least = Some(least.map_or(one, |known| known.min(one)));
        }
        least
    }

    /// Until when reads may rely on the lease: every membership that governs an open slot must have granted it, by
    /// servers whose clocks can be trusted.
    pub fn lease_until<'a>(
        &self,
        configs: impl Iterator<Item = &'a std::sync::Arc<Config>>,
        options: &Options,
    ) -> Moment {
        if self.given_up && !self.mutations.has(Mutation::LeaseKeptDuringTransfer) {
            return Moment::ZERO;
        }
        let granted = |server| self.heard(server).filter(|_| self.clocks.trusts(server));
        let Some(sent) = self.least(configs, granted) else { return Moment::ZERO };
        sent.after(usable(options))
    }

    /// Stops using the lease for the rest of this leadership.
    pub fn give_up(&mut self) {
        self.given_up = true;
    }

    /// Whether it was given up.
    pub fn is_given_up(&self) -> bool {
        self.given_up
    }
}

/// The part of a lease that the leader may count on: `L (1 - 2 rho) - 20 ms`.
fn usable(options: &Options) -> Duration {
    let drift = options.lease * (2 * options.clock_drift_ppm) / 1_000_000;
    options.lease.saturating_sub(drift).saturating_sub(LEASE_MARGIN)
}

#[cfg(test)]
mod tests {
    use super::super::ballot::Slot;
    use super::super::membership::{ConfigHistory, Member, Role};
    use super::*;

    fn history(ids: &[u16]) -> ConfigHistory {
        let member = |id: &u16| Member {
            id: ServerId::new(*id),
            role: Role::Voter,
            peer: String::new(),
            bulk_port: 0,
            client: String::new(),
            token: 0,
        };
        ConfigHistory::founding(Config::founding(ids.iter().map(member).collect()), 64)
    }

    #[test]
    fn a_lease_counts_from_the_sending_of_a_round_that_a_majority_acknowledged() {
        let options = Options::default();
        let configs = history(&[1, 2, 3]);
        let mut tenure = Tenure::new(Moment::from_millis(1000), Mutations::NONE);
        let open = || configs.open(Slot::ZERO);
        let round = tenure.begin_round(Moment::from_millis(1000));
        tenure.acknowledge(ServerId::new(1), round, Moment::from_millis(1000));
        assert_eq!(tenure.lease_until(open(), &options), Moment::ZERO);
        tenure.acknowledge(ServerId::new(3), round, Moment::from_millis(1200));
        assert_eq!(tenure.lease_until(open(), &options), Moment::from_millis(1000 + 274));
        assert_eq!(tenure.confirmed_round(open()), round);
        tenure.give_up();
        assert_eq!(tenure.lease_until(open(), &options), Moment::ZERO);
    }

    #[test]
    fn a_grant_stands_in_the_way_of_others_only() {
        let options = Options::default();
        let (mine, other) = (Ballot::of(1, ServerId::new(1)), Ballot::of(2, ServerId::new(2)));
        let mut grant = Grant::after_start(Ballot::NONE, Moment::from_millis(5), &options, Mutations::NONE);
        assert_eq!(grant.left(other, Moment::from_millis(5)), Duration::ZERO);
        grant.extend(mine, Moment::from_millis(10), &options);
        assert_eq!(grant.left(other, Moment::from_millis(110)), Duration::from_millis(200));
        assert_eq!(grant.left(mine.next_for(mine.owner()), Moment::from_millis(110)), Duration::ZERO);
        grant.release(other);
        assert!(grant.left(other, Moment::from_millis(110)) > Duration::ZERO);
        grant.release(mine);
        assert_eq!(grant.left(other, Moment::from_millis(110)), Duration::ZERO);
    }
}
