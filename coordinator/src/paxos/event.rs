//! What goes into the engine and what comes out of it: the whole door between Paxos and its shell.
//!
//! The shell (driver, or the simulator) feeds one [`Event`] at a time to `Engine::step` and performs the
//! [`Action`]s in order. Nothing is awaited in between: durability comes back as [`Event::Persisted`], and what
//! had to wait for it is held back by the engine, not by the shell.

use std::time::Duration;

use bytes::Bytes;

use super::ballot::{Ballot, CellId, Incarnation, ServerId, Slot};
use super::membership::{Change, Config, ConfigHistory};
use super::message::Envelope;
use super::moment::Moment;
use super::value::Value;

/// Numbers the writes of one process, from 1 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Names a read barrier; chosen by the shell, echoed with its outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// Names a request that only the leader can answer (membership change); chosen by the shell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The first event of every life. Emits `Apply` for what is known to be chosen above the snapshot.
    Start,
    /// `next_deadline()` has passed. Harmless at any other time.
    Tick,
    /// A frame from a peer whose checksum and cell were right.
    Received(Envelope),
    /// The write with this ticket, and all before it, are on stable storage.
    Persisted(Ticket),
    /// Entries to be chosen. On the leader they are queued; elsewhere they are forwarded to the leader; without
    /// one they are dropped. The shell keeps what is not yet applied and proposes it again after
    /// [`Action::Leader`] or a time-out: duplicates are harmless to the state machine.
    Propose(Vec<Bytes>),
    /// A read that must see every write acknowledged before now. Answered by `ReadReady` or `ReadRefused`.
    Read(ReadId),
    /// The sessions heard of here since the last batch, opaque. Carried to the leader with the heartbeat
    /// acknowledgements until it says that it has them. At most one batch is under way: the next one may follow
    /// `TouchesRegistered`; a newer one replaces the old.
    Touches {
        /// Counts the batches of this life, from 1 on.
        batch: u64,
        /// What they say.
        payload: Bytes,
    },
    /// Change the membership. Only the leader does it; elsewhere refused with the leader's id.
    Reconfigure {
        /// Echoed by `Action::Reconfigured`.
        id: RequestId,
        /// The wish.
        change: Change,
    },
    /// A snapshot asked for by `TakeSnapshot` is durable and has been read back.
    SnapshotStored {
        /// The applied slot that it stands for.
        slot: Slot,
        /// Its length in bytes, offered to servers that lag behind the log.
        bytes: u64,
    },
    /// Received chunks up to `offset` are in the temporary file.
    SnapshotChunkStored {
        /// The snapshot being received.
        slot: Slot,
        /// The next offset wanted.
        offset: u64,
    },
    /// A received snapshot is complete, verified and durable under its real name.
    SnapshotReceived {
        /// The applied slot that it stands for.
        slot: Slot,
        /// Its length in bytes.
        bytes: u64,
        /// The engine's part of it, as given out with `TakeSnapshot`.
        head: Bytes,
    },
    /// A received snapshot was no good (checksum), or could not be kept: ask again from its start.
    SnapshotBroken {
        /// The snapshot.
        slot: Slot,
    },
    /// Hand leadership over, to the given server or to the best one: clean stop, slow disk, the operator's wish.
    Transfer(Option<ServerId>),
    /// The connection to this peer was refused or reset. A hint that may start an election early; never more.
    Unreachable(ServerId),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Make this durable, then feed `Persisted`. A failed write stops the server.
    Persist(Write),
    /// Send to a peer; may be lost, delayed, doubled.
    Send(Envelope),
    /// The value of the next slot is chosen: apply it. Slots come without gaps, in order, each once per life.
    Apply {
        /// The slot.
        slot: Slot,
        /// Its value.
        value: Value,
    },
    /// Who leads has changed, or this server's own standing has.
    Leader(LeaderView),
    /// The read may be served now: everything that it must see has been applied here.
    ReadReady(ReadId),
    /// No leader could be asked, or it was lost on the way. Retry.
    ReadRefused(ReadId),
    /// The leader (this server) has received touches from `from`, itself included.
    Touched {
        /// The server where the sessions are connected.
        from: ServerId,
        /// What `Event::Touches` said there.
        payload: Bytes,
    },
    /// The leader has registered this server's touches up to this batch.
    TouchesRegistered {
        /// The batch.
        batch: u64,
    },
    /// Outcome of `Reconfigure`. `Ok` once the new membership governs.
    Reconfigured {
        /// The request.
        id: RequestId,
        /// What came of it.
        outcome: Result<(), ChangeError>,
    },
    /// The membership in force or pending changed: these are the peers to be connected with.
    Peers(Config),
    /// Take a snapshot of the state as it is now, right after the last `Apply`.
    TakeSnapshot {
        /// The last applied slot.
        slot: Slot,
        /// The engine's part, to be stored with it and handed back in `SnapshotReceived`; at a start
        /// `codec::decode_history` makes `Recovered::configs` of it.
        head: Bytes,
    },
    /// Slots up to this one are covered by a stored snapshot and no longer needed by the ledger.
    Release {
        /// The last slot that may go.
        upto: Slot,
    },
    /// Read a chunk of the stored snapshot and send it to `to` as `Message::SnapChunk`, in the given envelope.
    SendSnapshotChunk {
        /// The envelope to send; its message says slot and offset, and lacks the bytes.
        envelope: Envelope,
    },
    /// Put received bytes into the temporary file, then feed `SnapshotChunkStored`, or, if they complete it and it
    /// verifies, `SnapshotReceived`.
    StoreSnapshotChunk {
        /// The snapshot.
        slot: Slot,
        /// Where the bytes belong.
        offset: u64,
        /// The snapshot's whole length in bytes.
        total: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// Replace the state by the snapshot just received; the next `Apply` is for the slot after it.
    Restore {
        /// The snapshot.
        slot: Slot,
    },
    /// This server has seen proof that the safety rules were broken (two values in one slot). Stop the process.
    Stop(Violation),
}

