//! Consumer groups with real clients: partitions are shared, offsets survive their broker, and whoever leaves is
//! replaced.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use loggos_client::registry::Registry;
use loggos_protocol::ids::GroupId;
use loggos_protocol::registry::group::RunBy;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::process::{DEADLINE, Server, eventually, have, loggos_ok};
use crate::zookeeper::ZooKeeper;

fn consumer(bootstrap: &str, group: &str) -> BaseConsumer {
    patient_consumer(bootstrap, group, 6)
}

/// A consumer that may be silent for so many seconds.
fn patient_consumer(bootstrap: &str, group: &str, seconds: u32) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("session.timeout.ms", (seconds * 1000).to_string())
        .set("reconnect.backoff.max.ms", "200")
        .create()
        .expect("a consumer");
    consumer.subscribe(&["shared"]).expect("subscribed");
    consumer
}

/// Sends the numbers, spread over the topic's partitions.
fn produce(bootstrap: &str, partitions: i32, numbers: std::ops::Range<u32>) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .create()
        .expect("a producer");
    for number in numbers {
        let text = number.to_string();
        let partition = i32::try_from(number).expect("small") % partitions;
        let record = BaseRecord::<str, str>::to("shared").payload(&text).partition(partition);
        producer.send(record).map_err(|(error, _)| error).expect("queued");
    }
    producer.flush(DEADLINE).expect("acknowledged");
}

/// Polls all consumers until they have read `count` records together; what each has read.
fn read(consumers: &[&BaseConsumer], count: usize) -> Vec<BTreeSet<u32>> {
    let mut found = vec![BTreeSet::new(); consumers.len()];
    let deadline = Instant::now() + DEADLINE;
    while found.iter().map(BTreeSet::len).sum::<usize>() < count {
        assert!(Instant::now() < deadline, "{found:?} of {count} in time");
        for (consumer, found) in consumers.iter().zip(&mut found) {
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(20)) {
                let text = std::str::from_utf8(message.payload().expect("a value")).expect("text");
                found.insert(text.parse().expect("a number"));
            }
        }
    }
    found
}

/// Polls until each of the consumers has so many partitions.
fn settle(consumers: &[&BaseConsumer], wanted: &[usize]) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let held: Vec<usize> = consumers
            .iter()
            .map(|consumer| {
                assert!(consumer.poll(Duration::from_millis(20)).is_none_or(|polled| polled.is_err()));
                consumer.assignment().expect("an assignment").count()
            })
            .collect();
        if held == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{held:?} instead of {wanted:?}");
    }
}

#[test]
fn two_members_share_the_partitions_and_one_inherits_all() {
    share_and_inherit(&Server::start(&[]));
}

#[test]
fn groups_live_on_a_real_zookeeper_as_on_our_own_coordinator() {
    let Some(zookeeper) = ZooKeeper::start() else { return };
    let ensemble = format!("{}/kafka", zookeeper.address());
    let arguments = ["--coordinator", &ensemble, "--session-timeout-ms", "3000"];
    share_and_inherit(&Server::start(&arguments));
    let elsewhere = format!("{}/other", zookeeper.address());
    let arguments = ["--coordinator", &elsewhere, "--session-timeout-ms", "3000"];
    survive_a_kill(Server::start(&arguments));
}

fn share_and_inherit(server: &Server) {
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "shared", "--partitions", "6", "--bootstrap", &bootstrap]);
    let (one, two) = (consumer(&bootstrap, "pair"), consumer(&bootstrap, "pair"));
    settle(&[&one, &two], &[3, 3]);
    produce(&bootstrap, 6, 0..600);
    let found = read(&[&one, &two], 600);
    assert!(found[0].is_disjoint(&found[1]), "each record goes to one member");
    one.commit_consumer_state(CommitMode::Sync).expect("committed");
    two.commit_consumer_state(CommitMode::Sync).expect("committed");
    drop(two);
    settle(&[&one], &[6]);
    produce(&bootstrap, 6, 600..700);
    let rest = read(&[&one], 100);
    assert_eq!(rest[0], (600..700).collect::<BTreeSet<u32>>(), "what was committed is not read again");
}

