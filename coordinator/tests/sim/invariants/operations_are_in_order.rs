//! I19: per session, the applied operations are exactly 1, 2, 3, … of the current attachment: no gap, no repeat,
//! none that succeeds after the close.
//!
//! Source: design 2.6, C6. Exactly-once as far as servers can give it.

use std::collections::{BTreeMap, BTreeSet};

use loggos_coordinator::paxos::ballot::Slot;
use loggos_coordinator::tree::Command;
use loggos_protocol::ids::SessionId;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};
use crate::replica::{Effect, Fence};

/// What each attachment has done; each slot is looked at once.
#[derive(Default)]
pub struct Rule {
    upto: Slot,
    attachments: BTreeMap<SessionId, (Fence, u64)>,
    used: BTreeSet<(SessionId, Fence)>,
    ended: BTreeSet<SessionId>,
}

impl Rule {
    fn applied(&mut self, slot: Slot, effect: &Effect) -> Result<(), String> {
        let applied = &effect.applied;
        match &effect.command {
            Some(Command::CreateSession { fence, .. } | Command::Attach { fence, .. }) => {
                let Some(session) = applied.session().filter(|_| !applied.skipped) else { return Ok(()) };
                let same = self.attachments.get(&session).is_some_and(|(known, _)| known == fence);
                if !same {
                    // A session that moves back to a former attachment would take its entries a second time.
                    ensure(self.used.insert((session, *fence)), || {
                        format!("{session} comes back to {fence:?} in slot {slot}")
                    })?;
                    self.attachments.insert(session, (*fence, 1));
                }
            }
            Some(Command::Write { session, stamp, .. } | Command::Close { session, stamp })
                if !applied.skipped =>
            {
                ensure(!self.ended.contains(session), || {
                    format!("{session} writes in slot {slot} after its end")
                })?;
                let due = self.attachments.entry(*session).or_default();
                ensure(*due == (stamp.fence, stamp.number), || {
                    format!("{session} does {stamp:?} in slot {slot}; due was {due:?}")
                })?;
                due.1 += 1;
            }
            _ => {}
        }
        self.ended.extend(&applied.ended);
        Ok(())
    }
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I19 operations are in order"
    }

    fn check(&mut self, _: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        let Observation::Applied { slot, effects, .. } = seen else { return Ok(()) };
        if *slot <= self.upto {
            return Ok(());
        }
        self.upto = *slot;
        effects.iter().try_for_each(|effect| self.applied(*slot, effect))
    }
}
