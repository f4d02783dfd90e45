//! The real librdkafka: every codec and acknowledgement, idempotence, consuming by offset and by time, admin.

use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};

use crate::process::{DEADLINE, Server, loggos_ok};

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
const ACKS: [&str; 3] = ["0", "1", "all"];

fn producer(bootstrap: &str, settings: &[(&str, &str)]) -> FutureProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("message.timeout.ms", "60000").set("linger.ms", "5");
    for (key, value) in settings {
        config.set(*key, *value);
    }
    config.create().expect("a producer")
}

fn consumer(bootstrap: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "by-hand")
        .set("enable.auto.commit", "false")
        .set("check.crcs", "true")
        .set("auto.offset.reset", "error")
        .create()
        .expect("a consumer")
}

fn assign(consumer: &BaseConsumer, topic: &str, partition: i32, offset: Offset) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, offset).expect("an offset");
    consumer.assign(&list).expect("an assignment");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn send(
    producer: &FutureProducer,
    topic: &str,
    payload: &str,
    timestamp: i64,
) -> Result<i64, KafkaError> {
    let headers = OwnedHeaders::new().insert(Header { key: "origin", value: Some("e2e") });
    let record =
        FutureRecord::to(topic).partition(0).key("k").payload(payload).timestamp(timestamp).headers(headers);
    producer.send(record, DEADLINE).await.map(|delivery| delivery.offset).map_err(|(error, _)| error)
}

#[test]
fn every_codec_and_acknowledgement_comes_back_byte_identical() {
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    let runtime = runtime();
    for codec in CODECS {
        for acks in ACKS {
            let topic = format!("codec-{codec}-{acks}");
            loggos_ok(&["topic", "create", &topic, "--partitions", "1", "--bootstrap", &bootstrap]);
            let producer = producer(&bootstrap, &[("compression.type", codec), ("acks", acks)]);
            let payloads: Vec<String> =
                (0..200).map(|n| format!("{codec}/{acks} {n} {}", "x".repeat(n))).collect();
            runtime.block_on(async {
                let sends = payloads
                    .iter()
                    .enumerate()
                    .map(|(n, payload)| send(&producer, &topic, payload, 1_000 + n as i64));
                for sent in futures::future::join_all(sends).await {
                    sent.expect("a delivery");
                }
            });
            let consumer = consumer(&bootstrap);
            assign(&consumer, &topic, 0, Offset::Beginning);
            for (n, payload) in payloads.iter().enumerate() {
                let message = consumer.poll(DEADLINE).expect("a record in time").expect("a record");
                assert_eq!(message.offset(), n as i64);
                assert_eq!(message.payload(), Some(payload.as_bytes()));
                assert_eq!(message.key(), Some(&b"k"[..]));
                assert_eq!(message.timestamp().to_millis(), Some(1_000 + n as i64));
                let headers = message.headers().expect("headers");
                assert_eq!(headers.get(0).value, Some(&b"e2e"[..]));
            }
        }
    }
}

#[test]
fn a_consumer_starts_at_an_offset_or_at_a_time_and_rewinds() {
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "times", "--partitions", "1", "--bootstrap", &bootstrap]);
    let producer = producer(&bootstrap, &[("acks", "all"), ("enable.idempotence", "true")]);
    runtime().block_on(async {
        let sends: Vec<String> = (0..100).map(|n| format!("record {n}")).collect();
        let sends = sends
            .iter()
            .enumerate()
            .map(|(n, payload)| send(&producer, "times", payload, 10_000 + 10 * n as i64));
        for sent in futures::future::join_all(sends).await {
            sent.expect("a delivery");
        }
    });
    let consumer = consumer(&bootstrap);
    assert_eq!(consumer.fetch_watermarks("times", 0, DEADLINE).expect("watermarks"), (0, 100));
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition_offset("times", 0, Offset::Offset(10_405)).expect("a time");
    let found = consumer.offsets_for_times(wanted, DEADLINE).expect("offsets for times");
    assert_eq!(found.elements()[0].offset(), Offset::Offset(41), "the first record at or after the time");
    assign(&consumer, "times", 0, Offset::Offset(41));
    let first = consumer.poll(DEADLINE).expect("in time").expect("a record");
    assert_eq!((first.offset(), first.payload()), (41, Some(&b"record 41"[..])));
    consumer.seek("times", 0, Offset::Offset(7), DEADLINE).expect("a rewind");
    let again = loop {
        let message = consumer.poll(DEADLINE).expect("in time").expect("a record");
        if message.offset() < 41 {
            break message;
        }
    };
    assert_eq!(again.offset(), 7);
}