#[test]
fn offsets_and_members_survive_a_kill_of_their_broker() {
    survive_a_kill(Server::start(&[]));
}

fn survive_a_kill(mut server: Server) {
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "shared", "--partitions", "3", "--bootstrap", &bootstrap]);
    let member = consumer(&bootstrap, "a group/with ümlauts");
    settle(&[&member], &[3]);
    produce(&bootstrap, 3, 0..300);
    assert_eq!(read(&[&member], 300)[0].len(), 300);
    member.commit_consumer_state(CommitMode::Sync).expect("committed");
    server.kill();
    server.restart();
    produce(&bootstrap, 3, 300..400);
    assert_eq!(read(&[&member], 100)[0], (300..400).collect::<BTreeSet<u32>>(), "it goes on where it was");
    member.commit_consumer_state(CommitMode::Sync).expect("committed");
    drop(member);
    let heir = consumer(&bootstrap, "a group/with ümlauts");
    produce(&bootstrap, 3, 400..420);
    assert_eq!(read(&[&heir], 20)[0], (400..420).collect::<BTreeSet<u32>>(), "an heir goes on where it was");
    let committed = heir.committed(DEADLINE).expect("told");
    let sum: i64 = committed.elements().iter().filter_map(|place| place.offset().to_raw()).sum();
    assert_eq!(sum, 400, "what was committed last");
}

#[test]
fn kcat_joins_a_group_and_reads_everything_once() {
    if !have("kcat") {
        return;
    }
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "shared", "--partitions", "4", "--bootstrap", &bootstrap]);
    produce(&bootstrap, 4, 0..200);
    let join = |from: &str| {
        let output = Command::new("kcat")
            .args(["-b", &bootstrap, "-G", "kcats", "-q", "-e", "-X", "auto.offset.reset=earliest", from])
            .stdin(Stdio::null())
            .output()
            .expect("kcat starts");
        String::from_utf8(output.stdout).expect("text").lines().count()
    };
    assert_eq!(join("shared"), 200);
    assert_eq!(join("shared"), 0, "they are committed");
}

