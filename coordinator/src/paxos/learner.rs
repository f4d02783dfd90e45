//! The learner: the chosen prefix, values chosen beyond a gap, and the part of the log kept for others.
//!
//! Chosen values never change (the paper's stable property); a second value for a chosen slot is proof that safety
//! was broken somewhere, and stops the process. Applying and knowing-to-be-chosen-without-a-gap are one thing here:
//! the engine emits `Apply` for each slot as the prefix grows.

use std::collections::{BTreeMap, VecDeque};

use super::ballot::{Ballot, Slot};
use super::event::{Options, SnapshotMark, Violation};
use super::value::Value;

/// How much longer than the threshold two servers may wait with their snapshots, in steps of a 16th, so that they
/// don't all take them at once.
const SNAPSHOT_SPREAD: u64 = 16;

/// What one server knows to be chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Learner {
    /// Slots at or below are in the snapshot only.
    floor: Slot,
    /// The values of `(floor, chosen_upto]`.
    log: VecDeque<Value>,
    chosen_upto: Slot,
    /// Values known to be chosen beyond the first gap. Bounded by the window of whoever fills it.
    beyond: BTreeMap<Slot, Value>,
    snapshot: Option<SnapshotMark>,
    entries_since: u64,
    bytes_since: u64,
    /// A snapshot was asked for and is not stored yet.
    snapshot_under_way: bool,
}

impl Learner {
    /// A learner that starts from a snapshot, or from the beginning.
    pub fn new(snapshot: Option<SnapshotMark>) -> Self {
        let floor = snapshot.map_or(Slot::ZERO, |mark| mark.slot);
        Self {
            floor,
            log: VecDeque::new(),
            chosen_upto: floor,
            beyond: BTreeMap::new(),
            snapshot,
            entries_since: 0,
            bytes_since: 0,
            snapshot_under_way: false,
        }
    }

    /// The end of the chosen prefix; everything up to here is applied.
    pub fn chosen_upto(&self) -> Slot {
        self.chosen_upto
    }

    /// Slots at or below are no longer in the log.
    pub fn floor(&self) -> Slot {
        self.floor
    }

    /// The newest stored snapshot.
    pub fn snapshot(&self) -> Option<SnapshotMark> {
        self.snapshot
    }

    /// The chosen value of `slot`, if it is in the log or known beyond the gap.
    pub fn value(&self, slot: Slot) -> Option<&Value> {
        if slot <= self.floor {
            None
        } else if slot <= self.chosen_upto {
            self.log.get(slot.since(self.floor) as usize - 1)
        } else {
            self.beyond.get(&slot)
        }
    }

    /// The values of the log from `from` on (which must be above the floor), as many as fit `bytes_limit`, at least
    /// one.
    pub fn values_from(&self, from: Slot, bytes_limit: usize) -> Vec<Value> {
        let mut bytes = 0;
        let mut values = Vec::new();
        for value in self.log.iter().skip(from.since(self.floor.next()) as usize) {
            bytes += value.weight();
            if bytes > bytes_limit && !values.is_empty() {
                break;
            }
            values.push(value.clone());
        }
        values
    }

    /// Takes note that `value` is chosen in `slot`.
    ///
    /// # Errors
    /// [`Violation::ChosenChanged`] if another value is known to be chosen there.
    pub fn learn(&mut self, slot: Slot, value: Value, ballot: Ballot) -> Result<(), Violation> {
        if slot <= self.floor {
            return Ok(());
        }
        match self.value(slot) {
            Some(known) if *known == value => Ok(()),
            Some(_) => Err(Violation::ChosenChanged { ballot, slot }),
            None => {
                self.beyond.insert(slot, value);
                Ok(())
            }
        }
    }

    /// Moves the prefix on by one slot, if its value is known, and gives it out to be applied.
    pub fn advance(&mut self) -> Option<(Slot, Value)> {
        let slot = self.chosen_upto.next();
        let value = self.beyond.remove(&slot)?;
        self.log.push_back(value.clone());
        self.chosen_upto = slot;
        self.entries_since += value.entry_count();
        self.bytes_since += value.weight() as u64;
        Some((slot, value))
    }

