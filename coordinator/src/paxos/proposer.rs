//! The proposer: phase 1 once per leadership, phase 2 pipelined in a window (design 1.4, 1.5).
//!
//! From the promises of phase 1 it takes, slot by slot, what must be proposed (P2c); behind these comes its own
//! `LeaderStart`, and behind that whatever clients want. It knows no network and no disk: the engine sends what it
//! proposes, and tells it of votes once they are durable. Called by `engine`'s leading part.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use loggos_protocol::ids::Timestamp;

use super::ballot::{Ballot, ServerId, Slot, SlotRange};
use super::event::Options;
use super::learner::Learner;
use super::membership::{Config, ConfigHistory};
use super::moment::{Moment, Now};
use super::mutation::{Mutation, Mutations};
use super::quorum::Tally;
use super::recovery::{Finding, Promises};
use super::value::Value;

/// A proposal that is not known to be chosen yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flight {
    value: Value,
    votes: Tally,
    sent: Moment,
}

/// Entries waiting for a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Queue {
    entries: VecDeque<Bytes>,
    bytes: usize,
}

impl Queue {
    fn push(&mut self, entry: Bytes) {
        self.bytes += entry.len();
        self.entries.push_back(entry);
    }

    /// Whether a whole batch is waiting.
    fn fills_batch(&self, options: &Options) -> bool {
        self.entries.len() >= options.batch_entries || self.bytes >= options.batch_bytes
    }

    /// The entries of the next batch: at least one, if there is any.
    fn take_batch(&mut self, options: &Options) -> Vec<Bytes> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(entry) = self.entries.front() {
            let full = batch.len() >= options.batch_entries || bytes + entry.len() > options.batch_bytes;
            if full && !batch.is_empty() {
                break;
            }
            bytes += entry.len();
            batch.extend(self.entries.pop_front());
        }
        self.bytes -= bytes;
        batch
    }
}

/// What the proposer looks at when it chooses its next proposal.
pub(super) struct View<'a> {
    /// What is chosen.
    pub learner: &'a Learner,
    /// Whose votes count where.
    pub configs: &'a ConfigHistory,
    /// The settings.
    pub options: &'a Options,
    /// Whether this server's own disk has nothing to do, so that a batch needs not wait for company.
    pub disk_free: bool,
    /// Whether new entries must wait: leadership is being handed over.
    pub paused: bool,
    /// The time of the latest value known; times never run backwards.
    pub latest: Timestamp,
    /// With nothing else to propose, no-ops are proposed up to here: they push a membership into force.
    pub push_upto: Slot,
}

/// One ballot's proposals.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Proposer {
    ballot: Ballot,
    promises: Promises,
    /// The next slot to be proposed.
    next: Slot,
    flights: BTreeMap<Slot, Flight>,
    queue: Queue,
    /// A membership that goes before all that is queued.
    config: Option<Arc<Config>>,
    /// The time of the latest value proposed.
    latest: Timestamp,
    /// Where `LeaderStart` was proposed; 0 before.
    start: Slot,
    mutations: Mutations,
}

impl Proposer {
    /// A proposer whose phase 1 has succeeded for the first open slot.
    pub fn new(ballot: Ballot, promises: Promises, mutations: Mutations) -> Self {
        let next = promises.from();
        Self {
            ballot,
            promises,
            next,
            flights: BTreeMap::new(),
            queue: Queue::default(),
            config: None,
            latest: Timestamp::default(),
            start: Slot::ZERO,
            mutations,
        }
    }

    /// Its ballot.
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// The promises it builds upon.
    pub fn promises(&self) -> &Promises {
        &self.promises
    }

    /// Another acceptor's promise, or a part of it, has come in.
    pub fn add_promise(&mut self, server: ServerId, promise: super::message::Promise) {
        self.promises.add(server, promise);
    }

    /// The highest slot proposed, once `LeaderStart` is among them; 0 before.
    pub fn last_proposed(&self) -> Slot {
        if self.start == Slot::ZERO { Slot::ZERO } else { self.next.minus(1) }
    }

    /// Where `LeaderStart` was proposed; 0 before.
    pub fn start(&self) -> Slot {
        self.start
    }

    /// Entries to be chosen; those beyond the limit are dropped.
    pub fn enqueue(&mut self, entries: impl IntoIterator<Item = Bytes>, options: &Options) {
        for entry in entries {
            if self.queue.entries.len() >= options.queue_entries {
                return;
            }
            self.queue.push(entry);
        }
    }

    /// A membership to be proposed next.
    pub fn enqueue_config(&mut self, config: Arc<Config>) {
        self.config = Some(config);
    }

    /// Whether a membership waits or is under way.
    pub fn has_config(&self) -> bool {
        self.config.is_some() || self.flights.values().any(|flight| flight.value.config().is_some())
    }

