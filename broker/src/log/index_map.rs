//! Mapped index files of sealed segments, with the only `unsafe` of this crate.
//!
//! Only files that nobody writes any more are mapped, read-only, and a bounded number of them stays mapped: ten
//! thousand partitions exhaust neither descriptors nor address space, and a full disk can raise no SIGBUS, for no
//! page is ever written through a map. Called by `index`.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use loggos_storage::disk::{Disk, OpenMode};
use memmap2::Mmap;
use parking_lot::Mutex;

use super::index::sealed_entries;

/// Index files that stay mapped.
const MAPS_KEPT: usize = 256;

/// The entries of one sealed index.
#[derive(Debug)]
pub(super) struct Entries {
    source: Source,
    len: usize,
}

#[derive(Debug)]
enum Source {
    Mapped(Mmap),
    /// On a simulated disk there is nothing to map.
    Read(Vec<u8>),
}

impl Entries {
    /// The entries' bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::Mapped(map) => &map[..self.len],
            Source::Read(bytes) => &bytes[..self.len],
        }
    }
}

type Kept = VecDeque<(PathBuf, Arc<Entries>)>;

static KEPT: Mutex<Kept> = Mutex::new(VecDeque::new());

/// The entries of the sealed index at `path` of a segment of `segment_len` bytes, mapped at the first use and checked then.
///
/// # Errors
/// `InvalidData` when the seal doesn't fit: the index is to be made again from its segment.
pub(super) fn open(disk: &dyn Disk, path: &Path, segment_len: u64) -> io::Result<Arc<Entries>> {
    let real = disk.real_path(path);
    if real.is_some()
        && let Some((_, entries)) = KEPT.lock().iter().find(|(known, _)| known == path)
    {
        return Ok(Arc::clone(entries));
    }
    let source = match &real {
        Some(real) => Source::Mapped(map(real)?),
        None => Source::Read(read(disk, path)?),
    };
    let whole = match &source {
        Source::Mapped(map) => &map[..],
        Source::Read(bytes) => bytes,
    };
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "an index file is damaged");
    let len = sealed_entries(whole, segment_len).ok_or_else(wrong)?.len();
    let entries = Arc::new(Entries { source, len });
    if real.is_some() {
        let mut kept = KEPT.lock();
        kept.push_back((path.to_owned(), Arc::clone(&entries)));
        if kept.len() > MAPS_KEPT {
            kept.pop_front();
        }
    }
    Ok(entries)
}

/// Lets go of a file that is about to be removed or made again.
pub(super) fn forget(path: &Path) {
    KEPT.lock().retain(|(known, _)| known != path);
}

#[expect(unsafe_code, reason = "the one place where files are mapped; see the head of this file")]
fn map(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map's bytes must not change while it lives. Only sealed index files get here: this process never
    // writes them again (an index that is made anew gets a new file by rename), and the data directory is locked
    // against other processes of ours.
    unsafe { Mmap::map(&file) }
}

fn read(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode { read_only: true, ..OpenMode::default() })?;
    let mut bytes = vec![0; file.len()? as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
