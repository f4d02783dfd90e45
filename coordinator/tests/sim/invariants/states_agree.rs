//! I17: states at equal slots are equal, and no slot leaves a ledger before a stored snapshot covers it.
//!
//! Source: Schneider, "Implementing Fault-Tolerant Services Using the State Machine Approach" (1990); design 1.7.

use std::collections::BTreeMap;

use loggos_coordinator::paxos::ballot::{ServerId, Slot};
use loggos_coordinator::paxos::event::Action;
use loggos_coordinator::paxos::membership::Role;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};
use crate::replica::Replica;

/// Slots between two comparisons.
const EVERY: u64 = 8;

/// Digests by slot, with who had it first.
#[derive(Default)]
pub struct Rule {
    digests: BTreeMap<Slot, (u64, ServerId)>,
}

impl Rule {
    fn compare(&mut self, server: ServerId, slot: Slot, replica: &Replica) -> Result<(), String> {
        let digest = replica.digest();
        let (known, first) = *self.digests.entry(slot).or_insert((digest, server));
        ensure(known == digest, || {
            format!("the states of servers {first} and {server} differ at slot {slot}")
        })
    }
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I17 states and snapshots agree"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Applied { server, slot, replica, .. } if slot.raw().is_multiple_of(EVERY) => {
                self.compare(*server, *slot, replica)
            }
            // Whoever took the snapshot may not have compared at this slot; whoever applies it later will.
            Observation::Restored { server, slot, replica } => self.compare(*server, *slot, replica),
            Observation::Stepped { server, actions, disk, .. } => {
                actions.iter().try_for_each(|action| match action {
                    Action::Release { upto } => {
                        let covered = disk.snapshot().map_or(Slot::ZERO, |(mark, _)| mark.slot);
                        // A witness holds no state: it lets go what every full voter holds.
                        let witness = facts.configs.at(*upto).role(*server) == Some(Role::Witness);
                        ensure(*upto <= covered || (witness && *upto <= facts.prefix), || {
                            format!("server {server} lets go up to {upto} with a snapshot of {covered}")
                        })
                    }
                    _ => Ok(()),
                })
            }
            _ => Ok(()),
        }
    }
}
