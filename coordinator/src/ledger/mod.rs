//! What a server keeps: its promise, its votes and what it learned, and now and then the whole tree.
//!
//! | file | what it knows |
//! |---|---|
//! | `identity` | whose directory this is |
//! | `block` | the few bytes of promise and identity, in two copies |
//! | `votes` | records on `loggos_storage::journal`, released as snapshots replace them |
//! | `snapshot` | files of snapshots: written, sent to and received from peers |
//!
//! A write of the engine is durable in the order of its parts: the promise first, then the records (design 1.3 rule
//! 2). Writes become durable in the order in which they were handed over. Called by `driver`.

mod block;
mod identity;
mod snapshot;
mod votes;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use loggos_storage::disk::Disk;
use parking_lot::Mutex;

use crate::error::LedgerError;
use crate::paxos::ballot::{Ballot, Slot};
use crate::paxos::event::{Record, SnapshotMark, Ticket, Write};
use block::Block;
pub use identity::{Identity, IdentityFile};
use snapshot::SnapshotStore;
pub use snapshot::{Received, Snapshot};
use votes::Votes;

/// Bytes of each copy of the promise.
const PROMISE_COPY_LEN: usize = 4096;

/// Told when a write and all before it are durable, or never will be. Must not wait for anything.
pub type Told = Arc<dyn Fn(Result<Ticket, LedgerError>) + Send + Sync>;

/// What a directory remembers.
#[derive(Debug)]
pub struct Memory {
    /// The promise.
    pub promised: Ballot,
    /// Records above the snapshot, and some below it, in the order in which they were written.
    pub records: Vec<Record>,
    /// How far the chosen prefix reached, as a hint.
    pub chosen_upto: Slot,
    /// The newest snapshot that can be read.
    pub snapshot: Option<Snapshot>,
    /// Votes for slots above this one may be lost.
    pub uncertain_above: Option<Slot>,
}

/// Says no to a directory of a version that knew no ensemble.
pub fn refuse_old_layout(disk: &Arc<dyn Disk>, dir: &Path) -> Result<(), LedgerError> {
    match disk.exists(&dir.join("journal")) {
        Ok(false) => Ok(()),
        Ok(true) => Err(LedgerError::Damaged {
            path: dir.to_owned(),
            why: "it was written by an earlier version, which knew no ensemble".to_owned(),
        }),
        Err(error) => Err(LedgerError::io("look into", dir, &error)),
    }
}

/// Where a server's memory is kept.
#[derive(Debug)]
pub struct Ledger {
    votes: Votes,
    promise: Mutex<PromiseBlock>,
    snapshots: Mutex<SnapshotStore>,
    line: Mutex<Line>,
    inline: bool,
}

/// The promise, and whether lost votes are suspected.
#[derive(Debug)]
struct PromiseBlock {
    block: Block,
    promised: Ballot,
    uncertain_above: Option<Slot>,
}

/// Writes that wait behind a promise.
#[derive(Default)]
struct Line {
    busy: bool,
    waiting: VecDeque<(Write, Told)>,
    /// The mark of suspected damage stands in the promise block.
    marked: bool,
    failed: Option<LedgerError>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("busy", &self.busy).field("waiting", &self.waiting.len()).finish()
    }
}

