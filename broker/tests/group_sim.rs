//! A classic group under churn, in virtual time: members that join, die, come back under their static names, lose
//! replies and linger as zombies. One seed is one run; a failing one is replayed by
//! `LOGGOS_GROUP_SEED=<seed> cargo test -p loggos-broker --test group_sim`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use loggos_broker::group::member::{Introduction, Protocol, Waiting};
use loggos_broker::group::record::{Change, HeadRecord, MemberRecord};
use loggos_broker::group::state::{Action, Caller, Event, Join, Leaver, Limits, Phase, Reply, State, Sync};
use loggos_protocol::ids::{Generation, MemberId, Timestamp};
use loggos_protocol::kafka::error_code::ErrorCode;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const SEEDS: u64 = 300;
const STEPS: usize = 400;
const PARTITIONS: u32 = 12;
const SESSION: Duration = Duration::from_secs(6);
const REBALANCE: Duration = Duration::from_secs(20);
/// Longest silence between two of a live client's calls.
const TICK: Duration = Duration::from_millis(500);

/// What a client believes.
#[derive(Clone, Debug, PartialEq)]
enum Belief {
    Outside,
    Joining(Waiting),
    Joined { generation: Generation, leads: bool, members: Vec<MemberId> },
    Syncing(Waiting, Generation),
    Holding { generation: Generation, partitions: BTreeSet<u32> },
}

struct Client {
    instance: Option<String>,
    id: Option<MemberId>,
    belief: Belief,
    alive: bool,
}

struct World {
    rng: SmallRng,
    now: Instant,
    state: State,
    clients: Vec<Client>,
    next_waiting: u64,
    next_id: u64,
    /// Who was given which partition in which generation: never two.
    given: BTreeMap<(i32, u32), MemberId>,
    /// Ids that a static name has borne: its heir holds what they held.
    borne: BTreeMap<MemberId, String>,
    last_generation: Generation,
    replies_lost: f64,
    /// What the registry holds.
    head: Option<HeadRecord>,
    kept: BTreeMap<MemberId, MemberRecord>,
    /// Whether the registry fails the next write, and the broker with it.
    broker_fails: f64,
}

