//! How long producers wait when a leader is killed, paused or stopped: figures, no verdict. Run alone, on a quiet machine,
//! with a release binary:
//! `LOGGOS_BINARY=… LOGGOS_FAILOVER_RUNS=30 cargo test -p loggos --test e2e -- --ignored --nocapture failover_gaps`

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use crate::failover::Cluster;
use crate::process::{DEADLINE, eventually};

const PARTITIONS: i32 = 1_000;
/// Records a second, over all partitions.
const RATE: u64 = 4_000;
/// Before and after each event.
const CALM: Duration = Duration::from_secs(2);

/// When each partition was acknowledged last, and its longest gap.
type Gaps = Arc<Mutex<Vec<(Option<Instant>, Duration)>>>;

struct Measure(Gaps);

impl ClientContext for Measure {}

impl ProducerContext for Measure {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let Ok(message) = result else { return };
        let (now, partition) = (Instant::now(), rdkafka::Message::partition(message) as usize);
        let mut gaps = self.0.lock().expect("no panic holds it");
        let (last, longest) = &mut gaps[partition];
        if let Some(last) = last {
            *longest = (*longest).max(now - *last);
        }
        *last = Some(now);
    }
}

fn produce(bootstrap: &str, gaps: Gaps, stop: &AtomicBool) {
    let producer: BaseProducer<Measure> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        // A paused broker answers nothing: the client's own patience would be all that is measured.
        .set("request.timeout.ms", "500")
        .set("socket.timeout.ms", "600")
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "50")
        .set("retry.backoff.ms", "10")
        .set("retry.backoff.max.ms", "50")
        .set("topic.metadata.refresh.fast.interval.ms", "20")
        .create_with_context(Measure(gaps))
        .expect("a producer");
    let (began, mut sent) = (Instant::now(), 0_u64);
    while !stop.load(Ordering::Acquire) {
        let due = began.elapsed().as_millis() as u64 * RATE / 1_000;
        while sent < due {
            let record = BaseRecord::<(), [u8]>::to("gaps").partition((sent % PARTITIONS as u64) as i32);
            if producer.send(record.payload(&[7; 200])).is_err() {
                break;
            }
            sent += 1;
        }
        producer.poll(Duration::from_millis(2));
    }
    let _ = producer.flush(DEADLINE);
}

/// The longest gap of any partition from now until everybody has been acknowledged after `event`.
fn gap(gaps: &Gaps, event: impl FnOnce()) -> Duration {
    std::thread::sleep(CALM);
    gaps.lock().expect("no panic holds it").iter_mut().for_each(|(_, longest)| *longest = Duration::ZERO);
    let began = Instant::now();
    event();
    eventually("every partition is acknowledged again", || {
        let gaps = gaps.lock().expect("no panic holds it");
        gaps.iter().all(|(last, _)| last.is_some_and(|last| last > began + CALM / 2))
    });
    gaps.lock().expect("no panic holds it").iter().map(|(_, longest)| *longest).max().unwrap_or_default()
}

#[test]
#[ignore = "figures, on a quiet machine"]
fn failover_gaps() {
    let runs = std::env::var("LOGGOS_FAILOVER_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let mut cluster = Cluster::combined(&["--set", "leader.imbalance.check.interval.seconds=1"]);
    cluster.create("gaps", PARTITIONS);
    let gaps: Gaps = Arc::new(Mutex::new(vec![(None, Duration::ZERO); PARTITIONS as usize]));
    let stop = Arc::new(AtomicBool::new(false));
    let producer = {
        let (bootstrap, gaps, stop) = (cluster.bootstrap(), Arc::clone(&gaps), Arc::clone(&stop));
        std::thread::spawn(move || produce(&bootstrap, gaps, &stop))
    };
    let calm = gap(&gaps, || ());
    eprintln!("calm: longest gap {} ms of {PARTITIONS} partitions at {RATE} records/s", calm.as_millis());
    for kind in ["killed", "paused", "stopped"] {
        let mut longest: Vec<u128> = Vec::new();
        for run in 0..runs {
            let victim = run % cluster.brokers.len();
            let id = (victim + 11).to_string();
            eventually("it leads its part", || {
                cluster.in_sync("gaps") == Some(3) && cluster.leaders("gaps").contains(&id)
            });
            let server = &mut cluster.brokers[victim];
            let gap = gap(&gaps, || match kind {
                "killed" => server.kill(),
                "paused" => server.pause(),
                _ => assert_eq!(server.stop(), Some(0)),
            });
            longest.push(gap.as_millis());
            if kind == "paused" {
                server.resume();
            } else {
                server.restart();
            }
        }
        longest.sort_unstable();
        let at = |part: f64| longest[((longest.len() - 1) as f64 * part) as usize];
        eprintln!(
            "leader {kind}: longest gap, {runs} runs: p50 {} p90 {} max {} ms",
            at(0.5),
            at(0.9),
            at(1.0)
        );
    }
    stop.store(true, Ordering::Release);
    producer.join().expect("the producer ends");
}
