//! A partition as this broker sees it: its log, its role, who waits for it.
//!
//! | file | what it knows |
//! |---|---|
//! | `mod` | [`Partition`]: append, read, roles |
//! | `replication` | what consumers may see (pure) |
//! | `waiters` | parked producers and fetches |
//! | `table` | all partitions of this broker; follows the metadata |
//!
//! Calls go down to the log and never up; answers return through futures. Called by the api.

pub mod replication;
pub mod table;
pub mod waiters;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use loggos_protocol::batch::Batch;
use loggos_protocol::ids::{BrokerId, LeaderEpoch, Offset, PartitionId, Timestamp, TopicId, TopicName};
use loggos_protocol::kafka::ErrorCode;
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::config::TopicConfig;
use crate::log::{Appended, Log, LogError, LogListener, LogSlice, SequenceError};
use replication::{Replication, Role};
use waiters::{Answer, FetchWatch, Goal, Waiters};

pub use table::Table;

/// How many replicas a producer wants to hear of (`acks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// None: no reply at all.
    None,
    /// The leader.
    Leader,
    /// All in sync.
    All,
}

impl Acks {
    /// From the number on the wire.
    pub const fn from_wire(acks: i16) -> Option<Self> {
        match acks {
            0 => Some(Self::None),
            1 => Some(Self::Leader),
            -1 => Some(Self::All),
            _ => None,
        }
    }
}

/// An append that was taken; its answer comes when enough replicas have flushed it.
#[derive(Debug)]
pub struct Ticket {
    /// What the log did.
    pub appended: Appended,
    /// The time that its records got, on topics that give them one.
    pub append_time: Timestamp,
    /// The first offset that can be read.
    pub log_start: Offset,
    /// What is still to come; `None` when there is nothing to wait for.
    pub answer: Option<oneshot::Receiver<Answer>>,
}

/// What a read gave.
#[derive(Debug)]
pub struct Read {
    /// The bytes, if there are any to be seen.
    pub slice: Option<LogSlice>,
    /// Consumers see nothing at or behind it.
    pub high_watermark: Offset,
    /// The first offset that can be read.
    pub log_start: Offset,
}

/// How much a fetch wants of one partition.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// From where.
    pub offset: Offset,
    /// How much at most, in bytes.
    pub max_bytes: usize,
    /// But one batch in any case.
    pub at_least_one: bool,
    /// Who asks: a broker that follows, or a consumer.
    pub follower: Option<BrokerId>,
}

/// A partition.
pub struct Partition {
    topic: TopicName,
    topic_id: TopicId,
    id: PartitionId,
    log: Arc<Log>,
    progress: Arc<Progress>,
    config: RwLock<Arc<TopicConfig>>,
}

/// What the log's thread moves.
struct Progress {
    replication: Mutex<Replication>,
    /// A copy, for those who only look.
    high_watermark: AtomicI64,
    flushed: AtomicI64,
    waiters: Waiters,
}

impl Progress {
    /// Tells everybody what `change` has brought.
    fn change(&self, change: impl FnOnce(&mut Replication) -> Offset) {
        let reached = {
            let mut replication = self.replication.lock();
            let reached = change(&mut replication);
            let before = self.high_watermark.swap(reached.raw(), Ordering::AcqRel);
            (reached, before != reached.raw())
        };
        let (committed, moved) = reached;
        self.waiters.reached(Offset::new(self.flushed.load(Ordering::Acquire)), committed);
        if moved {
            self.waiters.moved();
        }
    }
}

impl LogListener for Progress {
    fn flushed(&self, end: Offset) {
        self.flushed.fetch_max(end.raw(), Ordering::AcqRel);
        self.change(|replication| replication.flushed(end));
    }

    fn failed(&self, _error: &LogError) {
        self.waiters.fail(ErrorCode::KAFKA_STORAGE_ERROR);
    }
}

impl Partition {
    /// A partition whose log is open.
    pub fn new(me: BrokerId, log: Arc<Log>, config: Arc<TopicConfig>) -> Arc<Self> {
        let replication = Replication::new(me, log.flushed_end(), log.log_end());
        let progress = Arc::new(Progress {
            replication: Mutex::new(replication),
            high_watermark: AtomicI64::new(0),
            flushed: AtomicI64::new(log.flushed_end().raw()),
            waiters: Waiters::default(),
        });
        log.listen(Arc::clone(&progress) as Arc<dyn LogListener>);
        let id = log.id();
        let partition = Self {
            topic: id.topic.clone(),
            topic_id: id.topic_id,
            id: id.partition,
            progress,
            config: RwLock::new(Arc::clone(&config)),
            log,
        };
        partition.set_config(config);
        Arc::new(partition)
    }

