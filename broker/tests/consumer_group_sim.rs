//! Groups of both protocols under churn, in virtual time: members that join, die, come back, lose answers and linger;
//! classic members among KIP-848's, so that groups are upgraded and downgraded; topics that grow; brokers that are
//! lost, with or without their last write. One seed is one run; a failing one is replayed by
//! `LOGGOS_GROUP_SEED=<seed> cargo test -p loggos-broker --test consumer_group_sim`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use loggos_broker::group::assignor::{Held, Spot, Topics};
use loggos_broker::group::consumer_state::{Beat, Beaten, ConsumerLimits};
use loggos_broker::group::machine::{Machine, Migration, Setting};
use loggos_broker::group::member::{Introduction, Protocol, Waiting};
use loggos_broker::group::record::{Change, HeadRecord, MemberRecord};
use loggos_broker::group::state::{Action, Caller, Event, Join, Limits, Reply, Sync};
use loggos_protocol::ids::{Generation, MemberId, PartitionId, Timestamp, TopicId, TopicName};
use loggos_protocol::kafka::consumer_protocol::{self, Partitions};
use loggos_protocol::kafka::error_code::ErrorCode;
use loggos_protocol::kafka::messages::ConsumerProtocolSubscription;
use loggos_protocol::kafka::{Encodable, StrBytes};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const SEEDS: u64 = 300;
const STEPS: usize = 300;
const SESSION: Duration = Duration::from_secs(6);
const REBALANCE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq)]
enum Belief {
    Outside,
    /// In a consumer group, in this epoch.
    Member(i32),
    Joining(Waiting),
    Joined(Generation, bool, Vec<MemberId>),
    Syncing(Waiting, Generation),
    Holding(Generation),
}

struct Client {
    classic: bool,
    instance: Option<String>,
    id: Option<MemberId>,
    belief: Belief,
    owned: Held,
    /// The next offset to read of what it has.
    positions: BTreeMap<Spot, i64>,
    /// Whether it says what it has with its next heartbeat: after an answer was lost, and when that changed.
    tells: bool,
    by_pattern: bool,
    alive: bool,
}

struct World {
    seed: u64,
    rng: SmallRng,
    now: Instant,
    setting: Setting,
    partitions: i32,
    machine: Machine,
    clients: Vec<Client>,
    next: u64,
    head: Option<HeadRecord>,
    kept: BTreeMap<MemberId, MemberRecord>,
    epoch: i32,
    replies_lost: f64,
    broker_fails: f64,
    /// Records that there are of each partition: offsets from 0.
    ends: BTreeMap<Spot, i64>,
    committed: BTreeMap<Spot, i64>,
    delivered: BTreeSet<(Spot, i64)>,
    /// Who read a partition in a generation: never two, save a static member and its heir.
    readers: BTreeMap<(Spot, i32), (MemberId, Option<String>)>,
}

fn topic() -> TopicId {
    TopicId::from_bytes([1; 16])
}

fn topics(partitions: i32) -> Arc<Topics> {
    Arc::new(Topics::new([(TopicName::new("t"), topic(), partitions)].into_iter()))
}

