//! The ledger on the commit journal: each entry behind its number, replayed behind the newest snapshot.
//!
//! A group that was acknowledged and can't be read is no gap to step over: opening fails then, as the server would
//! otherwise take up a state that its clients have left. Called by `driver` and by tests with the simulated disk.

use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use loggos_storage::disk::Disk;
use loggos_storage::journal::{Entry, Journal, JournalOptions, Replayed, Space};
use parking_lot::Mutex;

use super::snapshot::SnapshotStore;
use super::{Done, Ledger, Position, Record, Recovered, Snapshot, Visit};
use crate::error::LedgerError;

/// Bytes of each journal file: a snapshot is taken after some of them.
const JOURNAL_FILE_BYTES: u64 = 16 << 20;

/// Entries on a journal, snapshots beside it.
#[derive(Debug)]
pub struct JournalLedger {
    journal: Journal,
    snapshots: Mutex<SnapshotStore>,
}

impl JournalLedger {
    /// Opens what `dir` holds (made if absent) and gives it to `visit`. `inline` writes in the caller's thread, for
    /// simulations.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        inline: bool,
        visit: &mut Visit<'_>,
    ) -> Result<(Self, Position), LedgerError> {
        let (store, base) = SnapshotStore::open(Arc::clone(&disk), &dir.join("snapshots"), &mut |state| {
            visit(Recovered::Snapshot(state))
        })?;
        let from = base.as_ref().map(|base| base.place);
        let mut replay = Replay {
            position: Position {
                sequence: base.as_ref().map_or(0, |base| base.sequence),
                place: from.unwrap_or_default(),
            },
            failure: None,
            visit,
        };
        let options = JournalOptions {
            space: Space::Chain,
            file_bytes: JOURNAL_FILE_BYTES,
            inline,
            ..JournalOptions::default()
        };
        let journal_dir = dir.join("journal");
        let journal = Journal::open(disk, &journal_dir, options, from, &mut |replayed| {
            replay.take(&journal_dir, replayed);
        })?;
        let Replay { position, failure, .. } = replay;
        if let Some(failure) = failure {
            return Err(failure);
        }
        if let Some(place) = store.needed_from() {
            journal.release_before(place);
        }
        Ok((Self { journal, snapshots: Mutex::new(store) }, position))
    }
}

impl Ledger for JournalLedger {
    fn append(&self, group: Vec<Record>, done: Done) {
        let entries: Vec<Entry> = group
            .into_iter()
            .map(|record| Entry { head: record.sequence.to_be_bytes().to_vec(), body: record.bytes })
            .collect();
        // `done` must be called once, and the journal takes it away only when it accepts the group.
        let shared = Arc::new(Mutex::new(Some(done)));
        let theirs = Arc::clone(&shared);
        let told = self.journal.append(
            entries,
            Box::new(move |result| {
                if let Some(done) = theirs.lock().take() {
                    done(result.map_err(LedgerError::from));
                }
            }),
        );
        if let Err(error) = told
            && let Some(done) = shared.lock().take()
        {
            done(Err(error.into()));
        }
    }

    fn keep_snapshot(&self, snapshot: &Snapshot) -> Result<(), LedgerError> {
        let needed_from = self.snapshots.lock().write(snapshot)?;
        self.journal.release_before(needed_from);
        Ok(())
    }

    fn close(&self) {
        self.journal.close();
    }
}

struct Replay<'a, 'b> {
    position: Position,
    failure: Option<LedgerError>,
    visit: &'a mut Visit<'b>,
}

impl Replay<'_, '_> {
    fn take(&mut self, dir: &Path, replayed: Replayed) {
        if self.failure.is_some() {
            return;
        }
        match replayed {
            Replayed::Group { end, entries } => {
                for entry in entries {
                    if let Err(why) = self.entry(entry) {
                        self.failure = Some(LedgerError::Damaged { path: dir.to_owned(), why });
                        return;
                    }
                }
                self.position.place = end;
            }
            Replayed::Damage { path, position } => {
                let why = format!("entries that were acknowledged can't be read from byte {position} on");
                self.failure = Some(LedgerError::Damaged { path, why });
            }
        }
    }

    fn entry(&mut self, mut entry: Bytes) -> Result<(), String> {
        let sequence = entry.try_get_u64().map_err(|_| "an entry has no number".to_owned())?;
        let last = self.position.sequence;
        if sequence <= last {
            return Ok(());
        }
        if sequence != last + 1 {
            return Err(format!("entry {sequence} follows entry {last}"));
        }
        (self.visit)(Recovered::Entry(entry))?;
        self.position.sequence = sequence;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loggos_protocol::ids::Zxid;
    use loggos_storage::disk_sim::{Faults, SimDisk};

    /// The state is the list of entries; a snapshot is all of them joined.
    fn open(disk: &SimDisk) -> Result<(JournalLedger, Position, Vec<u8>), LedgerError> {
        let mut state = Vec::new();
        let (ledger, position) =
            JournalLedger::open(Arc::new(disk.clone()), Path::new("/ledger"), true, &mut |recovered| {
                match recovered {
                    Recovered::Snapshot(bytes) => {
                        state = bytes.to_vec();
                        Ok(())
                    }
                    Recovered::Entry(bytes) => {
                        state.extend_from_slice(&bytes);
                        Ok(())
                    }
                }
            })?;
        Ok((ledger, position, state))
    }

    fn append(ledger: &JournalLedger, position: &mut Position, byte: u8) {
        let done = Arc::new(Mutex::new(None));
        let theirs = Arc::clone(&done);
        let record = Record { sequence: position.sequence + 1, bytes: Bytes::from(vec![byte]) };
        ledger.append(vec![record], Box::new(move |result| *theirs.lock() = Some(result)));
        position.place = done.lock().take().expect("inline").expect("a healthy disk");
        position.sequence += 1;
    }

    #[test]
    fn entries_and_snapshots_come_back_and_an_unreadable_snapshot_costs_replay_alone() {
        let disk = SimDisk::new(1, Faults::default());
        let mut state = Vec::new();
        for round in 0..6u8 {
            let (ledger, mut position, found) = open(&disk).expect("opens");
            assert_eq!(found, state);
            assert_eq!(position.sequence, state.len() as u64);
            for byte in 0..5 {
                append(&ledger, &mut position, round * 16 + byte);
                state.push(round * 16 + byte);
            }
            if round > 0 {
                let snapshot = Snapshot {
                    sequence: position.sequence,
                    zxid: Zxid::new(i64::from(round)),
                    place: position.place,
                    state: Bytes::from(state.clone()),
                };
                ledger.keep_snapshot(&snapshot).expect("a healthy disk");
            }
            ledger.close();
        }
        let dir = Path::new("/ledger/snapshots");
        let names: Vec<String> = disk.list(dir).expect("a list").into_iter().map(|e| e.name).collect();
        assert_eq!(names.len(), 3);
        let newest = dir.join(names.last().expect("three"));
        let mode = loggos_storage::disk::OpenMode::default();
        let file = disk.open(&newest, mode).expect("the newest");
        file.write_all_at(&[std::io::IoSlice::new(b"x")], 60).expect("a healthy disk");
        assert_eq!(open(&disk).expect("opens").2, state);
    }
}
