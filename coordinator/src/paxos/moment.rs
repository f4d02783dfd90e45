//! Time as an argument: the pure rooms never read a clock, they are told what it shows.

use std::fmt;
use std::time::Duration;

use loggos_protocol::ids::Timestamp;

/// A reading of this server's monotonic clock (CLOCK_BOOTTIME in production, virtual time in the simulator).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment {
    micros: u64,
}

impl Moment {
    /// The clock's zero.
    pub const ZERO: Self = Self { micros: 0 };
    /// Later than every moment: "never".
    pub const NEVER: Self = Self { micros: u64::MAX };

    /// The moment `micros` microseconds after the clock's zero.
    pub const fn from_micros(micros: u64) -> Self {
        Self { micros }
    }

    /// The moment `millis` milliseconds after the clock's zero.
    pub const fn from_millis(millis: u64) -> Self {
        Self { micros: millis * 1000 }
    }

    /// Microseconds since the clock's zero.
    pub const fn as_micros(self) -> u64 {
        self.micros
    }

    /// The moment `span` later.
    pub const fn after(self, span: Duration) -> Self {
        Self { micros: self.micros.saturating_add(span.as_micros() as u64) }
    }

    /// How long ago `earlier` was; zero if it was not earlier.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.micros.saturating_sub(earlier.micros))
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.micros / 1_000_000, self.micros % 1_000_000)
    }
}

/// What the clocks show when an event is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock: durations, time-outs, leases.
    pub at: Moment,
    /// The wall clock: goes into values alone, where it is forced never to run backwards.
    pub wall: Timestamp,
}
