//! Whether another server's clock runs at the rate of this one, as leases assume (design 1.9).
//!
//! A heartbeat's answer says what the other clock showed some time between the sending and the receipt, so that the
//! difference of the two clocks is known to lie between two bounds. If the differences of two answers can't be
//! explained by any delay, the rates differ, or one clock was set. A server caught like this is not believed to keep
//! a lease for as long as it says, until it was watched without fault for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ballot::ServerId;
use super::event::Options;
use super::moment::Moment;

/// After so long the watch begins anew.
const WINDOW: Duration = Duration::from_secs(30);

/// Bounds of (other clock - own clock), in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Difference {
    least: i64,
    most: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Watch {
    began: Moment,
    base: Difference,
    /// A fault was found in this window, or in the one before it.
    fault: bool,
    fault_before: bool,
}

/// The clocks of the other servers, as one leader sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Clocks {
    watches: BTreeMap<ServerId, Watch>,
}

impl Clocks {
    /// `server`'s clock showed `clock` after `sent` and before `now`.
    pub fn sample(&mut self, server: ServerId, clock: Moment, sent: Moment, now: Moment, options: &Options) {
        let since = |own: Moment| clock.as_micros() as i64 - own.as_micros() as i64;
        let seen = Difference { least: since(now), most: since(sent) };
        let fresh = Watch { began: now, base: seen, fault: false, fault_before: false };
        let watch = self.watches.entry(server).or_insert(fresh);
        let span = now.since(watch.began);
        // What the difference has surely changed by, whatever the delays were.
        let ahead = seen.least - watch.base.most;
        let behind = watch.base.least - seen.most;
        // Half of what leases allow for.
        let allowed = span.as_micros() as i64 * i64::from(options.clock_drift_ppm) / 2_000_000;
        watch.fault |= ahead.max(behind) > allowed;
        if span >= WINDOW {
            *watch = Watch { began: now, base: seen, fault: false, fault_before: watch.fault };
        }
    }

    /// Whether the clock of `server` may be relied on.
    pub fn trusts(&self, server: ServerId) -> bool {
        self.watches.get(&server).is_none_or(|watch| !watch.fault && !watch.fault_before)
    }

    /// A new life of `server` may have another clock.
    pub fn forget(&mut self, server: ServerId) {
        self.watches.remove(&server);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Samples every 50 ms for `seconds`; the other clock shows `clock(true time)`, delays are drawn.
    fn watch(seconds: u64, delays: &[u64], clock: impl Fn(u64) -> u64) -> Clocks {
        let mut clocks = Clocks::default();
        for n in 0..seconds * 20 {
            let sent = 1_000_000 + n * 50_000;
            let (there, back) = (delays[n as usize % delays.len()], delays[(n as usize + 1) % delays.len()]);
            let (sent, now) = (Moment::from_micros(sent), Moment::from_micros(sent + there + back));
            let shown = Moment::from_micros(clock(sent.as_micros() + there));
            clocks.sample(ServerId::new(2), shown, sent, now, &Options::default());
        }
        clocks
    }

    #[test]
    fn a_clock_that_runs_away_is_noticed_and_forgiven_after_a_while() {
        let fast = |time: u64| time + time / 50;
        assert!(!watch(30, &[300, 900], fast).trusts(ServerId::new(2)));
        let slow = |time: u64| time - time / 50;
        assert!(!watch(30, &[300, 900], slow).trusts(ServerId::new(2)));
        let set_once = |time: u64| if time > 20_000_000 { time + 3_000_000 } else { time };
        assert!(!watch(30, &[300, 900], set_once).trusts(ServerId::new(2)));
        assert!(watch(200, &[300, 900], set_once).trusts(ServerId::new(2)));
    }

    proptest! {
        #[test]
        fn delays_alone_never_cast_doubt(
            delays in proptest::collection::vec(10u64..400_000, 1..50), offset in 0u64..1_000_000_000
        ) {
            prop_assert!(watch(100, &delays, |time| time + offset).trusts(ServerId::new(2)));
        }

        #[test]
        fn a_rate_within_a_quarter_of_the_bound_is_trusted(delays in proptest::collection::vec(10u64..400_000, 1..50)) {
            prop_assert!(watch(100, &delays, |time| time + time / 400).trusts(ServerId::new(2)));
        }
    }
}
