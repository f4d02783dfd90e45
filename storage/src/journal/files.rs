//! The journal's files: what they are called, which may be reused, and how the next one is made ready before it is
//! needed. A *prepared* file has all its blocks written once, so that a write into it changes no metadata of the
//! file system; it is written directly. A *plain* file grows by buffered writes, each followed by fdatasync: a
//! first start waits for nothing, and a small server writes little.
//!
//! Called by `writer` and `replay`.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::{JournalError, JournalOptions, Space};
use crate::disk::{DIRECT_ALIGNMENT, Disk, DiskFile, OpenMode};

/// The name of the file with the journal's id.
const ID_FILE: &str = "journal.id";
const SUFFIX: &str = ".journal";
/// The name of the file that is being made ready.
const PREPARED: &str = "prepared";
/// How many zeros are written at once while a file is prepared, and the pause behind them: appends go first.
const ZEROS: usize = 256 << 10;
const PAUSE: Duration = Duration::from_millis(1);
/// The most released files that a chain keeps for reuse.
const SPARE_FILES: usize = 2;
/// A ring of fewer files could not be written while it is checkpointed.
const RING_FILES_MIN: u64 = 3;

/// A file that is being written.
#[derive(Clone, Debug)]
pub(super) struct JournalFile {
    /// Its place in the row of files.
    pub number: u64,
    /// The open file.
    pub file: Arc<dyn DiskFile>,
    /// Whether a write is durable when it returns; else it wants a sync.
    pub durable_writes: bool,
    /// Whether it was prepared.
    pub prepared: bool,
    /// Where it lies, for messages.
    pub path: PathBuf,
}

/// The row of files.
pub(super) struct Files {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: JournalOptions,
    /// Numbers of the files that there are, upwards.
    live: Vec<u64>,
    id: u32,
    direct: bool,
    preparation: Preparation,
}

/// The file that is made ready for what comes next. It gets its number when it is ready, and under that its name, so
/// that the writer waits for no folder's sync when it goes over to it.
enum Preparation {
    None,
    UnderWay(mpsc::Receiver<io::Result<()>>),
    Ready,
    Naming(u64, mpsc::Receiver<io::Result<()>>),
    Named(u64),
}

impl Preparation {
    /// What is being done, and what comes of it.
    fn step(&self) -> Option<(&mpsc::Receiver<io::Result<()>>, Self)> {
        match self {
            Self::UnderWay(waiting) => Some((waiting, Self::Ready)),
            Self::Naming(number, waiting) => Some((waiting, Self::Named(*number))),
            Self::None | Self::Ready | Self::Named(_) => None,
        }
    }
}