    /// The topic's name.
    pub const fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// The topic's identity.
    pub const fn topic_id(&self) -> TopicId {
        self.topic_id
    }

    /// Its number.
    pub const fn id(&self) -> PartitionId {
        self.id
    }

    /// Its log.
    pub const fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// The topic's configs.
    pub fn config(&self) -> Arc<TopicConfig> {
        Arc::clone(&self.config.read())
    }

    /// Sets the topic's configs.
    pub fn set_config(&self, config: Arc<TopicConfig>) {
        self.log.set_config(config.log.clone());
        let exposes = config.exposes_appended;
        *self.config.write() = config;
        self.progress.change(|replication| replication.set_exposes_appended(exposes));
    }

    /// Takes the role that the registry gives.
    pub fn set_role(&self, role: Role) {
        let lost = {
            let replication = self.progress.replication.lock();
            replication.leads() && role.leader != replication.role().leader
        };
        let begins = {
            let replication = self.progress.replication.lock();
            role.leader_epoch > replication.role().leader_epoch
        };
        let epoch = role.leader_epoch;
        self.progress.change(|replication| replication.set_role(role));
        if begins && self.leads() {
            self.log.begin_epoch(epoch);
        }
        if lost {
            self.progress.waiters.fail(ErrorCode::NOT_LEADER_OR_FOLLOWER);
        }
    }

    /// Whether this broker leads it.
    pub fn leads(&self) -> bool {
        self.progress.replication.lock().leads()
    }

    /// Who leads, and in which epoch.
    pub fn leader(&self) -> (BrokerId, LeaderEpoch) {
        let replication = self.progress.replication.lock();
        (replication.role().leader, replication.role().leader_epoch)
    }

    /// Consumers see nothing at or behind it.
    pub fn high_watermark(&self) -> Offset {
        Offset::new(self.progress.high_watermark.load(Ordering::Acquire)).max(self.log.log_start())
    }

    /// Checks the leader epoch that a client believes in (KIP-320).
    ///
    /// # Errors
    /// `NOT_LEADER_OR_FOLLOWER`, `FENCED_LEADER_EPOCH` when the client is behind, `UNKNOWN_LEADER_EPOCH` when we are.
    pub fn check_leader(&self, believed: LeaderEpoch) -> Result<LeaderEpoch, ErrorCode> {
        let replication = self.progress.replication.lock();
        let epoch = replication.role().leader_epoch;
        if !replication.leads() {
            return Err(ErrorCode::NOT_LEADER_OR_FOLLOWER);
        }
        if believed == LeaderEpoch::NONE || believed == epoch {
            return Ok(epoch);
        }
        Err(if believed < epoch { ErrorCode::FENCED_LEADER_EPOCH } else { ErrorCode::UNKNOWN_LEADER_EPOCH })
    }

    /// Appends a producer's batch. The append is done when this returns; the ticket's answer says when enough
    /// replicas have flushed it.
    ///
    /// # Errors
    /// Kafka's code of what is wrong.
    pub fn append(&self, mut batch: Batch, acks: Acks, now: Timestamp) -> Result<Ticket, ErrorCode> {
        let epoch = self.check_leader(LeaderEpoch::NONE)?;
        let config = self.config();
        if acks == Acks::All {
            let in_sync = self.progress.replication.lock().in_sync_count();
            if in_sync < config.min_insync_replicas {
                return Err(ErrorCode::NOT_ENOUGH_REPLICAS);
            }
        }
        let append_time = if config.append_time { now } else { Timestamp::NONE };
        if config.append_time {
            batch.restamp_append_time(now);
        }
        let appended = self.log.append_as_leader(batch, epoch, now).map_err(|error| code_of(&error))?;
        if config.exposes_appended {
            let end = self.log.log_end();
            self.progress.change(|replication| replication.appended(end));
        }
        let answer = self.wait(acks, appended.end, config.exposes_appended);
        Ok(Ticket { appended, append_time, log_start: self.log.log_start(), answer })
    }

