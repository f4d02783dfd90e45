//! What a start finds: the checkpoint, the journal behind it, and segments that may hold more or less than both
//! (rules 6 and 7 of docs/decisions/0006). Nothing older than the checkpoint is scanned.
//!
//! Called by `dir` alone.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use loggos_protocol::batch::{self, BatchHeader, HEADER_LEN};
use loggos_protocol::ids::{Offset, Timestamp, TopicId, TopicName};
use loggos_storage::disk::{Disk, OpenMode};
use loggos_storage::journal::Replayed;

use super::checkpoint::{Checkpoint, LogRecord};
use super::commit::Commit;
use super::dir::{self, DELETED_SUFFIX, EMPTY, REPLICA_FILE, ReplicaFile};
use super::entry::{self, Change, Replica};
use super::epochs::Epochs;
use super::producers::Producers;
use super::segment::{INDEX_SUFFIX, LOG_SUFFIX, Segment};
use super::{Log, LogConfig, LogError, LogId};

/// A larger batch is not believed while a tail is scanned.
const BATCH_BYTES_MAX: u64 = 1 << 30;

/// What a start finds of the checkpoint.
pub(super) enum Found {
    /// Nothing: there has been none.
    Nothing,
    /// One that can't be read.
    Damaged,
    /// The checkpoint.
    Whole(Checkpoint),
}

/// A start under way.
pub(super) struct Recovery {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    logs: BTreeMap<Replica, Recovering>,
    changed: bool,
    damaged: bool,
    now: Timestamp,
}

/// One log on its way.
struct Recovering {
    id: LogId,
    dir: PathBuf,
    segments: Vec<Arc<Segment>>,
    start: Offset,
    /// The end of what is known to be flushed, and its place.
    end: Offset,
    place: (Offset, u64),
    epochs: Epochs,
    producers: Producers,
    /// Bytes that the checkpoint promises and the segment hasn't: lost, unless the journal says that they went.
    missing: Option<Missing>,
    failure: Option<LogError>,
}

struct Missing {
    segment: Offset,
    /// The segment's length.
    from: u64,
    /// The offset that the promise reaches to.
    upto: Offset,
}

impl Recovery {
    /// Takes up what the checkpoint says. Where it is damaged, the folders themselves are scanned; where there is
    /// none yet, the journal tells everything.
    pub(super) fn begin(
        disk: Arc<dyn Disk>,
        path: &Path,
        checkpoint: Found,
        now: Timestamp,
    ) -> Result<Self, LogError> {
        let failed = |error| LogError::io("list", path, error);
        let mut recovery =
            Self { disk, path: path.to_owned(), logs: BTreeMap::new(), changed: false, damaged: false, now };
        let is_damaged = matches!(checkpoint, Found::Damaged);
        if let Found::Whole(checkpoint) = checkpoint {
            for record in checkpoint.logs {
                recovery.take_up(record)?;
            }
        }
        for entry in recovery.disk.list(path).map_err(failed)?.into_iter().filter(|entry| entry.is_dir) {
            let folder = path.join(&entry.name);
            if entry.name.ends_with(DELETED_SUFFIX) {
                recovery.disk.remove_dir_all(&folder).map_err(failed)?;
            } else if is_damaged {
                recovery.adopt(&folder)?;
            }
        }
        Ok(recovery)
    }

    /// A log that the checkpoint describes.
    fn take_up(&mut self, record: LogRecord) -> Result<(), LogError> {
        let Some(id) = record.id() else { return Ok(()) };
        let dir = dir::folder(&self.path, id.topic.as_str(), id.partition);
        let segments = match open_segments(&self.disk, &dir) {
            Ok(segments) => segments,
            // Its deletion was under way; if not, the journal or the tail's check will tell.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(LogError::io("open", &dir, error)),
        };
        for (base, first, max) in &record.times {
            if let Some(segment) = segments.iter().find(|segment| segment.base == *base) {
                segment.set_times(*first, *max);
            }
        }
        let held =
            segments.iter().find(|segment| segment.base == record.active).map_or(0, |found| found.len());
        let missing = Missing { segment: record.active, from: held, upto: record.end };
        let log = Recovering {
            dir,
            segments,
            start: record.start,
            end: record.end,
            place: (record.active, record.active_len),
            epochs: Epochs::new(record.epochs),
            producers: Producers::new(record.producers),
            missing: (held < record.active_len).then_some(missing),
            failure: None,
            id,
        };
        self.logs.insert(log.id.replica(), log);
        Ok(())
    }

