//! A disk that lives in memory and fails on command: what a crash leaves of it is drawn from a seed. Only tests use
//! it (feature `sim`).
//!
//! The model, on the pessimistic side of what Linux file systems promise: bytes written and not synced survive a
//! crash sector by sector at random, in any order; so does the length; a name (new, renamed, removed) is durable
//! when its folder was synced, and survives at random before; a direct write is durable when it returns, and torn
//! at sector boundaries when the crash comes before. A failed sync leaves the pages clean and lost, as Linux does.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::disk::{DirEntry, Disk, DiskFile, OpenMode};

const SECTOR: usize = 512;

/// What the disk shall do wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Stop the world at this step (each write, sync, rename and so on is one): it happens in part, and everything
    /// after it fails.
    pub crash_at: Option<u64>,
    /// Fail this step's sync with EIO; later ones succeed, and what the failed one covered is lost in a crash.
    pub fail_sync_at: Option<u64>,
    /// Bytes that all files together may have; beyond it there is no space.
    pub capacity: Option<u64>,
}

/// The simulated disk; clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    rng: SmallRng,
    faults: Faults,
    steps: u64,
    crashed: bool,
    next_inode: u64,
    inodes: BTreeMap<u64, Inode>,
    /// Names as processes see them.
    names: BTreeMap<PathBuf, u64>,
    /// Names as they stand on the platter.
    durable_names: BTreeMap<PathBuf, u64>,
    dirs: std::collections::BTreeSet<PathBuf>,
    locks: std::collections::BTreeSet<PathBuf>,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What processes see.
    cache: Vec<u8>,
    /// What is on the platter for certain.
    platter: Vec<u8>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64, faults: Faults) -> Self {
        let state = State {
            rng: SmallRng::seed_from_u64(seed),
            faults,
            steps: 0,
            crashed: false,
            next_inode: 0,
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            dirs: std::collections::BTreeSet::new(),
            locks: std::collections::BTreeSet::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// How many steps were taken: a crash may be set at any of them.
    pub fn steps(&self) -> u64 {
        self.state.lock().steps
    }

    /// Whether the crash has come.
    pub fn has_crashed(&self) -> bool {
        self.state.lock().crashed
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// The disk as the next start of the machine finds it. This one is of no use afterwards.
    pub fn after_crash(&self, seed: u64, faults: Faults) -> Self {
        let mut state = self.state.lock();
        state.crashed = true;
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut names = state.durable_names.clone();
        let changed: Vec<PathBuf> = state.names.keys().chain(state.durable_names.keys()).cloned().collect();
        for path in changed {
            if state.names.get(&path) != names.get(&path) && rng.random_bool(0.5) {
                match state.names.get(&path) {
                    // A rename moves one name: it is never under both, nor under none.
                    Some(inode) => {
                        let inode = *inode;
                        names.retain(|_, other| *other != inode);
                        names.insert(path, inode);
                    }
                    None => {
                        let moved =
                            names.get(&path).is_some_and(|inode| state.names.values().any(|n| n == inode));
                        if !moved {
                            names.remove(&path);
                        }
                    }
                }
            }
        }
        let kept: Vec<u64> = names.values().copied().collect();
        let inodes = kept
            .into_iter()
            .map(|number| {
                let bytes =
                    state.inodes.get(&number).map(|inode| inode.survivors(&mut rng)).unwrap_or_default();
                (number, Inode { cache: bytes.clone(), platter: bytes })
            })
            .collect();
        let next = Self::new(seed, faults);
        {
            let mut fresh = next.state.lock();
            fresh.next_inode = state.next_inode;
            fresh.inodes = inodes;
            fresh.names = names.clone();
            fresh.durable_names = names;
            fresh.dirs = state.dirs.clone();
        }
        next
    }

    /// Flips one bit of a file, on the platter and in memory: rot.
    pub fn rot(&self, path: &Path, position: usize) {
        let mut state = self.state.lock();
        if let Some(number) = state.names.get(path).copied()
            && let Some(inode) = state.inodes.get_mut(&number)
        {
            for bytes in [&mut inode.cache, &mut inode.platter] {
                if let Some(byte) = bytes.get_mut(position) {
                    *byte ^= 0x10;
                }
            }
        }
    }
}

impl Inode {
    /// What a crash leaves: each sector is the platter's or the cache's; so is the length.
    fn survivors(&self, rng: &mut SmallRng) -> Vec<u8> {
        let len = if rng.random_bool(0.5) { self.cache.len() } else { self.platter.len() };
        let mut bytes = vec![0; len];
        let all_or_some = rng.random_range(0..3);
        for (index, sector) in bytes.chunks_mut(SECTOR).enumerate() {
            let from_cache = match all_or_some {
                0 => true,
                1 => false,
                _ => rng.random_bool(0.5),
            };
            let source = if from_cache { &self.cache } else { &self.platter };
            for (offset, byte) in sector.iter_mut().enumerate() {
                *byte = source.get(index * SECTOR + offset).copied().unwrap_or(0);
            }
        }
        bytes
    }
}

impl State {
    /// Counts a step; `Err` when the world has ended, `Ok(true)` when it ends in the middle of this one.
    fn step(&mut self) -> io::Result<bool> {
        if self.crashed {
            return Err(io::Error::other("the machine has crashed"));
        }
        self.steps += 1;
        if self.faults.crash_at == Some(self.steps) {
            self.crashed = true;
        }
        Ok(self.crashed)
    }

    fn ended<T>(&self, value: T) -> io::Result<T> {
        if self.crashed { Err(io::Error::other("the machine has crashed")) } else { Ok(value) }
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .filter_map(|number| self.inodes.get(number))
            .map(|inode| inode.cache.len() as u64)
            .sum()
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        let number = match state.names.get(path) {
            Some(number) => *number,
            None if mode.create => {
                state.step()?;
                let number = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(number, Inode::default());
                state.names.insert(path.to_owned(), number);
                number
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        if mode.truncate
            && let Some(inode) = state.inodes.get_mut(&number)
        {
            inode.cache.clear();
        }
        state.ended(())?;
        Ok(Arc::new(SimFile { disk: self.clone(), number, direct: mode.direct, path: path.to_owned() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.ended(())?;
        for parent in path.ancestors() {
            state.dirs.insert(parent.to_owned());
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let state = self.state.lock();
        state.ended(())?;
        if !state.dirs.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files =
            state.names.iter().filter(|(file, _)| file.parent() == Some(path)).map(|(file, number)| {
                let len = state.inodes.get(number).map_or(0, |inode| inode.cache.len() as u64);
                DirEntry { name: name(file), is_dir: false, len }
            });
        let dirs = state.dirs.iter().filter(|dir| dir.parent() == Some(path));
        let dirs = dirs.map(|dir| DirEntry { name: name(dir), is_dir: true, len: 0 });
        let mut found: Vec<DirEntry> = files.chain(dirs).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        let moved: Vec<(PathBuf, u64)> = state
            .names
            .iter()
            .filter_map(|(path, number)| {
                let rest = path.strip_prefix(from).ok()?;
                let new = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
                Some((new, *number))
            })
            .collect();
        state.names.retain(|path, _| path.strip_prefix(from).is_err());
        state.names.extend(moved);
        if state.dirs.remove(from) {
            state.dirs.insert(to.to_owned());
            // A folder's rename takes what is below with it at once.
            let below: Vec<_> =
                state.durable_names.keys().filter(|path| path.starts_with(from)).cloned().collect();
            for path in below {
                if let (Some(number), Ok(rest)) = (state.durable_names.remove(&path), path.strip_prefix(from))
                {
                    state.durable_names.insert(to.join(rest), number);
                }
            }
        }
        state.ended(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        state.ended(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state.names.retain(|file, _| !file.starts_with(path));
        state.dirs.retain(|dir| !dir.starts_with(path));
        state.ended(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.step()? {
            return state.ended(());
        }
        let here = |file: &Path| file.starts_with(path);
        let now: Vec<(PathBuf, u64)> = state
            .names
            .iter()
            .filter(|(file, _)| here(file))
            .map(|(file, number)| (file.clone(), *number))
            .collect();
        state
            .durable_names
            .retain(|file, number| !here(file) && !now.iter().any(|(_, other)| other == number));
        state.durable_names.extend(now);
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.state.lock();
        state.ended(state.names.contains_key(path) || state.dirs.contains(path))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        let mut state = self.state.lock();
        state.ended(())?;
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { disk: self.clone(), path: path.to_owned() }))
    }

    fn real_path(&self, _path: &Path) -> Option<PathBuf> {
        None
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state.lock().locks.remove(&self.path);
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    number: u64,
    direct: bool,
    path: PathBuf,
}

impl SimFile {
    fn with<T>(&self, work: impl FnOnce(&mut Inode) -> T) -> io::Result<T> {
        let mut state = self.disk.state.lock();
        state.ended(())?;
        let inode = state.inodes.get_mut(&self.number).ok_or(io::ErrorKind::NotFound)?;
        Ok(work(inode))
    }
}

fn write_into(bytes: &mut Vec<u8>, position: usize, part: &[u8]) {
    if bytes.len() < position + part.len() {
        bytes.resize(position + part.len(), 0);
    }
    bytes[position..position + part.len()].copy_from_slice(part);
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|inode| inode.cache.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.with(|inode| {
            let rest = inode.cache.get(position as usize..).unwrap_or_default();
            let read = rest.len().min(buffer.len());
            buffer[..read].copy_from_slice(&rest[..read]);
            read
        })
    }

    fn write_all_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let whole: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let position = position as usize;
        let mut state = self.disk.state.lock();
        let state = &mut *state;
        let crashes = state.step()?;
        let used = state.used();
        let inode = state.inodes.get_mut(&self.number).ok_or(io::ErrorKind::NotFound)?;
        let growth = (position + whole.len()).saturating_sub(inode.cache.len()) as u64;
        if state.faults.capacity.is_some_and(|capacity| used + growth > capacity) {
            // Part of it may have found room.
            let held = inode.cache.len().saturating_sub(position).min(whole.len());
            let part = state.rng.random_range(0..=held);
            write_into(&mut inode.cache, position, &whole[..part]);
            return Err(io::ErrorKind::StorageFull.into());
        }
        write_into(&mut inode.cache, position, &whole);
        if self.direct {
            assert!(
                position.is_multiple_of(SECTOR) && whole.len().is_multiple_of(SECTOR),
                "direct writes are aligned"
            );
            for (index, sector) in whole.chunks(SECTOR).enumerate() {
                if !crashes || state.rng.random_bool(0.5) {
                    write_into(&mut inode.platter, position + index * SECTOR, sector);
                }
            }
            if crashes {
                // Nothing of it waits in a cache.
                inode.cache = inode.platter.clone();
            }
        }
        state.ended(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.step()?;
        if let Some(inode) = state.inodes.get_mut(&self.number) {
            inode.cache.resize(len as usize, 0);
        }
        state.ended(())
    }

    fn reserve(&self, position: u64, len: u64) -> io::Result<()> {
        let state = self.disk.state.lock();
        state.ended(())?;
        let used = state.used();
        let held = state.inodes.get(&self.number).map_or(0, |inode| inode.cache.len() as u64);
        let growth = (position + len).saturating_sub(held);
        match state.faults.capacity {
            Some(capacity) if used + growth > capacity => Err(io::ErrorKind::StorageFull.into()),
            _ => state.ended(()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        let state = &mut *state;
        let crashes = state.step()?;
        let fails = state.faults.fail_sync_at == Some(state.steps);
        let inode = state.inodes.get_mut(&self.number).ok_or(io::ErrorKind::NotFound)?;
        if crashes {
            inode.platter = inode.survivors(&mut state.rng);
            return state.ended(());
        }
        if fails {
            inode.platter.resize(inode.cache.len(), 0);
            return Err(io::Error::other(format!("the disk failed under {}", self.path.display())));
        }
        inode.platter = inode.cache.clone();
        Ok(())
    }

    fn is_cached(&self, _position: u64, _len: u64) -> Option<bool> {
        Some(true)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
