//! The Rust client's consumer of broker-run groups (KIP-848), and the client's examples.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use loggos_client::{
    ClusterConfig, ConsumerError, GroupConfig, GroupConsumer, Message, MessageSet, OffsetReset, OffsetSpec,
    Partitioner, Producer, ProducerConfig, Received, Subscription,
};
use loggos_protocol::ids::{Offset, PartitionId, TopicPartition};
use tokio::time::{Instant, timeout};

use crate::process::{DEADLINE, Server, loggos, loggos_ok};

const TOPIC: &str = "shared";
const PARTITIONS: i32 = 4;

fn config(server: &Server, group: &str) -> GroupConfig {
    let config = GroupConfig::new(&server.bootstrap(), group);
    GroupConfig { reset: OffsetReset::Earliest, auto_commit: None, ..config }
}

async fn member(server: &Server, group: &str) -> GroupConsumer {
    let consumer = GroupConsumer::new(config(server, group));
    consumer.subscribe(Subscription::topics([TOPIC])).await.expect("subscribed");
    consumer
}

async fn produce(server: &Server, count: usize) {
    let cluster = ClusterConfig::with_bootstrap(&server.bootstrap());
    let producer = Producer::new(ProducerConfig { cluster, ..ProducerConfig::default() });
    for partition in (0..PARTITIONS).map(PartitionId::new) {
        let set: MessageSet = (0..count).map(|number| Message::of(number.to_string())).collect();
        let set = set.with_partitioner(Partitioner::Fixed(partition));
        let written = producer.send(TOPIC, set).await.expect("queued").await.expect("written");
        assert!(written.iter().all(|at| at.partition == partition));
    }
    producer.close().await.expect("flushed");
}

/// Polls all until the assignment is even, and what they read on the way.
async fn settle(members: &mut [GroupConsumer]) -> Vec<Received> {
    let (deadline, share) = (Instant::now() + DEADLINE, PARTITIONS as usize / members.len());
    let mut read = Vec::new();
    while members.iter().any(|member| member.assignment().len() != share) {
        assert!(
            Instant::now() < deadline,
            "{:?}",
            members.iter().map(GroupConsumer::assignment).collect::<Vec<_>>()
        );
        for member in members.iter_mut() {
            read.extend(member.poll(100, Duration::from_millis(20)).await.expect("a poll"));
            member.commit_soon().await.expect("told");
        }
    }
    read
}

fn place(received: &Received) -> (i32, i64) {
    (received.partition.partition.raw(), received.offset().raw())
}

#[test]
fn members_share_partitions_seek_pause_and_leave_their_offsets_to_their_heirs() {
    let server = Server::start(&[]);
    loggos_ok(&["topic", "create", TOPIC, "--partitions", "4", "--bootstrap", &server.bootstrap()]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut members = vec![member(&server, "g").await];
        settle(&mut members).await;
        members.push(member(&server, "g").await);
        settle(&mut members).await;
        let (left, right) = (members[0].assignment(), members[1].assignment());
        assert!(left.is_disjoint(&right), "{left:?} {right:?}");
        produce(&server, 25).await;
        let mut seen = BTreeSet::new();
        let deadline = Instant::now() + DEADLINE;
        while seen.len() < 100 {
            assert!(Instant::now() < deadline, "{} of 100", seen.len());
            for member in &mut members {
                let records = member.poll(1000, Duration::from_millis(50)).await.expect("a poll");
                for record in &records {
                    assert!(member.assignment().contains(&record.partition));
                    assert!(seen.insert(place(record)), "in a group that rests, each record is read once");
                }
            }
        }
        for member in &members {
            member.commit().await.expect("committed");
        }
        let mut second = members.pop().expect("two");
        let mine = second.assignment().first().cloned().expect("a partition");
        second.seek(&mine, OffsetSpec::Exactly(Offset::new(20))).await.expect("sought");
        second.pause(&mine).expect("its own");
        assert!(
            second.poll(10, Duration::from_millis(200)).await.expect("a poll").is_empty(),
            "it is paused"
        );
        second.resume(&mine).expect("its own");
        let again = timeout(DEADLINE, second.recv()).await.expect("in time").expect("a record");
        assert_eq!(place(&again), (mine.partition.raw(), 20));
        let all: BTreeSet<TopicPartition> =
            (0..PARTITIONS).map(|number| TopicPartition::new(TOPIC, PartitionId::new(number))).collect();
        let committed = second.committed(all.clone()).await.expect("committed");
        assert!(committed.len() == 4 && committed.values().all(|offset| offset.raw() == 25), "{committed:?}");
        // The seek goes to the group with the last commit: its heir reads on from there.
        second.close().await.expect("left");
        let mut next: BTreeSet<(i32, i64)> = settle(&mut members).await.iter().map(place).collect();
        produce(&server, 1).await;
        let mut heir = members.pop().expect("one");
        while next.iter().filter(|(_, offset)| *offset == 25).count() < 4 {
            next.insert(place(&timeout(DEADLINE, heir.recv()).await.expect("in time").expect("a record")));
        }
        let expected = |(partition, offset): &(i32, i64)| {
            *offset == 25 || (*partition == mine.partition.raw() && *offset >= 20)
        };
        assert!(next.iter().all(expected), "{next:?}");
        let stranger = TopicPartition::new(TOPIC, PartitionId::new(9));
        assert!(matches!(heir.pause(&stranger), Err(ConsumerError::NotAssigned { .. })));
        heir.close().await.expect("left");
    });
}

