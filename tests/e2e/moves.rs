//! Partitions move between brokers while they are written, throttled or not, and can be called back; brokers are
//! drained; consumers read near by.

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use crate::failover::Cluster;
use crate::process::{DEADLINE, eventually, loggos_ok};
use crate::storm::{Storm, check};

const PARTITIONS: i32 = 4;
const RECORDS_BETWEEN: usize = 300;

#[test]
fn a_topic_moves_under_load_and_nothing_is_lost() {
    let cluster = Cluster::combined(&[]);
    let here = cluster.bootstrap();
    loggos_ok(&[
        "topic",
        "create",
        "moved",
        "--partitions",
        "4",
        "--replication-factor",
        "2",
        "--bootstrap",
        &here,
    ]);
    eventually("in sync", || cluster.in_sync("moved") == Some(2));
    let plan = cluster.plan("moved", PARTITIONS);
    let storm = Storm::start(plan.clone());
    storm.wait_for(RECORDS_BETWEEN);
    let before = cluster.rows("moved");
    let dry = ["topic", "reassign", "moved", "--brokers", "11,12", "--dry-run", "--bootstrap", &here];
    let said = loggos_ok(&dry);
    assert!(said.contains("->"), "something would move: {said}");
    assert_eq!(replicas(&before), replicas(&cluster.rows("moved")), "a dry run moves nothing");
    loggos_ok(&["topic", "reassign", "moved", "--brokers", "11,12", "--bootstrap", &here]);
    for row in cluster.rows("moved") {
        let mut on: Vec<&str> = row[3].split(',').collect();
        on.sort_unstable();
        assert_eq!(on, ["11", "12"], "partition {} has moved", row[0]);
    }
    storm.wait_for(RECORDS_BETWEEN);
    loggos_ok(&[
        "topic",
        "reassign",
        "moved",
        "--replication-factor",
        "3",
        "--throttle",
        "50000000",
        "--bootstrap",
        &here,
    ]);
    assert_eq!(cluster.in_sync("moved"), Some(3));
    let described = loggos_ok(&["topic", "describe", "moved", "--bootstrap", &here]);
    assert!(!described.contains("throttled"), "the throttle is taken back: {described}");
    storm.wait_for(RECORDS_BETWEEN);
    check(&plan, &storm.end());
}

fn replicas(rows: &[Vec<String>]) -> Vec<String> {
    rows.iter().map(|row| row[3].clone()).collect()
}

#[test]
fn a_throttled_move_takes_its_time_and_can_be_called_back() {
    let cluster = Cluster::combined(&[]);
    let here = cluster.bootstrap();
    loggos_ok(&[
        "topic",
        "create",
        "slow",
        "--partitions",
        "1",
        "--replication-factor",
        "1",
        "--bootstrap",
        &here,
    ]);
    let plan = cluster.plan("slow", 1);
    let storm = Storm::start(plan.clone());
    storm.wait_for(4 * RECORDS_BETWEEN);
    let before = replicas(&cluster.rows("slow"));
    for broker in broker_ids(&here) {
        let rate = "follower.replication.throttled.rate=1";
        kafka_configs(&here, &broker, rate);
    }
    loggos_ok(&[
        "topic",
        "alter",
        "slow",
        "--config",
        "follower.replication.throttled.replicas=*",
        "--bootstrap",
        &here,
    ]);
    let mut moving = std::process::Command::new(crate::process::binary())
        .args(["topic", "reassign", "slow", "--replication-factor", "3", "--bootstrap", &here])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("the binary starts");
    eventually("it moves", || cluster.rows("slow").first().is_some_and(|row| row[3].split(',').count() == 3));
    storm.wait_for(RECORDS_BETWEEN);
    assert!(moving.try_wait().expect("a child to ask").is_none(), "one byte a second takes longer");
    loggos_ok(&["topic", "reassign", "slow", "--cancel", "--bootstrap", &here]);
    eventually("it is where it was", || replicas(&cluster.rows("slow")) == before);
    assert!(moving.wait().expect("it ends").success(), "there is nothing left to wait for");
    storm.wait_for(RECORDS_BETWEEN);
    check(&plan, &storm.end());
}