fn spots(partitions: &Partitions) -> Held {
    partitions.values().flatten().map(|partition| (topic(), *partition)).collect()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let classics = [0.0, 0.3, 1.0][rng.random_range(0..3)];
        let clients = (0..rng.random_range(1..7))
            .map(|n| Client {
                classic: rng.random_bool(classics),
                instance: rng.random_bool(0.2).then(|| format!("static-{n}")),
                id: None,
                belief: Belief::Outside,
                owned: Held::new(),
                positions: BTreeMap::new(),
                tells: true,
                by_pattern: rng.random_bool(0.3),
                alive: rng.random_bool(0.8),
            })
            .collect();
        let setting = Setting {
            classic: Limits {
                session_min: Duration::from_secs(1),
                session_max: Duration::from_secs(60),
                members: 64,
                initial_delay: Duration::ZERO,
            },
            consumer: ConsumerLimits { session: SESSION, interval: TICK, members: 64 },
            migration: Migration { upgrade: true, downgrade: true },
            topics: topics(5),
        };
        Self {
            seed,
            now: Instant::now(),
            machine: Machine::new(&setting),
            setting,
            partitions: 5,
            clients,
            next: 0,
            head: None,
            kept: BTreeMap::new(),
            epoch: 0,
            replies_lost: if rng.random_bool(0.5) { 0.05 } else { 0.0 },
            broker_fails: if rng.random_bool(0.5) { 0.02 } else { 0.0 },
            ends: BTreeMap::new(),
            committed: BTreeMap::new(),
            delivered: BTreeSet::new(),
            readers: BTreeMap::new(),
            rng,
        }
    }

    fn waiting(&mut self) -> Waiting {
        self.next += 1;
        Waiting(self.next)
    }

    fn step(&mut self, event: Event, by: Option<usize>) {
        let mut actions = Vec::new();
        self.machine.step(self.now, &self.setting, event, &mut actions);
        for action in actions {
            match action {
                Action::Persist(change) => {
                    if self.rng.random_bool(self.broker_fails) {
                        if self.rng.random_bool(0.5) {
                            self.keep(change);
                        }
                        return self.hand_over();
                    }
                    self.keep(change);
                }
                Action::Reply(waiting, reply) => self.deliver(waiting, reply, by),
            }
        }
        self.check();
    }

    fn keep(&mut self, change: Change) {
        assert!(change.head.generation.raw() >= self.epoch, "seed {}: epochs only grow", self.seed);
        self.epoch = change.head.generation.raw();
        for (id, record) in change.members {
            match record {
                Some(record) => self.kept.insert(id, record),
                None => self.kept.remove(&id),
            };
        }
        self.head = Some(change.head);
    }

    fn hand_over(&mut self) {
        self.machine = match &self.head {
            Some(head) => {
                let members = self.kept.values().cloned().collect();
                Machine::restore(&self.setting, head.clone(), members, self.now)
            }
            None => Machine::new(&self.setting),
        };
        for client in &mut self.clients {
            if matches!(client.belief, Belief::Joining(_) | Belief::Syncing(..)) {
                client.belief = Belief::Outside;
            }
            client.tells = true;
        }
        self.check();
    }

    /// Whoever is in the group has nothing that the group doesn't know of: as the group gives nothing to two, no two
    /// of them read the same.
    fn check(&self) {
        let Machine::Consumer(state) = &self.machine else { return };
        let mut held = Held::new();
        for member in state.members() {
            for spot in member.holds() {
                assert!(held.insert(*spot), "seed {}: {spot:?} is held twice", self.seed);
            }
        }
        for client in &self.clients {
            let (Some(id), Belief::Member(epoch)) = (&client.id, &client.belief) else { continue };
            let Some(member) = state.members().find(|member| member.id == *id) else { continue };
            if member.epoch != *epoch && member.previous_epoch != *epoch {
                continue;
            }
            let holds: Held = member.holds().copied().collect();
            assert!(
                client.owned.is_subset(&holds),
                "seed {}: {id} reads {:?} and holds {holds:?}",
                self.seed,
                client.owned
            );
        }
    }

    fn deliver(&mut self, waiting: Waiting, reply: Reply, by: Option<usize>) {
        if self.rng.random_bool(self.replies_lost) {
            if let Some(by) = by {
                self.clients[by].tells = true;
            }
            return;
        }
        let owner = self.clients.iter().position(|client| match client.belief {
            Belief::Joining(mine) | Belief::Syncing(mine, _) => mine == waiting,
            _ => false,
        });
        match (owner, by, reply) {
            (Some(index), _, reply) => self.clients[index].answered(reply),
            (None, Some(index), Reply::Beaten(Ok(beaten))) => self.clients[index].beaten(beaten),
            (None, Some(index), Reply::Beaten(Err((code, _)))) => self.clients[index].fenced(code),
            (None, Some(index), Reply::Heard(code)) if code != ErrorCode::NONE => {
                self.clients[index].refused(code);
            }
            _ => {}
        }
    }

    fn act(&mut self, index: usize) {
        let waiting = self.waiting();
        let fresh = MemberId::new(format!("m{}", self.next));
        let client = &mut self.clients[index];
        if !client.alive {
            return;
        }
        let event = match (client.classic, client.belief.clone()) {
            (false, Belief::Member(epoch)) => Event::Beat(client.beat(epoch), waiting),
            (false, _) => {
                client.id.get_or_insert(fresh);
                client.lose_all();
                client.belief = Belief::Member(0);
                Event::Beat(client.beat(0), waiting)
            }
            (true, Belief::Outside | Belief::Member(_)) => {
                client.lose_all();
                client.belief = Belief::Joining(waiting);
                Event::Join(client.join(fresh), waiting)
            }
            (true, Belief::Joined(generation, leads, members)) => {
                client.belief = Belief::Syncing(waiting, generation);
                let assignments = if leads { assign(&members, self.partitions) } else { Vec::new() };
                let caller = client.caller(generation);
                Event::Sync(Sync { caller, protocol: (None, Some("range".to_owned())), assignments }, waiting)
            }
            (true, Belief::Holding(generation)) => Event::Heartbeat(client.caller(generation), waiting),
            (true, Belief::Joining(_) | Belief::Syncing(..)) => {
                if self.rng.random_bool(0.05) {
                    self.clients[index].belief = Belief::Outside;
                }
                return;
            }
        };
        self.step(event, Some(index));
    }

    /// A client reads on where it is, or where the group has committed, and perhaps commits.
    fn read(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let epoch = match client.belief {
            Belief::Member(epoch @ 1..) => epoch,
            Belief::Holding(generation) => generation.raw(),
            _ => return,
        };
        let Some(id) = client.id.clone().filter(|_| client.alive) else { return };
        let owned = client.owned.clone();
        client.positions.retain(|spot, _| owned.contains(spot));
        for spot in owned {
            let end = self.ends.get(&spot).copied().unwrap_or(0);
            let from = self.committed.get(&spot).copied().unwrap_or(0);
            let position = client.positions.entry(spot).or_insert(from);
            let until = end.min(*position + self.rng.random_range(0..4));
            for offset in *position..until {
                self.delivered.insert((spot, offset));
                let reader = (id.clone(), client.instance.clone());
                let before = self.readers.entry((spot, epoch)).or_insert_with(|| reader.clone());
                let heir = before.1.is_some() && before.1 == reader.1;
                assert!(
                    *before == reader || heir,
                    "seed {}: {spot:?} was read by {before:?} and by {reader:?} in generation {epoch}",
                    self.seed
                );
            }
            *position = until;
        }
        if self.rng.random_bool(0.5) {
            let caller = client.caller(Generation::new(epoch));
            let positions = client.positions.clone();
            if self.machine.may_commit(self.now, &caller) == ErrorCode::NONE {
                for (spot, position) in positions {
                    let before = self.committed.insert(spot, position).unwrap_or(0);
                    assert!(before <= position, "seed {}: {spot:?} was committed backwards", self.seed);
                }
            }
        }
    }

    fn produce(&mut self) {
        let spot = (topic(), PartitionId::new(self.rng.random_range(0..self.partitions)));
        *self.ends.entry(spot).or_default() += 1;
    }

    fn disturb(&mut self) {
        let index = self.rng.random_range(0..self.clients.len());
        let waiting = self.waiting();
        let client = &mut self.clients[index];
        match self.rng.random_range(0..30) {
            0 => client.alive = false,
            1 | 2 if !client.alive => {
                client.alive = true;
                client.id = None;
                client.lose_all();
                client.belief = Belief::Outside;
            }
            3 if !client.classic => {
                let Some(id) = client.id.take() else { return };
                client.belief = Belief::Outside;
                client.lose_all();
                let epoch = if client.instance.is_some() { -2 } else { -1 };
                let beat = Beat { member: id, ..client.beat_of(MemberId::from(""), epoch) };
                self.step(Event::Beat(beat, waiting), None);
            }
            // An upgrade, or back, one client at a time: it leaves and comes again with the other protocol.
            4 => {
                client.classic = !client.classic;
                client.id = None;
                client.lose_all();
                client.belief = Belief::Outside;
            }
            5 if self.partitions < 12 => {
                self.partitions += 1;
                self.setting.topics = topics(self.partitions);
                self.step(Event::Topics(Arc::clone(&self.setting.topics)), None);
            }
            _ => {}
        }
    }

    fn pass(&mut self, by: Duration) {
        self.now += by;
        if self.rng.random_bool(self.broker_fails / 4.0) {
            self.hand_over();
        }
        if self.machine.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.step(Event::Tick, None);
        }
    }
}

