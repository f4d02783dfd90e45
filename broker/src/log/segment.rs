//! One segment: the file of the batches from one base offset on, and its index. Positions are Kafka's 2011 rule at
//! work: a batch's position plus its length is the next batch's position (decision D3).
//!
//! Written by the log's writer alone; read by anybody, up to the length that is announced. Called by `log`,
//! `reader` and `recovery`.

use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use loggos_protocol::batch::{BatchHeader, HEADER_LEN};
use loggos_protocol::ids::{Offset, Timestamp};
use loggos_storage::disk::{Disk, DiskFile, OpenMode};
use parking_lot::Mutex;

use super::index::{ENTRY, Index, IndexEntry, is_before};
use super::index_map;
use super::policy::SegmentFacts;

/// The end of a segment file's name.
pub(super) const LOG_SUFFIX: &str = ".log";
/// The end of its index file's name.
pub(super) const INDEX_SUFFIX: &str = ".index";
/// Space is reserved ahead in steps of a segment's own size, between these bounds, so that a full disk shows at the
/// append and a small log stays small.
const RESERVE_MIN: u64 = 64 << 10;
const RESERVE_MAX: u64 = 4 << 20;
/// How much is read at once while looking for a batch.
const WALK_BYTES: usize = 32 << 10;

/// A segment.
pub(super) struct Segment {
    pub base: Offset,
    path: PathBuf,
    index_path: PathBuf,
    disk: Arc<dyn Disk>,
    /// Opened at the first use: thousands of sealed segments need no descriptor.
    file: Mutex<Option<Arc<dyn DiskFile>>>,
    len: AtomicU64,
    synced: AtomicU64,
    /// Bytes before this are on their way to the disk, or there.
    written_back: AtomicU64,
    reserved: AtomicU64,
    /// Whether its name is durable, and that of segments behind it that are gone.
    named: AtomicBool,
    /// Whether it was cut or written again below its end since the last sync.
    rewritten: AtomicBool,
    index: Mutex<Indexed>,
    /// Bytes before this were there at the start, and are checked at their first read; then up to where they were.
    pub unchecked: Mutex<Unchecked>,
}

/// What is known besides the file.
#[derive(Debug)]
struct Indexed {
    index: Index,
    since_entry: u64,
    first_timestamp: Option<Timestamp>,
    max_timestamp: Timestamp,
}

/// Which of the bytes from before this start were checked.
#[derive(Clone, Debug, Default)]
pub(super) struct Unchecked {
    /// Bytes from here on were written by this process.
    pub end: u64,
    /// Ranges before `end` that were checked, apart from one another, rising.
    pub checked: Vec<(u64, u64)>,
}

impl Unchecked {
    /// Whether all of `from..to` may be sent.
    pub(super) fn covers(&self, from: u64, to: u64) -> bool {
        let to = to.min(self.end);
        from >= to || self.checked.iter().any(|(start, end)| *start <= from && to <= *end)
    }

    /// Notes that `from..to` was checked.
    pub(super) fn note(&mut self, from: u64, to: u64) {
        let mut merged = (from, to);
        self.checked.retain(|(start, end)| {
            let apart = *end < merged.0 || *start > merged.1;
            if !apart {
                merged = (merged.0.min(*start), merged.1.max(*end));
            }
            apart
        });
        self.checked.push(merged);
        self.checked.sort_unstable();
    }
}

/// A batch's place in a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub position: u64,
    pub header: BatchHeader,
}

/// The name of the file of the segment with this base offset.
pub(super) fn file_name(base: Offset, suffix: &str) -> String {
    format!("{:020}{suffix}", base.raw())
}

impl Segment {
    /// A new, empty segment; its file is made now.
    pub(super) fn create(disk: Arc<dyn Disk>, dir: &Path, base: Offset) -> io::Result<Self> {
        let segment = Self::bare(disk, dir, base, 0);
        let mode = OpenMode { create: true, truncate: true, ..OpenMode::default() };
        *segment.file.lock() = Some(segment.disk.open(&segment.path, mode)?);
        Ok(segment)
    }

