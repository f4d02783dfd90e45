//! The acceptor: a server's memory of what it promised and what it accepted (design 1.3).
//!
//! It follows one rule, P1a of the paper: *accept a proposal numbered n iff no response was given to a prepare
//! numbered above n* (`basic` shows it for one slot). It decides in memory; the engine writes what it says is to be written, and lets no answer out
//! before that is durable. Slots of the chosen prefix are the learner's; here are only the open ones.

use std::collections::BTreeMap;

use super::ballot::{Ballot, Slot};
use super::event::Violation;
use super::message::Report;
use super::mutation::{Mutation, Mutations};
use super::value::Value;

/// What an acceptor makes of a prepare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// Promised now: to be written before the answer.
    Promised,
    /// Had promised it before: answer again.
    Again,
    /// Has promised more.
    Refused,
}

/// What an acceptor makes of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// Accepted: a record is to be written before the answer, and before it the promise if it is new.
    Accepted {
        /// The proposal's ballot was above the promise and is now promised.
        new_promise: bool,
    },
    /// The very same proposal had been accepted before: answer again.
    Again,
    /// Has promised more.
    Refused,
}

/// Damage found at the start: which votes may be gone, and when that stops mattering (design 1.11).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Uncertain {
    /// Votes for slots above this one may be missing.
    above: Slot,
    /// The promise at the crash.
    promised: Ballot,
    /// Once the chosen prefix reaches this slot the lost votes are of no more use to anybody.
    ends_at: Option<Slot>,
}

/// Promise and votes of one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acceptor {
    promised: Ballot,
    accepted: BTreeMap<Slot, (Ballot, Value)>,
    uncertain: Option<Uncertain>,
    mutations: Mutations,
}

impl Acceptor {
    /// An acceptor that has promised `promised` and accepted nothing.
    pub fn new(promised: Ballot, mutations: Mutations) -> Self {
        Self { promised, accepted: BTreeMap::new(), uncertain: None, mutations }
    }

    /// The highest ballot promised.
    pub fn promised(&self) -> Ballot {
        self.promised
    }

    /// Takes back a vote from the ledger. Later records of a slot replace earlier ones.
    pub fn recover(&mut self, ballot: Ballot, slot: Slot, value: Value) {
        if self.accepted.get(&slot).is_none_or(|(earlier, _)| *earlier <= ballot) {
            self.accepted.insert(slot, (ballot, value));
        }
    }

    /// Notes that votes for slots above `above` may have been lost.
    pub fn recover_uncertain(&mut self, above: Slot) {
        self.uncertain = Some(Uncertain { above, promised: self.promised, ends_at: None });
    }

    /// Phase 1 for all slots at once.
    pub fn prepare(&mut self, ballot: Ballot) -> Prepared {
        match ballot.cmp(&self.promised) {
            std::cmp::Ordering::Less => Prepared::Refused,
            std::cmp::Ordering::Equal => Prepared::Again,
            std::cmp::Ordering::Greater => {
                self.promised = ballot;
                Prepared::Promised
            }
        }
    }

    /// Phase 2 for one open slot.
    ///
    /// # Errors
    /// [`Violation::TwoValues`] if this ballot carried another value for this slot before: the process must stop.
    pub fn accept(&mut self, ballot: Ballot, slot: Slot, value: &Value) -> Result<Acceptance, Violation> {
        let below = ballot < self.promised && !self.mutations.has(Mutation::AcceptBelowPromise);
        if below {
            return Ok(Acceptance::Refused);
        }
        if let Some((earlier, known)) = self.accepted.get(&slot)
            && *earlier == ballot
        {
            return if known == value {
                Ok(Acceptance::Again)
            } else {
                Err(Violation::TwoValues { ballot, slot })
            };
        }
        let new_promise = ballot > self.promised;
        self.promised = self.promised.max(ballot);
        self.accepted.insert(slot, (ballot, value.clone()));
        Ok(Acceptance::Accepted { new_promise })
    }

    /// What it accepted in `slot`.
    pub fn accepted(&self, slot: Slot) -> Option<(Ballot, &Value)> {
        self.accepted.get(&slot).map(|(ballot, value)| (*ballot, value))
    }

    /// Whether the value that it holds in `slot` may be taken for the chosen one, given that a leader at `ballot`
    /// has announced the slot as chosen: only if it was accepted at that very ballot (rule 1.6).
    pub fn confirmed_by(&self, slot: Slot, ballot: Ballot) -> Option<&Value> {
        let (accepted_at, value) = self.accepted(slot)?;
        let confirmed = accepted_at == ballot || self.mutations.has(Mutation::CommitIndexIgnoresBallot);
        confirmed.then_some(value)
    }

