//! What a server makes of a leader's word: votes for its proposals (phase 2b), its commit index, its signs of life
//! (design 1.3 rules 2 to 4, 1.6, 1.9).

use std::time::Duration;

use bytes::Bytes;

use super::{Engine, Outcome, Step};
use crate::paxos::acceptor::{Acceptance, Prepared};
use crate::paxos::ballot::{Ballot, ServerId, Slot};
use crate::paxos::event::{Action, LeaderView, Record, Violation};
use crate::paxos::message::{Heartbeat, HeartbeatAck, Message};
use crate::paxos::mutation::Mutation;
use crate::paxos::outbox::Held;
use crate::paxos::value::Value;

/// How far beyond its chosen prefix a server accepts. Whoever lags further catches up first: not to answer is always
/// allowed, and its memory is bounded.
const AHEAD_LIMIT: u64 = 16_384;
/// The same for a witness, which keeps all that a dead full voter lacks.
const WITNESS_AHEAD_LIMIT: u64 = 1 << 20;

impl Engine {
    /// Phase 2a has come in: vote, or refuse.
    pub(super) fn on_accept(
        &mut self,
        step: &mut Step<'_>,
        from: ServerId,
        (ballot, slot, value): (Ballot, Slot, Value),
        chosen_upto: Slot,
    ) -> Outcome {
        if ballot.owner() != from {
            return Ok(());
        }
        self.see(ballot);
        let heard = ballot >= self.acceptor.promised();
        if heard {
            self.follow(step, ballot);
            self.grant.extend(ballot, step.at(), &self.options);
        }
        let limit = if self.is_witness() { WITNESS_AHEAD_LIMIT } else { AHEAD_LIMIT };
        if slot.since(self.learner.chosen_upto()) <= limit && !self.vote(ballot, slot, &value)? {
            self.refuse(step, from, ballot);
        }
        if heard { self.hear(step, ballot, chosen_upto) } else { Ok(()) }
    }

    /// Votes for a proposal (P1a), its own or another's. False if a promise forbids it.
    ///
    /// # Errors
    /// One ballot carried two values, or a chosen slot another value: the process must stop (rule 3).
    pub(super) fn vote(&mut self, ballot: Ballot, slot: Slot, value: &Value) -> Result<bool, Violation> {
        let outcome = if slot <= self.learner.chosen_upto() || self.learner.value(slot).is_some() {
            self.vote_for_chosen(ballot, slot, value)?
        } else {
            self.acceptor.accept(ballot, slot, value)?
        };
        match outcome {
            Acceptance::Refused => return Ok(false),
            Acceptance::Again => {}
            Acceptance::Accepted { new_promise } => {
                if new_promise && !self.mutations.has(Mutation::PromiseInRecordOnly) {
                    // Never only inside the record: that may be damaged, the promise must not be (design 1.11).
                    self.outbox.promise(ballot);
                }
                self.outbox.record(Record::Accepted { ballot, slot, value: value.clone() });
            }
        }
        let held = Held::Vote { ballot, slot };
        if self.mutations.has(Mutation::VoteNotDurable) {
            self.outbox.hold_not(held);
        } else {
            self.outbox.hold(held);
        }
        Ok(true)
    }

    /// A vote for a slot whose value is known to be chosen: it needs no record, only the promise.
    fn vote_for_chosen(
        &mut self,
        ballot: Ballot,
        slot: Slot,
        value: &Value,
    ) -> Result<Acceptance, Violation> {
        if ballot < self.acceptor.promised() {
            return Ok(Acceptance::Refused);
        }
        if self.learner.value(slot).is_some_and(|known| known != value) {
            return Err(Violation::ChosenChanged { ballot, slot });
        }
        if self.acceptor.prepare(ballot) == Prepared::Promised {
            self.outbox.promise(ballot);
        }
        Ok(Acceptance::Again)
    }

    fn refuse(&mut self, step: &mut Step<'_>, to: ServerId, ballot: Ballot) {
        let (promised, chosen_upto) = (self.acceptor.promised(), self.learner.chosen_upto());
        let reject = Message::Reject { ballot, promised, lease_left: Duration::ZERO, chosen_upto };
        self.post.send(step.actions, to, reject);
    }

    /// The leader at `ballot` is alive.
    fn follow(&mut self, step: &mut Step<'_>, ballot: Ballot) {
        if self.standing_ballot().is_some() {
            self.stand_down(step);
        }
        self.failures = 0;
        self.set_view(step, LeaderView { leader: ballot.owner(), ballot, leading: false });
        self.await_leader(step);
    }

