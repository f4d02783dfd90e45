//! The ensemble as the brokers see it: nodes with versions, sessions that expire, registrations that go with them.

use std::collections::BTreeMap;

use loggos_broker::controller::election::Elected;
use loggos_broker::controller::reassignment::Step;
use loggos_broker::metadata::PartitionView;
use loggos_protocol::ids::{BrokerEpoch, BrokerId, Zxid};

/// A live broker: its life, how many it has begun, its session.
pub type Registered = (BrokerEpoch, i32, u64);

/// What a broker may have seen.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub partition: PartitionView,
    pub assigned: i32,
    pub brokers: BTreeMap<BrokerId, Registered>,
}

pub struct Registry {
    pub now: Snapshot,
    sessions: BTreeMap<u64, i64>,
    lives: BTreeMap<BrokerId, i32>,
    zxid: i64,
    next_session: u64,
    pub timeout: i64,
    /// When a registration came or went last.
    pub moved_at: i64,
    /// Who was elected in which epoch.
    pub leaders: BTreeMap<i32, BrokerId>,
}

/// A change that a broker asks for.
#[derive(Clone, Debug)]
pub enum Change {
    /// Of the state at this version, if who joins still lives that life.
    State { elected: Elected, version: i32, lives: Vec<(BrokerId, i32)> },
    /// Of the assignment at this version, with the state at that one.
    Reassign { step: Step, assigned: i32, version: i32 },
}

/// What becomes of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Taken,
    /// Another change came first.
    Overtaken,
    /// Who was to join has begun another life.
    Reborn,
    /// The session is over.
    Expired,
}

impl Registry {
    pub fn new(replicas: Vec<BrokerId>, timeout: i64) -> Self {
        let partition = PartitionView {
            leader: replicas[0],
            leader_epoch: loggos_protocol::ids::LeaderEpoch::new(0),
            isr: replicas.clone(),
            replicas,
            state_version: Some(0),
            state_written: Zxid::new(1),
            ..PartitionView::default()
        };
        let leaders = BTreeMap::from([(0, partition.leader)]);
        let now = Snapshot { partition, assigned: 0, brokers: BTreeMap::new() };
        Self {
            now,
            sessions: BTreeMap::new(),
            lives: BTreeMap::new(),
            zxid: 1,
            next_session: 1,
            timeout,
            moved_at: 0,
            leaders,
        }
    }

    pub fn version(&self) -> i32 {
        self.now.partition.state_version.expect("it has a state from the beginning")
    }

    pub fn connect(&mut self, now: i64) -> u64 {
        self.next_session += 1;
        self.sessions.insert(self.next_session, now + self.timeout);
        self.next_session
    }

    pub fn is_live(&self, session: u64) -> bool {
        self.sessions.contains_key(&session)
    }

    pub fn touch(&mut self, session: u64, now: i64) -> bool {
        self.sessions.get_mut(&session).map(|deadline| *deadline = now + self.timeout).is_some()
    }

    /// Ends sessions; gives whether any registration went with them.
    pub fn expire(&mut self, now: i64) -> usize {
        self.sessions.retain(|_, deadline| *deadline > now);
        let before = self.now.brokers.len();
        let sessions = &self.sessions;
        self.now.brokers.retain(|_, (_, _, session)| sessions.contains_key(session));
        let gone = before - self.now.brokers.len();
        if gone > 0 {
            self.moved_at = now;
        }
        gone
    }

    pub fn end_session(&mut self, session: u64, now: i64) {
        self.moved_at = now;
        self.sessions.remove(&session);
        self.now.brokers.retain(|_, (_, _, owner)| *owner != session);
    }

    /// Registers, unless an older registration is still there.
    pub fn register(&mut self, id: BrokerId, session: u64, now: i64) -> Option<BrokerEpoch> {
        if self.now.brokers.contains_key(&id) || !self.is_live(session) {
            return None;
        }
        self.zxid += 1;
        let lives = self.lives.entry(id).or_insert(0);
        *lives += 1;
        self.moved_at = now;
        let life = BrokerEpoch::new(self.zxid);
        self.now.brokers.insert(id, (life, *lives, session));
        Some(life)
    }

    /// Takes a change or refuses it.
    pub fn change(&mut self, session: u64, change: &Change) -> Answer {
        if !self.is_live(session) {
            return Answer::Expired;
        }
        match change {
            Change::State { elected, version, lives } => {
                let live = |(broker, lives): &(BrokerId, i32)| self.lives.get(broker) == Some(lives);
                if *version != self.version() {
                    return Answer::Overtaken;
                }
                if !lives.iter().all(live) {
                    return Answer::Reborn;
                }
                self.set_state(elected.clone());
            }
            Change::Reassign { step, assigned, version } => {
                if *assigned != self.now.assigned || *version != self.version() {
                    return Answer::Overtaken;
                }
                self.now.assigned += 1;
                let partition = &mut self.now.partition;
                partition.replicas = step.assignment.replicas.clone();
                partition.adding = step.assignment.adding.clone();
                partition.removing = step.assignment.removing.clone();
                if let Some(elected) = &step.state {
                    self.set_state(elected.clone());
                }
            }
        }
        Answer::Taken
    }

    fn set_state(&mut self, elected: Elected) {
        self.zxid += 1;
        let partition = &mut self.now.partition;
        if elected.leader != BrokerId::NONE {
            let led = self.leaders.entry(elected.leader_epoch.raw()).or_insert(elected.leader);
            assert_eq!(*led, elected.leader, "two leaders are elected in epoch {}", elected.leader_epoch);
        }
        assert!(!elected.isr.is_empty(), "nobody is in sync");
        partition.leader = elected.leader;
        partition.leader_epoch = elected.leader_epoch;
        partition.isr = elected.isr;
        partition.state_version = partition.state_version.map(|version| version + 1);
        partition.state_written = Zxid::new(self.zxid);
    }
}
