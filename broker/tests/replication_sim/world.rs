//! The world: time, network, faults, clients, and what happens next.

use std::collections::{BTreeMap, BTreeSet};

use loggos_broker::controller::{election, reassignment};
use loggos_protocol::ids::{BrokerId, Offset};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::disk::Disk;
use super::invariants::{Ledger, Scene};
use super::registry::{Answer, Change, Registry, Snapshot};
use super::replica::{Ask, Mutant, Process, Tell};

/// Virtual milliseconds of faults, and of peace after them.
const TROUBLE_MS: i64 = 6_000;
const PEACE_MS: i64 = 6_000;
/// At the end nothing is produced for so long, and everybody must have everything.
const QUIET_MS: i64 = 1_000;
const SESSION_MS: i64 = 200;
/// No view is older.
const OLDEST_VIEW_MS: i64 = 400;
const ASK_PATIENCE_MS: i64 = 60;

/// What happened, so that a run in which nothing did is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub acknowledged: u64,
    pub elections: u64,
    pub truncations: u64,
    pub power_cuts: u64,
    pub sessions_lost: u64,
    pub reassigned: u64,
    pub disks_lost: u64,
    pub read: u64,
}

impl Done {
    pub fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.elections += other.elections;
        self.truncations += other.truncations;
        self.power_cuts += other.power_cuts;
        self.sessions_lost += other.sessions_lost;
        self.reassigned += other.reassigned;
        self.disks_lost += other.disks_lost;
        self.read += other.read;
    }
}

#[derive(Clone, Debug)]
enum Event {
    Tick,
    Ask(Ask),
    Tell(Box<Tell>),
    Flush(i64),
    Touched { session: u64, sent: i64 },
    TouchAnswer { session: u64, sent: i64, live: bool },
    Called { session: u64, change: Change },
    CallAnswer { change: Change, answer: Answer },
    View(Box<Snapshot>),
    Register,
    Start,
    Produce,
    Consume,
    Nemesis,
}

/// An event at a broker's process, at a broker whichever process it runs, or of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Process(BrokerId, u64),
    Broker(BrokerId),
    Registry,
    World,
}

pub struct World {
    rng: SmallRng,
    now: i64,
    queue: BTreeMap<(i64, u64), (At, Event)>,
    sequence: u64,
    registry: Registry,
    disks: BTreeMap<BrokerId, Disk>,
    wiped: BTreeSet<BrokerId>,
    running: BTreeMap<BrokerId, Process>,
    paused: BTreeMap<BrokerId, i64>,
    /// Who doesn't reach whom.
    cuts: BTreeSet<(BrokerId, BrokerId)>,
    /// Who doesn't reach the registry.
    isolated: BTreeSet<BrokerId>,
    loss: f64,
    repeats: f64,
    peace: bool,
    min_in_sync: usize,
    mutant: Option<Mutant>,
    ledger: Ledger,
    consumer_at: i64,
    /// Nobody produces until then.
    calm_until: i64,
    next_value: u64,
    next_incarnation: u64,
    last_version: i32,
    done: Done,
    traces: bool,
}

