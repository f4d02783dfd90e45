//! `loggos mirror`: the same records at the same offsets in another cluster, after kills too; groups that move with
//! their offsets; no loops; Apache Kafka on either side (`make interop`).

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;

use crate::process::{DEADLINE, Server, binary, eventually, free_port, loggos, loggos_ok};

/// A running mirror, ended with its test.
struct Mirror {
    child: Child,
    arguments: Vec<String>,
}

impl Mirror {
    fn start(arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Self { child: spawn(&arguments), arguments }
    }

    fn kill_and_restart(&mut self) {
        self.child.kill().expect("a killable child");
        self.child.wait().expect("a killed child ends");
        self.child = spawn(&self.arguments);
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(arguments: &[String]) -> Child {
    let mut command = Command::new(binary());
    command.arg("mirror").args(arguments).stdin(Stdio::null());
    if std::env::var_os("LOGGOS_E2E_LOG").is_none() {
        command.stderr(Stdio::null());
    }
    command.spawn().expect("the mirror starts")
}

fn produce(bootstrap: &str, topic: &str, partitions: i32, numbers: std::ops::Range<u32>) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .create()
        .expect("a producer");
    for number in numbers {
        let (key, text) =
            (format!("key {}", number % 97), format!("{number} {}", "x".repeat(number as usize % 300)));
        let headers = OwnedHeaders::new().insert(Header { key: "number", value: Some(&number.to_string()) });
        let record = BaseRecord::to(topic)
            .key(&key)
            .payload(&text)
            .headers(headers)
            .timestamp(1_700_000_000_000 + i64::from(number))
            .partition(i32::try_from(number).expect("small") % partitions);
        producer.send(record).map_err(|(error, _)| error).expect("queued");
    }
    producer.flush(DEADLINE).expect("acknowledged");
}

/// All records as JSON with their partitions and offsets, in a fixed order.
fn dump(bootstrap: &str, topic: &str) -> Vec<String> {
    let arguments = [
        "consume",
        topic,
        "--from",
        "beginning",
        "--stop-at-end",
        "--format",
        "json",
        "--bootstrap",
        bootstrap,
    ];
    let output = loggos(&arguments);
    let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn same(here: &str, topic: &str, there: &str, target: &str) {
    let wanted = dump(here, topic);
    assert!(!wanted.is_empty());
    let deadline = Instant::now() + DEADLINE;
    while dump(there, target).len() < wanted.len() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    let found = dump(there, target);
    let differs = wanted.iter().zip(&found).find(|(wanted, found)| wanted != found);
    assert_eq!(differs, None);
    assert_eq!(wanted.len(), found.len());
}

fn commit(bootstrap: &str, group: &str, topic: &str, partition: i32, offset: i64) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .create()
        .expect("a consumer");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("an offset");
    consumer.commit(&offsets, CommitMode::Sync).expect("committed");
}

fn committed(bootstrap: &str, group: &str, topic: &str, partition: i32) -> Option<i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .create()
        .expect("a consumer");
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, partition);
    let offsets = consumer.committed_offsets(asked, DEADLINE).ok()?;
    offsets.elements().first().and_then(|one| one.offset().to_raw()).filter(|offset| *offset >= 0)
}

#[test]
fn a_mirror_that_is_killed_leaves_no_gap_and_no_record_twice() {
    let (here, there) = (Server::start(&[]), Server::start(&[]));
    let (from, to) = (here.bootstrap(), there.bootstrap());
    loggos_ok(&["topic", "create", "orders", "--partitions", "3", "--bootstrap", &from]);
    produce(&from, "orders", 3, 0..2_000);
    let mut mirror = Mirror::start(&["--from", &from, "--to", &to, "--topics", "ord.*"]);
    for round in 0..5u32 {
        produce(&from, "orders", 3, 2_000 + round * 8_000..10_000 + round * 8_000);
        std::thread::sleep(Duration::from_millis(u64::from(round) * 150));
        mirror.kill_and_restart();
    }
    same(&from, "orders", &to, "orders");
}

#[test]
fn a_source_that_begins_late_is_mirrored_at_its_offsets() {
    let (here, there) = (Server::start(&[]), Server::start(&[]));
    let (from, to) = (here.bootstrap(), there.bootstrap());
    loggos_ok(&["topic", "create", "late", "--partitions", "1", "--bootstrap", &from]);
    produce(&from, "late", 1, 0..1_000);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let cluster = loggos_client::Cluster::new(loggos_client::ClusterConfig::with_bootstrap(&from));
        let place =
            loggos_protocol::ids::TopicPartition::new("late", loggos_protocol::ids::PartitionId::new(0));
        let admin = loggos_client::Admin::new(cluster);
        admin.delete_records(&place, loggos_protocol::ids::Offset::new(700)).await.expect("deleted");
    });
    loggos_ok(&["mirror", "--once", "--from", &from, "--to", &to, "--topics", "late"]);
    same(&from, "late", &to, "late");
    assert!(dump(&to, "late")[0].contains("\"offset\":700"), "{}", dump(&to, "late")[0]);
}