/// Why a server must stop at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Violation {
    /// One ballot carried two values for one slot.
    #[error("two values at ballot {ballot} in slot {slot}")]
    TwoValues {
        /// The ballot.
        ballot: Ballot,
        /// The slot.
        slot: Slot,
    },
    /// A slot known to be chosen was offered another value.
    #[error("another value at ballot {ballot} for the chosen slot {slot}")]
    ChosenChanged {
        /// The ballot.
        ballot: Ballot,
        /// The slot.
        slot: Slot,
    },
}

/// Why a membership change was not made.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ChangeError {
    /// Only the leader changes the membership; ask there.
    #[error("not the leader (it is {leader})")]
    NotLeader {
        /// The leader, or none.
        leader: ServerId,
    },
    /// One change at a time.
    #[error("a change is in progress")]
    InProgress,
    /// A majority of the new membership is not caught up.
    #[error("the new membership has no live majority")]
    NoQuorum,
    /// The wish makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// Leadership was lost on the way: the change may or may not happen.
    #[error("leadership was lost meanwhile")]
    Unknown,
}

/// Who leads, as this server sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LeaderView {
    /// The leader, or none.
    pub leader: ServerId,
    /// Its ballot.
    pub ballot: Ballot,
    /// Whether it is this server, and its `LeaderStart` has been applied.
    pub leading: bool,
}

/// One durable write. Its parts are made durable in the order of the fields.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// To be echoed by `Persisted`.
    pub ticket: Ticket,
    /// The new promise, into the promise block, before any record (design 1.3 rule 2).
    pub promise: Option<Ballot>,
    /// Records for the ledger.
    pub records: Vec<Record>,
    /// How far the chosen prefix reached: a hint that shortens recovery, never needed for safety.
    pub chosen_upto: Slot,
    /// Damage found at the start may still hide lost votes: the ledger keeps its mark of it until a write says
    /// that this is over.
    pub uncertain: bool,
}

/// One record of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// This acceptor accepted `value` at `ballot` in `slot`.
    Accepted {
        /// The proposal's ballot.
        ballot: Ballot,
        /// The slot.
        slot: Slot,
        /// The proposal's value.
        value: Value,
    },
    /// This learner was told that `value` is chosen in `slot`.
    Learned {
        /// The slot.
        slot: Slot,
        /// The chosen value.
        value: Value,
    },
}

impl Record {
    /// The slot that it speaks of.
    pub fn slot(&self) -> Slot {
        match self {
            Self::Accepted { slot, .. } | Self::Learned { slot, .. } => *slot,
        }
    }
}

