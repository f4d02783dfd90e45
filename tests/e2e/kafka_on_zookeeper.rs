//! Apache Kafka 3.9 in ZooKeeper mode on our coordinator: three of its brokers elect a controller, make topics,
//! reassign, serve producers and consumers, while a broker and the coordinator are killed. Minutes long, so that
//! `make interop` alone runs it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tempfile::TempDir;

use crate::process::{binary, free_port, have};

const BROKERS: usize = 3;
const PARTITIONS: i32 = 6;
/// A JVM beside two others on a small machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// A process that ends with its test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(log).expect("a log");
        let errors = log.try_clone().expect("another handle");
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("it starts");
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().expect("a killable child");
        self.0.wait().expect("a killed child ends");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Cluster {
    dir: TempDir,
    jars: PathBuf,
    coordinator: Option<Process>,
    coordinator_port: u16,
    brokers: Vec<Option<Process>>,
    ports: Vec<u16>,
}

impl Cluster {
    fn start(jars: PathBuf) -> Self {
        let dir = TempDir::with_prefix("loggos-kafka-").expect("a temporary directory");
        let ports = (0..BROKERS).map(|_| free_port()).collect();
        let mut cluster =
            Self { dir, jars, coordinator: None, coordinator_port: free_port(), brokers: Vec::new(), ports };
        cluster.start_coordinator();
        for broker in 0..BROKERS {
            let started = cluster.start_broker(broker);
            cluster.brokers.push(Some(started));
        }
        cluster
    }

