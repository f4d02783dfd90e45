//! Three brokers: what was acknowledged by all replicas in sync survives the loss of any leader, and whoever comes
//! back catches up and counts again.

use crate::process::{Server, eventually, loggos_ok};
use crate::storm::{Plan, Storm, check};

const PARTITIONS: i32 = 6;
/// Acknowledgements between two events.
const RECORDS_BETWEEN: usize = 400;

/// A coordinator with a broker, and two more brokers.
fn cluster(settings: &[&str]) -> (Server, Vec<Server>) {
    let first = Server::start(settings);
    let coordinator = first.addresses().coordinator.expect("a combined server").to_string();
    let arguments = [&["--coordinator", coordinator.as_str()], settings].concat();
    let others = (0..2).map(|_| Server::start(&arguments)).collect();
    (first, others)
}

fn bootstrap(first: &Server, others: &[Server]) -> String {
    let all: Vec<String> = std::iter::once(first).chain(others).map(Server::bootstrap).collect();
    all.join(",")
}

/// The lines of `topic describe` that are about partitions: partition, leader, epoch, replicas, isr, …
fn partitions(bootstrap: &str, topic: &str) -> Vec<Vec<String>> {
    let described = loggos_ok(&["topic", "describe", topic, "--bootstrap", bootstrap]);
    let rows = described.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    rows.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

fn all_in_sync(bootstrap: &str, topic: &str, count: usize) -> bool {
    let rows = partitions(bootstrap, topic);
    rows.len() == PARTITIONS as usize && rows.iter().all(|row| row[4].split(',').count() == count)
}

#[test]
fn nothing_acknowledged_is_lost_when_leaders_are_killed() {
    let (first, mut others) = cluster(&["--set", "default.replication.factor=3"]);
    let all = bootstrap(&first, &others);
    loggos_ok(&[
        "topic",
        "create",
        "storm",
        "--partitions",
        "6",
        "--replication-factor",
        "3",
        "--config",
        "min.insync.replicas=2",
        "--bootstrap",
        &first.bootstrap(),
    ]);
    eventually("all replicas are in sync", || all_in_sync(&first.bootstrap(), "storm", 3));
    let leaders: std::collections::BTreeSet<String> =
        partitions(&first.bootstrap(), "storm").into_iter().map(|row| row[1].clone()).collect();
    assert_eq!(leaders.len(), 3, "leaders are spread");
    let plan = Plan {
        bootstrap: all,
        topic: "storm".to_owned(),
        partitions: PARTITIONS,
        idempotent: true,
        record_bytes: 200,
    };
    let storm = Storm::start(plan.clone());
    for victim in [0, 1, 0] {
        storm.wait_for(RECORDS_BETWEEN);
        others[victim].kill();
        storm.wait_for(RECORDS_BETWEEN);
        others[victim].restart();
        eventually("who came back is in sync again", || all_in_sync(&first.bootstrap(), "storm", 3));
    }
    storm.wait_for(RECORDS_BETWEEN);
    let acknowledged = storm.end();
    check(&plan, &acknowledged);
}

#[test]
fn with_too_few_replicas_in_sync_nothing_is_taken_and_reads_go_on() {
    let (first, mut others) = cluster(&[]);
    let here = first.bootstrap();
    loggos_ok(&[
        "topic",
        "create",
        "careful",
        "--partitions",
        "6",
        "--replication-factor",
        "3",
        "--config",
        "min.insync.replicas=2",
        "--bootstrap",
        &here,
    ]);
    eventually("all replicas are in sync", || all_in_sync(&here, "careful", 3));
    let plan = Plan {
        bootstrap: bootstrap(&first, &others),
        topic: "careful".to_owned(),
        partitions: PARTITIONS,
        idempotent: true,
        record_bytes: 50,
    };
    let storm = Storm::start(plan.clone());
    storm.wait_for(RECORDS_BETWEEN);
    for other in &mut others {
        other.kill();
    }
    eventually("one replica is left", || all_in_sync(&here, "careful", 1));
    let before = storm.acknowledged();
    let refused = crate::process::loggos(&["topic", "describe", "careful", "--bootstrap", &here]);
    assert!(refused.status.success(), "reads and questions go on");
    for other in &mut others {
        other.restart();
    }
    storm.wait_for(RECORDS_BETWEEN);
    assert!(storm.acknowledged() > before);
    let acknowledged = storm.end();
    check(&plan, &acknowledged);
}
