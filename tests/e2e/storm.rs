//! A produce storm whose every acknowledgement is remembered, and the check that nothing of it was lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use crate::process::DEADLINE;

/// How many records may be on their way at once: enough to keep the broker busy, few enough to end soon.
const OUTSTANDING_LIMIT: usize = 2_000;
/// A storm's own pace, so that a test's data stays small.
const PAUSE_EVERY: u64 = 64;

/// Where and how a storm produces.
#[derive(Clone)]
pub struct Plan {
    pub bootstrap: String,
    pub topic: String,
    pub partitions: i32,
    pub idempotent: bool,
    pub record_bytes: usize,
}

/// Numbers acknowledged, by partition, in the order of acknowledgement.
type Acknowledged = Arc<Mutex<BTreeMap<i32, Vec<u64>>>>;

struct Remember {
    acknowledged: Acknowledged,
}

impl ClientContext for Remember {}

impl ProducerContext for Remember {
    type DeliveryOpaque = Box<(i32, u64)>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Self::DeliveryOpaque) {
        if result.is_ok() {
            let (partition, number) = *sent;
            self.acknowledged.lock().expect("no panic holds it").entry(partition).or_default().push(number);
        }
    }
}

/// A storm under way.
pub struct Storm {
    stop: Arc<AtomicBool>,
    acknowledged: Acknowledged,
    thread: JoinHandle<()>,
}

impl Storm {
    /// Starts to produce numbered records, round-robin over the partitions.
    pub fn start(plan: Plan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Acknowledged::default();
        let thread = {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            std::thread::spawn(move || produce(&plan, &stop, acknowledged))
        };
        Self { stop, acknowledged, thread }
    }

    /// How many records have been acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.lock().expect("no panic holds it").values().map(Vec::len).sum()
    }

    /// Waits until `count` more records are acknowledged.
    pub fn wait_for(&self, count: usize) {
        let goal = self.acknowledged() + count;
        let deadline = Instant::now() + DEADLINE;
        while self.acknowledged() < goal {
            assert!(Instant::now() < deadline, "{} of {goal} acknowledged in time", self.acknowledged());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What is acknowledged at this instant, while the storm goes on.
    pub fn snapshot(&self) -> BTreeMap<i32, Vec<u64>> {
        self.acknowledged.lock().expect("no panic holds it").clone()
    }

    /// Ends the storm without waiting for what is still on its way: its broker is gone for good.
    pub fn abandon(self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Ends the storm and gives what was acknowledged.
    pub fn end(self) -> BTreeMap<i32, Vec<u64>> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the storm's thread ends");
        Arc::try_unwrap(self.acknowledged).map_or_else(
            |shared| shared.lock().expect("no panic holds it").clone(),
            |mutex| mutex.into_inner().expect("no panic holds it"),
        )
    }
}

fn produce(plan: &Plan, stop: &AtomicBool, acknowledged: Acknowledged) {
    let producer: BaseProducer<Remember> = ClientConfig::new()
        .set("bootstrap.servers", &plan.bootstrap)
        .set("enable.idempotence", if plan.idempotent { "true" } else { "false" })
        .set("acks", "all")
        .set("linger.ms", "2")
        .set("message.timeout.ms", "120000")
        // Nothing answers for a broker that is paused: whoever asked it must give up before the test does.
        .set("socket.timeout.ms", "5000")
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "100")
        .set("retry.backoff.ms", "20")
        .set("queue.buffering.max.messages", "100000")
        .create_with_context(Remember { acknowledged })
        .expect("a producer");
    let mut number = 0_u64;
    while !stop.load(Ordering::Acquire) {
        if producer.in_flight_count() as usize >= OUTSTANDING_LIMIT {
            producer.poll(Duration::from_millis(5));
            continue;
        }
        let partition = (number % plan.partitions as u64) as i32;
        let mut payload = number.to_string().into_bytes();
        payload.resize(plan.record_bytes.max(payload.len()), b' ');
        let record = BaseRecord::<(), [u8], _>::with_opaque_to(&plan.topic, Box::new((partition, number)))
            .partition(partition)
            .payload(&payload);
        if producer.send(record).is_ok() {
            number += 1;
        }
        if number.is_multiple_of(PAUSE_EVERY) {
            producer.poll(Duration::from_millis(1));
        }
    }
    let _ = producer.flush(DEADLINE);
}

/// Every record of a partition from its start to its end, as the numbers that the storm gave them.
pub fn read_numbers(bootstrap: &str, topic: &str, partition: i32) -> Vec<u64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "storm-check")
        .set("enable.auto.commit", "false")
        .set("check.crcs", "true")
        .set("enable.partition.eof", "false")
        .create()
        .expect("a consumer");
    let (low, high) = consumer.fetch_watermarks(topic, partition, DEADLINE).expect("watermarks");
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition, Offset::Offset(low)).expect("an offset");
    consumer.assign(&assignment).expect("an assignment");
    let mut numbers = Vec::new();
    let mut next = low;
    let deadline = Instant::now() + DEADLINE;
    while next < high {
        assert!(Instant::now() < deadline, "{topic}-{partition}: stuck at {next} of {high}");
        let Some(message) = consumer.poll(Duration::from_millis(200)) else { continue };
        let message = match message {
            Ok(message) => message,
            // A connection that broke, or a leader that has just changed: the client goes on by itself.
            Err(_) => continue,
        };
        assert_eq!(message.offset(), next, "{topic}-{partition}: offsets are dense");
        next += 1;
        let text = std::str::from_utf8(message.payload().expect("a payload")).expect("text");
        numbers.push(text.trim_end().parse().expect("a number"));
    }
    numbers
}

/// Panics unless everything acknowledged is there, once under idempotence, and in order.
pub fn check(plan: &Plan, acknowledged: &BTreeMap<i32, Vec<u64>>) {
    for (&partition, numbers) in acknowledged {
        let read = read_numbers(&plan.bootstrap, &plan.topic, partition);
        let mut position = 0;
        for number in numbers {
            let found = read[position..].iter().position(|candidate| candidate == number);
            let Some(found) = found else {
                let anywhere = read.contains(number);
                panic!(
                    "partition {partition}: acknowledged record {number} is lost or out of order (there: {anywhere})"
                );
            };
            position += found + 1;
        }
        if plan.idempotent {
            assert!(
                read.windows(2).all(|pair| pair[0] < pair[1]),
                "partition {partition}: a duplicate or a swap"
            );
        }
    }
}
