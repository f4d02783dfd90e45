//! A few bytes that must never be lost or half new: two copies in one file, the older one overwritten first.
//!
//! Each copy carries a number and a checksum. A write goes to copy A, is synced, goes to copy B, is synced, and only
//! then counts; so at every moment one copy is whole, and the whole copy with the highest number holds (design
//! 1.11). Used for the promise and the identity.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut};
use loggos_storage::disk::{Disk, DiskFile, OpenMode};

use crate::error::LedgerError;

const MAGIC: &[u8; 8] = b"lgblock1";
/// Magic, number, length; the checksum follows the payload.
const HEAD_LEN: usize = 8 + 8 + 4;

/// The file of two copies.
#[derive(Debug)]
pub(super) struct Block {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    number: u64,
    copy_len: usize,
}

impl Block {
    /// Opens the file and reads what it holds: `None` if it is new. `copy_len` bytes are set aside for each copy.
    ///
    /// # Errors
    /// `Damaged` if there is a file and no whole copy in it.
    pub fn open(
        disk: &Arc<dyn Disk>,
        path: &Path,
        copy_len: usize,
    ) -> Result<(Self, Option<Vec<u8>>), LedgerError> {
        let io = |e: std::io::Error| LedgerError::io("open", path, &e);
        let existed = disk.exists(path).map_err(io)?;
        let file = disk.open(path, OpenMode { create: true, ..OpenMode::default() }).map_err(io)?;
        let mut block = Self { path: path.to_owned(), file, number: 0, copy_len };
        let length = block.file.len().map_err(io)?;
        let mut newest: Option<(u64, Vec<u8>)> = None;
        for copy in 0..2 {
            if let Some(found) = block.read(copy)?
                && newest.as_ref().is_none_or(|(number, _)| found.0 > *number)
            {
                newest = Some(found);
            }
        }
        match newest {
            Some((number, payload)) => {
                block.number = number;
                Ok((block, Some(payload)))
            }
            // A file without any bytes of the first copy was being made: nothing that it was to hold counted yet.
            None if !existed || length < copy_len as u64 => Ok((block, None)),
            None if block.is_blank(length)? => Ok((block, None)),
            None => Err(LedgerError::Damaged {
                path: path.to_owned(),
                why: "neither of its two copies is whole".to_owned(),
            }),
        }
    }

    /// Holds `payload` from now on, through any crash.
    pub fn write(&mut self, payload: &[u8]) -> Result<(), LedgerError> {
        self.number += 1;
        let mut bytes = Vec::with_capacity(self.copy_len);
        bytes.put_slice(MAGIC);
        bytes.put_u64(self.number);
        bytes.put_u32(u32::try_from(payload.len()).expect("a payload fits into a copy"));
        bytes.put_slice(payload);
        bytes.put_u32(crc32fast::hash(&bytes));
        assert!(bytes.len() <= self.copy_len, "a payload fits into a copy");
        bytes.resize(self.copy_len, 0);
        for copy in 0..2u64 {
            self.file
                .write_all_at(&[IoSlice::new(&bytes)], copy * self.copy_len as u64)
                .and_then(|()| self.file.sync_data())
                .map_err(|e| LedgerError::io("write", &self.path, &e))?;
        }
        Ok(())
    }

    fn read(&self, copy: usize) -> Result<Option<(u64, Vec<u8>)>, LedgerError> {
        let mut bytes = vec![0; self.copy_len];
        match self.file.read_exact_at(&mut bytes, (copy * self.copy_len) as u64) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(LedgerError::io("read", &self.path, &error)),
        }
        let mut fields = &bytes[8..];
        let (number, len) = (fields.get_u64(), fields.get_u32() as usize);
        let Some(covered) = bytes.get(..HEAD_LEN + len).filter(|_| bytes.starts_with(MAGIC)) else {
            return Ok(None);
        };
        let check = bytes.get(HEAD_LEN + len..).and_then(|rest| rest.first_chunk::<4>());
        let whole = check.is_some_and(|crc| crc32fast::hash(covered) == u32::from_be_bytes(*crc));
        Ok(whole.then(|| (number, covered[HEAD_LEN..].to_vec())))
    }

    /// Whether the second copy was never written: the first write ever was cut short, and so it never counted.
    fn is_blank(&self, length: u64) -> Result<bool, LedgerError> {
        let second = self.copy_len as u64;
        if length <= second {
            return Ok(true);
        }
        let mut bytes = vec![0; (length - second).min(second) as usize];
        self.file.read_exact_at(&mut bytes, second).map_err(|e| LedgerError::io("read", &self.path, &e))?;
        Ok(bytes.iter().all(|byte| *byte == 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loggos_storage::disk_sim::{Faults, SimDisk};

    const LEN: usize = 4096;

    fn open(disk: &SimDisk) -> Result<(Block, Option<Vec<u8>>), LedgerError> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        Block::open(&disk, Path::new("/block"), LEN)
    }

    #[test]
    fn a_crash_at_any_step_leaves_the_last_that_counted_or_the_next() {
        for seed in 0..40 {
            for crash_at in 1..40 {
                let disk = SimDisk::new(seed, Faults { crash_at: Some(crash_at), ..Faults::default() });
                let (mut counted, mut tried) = (0u8, 0u8);
                if let Ok((mut block, None)) = open(&disk)
                    && disk.sync_dir(Path::new("/")).is_ok()
                {
                    while tried < 5 {
                        tried += 1;
                        if block.write(&[tried; 100]).is_err() {
                            break;
                        }
                        counted = tried;
                    }
                }
                let after = disk.after_crash(seed * 31 + crash_at, Faults::default());
                let found = open(&after).expect("a whole copy").1.map_or(0, |payload| payload[0]);
                assert!(found == counted || found == tried, "seed {seed} step {crash_at}: {found} {counted}");
            }
        }
    }

    #[test]
    fn one_damaged_copy_costs_nothing_and_two_are_noticed() {
        let disk = SimDisk::new(1, Faults::default());
        open(&disk).expect("new").0.write(b"payload").expect("a healthy disk");
        disk.rot(Path::new("/block"), 25);
        assert_eq!(open(&disk).expect("one copy").1.as_deref(), Some(&b"payload"[..]));
        disk.rot(Path::new("/block"), LEN + 25);
        assert!(matches!(open(&disk), Err(LedgerError::Damaged { .. })));
    }
}
