//! The network: what becomes of a message, link by link and direction by direction.

use std::collections::BTreeMap;

use loggos_coordinator::paxos::ballot::ServerId;
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::clocks::True;
use crate::coverage::{Coverage, Seen};

/// How the network of one world behaves.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Share of messages that vanish.
    pub loss: f64,
    /// Share of messages that arrive twice.
    pub duplication: f64,
    /// Shortest way, in microseconds.
    pub delay: u64,
    /// What chance adds to it at most, in microseconds: messages overtake one another.
    pub jitter: u64,
    /// Share of messages that are on their way for up to [`LONG`].
    pub long: f64,
}

/// How long a message may be on its way at worst, in microseconds: longer than elections, so that words of former
/// leaders arrive.
const LONG: u64 = 2_000_000;

/// All links.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// The present weather.
    pub weather: Weather,
    /// Directed links that carry nothing, and until when.
    cuts: BTreeMap<(ServerId, ServerId), True>,
    /// So many proposals to come are lost, and their links with them.
    pub ambush: u32,
}

impl Network {
    /// All links are whole.
    pub fn new(weather: Weather) -> Self {
        Self { weather, cuts: BTreeMap::new(), ambush: 0 }
    }

    /// Cuts one direction until `until`.
    pub fn cut(&mut self, from: ServerId, to: ServerId, until: True) {
        let end = self.cuts.entry((from, to)).or_default();
        *end = (*end).max(until);
    }

    /// A proposal is sent over this link: in an ambush it is the last thing for a while.
    pub fn propose(
        &mut self,
        (from, to): (ServerId, ServerId),
        at: True,
        rng: &mut SmallRng,
        coverage: &mut Coverage,
    ) {
        if self.ambush > 0 {
            self.ambush -= 1;
            let until = at + rng.random_range(300_000..2_000_000);
            self.cut(from, to, until);
            self.cut(to, from, until);
            coverage.count(Seen::Ambush);
        }
    }

    /// Mends all links and calms the weather.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.ambush = 0;
        self.weather = Weather { delay: 300, jitter: 500, ..Weather::default() };
    }

    /// Whether a message could pass.
    pub fn passes(&self, from: ServerId, to: ServerId, at: True) -> bool {
        self.cuts.get(&(from, to)).is_none_or(|until| *until <= at)
    }

    /// After how many microseconds a message sent now arrives: never, once, or twice.
    pub fn fate(
        &self,
        (from, to): (ServerId, ServerId),
        at: True,
        rng: &mut SmallRng,
        coverage: &mut Coverage,
    ) -> Vec<u64> {
        let weather = &self.weather;
        if !self.passes(from, to, at) {
            coverage.count(Seen::CutMessage);
            return vec![];
        }
        if rng.random_bool(weather.loss) {
            coverage.count(Seen::Loss);
            return vec![];
        }
        let mut delay = || {
            if rng.random_bool(weather.long) {
                coverage.count(Seen::LongDelay);
                return rng.random_range(0..=LONG);
            }
            weather.delay + rng.random_range(0..=weather.jitter)
        };
        let mut fate = vec![delay()];
        if weather.duplication > 0.0 {
            let second = delay();
            if rng.random_bool(weather.duplication) {
                coverage.count(Seen::Duplicate);
                fate.push(second);
            }
        }
        fate
    }
}
