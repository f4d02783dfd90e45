//! The wall clock, in one place. Called by the shells; pure rooms are told the time.

use std::time::{SystemTime, UNIX_EPOCH};

use loggos_protocol::ids::Timestamp;

/// The time now.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
