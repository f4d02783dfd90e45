//! Offsets of consumer groups, from one cluster to the other, and where mirrored topics have come from, which is kept
//! as such offsets too. Called by `source`.

use std::collections::BTreeMap;
use std::sync::Arc;

use loggos_client::{ClientError, Cluster, Connection, Lane};
use loggos_protocol::ids::{BrokerId, Offset, PartitionId, TopicName, TopicPartition};
use loggos_protocol::kafka::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use loggos_protocol::kafka::messages::{
    self, FindCoordinatorRequest, ListGroupsRequest, OffsetCommitRequest, OffsetFetchRequest,
};
use loggos_protocol::kafka::{ErrorCode, StrBytes};

/// The version in which one group is asked for, and all its topics.
const FETCH_VERSION: i16 = 7;
/// The last version in which topics have names.
const COMMIT_VERSION: i16 = 8;
/// The version in which one coordinator is asked for.
const FIND_VERSION: i16 = 3;
/// The version that tells nothing but names and protocols.
const LIST_VERSION: i16 = 3;

/// An offset and what its committer wrote beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The offset.
    pub offset: Offset,
    /// The words.
    pub metadata: String,
}

/// Offsets by partition.
pub type Offsets = BTreeMap<TopicPartition, Committed>;

/// The groups of a cluster.
#[derive(Clone, Debug)]
pub struct Groups {
    cluster: Cluster,
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

impl Groups {
    /// Those of `cluster`.
    pub const fn of(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// The consumer groups that any broker knows.
    pub async fn list(&self) -> Result<Vec<String>, ClientError> {
        let timeout = self.cluster.config().request_timeout;
        let brokers: Vec<BrokerId> = self.cluster.refresh_all().await?.brokers.keys().copied().collect();
        let mut names = Vec::new();
        for broker in brokers {
            let connection = self.cluster.connection(broker, Lane::Control).await?;
            let answer = connection.call_at(&ListGroupsRequest::default(), LIST_VERSION, timeout).await?;
            ErrorCode::new(answer.error_code)
                .ok()
                .map_err(|code| ClientError::refused("listing groups", code))?;
            let consumers = answer
                .groups
                .iter()
                .filter(|group| group.protocol_type.is_empty() || &*group.protocol_type == "consumer");
            names.extend(consumers.map(|group| group.group_id.0.to_string()));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    async fn coordinator(&self, group: &str) -> Result<Arc<Connection>, ClientError> {
        let timeout = self.cluster.config().request_timeout;
        let request = FindCoordinatorRequest::default().with_key(text(group)).with_key_type(0);
        let answer = self.cluster.any().await?.call_at(&request, FIND_VERSION, timeout).await?;
        let what = format!("finding who keeps group '{group}'");
        ErrorCode::new(answer.error_code).ok().map_err(|code| ClientError::refused(what, code))?;
        let broker = BrokerId::new(answer.node_id.0);
        if !self.cluster.known().brokers.contains_key(&broker) {
            self.cluster.refresh_all().await?;
        }
        self.cluster.connection(broker, Lane::Control).await
    }

    /// What a group has committed.
    pub async fn committed(&self, group: &str) -> Result<Offsets, ClientError> {
        let request = OffsetFetchRequest::default()
            .with_group_id(messages::GroupId(text(group)))
            .with_topics(None)
            .with_require_stable(false);
        let connection = self.coordinator(group).await?;
        let answer =
            connection.call_at(&request, FETCH_VERSION, self.cluster.config().request_timeout).await?;
        let what = format!("asking for the offsets of group '{group}'");
        ErrorCode::new(answer.error_code).ok().map_err(|code| ClientError::refused(what, code))?;
        let mut offsets = Offsets::new();
        for topic in answer.topics {
            let name = TopicName::new(topic.name.0.to_string());
            for partition in
                topic.partitions.iter().filter(|one| one.committed_offset >= 0 && one.error_code == 0)
            {
                let place = TopicPartition {
                    topic: name.clone(),
                    partition: PartitionId::new(partition.partition_index),
                };
                let metadata = partition.metadata.as_ref().map(ToString::to_string).unwrap_or_default();
                offsets
                    .insert(place, Committed { offset: Offset::new(partition.committed_offset), metadata });
            }
        }
        Ok(offsets)
    }

    /// Commits for a group that has no members; whether it was taken. A group with members keeps its own.
    pub async fn commit(&self, group: &str, offsets: &Offsets) -> Result<bool, ClientError> {
        let mut topics: BTreeMap<&TopicName, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
        for (place, committed) in offsets {
            let partition = OffsetCommitRequestPartition::default()
                .with_partition_index(place.partition.raw())
                .with_committed_offset(committed.offset.raw())
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(text(&committed.metadata)));
            topics.entry(&place.topic).or_default().push(partition);
        }
        let topic = |(name, partitions): (&TopicName, Vec<OffsetCommitRequestPartition>)| {
            OffsetCommitRequestTopic::default()
                .with_name(messages::TopicName(text(name.as_str())))
                .with_partitions(partitions)
        };
        let request = OffsetCommitRequest::default()
            .with_group_id(messages::GroupId(text(group)))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(topics.into_iter().map(topic).collect());
        let connection = self.coordinator(group).await?;
        let answer =
            connection.call_at(&request, COMMIT_VERSION, self.cluster.config().request_timeout).await?;
        for partition in answer.topics.iter().flat_map(|topic| &topic.partitions) {
            match ErrorCode::new(partition.error_code) {
                ErrorCode::NONE => {}
                ErrorCode::UNKNOWN_MEMBER_ID
                | ErrorCode::ILLEGAL_GENERATION
                | ErrorCode::REBALANCE_IN_PROGRESS => {
                    return Ok(false);
                }
                code => {
                    return Err(ClientError::refused(format!("committing for group '{group}'"), code));
                }
            }
        }
        Ok(true)
    }
}
