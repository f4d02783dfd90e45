//! The 2011 API: a connector to a group that its members run among themselves, and its streams of messages.

use std::sync::Arc;
use std::time::Duration;

use loggos_protocol::ids::{Offset, TopicName, TopicPartition};
use loggos_protocol::registry::group::RunBy;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::balancer::{Balancer, Command, Offsets, Share};
use super::error::ConsumerError;
use super::prefetch::Prefetch;
use super::stream::MessageStream;
use crate::config::StreamsConfig;
use crate::registry::Registry;
use crate::simple::{OffsetSpec, SimpleConsumer};

/// Requests to the balancer that wait.
const COMMANDS: usize = 16;
/// How long leaving may take: a few attempts at a commit and at letting partitions go.
const CLOSE_DEADLINE: Duration = Duration::from_secs(30);

/// A member of a group that its members run: it shares the partitions of its topics with the other members, over
/// ephemeral nodes in the coordinator's tree, with no broker in between (Algorithm 1 of the 2011 paper).
///
/// Inside a group each message goes to one member; each group gets all messages. Delivery is at-least-once: an offset
/// is committed when the reader has asked for more, and always before a partition changes hands. The unit of sharing
/// is the partition, so topics need at least as many as there will be streams; a warning tells when there are fewer.
///
/// ```no_run
/// # async fn example() -> Result<(), loggos_client::ConsumerError> {
/// use futures::StreamExt;
/// use loggos_client::{ConsumerConnector, StreamsConfig};
///
/// let config = StreamsConfig::new("127.0.0.1:9092", "127.0.0.1:2181", "billing");
/// let consumer = ConsumerConnector::connect(config).await?;
/// let mut streams = consumer.create_message_streams("orders", 1).await?;
/// while let Some(message) = streams[0].next().await {
///     println!("{:?}", message?.payload());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ConsumerConnector {
    commands: mpsc::Sender<Command>,
    share: watch::Receiver<Share>,
    prefetch: Arc<Prefetch>,
    balancer: JoinHandle<()>,
}

impl ConsumerConnector {
    /// Connects to the group's registries. Must be called within a tokio runtime, whose tasks do the work.
    ///
    /// # Errors
    /// `OtherKind` when brokers run the group; `Registry` when there's no coordinator.
    pub async fn connect(config: StreamsConfig) -> Result<Self, ConsumerError> {
        let registry = Registry::connect(&config.coordinator, config.session_timeout).await?;
        let group = config.group.group.clone();
        let run_by = registry.mark_group(&group, RunBy::Members).await?;
        if run_by != RunBy::Members {
            return Err(ConsumerError::OtherKind { group, run_by });
        }
        let fetch = SimpleConsumer::new(config.group.fetch.clone());
        let prefetch = Arc::new(Prefetch::start(fetch, config.group.prefetch_bytes, config.group.reset));
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (told, share) = watch::channel(Share::default());
        let balancer = Balancer::new(config, registry, Arc::clone(&prefetch), told);
        let balancer = tokio::spawn(balancer.run(commands));
        Ok(Self { commands: sender, share, prefetch, balancer })
    }

    /// Joins the readers of `topic`, with `count` streams, among which this member's share is divided. Once per topic.
    ///
    /// # Errors
    /// `Invalid`, `Closed`.
    pub async fn create_message_streams(
        &self,
        topic: impl Into<TopicName>,
        count: usize,
    ) -> Result<Vec<MessageStream>, ConsumerError> {
        let topic = topic.into();
        self.ask(|reply| Command::Subscribe(topic, count, reply)).await
    }

    /// The partitions that this member reads now, each with the number of its stream.
    pub fn assignment(&self) -> Vec<(TopicPartition, usize)> {
        self.share.borrow().partitions.clone().into_iter().collect()
    }

    /// Whether the group is balanced, as far as this member knows.
    pub fn is_settled(&self) -> bool {
        self.share.borrow().settled
    }

    /// Waits until the group is balanced, as far as this member knows. It may change in the next moment.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn settled(&self) -> Result<(), ConsumerError> {
        let mut share = self.share.clone();
        share.wait_for(|share| share.settled).await.map_err(|_| ConsumerError::Closed)?;
        Ok(())
    }

    /// The offset that is handed out next.
    pub fn position(&self, partition: &TopicPartition) -> Option<Offset> {
        self.prefetch.lane(partition).map(|lane| lane.progress().position)
    }

    /// Commits everything that was handed out, the last messages too: call it when you are done with them. The
    /// automatic commit leaves out what is in hand.
    ///
    /// # Errors
    /// `Registry`, and the next commit includes this one; `Closed`.
    pub async fn commit(&self) -> Result<(), ConsumerError> {
        // At once, and not in its turn: a rebalance that is under way commits it too.
        for lane in self.prefetch.lanes() {
            lane.settle();
        }
        self.ask(Command::Commit).await
    }

    /// Goes back, or forward, to `place` in all partitions of `topic` that this member reads: to an offset, a time, the
    /// beginning or the end. What was fetched is forgotten; messages from there on are delivered again. The new offsets
    /// are committed, so that a rebalance doesn't undo it. Other members rewind their own partitions.
    ///
    /// # Errors
    /// `Client` when the offsets can't be found out, and nothing has changed; `Registry` when they are not committed
    /// yet; `Closed`.
    pub async fn rewind(
        &self,
        topic: impl Into<TopicName>,
        place: OffsetSpec,
    ) -> Result<Offsets, ConsumerError> {
        let topic = topic.into();
        let mine = self.share.borrow().partitions.clone().into_keys();
        let mine = mine.filter(|partition| partition.topic == topic).collect();
        self.ask(|reply| Command::Rewind(mine, place, reply)).await
    }

    /// The same for one partition.
    ///
    /// # Errors
    /// `NotAssigned`; those of [`rewind`](Self::rewind).
    pub async fn seek(&self, partition: TopicPartition, place: OffsetSpec) -> Result<Offset, ConsumerError> {
        let offsets = self.ask(|reply| Command::Rewind(vec![partition.clone()], place, reply)).await?;
        offsets.get(&partition).copied().ok_or(ConsumerError::NotAssigned { partition })
    }

    /// Commits what is done with, lets the partitions go, and leaves the group; the streams end.
    ///
    /// # Errors
    /// `Registry` when the coordinator didn't answer in time: the others wait for the session to expire.
    pub async fn close(self) -> Result<(), ConsumerError> {
        // If it's gone already, so be it.
        let _ = self.commands.send(Command::Close).await;
        let ended = timeout(CLOSE_DEADLINE, self.balancer).await;
        ended.map(|_| ()).map_err(|_| ConsumerError::from(crate::registry::RegistryError::Timeout))
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, ConsumerError>>) -> Command,
    ) -> Result<T, ConsumerError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| ConsumerError::Closed)?;
        answer.await.map_err(|_| ConsumerError::Closed)?
    }
}
