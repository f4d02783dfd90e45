//! I23: the fencing tokens of successive holders of a lock ascend.
//!
//! Source: Burrows, "The Chubby Lock Service" 2.4 (sequencers); here the lock is ZooKeeper's recipe: the child with
//! the lowest number holds `/lock`, and its czxid is the token.

use loggos_coordinator::paxos::ballot::Slot;
use loggos_protocol::ids::Zxid;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// Where the world's clients stand in line.
pub const LOCK: &str = "/lock";

/// The last holder; each slot is looked at once.
#[derive(Default)]
pub struct Rule {
    upto: Slot,
    holder: Option<(String, Zxid)>,
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I23 fencing tokens ascend"
    }

    fn check(&mut self, _: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        let Observation::Applied { slot, replica, .. } = seen else { return Ok(()) };
        if *slot <= self.upto {
            return Ok(());
        }
        self.upto = *slot;
        let Ok((children, _)) = replica.tree.children(LOCK, &[]) else { return Ok(()) };
        let number = |name: &str| name.get(name.len().saturating_sub(10)..).unwrap_or_default().to_owned();
        let Some(first) = children.into_iter().min_by_key(|name| number(name)) else { return Ok(()) };
        let path = format!("{LOCK}/{first}");
        let Some(stat) = replica.tree.stat(&path) else { return Ok(()) };
        match &self.holder {
            Some((known, _)) if *known == path => Ok(()),
            holder => {
                let last = holder.as_ref().map_or(Zxid::new(0), |(_, token)| *token);
                ensure(stat.czxid > last, || {
                    format!("{path} holds the lock with {} after {last}", stat.czxid)
                })?;
                self.holder = Some((path, stat.czxid));
                Ok(())
            }
        }
    }
}
