//! How far a session can be trusted, from calls that were answered and the clock alone (P).
//!
//! The ensemble counts a session's time-out from when it heard of us, which is after we sent. So until *sent +
//! time-out*, less what clocks may differ in rate, nobody else can have been given what we hold. After that the
//! session is in jeopardy: it may be gone. It becomes safe again with the next answer, or expires, when the ensemble
//! says so or the grace period has passed (Burrows 2006 §2.8, figure 2). Called by `keeper`; times are what its
//! monotonic clock says.

use std::time::Duration;

/// Clocks of two machines differ in rate by one in so many at most.
const RATE_BOUND: u32 = 100;

/// How far a session can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Nobody else can have what we hold.
    Safe,
    /// Perhaps somebody can: do nothing that only a holder may do.
    Jeopardy,
    /// What we held is lost.
    Expired,
}

/// One session's lease.
#[derive(Clone, Debug)]
pub struct Lease {
    length: Duration,
    grace: Duration,
    /// Until when we are safe.
    until: Duration,
    state: LeaseState,
}

impl Lease {
    /// A lease of a session that the ensemble answered for to something sent at `sent`.
    pub fn new(timeout: Duration, grace: Duration, sent: Duration) -> Self {
        let length = timeout.saturating_sub(timeout / RATE_BOUND);
        Self { length, grace, until: sent + length, state: LeaseState::Safe }
    }

    /// The state now.
    pub const fn state(&self) -> LeaseState {
        self.state
    }

    /// Something that we sent at `sent` was answered. An expired lease stays so.
    pub fn answered(&mut self, sent: Duration, now: Duration) {
        self.until = self.until.max(sent + self.length);
        if self.state == LeaseState::Jeopardy && now < self.until {
            self.state = LeaseState::Safe;
        }
    }

    /// The ensemble said that the session is no more.
    pub const fn lost(&mut self) {
        self.state = LeaseState::Expired;
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        if self.state == LeaseState::Safe && now >= self.until {
            self.state = LeaseState::Jeopardy;
        }
        if self.state == LeaseState::Jeopardy && now >= self.until + self.grace {
            self.state = LeaseState::Expired;
        }
    }

    /// When `tick` will change something, if nothing is answered before.
    pub fn next_deadline(&self) -> Option<Duration> {
        match self.state {
            LeaseState::Safe => Some(self.until),
            LeaseState::Jeopardy => Some(self.until + self.grace),
            LeaseState::Expired => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn jeopardy_ends_well_or_after_the_grace() {
        let mut lease = Lease::new(ms(1000), ms(5000), ms(100));
        assert_eq!(lease.next_deadline(), Some(ms(1090)));
        lease.tick(ms(1089));
        assert_eq!(lease.state(), LeaseState::Safe);
        lease.tick(ms(1090));
        assert_eq!((lease.state(), lease.next_deadline()), (LeaseState::Jeopardy, Some(ms(6090))));
        // An answer to something old proves nothing now.
        lease.answered(ms(150), ms(1200));
        assert_eq!(lease.state(), LeaseState::Jeopardy);
        lease.answered(ms(1150), ms(1200));
        assert_eq!((lease.state(), lease.next_deadline()), (LeaseState::Safe, Some(ms(2140))));
        lease.tick(ms(7140));
        assert_eq!((lease.state(), lease.next_deadline()), (LeaseState::Expired, None));
        lease.answered(ms(7139), ms(7140));
        assert_eq!(lease.state(), LeaseState::Expired);
    }

    proptest! {
        /// Whatever is answered when: safe means that the ensemble heard of us less than a time-out ago, by any
        /// clock that is right to one in a hundred.
        #[test]
        fn safe_is_always_true(steps in prop::collection::vec((1u64..400, any::<bool>()), 1..60)) {
            let timeout = ms(1000);
            let mut lease = Lease::new(timeout, ms(2000), ms(0));
            let (mut now, mut heard) = (0, 0);
            for (pause, answered) in steps {
                let sent = now;
                now += pause;
                if answered {
                    // Heard at the earliest when it was sent.
                    heard = sent;
                    lease.answered(ms(sent), ms(now));
                }
                lease.tick(ms(now));
                if lease.state() == LeaseState::Safe {
                    // Their clock may be faster than ours.
                    prop_assert!((now - heard) * 101 / 100 < 1000);
                }
            }
        }
    }
}