    /// Its votes from `from` on, for a promise.
    pub fn reports(&self, from: Slot) -> impl Iterator<Item = (Slot, Report)> + '_ {
        self.accepted.range(from..).map(|(slot, (ballot, value))| {
            (*slot, Report::Accepted { ballot: *ballot, value: value.clone() })
        })
    }

    /// Below this slot its silence means that it accepted nothing.
    pub fn certain_below(&self) -> Slot {
        match &self.uncertain {
            Some(uncertain) if !self.mutations.has(Mutation::DamageCountsAsEmpty) => uncertain.above.next(),
            _ => Slot::MAX,
        }
    }

    /// Whether votes may be missing.
    pub fn is_uncertain(&self) -> bool {
        self.uncertain.is_some()
    }

    /// A leader at `ballot` has told this life of the server that it proposed up to `last_proposed` (above 0: its
    /// own first value included). From there on whatever was lost can't be missed: at the same ballot nothing lost
    /// lies beyond, and a higher ballot's recovery did without this acceptor's silence.
    pub fn heard_leader(&mut self, ballot: Ballot, last_proposed: Slot) {
        if let Some(uncertain) = &mut self.uncertain
            && uncertain.ends_at.is_none()
            && last_proposed > Slot::ZERO
            && ballot >= uncertain.promised
        {
            uncertain.ends_at = Some(last_proposed);
        }
    }

    /// The chosen prefix has reached `chosen_upto`: those votes have done their work.
    pub fn chosen(&mut self, chosen_upto: Slot) {
        while let Some(entry) = self.accepted.first_entry()
            && *entry.key() <= chosen_upto
        {
            entry.remove();
        }
        if self.uncertain.as_ref().is_some_and(|u| u.ends_at.is_some_and(|end| end <= chosen_upto)) {
            self.uncertain = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ballot::ServerId;
    use super::*;
    use proptest::prelude::*;

    fn ballot(round: u64, owner: u16) -> Ballot {
        Ballot::of(round, ServerId::new(owner))
    }

    fn value(n: u8) -> Value {
        Value::batch(loggos_protocol::ids::Timestamp::new(0), vec![bytes::Bytes::from(vec![n])])
    }

    #[test]
    fn an_acceptor_without_a_promise_accepts_any_ballot() {
        let mut acceptor = Acceptor::new(Ballot::NONE, Mutations::NONE);
        let outcome = acceptor.accept(ballot(1, 1), Slot::FIRST, &value(1)).unwrap();
        assert_eq!(outcome, Acceptance::Accepted { new_promise: true });
        assert_eq!(acceptor.promised(), ballot(1, 1));
    }

    #[test]
    fn one_ballot_carries_one_value_per_slot() {
        let mut acceptor = Acceptor::new(Ballot::NONE, Mutations::NONE);
        acceptor.accept(ballot(1, 1), Slot::FIRST, &value(1)).unwrap();
        assert_eq!(acceptor.accept(ballot(1, 1), Slot::FIRST, &value(1)), Ok(Acceptance::Again));
        assert!(acceptor.accept(ballot(1, 1), Slot::FIRST, &value(2)).is_err());
    }

    #[test]
    fn a_commit_index_confirms_only_votes_of_its_own_ballot() {
        let mut acceptor = Acceptor::new(Ballot::NONE, Mutations::NONE);
        acceptor.accept(ballot(1, 1), Slot::FIRST, &value(1)).unwrap();
        assert!(acceptor.confirmed_by(Slot::FIRST, ballot(2, 2)).is_none());
        assert!(acceptor.confirmed_by(Slot::FIRST, ballot(1, 1)).is_some());
    }

    #[test]
    fn uncertainty_ends_once_the_prefix_passes_what_a_live_leader_had_proposed() {
        let mut acceptor = Acceptor::new(ballot(3, 1), Mutations::NONE);
        acceptor.recover_uncertain(Slot::new(10));
        assert_eq!(acceptor.certain_below(), Slot::new(11));
        acceptor.heard_leader(ballot(2, 2), Slot::new(20));
        acceptor.heard_leader(ballot(4, 2), Slot::ZERO);
        acceptor.chosen(Slot::new(30));
        assert!(
            acceptor.is_uncertain(),
            "neither an older ballot nor a leader that has proposed nothing ends it"
        );
        acceptor.heard_leader(ballot(4, 2), Slot::new(40));
        acceptor.heard_leader(ballot(4, 2), Slot::new(99));
        acceptor.chosen(Slot::new(39));
        assert!(acceptor.is_uncertain());
        acceptor.chosen(Slot::new(40));
        assert_eq!(acceptor.certain_below(), Slot::MAX);
    }

    proptest! {
        #[test]
        fn promises_never_decrease_and_nothing_below_them_is_accepted(
            steps in proptest::collection::vec((any::<bool>(), 1u64..6, 1u16..4, 1u64..4), 1..60)
        ) {
            let mut acceptor = Acceptor::new(Ballot::NONE, Mutations::NONE);
            for (prepare, round, owner, slot) in steps {
                let before = acceptor.promised();
                let b = ballot(round, owner);
                if prepare {
                    let outcome = acceptor.prepare(b);
                    prop_assert_eq!(outcome == Prepared::Refused, b < before);
                } else {
                    // One value per ballot, as proposers see to it.
                    let outcome = acceptor.accept(b, Slot::new(slot), &value(round as u8)).unwrap();
                    prop_assert_eq!(outcome == Acceptance::Refused, b < before);
                }
                prop_assert!(acceptor.promised() >= before);
                for s in 1..4 {
                    if let Some((at, _)) = acceptor.accepted(Slot::new(s)) {
                        prop_assert!(at <= acceptor.promised());
                    }
                }
            }
        }
    }
}
