//! I5: at most one value per slot is ever accepted by a majority at a single ballot.
//!
//! Source: P2, "if a proposal with value v is chosen, then every higher-numbered proposal that is chosen has value v".

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// The facts hold the first choice of each slot.
#[derive(Default)]
pub struct Rule;

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I5 one chosen value per slot"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        let Observation::Chosen { slot, ballot, value } = seen else { return Ok(()) };
        ensure(facts.chosen.get(slot).is_none_or(|decided| decided.value == **value), || {
            let first = facts.chosen.get(slot);
            format!("slot {slot} is chosen twice: {first:?}, and at {ballot} {value:?}")
        })
    }
}
