//! I16: a read that must be fresh sees every write acknowledged, anywhere, before it was asked for.
//!
//! Source: design 1.9 (lease, ReadIndex); linearizability, Herlihy and Wing (1990). Where leases are used under
//! clocks beyond the bound, reads may be stale, and nothing is demanded.

use std::collections::BTreeMap;

use loggos_coordinator::paxos::ballot::{ServerId, Slot};

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// What each open read must see.
#[derive(Default)]
pub struct Rule {
    acknowledged: Slot,
    open: BTreeMap<(ServerId, u64), Slot>,
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I16 fresh reads see what was acknowledged"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Acknowledged { slot } => {
                self.acknowledged = self.acknowledged.max(*slot);
                Ok(())
            }
            Observation::ReadAsked { server, read } => {
                self.open.insert((*server, *read), self.acknowledged);
                Ok(())
            }
            Observation::ReadServed { server, read, applied } => {
                let Some(needed) = self.open.remove(&(*server, *read)) else {
                    return Err(format!("server {server} serves read {read}, which is not open"));
                };
                ensure(*applied >= needed || !facts.reads_trusted(), || {
                    format!(
                        "server {server} serves read {read} at {applied}, asked when {needed} was acknowledged"
                    )
                })
            }
            _ => Ok(()),
        }
    }
}
