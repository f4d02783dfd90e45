//! The records of the ledger on the commit journal: a growing chain, released as snapshots make it superfluous.
//!
//! Each write of the engine is one append: a hint how far the chosen prefix reached, then its records. A torn end
//! was never acknowledged and is cut by the journal itself; damage is acknowledged memory that is gone, and is
//! reported as the slot above which votes may be missing (design 1.11).

use std::collections::VecDeque;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use loggos_storage::disk::{Disk, OpenMode};
use loggos_storage::journal::{Entry, Journal, JournalOptions, Lsn, Replayed, Space};
use parking_lot::Mutex;

use crate::error::LedgerError;
use crate::paxos::ballot::Slot;
use crate::paxos::codec::{decode_record, encode_record};
use crate::paxos::event::Record;

/// Bytes of each journal file.
const JOURNAL_FILE_BYTES: u64 = 16 << 20;
/// Places closer together than this are remembered as one.
const MARK_EVERY: u64 = 1 << 20;
/// An entry that says how far the chosen prefix reached.
const HINT: u8 = 0;
/// An entry that holds a record.
const RECORD: u8 = 1;

/// Told when an append is durable, or never will be.
pub(super) type Appended = Box<dyn FnOnce(Result<(), LedgerError>) + Send>;

/// What the journal held.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The records, in the order in which they were written.
    pub records: Vec<Record>,
    /// The highest hint.
    pub chosen_upto: Slot,
    /// Records above this slot may be lost.
    pub uncertain_above: Option<Slot>,
    /// Where damage was seen first.
    pub damage: Option<(PathBuf, u64)>,
}

/// Up to which slot everything before a place speaks.
#[derive(Clone, Copy, Debug)]
struct Mark {
    highest: Slot,
    end: Lsn,
}

/// The journal of votes.
#[derive(Debug)]
pub(super) struct Votes {
    journal: Journal,
    marks: Arc<Mutex<VecDeque<Mark>>>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl Votes {
    /// Opens the journal below `dir` and gives back the records of slots above `floor`.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        inline: bool,
        floor: Slot,
    ) -> Result<(Self, Found), LedgerError> {
        let from = read_release(&disk, dir)?;
        let options = JournalOptions {
            space: Space::Chain,
            file_bytes: JOURNAL_FILE_BYTES,
            inline,
            ..JournalOptions::default()
        };
        let journal_dir = dir.join("votes");
        let mut replay = Replay { floor, found: Found::default(), marks: VecDeque::new(), failure: None };
        let journal = Journal::open(Arc::clone(&disk), &journal_dir, options, from, &mut |replayed| {
            replay.take(&journal_dir, replayed);
        })?;
        let Replay { found, marks, failure, .. } = replay;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let marks = Arc::new(Mutex::new(marks));
        Ok((Self { journal, marks, disk, dir: dir.to_owned() }, found))
    }

    /// Appends a write. Never waits for the disk.
    pub fn append(&self, chosen_upto: Slot, records: &[Record], done: Appended) {
        let mut entries = Vec::with_capacity(records.len() + 1);
        let mut hint = vec![HINT];
        hint.extend_from_slice(&chosen_upto.raw().to_be_bytes());
        entries.push(Entry { head: hint, body: Bytes::new() });
        entries
            .extend(records.iter().map(|record| Entry { head: vec![RECORD], body: encode_record(record) }));
        let highest = records.iter().map(Record::slot).max().unwrap_or_default();
        let marks = Arc::clone(&self.marks);
        // `done` must be called once, and the journal takes it away only when it accepts the append.
        let shared = Arc::new(Mutex::new(Some(done)));
        let theirs = Arc::clone(&shared);
        let tell = move |result: Result<Lsn, loggos_storage::journal::JournalError>| {
            if let Ok(end) = &result {
                remember(&mut marks.lock(), Mark { highest, end: *end });
            }
            if let Some(done) = theirs.lock().take() {
                done(result.map(drop).map_err(LedgerError::from));
            }
        };
        if let Err(error) = self.journal.append(entries, Box::new(tell))
            && let Some(done) = shared.lock().take()
        {
            done(Err(error.into()));
        }
    }

