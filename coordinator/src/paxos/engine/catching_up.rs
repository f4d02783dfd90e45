//! A server that lacks chosen values fetches them from another, in ranges (design 1.7).

use super::standing::Standing;
use super::{Engine, Outcome, Step};
use crate::paxos::ballot::{Ballot, ServerId, Slot};
use crate::paxos::event::Record;
use crate::paxos::membership::Role;
use crate::paxos::message::Message;
use crate::paxos::moment::Moment;
use crate::paxos::value::Value;

/// About how many bytes of values go into one answer.
const ANSWER_BYTES: usize = 1 << 20;
/// An answer may take this many times `Options::resend` before another server is asked.
const PATIENCE: u32 = 4;
/// How many servers are asked in vain before the next word of a leader is waited for.
const TRIES_LIMIT: u32 = 6;

/// A fetch under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fetch {
    source: ServerId,
    /// Known to be chosen up to here.
    upto: Slot,
    sent: Moment,
    tries: u32,
}

impl Engine {
    /// The slots up to `upto` are chosen, `source` knows them, and some of them are missing here.
    pub(super) fn want_chosen(&mut self, step: &mut Step<'_>, source: ServerId, upto: Slot) {
        if self.is_witness() || self.reception.is_some() {
            return;
        }
        if let Some(fetch) = &mut self.fetch {
            fetch.upto = fetch.upto.max(upto);
            return;
        }
        let far = upto.since(self.learner.chosen_upto()) > self.options.alpha;
        let source = if far { self.another_source(source) } else { source };
        self.fetch = Some(Fetch { source, upto, sent: step.at(), tries: 0 });
        self.send_fetch(step, source);
    }

    fn send_fetch(&self, step: &mut Step<'_>, source: ServerId) {
        let from = self.learner.chosen_upto().next();
        self.post.send(step.actions, source, Message::FetchChosen { from });
    }

    /// A member other than the leader, which has enough to do, if there is one.
    fn another_source(&mut self, fallback: ServerId) -> ServerId {
        let everyone = self.configs.everyone(self.learner.chosen_upto());
        let (_, latest) = self.configs.latest();
        let fits = |id: &ServerId| {
            *id != self.identity.server && *id != self.view.leader && latest.role(*id) != Some(Role::Witness)
        };
        let others: Vec<ServerId> = everyone.into_iter().filter(fits).collect();
        let drawn = self.dice.below(others.len() as u64) as usize;
        others.get(drawn).copied().unwrap_or(fallback)
    }

    /// Tells everybody that this life has begun, or that no leader is heard here, by asking for what is new.
    pub(super) fn seek(&mut self, step: &mut Step<'_>) {
        for member in self.configs.everyone(self.learner.chosen_upto()) {
            if member != self.identity.server {
                self.greet(step, member);
            }
        }
    }

    /// Tells one server that this life has begun.
    pub(super) fn greet(&self, step: &mut Step<'_>, server: ServerId) {
        // A witness wants no values: it asks beyond all of them.
        let from = if self.is_witness() { Slot::MAX } else { self.learner.chosen_upto().next() };
        self.post.send(step.actions, server, Message::FetchChosen { from });
    }

    /// Another server lacks values from `first` on.
    pub(super) fn on_fetch(&mut self, step: &mut Step<'_>, from: ServerId, first: Slot) {
        if self.is_witness() {
            return;
        }
        let chosen_upto = self.learner.chosen_upto();
        if first <= self.learner.floor() {
            return self.offer_snapshot(step, from);
        }
        let values = self.learner.values_from(first, ANSWER_BYTES);
        self.post.send(step.actions, from, Message::Chosen { first, values, chosen_upto });
    }

    /// Values that are chosen.
    pub(super) fn on_chosen(
        &mut self,
        step: &mut Step<'_>,
        from: ServerId,
        first: Slot,
        values: Vec<Value>,
        chosen_upto: Slot,
    ) -> Outcome {
        if self.is_witness() {
            self.learn_memberships(step, first, &values);
            return Ok(());
        }
        let before = self.learner.chosen_upto();
        if first <= before.next() {
            let mut slot = first;
            for value in values {
                self.learn_elsewhere(step, slot, value)?;
                slot = slot.next();
            }
            self.deliver(step)?;
            self.confirm(step)?;
        }
        self.fetched(step, from, before, chosen_upto);
        Ok(())
    }

    fn learn_elsewhere(&mut self, step: &mut Step<'_>, slot: Slot, value: Value) -> Outcome {
        let news = slot > self.learner.chosen_upto() && self.learner.value(slot).is_none();
        let voted = self.acceptor.accepted(slot).is_some_and(|(_, known)| *known == value);
        if news && !voted {
            self.outbox.record(Record::Learned { slot, value: value.clone() });
        }
        self.learn(step, slot, value, Ballot::NONE)
    }

    /// A witness looks for memberships alone.
    fn learn_memberships(&mut self, step: &mut Step<'_>, first: Slot, values: &[Value]) {
        let mut slot = first;
        for value in values {
            if let Some(config) = value.config()
                && slot > self.configs.latest().0
            {
                self.configs.push(slot, config.clone());
                self.post.config_slot = slot;
                self.tell_peers(step);
            }
            slot = slot.next();
        }
    }

    /// Goes on fetching, or ends it.
    fn fetched(&mut self, step: &mut Step<'_>, from: ServerId, before: Slot, theirs: Slot) {
        let now_at = self.learner.chosen_upto();
        let Some(fetch) = &mut self.fetch else {
            if theirs > now_at {
                self.want_chosen(step, from, theirs);
            }
            return;
        };
        fetch.upto = fetch.upto.max(theirs);
        if fetch.upto <= now_at || matches!(self.standing, Standing::Leading(_)) {
            self.fetch = None;
        } else if now_at > before && theirs > now_at {
            (fetch.source, fetch.sent, fetch.tries) = (from, step.at(), 0);
            self.send_fetch(step, from);
        }
    }

    /// Time has passed: the answer may be lost, or its sender dead.
    pub(super) fn fetch_on(&mut self, step: &mut Step<'_>) {
        if self.fetch_deadline() > step.at() {
            return;
        }
        let Some(mut fetch) = self.fetch.take() else { return };
        fetch.tries += 1;
        if fetch.tries > TRIES_LIMIT || fetch.upto <= self.learner.chosen_upto() {
            return;
        }
        let leader = self.view.leader;
        let leader_next = fetch.tries % 2 == 1 && !leader.is_none() && leader != self.identity.server;
        fetch.source = if leader_next { leader } else { self.another_source(fetch.source) };
        fetch.sent = step.at();
        self.send_fetch(step, fetch.source);
        self.fetch = Some(fetch);
    }

    pub(super) fn fetch_deadline(&self) -> Moment {
        self.fetch.as_ref().map_or(Moment::NEVER, |fetch| fetch.sent.after(self.options.resend * PATIENCE))
    }
}
