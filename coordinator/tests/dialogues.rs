//! Dialogues: what the servers of a cell say to one another in well-known situations, as golden text.
//!
//! A file of `dialogues/` holds commands (lines that begin with `>`) and, below each, the messages that were delivered
//! while it ran. `LOGGOS_DIALOGUES=write` writes the files anew after a wanted change; read the difference before it is
//! committed.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "support/hand.rs"]
mod hand;

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use hand::{Cell, id};
use loggos_coordinator::paxos::ballot::{ServerId, SlotRange};
use loggos_coordinator::paxos::event::{Event, ReadId};
use loggos_coordinator::paxos::message::{Message, Report};
use loggos_coordinator::paxos::value::Value;

#[test]
fn election() {
    play("election");
}

#[test]
fn gap_filling() {
    play("gap_filling");
}

#[test]
fn duel() {
    play("duel");
}

#[test]
fn commit_index_at_an_old_ballot() {
    play("commit_index_at_an_old_ballot");
}

#[test]
fn transfer() {
    play("transfer");
}

#[test]
fn catch_up() {
    play("catch_up");
}

fn play(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/dialogues/{name}.txt"));
    let text = fs::read_to_string(&path).unwrap();
    let mut stage = Stage { cell: Cell::of(1), reads: 0, shown: Vec::new() };
    let mut told = String::new();
    for line in text.lines() {
        if line.starts_with('#') {
            writeln!(told, "{line}").unwrap();
        } else if let Some(command) = line.strip_prefix("> ") {
            writeln!(told, "\n> {command}").unwrap();
            stage.perform(command, &mut told);
        }
    }
    if std::env::var("LOGGOS_DIALOGUES").is_ok_and(|wish| wish == "write") {
        fs::write(&path, &told).unwrap();
    }
    assert_eq!(told, text, "LOGGOS_DIALOGUES=write tells it anew");
}

struct Stage {
    cell: Cell,
    reads: u64,
    /// Messages of each kind that are told though they are mostly noise.
    shown: Vec<String>,
}

impl Stage {
    fn perform(&mut self, command: &str, told: &mut String) {
        let words: Vec<&str> = command.split(' ').collect();
        let server = |at: usize| id(words[at].parse().unwrap());
        let span = |at: usize| Duration::from_millis(words[at].strip_suffix("ms").unwrap().parse().unwrap());
        self.cell.trace.clear();
        match words[0] {
            "cell" => self.cell = Cell::of(words[1].parse().unwrap()),
            "delay" => self.cell.delay = span(1),
            "run" => self.cell.run(span(1)),
            // How that goes is told by `election` alone.
            "elect" => {
                self.cell.elect_this(server(1));
                self.cell.trace.clear();
            }
            "propose" => self.cell.propose(server(1), words[2]),
            "cut" => drop(self.cell.cut.insert((server(1), server(2)))),
            "mend" => drop(self.cell.cut.remove(&(server(1), server(2)))),
            "isolate" => self.cell.cut_off(server(1)),
            "heal" => self.cell.heal(),
            "stall" => self.cell.nodes.get_mut(&server(1)).unwrap().stalled = true,
            "crash" => self.cell.crash(server(1)),
            "start" => self.cell.start(server(1)),
            "transfer" => self.cell.feed(server(1), Event::Transfer(Some(server(2)))),
            "unreachable" => self.cell.feed(server(1), Event::Unreachable(server(2))),
            "read" => {
                self.reads += 1;
                self.cell.feed(server(1), Event::Read(ReadId(self.reads)));
            }
            "show" => self.shown = words[1..].iter().map(|word| (*word).to_owned()).collect(),
            "state" => self.tell_state(told),
            other => panic!("no such command: {other}"),
        }
        for (_, envelope) in &self.cell.trace {
            let kind = envelope.message.name();
            let noise = ["Heartbeat", "HeartbeatAck"].contains(&kind);
            if !noise || self.shown.iter().any(|shown| shown == kind) {
                writeln!(told, "{} -> {} {}", envelope.from, envelope.to, describe(&envelope.message))
                    .unwrap();
            }
        }
    }

