//! Fetching by hand: at an offset, from a partition's leader, with no group and no memory of what was read.
//!
//! Called by the tools, by [`Reader`](crate::reader::Reader) which reads many partitions, and by group consumers.

use std::collections::BTreeMap;
use std::time::Duration;

use loggos_protocol::batch::Record;
use loggos_protocol::ids::{
    BrokerId, LeaderEpoch, Offset, PartitionId, Timestamp, TopicName, TopicPartition,
};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::fetch_request::{FetchPartition, FetchTopic};
use loggos_protocol::kafka::messages::fetch_response::PartitionData;
use loggos_protocol::kafka::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use loggos_protocol::kafka::messages::{self, FetchRequest, ListOffsetsRequest};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, Lane, wire_name};
use crate::config::{ConsumerConfig, Isolation};
use crate::error::ClientError;
use crate::fetched::FetchedBatches;

/// What ListOffsets takes for "the end".
const LATEST: i64 = -1;
/// What ListOffsets takes for "the beginning".
const EARLIEST: i64 = -2;

/// A place in a partition, by meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first record that is kept.
    Earliest,
    /// Behind the last record that consumers are shown.
    Latest,
    /// The first record of this time or later; the end when there's none.
    At(Timestamp),
    /// This one.
    Exactly(Offset),
}

/// What a fetch of one partition gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The records from the asked offset on, in order; empty at the end of the partition.
    pub records: Vec<Record>,
    /// The offset to ask for next. It may be further than the last record: compaction leaves gaps, and markers of
    /// transactions are not shown.
    pub next: Offset,
    /// The end of what consumers are shown.
    pub high_watermark: Offset,
    /// The first offset that is kept; -1 when the broker didn't say.
    pub log_start: Offset,
}

/// One partition in a fetch of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchFrom {
    /// The partition.
    pub partition: TopicPartition,
    /// From where.
    pub offset: Offset,
    /// The most of it, but for one batch that is larger.
    pub max_bytes: usize,
}

/// Fetches by hand. Clones share the cluster.
#[derive(Clone, Debug)]
pub struct SimpleConsumer {
    cluster: Cluster,
    config: ConsumerConfig,
}

impl SimpleConsumer {
    /// A consumer of its own cluster; nothing is connected before it's asked for something.
    pub fn new(config: ConsumerConfig) -> Self {
        Self { cluster: Cluster::new(config.cluster.clone()), config }
    }

    /// A consumer of a cluster that others use too.
    pub const fn with_cluster(cluster: Cluster, config: ConsumerConfig) -> Self {
        Self { cluster, config }
    }

    /// The cluster.
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The settings.
    pub const fn config(&self) -> &ConsumerConfig {
        &self.config
    }

    /// Records of one partition from `offset` on; waits up to `max_wait` for the first. Finds another leader and
    /// asks again for as long as a request may take.
    ///
    /// # Errors
    /// `OffsetOutOfRange`, which says what is there; anything else after retries.
    pub async fn fetch(
        &self,
        partition: &TopicPartition,
        offset: Offset,
        max_bytes: usize,
        max_wait: Duration,
    ) -> Result<Fetched, ClientError> {
        let wanted = [FetchFrom { partition: partition.clone(), offset, max_bytes }];
        self.retrying(&partition.topic, || async {
            let leader = self.cluster.leader(partition).await?;
            let mut fetched = self.fetch_from(leader, &wanted, max_wait).await?;
            fetched.pop().map_or_else(|| Err(left_out(partition)), |(_, outcome)| outcome)
        })
        .await
    }

    /// One request to one broker for several partitions, each with its own outcome; no retry.
    ///
    /// # Errors
    /// What concerns them all.
    pub async fn fetch_from(
        &self,
        broker: BrokerId,
        wanted: &[FetchFrom],
        max_wait: Duration,
    ) -> Result<Vec<(TopicPartition, Result<Fetched, ClientError>)>, ClientError> {
        let outcomes = self.fetch_batches_from(broker, wanted, max_wait).await?;
        let unfolded = |(partition, outcome): (TopicPartition, Result<FetchedBatches, ClientError>)| {
            let outcome = outcome.and_then(|mut batches| {
                let records = batches.by_ref().collect::<Result<Vec<Record>, ClientError>>()?;
                let FetchedBatches { next, high_watermark, log_start, .. } = batches;
                Ok(Fetched { records, next, high_watermark, log_start })
            });
            (partition, outcome)
        };
        Ok(outcomes.into_iter().map(unfolded).collect())
    }

