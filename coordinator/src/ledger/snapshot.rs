//! Files of snapshots: `snapshot-<slot in hex>`, written aside, synced, renamed, their folder synced, and read back
//! before they count. The newest three are kept, so that one that can't be read any more costs a longer replay.
//!
//! Layout, big-endian: magic 8 bytes, slot u64, length of the head u32, length of the state u64, CRC-32 of all that
//! and the head u32, head, state, then the CRC-32 of each MiB of the state, and the CRC-32 of those. The same bytes
//! go to a server that lags behind the log, piece by piece.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use loggos_storage::disk::{Disk, DiskFile, OpenMode};

use crate::error::LedgerError;
use crate::paxos::ballot::Slot;
use crate::paxos::event::SnapshotMark;

const MAGIC: &[u8; 8] = b"lgsnap02";
const HEADER_LEN: usize = 8 + 8 + 4 + 8 + 4;
const PREFIX: &str = "snapshot-";
/// What is being written or received has this ending; found at start, it is removed.
const ASIDE: &str = ".tmp";
/// How many snapshots are kept.
const KEPT: usize = 3;
/// Bytes of the state under one checksum.
const PIECE: usize = 1 << 20;
/// The longest head that is taken.
const HEAD_LIMIT: usize = 16 << 20;
/// Bytes of one message to a server that lags.
const CHUNK: usize = 256 << 10;

/// A snapshot that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The slot that it stands for, and its length.
    pub mark: SnapshotMark,
    /// The engine's part.
    pub head: Bytes,
    /// The tree.
    pub state: Bytes,
}

/// What came of a received piece.
#[derive(Debug)]
pub enum Received {
    /// More is to come, from this offset on.
    Partly(u64),
    /// It is whole, verified, and stands under its real name.
    Whole(Snapshot),
}

/// The folder's snapshots.
#[derive(Debug)]
pub(super) struct SnapshotStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// The slots of those kept, oldest first.
    kept: Vec<Slot>,
    /// One that is being received: its slot, its file, and how much of it is there.
    incoming: Option<(Slot, Arc<dyn DiskFile>, u64)>,
}

