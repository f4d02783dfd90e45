//! The everyday consumer: a member of a group that brokers run by KIP-848, with the assignment made by the broker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use loggos_protocol::ids::{Offset, TopicName, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::balancer::Offsets;
use super::error::ConsumerError;
use super::intake::Intake;
use super::member::{Command, Member};
use super::prefetch::Prefetch;
use super::queue::{Popped, Queue};
use super::stream::Received;
use crate::config::GroupConfig;
use crate::simple::{OffsetSpec, SimpleConsumer};

/// Requests to the member's task that wait.
const COMMANDS: usize = 16;

/// What a member reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subscription {
    /// These topics.
    Topics(Vec<TopicName>),
    /// All topics that match, those of later too; in the syntax of RE2, which brokers evaluate.
    Pattern(String),
}

impl Subscription {
    /// These topics.
    pub fn topics<T: Into<TopicName>>(names: impl IntoIterator<Item = T>) -> Self {
        Self::Topics(names.into_iter().map(Into::into).collect())
    }
}

/// A member of a broker-run group. Records come from [`poll`](Self::poll) and [`recv`](Self::recv); asking for more says
/// that one is done with what came before, which is what the automatic commit commits.
///
/// ```no_run
/// # async fn example() -> Result<(), loggos_client::ConsumerError> {
/// use loggos_client::{GroupConfig, GroupConsumer, Subscription};
///
/// let mut consumer = GroupConsumer::new(GroupConfig::new("127.0.0.1:9092", "billing"));
/// consumer.subscribe(Subscription::topics(["orders"])).await?;
/// loop {
///     let record = consumer.recv().await?;
///     println!("{} {:?}", record.offset(), record.payload());
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct GroupConsumer {
    prefetch: Arc<Prefetch>,
    intake: Intake,
    commands: mpsc::Sender<Command>,
    share: watch::Receiver<BTreeSet<TopicPartition>>,
    fatal: Arc<Mutex<Option<ConsumerError>>>,
    task: AbortHandle,
}

impl GroupConsumer {
    /// A consumer that has joined nothing yet. Must be called within a tokio runtime, whose tasks do the work.
    pub fn new(config: GroupConfig) -> Self {
        Self::start(config, None)
    }

    /// A static member (KIP-345): who comes back under this name in time gets its partitions back without a rebalance.
    pub fn with_instance(config: GroupConfig, instance: impl Into<String>) -> Self {
        Self::start(config, Some(instance.into()))
    }

    fn start(config: GroupConfig, instance: Option<String>) -> Self {
        let fetch = SimpleConsumer::new(config.fetch.clone());
        let prefetch = Arc::new(Prefetch::start(fetch, config.prefetch_bytes, config.reset));
        let queue = Arc::new(Queue::default());
        let settles = config.auto_commit.is_some();
        let intake = Intake::new(Arc::clone(&queue), prefetch.wake(), config.prefetch_bytes / 2, settles);
        let (commands, asked) = mpsc::channel(COMMANDS);
        let (told, share) = watch::channel(BTreeSet::new());
        let fatal = Arc::new(Mutex::new(None));
        let member = Member::new(config, instance, Arc::clone(&prefetch), queue, told, Arc::clone(&fatal));
        let task = tokio::spawn(member.run(asked)).abort_handle();
        Self { prefetch, intake, commands, share, fatal, task }
    }