fn limits() -> Limits {
    Limits {
        session_min: Duration::from_secs(1),
        session_max: Duration::from_secs(60),
        members: 64,
        initial_delay: Duration::from_secs(1),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let count = rng.random_range(1..8);
        let clients = (0..count)
            .map(|n| Client {
                instance: rng.random_bool(0.3).then(|| format!("static-{n}")),
                id: None,
                belief: Belief::Outside,
                alive: rng.random_bool(0.8),
            })
            .collect();
        let replies_lost = if rng.random_bool(0.5) { 0.05 } else { 0.0 };
        Self {
            rng,
            now: Instant::now(),
            state: State::new(limits()),
            clients,
            next_waiting: 0,
            next_id: 0,
            given: BTreeMap::new(),
            borne: BTreeMap::new(),
            last_generation: Generation::new(0),
            replies_lost,
            head: None,
            kept: BTreeMap::new(),
            broker_fails: if seed.is_multiple_of(2) { 0.02 } else { 0.0 },
        }
    }

    /// The broker is lost, and whoever waits with it; the next one goes on from the registry.
    fn hand_over(&mut self) {
        self.state = match &self.head {
            Some(head) => {
                State::restore(limits(), head.clone(), self.kept.values().cloned().collect(), self.now)
            }
            None => State::new(limits()),
        };
        for client in &mut self.clients {
            if matches!(client.belief, Belief::Joining(_) | Belief::Syncing(..)) {
                client.belief = Belief::Outside;
            }
        }
    }

    fn waiting(&mut self) -> Waiting {
        self.next_waiting += 1;
        Waiting(self.next_waiting)
    }

    fn step(&mut self, event: Event, by: Option<usize>) {
        let mut actions = Vec::new();
        self.state.step(self.now, event, &mut actions);
        for action in actions {
            match action {
                Action::Persist(change) => {
                    if self.rng.random_bool(self.broker_fails) {
                        // Nothing that comes after the write has happened; the write itself may have.
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
    }

    fn keep(&mut self, change: Change) {
        assert!(change.head.generation >= self.last_generation, "generations only grow");
        self.last_generation = change.head.generation;
        for (id, record) in change.members {
            match record {
                Some(record) => self.kept.insert(id, record),
                None => self.kept.remove(&id),
            };
        }
        if !change.head.rebalancing {
            let now: Vec<MemberRecord> = self.state.records().collect();
            let kept: Vec<MemberRecord> = self.kept.values().cloned().collect();
            assert_eq!(kept, now, "the registry has every member as it is");
        }
        self.head = Some(change.head);
    }

    fn deliver(&mut self, waiting: Waiting, reply: Reply, by: Option<usize>) {
        if let Reply::Synced(_, _, assignment) = &reply {
            self.record_given(waiting, assignment);
        }
        if self.rng.random_bool(self.replies_lost) {
            return;
        }
        let owner = self.clients.iter().position(|client| match client.belief {
            Belief::Joining(mine) | Belief::Syncing(mine, _) => mine == waiting,
            _ => false,
        });
        if let Some(index) = owner {
            self.clients[index].answered(reply);
        } else if let (Some(index), Reply::Heard(code)) = (by, reply)
            && code != ErrorCode::NONE
        {
            self.clients[index].refused(code);
        }
    }

    /// Remembers an assignment that left the group, whether or not it arrives.
    fn record_given(&mut self, waiting: Waiting, assignment: &Bytes) {
        let holder = self.clients.iter().find_map(|client| match client.belief {
            Belief::Syncing(mine, generation) if mine == waiting => {
                Some((client.id.clone().expect("it has joined"), client.instance.clone(), generation))
            }
            _ => None,
        });
        let Some((id, instance, generation)) = holder else { return };
        if let Some(instance) = &instance {
            self.borne.insert(id.clone(), instance.clone());
        }
        for partition in partitions(assignment) {
            let before = self.given.entry((generation.raw(), partition)).or_insert_with(|| id.clone());
            let same_name = instance.is_some() && self.borne.get(before) == instance.as_ref();
            assert!(
                *before == id || same_name,
                "partition {partition} was given to {before} and to {id} in generation {generation}"
            );
        }
    }

    fn act(&mut self, index: usize) {
        let fresh = MemberId::new(format!("member-{}", self.next_id));
        self.next_id += 1;
        let waiting = self.waiting();
        let client = &mut self.clients[index];
        if !client.alive {
            return;
        }
        match client.belief.clone() {
            Belief::Outside => {
                client.belief = Belief::Joining(waiting);
                let join = client.join(fresh);
                self.step(Event::Join(join, waiting), Some(index));
            }
            Belief::Joined { generation, leads, members } => {
                client.belief = Belief::Syncing(waiting, generation);
                let assignments = if leads { assign(&members) } else { Vec::new() };
                let sync = Sync {
                    caller: client.caller(generation),
                    protocol: (None, Some("range".to_owned())),
                    assignments,
                };
                self.step(Event::Sync(sync, waiting), Some(index));
            }
            Belief::Holding { generation, .. } => {
                let caller = client.caller(generation);
                self.step(Event::Heartbeat(caller, waiting), Some(index));
            }
            Belief::Joining(_) | Belief::Syncing(..) => {
                // A client that lost its reply asks again after its own timeout.
                if self.rng.random_bool(0.02) {
                    self.clients[index].belief = Belief::Outside;
                }
            }
        }
    }

    fn disturb(&mut self) {
        let index = self.rng.random_range(0..self.clients.len());
        let waiting = self.waiting();
        let client = &mut self.clients[index];
        match self.rng.random_range(0..20) {
            0 => client.alive = false,
            1 | 2 if !client.alive => {
                // A new life forgets its id, under a static name too.
                client.alive = true;
                client.id = None;
                client.belief = Belief::Outside;
            }
            3 => {
                let Some(id) = client.id.take() else { return };
                client.belief = Belief::Outside;
                let leaver = Leaver { member: id.as_str().to_owned(), instance: client.instance.clone() };
                self.step(Event::Leave(vec![leaver], waiting), None);
            }
            _ => {}
        }
    }

    fn pass(&mut self, by: Duration) {
        self.now += by;
        if self.rng.random_bool(self.broker_fails / 4.0) {
            self.hand_over();
        }
        if self.state.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.step(Event::Tick, None);
        }
    }
}

impl Client {
    fn caller(&self, generation: Generation) -> Caller {
        Caller {
            member: self.id.clone().expect("it has joined"),
            instance: self.instance.clone(),
            generation,
        }
    }

    fn join(&self, fresh: MemberId) -> Join {
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
                protocols: vec![Protocol { name: "range".to_owned(), metadata: Bytes::from_static(b"t") }],
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
                self.belief = Belief::Joined {
                    generation: joined.generation,
                    leads: joined.leader == joined.member && !joined.skip_assignment,
                    members: joined.members.into_iter().map(|(id, _, _)| id).collect(),
                };
            }
            Reply::NotJoined(ErrorCode::MEMBER_ID_REQUIRED, id) => {
                self.id = id;
                self.belief = Belief::Outside;
            }
            Reply::NotJoined(code, _) | Reply::NotSynced(code) => self.refused(code),
            Reply::Synced(_, _, assignment) => {
                if let Belief::Syncing(_, generation) = self.belief {
                    self.belief =
                        Belief::Holding { generation, partitions: partitions(&assignment).collect() };
                }
            }
            Reply::Heard(_) | Reply::Left(_) | Reply::Beaten(_) => {}
        }
    }

    fn refused(&mut self, code: ErrorCode) {
        self.belief = Belief::Outside;
        if code == ErrorCode::UNKNOWN_MEMBER_ID || code == ErrorCode::FENCED_INSTANCE_ID {
            self.id = None;
        }
    }
}

fn partitions(assignment: &Bytes) -> impl Iterator<Item = u32> + '_ {
    assignment.chunks(4).map(|four| u32::from_be_bytes(four.try_into().expect("four bytes")))
}