    /// A folder that only its own file describes, as all are when the checkpoint is damaged: everything is scanned.
    fn adopt(&mut self, folder: &Path) -> Result<(), LogError> {
        let failed = |error| LogError::io("read", folder, error);
        let path = folder.join(REPLICA_FILE);
        if !self.disk.exists(&path).map_err(failed)? {
            return Ok(());
        }
        let file =
            self.disk.open(&path, OpenMode { read_only: true, ..OpenMode::default() }).map_err(failed)?;
        let mut bytes = vec![0; file.len().map_err(failed)? as usize];
        file.read_exact_at(&mut bytes, 0).map_err(failed)?;
        let Ok(about) = serde_json::from_slice::<ReplicaFile>(&bytes) else { return Ok(()) };
        let Some(topic_id) = TopicId::parse(&about.topic_id) else { return Ok(()) };
        let id = LogId {
            topic_id,
            topic: TopicName::new(about.topic.as_str()),
            partition: about.partition,
            incarnation: about.incarnation,
        };
        let segments = open_segments(&self.disk, folder).map_err(failed)?;
        let start = segments.first().map_or(EMPTY, |first| first.base);
        let mut log = Recovering {
            dir: folder.to_owned(),
            segments,
            start,
            end: start,
            place: (start, 0),
            epochs: Epochs::default(),
            producers: Producers::default(),
            missing: None,
            failure: None,
            id,
        };
        log.keep_whole_tail(self.now)?;
        self.changed = true;
        self.logs.insert(log.id.replica(), log);
        Ok(())
    }

    /// Does again what the journal holds.
    pub(super) fn replay(&mut self, replayed: Replayed) {
        match replayed {
            Replayed::Damage { path, position } => {
                tracing::error!(path = %path.display(), position, "the journal is damaged");
                self.damaged = true;
            }
            Replayed::Group { entries, .. } => {
                self.changed = true;
                for bytes in entries {
                    let Some((replica, change)) = entry::decode(&bytes) else {
                        tracing::error!("the journal holds an entry of an unknown kind");
                        self.damaged = true;
                        continue;
                    };
                    self.redo(replica, change);
                }
            }
        }
    }

    fn redo(&mut self, replica: Replica, change: Change) {
        if let Change::Create(topic) = change {
            self.create(replica, &topic);
            return;
        }
        if change == Change::Delete {
            if let Some(gone) = self.logs.remove(&replica)
                && let Err(error) = dir::remove_folder(self.disk.as_ref(), &gone.dir)
            {
                tracing::error!(%error, log = %gone.id, "a deleted log's folder could not be removed");
            }
            return;
        }
        let now = self.now;
        let disk = Arc::clone(&self.disk);
        // What isn't here was deleted later, or its folder was lost with its creation.
        let Some(log) = self.logs.get_mut(&replica).filter(|log| log.failure.is_none()) else { return };
        let done = match change {
            Change::Append { segment, position, batch } => {
                log.append(&disk, (segment, position), &batch, now)
            }
            Change::Truncate { end, segment, position } => log.truncate(end, segment, position),
            Change::LogStart(offset) => log.start_at(offset),
            Change::Create(_) | Change::Delete => Ok(()),
        };
        if let Err(error) = done {
            tracing::error!(%error, log = %log.id, "a log could not be recovered");
            log.failure = Some(error);
        }
    }

