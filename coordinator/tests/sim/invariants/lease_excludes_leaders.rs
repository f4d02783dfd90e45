//! I14: while a leader believes in its lease, no later leader's first word is chosen, as long as clock rates differ
//! by no more than the bound.
//!
//! Source: design 1.9; Gray and Cheriton, "Leases" (1989). Where the clocks of a world break the bound nothing is
//! demanded here, and everything else still is.

use loggos_coordinator::paxos::ballot::{Ballot, ServerId};
use loggos_coordinator::paxos::value::Value;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// The highest leader's start chosen.
#[derive(Default)]
pub struct Rule {
    started: Ballot,
}

impl Rule {
    fn compare(&self, facts: &Facts) -> Result<(), String> {
        let broken =
            facts.leases.iter().find(|(_, lease)| lease.ballot < self.started && lease.ends > facts.now);
        let tell = |(server, lease): (&ServerId, &crate::facts::Lease)| {
            format!(
                "server {server} trusts its lease at {} though {} has started",
                lease.ballot, self.started
            )
        };
        ensure(broken.is_none(), || broken.map(tell).unwrap_or_default())
    }
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I14 a lease excludes later leaders"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Chosen { value: Value::LeaderStart { ballot, .. }, .. } => {
                self.started = self.started.max(*ballot);
            }
            Observation::Stepped { .. } => {}
            _ => return Ok(()),
        }
        if facts.clocks_bounded { self.compare(facts) } else { Ok(()) }
    }
}
