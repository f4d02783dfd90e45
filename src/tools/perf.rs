//! `loggos perf`: how much, how fast, how late.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::{Args, Subcommand};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use loggos_client::{
    ClientError, ConsumerConfig, Delivery, Message, OffsetSpec, Producer, Reader, SimpleConsumer,
};
use loggos_protocol::ids::TopicName;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Failure;
use super::options::{Bootstrap, Sending, topic_name};

/// Latencies are kept in microseconds with three digits, up to this one.
const SLOWEST_MICROS: u64 = 600_000_000;
const DIGITS: u8 = 3;
/// Deliveries between a sender and the one who times them.
const DELIVERIES_AHEAD: usize = 4_096;
/// Different payloads; one alone would make every codec look wonderful.
const PAYLOADS: usize = 64;
/// How long one poll waits.
const POLL: Duration = Duration::from_millis(500);
/// A measurement of reading ends when nothing comes for so long.
const SILENCE: Duration = Duration::from_secs(10);

/// What to measure.
#[derive(Subcommand)]
pub enum Command {
    /// Send records as fast as they go, or at a rate, and time their acknowledgements
    Produce(Produce),
    /// Read a topic from its beginning, or live with --live
    Consume(Consume),
}

/// How to send.
#[derive(Args)]
pub struct Produce {
    /// The topic
    #[arg(value_parser = topic_name)]
    topic: TopicName,

    /// How many records
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,

    /// Bytes of each
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=64 * 1024 * 1024))]
    size: u32,

    /// Records per second, all producers together; as many as go when not given
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,

    /// Producers, each with connections of its own
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    producers: u64,

    #[command(flatten)]
    sending: Sending,

    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// How to read.
#[derive(Args)]
pub struct Consume {
    /// The topic
    #[arg(value_parser = topic_name)]
    topic: TopicName,

    /// End after this many records; by default at the end of the topic
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    records: Option<u64>,

    /// Begin at the end, wait for records, and time them from their creation; needs --records
    #[arg(long, requires = "records")]
    live: bool,

    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// Does it.
pub async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Produce(options) => produce(options).await,
        Command::Consume(options) => consume(options).await,
    }
}

fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, SLOWEST_MICROS, DIGITS).map_err(|error| Failure::Failed(error.to_string()))
}

fn note(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(SLOWEST_MICROS).max(1));
}

/// When the records of one producer are due.
#[derive(Clone, Copy)]
struct Pace {
    start: Instant,
    interval: Option<Duration>,
}

async fn produce(options: Produce) -> Result<(), Failure> {
    let mut config = options.sending.config(&options.bootstrap);
    config.max_request_bytes = config.max_request_bytes.max(options.size as usize + 1024);
    let payloads: Arc<[Bytes]> = (0..PAYLOADS).map(|_| payload(options.size as usize)).collect();
    let mut producers = Vec::new();
    for _ in 0..options.producers {
        let producer = Producer::new(config.clone());
        producer.cluster().any().await?;
        producer.cluster().topic(&options.topic).await?;
        producers.push(producer);
    }
    let start = Instant::now();
    let interval = options.rate.map(|rate| Duration::from_secs_f64(options.producers as f64 / rate as f64));
    let mut running = JoinSet::new();
    for (place, producer) in producers.into_iter().enumerate() {
        let share = options.records / options.producers
            + u64::from((place as u64) < options.records % options.producers);
        let (topic, payloads) = (options.topic.clone(), Arc::clone(&payloads));
        running.spawn(one_producer(producer, topic, payloads, share, Pace { start, interval }));
    }
    let mut latencies = histogram()?;
    while let Some(ended) = running.join_next().await {
        let one = ended.map_err(|error| Failure::Failed(format!("a producer failed: {error}")))??;
        latencies.add(&one).map_err(|error| Failure::Failed(error.to_string()))?;
    }
    let bytes = options.records * u64::from(options.size);
    report(options.records, bytes, start.elapsed(), Some(&latencies))
}

/// Noise of which every codec can save about half, as of much real data: hexadecimal digits.
fn payload(size: usize) -> Bytes {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    (0..size).map(|_| DIGITS[usize::from(rand::random::<u8>() & 0x0f)]).collect()
}

