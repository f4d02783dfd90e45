//! I7: every chosen value is a no-op, a leader's start, a membership, or was submitted by a client or by a leader's
//! clock.
//!
//! Source: "Paxos Made Simple" 1, "only a value that has been proposed may be chosen".

use loggos_coordinator::paxos::value::Value;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// The facts hold what was submitted.
#[derive(Default)]
pub struct Rule;

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I7 only what was submitted is chosen"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        let Observation::Chosen { slot, ballot, value } = seen else { return Ok(()) };
        match value {
            Value::Batch(batch) => batch.entries.iter().try_for_each(|entry| {
                ensure(facts.submitted.contains(entry), || {
                    format!("slot {slot} holds an entry that nobody submitted: {entry:?}")
                })
            }),
            Value::LeaderStart { ballot: start, .. } => ensure(start <= ballot, || {
                format!("slot {slot}, chosen at {ballot}, holds the start of a later leader, {start}")
            }),
            Value::Noop | Value::Config { .. } => Ok(()),
        }
    }
}