/// Every partition's offset, as any consumer of the group is told.
fn committed(consumer: &BaseConsumer) -> Vec<i64> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match consumer.committed(DEADLINE) {
            Ok(told) => return told.elements().iter().filter_map(|place| place.offset().to_raw()).collect(),
            // librdkafka looks for the group's broker again, and leaves the rest to us.
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

#[test]
fn a_lost_broker_s_groups_go_on_elsewhere_without_a_rejoin() {
    let replicated = ["--set", "default.replication.factor=3"];
    let first = Server::start(&replicated);
    let coordinator = first.addresses().coordinator.expect("built in").to_string();
    let arguments = [&["--coordinator", coordinator.as_str()], &replicated[..]].concat();
    let mut others = [Server::start(&arguments), Server::start(&arguments)];
    let bootstrap = [first.bootstrap(), others[0].bootstrap(), others[1].bootstrap()].join(",");
    loggos_ok(&["topic", "create", "shared", "--partitions", "6", "--bootstrap", &first.bootstrap()]);
    // Enough groups that each broker runs some.
    let names: Vec<String> = (0..6).map(|n| format!("takeover-{n}")).collect();
    let members: Vec<BaseConsumer> =
        names.iter().map(|name| patient_consumer(&bootstrap, name, 60)).collect();
    let all: Vec<&BaseConsumer> = members.iter().collect();
    settle(&all, &[6; 6]);
    produce(&bootstrap, 6, 0..600);
    let found = read(&all, 6 * 600);
    assert!(found.iter().all(|found| found.len() == 600));
    for member in &members {
        member.commit_consumer_state(CommitMode::Sync).expect("committed");
    }
    let tree = Tree::connect(&coordinator);
    let generation = |name: &String| tree.json(&format!("/consumers/{name}"))["generation"].clone();
    let before: Vec<_> = names.iter().map(generation).collect();
    for (round, victim) in others.iter_mut().enumerate() {
        let from = 600 + u32::try_from(round).expect("two") * 60;
        victim.kill();
        produce(&bootstrap, 6, from..from + 60);
        let found = read(&all, 6 * 60);
        let expected: BTreeSet<u32> = (from..from + 60).collect();
        assert!(found.iter().all(|found| *found == expected), "what was committed is not read again");
        for member in &members {
            member.commit_consumer_state(CommitMode::Sync).expect("committed");
        }
        victim.restart();
    }
    let after: Vec<_> = names.iter().map(generation).collect();
    assert_eq!(before, after, "nobody had to join again");
    for member in &members {
        assert_eq!(committed(member).iter().sum::<i64>(), 720);
    }
}

/// The registry, as any ZooKeeper client sees it.
struct Tree {
    runtime: tokio::runtime::Runtime,
    registry: Registry,
}

impl Tree {
    fn connect(coordinator: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let connecting = Registry::connect(coordinator, Duration::from_secs(10));
        let registry = runtime.block_on(connecting).expect("the coordinator answers");
        Self { runtime, registry }
    }

    fn get(&self, path: &str) -> Option<String> {
        let node = self.runtime.block_on(self.registry.session().get(path)).expect("an answer");
        node.map(|node| String::from_utf8(node.data).expect("text"))
    }

    fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.get(path).unwrap_or_else(|| panic!("{path} is there"))).expect("JSON")
    }

    fn children(&self, path: &str) -> Vec<String> {
        self.runtime.block_on(self.registry.session().children(path)).expect("an answer")
    }

    fn put(&self, path: &str, data: &str) {
        let session = self.registry.session();
        self.runtime.block_on(session.create_if_absent(path, data.as_bytes())).expect("made");
    }
}

#[test]
fn membership_ownership_and_offsets_stand_in_the_tree() {
    let server = Server::start(&["--set", "offsets.retention.check.interval.ms=200"]);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "shared", "--partitions", "4", "--bootstrap", &bootstrap]);
    let tree = Tree::connect(&server.addresses().coordinator.expect("built in").to_string());
    let (one, two) = (consumer(&bootstrap, "seen"), consumer(&bootstrap, "seen"));
    settle(&[&one, &two], &[2, 2]);
    produce(&bootstrap, 4, 0..40);
    read(&[&one, &two], 40);
    one.commit_consumer_state(CommitMode::Sync).expect("committed");
    two.commit_consumer_state(CommitMode::Sync).expect("committed");
    let head = tree.json("/consumers/seen");
    assert_eq!((&head["run_by"], &head["rebalancing"]), (&"broker".into(), &false.into()), "{head}");
    let ids = tree.children("/consumers/seen/ids");
    assert_eq!(ids.len(), 2);
    let member = tree.json(&format!("/consumers/seen/ids/{}", ids[0]));
    assert_eq!(member["subscription"]["shared"], 1, "{member}");
    let mut held = std::collections::BTreeMap::new();
    for partition in 0..4 {
        let owner =
            tree.get(&format!("/consumers/seen/owners/shared/{partition}")).expect("somebody holds it");
        *held.entry(owner).or_insert(0) += 1;
        assert_eq!(tree.json(&format!("/consumers/seen/offsets/shared/{partition}"))["offset"], 10);
    }
    assert_eq!(held.values().collect::<Vec<_>>(), vec![&2, &2], "{held:?}");
    drop(two);
    settle(&[&one], &[4]);
    eventually("the heir holds everything", || tree.children("/consumers/seen/ids").len() == 1);
    drop(one);
    eventually("nobody holds anything", || tree.children("/consumers/seen/owners/shared").is_empty());
    // A topic's offsets go with it, and another one of its name has none.
    loggos_ok(&["topic", "delete", "shared", "--bootstrap", &bootstrap]);
    eventually("the offsets are gone", || tree.children("/consumers/seen/offsets").is_empty());
    eventually("nothing is left of the group", || tree.get("/consumers/seen").is_none());
}

