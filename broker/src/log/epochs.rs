//! Which offsets each leader epoch began at (KIP-101), so that a follower whose log has gone another way finds the
//! place where it did. Pure; kept in the checkpoint and brought along by appends and truncations.

use loggos_protocol::ids::{LeaderEpoch, Offset};

/// Epochs with their first offsets, both strictly increasing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epochs(Vec<(LeaderEpoch, Offset)>);

impl Epochs {
    /// From what a checkpoint holds; pairs that are out of order are dropped.
    pub fn new(pairs: impl IntoIterator<Item = (LeaderEpoch, Offset)>) -> Self {
        let mut epochs = Self::default();
        for (epoch, start) in pairs {
            epochs.assign(epoch, start);
        }
        epochs
    }

    /// The pairs, for a checkpoint.
    pub fn pairs(&self) -> &[(LeaderEpoch, Offset)] {
        &self.0
    }

    /// The epoch of the last append.
    pub fn latest(&self) -> Option<LeaderEpoch> {
        self.0.last().map(|(epoch, _)| *epoch)
    }

    /// Notes that a batch of `epoch` begins at `start`; only an epoch above the latest is news.
    pub fn assign(&mut self, epoch: LeaderEpoch, start: Offset) {
        if epoch.raw() < 0 || self.latest().is_some_and(|latest| epoch <= latest) {
            return;
        }
        // An epoch that got no record before the next one began is forgotten.
        self.0.pop_if(|(_, last)| *last >= start);
        self.0.push((epoch, start));
    }

    /// The largest epoch not above `epoch`, and where it ends: at the next one's start, or at the log's end.
    /// `None` when all known epochs are above it.
    pub fn end_of(&self, epoch: LeaderEpoch, log_end: Offset) -> Option<(LeaderEpoch, Offset)> {
        let after = self.0.partition_point(|(known, _)| *known <= epoch);
        let (known, _) = self.0.get(after.checked_sub(1)?)?;
        let end = self.0.get(after).map_or(log_end, |(_, start)| *start);
        Some((*known, end))
    }

    /// The epoch of the record at `offset`.
    pub fn of(&self, offset: Offset) -> Option<LeaderEpoch> {
        let after = self.0.partition_point(|(_, start)| *start <= offset);
        self.0.get(after.checked_sub(1)?).map(|(epoch, _)| *epoch)
    }

    /// Forgets what lies at and behind `end`.
    pub fn truncate(&mut self, end: Offset) {
        while self.0.pop_if(|(_, start)| *start >= end).is_some() {}
    }

    /// Forgets epochs that end before `start`; the one that holds it begins there now.
    pub fn start_from(&mut self, start: Offset) {
        let holding = self.0.partition_point(|(_, first)| *first <= start);
        if let Some(gone) = holding.checked_sub(1) {
            self.0.drain(..gone);
            if let Some((_, first)) = self.0.first_mut() {
                *first = start;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(pairs: &[(i32, i64)]) -> Epochs {
        Epochs::new(pairs.iter().map(|(epoch, start)| (LeaderEpoch::new(*epoch), Offset::new(*start))))
    }

    #[test]
    fn an_epoch_ends_where_the_next_begins() {
        let known = epochs(&[(1, 0), (3, 10), (4, 25)]);
        let end =
            |epoch| known.end_of(LeaderEpoch::new(epoch), Offset::new(40)).map(|(e, o)| (e.raw(), o.raw()));
        assert_eq!([end(0), end(1), end(2)], [None, Some((1, 10)), Some((1, 10))]);
        assert_eq!([end(3), end(4), end(9)], [Some((3, 25)), Some((4, 40)), Some((4, 40))]);
    }

    #[test]
    fn truncation_and_a_moved_start_keep_what_lies_between() {
        let mut known = epochs(&[(1, 0), (3, 10), (4, 25)]);
        known.truncate(Offset::new(25));
        assert_eq!(known, epochs(&[(1, 0), (3, 10)]));
        known.start_from(Offset::new(12));
        assert_eq!(known, epochs(&[(3, 12)]));
    }

    #[test]
    fn an_epoch_without_records_is_replaced() {
        let mut known = epochs(&[(1, 0), (2, 5)]);
        known.assign(LeaderEpoch::new(7), Offset::new(5));
        assert_eq!(known, epochs(&[(1, 0), (7, 5)]));
    }
}
