//! The producer: records into batches, batches to leaders, retries that keep each partition's order.
//!
//! | file | what it does |
//! |---|---|
//! | `partitioner` | which partition |
//! | `message_set` | sets of messages, as in 2011 |
//! | `accumulator`, `line` | which batch, and which batch when |
//! | `sender` | requests and answers, one task per broker, one over them all |
//!
//! [`Producer::queue`] puts a record into its batch and returns, [`Producer::send`] does so with a set; what it returns is a future of the record's offset.
//! Records of one caller for one partition are written in the order of their calls. Called by the tools, by
//! groups of consumers that answer, and by whoever embeds this crate.

mod accumulator;
mod line;
mod message_set;
mod partitioner;
mod sender;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use loggos_protocol::ids::{Offset, PartitionId, Timestamp, TopicName, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use self::accumulator::{Rejected, Settings};
use self::partitioner::Sticky;
use self::sender::{Shared, Waiter};
use crate::cluster::Cluster;
use crate::config::{IDEMPOTENT_IN_FLIGHT, ProducerConfig};
use crate::error::ClientError;
use crate::message::Message;
use crate::metadata::Metadata;

pub use self::message_set::{MessageSet, Partitioner, SetDelivery};
pub use self::partitioner::{murmur2, of_key};

/// Added to the time that a flush may take at most, for the answers to the last requests.
const FLUSH_GRACE: Duration = Duration::from_secs(5);

/// Where a record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordMeta {
    /// The partition.
    pub partition: PartitionId,
    /// The offset; -1 when the broker didn't say, as with `Acks::None`.
    pub offset: Offset,
}

/// A record that is queued: the future of where it was written. Dropping it doesn't stop the record.
#[derive(Debug)]
#[must_use = "a record may fail after it was queued"]
pub struct Delivery {
    outcome: oneshot::Receiver<Result<RecordMeta, ClientError>>,
}

impl Future for Delivery {
    type Output = Result<RecordMeta, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(Pin::new(&mut self.outcome).poll(context)).unwrap_or(Err(ClientError::Closed)))
    }
}

/// Sends records to topics. Shared by reference; dropping it drops what is not yet written, see [`Producer::close`].
#[derive(Debug)]
pub struct Producer {
    shared: Arc<Shared>,
    routing: Mutex<Routing>,
    closed: AtomicBool,
    supervisor: AbortHandle,
}

/// What is needed to choose a partition, drawn from the metadata once per snapshot.
#[derive(Debug)]
struct Routing {
    sticky: Sticky,
    metadata: Arc<Metadata>,
    topics: BTreeMap<TopicName, Shape>,
}

#[derive(Debug)]
struct Shape {
    count: i32,
    /// Partitions with a leader; all of them when none has one.
    available: Vec<PartitionId>,
}

impl Producer {
    /// A producer of its own cluster; nothing is connected before the first record. Must be called within a tokio
    /// runtime, whose tasks do the sending.
    pub fn new(config: ProducerConfig) -> Self {
        let idempotent = config.is_idempotent();
        let max_in_flight = config.max_in_flight.clamp(1, IDEMPOTENT_IN_FLIGHT);
        let settings = Settings {
            compression: config.compression,
            level: config.level,
            linger: config.linger,
            batch_bytes: config.batch_bytes,
            record_limit: config.max_request_bytes,
            buffer_bytes: config.buffer_bytes,
            in_flight: if idempotent { max_in_flight } else { 1 },
            idempotent,
            delivery_timeout: config.delivery_timeout,
            backoff: config.cluster.retry_backoff,
            backoff_max: config.cluster.retry_backoff_max,
        };
        let routing = Routing {
            sticky: Sticky::new(config.batch_bytes),
            metadata: Arc::default(),
            topics: BTreeMap::new(),
        };
        let shared = Arc::new(Shared::new(Cluster::new(config.cluster.clone()), config, settings));
        let supervisor = tokio::spawn(sender::supervise(Arc::clone(&shared))).abort_handle();
        Self { shared, routing: Mutex::new(routing), closed: AtomicBool::new(false), supervisor }
    }

    /// The cluster, for questions about topics.
    pub fn cluster(&self) -> &Cluster {
        &self.shared.cluster
    }

