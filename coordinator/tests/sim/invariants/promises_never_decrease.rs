//! I1: what a server has promised never decreases, crashes included.
//!
//! Source: "Paxos Made Simple" 2.2, "an acceptor needs to remember ... the number of the highest-numbered prepare
//! request to which it has responded ... even if it fails and then restarts".

use std::collections::BTreeMap;

use loggos_coordinator::paxos::ballot::{Ballot, ServerId};

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// The highest durable promise of each identity.
#[derive(Default)]
pub struct Rule {
    durable: BTreeMap<ServerId, Ballot>,
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I1 promises never decrease"
    }

    fn check(&mut self, _: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Stepped { server, before, after, .. } => {
                ensure(after.promised >= before.promised, || {
                    format!("server {server} promised {} and then {}", before.promised, after.promised)
                })
            }
            Observation::Durable { server, write } => {
                let Some(promise) = write.promise else { return Ok(()) };
                let known = self.durable.entry(*server).or_default();
                ensure(promise >= *known, || {
                    format!("server {server} wrote promise {promise} over {known}")
                })?;
                *known = promise;
                Ok(())
            }
            Observation::Started { server, recovered, .. } => {
                let known = self.durable.get(server).copied().unwrap_or_default();
                ensure(recovered.promised >= known, || {
                    format!("server {server} had promised {known} and starts with {}", recovered.promised)
                })
            }
            _ => Ok(()),
        }
    }
}
