//! Which sessions have been silent for too long (P).
//!
//! Deadlines stand in buckets of one tick, so that a touch that stays in its bucket costs one look-up. Time is
//! what the caller's monotonic clock says; when the caller itself was away for longer than [`STALL`], the gap is
//! added to every deadline before anything expires: clients could not have been heard. Called by `driver` on
//! every request and on every tick; after a restart it tracks every session anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use loggos_protocol::ids::SessionId;

/// The width of a bucket, and how often [`SessionExpiry::expired`] wants to be called. A session lives up to one
/// tick longer than its time-out.
pub const TICK: Duration = Duration::from_millis(50);

/// Silence of our own from which on it is a stall.
pub const STALL: Duration = Duration::from_millis(200);

/// The deadlines of all sessions.
#[derive(Clone, Debug, Default)]
pub struct SessionExpiry {
    sessions: BTreeMap<SessionId, Tracked>,
    buckets: BTreeMap<u64, BTreeSet<SessionId>>,
    /// When we were called last.
    seen: Option<Duration>,
    /// The sum of all stalls: deadlines are in a time that stands still during them.
    stalled: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Tracked {
    timeout: Duration,
    bucket: u64,
}

impl SessionExpiry {
    /// Begins to watch over a session, heard of just now.
    pub fn track(&mut self, session: SessionId, timeout: Duration, now: Duration) {
        self.forget(session);
        let bucket = self.bucket(timeout, now);
        self.sessions.insert(session, Tracked { timeout, bucket });
        self.buckets.entry(bucket).or_default().insert(session);
    }

    /// The session was heard of; nothing if it isn't watched over.
    pub fn touch(&mut self, session: SessionId, now: Duration) {
        let Some(tracked) = self.sessions.get(&session).copied() else { return };
        let bucket = self.bucket(tracked.timeout, now);
        if bucket > tracked.bucket {
            self.leave_bucket(session, tracked.bucket);
            self.buckets.entry(bucket).or_default().insert(session);
            self.sessions.insert(session, Tracked { bucket, ..tracked });
        }
    }

    /// Ends the watch over a session.
    pub fn forget(&mut self, session: SessionId) {
        if let Some(tracked) = self.sessions.remove(&session) {
            self.leave_bucket(session, tracked.bucket);
        }
    }

    /// The sessions whose deadline has passed; they are watched over no more.
    pub fn expired(&mut self, now: Duration) -> Vec<SessionId> {
        let now = self.own_time(now);
        let mut expired = Vec::new();
        while let Some(bucket) = self.buckets.first_entry() {
            if tick_end(*bucket.key()) > now {
                break;
            }
            expired.extend(bucket.remove());
        }
        for session in &expired {
            self.sessions.remove(session);
        }
        expired
    }

    /// How many sessions are watched over.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// `now` less all stalls, the one that ends now included.
    fn own_time(&mut self, now: Duration) -> Duration {
        let gap = self.seen.map_or(Duration::ZERO, |seen| now.saturating_sub(seen));
        if gap > STALL {
            self.stalled += gap;
        }
        self.seen = Some(self.seen.map_or(now, |seen| seen.max(now)));
        now.saturating_sub(self.stalled)
    }

    fn bucket(&mut self, timeout: Duration, now: Duration) -> u64 {
        let deadline = self.own_time(now) + timeout;
        u64::try_from(deadline.as_nanos() / TICK.as_nanos()).unwrap_or(u64::MAX)
    }

    fn leave_bucket(&mut self, session: SessionId, bucket: u64) {
        if let Some(sessions) = self.buckets.get_mut(&bucket) {
            sessions.remove(&session);
            if sessions.is_empty() {
                self.buckets.remove(&bucket);
            }
        }
    }
}

fn tick_end(bucket: u64) -> Duration {
    let ticks = u32::try_from(bucket.saturating_add(1)).unwrap_or(u32::MAX);
    TICK.saturating_mul(ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId::new(1);
    const B: SessionId = SessionId::new(2);

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Ticks to `to`, and says who expired when.
    fn run(expiry: &mut SessionExpiry, from: u64, to: u64) -> Vec<(u64, SessionId)> {
        let mut found = Vec::new();
        for now in (from..=to).step_by(50) {
            found.extend(expiry.expired(ms(now)).into_iter().map(|session| (now, session)));
        }
        found
    }

    #[test]
    fn silence_ends_a_session_and_a_touch_prolongs_it() {
        let mut expiry = SessionExpiry::default();
        expiry.track(A, ms(500), ms(0));
        expiry.track(B, ms(500), ms(0));
        assert_eq!(run(&mut expiry, 0, 300), []);
        expiry.touch(B, ms(320));
        assert_eq!(run(&mut expiry, 350, 1000), [(550, A), (850, B)]);
        assert!(expiry.is_empty() && expiry.buckets.is_empty());
        expiry.touch(A, ms(1000));
        assert!(expiry.is_empty());
    }

    #[test]
    fn a_stall_of_our_own_counts_against_nobody() {
        let mut expiry = SessionExpiry::default();
        expiry.track(A, ms(500), ms(0));
        assert_eq!(run(&mut expiry, 0, 450), []);
        // Ten seconds pass while we don't run; the 50 ms that the session had left are still its own.
        assert_eq!(run(&mut expiry, 10_450, 10_500), []);
        assert_eq!(run(&mut expiry, 10_550, 11_000), [(10_550, A)]);
    }

    #[test]
    fn never_early_and_at_most_a_tick_late() {
        for timeout in [1, 49, 50, 51, 499, 500] {
            let mut expiry = SessionExpiry::default();
            expiry.track(A, ms(timeout), ms(7));
            let end = (7..).step_by(1).find(|now| !expiry.expired(ms(*now)).is_empty()).expect("it ends");
            assert!(end >= 7 + timeout && end <= 7 + timeout + 50, "{timeout}: {end}");
        }
    }
}