    /// The leader at `ballot` says that the slots up to `chosen_upto` are chosen.
    fn hear(&mut self, step: &mut Step<'_>, ballot: Ballot, chosen_upto: Slot) -> Outcome {
        if self.is_witness() {
            self.forget_upto(step, chosen_upto);
            return Ok(());
        }
        if ballot > self.announced.0 || chosen_upto > self.announced.1 {
            self.announced = (ballot, chosen_upto);
        }
        self.confirm(step)?;
        if self.learner.chosen_upto() < self.announced.1 {
            self.want_chosen(step, ballot.owner(), self.announced.1);
        }
        Ok(())
    }

    /// Rule 1.6: of what is announced as chosen, the votes cast here at the announcing ballot are for the chosen
    /// values. A vote at an older ballot may be for something else: that slot must be fetched.
    pub(super) fn confirm(&mut self, step: &mut Step<'_>) -> Outcome {
        let (ballot, upto) = self.announced;
        let mut slot = self.learner.chosen_upto().next();
        while slot <= upto {
            if self.learner.value(slot).is_none() {
                let Some(value) = self.acceptor.confirmed_by(slot, ballot).cloned() else { break };
                self.learner.learn(slot, value, ballot)?;
            }
            slot = slot.next();
        }
        self.deliver(step)
    }

    /// Every full voter holds the prefix up to `upto`: a witness needs to keep it no longer.
    fn forget_upto(&mut self, step: &mut Step<'_>, upto: Slot) {
        if upto > self.learner.chosen_upto() {
            self.learner.skip_to(upto);
            self.acceptor.chosen(upto);
            step.act(Action::Release { upto });
        }
    }

    /// A leader's sign of life: follow it, grant it its lease, answer.
    pub(super) fn on_heartbeat(
        &mut self,
        step: &mut Step<'_>,
        from: ServerId,
        heartbeat: Heartbeat,
        addressed: bool,
    ) -> Outcome {
        let ballot = heartbeat.ballot;
        if ballot.owner() != from {
            return Ok(());
        }
        self.see(ballot);
        if ballot < self.acceptor.promised() {
            self.refuse(step, from, ballot);
            return Ok(());
        }
        self.follow(step, ballot);
        let new_promise = self.acceptor.prepare(ballot) == Prepared::Promised;
        if new_promise {
            // What is granted below must still bind after a restart, which remembers promises alone (I15).
            self.outbox.promise(ballot);
        }
        if heartbeat.released {
            self.grant.release(ballot);
        } else {
            self.grant.extend(ballot, step.at(), &self.options);
        }
        self.touches_registered(step, heartbeat.touches);
        self.hear(step, ballot, heartbeat.chosen_upto)?;
        if addressed {
            self.end_uncertainty(ballot, heartbeat.last_proposed);
        }
        let again = self.touches.answered == (ballot, heartbeat.round) && self.touches.pending.is_none();
        self.touches.answered = (ballot, heartbeat.round);
        if !again || new_promise {
            let ack = self.heartbeat_ack(step);
            if new_promise {
                self.hold_promise(Held::Send(self.post.envelope(from, ack)));
            } else {
                self.post.send(step.actions, from, ack);
            }
        }
        Ok(())
    }

    /// A leader at `ballot`, which may be this server, has proposed up to `last_proposed`: from there on nothing that
    /// was lost here can be missed.
    pub(super) fn end_uncertainty(&mut self, ballot: Ballot, last_proposed: Slot) {
        if self.acceptor.is_uncertain() {
            self.acceptor.heard_leader(ballot, last_proposed);
            self.acceptor.chosen(self.learner.chosen_upto());
        }
    }

    fn heartbeat_ack(&self, step: &Step<'_>) -> Message {
        let (ballot, round) = self.touches.answered;
        let (touches, payload) = self.touches.pending.clone().unwrap_or((0, Bytes::new()));
        let applied_upto = self.outbox.durable_upto(self.learner.chosen_upto());
        Message::HeartbeatAck(HeartbeatAck {
            ballot,
            round,
            applied_upto,
            touches,
            payload,
            clock: step.at(),
        })
    }

    /// Sessions were heard of here: the leader is told at once, and again with every sign of life until it has it.
    pub(super) fn touch(&mut self, step: &mut Step<'_>, batch: u64, payload: Bytes) {
        if self.view.leader == self.identity.server && !self.view.leader.is_none() {
            step.act(Action::Touched { from: self.identity.server, payload });
            step.act(Action::TouchesRegistered { batch });
            return;
        }
        self.touches.pending = Some((batch, payload));
        if !self.view.leader.is_none() && self.touches.answered.0 == self.view.ballot {
            let ack = self.heartbeat_ack(step);
            self.post.send(step.actions, self.view.leader, ack);
        }
    }

    /// The leader has the batches up to this one.
    pub(super) fn touches_registered(&mut self, step: &mut Step<'_>, batch: u64) {
        if let Some((pending, _)) = self.touches.pending
            && pending <= batch
        {
            self.touches.pending = None;
            step.act(Action::TouchesRegistered { batch: pending });
        }
    }
}