    /// Lets go of what speaks of slots up to `upto` alone. Waits for the disk.
    pub fn release(&self, upto: Slot) -> Result<(), LedgerError> {
        let mut place = None;
        {
            let mut marks = self.marks.lock();
            while let Some(mark) = marks.pop_front_if(|mark| mark.highest <= upto) {
                place = Some(mark.end);
            }
        }
        if let Some(place) = place {
            write_release(&self.disk, &self.dir, place)?;
            self.journal.release_before(place);
        }
        Ok(())
    }

    /// Writes what was appended, and ends.
    pub fn close(&self) {
        self.journal.close();
    }
}

fn remember(marks: &mut VecDeque<Mark>, next: Mark) {
    match marks.back_mut() {
        Some(last) if next.end.position() - last.end.position() < MARK_EVERY => {
            *last = Mark { highest: last.highest.max(next.highest), end: next.end };
        }
        _ => marks.push_back(next),
    }
}

struct Replay {
    floor: Slot,
    found: Found,
    marks: VecDeque<Mark>,
    failure: Option<LedgerError>,
}

impl Replay {
    fn take(&mut self, dir: &Path, replayed: Replayed) {
        match replayed {
            Replayed::Group { end, entries } => {
                let mut highest = Slot::ZERO;
                for entry in entries {
                    match self.entry(entry) {
                        Ok(slot) => highest = highest.max(slot),
                        Err(why) => {
                            let damaged = LedgerError::Damaged { path: dir.to_owned(), why };
                            self.failure.get_or_insert(damaged);
                        }
                    }
                }
                remember(&mut self.marks, Mark { highest, end });
            }
            Replayed::Damage { path, position } => {
                // Whatever was lost here was a vote above the prefix that was known to be chosen before it.
                let known = self.found.chosen_upto;
                self.found.uncertain_above.get_or_insert(known);
                self.found.damage.get_or_insert((path, position));
            }
        }
    }

    fn entry(&mut self, mut entry: Bytes) -> Result<Slot, String> {
        match entry.try_get_u8() {
            Ok(HINT) => {
                let hint = entry.try_get_u64().map_err(|_| "a hint is cut short".to_owned())?;
                self.found.chosen_upto = self.found.chosen_upto.max(Slot::new(hint));
                Ok(Slot::ZERO)
            }
            Ok(RECORD) => {
                let record = decode_record(entry).map_err(|error| error.to_string())?;
                let slot = record.slot();
                if slot > self.floor {
                    self.found.records.push(record);
                }
                Ok(slot)
            }
            _ => Err("an entry is of no known kind".to_owned()),
        }
    }
}

/// The place from which on the journal is needed; kept so that a start doesn't read what was let go of.
fn read_release(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<Lsn>, LedgerError> {
    let path = dir.join("released");
    let io = |e: std::io::Error| LedgerError::io("read", &path, &e);
    if !disk.exists(&path).map_err(io)? {
        return Ok(None);
    }
    let file = disk.open(&path, OpenMode { read_only: true, ..OpenMode::default() }).map_err(io)?;
    let mut bytes = [0; 20];
    file.read_exact_at(&mut bytes, 0).map_err(io)?;
    let (place, mut crc) = bytes.split_at(16);
    if crc.get_u32() != crc32fast::hash(place) {
        return Err(LedgerError::Damaged { path, why: "its checksum doesn't fit".to_owned() });
    }
    let mut raw = [0; 16];
    raw.copy_from_slice(place);
    Ok(Some(Lsn::from_bytes(raw)))
}

fn write_release(disk: &Arc<dyn Disk>, dir: &Path, place: Lsn) -> Result<(), LedgerError> {
    let (path, aside) = (dir.join("released"), dir.join("released.tmp"));
    let mut bytes = place.to_bytes().to_vec();
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    let write = || {
        let file = disk.open(&aside, OpenMode { create: true, truncate: true, ..OpenMode::default() })?;
        file.write_all_at(&[IoSlice::new(&bytes)], 0)?;
        file.sync_data()?;
        disk.rename(&aside, &path)?;
        disk.sync_dir(dir)
    };
    write().map_err(|e: std::io::Error| LedgerError::io("write", &path, &e))
}
