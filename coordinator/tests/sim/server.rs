//! A simulated server: an identity, its disk and clock, and, while its process lives, engine, state and connections.

use std::collections::VecDeque;

use loggos_coordinator::paxos::ballot::{CellId, Incarnation, ServerId};
use loggos_coordinator::paxos::codec;
use loggos_coordinator::paxos::engine::Engine;
use loggos_coordinator::paxos::event::{Identity, Recovered, Status};
use loggos_coordinator::paxos::membership::{Config, ConfigHistory};

use crate::clocks::{Clock, True};
use crate::disk::Disk;
use crate::host::Host;
use crate::plan::Plan;
use crate::replica::Replica;
use crate::world::Happening;

/// The cell of every world.
const CELL: CellId = CellId::new(0x51);

/// A process.
pub struct Life {
    /// The thing itself.
    pub engine: Engine,
    /// What it said of itself last.
    pub status: Status,
    /// The state machine.
    pub replica: Replica,
    /// The connections.
    pub host: Host,
    /// Its number.
    pub incarnation: Incarnation,
    /// When the engine is woken next.
    pub wake_at: True,
}

/// An identity and its memory.
pub struct Server {
    /// Its identity.
    pub id: ServerId,
    /// Its address: a machine that lost its disk comes back under the same one.
    pub peer: String,
    /// Its durable memory.
    pub disk: Disk,
    /// Its clocks.
    pub clock: Clock,
    /// Its process.
    pub life: Option<Life>,
    /// Lives so far.
    pub lives: u64,
    /// It will never start again: the disk is lost, or it has left.
    pub gone: bool,
    /// The process stands still; what comes in waits here.
    pub paused: Option<VecDeque<Happening>>,
    /// The disk is slow until then.
    pub slow_until: True,
    /// The next write fails.
    pub fail_next_write: bool,
    /// Serial numbers of the messages received last, by sender: whether some overtook others.
    pub received: std::collections::BTreeMap<ServerId, u64>,
}

impl Server {
    /// An identity with an empty memory.
    pub fn new(id: ServerId, peer: String, clock: Clock) -> Self {
        Self {
            id,
            peer,
            disk: Disk::default(),
            clock,
            life: None,
            lives: 0,
            gone: false,
            paused: None,
            slow_until: 0,
            fail_next_write: false,
            received: std::collections::BTreeMap::new(),
        }
    }

    /// What it remembers.
    pub fn recover(&self, founding: &Config, alpha: u64) -> (Recovered, Replica) {
        let snapshot = self.disk.snapshot();
        let configs = match snapshot {
            Some((_, blob)) => {
                codec::decode_history(blob.head.clone(), alpha).expect("it was encoded by an engine")
            }
            None => ConfigHistory::founding(founding.clone(), alpha),
        };
        let replica = snapshot.map_or_else(Replica::default, |(_, blob)| Replica::restore(&blob.state));
        let recovered = Recovered {
            promised: self.disk.promise,
            records: self.disk.records().cloned().collect(),
            chosen_upto: self.disk.chosen_upto,
            snapshot: snapshot.map(|(mark, _)| mark),
            configs,
            uncertain_above: self.disk.uncertain_above,
        };
        (recovered, replica)
    }

    /// Begins a new life.
    pub fn begin(&mut self, recovered: Recovered, replica: Replica, plan: &Plan, seed: u64) {
        self.lives += 1;
        let incarnation = Incarnation::new(self.lives);
        let identity = Identity { cell: CELL, server: self.id, incarnation };
        let engine = Engine::new(identity, recovered, plan.options.clone(), plan.mutations, seed);
        let status = engine.status();
        self.received.clear();
        self.life =
            Some(Life { engine, status, replica, host: Host::default(), incarnation, wake_at: True::MAX });
    }

    /// Whether this is its present life.
    pub fn lives_as(&self, incarnation: Incarnation) -> bool {
        self.life.as_ref().is_some_and(|life| life.incarnation == incarnation)
    }
}
