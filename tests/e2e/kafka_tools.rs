//! Apache Kafka's own tools, unmodified, on three of our brokers: topics, configs, reassignments, elections, log
//! directories, as its administrators use them. `make interop` fetches them and runs this.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::failover::Cluster;
use crate::process::{eventually, have};
use crate::storm::{Storm, check};

const RECORDS_BETWEEN: usize = 300;

/// A folder with the tools' jars.
fn jars() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let jars =
        std::env::var_os("LOGGOS_KAFKA_TOOLS").map_or(target.join("peers/kafka-tools/lib"), PathBuf::from);
    if !jars.is_dir() {
        eprintln!("skipped: Kafka's tools aren't there (tests/setup --interop fetches them)");
        return None;
    }
    have("java").then_some(jars)
}

struct Tools {
    jars: PathBuf,
    bootstrap: String,
}

impl Tools {
    /// Runs a tool to its end; what it printed.
    fn run(&self, main: &str, arguments: &[&str]) -> String {
        let output = Command::new("java")
            .args(["-Xmx200m", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(format!("{}/*", self.jars.display()))
            .args([main, "--bootstrap-server", &self.bootstrap])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("java starts");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{main} {arguments:?} failed:\n{out}\n{err}");
        assert!(!out.contains("Error"), "{main} {arguments:?}:\n{out}\n{err}");
        out.into_owned()
    }
}

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
const CONFIGS: &str = "kafka.admin.ConfigCommand";
const REASSIGN: &str = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand";
const ELECT: &str = "org.apache.kafka.tools.LeaderElectionCommand";
const LOG_DIRS: &str = "org.apache.kafka.tools.LogDirsCommand";

#[test]
#[ignore = "long, and needs Apache Kafka's jars: make interop"]
fn apache_kafka_tools_administer_our_brokers() {
    let Some(jars) = jars() else { return };
    let cluster = Cluster::combined(&[]);
    let tools = Tools { jars, bootstrap: cluster.bootstrap() };
    let dir = tempfile::TempDir::with_prefix("loggos-tools-").expect("a temporary directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let create = ["--create", "--topic", "tools", "--partitions", "3", "--replication-factor", "2"];
    tools.run(TOPICS, &[create.as_slice(), &["--config", "retention.ms=86400000"]].concat());
    let described = tools.run(TOPICS, &["--describe", "--topic", "tools"]);
    assert!(
        described.contains("PartitionCount: 3") && described.contains("retention.ms=86400000"),
        "{described}"
    );
    let plan = cluster.plan("tools", 3);
    let storm = Storm::start(plan.clone());
    storm.wait_for(RECORDS_BETWEEN);

    let entity = ["--entity-type", "topics", "--entity-name", "tools"];
    tools.run(
        CONFIGS,
        &[entity.as_slice(), &["--alter", "--add-config", "retention.bytes=1000000000"]].concat(),
    );
    let configs = tools.run(CONFIGS, &[entity.as_slice(), &["--describe"]].concat());
    assert!(configs.contains("retention.bytes=1000000000"), "{configs}");

    let ids: Vec<String> = {
        let first = cluster.first.as_ref().expect("it's there").bootstrap();
        let listed = crate::process::loggos_ok(&["broker", "list", "--bootstrap", &first]);
        listed.lines().skip(1).filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    };
    let topics = file("topics.json", r#"{"topics":[{"topic":"tools"}],"version":1}"#);
    let proposed = tools.run(
        REASSIGN,
        &["--generate", "--topics-to-move-json-file", &topics, "--broker-list", &ids.join(",")],
    );
    assert!(proposed.contains("Proposed partition reassignment configuration"), "{proposed}");
    let lists = |on: [usize; 2]| format!("[{},{}]", ids[on[0]], ids[on[1]]);
    let wanted = [lists([1, 2]), lists([2, 1]), lists([1, 2])];
    let partitions: Vec<String> = wanted
        .iter()
        .enumerate()
        .map(|(number, replicas)| {
            format!(
                r#"{{"topic":"tools","partition":{number},"replicas":{replicas},"log_dirs":["any","any"]}}"#
            )
        })
        .collect();
    let json = file("moves.json", &format!(r#"{{"version":1,"partitions":[{}]}}"#, partitions.join(",")));
    let begun =
        tools.run(REASSIGN, &["--execute", "--reassignment-json-file", &json, "--throttle", "50000000"]);
    assert!(begun.contains("Successfully started partition reassignments"), "{begun}");
    eventually("Kafka's tool finds the reassignment complete", || {
        let verified = tools.run(REASSIGN, &["--verify", "--reassignment-json-file", &json]);
        verified.matches("is completed").count() == 3
    });
    let listed = tools.run(REASSIGN, &["--list"]);
    assert!(listed.contains("No partition reassignments found"), "{listed}");
    for (number, row) in cluster.rows("tools").iter().enumerate() {
        assert_eq!(format!("[{}]", row[3]), wanted[number], "partition {number} is where it was sent");
    }
    let configs = tools.run(CONFIGS, &[entity.as_slice(), &["--describe"]].concat());
    assert!(!configs.contains("throttled"), "--verify takes the throttle back: {configs}");

    tools.run(ELECT, &["--election-type", "preferred", "--all-topic-partitions"]);
    for row in cluster.rows("tools") {
        assert_eq!(
            row[3].split(',').next(),
            Some(row[1].as_str()),
            "partition {} is led by its preferred",
            row[0]
        );
    }
    let dirs = tools.run(LOG_DIRS, &["--describe", "--topic-list", "tools"]);
    assert!(dirs.contains(r#""partition":"tools-0""#), "{dirs}");
    tools.run(TOPICS, &["--alter", "--topic", "tools", "--partitions", "5"]);
    storm.wait_for(RECORDS_BETWEEN);
    check(&plan, &storm.end());
    tools.run(TOPICS, &["--delete", "--topic", "tools"]);
    assert!(!tools.run(TOPICS, &["--list"]).lines().any(|line| line == "tools"));
}
