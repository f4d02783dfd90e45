//! What a new leader must propose: rule P2c of the paper, slot by slot (design 1.4).
//!
//! *For any v and n, if a proposal with value v and number n is issued, then there is a set S consisting of a
//! majority of acceptors such that either (a) no acceptor in S has accepted any proposal numbered less than n, or
//! (b) v is the value of the highest-numbered proposal among all proposals numbered less than n accepted by the
//! acceptors in S.* The promises of phase 1 are S; they cover all slots from `from` on, for as long as the leader
//! leads, so that voters of a later membership can be added to them. `basic` shows the rule for one slot.

use std::collections::{BTreeMap, BTreeSet};

use super::ballot::{Ballot, ServerId, Slot};
use super::message::{Promise, Report};
use super::mutation::{Mutation, Mutations};
use super::quorum::majority;
use super::value::Value;

/// The most parts that a promise may have.
const PARTS_LIMIT: u32 = 4096;

/// What the promises say about a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Not enough acceptors have spoken, or too few of them are certain about the slot: wait.
    Unknown,
    /// This value may have been chosen: it must be proposed.
    Bound(Value),
    /// Nothing can have been chosen: any value may be proposed.
    Free,
}

/// A promise with all its parts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Whole {
    /// From here on its silence means something.
    from: Slot,
    reports: BTreeMap<Slot, Report>,
    certain_below: Slot,
}

/// The parts of a promise that have come so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Parts {
    answer: u64,
    from: Slot,
    expected: u32,
    received: BTreeMap<u32, Promise>,
}

/// The promises that one ballot has gathered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Promises {
    ballot: Ballot,
    from: Slot,
    whole: BTreeMap<ServerId, Whole>,
    partial: BTreeMap<ServerId, Parts>,
    mutations: Mutations,
}

impl Promises {
    /// No promises yet for `ballot`, asked for the slots from `from` on.
    pub fn new(ballot: Ballot, from: Slot, mutations: Mutations) -> Self {
        Self { ballot, from, whole: BTreeMap::new(), partial: BTreeMap::new(), mutations }
    }

    /// The ballot.
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// The first slot asked about.
    pub fn from(&self) -> Slot {
        self.from
    }

    /// Whether the whole promise of `server` is here.
    pub fn has(&self, server: ServerId) -> bool {
        self.whole.contains_key(&server)
    }

    /// Takes in a part of a promise (P1b); true once that server's promise is whole for the first time.
    pub fn add(&mut self, server: ServerId, promise: Promise) -> bool {
        // The voters of a later membership are asked later, about later slots (design 1.12).
        let fits = promise.ballot == self.ballot && promise.from_slot >= self.from;
        let sane = promise.parts >= 1 && promise.parts <= PARTS_LIMIT && promise.part < promise.parts;
        if !fits || !sane || self.has(server) {
            return false;
        }
        let fresh = Parts {
            answer: promise.answer,
            from: promise.from_slot,
            expected: promise.parts,
            received: BTreeMap::new(),
        };
        let parts = self.partial.entry(server).or_insert_with(|| fresh.clone());
        if (parts.answer, parts.from, parts.expected) != (promise.answer, promise.from_slot, promise.parts) {
            // The acceptor answered twice: what it knew may be cut into parts differently now.
            *parts = fresh;
        }
        parts.received.insert(promise.part, promise);
        if (parts.received.len() as u32) < parts.expected {
            return false;
        }
        let parts = self.partial.remove(&server).expect("it was just inserted");
        let mut whole = Whole { from: parts.from, reports: BTreeMap::new(), certain_below: Slot::MAX };
        for promise in parts.received.into_values() {
            whole.certain_below = whole.certain_below.min(promise.certain_below);
            whole.reports.extend(promise.items);
        }
        self.whole.insert(server, whole);
        true
    }

    /// Whether a majority of `voters` has promised.
    pub fn is_majority_of(&self, voters: &BTreeSet<ServerId>) -> bool {
        !voters.is_empty() && voters.iter().filter(|v| self.has(**v)).count() >= majority(voters.len())
    }

    /// The highest slot of which any promise knows something.
    pub fn highest_reported(&self) -> Slot {
        self.whole
            .values()
            .filter_map(|whole| whole.reports.keys().next_back())
            .max()
            .copied()
            .unwrap_or(Slot::ZERO)
    }