#[test]
fn who_comes_first_says_who_runs_a_group() {
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "shared", "--partitions", "1", "--bootstrap", &bootstrap]);
    let tree = Tree::connect(&server.addresses().coordinator.expect("built in").to_string());
    let mark = |group: &str| {
        let group = GroupId::new(group);
        let marked = tree.registry.mark_group(&group, RunBy::Members);
        tree.runtime.block_on(marked).expect("an answer")
    };
    assert_eq!(mark("theirs"), RunBy::Members);
    let refused = consumer(&bootstrap, "theirs");
    let deadline = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < deadline, "the consumer is told");
        if let Some(Err(error)) = refused.poll(Duration::from_millis(50)) {
            let code = error.rdkafka_error_code();
            if code == Some(rdkafka::types::RDKafkaErrorCode::InconsistentGroupProtocol) {
                break;
            }
        }
    }
    let member = consumer(&bootstrap, "ours");
    settle(&[&member], &[1]);
    assert_eq!(mark("ours"), RunBy::Broker, "its members are told that a broker runs it");
    // What they hold and where they are is shown like anybody's.
    for (path, data) in [
        ("ids", ""),
        ("ids/c_1", r#"{"version":1,"subscription":{"shared":1},"pattern":"static","timestamp":"1"}"#),
        ("owners", ""),
        ("owners/shared", ""),
        ("owners/shared/0", "c_1-0"),
        ("offsets", ""),
        ("offsets/shared", ""),
        ("offsets/shared/0", "0"),
    ] {
        tree.put(&format!("/consumers/theirs/{path}"), data);
    }
    let described = loggos_ok(&["group", "describe", "theirs", "--bootstrap", &bootstrap]);
    let row = described.lines().find(|line| line.starts_with("shared")).expect("its partition").to_owned();
    let row: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(row[1..6], ["0", "0", "0", "0", "c_1"], "{described}");
    let listed = loggos_ok(&["group", "list", "--bootstrap", &bootstrap]);
    assert!(listed.contains("theirs"), "{listed}");
    // Consumers of Kafka 0.8 mark nothing; they are there all the same.
    tree.put("/consumers/old", "");
    tree.put("/consumers/old/ids", "");
    tree.put("/consumers/old/ids/c", "{}");
    let mut client = crate::wire::Client::connect(&server);
    assert_eq!(client.heartbeat("old").error_code, 23);
}

#[test]
fn old_offsets_expire_and_what_groups_hold_is_bounded() {
    let server = Server::start(&[
        "--set",
        "offsets.retention.check.interval.ms=100",
        "--set",
        "loggos.group.offsets.max=3",
    ]);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "shared", "--partitions", "5", "--bootstrap", &bootstrap]);
    let mut client = crate::wire::Client::connect(&server);
    assert_eq!(client.commit("small", &[0, 1]), vec![0, 0]);
    assert_eq!(client.commit("large", &[0, 1]), vec![28, 28], "one too many");
    assert_eq!(client.commit("small", &[1]), vec![0], "what there is may go on");
    assert_eq!(client.commit("large", &[2]), vec![0], "as long as there is room");
    assert_eq!(client.commit("small", &[7]), vec![3], "there is no such partition");
    let tree = Tree::connect(&server.addresses().coordinator.expect("built in").to_string());
    assert_eq!(tree.children("/consumers"), vec!["large", "small"]);
    // An offset of two weeks ago, which is longer than anybody keeps one.
    let old = r#"{"offset":5,"leader_epoch":-1,"timestamp":1500000000000}"#;
    let head = r#"{"version":1,"run_by":"broker","generation":4,"empty_since":1500000000000}"#;
    tree.put("/consumers/old", head);
    for (path, data) in [("", ""), ("/shared", ""), ("/shared/0", old)] {
        tree.put(&format!("/consumers/old/offsets{path}"), data);
    }
    assert_eq!(client.heartbeat("old").error_code, 25, "nobody is in it");
    eventually("it is gone", || tree.get("/consumers/old").is_none());
    assert_eq!(tree.children("/consumers"), vec!["large", "small"]);
}

