//! Basic Paxos: how a single value is chosen. Small, complete, and to be read first.
//!
//! Source: Lamport, "Paxos Made Simple" (2001), section 2; the names of the rules are the paper's.
//!
//! | rule | says | here |
//! |---|---|---|
//! | P1 | an acceptor must accept the first proposal that it receives | [`Acceptor::accept`] without a promise |
//! | P1a | it accepts proposal n iff it has not responded to a prepare numbered above n | [`Acceptor::accept`] |
//! | P2 | if v is chosen, every higher-numbered proposal that is chosen has v | follows from P2a |
//! | P2a | ... that is accepted by any acceptor has v | follows from P2b |
//! | P2b | ... that is issued by any proposer has v | follows from P2c |
//! | P2c | n with v is issued only if some majority S has accepted nothing below n, or v is the highest-numbered that S has accepted below n | [`Proposer::proposal`] |
//!
//! P2 is what is wanted; each rule below it is stronger and easier to keep, until P2c is something that a proposer can
//! do: ask a majority what it has accepted, and have it promise to accept nothing older from now on.
//!
//! The engine runs one such instance per slot, all of a leader's slots sharing their phase 1: its `acceptor` and
//! `recovery` are this file's [`Acceptor`] and [`Proposer::proposal`], slot by slot, which the tests below show.

use std::collections::{BTreeMap, BTreeSet};

use super::ballot::{Ballot, ServerId};
use super::quorum::{Tally, majority};

/// A numbered value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposal<V> {
    /// The number; no two proposers ever use the same.
    pub ballot: Ballot,
    /// The value.
    pub value: V,
}

/// One acceptor's whole memory. It must survive crashes: an acceptor that forgets has broken its promise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acceptor<V> {
    promised: Ballot,
    accepted: Option<Proposal<V>>,
}

impl<V: Clone> Acceptor<V> {
    /// An acceptor that has heard nothing yet.
    pub fn new() -> Self {
        Self { promised: Ballot::NONE, accepted: None }
    }

    /// Phase 1: a prepare request. Answered, with what was accepted before, by the promise never to accept a proposal
    /// numbered below `ballot` again; `None` if more was promised already.
    pub fn prepare(&mut self, ballot: Ballot) -> Option<Option<Proposal<V>>> {
        if ballot < self.promised {
            return None;
        }
        self.promised = ballot;
        Some(self.accepted.clone())
    }

    /// Phase 2: an accept request. P1a decides, and nothing else does. Whether it was accepted.
    pub fn accept(&mut self, proposal: &Proposal<V>) -> bool {
        if proposal.ballot < self.promised {
            return false;
        }
        self.promised = proposal.ballot;
        self.accepted = Some(proposal.clone());
        true
    }
}

impl<V: Clone> Default for Acceptor<V> {
    fn default() -> Self {
        Self::new()
    }
}

/// One proposer's attempt to get a value chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposer<V> {
    ballot: Ballot,
    wish: V,
    promises: BTreeMap<ServerId, Option<Proposal<V>>>,
}

impl<V: Clone> Proposer<V> {
    /// Wants `wish` to be chosen, and uses `ballot` for it.
    pub fn new(ballot: Ballot, wish: V) -> Self {
        Self { ballot, wish, promises: BTreeMap::new() }
    }

    /// An acceptor has answered the prepare request.
    pub fn promised(&mut self, acceptor: ServerId, accepted: Option<Proposal<V>>) {
        self.promises.insert(acceptor, accepted);
    }

    /// P2c: once a majority has promised, the value of the highest-numbered proposal among all that it has accepted,
    /// or, if it has accepted none, any value, so the proposer's own.
    pub fn proposal(&self, acceptors: &BTreeSet<ServerId>) -> Option<Proposal<V>> {
        let answers: Vec<_> = acceptors.iter().filter_map(|acceptor| self.promises.get(acceptor)).collect();
        if answers.len() < majority(acceptors.len()) {
            return None;
        }
        let highest = answers.into_iter().flatten().max_by_key(|proposal| proposal.ballot);
        let value = highest.map_or(&self.wish, |proposal| &proposal.value);
        Some(Proposal { ballot: self.ballot, value: value.clone() })
    }
}

/// Finds out what was chosen: a value is chosen when a majority has accepted one and the same proposal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Learner<V> {
    votes: BTreeMap<Ballot, (V, Tally)>,
}