    /// The same without taking the batches apart.
    ///
    /// # Errors
    /// What concerns them all.
    pub(crate) async fn fetch_batches_from(
        &self,
        broker: BrokerId,
        wanted: &[FetchFrom],
        max_wait: Duration,
    ) -> Result<Vec<(TopicPartition, Result<FetchedBatches, ClientError>)>, ClientError> {
        let connection = self.cluster.connection(broker, Lane::Fetch).await?;
        let request = self.fetch_request(wanted, max_wait);
        let response = connection.call(&request, self.cluster.config().request_timeout + max_wait).await?;
        ErrorCode::new(response.error_code).ok().map_err(|code| ClientError::refused("fetching", code))?;
        let mut answers: BTreeMap<(String, i32), PartitionData> = BTreeMap::new();
        for topic in response.responses {
            let name = topic.topic.to_string();
            answers.extend(
                topic.partitions.into_iter().map(|data| ((name.clone(), data.partition_index), data)),
            );
        }
        let mut outcomes = Vec::with_capacity(wanted.len());
        for FetchFrom { partition, offset, .. } in wanted {
            let at = (partition.topic.to_string(), partition.partition.raw());
            let outcome = match answers.remove(&at) {
                None => Err(left_out(partition)),
                Some(data) if ErrorCode::new(data.error_code) == ErrorCode::OFFSET_OUT_OF_RANGE => {
                    Err(self.out_of_range(partition, *offset).await)
                }
                Some(data) => self.read(partition, *offset, &data),
            };
            outcomes.push((partition.clone(), outcome));
        }
        Ok(outcomes)
    }

    fn fetch_request(&self, wanted: &[FetchFrom], max_wait: Duration) -> FetchRequest {
        let known = self.cluster.known();
        let mut topics: BTreeMap<&TopicName, Vec<FetchPartition>> = BTreeMap::new();
        for FetchFrom { partition, offset, max_bytes } in wanted {
            let metadata = known.topics.get(&partition.topic);
            let epoch = metadata
                .and_then(|topic| topic.partitions.get(&partition.partition))
                .map_or(LeaderEpoch::NONE, |partition| partition.leader_epoch);
            let wanted = FetchPartition::default()
                .with_partition(partition.partition.raw())
                .with_current_leader_epoch(epoch.raw())
                .with_fetch_offset(offset.raw())
                .with_partition_max_bytes(clamp(*max_bytes));
            topics.entry(&partition.topic).or_default().push(wanted);
        }
        let topic = |(name, partitions): (&TopicName, _)| {
            FetchTopic::default().with_topic(wire_name(name)).with_partitions(partitions)
        };
        FetchRequest::default()
            .with_replica_id(messages::BrokerId(-1))
            .with_max_wait_ms(millis(max_wait))
            .with_min_bytes(clamp(self.config.min_bytes))
            .with_max_bytes(clamp(self.config.max_bytes))
            .with_isolation_level(self.isolation_level())
            // Every request stands for itself: no fetch session (KIP-227).
            .with_session_id(0)
            .with_session_epoch(-1)
            .with_topics(topics.into_iter().map(topic).collect())
    }

    const fn isolation_level(&self) -> i8 {
        match self.config.isolation {
            Isolation::ReadUncommitted => 0,
            Isolation::ReadCommitted => 1,
        }
    }

    /// The batches in a partition's answer.
    fn read(
        &self,
        partition: &TopicPartition,
        offset: Offset,
        data: &PartitionData,
    ) -> Result<FetchedBatches, ClientError> {
        let code = ErrorCode::new(data.error_code);
        code.ok().map_err(|code| ClientError::refused(format!("reading {partition}"), code))?;
        FetchedBatches::new(&self.config, offset, data)
    }

