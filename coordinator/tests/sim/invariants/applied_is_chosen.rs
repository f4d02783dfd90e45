//! I8: what any two servers have applied are prefixes of one another, without gaps, and applied implies chosen.
//!
//! Source: "Paxos Made Simple" 1, "a process never learns that a value has been chosen unless it actually has been";
//! 3, "the sequence of commands".

use std::collections::BTreeMap;

use loggos_coordinator::paxos::ballot::{ServerId, Slot};

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// How far each server's present life has applied.
#[derive(Default)]
pub struct Rule {
    applied: BTreeMap<ServerId, Slot>,
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I8 applied is chosen, in order"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Started { server, recovered, .. } => {
                let from = recovered.snapshot.map_or(Slot::ZERO, |mark| mark.slot);
                self.applied.insert(*server, from);
                Ok(())
            }
            Observation::Restored { server, slot, .. } => {
                let known = self.applied.insert(*server, *slot).unwrap_or_default();
                ensure(*slot > known && *slot <= facts.prefix, || {
                    format!("server {server} at {known} takes up a snapshot of slot {slot}")
                })
            }
            Observation::Applied { server, slot, value, .. } => {
                let known = self.applied.insert(*server, *slot).unwrap_or_default();
                ensure(*slot == known.next(), || format!("server {server} applies {slot} behind {known}"))?;
                ensure(facts.chosen.get(slot).is_some_and(|decided| decided.value == **value), || {
                    let decided = facts.chosen.get(slot);
                    format!("server {server} applies {value:?} in slot {slot}, where {decided:?} is chosen")
                })
            }
            _ => Ok(()),
        }
    }
}
