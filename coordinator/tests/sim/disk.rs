//! A server's durable memory: the promise block, the ledger's records, snapshots.
//!
//! Writes are made durable in groups, one at a time: the promise first, then the records in order, as the real
//! ledger does. A crash in between leaves any state on that way. Damage of what was durable is known to be damage:
//! the server then starts uncertain, and stays so until its engine says otherwise.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes};
use loggos_coordinator::paxos::ballot::{Ballot, Slot};
use loggos_coordinator::paxos::event::{Record, SnapshotMark, Write};
use rand::RngExt;
use rand::rngs::SmallRng;

/// Snapshots kept.
const SNAPSHOTS_KEPT: usize = 3;

/// A durable record, and the hint that was durable before it: what is lost lies above that.
#[derive(Clone, Debug)]
struct Kept {
    record: Record,
    hint: Slot,
}

/// A snapshot: the engine's part and the state machine's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// The engine's part.
    pub head: Bytes,
    /// The state.
    pub state: Bytes,
}

impl Blob {
    /// As one piece, with a checksum, for the way to another server.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32(u32::try_from(self.head.len()).expect("a small head"));
        out.put_slice(&self.head);
        out.put_slice(&self.state);
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out
    }

    /// Reads it back; `None` if it was damaged on the way.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (bytes, crc) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(bytes).to_be_bytes() != *crc {
            return None;
        }
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (head, state) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        Some(Self { head: Bytes::copy_from_slice(head), state: Bytes::copy_from_slice(state) })
    }
}

/// What a crash did to the group that was being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Torn {
    /// There was none.
    Idle,
    /// Nothing of it is there.
    Lost,
    /// A part of it.
    Part,
    /// All of it, though nobody was told.
    Whole,
}

/// The memory of one identity.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The promise block.
    pub promise: Ballot,
    records: Vec<Kept>,
    /// The highest hint.
    pub chosen_upto: Slot,
    /// Damage that is not repaired yet.
    pub uncertain_above: Option<Slot>,
    /// Votes that were durable once and are unreadable now.
    pub lost: BTreeSet<(Slot, Ballot)>,
    /// The highest durable vote of each slot, and the slots whose chosen value is kept.
    votes: BTreeMap<Slot, Ballot>,
    learned: BTreeSet<Slot>,
    /// Records up to here were let go.
    pub released: Slot,
    snapshots: BTreeMap<Slot, Blob>,
    waiting: Vec<Write>,
    group: Option<Vec<Write>>,
    /// The snapshot being received, and its bytes so far.
    receiving: Option<(Slot, Vec<u8>)>,
}

impl Disk {
    /// Takes a write.
    pub fn push(&mut self, write: Write) {
        self.waiting.push(write);
    }

    /// Starts the next group; false if one is under way or nothing waits.
    pub fn begin_group(&mut self) -> bool {
        if self.group.is_some() || self.waiting.is_empty() {
            return false;
        }
        self.group = Some(std::mem::take(&mut self.waiting));
        true
    }

    /// The group is durable: these are its writes, in order.
    pub fn finish_group(&mut self) -> Vec<Write> {
        let group = self.group.take().expect("a group was under way");
        self.keep_promise(&group);
        for write in &group {
            self.keep(write, write.records.len());
        }
        group
    }

    /// The power goes: the group under way is there wholly, partly, or not at all. The writes that are there are
    /// given out, cut to what is there.
    pub fn crash(&mut self, rng: &mut SmallRng) -> (Torn, Vec<Write>) {
        self.waiting.clear();
        self.receiving = None;
        let Some(mut group) = self.group.take() else { return (Torn::Idle, vec![]) };
        let records: usize = group.iter().map(|write| write.records.len()).sum();
        let outcome = rng.random_range(0..4);
        if outcome == 0 {
            return (Torn::Lost, vec![]);
        }
        self.keep_promise(&group);
        // The promise block is written before any record.
        let mut left = match outcome {
            1 => 0,
            2 => rng.random_range(0..=records),
            _ => records,
        };
        let torn = if left == records && outcome == 3 { Torn::Whole } else { Torn::Part };
        let mut whole = true;
        for write in &mut group {
            let count = left.min(write.records.len());
            left -= count;
            whole &= count == write.records.len() && torn == Torn::Whole;
            if !whole {
                // Hints and marks stand behind the records.
                write.chosen_upto = Slot::ZERO;
                write.uncertain = true;
            }
            write.records.truncate(count);
            self.keep(write, count);
        }
        (torn, group)
    }

    fn keep_promise(&mut self, group: &[Write]) {
        let promise = group.iter().filter_map(|write| write.promise).max();
        self.promise = self.promise.max(promise.unwrap_or(Ballot::NONE));
    }

