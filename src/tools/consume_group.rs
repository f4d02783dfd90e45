//! `loggos consume --group`: as a member of a group, so that several processes share a topic's partitions.
//!
//! Offsets are committed by hand, behind what was written out: whatever ends this process, no record is lost that
//! nobody has seen.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use futures::{FutureExt, StreamExt};
use loggos_client::{
    ConsumerConnector, ConsumerError, GroupConfig, MessageStream, OffsetReset, OffsetSpec, Received,
    SimpleConsumer, StreamsConfig,
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
    #[arg(long, value_name = "GROUP", requires = "registry")]
    pub group: Option<GroupId>,

    /// The group is run by its members, over this coordinator or ZooKeeper (the 2011 algorithm)
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
    let registry = member.registry.unwrap_or_default();
    let config = StreamsConfig { group: config, ..StreamsConfig::new("", &registry, "") };
    let consumer = ConsumerConnector::connect(config).await?;
    let mut streams = consumer.create_message_streams(topic, 1).await?;
    let stream = streams.pop().ok_or_else(|| Failure::Failed("no stream".to_owned()))?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let printed = tokio::select! {
        printed = print(&consumer, stream, ends.as_ref(), output) => printed,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    consumer.close().await?;
    printed
}

async fn print(
    consumer: &ConsumerConnector,
    mut stream: MessageStream,
    ends: Option<&BTreeMap<PartitionId, Offset>>,
    mut output: Output,
) -> Result<(), Failure> {
    let mut committed = Instant::now();
    while !output.is_full() {
        let next = match stream.next().now_or_never() {
            Some(next) => next,
            None => {
                output.flush()?;
                commit(consumer).await?;
                committed = Instant::now();
                if ends.is_some_and(|ends| is_at_end(consumer, ends)) {
                    return Ok(());
                }
                match timeout(WAIT, stream.next()).await {
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
            commit(consumer).await?;
            committed = Instant::now();
        }
    }
    output.flush()?;
    Ok(consumer.commit().await?)
}

/// Commits what was printed; a coordinator that is away for a while is no reason to end.
async fn commit(consumer: &ConsumerConnector) -> Result<(), ConsumerError> {
    match consumer.commit().await {
        Err(error) if error.retriable() => {
            tracing::debug!(%error, "offsets are not committed yet");
            Ok(())
        }
        other => other,
    }
}

/// Whether this member has printed all that was there when it began, of the partitions that it has.
fn is_at_end(consumer: &ConsumerConnector, ends: &BTreeMap<PartitionId, Offset>) -> bool {
    let behind = |(partition, _): &(TopicPartition, usize)| {
        let end = ends.get(&partition.partition).copied().unwrap_or_default();
        consumer.position(partition).is_some_and(|position| position >= end)
    };
    consumer.is_settled() && consumer.assignment().iter().all(behind)
}
