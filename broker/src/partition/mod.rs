//! A partition as this broker sees it: its log, its role, who waits for it.
//!
//! | file | what it knows |
//! |---|---|
//! | `mod` | [`Partition`]: append, read, roles |
//! | `read` | what consumers and followers are given |
//! | `replication` | what consumers may see (pure) |
//! | `divergence` | where two replicas' logs part, and what is done about it (pure) |
//! | `throttle` | how fast replicas catch up (pure) |
//! | `lease` | how long this broker may act for the ensemble (pure) |
//! | `waiters` | parked producers and fetches |
//! | `table` | all partitions of this broker; follows the metadata |
//! | `follower`, `copying` | copies from leaders elsewhere; what it asks them for |
//! | `isr` | asks the registry for other replicas in sync |
//!
//! Calls go down to the log and never up; answers return through futures. Called by the api.

mod copying;
pub mod divergence;
pub mod follower;
pub mod isr;
pub mod lease;
mod read;
pub mod replication;
pub mod table;
pub mod throttle;
pub mod waiters;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use loggos_protocol::batch::Batch;
use loggos_protocol::ids::{
    BrokerEpoch, BrokerId, LeaderEpoch, Offset, PartitionId, Timestamp, TopicId, TopicName,
};
use loggos_protocol::kafka::ErrorCode;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use tokio::sync::oneshot;

use crate::clock;
use crate::config::TopicConfig;
use crate::log::{Appended, Log, LogError, LogListener, SequenceError};
use divergence::{Asked, Remedy, Verdict};
use lease::Lease;
use replication::{IsrChange, Policy, Replication, Role};
use waiters::{Answer, FetchWatch, Goal, Waiters};

pub use read::{Asker, Read, Wanted};
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

/// A partition.
pub struct Partition {
    topic: TopicName,
    topic_id: TopicId,
    id: PartitionId,
    log: Arc<Log>,
    /// Appends and truncations of a role happen in its time: who changes the role waits for them, and they look at
    /// the role under it.
    turn: RwLock<()>,
    progress: Arc<Progress>,
    config: RwLock<Arc<TopicConfig>>,
    /// Where a damaged batch was found.
    damage: Mutex<Option<Offset>>,
}

/// What the log's thread moves.
struct Progress {
    replication: Mutex<Replication>,
    lease: Arc<Lease>,
    /// A copy, for those who only look.
    high_watermark: AtomicI64,
    flushed: AtomicI64,
    waiters: Waiters,
}

impl Progress {
    /// Tells everybody what `change` has brought; gives what `change` gave.
    fn change<T>(&self, change: impl FnOnce(&mut Replication) -> T) -> T {
        let (given, reached, moved) = {
            let mut replication = self.replication.lock();
            let given = change(&mut replication);
            let reached = replication.progress();
            let before = self.high_watermark.swap(reached.high_watermark.raw(), Ordering::AcqRel);
            (given, reached, before != reached.high_watermark.raw())
        };
        let flushed = Offset::new(self.flushed.load(Ordering::Acquire));
        self.waiters.reached(flushed, reached.high_watermark, |goal| self.verdict(goal, reached.enough));
        if moved {
            self.waiters.moved();
        }
        given
    }

    /// What a producer is told whose goal is reached.
    fn verdict(&self, goal: Goal, enough: bool) -> Answer {
        if !self.lease.holds(clock::moment()) {
            // Somebody else may lead already; the producer asks who.
            Err(ErrorCode::NOT_LEADER_OR_FOLLOWER)
        } else if goal == Goal::Committed && !enough {
            Err(ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND)
        } else {
            Ok(())
        }
    }

