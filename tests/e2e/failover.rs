//! Three brokers lose each other in every way that a process can be lost: killed, paused, stopped, with its disk
//! replaced, and all of it at random. Nothing that was acknowledged is lost or doubled, and its order is kept.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use loggos_protocol::kafka::messages::{BrokerId, MetadataRequest, metadata_request};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::process::{DEADLINE, Server, eventually, loggos, loggos_ok};
use crate::storm::{Plan, Storm, check};
use crate::wire::{Client, name};
use crate::zookeeper::ZooKeeper;

const PARTITIONS: i32 = 6;
/// Acknowledgements between two events.
const RECORDS_BETWEEN: usize = 300;
/// How long the random run is, unless `LOGGOS_CHAOS_SECONDS` says otherwise.
const CHAOS_SECONDS: u64 = 30;

/// A cluster of three, and the storm's topic in it.
pub struct Cluster {
    /// The coordinator's own, which stays.
    pub first: Option<Server>,
    pub brokers: Vec<Server>,
}

impl Cluster {
    /// A combined server with two brokers beside it.
    pub fn combined(settings: &[&str]) -> Self {
        let first = Server::start(settings);
        let coordinator = first.addresses().coordinator.expect("a combined server").to_string();
        let brokers = brokers(&coordinator, 2, settings);
        Self { first: Some(first), brokers }
    }

    pub fn bootstrap(&self) -> String {
        let all: Vec<String> = self.first.iter().chain(&self.brokers).map(Server::bootstrap).collect();
        all.join(",")
    }

    pub fn create(&self, topic: &str, partitions: i32) {
        let (partitions, here) = (partitions.to_string(), self.bootstrap());
        let common = ["topic", "create", topic, "--partitions", &partitions, "--replication-factor", "3"];
        let min = ["--config", "min.insync.replicas=2", "--bootstrap", &here];
        loggos_ok(&[common.as_slice(), min.as_slice()].concat());
        eventually("all replicas are in sync", || self.in_sync(topic) == Some(3));
    }

    /// What the first broker says of a topic's partitions: partition, leader, epoch, replicas, isr. It is asked on the
    /// wire, alone, for others may be paused.
    pub fn rows(&self, topic: &str) -> Vec<Vec<String>> {
        let asked = self.first.as_ref().unwrap_or_else(|| &self.brokers[0]);
        let wanted = metadata_request::MetadataRequestTopic::default().with_name(Some(name(topic)));
        let request = MetadataRequest::default().with_topics(Some(vec![wanted]));
        let answer = Client::connect(asked).call(12, &request);
        let list = |brokers: &[BrokerId]| {
            brokers.iter().map(|broker| broker.0.to_string()).collect::<Vec<_>>().join(",")
        };
        let mut rows: Vec<_> = answer.topics[0].partitions.iter().collect();
        rows.sort_by_key(|partition| partition.partition_index);
        rows.into_iter()
            .map(|partition| {
                let leader = partition.leader_id.0;
                vec![
                    partition.partition_index.to_string(),
                    if leader < 0 { "none".to_owned() } else { leader.to_string() },
                    partition.leader_epoch.to_string(),
                    list(&partition.replica_nodes),
                    list(&partition.isr_nodes),
                ]
            })
            .collect()
    }

    /// How many replicas the partition with the fewest has in sync.
    pub fn in_sync(&self, topic: &str) -> Option<usize> {
        self.rows(topic).iter().map(|row| row[4].split(',').count()).min()
    }

    pub fn leaders(&self, topic: &str) -> BTreeSet<String> {
        self.rows(topic).into_iter().map(|row| row[1].clone()).collect()
    }

    pub fn plan(&self, topic: &str, partitions: i32) -> Plan {
        Plan {
            bootstrap: self.bootstrap(),
            topic: topic.to_owned(),
            partitions,
            idempotent: true,
            record_bytes: 150,
        }
    }
}

fn brokers(coordinator: &str, count: usize, settings: &[&str]) -> Vec<Server> {
    let start = |number: usize| {
        let id = (number + 11).to_string();
        Server::start(&[&["--coordinator", coordinator, "--broker-id", &id], settings].concat())
    };
    (0..count).map(start).collect()
}

