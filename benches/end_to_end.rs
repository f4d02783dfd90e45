//! Loggos beside Apache Kafka, end to end: the same machine, the same run, the same client, one broker at a time, in
//! turn. Prints a Markdown table of medians with their ranges.
//!
//! `cargo bench -p loggos-benches --bench end_to_end -- --runs 5 loggos kafka kafka-flushed`

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use loggos_benches::broker::{Broker, Kind};
use loggos_benches::kernel;
use loggos_benches::load::{self, Latencies, Shape};
use loggos_benches::table::{Figures, side_by_side};

#[derive(Parser)]
struct Options {
    /// Which brokers: loggos, loggos-unflushed, kafka, kafka-flushed
    kinds: Vec<String>,
    /// Runs of each
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Where Kafka's jars are
    #[arg(long, env = "LOGGOS_PEERS", default_value = "target/peers")]
    peers: PathBuf,
    /// Records of the unpaced loads
    #[arg(long, default_value_t = 1_500_000)]
    records: u64,
    /// Seconds of each paced load
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only measures whose name holds this
    #[arg(long, default_value = "")]
    only: String,
    /// Cargo passes this to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench reports on stdout, and its progress on stderr"
)]
fn main() {
    let options = Options::parse();
    let kinds: Vec<Kind> = options.kinds.iter().filter_map(|name| Kind::parse(name)).collect();
    let kinds = if kinds.is_empty() { vec![Kind::Loggos] } else { kinds };
    let mut figures: Vec<Figures> = kinds.iter().map(|_| Figures::default()).collect();
    for run in 0..options.runs {
        for (kind, figures) in kinds.iter().zip(&mut figures) {
            eprintln!("run {} of {}: {}", run + 1, options.runs, kind.name());
            for measure in MEASURES.iter().filter(|(name, _)| name.contains(&options.only)) {
                if let Err(error) = with_broker(kind, &options, figures, measure.1) {
                    eprintln!("{} {}: {error}", kind.name(), measure.0);
                }
            }
        }
    }
    let columns: Vec<&str> = kinds.iter().map(Kind::name).collect();
    println!("{}", side_by_side(&columns, &figures));
}

type Measure = fn(&mut Broker, &Options, &mut Figures) -> Result<(), String>;

const MEASURES: [(&str, Measure); 12] = [
    ("cold-start", cold_start),
    ("throughput-1k", throughput_1k),
    ("throughput-200b", throughput_200b),
    ("throughput-100b", throughput_100b),
    ("twelve-partitions", twelve_partitions),
    ("million", million),
    ("paced", paced),
    ("linger0", linger0),
    ("one-in-flight", one_in_flight),
    ("thousand-partitions", thousand_partitions),
    ("stored-data", stored_data),
    ("ten-thousand-partitions", ten_thousand_partitions),
];

fn with_broker(
    kind: &Kind,
    options: &Options,
    figures: &mut Figures,
    measure: Measure,
) -> Result<(), String> {
    let mut broker = Broker::start(kind, &options.peers).map_err(|error| error.to_string())?;
    measure(&mut broker, options, figures)
}

fn shape(topic: &str, partitions: i32, record_bytes: usize, linger_ms: u32) -> Shape {
    Shape { topic: topic.to_owned(), partitions, record_bytes, linger_ms }
}

fn throughput(broker: &Broker, count: u64, bytes: usize, figures: &mut Figures) -> Result<(), String> {
    let shape = shape("throughput", 6, bytes, 5);
    load::create_topic(&broker.bootstrap, &shape)?;
    load::produce(&broker.bootstrap, &shape, count / 10)?;
    let before = kernel::cpu_time(broker.pid());
    let took = load::produce(&broker.bootstrap, &shape, count)?;
    let cpu = kernel::cpu_time(broker.pid()) - before;
    figures.note(format!("produce {bytes} B, records/s"), count as f64 / took.as_secs_f64());
    figures
        .note(format!("produce {bytes} B, broker CPU µs per record"), cpu.as_secs_f64() * 1e6 / count as f64);
    let before = kernel::cpu_time(broker.pid());
    let took = load::consume(&broker.bootstrap, &shape, count)?;
    let cpu = kernel::cpu_time(broker.pid()) - before;
    figures.note(format!("consume {bytes} B, records/s"), count as f64 / took.as_secs_f64());
    figures
        .note(format!("consume {bytes} B, broker CPU µs per record"), cpu.as_secs_f64() * 1e6 / count as f64);
    figures.note(format!("resident MiB after {bytes} B"), kernel::memory_mib(broker.pid()).0);
    figures.note("start to first connection, ms", broker.started_in.as_secs_f64() * 1e3);
    Ok(())
}

