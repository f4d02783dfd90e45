//! The engine's own randomness: a small seeded generator, so that a run can be replayed from its seed.

use std::time::Duration;

/// Steele, Lea and Flood's SplitMix64 ("Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Dice {
    state: u64,
}

impl Dice {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`. Where there is no choice nothing is drawn.
    pub fn below(&mut self, limit: u64) -> u64 {
        if limit <= 1 { 0 } else { self.next() % limit }
    }

    /// A span between the two, in steps of a microsecond.
    pub fn span(&mut self, least: Duration, most: Duration) -> Duration {
        let room = most.saturating_sub(least).as_micros() as u64;
        least + Duration::from_micros(self.below(room + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence_within_bounds() {
        let (least, most) = (Duration::from_millis(300), Duration::from_millis(500));
        let draw = |seed| {
            let mut dice = Dice::new(seed);
            (0..50).map(|_| dice.span(least, most)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|span| *span >= least && *span <= most));
    }
}