    fn keep(&mut self, write: &Write, count: usize) {
        let hint = self.chosen_upto;
        for record in &write.records[..count] {
            self.index(record);
            self.records.push(Kept { record: record.clone(), hint });
        }
        self.chosen_upto = self.chosen_upto.max(write.chosen_upto);
        if !write.uncertain {
            self.uncertain_above = None;
        }
    }

    fn index(&mut self, record: &Record) {
        match record {
            Record::Accepted { ballot, slot, .. } => {
                self.lost.remove(&(*slot, *ballot));
                let known = self.votes.entry(*slot).or_default();
                *known = (*known).max(*ballot);
            }
            Record::Learned { slot, .. } => {
                self.learned.insert(*slot);
            }
        }
    }

    fn index_anew(&mut self) {
        self.votes.clear();
        self.learned.clear();
        for kept in std::mem::take(&mut self.records) {
            self.index(&kept.record);
            self.records.push(kept);
        }
    }

    /// Whether a vote at `ballot` in `slot` is kept, or something that stands for it.
    pub fn covers(&self, slot: Slot, ballot: Ballot) -> bool {
        self.votes.get(&slot).is_some_and(|kept| *kept >= ballot)
            || self.learned.contains(&slot)
            || self.released >= slot
            || self.snapshots.last_key_value().is_some_and(|(covered, _)| *covered >= slot)
    }

    /// Some records rot. False if there is nothing that could.
    pub fn rot(&mut self, rng: &mut SmallRng) -> bool {
        if self.records.is_empty() {
            return false;
        }
        let recent = self.records.len().saturating_sub(40);
        let first = rng.random_range(recent..self.records.len());
        let end = if rng.random_bool(0.5) {
            self.records.len()
        } else {
            rng.random_range(first + 1..=self.records.len())
        };
        let lost: Vec<Kept> = self.records.drain(first..end).collect();
        let lowest = lost.iter().map(|kept| kept.record.slot()).min().expect("something was drained");
        // Either the headers can be read, or only what was known before.
        let above = if rng.random_bool(0.5) { lowest.minus(1) } else { lost[0].hint };
        let above = above.min(lowest.minus(1));
        self.uncertain_above = Some(self.uncertain_above.map_or(above, |known| known.min(above)));
        self.index_anew();
        for kept in lost {
            if let Record::Accepted { ballot, slot, .. } = kept.record {
                self.lost.insert((slot, ballot));
            }
        }
        true
    }

    /// The records, in the order in which they were written.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().map(|kept| &kept.record)
    }

    /// Records up to `upto` are no longer needed.
    pub fn release(&mut self, upto: Slot) {
        self.released = self.released.max(upto);
        self.records.retain(|kept| kept.record.slot() > upto);
        self.index_anew();
    }

    /// The prefix that it knows to be chosen, whatever happens to the process.
    pub fn known_upto(&self) -> Slot {
        self.snapshots.last_key_value().map_or(Slot::ZERO, |(slot, _)| *slot).max(self.chosen_upto)
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Option<(SnapshotMark, &Blob)> {
        let (slot, blob) = self.snapshots.last_key_value()?;
        Some((SnapshotMark { slot: *slot, bytes: blob.encode().len() as u64 }, blob))
    }

    /// The snapshot of this slot.
    pub fn snapshot_at(&self, slot: Slot) -> Option<&Blob> {
        self.snapshots.get(&slot)
    }

    /// A snapshot is durable under its name.
    pub fn keep_snapshot(&mut self, slot: Slot, blob: Blob) {
        self.snapshots.insert(slot, blob);
        while self.snapshots.len() > SNAPSHOTS_KEPT {
            self.snapshots.pop_first();
        }
    }

    /// Puts received bytes where they belong. The bytes of the whole, once they are all here; otherwise the offset
    /// wanted next.
    pub fn receive(&mut self, slot: Slot, offset: u64, total: u64, bytes: &[u8]) -> Result<Vec<u8>, u64> {
        if self.receiving.as_ref().is_none_or(|(known, _)| *known != slot) || offset == 0 {
            self.receiving = Some((slot, Vec::new()));
        }
        let (_, held) = self.receiving.as_mut().expect("it was just set");
        if held.len() as u64 == offset {
            held.extend_from_slice(bytes);
        }
        if (held.len() as u64) < total {
            Err(held.len() as u64)
        } else {
            Ok(self.receiving.take().expect("held").1)
        }
    }

    /// Whether a snapshot is on its way in.
    pub fn is_receiving(&self) -> bool {
        self.receiving.is_some()
    }
}
