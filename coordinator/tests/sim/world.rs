//! The world: one thread, one seed, virtual time. Servers, disks, links, clients and faults are events in one queue;
//! the same seed gives the same run.

mod disks;
mod links;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use loggos_coordinator::paxos::ballot::{Incarnation, ServerId, Slot};
use loggos_coordinator::paxos::event::{Action, Actions, Event, Status};
use loggos_coordinator::paxos::membership::{Config, Member, Role};
use loggos_coordinator::paxos::message::Envelope;
use loggos_coordinator::paxos::moment::Moment;
use loggos_coordinator::tree::Command;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::clocks::{Clock, True};
use crate::coverage::Seen;
use crate::disk::{Blob, Torn};
use crate::facts::{Facts, Lease, Observation};
use crate::faults::Operator;
use crate::host::{Output, ToClient, ToServer};
use crate::invariants::Broken;
use crate::judge::Judge;
use crate::network::Network;
use crate::plan::Plan;
use crate::replica::{ClientId, Effect, Fence};
use crate::server::Server;
use crate::workload::Workload;

/// How often a host looks at its connections.
const HOST_TICK: True = 50_000;
/// The way between a client and a server.
const CLIENT_WAY: True = 200;

/// Something that will happen.
#[derive(Debug)]
pub enum Happening {
    /// A message arrives; the number is its place among all messages sent.
    Deliver(Box<Envelope>, u64),
    /// An engine's deadline.
    Wake(ServerId, Incarnation),
    /// A group of writes is durable.
    DiskDone(ServerId, Incarnation),
    /// A snapshot taken here is durable.
    SnapshotDone(ServerId, Incarnation, Slot, Blob),
    /// A received piece of a snapshot is stored.
    ChunkDone(ServerId, Incarnation, Chunk),
    /// A host looks around.
    Tick(ServerId, Incarnation),
    /// A process begins.
    Restart(ServerId),
    /// A paused process goes on.
    Resume(ServerId),
    /// A client does something.
    Act(ClientId),
    /// A client's message arrives.
    ToServer(ServerId, ToServer),
    /// A server's message to a client arrives.
    ToClient(ClientId, Fence, ToClient),
    /// Something fails.
    Fault,
    /// A machine asks to be let in.
    AskIn(u64),
}

/// A piece of a snapshot.
#[derive(Clone, Debug)]
pub struct Chunk {
    slot: Slot,
    offset: u64,
    total: u64,
    bytes: bytes::Bytes,
}

struct Scheduled {
    at: True,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Everything.
pub struct World {
    /// What was decided beforehand.
    pub plan: Plan,
    /// Chance.
    pub rng: SmallRng,
    /// Facts and rules.
    pub judge: Judge,
    /// All identities that ever were.
    pub servers: BTreeMap<ServerId, Server>,
    /// The links.
    pub network: Network,
    /// The clients.
    pub workload: Workload,
    /// Who changes the membership.
    pub operator: Operator,
    /// Whether faults still happen.
    pub failing: bool,
    founding: Config,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
}

/// What every step may end with.
pub type Step = Result<(), Broken>;

impl World {
    /// A world as the plan says, before its first moment.
    pub fn new(plan: Plan, seed: u64, trace: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x5eed);
        let count = plan.founders + u16::from(plan.witness);
        let member = |n: u16| Member {
            id: ServerId::new(n),
            role: if n > plan.founders { Role::Witness } else { Role::Voter },
            peer: format!("host{n}:2888"),
            bulk_port: 2889,
            client: format!("host{n}:2181"),
            token: 0,
        };
        let founding = Config::founding((1..=count).map(member).collect());
        let mut facts = Facts::new(founding.clone(), plan.options.alpha, plan.options.lease);
        facts.clocks_bounded = !plan.wild_clocks;
        facts.lease_reads = plan.options.lease_reads;
        let workload = Workload::new(plan.clients, &mut rng);
        let network = Network::new(plan.weather.clone());
        let mut world = Self {
            operator: Operator::new(plan.spares),
            plan,
            rng,
            judge: Judge::new(facts, trace),
            servers: BTreeMap::new(),
            network,
            workload,
            failing: true,
            founding: founding.clone(),
            queue: BinaryHeap::new(),
            order: 0,
        };
        for member in founding.members {
            world.add_server(member.id, member.peer);
        }
        for client in world.workload.ids() {
            world.after(1_000, Happening::Act(client));
        }
        world.after(SETTLING, Happening::Fault);
        world
    }

