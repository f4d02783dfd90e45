//! The clients against a broker that is a few hundred lines, in the same process: what crosses the wire, and what
//! happens when it's cut.

mod stub;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use loggos_client::{
    Acks, ClientError, ClusterConfig, Connection, ConsumerConfig, Message, OffsetSpec, Producer,
    ProducerConfig, Reader, SimpleConsumer,
};
use loggos_protocol::ids::{Offset, PartitionId, TopicName, TopicPartition};
use loggos_protocol::kafka::messages::MetadataRequest;
use loggos_protocol::kafka::{ApiKey, ErrorCode};
use tokio::time::{Instant, timeout};

use crate::stub::{Stub, TOPIC};

/// Longer than anything takes here, on any machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn topic() -> TopicName {
    TopicName::from(TOPIC)
}

fn cluster(stub: &Stub) -> ClusterConfig {
    let short = Duration::from_millis(1);
    ClusterConfig { retry_backoff: short, ..ClusterConfig::with_bootstrap(&stub.address) }
}

fn producer(stub: &Stub, config: ProducerConfig) -> Producer {
    Producer::new(ProducerConfig { cluster: cluster(stub), ..config })
}

fn consumer(stub: &Stub) -> SimpleConsumer {
    SimpleConsumer::new(ConsumerConfig { cluster: cluster(stub), ..ConsumerConfig::default() })
}

/// All values of the topic, by partition.
async fn read_all(stub: &Stub, partitions: usize, count: usize) -> Vec<Vec<u64>> {
    let mut reader =
        Reader::of_topic(consumer(stub), &topic(), OffsetSpec::Earliest).await.expect("a reader");
    let mut found = vec![Vec::new(); partitions];
    let deadline = Instant::now() + DEADLINE;
    while found.iter().map(Vec::len).sum::<usize>() < count {
        assert!(Instant::now() < deadline, "{found:?}");
        for (partition, fetched) in reader.poll(Duration::from_millis(100)).await.expect("records") {
            let values = fetched.records.iter().map(|record| {
                let value = record.value.as_ref().expect("a value");
                u64::from_be_bytes(value[..].try_into().expect("eight bytes"))
            });
            found[partition.partition.raw() as usize].extend(values);
        }
    }
    found
}

#[tokio::test]
async fn answers_find_their_requests_and_a_broken_connection_fails_them_all() {
    let stub = Stub::start(1).await;
    let connection =
        Connection::open(&stub.address, "test", Instant::now() + DEADLINE).await.expect("a connection");
    assert_eq!(connection.version_of(ApiKey::Produce), Some(12), "the last version with names");
    assert_eq!(connection.version_of(ApiKey::JoinGroup), None, "not served here");
    let metadata = MetadataRequest::default().with_topics(None);
    let pending: Vec<_> = {
        let each = (0..20).map(|_| connection.begin(&metadata, DEADLINE));
        futures::future::try_join_all(each).await.expect("sent")
    };
    for pending in pending {
        assert_eq!(pending.answer().await.expect("an answer").controller_id.0, 1);
    }
    stub.faults.cut_before_produce.store(1, Ordering::SeqCst);
    let produce = loggos_protocol::kafka::messages::ProduceRequest::default().with_acks(1);
    let first = connection.begin(&produce, DEADLINE).await.expect("sent");
    let second = connection.begin(&metadata, DEADLINE).await;
    assert!(matches!(first.answer().await, Err(ClientError::Disconnected { .. })));
    if let Ok(second) = second {
        assert!(matches!(second.answer().await, Err(ClientError::Disconnected { .. })));
    }
    assert!(connection.is_broken());
    assert!(matches!(connection.call(&metadata, DEADLINE).await, Err(ClientError::Disconnected { .. })));
    let gone = Connection::open("127.0.0.1:1", "test", Instant::now() + DEADLINE).await;
    assert!(matches!(gone, Err(ClientError::Connect { .. })));
}

/// Sends 0.. and checks that all are acknowledged; gives the offsets.
async fn send_all(producer: &Producer, count: u64) -> Vec<(PartitionId, Offset)> {
    let mut deliveries = Vec::new();
    for value in 0..count {
        let message = Message::of(value.to_be_bytes().to_vec());
        deliveries.push(producer.queue(&topic(), None, message).await.expect("queued"));
    }
    timeout(DEADLINE, producer.flush()).await.expect("in time").expect("flushed");
    let mut places = Vec::new();
    for delivery in deliveries {
        let meta = delivery.await.expect("written");
        places.push((meta.partition, meta.offset));
    }
    places
}