impl Client {
    fn beat(&mut self, epoch: i32) -> Beat {
        let id = self.id.clone().expect("it has one");
        self.beat_of(id, epoch)
    }

    fn beat_of(&mut self, member: MemberId, epoch: i32) -> Beat {
        let tells = std::mem::take(&mut self.tells) || epoch == 0;
        let names = BTreeSet::from([TopicName::new("t")]);
        Beat {
            member,
            epoch,
            instance: self.instance.clone(),
            rack: None,
            rebalance_timeout: tells.then_some(REBALANCE),
            names: (tells && !self.by_pattern).then_some(names),
            regex: (tells && self.by_pattern).then(|| "t.*".to_owned()),
            assignor: None,
            owned: tells.then(|| self.owned.clone()),
            client_id: "sim".to_owned(),
            client_host: "/127.0.0.1".to_owned(),
            at: Timestamp::NONE,
        }
    }

    fn beaten(&mut self, beaten: Beaten) {
        if !matches!(self.belief, Belief::Member(_)) || self.id.as_ref() != Some(&beaten.member) {
            return;
        }
        self.belief = Belief::Member(beaten.epoch);
        if let Some(assignment) = beaten.assignment {
            // It gives up and takes at once, and says so with the next heartbeat.
            self.tells |= self.owned != assignment;
            self.positions.retain(|spot, _| assignment.contains(spot));
            self.owned = assignment;
        }
    }

