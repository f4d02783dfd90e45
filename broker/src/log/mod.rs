//! One partition's bytes on disk. A record is *flushed* once it stands in its segment file and in the directory's
//! commit journal (docs/decisions/0006); what is not flushed is nobody's business but the producer's.
//!
//! | file | what it knows |
//! |---|---|
//! | `mod` | [`Log`], the writer: append, roll, flush |
//! | `shrink` | what a log gives up: truncation, deleted records, retention |
//! | `scrub` | looking for rot |
//! | `reader` | what the log gives to read: slices of files, bytes not read |
//! | `segment`, `index`, `index_map` | one base offset: its file, its sparse index, its map |
//! | `policy`, `producers`, `epochs` | pure rules: when to roll, flush, expire; sequences; leader epochs |
//! | `entry`, `commit`, `checkpoint` | what goes to the journal, when it may be forgotten |
//! | `dir`, `recovery` | the directory: lock, create, delete; what a start finds |
//!
//! Synchronous: no tokio, no socket. Called by `partition`, and by tools that look at files.

mod checkpoint;
mod commit;
mod dir;
mod entry;
mod epochs;
mod error;
mod index;
mod index_map;
mod policy;
mod producers;
mod reader;
mod recovery;
mod scrub;
mod segment;
mod shrink;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use loggos_protocol::batch::{Batch, BatchHeader};
use loggos_protocol::ids::{LeaderEpoch, Offset, PartitionId, Timestamp, TopicId, TopicName};
use loggos_storage::disk::Disk;
use loggos_storage::journal;
use parking_lot::{Mutex, RwLock};

pub use commit::JournalMode;
pub use dir::{LogDir, LogDirOptions};
pub use epochs::Epochs;
pub use error::LogError;
pub use policy::LogConfig;
pub use producers::SequenceError;
pub use reader::{LogSlice, TimedOffset};
pub use scrub::Scrubbed;

use checkpoint::LogRecord;
use commit::Commit;
use entry::Replica;
use policy::BatchFacts;
use producers::{Producers, Verdict};
use reader::Tail;
use segment::Segment;

/// Bytes that a log with a lazy flush policy holds back for the journal; beyond it, its segment is synced instead.
const HELD_BYTES_MAX: usize = 4 << 20;

/// Which log: a topic's partition, and which life of this replica of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogId {
    /// The topic's identity.
    pub topic_id: TopicId,
    /// The topic's name.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// Drawn when the replica's folder is made.
    pub incarnation: u64,
}

impl LogId {
    fn replica(&self) -> Replica {
        Replica { topic_id: self.topic_id, partition: self.partition, incarnation: self.incarnation }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// Told of a log's progress, on the journal's thread: it must not wait.
pub trait LogListener: Send + Sync {
    /// Everything before `end` is flushed.
    fn flushed(&self, end: Offset);
    /// Nothing more will be flushed.
    fn failed(&self, error: &LogError);
}

/// What an append gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The first record's offset.
    pub base_offset: Offset,
    /// The offset after the last record: once the log is flushed up to it, so is the batch.
    pub end: Offset,
    /// Whether the batch had been appended before.
    pub duplicate: bool,
}

/// What the journal's callbacks need of a log.
struct Core {
    id: LogId,
    start: AtomicI64,
    end: AtomicI64,
    flushed: AtomicI64,
    /// A sync under way: what the journal says of later bytes counts when it's done.
    syncing: Mutex<Syncing>,
    listener: OnceLock<Arc<dyn LogListener>>,
    failed: Mutex<Option<LogError>>,
    closed: AtomicBool,
}

#[derive(Default)]
struct Syncing {
    upto: Option<Offset>,
    deferred: Option<Offset>,
}

impl Core {
    fn end(&self) -> Offset {
        Offset::new(self.end.load(Ordering::Acquire))
    }

    /// The journal has everything before `end`.
    fn journalled(&self, end: Offset) {
        let mut syncing = self.syncing.lock();
        if syncing.upto.is_some() {
            syncing.deferred = syncing.deferred.max(Some(end));
            return;
        }
        drop(syncing);
        self.advance(end);
    }

    /// The segments are durable before `end`.
    fn synced(&self, end: Offset) {
        let mut syncing = self.syncing.lock();
        let mut reached = end;
        if syncing.upto.is_none_or(|upto| upto <= end) {
            syncing.upto = None;
            reached = reached.max(syncing.deferred.take().unwrap_or(end));
        }
        drop(syncing);
        self.advance(reached);
    }

