//! Consumer groups with real clients: partitions are shared, offsets survive their broker, and whoever leaves is
//! replaced.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::process::{DEADLINE, Server, have, loggos_ok};

fn consumer(bootstrap: &str, group: &str) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("session.timeout.ms", "6000")
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
    let server = Server::start(&[]);
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
    let mut server = Server::start(&[]);
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