#[test]
fn topics_are_administered_as_on_kafka() {
    let server = Server::start(&["--set", "auto.create.topics.enable=false"]);
    let bootstrap = server.bootstrap();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &bootstrap).create().expect("an admin client");
    let options = AdminOptions::new().operation_timeout(Some(DEADLINE)).request_timeout(Some(DEADLINE));
    runtime().block_on(async {
        let topic = NewTopic::new("managed", 3, TopicReplication::Fixed(1)).set("retention.ms", "60000");
        let made = admin.create_topics([&topic], &options).await.expect("an answer");
        assert_eq!(made, vec![Ok("managed".to_owned())]);
        let again = admin.create_topics([&topic], &options).await.expect("an answer");
        assert_eq!(again, vec![Err(("managed".to_owned(), RDKafkaErrorCode::TopicAlreadyExists))]);

        let bad = NewTopic::new("bad/name", 1, TopicReplication::Fixed(1));
        let refused = admin.create_topics([&bad], &options).await.expect("an answer");
        assert_eq!(refused, vec![Err(("bad/name".to_owned(), RDKafkaErrorCode::InvalidTopic))]);

        let more =
            admin.create_partitions([&NewPartitions::new("managed", 5)], &options).await.expect("an answer");
        assert_eq!(more, vec![Ok("managed".to_owned())]);

        let resource = ResourceSpecifier::Topic("managed");
        let described = admin.describe_configs([&resource], &options).await.expect("an answer");
        let described = described.into_iter().next().expect("one").expect("configs");
        assert_eq!(
            described.get("retention.ms").and_then(|entry| entry.value.clone()).as_deref(),
            Some("60000")
        );

        let altered = admin
            .alter_configs([&AlterConfig::new(resource).set("retention.ms", "120000")], &options)
            .await
            .expect("an answer");
        assert!(altered[0].is_ok(), "{altered:?}");
        let described = admin
            .describe_configs([&ResourceSpecifier::Topic("managed")], &options)
            .await
            .expect("an answer");
        let described = described.into_iter().next().expect("one").expect("configs");
        assert_eq!(
            described.get("retention.ms").and_then(|entry| entry.value.clone()).as_deref(),
            Some("120000")
        );
    });
    let consumer = consumer(&bootstrap);
    let metadata = consumer.fetch_metadata(Some("managed"), DEADLINE).expect("metadata");
    assert_eq!(metadata.topics()[0].partitions().len(), 5);
    runtime().block_on(async {
        let gone = admin.delete_topics(&["managed"], &options).await.expect("an answer");
        assert_eq!(gone, vec![Ok("managed".to_owned())]);
        let again = admin.delete_topics(&["managed"], &options).await.expect("an answer");
        assert_eq!(again, vec![Err(("managed".to_owned(), RDKafkaErrorCode::UnknownTopicOrPartition))]);
    });
    let metadata = consumer.fetch_metadata(None, DEADLINE).expect("metadata");
    assert!(metadata.topics().iter().all(|topic| topic.name() != "managed"));
}

#[test]
fn a_record_that_is_too_large_is_refused_and_the_connection_lives_on() {
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "small", "--config", "max.message.bytes=1000", "--bootstrap", &bootstrap]);
    let producer = producer(&bootstrap, &[("message.max.bytes", "1000000")]);
    runtime().block_on(async {
        let refused = send(&producer, "small", &"x".repeat(5_000), 1).await;
        assert!(
            matches!(refused, Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge))),
            "{refused:?}"
        );
        assert_eq!(send(&producer, "small", "fits", 2).await.expect("a delivery"), 0);
    });
}

#[test]
fn a_consumer_that_lags_behind_retention_resumes_at_the_log_start() {
    let server = Server::start(&["--set", "log.retention.check.interval.ms=50"]);
    let bootstrap = server.bootstrap();
    loggos_ok(&[
        "topic",
        "create",
        "short",
        "--config",
        "segment.bytes=20000",
        "--config",
        "retention.bytes=40000",
        "--config",
        "retention.ms=-1",
        "--bootstrap",
        &bootstrap,
    ]);
    let producer = producer(&bootstrap, &[("acks", "all"), ("batch.size", "4000")]);
    runtime().block_on(async {
        let payload = "y".repeat(1_000);
        let sends = (0..300).map(|n| send(&producer, "short", &payload, 1_000 + n));
        for sent in futures::future::join_all(sends).await {
            sent.expect("a delivery");
        }
    });
    let check = consumer(&bootstrap);
    crate::process::eventually("old segments go", || {
        check.fetch_watermarks("short", 0, DEADLINE).is_ok_and(|(low, _)| low > 100)
    });
    let lagging: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &bootstrap)
        .set("group.id", "by-hand")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .create()
        .expect("a consumer");
    assign(&lagging, "short", 0, Offset::Offset(3));
    let message = lagging.poll(DEADLINE).expect("in time").expect("a record");
    let (low, _) = check.fetch_watermarks("short", 0, DEADLINE).expect("watermarks");
    assert!(
        message.offset() > 100 && message.offset() <= low.max(message.offset()),
        "at the log start, not at 3"
    );
    let strict = consumer(&bootstrap);
    assign(&strict, "short", 0, Offset::Offset(3));
    let refused = strict.poll(Duration::from_secs(30)).expect("in time");
    assert!(refused.is_err(), "out of range is an error where no reset is asked for: {refused:?}");
}
