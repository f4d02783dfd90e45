//! How a group of entries stands in a journal file, and how what a crash left of one is told from damage.
//!
//! ```text
//! sector (512 bytes)   journal id u32 | group number u64 | 500 bytes of the group's text
//! group                sectors, as many as its text needs, rounded up to 4096 bytes
//! text                 magic u32 | text length u32 | crc32 u32 | entries u32 | previous group u64 | position u64
//!                      then per entry: head length u32 | body length u32 | head | body
//! ```
//! All numbers are big-endian. The disk writes sectors whole (docs/decisions/0006): a group whose sectors don't all
//! carry its number is torn; one whose sectors do, and whose checksum fails, is damaged. Called by `writer` and
//! `replay`.

use bytes::Bytes;

use super::{Entry, Lsn};
use crate::disk::DIRECT_ALIGNMENT;

/// What the disk writes whole, in bytes.
pub(super) const SECTOR: usize = 512;
/// Bytes of a sector's own head.
const SECTOR_HEAD: usize = 12;
/// Bytes of a group's text in one sector.
const SECTOR_TEXT: usize = SECTOR - SECTOR_HEAD;
/// Bytes of the text before its first entry.
const TEXT_HEAD: usize = 32;
/// Bytes in front of each entry.
const ENTRY_HEAD: usize = 8;
const MAGIC: u32 = 0x4c47_4a31;

/// The bytes that an entry takes of a group's text.
pub(super) fn entry_len(entry: &Entry) -> usize {
    ENTRY_HEAD + entry.head.len() + entry.body.len()
}

/// The bytes on disk of a group whose entries take `entries_len` bytes of text.
pub(super) const fn disk_len(entries_len: usize) -> usize {
    ((TEXT_HEAD + entries_len).div_ceil(SECTOR_TEXT) * SECTOR).next_multiple_of(DIRECT_ALIGNMENT)
}

/// The most entry bytes that a group of at most `disk_len` bytes holds.
pub(super) const fn entries_room(disk_len: usize) -> usize {
    (disk_len / SECTOR * SECTOR_TEXT).saturating_sub(TEXT_HEAD)
}

/// Who writes: the journal's id, and the group before.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupPlace {
    /// The journal that the sectors belong to.
    pub journal_id: u32,
    /// The new group's number.
    pub number: u64,
    /// The group before it.
    pub previous: u64,
    /// Where it begins.
    pub position: u64,
}

/// Lays a group out at the beginning of `out`, which is at least as long as it; gives the group's bytes on disk.
/// `entries_len` is the sum of the entries' [`entry_len`].
pub(super) fn encode<'a>(
    place: GroupPlace,
    entries: impl Iterator<Item = &'a Entry> + Clone,
    entries_len: usize,
    out: &mut [u8],
) -> usize {
    let text_len = TEXT_HEAD + entries_len;
    let total = disk_len(entries_len);
    let out = &mut out[..total];
    let mut text = SectorWriter { out, at: SECTOR_HEAD };
    text.put(&MAGIC.to_be_bytes());
    text.put(&len_bytes(text_len));
    text.put(&[0; 4]);
    text.put(&len_bytes(entries.clone().count()));
    text.put(&place.previous.to_be_bytes());
    text.put(&place.position.to_be_bytes());
    let mut crc = crc32fast::Hasher::new();
    for entry in entries {
        let lengths = [len_bytes(entry.head.len()), len_bytes(entry.body.len())].concat();
        for part in [&lengths[..], &entry.head, &entry.body] {
            crc.update(part);
            text.put(part);
        }
    }
    text.pad();
    crc.update(&place.number.to_be_bytes());
    crc.update(&place.previous.to_be_bytes());
    crc.update(&place.position.to_be_bytes());
    let out = &mut out[..total];
    for sector in out.chunks_exact_mut(SECTOR) {
        sector[..4].copy_from_slice(&place.journal_id.to_be_bytes());
        sector[4..SECTOR_HEAD].copy_from_slice(&place.number.to_be_bytes());
    }
    out[SECTOR_HEAD + 8..SECTOR_HEAD + 12].copy_from_slice(&crc.finalize().to_be_bytes());
    total
}