impl<V: Clone> Learner<V> {
    /// A learner that has heard nothing yet.
    pub fn new() -> Self {
        Self { votes: BTreeMap::new() }
    }

    /// An acceptor has accepted this. The value, if it is chosen by that.
    pub fn accepted(
        &mut self,
        acceptor: ServerId,
        proposal: &Proposal<V>,
        acceptors: &BTreeSet<ServerId>,
    ) -> Option<V> {
        let fresh = || (proposal.value.clone(), Tally::new());
        let (value, tally) = self.votes.entry(proposal.ballot).or_insert_with(fresh);
        tally.add(acceptor);
        tally.is_majority_of(acceptors).then(|| value.clone())
    }
}

impl<V: Clone> Default for Learner<V> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::acceptor::{Acceptance, Acceptor as ManySlots, Prepared};
    use super::super::ballot::Slot;
    use super::super::message::{Promise, Report};
    use super::super::mutation::Mutations;
    use super::super::recovery::{Finding, Promises};
    use super::super::value::Value;
    use super::*;
    use proptest::prelude::*;
    use std::collections::btree_map::Entry;

    fn ballot(round: u64, owner: u16) -> Ballot {
        Ballot::of(round, ServerId::new(owner))
    }

    fn proposal(round: u64, owner: u16, value: char) -> Proposal<char> {
        Proposal { ballot: ballot(round, owner), value }
    }

    /// Three acceptors, and a learner that sees every vote.
    struct Three {
        acceptors: BTreeMap<ServerId, Acceptor<char>>,
        learner: Learner<char>,
        chosen: BTreeSet<char>,
    }

    impl Three {
        fn new() -> Self {
            let acceptors = (1..=3).map(|n| (ServerId::new(n), Acceptor::new())).collect();
            Self { acceptors, learner: Learner::new(), chosen: BTreeSet::new() }
        }

        fn names(&self) -> BTreeSet<ServerId> {
            self.acceptors.keys().copied().collect()
        }

        fn prepare(&mut self, proposer: &mut Proposer<char>, at: &[u16]) {
            for n in at {
                let acceptor = self.acceptors.get_mut(&ServerId::new(*n)).unwrap();
                if let Some(accepted) = acceptor.prepare(proposer.ballot) {
                    proposer.promised(ServerId::new(*n), accepted);
                }
            }
        }

        /// How many accepted.
        fn accept(&mut self, proposal: &Proposal<char>, at: &[u16]) -> usize {
            at.iter().filter(|n| self.vote(proposal, **n, |acceptor, p| acceptor.accept(p))).count()
        }

        fn vote(
            &mut self,
            proposal: &Proposal<char>,
            n: u16,
            rule: impl Fn(&mut Acceptor<char>, &Proposal<char>) -> bool,
        ) -> bool {
            let (names, id) = (self.names(), ServerId::new(n));
            let accepted = rule(self.acceptors.get_mut(&id).unwrap(), proposal);
            if accepted {
                self.chosen.extend(self.learner.accepted(id, proposal, &names));
            }
            accepted
        }
    }

    #[test]
    fn a_lone_proposer_gets_its_value_chosen() {
        let mut cell = Three::new();
        let mut proposer = Proposer::new(ballot(1, 1), 'v');
        cell.prepare(&mut proposer, &[1, 3]);
        let proposal = proposer.proposal(&cell.names()).unwrap();
        cell.accept(&proposal, &[1, 3]);
        assert_eq!(cell.chosen, BTreeSet::from(['v']));
    }

    /// P1: whoever waits for a second proposal, or for a prepare, never has the only one chosen.
    #[test]
    fn without_p1_the_only_proposal_would_never_be_chosen() {
        let only = proposal(1, 1, 'v');
        let choosy = |acceptor: &mut Acceptor<char>, p: &Proposal<char>| {
            acceptor.accepted.is_some() && acceptor.accept(p)
        };
        let mut cell = Three::new();
        assert!((1..=3).all(|n| !cell.vote(&only, n, choosy)));
        let mut cell = Three::new();
        assert_eq!(cell.accept(&only, &[1, 2]), 2);
        assert_eq!(cell.chosen, BTreeSet::from(['v']));
    }

    /// P1a: a promise that is not kept lets an old proposal in behind the back of a new one.
    #[test]
    fn without_p1a_two_values_are_chosen() {
        let history = |rule: fn(&mut Acceptor<char>, &Proposal<char>) -> bool| {
            let mut cell = Three::new();
            let mut slow = Proposer::new(ballot(1, 1), 'v');
            cell.prepare(&mut slow, &[2, 3]);
            let mut quick = Proposer::new(ballot(2, 2), 'w');
            cell.prepare(&mut quick, &[1, 2]);
            let (old, new) = (slow.proposal(&cell.names()).unwrap(), quick.proposal(&cell.names()).unwrap());
            for n in [2, 3] {
                cell.vote(&old, n, rule);
            }
            for n in [1, 2] {
                cell.vote(&new, n, rule);
            }
            cell.chosen
        };
        let forgetful = |acceptor: &mut Acceptor<char>, p: &Proposal<char>| {
            acceptor.accepted = Some(p.clone());
            true
        };
        assert_eq!(history(forgetful), BTreeSet::from(['v', 'w']));
        assert_eq!(history(|acceptor, p| acceptor.accept(p)), BTreeSet::from(['w']));
    }

    /// P2c, first half: what a majority has accepted binds whoever comes later.
    #[test]
    fn without_p2c_a_later_proposer_overwrites_what_was_chosen() {
        let history = |keeps_p2c: bool| {
            let mut cell = Three::new();
            cell.accept(&proposal(1, 1, 'v'), &[1, 2]);
            let mut later = Proposer::new(ballot(2, 2), 'w');
            cell.prepare(&mut later, &[2, 3]);
            let mut issued = later.proposal(&cell.names()).unwrap();
            if !keeps_p2c {
                issued.value = later.wish;
            }
            cell.accept(&issued, &[2, 3]);
            cell.chosen
        };
        assert_eq!(history(false), BTreeSet::from(['v', 'w']));
        assert_eq!(history(true), BTreeSet::from(['v']));
    }

    /// P2c, second half: of several accepted proposals the *highest-numbered* binds; a lower one may never have been
    /// chosen.
    #[test]
    fn the_highest_numbered_proposal_binds() {
        let mut cell = Three::new();
        cell.accept(&proposal(1, 1, 'v'), &[1]);
        cell.accept(&proposal(2, 2, 'w'), &[2, 3]);
        let mut later = Proposer::new(ballot(3, 1), 'x');
        cell.prepare(&mut later, &[1, 2]);
        let issued = later.proposal(&cell.names()).unwrap();
        assert_eq!(issued, proposal(3, 1, 'w'));
        cell.accept(&proposal(3, 1, 'v'), &[1, 2]);
        assert_eq!(cell.chosen, BTreeSet::from(['v', 'w']), "what the lower one would have done");
    }

    /// P2c speaks of a majority: fewer acceptors may all have missed what was chosen.
    #[test]
    fn a_minority_of_promises_binds_nobody() {
        let mut cell = Three::new();
        cell.accept(&proposal(1, 1, 'v'), &[1, 2]);
        let mut later = Proposer::new(ballot(2, 2), 'w');
        cell.prepare(&mut later, &[3]);
        assert_eq!(later.proposal(&cell.names()), None);
        assert_eq!(later.proposal(&[ServerId::new(3)].into()), Some(proposal(2, 2, 'w')));
    }

    /// An acceptor's memory must be durable.
    #[test]
    fn an_acceptor_that_forgets_lets_two_values_be_chosen() {
        let mut cell = Three::new();
        cell.accept(&proposal(1, 1, 'v'), &[1, 2]);
        cell.acceptors.insert(ServerId::new(2), Acceptor::new());
        let mut later = Proposer::new(ballot(2, 2), 'w');
        cell.prepare(&mut later, &[2, 3]);
        let issued = later.proposal(&cell.names()).unwrap();
        cell.accept(&issued, &[2, 3]);
        assert_eq!(cell.chosen, BTreeSet::from(['v', 'w']));
    }

    /// Safe is not live: two proposers can go on for ever, which is why one of them is distinguished (section 2.4).
    #[test]
    fn two_proposers_may_keep_each_other_from_ever_succeeding() {
        let mut cell = Three::new();
        for round in 1..100 {
            let mut one = Proposer::new(ballot(round, 1), 'v');
            cell.prepare(&mut one, &[1, 2, 3]);
            let mut two = Proposer::new(ballot(round, 2), 'w');
            cell.prepare(&mut two, &[1, 2, 3]);
            let issued = one.proposal(&cell.names()).unwrap();
            assert_eq!(cell.accept(&issued, &[1, 2, 3]), 0);
        }
        assert!(cell.chosen.is_empty());
    }

    fn many(value: char) -> Value {
        Value::batch(Default::default(), vec![bytes::Bytes::from(value.to_string())])
    }

    #[derive(Clone, Debug)]
    enum Happening {
        Prepare { round: u64, owner: u16, acceptor: u16 },
        Propose { round: u64, owner: u16, acceptor: u16 },
    }

    fn happening() -> impl Strategy<Value = Happening> {
        (any::<bool>(), 1u64..5, 1u16..4, 1u16..4).prop_map(|(prepare, round, owner, acceptor)| {
            if prepare {
                Happening::Prepare { round, owner, acceptor }
            } else {
                Happening::Propose { round, owner, acceptor }
            }
        })
    }

    proptest! {
        /// Whatever is sent, lost, doubled or late: at most one value is ever chosen. And slot by slot the engine's
        /// acceptor and recovery say the same as this file.
        #[test]
        fn at_most_one_value_is_chosen(happenings in proptest::collection::vec(happening(), 1..120)) {
            let mut cell = Three::new();
            let mut attempts: BTreeMap<Ballot, (Proposer<char>, Promises)> = BTreeMap::new();
            let mut issued: BTreeMap<Ballot, Proposal<char>> = BTreeMap::new();
            let mut slots: BTreeMap<u16, ManySlots> =
                (1..=3).map(|n| (n, ManySlots::new(Ballot::NONE, Mutations::NONE))).collect();
            for happening in happenings {
                match happening {
                    Happening::Prepare { round, owner, acceptor } => {
                        let at = ballot(round, owner);
                        let wish = char::from(b'a' + owner as u8);
                        let (proposer, promises) = attempts.entry(at).or_insert_with(|| {
                            (Proposer::new(at, wish), Promises::new(at, Slot::FIRST, Mutations::NONE))
                        });
                        if issued.contains_key(&at) {
                            continue;
                        }
                        let before = proposer.promises.len();
                        cell.prepare(proposer, &[acceptor]);
                        let slot = slots.get_mut(&acceptor).unwrap();
                        let promised = slot.prepare(at) != Prepared::Refused;
                        prop_assert!(promised || proposer.promises.len() == before);
                        if promised {
                            let promise = Promise {
                                ballot: at,
                                from_slot: Slot::FIRST,
                                chosen_upto: Slot::ZERO,
                                items: slot.reports(Slot::FIRST).collect(),
                                certain_below: Slot::MAX,
                                answer: 1,
                                part: 0,
                                parts: 1,
                            };
                            let first = promises.add(ServerId::new(acceptor), promise.clone());
                            if let Some((_, Report::Accepted { ballot, value })) = promise.items.first()
                                && first
                            {
                                let known = proposer.promises[&ServerId::new(acceptor)].clone().unwrap();
                                prop_assert_eq!((*ballot, value), (known.ballot, &many(known.value)));
                            }
                        }
                    }
                    Happening::Propose { round, owner, acceptor } => {
                        let at = ballot(round, owner);
                        let Some((proposer, promises)) = attempts.get(&at) else { continue };
                        let names = cell.names();
                        if let Entry::Vacant(vacant) = issued.entry(at) {
                            let proposal = proposer.proposal(&names);
                            let found = promises.find(Slot::FIRST, &names);
                            let expected = match &proposal {
                                None => Finding::Unknown,
                                Some(p) if proposer.promises.values().all(Option::is_none) => {
                                    prop_assert_eq!(p.value, proposer.wish);
                                    Finding::Free
                                }
                                Some(p) => Finding::Bound(many(p.value)),
                            };
                            prop_assert_eq!(found, expected);
                            let Some(proposal) = proposal else { continue };
                            vacant.insert(proposal);
                        }
                        let proposal = issued[&at].clone();
                        let accepted = cell.accept(&proposal, &[acceptor]) == 1;
                        let slot = slots.get_mut(&acceptor).unwrap();
                        let outcome = slot.accept(at, Slot::FIRST, &many(proposal.value)).unwrap();
                        prop_assert_eq!(accepted, outcome != Acceptance::Refused);
                    }
                }
                prop_assert!(cell.chosen.len() <= 1);
            }
        }
    }
}