    /// P2c for `slot`, whose membership is `voters`.
    pub fn find(&self, slot: Slot, voters: &BTreeSet<ServerId>) -> Finding {
        let mut certain = 0;
        let mut best: Option<(Ballot, &Value)> = None;
        for voter in voters {
            let Some(whole) = self.whole.get(voter).filter(|whole| whole.from <= slot) else { continue };
            certain += usize::from(slot < whole.certain_below);
            match whole.reports.get(&slot) {
                Some(Report::Chosen { value }) => return Finding::Bound(value.clone()),
                Some(Report::Accepted { ballot, value }) if self.is_better(*ballot, best) => {
                    best = Some((*ballot, value));
                }
                _ => {}
            }
        }
        if certain < majority(voters.len()) && !self.mutations.has(Mutation::NoPhaseOneAtNewVoters) {
            return Finding::Unknown;
        }
        best.map_or(Finding::Free, |(_, value)| Finding::Bound(value.clone()))
    }

    fn is_better(&self, ballot: Ballot, best: Option<(Ballot, &Value)>) -> bool {
        match best {
            Some((known, _)) if self.mutations.has(Mutation::RecoveryPicksLowest) => ballot < known,
            Some((known, _)) => ballot > known,
            None => true,
        }
    }

    /// The reports below `slot` are no longer needed.
    pub fn forget_below(&mut self, slot: Slot) {
        for whole in self.whole.values_mut() {
            whole.reports = whole.reports.split_off(&slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loggos_protocol::ids::Timestamp;

    fn server(n: u16) -> ServerId {
        ServerId::new(n)
    }

    fn value(n: u8) -> Value {
        Value::batch(Timestamp::new(0), vec![bytes::Bytes::from(vec![n])])
    }

    fn promise(items: Vec<(u64, u64, u8)>, certain_below: Slot) -> Promise {
        Promise {
            ballot: Ballot::of(9, server(1)),
            from_slot: Slot::FIRST,
            chosen_upto: Slot::ZERO,
            items: items
                .into_iter()
                .map(|(slot, round, v)| {
                    let report = Report::Accepted { ballot: Ballot::of(round, server(2)), value: value(v) };
                    (Slot::new(slot), report)
                })
                .collect(),
            certain_below,
            answer: 1,
            part: 0,
            parts: 1,
        }
    }

    fn gather(list: Vec<(u16, Promise)>) -> Promises {
        let mut promises = Promises::new(Ballot::of(9, server(1)), Slot::FIRST, Mutations::NONE);
        for (from, promise) in list {
            promises.add(server(from), promise);
        }
        promises
    }

    #[test]
    fn the_highest_ballot_among_a_majority_binds() {
        let voters = [1, 2, 3].map(server).into();
        let one = gather(vec![(1, promise(vec![(1, 3, 30)], Slot::MAX))]);
        assert_eq!(one.find(Slot::FIRST, &voters), Finding::Unknown);
        let two = gather(vec![
            (1, promise(vec![(1, 3, 30)], Slot::MAX)),
            (2, promise(vec![(1, 4, 40)], Slot::MAX)),
        ]);
        assert_eq!(two.find(Slot::FIRST, &voters), Finding::Bound(value(40)));
        assert_eq!(two.find(Slot::new(2), &voters), Finding::Free);
        assert_eq!(two.highest_reported(), Slot::FIRST);
    }

    #[test]
    fn an_uncertain_acceptor_is_never_counted_as_having_accepted_nothing() {
        let voters = [1, 2, 3].map(server).into();
        let promises =
            gather(vec![(1, promise(vec![], Slot::MAX)), (2, promise(vec![(6, 2, 20)], Slot::new(5)))]);
        assert_eq!(promises.find(Slot::new(4), &voters), Finding::Free);
        assert_eq!(promises.find(Slot::new(5), &voters), Finding::Unknown);
        assert_eq!(promises.find(Slot::new(6), &voters), Finding::Unknown);
    }

    #[test]
    fn a_promise_counts_only_when_all_its_parts_are_here() {
        let mut promises = gather(vec![]);
        let mut first = promise(vec![(1, 3, 30)], Slot::MAX);
        first.parts = 2;
        let mut second = promise(vec![(2, 3, 31)], Slot::MAX);
        (second.parts, second.part) = (2, 1);
        assert!(!promises.add(server(1), first));
        assert!(!promises.has(server(1)));
        assert!(promises.add(server(1), second));
        assert!(promises.has(server(1)));
    }
}
