//! A log directory: every replica that this broker keeps, one journal for all of them, and the checkpoints that let
//! the journal forget (rule 5 of docs/decisions/0006).
//!
//! ```text
//! <dir>/lock          held by the process
//! <dir>/journal/      storage::journal's files
//! <dir>/checkpoint    up to where the journal isn't needed, and every log as it was
//! <dir>/<topic>-<partition>/replica.json, <base offset>.log, <base offset>.index
//! ```
//! Called by `partition::table`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use loggos_protocol::ids::{Offset, PartitionId, Timestamp, TopicId, TopicName};
use loggos_storage::disk::{Disk, OpenMode};
use loggos_storage::journal::{Journal, JournalOptions, Lsn, Replayed, Space};
use parking_lot::{Condvar, Mutex, RwLock};
use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, LogRecord};
use super::commit::{Commit, JournalMode};
use super::entry::{self, Change, Replica};
use super::recovery::{Found, Recovery};
use super::{Log, LogConfig, LogError, LogId};

/// The name of the file that says whose a folder is.
pub(super) const REPLICA_FILE: &str = "replica.json";
/// The end of the name of a folder that is being deleted.
pub(super) const DELETED_SUFFIX: &str = ".deleted";
/// A journal is written in so many files at least, so that a small ring has small ones.
const RING_FILES: u64 = 8;
const FILE_BYTES_MIN: u64 = 1 << 20;
const FILE_BYTES_MAX: u64 = 16 << 20;
/// How often the upkeep looks whether a flush is due, while one is waited for; and otherwise.
const TICK: Duration = Duration::from_millis(10);
const TICK_IDLE: Duration = Duration::from_millis(100);
/// Once so many bytes have come, of all logs, those with a quarter of them are written early.
const WRITEBACK_BYTES: u64 = 1 << 20;

/// How a log directory behaves.
#[derive(Clone, Copy, Debug)]
pub struct LogDirOptions {
    /// Whether appends go through the journal.
    pub journal: JournalMode,
    /// `loggos.journal.bytes`: the journal's size.
    pub journal_bytes: u64,
    /// How often a checkpoint is made when there is something to say.
    pub checkpoint_interval: Duration,
    /// Everything in the caller's thread: for simulations.
    pub inline: bool,
}

impl Default for LogDirOptions {
    fn default() -> Self {
        Self {
            journal: JournalMode::Journal,
            journal_bytes: 256 << 20,
            checkpoint_interval: Duration::from_secs(10),
            inline: false,
        }
    }
}

/// A log directory in use.
pub struct LogDir {
    inner: Arc<Inner>,
    upkeep: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    options: LogDirOptions,
    commit: Arc<Commit>,
    logs: RwLock<BTreeMap<Replica, Arc<Log>>>,
    /// Held while replicas come and go, and while a checkpoint looks at them.
    structure: Mutex<()>,
    /// What the last checkpoint said of each.
    recorded: Mutex<BTreeMap<Replica, LogRecord>>,
    stop: Mutex<bool>,
    wake: Condvar,
    clock: fn() -> Timestamp,
    _lock: Box<dyn fmt::Debug + Send + Sync>,
}

/// What `replica.json` says.
#[derive(Serialize, Deserialize)]
pub(super) struct ReplicaFile {
    pub topic: String,
    pub topic_id: String,
    pub partition: PartitionId,
    pub incarnation: u64,
}

