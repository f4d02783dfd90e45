//! I21: the number in a sequential child's name is unique and ascending during its parent's life.
//!
//! Source: design 2.1; ZooKeeper's recipes for locks and queues rest on it.

use std::collections::BTreeMap;

use loggos_coordinator::paxos::ballot::Slot;
use loggos_coordinator::tree::{Command, Outcome, Part, Write};
use loggos_protocol::ids::Zxid;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// The last number by parent and its czxid; each slot is looked at once.
#[derive(Default)]
pub struct Rule {
    upto: Slot,
    last: BTreeMap<(String, Zxid), i64>,
}

/// The paths of the sequential nodes that a write made.
fn made(command: &Command, outcome: &Outcome) -> Vec<String> {
    let sequential = |write: &Write| matches!(write, Write::Create { kind, .. } if kind.is_sequential());
    let Command::Write { write, .. } = command else { return vec![] };
    match (write, outcome) {
        (Write::Multi(writes), Outcome::Parts(parts)) => writes
            .iter()
            .zip(parts)
            .filter_map(|(write, part)| match part {
                Part::Created { path, .. } if sequential(write) => Some(path.clone()),
                _ => None,
            })
            .collect(),
        (write, Outcome::Created { path, .. }) if sequential(write) => vec![path.clone()],
        _ => vec![],
    }
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I21 sequential names ascend"
    }

    fn check(&mut self, _: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        let Observation::Applied { slot, effects, replica, .. } = seen else { return Ok(()) };
        if *slot <= self.upto {
            return Ok(());
        }
        self.upto = *slot;
        for effect in *effects {
            let (Some(command), Ok(outcome)) = (&effect.command, &effect.applied.outcome) else { continue };
            for path in made(command, outcome) {
                let (parent, name) = path.rsplit_once('/').ok_or_else(|| format!("{path} is no path"))?;
                let digits = name.get(name.len().saturating_sub(10)..).unwrap_or_default();
                let number: i64 = digits.parse().map_err(|_| format!("{path} has no number"))?;
                // A parent that went in the same slot can't be told from its successor any more.
                let Some(stat) = replica.tree.stat(parent) else { continue };
                let last = self.last.entry((parent.to_owned(), stat.czxid)).or_insert(-1);
                ensure(number > *last, || format!("{path} comes after {last}"))?;
                *last = number;
            }
        }
        Ok(())
    }
}