#[test]
fn a_pattern_finds_topics_and_a_killed_broker_is_waited_for() {
    let mut server = Server::start(&[]);
    loggos_ok(&["topic", "create", TOPIC, "--partitions", "4", "--bootstrap", &server.bootstrap()]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let consumer = GroupConsumer::new(config(&server, "pattern"));
        consumer.subscribe(Subscription::Pattern("sha.*".to_owned())).await.expect("subscribed");
        let mut members = vec![consumer];
        settle(&mut members).await;
        server.kill();
        server.restart();
        produce(&server, 3).await;
        let mut seen = BTreeSet::new();
        while seen.len() < 12 {
            let next = timeout(DEADLINE, members[0].recv()).await.expect("in time").expect("a record");
            seen.insert(place(&next));
        }
        members[0].commit().await.expect("committed");
    });
}

#[test]
fn a_group_on_the_command_line_goes_on_where_it_was() {
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", TOPIC, "--partitions", "4", "--bootstrap", &bootstrap]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let consume = || {
        let common = ["consume", TOPIC, "--group", "cli", "--from", "beginning", "--stop-at-end"];
        loggos_ok(&[&common[..], &["--bootstrap", &bootstrap]].concat()).lines().count()
    };
    runtime.block_on(produce(&server, 10));
    assert_eq!(consume(), 40);
    runtime.block_on(produce(&server, 1));
    assert_eq!(consume(), 4);
    let said = loggos(&["consume", TOPIC, "--group", "cli", "--from", "17", "--bootstrap", &bootstrap]);
    assert_eq!(said.status.code(), Some(2), "{said:?}");
}

/// An example that Cargo has built beside this test.
fn example(name: &str, arguments: &[&str]) -> Option<String> {
    let mut path: PathBuf = std::env::current_exe().expect("a path");
    path.pop();
    path.pop();
    let path = path.join("examples").join(name);
    if !path.exists() {
        eprintln!("skipped: {name} isn't built (cargo build -p loggos-client --examples)");
        return None;
    }
    let output = Command::new(path).args(arguments).output().expect("the example starts");
    assert!(output.status.success(), "{name}: {output:?}");
    Some(String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn the_examples_of_the_client_do_what_they_say() {
    let server = Server::start(&[]);
    let (bootstrap, coordinator) =
        (server.bootstrap(), server.addresses().coordinator.expect("its own").to_string());
    for _ in 0..2 {
        if example("paper_producer", &[&bootstrap]).is_none() {
            return;
        }
    }
    let read = example("paper_consumer", &[&bootstrap, &coordinator, "2"]).expect("built");
    assert_eq!(read, "test message str\ntest message str\n");
    let replayed = example("rewind", &[&bootstrap, &coordinator, "2"]).expect("built");
    assert_eq!(replayed.lines().filter(|line| line.starts_with("again: ")).count(), 2, "{replayed}");
    let everyday = example("everyday", &[&bootstrap]).expect("built");
    assert!(everyday.contains("two pairs of sandals"), "{everyday}");
}
