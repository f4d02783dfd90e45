//! A segment's sparse index: one entry per so many bytes of log, from offsets to positions and from times to
//! offsets. It is a hint that can always be had again from the segment; what lies in its file is checked before it
//! is believed.
//!
//! ```text
//! entry (16 bytes)   offset minus base u32 | position u32 | greatest time of what lies before i64
//! seal  (16 bytes)   magic u32 | entries u32 | crc32 of the entries u32 | length of the segment u32
//! ```
//! An active segment's file grows with each checkpoint by plain writes; a sealed one is mapped, read-only. Called by
//! `segment`.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use loggos_protocol::ids::Timestamp;
use loggos_storage::disk::{Disk, DiskFile, OpenMode};

use super::index_map::{self, Entries};

/// Bytes of an entry, and of the seal.
pub(super) const ENTRY: usize = 16;
const SEAL_MAGIC: u32 = 0x4c47_4958;

/// From where in a segment to go on looking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct IndexEntry {
    /// A batch's base offset minus the segment's.
    pub relative: u32,
    /// Where that batch begins in the file.
    pub position: u32,
    /// The greatest time of all batches before it, or `i64::MIN`.
    pub max_before: i64,
}

impl IndexEntry {
    fn encode(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..4].copy_from_slice(&self.relative.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.position.to_be_bytes());
        bytes[8..].copy_from_slice(&self.max_before.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let mut fixed = [0; ENTRY];
        fixed.copy_from_slice(&bytes[..ENTRY]);
        let [a, b, c, d, e, f, g, h, time @ ..] = fixed;
        Self {
            relative: u32::from_be_bytes([a, b, c, d]),
            position: u32::from_be_bytes([e, f, g, h]),
            max_before: i64::from_be_bytes(time),
        }
    }
}

/// One segment's index.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    /// How many entries the file holds.
    stored: usize,
    /// The file, while it grows.
    file: Option<Arc<dyn DiskFile>>,
    sealed: bool,
    /// Entries behind the stored ones.
    tail: Vec<IndexEntry>,
}