async fn one_producer(
    producer: Producer,
    topic: TopicName,
    payloads: Arc<[Bytes]>,
    records: u64,
    pace: Pace,
) -> Result<Histogram<u64>, Failure> {
    let (deliveries, timed) = mpsc::channel(DELIVERIES_AHEAD);
    let timing = tokio::spawn(time_deliveries(timed));
    for number in 0..records {
        // With a rate, a record's time begins when it is due: a stalled broker isn't forgiven what it held up.
        let begun = match pace.interval {
            None => Instant::now(),
            Some(interval) => {
                let due = pace.start + interval.mul_f64(number as f64);
                if due > Instant::now() {
                    sleep_until(due).await;
                }
                due
            }
        };
        let value = payloads[number as usize % payloads.len()].clone();
        let delivery = producer.queue(&topic, None, Message::of(value)).await?;
        if deliveries.send((begun, delivery)).await.is_err() {
            break;
        }
    }
    drop(deliveries);
    producer.flush().await?;
    timing.await.map_err(|error| Failure::Failed(format!("timing failed: {error}")))?
}

async fn time_deliveries(mut coming: mpsc::Receiver<(Instant, Delivery)>) -> Result<Histogram<u64>, Failure> {
    let mut latencies = histogram()?;
    let mut waiting = FuturesUnordered::new();
    let mut open = true;
    while open || !waiting.is_empty() {
        tokio::select! {
            next = coming.recv(), if open => match next {
                Some((begun, delivery)) => waiting.push(async move { (begun, delivery.await) }),
                None => open = false,
            },
            Some((begun, outcome)) = waiting.next() => {
                let _written = outcome.map_err(|error: ClientError| Failure::from(error))?;
                note(&mut latencies, begun.elapsed());
            }
        }
    }
    Ok(latencies)
}

async fn consume(options: Consume) -> Result<(), Failure> {
    let cluster = options.bootstrap.cluster().await?;
    let config = ConsumerConfig { cluster: options.bootstrap.config(), ..ConsumerConfig::default() };
    let consumer = SimpleConsumer::with_cluster(cluster, config);
    let ends = consumer.offsets(&options.topic, OffsetSpec::Latest).await?;
    let from = if options.live { OffsetSpec::Latest } else { OffsetSpec::Earliest };
    let mut reader = Reader::of_topic(consumer, &options.topic, from).await?;
    let (mut records, mut bytes) = (0u64, 0u64);
    let mut latencies = histogram()?;
    let (mut first, mut last) = (Instant::now(), Instant::now());
    let wanted = options.records.unwrap_or(u64::MAX);
    let is_at_end = |reader: &Reader| {
        reader.positions().all(|(at, position)| ends.get(&at.partition).is_none_or(|end| position >= *end))
    };
    while records < wanted && (options.live || !is_at_end(&reader)) {
        let found = reader.poll(POLL).await?;
        if found.is_empty() && records > 0 && last.elapsed() > SILENCE {
            let sentence = format!("nothing came for {} s after {records} records", SILENCE.as_secs());
            return Err(Failure::Failed(sentence));
        }
        if found.is_empty() {
            continue;
        }
        last = Instant::now();
        if records == 0 && options.live {
            first = last;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for record in found.iter().flat_map(|(_, fetched)| &fetched.records) {
            records += 1;
            bytes += record.value.as_ref().map_or(0, Bytes::len) as u64;
            if options.live {
                let created = Duration::from_millis(u64::try_from(record.timestamp.raw()).unwrap_or(0));
                note(&mut latencies, now.saturating_sub(created));
            }
        }
    }
    report(records, bytes, last.saturating_duration_since(first), options.live.then_some(&latencies))
}

fn report(
    records: u64,
    bytes: u64,
    took: Duration,
    latencies: Option<&Histogram<u64>>,
) -> Result<(), Failure> {
    let seconds = took.as_secs_f64().max(1e-6);
    let mut out = io::stdout().lock();
    writeln!(out, "records    {records}")?;
    writeln!(out, "seconds    {seconds:.3}")?;
    writeln!(out, "records/s  {:.0}", records as f64 / seconds)?;
    writeln!(out, "MB/s       {:.2}", bytes as f64 / 1e6 / seconds)?;
    if let Some(latencies) = latencies {
        let millis = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1e3;
        let slowest = latencies.max() as f64 / 1e3;
        let (middle, late, latest) = (millis(0.5), millis(0.99), millis(0.999));
        writeln!(out, "latency ms p50 {middle:.3} p99 {late:.3} p99.9 {latest:.3} max {slowest:.3}")?;
    }
    Ok(out.flush()?)
}
