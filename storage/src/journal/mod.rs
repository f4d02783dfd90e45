//! The commit journal: what is appended here stands on the disk when its callback runs, and survives any crash of
//! the machine after that (docs/decisions/0006 and docs/ARCHITECTURE.md, "Durability").
//!
//! | file | what it knows |
//! |---|---|
//! | `block` | how a group of entries stands in sectors; torn told from damaged |
//! | `files` | the journal's files: names, numbers, preparing them ahead |
//! | `writer` | one thread, one write in flight, the next group forms meanwhile |
//! | `replay` | from a position to the end |
//!
//! Entries are opaque. Everything that arrives while a write is under way becomes the next group, so that a
//! thousand appends cost as much as one. Called by the broker's log (a ring: space comes back with each checkpoint)
//! and the coordinator's ledger (a chain: space comes back with each snapshot).

mod block;
mod files;
mod replay;
mod writer;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use thiserror::Error;

use crate::disk::Disk;
use files::Files;
pub use replay::Replayed;
use writer::Writer;

/// What is appended: stands in the journal as head and body side by side, and is replayed as one piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What the appender puts in front, such as where the body belongs.
    pub head: Vec<u8>,
    /// The bytes to keep, shared with whoever received them.
    pub body: Bytes,
}

/// A place between two groups of a journal: its order is the order of appends, and no place is ever named twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn {
    /// The group that ends here; groups are numbered upwards, with gaps.
    group: u64,
    /// Bytes from the beginning of the journal's first file.
    position: u64,
}

impl Lsn {
    /// For keeping in a checkpoint.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.group.to_be_bytes());
        bytes[8..].copy_from_slice(&self.position.to_be_bytes());
        bytes
    }

    /// What `to_bytes` gave.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let (group, position) = bytes.split_at(8);
        let long = |part: &[u8]| part.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        Self { group: long(group), position: long(position) }
    }

    /// Bytes from the beginning of the journal, for measuring how much lies between two places.
    pub const fn position(self) -> u64 {
        self.position
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {} at {}", self.group, self.position)
    }
}

/// How much disk a journal may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// So many bytes, reused as they are released; appends wait when nothing is.
    Ring {
        /// The bound in bytes.
        bytes: u64,
    },
    /// As much as is not released.
    Chain,
}

/// How a journal behaves.
#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    /// How much disk it may take.
    pub space: Space,
    /// Bytes of each file, a multiple of 4096.
    pub file_bytes: u64,
    /// The most that one write takes, in bytes.
    pub group_bytes_max: usize,
    /// Appended and not yet written bytes above which [`Journal::has_room`] says no.
    pub pending_bytes_max: usize,
    /// Write around the page cache where the file system can.
    pub direct: bool,
    /// Write in the caller's thread, and prepare files there: for simulations, which must run the same way twice.
    pub inline: bool,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            space: Space::Ring { bytes: 256 << 20 },
            file_bytes: 16 << 20,
            group_bytes_max: 4 << 20,
            pending_bytes_max: 32 << 20,
            direct: true,
            inline: false,
        }
    }
}

/// Why the journal can't do it. All but `TooLarge` and `Full` are final: the directory is to be taken offline.
#[derive(Clone, Debug, Error)]
pub enum JournalError {
    /// The disk failed. A failed write is never tried again: what it left is not known.
    #[error("journal {}: can't {what}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// An entry that doesn't fit into a journal file; to be made durable in another way.
    #[error("an entry of {length} bytes is larger than the {limit} that a journal file holds")]
    TooLarge {
        /// The entry's bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The journal's own id can't be read: without it old and new can't be told apart.
    #[error("journal {}: its id is damaged", path.display())]
    Id {
        /// The id's file.
        path: PathBuf,
    },
    /// It has been closed.
    #[error("the journal is closed")]
    Closed,
}

impl JournalError {
    fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source: Arc::new(source) }
    }
}

/// Told when an append is durable, or never will be. Runs on the journal's thread, in the order of appends: it must
/// not wait for anything.
pub type Done = Box<dyn FnOnce(Result<Lsn, JournalError>) + Send>;

/// The handle of a journal; closing waits for what was appended.
pub struct Journal {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The writer, where it runs in the caller's thread.
    inline: Option<Mutex<Writer>>,
    direct: bool,
    limit: usize,
}

/// What the handle and the writer's thread share.
struct Shared {
    queue: Mutex<Queue>,
    /// Wakes the writer: something was appended or released, or the end has come.
    wake: Condvar,
    pending_bytes_max: usize,
    crowded: AtomicBool,
}

#[derive(Default)]
struct Queue {
    appends: VecDeque<Append>,
    bytes: usize,
    /// Everything before it may be overwritten.
    released: Lsn,
    durable_end: Lsn,
    /// Whether the writer waits for something to be released.
    starving: bool,
    closed: bool,
    failed: Option<JournalError>,
    room_waiters: Vec<Box<dyn FnOnce() + Send>>,
}