/// What a server remembers when it starts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Recovered {
    /// The promise.
    pub promised: Ballot,
    /// The ledger's records, in the order in which they were written.
    pub records: Vec<Record>,
    /// The highest hint found. It must be 0 if the newest snapshot could not be read and an older one took its
    /// place: votes of slots between the two may have been superseded by the newer one alone.
    pub chosen_upto: Slot,
    /// The last slot covered by the snapshot loaded (0: none), and its length.
    pub snapshot: Option<SnapshotMark>,
    /// The membership, from the snapshot's head; a founder's first membership stands at slot 0.
    pub configs: ConfigHistory,
    /// Damage was found: records for slots above this one may have been lost (design 1.11).
    pub uncertain_above: Option<Slot>,
}

/// A stored snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SnapshotMark {
    /// The last slot that it covers.
    pub slot: Slot,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Who an engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cell.
    pub cell: CellId,
    /// The server's number in it.
    pub server: ServerId,
    /// This life.
    pub incarnation: Incarnation,
}

/// The engine's settings, all with defaults of design 1.13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// How often a leader speaks.
    pub heartbeat: Duration,
    /// How long an acceptor that heard a leader ignores other candidates.
    pub lease: Duration,
    /// Silence after which a server stands for election: a random time between the two.
    pub election_min: Duration,
    /// The upper end.
    pub election_max: Duration,
    /// How much clock rates may differ, in parts per million of each clock.
    pub clock_drift_ppm: u32,
    /// Slots in flight.
    pub window: u64,
    /// Slots after which a membership governs (alpha).
    pub alpha: u64,
    /// Entries that close a batch.
    pub batch_entries: usize,
    /// Bytes that close a batch.
    pub batch_bytes: usize,
    /// Entries waiting to be proposed, above which new ones are dropped.
    pub queue_entries: usize,
    /// After how long an unanswered proposal or fetch is sent again.
    pub resend: Duration,
    /// Entries applied since the last snapshot that ask for a new one.
    pub snapshot_entries: u64,
    /// Bytes applied since the last snapshot that ask for a new one.
    pub snapshot_bytes: u64,
    /// Slots kept below the snapshot for servers that lag a little.
    pub keep_slots: u64,
    /// Whether read barriers may use the lease.
    pub lease_reads: bool,
    /// A voter silent for so long gives its place to a caught-up learner.
    pub replace_after: Duration,
    /// Whether caught-up learners become voters by themselves (1 to 3, 3 to 5), and replace a dead voter of the
    /// same address.
    pub auto_promote: bool,
    /// A leader whose own disk stalls for so long while others acknowledge hands over.
    pub disk_stall: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            lease: Duration::from_millis(300),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(500),
            clock_drift_ppm: 10_000,
            window: 32,
            alpha: 64,
            batch_entries: 512,
            batch_bytes: 256 * 1024,
            queue_entries: 65_536,
            resend: Duration::from_millis(100),
            snapshot_entries: 100_000,
            snapshot_bytes: 32 * 1024 * 1024,
            keep_slots: 4096,
            lease_reads: true,
            replace_after: Duration::from_secs(3 * 3600),
            auto_promote: true,
            disk_stall: Duration::from_millis(500),
        }
    }
}

/// Collects what a step wants done, in order.
#[derive(Debug, Default)]
pub struct Actions {
    list: Vec<Action>,
}

impl Actions {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, action: Action) {
        self.list.push(action);
    }

    /// Takes all, leaving it empty.
    pub fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.list)
    }

    /// Takes all in order while keeping the memory.
    pub fn drain(&mut self) -> impl Iterator<Item = Action> + '_ {
        self.list.drain(..)
    }
}

/// A point-in-time view for status pages and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Who this is.
    pub identity: Identity,
    /// Who leads.
    pub leader: LeaderView,
    /// Its promise.
    pub promised: Ballot,
    /// The chosen and applied prefix.
    pub chosen_upto: Slot,
    /// Slots at or below are no longer in the log.
    pub floor: Slot,
    /// The membership that governs the next slot.
    pub config: Config,
    /// Until when the lease may be used; `None` if not leading.
    pub lease_until: Option<Moment>,
    /// Whether damage is still being repaired.
    pub uncertain: bool,
}
