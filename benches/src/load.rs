//! Loads by librdkafka: as fast as it goes, at a fixed rate with latencies, many producers with one record in flight.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

/// No load waits longer than this for what is outstanding.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Latencies are kept in microseconds, up to this many.
const LATENCY_LIMIT_US: u64 = 120_000_000;

/// What is sent.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The topic.
    pub topic: String,
    /// Its partitions.
    pub partitions: i32,
    /// Bytes of a record's value.
    pub record_bytes: usize,
    /// Milliseconds that a record may wait for company.
    pub linger_ms: u32,
}

/// Latencies in microseconds.
pub type Latencies = Histogram<u64>;

/// A histogram for latencies.
pub fn latencies() -> Latencies {
    Histogram::new_with_bounds(1, LATENCY_LIMIT_US, 3).expect("bounds in order")
}

/// Makes the topic.
pub fn create_topic(bootstrap: &str, shape: &Shape) -> Result<(), String> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .map_err(|error| error.to_string())?;
    let topic = NewTopic::new(&shape.topic, shape.partitions, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
    let made = block_on(admin.create_topics([&topic], &options)).map_err(|error| error.to_string())?;
    made.into_iter()
        .next()
        .map_or(Ok(()), |one| one.map(|_| ()).map_err(|(topic, code)| format!("{topic}: {code}")))
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

/// Counts and times what is acknowledged.
pub struct Acknowledge {
    delivered: AtomicU64,
    failed: AtomicU64,
    latencies: Mutex<Option<Latencies>>,
}

impl Acknowledge {
    fn new(timed: bool) -> Self {
        Self {
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            latencies: Mutex::new(timed.then(latencies)),
        }
    }
}

impl ClientContext for Acknowledge {}

impl ProducerContext for Acknowledge {
    type DeliveryOpaque = Box<Instant>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Self::DeliveryOpaque) {
        match result {
            Ok(_) => self.delivered.fetch_add(1, Ordering::Relaxed),
            Err(_) => self.failed.fetch_add(1, Ordering::Relaxed),
        };
        if let Some(latencies) = self.latencies.lock().expect("no panic holds it").as_mut() {
            latencies.saturating_record(sent.elapsed().as_micros() as u64);
        }
    }
}

fn producer(bootstrap: &str, shape: &Shape, timed: bool) -> KafkaResult<BaseProducer<Acknowledge>> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .set("linger.ms", shape.linger_ms.to_string())
        .set("batch.size", "1000000")
        .set("queue.buffering.max.messages", "200000")
        .set("queue.buffering.max.kbytes", "262144")
        .set("message.timeout.ms", PATIENCE.as_millis().to_string())
        .create_with_context(Acknowledge::new(timed))
}

fn payloads(bytes: usize) -> Vec<Vec<u8>> {
    (0..64)
        .map(|_| {
            let mut payload = vec![0_u8; bytes];
            rand::fill(&mut payload[..]);
            payload
        })
        .collect()
}

/// Sends `count` records as fast as it goes; gives the time until the last is acknowledged.
pub fn produce(bootstrap: &str, shape: &Shape, count: u64) -> Result<Duration, String> {
    let producer = producer(bootstrap, shape, false).map_err(|error| error.to_string())?;
    let payloads = payloads(shape.record_bytes);
    let began = Instant::now();
    for number in 0..count {
        let payload = &payloads[(number % 64) as usize];
        let mut record = BaseRecord::<(), _, _>::with_opaque_to(&shape.topic, Box::new(began))
            .partition((number % shape.partitions as u64) as i32)
            .payload(payload);
        while let Err((_, back)) = producer.send(record) {
            record = back;
            producer.poll(Duration::from_millis(1));
        }
        if number % 256 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(PATIENCE).map_err(|error| error.to_string())?;
    let took = began.elapsed();
    let delivered = producer.context().delivered.load(Ordering::Relaxed);
    if delivered == count { Ok(took) } else { Err(format!("{delivered} of {count} acknowledged")) }
}

/// Reads `count` records of all partitions from the beginning; gives the time it took.
pub fn consume(bootstrap: &str, shape: &Shape, count: u64) -> Result<Duration, String> {
    let consumer = consumer(bootstrap, shape, Offset::Beginning)?;
    let began = Instant::now();
    let mut read = 0;
    while read < count {
        if began.elapsed() > PATIENCE {
            return Err(format!("{read} of {count} read in time"));
        }
        match consumer.poll(Duration::from_millis(500)) {
            Some(Ok(_)) => read += 1,
            Some(Err(error)) => return Err(error.to_string()),
            None => {}
        }
    }
    Ok(began.elapsed())
}

fn consumer(bootstrap: &str, shape: &Shape, from: Offset) -> Result<BaseConsumer, String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "bench")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "100")
        .set("queued.max.messages.kbytes", "65536")
        .create()
        .map_err(|error| error.to_string())?;
    let mut list = TopicPartitionList::new();
    for partition in 0..shape.partitions {
        list.add_partition_offset(&shape.topic, partition, from).map_err(|error| error.to_string())?;
    }
    consumer.assign(&list).map_err(|error| error.to_string())?;
    Ok(consumer)
}

