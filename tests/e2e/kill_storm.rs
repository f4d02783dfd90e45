//! kill -9 in the middle of a produce storm, twenty times; `LOGGOS_KILLS=n` kills more often (`make chaos`).

use crate::process::{Server, loggos_ok};
use crate::storm::{Plan, Storm, check};

const KILLS: usize = 20;
const PARTITIONS: i32 = 4;
/// Acknowledgements between two kills.
const RECORDS_BETWEEN: usize = 300;

#[test]
fn nothing_acknowledged_is_lost_doubled_or_swapped_over_twenty_kills() {
    let kills = std::env::var("LOGGOS_KILLS").ok().and_then(|kills| kills.parse().ok());
    storm_over_kills(&[], kills.unwrap_or(KILLS));
}

#[test]
fn without_the_journal_each_segment_is_synced_and_nothing_is_lost_either() {
    storm_over_kills(&["--set", "loggos.journal=none"], 3);
}

fn storm_over_kills(settings: &[&str], kills: usize) {
    let mut server = Server::start(settings);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "storm", "--partitions", "4", "--bootstrap", &bootstrap]);
    let plan = Plan {
        bootstrap,
        topic: "storm".to_owned(),
        partitions: PARTITIONS,
        idempotent: true,
        record_bytes: 120,
    };
    let storm = Storm::start(plan.clone());
    for _ in 0..kills {
        storm.wait_for(RECORDS_BETWEEN);
        server.kill();
        server.restart();
    }
    storm.wait_for(RECORDS_BETWEEN);
    let acknowledged = storm.end();
    check(&plan, &acknowledged);
    let count: usize = acknowledged.values().map(Vec::len).sum();
    eprintln!("{count} records acknowledged over {kills} kills: none lost, none twice, order kept");
    assert_eq!(server.stop(), Some(0), "a clean stop after all that");
    server.restart();
    check(&plan, &acknowledged);
}