impl World {
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let brokers: Vec<BrokerId> = (1..=rng.random_range(3..=5)).map(BrokerId::new).collect();
        let factor = rng.random_range(2..=3);
        let replicas = brokers[..factor].to_vec();
        let (loss, repeats) = if rng.random_bool(0.5) { (0.05, 0.05) } else { (0.0, 0.0) };
        let mut world = Self {
            registry: Registry::new(replicas, SESSION_MS),
            disks: brokers.iter().map(|broker| (*broker, Disk::default())).collect(),
            min_in_sync: rng.random_range(1..=2),
            rng,
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            wiped: BTreeSet::new(),
            running: BTreeMap::new(),
            paused: BTreeMap::new(),
            cuts: BTreeSet::new(),
            isolated: BTreeSet::new(),
            loss,
            repeats,
            peace: false,
            mutant,
            ledger: Ledger::default(),
            consumer_at: 0,
            calm_until: 0,
            next_value: 0,
            next_incarnation: 0,
            last_version: 0,
            done: Done::default(),
            traces: false,
        };
        for broker in brokers {
            world.at(0, At::Broker(broker), Event::Start);
        }
        world.at(20, At::World, Event::Produce);
        world.at(25, At::World, Event::Consume);
        world.at(200, At::World, Event::Nemesis);
        world
    }

    /// Prints what happens.
    pub fn tracing(mut self) -> Self {
        self.traces = true;
        self
    }

    fn at(&mut self, delay: i64, at: At, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), (at, event));
    }

    fn delay(&mut self) -> i64 {
        if !self.peace && self.rng.random_bool(0.05) {
            self.rng.random_range(10..150)
        } else {
            self.rng.random_range(1..8)
        }
    }

    /// Over the network, which may lose it, repeat it and deliver it late.
    fn send(&mut self, from: BrokerId, to: BrokerId, at: At, event: Event) {
        let lost = !self.peace && self.rng.random_bool(self.loss);
        if self.cuts.contains(&(from, to)) || lost {
            return;
        }
        if !self.peace && self.rng.random_bool(self.repeats) {
            let delay = self.delay();
            self.at(delay, at, event.clone());
        }
        let delay = self.delay();
        self.at(delay, at, event);
    }

    fn call(&mut self, broker: BrokerId, event: Event) {
        if !self.isolated.contains(&broker) {
            let delay = self.delay();
            self.at(delay, At::Registry, event);
        }
    }

    pub fn run(mut self) -> Done {
        while self.now < TROUBLE_MS {
            self.next();
        }
        self.make_peace();
        let before = self.done.acknowledged;
        while self.now < TROUBLE_MS + PEACE_MS {
            self.next();
        }
        self.ledger.healed(&scene(&self.registry, &self.disks, self.min_in_sync));
        let can_take = self.registry.now.partition.replicas.len() >= self.min_in_sync;
        assert!(!can_take || self.done.acknowledged > before, "nothing is acknowledged in peace");
        self.done
    }

    fn make_peace(&mut self) {
        self.peace = true;
        self.cuts.clear();
        self.isolated.clear();
        self.paused.clear();
        for broker in self.disks.keys().copied().collect::<Vec<_>>() {
            if !self.running.contains_key(&broker) {
                self.at(1, At::Broker(broker), Event::Start);
            }
        }
        self.publish();
    }

    fn next(&mut self) {
        let ((time, _), (at, event)) = self.queue.pop_first().expect("the world ticks");
        self.now = time;
        if self.registry.expire(self.now) > 0 {
            self.done.sessions_lost += 1;
            self.publish();
        }
        let broker = match at {
            At::Process(broker, _) | At::Broker(broker) => Some(broker),
            At::Registry | At::World => None,
        };
        if let Some(until) = broker.and_then(|broker| self.paused.get(&broker).copied()) {
            if until > self.now {
                let delay = until - self.now + self.rng.random_range(0..3);
                return self.at(delay, at, event);
            }
            self.paused.retain(|_, until| *until > time);
        }
        if self.traces {
            eprintln!("{:>6} {at:?} {event:?}", self.now);
        }
        match at {
            At::Process(broker, incarnation) => {
                if self.running.get(&broker).is_some_and(|process| process.incarnation == incarnation) {
                    self.at_process(broker, event);
                    self.settle(broker);
                }
            }
            At::Broker(broker) => self.start(broker),
            At::Registry => self.at_registry(event),
            At::World => self.at_world(event),
        }
        if self.registry.version() != self.last_version {
            let in_sync = &self.registry.now.partition.isr;
            self.ledger.lost = self.wiped.iter().copied().filter(|lost| in_sync.contains(lost)).collect();
            self.last_version = self.registry.version();
            self.check();
        }
    }

    fn check(&self) {
        self.ledger.check(&scene(&self.registry, &self.disks, self.min_in_sync));
    }

    fn settle(&mut self, broker: BrokerId) {
        let Some(process) = self.running.get_mut(&broker) else { return };
        self.ledger.watermark(process, &self.disks[&broker]);
        for waiting in process.settle(self.now) {
            let scene = scene(&self.registry, &self.disks, self.min_in_sync);
            self.ledger.acknowledge(&scene, process, waiting);
            self.done.acknowledged += 1;
        }
    }

    fn at_process(&mut self, broker: BrokerId, event: Event) {
        let now = self.now;
        let process = self.running.get_mut(&broker).expect("it was looked up");
        let disk = self.disks.get_mut(&broker).expect("every broker has a disk");
        let here = At::Process(broker, process.incarnation);
        match event {
            Event::Tick => self.tick(broker),
            Event::Ask(ask) => {
                if let Some(tell) = process.answer(disk, ask, now)
                    && let Some(asker) = self.running.get(&ask.from)
                {
                    let to = At::Process(ask.from, asker.incarnation);
                    self.send(broker, ask.from, to, Event::Tell(Box::new(tell)));
                }
            }
            Event::Tell(tell) => {
                let before = disk.end;
                if process.take(disk, &tell, now) {
                    self.done.truncations += 1;
                    self.check();
                } else if disk.end > before {
                    let (end, delay) = (disk.end, self.rng.random_range(1..6));
                    self.at(delay, here, Event::Flush(end));
                } else if self.rng.random_bool(0.5) {
                    self.ask(broker);
                }
            }
            Event::Flush(end) => {
                disk.flush(end);
                process.replication.flushed(Offset::new(disk.flushed));
                self.ask(broker);
            }
            Event::TouchAnswer { session, sent, live: true } if session == process.session => {
                process.confirm(sent, SESSION_MS);
            }
            Event::TouchAnswer { session, .. } if session == process.session => {
                process.lease.end();
                self.at(1, here, Event::Register);
            }
            // As `isr::try_write`: the state as it is, written anew, ends the change.
            Event::CallAnswer { change: Change::State { version, lives, .. }, answer: Answer::Reborn }
                if !lives.is_empty() && process.replication.role().version == version =>
            {
                let elected = election::Elected {
                    leader: process.me,
                    leader_epoch: process.epoch(),
                    isr: process.isr().iter().copied().collect(),
                };
                let session = process.session;
                let change = Change::State { elected, version, lives: Vec::new() };
                self.call(broker, Event::Called { session, change });
            }
            Event::View(view) => process.take_view(&view, disk, now),
            Event::Register => self.register(broker),
            _ => {}
        }
    }

    fn tick(&mut self, broker: BrokerId) {
        let incarnation = self.running[&broker].incarnation;
        let delay = self.rng.random_range(8..20);
        self.at(delay, At::Process(broker, incarnation), Event::Tick);
        let (session, present) = (self.running[&broker].session, self.running[&broker].present);
        if !present {
            return self.register(broker);
        }
        self.call(broker, Event::Touched { session, sent: self.now });
        self.ask(broker);
        self.look_after_isr(broker);
        if self.rng.random_bool(0.4) {
            self.control(broker);
        }
        if self.rng.random_bool(0.1) && !self.isolated.contains(&broker) {
            self.show(broker);
        }
    }

    fn ask(&mut self, broker: BrokerId) {
        let number = self.sequence;
        let process = self.running.get_mut(&broker).expect("it was looked up");
        if process.asking.is_some_and(|(_, since)| self.now - since < ASK_PATIENCE_MS) {
            return;
        }
        if let Some((leader, ask)) = process.ask(&self.disks[&broker], number, self.now)
            && let Some(running) = self.running.get(&leader)
        {
            let to = At::Process(leader, running.incarnation);
            self.send(broker, leader, to, Event::Ask(ask));
        }
    }

    fn look_after_isr(&mut self, broker: BrokerId) {
        let process = self.running.get_mut(&broker).expect("it was looked up");
        let Some((change, lives)) = process.isr_change(self.now) else { return };
        let elected = election::Elected {
            leader: process.me,
            leader_epoch: process.epoch(),
            isr: change.isr.iter().copied().collect(),
        };
        let session = process.session;
        let change = Change::State { elected, version: change.version, lives };
        self.call(broker, Event::Called { session, change });
    }

    /// Whoever holds itself for the controller: many do at once here, with views of different age.
    fn control(&mut self, broker: BrokerId) {
        let process = &self.running[&broker];
        let Some(view) = process.view.clone() else { return };
        let partition = &view.partition;
        let is_alive = |broker: BrokerId| view.brokers.contains_key(&broker);
        let restarted = |(life, _, _): &super::registry::Registered| partition.is_older_than(*life);
        let has_restarted = view.brokers.get(&partition.leader).is_some_and(restarted);
        let has_restarted = has_restarted && self.mutant != Some(Mutant::KeepsItsEpochAfterARestart);
        let unclean = self.mutant == Some(Mutant::ElectsUncleanly);
        let version = partition.state_version.expect("it has a state");
        let change = match election::elect(partition, is_alive, has_restarted, unclean) {
            Some(elected) => Change::State { elected, version, lives: Vec::new() },
            None => match reassignment::complete(partition, is_alive) {
                Some(step) => Change::Reassign { step, assigned: view.assigned, version },
                None => return,
            },
        };
        let session = process.session;
        self.call(broker, Event::Called { session, change });
    }

    fn register(&mut self, broker: BrokerId) {
        let process = self.running.get_mut(&broker).expect("it was looked up");
        let here = At::Process(broker, process.incarnation);
        if self.isolated.contains(&broker) {
            return self.at(20, here, Event::Register);
        }
        let is_current = process.present
            && self.registry.is_live(process.session)
            && self.registry.now.brokers.get(&broker).is_some_and(|known| known.2 == process.session);
        if is_current {
            return;
        }
        if !self.registry.is_live(process.session) {
            process.session = self.registry.connect(self.now);
        }
        match self.registry.register(broker, process.session, self.now) {
            None => {
                self.registry.touch(process.session, self.now);
                self.at(15, here, Event::Register);
            }
            Some(life) => {
                process.life = life;
                process.present = true;
                let snapshot = self.registry.now.clone();
                let disk = self.disks.get_mut(&broker).expect("every broker has a disk");
                process.take_view(&snapshot, disk, self.now);
                process.take_role(disk, self.now);
                self.publish();
            }
        }
    }

    fn start(&mut self, broker: BrokerId) {
        if self.running.contains_key(&broker) {
            return;
        }
        let disk = self.disks.get_mut(&broker).expect("every broker has a disk");
        // Recovery keeps what is whole, and syncs it.
        disk.flushed = disk.end;
        self.next_incarnation += 1;
        let mut process = Process::new(broker, self.next_incarnation, disk, self.min_in_sync, self.mutant);
        process.session = self.registry.connect(self.now);
        if self.wiped.remove(&broker) && self.mutant != Some(Mutant::StaysInSyncWithoutADisk) {
            self.disown(broker, process.session);
        }
        self.running.insert(broker, process);
        self.at(1, At::Process(broker, self.next_incarnation), Event::Tick);
    }

    /// As `registration::disown`.
    fn disown(&mut self, broker: BrokerId, session: u64) {
        let partition = &self.registry.now.partition;
        let elected = election::leave(partition, broker, |_| false);
        if let Some(elected) = elected {
            let change = Change::State { elected, version: self.registry.version(), lives: Vec::new() };
            assert_eq!(self.registry.change(session, &change), Answer::Taken);
            self.publish();
        }
        self.ledger.lost.remove(&broker);
    }

    fn at_registry(&mut self, event: Event) {
        match event {
            Event::Touched { session, sent } => {
                let live = self.registry.touch(session, self.now);
                self.answer(session, Event::TouchAnswer { session, sent, live });
            }
            Event::Called { session, change } => {
                let before = self.registry.now.partition.leader_epoch;
                let answer = self.registry.change(session, &change);
                self.done.elections += u64::from(self.registry.now.partition.leader_epoch > before);
                if answer == Answer::Taken {
                    self.done.reassigned += u64::from(matches!(change, Change::Reassign { .. }));
                    self.publish();
                }
                self.answer(session, Event::CallAnswer { change, answer });
            }
            _ => {}
        }
    }

    fn answer(&mut self, session: u64, event: Event) {
        let owner = self.running.values().find(|process| process.session == session);
        let Some((broker, incarnation)) = owner.map(|process| (process.me, process.incarnation)) else {
            return;
        };
        if self.isolated.contains(&broker) || (!self.peace && self.rng.random_bool(self.loss)) {
            return;
        }
        let delay = self.delay();
        self.at(delay, At::Process(broker, incarnation), event);
    }

    /// Everybody's watches fire.
    fn publish(&mut self) {
        for broker in self.running.keys().copied().collect::<Vec<_>>() {
            if !self.isolated.contains(&broker) {
                self.show(broker);
            }
        }
    }

    fn show(&mut self, broker: BrokerId) {
        let incarnation = self.running[&broker].incarnation;
        let (delay, view) = (self.delay(), Box::new(self.registry.now.clone()));
        self.at(delay, At::Process(broker, incarnation), Event::View(view));
    }

    fn at_world(&mut self, event: Event) {
        match event {
            Event::Produce => {
                let delay = self.rng.random_range(1..12);
                self.at(delay, At::World, Event::Produce);
                if self.now < TROUBLE_MS + PEACE_MS - QUIET_MS && self.now >= self.calm_until {
                    self.produce();
                }
            }
            Event::Consume => {
                let delay = self.rng.random_range(1..25);
                self.at(delay, At::World, Event::Consume);
                self.consume();
            }
            Event::Nemesis if !self.peace => {
                let delay = self.rng.random_range(20..260);
                self.at(delay, At::World, Event::Nemesis);
                self.trouble();
            }
            _ => {}
        }
    }

    fn any_broker(&mut self) -> BrokerId {
        let all: Vec<BrokerId> = self.disks.keys().copied().collect();
        all[self.rng.random_range(0..all.len())]
    }

    fn produce(&mut self) {
        // Clients know an old leader now and then, and everybody who takes it for itself is asked.
        let (now, value) = (self.now, self.next_value);
        let believes: Vec<BrokerId> = self
            .running
            .values()
            .filter(|process| process.replication.leads() && !self.paused.contains_key(&process.me))
            .map(|process| process.me)
            .collect();
        if believes.is_empty() {
            return;
        }
        let leader = believes[self.rng.random_range(0..believes.len())];
        let process = self.running.get_mut(&leader).expect("it runs");
        let disk = self.disks.get_mut(&leader).expect("every broker has a disk");
        if process.produce(disk, value, now) {
            self.next_value += 1;
            let (end, incarnation) = (disk.end, process.incarnation);
            let delay = self.rng.random_range(1..8);
            self.at(delay, At::Process(leader, incarnation), Event::Flush(end));
        }
        self.settle(leader);
    }

    fn consume(&mut self) {
        let broker = self.any_broker();
        let Some(process) = self.running.get(&broker) else { return };
        let is_replica = process.replication.role().replicas.contains(&broker);
        if !process.present || !is_replica || self.paused.contains_key(&broker) {
            return;
        }
        let disk = &self.disks[&broker];
        let shows_all = self.mutant == Some(Mutant::ShowsMoreThanIsCommitted);
        let upto = if shows_all { disk.end } else { process.replication.high_watermark().raw() };
        let from = self.consumer_at.max(disk.start).max(self.ledger.deleted);
        for offset in from..upto {
            let record = disk.at(offset).expect("it is below the high watermark");
            self.ledger.read(offset, record.value);
            self.done.read += 1;
            self.consumer_at = offset + 1;
        }
        if self.rng.random_bool(0.05) {
            // Somebody rewinds.
            self.consumer_at = self.rng.random_range(0..=self.consumer_at);
        }
    }

    fn crash(&mut self, broker: BrokerId, power: bool) {
        if self.running.remove(&broker).is_none() {
            return;
        }
        self.paused.remove(&broker);
        if power {
            self.disks.get_mut(&broker).expect("every broker has a disk").power_cut();
            self.done.power_cuts += 1;
            self.check();
        }
        let delay = self.rng.random_range(20..500);
        self.at(delay, At::Broker(broker), Event::Start);
    }

    fn trouble(&mut self) {
        if !self.ledger.lost.is_empty() {
            // A disk and another replica at once is more than two replicas promise to survive.
            return;
        }
        let broker = self.any_broker();
        match self.rng.random_range(0..25) {
            0..=1 => self.crash(broker, false),
            2..=4 => self.crash(broker, true),
            5 => {
                for broker in self.disks.keys().copied().collect::<Vec<_>>() {
                    self.crash(broker, true);
                }
            }
            6..=7 => {
                let until = self.now + self.rng.random_range(30..600);
                self.paused.insert(broker, until);
            }
            8..=9 => {
                let other = self.any_broker();
                self.cuts.insert((broker, other));
                if self.rng.random_bool(0.5) {
                    self.cuts.insert((other, broker));
                }
            }
            10 | 14 => {
                self.isolated.insert(broker);
            }
            11..=13 => {
                self.cuts.clear();
                self.isolated.clear();
                self.publish();
            }
            15 | 18..=20 => self.lose_disk(broker),
            16 => self.stop(broker),
            21..=22 => self.calm_until = self.now + self.rng.random_range(100..1_000),
            17 => self.delete_records(),
            _ => self.administer(broker),
        }
    }

    /// The disk is replaced; never that of the last replica in sync that has one.
    fn lose_disk(&mut self, broker: BrokerId) {
        let in_sync = &self.registry.now.partition.isr;
        let mut others = in_sync.iter().filter(|other| **other != broker).peekable();
        let is_well = |other: &BrokerId| {
            self.running.contains_key(other)
                && !self.paused.contains_key(other)
                && !self.isolated.contains(other)
        };
        // A view in which another one is still dead may be about.
        let registered = |other: &BrokerId| {
            let session = self.running.get(other).map(|process| process.session);
            self.registry.now.brokers.get(other).map(|known| known.2) == session
                && self.now - self.registry.moved_at > OLDEST_VIEW_MS
        };
        if others.peek().is_none() || !others.all(|other| is_well(other) && registered(other)) {
            return;
        }
        self.crash(broker, true);
        self.disks.insert(broker, Disk::default());
        self.wiped.insert(broker);
        if self.rng.random_bool(0.7) {
            // What it had is all that there is when it comes back with nothing.
            self.calm_until = self.now + 800;
        }
        self.done.disks_lost += 1;
        if self.registry.now.partition.isr.contains(&broker) {
            self.ledger.lost.insert(broker);
        }
    }

    /// A clean stop: what is led is handed over, then the session ends.
    fn stop(&mut self, broker: BrokerId) {
        let Some(process) = self.running.get(&broker) else { return };
        let Some(view) = process.view.clone() else { return };
        let alive = |other: BrokerId| other != broker && view.brokers.contains_key(&other);
        let elected = (view.partition.leader == broker)
            .then(|| election::leave(&view.partition, broker, alive))
            .flatten()
            .filter(|elected| elected.leader != BrokerId::NONE);
        let session = process.session;
        if let (Some(elected), Some(version)) = (elected, view.partition.state_version) {
            self.registry.change(session, &Change::State { elected, version, lives: Vec::new() });
        }
        self.registry.end_session(session, self.now);
        self.publish();
        self.crash(broker, false);
    }

    fn delete_records(&mut self) {
        let leader = self.registry.now.partition.leader;
        let Some(process) = self.running.get(&leader).filter(|process| process.leads(self.now)) else {
            return;
        };
        let mark = process.replication.high_watermark().raw();
        let disk = self.disks.get_mut(&leader).expect("every broker has a disk");
        if mark > disk.start {
            let to = self.rng.random_range(disk.start..=mark);
            disk.move_start(to);
            self.ledger.deleted = self.ledger.deleted.max(disk.start);
        }
    }

    /// Reassignments, their end, and preferred elections.
    fn administer(&mut self, broker: BrokerId) {
        let target_len = self.rng.random_range(1..=3);
        let mut target: Vec<BrokerId> = Vec::new();
        while target.len() < target_len {
            let one = self.any_broker();
            if !target.contains(&one) {
                target.push(one);
            }
        }
        let what = self.rng.random_range(0..4);
        let Some(process) = self.running.get(&broker).filter(|process| process.present) else { return };
        let Some(view) = process.view.clone() else { return };
        let is_alive = |broker: BrokerId| view.brokers.contains_key(&broker);
        let version = view.partition.state_version.expect("it has a state");
        let step = match what {
            0..=1 if target.iter().all(|broker| is_alive(*broker)) => {
                reassignment::begin(&view.partition, &target, is_alive)
            }
            2 => reassignment::cancel(&view.partition, is_alive),
            _ => {
                if let Ok(elected) = election::prefer(&view.partition, is_alive) {
                    let session = process.session;
                    let change = Change::State { elected, version, lives: Vec::new() };
                    self.call(broker, Event::Called { session, change });
                }
                return;
            }
        };
        if let Ok(step) = step {
            let session = process.session;
            let change = Change::Reassign { step, assigned: view.assigned, version };
            self.call(broker, Event::Called { session, change });
        }
    }
}

fn scene<'a>(registry: &'a Registry, disks: &'a BTreeMap<BrokerId, Disk>, min_in_sync: usize) -> Scene<'a> {
    // With fewer replicas than that nothing is taken, and nothing else is claimed.
    Scene { registry, disks, min_in_sync }
}
