//! I9: nothing is said before it is remembered, and after a crash at any instant the memory covers every promise and
//! vote that ever left the server, or is marked uncertain.
//!
//! Source: "Paxos Made Simple" 2.5, "an acceptor records its intended response in stable storage before actually
//! sending the response"; design 1.8. A server that lost its memory never starts again under its identity, so that a
//! start with less than was said is an error here.

use std::collections::BTreeMap;

use loggos_coordinator::paxos::ballot::{Ballot, ServerId, Slot};
use loggos_coordinator::paxos::event::{Action, Record, Recovered};
use loggos_coordinator::paxos::message::Message;

use super::{Invariant, ensure};
use crate::disk::Disk;
use crate::facts::{Facts, Observation};

/// What a server has told others.
#[derive(Default)]
struct Told {
    promise: Ballot,
    votes: BTreeMap<Slot, Ballot>,
}

/// What every server has told others.
#[derive(Default)]
pub struct Rule {
    told: BTreeMap<ServerId, Told>,
}

impl Rule {
    fn says(
        &mut self,
        facts: &Facts,
        server: ServerId,
        message: &Message,
        disk: &Disk,
    ) -> Result<(), String> {
        let told = self.told.entry(server).or_default();
        match message {
            Message::Prepare { ballot, .. } => promised(server, *ballot, disk, told),
            Message::Promise(promise) => promised(server, promise.ballot, disk, told),
            Message::Accepted { ballot, slots } => {
                promised(server, *ballot, disk, told)?;
                for range in slots {
                    let mut slot = range.first;
                    while slot <= range.last {
                        if disk.covers(slot, *ballot) {
                            let known = told.votes.entry(slot).or_default();
                            *known = (*known).max(*ballot);
                        } else {
                            // Of a slot that is chosen already any vote may be told: it can be for nothing else.
                            ensure(facts.chosen.contains_key(&slot), || {
                                format!("server {server} tells of its vote {ballot} in slot {slot}, not kept")
                            })?;
                        }
                        slot = slot.next();
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn starts(&mut self, server: ServerId, recovered: &Recovered, released: Slot) -> Result<(), String> {
        let Some(told) = self.told.get_mut(&server) else { return Ok(()) };
        ensure(recovered.promised >= told.promise, || {
            format!(
                "server {server} told of its promise {} and starts with {}",
                told.promise, recovered.promised
            )
        })?;
        let covered = recovered.snapshot.map_or(Slot::ZERO, |mark| mark.slot).max(released);
        told.votes = told.votes.split_off(&covered.next());
        let mut kept: BTreeMap<Slot, Ballot> = BTreeMap::new();
        for record in &recovered.records {
            let (slot, ballot) = match record {
                Record::Accepted { slot, ballot, .. } => (*slot, *ballot),
                Record::Learned { slot, .. } => (*slot, Ballot::from_raw(u64::MAX)),
            };
            let known = kept.entry(slot).or_default();
            *known = (*known).max(ballot);
        }
        for (slot, ballot) in &told.votes {
            let remembered = kept.get(slot).is_some_and(|own| own >= ballot);
            let uncertain = recovered.uncertain_above.is_some_and(|above| *slot > above);
            ensure(remembered || uncertain, || {
                format!("server {server} told of its vote {ballot} in slot {slot} and does not remember it")
            })?;
        }
        Ok(())
    }
}

fn promised(server: ServerId, ballot: Ballot, disk: &Disk, told: &mut Told) -> Result<(), String> {
    told.promise = told.promise.max(ballot);
    ensure(disk.promise >= ballot, || {
        format!("server {server} tells of its promise {ballot} with only {} kept", disk.promise)
    })
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I9 memory covers words"
    }

    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Stepped { server, actions, disk, .. } => {
                actions.iter().try_for_each(|action| match action {
                    Action::Send(envelope) => self.says(facts, *server, &envelope.message, disk),
                    _ => Ok(()),
                })
            }
            Observation::Started { server, recovered, released, .. } => {
                self.starts(*server, recovered, *released)
            }
            _ => Ok(()),
        }
    }
}
