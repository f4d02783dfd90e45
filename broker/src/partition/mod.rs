//! A partition as this broker sees it: its log, its role, who waits for it.
//!
//! | file | what it knows |
//! |---|---|
//! | `mod` | [`Partition`]: append, read, roles |
//! | `replication` | what consumers may see (pure) |
//! | `waiters` | parked producers and fetches |
//! | `table` | all partitions of this broker; follows the metadata |
//! | `follower` | copies from leaders elsewhere |
//! | `isr` | asks the registry for other replicas in sync |
//!
//! Calls go down to the log and never up; answers return through futures. Called by the api.

pub mod follower;
pub mod isr;
pub mod replication;
pub mod table;
pub mod waiters;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use loggos_protocol::batch::Batch;
use loggos_protocol::ids::{BrokerId, LeaderEpoch, Offset, PartitionId, Timestamp, TopicId, TopicName};
use loggos_protocol::kafka::ErrorCode;
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::clock;
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
        let too_few = role.isr.len() < self.config().min_insync_replicas;
        if too_few {
            // Whoever waits for all wanted more than there are now: what it sent may or may not stay.
            self.progress.waiters.fail_committed(ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND);
        }
        self.progress.change(|replication| replication.set_role(role, clock::now()));
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

    /// Whether it may be told where the log ends for consumers: not so for a moment after an election.
    pub fn knows_its_end(&self) -> bool {
        self.progress.replication.lock().knows_its_end()
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
        let end = self.log.log_end();
        self.progress.change(|replication| replication.appended(end));
        self.progress.waiters.appended();
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

    /// The replicas in sync that there should be, if they are others than there are.
    pub fn isr_change(
        &self,
        now: Timestamp,
        lag_ms: i64,
        is_alive: impl Fn(BrokerId) -> bool,
    ) -> Option<BTreeSet<BrokerId>> {
        self.progress.replication.lock().isr_change(now, lag_ms, is_alive)
    }

    /// The registry didn't take a change of them.
    pub fn isr_refused(&self) {
        self.progress.replication.lock().isr_refused();
    }

    /// The role in force.
    pub fn role(&self) -> Role {
        self.progress.replication.lock().role().clone()
    }

    /// Copies what the leader of `epoch` sent, and waits for nothing: see [`Partition::flushed`].
    ///
    /// # Errors
    /// The log's; `Closed` when the leader is no longer that one.
    pub fn copy(&self, batches: &[Batch], epoch: LeaderEpoch, now: Timestamp) -> Result<(), LogError> {
        let (leads, current) = {
            let replication = self.progress.replication.lock();
            (replication.leads(), replication.role().leader_epoch)
        };
        if leads || current != epoch {
            return Err(LogError::Closed);
        }
        self.log.append_as_follower(batches, now)?;
        let end = self.log.log_end();
        self.progress.change(|replication| replication.appended(end));
        Ok(())
    }

    /// Is answered when everything that is in the log now is flushed.
    pub fn flushed(&self) -> Option<oneshot::Receiver<Answer>> {
        self.wait(Acks::Leader, self.log.log_end(), false)
    }

    /// Cuts what the leader hasn't. Waits for the disk.
    ///
    /// # Errors
    /// The log's.
    pub fn truncate(&self, offset: Offset) -> Result<(), LogError> {
        tracing::info!(topic = %self.topic, partition = %self.id, %offset, "truncated to what the leader has");
        self.log.truncate_to(offset)?;
        self.settle_cut();
        Ok(())
    }

    /// Gives up everything and goes on at `offset`, where the leader's log begins. Waits for the disk.
    ///
    /// # Errors
    /// The log's.
    pub fn restart_at(&self, offset: Offset) -> Result<(), LogError> {
        tracing::warn!(topic = %self.topic, partition = %self.id, %offset, "begun again at the leader's log start");
        self.log.restart_at(offset)?;
        self.settle_cut();
        Ok(())
    }

    fn settle_cut(&self) {
        let end = self.log.log_end();
        self.progress.flushed.store(self.log.flushed_end().raw(), Ordering::Release);
        let mut replication = self.progress.replication.lock();
        replication.truncated(end);
        self.progress.high_watermark.store(replication.high_watermark().raw(), Ordering::Release);
    }

    /// The leader says how far its high watermark is.
    pub fn leader_says(&self, high_watermark: Offset) {
        self.progress.change(|replication| replication.leader_says(high_watermark));
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
            self.progress
                .change(|replication| replication.follower_at(follower, wanted.offset, clock::now()));
        }
        let slice = self
            .log
            .read(wanted.offset, upto, (wanted.max_bytes, wanted.at_least_one))
            .map_err(|error| code_of(&error))?;
        Ok(Read { slice, high_watermark: self.high_watermark(), log_start })
    }

    /// Tells `watch` under `token` when there is more to see, or to copy if it `follows`.
    pub fn watch(&self, watch: &Arc<FetchWatch>, token: u32, follows: bool) {
        self.progress.waiters.watch(watch, token, follows);
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