    fn start_coordinator(&mut self) {
        let mut command = Command::new(binary());
        command
            .args(["coordinator", "--data-dir"])
            .arg(self.dir.path().join("coordinator"))
            .args(["--coordinator-listen", &self.coordinator()])
            .args(["--peer-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
        self.coordinator = Some(Process::start(&mut command, &self.dir.path().join("coordinator.log")));
        let address: SocketAddr = self.coordinator().parse().expect("an address");
        eventually("the coordinator listens", || std::net::TcpStream::connect(address).is_ok());
    }

    fn start_broker(&self, broker: usize) -> Process {
        let home = self.dir.path().join(format!("broker-{broker}"));
        std::fs::create_dir_all(&home).expect("a folder");
        let file = home.join("server.properties");
        let text = format!(
            "broker.id={broker}\nlisteners=PLAINTEXT://127.0.0.1:{}\nzookeeper.connect={}/kafka\nlog.dirs={}\n\
             zookeeper.session.timeout.ms=6000\noffsets.topic.replication.factor=3\nnum.network.threads=2\n\
             transaction.state.log.replication.factor=3\ndefault.replication.factor=3\nmin.insync.replicas=2\n\
             group.initial.rebalance.delay.ms=0\ncontrolled.shutdown.enable=false\nnum.io.threads=2\n",
            self.ports[broker],
            self.coordinator(),
            home.join("logs").display()
        );
        std::fs::write(&file, text).expect("a file");
        let mut command = self.java("-Xmx320m", "kafka.Kafka");
        Process::start(command.arg(file), &home.join("log"))
    }

    fn java(&self, heap: &str, main: &str) -> Command {
        let mut command = Command::new("java");
        command
            .args([heap, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=info", "-cp"])
            .arg(format!("{}/*", self.jars.display()))
            .arg(main);
        command
    }

    /// One of Kafka's own tools, to its end: what it printed.
    fn tool(&self, main: &str, arguments: &[&str]) -> String {
        let mut command = self.java("-Xmx200m", main);
        command.args(arguments).args(["--bootstrap-server", &self.bootstrap()]).stdin(Stdio::null());
        let output = command.output().expect("java runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{main} {arguments:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    fn topics(&self, arguments: &[&str]) -> String {
        self.tool("org.apache.kafka.tools.TopicCommand", arguments)
    }

    fn coordinator(&self) -> String {
        format!("127.0.0.1:{}", self.coordinator_port)
    }

    fn bootstrap(&self) -> String {
        self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",")
    }

    /// A node's text in Kafka's part of the tree, and its stat's version.
    async fn node(&self, path: &str) -> Option<(String, i32)> {
        let client = zookeeper_client::Client::connect(&self.coordinator()).await.ok()?;
        let (data, stat) = client.get_data(&format!("/kafka{path}")).await.ok()?;
        Some((String::from_utf8(data).expect("text"), stat.version))
    }

    async fn controller(&self) -> Option<usize> {
        let (text, _) = self.node("/controller").await?;
        let value: serde_json::Value = serde_json::from_str(&text).ok()?;
        value["brokerid"].as_u64().and_then(|id| usize::try_from(id).ok())
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

async fn produce(bootstrap: &str, numbers: std::ops::Range<u32>) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "180000")
        .create()
        .expect("a producer");
    let sends = numbers.map(|number| {
        let (producer, text) = (producer.clone(), number.to_string());
        async move {
            let record = FutureRecord::to("orders").key(&text).payload(&text);
            producer.send(record, PATIENCE).await.map_err(|(error, _)| error).expect("acknowledged");
        }
    });
    futures::future::join_all(sends).await;
}

/// Every number below `end`, each once.
fn consume(bootstrap: &str, end: u32) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", format!("check-{end}"))
        .set("check.crcs", "true")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset("orders", partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&list).expect("an assignment");
    let mut found = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while found.len() < end as usize {
        assert!(Instant::now() < deadline, "{} of {end} came", found.len());
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) {
            let text = std::str::from_utf8(message.payload().expect("a payload")).expect("text");
            found.push(text.parse::<u32>().expect("a number"));
        }
    }
    found.sort_unstable();
    assert!(found.iter().copied().eq(0..end), "each once");
}

#[test]
#[ignore = "minutes long; make interop runs it"]
fn three_brokers_of_apache_kafka_live_on_our_coordinator() {
    let jars = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/kafka-on-zookeeper/lib");
    if !have("java") {
        return;
    }
    if !jars.join("kafka_2.13-3.9.2.jar").exists() {
        return eprintln!("skipped: Kafka 3.9 isn't there; tests/setup --interop fetches it where Maven is");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut cluster = Cluster::start(jars);
    let registered = |cluster: &Cluster, id: usize| {
        runtime.block_on(cluster.node(&format!("/brokers/ids/{id}"))).is_some()
    };
    for broker in 0..BROKERS {
        eventually("all brokers are registered", || registered(&cluster, broker));
    }
    eventually("a controller", || runtime.block_on(cluster.controller()).is_some());
    let (partitions, bootstrap) = (PARTITIONS.to_string(), cluster.bootstrap());
    cluster.topics(&[
        "--create",
        "--topic",
        "orders",
        "--partitions",
        &partitions,
        "--replication-factor",
        "3",
    ]);
    runtime.block_on(produce(&bootstrap, 0..1000));
    consume(&bootstrap, 1000);

    // The controller dies: another takes its place, in a new epoch.
    let controller = runtime.block_on(cluster.controller()).expect("a controller");
    let (epoch, _) = runtime.block_on(cluster.node("/controller_epoch")).expect("an epoch");
    cluster.brokers[controller].take().expect("it runs").kill();
    eventually("another controller", || {
        runtime.block_on(cluster.controller()).is_some_and(|now| now != controller)
    });
    let (next, _) = runtime.block_on(cluster.node("/controller_epoch")).expect("an epoch");
    assert!(
        next.parse::<u32>().expect("a number") > epoch.parse().expect("a number"),
        "{epoch}, then {next}"
    );
    runtime.block_on(produce(&bootstrap, 1000..2000));
    cluster.brokers[controller] = Some(cluster.start_broker(controller));
    eventually("all replicas in sync", || {
        cluster
            .topics(&["--describe", "--topic", "orders", "--under-replicated-partitions"])
            .trim()
            .is_empty()
    });

    // A reassignment, as the tool writes it into the tree and the controller carries it out.
    let plan = cluster.dir.path().join("plan.json");
    let text = r#"{"version":1,"partitions":[{"topic":"orders","partition":0,"replicas":[1,2]},{"topic":"orders","partition":1,"replicas":[2,0]}]}"#;
    std::fs::write(&plan, text).expect("a file");
    let plan = plan.display().to_string();
    let reassign = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand";
    cluster.tool(reassign, &["--execute", "--reassignment-json-file", &plan]);
    eventually("the reassignment is complete", || {
        !cluster.tool(reassign, &["--verify", "--reassignment-json-file", &plan]).contains("in progress")
    });
    let described = cluster.topics(&["--describe", "--topic", "orders"]);
    let row = described.lines().find(|line| line.contains("Partition: 0\t")).expect("a row").to_owned();
    assert!(row.contains("Replicas: 1,2"), "{described}");

    // The coordinator dies and comes back on its disk: sessions live on, and nobody loses anything.
    let epochs = |cluster: &Cluster| runtime.block_on(cluster.node("/controller_epoch"));
    let before = epochs(&cluster);
    cluster.coordinator.take().expect("it runs").kill();
    cluster.start_coordinator();
    runtime.block_on(produce(&bootstrap, 2000..3000));
    cluster.topics(&["--create", "--topic", "later", "--partitions", "3", "--replication-factor", "3"]);
    assert_eq!(epochs(&cluster), before, "the controller kept its session");
    consume(&bootstrap, 3000);
    cluster.topics(&["--delete", "--topic", "later"]);
    eventually("the topic is gone", || !cluster.topics(&["--list"]).lines().any(|topic| topic == "later"));
}