    fn create(&mut self, replica: Replica, topic: &str) {
        if self.logs.contains_key(&replica) {
            return;
        }
        let id = LogId {
            topic_id: replica.topic_id,
            topic: TopicName::new(topic),
            partition: replica.partition,
            incarnation: replica.incarnation,
        };
        let dir = dir::folder(&self.path, topic, replica.partition);
        // An older life of the same name is dead: its deletion is in the journal or was before it.
        self.logs.retain(|_, other| other.dir != dir);
        let mut segments = Vec::new();
        let is_mine = folder_is_of(self.disk.as_ref(), &dir, replica);
        let made = if is_mine {
            open_segments(&self.disk, &dir).map(|found| segments = found)
        } else {
            dir::remove_folder(self.disk.as_ref(), &dir)
                .and_then(|()| dir::make_folder(self.disk.as_ref(), &self.path, &id).map(|_| ()))
        };
        let failure = made.err().map(|error| LogError::io("make", &dir, error));
        let log = Recovering {
            id,
            dir,
            segments,
            start: EMPTY,
            end: EMPTY,
            place: (EMPTY, 0),
            epochs: Epochs::default(),
            producers: Producers::default(),
            missing: None,
            failure,
        };
        self.logs.insert(replica, log);
    }

    /// Looks at what lies behind the flushed ends, and gives the logs; whether anything is to be made durable.
    pub(super) fn finish(
        mut self,
        commit: &Arc<Commit>,
    ) -> Result<(BTreeMap<Replica, Arc<Log>>, bool), LogError> {
        let mut logs = BTreeMap::new();
        for (replica, mut log) in std::mem::take(&mut self.logs) {
            if let Some(missing) = log.missing.take() {
                let path = log.dir.join(super::segment::file_name(missing.segment, LOG_SUFFIX));
                log.failure.get_or_insert(LogError::Corrupt { path, position: missing.from });
            }
            if log.failure.is_none() {
                let before = log.end;
                let cut = log.keep_whole_tail(self.now);
                self.changed |= log.end != before;
                match cut {
                    Ok(Some((path, position))) if self.damaged => {
                        // Acknowledged bytes may have been there: it isn't cut quietly.
                        log.failure = Some(LogError::Corrupt { path, position });
                    }
                    Ok(Some(_)) => self.changed = true,
                    Ok(None) => {}
                    Err(error) => log.failure = Some(error),
                }
            }
            logs.insert(replica, log.into_log(&self.disk, commit));
        }
        Ok((logs, self.changed))
    }
}