    /// What it had may be another's now; where it was is forgotten with it.
    fn lose_all(&mut self) {
        self.owned.clear();
        self.positions.clear();
    }

    fn fenced(&mut self, code: ErrorCode) {
        self.lose_all();
        self.belief = Belief::Outside;
        if code == ErrorCode::FENCED_INSTANCE_ID || code == ErrorCode::UNRELEASED_INSTANCE_ID {
            self.id = None;
        }
    }

    fn caller(&self, generation: Generation) -> Caller {
        let member = self.id.clone().expect("it has joined");
        Caller { member, instance: self.instance.clone(), generation }
    }

    fn join(&self, fresh: MemberId) -> Join {
        let subscription =
            ConsumerProtocolSubscription::default().with_topics(vec![StrBytes::from_static_str("t")]);
        let mut metadata = BytesMut::new();
        metadata.put_i16(1);
        subscription.encode(&mut metadata, 1).expect("written");
        Join {
            member: self.id.clone(),
            fresh,
            introduction: Introduction {
                instance: self.instance.clone(),
                since: Timestamp::NONE,
                client_id: "sim".to_owned(),
                client_host: "/127.0.0.1".to_owned(),
                session_timeout: SESSION,
                rebalance_timeout: REBALANCE,
                protocols: vec![Protocol { name: "range".to_owned(), metadata: metadata.freeze() }],
            },
            protocol_type: "consumer".to_owned(),
            must_return: true,
            may_skip_assignment: true,
        }
    }