    fn tell_state(&self, told: &mut String) {
        for (server, node) in &self.cell.nodes {
            let Some(engine) = &node.engine else {
                writeln!(told, "{server} is down").unwrap();
                continue;
            };
            let applied: Vec<String> = node.applied.iter().map(|(_, value)| value_of(value)).collect();
            let (promised, leader) = (engine.status().promised, node.view.leader);
            let role = match (leader == *server, leader == ServerId::NONE) {
                (true, _) => "leads".to_owned(),
                (_, true) => "knows no leader".to_owned(),
                _ => format!("follows {leader}"),
            };
            writeln!(told, "{server} {role}, promised {promised}, applied {}", applied.join(" ")).unwrap();
            for (read, ready) in &node.reads {
                let outcome = if *ready { "ready" } else { "refused" };
                writeln!(told, "{server} read {} {outcome}", read.0).unwrap();
            }
        }
    }
}

fn value_of(value: &Value) -> String {
    match value {
        Value::Noop => "noop".to_owned(),
        Value::LeaderStart { ballot, .. } => format!("start({ballot})"),
        Value::Config { config, .. } => format!("config({})", config.members.len()),
        Value::Batch(batch) => {
            let text: Vec<_> =
                batch.entries.iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect();
            text.join("+")
        }
    }
}

fn slots_of(slots: &[SlotRange]) -> String {
    let text: Vec<_> = slots.iter().map(|range| format!("{}..{}", range.first, range.last)).collect();
    text.join(" ")
}

fn describe(message: &Message) -> String {
    let name = message.name();
    match message {
        Message::Canvass { ballot, chosen_upto } => format!("{name} {ballot}, chosen to {chosen_upto}"),
        Message::CanvassOk { ballot } | Message::TransferNow { ballot } => format!("{name} {ballot}"),
        Message::CanvassNo { ballot, promised, chosen_upto } => {
            format!("{name} {ballot}, promised {promised}, chosen to {chosen_upto}")
        }
        Message::Prepare { ballot, from_slot, released } if released.is_none() => {
            format!("{name} {ballot} from {from_slot}")
        }
        Message::Prepare { ballot, from_slot, released } => {
            format!("{name} {ballot} from {from_slot}, released by {released}")
        }
        Message::Promise(promise) => {
            let mut text = format!("{name} {} from {}", promise.ballot, promise.from_slot);
            for (slot, report) in &promise.items {
                match report {
                    Report::Accepted { ballot, value } => {
                        write!(text, ", accepted {slot} at {ballot}: {}", value_of(value)).unwrap();
                    }
                    Report::Chosen { value } => write!(text, ", chosen {slot}: {}", value_of(value)).unwrap(),
                }
            }
            text
        }
        Message::Accept { ballot, slot, value, chosen_upto } => {
            format!("{name} {ballot} {slot}: {}, chosen to {chosen_upto}", value_of(value))
        }
        Message::Accepted { ballot, slots } => format!("{name} {ballot} {}", slots_of(slots)),
        Message::Reject { ballot, promised, lease_left, .. } => {
            format!("{name} {ballot}, promised {promised}, lease left {} ms", lease_left.as_millis())
        }
        Message::Heartbeat(heartbeat) => {
            let released = if heartbeat.released { ", lease given up" } else { "" };
            format!("{name} {}, chosen to {}{released}", heartbeat.ballot, heartbeat.chosen_upto)
        }
        Message::HeartbeatAck(ack) => format!("{name} {}, applied to {}", ack.ballot, ack.applied_upto),
        Message::FetchChosen { from } => format!("{name} from {from}"),
        Message::Chosen { first, values, chosen_upto } => {
            let values: Vec<_> = values.iter().map(value_of).collect();
            format!("{name} from {first}: {}; chosen to {chosen_upto}", values.join(" "))
        }
        Message::ReadIndex { id } | Message::ReadIndexNo { id } => format!("{name} {id}"),
        Message::ReadIndexOk { id, slot } => format!("{name} {id}: {slot}"),
        Message::SnapOffer { slot, .. }
        | Message::SnapFetch { slot, .. }
        | Message::SnapChunk { slot, .. } => {
            format!("{name} {slot}")
        }
        Message::Forward { entries } => format!("{name} of {}", entries.len()),
    }
}
