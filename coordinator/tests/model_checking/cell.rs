//! A model of choosing: real engines as acceptors, real promises and tallies in the proposers, and between them a
//! network that delivers in any order, not at all, or twice.
//!
//! An answer reaches its proposer at once or never. That loses no behaviour that matters: a proposer acts on what it
//! has heard only when it proposes or announces, which may be at any later time.
//!
//! The engines' clock stands still and leases have no length, so that nothing but messages, disks and crashes moves
//! them. What left a server, what was issued and what was applied is remembered beside the state, for the properties.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use loggos_coordinator::paxos::ballot::{Ballot, CellId, Incarnation, ServerId, Slot, SlotRange};
use loggos_coordinator::paxos::engine::Engine;
use loggos_coordinator::paxos::event::{Action, Actions, Event, Identity, Options, Record, Recovered, Write};
use loggos_coordinator::paxos::membership::{Config, ConfigHistory, Member, Role};
use loggos_coordinator::paxos::message::{Envelope, Heartbeat, Message};
use loggos_coordinator::paxos::moment::{Moment, Now};
use loggos_coordinator::paxos::mutation::{Mutation, Mutations};
use loggos_coordinator::paxos::quorum::Tally;
use loggos_coordinator::paxos::recovery::{Finding, Promises};
use loggos_coordinator::paxos::value::Value;
use loggos_protocol::ids::Timestamp;
use stateright::{Expectation, Model, Property};

const NOW: Now = Now { at: Moment::from_millis(1), wall: Timestamp::new(1) };
/// Proposers are numbered from here, apart from the acceptors.
const PROPOSERS: u16 = 100;

/// What the model varies.
#[derive(Clone, Debug)]
pub struct Cell {
    pub acceptors: u16,
    /// The rounds of the proposers, one each.
    pub rounds: Vec<u64>,
    /// Proposers that begin with everybody's promise.
    pub led: usize,
    /// Slots that anything is proposed in.
    pub slots: u64,
    pub alpha: u64,
    /// A membership that the first proposer wants in the first slot.
    pub next_config: Option<Vec<u16>>,
    /// Writes take time, so that a crash can lose them; otherwise they are durable at once.
    pub slow_disks: bool,
    pub crashes: u32,
    /// A crash may damage the records above a slot.
    pub damage: bool,
    /// A crash may take the whole disk.
    pub disk_loss: bool,
    pub duplicates: u32,
    /// The proposer that announces what is chosen, if any.
    pub announces: Option<usize>,
    pub mutations: Mutations,
    /// Done before the search begins.
    pub script: Vec<Scene>,
}

impl Cell {
    /// Two proposers, nothing special.
    pub fn new(acceptors: u16) -> Self {
        Self {
            acceptors,
            rounds: vec![1, 2],
            led: 0,
            slots: 1,
            alpha: 64,
            next_config: None,
            slow_disks: false,
            crashes: 0,
            damage: false,
            disk_loss: false,
            duplicates: 0,
            announces: None,
            mutations: Mutations::NONE,
            script: Vec::new(),
        }
    }

    fn options(&self) -> Options {
        Options {
            lease: Duration::ZERO,
            election_min: Duration::from_secs(1000),
            election_max: Duration::from_secs(1000),
            alpha: self.alpha,
            ..Options::default()
        }
    }

    fn founding(&self) -> ConfigHistory {
        ConfigHistory::founding(
            config(&(1..=3.max(self.acceptors)).collect::<Vec<_>>()[..self.voters()]),
            self.alpha,
        )
    }

    fn voters(&self) -> usize {
        // With a change ahead the last acceptor is the newcomer.
        usize::from(self.acceptors) - usize::from(self.next_config.is_some())
    }
}

/// A membership of these voters.
fn config(voters: &[u16]) -> Config {
    let member = |n: &u16| Member {
        id: ServerId::new(*n),
        role: Role::Voter,
        peer: String::new(),
        bulk_port: 0,
        client: String::new(),
        token: 0,
    };
    Config::founding(voters.iter().map(member).collect())
}