impl LogDir {
    /// Opens the directory (made if absent) and brings its logs to where the last process left them. `clock` gives
    /// the time for retention and flush rules.
    ///
    /// # Errors
    /// `Io`, with `WouldBlock` inside when another process holds the directory.
    pub fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        options: LogDirOptions,
        clock: fn() -> Timestamp,
    ) -> Result<Self, LogError> {
        let failed = |what| move |error| LogError::io(what, path, error);
        disk.create_dir_all(path).map_err(failed("make"))?;
        let lock = disk.lock(&path.join("lock")).map_err(failed("lock"))?;
        let checkpoint = match Checkpoint::read(disk.as_ref(), path) {
            Ok(Some(checkpoint)) => Found::Whole(checkpoint),
            Ok(None) => Found::Nothing,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(path = %path.display(), "the checkpoint is damaged: all logs are scanned");
                Found::Damaged
            }
            Err(error) => return Err(LogError::io("read the checkpoint of", path, error)),
        };
        let from = match &checkpoint {
            Found::Whole(checkpoint) => checkpoint.lsn(),
            Found::Nothing | Found::Damaged => None,
        };
        let mut recovery = Recovery::begin(Arc::clone(&disk), path, checkpoint, clock())?;
        let journal = open_journal(&disk, path, options, from, &mut |replayed| recovery.replay(replayed))?;
        let commit = Arc::new(Commit::new(journal, options.journal, options.inline)?);
        let (logs, changed) = recovery.finish(&commit)?;
        let inner = Arc::new(Inner {
            disk,
            path: path.to_owned(),
            options,
            commit,
            logs: RwLock::new(logs),
            structure: Mutex::new(()),
            recorded: Mutex::new(BTreeMap::new()),
            stop: Mutex::new(false),
            wake: Condvar::new(),
            clock,
            _lock: lock,
        });
        if changed {
            // What replay wrote and kept is durable before anybody is served.
            inner.checkpoint()?;
        }
        let upkeep = if options.inline { None } else { Some(Inner::start_upkeep(&inner)?) };
        Ok(Self { inner, upkeep: Mutex::new(upkeep) })
    }

    /// The logs that there are.
    pub fn logs(&self) -> Vec<Arc<Log>> {
        self.inner.logs.read().values().cloned().collect()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Whether the journal takes more appends now.
    pub fn has_room(&self) -> bool {
        self.inner.commit.has_room()
    }

    /// Is done when the journal takes more appends.
    pub fn room(&self) -> impl Future<Output = ()> + Send + use<> {
        let (sender, receiver) = futures::channel::oneshot::channel();
        let wake = move || {
            // Who no longer waits needs no room.
            let _ = sender.send(());
        };
        self.inner.commit.when_room(Box::new(wake));
        async move {
            let _ = receiver.await;
        }
    }

    /// Why nothing can be written any more, if so.
    pub fn failure(&self) -> Option<LogError> {
        self.inner.commit.failure()
    }

    /// Makes new, empty logs, all with one write. Waits for the disk.
    ///
    /// # Errors
    /// `Full`, and what takes the directory offline.
    pub fn create(
        &self,
        wanted: &[(TopicId, TopicName, PartitionId)],
        config: &LogConfig,
    ) -> Result<Vec<Arc<Log>>, LogError> {
        self.inner.create(wanted, config)
    }

    /// Deletes a log: its entry is durable, then its files go. Waits for the disk.
    ///
    /// # Errors
    /// What takes the directory offline.
    pub fn delete(&self, log: &Log) -> Result<(), LogError> {
        self.inner.delete(log)
    }

    /// Syncs what changed and lets the journal forget what lies before. Waits for the disk.
    ///
    /// # Errors
    /// What takes the directory offline.
    pub fn checkpoint(&self) -> Result<(), LogError> {
        self.inner.checkpoint()
    }

    /// Flushes what has waited for long enough; the upkeep's thread does that by itself.
    pub fn tick(&self, now: Timestamp) {
        self.inner.commit.tick(now);
    }

    /// Flushes everything, makes a checkpoint, and ends: the next start has nothing to replay.
    pub fn close(&self) {
        *self.inner.stop.lock() = true;
        self.inner.wake.notify_all();
        if let Some(thread) = self.upkeep.lock().take() {
            let _ = thread.join();
        }
        for log in self.logs() {
            log.flush();
            log.close();
        }
        self.inner.commit.close();
        if let Err(error) = self.inner.checkpoint() {
            tracing::error!(%error, "the last checkpoint failed; the next start replays the journal");
        }
    }
}

fn open_journal(
    disk: &Arc<dyn Disk>,
    path: &Path,
    options: LogDirOptions,
    from: Option<Lsn>,
    visit: &mut dyn FnMut(Replayed),
) -> Result<Journal, LogError> {
    let file_bytes = (options.journal_bytes / RING_FILES).clamp(FILE_BYTES_MIN, FILE_BYTES_MAX) / 4096 * 4096;
    let journal_options = JournalOptions {
        space: Space::Ring { bytes: options.journal_bytes },
        file_bytes,
        inline: options.inline,
        ..JournalOptions::default()
    };
    Ok(Journal::open(Arc::clone(disk), &path.join("journal"), journal_options, from, visit)?)
}

