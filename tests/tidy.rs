//! House rules as a test: who may name whom, what a pure room may not touch, how long a file may get, and words
//! that say nothing. The rules and their reasons stand in docs/ARCHITECTURE.md.

use std::fs;
use std::path::{Path, PathBuf};

/// A file longer than this has outgrown its name (tests and generated tables aside).
const LINES_LIMIT: usize = 600;
/// File names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 7] = ["utils", "util", "common", "helpers", "helper", "manager", "misc"];

/// Crates that a crate may name among ours, and what it may never name at all.
const CRATES: [(&str, &[&str], &[&str]); 5] = [
    ("protocol", &[], &["tokio", "std::fs", "std::net", "std::thread", "Instant::now", "SystemTime::now"]),
    ("storage", &[], &["tokio", "std::net", "loggos_protocol"]),
    ("coordinator", &["loggos_protocol", "loggos_storage"], &["loggos_client", "loggos_broker"]),
    ("client", &["loggos_protocol"], &["loggos_coordinator", "loggos_broker", "loggos_storage"]),
    ("broker", &["loggos_protocol", "loggos_storage", "loggos_client"], &["loggos_coordinator"]),
];

/// Edges between rooms of one crate that must not exist: no file under the first path names the second.
const FORBIDDEN_EDGES: [(&str, &str, &str); 22] = [
    ("coordinator/src/paxos", "crate::tree", "votes are opaque bytes"),
    ("coordinator/src/tree", "crate::paxos", "the tree knows no ballot"),
    ("coordinator/src/tree", "crate::server", "the tree knows no connection"),
    ("coordinator/src/tree", "crate::ledger", "the tree touches no disk"),
    ("broker/src/log", "crate::partition", "a log knows no replica"),
    ("broker/src/log", "crate::metadata", "a log knows no cluster"),
    ("broker/src/log", "crate::api", "a log knows no request"),
    ("broker/src/log", "crate::server", "a log knows no socket"),
    ("broker/src/log", "tokio", "a log is synchronous"),
    ("broker/src/partition", "crate::api", "calls go down, never up"),
    ("broker/src/partition", "crate::server", "calls go down, never up"),
    ("broker/src/group", "crate::partition", "groups live in the registry"),
    ("broker/src/controller", "crate::partition", "the controller speaks through the tree"),
    ("broker/src/api", "crate::server", "a handler knows no socket"),
    ("client/src/producer", "crate::consumer", "producing knows no consuming"),
    ("client/src/registry", "crate::cluster", "the registry is not on Kafka's wire"),
    ("src", "loggos_broker::partition", "the binary sees public items only"),
    ("src/agent", "loggos_broker", "an agent is a producer like any other"),
    ("src/agent", "loggos_coordinator", "an agent is a producer like any other"),
    ("src/agent", "loggos_storage", "an agent is a producer like any other"),
    ("src/mirror", "loggos_broker", "a mirror is a client like any other"),
    ("src/mirror", "loggos_coordinator", "a mirror is a client like any other"),
];

/// Rooms and files that decide and never touch the world (house style: P).
const PURE: [&str; 31] = [
    "protocol/src",
    "coordinator/src/paxos",
    "coordinator/src/tree",
    "coordinator/src/watches.rs",
    "coordinator/src/session_expiry.rs",
    "broker/src/log/policy.rs",
    "broker/src/log/producers.rs",
    "broker/src/log/epochs.rs",
    "broker/src/partition/replication.rs",
    "broker/src/controller/placement.rs",
    "broker/src/controller/election.rs",
    "broker/src/controller/reassignment.rs",
    "broker/src/controller/balance.rs",
    "broker/src/partition/divergence.rs",
    "broker/src/partition/lease.rs",
    "broker/src/partition/throttle.rs",
    "broker/src/group/state.rs",
    "broker/src/group/member.rs",
    "broker/src/group/runner.rs",
    "client/src/producer/accumulator.rs",
    "client/src/consumer/assignment.rs",
    "client/src/lock/lease.rs",
    "client/src/lock/order.rs",
    "client/src/lock/sequencer.rs",
    "storage/src/journal/block.rs",
    "storage/src/journal/ring.rs",
    "src/agent/tail.rs",
    "src/agent/sighting.rs",
    "src/agent/lines.rs",
    "src/mirror/plan.rs",
    "src/agent/syslog.rs",
];