    /// Whether a goal is reached and may be told.
    fn is_reached(&self, goal: Goal, end: Offset) -> bool {
        let reached = self.replication.lock().progress();
        let mark = match goal {
            Goal::Flushed => Offset::new(self.flushed.load(Ordering::Acquire)),
            Goal::Committed => reached.high_watermark,
        };
        mark >= end && self.verdict(goal, reached.enough).is_ok()
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
    pub fn new(me: BrokerId, log: Arc<Log>, config: Arc<TopicConfig>, lease: Arc<Lease>) -> Arc<Self> {
        let replication = Replication::new(me, log.flushed_end(), log.log_end());
        let progress = Arc::new(Progress {
            replication: Mutex::new(replication),
            lease,
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
            turn: RwLock::new(()),
            progress,
            config: RwLock::new(Arc::clone(&config)),
            damage: Mutex::new(None),
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
        let policy =
            Policy { exposes_appended: config.exposes_appended, min_in_sync: config.min_insync_replicas };
        *self.config.write() = config;
        self.progress.change(|replication| replication.set_policy(policy));
    }

    /// Takes the role that the registry gives.
    pub fn set_role(&self, role: Role) {
        let turn = self.turn.write();
        let (led, before) = {
            let replication = self.progress.replication.lock();
            (replication.leads(), replication.role().leader_epoch)
        };
        let epoch = role.leader_epoch;
        let too_few = role.isr.len() < self.config().min_insync_replicas;
        if !self.progress.change(|replication| replication.set_role(role, clock::moment())) {
            return;
        }
        let leads = self.leads();
        if leads && epoch > before {
            self.log.begin_epoch(epoch);
        }
        drop(turn);
        if led && !leads {
            self.progress.waiters.fail(ErrorCode::NOT_LEADER_OR_FOLLOWER);
        } else if too_few {
            // Whoever waits for all wanted more than there are now: what it sent may or may not stay.
            self.progress.waiters.fail_committed(ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND);
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

    /// Whether it may be told where the log ends for consumers: not so for a moment after an election.
    pub fn knows_its_end(&self) -> bool {
        self.progress.replication.lock().knows_its_end()
    }

    /// Checks the leader epoch that a client believes in (KIP-320).
    ///
    /// # Errors
    /// `NOT_LEADER_OR_FOLLOWER`, also when our lease is over and somebody else may lead already;
    /// `FENCED_LEADER_EPOCH` when the client is behind, `UNKNOWN_LEADER_EPOCH` when we are.
    pub fn check_leader(&self, believed: LeaderEpoch) -> Result<LeaderEpoch, ErrorCode> {
        let (leads, epoch) = {
            let replication = self.progress.replication.lock();
            (replication.leads(), replication.role().leader_epoch)
        };
        if !leads || !self.progress.lease.holds(clock::moment()) {
            return Err(ErrorCode::NOT_LEADER_OR_FOLLOWER);
        }
        check_epoch(epoch, believed)?;
        Ok(epoch)
    }

    /// Appends a producer's batch. The append is done when this returns; the ticket's answer says when enough
    /// replicas have flushed it.
    ///
    /// # Errors
    /// Kafka's code of what is wrong.
    pub fn append(&self, mut batch: Batch, acks: Acks, now: Timestamp) -> Result<Ticket, ErrorCode> {
        let config = self.config();
        let turn = self.turn.read();
        let epoch = self.check_leader(LeaderEpoch::NONE)?;
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
        self.progress.change(|replication| replication.appended(end, clock::moment()));
        drop(turn);
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
        if self.progress.is_reached(goal, end) {
            return None;
        }
        let answer = self.progress.waiters.wait(goal, end);
        // It may have been reached between the two, with nobody to be told.
        self.progress.change(|_| ());
        if self.log.failure().is_some() {
            self.progress.waiters.fail(ErrorCode::KAFKA_STORAGE_ERROR);
        } else if !self.leads() && goal == Goal::Committed {
            self.progress.waiters.fail(ErrorCode::NOT_LEADER_OR_FOLLOWER);
        }
        Some(answer)
    }

    /// The replicas in sync that there should be, if they are others than there are; also a change that was asked
    /// for before and of which it isn't known whether the registry has taken it.
    pub fn isr_change(
        &self,
        lag_ms: i64,
        life_of: impl Fn(BrokerId) -> Option<BrokerEpoch>,
    ) -> Option<IsrChange> {
        let now = clock::moment();
        self.progress.change(|replication| {
            let asked = replication.pending_change().cloned();
            asked.or_else(|| replication.isr_change(now, lag_ms, life_of))
        })
    }

    /// Whether this broker's copying is to be bounded: it isn't in sync, and the topic names it.
    pub fn is_throttled_here(&self, me: BrokerId) -> bool {
        let names = self.config.read().follower_throttled.names(self.id, me);
        names && !self.progress.replication.lock().role().isr.contains(&me)
    }

    /// Whether what this broker, the leader, gives to `follower` is to be bounded.
    pub fn is_throttled_for(&self, me: BrokerId, follower: BrokerId) -> bool {
        let names = self.config.read().leader_throttled.names(self.id, me);
        names && !self.progress.replication.lock().role().isr.contains(&follower)
    }

    /// Whether there are other replicas.
    pub fn is_replicated(&self) -> bool {
        self.progress.replication.lock().role().replicas.len() > 1
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
        let _turn = self.follows(epoch)?;
        self.log.append_as_follower(batches, now)?;
        let end = self.log.log_end();
        self.progress.change(|replication| replication.appended(end, clock::moment()));
        Ok(())
    }

    /// The time of a follower of the leader of `epoch`, as long as it lasts.
    fn follows(&self, epoch: LeaderEpoch) -> Result<RwLockWriteGuard<'_, ()>, LogError> {
        let turn = self.turn.write();
        let replication = self.progress.replication.lock();
        if replication.leads() || replication.role().leader_epoch != epoch {
            return Err(LogError::Closed);
        }
        Ok(turn)
    }

    /// From where to copy, when everything that is here is flushed (see [`divergence::asks_from`]).
    pub fn asks_from(&self) -> Option<Offset> {
        let exposes = self.config.read().exposes_appended;
        divergence::asks_from(self.log.log_end(), self.log.flushed_end(), exposes)
    }

    /// Is answered when everything that is in the log now is flushed.
    pub fn flushed(&self) -> Option<oneshot::Receiver<Answer>> {
        self.wait(Acks::Leader, self.log.log_end(), false)
    }

    /// Does what the answer of the leader of `epoch` asks for, up to the records that it brings; whether those can be
    /// appended. Waits for the disk.
    ///
    /// # Errors
    /// The log's; `Closed` when the leader is no longer that one.
    pub fn reconcile(
        &self,
        asked: Asked,
        (verdict, leader_start): (Verdict, Offset),
        epoch: LeaderEpoch,
    ) -> Result<bool, LogError> {
        let _turn = self.follows(epoch)?;
        let (topic, partition, end) = (&self.topic, self.id, self.log.log_end());
        let latest = self.log.latest_epoch().unwrap_or(LeaderEpoch::NONE);
        match divergence::remedy(asked, verdict, leader_start, (self.log.as_ref(), latest)) {
            Remedy::Append => return Ok(true),
            Remedy::Ignore => return Ok(false),
            Remedy::TruncateTo(offset) => {
                if offset < self.high_watermark() {
                    tracing::error!(%topic, %partition, %offset, "records that consumers have seen are cut");
                } else {
                    tracing::info!(%topic, %partition, %offset, %end, "truncated to what the leader has");
                }
                self.log.truncate_to(offset)?;
            }
            Remedy::RestartAt(offset) => {
                tracing::warn!(%topic, %partition, %offset, %end, "begun again where the leader's log starts");
                self.log.restart_at(offset)?;
            }
        }
        self.settle_cut();
        Ok(false)
    }

    /// A damaged batch was found, that begins at `offset` or holds it: from now on nothing is copied here until it is
    /// cut.
    pub fn note_damage(&self, offset: Offset) {
        let mut damage = self.damage.lock();
        *damage = Some(damage.map_or(offset, |known| known.min(offset)));
    }

    /// Where a damaged batch was found.
    pub fn damage(&self) -> Option<Offset> {
        *self.damage.lock()
    }

    /// Whether this replica is one of those in sync.
    pub fn is_in_sync(&self) -> bool {
        self.progress.replication.lock().is_in_sync()
    }

    /// Cuts a damaged batch and what is behind it, if another broker leads and nobody counts on this replica; whether
    /// that was so. Waits for the disk.
    ///
    /// # Errors
    /// The log's.
    pub fn cut_damage(&self, offset: Offset) -> Result<bool, LogError> {
        let _turn = self.turn.write();
        {
            let replication = self.progress.replication.lock();
            let leader = replication.role().leader;
            if replication.leads() || leader == BrokerId::NONE || replication.is_in_sync() {
                return Ok(false);
            }
        }
        self.log.truncate_to(offset)?;
        self.settle_cut();
        *self.damage.lock() = None;
        Ok(true)
    }

    fn settle_cut(&self) {
        let end = self.log.log_end();
        self.progress.flushed.store(self.log.flushed_end().raw(), Ordering::Release);
        let mut replication = self.progress.replication.lock();
        replication.truncated(end);
        self.progress.high_watermark.store(replication.high_watermark().raw(), Ordering::Release);
    }

    /// The leader says how far its high watermark is.
    ///
    /// # Errors
    /// `Closed` when the leader is no longer that of `epoch`.
    pub fn leader_says(&self, high_watermark: Offset, epoch: LeaderEpoch) -> Result<(), LogError> {
        let _turn = self.follows(epoch)?;
        self.progress.change(|replication| replication.leader_says(high_watermark));
        Ok(())
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

/// Compares the leader epoch that a client believes in with ours.
fn check_epoch(ours: LeaderEpoch, believed: LeaderEpoch) -> Result<(), ErrorCode> {
    match believed {
        LeaderEpoch::NONE => Ok(()),
        _ if believed < ours => Err(ErrorCode::FENCED_LEADER_EPOCH),
        _ if believed > ours => Err(ErrorCode::UNKNOWN_LEADER_EPOCH),
        _ => Ok(()),
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