    fn answered(&mut self, reply: Reply) {
        match reply {
            Reply::Joined(joined) => {
                self.id = Some(joined.member.clone());
                let leads = joined.leader == joined.member && !joined.skip_assignment;
                let members = joined.members.into_iter().map(|(id, _, _)| id).collect();
                self.belief = Belief::Joined(joined.generation, leads, members);
            }
            Reply::NotJoined(ErrorCode::MEMBER_ID_REQUIRED, id) => {
                self.id = id;
                self.belief = Belief::Outside;
            }
            Reply::NotJoined(code, _) | Reply::NotSynced(code) => self.refused(code),
            Reply::Synced(_, _, assignment) => {
                if let Belief::Syncing(_, generation) = self.belief {
                    self.positions.clear();
                    self.owned = spots(&consumer_protocol::assignment(&assignment).unwrap_or_default());
                    self.belief = Belief::Holding(generation);
                }
            }
            _ => {}
        }
    }

    fn refused(&mut self, code: ErrorCode) {
        self.lose_all();
        self.belief = Belief::Outside;
        if code == ErrorCode::UNKNOWN_MEMBER_ID || code == ErrorCode::FENCED_INSTANCE_ID {
            self.id = None;
        }
    }
}

fn assign(members: &[MemberId], partitions: i32) -> Vec<(MemberId, Bytes)> {
    let share = |n: usize| {
        let mine = (0..partitions).filter(|id| *id as usize % members.len() == n).map(PartitionId::new);
        consumer_protocol::write_assignment(&[(TopicName::new("t"), mine.collect())].into())
    };
    members.iter().enumerate().map(|(n, id)| (id.clone(), share(n))).collect()
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        let index = world.rng.random_range(0..world.clients.len());
        world.produce();
        world.act(index);
        world.read(index);
        world.disturb();
        let pause = Duration::from_millis(world.rng.random_range(0..TICK.as_millis() as u64));
        world.pass(pause);
    }
    heal(&mut world);
}

/// Nothing fails any more: within a few time-outs everybody holds a part, and the parts are the whole.
fn heal(world: &mut World) {
    (world.replies_lost, world.broker_fails) = (0.0, 0.0);
    for client in &mut world.clients {
        client.alive = true;
        client.tells = true;
        if matches!(client.belief, Belief::Joining(_) | Belief::Syncing(..)) {
            client.belief = Belief::Outside;
        }
    }
    let end = world.now + 8 * (REBALANCE + SESSION);
    while world.now < end {
        for index in 0..world.clients.len() {
            world.act(index);
            world.read(index);
        }
        world.pass(TICK);
    }
    let seed = world.seed;
    assert_eq!(world.machine.phase(), "Stable", "seed {seed}: the group settles");
    let mut held = Held::new();
    for client in &world.clients {
        assert!(
            matches!(client.belief, Belief::Member(1..) | Belief::Holding(_)),
            "seed {seed}: a live client is left out: {:?}",
            client.belief
        );
        for spot in &client.owned {
            assert!(held.insert(*spot), "seed {seed}: {spot:?} is read twice");
        }
    }
    for spot in &held {
        let end = world.ends.get(spot).copied().unwrap_or(0);
        let lost: Vec<i64> = (0..end).filter(|offset| !world.delivered.contains(&(*spot, *offset))).collect();
        assert!(lost.is_empty(), "seed {seed}: of {spot:?} nobody read {lost:?}");
    }
    // Classic members see to a topic's growth themselves: a classic group shares what its leader knew.
    if matches!(world.machine, Machine::Consumer(_)) {
        assert_eq!(held.len(), world.partitions as usize, "seed {seed}: every partition has a reader");
    }
    let restored = Machine::restore(
        &world.setting,
        world.head.clone().expect("kept"),
        world.kept.values().cloned().collect(),
        world.now,
    );
    assert_eq!(restored.holders(), world.machine.holders(), "seed {seed}: the registry has it as it is");
}

#[test]
fn no_partition_is_read_by_two_and_every_group_settles() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("LOGGOS_GROUP_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LOGGOS_GROUP_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        assert!(
            outcome.is_ok(),
            "replay: LOGGOS_GROUP_SEED={seed} cargo test -p loggos-broker --test consumer_group_sim"
        );
    }
}
