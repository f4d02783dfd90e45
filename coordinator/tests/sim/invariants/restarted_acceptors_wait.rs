//! I15: a restarted server promises nothing to another candidate than the one it had promised before a whole lease
//! has passed: it may have granted one in its former life.
//!
//! Source: design 1.3 rule 5. A candidate that the leader itself called for, giving its lease up, need not wait.

use std::collections::{BTreeMap, BTreeSet};

use loggos_coordinator::paxos::ballot::{Ballot, Incarnation, ServerId};
use loggos_coordinator::paxos::event::{Action, Event};
use loggos_coordinator::paxos::message::{Envelope, Message};
use loggos_coordinator::paxos::moment::Moment;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// One life.
struct Life {
    /// The promise at the start; none once whoever was granted a lease in the former life can't have it any more.
    promised: Ballot,
    since: Moment,
    /// Candidates called for by the leader that was promised, and leaders: leases bar other candidates alone.
    excused: BTreeSet<Ballot>,
    /// The life in which the leader that was promised was heard.
    heard: Option<Incarnation>,
}

impl Life {
    fn hear(&mut self, envelope: &Envelope) {
        let over = match &envelope.message {
            Message::Prepare { ballot, released, .. } => {
                if *released == self.promised {
                    self.excused.insert(*ballot);
                }
                false
            }
            // Whoever leads at a higher ballot has promises of a majority, which waited.
            Message::Accept { ballot, .. } => {
                self.excused.insert(*ballot);
                *ballot > self.promised
            }
            Message::Heartbeat(beat) => {
                self.excused.insert(beat.ballot);
                beat.ballot > self.promised || (beat.ballot == self.promised && beat.released)
            }
            _ => false,
        };
        // A lease dies with the process that held it.
        let reborn = envelope.from == self.promised.owner()
            && self
                .heard
                .replace(envelope.from_incarnation)
                .is_some_and(|life| life < envelope.from_incarnation);
        if over || reborn {
            self.promised = Ballot::NONE;
        }
    }
}

/// Every server's present life.
#[derive(Default)]
pub struct Rule {
    lives: BTreeMap<ServerId, Life>,
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I15 a restarted server waits"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Started { server, recovered, at, .. } => {
                let promised = recovered.promised;
                let life = Life { promised, since: *at, excused: BTreeSet::new(), heard: None };
                self.lives.insert(*server, life);
                Ok(())
            }
            Observation::Stepped { server, event, actions, at, .. } => {
                let Some(life) = self.lives.get_mut(server) else { return Ok(()) };
                if let Event::Received(envelope) = event {
                    life.hear(envelope);
                }
                for action in *actions {
                    let Action::Send(envelope) = action else { continue };
                    let Message::Promise(promise) = &envelope.message else { continue };
                    let foreign = !life.promised.is_none() && promise.ballot.owner() != life.promised.owner();
                    let excused =
                        life.excused.contains(&promise.ballot) || at.since(life.since) >= facts.lease;
                    ensure(!foreign || excused, || {
                        let life_so_far = at.since(life.since);
                        format!(
                            "server {server}, {life_so_far:?} old, promises {} having promised {}",
                            promise.ballot, life.promised
                        )
                    })?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
