//! From a place of the journal to its end: whole groups in order, damage where it is, and where writing goes on.
//! Only the last group can be torn, as one write is in flight at a time; anything else that is not whole, with
//! newer groups behind it, is damage and is told.
//!
//! Called when the journal is opened.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::block::{self, Found, SECTOR};
use super::files::Files;
use super::{JournalError, Lsn};
use crate::disk::DIRECT_ALIGNMENT;

/// What replay meets, in order.
#[derive(Debug)]
pub enum Replayed {
    /// A group that was written: all its entries.
    Group {
        /// The place behind it.
        end: Lsn,
        /// Head and body of each entry as one piece.
        entries: Vec<Bytes>,
    },
    /// Entries that were acknowledged and can't be read: which ones isn't known.
    Damage {
        /// The file.
        path: PathBuf,
        /// Where in the file it begins, in bytes.
        position: u64,
    },
}

/// Where a journal ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The last whole group, and where the next may begin.
    pub last: Lsn,
    /// The highest group number seen on any sector: new ones are above it.
    pub highest: u64,
}

pub(super) fn replay(
    files: &Files,
    from: Option<Lsn>,
    visit: &mut dyn FnMut(Replayed),
) -> Result<End, JournalError> {
    let file_bytes = files.file_bytes() as u64;
    let first = files.numbers().first().copied().unwrap_or_default();
    let mut scan = Scan {
        journal_id: files.id(),
        last: from.unwrap_or(Lsn { group: 0, position: first * file_bytes }),
        highest: from.unwrap_or_default().group,
        known: from.is_some(),
        suspect: None,
        visit,
    };
    for &number in files.numbers() {
        let start = number * file_bytes;
        if start + file_bytes <= scan.last.position {
            continue;
        }
        let bytes = files.read(number)?;
        scan.file(&bytes, start, &files.path(number));
    }
    if let Some(Suspect { path, position, certain: true }) = scan.suspect.take() {
        (scan.visit)(Replayed::Damage { path, position });
    }
    Ok(End { last: scan.last, highest: scan.highest })
}

/// A place where a group should stand and none does: the torn end, the unused end of a file, or damage.
struct Suspect {
    path: PathBuf,
    position: u64,
    /// Whether it is damage for certain; otherwise a group behind it that doesn't follow the last one tells.
    certain: bool,
}

struct Scan<'a> {
    journal_id: u32,
    last: Lsn,
    highest: u64,
    /// Whether `last.group` is really the group before: not so at the beginning of a replay of everything.
    known: bool,
    suspect: Option<Suspect>,
    visit: &'a mut dyn FnMut(Replayed),
}

impl Scan<'_> {
    /// Reads one file from where the last group ended, or from its beginning.
    fn file(&mut self, bytes: &[u8], start: u64, path: &Path) {
        let mut at = self.last.position.saturating_sub(start) as usize;
        while at + SECTOR <= bytes.len() {
            let (rest, position) = (&bytes[at..], start + at as u64);
            match self.group_at(rest, position) {
                Some((previous, Found::Group { number, disk_len, entries })) => {
                    if self.known && previous != self.last.group {
                        let here = Suspect { path: path.to_owned(), position: at as u64, certain: true };
                        let Suspect { path, position, .. } = self.suspect.take().unwrap_or(here);
                        (self.visit)(Replayed::Damage { path, position });
                    }
                    at += disk_len;
                    self.suspect = None;
                    self.known = true;
                    self.last = Lsn { group: number, position: start + at as u64 };
                    self.highest = self.highest.max(number);
                    (self.visit)(Replayed::Group { end: self.last, entries });
                }
                _ => {
                    if self.suspect.is_none() {
                        let found = block::decode(rest, self.journal_id, self.last, position);
                        let certain = matches!(found, Found::Damaged { .. });
                        self.suspect = Some(Suspect { path: path.to_owned(), position: at as u64, certain });
                    }
                    self.note_highest(rest);
                    at += DIRECT_ALIGNMENT;
                }
            }
        }
    }

    /// The whole group that begins here and is newer than the last one, whatever it follows.
    fn group_at(&self, rest: &[u8], position: u64) -> Option<(u64, Found)> {
        block::sector_number(rest, self.journal_id).filter(|number| *number > self.last.group)?;
        let previous = block::previous_of(rest).filter(|previous| *previous >= self.last.group)?;
        let found = block::decode(rest, self.journal_id, Lsn { group: previous, position }, position);
        matches!(found, Found::Group { .. }).then_some((previous, found))
    }

    fn note_highest(&mut self, rest: &[u8]) {
        for sector in rest.chunks_exact(SECTOR).take(DIRECT_ALIGNMENT / SECTOR) {
            if let Some(number) = block::sector_number(sector, self.journal_id) {
                self.highest = self.highest.max(number);
            }
        }
    }
}
