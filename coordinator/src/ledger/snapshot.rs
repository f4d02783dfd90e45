//! Files of snapshots: `snapshot-<zxid in hex>`, written aside, synced, renamed, their folder synced. The newest
//! three are kept, so that one that can't be read any more costs a longer replay and nothing else.
//!
//! Layout, big-endian: magic 8 bytes, sequence u64, zxid u64, place 16 bytes, length u64, CRC-32 of the state u32,
//! CRC-32 of all that before it u32, state. Called by `journaled`.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use loggos_protocol::ids::Zxid;
use loggos_storage::disk::{Disk, OpenMode};
use loggos_storage::journal::Lsn;

use super::Snapshot;
use crate::error::LedgerError;

const MAGIC: &[u8; 8] = b"lgsnap01";
const HEADER_LEN: usize = 56;
const PREFIX: &str = "snapshot-";
/// What is being written has this ending; found at start, it is removed.
const ASIDE: &str = ".tmp";
/// How many snapshots are kept.
const KEPT: usize = 3;

/// The folder's snapshots.
#[derive(Debug)]
pub(super) struct SnapshotStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Name and place of each, oldest first.
    kept: Vec<(PathBuf, Lsn)>,
}

impl SnapshotStore {
    /// Looks what is in `dir` (made if absent), newest first, until `take` accepts one. Returns that one's header.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        take: &mut dyn FnMut(Bytes) -> Result<(), String>,
    ) -> Result<(Self, Option<Snapshot>), LedgerError> {
        disk.create_dir_all(dir).map_err(|e| LedgerError::io("make", dir, &e))?;
        let names = disk.list(dir).map_err(|e| LedgerError::io("list", dir, &e))?;
        let mut store = Self { disk, dir: dir.to_owned(), kept: Vec::new() };
        let mut taken = None;
        let mut refusal = None;
        // Names are in order, and their hexadecimal number has a fixed width: backwards is newest first.
        for name in names.iter().rev().filter(|entry| entry.name.starts_with(PREFIX)) {
            let path = dir.join(&name.name);
            if name.name.ends_with(ASIDE) {
                store.disk.remove_file(&path).map_err(|e| LedgerError::io("remove", &path, &e))?;
                continue;
            }
            match store.read(&path) {
                Ok(found) => {
                    if taken.is_none() {
                        match take(found.state.clone()) {
                            Ok(()) => taken = Some(Snapshot { state: Bytes::new(), ..found.clone() }),
                            Err(why) => {
                                tracing::warn!(path = %path.display(), why, "a snapshot can't be used");
                                refusal = Some(LedgerError::Damaged { path, why });
                                continue;
                            }
                        }
                    }
                    store.kept.insert(0, (path, found.place));
                }
                Err(error) => {
                    tracing::warn!(%error, "a snapshot can't be read");
                    refusal = Some(error);
                }
            }
        }
        match (&taken, refusal) {
            (None, Some(refusal)) => Err(refusal),
            _ => Ok((store, taken)),
        }
    }

    /// Writes a snapshot and removes what is older than the newest three. Returns the place before which the
    /// journal isn't needed any more.
    pub(super) fn write(&mut self, snapshot: &Snapshot) -> Result<Lsn, LedgerError> {
        let name = format!("{PREFIX}{:016x}", snapshot.zxid.raw());
        let (path, aside) = (self.dir.join(&name), self.dir.join(format!("{name}{ASIDE}")));
        let header = header(snapshot);
        let mode = OpenMode { create: true, truncate: true, ..OpenMode::default() };
        let file = self.disk.open(&aside, mode).map_err(|e| LedgerError::io("make", &aside, &e))?;
        let parts = [IoSlice::new(&header), IoSlice::new(&snapshot.state)];
        file.write_all_at(&parts, 0)
            .and_then(|()| file.sync_data())
            .map_err(|e| LedgerError::io("write", &aside, &e))?;
        self.disk
            .rename(&aside, &path)
            .and_then(|()| self.disk.sync_dir(&self.dir))
            .map_err(|e| LedgerError::io("rename", &aside, &e))?;
        self.kept.retain(|(kept, _)| *kept != path);
        self.kept.push((path, snapshot.place));
        while self.kept.len() > KEPT {
            let (oldest, _) = self.kept.remove(0);
            self.disk.remove_file(&oldest).map_err(|e| LedgerError::io("remove", &oldest, &e))?;
        }
        Ok(self.needed_from().unwrap_or(snapshot.place))
    }

    /// The place of the oldest snapshot kept.
    pub(super) fn needed_from(&self) -> Option<Lsn> {
        self.kept.first().map(|(_, place)| *place)
    }

    fn read(&self, path: &Path) -> Result<Snapshot, LedgerError> {
        let damaged = |why: &str| LedgerError::Damaged { path: path.to_owned(), why: why.to_owned() };
        let io = |e: std::io::Error| LedgerError::io("read", path, &e);
        let file = self.disk.open(path, OpenMode { read_only: true, ..OpenMode::default() }).map_err(io)?;
        let length = usize::try_from(file.len().map_err(io)?).map_err(|_| damaged("it is too long"))?;
        let state_length =
            length.checked_sub(HEADER_LEN).ok_or_else(|| damaged("its header is cut short"))?;
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0).map_err(io)?;
        let (covered, mut check) = header.split_at(HEADER_LEN - 4);
        if crc32fast::hash(covered) != check.get_u32() {
            return Err(damaged("its header is damaged"));
        }
        let mut fields = covered;
        if fields.copy_to_bytes(8) != MAGIC.as_slice() {
            return Err(damaged("it is of another format"));
        }
        let (sequence, zxid) = (fields.get_u64(), Zxid::new(fields.get_i64()));
        let mut place = [0; 16];
        fields.copy_to_slice(&mut place);
        if fields.get_u64() != state_length as u64 {
            return Err(damaged("it is cut short"));
        }
        let mut state = vec![0; state_length];
        file.read_exact_at(&mut state, HEADER_LEN as u64).map_err(io)?;
        if crc32fast::hash(&state) != fields.get_u32() {
            return Err(damaged("its state is damaged"));
        }
        Ok(Snapshot { sequence, zxid, place: Lsn::from_bytes(place), state: state.into() })
    }
}

fn header(snapshot: &Snapshot) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_LEN);
    header.put_slice(MAGIC);
    header.put_u64(snapshot.sequence);
    header.put_i64(snapshot.zxid.raw());
    header.put_slice(&snapshot.place.to_bytes());
    header.put_u64(snapshot.state.len() as u64);
    header.put_u32(crc32fast::hash(&snapshot.state));
    header.put_u32(crc32fast::hash(&header));
    header
}
