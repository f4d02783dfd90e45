//! The 2011 paper's rule, seen through a real client: a record is exposed only after it was flushed, and when to
//! flush is a count or a time.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::process::{DEADLINE, Server, eventually, loggos_ok};

fn end_of(bootstrap: &str, topic: &str) -> i64 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "x")
        .create()
        .expect("a consumer");
    consumer.fetch_watermarks(topic, 0, DEADLINE).expect("watermarks").1
}

fn producer(bootstrap: &str, acks: &str) -> ThreadedProducer<DefaultProducerContext> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", acks)
        .set("linger.ms", "0")
        .set("message.timeout.ms", "60000")
        .create()
        .expect("a producer")
}

fn send(producer: &ThreadedProducer<DefaultProducerContext>, topic: &str, count: usize) {
    for n in 0..count {
        let payload = n.to_string();
        producer
            .send(BaseRecord::<(), _>::to(topic).partition(0).payload(&payload))
            .expect("a place in the queue");
    }
}

#[test]
fn no_consumer_sees_record_999_until_the_1000th_arrives() {
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    for acks in ["0", "all"] {
        let topic = format!("counted-{acks}");
        loggos_ok(&[
            "topic",
            "create",
            &topic,
            "--config",
            "flush.messages=1000",
            "--config",
            "flush.ms=3600000",
            "--bootstrap",
            &bootstrap,
        ]);
        let producer = producer(&bootstrap, acks);
        send(&producer, &topic, 999);
        if acks == "0" {
            producer.flush(DEADLINE).expect("sent");
        } else {
            let waiting = producer.flush(Duration::from_secs(2));
            assert!(waiting.is_err(), "acks=all waits for the flush");
        }
        // The end offset that clients are shown is the high watermark: had a flush exposed anything, it would show.
        assert_eq!(end_of(&bootstrap, &topic), 0, "nothing is exposed before the flush");
        send(&producer, &topic, 1);
        producer.flush(DEADLINE).expect("the thousandth record flushes them all");
        eventually("all are exposed", || end_of(&bootstrap, &topic) == 1_000);
    }
}

#[test]
fn with_flush_ms_a_record_appears_after_that_time() {
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    loggos_ok(&[
        "topic",
        "create",
        "timed",
        "--config",
        "flush.messages=1000000",
        "--config",
        "flush.ms=500",
        "--bootstrap",
        &bootstrap,
    ]);
    let producer = producer(&bootstrap, "all");
    send(&producer, "timed", 10);
    producer.flush(DEADLINE).expect("flushed by time");
    assert_eq!(end_of(&bootstrap, "timed"), 10);
}