    async fn out_of_range(&self, partition: &TopicPartition, offset: Offset) -> ClientError {
        let log_start = self.offset(partition, OffsetSpec::Earliest).await;
        let end = self.offset(partition, OffsetSpec::Latest).await;
        match (log_start, end) {
            (Ok(log_start), Ok(end)) => {
                ClientError::OffsetOutOfRange { partition: partition.clone(), offset, log_start, end }
            }
            (Err(error), _) | (_, Err(error)) => error,
        }
    }

    /// The offset that `spec` means in a partition now.
    ///
    /// # Errors
    /// What the leader says, after retries.
    pub async fn offset(&self, partition: &TopicPartition, spec: OffsetSpec) -> Result<Offset, ClientError> {
        let timestamp = match spec {
            OffsetSpec::Exactly(offset) => return Ok(offset),
            OffsetSpec::Earliest => EARLIEST,
            OffsetSpec::Latest => LATEST,
            OffsetSpec::At(timestamp) => timestamp.raw(),
        };
        let found = self.retrying(&partition.topic, || self.list_offset(partition, timestamp)).await?;
        match found {
            // No record is as young.
            None => self
                .retrying(&partition.topic, || self.list_offset(partition, LATEST))
                .await?
                .ok_or_else(|| {
                    ClientError::refused(
                        format!("asking for the end of {partition}"),
                        ErrorCode::OFFSET_NOT_AVAILABLE,
                    )
                }),
            Some(offset) => Ok(offset),
        }
    }

    /// The offsets that `spec` means in all partitions of a topic; errors as [`offset`](Self::offset).
    pub async fn offsets(
        &self,
        topic: &TopicName,
        spec: OffsetSpec,
    ) -> Result<BTreeMap<PartitionId, Offset>, ClientError> {
        let partitions = self.cluster.partitions(topic).await?;
        let each = partitions.into_iter().map(|number| async move {
            let partition = TopicPartition { topic: topic.clone(), partition: number };
            self.offset(&partition, spec).await.map(|offset| (number, offset))
        });
        futures::future::try_join_all(each).await.map(BTreeMap::from_iter)
    }

    async fn list_offset(
        &self,
        partition: &TopicPartition,
        timestamp: i64,
    ) -> Result<Option<Offset>, ClientError> {
        let leader = self.cluster.leader(partition).await?;
        let connection = self.cluster.connection(leader, Lane::Control).await?;
        let wanted = ListOffsetsPartition::default()
            .with_partition_index(partition.partition.raw())
            .with_current_leader_epoch(LeaderEpoch::NONE.raw())
            .with_timestamp(timestamp);
        let topic =
            ListOffsetsTopic::default().with_name(wire_name(&partition.topic)).with_partitions(vec![wanted]);
        let request = ListOffsetsRequest::default()
            .with_replica_id(messages::BrokerId(-1))
            .with_isolation_level(self.isolation_level())
            .with_topics(vec![topic])
            .with_timeout_ms(millis(self.cluster.config().request_timeout));
        let response = connection.call(&request, self.cluster.config().request_timeout).await?;
        let answer = response.topics.iter().flat_map(|topic| &topic.partitions).next();
        let answer = answer.ok_or_else(|| left_out(partition))?;
        let code = ErrorCode::new(answer.error_code);
        code.ok()
            .map_err(|code| ClientError::refused(format!("asking for an offset of {partition}"), code))?;
        Ok((answer.offset >= 0).then(|| Offset::new(answer.offset)))
    }

    /// Asks again, after a look at the cluster, for as long as a request may take.
    async fn retrying<R, F: Future<Output = Result<R, ClientError>>>(
        &self,
        topic: &TopicName,
        attempt: impl Fn() -> F,
    ) -> Result<R, ClientError> {
        let deadline = Instant::now() + self.cluster.config().request_timeout;
        let mut failures = 0;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            failures += 1;
            let pause = self.cluster.backoff(failures);
            if !error.retriable() || Instant::now() + pause >= deadline {
                return Err(error);
            }
            sleep(pause).await;
            if error.stale_metadata() {
                // If this fails too, the next attempt says why.
                let _ = self.cluster.refresh(std::slice::from_ref(topic)).await;
            }
        }
    }
}

fn left_out(partition: &TopicPartition) -> ClientError {
    ClientError::refused(
        format!("{partition} is left out of the answer"),
        ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
    )
}

fn clamp(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
