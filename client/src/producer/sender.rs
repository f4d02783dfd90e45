//! Requests and answers of the producer: a task per broker sends what is ripe for it and settles what it answers,
//! one more over them all finds leaders, gets the producer its numbers, and gives up what is too old.
//!
//! Called by `producer`, which starts [`supervise`]; ends with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use loggos_protocol::ids::{BrokerId, Offset, ProducerEpoch, ProducerId, TopicName, TopicPartition};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::produce_request::{PartitionProduceData, TopicProduceData};
use loggos_protocol::kafka::messages::produce_response::PartitionProduceResponse;
use loggos_protocol::kafka::messages::{self, InitProducerIdRequest, ProduceRequest, ProduceResponse};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::RecordMeta;
use super::accumulator::{Accumulator, Failure, Sending, Settings};
use crate::cluster::{Cluster, Lane, wire_name};
use crate::config::{Acks, ProducerConfig};
use crate::error::ClientError;

/// How often the supervisor looks for what is too old.
const SUPERVISOR_TICK: Duration = Duration::from_millis(100);
/// A worker without anything to wait for looks again after this time.
const IDLE_TICK: Duration = Duration::from_secs(1);

/// Whoever waits for a record.
pub(super) type Waiter = oneshot::Sender<Result<RecordMeta, ClientError>>;

/// What the producer's handle and its tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) cluster: Cluster,
    pub(super) config: ProducerConfig,
    pub(super) accumulator: Mutex<Accumulator<Waiter>>,
    /// Told when records were resolved.
    pub(super) freed: Notify,
    /// Told when the supervisor is needed at once.
    pub(super) attention: Notify,
    /// Counts the reasons for workers to look again.
    signal: watch::Sender<u64>,
    started: Instant,
    stale: Mutex<BTreeSet<TopicName>>,
    /// Why nothing can be sent, when that isn't any batch's fault.
    trouble: Mutex<Option<String>>,
}

