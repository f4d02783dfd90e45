//! Fetches ahead of the readers: one request per leader at a time, sent as long as there is room in the queues.
//! Called by `balancer` and by the group consumer, which say what is read and from where.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use loggos_protocol::ids::{BrokerId, Offset, TopicName, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::lane::Lane;
use super::queue::Chunk;
use crate::cluster::Cluster;
use crate::config::OffsetReset;
use crate::error::ClientError;
use crate::fetched::FetchedBatches;
use crate::metadata::Metadata;
use crate::simple::{FetchFrom, OffsetSpec, SimpleConsumer};

/// How long a broker waits for records when it wasn't asked for all that it leads, because a queue is full: the queue
/// may have room before anything else arrives.
const WAIT_BESIDE_FULL: Duration = Duration::from_millis(50);

/// The partitions that are read, and the task that fetches them. Dropping it ends the task.
#[derive(Debug)]
pub struct Prefetch {
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    consumer: SimpleConsumer,
    queue_bytes: usize,
    reset: OffsetReset,
    lanes: Mutex<BTreeMap<TopicPartition, Arc<Lane>>>,
    wake: Arc<Notify>,
}

impl Prefetch {
    /// Fetches with `consumer`, as long as a queue holds less than `queue_bytes`.
    pub fn start(consumer: SimpleConsumer, queue_bytes: usize, reset: OffsetReset) -> Self {
        let wake = Arc::new(Notify::new());
        let shared = Arc::new(Shared { consumer, queue_bytes, reset, lanes: Mutex::default(), wake });
        let task = tokio::spawn(fetch_ahead(Arc::clone(&shared))).abort_handle();
        Self { shared, task }
    }

