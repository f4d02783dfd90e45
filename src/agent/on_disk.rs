//! What files hold, as the disk has it: the facts that the tail asks for. Called by `files`.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::files::{CHUNK, Reading, Source};
use super::sighting::{Contents, FileKey, HEAD_LIMIT, Inode, Progress, Sighting};

/// Bytes at the end of what two files share that say whether they are the same.
const SAME_LIMIT: u64 = 1_024;

/// Whether the first bytes are still those that were seen before they were read.
pub fn begins_as_known(file: &File, position: u64, known: &[u8]) -> io::Result<bool> {
    if position >= known.len() as u64 {
        return Ok(true);
    }
    let mut head = vec![0; known.len()];
    match file.read_exact_at(&mut head, 0) {
        Ok(()) => Ok(head == known),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Contents as the disk has them.
pub struct OnDisk<'a> {
    readings: &'a BTreeMap<FileKey, Reading>,
}

impl<'a> OnDisk<'a> {
    /// Those of the files that are being read, and of all others.
    pub const fn new(readings: &'a BTreeMap<FileKey, Reading>) -> Self {
        Self { readings }
    }

    fn open(at: &Sighting) -> Option<File> {
        let file = File::open(&at.path).ok()?;
        (inode(&file.metadata().ok()?) == at.inode).then_some(file)
    }
}

impl Contents for OnDisk<'_> {
    fn head(&mut self, at: &Sighting) -> Vec<u8> {
        let Some(file) = Self::open(at) else { return Vec::new() };
        let mut head = Vec::new();
        let limit = HEAD_LIMIT as u64;
        // What a broken archive gives before it breaks is its beginning all the same.
        let _ = if at.packed {
            MultiGzDecoder::new(BufReader::new(file)).take(limit).read_to_end(&mut head)
        } else {
            file.take(limit).read_to_end(&mut head)
        };
        head
    }

    fn head_of(&mut self, file: FileKey) -> (Vec<u8>, u64) {
        let ours = match self.readings.get(&file).and_then(|reading| reading.source.as_ref()) {
            Some(Source::Plain(ours)) => ours,
            _ => return (Vec::new(), 0),
        };
        let mut head = vec![0; HEAD_LIMIT];
        let count = ours.read_at(&mut head, 0).unwrap_or(0);
        head.truncate(count);
        (head, ours.metadata().map_or(0, |metadata| mtime_of(&metadata)))
    }

    fn is_whole(&mut self, at: &Sighting) -> bool {
        let Some(file) = Self::open(at) else { return false };
        io::copy(&mut MultiGzDecoder::new(BufReader::new(file)), &mut io::sink()).is_ok()
    }

    fn intact(&mut self, file: FileKey, progress: &Progress) -> bool {
        let ours = match self.readings.get(&file).and_then(|reading| reading.source.as_ref()) {
            Some(Source::Plain(ours)) => ours,
            // What is compressed is never written to again.
            Some(Source::Packed(_)) => return true,
            None => return false,
        };
        let (mut head, mut mark) = (vec![0; progress.head.len()], vec![0; progress.mark.len()]);
        ours.read_exact_at(&mut head, 0).is_ok()
            && ours.read_exact_at(&mut mark, progress.position - progress.mark.len() as u64).is_ok()
            && head == progress.head
            && mark == progress.mark
    }

    fn has(&mut self, at: &Sighting, position: u64, mark: &[u8]) -> bool {
        let Some(file) = Self::open(at) else { return false };
        let from = position.saturating_sub(mark.len() as u64);
        let mut seen = vec![0; mark.len()];
        if at.packed {
            let mut decoder = MultiGzDecoder::new(BufReader::new(file));
            let skipped = io::copy(&mut decoder.by_ref().take(from), &mut io::sink());
            return skipped.is_ok_and(|skipped| skipped == from)
                && decoder.read_exact(&mut seen).is_ok()
                && seen == mark;
        }
        file.read_exact_at(&mut seen, from).is_ok() && seen == mark
    }

    fn same(&mut self, at: &Sighting, file: FileKey) -> bool {
        let ours = match self.readings.get(&file).and_then(|reading| reading.source.as_ref()) {
            Some(Source::Plain(ours)) => ours,
            _ => return false,
        };
        let Some(theirs) = Self::open(at) else { return false };
        if at.packed {
            return same_stream(ours, MultiGzDecoder::new(BufReader::new(theirs)));
        }
        let Ok(metadata) = ours.metadata() else { return false };
        let end = at.len.min(metadata.len());
        let count = end.min(SAME_LIMIT);
        let (mut a, mut b) = (vec![0; count as usize], vec![0; count as usize]);
        ours.read_exact_at(&mut a, end - count).is_ok()
            && theirs.read_exact_at(&mut b, end - count).is_ok()
            && a == b
    }
}

/// Whether `theirs` gives what `ours` holds, up to the end of the shorter one.
fn same_stream(ours: &File, mut theirs: impl Read) -> bool {
    let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    loop {
        let Ok(count) = theirs.read(&mut a) else { return false };
        let Ok(known) = ours.read_at(&mut b[..count], at) else { return false };
        if a[..known] != b[..known] {
            return false;
        }
        if known < count || count == 0 {
            return true;
        }
        at += count as u64;
    }
}

/// A file as a look finds it.
pub fn sighting(path: &Path, text: &str, matched: bool, from_end: bool) -> Option<Sighting> {
    let metadata = std::fs::metadata(path).ok().filter(Metadata::is_file)?;
    Some(Sighting {
        path: text.to_owned(),
        inode: inode(&metadata),
        len: metadata.len(),
        mtime: mtime_of(&metadata),
        packed: text.ends_with(".gz"),
        matched,
        from_end,
    })
}

/// A file's inode.
pub fn inode(metadata: &Metadata) -> Inode {
    Inode { dev: metadata.dev(), ino: metadata.ino() }
}

/// When it was last written, in nanoseconds.
pub fn mtime_of(metadata: &Metadata) -> u64 {
    let nanoseconds = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    u64::try_from(nanoseconds).unwrap_or(0)
}