impl Shared {
    pub(super) fn new(cluster: Cluster, config: ProducerConfig, settings: Settings) -> Self {
        Self {
            cluster,
            config,
            accumulator: Mutex::new(Accumulator::new(settings)),
            freed: Notify::new(),
            attention: Notify::new(),
            signal: watch::Sender::new(0),
            started: Instant::now(),
            stale: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Makes all workers look again.
    pub(super) fn wake(&self) {
        self.signal.send_modify(|reasons| *reasons = reasons.wrapping_add(1));
    }

    fn mark_stale(&self, topic: &TopicName) {
        self.stale.lock().insert(topic.clone());
        self.attention.notify_one();
    }

    fn fail(&self, failed: Vec<(Waiter, ClientError)>) {
        if failed.is_empty() {
            return;
        }
        for (waiter, error) in failed {
            // Whoever dropped its delivery isn't interested.
            let _ = waiter.send(Err(error));
        }
        self.freed.notify_waiters();
    }

    /// What one broker is to be sent now; or when to look again.
    fn drain(
        &self,
        broker: BrokerId,
        cursor: &mut Option<TopicPartition>,
    ) -> (Vec<Sending>, Option<Duration>) {
        let metadata = self.cluster.known();
        let leads = |at: &TopicPartition| metadata.leader(&at.topic, at.partition) == Some(broker);
        let now = self.now();
        let (drained, next) = {
            let mut accumulator = self.accumulator.lock();
            let drained = accumulator.drain(now, &leads, self.config.max_request_bytes, cursor);
            let next = if drained.sendings.is_empty() { accumulator.next_wake(now) } else { None };
            (drained, next)
        };
        self.fail(drained.failed);
        (drained.sendings, next.map(|at| at.saturating_sub(now)))
    }

    fn acknowledge(&self, sending: &Sending, base: Offset) {
        let written = self.accumulator.lock().acknowledged(&sending.partition, sending.batch, base);
        let partition = sending.partition.partition;
        for (waiter, offset) in written {
            // Whoever dropped its delivery isn't interested.
            let _ = waiter.send(Ok(RecordMeta { partition, offset }));
        }
    }

    fn give_back(&self, sending: Sending, error: ClientError) {
        if error.stale_metadata() {
            self.mark_stale(&sending.partition.topic);
        }
        tracing::debug!(partition = %sending.partition, %error, "a batch was not written");
        let mut accumulator = self.accumulator.lock();
        let failure = classify(error, accumulator.is_idempotent());
        let failed = accumulator.failed(self.now(), sending, failure);
        drop(accumulator);
        self.fail(failed);
    }

    /// Gives all of a request's batches back.
    fn give_all_back(&self, sendings: Vec<Sending>, error: &ClientError) {
        for sending in sendings {
            self.give_back(sending, error.clone());
        }
        self.wake();
    }

    /// Resolves a request's batches by its answer.
    fn settle(&self, sendings: Vec<Sending>, answer: Result<ProduceResponse, ClientError>) {
        let response = match answer {
            Ok(response) => response,
            Err(error) => return self.give_all_back(sendings, &error),
        };
        let mut answers = BTreeMap::new();
        for topic in &response.responses {
            answers.extend(
                topic
                    .partition_responses
                    .iter()
                    .map(|partition| ((topic.name.as_str(), partition.index), partition)),
            );
        }
        for sending in sendings {
            let at = (sending.partition.topic.as_str(), sending.partition.partition.raw());
            match answers.get(&at) {
                Some(answer) if is_written(answer) => {
                    self.acknowledge(&sending, Offset::new(answer.base_offset))
                }
                Some(answer) => {
                    let error = refusal(&sending.partition, answer);
                    self.give_back(sending, error);
                }
                None => {
                    let reason = "its answer leaves the partition out".to_owned();
                    let address = "the leader".to_owned();
                    self.give_back(sending, ClientError::Disconnected { address, reason });
                }
            }
        }
        self.freed.notify_waiters();
        self.wake();
    }

    fn expire(&self) {
        let trouble = self.trouble.lock().clone();
        let mut expired = self.accumulator.lock().expire(self.now());
        for (_, error) in &mut expired {
            if let ClientError::Undelivered { last: last @ None, .. } = error {
                last.clone_from(&trouble);
            }
        }
        self.fail(expired);
    }
}

fn is_written(answer: &PartitionProduceResponse) -> bool {
    let code = ErrorCode::new(answer.error_code);
    // The broker has the records, and has forgotten where.
    code.is_none() || code == ErrorCode::DUPLICATE_SEQUENCE_NUMBER
}

fn refusal(partition: &TopicPartition, answer: &PartitionProduceResponse) -> ClientError {
    ClientError::Refused {
        what: format!("writing to {partition}"),
        code: ErrorCode::new(answer.error_code),
        message: answer.error_message.as_ref().map(ToString::to_string),
    }
}

fn classify(error: ClientError, idempotent: bool) -> Failure {
    let lost_count = matches!(
        error.code(),
        Some(
            ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER
                | ErrorCode::UNKNOWN_PRODUCER_ID
                | ErrorCode::INVALID_PRODUCER_EPOCH
        )
    );
    if lost_count && idempotent {
        Failure::Sequence(error)
    } else if error.retriable() {
        Failure::Retry(error)
    } else {
        Failure::Fatal(error)
    }
}

/// Runs until it is aborted, and all workers with it.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let mut workers = JoinSet::new();
    let mut working = BTreeSet::new();
    let mut failures = 0;
    loop {
        while let Some(ended) = workers.try_join_next() {
            if let Ok(broker) = ended {
                working.remove(&broker);
            }
        }
        let outcome = match settle_identity(&shared).await {
            Ok(()) => renew_metadata(&shared).await,
            Err(error) => {
                if !error.retriable() {
                    // The broker will never number these records; nothing of them is in flight.
                    let failed = shared.accumulator.lock().give_up(&error);
                    shared.fail(failed);
                }
                Err(error)
            }
        };
        failures = if outcome.is_ok() { 0 } else { failures + 1 };
        *shared.trouble.lock() = outcome.err().map(|error| error.to_string());
        shared.expire();
        for &broker in shared.cluster.known().brokers.keys() {
            if working.insert(broker) {
                workers.spawn(work(Arc::clone(&shared), broker));
            }
        }
        if failures > 0 {
            sleep(shared.cluster.backoff(failures)).await;
        } else {
            tokio::select! {
                () = shared.attention.notified() => {}
                () = sleep(SUPERVISOR_TICK) => {}
            }
        }
    }
}

/// Asks for the producer's numbers once the first record is there.
async fn settle_identity(shared: &Shared) -> Result<(), ClientError> {
    let needed = {
        let accumulator = shared.accumulator.lock();
        accumulator.lacks_identity() && accumulator.used() > 0
    };
    if !needed {
        return Ok(());
    }
    let connection = shared.cluster.any().await?;
    // Without a transactional id the timeout means nothing; Java's client says the same.
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_transaction_timeout_ms(i32::MAX)
        .with_producer_id(messages::ProducerId(ProducerId::NONE.raw()))
        .with_producer_epoch(-1);
    let response = match connection.call(&request, shared.config.cluster.request_timeout).await {
        Ok(response) => response,
        Err(ClientError::Unsupported { address, .. }) => {
            tracing::warn!(broker = address, "it can't number records: a retry may write some twice");
            shared.accumulator.lock().give_up_idempotence();
            shared.wake();
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let code = ErrorCode::new(response.error_code);
    code.ok().map_err(|code| ClientError::refused("asking for a producer id", code))?;
    let (id, epoch) = (ProducerId::new(response.producer_id.0), ProducerEpoch::new(response.producer_epoch));
    shared.accumulator.lock().set_identity(id, epoch);
    shared.wake();
    Ok(())
}

/// Asks about topics whose leaders turned out to be others, and about those with records but no leader.
async fn renew_metadata(shared: &Shared) -> Result<(), ClientError> {
    let mut topics = std::mem::take(&mut *shared.stale.lock());
    let metadata = shared.cluster.known();
    {
        let accumulator = shared.accumulator.lock();
        let leaderless =
            accumulator.waiting_partitions().filter(|at| metadata.leader(&at.topic, at.partition).is_none());
        topics.extend(leaderless.map(|at| at.topic.clone()));
    }
    if topics.is_empty() {
        return Ok(());
    }
    let topics: Vec<TopicName> = topics.into_iter().collect();
    let refreshed = shared.cluster.refresh(&topics).await;
    if refreshed.is_err() {
        shared.stale.lock().extend(topics);
    }
    shared.wake();
    refreshed.map(|_| ())
}

/// Serves one broker until it leaves the cluster.
async fn work(shared: Arc<Shared>, broker: BrokerId) -> BrokerId {
    let mut signal = shared.signal.subscribe();
    let mut in_flight = FuturesUnordered::new();
    let mut cursor = None;
    loop {
        signal.borrow_and_update();
        let mut wake = IDLE_TICK;
        if in_flight.len() < shared.config.max_in_flight {
            let (sendings, next) = shared.drain(broker, &mut cursor);
            if !sendings.is_empty() {
                in_flight.extend(dispatch(&shared, broker, sendings).await);
                continue;
            }
            wake = next.unwrap_or(IDLE_TICK).min(IDLE_TICK);
            if in_flight.is_empty() && !shared.cluster.known().brokers.contains_key(&broker) {
                return broker;
            }
        }
        tokio::select! {
            Some(()) = in_flight.next() => {}
            changed = signal.changed() => if changed.is_err() { return broker },
            () = sleep(wake) => {}
        }
    }
}

/// Sends one request; gives the future that settles its answer, unless it is settled already.
async fn dispatch(
    shared: &Arc<Shared>,
    broker: BrokerId,
    sendings: Vec<Sending>,
) -> Option<BoxFuture<'static, ()>> {
    let patience = shared.config.cluster.request_timeout;
    let connection = match shared.cluster.connection(broker, Lane::Produce).await {
        Ok(connection) => connection,
        Err(error) => {
            shared.give_all_back(sendings, &error);
            return None;
        }
    };
    let sendings: Vec<Sending> = sendings.into_iter().map(Sending::seal).collect();
    let request = request_of(&shared.config, &sendings);
    if shared.config.acks == Acks::None {
        match connection.send_only(&request, patience).await {
            Ok(()) => {
                sendings.iter().for_each(|sending| shared.acknowledge(sending, Offset::new(-1)));
                shared.freed.notify_waiters();
            }
            Err(error) => shared.give_all_back(sendings, &error),
        }
        return None;
    }
    match connection.begin(&request, patience).await {
        Ok(pending) => {
            let shared = Arc::clone(shared);
            // The connection must live as long as its answers are waited for.
            Some(Box::pin(async move {
                let answer = pending.answer().await;
                drop(connection);
                shared.settle(sendings, answer);
            }))
        }
        Err(error) => {
            shared.give_all_back(sendings, &unsent(error));
            None
        }
    }
}

/// An error before anything was written: unlike a lost answer, it leaves no doubt.
fn unsent(error: ClientError) -> ClientError {
    match error {
        ClientError::Disconnected { address, reason } => ClientError::Connect { address, reason },
        ClientError::Timeout { what, .. } => ClientError::Connect {
            address: "the leader".to_owned(),
            reason: format!("{what} takes too long"),
        },
        other => other,
    }
}

fn request_of(config: &ProducerConfig, sendings: &[Sending]) -> ProduceRequest {
    let mut topics: BTreeMap<&TopicName, Vec<PartitionProduceData>> = BTreeMap::new();
    for sending in sendings {
        let data = PartitionProduceData::default()
            .with_index(sending.partition.partition.raw())
            .with_records(sending.sealed().map(loggos_protocol::batch::Batch::to_bytes));
        topics.entry(&sending.partition.topic).or_default().push(data);
    }
    let topic = |(name, partitions): (&TopicName, _)| {
        TopicProduceData::default().with_name(wire_name(name)).with_partition_data(partitions)
    };
    ProduceRequest::default()
        .with_transactional_id(None)
        .with_acks(config.acks.raw())
        .with_timeout_ms(i32::try_from(config.cluster.request_timeout.as_millis()).unwrap_or(i32::MAX))
        .with_topic_data(topics.into_iter().map(topic).collect())
}
