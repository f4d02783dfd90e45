//! The numbers of Paxos: who speaks, with which proposal number, about which slot.
//!
//! Source: Lamport, "Paxos Made Simple" (2001), section 2.2; a *slot* is the paper's instance. Everything in the
//! coordinator that names a ballot or a slot uses these.

use std::fmt;

/// A voter identity ("rid"): one memory. Given out by the log, never reused, `0` = none (design 1.1, I12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(u16);

impl ServerId {
    /// No server.
    pub const NONE: Self = Self(0);
    /// The first server of every cell.
    pub const FIRST: Self = Self(1);

    /// Wraps a raw number from the wire or the disk.
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The number for the wire and the disk.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// Whether this is [`ServerId::NONE`].
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The identity given out after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The paper's proposal number: `round << 16 | owner`, compared as an integer. The owner is part of it, so that
/// two proposers can never issue the same number.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot(u64);

impl Ballot {
    /// Below every real ballot.
    pub const NONE: Self = Self(0);

    /// The ballot of `owner` in `round`.
    pub const fn of(round: u64, owner: ServerId) -> Self {
        Self(round << 16 | owner.0 as u64)
    }

    /// Wraps a raw value from the wire or the disk.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw value for the wire and the disk.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Its round.
    pub const fn round(self) -> u64 {
        self.0 >> 16
    }

    /// The one server that may issue proposals with it.
    pub const fn owner(self) -> ServerId {
        ServerId((self.0 & 0xffff) as u16)
    }

    /// Whether this is [`Ballot::NONE`].
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The lowest ballot of `owner` above this one.
    pub const fn next_for(self, owner: ServerId) -> Self {
        Self::of(self.round() + 1, owner)
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.round(), self.owner())
    }
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// One instance of Paxos. Slots are chosen and applied from 1 on; `0` stands before the first.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u64);

impl Slot {
    /// Before the first slot: nothing chosen yet.
    pub const ZERO: Self = Self(0);
    /// The first slot.
    pub const FIRST: Self = Self(1);
    /// Above every slot.
    pub const MAX: Self = Self(u64::MAX);

    /// Wraps a raw value from the wire or the disk.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw value for the wire and the disk.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The slot after this one, or the highest.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The slot `count` further on, or the highest.
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// The slot `count` back, or 0.
    pub const fn minus(self, count: u64) -> Self {
        Self(self.0.saturating_sub(count))
    }

    /// How many slots lie in `(earlier, self]`; 0 if `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// The slots from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotRange {
    /// The lowest slot.
    pub first: Slot,
    /// The highest slot.
    pub last: Slot,
}

impl SlotRange {
    /// Folds ascending slots into ranges, the form in which `Accepted` reports them.
    pub fn collect(slots: impl IntoIterator<Item = Slot>) -> Vec<Self> {
        let mut ranges: Vec<Self> = Vec::new();
        for slot in slots {
            match ranges.last_mut() {
                Some(range) if range.last.next() == slot => range.last = slot,
                Some(range) if range.first <= slot && slot <= range.last => {}
                _ => ranges.push(Self { first: slot, last: slot }),
            }
        }
        ranges
    }

    /// Whether `slot` lies in it.
    pub fn contains(self, slot: Slot) -> bool {
        self.first <= slot && slot <= self.last
    }
}

/// One life of a server's process: counted up durably at every start, so that a message meant for, or sent by, a
/// former life is known for what it is (design 1.2). `0` = not known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(u64);

impl Incarnation {
    /// Not known yet.
    pub const UNKNOWN: Self = Self(0);

    /// Wraps a raw value from the wire or the disk.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw value for the wire and the disk.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The next life.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a cell, drawn when it was formed. Frames of another cell are dropped.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellId(u128);

impl CellId {
    /// No cell yet: an empty directory.
    pub const NONE: Self = Self(0);

    /// Wraps a raw value from the wire or the disk.
    pub const fn new(raw: u128) -> Self {
        Self(raw)
    }

    /// The raw value for the wire and the disk.
    pub const fn raw(self) -> u128 {
        self.0
    }
}

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ballots_order_by_round_and_then_by_owner() {
        let (one, two) = (ServerId::new(1), ServerId::new(2));
        assert!(Ballot::of(1, two) > Ballot::of(1, one));
        assert!(Ballot::of(2, one) > Ballot::of(1, two));
        assert_eq!(Ballot::of(7, two).owner(), two);
        assert_eq!(Ballot::of(7, two).round(), 7);
        assert!(Ballot::of(7, two).next_for(one) > Ballot::of(7, two));
        assert_eq!(Ballot::NONE.owner(), ServerId::NONE);
    }

    #[test]
    fn ascending_slots_fold_into_ranges() {
        let ranges = SlotRange::collect([1, 2, 3, 5, 5, 6, 9].map(Slot::new));
        let pairs: Vec<_> = ranges.iter().map(|r| (r.first.raw(), r.last.raw())).collect();
        assert_eq!(pairs, vec![(1, 3), (5, 6), (9, 9)]);
        assert!(ranges[0].contains(Slot::new(2)) && !ranges[0].contains(Slot::new(4)));
    }
}