    fn wait(&self, acks: Acks, end: Offset, exposes_appended: bool) -> Option<oneshot::Receiver<Answer>> {
        let goal = match acks {
            Acks::None => return None,
            Acks::Leader if exposes_appended => return None,
            Acks::Leader => Goal::Flushed,
            Acks::All => Goal::Committed,
        };
        let reached = || match goal {
            Goal::Flushed => Offset::new(self.progress.flushed.load(Ordering::Acquire)) >= end,
            Goal::Committed => self.high_watermark() >= end,
        };
        if reached() {
            return None;
        }
        let answer = self.progress.waiters.wait(goal, end);
        // It may have been reached between the two, with nobody to be told.
        if reached() {
            self.progress.waiters.reached(self.log.flushed_end(), self.high_watermark());
        }
        if self.log.failure().is_some() {
            self.progress.waiters.fail(ErrorCode::KAFKA_STORAGE_ERROR);
        }
        Some(answer)
    }

    /// Reads for a consumer or a follower.
    ///
    /// # Errors
    /// Kafka's code of what is wrong.
    pub fn read(&self, wanted: Wanted, believed: LeaderEpoch) -> Result<Read, ErrorCode> {
        self.check_leader(believed)?;
        let (high_watermark, log_start) = (self.high_watermark(), self.log.log_start());
        let upto = if wanted.follower.is_some() { self.log.log_end() } else { high_watermark };
        if wanted.offset < log_start || wanted.offset > self.log.log_end() {
            return Err(ErrorCode::OFFSET_OUT_OF_RANGE);
        }
        if let Some(follower) = wanted.follower {
            self.progress.change(|replication| replication.follower_at(follower, wanted.offset));
        }
        let slice = self
            .log
            .read(wanted.offset, upto, (wanted.max_bytes, wanted.at_least_one))
            .map_err(|error| code_of(&error))?;
        Ok(Read { slice, high_watermark: self.high_watermark(), log_start })
    }

    /// Tells `watch` under `token` when there is more to see.
    pub fn watch(&self, watch: &Arc<FetchWatch>, token: u32) {
        self.progress.waiters.watch(watch, token);
    }

    /// Tells it no more.
    pub fn unwatch(&self, watch: &Arc<FetchWatch>, token: u32) {
        self.progress.waiters.unwatch(watch, token);
    }

    /// Gives up the records before `offset`, or before the high watermark if that is -1. Waits for the disk.
    ///
    /// # Errors
    /// Kafka's code of what is wrong.
    pub fn delete_records(&self, offset: Offset) -> Result<Offset, ErrorCode> {
        self.check_leader(LeaderEpoch::NONE)?;
        let high_watermark = self.high_watermark();
        let offset = if offset == Offset::new(-1) { high_watermark } else { offset };
        if offset > high_watermark || offset < Offset::ZERO {
            return Err(ErrorCode::OFFSET_OUT_OF_RANGE);
        }
        let start = self.log.delete_records_before(offset).map_err(|error| code_of(&error))?;
        self.progress.waiters.moved();
        Ok(start)
    }

    /// Lets go what has had its time. Waits for the disk.
    pub fn expire(&self, now: Timestamp) {
        match self.log.expire(self.high_watermark(), now) {
            Ok(0) => {}
            Ok(bytes) => {
                tracing::info!(topic = %self.topic, partition = %self.id, bytes, "old segments deleted");
                self.progress.waiters.moved();
            }
            Err(error) => {
                tracing::error!(topic = %self.topic, partition = %self.id, %error, "retention failed")
            }
        }
    }

    /// It's gone: whoever waits is told.
    pub(crate) fn close(&self) {
        self.progress.waiters.fail(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
    }
}

/// Kafka's code for a log's refusal.
pub fn code_of(error: &LogError) -> ErrorCode {
    match error {
        LogError::Full { .. } | LogError::Io { .. } | LogError::Journal(_) => ErrorCode::KAFKA_STORAGE_ERROR,
        LogError::Corrupt { .. } => ErrorCode::CORRUPT_MESSAGE,
        LogError::OutOfRange { .. } => ErrorCode::OFFSET_OUT_OF_RANGE,
        LogError::Sequence(SequenceError::OutOfOrder { .. }) => ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER,
        LogError::Sequence(SequenceError::Fenced { .. }) => ErrorCode::INVALID_PRODUCER_EPOCH,
        LogError::Gap { .. } => ErrorCode::UNKNOWN_SERVER_ERROR,
        LogError::Closed => ErrorCode::NOT_LEADER_OR_FOLLOWER,
    }
}
