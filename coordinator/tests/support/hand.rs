//! Engines joined by hand: a handful of servers, a network that is a queue, disks that are maps, and a clock that
//! jumps from event to event. No faults of its own accord: a test cuts links, stops servers and stalls disks itself.
//!
//! Used by `engine.rs`, `membership.rs` and `dialogues.rs`; whole cells under random faults are the simulator's.

#![allow(dead_code, reason = "each test binary uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use loggos_coordinator::paxos::ballot::{Ballot, CellId, Incarnation, ServerId, Slot};
use loggos_coordinator::paxos::codec::decode_history;
use loggos_coordinator::paxos::engine::Engine;
use loggos_coordinator::paxos::event::{
    Action, Actions, Event, Identity, LeaderView, Options, ReadId, Record, Recovered, SnapshotMark, Status,
    Write,
};
use loggos_coordinator::paxos::membership::{Config, ConfigHistory, Member, Role};
use loggos_coordinator::paxos::message::{Envelope, Message};
use loggos_coordinator::paxos::moment::{Moment, Now};
use loggos_coordinator::paxos::mutation::Mutations;
use loggos_coordinator::paxos::value::Value;
use loggos_protocol::ids::Timestamp;

/// A message takes this long, unless a test says otherwise.
const DELAY: Duration = Duration::from_millis(1);
/// A write takes this long.
const WRITE: Duration = Duration::from_micros(200);
/// More events than any test needs: one that doesn't come to rest fails here.
const EVENTS_LIMIT: usize = 2_000_000;

/// What was applied up to a slot, and the engine's part of it.
pub type Snapshot = (Slot, Vec<(Slot, Value)>, Bytes);

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub promised: Ballot,
    pub records: Vec<Record>,
    pub chosen_upto: Slot,
    pub snapshot: Option<Snapshot>,
    pub uncertain_above: Option<Slot>,
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

/// One server.
pub struct Node {
    pub engine: Option<Engine>,
    pub disk: Disk,
    pub incarnation: u64,
    /// Applied in this life, above the snapshot it began with.
    pub applied: Vec<(Slot, Value)>,
    pub view: LeaderView,
    pub reads: BTreeMap<ReadId, bool>,
    /// Everything else it was told to do.
    pub told: Vec<Action>,
    /// Its writes don't finish.
    pub stalled: bool,
    writes: Vec<Write>,
    receiving: Vec<u8>,
    founding: ConfigHistory,
    /// What its clock adds to the true time.
    pub clock_ahead: Duration,
}

/// What is under way.
enum Due {
    Deliver(Envelope),
    Written(ServerId, u64),
    Feed(ServerId, u64, Event),
}

/// The servers and all between them.
pub struct Cell {
    pub options: Options,
    pub mutations: Mutations,
    pub at: Moment,
    pub nodes: BTreeMap<ServerId, Node>,
    queue: BTreeMap<(Moment, u64), Due>,
    sequence: u64,
    /// How long a message takes.
    pub delay: Duration,
    /// Directed links that lose everything.
    pub cut: BTreeSet<(ServerId, ServerId)>,
    /// Kinds of messages that are lost.
    pub lost: BTreeSet<&'static str>,
    /// Every message delivered, in order.
    pub trace: Vec<(Moment, Envelope)>,
}

pub fn id(n: u16) -> ServerId {
    ServerId::new(n)
}

pub fn member(n: u16, role: Role) -> Member {
    Member {
        id: id(n),
        role,
        peer: format!("host{n}:2888"),
        bulk_port: 3888,
        client: format!("host{n}:2181"),
        token: 0,
    }
}