impl Files {
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: JournalOptions,
    ) -> Result<Self, JournalError> {
        assert!(options.file_bytes.is_multiple_of(4096) && options.file_bytes > 0, "files consist of pages");
        let failed = |what| move |source| JournalError::io(what, dir, source);
        disk.create_dir_all(dir).map_err(failed("make"))?;
        let entries = disk.list(dir).map_err(failed("list"))?;
        if entries.iter().any(|entry| entry.name == PREPARED) {
            // Whether its preparation ended isn't known.
            disk.remove_file(&dir.join(PREPARED)).map_err(failed("tidy up"))?;
        }
        let live: Vec<u64> = entries.iter().filter_map(|entry| number_of(&entry.name)).collect();
        let id = match read_id(disk.as_ref(), &dir.join(ID_FILE))? {
            Some(id) => id,
            None if live.is_empty() => make_id(disk.as_ref(), dir).map_err(failed("write the id of"))?,
            None => return Err(JournalError::Id { path: dir.join(ID_FILE) }),
        };
        let direct = options.direct && can_go_direct(disk.as_ref(), dir);
        Ok(Self { disk, dir: dir.to_owned(), options, live, id, direct, preparation: Preparation::None })
    }

    pub(super) const fn id(&self) -> u32 {
        self.id
    }

    pub(super) const fn direct(&self) -> bool {
        self.direct
    }

    pub(super) const fn file_bytes(&self) -> usize {
        self.options.file_bytes as usize
    }

    pub(super) fn numbers(&self) -> &[u64] {
        &self.live
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:012}{SUFFIX}"))
    }

    pub(super) fn failed(&self, what: &'static str, number: u64, source: io::Error) -> JournalError {
        JournalError::io(what, &self.path(number), source)
    }

    /// A whole file's bytes.
    pub(super) fn read(&self, number: u64) -> Result<Vec<u8>, JournalError> {
        let failed = |source| self.failed("read", number, source);
        let mode = OpenMode { read_only: true, ..OpenMode::default() };
        let file = self.disk.open(&self.path(number), mode).map_err(failed)?;
        let len = file.len().map_err(failed)?.min(self.options.file_bytes);
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).map_err(failed)?;
        Ok(bytes)
    }

    /// Opens a file that is there, to go on in it.
    pub(super) fn reopen(&self, number: u64) -> Result<JournalFile, JournalError> {
        let path = self.path(number);
        let failed = |source| self.failed("open", number, source);
        let plain = self.disk.open(&path, OpenMode::default()).map_err(failed)?;
        let prepared = plain.len().map_err(failed)? == self.options.file_bytes;
        if prepared && self.direct {
            let file =
                self.disk.open(&path, OpenMode { direct: true, ..OpenMode::default() }).map_err(failed)?;
            return Ok(JournalFile { number, file, durable_writes: true, prepared, path });
        }
        Ok(JournalFile { number, file: plain, durable_writes: false, prepared, path })
    }

    /// Opens the file in which writing goes on, if there is one of that number. Files behind it hold nothing.
    pub(super) fn resume_at(&mut self, number: u64) -> Result<Option<JournalFile>, JournalError> {
        while let Some(later) = self.live.pop_if(|last| *last > number) {
            let path = self.path(later);
            self.disk.remove_file(&path).map_err(|source| self.failed("remove", later, source))?;
        }
        if self.live.contains(&number) { self.reopen(number).map(Some) } else { Ok(None) }
    }

    /// Whether a prepared file stands by.
    pub(super) fn has_ready(&mut self) -> bool {
        self.look_at_preparation();
        matches!(self.preparation, Preparation::Ready | Preparation::Named(_))
    }

    fn look_at_preparation(&mut self) {
        let Some((waiting, next)) = self.preparation.step() else { return };
        self.preparation = match waiting.try_recv() {
            Ok(Ok(())) => next,
            Ok(Err(error)) => {
                // A plain file takes its place; if the disk is full, the write will say so.
                tracing::warn!(%error, "a journal file could not be prepared");
                Preparation::None
            }
            Err(mpsc::TryRecvError::Empty) => return,
            Err(mpsc::TryRecvError::Disconnected) => Preparation::None,
        };
    }

    /// Waits for what is being done to the next file.
    fn await_preparation(&mut self) {
        while let Some((waiting, next)) = self.preparation.step() {
            let done = waiting.recv();
            self.preparation = if matches!(done, Ok(Ok(()))) { next } else { Preparation::None };
        }
    }

    /// Gives a file that is ready its name as file `number`, in the background.
    pub(super) fn name_ready(&mut self, number: u64) {
        self.look_at_preparation();
        if !matches!(self.preparation, Preparation::Ready) {
            return;
        }
        let (disk, dir, path) = (Arc::clone(&self.disk), self.dir.clone(), self.path(number));
        let naming = self.beside("journal-name", move || {
            disk.rename(&dir.join(PREPARED), &path)?;
            disk.sync_dir(&dir)
        });
        if let Some(waiting) = naming {
            self.preparation = Preparation::Naming(number, waiting);
        }
    }

    /// Does `work` on a thread of its own, in simulations here; `None` if there is no thread to be had.
    fn beside(
        &self,
        name: &str,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Option<mpsc::Receiver<io::Result<()>>> {
        let (answer, waiting) = mpsc::sync_channel(1);
        let work = move || {
            let _ = answer.send(work());
        };
        if self.options.inline {
            work();
        } else if std::thread::Builder::new().name(name.to_owned()).spawn(work).is_err() {
            return None;
        }
        Some(waiting)
    }

    /// The file behind all others, as file `number`: the prepared one, or a plain one. `None` when the journal may
    /// not grow, or the disk is full, and nothing before file `released` is free.
    pub(super) fn next(&mut self, number: u64, released: u64) -> Result<Option<JournalFile>, JournalError> {
        let dir = self.dir.clone();
        let failed = |source| JournalError::io("make", &dir, source);
        let path = self.path(number);
        self.look_at_preparation();
        let named = matches!(self.preparation, Preparation::Naming(..));
        if named || (matches!(self.preparation, Preparation::UnderWay(_)) && self.is_full()) {
            // Nothing else can be had; a moment later it is ready.
            self.await_preparation();
        }
        match std::mem::replace(&mut self.preparation, Preparation::None) {
            Preparation::Named(name) => {
                assert_eq!(name, number, "a file is named for the place behind the last one");
                self.live.push(number);
                return self.reopen(number).map(Some);
            }
            Preparation::Ready => {
                self.disk.rename(&self.dir.join(PREPARED), &path).map_err(failed)?;
                self.disk.sync_dir(&self.dir).map_err(failed)?;
                self.live.push(number);
                return self.reopen(number).map(Some);
            }
            Preparation::None if self.is_full() => return self.recycle(number, released),
            other => self.preparation = other,
        }
        let mode = OpenMode { create: true, truncate: true, ..OpenMode::default() };
        let file = self.disk.open(&path, mode).map_err(failed)?;
        // A full disk shows now, when waiting for space is still possible, and not in the middle of a write.
        if let Err(error) = file.reserve(0, self.options.file_bytes) {
            self.disk.remove_file(&path).map_err(failed)?;
            return match is_full(&error) {
                true => self.recycle(number, released),
                false => Err(failed(error)),
            };
        }
        self.disk.sync_dir(&self.dir).map_err(failed)?;
        self.live.push(number);
        Ok(Some(JournalFile { number, file, durable_writes: false, prepared: false, path }))
    }

    /// The oldest file as file `number`, if nothing in it is needed any more.
    fn recycle(&mut self, number: u64, released: u64) -> Result<Option<JournalFile>, JournalError> {
        let Some(free) = self.take_free(released) else { return Ok(None) };
        let dir = self.dir.clone();
        let failed = |source| JournalError::io("recycle a file of", &dir, source);
        let (from, path) = (self.path(free), self.path(number));
        prepare(self.disk.as_ref(), &dir, Some(&from), self.preparing(false)).map_err(failed)?;
        self.disk.rename(&dir.join(PREPARED), &path).map_err(failed)?;
        self.disk.sync_dir(&dir).map_err(failed)?;
        self.live.push(number);
        self.reopen(number).map(Some)
    }

    /// Has a file prepared, if none is and there is space for one.
    pub(super) fn prepare_next(&mut self, released: u64) {
        if !matches!(self.preparation, Preparation::None) {
            return;
        }
        self.drop_spares(released);
        let free = self.take_free(released).map(|free| self.path(free));
        if free.is_none() && self.is_full() {
            return;
        }
        let (disk, dir, how) =
            (Arc::clone(&self.disk), self.dir.clone(), self.preparing(!self.options.inline));
        let work = move || prepare(disk.as_ref(), &dir, free.as_deref(), how);
        if let Some(waiting) = self.beside("journal-prepare", work) {
            self.preparation = Preparation::UnderWay(waiting);
        }
    }

    const fn preparing(&self, gently: bool) -> Preparing {
        Preparing { len: self.options.file_bytes, direct: self.direct, gently }
    }

    fn is_full(&self) -> bool {
        let prepared = u64::from(!matches!(self.preparation, Preparation::None));
        match self.options.space {
            Space::Chain => false,
            Space::Ring { bytes } => {
                self.live.len() as u64 + prepared >= (bytes / self.options.file_bytes).max(RING_FILES_MIN)
            }
        }
    }

    /// Takes the oldest file out of the row, if it lies before file `released`.
    fn take_free(&mut self, released: u64) -> Option<u64> {
        let oldest = *self.live.first()?;
        (oldest < released && self.live.len() > 1).then(|| self.live.remove(0))
    }

    fn drop_spares(&mut self, released: u64) {
        if self.options.space != Space::Chain {
            return;
        }
        while self.live.iter().filter(|number| **number < released).count() > SPARE_FILES {
            let Some(number) = self.take_free(released) else { return };
            if let Err(error) = self.disk.remove_file(&self.path(number)) {
                tracing::warn!(%error, file = number, "a released journal file could not be removed");
            }
        }
    }
}

