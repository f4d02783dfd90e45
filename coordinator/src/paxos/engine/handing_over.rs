//! A leader that gives way: for a clean stop, a slow disk, its own removal, the operator's wish (design 1.4).
//!
//! It stops using its lease for good at this ballot, admits nothing new, waits until the target has all that was
//! proposed, and tells it to stand. The target's prepare says who released it, so that acceptors need not wait for
//! the old lease to end.

use super::standing::Standing;
use super::{Engine, Step};
use crate::paxos::ballot::{Ballot, ServerId};
use crate::paxos::message::Message;
use crate::paxos::moment::Moment;

/// A hand-over under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct HandOver {
    target: ServerId,
    until: Moment,
    /// When the target may be told, again.
    tell_at: Moment,
}

impl HandOver {
    /// When it has failed.
    pub fn until(&self) -> Moment {
        self.until
    }
}

impl Engine {
    /// Hands leadership over, to `target` or to the member that is best prepared. Nothing happens elsewhere than on
    /// the leader, or if nobody can take it.
    pub(super) fn transfer(&mut self, step: &mut Step<'_>, target: Option<ServerId>) {
        let Some(target) = target.or_else(|| self.best_successor(step.at())) else { return };
        let eligible = self.configs.latest().1.may_lead(target) && target != self.identity.server;
        let Standing::Leading(leading) = &mut self.standing else { return };
        if !eligible || leading.hand_over.is_some() {
            return;
        }
        leading.tenure.give_up();
        let until = step.at().after(self.options.election_max * 2);
        leading.hand_over = Some(HandOver { target, until, tell_at: step.at() });
        self.begin_round(step);
        self.hand_over_on(step);
    }

    /// The full voter that has answered lately and applied most.
    fn best_successor(&self, now: Moment) -> Option<ServerId> {
        let Standing::Leading(leading) = &self.standing else { return None };
        let (_, config) = self.configs.latest();
        let lately = |heard: Moment| heard.after(self.options.election_min) > now;
        let fit = leading.members.iter().filter(|(id, member)| config.may_lead(**id) && lately(member.heard));
        fit.max_by_key(|(id, member)| (member.applied, std::cmp::Reverse(**id))).map(|(id, _)| *id)
    }

    /// Tells the target to stand once it has everything; gives up after a while.
    pub(super) fn hand_over_on(&mut self, step: &mut Step<'_>) {
        let Standing::Leading(leading) = &mut self.standing else { return };
        let Some(hand_over) = &mut leading.hand_over else { return };
        let ballot = leading.proposer.ballot();
        if hand_over.until <= step.at() {
            return self.take_back(step);
        }
        let applied = leading.members.get(&hand_over.target).map(|member| member.applied);
        let ready = leading.proposer.is_quiet() && applied >= Some(self.learner.chosen_upto());
        if ready && hand_over.tell_at <= step.at() {
            hand_over.tell_at = step.at().after(self.options.resend);
            let target = hand_over.target;
            self.post.send(step.actions, target, Message::TransferNow { ballot });
        }
    }

    /// The target did not take over. The lease can't be had back at this ballot, so stand at a new one.
    fn take_back(&mut self, step: &mut Step<'_>) {
        self.stand_down(step);
        if self.configs.latest().1.may_lead(self.identity.server) {
            self.prepare(step, Ballot::NONE);
        }
    }

    /// The leader asks this server to take over.
    pub(super) fn on_transfer_now(&mut self, step: &mut Step<'_>, from: ServerId, ballot: Ballot) {
        let leads = ballot.owner() == from && self.view.ballot == ballot;
        if leads && matches!(self.standing, Standing::Following) && self.may_stand() {
            self.grant.release(ballot);
            self.prepare(step, ballot);
        }
    }

    /// A leader whose own disk stalls while the others go on hands over (grey failure).
    pub(super) fn watch_disk(&mut self, step: &mut Step<'_>) {
        let stalled =
            self.outbox.oldest().is_some_and(|since| since.after(self.options.disk_stall) <= step.at());
        if stalled {
            self.transfer(step, None);
        }
    }
}