    /// A new identity, about to start.
    pub fn add_server(&mut self, id: ServerId, peer: String) {
        let drift = self.plan.drift_ppm;
        let drift = self.rng.random_range(-drift..=drift);
        self.judge.coverage.count(if self.plan.wild_clocks {
            Seen::ClockBeyondBound
        } else {
            Seen::ClockDrift
        });
        let mut clock =
            Clock::new(self.rng.random_range(1..1_000_000_000), 0, self.rng.random_range(-5_000..5_000));
        clock.set_drift(self.now(), drift);
        self.servers.insert(id, Server::new(id, peer, clock));
        let soon = self.rng.random_range(0..50_000);
        self.after(soon, Happening::Restart(id));
    }

    /// True time.
    pub fn now(&self) -> True {
        self.judge.facts.now
    }

    /// Something will happen so many microseconds from now.
    pub fn after(&mut self, micros: True, what: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at: self.now() + micros, order: self.order, what }));
    }

    /// Lets everything happen until `end`.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn run_until(&mut self, end: True) -> Step {
        while self.queue.peek().is_some_and(|Reverse(next)| next.at <= end) {
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.judge.facts.now = self.judge.facts.now.max(next.at);
            self.happen(next.what)?;
        }
        self.judge.facts.now = end;
        Ok(())
    }

    fn happen(&mut self, what: Happening) -> Step {
        let concerned = match &what {
            Happening::Deliver(envelope, _) => Some(envelope.to),
            Happening::Wake(id, _)
            | Happening::DiskDone(id, _)
            | Happening::SnapshotDone(id, ..)
            | Happening::ChunkDone(id, ..)
            | Happening::Tick(id, _)
            | Happening::ToServer(id, _) => Some(*id),
            _ => None,
        };
        if let Some(server) = concerned.and_then(|id| self.servers.get_mut(&id))
            && let Some(waiting) = &mut server.paused
        {
            waiting.push_back(what);
            return Ok(());
        }
        match what {
            Happening::Deliver(envelope, number) => self.deliver(*envelope, number),
            Happening::Wake(id, life) => self.wake(id, life),
            Happening::DiskDone(id, life) => self.disk_done(id, life),
            Happening::SnapshotDone(id, life, slot, blob) => self.snapshot_done(id, life, slot, blob),
            Happening::ChunkDone(id, life, chunk) => self.chunk_done(id, life, &chunk),
            Happening::Tick(id, life) => self.tick(id, life),
            Happening::Restart(id) => self.start(id),
            Happening::Resume(id) => self.resume(id),
            Happening::Act(client) => {
                self.act(client);
                Ok(())
            }
            Happening::ToServer(id, message) => self.server_receives(id, message),
            Happening::ToClient(client, fence, message) => self.client_receives(client, fence, message),
            Happening::Fault => self.fault(),
            Happening::AskIn(token) => self.ask_in(token),
        }
    }

    /// A process begins, with what the disk remembers.
    pub fn start(&mut self, id: ServerId) -> Step {
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.life.is_none() && !server.gone)
        else {
            return Ok(());
        };
        let (recovered, replica) = server.recover(&self.founding, self.plan.options.alpha);
        if !recovered.records.is_empty() {
            self.judge.coverage.count(Seen::Recovered);
        }
        let at = server.clock.read(self.judge.facts.now);
        let incarnation = Incarnation::new(server.lives + 1);
        let released = server.disk.released;
        let seen = Observation::Started { server: id, recovered: &recovered, released, at };
        self.judge.see(&seen)?;
        let seed = self.rng.random();
        server.begin(recovered, replica, &self.plan, seed);
        self.after(HOST_TICK, Happening::Tick(id, incarnation));
        self.run_server(id, Event::Start)
    }

    /// A process ends: what was being written may be durable or not, what was not is lost.
    pub fn kill(&mut self, id: ServerId) -> Step {
        let Some(server) = self.servers.get_mut(&id) else { return Ok(()) };
        server.paused = None;
        let Some(life) = server.life.take() else { return Ok(()) };
        self.judge.say(|| format!("{id} is killed"));
        self.judge.facts.leases.remove(&id);
        if server.disk.is_receiving() {
            self.judge.coverage.count(Seen::SnapshotCutShort);
        }
        let (torn, writes) = server.disk.crash(&mut self.rng);
        let coverage = &mut self.judge.coverage;
        coverage.count(if torn == Torn::Idle { Seen::CrashIdle } else { Seen::CrashWhileWriting });
        match torn {
            Torn::Idle => {}
            Torn::Lost => coverage.count(Seen::WriteLostWhole),
            Torn::Part => coverage.count(Seen::TornGroup),
            Torn::Whole => coverage.count(Seen::WriteKeptUnacknowledged),
        }
        for write in &writes {
            self.judge.durable(id, write)?;
        }
        self.judge.see(&Observation::Ended { server: id })?;
        for (client, fence) in life.host.clients() {
            self.after(CLIENT_WAY, Happening::ToClient(client, fence, ToClient::Closed));
        }
        Ok(())
    }

    fn resume(&mut self, id: ServerId) -> Step {
        let Some(waiting) = self.servers.get_mut(&id).and_then(|server| server.paused.take()) else {
            return Ok(());
        };
        self.judge.say(|| format!("{id} goes on"));
        for what in waiting {
            self.happen(what)?;
        }
        Ok(())
    }

    /// Feeds an event, and what follows from it on this server.
    pub fn run_server(&mut self, id: ServerId, event: Event) -> Step {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.step(id, &event)?;
            self.drain_host(id, &mut events)?;
        }
        self.schedule_wake(id);
        Ok(())
    }

    fn step(&mut self, id: ServerId, event: &Event) -> Step {
        let now = self.now();
        let Some(server) = self.servers.get_mut(&id) else { return Ok(()) };
        let Some(life) = server.life.as_mut() else { return Ok(()) };
        let at = server.clock.now(now);
        let mut actions = Actions::new();
        life.engine.step(at, event.clone(), &mut actions);
        let actions = actions.take();
        let after = life.engine.status();
        let before = std::mem::replace(&mut life.status, after);
        self.judge.facts.leases.remove(&id);
        if let Some(lease) = lease_of(&life.status, &server.clock) {
            self.judge.facts.leases.insert(id, lease);
        }
        self.judge.see(&Observation::Stepped {
            server: id,
            before: &before,
            event,
            actions: &actions,
            after: &life.status,
            at: at.at,
            disk: &server.disk,
        })?;
        for action in actions {
            self.perform(id, action, at.at)?;
        }
        Ok(())
    }

    fn perform(&mut self, id: ServerId, action: Action, at: Moment) -> Step {
        let Some(server) = self.servers.get_mut(&id) else { return Ok(()) };
        let Some(life) = server.life.as_mut() else { return Ok(()) };
        let incarnation = life.incarnation;
        match action {
            Action::Persist(write) => {
                server.disk.push(write);
                self.begin_group(id);
            }
            Action::Send(envelope) => self.send(envelope),
            Action::Apply { slot, value } => {
                let host = &mut life.host;
                let effects =
                    life.replica.apply(&value, |effect, replica| host.applied(slot, effect, replica, at));
                if self.judge.facts.applied(slot, &effects) {
                    self.judge.count_effects(&effects);
                }
                let replica = &life.replica;
                let seen =
                    Observation::Applied { server: id, slot, value: &value, effects: &effects, replica };
                self.judge.see(&seen)?;
            }
            Action::Leader(view) => life.host.leader(view, &life.replica, at),
            Action::ReadReady(read) => life.host.read_ready(read, &life.replica),
            Action::ReadRefused(read) => life.host.read_refused(read),
            Action::Touched { payload, .. } => life.host.touched(&payload, at),
            Action::TouchesRegistered { batch } => life.host.touches_registered(batch, &life.replica),
            Action::Reconfigured { id, outcome } => self.reconfigured(id, outcome),
            Action::TakeSnapshot { slot, head } => {
                let blob = Blob { head, state: life.replica.snapshot() };
                let time = self.rng.random_range(1_000..200_000);
                self.after(time, Happening::SnapshotDone(id, incarnation, slot, blob));
            }
            Action::Release { upto } => server.disk.release(upto),
            Action::SendSnapshotChunk { envelope } => self.send_chunk(id, envelope),
            Action::StoreSnapshotChunk { slot, offset, total, bytes } => {
                let time = self.rng.random_range(50..2_000);
                let chunk = Chunk { slot, offset, total, bytes };
                self.after(time, Happening::ChunkDone(id, incarnation, chunk));
            }
            Action::Restore { slot } => {
                let blob = server.disk.snapshot_at(slot).expect("it was stored before it is taken up");
                life.replica = crate::replica::Replica::restore(&blob.state);
                life.host.restored();
                self.judge.coverage.count(Seen::SnapshotTransferred);
                self.judge.see(&Observation::Restored { server: id, slot, replica: &life.replica })?;
            }
            Action::Peers(_) => {}
            Action::Stop(violation) => {
                return Err(Broken {
                    rule: "the engine saw safety broken",
                    detail: format!("server {id}: {violation}"),
                });
            }
        }
        Ok(())
    }

    fn drain_host(&mut self, id: ServerId, events: &mut VecDeque<Event>) -> Step {
        let Some(life) = self.servers.get_mut(&id).and_then(|server| server.life.as_mut()) else {
            return Ok(());
        };
        let applied = life.status.chosen_upto;
        for output in life.host.take() {
            match output {
                Output::Engine(event) => events.push_back(event),
                Output::Propose(entries) => {
                    self.judge.facts.submitted.extend(entries.iter().cloned());
                    events.push_back(Event::Propose(entries));
                }
                Output::Client(client, fence, message) => {
                    self.after(CLIENT_WAY, Happening::ToClient(client, fence, message));
                }
                Output::ReadAsked(read) => self.judge.see(&Observation::ReadAsked { server: id, read })?,
                Output::ReadServed(read) => {
                    self.judge.see(&Observation::ReadServed { server: id, read, applied })?
                }
                Output::Acknowledged(slot) => self.judge.see(&Observation::Acknowledged { slot })?,
                Output::Replied(fence, zxid) => self.judge.see(&Observation::Replied { fence, zxid })?,
                Output::Watching(fence, path, zxid) => {
                    self.judge.see(&Observation::Watching { fence, path: &path, zxid })?;
                }
                Output::WatchFired(fence, path, zxid) => {
                    self.judge.see(&Observation::WatchFired { fence, path: &path, zxid })?;
                }
                Output::Safe(session, from, timeout_ms) => {
                    self.judge.facts.promise_time(session, from, timeout_ms)
                }
            }
        }
        Ok(())
    }

    fn schedule_wake(&mut self, id: ServerId) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        let Some(life) = server.life.as_mut() else { return };
        let Some(at) = server.clock.when(life.engine.next_deadline()) else { return };
        let at = at.max(self.judge.facts.now + 1);
        if at < life.wake_at || life.wake_at <= self.judge.facts.now {
            life.wake_at = at;
            let incarnation = life.incarnation;
            self.after(at - self.judge.facts.now, Happening::Wake(id, incarnation));
        }
    }

    fn wake(&mut self, id: ServerId, incarnation: Incarnation) -> Step {
        let now = self.now();
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.lives_as(incarnation)) else {
            return Ok(());
        };
        let due = server.clock.read(now);
        let life = server.life.as_mut().expect("it lives");
        life.wake_at = 0;
        if life.engine.next_deadline() <= due {
            return self.run_server(id, Event::Tick);
        }
        self.schedule_wake(id);
        Ok(())
    }

    fn tick(&mut self, id: ServerId, incarnation: Incarnation) -> Step {
        let now = self.now();
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.lives_as(incarnation)) else {
            return Ok(());
        };
        let at = server.clock.read(now);
        let life = server.life.as_mut().expect("it lives");
        life.host.tick(at, &life.status, &life.replica);
        self.after(HOST_TICK, Happening::Tick(id, incarnation));
        self.run_host(id)
    }

    /// Does what a host wants done.
    fn run_host(&mut self, id: ServerId) -> Step {
        let mut events = VecDeque::new();
        self.drain_host(id, &mut events)?;
        while let Some(event) = events.pop_front() {
            self.step(id, &event)?;
            self.drain_host(id, &mut events)?;
        }
        self.schedule_wake(id);
        Ok(())
    }
}

/// Time for the first leader, in microseconds.
const SETTLING: True = 1_000_000;

/// The lease that a leader may use: before its first word is applied it answers nothing by it.
fn lease_of(status: &Status, clock: &Clock) -> Option<Lease> {
    let until = status.lease_until.filter(|_| status.leader.leading)?;
    let ends = clock.when(until).unwrap_or(True::MAX);
    Some(Lease { ballot: status.leader.ballot, ends })
}

impl Judge {
    /// Counts what entries came to, once per slot.
    fn count_effects(&mut self, effects: &[Effect]) {
        for effect in effects {
            match &effect.command {
                Some(Command::Expire { .. }) if effect.applied.outcome.is_ok() => {
                    self.coverage.count(Seen::SessionExpired);
                }
                _ if effect.applied.skipped => self.coverage.count(Seen::DuplicateEntry),
                _ => {}
            }
        }
    }
}
