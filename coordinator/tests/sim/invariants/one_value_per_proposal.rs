//! I3: a ballot carries one value per slot, cell-wide and for ever.
//!
//! Source: "Paxos Made Simple" 2.2, "different proposals have different numbers"; here a number is a ballot and a
//! slot, and the ballot's one owner must remember, crashes included, what it proposed.

use loggos_coordinator::paxos::ballot::{Ballot, Slot};
use loggos_coordinator::paxos::event::{Action, Record};
use loggos_coordinator::paxos::message::Message;
use loggos_coordinator::paxos::value::Value;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// The facts hold the first value of each proposal.
#[derive(Default)]
pub struct Rule;

fn same(facts: &Facts, slot: Slot, ballot: Ballot, value: &Value) -> Result<(), String> {
    ensure(facts.proposals.get(&(slot, ballot)).is_none_or(|first| first == value), || {
        let first = facts.proposals.get(&(slot, ballot));
        format!("ballot {ballot} carries two values in slot {slot}: {first:?} and {value:?}")
    })
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I3 one value per ballot and slot"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        let Observation::Stepped { actions, .. } = seen else { return Ok(()) };
        for action in *actions {
            match action {
                Action::Send(envelope) => {
                    if let Message::Accept { ballot, slot, value, .. } = &envelope.message {
                        same(facts, *slot, *ballot, value)?;
                    }
                }
                Action::Persist(write) => {
                    for record in &write.records {
                        if let Record::Accepted { ballot, slot, value } = record {
                            same(facts, *slot, *ballot, value)?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