/// A part of a script.
#[derive(Clone, Debug)]
pub enum Scene {
    Step(Step),
    /// A proposer's messages of this kind reach an acceptor.
    Deliver(usize, u16, &'static str),
    /// All that is under way to an acceptor is lost.
    LoseTo(u16),
    /// All that is under way is lost.
    LoseMessages,
}

/// What may happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A proposer asks for promises.
    Prepare(usize),
    /// A proposer proposes in a slot.
    Propose(usize, u64),
    /// A proposer tells the acceptors what is chosen.
    Announce(usize),
    /// A message arrives; it may stay under way, too.
    Deliver { message: u64, again: bool, answered: bool },
    /// The oldest write of an acceptor is durable; what was held back for it may be lost.
    Persist { acceptor: u16, answered: bool },
    /// An acceptor restarts; writes not yet durable are lost, and with damage the records above a slot.
    Crash { acceptor: u16, damaged_above: Option<u64> },
    /// An acceptor's disk is gone.
    LoseDisk(u16),
    /// It votes again under its old identity.
    Rejoin(u16),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Disk {
    promised: Ballot,
    records: Vec<Record>,
    chosen_upto: Slot,
    uncertain_above: Option<Slot>,
}

impl Disk {
    fn take(&mut self, write: Write) {
        self.promised = self.promised.max(write.promise.unwrap_or_default());
        self.records.extend(write.records);
        self.chosen_upto = self.chosen_upto.max(write.chosen_upto);
        if !write.uncertain {
            self.uncertain_above = None;
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acceptor {
    /// `None` while it has no disk.
    engine: Option<Engine>,
    disk: Disk,
    writes: VecDeque<Write>,
    life: u64,
    /// Slots that were chosen before it lost its disk.
    chosen_before_loss: BTreeSet<Slot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposer {
    ballot: Ballot,
    asked: bool,
    promises: Promises,
    issued: BTreeMap<Slot, Value>,
    tallies: BTreeMap<Slot, Tally>,
    chosen: BTreeMap<Slot, Value>,
    configs: ConfigHistory,
    announced: Slot,
}

impl Proposer {
    fn id(&self) -> ServerId {
        self.ballot.owner()
    }

    fn count(&mut self, from: ServerId, slots: &[SlotRange]) {
        for range in slots {
            for raw in range.first.raw()..=range.last.raw() {
                let slot = Slot::new(raw);
                let Some(value) = self.issued.get(&slot).cloned() else { continue };
                let tally = self.tallies.entry(slot).or_default();
                tally.add(from);
                if tally.is_majority_of(&self.configs.at(slot).voters()) {
                    self.chosen.insert(slot, value);
                }
            }
        }
        let upto = self.chosen_upto();
        for (slot, value) in self.chosen.range(..=upto) {
            if let Some(config) = value.config()
                && *slot > self.configs.latest().0
            {
                self.configs.push(*slot, config.clone());
            }
        }
    }

    fn chosen_upto(&self) -> Slot {
        let mut upto = Slot::ZERO;
        while self.chosen.contains_key(&upto.next()) {
            upto = upto.next();
        }
        upto
    }
}

/// Something shared between states, hashed once.
#[derive(Clone, Debug)]
pub struct Shared<T> {
    value: Arc<T>,
    digest: u64,
}

impl<T: Hash + Clone> Shared<T> {
    fn new(value: T) -> Self {
        Self { digest: digest(&value), value: Arc::new(value) }
    }

    fn change<R>(&mut self, how: impl FnOnce(&mut T) -> R) -> R {
        let outcome = how(Arc::make_mut(&mut self.value));
        self.digest = digest(&*self.value);
        outcome
    }
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

fn digest(value: &impl Hash) -> u64 {
    // With the same keys in every process, so that a state's actions are always listed in the same order.
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A state of the whole cell, and what is remembered of how it came about.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct State {
    acceptors: BTreeMap<u16, Shared<Acceptor>>,
    proposers: Vec<Shared<Proposer>>,
    /// What is under way, by its own hash.
    network: BTreeMap<u64, Shared<Envelope>>,
    crashes: u32,
    duplicates: u32,
    /// Votes that left a server.
    votes: BTreeSet<(ServerId, Ballot, Slot)>,
    /// Chosen by the paper's definition: a majority has accepted one proposal.
    chosen: BTreeSet<(Slot, Ballot)>,
    /// The highest promise that left each server.
    promised: BTreeMap<ServerId, Ballot>,
    applied: BTreeMap<(ServerId, Slot), Value>,
    /// A server took a promise back that had left it.
    forgot: bool,
    stopped: bool,
}

impl State {
    fn issued(&self, slot: Slot, ballot: Ballot) -> &Value {
        let proposer = self.proposers.iter().find(|proposer| proposer.ballot == ballot);
        &proposer.expect("it issued what was voted for").issued[&slot]
    }

    /// What is chosen.
    pub fn chosen(&self) -> impl Iterator<Item = (Slot, Ballot, &Value)> {
        self.chosen.iter().map(|(slot, ballot)| (*slot, *ballot, self.issued(*slot, *ballot)))
    }

    /// A vote has left its server.
    fn count(&mut self, server: ServerId, ballot: Ballot, slot: Slot) {
        self.votes.insert((server, ballot, slot));
        let mut tally = Tally::new();
        for (voter, voted, at) in &self.votes {
            if (*voted, *at) == (ballot, slot) {
                tally.add(*voter);
            }
        }
        let Some(proposer) = self.proposers.iter().find(|proposer| proposer.ballot == ballot) else { return };
        // Its own history knows the membership: it could not have proposed the slot otherwise (I11).
        if tally.is_majority_of(&proposer.configs.at(slot).voters()) {
            self.chosen.insert((slot, ballot));
        }
    }

    fn acceptor(&mut self, server: u16) -> &mut Shared<Acceptor> {
        self.acceptors.get_mut(&server).expect("a known acceptor")
    }
}

impl Cell {
    fn start(&self, server: u16, acceptor: &mut Acceptor) -> Vec<Action> {
        acceptor.life += 1;
        acceptor.writes.clear();
        let disk = &acceptor.disk;
        let recovered = Recovered {
            promised: disk.promised,
            records: disk.records.clone(),
            chosen_upto: disk.chosen_upto,
            snapshot: None,
            configs: self.founding(),
            uncertain_above: disk.uncertain_above,
        };
        let identity = Identity {
            cell: CellId::new(1),
            server: ServerId::new(server),
            incarnation: Incarnation::new(acceptor.life),
        };
        let mut engine = Engine::new(identity, recovered, self.options(), self.mutations, 0);
        let mut actions = Actions::new();
        engine.step(NOW, Event::Start, &mut actions);
        acceptor.engine = Some(engine);
        actions.take()
    }

    fn feed(&self, state: &mut State, server: u16, event: Event, answered: bool) {
        let mut actions = Actions::new();
        let promised = state.acceptor(server).change(|acceptor| {
            let engine = acceptor.engine.as_mut()?;
            engine.step(NOW, event, &mut actions);
            Some(engine.status().promised)
        });
        let left = state.promised.get(&ServerId::new(server)).copied().unwrap_or_default();
        state.forgot |= promised.is_some_and(|promised| promised < left);
        self.perform(state, server, actions.take(), answered);
    }

    fn perform(&self, state: &mut State, server: u16, actions: Vec<Action>, answered: bool) {
        let id = ServerId::new(server);
        let mut durable = Vec::new();
        for action in actions {
            match action {
                Action::Persist(write) => {
                    if self.slow_disks {
                        state.acceptor(server).change(|acceptor| acceptor.writes.push_back(write));
                    } else {
                        durable.push(write.ticket);
                        state.acceptor(server).change(|acceptor| acceptor.disk.take(write));
                    }
                }
                Action::Send(envelope) => {
                    let left = match &envelope.message {
                        Message::Promise(promise) => promise.ballot,
                        Message::Accepted { ballot, slots } => {
                            for range in slots {
                                for slot in range.first.raw()..=range.last.raw() {
                                    state.count(id, *ballot, Slot::new(slot));
                                }
                            }
                            *ballot
                        }
                        // The proposers of this model want nothing else.
                        _ => continue,
                    };
                    let promised = state.promised.entry(id).or_default();
                    *promised = left.max(*promised);
                    if answered {
                        self.promise_or_vote(state, &envelope);
                    }
                }
                Action::Apply { slot, value } => {
                    state.applied.insert((id, slot), value);
                }
                Action::Stop(_) => state.stopped = true,
                _ => {}
            }
        }
        for ticket in durable {
            self.feed(state, server, Event::Persisted(ticket), answered);
        }
    }

    fn send(state: &mut State, proposer: usize, to: u16, message: Message) {
        let envelope = Envelope {
            cell: CellId::new(1),
            from: state.proposers[proposer].id(),
            from_incarnation: Incarnation::new(1),
            to: ServerId::new(to),
            to_incarnation: Incarnation::UNKNOWN,
            config_slot: Slot::ZERO,
            message,
        };
        let envelope = Shared::new(envelope);
        state.network.insert(envelope.digest, envelope);
    }

    /// What `proposer` may propose in `slot` now.
    fn proposal(&self, state: &State, number: usize, slot: Slot) -> Option<Value> {
        let proposer = &state.proposers[number];
        let in_order = proposer.issued.keys().next_back().map_or(Slot::FIRST, |last| last.next()) == slot;
        // The window: beyond it the membership isn't known.
        if !in_order || slot.since(proposer.chosen_upto()) > self.alpha {
            return None;
        }
        let voters = proposer.configs.at(slot).voters();
        // Phase 1 comes first: nobody leads before a majority of the first open slot's voters has promised.
        if !proposer.promises.is_majority_of(&proposer.configs.at(Slot::FIRST).voters()) {
            return None;
        }
        match proposer.promises.find(slot, &voters) {
            Finding::Unknown => None,
            Finding::Bound(value) => Some(value),
            Finding::Free if slot <= proposer.promises.highest_reported() => Some(Value::Noop),
            Finding::Free => match &self.next_config {
                Some(voters) if slot == Slot::FIRST && number == 0 => {
                    Some(Value::Config { config: Arc::new(config(voters)), time: Timestamp::new(0) })
                }
                _ => Some(wish(number)),
            },
        }
    }

    /// An answer has reached its proposer.
    fn promise_or_vote(&self, state: &mut State, envelope: &Envelope) {
        let Some(proposer) = state.proposers.iter_mut().find(|proposer| proposer.id() == envelope.to) else {
            return;
        };
        match &envelope.message {
            Message::Promise(promise) => {
                proposer.change(|proposer| proposer.promises.add(envelope.from, promise.clone()));
            }
            // Without announcements and changes nothing depends on what a proposer knows to be chosen.
            Message::Accepted { ballot, slots }
                if *ballot == proposer.ballot && (self.announces.is_some() || self.slots > 1) =>
            {
                proposer.change(|proposer| proposer.count(envelope.from, slots));
            }
            _ => {}
        }
    }

    fn crash(&self, state: &mut State, server: u16, damaged_above: Option<u64>) {
        let actions = state.acceptor(server).change(|acceptor| {
            if let Some(above) = damaged_above.map(Slot::new) {
                acceptor.disk.records.retain(|record| record.slot() <= above);
                acceptor.disk.uncertain_above = Some(above);
            }
            self.start(server, acceptor)
        });
        self.perform(state, server, actions, true);
        let left = state.promised.get(&ServerId::new(server)).copied().unwrap_or_default();
        let promised = state.acceptors[&server].engine.as_ref().map(|engine| engine.status().promised);
        state.forgot |= promised.is_some_and(|promised| promised < left);
    }
}

fn wish(number: usize) -> Value {
    Value::batch(Timestamp::new(0), vec![Bytes::from(vec![number as u8])])
}

impl Model for Cell {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let mut state = State {
            acceptors: BTreeMap::new(),
            proposers: Vec::new(),
            network: BTreeMap::new(),
            chosen: BTreeSet::new(),
            forgot: false,
            crashes: 0,
            duplicates: 0,
            votes: BTreeSet::new(),
            promised: BTreeMap::new(),
            applied: BTreeMap::new(),
            stopped: false,
        };
        for server in 1..=self.acceptors {
            let mut acceptor = Acceptor {
                engine: None,
                disk: Disk::default(),
                writes: VecDeque::new(),
                life: 0,
                chosen_before_loss: BTreeSet::new(),
            };
            self.start(server, &mut acceptor);
            state.acceptors.insert(server, Shared::new(acceptor));
        }
        for (number, round) in self.rounds.iter().enumerate() {
            let ballot = Ballot::of(*round, ServerId::new(PROPOSERS + number as u16));
            state.proposers.push(Shared::new(Proposer {
                ballot,
                asked: false,
                promises: Promises::new(ballot, Slot::FIRST, self.mutations),
                issued: BTreeMap::new(),
                tallies: BTreeMap::new(),
                chosen: BTreeMap::new(),
                configs: self.founding(),
                announced: Slot::ZERO,
            }));
        }
        for number in 0..self.led {
            state = self.next_state(&state, Step::Prepare(number)).expect("it asks");
            state = self.settle(state);
        }
        vec![self.play(state, &self.script)]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for (number, proposer) in state.proposers.iter().enumerate() {
            if !proposer.asked {
                steps.push(Step::Prepare(number));
            }
            let next = proposer.issued.keys().next_back().map_or(1, |last| last.raw() + 1);
            if next <= self.slots && self.proposal(state, number, Slot::new(next)).is_some() {
                steps.push(Step::Propose(number, next));
            }
            if self.announces == Some(number) && proposer.chosen_upto() > proposer.announced {
                steps.push(Step::Announce(number));
            }
        }
        for (message, envelope) in &state.network {
            let message = *message;
            let prepare = matches!(envelope.message, Message::Prepare { .. });
            for answered in [true, false] {
                // Votes count whether their proposer hears of them or not, and slow disks answer later.
                if answered || (prepare && !self.slow_disks) {
                    steps.push(Step::Deliver { message, again: false, answered });
                    if state.duplicates < self.duplicates {
                        steps.push(Step::Deliver { message, again: true, answered });
                    }
                }
            }
        }
        for (server, acceptor) in &state.acceptors {
            if !acceptor.writes.is_empty() {
                steps.push(Step::Persist { acceptor: *server, answered: true });
                if acceptor.writes[0].promise.is_some() {
                    steps.push(Step::Persist { acceptor: *server, answered: false });
                }
            }
            if acceptor.engine.is_some() && state.crashes < self.crashes {
                if !acceptor.writes.is_empty() {
                    steps.push(Step::Crash { acceptor: *server, damaged_above: None });
                }
                if self.damage && !acceptor.disk.records.is_empty() {
                    steps.push(Step::Crash { acceptor: *server, damaged_above: Some(0) });
                }
                if self.disk_loss {
                    steps.push(Step::LoseDisk(*server));
                }
            }
            if acceptor.engine.is_none() && self.mutations.has(Mutation::RejoinAfterOneInstance) {
                steps.push(Step::Rejoin(*server));
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Prepare(number) => {
                let proposer = &mut state.proposers[number];
                proposer.change(|proposer| proposer.asked = true);
                let message = Message::Prepare {
                    ballot: proposer.ballot,
                    from_slot: Slot::FIRST,
                    released: Ballot::NONE,
                };
                for to in 1..=self.acceptors {
                    Self::send(&mut state, number, to, message.clone());
                }
            }
            Step::Propose(number, raw) => {
                let slot = Slot::new(raw);
                let value = self.proposal(&state, number, slot)?;
                let proposer = &mut state.proposers[number];
                proposer.change(|proposer| proposer.issued.insert(slot, value.clone()));
                let (ballot, chosen_upto) = (proposer.ballot, Slot::ZERO);
                let voters = proposer.configs.at(slot).voters();
                for to in voters {
                    let message = Message::Accept { ballot, slot, value: value.clone(), chosen_upto };
                    Self::send(&mut state, number, to.raw(), message);
                }
            }
            Step::Announce(number) => {
                let proposer = &mut state.proposers[number];
                let chosen_upto = proposer.chosen_upto();
                proposer.change(|proposer| proposer.announced = chosen_upto);
                let heartbeat = Heartbeat {
                    ballot: proposer.ballot,
                    chosen_upto,
                    round: 1,
                    last_proposed: Slot::ZERO,
                    touches: 0,
                    released: false,
                    clock: NOW.at,
                };
                for to in 1..=self.acceptors {
                    Self::send(&mut state, number, to, Message::Heartbeat(heartbeat.clone()));
                }
            }
            Step::Deliver { message, again, answered } => {
                let envelope = Envelope::clone(state.network.get(&message)?);
                if again {
                    state.duplicates += 1;
                } else {
                    state.network.remove(&message);
                }
                let server = envelope.to.raw();
                self.feed(&mut state, server, Event::Received(envelope), answered);
            }
            Step::Persist { acceptor: server, answered } => {
                let ticket = state.acceptor(server).change(|acceptor| {
                    let write = acceptor.writes.pop_front()?;
                    let ticket = write.ticket;
                    acceptor.disk.take(write);
                    Some(ticket)
                })?;
                self.feed(&mut state, server, Event::Persisted(ticket), answered);
            }
            Step::Crash { acceptor, damaged_above } => {
                state.crashes += 1;
                self.crash(&mut state, acceptor, damaged_above);
            }
            Step::LoseDisk(server) => {
                state.crashes += 1;
                let chosen = state.chosen.iter().map(|(slot, _)| *slot).collect();
                state.acceptor(server).change(|acceptor| {
                    acceptor.engine = None;
                    acceptor.disk = Disk::default();
                    acceptor.writes.clear();
                    acceptor.chosen_before_loss = chosen;
                });
                // Its promise died with its memory: what is checked is the promise of what has one.
                state.promised.remove(&ServerId::new(server));
            }
            Step::Rejoin(server) => {
                let chosen: BTreeSet<Slot> = state.chosen.iter().map(|(slot, _)| *slot).collect();
                // The published shortcut: one instance, started and completed after the rebuild began.
                if chosen.is_subset(&state.acceptors[&server].chosen_before_loss) {
                    return None;
                }
                let actions = state.acceptor(server).change(|acceptor| self.start(server, acceptor));
                self.perform(&mut state, server, actions, true);
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I1: a promise that has left is never taken back", |_, state: &State| {
                !state.forgot
            }),
            Property::always("I5: one value per slot is chosen", |_, state: &State| {
                state.chosen().all(|one| state.chosen().all(|other| one.0 != other.0 || one.2 == other.2))
            }),
            Property::always("I6: above a chosen ballot nothing else is issued", |_, state: &State| {
                state.chosen().all(|(slot, ballot, value)| {
                    let higher = state.proposers.iter().filter(|proposer| proposer.ballot > ballot);
                    higher.filter_map(|proposer| proposer.issued.get(&slot)).all(|issued| issued == value)
                })
            }),
            Property::always("I8: what is applied is chosen", |_, state: &State| {
                let chosen = |slot: Slot, applied: &Value| {
                    state.chosen().any(|(known, _, value)| known == slot && value == applied)
                };
                state.applied.iter().all(|((_, slot), value)| chosen(*slot, value))
            }),
            Property::always("nobody finds proof of broken safety", |_, state: &State| !state.stopped),
            Property::sometimes("a value is chosen", |_, state: &State| {
                state.chosen().any(|(_, _, value)| matches!(value, Value::Batch(_)))
            }),
            Property::sometimes("a hole is filled", |_, state: &State| {
                let noop =
                    state.chosen().any(|(slot, _, value)| slot == Slot::FIRST && *value == Value::Noop);
                noop && state.chosen().any(|(slot, _, _)| slot > Slot::FIRST)
            }),
            Property::sometimes("a membership takes effect", |model: &Self, state: &State| {
                state.chosen().any(|(slot, ballot, _)| {
                    let proposer = state.proposers.iter().find(|proposer| proposer.ballot == ballot);
                    proposer.is_some_and(|proposer| proposer.configs.at(slot) != model.founding().at(slot))
                })
            }),
            Property::sometimes("a value survives its proposer", |_, state: &State| {
                state.chosen().any(|(slot, ballot, value)| {
                    let earlier = state.proposers.iter().filter(|proposer| proposer.ballot < ballot);
                    matches!(value, Value::Batch(_))
                        && earlier
                            .filter_map(|proposer| proposer.issued.get(&slot))
                            .any(|issued| issued == value)
                })
            }),
        ]
    }
}

impl Cell {
    /// Delivers everything that is under way.
    fn settle(&self, mut state: State) -> State {
        while let Some(message) = state.network.keys().next().copied() {
            let step = Step::Deliver { message, again: false, answered: true };
            state = self.next_state(&state, step).expect("a message is gone");
        }
        let servers: Vec<u16> = state.acceptors.keys().copied().collect();
        for server in servers {
            while !state.acceptors[&server].writes.is_empty() {
                let step = Step::Persist { acceptor: server, answered: true };
                state = self.next_state(&state, step).expect("a write is gone");
            }
        }
        state
    }

    /// Plays a script.
    pub fn play(&self, mut state: State, script: &[Scene]) -> State {
        for scene in script {
            state = match scene {
                Scene::Step(step) => {
                    let next = self.next_state(&state, step.clone());
                    next.unwrap_or_else(|| panic!("can't happen: {step:?}"))
                }
                Scene::Deliver(proposer, to, kind) => self.deliver(&state, *proposer, *to, kind),
                Scene::LoseTo(to) => {
                    let mut state = state;
                    state.network.retain(|_, envelope| envelope.to.raw() != *to);
                    state
                }
                Scene::LoseMessages => State { network: BTreeMap::new(), ..state },
            };
        }
        state
    }

    /// The properties that don't hold in this state.
    pub fn broken(&self, state: &State) -> Vec<&'static str> {
        let always = self.properties().into_iter().filter(|p| p.expectation == Expectation::Always);
        always.filter(|property| !(property.condition)(self, state)).map(|property| property.name).collect()
    }

    /// Delivers the messages of a proposer to an acceptor, of one kind.
    fn deliver(&self, state: &State, proposer: usize, to: u16, kind: &str) -> State {
        let from = PROPOSERS + proposer as u16;
        let fits = |envelope: &Envelope| {
            (envelope.from.raw(), envelope.to.raw(), envelope.message.name()) == (from, to, kind)
        };
        let waiting: Vec<u64> = state
            .network
            .iter()
            .filter(|(_, envelope)| fits(envelope))
            .map(|(message, _)| *message)
            .collect();
        assert!(!waiting.is_empty(), "no {kind} from {from} to {to}");
        let mut state = state.clone();
        for message in waiting {
            let step = Step::Deliver { message, again: false, answered: true };
            state = self.next_state(&state, step).expect("a message is gone");
        }
        state
    }
}
