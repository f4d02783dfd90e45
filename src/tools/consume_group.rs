//! `loggos consume --group`: as a member of a group, so that several processes share a topic's partitions.
//!
//! Offsets are committed by hand, behind what was written out: whatever ends this process, no record is lost that
//! nobody has seen.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use futures::{FutureExt, StreamExt};
use loggos_client::{
    ConsumerConnector, ConsumerError, GroupConfig, GroupConsumer, MessageStream, OffsetReset, OffsetSpec,
    Received, SimpleConsumer, StreamsConfig, Subscription,
};
use loggos_protocol::ids::{GroupId, Offset, PartitionId, TopicName, TopicPartition};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout};

use super::Failure;
use super::consume::Output;
use super::options::Bootstrap;

/// How often offsets are committed while records come without a pause.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// How long one wait for a record takes, at most.
const WAIT: Duration = Duration::from_millis(500);

/// As whom.
#[derive(Args)]
pub struct Member {
    /// As a member of this group: its members share the partitions, and go on where the group was
    #[arg(long, value_name = "GROUP")]
    pub group: Option<GroupId>,

    /// The group is run by its members, over this coordinator or ZooKeeper (the 2011 algorithm), and not by the brokers
    #[arg(long, value_name = "HOST:PORT,...[/ROOT]", requires = "group")]
    pub registry: Option<String>,
}

impl From<ConsumerError> for Failure {
    fn from(error: ConsumerError) -> Self {
        match error {
            ConsumerError::OtherKind { .. } | ConsumerError::Invalid(_) => Self::Refused(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// A member of either kind of group.
enum Source {
    Streams(ConsumerConnector, MessageStream),
    Group(GroupConsumer),
}

impl Source {
    async fn next(&mut self) -> Option<Result<Received, ConsumerError>> {
        match self {
            Self::Streams(_, stream) => stream.next().await,
            Self::Group(consumer) => Some(consumer.recv().await),
        }
    }

    /// Commits what was printed; brokers or a coordinator that are away for a while are no reason to end.
    async fn commit(&self) -> Result<(), ConsumerError> {
        let committed = match self {
            Self::Streams(consumer, _) => consumer.commit().await,
            Self::Group(consumer) => consumer.commit().await,
        };
        match committed {
            Err(error) if error.retriable() => {
                tracing::debug!(%error, "offsets are not committed yet");
                Ok(())
            }
            other => other,
        }
    }

    fn position(&self, partition: &TopicPartition) -> Option<Offset> {
        match self {
            Self::Streams(consumer, _) => consumer.position(partition),
            Self::Group(consumer) => consumer.position(partition),
        }
    }

    /// Whether this member has printed all that was there when it began, of the partitions that it has.
    fn is_at_end(&self, ends: &BTreeMap<PartitionId, Offset>) -> bool {
        let (settled, mine): (bool, Vec<TopicPartition>) = match self {
            Self::Streams(consumer, _) => (
                consumer.is_settled(),
                consumer.assignment().into_iter().map(|(partition, _)| partition).collect(),
            ),
            // One that has no partitions may be waiting for its first.
            Self::Group(consumer) => {
                let mine = consumer.assignment();
                (!mine.is_empty(), mine.into_iter().collect())
            }
        };
        let behind = |partition: &TopicPartition| {
            let end = ends.get(&partition.partition).copied().unwrap_or_default();
            self.position(partition).is_some_and(|position| position >= end)
        };
        settled && mine.iter().all(behind)
    }

    async fn close(self) -> Result<(), ConsumerError> {
        match self {
            Self::Streams(consumer, _) => consumer.close().await,
            Self::Group(consumer) => consumer.close().await,
        }
    }
}

/// Prints what the group hasn't seen, until the end or for ever.
pub async fn run(
    member: Member,
    group: GroupId,
    topic: TopicName,
    (from, stop_at_end): (OffsetSpec, bool),
    bootstrap: Bootstrap,
    output: Output,
) -> Result<(), Failure> {
    let reset = match from {
        OffsetSpec::Earliest => OffsetReset::Earliest,
        OffsetSpec::Latest => OffsetReset::Latest,
        _ => {
            let sentence = "--from: a group begins at the beginning or at the end; rewind it to go elsewhere";
            return Err(Failure::Refused(sentence.to_owned()));
        }
    };
    let cluster = bootstrap.cluster().await?;
    let mut config = GroupConfig { reset, auto_commit: None, ..GroupConfig::new("", group) };
    config.fetch.cluster = bootstrap.config();
    let ends = if stop_at_end {
        let consumer = SimpleConsumer::with_cluster(cluster, config.fetch.clone());
        Some(consumer.offsets(&topic, OffsetSpec::Latest).await?)
    } else {
        None
    };
    let mut source = match member.registry {
        Some(registry) => {
            let config = StreamsConfig { group: config, ..StreamsConfig::new("", &registry, "") };
            let consumer = ConsumerConnector::connect(config).await?;
            let mut streams = consumer.create_message_streams(topic, 1).await?;
            Source::Streams(consumer, streams.remove(0))
        }
        None => {
            let consumer = GroupConsumer::new(config);
            consumer.subscribe(Subscription::topics([topic])).await?;
            Source::Group(consumer)
        }
    };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let printed = tokio::select! {
        printed = print(&mut source, ends.as_ref(), output) => printed,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    let closed = source.close().await;
    printed?;
    Ok(closed?)
}

async fn print(
    source: &mut Source,
    ends: Option<&BTreeMap<PartitionId, Offset>>,
    mut output: Output,
) -> Result<(), Failure> {
    let mut committed = Instant::now();
    while !output.is_full() {
        let ready = source.next().now_or_never();
        let next = match ready {
            Some(next) => next,
            None => {
                output.flush()?;
                source.commit().await?;
                committed = Instant::now();
                if ends.is_some_and(|ends| source.is_at_end(ends)) {
                    return Ok(());
                }
                match timeout(WAIT, source.next()).await {
                    Ok(next) => next,
                    Err(_) => continue,
                }
            }
        };
        let Some(message) = next else { break };
        let Received { partition, record } = message?;
        output.print(partition.partition, &record)?;
        if committed.elapsed() >= COMMIT_INTERVAL {
            output.flush()?;
            source.commit().await?;
            committed = Instant::now();
        }
    }
    output.flush()?;
    Ok(source.commit().await?)
}
