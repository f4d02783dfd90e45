//! How often each fault and each rare event took place: a simulation in which nothing happens proves nothing.

use std::collections::BTreeMap;
use std::fmt;

macro_rules! seen {
    ($($name:ident),* $(,)?) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "the names say it")]
        pub enum Seen { $($name),* }

        impl Seen {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

seen! {
    // Faults of the network.
    Loss, Duplicate, LongDelay, Overtaking, OneWayCut, PartialPartition, FullPartition, Ambush, CutMessage,
    // Faults of servers and their disks.
    CrashIdle, CrashWhileWriting, TornGroup, WriteLostWhole, WriteKeptUnacknowledged, BitRot, FailedWrite, SlowDisk,
    DiskLoss, Pause, ClockDrift, ClockBeyondBound, ClockJump, WallJump,
    // What the ensemble does.
    Election, Canvass, CanvassRefused, Transfer, Rejected, NoopFilled, Recovered, CertainAgain, ReadIndexRead,
    LeaseRead, ReadRefused, SnapshotTaken, SnapshotTransferred, SnapshotBroken, SnapshotCutShort, CaughtUpByLog,
    ConfigChosen, Joined, Promoted, Replaced, GrewTo3, GrewTo5, ShrankTo3, ChangeRefused, WitnessVoted, Touched,
    // What clients do.
    SessionOpened, SessionMoved, SessionExpired, SessionClosed, Written, MultiWritten, ReadLocally, SyncRead,
    OutcomeUnknown, DuplicateEntry, LockPassedOn, WatchFired,
}

/// The counters.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    counts: BTreeMap<Seen, u64>,
}

impl Coverage {
    /// It happened once more.
    pub fn count(&mut self, seen: Seen) {
        *self.counts.entry(seen).or_default() += 1;
    }

    /// How often it happened.
    pub fn of(&self, seen: Seen) -> u64 {
        self.counts.get(&seen).copied().unwrap_or(0)
    }

    /// Adds another world's counts.
    pub fn add(&mut self, other: &Self) {
        for (seen, count) in &other.counts {
            *self.counts.entry(*seen).or_default() += count;
        }
    }

    /// What never happened.
    pub fn missing(&self) -> Vec<Seen> {
        Seen::ALL.iter().copied().filter(|seen| self.of(*seen) == 0).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, seen) in Seen::ALL.iter().enumerate() {
            let end = if at % 4 == 3 { "\n" } else { "  " };
            write!(f, "{:<24}{:>8}{end}", format!("{seen:?}"), self.of(*seen))?;
        }
        Ok(())
    }
}
