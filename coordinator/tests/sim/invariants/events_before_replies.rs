//! I22: a one-shot watch fires at most once, and its event stands on the connection before any reply that reflects
//! the change.
//!
//! Source: design 2.7 rule 4; ZooKeeper, "a client will see the watch event for a znode it is watching before seeing
//! the new data". The tables are the real `watches`; the connections are the world's.

use std::collections::BTreeMap;

use loggos_protocol::ids::Zxid;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};
use crate::replica::Fence;

/// Watches that a connection set: which path, as of which zxid.
#[derive(Default)]
pub struct Rule {
    open: BTreeMap<(Fence, String), Zxid>,
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I22 events come once, before replies"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Watching { fence, path, zxid } => {
                self.open.insert((*fence, path.to_string()), *zxid);
                Ok(())
            }
            Observation::WatchFired { fence, path, zxid } => {
                let set = self.open.remove(&(*fence, path.to_string()));
                ensure(set.is_some_and(|set| *zxid > set), || {
                    format!("{fence:?} hears of {path} at {zxid}, watched since {set:?}")
                })
            }
            Observation::Replied { fence, zxid, .. } => {
                let of_connection =
                    self.open.range((*fence, String::new())..).take_while(|((f, _), _)| f == fence);
                for ((_, path), set) in of_connection {
                    let changed = facts.changes.get(path).into_iter().flatten().find(|change| *change > set);
                    ensure(changed.is_none_or(|change| change > zxid), || {
                        format!("{fence:?} gets a reply of {zxid} before the event on {path} of {changed:?}")
                    })?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