/// Acknowledgement and produce→consume latencies of a load at a fixed rate.
pub struct Paced {
    /// From `send` to the acknowledgement, microseconds.
    pub acknowledged: Latencies,
    /// From `send` to the consumer's hands, microseconds.
    pub consumed: Latencies,
}

/// Sends `rate` records a second for `time`, while a consumer of all partitions reads along.
pub fn pace(bootstrap: &str, shape: &Shape, rate: u64, time: Duration) -> Result<Paced, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let reading = {
        let (bootstrap, shape, stop) = (bootstrap.to_owned(), shape.clone(), Arc::clone(&stop));
        let consumer = consumer(&bootstrap, &shape, Offset::End)?;
        std::thread::spawn(move || read_along(&consumer, &stop))
    };
    // The consumer must stand at the end before the first record comes.
    std::thread::sleep(Duration::from_secs(2));
    let producer = producer(bootstrap, shape, true).map_err(|error| error.to_string())?;
    let mut payloads = payloads(shape.record_bytes.max(8));
    let began = Instant::now();
    let mut number = 0_u64;
    while began.elapsed() < time {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        while number < due {
            let payload = &mut payloads[(number % 64) as usize];
            payload[..8].copy_from_slice(&unix_nanos().to_be_bytes());
            let mut record = BaseRecord::<(), _, _>::with_opaque_to(&shape.topic, Box::new(Instant::now()))
                .partition((number % shape.partitions as u64) as i32)
                .payload(&*payload);
            while let Err((_, back)) = producer.send(record) {
                record = back;
                producer.poll(Duration::from_millis(1));
            }
            number += 1;
        }
        producer.poll(Duration::from_micros(200));
    }
    producer.flush(PATIENCE).map_err(|error| error.to_string())?;
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::Release);
    let consumed = reading.join().map_err(|_| "the consumer ended badly".to_owned())?;
    let acknowledged =
        producer.context().latencies.lock().expect("no panic holds it").take().unwrap_or_else(latencies);
    Ok(Paced { acknowledged, consumed })
}

fn read_along(consumer: &BaseConsumer, stop: &AtomicBool) -> Latencies {
    let mut consumed = latencies();
    while !stop.load(Ordering::Acquire) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else { continue };
        let Some(sent) = message.payload().and_then(|payload| payload.first_chunk::<8>()) else { continue };
        let nanos = unix_nanos().saturating_sub(u64::from_be_bytes(*sent));
        consumed.saturating_record(nanos / 1_000);
    }
    consumed
}

fn unix_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// `producers` connections to one partition, each with one record in flight, for `time`: records a second.
pub fn one_in_flight(
    bootstrap: &str,
    shape: &Shape,
    producers: usize,
    time: Duration,
) -> Result<f64, String> {
    let all: Vec<BaseProducer<Acknowledge>> = (0..producers)
        .map(|_| producer(bootstrap, shape, false))
        .collect::<KafkaResult<_>>()
        .map_err(|e| e.to_string())?;
    let payload = payloads(shape.record_bytes).swap_remove(0);
    let delivered =
        |producer: &BaseProducer<Acknowledge>| producer.context().delivered.load(Ordering::Relaxed);
    let began = Instant::now();
    let mut sent = vec![0_u64; producers];
    while began.elapsed() < time {
        let mut idle = true;
        for (index, producer) in all.iter().enumerate() {
            producer.poll(Duration::ZERO);
            if delivered(producer) == sent[index] {
                let record = BaseRecord::<(), _, _>::with_opaque_to(&shape.topic, Box::new(began))
                    .partition(0)
                    .payload(&payload);
                producer.send(record).map_err(|(error, _)| error.to_string())?;
                sent[index] += 1;
                idle = false;
            }
        }
        if idle {
            std::thread::sleep(Duration::from_micros(20));
        }
    }
    let total: u64 = all.iter().map(delivered).sum();
    Ok(total as f64 / began.elapsed().as_secs_f64())
}