fn len_bytes(len: usize) -> [u8; 4] {
    u32::try_from(len).expect("a group is smaller than a file, so than 4 GiB").to_be_bytes()
}

/// Puts text into sectors, jumping over their heads.
struct SectorWriter<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl SectorWriter<'_> {
    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.at.is_multiple_of(SECTOR) {
                self.at += SECTOR_HEAD;
            }
            let room = (SECTOR - self.at % SECTOR).min(bytes.len());
            self.out[self.at..self.at + room].copy_from_slice(&bytes[..room]);
            self.at += room;
            bytes = &bytes[room..];
        }
    }

    /// Zeros behind the text: whatever the buffer held before must not reach the disk.
    fn pad(&mut self) {
        let at = self.at;
        self.out[at..].fill(0);
    }
}

/// What stands at a place of a journal file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No group of this journal begins here that is newer than the last one.
    Nothing,
    /// A whole group.
    Group {
        /// Its number.
        number: u64,
        /// Its bytes on disk.
        disk_len: usize,
        /// Its entries.
        entries: Vec<Bytes>,
    },
    /// A group with sectors of another time in it: its write didn't return.
    Torn {
        /// Its number.
        number: u64,
    },
    /// A group whose sectors are all its own, or that doesn't follow the last, and whose contents are wrong.
    Damaged {
        /// Its number.
        number: u64,
    },
}

/// Reads what begins at `bytes`, the rest of a journal file from a place where a group may begin. `last` is the end
/// of the group before.
pub(super) fn decode(bytes: &[u8], journal_id: u32, last: Lsn, position: u64) -> Found {
    let Some(number) = sector_number(bytes, journal_id) else { return Found::Nothing };
    if number <= last.group {
        return Found::Nothing;
    }
    let head: Vec<u8> = text(bytes, 0, TEXT_HEAD);
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    let (text_len, expected_crc, count) = (word(4) as usize, word(8), word(12));
    if word(0) != MAGIC || text_len < TEXT_HEAD {
        return Found::Damaged { number };
    }
    let total = disk_len(text_len - TEXT_HEAD);
    if total > bytes.len() {
        // A file that was never written in full ends inside a group that was being written.
        return Found::Torn { number };
    }
    let sectors = bytes[..total].chunks_exact(SECTOR);
    if sectors.into_iter().any(|sector| sector_number(sector, journal_id) != Some(number)) {
        return Found::Torn { number };
    }
    let entries = Bytes::from(text(bytes, TEXT_HEAD, text_len - TEXT_HEAD));
    let mut crc = crc32fast::Hasher::new();
    crc.update(&entries);
    crc.update(&number.to_be_bytes());
    crc.update(&head[16..32]);
    if crc.finalize() != expected_crc || long(16) != last.group || long(24) != position {
        return Found::Damaged { number };
    }
    match split_entries(&entries, count) {
        Some(entries) => Found::Group { number, disk_len: total, entries },
        None => Found::Damaged { number },
    }
}

/// The group that the sector at the beginning of `bytes` belongs to, if it is one of this journal's.
pub(super) fn sector_number(bytes: &[u8], journal_id: u32) -> Option<u64> {
    let head: &[u8; SECTOR_HEAD] = bytes.first_chunk()?;
    let id = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    let number = head[4..].iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    (bytes.len() >= SECTOR && id == journal_id).then_some(number)
}