#[test]
fn the_command_line_lists_describes_resets_and_deletes_groups() {
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    let group = |arguments: &[&str]| {
        let all = [&["group"], arguments, &["--bootstrap", &bootstrap]].concat();
        crate::process::loggos(&all)
    };
    let said = |arguments: &[&str]| {
        let output = group(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let refused = |arguments: &[&str]| {
        let output = group(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    let words = |text: &str, first: &str| -> Vec<Vec<String>> {
        let rows = text.lines().filter(|line| line.starts_with(first));
        rows.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    loggos_ok(&["topic", "create", "shared", "--partitions", "2", "--bootstrap", &bootstrap]);
    let member = consumer(&bootstrap, "told");
    settle(&[&member], &[2]);
    produce(&bootstrap, 2, 0..20);
    read(&[&member], 20);
    member.commit_consumer_state(CommitMode::Sync).expect("committed");
    produce(&bootstrap, 2, 20..26);
    assert_eq!(words(&said(&["list"]), "told"), [["told", "classic", "Stable"]]);
    let described = said(&["describe", "told"]);
    let rows = words(&described, "shared");
    assert_eq!(rows.len(), 2, "{described}");
    for row in &rows {
        assert_eq!((row[2].as_str(), row[3].as_str(), row[4].as_str()), ("10", "13", "3"), "{described}");
        assert_eq!(row[6], "/127.0.0.1", "{described}");
    }
    assert!(described.contains("state Stable\n") && described.contains("members 1\n"), "{described}");
    assert!(refused(&["delete", "told"]).contains("has members"));
    assert!(refused(&["reset-offsets", "told", "--to-earliest", "--execute"]).contains("has members"));
    drop(member);
    eventually("it has left", || said(&["describe", "told"]).contains("state Empty"));
    let news = |arguments: &[&str]| -> Vec<String> {
        let all = [&["reset-offsets", "told"], arguments].concat();
        words(&said(&all), "shared").iter().map(|row| row[3].clone()).collect()
    };
    assert_eq!(news(&["--to-earliest"]), ["0", "0"]);
    assert_eq!(news(&["--to-latest"]), ["13", "13"]);
    assert_eq!(news(&["--to-offset", "12"]), ["12", "12"]);
    assert_eq!(news(&["--to-offset", "99"]), ["13", "13"], "as near as there are records");
    assert_eq!(news(&["--by-duration", "1h"]), ["0", "0"]);
    assert_eq!(news(&["--to-time", "2200-01-01T00:00:00Z"]), ["13", "13"]);
    assert_eq!(words(&said(&["describe", "told"]), "shared")[0][2], "10", "nothing was changed so far");
    assert_eq!(news(&["--to-offset", "4", "--execute"]), ["4", "4"]);
    assert_eq!(words(&said(&["describe", "told"]), "shared")[0][2], "4");
    let heir = consumer(&bootstrap, "told");
    assert_eq!(read(&[&heir], 18)[0], (8..26).collect::<BTreeSet<u32>>(), "from there on");
    drop(heir);
    eventually("it has left", || said(&["describe", "told"]).contains("state Empty"));
    said(&["delete", "told"]);
    assert!(refused(&["describe", "told"]).contains("GROUP_ID_NOT_FOUND"));
    assert!(words(&said(&["list"]), "told").is_empty());
}