    /// Whether no proposal is under way.
    pub fn is_quiet(&self) -> bool {
        self.flights.is_empty()
    }

    /// The next proposal, if there is one to be made now. It counts as sent.
    pub(super) fn next_proposal(&mut self, now: Now, view: &View<'_>) -> Option<(Slot, Value)> {
        self.next = self.next.max(view.learner.chosen_upto().next());
        while view.learner.value(self.next).is_some() {
            self.next = self.next.next();
        }
        let slot = self.next;
        if slot.since(view.learner.chosen_upto()) > view.options.window.min(view.options.alpha) {
            return None;
        }
        let voters = view.configs.at(slot).voters();
        let value = match self.promises.find(slot, &voters) {
            Finding::Unknown => return None,
            Finding::Bound(value) => value,
            Finding::Free if slot <= self.promises.highest_reported() => Value::Noop,
            Finding::Free => self.own_value(slot, now, view)?,
        };
        self.latest = self.latest.max(value.time().unwrap_or(self.latest));
        self.next = slot.next();
        self.flights.insert(slot, Flight { value: value.clone(), votes: Tally::new(), sent: now.at });
        Some((slot, value))
    }

    /// What may be proposed where nothing can have been chosen.
    fn own_value(&mut self, slot: Slot, now: Now, view: &View<'_>) -> Option<Value> {
        let time = now.wall.max(view.latest).max(self.latest);
        if self.start == Slot::ZERO {
            self.start = slot;
            return Some(Value::LeaderStart { ballot: self.ballot, time });
        }
        if let Some(config) = self.config.take() {
            return Some(Value::Config { config, time });
        }
        if self.queue.entries.is_empty() && slot <= view.push_upto {
            return Some(Value::Noop);
        }
        let closes = view.disk_free || self.flights.is_empty() || self.queue.fills_batch(view.options);
        if view.paused || !closes || self.queue.entries.is_empty() {
            return None;
        }
        Some(Value::batch(time, self.queue.take_batch(view.options)))
    }

    /// Whether proposals wait for more promises about the next slot.
    pub fn lacks_promises(&self, configs: &ConfigHistory) -> bool {
        self.promises.find(self.next, &configs.at(self.next).voters()) == Finding::Unknown
    }

    /// Durable votes of `server` at this ballot. Gives out what is chosen by them.
    pub fn vote(
        &mut self,
        server: ServerId,
        slots: &[SlotRange],
        configs: &ConfigHistory,
    ) -> Vec<(Slot, Value)> {
        let mut chosen = Vec::new();
        for range in slots.iter().filter(|range| range.first <= range.last) {
            for (slot, flight) in self.flights.range_mut(range.first..=range.last) {
                flight.votes.add(server);
                if flight.votes.is_majority_of(&configs.at(*slot).voters()) {
                    chosen.push((*slot, flight.value.clone()));
                }
            }
        }
        for (slot, _) in &chosen {
            self.flights.remove(slot);
        }
        chosen
    }

    /// A slot was learned to be chosen from elsewhere. False if it holds another value than was proposed here: then
    /// a higher ballot has taken over, and nothing may be announced at this one any more.
    pub fn learned(&mut self, slot: Slot, value: &Value) -> bool {
        match self.flights.get(&slot) {
            Some(flight)
                if flight.value != *value && !self.mutations.has(Mutation::CommitIndexIgnoresBallot) =>
            {
                false
            }
            _ => {
                self.flights.remove(&slot);
                true
            }
        }
    }

    /// The prefix has grown: reports below are no longer needed.
    pub fn chosen(&mut self, chosen_upto: Slot) {
        self.promises.forget_below(chosen_upto.next());
        self.flights = self.flights.split_off(&chosen_upto.next());
    }

    /// Proposals unanswered for too long, each with those of `voters_of` it that have not voted; they count as sent
    /// again.
    pub fn overdue(
        &mut self,
        now: Moment,
        options: &Options,
        configs: &ConfigHistory,
    ) -> Vec<(ServerId, Slot, Value)> {
        let mut again = Vec::new();
        for (slot, flight) in &mut self.flights {
            if flight.sent.after(options.resend) > now {
                continue;
            }
            flight.sent = now;
            for voter in configs.at(*slot).voters() {
                if !flight.votes.has(voter) {
                    again.push((voter, *slot, flight.value.clone()));
                }
            }
        }
        again
    }

    /// When the oldest unanswered proposal is to be sent again.
    pub fn next_resend(&self, options: &Options) -> Moment {
        self.flights.values().map(|flight| flight.sent.after(options.resend)).min().unwrap_or(Moment::NEVER)
    }
}