impl Index {
    /// An empty index whose file is made when there is something to store.
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, stored: 0, file: None, sealed: false, tail: Vec::new() }
    }

    /// What the file at `path` holds, as far as it can be believed: entries that rise and lie before `len`. For a
    /// sealed segment, `None` unless the seal fits.
    pub(super) fn load(disk: &dyn Disk, path: &Path, len: u64, sealed: bool) -> Option<Self> {
        let file = disk.open(path, OpenMode::default()).ok()?;
        let mut bytes = vec![0; usize::try_from(file.len().ok()?).ok()?];
        file.read_exact_at(&mut bytes, 0).ok()?;
        if sealed {
            let entries = sealed_entries(&bytes, len)?;
            rises(entries, len).then_some(())?;
            let stored = entries.len() / ENTRY;
            return Some(Self { path: path.to_owned(), stored, file: None, sealed, tail: Vec::new() });
        }
        let whole = bytes.len() / ENTRY * ENTRY;
        if !rises(&bytes[..whole], len) {
            return None;
        }
        let stored = whole / ENTRY;
        Some(Self { path: path.to_owned(), stored, file: Some(file), sealed, tail: Vec::new() })
    }

    /// Whether the file of a sealed segment's index was looked at since the start; it's done at the first use.
    pub(super) fn trust_sealed(path: PathBuf, stored: usize) -> Self {
        Self { path, stored, file: None, sealed: true, tail: Vec::new() }
    }

    pub(super) fn push(&mut self, entry: IndexEntry) {
        self.tail.push(entry);
    }

    pub(super) fn last(&self) -> io::Result<Option<IndexEntry>> {
        match self.tail.last() {
            Some(last) => Ok(Some(*last)),
            None if self.stored == 0 => Ok(None),
            None => self.stored_entry(self.stored - 1).map(Some),
        }
    }

    /// The last entry for which `before` holds; it holds for a first part of all entries.
    /// `len` is the segment's length, which a seal must fit.
    pub(super) fn last_where(
        &self,
        disk: &dyn Disk,
        len: u64,
        before: impl Fn(&IndexEntry) -> bool,
    ) -> io::Result<Option<IndexEntry>> {
        let in_tail = self.tail.partition_point(&before);
        if in_tail > 0 {
            return Ok(self.tail.get(in_tail - 1).copied());
        }
        let mapped = if self.sealed { Some(self.map(disk, len)?) } else { None };
        let entry = |at: usize| match &mapped {
            Some(entries) => Ok(IndexEntry::decode(&entries.bytes()[at * ENTRY..])),
            None => self.stored_entry(at),
        };
        let (mut low, mut high) = (0, self.stored);
        while low < high {
            let middle = low.midpoint(high);
            if before(&entry(middle)?) { low = middle + 1 } else { high = middle }
        }
        if low == 0 { Ok(None) } else { entry(low - 1).map(Some) }
    }

    fn map(&self, disk: &dyn Disk, len: u64) -> io::Result<Arc<Entries>> {
        let entries = index_map::open(disk, &self.path, len)?;
        if entries.bytes().len() < self.stored * ENTRY {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an index file is shorter than it was"));
        }
        Ok(entries)
    }

    fn stored_entry(&self, at: usize) -> io::Result<IndexEntry> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = [0; ENTRY];
        file.read_exact_at(&mut bytes, (at * ENTRY) as u64)?;
        Ok(IndexEntry::decode(&bytes))
    }

    /// Writes what isn't in the file yet; whether it survives a crash doesn't matter.
    pub(super) fn store(&mut self, disk: &dyn Disk) -> io::Result<()> {
        if self.sealed || self.tail.is_empty() {
            return Ok(());
        }
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => {
                let mode = OpenMode { create: true, truncate: self.stored == 0, ..OpenMode::default() };
                disk.open(&self.path, mode)?
            }
        };
        let bytes: Vec<u8> = self.tail.iter().flat_map(|entry| entry.encode()).collect();
        file.write_all_at(&[IoSlice::new(&bytes)], (self.stored * ENTRY) as u64)?;
        self.stored += self.tail.len();
        self.tail = Vec::new();
        self.file = Some(file);
        Ok(())
    }

    /// Stores everything and puts the seal behind it: the segment won't grow any more.
    pub(super) fn seal(&mut self, disk: &dyn Disk, len: u64) -> io::Result<()> {
        if self.sealed {
            return Ok(());
        }
        self.store(disk)?;
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                disk.open(&self.path, OpenMode { create: true, truncate: true, ..OpenMode::default() })?
            }
        };
        let mut bytes = vec![0; self.stored * ENTRY];
        file.read_exact_at(&mut bytes, 0)?;
        let seal = [
            SEAL_MAGIC.to_be_bytes(),
            u32::try_from(self.stored).unwrap_or(u32::MAX).to_be_bytes(),
            crc32fast::hash(&bytes).to_be_bytes(),
            // A seal of what was here before a cut doesn't fit what is here now.
            (len as u32).to_be_bytes(),
        ]
        .concat();
        file.write_all_at(&[IoSlice::new(&seal)], bytes.len() as u64)?;
        file.set_len((bytes.len() + seal.len()) as u64)?;
        self.sealed = true;
        Ok(())
    }

    pub(super) const fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// How many entries there are.
    pub(super) fn count(&self) -> usize {
        self.stored + self.tail.len()
    }
}

/// The entries in front of a seal that fits them, and a segment of `len` bytes.
pub(super) fn sealed_entries(bytes: &[u8], len: u64) -> Option<&[u8]> {
    let (entries, seal) = bytes.split_at_checked(bytes.len().checked_sub(ENTRY)?)?;
    let word = |at: usize| u32::from_be_bytes([seal[at], seal[at + 1], seal[at + 2], seal[at + 3]]);
    let whole = word(0) == SEAL_MAGIC && word(4) as usize * ENTRY == entries.len() && word(12) == len as u32;
    (whole && word(8) == crc32fast::hash(entries)).then_some(entries)
}

fn rises(entries: &[u8], len: u64) -> bool {
    let mut last: Option<IndexEntry> = None;
    for entry in entries.chunks_exact(ENTRY).map(IndexEntry::decode) {
        let follows = last.is_none_or(|last| {
            entry.relative > last.relative
                && entry.position > last.position
                && entry.max_before >= last.max_before
        });
        if !follows || u64::from(entry.position) >= len {
            return false;
        }
        last = Some(entry);
    }
    true
}

/// For looking up a time: entries before which only older records lie.
pub(super) fn is_before(time: Timestamp) -> impl Fn(&IndexEntry) -> bool {
    move |entry| entry.max_before < time.raw()
}