#[test]
fn a_paused_leader_is_replaced_and_acknowledges_nothing_when_it_wakes() {
    let cluster = Cluster::combined(&[]);
    cluster.create("paused", PARTITIONS);
    let plan = cluster.plan("paused", PARTITIONS);
    let storm = Storm::start(plan.clone());
    for victim in [0, 1] {
        storm.wait_for(RECORDS_BETWEEN);
        let id = (victim + 11).to_string();
        cluster.brokers[victim].pause();
        eventually("others lead", || {
            let leaders = cluster.leaders("paused");
            !leaders.is_empty() && !leaders.contains(&id) && !leaders.contains("none")
        });
        storm.wait_for(RECORDS_BETWEEN);
        cluster.brokers[victim].resume();
        eventually("who was paused is in sync again", || cluster.in_sync("paused") == Some(3));
    }
    storm.wait_for(RECORDS_BETWEEN);
    check(&plan, &storm.end());
}

#[test]
fn who_stops_hands_over_first_and_who_comes_back_leads_again() {
    let mut cluster = Cluster::combined(&["--set", "leader.imbalance.check.interval.seconds=1"]);
    cluster.create("stopped", PARTITIONS);
    assert_eq!(cluster.leaders("stopped").len(), 3, "leaders are spread");
    let plan = cluster.plan("stopped", PARTITIONS);
    let storm = Storm::start(plan.clone());
    storm.wait_for(RECORDS_BETWEEN);
    assert_eq!(cluster.brokers[0].stop(), Some(0));
    let leaders = cluster.leaders("stopped");
    assert!(!leaders.contains("11") && !leaders.contains("none"), "handed over before it ended: {leaders:?}");
    storm.wait_for(RECORDS_BETWEEN);
    cluster.brokers[0].restart();
    eventually("its partitions are led by it again", || cluster.leaders("stopped").contains("11"));
    storm.wait_for(RECORDS_BETWEEN);
    check(&plan, &storm.end());
}

#[test]
fn a_broker_whose_disk_was_replaced_refills_itself() {
    let mut cluster = Cluster::combined(&[]);
    cluster.create("refilled", PARTITIONS);
    let plan = cluster.plan("refilled", PARTITIONS);
    let storm = Storm::start(plan.clone());
    for _ in 0..2 {
        storm.wait_for(RECORDS_BETWEEN);
        cluster.brokers[0].kill();
        std::fs::remove_dir_all(cluster.brokers[0].data_dir()).expect("its disk goes");
        storm.wait_for(RECORDS_BETWEEN);
        cluster.brokers[0].restart();
        eventually("it has everything again", || cluster.in_sync("refilled") == Some(3));
    }
    // Now it holds what the others lose.
    cluster.brokers[1].kill();
    storm.wait_for(RECORDS_BETWEEN);
    check(&plan, &storm.end());
}

#[test]
fn on_a_real_zookeeper_leaders_are_replaced_as_well() {
    let Some(zookeeper) = ZooKeeper::start() else { return };
    let ensemble = format!("{}/three", zookeeper.address());
    let mut cluster = Cluster { first: None, brokers: brokers(&ensemble, 3, &[]) };
    cluster.create("elsewhere", PARTITIONS);
    let plan = cluster.plan("elsewhere", PARTITIONS);
    let storm = Storm::start(plan.clone());
    storm.wait_for(RECORDS_BETWEEN);
    cluster.brokers[1].kill();
    storm.wait_for(RECORDS_BETWEEN);
    cluster.brokers[1].restart();
    eventually("in sync again", || cluster.in_sync("elsewhere") == Some(3));
    cluster.brokers[2].pause();
    storm.wait_for(RECORDS_BETWEEN);
    cluster.brokers[2].resume();
    eventually("in sync again", || cluster.in_sync("elsewhere") == Some(3));
    storm.wait_for(RECORDS_BETWEEN);
    check(&plan, &storm.end());
}

