//! I4: what is proposed follows from the promises of a majority.
//!
//! Source: P2c, "if a proposal with value v and number n is issued, then there is a set S consisting of a majority of
//! acceptors such that either (a) no acceptor in S has accepted any proposal numbered less than n, or (b) v is the
//! value of the highest-numbered proposal among all proposals numbered less than n accepted by the acceptors in S".
//! Votes count as they were cast, whether or not damage has made them unreadable since; a lost one is forgiven once
//! so many have promised more that it can't help to choose anything any more.

use std::collections::{BTreeMap, BTreeSet};

use loggos_coordinator::paxos::ballot::{Ballot, ServerId, Slot};
use loggos_coordinator::paxos::event::{Action, Record};
use loggos_coordinator::paxos::message::Message;
use loggos_coordinator::paxos::quorum::majority;
use loggos_coordinator::paxos::value::Value;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// Proposals looked at before.
#[derive(Default)]
pub struct Rule {
    issued: BTreeSet<(Slot, Ballot)>,
}

impl Rule {
    fn issue(&mut self, facts: &Facts, slot: Slot, ballot: Ballot, value: &Value) -> Result<(), String> {
        if !self.issued.insert((slot, ballot)) || facts.chosen.get(&slot).is_some_and(|d| d.value == *value) {
            return Ok(());
        }
        let Some(config) = facts.config(slot) else {
            return Err(format!("ballot {ballot} proposes in slot {slot}, whose membership nobody can know"));
        };
        let voters = config.voters();
        let promised: BTreeSet<ServerId> = facts
            .promises
            .get(&ballot)
            .into_iter()
            .flatten()
            .copied()
            .filter(|s| voters.contains(s))
            .collect();
        let highest: BTreeMap<ServerId, Ballot> = promised
            .iter()
            .filter_map(|server| Some((*server, facts.highest_vote(*server, slot, ballot, &voters)?)))
            .collect();
        let needed = majority(voters.len());
        let free = promised.len() - highest.len() >= needed;
        let bound = highest.values().any(|top| {
            let carries = facts.proposals.get(&(slot, *top)) == Some(value);
            let set =
                promised.iter().filter(|server| highest.get(server).is_none_or(|own| own <= top)).count();
            carries && set >= needed
        });
        ensure(free || bound, || {
            format!(
                "ballot {ballot} proposes {value:?} in slot {slot} of voters {voters:?}; promised by {promised:?}, \
                 whose highest votes are {highest:?}"
            )
        })
    }
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I4 proposals follow from promises"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        let Observation::Stepped { server, actions, .. } = seen else { return Ok(()) };
        for action in *actions {
            match action {
                Action::Send(envelope) => {
                    if let Message::Accept { ballot, slot, value, .. } = &envelope.message {
                        self.issue(facts, *slot, *ballot, value)?;
                    }
                }
                Action::Persist(write) => {
                    for record in &write.records {
                        if let Record::Accepted { ballot, slot, value } = record
                            && ballot.owner() == *server
                        {
                            self.issue(facts, *slot, *ballot, value)?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
