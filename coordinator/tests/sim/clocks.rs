//! Clocks that run at their own rate, jump, and disagree about the date.
//!
//! A server's monotonic clock is a line over true time; a jump moves it forward, never back. The wall clock is the
//! monotonic one plus an offset that may change in either direction.

use loggos_coordinator::paxos::moment::{Moment, Now};
use loggos_protocol::ids::Timestamp;

/// True time of the world, in microseconds since its beginning.
pub type True = u64;

/// The date at the world's beginning, in milliseconds since 1970.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// One server's clocks.
#[derive(Clone, Debug)]
pub struct Clock {
    /// What it showed when its rate changed last, and when that was.
    shown: u64,
    since: True,
    /// How much faster than true time it runs, in parts per million.
    drift_ppm: i64,
    wall_offset_ms: i64,
}

impl Clock {
    /// A clock that shows `shown` at the world's beginning.
    pub fn new(shown: u64, drift_ppm: i64, wall_offset_ms: i64) -> Self {
        Self { shown, since: 0, drift_ppm, wall_offset_ms }
    }

    /// What it shows at `at`.
    pub fn read(&self, at: True) -> Moment {
        let passed = i128::from(at.saturating_sub(self.since));
        let own = passed + passed * i128::from(self.drift_ppm) / 1_000_000;
        Moment::from_micros(self.shown + u64::try_from(own).expect("clocks run forwards"))
    }

    /// Both clocks at `at`.
    pub fn now(&self, at: True) -> Now {
        let moment = self.read(at);
        let millis = i64::try_from(moment.as_micros() / 1000).expect("a world is short");
        Now { at: moment, wall: Timestamp::new(EPOCH_MS + millis + self.wall_offset_ms) }
    }

    /// The first true time at which it shows `moment` or more; `None` for never.
    pub fn when(&self, moment: Moment) -> Option<True> {
        if moment == Moment::NEVER {
            return None;
        }
        let left = i128::from(moment.as_micros().saturating_sub(self.shown));
        let rate = 1_000_000 + i128::from(self.drift_ppm);
        let passed = (left * 1_000_000 + rate - 1) / rate;
        let mut at = self.since + u64::try_from(passed).expect("clocks run forwards");
        while self.read(at) < moment {
            at += 1;
        }
        Some(at)
    }

    /// Leaps ahead.
    pub fn jump(&mut self, at: True, micros: u64) {
        self.shown = self.read(at).as_micros() + micros;
        self.since = at;
    }

    /// Runs at another rate from now on.
    pub fn set_drift(&mut self, at: True, drift_ppm: i64) {
        self.jump(at, 0);
        self.drift_ppm = drift_ppm;
    }

    /// The date is set anew, backwards or forwards.
    pub fn set_wall(&mut self, offset_ms: i64) {
        self.wall_offset_ms = offset_ms;
    }
}
