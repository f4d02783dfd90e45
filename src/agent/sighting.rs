//! What is known of a file (P): names, inodes, lengths, first and last bytes, and how to know it again by them. Named
//! by `tail`, which decides by it, and by whoever looks or remembers.

use std::path::Path;

/// First bytes of a file that tell it from others.
pub const HEAD_LIMIT: usize = 256;
/// Last bytes before a position that tell whether a file is still the same there.
pub const MARK_LIMIT: usize = 32;
/// A file as the kernel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Inode {
    /// The device.
    pub dev: u64,
    /// The number on it, given out again after a deletion.
    pub ino: u64,
}

/// A file as the tail names it: never given out again within one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileKey(pub(super) u64);

/// A file that a look at the directories found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Its path.
    pub path: String,
    /// Its inode.
    pub inode: Inode,
    /// Its length on disk.
    pub len: u64,
    /// When it was last written, in nanoseconds.
    pub mtime: u64,
    /// Whether it is compressed with gzip.
    pub packed: bool,
    /// Whether a pattern asks for it; if not, it's a neighbour of one that does.
    pub matched: bool,
    /// Whether only what is written from now on is of interest, if it is there at the very first look.
    pub from_end: bool,
}

/// How far a file was read, and how to know it again.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// Bytes that were read.
    pub position: u64,
    /// The file's first bytes, as far as they were seen.
    pub head: Vec<u8>,
    /// The bytes right before `position`.
    pub mark: Vec<u8>,
}

/// What an earlier run left about a file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Remembered {
    /// The path that it was found under.
    pub path: String,
    /// Its inode.
    pub inode: Inode,
    /// When it was last seen written.
    pub mtime: u64,
    /// How far.
    #[serde(flatten)]
    pub progress: Progress,
    /// Whether it was read to its end for good.
    pub done: bool,
}

/// Facts that cost a read. A file that can't be read has an empty head and holds nothing.
pub trait Contents {
    /// The first bytes, [`HEAD_LIMIT`] at most; of a compressed file those of what it holds.
    fn head(&mut self, at: &Sighting) -> Vec<u8>;
    /// The first bytes of an open file, wherever it is, and when it was last written.
    fn head_of(&mut self, file: FileKey) -> (Vec<u8>, u64);
    /// Whether a compressed file is there to its true end: whoever makes it may not be done.
    fn is_whole(&mut self, at: &Sighting) -> bool;
    /// Whether the open file still holds what was read of it.
    fn intact(&mut self, file: FileKey, progress: &Progress) -> bool;
    /// Whether the bytes right before `position` are `mark`.
    fn has(&mut self, at: &Sighting, position: u64, mark: &[u8]) -> bool;
    /// Whether it and the open file `file` hold the same where both hold something, as far as can be told.
    fn same(&mut self, at: &Sighting, file: FileKey) -> bool;
}

impl Progress {
    /// Moves on over bytes that were read at the position.
    pub fn advance(&mut self, bytes: &[u8]) {
        if self.head.len() < HEAD_LIMIT && self.position <= self.head.len() as u64 {
            let known = self.head.len() - self.position as usize;
            let new = bytes.get(known..).unwrap_or_default();
            self.head.extend_from_slice(&new[..new.len().min(HEAD_LIMIT - self.head.len())]);
        }
        self.position += bytes.len() as u64;
        let kept = MARK_LIMIT.saturating_sub(bytes.len()).min(self.mark.len());
        self.mark.drain(..self.mark.len() - kept);
        self.mark.extend_from_slice(&bytes[bytes.len().saturating_sub(MARK_LIMIT)..]);
    }

    /// Whether `seen` begins as this file did and holds at the position what this file held.
    pub fn goes_on_in(&self, seen: &Sighting, head: &[u8], contents: &mut dyn Contents) -> bool {
        head.starts_with(&self.head)
            && (seen.packed || seen.len >= self.position)
            && contents.has(seen, self.position, &self.mark)
    }
}

/// Whether `other` has the name that rotation gives to a file at `path`: a number, a date or the like behind the
/// name or before its extension, and perhaps `.gz`. The directory may be another one.
pub fn is_rotated(path: &str, other: &str) -> bool {
    let name = |path| Path::new(path).file_name().and_then(|name| name.to_str());
    let (Some(name), Some(other)) = (name(path), name(other)) else { return false };
    let other = other.strip_suffix(".gz").unwrap_or(other);
    let is_stamp = |text: &str| {
        text.bytes().any(|byte| byte.is_ascii_digit())
            && text.starts_with(['.', '-', '_'])
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'T'))
    };
    if other.strip_prefix(name).is_some_and(is_stamp) {
        return true;
    }
    name.rsplit_once('.').is_some_and(|(stem, extension)| {
        let middle = other.strip_prefix(stem).and_then(|rest| rest.strip_suffix(extension));
        middle.and_then(|middle| middle.strip_suffix('.')).is_some_and(is_stamp)
    })
}