    /// Whether a snapshot is due; says so once until it is stored. `share` (0 to 15) spreads the servers.
    pub fn wants_snapshot(&mut self, options: &Options, share: u64) -> bool {
        let part = |whole: u64| whole / 2 + whole / 2 * share / SNAPSHOT_SPREAD;
        let due = self.entries_since >= part(options.snapshot_entries)
            || self.bytes_since >= part(options.snapshot_bytes);
        if !due || self.snapshot_under_way {
            return false;
        }
        self.snapshot_under_way = true;
        self.entries_since = 0;
        self.bytes_since = 0;
        true
    }

    /// A snapshot taken here is stored: cuts the log, keeping `keep` slots below it. The new floor, if it moved.
    pub fn snapshot_stored(&mut self, mark: SnapshotMark, keep: u64) -> Option<Slot> {
        self.snapshot_under_way = false;
        if self.snapshot.is_some_and(|known| known.slot >= mark.slot) || mark.slot > self.chosen_upto {
            return None;
        }
        self.snapshot = Some(mark);
        let floor = mark.slot.minus(keep);
        if floor <= self.floor {
            return None;
        }
        self.log.drain(..floor.since(self.floor) as usize);
        self.floor = floor;
        Some(floor)
    }

    /// A witness holds no values: every full voter has the prefix up to `upto`, so that this one need not.
    pub fn skip_to(&mut self, upto: Slot) {
        if upto > self.chosen_upto {
            (self.floor, self.chosen_upto) = (upto, upto);
            self.beyond = self.beyond.split_off(&upto.next());
        }
    }

    /// Values known to be chosen beyond the prefix.
    pub fn beyond(&self) -> impl Iterator<Item = (Slot, &Value)> {
        self.beyond.iter().map(|(slot, value)| (*slot, value))
    }

    /// A snapshot from elsewhere has replaced the state.
    pub fn restored(&mut self, mark: SnapshotMark) {
        assert!(mark.slot > self.chosen_upto, "a snapshot is installed only to get ahead");
        *self = Self { beyond: self.beyond.split_off(&mark.slot.next()), ..Self::new(Some(mark)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use loggos_protocol::ids::Timestamp;

    fn value(n: u64) -> Value {
        Value::batch(Timestamp::new(0), vec![Bytes::from(n.to_be_bytes().to_vec())])
    }

    fn filled(upto: u64) -> Learner {
        let mut learner = Learner::new(None);
        for n in 1..=upto {
            learner.learn(Slot::new(n), value(n), Ballot::NONE).unwrap();
            assert_eq!(learner.advance(), Some((Slot::new(n), value(n))));
        }
        learner
    }

    #[test]
    fn values_beyond_a_gap_wait_for_it_to_be_filled() {
        let mut learner = filled(2);
        learner.learn(Slot::new(4), value(4), Ballot::NONE).unwrap();
        assert_eq!(learner.advance(), None);
        learner.learn(Slot::new(3), value(3), Ballot::NONE).unwrap();
        assert_eq!(learner.advance(), Some((Slot::new(3), value(3))));
        assert_eq!(learner.advance(), Some((Slot::new(4), value(4))));
        assert_eq!(learner.chosen_upto(), Slot::new(4));
    }

    #[test]
    fn a_chosen_value_never_changes() {
        let mut learner = filled(2);
        assert!(learner.learn(Slot::new(2), value(2), Ballot::NONE).is_ok());
        assert!(learner.learn(Slot::new(2), value(9), Ballot::NONE).is_err());
    }

    #[test]
    fn the_log_is_cut_below_a_stored_snapshot_and_not_further() {
        let mut learner = filled(10);
        let floor = learner.snapshot_stored(SnapshotMark { slot: Slot::new(8), bytes: 1 }, 3);
        assert_eq!(floor, Some(Slot::new(5)));
        assert_eq!(learner.value(Slot::new(5)), None);
        assert_eq!(learner.value(Slot::new(6)), Some(&value(6)));
        assert_eq!(learner.values_from(Slot::new(9), usize::MAX), vec![value(9), value(10)]);
        assert_eq!(learner.values_from(Slot::new(6), 1).len(), 1);
    }

    #[test]
    fn a_snapshot_from_elsewhere_replaces_the_prefix() {
        let mut learner = filled(2);
        learner.learn(Slot::new(9), value(9), Ballot::NONE).unwrap();
        learner.restored(SnapshotMark { slot: Slot::new(8), bytes: 1 });
        assert_eq!(learner.advance(), Some((Slot::new(9), value(9))));
        assert_eq!(learner.floor(), Slot::new(8));
    }
}