    /// Joins the group as a reader of these topics, or reads others from now on.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn subscribe(&self, subscription: Subscription) -> Result<(), ConsumerError> {
        self.tell(Command::Subscribe(subscription)).await
    }

    /// The next record; waits for it.
    ///
    /// # Errors
    /// `Client` with what stopped a partition, which is read on after a seek, or with what ended the membership;
    /// `Closed`.
    pub async fn recv(&mut self) -> Result<Received, ConsumerError> {
        self.intake.ask();
        loop {
            if let Some(next) = self.intake.next_ready() {
                return next.map_err(ConsumerError::from);
            }
            match self.popped().await {
                Popped::Chunk(chunk) => self.intake.begin(chunk),
                Popped::Nothing => {}
                Popped::Closed => return Err(self.fatal.lock().clone().unwrap_or(ConsumerError::Closed)),
            }
        }
    }

    /// Up to `count` records that are there, or those that come first within `max_wait`; none after that.
    ///
    /// # Errors
    /// Those of [`recv`](Self::recv), if no record was there.
    pub async fn poll(&mut self, count: usize, max_wait: Duration) -> Result<Vec<Received>, ConsumerError> {
        let first = match timeout_at(Instant::now() + max_wait, self.recv()).await {
            Err(_) => return Ok(Vec::new()),
            Ok(first) => first?,
        };
        let mut records = vec![first];
        while records.len() < count {
            match self.intake.next_ready() {
                Some(Ok(record)) => records.push(record),
                // The partition has stopped; the next call says why.
                Some(Err(error)) => {
                    self.intake.put_back(error);
                    break;
                }
                None => break,
            }
        }
        Ok(records)
    }

    async fn popped(&self) -> Popped {
        std::future::poll_fn(|context| self.intake.queue().poll_pop(context)).await
    }

    /// The partitions that this member reads now.
    pub fn assignment(&self) -> BTreeSet<TopicPartition> {
        self.share.borrow().clone()
    }

    /// The offset that is handed out next.
    pub fn position(&self, partition: &TopicPartition) -> Option<Offset> {
        self.prefetch.lane(partition).map(|lane| lane.progress().position)
    }

    /// The end of what consumers are shown, as of the last answer: the lag is what lies between.
    pub fn end(&self, partition: &TopicPartition) -> Option<Offset> {
        self.prefetch.lane(partition).and_then(|lane| lane.progress().end)
    }

    /// Hands out nothing of a partition until it is resumed, and fetches nothing of it.
    ///
    /// # Errors
    /// `NotAssigned`.
    pub fn pause(&self, partition: &TopicPartition) -> Result<(), ConsumerError> {
        self.lane(partition)?.pause();
        Ok(())
    }

    /// Goes on with a partition.
    ///
    /// # Errors
    /// `NotAssigned`.
    pub fn resume(&self, partition: &TopicPartition) -> Result<(), ConsumerError> {
        self.lane(partition)?.resume();
        self.prefetch.wake().notify_one();
        Ok(())
    }

    /// Reads a partition from `place` on; gives the offset. The next commit says so to the group.
    ///
    /// # Errors
    /// `NotAssigned`; `Client` when the offset can't be found out.
    pub async fn seek(&self, partition: &TopicPartition, place: OffsetSpec) -> Result<Offset, ConsumerError> {
        let lane = self.lane(partition)?;
        let offset = self.prefetch.consumer().offset(partition, place).await?;
        self.prefetch.seek(&lane, offset);
        Ok(offset)
    }

    fn lane(&self, partition: &TopicPartition) -> Result<Arc<super::lane::Lane>, ConsumerError> {
        let not_assigned = || ConsumerError::NotAssigned { partition: partition.clone() };
        self.prefetch.lane(partition).ok_or_else(not_assigned)
    }

    /// The offsets that times mean, in any partitions.
    ///
    /// # Errors
    /// `Client`.
    pub async fn offsets_for(
        &self,
        places: &BTreeMap<TopicPartition, OffsetSpec>,
    ) -> Result<Offsets, ConsumerError> {
        let mut offsets = Offsets::new();
        for (partition, place) in places {
            offsets.insert(partition.clone(), self.prefetch.consumer().offset(partition, *place).await?);
        }
        Ok(offsets)
    }

    /// What the group has committed for some partitions.
    ///
    /// # Errors
    /// `Client`, `Closed`.
    pub async fn committed(&self, partitions: BTreeSet<TopicPartition>) -> Result<Offsets, ConsumerError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Committed(partitions, reply)).await?;
        answer.await.map_err(|_| ConsumerError::Closed)?
    }

    /// Commits everything that was handed out, the last records too, and waits until that stands.
    ///
    /// # Errors
    /// `Client`, and the next commit includes this one; `Fenced`; `Closed`.
    pub async fn commit(&self) -> Result<(), ConsumerError> {
        self.settle();
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Commit(Some(reply))).await?;
        answer.await.map_err(|_| ConsumerError::Closed)?
    }

    /// The same without waiting; a failure is logged, and mended by the next commit.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn commit_soon(&self) -> Result<(), ConsumerError> {
        self.settle();
        self.tell(Command::Commit(None)).await
    }

    fn settle(&self) {
        for lane in self.prefetch.lanes() {
            lane.settle();
        }
    }

    /// Commits what is done with, and leaves the group: its partitions go to others at once.
    ///
    /// # Errors
    /// `Client`; the group then waits for the member's session to end.
    pub async fn close(self) -> Result<(), ConsumerError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Close(reply)).await?;
        answer.await.map_err(|_| ConsumerError::Closed)?
    }

    async fn tell(&self, command: Command) -> Result<(), ConsumerError> {
        self.commands.send(command).await.map_err(|_| ConsumerError::Closed)
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
