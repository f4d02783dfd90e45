//! The clocks, in one place. Called by the shells; pure rooms are told the time.

use std::time::{SystemTime, UNIX_EPOCH};

use loggos_protocol::ids::Timestamp;
use rustix::time::{ClockId, clock_gettime};

use crate::partition::lease::Moment;

/// The time now.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The time on the clock that nobody sets and that counts suspension.
pub fn moment() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    Moment::new(time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000))
}