#[tokio::test]
async fn numbered_records_survive_cuts_and_lost_leaders_once_and_in_order() {
    let stub = Stub::start(3).await;
    stub.faults.unknown_topic.store(2, Ordering::SeqCst);
    let config = ProducerConfig { batch_bytes: 200, max_request_bytes: 1_000, ..ProducerConfig::default() };
    let producer = producer(&stub, config);
    let faults = Arc::clone(&stub);
    let places = {
        let first = send_all(&producer, 50).await;
        faults.faults.cut_before_produce.store(2, Ordering::SeqCst);
        faults.faults.cut_after_produce.store(3, Ordering::SeqCst);
        faults.faults.not_leader.store(4, Ordering::SeqCst);
        assert_eq!(first.len(), 50);
        send_all(&producer, 2_000).await
    };
    assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), 2_000, "each record has its place");
    let found = read_all(&stub, 3, 2_050).await;
    assert_eq!(found.iter().map(Vec::len).sum::<usize>(), 2_050, "none twice");
    for (value, (partition, offset)) in places.iter().enumerate() {
        assert_eq!(found[partition.raw() as usize][offset.raw() as usize], value as u64);
    }
    assert!(found.iter().all(|values| !values.is_empty()), "all partitions take part");
    producer.close().await.expect("closed");
    let late = producer.queue(&topic(), None, Message::of("x")).await;
    assert!(matches!(late, Err(ClientError::Closed)));
}

#[tokio::test]
async fn a_small_buffer_pushes_back_and_without_acks_nothing_is_waited_for() {
    let stub = Stub::start(2).await;
    let config =
        ProducerConfig { acks: Acks::None, buffer_bytes: 500, linger: DEADLINE, ..ProducerConfig::default() };
    let producer = producer(&stub, config);
    let places = timeout(DEADLINE, send_all(&producer, 300)).await.expect("in time");
    assert!(places.iter().all(|(_, offset)| *offset == Offset::new(-1)));
    let found = read_all(&stub, 2, 300).await;
    assert_eq!(found.iter().flatten().collect::<BTreeSet<_>>().len(), 300);
}

#[tokio::test]
async fn fetches_begin_where_they_are_told_and_say_what_is_gone() {
    let stub = Stub::start(1).await;
    let producer = producer(&stub, ProducerConfig { batch_bytes: 150, ..ProducerConfig::default() });
    send_all(&producer, 100).await;
    let (consumer, partition) = (consumer(&stub), TopicPartition::new(TOPIC, PartitionId::new(0)));
    let fetched = consumer.fetch(&partition, Offset::new(37), 1_000, Duration::ZERO).await.expect("records");
    assert_eq!(fetched.records[0].offset, Offset::new(37), "in the middle of a batch");
    assert_eq!(fetched.high_watermark, Offset::new(100));
    assert_eq!(fetched.next, fetched.records.last().expect("records").offset.next());
    stub.truncate_front(0, 50);
    let gone = consumer.fetch(&partition, Offset::new(3), 1_000, Duration::ZERO).await;
    let Err(ClientError::OffsetOutOfRange { log_start, end, .. }) = gone else { panic!("{gone:?}") };
    assert_eq!((log_start, end), (Offset::new(50), Offset::new(100)));
    let mut reader = Reader::new(consumer.clone(), [(partition.clone(), Offset::new(3))]);
    let refused = loop {
        match reader.poll(Duration::from_millis(50)).await {
            Ok(found) => assert!(found.is_empty()),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ClientError::OffsetOutOfRange { .. }));
    for start in [90, 60] {
        reader.seek(partition.clone(), Offset::new(start));
        let mut offsets = Vec::new();
        while offsets.last() != Some(&99) {
            for (_, fetched) in reader.poll(Duration::from_millis(50)).await.expect("records") {
                offsets.extend(fetched.records.iter().map(|record| record.offset.raw()));
            }
        }
        assert_eq!(offsets, (start..100).collect::<Vec<_>>(), "forwards and rewound");
    }
    let unknown = consumer.offset(&TopicPartition::new(TOPIC, PartitionId::new(9)), OffsetSpec::Latest).await;
    assert!(matches!(unknown, Err(ClientError::UnknownPartition { .. })));
}

#[tokio::test]
async fn no_broker_is_said_plainly() {
    let config = ClusterConfig {
        retry_backoff: Duration::from_millis(1),
        request_timeout: Duration::from_millis(200),
        ..ClusterConfig::with_bootstrap("127.0.0.1:1")
    };
    let consumer = SimpleConsumer::new(ConsumerConfig { cluster: config, ..ConsumerConfig::default() });
    let outcome = consumer.offsets(&topic(), OffsetSpec::Latest).await;
    assert!(
        matches!(&outcome, Err(ClientError::Unreachable { last }) if last.contains("127.0.0.1:1")),
        "{outcome:?}"
    );
    assert_ne!(outcome.expect_err("no broker").code(), Some(ErrorCode::NONE));
}