impl Ledger {
    /// Opens what `dir` holds (made if absent). Records of slots up to `keep` below the snapshot come too. `inline`
    /// writes in the caller's thread, for simulations.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        keep: u64,
        inline: bool,
    ) -> Result<(Self, Memory), LedgerError> {
        disk.create_dir_all(dir).map_err(|e| LedgerError::io("make", dir, &e))?;
        let (block, found) = Block::open(&disk, &dir.join("promise"), PROMISE_COPY_LEN)?;
        let (promised, marked_above) = match found {
            None => (Ballot::NONE, None),
            Some(bytes) => decode_promise(bytes.into()).ok_or_else(|| LedgerError::Damaged {
                path: dir.join("promise"),
                why: "it is of another version".to_owned(),
            })?,
        };
        let (store, snapshot, newer_lost) = SnapshotStore::open(Arc::clone(&disk), &dir.join("snapshots"))?;
        let covered = snapshot.as_ref().map_or(Slot::ZERO, |snapshot| snapshot.mark.slot);
        let (votes, found) = Votes::open(Arc::clone(&disk), dir, inline, covered.minus(keep))?;
        disk.sync_dir(dir).map_err(|e| LedgerError::io("sync", dir, &e))?;
        if let Some((path, position)) = &found.damage {
            tracing::error!(path = %path.display(), position, "votes that were acknowledged can't be read any more");
        }
        let uncertain_above = [found.uncertain_above, marked_above].into_iter().flatten().min();
        let mut promise = PromiseBlock { block, promised, uncertain_above: marked_above };
        if uncertain_above != marked_above {
            promise.write(promised, uncertain_above)?;
        }
        let memory = Memory {
            promised,
            records: found.records,
            chosen_upto: if newer_lost { Slot::ZERO } else { found.chosen_upto },
            snapshot,
            uncertain_above,
        };
        let line = Mutex::new(Line { marked: uncertain_above.is_some(), ..Line::default() });
        let (promise, snapshots) = (Mutex::new(promise), Mutex::new(store));
        Ok((Self { votes, promise, snapshots, line, inline }, memory))
    }

    /// Makes a write of the engine durable and tells. Never waits for the disk, unless the ledger is inline.
    pub fn persist(self: &Arc<Self>, write: Write, told: Told) {
        let mut line = self.line.lock();
        if !line.busy && write.promise.is_none() && (write.uncertain || !line.marked) && line.failed.is_none()
        {
            // In the lock: what comes behind it must stand behind it in the journal.
            return self.append(write, told);
        }
        line.waiting.push_back((write, told));
        if line.busy {
            return;
        }
        line.busy = true;
        drop(line);
        if self.inline {
            return self.work_off();
        }
        let ledger = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("promise".to_owned()).spawn(move || ledger.work_off());
        if let Err(error) = spawned {
            let error = LedgerError::io("start a thread for", Path::new("promise"), &error);
            let mut line = self.line.lock();
            line.failed = Some(error.clone());
            for (_, told) in line.waiting.drain(..) {
                told(Err(error.clone()));
            }
        }
    }

    /// Writes promises, and what waits behind them, until nothing waits.
    fn work_off(&self) {
        loop {
            let mut line = self.line.lock();
            let Some((write, told)) = line.waiting.pop_front() else {
                line.busy = false;
                return;
            };
            if let Some(error) = line.failed.clone() {
                drop(line);
                told(Err(error));
                continue;
            }
            drop(line);
            match self.keep_promise(&write) {
                Ok(marked) => {
                    self.line.lock().marked = marked;
                    self.append(write, told);
                }
                Err(error) => {
                    self.line.lock().failed = Some(error.clone());
                    told(Err(error));
                }
            }
        }
    }

    /// Returns whether damage is still suspected.
    fn keep_promise(&self, write: &Write) -> Result<bool, LedgerError> {
        let mut promise = self.promise.lock();
        let above = promise.uncertain_above.filter(|_| write.uncertain);
        let promised = write.promise.map_or(promise.promised, |ballot| ballot.max(promise.promised));
        if promised != promise.promised || above != promise.uncertain_above {
            promise.write(promised, above)?;
        }
        Ok(above.is_some())
    }

    fn append(&self, write: Write, told: Told) {
        let ticket = write.ticket;
        let done = Box::new(move |result: Result<(), LedgerError>| told(result.map(|()| ticket)));
        self.votes.append(write.chosen_upto, &write.records, done);
    }

    /// Keeps a snapshot and reads it back. Waits for the disk: not for a runtime's thread.
    pub fn keep_snapshot(&self, slot: Slot, head: &[u8], state: &[u8]) -> Result<SnapshotMark, LedgerError> {
        self.snapshots.lock().write(slot, head, state)
    }

    /// A piece of a snapshot for a peer, with its whole length. Waits for the disk.
    pub fn snapshot_chunk(&self, slot: Slot, offset: u64) -> Result<Option<(u64, Bytes)>, LedgerError> {
        self.snapshots.lock().chunk(slot, offset)
    }

    /// Takes in a piece of a peer's snapshot. Waits for the disk.
    pub fn receive_chunk(
        &self,
        slot: Slot,
        offset: u64,
        total: u64,
        bytes: &[u8],
    ) -> Result<Received, LedgerError> {
        self.snapshots.lock().receive(slot, offset, total, bytes)
    }

    /// Lets go of votes up to `upto`, as far as the oldest snapshot kept covers them. Waits for the disk.
    pub fn release(&self, upto: Slot) -> Result<(), LedgerError> {
        let Some(oldest) = self.snapshots.lock().oldest() else { return Ok(()) };
        self.votes.release(upto.min(oldest))
    }

    /// Reads the kept snapshots again and says which can't be read. Waits for the disk.
    pub fn scrub(&self) -> Vec<LedgerError> {
        let kept = self.snapshots.lock().kept().to_vec();
        // One that was replaced meanwhile isn't damaged.
        let read = |slot| {
            let store = self.snapshots.lock();
            if store.kept().contains(&slot) { store.read(slot).err() } else { None }
        };
        kept.into_iter().filter_map(read).collect()
    }

    /// Ends: what was handed over is written, nothing more is taken. Waits for the disk.
    pub fn close(&self) {
        self.votes.close();
    }
}

impl PromiseBlock {
    fn write(&mut self, promised: Ballot, uncertain_above: Option<Slot>) -> Result<(), LedgerError> {
        let mut out = Vec::new();
        out.put_u64(promised.raw());
        out.put_u8(uncertain_above.is_some().into());
        out.put_u64(uncertain_above.unwrap_or_default().raw());
        self.block.write(&out)?;
        (self.promised, self.uncertain_above) = (promised, uncertain_above);
        Ok(())
    }
}

fn decode_promise(mut bytes: Bytes) -> Option<(Ballot, Option<Slot>)> {
    let promised = Ballot::from_raw(bytes.try_get_u64().ok()?);
    let marked = bytes.try_get_u8().ok()? == 1;
    let above = Slot::new(bytes.try_get_u64().ok()?);
    Some((promised, marked.then_some(above)))
}
