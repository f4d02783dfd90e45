//! Facts, rules and the trace in one hand: everything that is seen passes here.

use loggos_coordinator::paxos::ballot::{ServerId, Slot};
use loggos_coordinator::paxos::event::{Action, Event, Record, Write};
use loggos_coordinator::paxos::membership::{Config, Role};
use loggos_coordinator::paxos::message::Message;
use loggos_coordinator::paxos::value::Value;

use crate::coverage::{Coverage, Seen};
use crate::facts::{Facts, Observation};
use crate::invariants::{Broken, Invariants};

/// The judge of one world.
pub struct Judge {
    /// What is known.
    pub facts: Facts,
    /// What happened how often.
    pub coverage: Coverage,
    invariants: Invariants,
    trace: bool,
}

impl Judge {
    /// Nothing seen yet. With `trace`, everything is printed.
    pub fn new(facts: Facts, trace: bool) -> Self {
        Self { facts, coverage: Coverage::default(), invariants: Invariants::new(), trace }
    }

    /// Something was seen.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn see(&mut self, seen: &Observation<'_>) -> Result<(), Broken> {
        if self.trace {
            self.print(seen);
        }
        if let Observation::Stepped { server, event, actions, before, after, .. } = seen {
            self.note_proposals(*server, actions);
            self.count_step(event, actions);
            if before.uncertain && !after.uncertain {
                self.coverage.count(Seen::CertainAgain);
            }
        }
        self.invariants.check(&self.facts, seen)
    }

    /// Writes a line of the trace.
    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>12.6} {}", self.facts.now as f64 / 1e6, what());
        }
    }

    /// A write became durable at `server`.
    ///
    /// # Errors
    /// The rule that it, or what is chosen by it, breaks.
    pub fn durable(&mut self, server: ServerId, write: &Write) -> Result<(), Broken> {
        let news = self.facts.durable(server, write);
        self.see(&Observation::Durable { server, write })?;
        let votes = write.records.iter().any(|record| matches!(record, Record::Accepted { .. }));
        let role = self.facts.configs.latest().1.role(server);
        if votes && role == Some(Role::Witness) {
            self.coverage.count(Seen::WitnessVoted);
        }
        for (slot, ballot, value) in news {
            self.count_choice(slot, &value);
            self.see(&Observation::Chosen { slot, ballot, value: &value })?;
        }
        Ok(())
    }

    fn note_proposals(&mut self, server: ServerId, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Send(envelope) => {
                    if let Message::Accept { ballot, slot, value, .. } = &envelope.message {
                        self.facts.propose(*slot, *ballot, value);
                    }
                }
                Action::Persist(write) => {
                    for record in &write.records {
                        if let Record::Accepted { ballot, slot, value } = record
                            && ballot.owner() == server
                        {
                            self.facts.propose(*slot, *ballot, value);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn count_step(&mut self, event: &Event, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Send(envelope) => match &envelope.message {
                    Message::Canvass { .. } => self.coverage.count(Seen::Canvass),
                    Message::CanvassNo { .. } => self.coverage.count(Seen::CanvassRefused),
                    Message::Reject { .. } => self.coverage.count(Seen::Rejected),
                    Message::TransferNow { .. } => self.coverage.count(Seen::Transfer),
                    Message::Chosen { values, .. } if !values.is_empty() => {
                        self.coverage.count(Seen::CaughtUpByLog)
                    }
                    _ => {}
                },
                Action::ReadReady(_) if matches!(event, Event::Read(_)) => {
                    self.coverage.count(Seen::LeaseRead)
                }
                Action::ReadReady(_) => self.coverage.count(Seen::ReadIndexRead),
                Action::ReadRefused(_) => self.coverage.count(Seen::ReadRefused),
                _ => {}
            }
        }
    }

    fn count_choice(&mut self, slot: Slot, value: &Value) {
        match value {
            Value::Noop => self.coverage.count(Seen::NoopFilled),
            Value::LeaderStart { .. } => self.coverage.count(Seen::Election),
            Value::Config { config, .. } => {
                self.coverage.count(Seen::ConfigChosen);
                let entries = self.facts.configs.entries();
                let before =
                    entries.iter().rev().find(|(at, _)| *at < slot).map(|(_, config)| config.clone());
                if let Some(before) = before {
                    self.count_change(&before, config);
                }
            }
            Value::Batch(_) => {}
        }
    }

    fn count_change(&mut self, before: &Config, after: &Config) {
        let (old, new) = (before.voters(), after.voters());
        let promoted = |id: &&ServerId| before.role(**id) == Some(Role::Learner);
        if new.iter().any(|id| promoted(&id)) {
            self.coverage.count(Seen::Promoted);
        }
        match (old.len(), new.len()) {
            (1, 3) => self.coverage.count(Seen::GrewTo3),
            (3, 5) => self.coverage.count(Seen::GrewTo5),
            (5, 3) => self.coverage.count(Seen::ShrankTo3),
            (a, b) if a == b && old != new => self.coverage.count(Seen::Replaced),
            _ => {}
        }
    }

    fn print(&self, seen: &Observation<'_>) {
        let line = match seen {
            Observation::Stepped { server, event, actions, after, .. } => {
                let quiet = matches!(event, Event::Tick) && actions.is_empty();
                if quiet {
                    return;
                }
                let what: Vec<String> = actions.iter().map(show_action).collect();
                let (promised, upto) = (after.promised, after.chosen_upto);
                format!("{server} [{promised} {upto}] {} => {}", show_event(event), what.join("; "))
            }
            Observation::Started { server, recovered, .. } => format!(
                "{server} starts: promised {}, {} records, hint {}, snapshot {:?}, uncertain {:?}",
                recovered.promised,
                recovered.records.len(),
                recovered.chosen_upto,
                recovered.snapshot,
                recovered.uncertain_above
            ),
            Observation::Ended { server } => format!("{server} ends"),
            Observation::Durable { server, write } => format!("{server} has durable {}", show_write(write)),
            Observation::Chosen { slot, ballot, value } => {
                format!("CHOSEN {slot} at {ballot}: {}", show_value(value))
            }
            Observation::Restored { server, slot, .. } => format!("{server} restored to {slot}"),
            Observation::ReadAsked { server, read } => format!("{server} asked for fresh read {read}"),
            Observation::ReadServed { server, read, .. } => format!("{server} serves fresh read {read}"),
            _ => return,
        };
        self.say(|| line);
    }
}

fn show_value(value: &Value) -> String {
    match value {
        Value::Noop => "noop".into(),
        Value::LeaderStart { ballot, .. } => format!("start of {ballot}"),
        Value::Config { config, .. } => {
            let members: Vec<String> =
                config.members.iter().map(|m| format!("{}:{:?}", m.id, m.role)).collect();
            format!("config {}", members.join(" "))
        }
        Value::Batch(batch) => format!("batch of {} #{:08x}", batch.entries.len(), fingerprint(value)),
    }
}

fn fingerprint(value: &Value) -> u32 {
    match value {
        Value::Batch(batch) => {
            let mut hasher = crc32fast::Hasher::new();
            batch.entries.iter().for_each(|entry| hasher.update(entry));
            hasher.finalize()
        }
        _ => 0,
    }
}

fn show_write(write: &Write) -> String {
    let records: Vec<String> = write
        .records
        .iter()
        .map(|record| match record {
            Record::Accepted { ballot, slot, value } => format!("vote {ballot}@{slot} {}", show_value(value)),
            Record::Learned { slot, .. } => format!("learned {slot}"),
        })
        .collect();
    let promise = write.promise.map_or(String::new(), |ballot| format!("promise {ballot} "));
    format!("w{} {promise}{}", write.ticket.0, records.join(", "))
}

fn show_message(message: &Message) -> String {
    match message {
        Message::Accept { ballot, slot, value, chosen_upto } => {
            format!("Accept {ballot}@{slot} {} upto {chosen_upto}", show_value(value))
        }
        Message::Accepted { ballot, slots } => format!("Accepted {ballot} {slots:?}"),
        Message::Promise(promise) => {
            let slots: Vec<String> = promise.items.iter().map(|(slot, _)| slot.to_string()).collect();
            format!(
                "Promise {} from {} upto {} [{}] certain below {} part {}/{}",
                promise.ballot,
                promise.from_slot,
                promise.chosen_upto,
                slots.join(","),
                promise.certain_below,
                promise.part,
                promise.parts
            )
        }
        Message::Chosen { first, values, chosen_upto } => {
            format!("Chosen {} from {first} upto {chosen_upto}", values.len())
        }
        Message::SnapChunk { slot, offset, total, bytes } => {
            format!("SnapChunk {slot} {offset}+{}/{total}", bytes.len())
        }
        Message::Forward { entries } => format!("Forward {}", entries.len()),
        other => format!("{other:?}"),
    }
}

fn show_event(event: &Event) -> String {
    match event {
        Event::Received(envelope) => format!("from {}: {}", envelope.from, show_message(&envelope.message)),
        Event::Propose(entries) => format!("Propose {}", entries.len()),
        other => format!("{other:?}"),
    }
}

fn show_action(action: &Action) -> String {
    match action {
        Action::Persist(write) => format!("Persist {}", show_write(write)),
        Action::Send(envelope) => format!("to {}: {}", envelope.to, show_message(&envelope.message)),
        Action::Apply { slot, value } => format!("Apply {slot} {}", show_value(value)),
        Action::StoreSnapshotChunk { slot, offset, bytes, .. } => {
            format!("StoreSnapshotChunk {slot} {offset}+{}", bytes.len())
        }
        Action::TakeSnapshot { slot, .. } => format!("TakeSnapshot {slot}"),
        other => format!("{other:?}"),
    }
}