fn throughput_1k(broker: &mut Broker, options: &Options, figures: &mut Figures) -> Result<(), String> {
    throughput(broker, options.records, 1024, figures)
}

fn throughput_200b(broker: &mut Broker, options: &Options, figures: &mut Figures) -> Result<(), String> {
    throughput(broker, options.records, 200, figures)
}

fn throughput_100b(broker: &mut Broker, options: &Options, figures: &mut Figures) -> Result<(), String> {
    throughput(broker, options.records, 100, figures)
}

fn at_rate(
    broker: &Broker,
    shape: &Shape,
    rate: u64,
    seconds: u64,
    name: &str,
    figures: &mut Figures,
) -> Result<(), String> {
    load::create_topic(&broker.bootstrap, shape)?;
    load::produce(&broker.bootstrap, shape, (shape.partitions as u64).max(1_000))?;
    let before = kernel::cpu_time(broker.pid());
    let paced = load::pace(&broker.bootstrap, shape, rate, Duration::from_secs(seconds))?;
    let cpu = kernel::cpu_time(broker.pid()) - before;
    note_latencies(figures, &format!("{name}: ack"), &paced.acknowledged);
    note_latencies(figures, &format!("{name}: produce→consume"), &paced.consumed);
    let count = paced.acknowledged.len().max(1);
    figures.note(format!("{name}: broker CPU µs per record"), cpu.as_secs_f64() * 1e6 / count as f64);
    figures.note(format!("{name}: resident MiB"), kernel::memory_mib(broker.pid()).0);
    Ok(())
}

fn note_latencies(figures: &mut Figures, name: &str, latencies: &Latencies) {
    for (label, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        figures.note(format!("{name} {label} ms"), latencies.value_at_quantile(quantile) as f64 / 1e3);
    }
}

fn paced(broker: &mut Broker, options: &Options, figures: &mut Figures) -> Result<(), String> {
    at_rate(broker, &shape("paced", 6, 1024, 5), 50_000, options.seconds, "50,000/s 1 KiB linger 5", figures)
}

fn linger0(broker: &mut Broker, options: &Options, figures: &mut Figures) -> Result<(), String> {
    at_rate(broker, &shape("linger0", 6, 1024, 0), 5_000, options.seconds, "5,000/s 1 KiB linger 0", figures)
}

/// From exec to the first acknowledged record, on an empty directory and on one that holds something.
fn cold_start(broker: &mut Broker, _options: &Options, figures: &mut Figures) -> Result<(), String> {
    let shape = shape("first", 1, 100, 0);
    let began = std::time::Instant::now();
    load::create_topic(&broker.bootstrap, &shape)?;
    load::produce(&broker.bootstrap, &shape, 1)?;
    let took = broker.started_in + began.elapsed();
    figures.note("exec to first acknowledged record, topic made in between, ms", took.as_secs_f64() * 1e3);
    broker.restart().map_err(|error| error.to_string())?;
    let began = std::time::Instant::now();
    load::produce(&broker.bootstrap, &shape, 1)?;
    let took = broker.started_in + began.elapsed();
    figures.note("exec to first acknowledged record, again, ms", took.as_secs_f64() * 1e3);
    Ok(())
}

/// One partition, and twelve.
fn twelve_partitions(broker: &mut Broker, options: &Options, figures: &mut Figures) -> Result<(), String> {
    for partitions in [1, 12] {
        let shape = shape(&format!("spread-{partitions}"), partitions, 1024, 5);
        load::create_topic(&broker.bootstrap, &shape)?;
        let took = load::produce(&broker.bootstrap, &shape, options.records)?;
        let rate = options.records as f64 / took.as_secs_f64();
        figures.note(format!("{partitions} partitions, produce 1024 B, records/s"), rate);
        let took = load::consume(&broker.bootstrap, &shape, options.records)?;
        let rate = options.records as f64 / took.as_secs_f64();
        figures.note(format!("{partitions} partitions, consume 1024 B, records/s"), rate);
    }
    Ok(())
}

