//! Groups that their members run, over the registries: partitions are shared, change hands and are rewound, whatever
//! is killed, on our own coordinator and on a real ZooKeeper.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use loggos_client::registry::Registry;
use loggos_client::{
    ClusterConfig, ConsumerConfig, ConsumerConnector, GroupConfig, MessageStream, OffsetReset, OffsetSpec,
    SimpleConsumer, StreamsConfig,
};
use loggos_protocol::ids::{GroupId, Offset, PartitionId, TopicName, TopicPartition};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::process::{DEADLINE, Server, binary, eventually, loggos, loggos_ok};
use crate::storm::{Plan, Storm};
use crate::zookeeper::ZooKeeper;

const TOPIC: &str = "shared";
const PARTITIONS: i32 = 6;

/// Partition and offset of a record that a member has printed.
type Seen = Arc<Mutex<Vec<(i32, i64)>>>;

/// `loggos consume --group`, running.
struct Member {
    child: Child,
    seen: Seen,
}

impl Member {
    fn start(cluster: &Cluster, group: &str) -> Self {
        let mut child = Command::new(binary())
            .args(["consume", TOPIC, "--group", group, "--registry", &cluster.coordinator])
            .args(["--bootstrap", &cluster.bootstrap, "--from", "beginning", "--format", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(if std::env::var_os("LOGGOS_E2E_LOG").is_some() {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .spawn()
            .expect("the binary starts");
        let seen = Seen::default();
        let (lines, kept) =
            (BufReader::new(child.stdout.take().expect("stdout is piped")), Arc::clone(&seen));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                // A killed process may leave half a line.
                let Ok(record) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
                let number = |field: &str| record[field].as_i64().expect("a number");
                let place = (i32::try_from(number("partition")).expect("small"), number("offset"));
                kept.lock().expect("no panic holds it").push(place);
            }
        });
        Self { child, seen }
    }

    fn count(&self) -> usize {
        self.seen.lock().expect("no panic holds it").len()
    }

    fn seen(&self) -> Vec<(i32, i64)> {
        self.seen.lock().expect("no panic holds it").clone()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM: it leaves the group.
    fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal to our own child");
        eventually("a member stops", || self.child.try_wait().expect("a child to ask").is_some());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where a test's servers are.
struct Cluster {
    bootstrap: String,
    coordinator: String,
}

impl Cluster {
    fn of(server: &Server) -> Self {
        let coordinator = server.addresses().coordinator.expect("a coordinator of its own").to_string();
        Self { bootstrap: server.bootstrap(), coordinator }
    }

    fn create_topic(&self, partitions: i32) {
        let partitions = partitions.to_string();
        loggos_ok(&["topic", "create", TOPIC, "--partitions", &partitions, "--bootstrap", &self.bootstrap]);
    }

    fn plan(&self) -> Plan {
        Plan {
            bootstrap: self.bootstrap.clone(),
            topic: TOPIC.to_owned(),
            partitions: PARTITIONS,
            idempotent: true,
            record_bytes: 100,
        }
    }

    fn config(&self, group: &str) -> StreamsConfig {
        let config = StreamsConfig::new(&self.bootstrap, &self.coordinator, group);
        let group = GroupConfig { reset: OffsetReset::Earliest, ..config.group };
        StreamsConfig { group, ..config }
    }

    fn ends(&self, runtime: &Runtime) -> BTreeMap<PartitionId, Offset> {
        let cluster = ClusterConfig::with_bootstrap(&self.bootstrap);
        let consumer = SimpleConsumer::new(ConsumerConfig { cluster, ..ConsumerConfig::default() });
        runtime.block_on(consumer.offsets(&TopicName::from(TOPIC), OffsetSpec::Latest)).expect("ends")
    }

    /// Waits until the partitions are divided evenly among so many members; gives who owns what.
    fn owned_by(&self, runtime: &Runtime, group: &str, members: usize) -> BTreeMap<TopicPartition, String> {
        runtime.block_on(async {
            let registry =
                Registry::connect(&self.coordinator, Duration::from_secs(6)).await.expect("a coordinator");
            let deadline = Instant::now() + DEADLINE;
            loop {
                let owners = registry.owners(&GroupId::new(group)).await;
                if let Ok(owners) = &owners {
                    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
                    for owner in owners.values() {
                        *shares.entry(owner).or_default() += 1;
                    }
                    let even = shares.values().all(|&share| share == PARTITIONS as usize / members);
                    if owners.len() == PARTITIONS as usize && shares.len() == members && even {
                        return owners.clone();
                    }
                }
                assert!(Instant::now() < deadline, "not owned by {members} in time: {owners:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Waits until the members together have printed all that there is.
fn all_seen(cluster: &Cluster, runtime: &Runtime, members: &[&Member]) {
    let ends = cluster.ends(runtime);
    eventually("every record is printed by somebody", || {
        let seen: BTreeSet<(i32, i64)> = members.iter().flat_map(|member| member.seen()).collect();
        ends.iter()
            .all(|(partition, end)| (0..end.raw()).all(|offset| seen.contains(&(partition.raw(), offset))))
    });
}

/// 1 → 3 → 1 members under traffic; one leaves, one is killed; and the broker with the coordinator too, if it has one.
fn members_come_and_go(server: &mut Server, cluster: &Cluster) {
    let runtime = runtime();
    cluster.create_topic(PARTITIONS);
    let storm = Storm::start(cluster.plan());
    let first = Member::start(cluster, "g");
    cluster.owned_by(&runtime, "g", 1);
    storm.wait_for(300);
    let (mut second, mut third) = (Member::start(cluster, "g"), Member::start(cluster, "g"));
    cluster.owned_by(&runtime, "g", 3);
    let before = [second.count(), third.count()];
    storm.wait_for(600);
    eventually("all three get records", || second.count() > before[0] && third.count() > before[1]);
    server.kill();
    server.restart();
    storm.wait_for(300);
    second.kill();
    let owners = cluster.owned_by(&runtime, "g", 2);
    assert_eq!(owners.len(), PARTITIONS as usize);
    storm.wait_for(300);
    third.stop();
    cluster.owned_by(&runtime, "g", 1);
    storm.wait_for(300);
    storm.end();
    all_seen(cluster, &runtime, &[&first, &second, &third]);
    // While a member owns a partition it prints its records one after the other; only a change of hands makes it go back
    // to what was committed, or on behind what others have read.
    for member in [&first, &second, &third] {
        let mut last: BTreeMap<i32, i64> = BTreeMap::new();
        let mut jumps = 0;
        for (partition, offset) in member.seen() {
            let before = last.insert(partition, offset);
            jumps += usize::from(before.is_some_and(|before| offset != before + 1));
        }
        assert!(jumps <= 4 * PARTITIONS as usize, "{jumps} jumps are more than hands have changed");
    }
}

#[test]
fn members_share_a_topic_while_they_and_the_broker_are_killed() {
    let mut server = Server::start(&[]);
    let cluster = Cluster::of(&server);
    members_come_and_go(&mut server, &cluster);
}

#[test]
fn the_same_on_a_real_zookeeper() {
    let Some(zookeeper) = ZooKeeper::start() else { return };
    let coordinator = format!("{}/groups", zookeeper.address());
    let mut server = Server::start(&["--coordinator", &coordinator]);
    let cluster = Cluster { bootstrap: server.bootstrap(), coordinator };
    members_come_and_go(&mut server, &cluster);
}

#[test]
fn each_group_gets_everything_and_each_message_goes_to_one_member() {
    let server = Server::start(&[]);
    let (cluster, runtime) = (Cluster::of(&server), runtime());
    cluster.create_topic(PARTITIONS);
    let members: Vec<Member> =
        ["one", "one", "two"].into_iter().map(|group| Member::start(&cluster, group)).collect();
    cluster.owned_by(&runtime, "one", 2);
    cluster.owned_by(&runtime, "two", 1);
    let storm = Storm::start(cluster.plan());
    storm.wait_for(500);
    storm.end();
    all_seen(&cluster, &runtime, &[&members[0], &members[1]]);
    all_seen(&cluster, &runtime, &[&members[2]]);
    let (left, right): (BTreeSet<_>, BTreeSet<_>) =
        (members[0].seen().into_iter().collect(), members[1].seen().into_iter().collect());
    assert!(left.is_disjoint(&right), "in a group that rests, no message goes to two members");
    assert!(!left.is_empty() && !right.is_empty());
}

async fn take(stream: &mut MessageStream, count: usize) -> Vec<(i32, i64)> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = timeout(DEADLINE, stream.next()).await.expect("a message in time");
        let message = next.expect("streams never end").expect("a message");
        assert!(!message.payload().is_empty());
        taken.push((message.partition.partition.raw(), message.offset().raw()));
    }
    taken
}

#[test]
fn a_member_rewinds_to_an_offset_a_time_and_the_beginning_and_its_heir_goes_on_there() {
    let server = Server::start(&[]);
    let (cluster, runtime) = (Cluster::of(&server), runtime());
    cluster.create_topic(1);
    let storm = Storm::start(Plan { partitions: 1, ..cluster.plan() });
    storm.wait_for(100);
    storm.end();
    let partition = TopicPartition::new(TOPIC, PartitionId::new(0));
    runtime.block_on(async {
        let consumer = ConsumerConnector::connect(cluster.config("g")).await.expect("a group");
        let mut streams = consumer.create_message_streams(TOPIC, 1).await.expect("streams");
        let offsets =
            |taken: Vec<(i32, i64)>| taken.into_iter().map(|(_, offset)| offset).collect::<Vec<_>>();
        assert_eq!(offsets(take(&mut streams[0], 50).await), (0..50).collect::<Vec<_>>());
        assert_eq!(consumer.position(&partition), Some(Offset::new(50)));
        consumer.rewind(TOPIC, OffsetSpec::Exactly(Offset::new(10))).await.expect("rewound");
        assert_eq!(offsets(take(&mut streams[0], 5).await), (10..15).collect::<Vec<_>>());
        let early = OffsetSpec::At(loggos_protocol::ids::Timestamp::new(1));
        assert_eq!(consumer.seek(partition.clone(), early).await.expect("found"), Offset::new(0));
        assert_eq!(offsets(take(&mut streams[0], 3).await), [0, 1, 2]);
        consumer.rewind(TOPIC, OffsetSpec::Earliest).await.expect("rewound");
        assert_eq!(offsets(take(&mut streams[0], 20).await), (0..20).collect::<Vec<_>>(), "a replay");
        consumer.commit().await.expect("committed");
        consumer.close().await.expect("left");
        assert!(streams[0].next().await.is_none(), "the streams of a closed connector end");
        let heir = ConsumerConnector::connect(cluster.config("g")).await.expect("a group");
        let mut streams = heir.create_message_streams(TOPIC, 2).await.expect("streams");
        heir.settled().await.expect("settled");
        let mut mine = streams.remove(heir.assignment()[0].1);
        assert_eq!(offsets(take(&mut mine, 2).await), [20, 21]);
        let other = TopicPartition::new(TOPIC, PartitionId::new(7));
        let refused = heir.seek(other, OffsetSpec::Earliest).await.expect_err("not its own");
        assert!(refused.to_string().contains("not read by this consumer"), "{refused}");
        let twice = heir.create_message_streams(TOPIC, 1).await.expect_err("once per topic");
        assert!(twice.to_string().contains("already"), "{twice}");
    });
}

#[test]
fn a_group_is_run_in_one_way_and_the_other_kind_is_refused() {
    let server = Server::start(&[]);
    let (cluster, runtime) = (Cluster::of(&server), runtime());
    cluster.create_topic(PARTITIONS);
    let broker_run: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &cluster.bootstrap)
        .set("group.id", "theirs")
        .create()
        .expect("a consumer");
    broker_run.subscribe(&[TOPIC]).expect("subscribed");
    eventually("librdkafka's consumer has joined", || {
        broker_run.poll(Duration::from_millis(50));
        broker_run.assignment().is_ok_and(|assignment| assignment.count() == PARTITIONS as usize)
    });
    let said = loggos(&[
        "consume",
        TOPIC,
        "--group",
        "theirs",
        "--registry",
        &cluster.coordinator,
        "--bootstrap",
        &cluster.bootstrap,
    ]);
    assert_eq!(said.status.code(), Some(2), "{said:?}");
    let said = String::from_utf8(said.stderr).expect("text");
    assert!(said.contains("run by the brokers"), "{said}");
    let _member = Member::start(&cluster, "ours");
    cluster.owned_by(&runtime, "ours", 1);
    let refused: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &cluster.bootstrap)
        .set("group.id", "ours")
        .create()
        .expect("a consumer");
    refused.subscribe(&[TOPIC]).expect("subscribed");
    eventually("librdkafka's consumer is refused", || {
        matches!(refused.poll(Duration::from_millis(50)), Some(Err(_)))
    });
    assert_eq!(cluster.owned_by(&runtime, "ours", 1).len(), PARTITIONS as usize);
}