/// The group that the one at the beginning of `bytes` follows, if its head says so; for going on behind damage.
pub(super) fn previous_of(bytes: &[u8]) -> Option<u64> {
    if bytes.len() < SECTOR {
        return None;
    }
    let head = text(bytes, 0, TEXT_HEAD);
    let magic = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    (magic == MAGIC).then(|| head[16..24].iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// `len` bytes of a group's text, from byte `from` of it.
fn text(bytes: &[u8], from: usize, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    let mut at = from;
    while out.len() < len {
        let (sector, within) = (at / SECTOR_TEXT, at % SECTOR_TEXT);
        let room = (SECTOR_TEXT - within).min(len - out.len());
        let start = sector * SECTOR + SECTOR_HEAD + within;
        out.extend_from_slice(&bytes[start..start + room]);
        at += room;
    }
    out
}

fn split_entries(text: &Bytes, count: u32) -> Option<Vec<Bytes>> {
    let (mut at, mut entries) = (0usize, Vec::new());
    for _ in 0..count {
        let lengths: &[u8; ENTRY_HEAD] = text.get(at..)?.first_chunk()?;
        let head = u32::from_be_bytes([lengths[0], lengths[1], lengths[2], lengths[3]]) as usize;
        let body = u32::from_be_bytes([lengths[4], lengths[5], lengths[6], lengths[7]]) as usize;
        let (start, end) = (at + ENTRY_HEAD, at + ENTRY_HEAD + head + body);
        if end > text.len() {
            return None;
        }
        entries.push(text.slice(start..end));
        at = end;
    }
    (at == text.len()).then_some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLACE: GroupPlace = GroupPlace { journal_id: 7, number: 5, previous: 4, position: 8192 };
    const LAST: Lsn = Lsn { group: 4, position: 8192 };

    fn group(entries: &[Entry]) -> Vec<u8> {
        let len = disk_len(entries.iter().map(entry_len).sum());
        let mut out = vec![0xaa; len];
        let entries_len = entries.iter().map(entry_len).sum();
        assert_eq!(encode(PLACE, entries.iter(), entries_len, &mut out), len);
        out
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let bytes = |max| proptest::collection::vec(any::<u8>(), 0..max);
        let entry = (bytes(90), bytes(2000)).prop_map(|(head, body)| Entry { head, body: body.into() });
        proptest::collection::vec(entry, 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_group_reads_back(entries in entries()) {
            let bytes = group(&entries);
            let expected: Vec<Bytes> =
                entries.iter().map(|entry| [&entry.head[..], &entry.body].concat().into()).collect();
            let found = decode(&bytes, 7, LAST, 8192);
            prop_assert_eq!(found, Found::Group { number: 5, disk_len: bytes.len(), entries: expected });
        }

        #[test]
        fn old_sectors_make_it_torn_and_wrong_bytes_make_it_damaged(
            entries in entries(),
            at in any::<proptest::sample::Index>(),
        ) {
            let bytes = group(&entries);
            let at = at.index(bytes.len());
            let mut torn = bytes.clone();
            let sector = at / SECTOR * SECTOR;
            torn[sector..sector + SECTOR].fill(0);
            let expected = if sector == 0 { Found::Nothing } else { Found::Torn { number: 5 } };
            prop_assert_eq!(decode(&torn, 7, LAST, 8192), expected);
            let mut rotten = bytes;
            rotten[at] ^= 1;
            let whole = matches!(decode(&rotten, 7, LAST, 8192), Found::Group { .. });
            // Only the padding behind the text may change unnoticed.
            let text_len = TEXT_HEAD + entries.iter().map(entry_len).sum::<usize>();
            let in_padding = at / SECTOR * SECTOR_TEXT + (at % SECTOR).saturating_sub(SECTOR_HEAD) >= text_len
                && at % SECTOR >= SECTOR_HEAD;
            prop_assert_eq!(whole, in_padding);
        }

        #[test]
        fn any_bytes_are_read_without_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            if bytes.len() >= SECTOR {
                bytes[..4].copy_from_slice(&7u32.to_be_bytes());
            }
            decode(&bytes, 7, LAST, 8192);
        }
    }
}