struct Append {
    entries: Vec<Entry>,
    bytes: usize,
    done: Done,
}

impl Journal {
    /// Opens the journal in `dir` (made if absent), gives everything after `from` to `visit` in order, and is ready
    /// to append behind it. `from` is `None` to replay all that there is.
    ///
    /// # Errors
    /// `Io` and `Id`. Damage is no error here: it is visited.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: JournalOptions,
        from: Option<Lsn>,
        visit: &mut dyn FnMut(Replayed),
    ) -> Result<Self, JournalError> {
        let files = Files::open(disk, dir, options)?;
        let end = replay::replay(&files, from, visit)?;
        let (direct, limit) = (files.direct(), block::entries_room(files.file_bytes()));
        let writer = Writer::new(files, options, end)?;
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                durable_end: end.last,
                released: from.unwrap_or_default(),
                ..Queue::default()
            }),
            wake: Condvar::new(),
            pending_bytes_max: options.pending_bytes_max,
            crowded: AtomicBool::new(false),
        });
        if options.inline {
            let inline = Some(Mutex::new(writer));
            return Ok(Self { shared, thread: Mutex::new(None), inline, direct, limit });
        }
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&theirs))
            .map_err(|source| JournalError::io("start the writer of", dir, source))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)), inline: None, direct, limit })
    }

    /// Appends `entries` as one: all of them become durable together, and `done` is told. Never waits for the disk
    /// (unless the journal is inline): heed [`Journal::has_room`].
    ///
    /// # Errors
    /// `TooLarge` here, and then `done` is not called; everything else is told to `done`.
    pub fn append(&self, entries: Vec<Entry>, done: Done) -> Result<(), JournalError> {
        let bytes = entries.iter().map(block::entry_len).sum::<usize>();
        if bytes > self.limit {
            return Err(JournalError::TooLarge { length: bytes, limit: self.limit });
        }
        let append = Append { entries, bytes, done };
        if let Some(writer) = &self.inline {
            let released = self.shared.queue.lock().released;
            let mut writer = writer.lock();
            // An inline journal's caller releases by itself: a full ring is its own fault.
            let result = writer.write(std::slice::from_ref(&append), released);
            let result = result.and_then(|end| end.ok_or(JournalError::Closed));
            drop(writer);
            if let Ok(end) = result {
                self.shared.queue.lock().durable_end = end;
            }
            (append.done)(result);
            return Ok(());
        }
        let mut queue = self.shared.queue.lock();
        let refusal = queue.failed.clone().or(queue.closed.then_some(JournalError::Closed));
        if let Some(refusal) = refusal {
            drop(queue);
            (append.done)(Err(refusal));
            return Ok(());
        }
        queue.bytes += append.bytes;
        self.shared.crowded.store(queue.bytes > self.shared.pending_bytes_max, Ordering::Relaxed);
        queue.appends.push_back(append);
        let first = queue.appends.len() == 1;
        drop(queue);
        if first {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// Whether an appender should go on; if not, it waits for [`Journal::when_room`].
    pub fn has_room(&self) -> bool {
        !self.shared.crowded.load(Ordering::Relaxed)
    }

    /// Calls `wake` when there is room again, at once if there is.
    pub fn when_room(&self, wake: Box<dyn FnOnce() + Send>) {
        let mut queue = self.shared.queue.lock();
        if queue.bytes <= self.shared.pending_bytes_max || queue.closed || queue.failed.is_some() {
            drop(queue);
            wake();
        } else {
            queue.room_waiters.push(wake);
        }
    }

    /// The most bytes that one append may have.
    pub const fn append_bytes_max(&self) -> usize {
        self.limit
    }

    /// The end of what is durable.
    pub fn durable_end(&self) -> Lsn {
        self.shared.queue.lock().durable_end
    }

    /// The beginning of what is not released.
    pub fn released(&self) -> Lsn {
        self.shared.queue.lock().released
    }

    /// Whether appends wait for space: a release helps at once.
    pub fn is_starving(&self) -> bool {
        self.shared.queue.lock().starving
    }

    /// Whether writes go around the page cache, or are followed by fdatasync instead.
    pub const fn is_direct(&self) -> bool {
        self.direct
    }

    /// Lets everything before `lsn` be overwritten: whoever calls has made it durable elsewhere.
    pub fn release_before(&self, lsn: Lsn) {
        let mut queue = self.shared.queue.lock();
        queue.released = queue.released.max(lsn);
        drop(queue);
        self.shared.wake.notify_one();
    }

    /// Writes what was appended, and ends. Later appends are refused.
    pub fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // A writer that panicked has told nobody that anything is durable.
            let _ = thread.join();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("direct", &self.direct).finish_non_exhaustive()
    }
}