fn assign(members: &[MemberId]) -> Vec<(MemberId, Bytes)> {
    let share = |n: usize| (0..PARTITIONS).filter(move |partition| *partition as usize % members.len() == n);
    let bytes = |n: usize| share(n).flat_map(u32::to_be_bytes).collect::<Vec<u8>>();
    members.iter().enumerate().map(|(n, id)| (id.clone(), Bytes::from(bytes(n)))).collect()
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        let index = world.rng.random_range(0..world.clients.len());
        world.act(index);
        world.disturb();
        let pause = Duration::from_millis(world.rng.random_range(0..TICK.as_millis() as u64));
        world.pass(pause);
    }
    heal(&mut world, seed);
}

/// Nothing fails any more: within a few rebalance time-outs everybody alive holds a part of one generation, and the
/// parts are the whole.
fn heal(world: &mut World, seed: u64) {
    world.replies_lost = 0.0;
    world.broker_fails = 0.0;
    for client in &mut world.clients {
        client.alive = true;
        if matches!(client.belief, Belief::Joining(_) | Belief::Syncing(..)) {
            client.belief = Belief::Outside;
        }
    }
    let end = world.now + 6 * (REBALANCE + SESSION);
    while world.now < end {
        for index in 0..world.clients.len() {
            world.act(index);
        }
        world.pass(TICK);
    }
    assert_eq!(world.state.phase(), Phase::Stable, "seed {seed}: the group settles");
    let mut held = BTreeSet::new();
    for client in &world.clients {
        let Belief::Holding { generation, partitions } = &client.belief else {
            panic!("seed {seed}: a live client is left out: {:?}", client.belief)
        };
        assert_eq!(*generation, world.state.generation(), "seed {seed}: one generation");
        for partition in partitions {
            assert!(held.insert(*partition), "seed {seed}: partition {partition} is held twice");
        }
    }
    assert_eq!(held.len(), PARTITIONS as usize, "seed {seed}: every partition has a holder");
}

#[test]
fn every_partition_has_exactly_one_holder_in_a_generation() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("LOGGOS_GROUP_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LOGGOS_GROUP_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        assert!(
            outcome.is_ok(),
            "replay: LOGGOS_GROUP_SEED={seed} cargo test -p loggos-broker --test group_sim"
        );
    }
}