fn folder_is_of(disk: &dyn Disk, dir: &Path, replica: Replica) -> bool {
    let read = || -> io::Result<ReplicaFile> {
        let file = disk.open(&dir.join(REPLICA_FILE), OpenMode { read_only: true, ..OpenMode::default() })?;
        let mut bytes = vec![0; file.len()? as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    read().is_ok_and(|about| about.incarnation == replica.incarnation)
}

fn open_segments(disk: &Arc<dyn Disk>, dir: &Path) -> io::Result<Vec<Arc<Segment>>> {
    let entries = disk.list(dir)?;
    let base_of = |name: &str, suffix| name.strip_suffix(suffix)?.parse().ok().map(Offset::new);
    let mut segments = Vec::new();
    for entry in &entries {
        let Some(base) = base_of(&entry.name, LOG_SUFFIX) else { continue };
        let index = entries.iter().find(|other| base_of(&other.name, INDEX_SUFFIX) == Some(base));
        let segment = Segment::open(Arc::clone(disk), dir, base, entry.len, index.map(|index| index.len))?;
        segments.push(Arc::new(segment));
    }
    segments.sort_by_key(|segment| segment.base);
    Ok(segments)
}

impl Recovering {
    fn failed(&self, what: &'static str) -> impl Fn(io::Error) -> LogError + use<> {
        let dir = self.dir.clone();
        move |error| LogError::io(what, &dir, error)
    }

    /// Puts a batch where it was. What the log has already is left alone.
    fn append(
        &mut self,
        disk: &Arc<dyn Disk>,
        place: (Offset, u64),
        bytes: &Bytes,
        now: Timestamp,
    ) -> Result<(), LogError> {
        let path = self.dir.join(super::segment::file_name(place.0, LOG_SUFFIX));
        let corrupt = || LogError::Corrupt { path: path.clone(), position: place.1 };
        let header = BatchHeader::decode(bytes).map_err(|_| corrupt())?;
        if header.next_offset() <= self.end {
            return Ok(());
        }
        if header.base_offset > self.end {
            // What lies between went another way than the journal: it must be whole in the segments.
            self.scan(Some(header.base_offset), now)?;
        }
        if header.base_offset != self.end {
            return Err(corrupt());
        }
        let segment = match self.segments.iter().find(|segment| segment.base == place.0) {
            Some(segment) => Arc::clone(segment),
            None => {
                let made = Segment::create(Arc::clone(disk), &self.dir, place.0);
                let segment = Arc::new(made.map_err(self.failed("make a segment in"))?);
                self.segments.push(Arc::clone(&segment));
                self.segments.sort_by_key(|segment| segment.base);
                segment
            }
        };
        segment.restore(place.1, bytes).map_err(self.failed("restore"))?;
        self.note(&header, place, now);
        Ok(())
    }

    fn note(&mut self, header: &BatchHeader, place: (Offset, u64), now: Timestamp) {
        self.epochs.assign(header.leader_epoch, header.base_offset);
        self.producers.appended(header, now);
        self.end = header.next_offset();
        self.place = (place.0, place.1 + header.total_len() as u64);
    }

    fn truncate(&mut self, end: Offset, base: Offset, position: u64) -> Result<(), LogError> {
        let failed = self.failed("truncate");
        while let Some(gone) = self.segments.pop_if(|segment| segment.base > base) {
            gone.remove().map_err(&failed)?;
        }
        if let Some(active) = self.segments.last()
            && active.base == base
            && active.len() > position
        {
            active.shorten(position).map_err(&failed)?;
        }
        // What was missing has been cut since: its own removal may have reached the disk before the crash.
        self.missing.take_if(|missing| {
            missing.segment > base || (missing.segment == base && missing.from >= position)
        });
        self.epochs.truncate(end);
        self.producers.truncate(end);
        (self.end, self.place) = (end, (base, position));
        Ok(())
    }

    fn start_at(&mut self, offset: Offset) -> Result<(), LogError> {
        let failed = self.failed("remove a segment of");
        self.start = self.start.max(offset);
        self.missing.take_if(|missing| missing.upto <= offset);
        self.epochs.start_from(offset);
        let gone = self.segments.windows(2).take_while(|pair| pair[1].base <= offset).count();
        for segment in self.segments.drain(..gone) {
            segment.remove().map_err(&failed)?;
        }
        if offset > self.end {
            for segment in self.segments.drain(..) {
                segment.remove().map_err(&failed)?;
            }
            (self.end, self.place) = (offset, (offset, 0));
            (self.epochs, self.producers) = (Epochs::default(), Producers::default());
        }
        Ok(())
    }

    /// Takes up the whole batches behind the known end, until `upto` or until something isn't whole; gives where
    /// that is, if there are bytes.
    fn scan(&mut self, upto: Option<Offset>, now: Timestamp) -> Result<Option<(PathBuf, u64)>, LogError> {
        let failed = self.failed("scan");
        loop {
            if upto.is_some_and(|upto| self.end >= upto) {
                return Ok(None);
            }
            let (base, mut position) = self.place;
            let Some(segment) = self.segments.iter().find(|segment| segment.base == base).cloned() else {
                // Nothing yet: a first segment begins at the end.
                match self.segments.iter().find(|segment| segment.base == self.end && self.end != base) {
                    Some(next) => self.place = (next.base, 0),
                    None => return Ok(None),
                }
                continue;
            };
            while let Some(header) = whole_batch(&segment, position).map_err(&failed)? {
                if header.base_offset != self.end || upto.is_some_and(|upto| self.end >= upto) {
                    break;
                }
                self.note(&header, (base, position), now);
                position = self.place.1;
            }
            if upto.is_some_and(|upto| self.end >= upto) {
                return Ok(None);
            }
            if position < segment.len() {
                return Ok(Some((segment.path().to_owned(), position)));
            }
            match self.segments.iter().find(|next| next.base > base) {
                Some(next) if next.base == self.end => self.place = (next.base, 0),
                Some(next) => return Ok(Some((next.path().to_owned(), 0))),
                None => return Ok(None),
            }
        }
    }

    /// Keeps what is whole behind the flushed end and cuts the rest; gives where it cut.
    fn keep_whole_tail(&mut self, now: Timestamp) -> Result<Option<(PathBuf, u64)>, LogError> {
        let failed = self.failed("cut the tail of");
        let start = self.start;
        // Segments that were given up may be back: their names' removal is nobody's to wait for.
        let gone = self.segments.windows(2).take_while(|pair| pair[1].base <= start).count();
        for segment in self.segments.drain(..gone) {
            segment.remove().map_err(&failed)?;
        }
        let cut = self.scan(None, now)?;
        let (base, position) = self.place;
        while let Some(gone) = self.segments.pop_if(|segment| segment.base > base) {
            gone.remove().map_err(&failed)?;
        }
        if let Some(active) = self.segments.last()
            && active.base == base
            && active.len() > position
        {
            active.shorten(position).map_err(&failed)?;
        }
        Ok(cut)
    }

    fn into_log(self, disk: &Arc<dyn Disk>, commit: &Arc<Commit>) -> Arc<Log> {
        let config = LogConfig::default();
        let mut failure = self.failure;
        if failure.is_none()
            && let Some(active) = self.segments.last()
            && let Err(error) = active.reopen_index(config.index_interval_bytes)
        {
            failure = Some(LogError::io("index", active.path(), error));
        }
        let log = Log::assemble(self.id, self.dir, Arc::clone(disk), Arc::clone(commit), config);
        *log.segments.write() = self.segments;
        log.core.start.store(self.start.raw(), Ordering::Release);
        log.core.end.store(self.end.raw(), Ordering::Release);
        log.core.flushed.store(self.end.raw(), Ordering::Release);
        {
            let mut writer = log.writer.lock();
            (writer.epochs, writer.producers) = (self.epochs, self.producers);
            writer.changed = true;
        }
        if let Some(failure) = failure {
            tracing::error!(error = %failure, log = %log.id(), "a log is damaged and stays closed");
            *log.core.failed.lock() = Some(failure);
        }
        log
    }
}

/// The header of the batch at `position`, if all of it is there and its checksum fits.
fn whole_batch(segment: &Segment, position: u64) -> io::Result<Option<BatchHeader>> {
    let len = segment.len();
    if position + HEADER_LEN as u64 > len {
        return Ok(None);
    }
    let file = segment.file()?;
    let mut head = [0; HEADER_LEN];
    file.read_exact_at(&mut head, position)?;
    let Ok(header) = BatchHeader::decode(&head) else { return Ok(None) };
    let total = header.total_len() as u64;
    if total > BATCH_BYTES_MAX || position + total > len {
        return Ok(None);
    }
    let mut bytes = vec![0; total as usize];
    file.read_exact_at(&mut bytes, position)?;
    let whole =
        batch::scan(&bytes).next().is_some_and(|view| view.is_ok_and(|view| view.check_crc().is_ok()));
    Ok(whole.then_some(header))
}

impl Segment {
    /// Writes a replayed batch, unless it stands there already.
    fn restore(&self, position: u64, bytes: &Bytes) -> io::Result<()> {
        let file = self.file()?;
        let end = position + bytes.len() as u64;
        let mut found = vec![0; bytes.len()];
        let stands =
            end <= self.len() && file.read_exact_at(&mut found, position).is_ok() && found == bytes[..];
        if !stands {
            file.write_all_at(&[IoSlice::new(bytes)], position)?;
        }
        self.grown_to(end);
        Ok(())
    }
}