    fn advance(&self, end: Offset) {
        if self.flushed.fetch_max(end.raw(), Ordering::AcqRel) < end.raw()
            && let Some(listener) = self.listener.get()
        {
            listener.flushed(end);
        }
    }

    fn fail(&self, error: &LogError) {
        let first = self.failed.lock().replace(error.clone()).is_none();
        if first {
            tracing::error!(%error, log = %self.id, "a log can't be written any more");
            if let Some(listener) = self.listener.get() {
                listener.failed(error);
            }
        }
    }

    fn check(&self) -> Result<(), LogError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(LogError::Closed);
        }
        self.failed.lock().clone().map_or(Ok(()), Err)
    }
}

/// The end of a log, and what is known of its records.
struct Writer {
    epochs: Epochs,
    producers: Producers,
    held: Vec<journal::Entry>,
    held_bytes: usize,
    held_records: u64,
    held_since: Timestamp,
    /// Whether bytes were appended that neither the journal nor a sync has.
    unjournalled: bool,
    /// Whether anything changed since the last checkpoint.
    changed: bool,
}

/// A partition's log.
pub struct Log {
    core: Arc<Core>,
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    commit: Arc<Commit>,
    me: Weak<Self>,
    config: RwLock<Arc<LogConfig>>,
    writer: Mutex<Writer>,
    segments: RwLock<Vec<Arc<Segment>>>,
    tail: Mutex<Tail>,
}

impl Log {
    /// An empty log; recovery sets what it found.
    fn assemble(
        id: LogId,
        dir: PathBuf,
        disk: Arc<dyn Disk>,
        commit: Arc<Commit>,
        config: LogConfig,
    ) -> Arc<Self> {
        let core = Core {
            id,
            start: AtomicI64::new(0),
            end: AtomicI64::new(0),
            flushed: AtomicI64::new(0),
            syncing: Mutex::new(Syncing::default()),
            listener: OnceLock::new(),
            failed: Mutex::new(None),
            closed: AtomicBool::new(false),
        };
        let writer = Writer {
            epochs: Epochs::default(),
            producers: Producers::default(),
            held: Vec::new(),
            held_bytes: 0,
            held_records: 0,
            held_since: Timestamp::NONE,
            unjournalled: false,
            changed: true,
        };
        Arc::new_cyclic(|me| Self {
            core: Arc::new(core),
            dir,
            disk,
            commit,
            me: me.clone(),
            config: RwLock::new(Arc::new(config)),
            writer: Mutex::new(writer),
            segments: RwLock::new(Vec::new()),
            tail: Mutex::new(Tail::default()),
        })
    }

    /// Which log this is.
    pub fn id(&self) -> &LogId {
        &self.core.id
    }

    /// The first offset that can be read.
    pub fn log_start(&self) -> Offset {
        Offset::new(self.core.start.load(Ordering::Acquire))
    }

    /// The offset that the next record gets.
    pub fn log_end(&self) -> Offset {
        self.core.end()
    }

    /// Everything before it survives a crash of the machine.
    pub fn flushed_end(&self) -> Offset {
        Offset::new(self.core.flushed.load(Ordering::Acquire))
    }

    /// Bytes of all its segments.
    pub fn size(&self) -> u64 {
        self.segments.read().iter().map(|segment| segment.len()).sum()
    }

    /// Why it can't be written, if so.
    pub fn failure(&self) -> Option<LogError> {
        self.core.failed.lock().clone()
    }

    /// Sets who is told of progress; once.
    pub fn listen(&self, listener: Arc<dyn LogListener>) {
        let _ = self.core.listener.set(listener);
    }

    /// The configs in force.
    pub fn config(&self) -> Arc<LogConfig> {
        Arc::clone(&self.config.read())
    }

    /// Sets the configs; they hold from the next append on.
    pub fn set_config(&self, config: LogConfig) {
        *self.config.write() = Arc::new(config);
    }

    /// The largest leader epoch not above `epoch` that this log knows, and where it ends (KIP-101).
    pub fn epoch_end(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        self.writer.lock().epochs.end_of(epoch, self.log_end())
    }

    /// The leader epoch of the record at `offset`.
    pub fn epoch_of(&self, offset: Offset) -> Option<LeaderEpoch> {
        self.writer.lock().epochs.of(offset)
    }

    /// The leader epoch of the last append.
    pub fn latest_epoch(&self) -> Option<LeaderEpoch> {
        self.writer.lock().epochs.latest()
    }