    /// A segment that is there, with `len` bytes and an index file of `index_len`. A sealed one is believed until it
    /// is used; the active one's index is checked, and made again if it can't be believed.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        base: Offset,
        len: u64,
        index_len: Option<u64>,
    ) -> io::Result<Self> {
        let mut segment = Self::bare(disk, dir, base, len);
        segment.named = AtomicBool::new(true);
        segment.synced = AtomicU64::new(len);
        segment.written_back = AtomicU64::new(len);
        segment.unchecked.get_mut().end = len;
        if let Some(index_len) = index_len.filter(|index_len| *index_len >= ENTRY as u64) {
            let stored = (index_len / ENTRY as u64) as usize - 1;
            segment.index.get_mut().index = Index::trust_sealed(segment.index_path.clone(), stored);
        }
        Ok(segment)
    }

    fn bare(disk: Arc<dyn Disk>, dir: &Path, base: Offset, len: u64) -> Self {
        let index_path = dir.join(file_name(base, INDEX_SUFFIX));
        Self {
            base,
            path: dir.join(file_name(base, LOG_SUFFIX)),
            disk,
            file: Mutex::new(None),
            len: AtomicU64::new(len),
            synced: AtomicU64::new(0),
            written_back: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            named: AtomicBool::new(false),
            rewritten: AtomicBool::new(false),
            index: Mutex::new(Indexed {
                index: Index::new(index_path.clone()),
                since_entry: 0,
                first_timestamp: None,
                max_timestamp: Timestamp::NONE,
            }),
            index_path,
            unchecked: Mutex::new(Unchecked::default()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    pub(super) fn file(&self) -> io::Result<Arc<dyn DiskFile>> {
        let mut file = self.file.lock();
        match &*file {
            Some(file) => Ok(Arc::clone(file)),
            None => {
                let opened = self.disk.open(&self.path, OpenMode::default())?;
                *file = Some(Arc::clone(&opened));
                Ok(opened)
            }
        }
    }

    /// Appends one batch, header and payload side by side, at the end. On an error the file is as it was.
    pub(super) fn append(
        &self,
        header: &BatchHeader,
        raw: &[u8],
        payload: &[u8],
        every: u64,
    ) -> io::Result<u64> {
        let file = self.file()?;
        let position = self.len();
        let len = (raw.len() + payload.len()) as u64;
        self.reserve(file.as_ref(), position + len)?;
        if let Err(error) = file.write_all_at(&[IoSlice::new(raw), IoSlice::new(payload)], position) {
            // What was written of it must not be taken for a batch later.
            file.set_len(position)?;
            return Err(error);
        }
        self.note(header, position, every);
        self.len.store(position + len, Ordering::Release);
        Ok(position)
    }

    fn reserve(&self, file: &dyn DiskFile, needed: u64) -> io::Result<()> {
        let reserved = self.reserved.load(Ordering::Relaxed);
        if needed <= reserved {
            return Ok(());
        }
        let from = reserved.max(self.len());
        let step = from.clamp(RESERVE_MIN, RESERVE_MAX).max(needed - from);
        if file.reserve(from, step).is_err() {
            // There may still be room for this one alone.
            file.reserve(from, needed - from)?;
            self.reserved.store(needed, Ordering::Relaxed);
        } else {
            self.reserved.store(from + step, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Brings index and times along for a batch at `position`.
    fn note(&self, header: &BatchHeader, position: u64, every: u64) {
        let mut known = self.index.lock();
        if position == 0 || known.since_entry >= every {
            let relative = header.base_offset.raw() - self.base.raw();
            if let (Ok(relative), Ok(position)) = (u32::try_from(relative), u32::try_from(position)) {
                let max_before = if position == 0 { i64::MIN } else { known.max_timestamp.raw() };
                known.index.push(IndexEntry { relative, position, max_before });
                known.since_entry = 0;
            }
        }
        known.since_entry += header.total_len() as u64;
        known.max_timestamp = known.max_timestamp.max(header.max_timestamp);
        known.first_timestamp.get_or_insert(header.max_timestamp);
    }

    pub(super) fn facts(&self) -> SegmentFacts {
        let known = self.index.lock();
        SegmentFacts {
            base: self.base,
            len: self.len(),
            first_timestamp: known.first_timestamp,
            max_timestamp: known.max_timestamp,
        }
    }

    /// Sets what a checkpoint remembers of the times.
    pub(super) fn set_times(&self, first: Option<Timestamp>, max: Timestamp) {
        let mut known = self.index.lock();
        (known.first_timestamp, known.max_timestamp) = (first, max);
    }

    /// Makes it final: nothing is appended any more.
    pub(super) fn seal(&self) -> io::Result<()> {
        let file = self.file()?;
        if self.reserved.swap(0, Ordering::Relaxed) > 0 {
            // Gives back what was reserved beyond the end.
            file.set_len(self.len())?;
        }
        self.index.lock().index.seal(self.disk.as_ref(), self.len())
    }

    /// Writes the index entries that only memory has.
    pub(super) fn store_index(&self) -> io::Result<()> {
        self.index.lock().index.store(self.disk.as_ref())
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.named.load(Ordering::Acquire)
            || self.rewritten.load(Ordering::Acquire)
            || self.synced.load(Ordering::Acquire) < self.len()
    }

    /// Has the system begin to write what has come since the last time, if that is worth a call.
    pub(super) fn write_back(&self, at_least: u64) {
        let (len, begun) = (self.len(), self.written_back.load(Ordering::Acquire));
        if len.saturating_sub(begun) < at_least {
            return;
        }
        // A file that can't be opened is the next append's error, or the next sync's.
        let Ok(file) = self.file() else { return };
        file.start_writeback(begun, len - begun);
        self.written_back.fetch_max(len, Ordering::AcqRel);
    }

    /// Notes that the names in its folder changed.
    pub(super) fn neighbours_changed(&self) {
        self.named.store(false, Ordering::Release);
    }

    /// Makes all that is in it now durable; its name too.
    pub(super) fn sync(&self) -> io::Result<()> {
        let len = self.len();
        if self.rewritten.swap(false, Ordering::AcqRel) || self.synced.load(Ordering::Acquire) < len {
            self.file()?.sync_data()?;
            self.synced.fetch_max(len, Ordering::AcqRel);
        }
        if !self.named.load(Ordering::Acquire) {
            if let Some(dir) = self.path.parent() {
                self.disk.sync_dir(dir)?;
            }
            self.named.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Notes that a replay wrote up to `end`, which no sync has covered.
    pub(super) fn grown_to(&self, end: u64) {
        self.len.fetch_max(end, Ordering::AcqRel);
        self.rewritten.store(true, Ordering::Release);
    }

    /// Cuts the file at `position`; what is before it is indexed anew.
    pub(super) fn cut(&self, position: u64, every: u64) -> io::Result<()> {
        self.shorten(position)?;
        self.rebuild_index(every)
    }

    /// Cuts the file at `position`, and leaves the index to be looked at later.
    pub(super) fn shorten(&self, position: u64) -> io::Result<()> {
        self.len.store(position, Ordering::Release);
        self.file()?.set_len(position)?;
        self.reserved.store(0, Ordering::Relaxed);
        // A shorter file is a change to be synced like any other, even an empty one.
        self.rewritten.store(true, Ordering::Release);
        self.synced.fetch_min(position, Ordering::AcqRel);
        self.written_back.fetch_min(position, Ordering::AcqRel);
        {
            let mut unchecked = self.unchecked.lock();
            unchecked.end = unchecked.end.min(position);
        }
        Ok(())
    }

    /// Makes the index anew from the headers in the file.
    pub(super) fn rebuild_index(&self, every: u64) -> io::Result<()> {
        index_map::forget(&self.index_path);
        if self.disk.exists(&self.index_path)? {
            self.disk.remove_file(&self.index_path)?;
        }
        {
            let mut known = self.index.lock();
            known.index = Index::new(self.index_path.clone());
            (known.since_entry, known.first_timestamp, known.max_timestamp) = (0, None, Timestamp::NONE);
        }
        let mut found = Vec::new();
        self.walk(0, self.len(), &mut |placed| {
            found.push(placed);
            true
        })?;
        for placed in found {
            self.note(&placed.header, placed.position, every);
        }
        Ok(())
    }

    /// Uses the index file of a segment that is going to grow, or makes it anew.
    pub(super) fn reopen_index(&self, every: u64) -> io::Result<()> {
        let loaded = Index::load(self.disk.as_ref(), &self.index_path, self.len(), false);
        let Some(index) = loaded.filter(|index| index.count() > 0) else { return self.rebuild_index(every) };
        let last = index.last()?.unwrap_or_default();
        // The entries are a hint: the last one must point at the batch that it names.
        let mut fits = false;
        let mut behind = Vec::new();
        let walked = self.walk(u64::from(last.position), self.len(), &mut |placed| {
            if placed.position == u64::from(last.position) {
                fits = placed.header.base_offset.raw() - self.base.raw() == i64::from(last.relative);
            } else {
                behind.push(placed);
            }
            true
        });
        match walked {
            Ok(_) => {}
            // An index of what was here before a cut points into the middle of a batch.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => fits = false,
            Err(error) => return Err(error),
        }
        if !fits {
            return self.rebuild_index(every);
        }
        {
            let mut known = self.index.lock();
            let max = Timestamp::new(last.max_before.max(known.max_timestamp.raw()));
            known.index = index;
            (known.since_entry, known.max_timestamp) = (every, max);
        }
        for placed in behind {
            self.note(&placed.header, placed.position, every);
        }
        Ok(())
    }

    /// The place of the batch that holds `offset`, or of the first one behind it.
    pub(super) fn find(&self, offset: Offset, end: u64, every: u64) -> io::Result<Option<Placed>> {
        let relative = u32::try_from(offset.raw() - self.base.raw()).unwrap_or(if offset < self.base {
            0
        } else {
            u32::MAX
        });
        let from = self.hint(every, |entry| entry.relative <= relative)?;
        let mut found = None;
        self.walk(from, end, &mut |placed| {
            if placed.header.last_offset() >= offset {
                found = Some(placed);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// The place of the first batch with a record at or after `time`.
    pub(super) fn find_time(&self, time: Timestamp, end: u64, every: u64) -> io::Result<Option<Placed>> {
        let from = self.hint(every, is_before(time))?;
        let mut found = None;
        self.walk(from, end, &mut |placed| {
            if placed.header.max_timestamp >= time {
                found = Some(placed);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// From where to walk. A damaged index is made anew.
    fn hint(&self, every: u64, before: impl Fn(&IndexEntry) -> bool) -> io::Result<u64> {
        let found = self.index.lock().index.last_where(self.disk.as_ref(), self.len(), &before);
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, path = %self.index_path.display(), "making a damaged index anew");
                let was_sealed = self.index.lock().index.is_sealed();
                self.rebuild_index(every)?;
                if was_sealed {
                    self.index.lock().index.seal(self.disk.as_ref(), self.len())?;
                }
                self.index.lock().index.last_where(self.disk.as_ref(), self.len(), &before)?
            }
        };
        Ok(found.map_or(0, |entry| u64::from(entry.position)))
    }

    /// Visits the headers of the whole batches in `from..end` until `visit` says false; gives where it stopped.
    /// Something that can't be a header is `InvalidData`.
    pub(super) fn walk(&self, from: u64, end: u64, visit: &mut dyn FnMut(Placed) -> bool) -> io::Result<u64> {
        let file = self.file()?;
        let mut buffer = vec![0; WALK_BYTES.min((end.saturating_sub(from)) as usize).max(HEADER_LEN)];
        let (mut at, mut start, mut held) = (from, from, 0usize);
        while at + HEADER_LEN as u64 <= end {
            let within = (at - start) as usize;
            if at < start || within + HEADER_LEN > held {
                (start, held) = (at, 0);
                let wanted = buffer.len().min((end - at) as usize);
                while held < wanted {
                    match file.read_at(&mut buffer[held..wanted], start + held as u64)? {
                        0 => break,
                        read => held += read,
                    }
                }
                if held < HEADER_LEN {
                    break;
                }
                continue;
            }
            let header = BatchHeader::decode(&buffer[within..held])
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let next = at + header.total_len() as u64;
            if next > end {
                break;
            }
            if !visit(Placed { position: at, header }) {
                break;
            }
            at = next;
        }
        Ok(at)
    }

    /// Removes its files. Whoever reads it goes on reading.
    pub(super) fn remove(&self) -> io::Result<()> {
        index_map::forget(&self.index_path);
        for path in [&self.path, &self.index_path] {
            match self.disk.remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("path", &self.path).field("len", &self.len()).finish_non_exhaustive()
    }
}