fn broker_ids(here: &str) -> Vec<String> {
    let listed = loggos_ok(&["broker", "list", "--bootstrap", here]);
    listed.lines().skip(1).filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

/// Sets a broker's config with librdkafka's administrator.
fn kafka_configs(here: &str, broker: &str, pair: &str) {
    use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", here).create().expect("an administrator");
    let (name, value) = pair.split_once('=').expect("a pair");
    let resource = ResourceSpecifier::Broker(broker.parse().expect("a number"));
    let change = AlterConfig::new(resource).set(name, value);
    let altered = futures::executor::block_on(admin.alter_configs([&change], &AdminOptions::new()));
    altered.expect("an answer").into_iter().for_each(|one| {
        one.expect("it is set");
    });
}

#[test]
fn a_drained_broker_leads_and_keeps_nothing() {
    let cluster = Cluster::combined(&[]);
    let here = cluster.bootstrap();
    loggos_ok(&[
        "topic",
        "create",
        "kept",
        "--partitions",
        "4",
        "--replication-factor",
        "2",
        "--bootstrap",
        &here,
    ]);
    eventually("in sync", || cluster.in_sync("kept") == Some(2));
    let plan = cluster.plan("kept", PARTITIONS);
    let storm = Storm::start(plan.clone());
    storm.wait_for(RECORDS_BETWEEN);
    assert!(cluster.leaders("kept").contains("11"), "leaders are spread");
    loggos_ok(&["broker", "drain", "11", "--bootstrap", &here]);
    eventually("it leads nothing", || !cluster.leaders("kept").contains("11"));
    storm.wait_for(RECORDS_BETWEEN);
    loggos_ok(&["broker", "drain", "11", "--replicas", "--bootstrap", &here]);
    for row in cluster.rows("kept") {
        assert!(!row[3].split(',').any(|broker| broker == "11"), "partition {} has left: {}", row[0], row[3]);
    }
    let described = loggos_ok(&["broker", "describe", "11", "--bootstrap", &here]);
    assert!(!described.contains("kept-"), "it keeps nothing: {described}");
    storm.wait_for(RECORDS_BETWEEN);
    check(&plan, &storm.end());
}

#[test]
fn a_consumer_reads_from_the_replica_in_its_rack() {
    let first = crate::process::Server::start(&["--rack", "a"]);
    let coordinator = first.addresses().coordinator.expect("a combined server").to_string();
    let near =
        crate::process::Server::start(&["--coordinator", &coordinator, "--broker-id", "21", "--rack", "b"]);
    let here = first.bootstrap();
    let cluster = Cluster { first: Some(first), brokers: vec![near] };
    loggos_ok(&[
        "topic",
        "create",
        "near",
        "--partitions",
        "1",
        "--replication-factor",
        "2",
        "--bootstrap",
        &here,
    ]);
    eventually("in sync", || cluster.in_sync("near") == Some(2));
    let plan = cluster.plan("near", 1);
    let storm = Storm::start(plan.clone());
    storm.wait_for(RECORDS_BETWEEN);
    let acknowledged = storm.end();
    let leader = cluster.rows("near")[0][1].clone();
    let racks = if leader == "21" { ("b", "a") } else { ("a", "b") };
    for rack in [racks.0, racks.1] {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &here)
            .set("group.id", "near")
            .set("client.rack", rack)
            .set("enable.auto.commit", "false")
            .create()
            .expect("a consumer");
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset("near", 0, Offset::Beginning).expect("an offset");
        consumer.assign(&assignment).expect("an assignment");
        let deadline = std::time::Instant::now() + DEADLINE;
        let (mut read, wanted) = (0, acknowledged.values().map(Vec::len).sum::<usize>());
        while read < wanted {
            assert!(std::time::Instant::now() < deadline, "rack {rack}: {read} of {wanted} are read");
            if let Some(message) = consumer.poll(std::time::Duration::from_millis(100)) {
                message.expect("a record");
                read += 1;
            }
        }
    }
    let metrics = |at: &crate::process::Server| crate::process::http_get(at.addresses().http, "/metrics").1;
    let (follower, ours) = if leader == "21" {
        (cluster.first.as_ref().expect("it's there"), &cluster.brokers[0])
    } else {
        (&cluster.brokers[0], cluster.first.as_ref().expect("it's there"))
    };
    let given = |at| {
        let text = metrics(at);
        let line =
            text.lines().find(|line| line.starts_with("loggos_broker_near_fetches ")).map(str::to_owned);
        line.and_then(|line| line.split(' ').nth(1).and_then(|value| value.parse::<f64>().ok()))
            .unwrap_or(0.0)
    };
    assert!(given(follower) > 0.0, "the follower served the consumer near it");
    assert_eq!(given(ours), 0.0, "the leader served its own rack as the leader");
}
