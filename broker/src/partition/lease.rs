//! How long this broker may act on what the ensemble last let it know. A session can't expire sooner than its time-out
//! after the *sending* of a call that was answered, so that nobody is elected in our place while the lease holds
//! (Gray & Cheriton 1989; the lock service's jeopardy in Chubby §2.8). Pure.
//!
//! The clock counts suspended time too: a broker that was stopped, or whose machine slept, finds its lease over
//! before it does anything else. Renewed by `broker`; looked at by `partition` before each append and each
//! acknowledgement.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// The part of a session's time-out that counts, in hundredths: clocks run apart, and a server of the ensemble passes
/// on only once in a while that it has heard of us (a ZooKeeper's follower twice a tick, and a session lasts two
/// ticks at least).
const USABLE: i64 = 75;
/// What an acknowledgement may take from the look at the lease to the socket, in milliseconds.
const MARGIN_MS: i64 = 20;

/// A time on this machine's own clock, in milliseconds since it started: never set, counts suspension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

impl Moment {
    /// From milliseconds since the machine's start.
    pub const fn new(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since `earlier`.
    pub const fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A broker's lease on what it leads.
#[derive(Debug)]
pub struct Lease {
    until: AtomicI64,
}

impl Default for Lease {
    /// One that has not begun.
    fn default() -> Self {
        Self { until: AtomicI64::new(i64::MIN) }
    }
}

impl Lease {
    /// The ensemble has answered what was sent at `sent`, in a session that it keeps for `timeout`.
    pub fn confirm(&self, sent: Moment, timeout: Duration) {
        let timeout = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX / 2);
        let until = sent.0.saturating_add(timeout / 100 * USABLE - MARGIN_MS);
        self.until.fetch_max(until, Ordering::AcqRel);
    }

    /// The session is over: nothing that was confirmed in it counts.
    pub fn end(&self) {
        self.until.store(i64::MIN, Ordering::Release);
    }

    /// Whether nobody can have been elected in our place yet.
    pub fn holds(&self, now: Moment) -> bool {
        now.0 < self.until.load(Ordering::Acquire)
    }
}

/// How long a machine's stalls are remembered, in milliseconds.
const REMEMBERED_MS: i64 = 300_000;
/// A session lasts so many of the longest stalls at least, but no longer than so many of what was asked for.
const STALLS: u32 = 3;
const STRETCH: u32 = 4;

/// How long this machine has lately stood still under us: a starved virtual machine must not lose its session again and
/// again, and asks for a longer one instead.
#[derive(Debug, Default)]
pub struct Stalls {
    worst: Option<(Moment, i64)>,
}

impl Stalls {
    /// A pause has lasted `stalled_ms` longer than it should have.
    pub fn measured(&mut self, now: Moment, stalled_ms: i64) {
        self.worst.take_if(|(at, _)| now.since(*at) > REMEMBERED_MS);
        if self.worst.is_none_or(|(_, worst)| stalled_ms >= worst) {
            self.worst = Some((now, stalled_ms));
        }
    }

    /// What the next session should last, where `base` is what it should last on a machine that doesn't stall.
    pub fn patience(&self, now: Moment, base: Duration) -> Duration {
        let remembered = self.worst.filter(|(at, _)| now.since(*at) <= REMEMBERED_MS);
        let worst = Duration::from_millis(remembered.map_or(0, |(_, worst)| worst).max(0).unsigned_abs());
        (worst * STALLS).clamp(base, base * STRETCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stalls_asks_for_longer_sessions_for_a_while() {
        let (base, mut stalls) = (Duration::from_millis(600), Stalls::default());
        let patience = |stalls: &Stalls, at| stalls.patience(Moment::new(at), base).as_millis();
        assert_eq!(patience(&stalls, 0), 600);
        stalls.measured(Moment::new(1_000), 30);
        assert_eq!(patience(&stalls, 1_000), 600, "what a session survives anyway");
        stalls.measured(Moment::new(2_000), 500);
        stalls.measured(Moment::new(3_000), 10);
        assert_eq!(patience(&stalls, 3_000), 1_500);
        stalls.measured(Moment::new(4_000), 60_000);
        assert_eq!(patience(&stalls, 4_000), 2_400, "who was suspended isn't waited for like that");
        assert_eq!(patience(&stalls, 400_000), 600, "forgotten");
    }

    #[test]
    fn a_lease_ends_before_the_session_can() {
        let lease = Lease::default();
        assert!(!lease.holds(Moment::new(0)));
        lease.confirm(Moment::new(1000), Duration::from_millis(600));
        assert!(lease.holds(Moment::new(1420)));
        assert!(!lease.holds(Moment::new(1430)));
        lease.confirm(Moment::new(900), Duration::from_millis(600));
        assert!(lease.holds(Moment::new(1420)), "an older answer takes nothing away");
        lease.end();
        assert!(!lease.holds(Moment::new(1000)));
    }
}
