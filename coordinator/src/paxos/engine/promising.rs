//! The acceptor's side of elections: canvasses and prepares (design 1.3 rule 1, 1.10).
//!
//! P1b of the paper: a promise never to accept below the ballot again, with all that was accepted before. One promise
//! covers every slot from the one asked about on; it leaves once it is durable, in parts.

use std::time::Duration;

use super::{Engine, Step};
use crate::paxos::acceptor::Prepared;
use crate::paxos::ballot::{Ballot, ServerId, Slot};
use crate::paxos::message::{Message, Promise, Report};
use crate::paxos::mutation::Mutation;
use crate::paxos::outbox::Held;

/// About how many bytes of values go into one part of a promise.
const PART_BYTES: usize = 512 * 1024;
/// How many slots go into one part of a promise.
const PART_ITEMS: usize = 4096;

impl Engine {
    /// Pre-vote. Changes nothing here: a server that comes back from a partition can't disturb a leader with it.
    pub(super) fn on_canvass(
        &mut self,
        step: &mut Step<'_>,
        from: ServerId,
        ballot: Ballot,
        candidate_at: Slot,
    ) {
        let promised = self.acceptor.promised();
        let chosen_upto = self.learner.chosen_upto();
        let free = self.grant.left(ballot, step.at()) == Duration::ZERO && ballot > promised;
        let current = chosen_upto.since(candidate_at) <= self.options.alpha || self.is_witness();
        let answer = if free && current && self.may_stand_there(from) {
            Message::CanvassOk { ballot }
        } else {
            Message::CanvassNo { ballot, promised, chosen_upto }
        };
        self.post.send(step.actions, from, answer);
    }

    /// Whether `candidate` may lead as far as is known here. A server that was removed finds out by the refusal,
    /// which says how far this one is.
    fn may_stand_there(&self, candidate: ServerId) -> bool {
        self.is_witness()
            || self.configs.open(self.learner.chosen_upto()).any(|config| config.may_lead(candidate))
    }

    /// Phase 1a has come in: promise, or say why not.
    pub(super) fn on_prepare(
        &mut self,
        step: &mut Step<'_>,
        from: ServerId,
        ballot: Ballot,
        from_slot: Slot,
        released: Ballot,
    ) {
        if ballot.owner() != from {
            return;
        }
        self.see(ballot);
        if !released.is_none() {
            self.grant.release(released);
        }
        let lease_left = self.grant.left(ballot, step.at());
        let promised = self.acceptor.promised();
        let chosen_upto = self.learner.chosen_upto();
        // A witness forgets what every full voter holds, so that no candidate needs to hear of it.
        let behind = !self.is_witness()
            && (from_slot <= self.learner.floor() || chosen_upto.since(from_slot) > self.options.alpha);
        if behind || (ballot > promised && lease_left > Duration::ZERO) {
            let reject = Message::Reject { ballot, promised, lease_left, chosen_upto };
            return self.post.send(step.actions, from, reject);
        }
        match self.acceptor.prepare(ballot) {
            Prepared::Refused => {
                let reject = Message::Reject { ballot, promised, lease_left: Duration::ZERO, chosen_upto };
                return self.post.send(step.actions, from, reject);
            }
            Prepared::Promised => {
                self.outbox.promise(ballot);
                self.yield_to(step, ballot);
            }
            Prepared::Again => {}
        }
        for part in self.promise_parts(ballot, from_slot) {
            let envelope = self.post.envelope(from, Message::Promise(part));
            self.hold_promise(Held::Send(envelope));
        }
    }

    /// Holds what must not leave before the promise is durable.
    pub(super) fn hold_promise(&mut self, held: Held) {
        if self.mutations.has(Mutation::PromiseNotDurable) {
            self.outbox.hold_not(held);
        } else {
            self.outbox.hold(held);
        }
    }

    /// A higher ballot was promised to another server: whatever this one led or wanted to lead is over, and the new
    /// candidate gets time before this one stands itself.
    fn yield_to(&mut self, step: &mut Step<'_>, ballot: Ballot) {
        if self.standing_ballot().is_some_and(|mine| mine < ballot) {
            self.stand_down(step);
        } else if self.view.ballot < ballot {
            self.forget_leader(step);
        }
        self.await_leader(step);
    }

    /// All that is known here of slots from `from` on, in parts.
    pub(super) fn promise_parts(&mut self, ballot: Ballot, from: Slot) -> Vec<Promise> {
        self.answers += 1;
        let chosen_upto = self.learner.chosen_upto();
        let mut items: Vec<(Slot, Report)> = Vec::new();
        let mut slot = from.max(self.learner.floor().next());
        while slot <= chosen_upto {
            let value = self.learner.value(slot).expect("the log holds the prefix above its floor");
            items.push((slot, Report::Chosen { value: value.clone() }));
            slot = slot.next();
        }
        let open = from.max(chosen_upto.next());
        let beyond = self.learner.beyond().filter(|(slot, _)| *slot >= open);
        items.extend(beyond.map(|(slot, value)| (slot, Report::Chosen { value: value.clone() })));
        items.extend(self.acceptor.reports(open).filter(|(slot, _)| self.learner.value(*slot).is_none()));
        items.sort_by_key(|(slot, _)| *slot);
        let parts = into_parts(items);
        let count = parts.len() as u32;
        let part = |(number, items)| Promise {
            ballot,
            from_slot: from,
            chosen_upto,
            items,
            certain_below: self.acceptor.certain_below(),
            answer: self.answers,
            part: number as u32,
            parts: count,
        };
        parts.into_iter().enumerate().map(part).collect()
    }
}

/// Cuts the items of a promise so that no part outgrows a frame; one empty part if there are none.
fn into_parts(items: Vec<(Slot, Report)>) -> Vec<Vec<(Slot, Report)>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for item in items {
        let (Report::Accepted { value, .. } | Report::Chosen { value }) = &item.1;
        let last = parts.last_mut().expect("there is always a part");
        if !last.is_empty() && (bytes + value.weight() > PART_BYTES || last.len() == PART_ITEMS) {
            bytes = 0;
            parts.push(Vec::new());
        }
        bytes += value.weight();
        parts.last_mut().expect("there is always a part").push(item);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paxos::value::Value;

    #[test]
    fn a_long_promise_is_cut_into_parts_that_keep_everything() {
        let big = |n: u64| {
            let value = Value::batch(Default::default(), vec![bytes::Bytes::from(vec![0; 200_000])]);
            (Slot::new(n), Report::Chosen { value })
        };
        let parts = into_parts((1..=7).map(big).collect());
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), vec![2, 2, 2, 1]);
        assert_eq!(into_parts(Vec::new()), vec![Vec::new()]);
    }
}