impl SnapshotStore {
    /// Looks what is in `dir` (made if absent). Returns the newest that can be read, and whether a newer one can't.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<(Self, Option<Snapshot>, bool), LedgerError> {
        disk.create_dir_all(dir).map_err(|e| LedgerError::io("make", dir, &e))?;
        let names = disk.list(dir).map_err(|e| LedgerError::io("list", dir, &e))?;
        let mut store = Self { disk, dir: dir.to_owned(), kept: Vec::new(), incoming: None };
        let (mut newest, mut unreadable) = (None, None);
        for entry in names.iter().rev().filter(|entry| entry.name.starts_with(PREFIX)) {
            let path = dir.join(&entry.name);
            let hex = entry.name.strip_prefix(PREFIX).unwrap_or_default();
            let slot = u64::from_str_radix(hex, 16).map(Slot::new);
            let Ok(slot) = slot.map_err(drop) else {
                if entry.name.ends_with(ASIDE) {
                    store.disk.remove_file(&path).map_err(|e| LedgerError::io("remove", &path, &e))?;
                }
                continue;
            };
            // Older ones are read when they are needed.
            if newest.is_none() {
                match store.read(slot) {
                    Ok(found) => newest = Some(found),
                    Err(error) => {
                        tracing::warn!(%error, "a snapshot can't be read");
                        unreadable.get_or_insert(error);
                        continue;
                    }
                }
            }
            store.kept.insert(0, slot);
        }
        match (&newest, unreadable) {
            (None, Some(error)) => Err(error),
            (_, unreadable) => Ok((store, newest, unreadable.is_some())),
        }
    }

    /// Writes a snapshot, reads it back, and removes what is older than the newest three.
    pub fn write(&mut self, slot: Slot, head: &[u8], state: &[u8]) -> Result<SnapshotMark, LedgerError> {
        let (path, aside) = (self.path(slot), self.aside(slot));
        let mode = OpenMode { create: true, truncate: true, ..OpenMode::default() };
        let file = self.disk.open(&aside, mode).map_err(|e| LedgerError::io("make", &aside, &e))?;
        let (front, back) = (header(slot, head, state), checks(state));
        let parts = [IoSlice::new(&front), IoSlice::new(head), IoSlice::new(state), IoSlice::new(&back)];
        file.write_all_at(&parts, 0)
            .and_then(|()| file.sync_data())
            .map_err(|e| LedgerError::io("write", &aside, &e))?;
        self.verify(&file, &aside, slot)?;
        self.settle(slot, &aside, &path)
    }

    /// Gives a file that is whole its real name, and lets go of the oldest.
    fn settle(&mut self, slot: Slot, aside: &Path, path: &Path) -> Result<SnapshotMark, LedgerError> {
        self.disk
            .rename(aside, path)
            .and_then(|()| self.disk.sync_dir(&self.dir))
            .map_err(|e| LedgerError::io("rename", aside, &e))?;
        self.kept.retain(|kept| *kept != slot);
        self.kept.push(slot);
        self.kept.sort_unstable();
        while self.kept.len() > KEPT {
            let oldest = self.kept.remove(0);
            let oldest = self.path(oldest);
            self.disk.remove_file(&oldest).map_err(|e| LedgerError::io("remove", &oldest, &e))?;
        }
        let file = self.open_file(path)?;
        Ok(SnapshotMark { slot, bytes: file.len().map_err(|e| LedgerError::io("read", path, &e))? })
    }

    /// The slot of the oldest one kept.
    pub fn oldest(&self) -> Option<Slot> {
        self.kept.first().copied()
    }

    /// All that are kept, oldest first.
    pub fn kept(&self) -> &[Slot] {
        &self.kept
    }

    /// Reads one and checks it.
    pub fn read(&self, slot: Slot) -> Result<Snapshot, LedgerError> {
        let path = self.path(slot);
        let file = self.open_file(&path)?;
        self.verify(&file, &path, slot)
    }

    /// A piece of a stored one as it goes to a peer, with its whole length; nothing if it is gone.
    pub fn chunk(&self, slot: Slot, offset: u64) -> Result<Option<(u64, Bytes)>, LedgerError> {
        let path = self.path(slot);
        if !self.kept.contains(&slot) {
            return Ok(None);
        }
        let io = |e: std::io::Error| LedgerError::io("read", &path, &e);
        let file = self.open_file(&path)?;
        let total = file.len().map_err(io)?;
        let length = usize::try_from(total.saturating_sub(offset)).unwrap_or(CHUNK).min(CHUNK);
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).map_err(io)?;
        Ok(Some((total, bytes.into())))
    }

    /// Takes in a piece from a peer. A piece that doesn't follow the ones before it changes nothing.
    pub fn receive(
        &mut self,
        slot: Slot,
        offset: u64,
        total: u64,
        bytes: &[u8],
    ) -> Result<Received, LedgerError> {
        let aside = self.aside(slot);
        let io = |e: std::io::Error| LedgerError::io("write", &aside, &e);
        if offset == 0 {
            let mode = OpenMode { create: true, truncate: true, ..OpenMode::default() };
            self.incoming = Some((slot, self.disk.open(&aside, mode).map_err(io)?, 0));
        }
        let Some((_, file, have)) = self.incoming.as_mut().filter(|incoming| incoming.0 == slot) else {
            return Ok(Received::Partly(0));
        };
        if offset == *have {
            file.write_all_at(&[IoSlice::new(bytes)], offset).map_err(io)?;
            *have += bytes.len() as u64;
        }
        if *have < total {
            return Ok(Received::Partly(*have));
        }
        file.sync_data().map_err(io)?;
        let file = Arc::clone(file);
        self.incoming = None;
        let found = self.verify(&file, &aside, slot)?;
        let path = self.path(slot);
        self.settle(slot, &aside, &path)?;
        Ok(Received::Whole(found))
    }

    fn path(&self, slot: Slot) -> PathBuf {
        self.dir.join(format!("{PREFIX}{:016x}", slot.raw()))
    }

    fn aside(&self, slot: Slot) -> PathBuf {
        self.dir.join(format!("{PREFIX}{:016x}{ASIDE}", slot.raw()))
    }

    fn open_file(&self, path: &Path) -> Result<Arc<dyn DiskFile>, LedgerError> {
        let mode = OpenMode { read_only: true, ..OpenMode::default() };
        self.disk.open(path, mode).map_err(|e| LedgerError::io("open", path, &e))
    }

    fn verify(&self, file: &Arc<dyn DiskFile>, path: &Path, slot: Slot) -> Result<Snapshot, LedgerError> {
        let damaged = |why: &str| LedgerError::Damaged { path: path.to_owned(), why: why.to_owned() };
        let io = |e: std::io::Error| LedgerError::io("read", path, &e);
        let length = usize::try_from(file.len().map_err(io)?).map_err(|_| damaged("it is too long"))?;
        if length < HEADER_LEN {
            return Err(damaged("its header is cut short"));
        }
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let bytes = Bytes::from(bytes);
        let mut fields = bytes.slice(8..HEADER_LEN);
        if !bytes.starts_with(MAGIC) {
            return Err(damaged("it is of another format"));
        }
        let (named, head_len) = (Slot::new(fields.get_u64()), fields.get_u32() as usize);
        let state_len = usize::try_from(fields.get_u64()).map_err(|_| damaged("its header is damaged"))?;
        let back_len = 4 * (state_len.div_ceil(PIECE) + 1);
        let whole =
            HEADER_LEN.checked_add(head_len).and_then(|n| n.checked_add(state_len)?.checked_add(back_len));
        if head_len > HEAD_LIMIT || whole != Some(length) || named != slot {
            return Err(damaged("its header is damaged, or it is cut short"));
        }
        let head = bytes.slice(HEADER_LEN..HEADER_LEN + head_len);
        let state = bytes.slice(HEADER_LEN + head_len..length - back_len);
        if header(slot, &head, &state) != bytes[..HEADER_LEN] {
            return Err(damaged("its header is damaged"));
        }
        if checks(&state) != bytes[length - back_len..] {
            return Err(damaged("its state is damaged"));
        }
        Ok(Snapshot { mark: SnapshotMark { slot, bytes: length as u64 }, head, state })
    }
}

fn header(slot: Slot, head: &[u8], state: &[u8]) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEADER_LEN);
    out.put_slice(MAGIC);
    out.put_u64(slot.raw());
    out.put_u32(u32::try_from(head.len()).expect("a head is small"));
    out.put_u64(state.len() as u64);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&out);
    crc.update(head);
    out.put_u32(crc.finalize());
    out
}

fn checks(state: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    for piece in state.chunks(PIECE) {
        out.put_u32(crc32fast::hash(piece));
    }
    let crc = crc32fast::hash(&out);
    out.put_u32(crc);
    out
}
