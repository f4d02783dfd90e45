//! Where a follower's log has gone another way than its leader's, and what is done about it: both sides of the
//! exchange that a fetch carries (KIP-101, KIP-279, KIP-595). Pure.
//!
//! The leader judges what is asked for, the follower acts on what it is told; the simulation runs the same two
//! functions. Called by the fetch handler and by `follower`.

use loggos_protocol::ids::{LeaderEpoch, Offset};

/// What is known of a log without reading it.
pub trait Ends {
    /// The first offset that can be read.
    fn start(&self) -> Offset;
    /// The offset that the next record gets.
    fn end(&self) -> Offset;
    /// The largest leader epoch not above `epoch`, and where it ends.
    fn epoch_end(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)>;
}

/// What a fetch asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// From where.
    pub offset: Offset,
    /// The epoch of the last record that the asker has; `NONE` if it doesn't say.
    pub last_epoch: LeaderEpoch,
}

/// What the leader makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The logs agree up to there.
    Serve,
    /// They don't: ours ends the largest epoch that both may know so early.
    Diverging {
        /// That epoch.
        epoch: LeaderEpoch,
        /// Its end in our log.
        end: Offset,
    },
    /// Nothing of the asker's log can be compared with ours.
    OutOfRange,
}

/// Judges a fetch on the leader.
pub fn judge(asked: Asked, log: &impl Ends) -> Verdict {
    if asked.last_epoch != LeaderEpoch::NONE {
        let Some((epoch, end)) = log.epoch_end(asked.last_epoch) else { return Verdict::OutOfRange };
        if epoch < asked.last_epoch || end < asked.offset {
            return Verdict::Diverging { epoch, end };
        }
    }
    if asked.offset < log.start() || asked.offset > log.end() { Verdict::OutOfRange } else { Verdict::Serve }
}

/// What a follower does about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// What came fits: append it.
    Append,
    /// Nothing: our log has changed since we asked, and the answer is about one that is no more.
    Ignore,
    /// Cut everything from there on, and the epochs that have no record before it.
    TruncateTo(Offset),
    /// Give up everything and go on there.
    RestartAt(Offset),
}

/// The follower's part, when the leader whose log begins at `leader_start` has said `verdict` on what we `asked`. Our
/// log ends the epoch of its last record at `latest`.
pub fn remedy(
    asked: Asked,
    verdict: Verdict,
    leader_start: Offset,
    (log, latest): (&impl Ends, LeaderEpoch),
) -> Remedy {
    if asked.offset != log.end() || asked.last_epoch != latest {
        return Remedy::Ignore;
    }
    match verdict {
        Verdict::Serve => Remedy::Append,
        // An offset that was given up once is not filled again: its file begins behind it.
        Verdict::OutOfRange => Remedy::RestartAt(leader_start.max(log.start())),
        Verdict::Diverging { epoch, end } => {
            // Our own log may end that epoch, or the one before it, earlier than the leader's.
            let ours = log.epoch_end(epoch).map_or(log.start(), |(_, ours)| ours);
            Remedy::TruncateTo(ours.min(end).max(log.start()))
        }
    }
}

/// From where a follower asks: from its end, once all of it is flushed, for the leader takes the question for the
/// answer how far that is (decision D10). `None` while it isn't.
pub fn asks_from(end: Offset, flushed: Offset, exposes_appended: bool) -> Option<Offset> {
    (exposes_appended || flushed >= end).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known(i64, Vec<(i32, i64)>, i64);

    impl Ends for Known {
        fn start(&self) -> Offset {
            Offset::new(self.0)
        }
        fn end(&self) -> Offset {
            Offset::new(self.2)
        }
        fn epoch_end(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
            let after = self.1.partition_point(|(known, _)| *known <= epoch.raw());
            let (known, _) = self.1.get(after.checked_sub(1)?)?;
            let end = self.1.get(after).map_or(self.2, |(_, start)| *start);
            Some((LeaderEpoch::new(*known), Offset::new(end)))
        }
    }

    fn asked(offset: i64, last_epoch: i32) -> Asked {
        Asked { offset: Offset::new(offset), last_epoch: LeaderEpoch::new(last_epoch) }
    }

    #[test]
    fn logs_are_compared_by_the_largest_epoch_that_both_may_know() {
        let leader = Known(5, vec![(1, 5), (3, 10), (4, 25)], 40);
        assert_eq!(judge(asked(12, 3), &leader), Verdict::Serve);
        assert_eq!(judge(asked(40, 4), &leader), Verdict::Serve);
        let diverging =
            |epoch, end| Verdict::Diverging { epoch: LeaderEpoch::new(epoch), end: Offset::new(end) };
        assert_eq!(judge(asked(12, 2), &leader), diverging(1, 10));
        assert_eq!(judge(asked(26, 3), &leader), diverging(3, 25));
        assert_eq!(judge(asked(41, 4), &leader), diverging(4, 40));
        assert_eq!(judge(asked(12, 0), &leader), Verdict::OutOfRange);
        assert_eq!(judge(asked(4, -1), &leader), Verdict::OutOfRange);
        assert_eq!(judge(asked(41, -1), &leader), Verdict::OutOfRange);
    }

    #[test]
    fn a_follower_cuts_where_the_first_of_both_ends() {
        let ours = Known(0, vec![(1, 0), (2, 8)], 12);
        let told = |epoch, end| Verdict::Diverging { epoch: LeaderEpoch::new(epoch), end: Offset::new(end) };
        let does =
            |asked, verdict, start| remedy(asked, verdict, Offset::new(start), (&ours, LeaderEpoch::new(2)));
        let cut = |verdict| does(asked(12, 2), verdict, 0);
        assert_eq!(cut(told(1, 10)), Remedy::TruncateTo(Offset::new(8)));
        assert_eq!(cut(told(1, 5)), Remedy::TruncateTo(Offset::new(5)));
        assert_eq!(cut(told(0, 3)), Remedy::TruncateTo(Offset::ZERO), "nothing in common");
        assert_eq!(cut(Verdict::Serve), Remedy::Append);
        assert_eq!(does(asked(12, 2), Verdict::OutOfRange, 20), Remedy::RestartAt(Offset::new(20)));
        assert_eq!(does(asked(14, 2), told(1, 5), 0), Remedy::Ignore, "about a log that is no more");
        assert_eq!(does(asked(12, 3), told(1, 5), 0), Remedy::Ignore);
    }
}