/// The 2011 paper's messages of 200 bytes, from two producers at once: how near to a million a second.
fn million(broker: &mut Broker, options: &Options, figures: &mut Figures) -> Result<(), String> {
    let shape = shape("million", 6, 200, 5);
    load::create_topic(&broker.bootstrap, &shape)?;
    let began = std::time::Instant::now();
    let producers: Vec<_> = (0..2)
        .map(|_| {
            let (bootstrap, shape, count) = (broker.bootstrap.clone(), shape.clone(), options.records);
            std::thread::spawn(move || load::produce(&bootstrap, &shape, count))
        })
        .collect();
    for producer in producers {
        producer.join().map_err(|_| "a producer ended badly".to_owned())??;
    }
    let rate = (2 * options.records) as f64 / began.elapsed().as_secs_f64();
    figures.note("two producers of 200 B: records/s", rate);
    Ok(())
}

/// What many partitions cost: to make them, to start with them, to keep them.
fn ten_thousand_partitions(
    broker: &mut Broker,
    _options: &Options,
    figures: &mut Figures,
) -> Result<(), String> {
    const PARTITIONS: i32 = 10_000;
    let before = kernel::memory_mib(broker.pid()).0;
    let shape = shape("many", PARTITIONS, 100, 5);
    let began = std::time::Instant::now();
    load::create_topic(&broker.bootstrap, &shape)?;
    load::produce(&broker.bootstrap, &shape, PARTITIONS as u64)?;
    figures.note("10,000 partitions: made, and a record in each, s", began.elapsed().as_secs_f64());
    let kib = (kernel::memory_mib(broker.pid()).0 - before) * 1024.0 / f64::from(PARTITIONS);
    figures.note("10,000 partitions: memory of each, KiB", kib);
    broker.restart().map_err(|error| error.to_string())?;
    figures.note("10,000 partitions: killed, to accepting again, s", broker.started_in.as_secs_f64());
    let began = std::time::Instant::now();
    load::produce(&broker.bootstrap, &shape, PARTITIONS as u64)?;
    let took = broker.started_in + began.elapsed();
    figures.note("10,000 partitions: killed, to a record in each again, s", took.as_secs_f64());
    Ok(())
}

/// The same load with little stored, and with a hundred times as much.
fn stored_data(broker: &mut Broker, options: &Options, figures: &mut Figures) -> Result<(), String> {
    let shape = shape("stored", 1, 1024, 5);
    load::create_topic(&broker.bootstrap, &shape)?;
    for (name, count) in [("1 ×", 20_000), ("100 ×", 1_980_000)] {
        load::produce(&broker.bootstrap, &shape, count)?;
        let paced = load::pace(&broker.bootstrap, &shape, 5_000, Duration::from_secs(options.seconds))?;
        note_latencies(figures, &format!("{name} 20 MB stored, 5,000/s: ack"), &paced.acknowledged);
        note_latencies(figures, &format!("{name} 20 MB stored, 5,000/s: produce→consume"), &paced.consumed);
    }
    Ok(())
}

fn thousand_partitions(broker: &mut Broker, options: &Options, figures: &mut Figures) -> Result<(), String> {
    at_rate(
        broker,
        &shape("thousand", 1_000, 200, 5),
        4_000,
        options.seconds,
        "1,000 partitions, 4,000/s 200 B",
        figures,
    )
}

fn one_in_flight(broker: &mut Broker, options: &Options, figures: &mut Figures) -> Result<(), String> {
    let shape = shape("one", 1, 200, 0);
    load::create_topic(&broker.bootstrap, &shape)?;
    load::one_in_flight(&broker.bootstrap, &shape, 64, Duration::from_secs(2))?;
    let rate = load::one_in_flight(&broker.bootstrap, &shape, 64, Duration::from_secs(options.seconds))?;
    figures.note("64 producers, one 200 B record in flight each: records/s", rate);
    Ok(())
}
