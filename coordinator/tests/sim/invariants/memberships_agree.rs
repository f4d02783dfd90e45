//! I11: all servers agree on the membership of a slot; memberships are at least alpha slots apart; nothing is
//! proposed further than alpha slots beyond the proposer's chosen prefix.
//!
//! Source: "Paxos Made Simple" 3, "letting the set of servers that execute instance i + alpha of the consensus
//! algorithm be specified by the state after execution of the ith state machine command"; design 1.12.

use loggos_coordinator::paxos::ballot::Slot;
use loggos_coordinator::paxos::event::Action;
use loggos_coordinator::paxos::membership::Role;
use loggos_coordinator::paxos::message::Message;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// The facts hold the memberships chosen.
#[derive(Default)]
pub struct Rule;

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I11 memberships agree"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Stepped { server, before, actions, after, .. } => {
                for action in *actions {
                    let Action::Send(envelope) = action else { continue };
                    let Message::Accept { slot, .. } = &envelope.message else { continue };
                    ensure(slot.since(after.chosen_upto) <= facts.alpha, || {
                        format!("server {server} at {} proposes in slot {slot}", after.chosen_upto)
                    })?;
                }
                let next = after.chosen_upto.next();
                let oldest_known = facts.configs.entries()[0].0;
                // A witness holds no state and hears of memberships apart from it; it proposes nothing.
                let witness = facts.configs.latest().1.role(*server) == Some(Role::Witness);
                if witness
                    || before.chosen_upto == after.chosen_upto
                    || after.chosen_upto > facts.prefix
                    || next <= oldest_known
                {
                    return Ok(());
                }
                ensure(after.config == **facts.configs.at(next), || {
                    let own = &after.config;
                    format!(
                        "server {server} believes in {own:?} for slot {next}, {:?} governs",
                        facts.configs.at(next)
                    )
                })
            }
            Observation::Chosen { .. } => {
                let near = facts
                    .configs
                    .entries()
                    .windows(2)
                    .find(|pair| pair[0].0 != Slot::ZERO && pair[1].0.since(pair[0].0) < facts.alpha);
                ensure(near.is_none(), || format!("memberships with effect stand too near: {near:?}"))
            }
            _ => Ok(()),
        }
    }
}
