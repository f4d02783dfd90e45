//! I12: an identity is one memory: it is given out once, keeps its meaning, and never comes back.
//!
//! Source: design 1.1 and C3; the trace of 1.11 shows what a second memory under one identity does. That votes count
//! only for members of the slot's membership is how the facts count them, so that I8 speaks up otherwise.

use std::collections::{BTreeMap, BTreeSet};

use loggos_coordinator::paxos::ballot::ServerId;
use loggos_coordinator::paxos::membership::{Config, Member};

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// Who was ever a member, and who votes from an empty memory.
#[derive(Default)]
pub struct Rule {
    members: BTreeMap<ServerId, Member>,
    left: BTreeSet<ServerId>,
    spoke: BTreeSet<ServerId>,
    /// Memberships looked at.
    checked: usize,
}

impl Rule {
    fn next(&mut self, before: &Config, config: &Config) -> Result<(), String> {
        ensure(config.next_id >= before.next_id, || format!("identities are given out anew: {config:?}"))?;
        for member in &before.members {
            self.members.entry(member.id).or_insert_with(|| member.clone());
        }
        for member in &config.members {
            let old = before.member(member.id);
            ensure(old.is_some() || (member.id >= before.next_id && member.id < config.next_id), || {
                format!("member {} comes back: {before:?}, then {config:?}", member.id)
            })?;
            ensure(!self.left.contains(&member.id), || format!("member {} had left", member.id))?;
            if let Some(known) = self.members.get(&member.id) {
                ensure(known.token == member.token && known.peer == member.peer, || {
                    format!("member {} was {known:?} and is {member:?}", member.id)
                })?;
            }
        }
        self.left.extend(before.members.iter().map(|m| m.id).filter(|id| config.member(*id).is_none()));
        Ok(())
    }
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I12 identities are never used twice"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Chosen { .. } => {
                while let Some([(_, before), (_, config)]) =
                    facts.configs.entries().get(self.checked..self.checked + 2)
                {
                    self.next(before, config)?;
                    self.checked += 1;
                }
                Ok(())
            }
            Observation::Durable { server, write } => {
                if write.promise.is_some() || !write.records.is_empty() {
                    self.spoke.insert(*server);
                }
                Ok(())
            }
            Observation::Started { server, recovered, .. } => {
                let empty = recovered.promised.is_none()
                    && recovered.records.is_empty()
                    && recovered.uncertain_above.is_none();
                ensure(!empty || recovered.snapshot.is_some() || !self.spoke.contains(server), || {
                    format!("server {server} starts with an empty memory under an identity that had one")
                })
            }
            _ => Ok(()),
        }
    }
}
