//! I2: a vote is cast only at a ballot at or above the promise, and is on disk only behind that promise.
//!
//! Source: P1a, "an acceptor can accept a proposal numbered n iff it has not responded to a prepare request having a
//! number greater than n". The second half is design 1.3 rule 2: a promise that lives in a vote's record alone is
//! lost with the record.

use std::collections::BTreeMap;

use loggos_coordinator::paxos::ballot::{Ballot, ServerId};
use loggos_coordinator::paxos::event::{Action, Record};

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// The highest durable promise of each identity.
#[derive(Default)]
pub struct Rule {
    durable: BTreeMap<ServerId, Ballot>,
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I2 nothing is accepted below the promise"
    }

    fn check(&mut self, _: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Stepped { server, before, actions, .. } => {
                for action in *actions {
                    let Action::Persist(write) = action else { continue };
                    for record in &write.records {
                        let Record::Accepted { ballot, slot, .. } = record else { continue };
                        ensure(*ballot >= before.promised, || {
                            let promised = before.promised;
                            format!(
                                "server {server} accepts {ballot} in slot {slot} having promised {promised}"
                            )
                        })?;
                    }
                }
                Ok(())
            }
            Observation::Durable { server, write } => {
                let promise = self.durable.entry(*server).or_default();
                *promise = (*promise).max(write.promise.unwrap_or_default());
                let votes = write.records.iter().filter_map(|record| match record {
                    Record::Accepted { ballot, slot, .. } => Some((*ballot, *slot)),
                    Record::Learned { .. } => None,
                });
                for (ballot, slot) in votes {
                    ensure(ballot <= *promise, || {
                        format!(
                            "server {server} keeps a vote {ballot} in slot {slot} over its promise {promise}"
                        )
                    })?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