/// What a pure room may not name.
const IMPURE: [&str; 9] = [
    "std::fs",
    "std::net",
    "std::thread",
    "tokio",
    "Instant::now",
    "SystemTime::now",
    "HashMap",
    "HashSet",
    "rand::rng()",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(under: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if under.is_file() {
        return vec![under.to_owned()];
    }
    let Ok(entries) = fs::read_dir(under) else { return found };
    for entry in entries.map(|entry| entry.expect("a directory entry").path()) {
        if entry.is_dir() {
            found.extend(sources(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
    found.sort();
    found
}

/// A file's lines of code with their numbers: comments and the inline tests at the end are left out.
fn code_lines(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).expect("a readable source file");
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(number, line)| (number + 1, line.split(" // ").next().unwrap_or(line).to_owned()))
        .collect()
}

fn places_naming(under: &str, word: &str) -> Vec<String> {
    let mut places = Vec::new();
    for file in sources(&root().join(under)) {
        for (number, line) in code_lines(&file) {
            if names(&line, word) {
                let shown = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
                places.push(format!("{shown}:{number}: {}", line.trim()));
            }
        }
    }
    places
}

/// Whether `line` holds `word` as a whole path and not as a part of a longer name.
fn names(line: &str, word: &str) -> bool {
    let is_part = |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !is_part(line[..at].chars().next_back()) && !is_part(line[at + word.len()..].chars().next())
    })
}

#[test]
fn crates_name_only_those_below_them() {
    let ours = ["loggos_protocol", "loggos_storage", "loggos_coordinator", "loggos_client", "loggos_broker"];
    let mut broken = Vec::new();
    for (name, allowed, never) in CRATES {
        let source = format!("{name}/src");
        for other in
            ours.iter().filter(|other| !allowed.contains(other) && **other != format!("loggos_{name}"))
        {
            broken.extend(places_naming(&source, other));
        }
        for word in never {
            broken.extend(places_naming(&source, word));
        }
    }
    assert!(broken.is_empty(), "imports that the crate wall forbids:\n{}", broken.join("\n"));
}

#[test]
fn rooms_name_only_what_they_may() {
    let mut broken = Vec::new();
    for (room, word, why) in FORBIDDEN_EDGES {
        broken.extend(places_naming(room, word).into_iter().map(|place| format!("{place}   ({why})")));
    }
    assert!(broken.is_empty(), "imports that the rooms forbid:\n{}", broken.join("\n"));
}

#[test]
fn pure_rooms_touch_nothing() {
    let mut broken = Vec::new();
    for room in PURE {
        for word in IMPURE {
            broken.extend(places_naming(room, word));
        }
    }
    assert!(broken.is_empty(), "a pure room touches the world:\n{}", broken.join("\n"));
}

#[test]
fn only_one_file_names_each_foreign_wire() {
    let only = |word: &str, home: &str| -> Vec<String> {
        ["protocol/src", "storage/src", "coordinator/src", "client/src", "broker/src", "src"]
            .iter()
            .flat_map(|under| places_naming(under, word))
            .filter(|place| !place.starts_with(home))
            .collect()
    };
    let mut broken = only("zookeeper_client", "client/src/registry/session");
    broken.extend(only("kafka_protocol", "protocol/src/kafka"));
    assert!(broken.is_empty(), "a foreign wire is named outside its home:\n{}", broken.join("\n"));
}

#[test]
fn files_have_names_that_say_something_and_stay_short() {
    let mut broken = Vec::new();
    for under in ["protocol/src", "storage/src", "coordinator/src", "client/src", "broker/src", "src"] {
        for file in sources(&root().join(under)) {
            let shown = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
            let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if EMPTY_NAMES.contains(&stem) {
                broken.push(format!("{shown}: '{stem}' says nothing"));
            }
            let text = fs::read_to_string(&file).expect("a readable source file");
            let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
            if lines > LINES_LIMIT {
                broken.push(format!("{shown}: {lines} lines; split it by meaning"));
            }
            if !text.starts_with("//!") {
                broken.push(format!("{shown}: begins without its //! purpose"));
            }
        }
    }
    assert!(broken.is_empty(), "files against the house:\n{}", broken.join("\n"));
}

#[test]
fn the_rules_can_fail() {
    assert!(names("use crate::tree::Tree;", "crate::tree"));
    assert!(!names("use crate::trees::Tree;", "crate::tree"));
    assert!(names("let now = Instant::now();", "Instant::now"));
    assert!(!names("use tokio_not::x;", "tokio"));
    assert!(!places_naming("tests/tidy.rs", "fs::read_dir").is_empty());
}