    /// Notes the epoch of a new leader before its first append.
    pub fn begin_epoch(&self, epoch: LeaderEpoch) {
        let mut writer = self.writer.lock();
        writer.epochs.assign(epoch, self.log_end());
        writer.changed = true;
    }

    /// Appends a producer's batch as the leader of `epoch`: stamps its offsets and its epoch, and hands it to the
    /// disk. It is flushed when [`LogListener::flushed`] reaches [`Appended::end`].
    ///
    /// # Errors
    /// `Sequence`, `Full`, `Closed`, and what takes the directory offline.
    pub fn append_as_leader(
        &self,
        mut batch: Batch,
        epoch: LeaderEpoch,
        now: Timestamp,
    ) -> Result<Appended, LogError> {
        let config = self.config();
        let mut writer = self.writer.lock();
        self.core.check()?;
        if let Verdict::Duplicate(known) = writer.producers.check(&batch.header)? {
            let end = known.last_offset.next();
            return Ok(Appended { base_offset: known.base_offset, end, duplicate: true });
        }
        batch.header.base_offset = self.log_end();
        batch.header.leader_epoch = epoch;
        self.write(&mut writer, &batch, &config, now)?;
        self.flush_if_due(&mut writer, &config, now);
        Ok(Appended {
            base_offset: batch.header.base_offset,
            end: batch.header.next_offset(),
            duplicate: false,
        })
    }

    /// Appends what a leader sent, as it is; batches that the log has already are left out.
    ///
    /// # Errors
    /// `Gap`, and as [`Log::append_as_leader`].
    pub fn append_as_follower(&self, batches: &[Batch], now: Timestamp) -> Result<(), LogError> {
        let config = self.config();
        let mut writer = self.writer.lock();
        self.core.check()?;
        for batch in batches {
            let (expected, found) = (self.log_end(), batch.header.base_offset);
            if batch.header.next_offset() <= expected {
                continue;
            }
            if found < expected || (found > expected && self.size() > 0 && expected > self.log_start()) {
                return Err(LogError::Gap { expected, found });
            }
            self.write(&mut writer, batch, &config, now)?;
        }
        self.flush_if_due(&mut writer, &config, now);
        Ok(())
    }

    fn write(
        &self,
        writer: &mut Writer,
        batch: &Batch,
        config: &LogConfig,
        now: Timestamp,
    ) -> Result<(), LogError> {
        let header = &batch.header;
        let timestamp = if header.max_timestamp.raw() < 0 { now } else { header.max_timestamp };
        let facts = BatchFacts { len: batch.len() as u64, last_offset: header.last_offset(), timestamp };
        let segment = self.segment_for(facts, header.base_offset, config)?;
        let raw = header.encode();
        let position = match segment.append(header, &raw, &batch.payload, config.index_interval_bytes) {
            Ok(position) => position,
            Err(error) => {
                let error = LogError::io("append to", segment.path(), error);
                if error.takes_offline() {
                    self.commit.fail(&error);
                    self.core.fail(&error);
                }
                return Err(error);
            }
        };
        writer.epochs.assign(header.leader_epoch, header.base_offset);
        writer.producers.appended(header, now);
        writer.changed = true;
        self.tail.lock().push(header, segment.base, position);
        if self.is_lazy(config) {
            writer.unjournalled = true;
        } else {
            let entry = entry::append(&self.core.id, segment.base, position, &raw, batch.payload.clone());
            self.hold(writer, header, entry, now);
        }
        self.core.end.store(header.next_offset().raw(), Ordering::Release);
        Ok(())
    }

    /// Whether flushing is left to the checkpoints: there is no sense in holding anything back.
    const fn is_lazy(&self, config: &LogConfig) -> bool {
        config.flush_messages >= i64::MAX as u64 && config.flush_ms == i64::MAX
    }

    fn hold(&self, writer: &mut Writer, header: &BatchHeader, entry: journal::Entry, now: Timestamp) {
        if writer.held_records == 0 {
            writer.held_since = now;
        }
        writer.held_records += u64::try_from(header.record_count).unwrap_or(0);
        writer.held_bytes += entry.head.len() + entry.body.len();
        writer.held.push(entry);
        if writer.held_bytes > HELD_BYTES_MAX {
            writer.held = Vec::new();
            writer.held_bytes = 0;
            writer.unjournalled = true;
        }
    }