/// Kills, pauses, stops, new disks, drains and moves at random, for `LOGGOS_CHAOS_SECONDS`; `LOGGOS_CHAOS_SEED` says
/// which.
#[test]
fn chaos_of_every_kind_loses_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("LOGGOS_CHAOS_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    let seconds = number("LOGGOS_CHAOS_SECONDS").unwrap_or(CHAOS_SECONDS);
    eprintln!("chaos: LOGGOS_CHAOS_SEED={seed} LOGGOS_CHAOS_SECONDS={seconds}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut cluster = Cluster::combined(&["--set", "leader.imbalance.check.interval.seconds=2"]);
    cluster.create("chaos", PARTITIONS);
    let plan = cluster.plan("chaos", PARTITIONS);
    let storm = Storm::start(plan.clone());
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut events = 0;
    while Instant::now() < end {
        let victim = rng.random_range(0..cluster.brokers.len());
        let pause = Duration::from_millis(rng.random_range(20..1_500));
        let id = (victim + 11).to_string();
        let what = rng.random_range(0..6);
        eprintln!("chaos: {what} of broker {id} for {} ms", pause.as_millis());
        match what {
            0 | 1 => {
                cluster.brokers[victim].kill();
                std::thread::sleep(pause);
                cluster.brokers[victim].restart();
            }
            2 => {
                cluster.brokers[victim].pause();
                std::thread::sleep(pause);
                cluster.brokers[victim].resume();
            }
            3 => {
                assert_eq!(cluster.brokers[victim].stop(), Some(0));
                std::thread::sleep(pause);
                cluster.brokers[victim].restart();
            }
            4 => {
                cluster.brokers[victim].kill();
                std::fs::remove_dir_all(cluster.brokers[victim].data_dir()).expect("its disk goes");
                std::thread::sleep(pause);
                cluster.brokers[victim].restart();
            }
            _ => {
                // It may be refused while replicas are out of sync: then nothing happens.
                let drained = loggos(&["broker", "drain", &id, "--bootstrap", &cluster.bootstrap()]);
                eprintln!("chaos: drained: {}", drained.status.success());
                storm.wait_for(20);
            }
        }
        events += 1;
        if what == 4 || rng.random_bool(0.5) {
            // A disk and another replica at once is more than two replicas promise to survive.
            eventually("in sync again", || cluster.in_sync("chaos") == Some(3));
        }
    }
    eventually("in sync in the end", || cluster.in_sync("chaos") == Some(3));
    storm.wait_for(RECORDS_BETWEEN);
    let acknowledged = storm.end();
    let count: usize = acknowledged.values().map(Vec::len).sum();
    eprintln!("chaos: {events} events, {count} records acknowledged; at most {DEADLINE:?} for any wait");
    check(&plan, &acknowledged);
}

/// The segment files of a topic's partitions under a data directory, with their bytes.
fn segments(server: &Server, topic: &str) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![server.data_dir().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let of_topic = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(topic));
            if path.is_dir() {
                folders.push(path);
            } else if of_topic && path.extension().is_some_and(|extension| extension == "log") {
                let bytes = std::fs::read(&path).expect("a file");
                found.push((path, bytes));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_damaged_batch_is_found_and_mended_from_a_peer() {
    let mut cluster = Cluster::combined(&["--set", "loggos.scrub.bytes.per.second=100000000"]);
    cluster.create("rotten", 1);
    let plan = cluster.plan("rotten", 1);
    let storm = Storm::start(plan.clone());
    storm.wait_for(3 * RECORDS_BETWEEN);
    let acknowledged = storm.end();
    eventually("everybody has everything", || {
        let [a, b] = [0, 1].map(|at| segments(&cluster.brokers[at], "rotten"));
        a.first().map(|(_, bytes)| bytes) == b.first().map(|(_, bytes)| bytes)
    });
    assert_eq!(cluster.brokers[0].stop(), Some(0));
    let (path, mut bytes) = segments(&cluster.brokers[0], "rotten").swap_remove(0);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&path, &bytes).expect("rot");
    cluster.brokers[0].restart();
    eventually("the damage is mended", || {
        let metrics = crate::process::http_get(cluster.brokers[0].addresses().http, "/metrics").1;
        metrics.lines().any(|line| line.starts_with("loggos_broker_mended ") && !line.ends_with(" 0"))
    });
    eventually("it is in sync again", || cluster.in_sync("rotten") == Some(3));
    let [mended, whole] = [0, 1].map(|at| segments(&cluster.brokers[at], "rotten").swap_remove(0).1);
    assert!(mended == whole, "byte by byte what its peer has");
    check(&plan, &acknowledged);
}
