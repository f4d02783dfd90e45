//! I20: the owner of an ephemeral node is a live session; and no session that was heard of in time is ended by the
//! clock.
//!
//! Source: design 2.6; Burrows, "The Chubby Lock Service" (OSDI 2006) 2.8: a session's lease is honoured until it
//! ends, as long as the client renews it before. The second half is demanded where clocks keep within their bound.

use std::collections::BTreeSet;

use loggos_coordinator::paxos::ballot::Slot;
use loggos_coordinator::tree::{Command, Tree};
use loggos_protocol::ids::SessionId;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};
use crate::replica::Effect;

/// Slots between two looks at the whole tree.
const EVERY: u64 = 8;

/// Each slot is looked at once.
#[derive(Default)]
pub struct Rule {
    upto: Slot,
}

fn owned(tree: &Tree, path: &str, live: &BTreeSet<SessionId>) -> Result<(), String> {
    let stat = tree.stat(path).ok_or_else(|| format!("{path} is a child and no node"))?;
    let owner = stat.ephemeral_owner;
    ensure(owner == SessionId::new(0) || live.contains(&owner), || {
        format!("{path} belongs to session {owner}, which is no more")
    })?;
    let (children, _) = tree.children(path, &[]).map_err(|code| format!("{path}: {code:?}"))?;
    children.iter().try_for_each(|name| owned(tree, &format!("{}/{name}", path.trim_end_matches('/')), live))
}

fn in_time(facts: &Facts, effect: &Effect) -> Result<(), String> {
    let Some(Command::Expire { session, .. }) = &effect.command else { return Ok(()) };
    let took_effect = !effect.applied.skipped && effect.applied.outcome.is_ok();
    let safe_until = facts.safe_until.get(session).copied().unwrap_or(0);
    ensure(!took_effect || !facts.clocks_bounded || facts.now >= safe_until, || {
        let left = safe_until - facts.now;
        format!("session {session} is ended by the clock {left} microseconds before its time")
    })
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I20 ephemeral nodes have live owners, sessions their time"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        let Observation::Applied { slot, effects, replica, .. } = seen else { return Ok(()) };
        if *slot <= self.upto {
            return Ok(());
        }
        self.upto = *slot;
        effects.iter().try_for_each(|effect| in_time(facts, effect))?;
        if !slot.raw().is_multiple_of(EVERY) {
            return Ok(());
        }
        let live: BTreeSet<SessionId> = replica.tree.sessions().into_iter().map(|(id, _)| id).collect();
        owned(&replica.tree, "/", &live)
    }
}