#[test]
fn groups_move_with_their_offsets_and_nothing_goes_in_circles() {
    let (here, there) = (Server::start(&[]), Server::start(&[]));
    let (a, b) = (here.bootstrap(), there.bootstrap());
    loggos_ok(&["topic", "create", "orders", "--partitions", "2", "--bootstrap", &a]);
    loggos_ok(&["topic", "create", "bills", "--partitions", "1", "--bootstrap", &b]);
    produce(&a, "orders", 2, 0..400);
    produce(&b, "bills", 1, 0..50);
    commit(&a, "readers", "orders", 1, 120);
    let forth = ["--once", "--from", &a, "--to", &b, "--groups", "read.*", "--prefix", "a."];
    let back = ["--once", "--from", &b, "--to", &a, "--prefix", "b."];
    for _ in 0..2 {
        loggos_ok(&[&["mirror"][..], &forth].concat());
        loggos_ok(&[&["mirror"][..], &back].concat());
    }
    same(&a, "orders", &b, "a.orders");
    same(&b, "bills", &a, "b.bills");
    assert_eq!(committed(&b, "readers", "a.orders", 1), Some(120));
    let topics = |bootstrap: &str| loggos_ok(&["topic", "list", "--bootstrap", bootstrap]);
    assert!(!topics(&a).contains("b.a.") && !topics(&b).contains("a.b."), "{} {}", topics(&a), topics(&b));
    // The group goes on in its new home; the mirror doesn't take it back.
    commit(&b, "readers", "a.orders", 1, 150);
    loggos_ok(&[&["mirror"][..], &forth].concat());
    assert_eq!(committed(&b, "readers", "a.orders", 1), Some(150));
}

#[test]
fn a_target_with_another_writer_is_refused() {
    let (here, there) = (Server::start(&[]), Server::start(&[]));
    let (from, to) = (here.bootstrap(), there.bootstrap());
    for bootstrap in [&from, &to] {
        loggos_ok(&["topic", "create", "t", "--partitions", "1", "--bootstrap", bootstrap]);
    }
    produce(&from, "t", 1, 0..100);
    produce(&to, "t", 1, 50..60);
    let output = loggos(&["mirror", "--once", "--from", &from, "--to", &to, "--topics", "t"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("another record at 9"), "{said}");
}

/// Apache Kafka on a free port; `None` where it can't be had.
struct Kafka {
    child: Child,
    bootstrap: String,
    _dir: TempDir,
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kafka() -> Option<Kafka> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let libs = [target.join("peers/kafka-4.3.1/lib"), root.join("target/peers/kafka-4.3.1/lib")];
    let Some(lib) = libs.iter().find(|lib| lib.join(".done").exists()) else {
        eprintln!("skipped: no Apache Kafka (benches/peers/fetch fetches it)");
        return None;
    };
    let dir = TempDir::with_prefix("loggos-kafka-").expect("a directory");
    let (port, controller) = (free_port(), free_port());
    let text = format!(
        "process.roles=broker,controller\nnode.id=1\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\nlog.dirs={}\noffsets.topic.replication.factor=1\n\
         transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
         share.coordinator.state.topic.replication.factor=1\nshare.coordinator.state.topic.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n",
        dir.path().join("data").display()
    );
    let properties = dir.path().join("kafka.properties");
    std::fs::write(&properties, text).expect("writable");
    let classpath = format!("{}/*", lib.display());
    let formatted = Command::new("java")
        .args(["-cp", &classpath, "kafka.tools.StorageTool", "format", "-t", "AAAAAAAAQACAAAAAAAAAAQ", "-c"])
        .arg(&properties)
        .output()
        .expect("Java starts");
    assert!(formatted.status.success(), "{}", String::from_utf8_lossy(&formatted.stderr));
    let child = Command::new("java")
        .args(["-Xmx512m", "-cp", &classpath, "kafka.Kafka"])
        .arg(&properties)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("Java starts");
    let bootstrap = format!("127.0.0.1:{port}");
    let kafka = Kafka { child, bootstrap, _dir: dir };
    eventually("Kafka is up", || TcpStream::connect(&kafka.bootstrap).is_ok());
    Some(kafka)
}

#[test]
#[ignore = "needs Apache Kafka: make interop"]
fn apache_kafka_is_mirrored_to_loggos_and_back() {
    let Some(kafka) = kafka() else { return };
    let here = Server::start(&[]);
    let ours = here.bootstrap();
    loggos_ok(&["topic", "create", "orders", "--partitions", "3", "--bootstrap", &kafka.bootstrap]);
    loggos_ok(&["topic", "create", "bills", "--partitions", "2", "--bootstrap", &ours]);
    produce(&kafka.bootstrap, "orders", 3, 0..60_000);
    produce(&ours, "bills", 2, 0..60_000);
    commit(&kafka.bootstrap, "readers", "orders", 2, 1_234);
    let forth = ["--from", &kafka.bootstrap, "--to", &ours, "--groups", "readers"];
    let mut mirror = Mirror::start(&forth);
    std::thread::sleep(Duration::from_millis(700));
    mirror.kill_and_restart();
    same(&kafka.bootstrap, "orders", &ours, "orders");
    eventually("the group's offset is carried", || committed(&ours, "readers", "orders", 2) == Some(1_234));
    let mut back = Mirror::start(&["--from", &ours, "--to", &kafka.bootstrap]);
    std::thread::sleep(Duration::from_millis(700));
    back.kill_and_restart();
    same(&ours, "bills", &kafka.bootstrap, "bills");
    same(&kafka.bootstrap, "orders", &ours, "orders");
}