    /// The segment that a batch goes to: the active one, or a new one.
    fn segment_for(
        &self,
        batch: BatchFacts,
        base: Offset,
        config: &LogConfig,
    ) -> Result<Arc<Segment>, LogError> {
        let active = self.segments.read().last().cloned();
        if let Some(active) = &active
            && !policy::must_roll(active.facts(), batch, config)
            && (active.len() > 0 || active.base == base)
        {
            return Ok(Arc::clone(active));
        }
        if let Some(active) = &active
            && active.len() > 0
        {
            active.seal().map_err(|error| LogError::io("close", active.path(), error))?;
        }
        let made = Segment::create(Arc::clone(&self.disk), &self.dir, base);
        let segment = Arc::new(made.map_err(|error| LogError::io("make a segment in", &self.dir, error))?);
        let mut segments = self.segments.write();
        if let Some(empty) = segments.pop_if(|last| last.len() == 0 && last.base != base) {
            let _ = empty.remove();
        }
        segments.retain(|known| known.base != base);
        segments.push(Arc::clone(&segment));
        Ok(segment)
    }

    fn flush_if_due(&self, writer: &mut Writer, config: &LogConfig, now: Timestamp) {
        if writer.held_records == 0 {
            return;
        }
        if config.flush_due(writer.held_records, writer.held_since, now) {
            self.flush_held(writer);
        } else if config.flush_ms != i64::MAX {
            self.commit.watch(self.me.clone());
        }
    }

    /// Sends what is held back on its way to the disk.
    fn flush_held(&self, writer: &mut Writer) {
        let end = self.log_end();
        let entries = std::mem::take(&mut writer.held);
        (writer.held_bytes, writer.held_records) = (0, 0);
        let journalled = !writer.unjournalled && self.commit.append(entries, &self.core, end);
        if !journalled {
            // The journal hasn't all of it: only a sync of the segments can vouch for the whole.
            writer.unjournalled = false;
            self.core.syncing.lock().upto = Some(end);
            self.commit.sync(self.me.clone(), end);
        }
    }

    /// Sends everything on its way to the disk now.
    pub fn flush(&self) {
        let mut writer = self.writer.lock();
        if writer.held_records > 0 || writer.unjournalled {
            self.flush_held(&mut writer);
        }
    }

    /// Flushes if it has waited for long enough; says whether it still waits.
    fn tick(&self, now: Timestamp) -> bool {
        let config = self.config();
        let mut writer = self.writer.lock();
        if writer.held_records == 0 {
            return false;
        }
        if config.flush_in(writer.held_since, now).is_some_and(|left| left.is_zero()) {
            self.flush_held(&mut writer);
        }
        writer.held_records > 0
    }

    /// Makes all that is in the segments durable, and says so.
    fn sync(&self, end: Offset) {
        let dirty = self.dirty_segments();
        for segment in dirty {
            if let Err(error) = segment.sync() {
                let error = LogError::io("sync", segment.path(), error);
                self.commit.fail(&error);
                self.core.fail(&error);
                return;
            }
        }
        self.core.synced(end);
    }

    /// Has the system begin to write what was appended, where that is at least so many bytes.
    fn write_back(&self, at_least: u64) {
        for segment in self.dirty_segments() {
            segment.write_back(at_least);
        }
    }

    /// The segments with bytes that no sync has covered, oldest first.
    fn dirty_segments(&self) -> Vec<Arc<Segment>> {
        self.segments.read().iter().filter(|segment| segment.is_dirty()).cloned().collect()
    }

    /// What a checkpoint says of this log, everything before its end to be synced by the caller; whether it changed
    /// since the last one.
    fn record(&self) -> (LogRecord, bool) {
        let mut writer = self.writer.lock();
        let segments = self.segments.read();
        let active = segments.last();
        let changed = std::mem::replace(&mut writer.changed, false);
        let id = &self.core.id;
        let record = LogRecord {
            topic: id.topic.as_str().to_owned(),
            topic_id: id.topic_id.to_string(),
            partition: id.partition,
            incarnation: id.incarnation,
            start: self.log_start(),
            end: self.log_end(),
            active: active.map_or(self.log_end(), |active| active.base),
            active_len: active.map_or(0, |active| active.len()),
            times: segments
                .iter()
                .map(|segment| segment.facts())
                .map(|facts| (facts.base, facts.first_timestamp, facts.max_timestamp))
                .collect(),
            epochs: writer.epochs.pairs().to_vec(),
            producers: writer.producers.states().map(|(id, state)| (*id, state.clone())).collect(),
        };
        (record, changed)
    }

    /// Refuses everything from now on.
    fn close(&self) {
        self.core.closed.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("id", &self.core.id).field("end", &self.log_end()).finish_non_exhaustive()
    }
}
