//! The disk as the durable rooms see it. Everything that Loggos keeps goes through these two traits, so that the
//! faulty twin in `disk_sim` can stop the world at any write and show what a crash would have left.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::disk_fs::FsDisk;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// Make it if it is absent.
    pub create: bool,
    /// Open for reading alone.
    pub read_only: bool,
    /// Empty it first.
    pub truncate: bool,
    /// Bypass the page cache, each write durable when it returns (`O_DIRECT | O_DSYNC`). Positions, lengths and
    /// memory must then be multiples of [`DIRECT_ALIGNMENT`].
    pub direct: bool,
}

/// The alignment of direct I/O in bytes: a page, which every disk accepts.
pub const DIRECT_ALIGNMENT: usize = 4096;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name without the path.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Its length in bytes; 0 for a directory.
    pub len: u64,
}

/// Names in a file system. Nothing here is durable until [`Disk::sync_dir`] of the folder has returned.
pub trait Disk: Debug + Send + Sync {
    /// Opens a file. `InvalidInput` if the file system refuses direct I/O.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a directory and its parents; no error if it is there.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Lists a directory, sorted by name.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// Renames a file or directory, replacing a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Whether something of that name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Takes the lock file at `path` for this process; `WouldBlock` if another process holds it. Held until dropped.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>>;
    /// The path as the operating system knows it, for messages and for mapping; `None` on a simulated disk.
    fn real_path(&self, path: &Path) -> Option<PathBuf>;
}

/// An open file; all positions and lengths in bytes. Methods may be called from several threads.
pub trait DiskFile: Debug + Send + Sync {
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads at most `buffer.len()` bytes at `position`; 0 at or beyond the end.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;
    /// Reads exactly `buffer.len()` bytes, or `UnexpectedEof`.
    fn read_exact_at(&self, mut buffer: &mut [u8], mut position: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, position) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buffer = &mut buffer[read..];
                    position += read as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
    /// Writes all of `parts`, one after the other, at `position`. On an error any part of it may have been written.
    fn write_all_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves space for `len` bytes at `position` without changing the length, so that a full disk shows now.
    fn reserve(&self, position: u64, len: u64) -> io::Result<()>;
    /// Makes the file's bytes and length durable (fdatasync). After an error the file must not be trusted again.
    fn sync_data(&self) -> io::Result<()>;
    /// Has the system begin to write this range to the disk, and promises nothing: a later [`DiskFile::sync_data`]
    /// finds less to do, and tells of errors.
    fn start_writeback(&self, _position: u64, _len: u64) {}
    /// Whether a read of this range would be served from memory, if the file system can tell.
    fn is_cached(&self, position: u64, len: u64) -> Option<bool>;
    /// The descriptor, for `sendfile`; `None` on a simulated disk.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}