/// How a file is prepared.
#[derive(Clone, Copy)]
struct Preparing {
    /// Its bytes.
    len: u64,
    /// Whether zeros go around the page cache.
    direct: bool,
    /// Whether to pause between writes.
    gently: bool,
}

/// Makes a file whose blocks were all written, out of `from` if that is one. What `from` holds may stay: its groups
/// have lower numbers.
fn prepare(disk: &dyn Disk, dir: &Path, from: Option<&Path>, how: Preparing) -> io::Result<()> {
    let path = dir.join(PREPARED);
    if let Some(from) = from {
        disk.rename(from, &path)?;
    }
    let file = disk.open(&path, OpenMode { create: true, ..OpenMode::default() })?;
    if file.len()? == how.len {
        return file.sync_data();
    }
    file.set_len(0)?;
    file.reserve(0, how.len)?;
    // A burst of dirty pages would be in the way of the appends when it's synced.
    let writer = if how.direct {
        disk.open(&path, OpenMode { direct: true, ..OpenMode::default() })?
    } else {
        Arc::clone(&file)
    };
    let memory = vec![0; ZEROS.min(how.len as usize) + DIRECT_ALIGNMENT];
    let zeros = &memory[memory.as_ptr().align_offset(DIRECT_ALIGNMENT)..][..memory.len() - DIRECT_ALIGNMENT];
    let mut written = 0;
    while written < how.len {
        let part = (how.len - written).min(zeros.len() as u64);
        writer.write_all_at(&[IoSlice::new(&zeros[..part as usize])], written)?;
        written += part;
        if how.gently {
            std::thread::sleep(PAUSE);
        }
    }
    file.sync_data()
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(SUFFIX)?.parse().ok()
}

