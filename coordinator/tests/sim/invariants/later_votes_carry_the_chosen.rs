//! I6: once a value is chosen at a ballot, every vote at a higher one carries the same value.
//!
//! Source: P2a, "if a proposal with value v is chosen, then every higher-numbered proposal accepted by any acceptor
//! has value v".

use loggos_coordinator::paxos::event::Record;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// The facts hold votes and choices.
#[derive(Default)]
pub struct Rule;

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I6 later votes carry the chosen value"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Durable { server, write } => {
                for record in &write.records {
                    let Record::Accepted { ballot, slot, value } = record else { continue };
                    let Some(decided) = facts.chosen.get(slot) else { continue };
                    ensure(*ballot <= decided.ballot || *value == decided.value, || {
                        format!(
                            "server {server} votes at {ballot} in slot {slot} for {value:?}; chosen: {decided:?}"
                        )
                    })?;
                }
                Ok(())
            }
            Observation::Chosen { slot, ballot, value } => {
                for (later, votes) in facts.votes.get(slot).into_iter().flatten() {
                    ensure(later <= ballot || votes.value == **value, || {
                        format!(
                            "slot {slot} is chosen at {ballot}, and {:?} voted otherwise at {later}",
                            votes.by
                        )
                    })?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
