//! The real disk: a file system under the trait of `disk`. Linux' own calls come through rustix, all of them safe.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::ReadWriteFlags;

use crate::disk::{DirEntry, Disk, DiskFile, OpenMode};
use crate::writeback;

/// `pwritev` takes at most this many parts at once (`IOV_MAX` of Linux).
const PARTS_LIMIT: usize = 1024;

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsDisk;

/// A file whose lock lasts as long as the value.
#[derive(Debug)]
struct Locked {
    _file: File,
}

impl Disk for FsDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(!mode.read_only).create(mode.create).truncate(mode.truncate);
        if mode.direct {
            let flags = OFlags::DIRECT | OFlags::DSYNC;
            options.custom_flags(i32::try_from(flags.bits()).unwrap_or(0));
        }
        Ok(Arc::new(FsFile(options.open(path)?)))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let about = entry.metadata()?;
            let len = if about.is_dir() { 0 } else { about.len() };
            let name = entry.file_name().to_string_lossy().into_owned();
            found.push(DirEntry { name, is_dir: about.is_dir(), len });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(Locked { _file: file }))
    }

    fn real_path(&self, path: &Path) -> Option<PathBuf> {
        Some(path.to_owned())
    }
}

#[derive(Debug)]
struct FsFile(File);

impl DiskFile for FsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.0.read_at(buffer, position)
    }

    fn write_all_at(&self, parts: &[IoSlice<'_>], mut position: u64) -> io::Result<()> {
        // Where the next write begins: which part, and how far into it.
        let (mut part, mut within) = (0, 0);
        while part < parts.len() {
            let written = if within == 0 {
                let end = parts.len().min(part + PARTS_LIMIT);
                rustix::io::pwritev(&self.0, &parts[part..end], position).map_err(io::Error::from)
            } else {
                self.0.write_at(&parts[part][within..], position)
            };
            let mut written = match written {
                Ok(0) if parts[part..].iter().all(|rest| rest.is_empty()) => return Ok(()),
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            position += written as u64;
            while part < parts.len() && written >= parts[part].len() - within {
                written -= parts[part].len() - within;
                (part, within) = (part + 1, 0);
            }
            within += written;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn reserve(&self, position: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::KEEP_SIZE, position, len) {
            // A file system that can't reserve shows a full disk at the write instead.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn start_writeback(&self, position: u64, len: u64) {
        writeback::start(self.0.as_fd(), position, len);
    }

    fn is_cached(&self, position: u64, len: u64) -> Option<bool> {
        // The two ends stand for the range: a page in the middle that is missing costs one wait, not correctness.
        let last = position + len.saturating_sub(1);
        for at in [position, last] {
            let mut byte = [0u8; 1];
            let mut parts = [io::IoSliceMut::new(&mut byte)];
            match rustix::io::preadv2(&self.0, &mut parts, at, ReadWriteFlags::NOWAIT) {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => return Some(false),
                Err(_) => return None,
            }
        }
        Some(true)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_parts_land_one_after_the_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = FsDisk
            .open(&folder.path().join("file"), OpenMode { create: true, ..OpenMode::default() })
            .expect("opens");
        let pieces: Vec<Vec<u8>> =
            (0..3000u32).map(|n| n.to_be_bytes()[..(n % 5).min(4) as usize].to_vec()).collect();
        let parts: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        file.write_all_at(&parts, 7).expect("writes");
        let expected: Vec<u8> = pieces.concat();
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, 7).expect("reads");
        assert_eq!(found, expected);
    }

    #[test]
    fn a_second_lock_is_refused_until_the_first_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let first = FsDisk.lock(&path).expect("free");
        let refused = FsDisk.lock(&path).expect_err("taken");
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(first);
        FsDisk.lock(&path).expect("free again");
    }
}