fn read_id(disk: &dyn Disk, path: &Path) -> Result<Option<u32>, JournalError> {
    let failed = |source| JournalError::io("read the id of", path, source);
    if !disk.exists(path).map_err(failed)? {
        return Ok(None);
    }
    let file = disk.open(path, OpenMode { read_only: true, ..OpenMode::default() }).map_err(failed)?;
    let mut bytes = [0; 8];
    let read = file.read_at(&mut bytes, 0).map_err(failed)?;
    let (id, crc) = bytes.split_at(4);
    if read != bytes.len() || crc32fast::hash(id).to_be_bytes() != crc {
        return Err(JournalError::Id { path: path.to_owned() });
    }
    Ok(Some(u32::from_be_bytes([id[0], id[1], id[2], id[3]])))
}

fn make_id(disk: &dyn Disk, dir: &Path) -> io::Result<u32> {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hasher is keyed from the system's randomness: enough to tell two journals apart.
    let id = std::hash::RandomState::new().build_hasher().finish() as u32 | 1;
    let aside = dir.join("journal.id.new");
    let file = disk.open(&aside, OpenMode { create: true, truncate: true, ..OpenMode::default() })?;
    let crc = crc32fast::hash(&id.to_be_bytes());
    file.write_all_at(&[IoSlice::new(&id.to_be_bytes()), IoSlice::new(&crc.to_be_bytes())], 0)?;
    file.sync_data()?;
    disk.rename(&aside, &dir.join(ID_FILE))?;
    disk.sync_dir(dir)?;
    Ok(id)
}

fn can_go_direct(disk: &dyn Disk, dir: &Path) -> bool {
    let path = dir.join(ID_FILE);
    match disk.open(&path, OpenMode { direct: true, ..OpenMode::default() }) {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(%error, dir = %dir.display(), "no direct writes here: the journal uses fdatasync");
            false
        }
    }
}