/// The folder of a partition's replica.
pub(super) fn folder(dir: &Path, topic: &str, partition: PartitionId) -> PathBuf {
    dir.join(format!("{topic}-{partition}"))
}

/// Makes a replica's folder, with the file that says whose it is.
pub(super) fn make_folder(disk: &dyn Disk, dir: &Path, id: &LogId) -> io::Result<PathBuf> {
    let path = folder(dir, id.topic.as_str(), id.partition);
    disk.create_dir_all(&path)?;
    let about = ReplicaFile {
        topic: id.topic.as_str().to_owned(),
        topic_id: id.topic_id.to_string(),
        partition: id.partition,
        incarnation: id.incarnation,
    };
    let mode = OpenMode { create: true, truncate: true, ..OpenMode::default() };
    let file = disk.open(&path.join(REPLICA_FILE), mode)?;
    file.write_all_at(&[IoSlice::new(&serde_json::to_vec(&about)?)], 0)?;
    Ok(path)
}

/// Moves a folder aside and removes it: a crash between the two leaves a name that says so.
pub(super) fn remove_folder(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    if !disk.exists(path)? {
        return Ok(());
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(DELETED_SUFFIX);
    let aside = PathBuf::from(aside);
    if disk.exists(&aside)? {
        disk.remove_dir_all(&aside)?;
    }
    disk.rename(path, &aside)?;
    disk.remove_dir_all(&aside)
}

impl Inner {
    fn create(
        &self,
        wanted: &[(TopicId, TopicName, PartitionId)],
        config: &LogConfig,
    ) -> Result<Vec<Arc<Log>>, LogError> {
        let _structure = self.structure.lock();
        let now = (self.clock)().raw().unsigned_abs();
        let newest = self.logs.read().keys().map(|replica| replica.incarnation).max().unwrap_or(0).max(now);
        let mut made = Vec::with_capacity(wanted.len());
        let mut entries = Vec::with_capacity(wanted.len());
        for (incarnation, (topic_id, topic, partition)) in (newest + 1..).zip(wanted) {
            let id = LogId { topic_id: *topic_id, topic: topic.clone(), partition: *partition, incarnation };
            entries.push(entry::change(&id, &Change::Create(topic.as_str().to_owned())));
            made.push(id);
        }
        self.commit.changes(entries)?;
        let mut logs = Vec::with_capacity(made.len());
        for id in made {
            let path = folder(&self.path, id.topic.as_str(), id.partition);
            let failed = |error| LogError::io("make", &path, error);
            // Something of an older topic of this name may still lie there.
            remove_folder(self.disk.as_ref(), &path).map_err(failed)?;
            make_folder(self.disk.as_ref(), &self.path, &id).map_err(failed)?;
            let replica = id.replica();
            let log =
                Log::assemble(id, path, Arc::clone(&self.disk), Arc::clone(&self.commit), config.clone());
            self.logs.write().insert(replica, Arc::clone(&log));
            logs.push(log);
        }
        Ok(logs)
    }

    fn delete(&self, log: &Log) -> Result<(), LogError> {
        let _structure = self.structure.lock();
        log.close();
        self.commit.change(entry::change(log.id(), &Change::Delete))?;
        self.logs.write().remove(&log.id().replica());
        self.recorded.lock().remove(&log.id().replica());
        let path = folder(&self.path, log.id().topic.as_str(), log.id().partition);
        remove_folder(self.disk.as_ref(), &path).map_err(|error| LogError::io("remove", &path, error))
    }

    fn checkpoint(&self) -> Result<(), LogError> {
        // The order is what makes it right: everything before `lsn` is in the segments when they are synced.
        let (lsn, logs, records) = {
            let _structure = self.structure.lock();
            let lsn = self.commit.journal().durable_end();
            let logs: Vec<Arc<Log>> = self.logs.read().values().cloned().collect();
            let records: Vec<(LogRecord, bool)> = logs.iter().map(|log| log.record()).collect();
            (lsn, logs, records)
        };
        // All that is dirty is on its way before the first sync waits, so that the syncs wait side by side.
        self.write_back(1);
        let mut recorded = self.recorded.lock();
        let mut synced = Vec::new();
        let mut folders_changed = false;
        for (log, (record, changed)) in logs.iter().zip(records) {
            let replica = log.id().replica();
            let is_new = !recorded.contains_key(&replica);
            if !changed && !is_new {
                continue;
            }
            folders_changed |= is_new;
            if let Err(error) = self.sync_log(log, is_new) {
                // A full disk passes; anything else doesn't.
                if error.takes_offline() {
                    self.commit.fail(&error);
                }
                return Err(error);
            }
            synced.push((Arc::clone(log), record.end));
            recorded.insert(replica, record);
        }
        if synced.is_empty() && self.commit.journal().released() == lsn {
            return Ok(());
        }
        let failed = |error| LogError::io("write a checkpoint in", &self.path, error);
        if folders_changed {
            self.disk.sync_dir(&self.path).map_err(failed)?;
        }
        let checkpoint = Checkpoint::new(lsn, recorded.values().cloned().collect());
        drop(recorded);
        checkpoint.write(self.disk.as_ref(), &self.path).map_err(failed)?;
        self.commit.journal().release_before(lsn);
        for (log, end) in synced {
            log.core.synced(end);
        }
        Ok(())
    }

    /// Has the segments written early: what the checkpoint then syncs is little, and the journal's writes needn't
    /// stand behind a burst of it.
    fn write_back(&self, at_least: u64) {
        for log in self.logs.read().values() {
            log.write_back(at_least);
        }
    }

    fn sync_log(&self, log: &Log, is_new: bool) -> Result<(), LogError> {
        for segment in log.dirty_segments() {
            let synced = segment.store_index().and_then(|()| segment.sync());
            match synced {
                Err(_) if log.core.check().is_err() => return Ok(()),
                Err(error) => return Err(LogError::io("sync", segment.path(), error)),
                Ok(()) => {}
            }
        }
        if is_new && let Err(error) = self.disk.sync_dir(&log.dir) {
            // A log that is being deleted has no folder any more.
            if log.core.check().is_ok() {
                return Err(LogError::io("sync", &log.dir, error));
            }
        }
        Ok(())
    }

    fn start_upkeep(inner: &Arc<Self>) -> Result<JoinHandle<()>, LogError> {
        let mine = Arc::clone(inner);
        std::thread::Builder::new()
            .name("log-upkeep".to_owned())
            .spawn(move || mine.keep_up())
            .map_err(|error| LogError::io("start the upkeep of", &inner.path, error))
    }

    /// Ticks for lazy flushes, begins to write what has come, and makes a checkpoint when it's time or when half the
    /// ring is used.
    fn keep_up(&self) {
        let mut since = std::time::Duration::ZERO;
        let mut stop = self.stop.lock();
        let (mut waiting, mut busy, mut begun) = (false, false, 0);
        while !*stop {
            let pause = if waiting || busy { TICK } else { TICK_IDLE };
            self.wake.wait_for(&mut stop, pause);
            if *stop {
                return;
            }
            drop(stop);
            since += pause;
            waiting = self.commit.tick((self.clock)());
            let journal = self.commit.journal();
            let end = journal.durable_end().position();
            busy = end.saturating_sub(begun) >= WRITEBACK_BYTES;
            if busy {
                begun = end;
                self.write_back(WRITEBACK_BYTES / 4);
            }
            let used = end.saturating_sub(journal.released().position());
            let needed = used > self.options.journal_bytes / 2 || journal.is_starving();
            if (since >= self.options.checkpoint_interval || needed) && self.commit.failure().is_none() {
                since = std::time::Duration::ZERO;
                if let Err(error) = self.checkpoint() {
                    tracing::error!(%error, "a checkpoint failed");
                }
            }
            stop = self.stop.lock();
        }
    }
}

impl Drop for LogDir {
    fn drop(&mut self) {
        self.close();
    }
}

/// An offset as a start for a log that has none.
pub(super) const EMPTY: Offset = Offset::ZERO;
