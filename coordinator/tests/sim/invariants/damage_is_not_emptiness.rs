//! I13: a slot whose vote was lost to damage is never reported as empty.
//!
//! Source: design 1.11; Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage" (FAST 2018): a
//! damaged record is never a negative vote.

use loggos_coordinator::paxos::event::Action;
use loggos_coordinator::paxos::message::Message;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// The disks know what they lost.
#[derive(Default)]
pub struct Rule;

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I13 damage is not emptiness"
    }

    fn check(&mut self, _: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        let Observation::Stepped { server, actions, after, disk, .. } = seen else { return Ok(()) };
        if disk.lost.is_empty() || disk.uncertain_above.is_none() {
            return Ok(());
        }
        for action in *actions {
            let Action::Send(envelope) = action else { continue };
            let Message::Promise(promise) = &envelope.message else { continue };
            let hidden = disk.lost.iter().find(|(slot, _)| {
                *slot >= promise.from_slot && *slot > after.chosen_upto && *slot < promise.certain_below
            });
            ensure(hidden.is_none(), || {
                format!(
                    "server {server} promises {} as if certain below {}, and has lost {hidden:?}",
                    promise.ballot, promise.certain_below
                )
            })?;
        }
        Ok(())
    }
}
