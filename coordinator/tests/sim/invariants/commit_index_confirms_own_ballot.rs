//! I10: a follower takes a slot for chosen because of a leader's commit index only if it accepted that slot at that
//! leader's ballot.
//!
//! Source: design 1.6; the classic error of Multi-Paxos, where a value of an older ballot is announced as chosen by
//! the number of its slot alone. A restarted server trusts its own hint instead: below it the last vote, or what was
//! learned since, is what was chosen.

use std::collections::{BTreeMap, BTreeSet};

use loggos_coordinator::paxos::ballot::{Ballot, ServerId, Slot};
use loggos_coordinator::paxos::event::{Action, Event, Record};
use loggos_coordinator::paxos::message::{Message, Report};

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};

/// What one life of a server has heard and done.
#[derive(Default)]
struct Life {
    votes: BTreeMap<Slot, BTreeSet<Ballot>>,
    /// Slots whose value it was told, or knew from its own ledger.
    told: BTreeSet<Slot>,
    /// How far each leader said the prefix goes.
    announced: BTreeMap<Ballot, Slot>,
    /// How far the prefix was known to go before the start.
    hint: Slot,
}

/// Every server's present life.
#[derive(Default)]
pub struct Rule {
    lives: BTreeMap<ServerId, Life>,
}

impl Life {
    fn keep(&mut self, record: &Record) {
        match record {
            Record::Accepted { slot, ballot, .. } => {
                self.votes.entry(*slot).or_default().insert(*ballot);
            }
            Record::Learned { slot, .. } => {
                self.told.insert(*slot);
            }
        }
    }

    fn hear(&mut self, message: &Message) {
        match message {
            Message::Heartbeat(beat) => self.announce(beat.ballot, beat.chosen_upto),
            Message::Accept { ballot, chosen_upto, .. } => self.announce(*ballot, *chosen_upto),
            Message::Chosen { first, values, .. } => {
                self.told.extend((0..values.len() as u64).map(|n| first.plus(n)));
            }
            Message::Promise(promise) => {
                let known =
                    promise.items.iter().filter(|(_, report)| matches!(report, Report::Chosen { .. }));
                self.told.extend(known.map(|(slot, _)| *slot));
            }
            _ => {}
        }
    }

    fn announce(&mut self, ballot: Ballot, upto: Slot) {
        let known = self.announced.entry(ballot).or_default();
        *known = (*known).max(upto);
    }

    /// Whether it may take `slot` for chosen. Its own ballots' votes it counts itself.
    fn may_apply(&self, server: ServerId, slot: Slot) -> bool {
        let votes = self.votes.get(&slot);
        let confirmed = votes.into_iter().flatten().any(|ballot| {
            ballot.owner() == server || self.announced.get(ballot).is_some_and(|upto| *upto >= slot)
        });
        confirmed || slot <= self.hint || self.told.contains(&slot)
    }
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I10 the commit index confirms its own ballot only"
    }

    fn check(&mut self, _: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Started { server, recovered, .. } => {
                let mut life = Life::default();
                recovered.records.iter().for_each(|record| life.keep(record));
                life.hint = recovered.chosen_upto;
                self.lives.insert(*server, life);
                Ok(())
            }
            Observation::Stepped { server, event, actions, .. } => {
                let life = self.lives.entry(*server).or_default();
                if let Event::Received(envelope) = event {
                    life.hear(&envelope.message);
                }
                let records = actions.iter().filter_map(|action| match action {
                    Action::Persist(write) => Some(&write.records),
                    _ => None,
                });
                records.flatten().for_each(|record| life.keep(record));
                for action in *actions {
                    let Action::Apply { slot, .. } = action else { continue };
                    ensure(life.may_apply(*server, *slot), || {
                        let votes = life.votes.get(slot);
                        format!("server {server} takes slot {slot} for chosen; its votes there are {votes:?}")
                    })?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