    /// What tells the task that there's room, or something else to fetch.
    pub fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.shared.wake)
    }

    /// The consumer that it fetches with, for questions about offsets.
    pub fn consumer(&self) -> &SimpleConsumer {
        &self.shared.consumer
    }

    /// Reads a partition from now on.
    pub fn add(&self, lane: Arc<Lane>) {
        self.shared.lanes.lock().insert(lane.partition.clone(), lane);
        self.shared.wake.notify_one();
    }

    /// Reads a partition no more; what waits in its queue is dropped.
    pub fn remove(&self, partition: &TopicPartition) -> Option<Arc<Lane>> {
        self.shared.lanes.lock().remove(partition)
    }

    /// A partition that is read.
    pub fn lane(&self, partition: &TopicPartition) -> Option<Arc<Lane>> {
        self.shared.lanes.lock().get(partition).cloned()
    }

    /// All partitions that are read.
    pub fn lanes(&self) -> Vec<Arc<Lane>> {
        self.shared.lanes.lock().values().cloned().collect()
    }

    /// Reads a partition from another offset on.
    pub fn seek(&self, lane: &Lane, offset: Offset) {
        lane.seek(offset);
        self.shared.wake.notify_one();
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A partition in a request, as it was when it was asked for.
#[derive(Debug)]
struct Asked {
    lane: Arc<Lane>,
    life: u64,
    offset: Offset,
}

type Outcomes = Vec<(TopicPartition, Result<FetchedBatches, ClientError>)>;

/// What a task of the fetcher's came to.
#[derive(Debug)]
enum Done {
    Fetched { broker: BrokerId, asked: Vec<Asked>, outcomes: Result<Outcomes, ClientError> },
    Looked(Result<Arc<Metadata>, ClientError>),
}

struct Fetcher {
    shared: Arc<Shared>,
    under_way: JoinSet<Done>,
    /// Brokers that have a request of ours.
    busy: BTreeSet<BrokerId>,
    /// Topics to ask the cluster about, and whether it's being asked.
    stale: BTreeSet<TopicName>,
    looking: bool,
    failures: u32,
    not_before: Instant,
    /// Partitions that a request names first are served first: each request begins with another one.
    turn: usize,
}

async fn fetch_ahead(shared: Arc<Shared>) {
    let mut fetcher = Fetcher {
        shared: Arc::clone(&shared),
        under_way: JoinSet::new(),
        busy: BTreeSet::new(),
        stale: BTreeSet::new(),
        looking: false,
        failures: 0,
        not_before: Instant::now(),
        turn: 0,
    };
    loop {
        fetcher.ask();
        tokio::select! {
            Some(done) = fetcher.under_way.join_next() => match done {
                Ok(Done::Looked(outcome)) => fetcher.looked(outcome),
                Ok(Done::Fetched { broker, asked, outcomes }) => fetcher.take(broker, asked, outcomes),
                // Only a panic ends a request without an answer; the next one shows whether it comes again.
                Err(error) => {
                    tracing::error!(%error, "a fetch ended without an answer");
                    fetcher.busy.clear();
                    fetcher.looking = false;
                    fetcher.back_off();
                }
            },
            () = shared.wake.notified() => {}
            () = sleep_until(fetcher.not_before), if fetcher.not_before > Instant::now() => {}
        }
    }
}

impl Fetcher {
    fn cluster(&self) -> &Cluster {
        self.shared.consumer.cluster()
    }

    fn back_off(&mut self) {
        self.failures += 1;
        self.not_before = Instant::now() + self.cluster().backoff(self.failures);
    }

    fn looked(&mut self, outcome: Result<Arc<Metadata>, ClientError>) {
        self.looking = false;
        if let Err(error) = outcome {
            tracing::debug!(%error, "a look at the cluster failed");
            self.back_off();
        }
    }

    /// Sends a request to each leader that has none.
    fn ask(&mut self) {
        if Instant::now() < self.not_before {
            return;
        }
        let metadata = self.cluster().known();
        let lanes: Vec<Arc<Lane>> = self.shared.lanes.lock().values().cloned().collect();
        self.turn = (self.turn + 1) % lanes.len().max(1);
        let mut wanted: BTreeMap<BrokerId, Vec<Asked>> = BTreeMap::new();
        let mut beside_full = BTreeSet::new();
        for lane in lanes.iter().cycle().skip(self.turn).take(lanes.len()) {
            let leader = metadata.leader(&lane.partition.topic, lane.partition.partition);
            let Some(leader) = leader else {
                self.stale.insert(lane.partition.topic.clone());
                continue;
            };
            if self.busy.contains(&leader) {
                continue;
            }
            let full = lane.queue.bytes() >= self.shared.queue_bytes;
            let progress = lane.progress();
            if progress.paused || progress.failed {
                continue;
            }
            if full {
                beside_full.insert(leader);
                continue;
            }
            let asked = Asked { lane: Arc::clone(lane), life: progress.life, offset: progress.fetch };
            wanted.entry(leader).or_default().push(asked);
        }
        self.look();
        for (broker, asked) in wanted {
            let beside_full = beside_full.contains(&broker);
            self.fetch(broker, asked, beside_full);
        }
    }

    /// Asks about the topics whose leaders aren't known, or are others by now.
    fn look(&mut self) {
        if self.stale.is_empty() || self.looking {
            return;
        }
        self.looking = true;
        let topics: Vec<TopicName> = std::mem::take(&mut self.stale).into_iter().collect();
        let cluster = self.cluster().clone();
        self.under_way.spawn(async move { Done::Looked(cluster.refresh(&topics).await) });
    }

    fn fetch(&mut self, broker: BrokerId, asked: Vec<Asked>, beside_full: bool) {
        self.busy.insert(broker);
        let consumer = self.shared.consumer.clone();
        let config = consumer.config();
        let max_wait = if beside_full { config.max_wait.min(WAIT_BESIDE_FULL) } else { config.max_wait };
        let max_bytes = config.partition_max_bytes.min(self.shared.queue_bytes);
        let from = |asked: &Asked| FetchFrom {
            partition: asked.lane.partition.clone(),
            offset: asked.offset,
            max_bytes,
        };
        let wanted: Vec<FetchFrom> = asked.iter().map(from).collect();
        self.under_way.spawn(async move {
            let outcomes = consumer.fetch_batches_from(broker, &wanted, max_wait).await;
            Done::Fetched { broker, asked, outcomes }
        });
    }

    /// Puts what came into the queues.
    fn take(&mut self, broker: BrokerId, asked: Vec<Asked>, outcomes: Result<Outcomes, ClientError>) {
        self.busy.remove(&broker);
        let outcomes: Vec<Result<FetchedBatches, ClientError>> = match outcomes {
            Ok(outcomes) => outcomes.into_iter().map(|(_, outcome)| outcome).collect(),
            Err(error) => asked.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut failed = false;
        for (asked, outcome) in asked.into_iter().zip(outcomes) {
            let lane = asked.lane;
            let mut progress = lane.progress();
            // Whoever sought another place, or gave the partition up, isn't interested.
            if progress.life != asked.life || progress.fetch != asked.offset {
                continue;
            }
            match outcome {
                Ok(batches) => {
                    progress.end = Some(batches.high_watermark);
                    if batches.next == asked.offset {
                        continue;
                    }
                    progress.fetch = batches.next;
                    progress.buffered += batches.bytes;
                    drop(progress);
                    let bytes = batches.bytes;
                    let (life, content) = (asked.life, Ok(batches));
                    lane.queue.push(Chunk { lane: Arc::clone(&lane), life, content, bytes });
                }
                Err(error) if error.retriable() => {
                    tracing::debug!(%error, partition = %lane.partition, "a fetch failed");
                    self.stale.insert(lane.partition.topic.clone());
                    failed = true;
                }
                Err(ClientError::OffsetOutOfRange { offset, log_start, end, .. })
                    if self.shared.reset != OffsetReset::Fail =>
                {
                    drop(progress);
                    let goes_on = self.shared.reset.within(offset, log_start, end);
                    tracing::warn!(
                        partition = %lane.partition, %offset, %goes_on,
                        "records are gone, or were never there; going on elsewhere"
                    );
                    lane.seek(goes_on);
                }
                Err(error) => {
                    progress.failed = true;
                    drop(progress);
                    let (life, content) = (asked.life, Err(error));
                    lane.queue.push(Chunk { lane: Arc::clone(&lane), life, content, bytes: 0 });
                }
            }
        }
        if failed {
            self.back_off();
        } else {
            self.failures = 0;
        }
    }
}

impl OffsetReset {
    /// Where a partition is read that has no offset.
    pub(super) const fn begins(self) -> Option<OffsetSpec> {
        match self {
            Self::Earliest => Some(OffsetSpec::Earliest),
            Self::Latest => Some(OffsetSpec::Latest),
            Self::Fail => None,
        }
    }

    /// Where a partition is read on whose offset isn't there: records that retention took are passed over, and only
    /// an offset behind the end is one that the policy decides.
    fn within(self, offset: Offset, log_start: Offset, end: Offset) -> Offset {
        if offset < log_start || matches!(self, Self::Earliest) { log_start } else { end }
    }
}
