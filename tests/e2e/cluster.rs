//! Three combined servers, each a broker and a coordination server: they form a cluster by themselves, and go on
//! whichever of them dies.

use tempfile::TempDir;

use crate::process::{Server, eventually, free_port, loggos_ok};
use crate::storm::{Plan, Storm, check};

const PARTITIONS: i32 = 6;
/// Acknowledgements between two events.
const RECORDS_BETWEEN: usize = 400;

/// Three servers with one line, as on three machines.
fn cluster(dir: &TempDir) -> Vec<Server> {
    let peers: Vec<String> = (0..3).map(|_| format!("127.0.0.1:{}", free_port())).collect();
    let servers = peers.join(",");
    std::thread::scope(|scope| {
        let starting: Vec<_> = peers
            .iter()
            .enumerate()
            .map(|(at, peer)| {
                let (servers, path) = (&servers, dir.path().join(format!("server{at}")));
                scope.spawn(move || {
                    Server::start_in(
                        &path,
                        &[
                            "--servers",
                            servers,
                            "--peer-listen",
                            peer,
                            "--bulk-listen",
                            "127.0.0.1:0",
                            "--set",
                            "default.replication.factor=3",
                            "--set",
                            "min.insync.replicas=2",
                        ],
                    )
                })
            })
            .collect();
        starting.into_iter().map(|server| server.join().expect("it starts")).collect()
    })
}

fn in_sync(bootstrap: &str, count: usize) -> bool {
    let described = loggos_ok(&["topic", "describe", "storm", "--bootstrap", bootstrap]);
    let rows = described.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    let isr = |row: &str| row.split_whitespace().nth(4).map_or(0, |isr| isr.split(',').count());
    rows.map(isr).filter(|members| *members == count).count() == PARTITIONS as usize
}

#[test]
fn whichever_of_three_combined_servers_dies_nothing_acknowledged_is_lost() {
    let dir = TempDir::with_prefix("loggos-cluster-").expect("a temporary directory");
    let mut servers = cluster(&dir);
    let all: Vec<String> = servers.iter().map(Server::bootstrap).collect();
    let all = all.join(",");
    loggos_ok(&["topic", "create", "storm", "--partitions", "6", "--bootstrap", &all]);
    eventually("all replicas are in sync", || in_sync(&all, 3));
    let plan = Plan {
        bootstrap: all.clone(),
        topic: "storm".to_owned(),
        partitions: PARTITIONS,
        idempotent: true,
        record_bytes: 200,
    };
    let storm = Storm::start(plan.clone());
    for victim in [0, 1, 2] {
        storm.wait_for(RECORDS_BETWEEN);
        servers[victim].kill();
        storm.wait_for(RECORDS_BETWEEN);
        servers[victim].restart();
        eventually("who came back is in sync again", || in_sync(&all, 3));
    }
    storm.wait_for(RECORDS_BETWEEN);
    check(&plan, &storm.end());
}