    /// Queues `message` for `partition`, or for the one that its key or the turn decides. Waits only while the
    /// topic is unknown or the buffer full; what it gives is the future of the offset.
    ///
    /// # Errors
    /// `Closed`, `RecordTooLarge`, `UnknownPartition`, `Undelivered` when there was no room within `max_block`, and
    /// what [`Cluster::topic`] says.
    pub async fn queue(
        &self,
        topic: &TopicName,
        partition: Option<PartitionId>,
        message: Message,
    ) -> Result<Delivery, ClientError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(ClientError::Closed);
        }
        let max_block = self.shared.config.max_block;
        let deadline = Instant::now() + max_block;
        let partition = match self.route(topic, partition, &message) {
            Some(partition) => partition,
            None => self.learn_and_route(topic, partition, &message, deadline).await?,
        };
        let target = TopicPartition { topic: topic.clone(), partition };
        let (sender, outcome) = oneshot::channel();
        let mut waiter = match self.push(&target, &message, sender)? {
            None => return Ok(Delivery { outcome }),
            Some(waiter) => waiter,
        };
        loop {
            let mut freed = std::pin::pin!(self.shared.freed.notified());
            // Registered before the attempt, so that room that is made in between isn't missed.
            freed.as_mut().enable();
            waiter = match self.push(&target, &message, waiter)? {
                None => return Ok(Delivery { outcome }),
                Some(waiter) => waiter,
            };
            self.shared.wake();
            if timeout_at(deadline, freed).await.is_err() {
                let last = Some("the buffer is full".to_owned());
                return Err(ClientError::Undelivered { partition: target, after: max_block, last });
            }
        }
    }

    /// [`queue`](Self::queue), and the wait for the offset.
    ///
    /// # Errors
    /// Those of `queue`, and why the record wasn't written.
    pub async fn send_and_wait(
        &self,
        topic: &TopicName,
        partition: Option<PartitionId>,
        message: Message,
    ) -> Result<RecordMeta, ClientError> {
        self.queue(topic, partition, message).await?.await
    }

    /// Queues a record; gives the waiter back when there's no room.
    fn push(
        &self,
        target: &TopicPartition,
        message: &Message,
        waiter: Waiter,
    ) -> Result<Option<Waiter>, ClientError> {
        let view = message.view(wall_clock());
        let pushed = self.shared.accumulator.lock().push(self.shared.now(), target, &view, waiter);
        match pushed {
            Ok(pushed) => {
                if pushed.number == 1 {
                    self.shared.attention.notify_one();
                }
                if pushed.wake {
                    self.shared.wake();
                }
                Ok(None)
            }
            Err(Rejected::Full(waiter)) => Ok(Some(waiter)),
            Err(Rejected::TooLarge(_, error)) => Err(error),
        }
    }

    /// The partition, if the topic is known.
    fn route(&self, topic: &TopicName, fixed: Option<PartitionId>, message: &Message) -> Option<PartitionId> {
        let mut routing = self.routing.lock();
        let known = self.shared.cluster.known();
        if !Arc::ptr_eq(&known, &routing.metadata) {
            routing.metadata = known;
            routing.topics.clear();
        }
        let Routing { sticky, metadata, topics } = &mut *routing;
        if !topics.contains_key(topic) {
            topics.insert(topic.clone(), shape_of(metadata, topic)?);
        }
        let shape = topics.get(topic)?;
        match (fixed, &message.key) {
            (Some(fixed), _) => (0..shape.count).contains(&fixed.raw()).then_some(fixed),
            (None, Some(key)) => Some(of_key(key, shape.count)),
            (None, None) => {
                let bytes = message.value.as_ref().map_or(0, bytes::Bytes::len);
                sticky.choose(topic, &shape.available, bytes.max(1), rand::random::<u32>() as usize)
            }
        }
    }

    async fn learn_and_route(
        &self,
        topic: &TopicName,
        partition: Option<PartitionId>,
        message: &Message,
        deadline: Instant,
    ) -> Result<PartitionId, ClientError> {
        self.shared.cluster.topic_until(topic, deadline).await?;
        let mut routed = self.route(topic, partition, message);
        if routed.is_none() {
            // The topic may have grown since it was looked at.
            self.shared.cluster.refresh(std::slice::from_ref(topic)).await?;
            routed = self.route(topic, partition, message);
        }
        self.shared.attention.notify_one();
        let asked = partition.unwrap_or(PartitionId::new(0));
        routed.ok_or_else(|| ClientError::UnknownPartition {
            partition: TopicPartition { topic: topic.clone(), partition: asked },
        })
    }

    /// Sends everything that was queued before this call, and waits until each record is written or given up;
    /// which of them it was, each [`Delivery`] says.
    ///
    /// # Errors
    /// `Timeout`, after the delivery timeout and a request's, which says that a broker is stuck.
    pub async fn flush(&self) -> Result<(), ClientError> {
        let to = self.shared.accumulator.lock().flush();
        self.shared.wake();
        let config = &self.shared.config;
        let patience = config.delivery_timeout + config.cluster.request_timeout + FLUSH_GRACE;
        let resolved = async {
            loop {
                let mut resolved = std::pin::pin!(self.shared.freed.notified());
                resolved.as_mut().enable();
                if self.shared.accumulator.lock().is_resolved_to(to) {
                    return;
                }
                resolved.await;
            }
        };
        timeout(patience, resolved)
            .await
            .map_err(|_| ClientError::Timeout { what: "a flush".to_owned(), after: patience })
    }

    /// Takes no more records, and flushes those that it has; errors as [`flush`](Self::flush).
    pub async fn close(&self) -> Result<(), ClientError> {
        self.closed.store(true, Ordering::Release);
        let flushed = self.flush().await;
        self.supervisor.abort();
        flushed
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

fn shape_of(metadata: &Metadata, topic: &TopicName) -> Option<Shape> {
    let known =
        metadata.topics.get(topic).filter(|known| known.error.is_none() && !known.partitions.is_empty())?;
    let led = known.partitions.iter().filter(|(_, partition)| partition.leader.is_some());
    let mut available: Vec<PartitionId> = led.map(|(number, _)| *number).collect();
    if available.is_empty() {
        available = known.partitions.keys().copied().collect();
    }
    Some(Shape { count: i32::try_from(known.partitions.len()).ok()?, available })
}

fn wall_clock() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod accumulator_tests;