pub fn entry(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

impl Cell {
    /// Servers 1 to `voters`, started.
    pub fn of(voters: u16) -> Self {
        Self::with(
            (1..=voters).map(|n| member(n, Role::Voter)).collect(),
            Options::default(),
            Mutations::NONE,
        )
    }

    /// These members, started.
    pub fn with(members: Vec<Member>, options: Options, mutations: Mutations) -> Self {
        let mut cell = Self {
            options,
            mutations,
            at: Moment::from_millis(1000),
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            delay: DELAY,
            cut: BTreeSet::new(),
            lost: BTreeSet::new(),
            trace: Vec::new(),
        };
        let founding = ConfigHistory::founding(Config::founding(members.clone()), cell.options.alpha);
        for member in members {
            cell.add(member.id, founding.clone());
            cell.start(member.id);
        }
        cell
    }

    /// A server with an empty disk that knows this membership; not started.
    pub fn add(&mut self, server: ServerId, founding: ConfigHistory) {
        let node = Node {
            engine: None,
            disk: Disk::default(),
            incarnation: 0,
            applied: Vec::new(),
            view: LeaderView::default(),
            reads: BTreeMap::new(),
            told: Vec::new(),
            stalled: false,
            writes: Vec::new(),
            receiving: Vec::new(),
            founding,
            clock_ahead: Duration::ZERO,
        };
        self.nodes.insert(server, node);
    }

    pub fn start(&mut self, server: ServerId) {
        let (options, mutations) = (self.options.clone(), self.mutations);
        let node = self.nodes.get_mut(&server).unwrap();
        node.incarnation += 1;
        let snapshot = node.disk.snapshot.clone();
        let configs = match &snapshot {
            Some((_, _, bytes)) => decode_history(bytes.clone(), options.alpha).unwrap(),
            None => node.founding.clone(),
        };
        let recovered = Recovered {
            promised: node.disk.promised,
            records: node.disk.records.clone(),
            chosen_upto: node.disk.chosen_upto,
            snapshot: snapshot
                .as_ref()
                .map(|(slot, state, _)| SnapshotMark { slot: *slot, bytes: size(state) }),
            configs,
            uncertain_above: node.disk.uncertain_above,
        };
        let identity =
            Identity { cell: CellId::new(7), server, incarnation: Incarnation::new(node.incarnation) };
        node.applied = snapshot.map(|(_, state, _)| state).unwrap_or_default();
        node.view = LeaderView::default();
        node.writes.clear();
        node.receiving.clear();
        let seed = u64::from(server.raw()) * 1000 + node.incarnation;
        node.engine = Some(Engine::new(identity, recovered, options, mutations, seed));
        self.feed(server, Event::Start);
    }

    /// Pulls the plug: what was not durable is gone.
    pub fn crash(&mut self, server: ServerId) {
        let node = self.nodes.get_mut(&server).unwrap();
        node.engine = None;
        node.writes.clear();
        node.stalled = false;
    }

    pub fn cut_off(&mut self, server: ServerId) {
        let others: Vec<_> = self.nodes.keys().copied().filter(|other| *other != server).collect();
        for other in others {
            self.cut.insert((server, other));
            self.cut.insert((other, server));
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.lost.clear();
    }

    pub fn feed(&mut self, server: ServerId, event: Event) {
        let node = self.nodes.get_mut(&server).unwrap();
        let Some(engine) = &mut node.engine else { return };
        let at = self.at.after(node.clock_ahead);
        let now = Now { at, wall: Timestamp::new((at.as_micros() / 1000) as i64) };
        let mut actions = Actions::new();
        engine.step(now, event, &mut actions);
        for action in actions.take() {
            self.perform(server, action);
        }
    }

    fn later(&mut self, after: Duration, due: Due) {
        self.sequence += 1;
        self.queue.insert((self.at.after(after), self.sequence), due);
    }

    fn perform(&mut self, server: ServerId, action: Action) {
        let node = self.nodes.get_mut(&server).unwrap();
        let life = node.incarnation;
        match action {
            Action::Persist(write) => {
                node.writes.push(write);
                self.later(WRITE, Due::Written(server, life));
            }
            Action::Send(envelope) => self.later(self.delay, Due::Deliver(envelope)),
            Action::Apply { slot, value } => node.applied.push((slot, value)),
            Action::Leader(view) => node.view = view,
            Action::ReadReady(read) => assert!(node.reads.insert(read, true).is_none(), "answered twice"),
            Action::ReadRefused(read) => assert!(node.reads.insert(read, false).is_none(), "answered twice"),
            Action::TakeSnapshot { slot, head } => {
                assert_eq!(node.applied.last().unwrap().0, slot);
                let bytes = size(&node.applied);
                node.disk.snapshot = Some((slot, node.applied.clone(), head));
                self.later(WRITE, Due::Feed(server, life, Event::SnapshotStored { slot, bytes }));
            }
            Action::Release { upto } => node.disk.records.retain(|record| record.slot() > upto),
            Action::SendSnapshotChunk { mut envelope } => {
                if let Message::SnapChunk { offset, bytes, .. } = &mut envelope.message {
                    // Chunks of one byte say only how much there is; the state travels by reference below.
                    *bytes = Bytes::from(vec![0; (*offset < 3) as usize]);
                }
                self.later(self.delay, Due::Deliver(envelope));
            }
            Action::StoreSnapshotChunk { slot, offset, .. } => {
                let event = if offset < 2 {
                    Event::SnapshotChunkStored { slot, offset: offset + 1 }
                } else {
                    let whole = self.nodes.values().find_map(|other| match &other.disk.snapshot {
                        Some(snapshot) if snapshot.0 == slot => Some(snapshot.clone()),
                        _ => None,
                    });
                    let (slot, state, head) = whole.unwrap();
                    let bytes = size(&state);
                    self.nodes.get_mut(&server).unwrap().disk.snapshot = Some((slot, state, head.clone()));
                    Event::SnapshotReceived { slot, bytes, head }
                };
                self.later(WRITE, Due::Feed(server, life, event));
            }
            Action::Restore { slot } => {
                let (stored, state, _) = node.disk.snapshot.clone().unwrap();
                assert_eq!(stored, slot);
                node.applied = state;
                node.told.push(Action::Restore { slot });
            }
            Action::Stop(violation) => panic!("server {server} stopped: {violation}"),
            other => node.told.push(other),
        }
    }

    /// Runs for `span`.
    pub fn run(&mut self, span: Duration) {
        let end = self.at.after(span);
        for _ in 0..EVENTS_LIMIT {
            let deadline = |node: &Node| {
                let own = node.engine.as_ref().map_or(Moment::NEVER, Engine::next_deadline);
                if own == Moment::NEVER {
                    own
                } else {
                    Moment::from_micros(own.as_micros().saturating_sub(node.clock_ahead.as_micros() as u64))
                }
            };
            let tick = self.nodes.iter().map(|(server, node)| (deadline(node), *server)).min();
            let due = self.queue.keys().next().map(|(at, _)| *at).unwrap_or(Moment::NEVER);
            let (tick_at, server) = tick.unwrap();
            let next = tick_at.min(due);
            if next > end {
                self.at = end;
                return;
            }
            self.at = self.at.max(next);
            if due <= tick_at {
                let (_, due) = self.queue.pop_first().unwrap();
                self.happen(due);
            } else {
                self.feed(server, Event::Tick);
            }
        }
        panic!("it does not come to rest");
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Deliver(envelope) => {
                let lost = self.cut.contains(&(envelope.from, envelope.to))
                    || self.lost.contains(envelope.message.name());
                if !lost && self.nodes.get(&envelope.to).is_some_and(|node| node.engine.is_some()) {
                    self.trace.push((self.at, envelope.clone()));
                    self.feed(envelope.to, Event::Received(envelope));
                }
            }
            Due::Written(server, life) => {
                let node = self.nodes.get_mut(&server).unwrap();
                if node.incarnation == life
                    && node.engine.is_some()
                    && !node.stalled
                    && !node.writes.is_empty()
                {
                    let write = node.writes.remove(0);
                    let ticket = write.ticket;
                    node.disk.take(write);
                    self.feed(server, Event::Persisted(ticket));
                }
            }
            Due::Feed(server, life, event) => {
                if self.nodes[&server].incarnation == life {
                    self.feed(server, event);
                }
            }
        }
    }

    /// Lets a stalled disk go on.
    pub fn unstall(&mut self, server: ServerId) {
        let node = self.nodes.get_mut(&server).unwrap();
        node.stalled = false;
        let (waiting, life) = (node.writes.len(), node.incarnation);
        for _ in 0..waiting {
            self.later(WRITE, Due::Written(server, life));
        }
    }

    /// Runs until `done`, at most for ten virtual seconds.
    pub fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            if done(self) {
                return;
            }
            self.run(Duration::from_millis(1));
        }
        panic!("never: {what}");
    }

    /// The server that leads and may answer reads, if there is one.
    pub fn leader(&self) -> Option<ServerId> {
        let leads = |(_, node): &(&ServerId, &Node)| node.engine.is_some() && node.view.leading;
        self.nodes.iter().filter(leads).max_by_key(|(_, node)| node.view.ballot).map(|(server, _)| *server)
    }

    pub fn elect(&mut self) -> ServerId {
        self.until("a leader", |cell| cell.leader().is_some());
        self.leader().unwrap()
    }

    /// Makes `server` the leader.
    pub fn elect_this(&mut self, server: ServerId) {
        let leader = self.elect();
        if leader != server {
            self.run(Duration::from_millis(200));
            self.feed(leader, Event::Transfer(Some(server)));
            self.until("the wanted leader", |cell| cell.leader() == Some(server));
        }
    }

    pub fn propose(&mut self, server: ServerId, text: &str) {
        self.feed(server, Event::Propose(vec![entry(text)]));
    }

    pub fn status(&self, server: ServerId) -> Status {
        self.nodes[&server].engine.as_ref().unwrap().status()
    }

    /// The entries that `server` has applied, in order.
    pub fn entries(&self, server: ServerId) -> Vec<String> {
        let batches = self.nodes[&server].applied.iter().filter_map(|(_, value)| match value {
            Value::Batch(batch) => Some(batch.entries.iter()),
            _ => None,
        });
        batches.flatten().map(|entry| String::from_utf8(entry.to_vec()).unwrap()).collect()
    }

    /// I8: what was applied anywhere is a prefix of what was applied elsewhere, without gaps.
    pub fn check(&self) {
        for one in self.nodes.values() {
            for (n, (slot, _)) in one.applied.iter().enumerate() {
                assert_eq!(slot.raw(), n as u64 + 1, "a gap");
            }
            for other in self.nodes.values() {
                let both = one.applied.len().min(other.applied.len());
                assert_eq!(one.applied[..both], other.applied[..both]);
            }
        }
    }
}

fn size(state: &[(Slot, Value)]) -> u64 {
    state.len() as u64
}
