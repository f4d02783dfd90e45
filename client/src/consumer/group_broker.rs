//! Questions to the broker that runs a group: who it is, heartbeats, commits, committed offsets. Called by `member`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use loggos_protocol::ids::{BrokerId, GroupId, LeaderEpoch, Offset, PartitionId, TopicName, TopicPartition};
use loggos_protocol::kafka::messages::consumer_group_heartbeat_request::TopicPartitions;
use loggos_protocol::kafka::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use loggos_protocol::kafka::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use loggos_protocol::kafka::messages::{
    self, ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, FindCoordinatorRequest,
    OffsetCommitRequest, OffsetFetchRequest,
};
use loggos_protocol::kafka::{ErrorCode, StrBytes};

use super::balancer::Offsets;
use crate::cluster::{Cluster, Lane, wire_name};
use crate::connection::Connection;
use crate::error::ClientError;

/// The version of FindCoordinator that asks with a list, and gives a message.
const FIND_VERSION: i16 = 4;
/// The version of OffsetCommit and OffsetFetch that knows member epochs and still names topics.
const OFFSETS_VERSION: i16 = 9;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The group.
    pub group: GroupId,
    /// The member, as it named itself.
    pub member: String,
    /// The instance that outlives processes, if it has one.
    pub instance: Option<String>,
}

/// The broker that runs a group, as far as is known.
#[derive(Debug)]
pub struct GroupBroker {
    cluster: Cluster,
    identity: Identity,
    known: Option<BrokerId>,
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

impl GroupBroker {
    /// Nobody is asked yet.
    pub const fn new(cluster: Cluster, identity: Identity) -> Self {
        Self { cluster, identity, known: None }
    }

    /// Another broker may run the group by now: it's looked for before the next question.
    pub fn forget(&mut self) {
        self.known = None;
    }

    async fn connection(&mut self) -> Result<Arc<Connection>, ClientError> {
        let timeout = self.cluster.config().request_timeout;
        let broker = match self.known {
            Some(broker) => broker,
            None => {
                let request = FindCoordinatorRequest::default()
                    .with_key_type(0)
                    .with_coordinator_keys(vec![text(self.identity.group.as_str())]);
                let response = self.cluster.any().await?.call_at(&request, FIND_VERSION, timeout).await?;
                let what = || format!("finding the broker of group '{}'", self.identity.group);
                let found = response.coordinators.into_iter().next();
                let found = found
                    .ok_or_else(|| ClientError::refused(what(), ErrorCode::COORDINATOR_NOT_AVAILABLE))?;
                ErrorCode::new(found.error_code).ok().map_err(|code| ClientError::refused(what(), code))?;
                BrokerId::new(found.node_id.0)
            }
        };
        if !self.cluster.known().brokers.contains_key(&broker) {
            self.cluster.refresh(&[]).await?;
        }
        let connection = self.cluster.connection(broker, Lane::Control).await?;
        self.known = Some(broker);
        Ok(connection)
    }

    /// Tells that the member lives, what it reads, and which partitions it holds.
    ///
    /// # Errors
    /// The broker's code; what concerns connections.
    pub async fn heartbeat(
        &mut self,
        mut request: ConsumerGroupHeartbeatRequest,
    ) -> Result<ConsumerGroupHeartbeatResponse, ClientError> {
        request.group_id = messages::GroupId(text(self.identity.group.as_str()));
        request.member_id = text(&self.identity.member);
        request.instance_id = self.identity.instance.as_deref().map(text);
        let connection = self.connection().await?;
        let response = connection.call(&request, self.cluster.config().request_timeout).await?;
        let code = ErrorCode::new(response.error_code);
        code.ok().map_err(|code| ClientError::Refused {
            what: format!("taking part in group '{}'", self.identity.group),
            code,
            message: response.error_message.as_ref().map(ToString::to_string),
        })?;
        Ok(response)
    }

    /// Commits offsets, in a member epoch.
    ///
    /// # Errors
    /// The code of the first partition that has one.
    pub async fn commit(
        &mut self,
        epoch: i32,
        offsets: &BTreeMap<TopicPartition, (Offset, LeaderEpoch)>,
    ) -> Result<(), ClientError> {
        if offsets.is_empty() {
            return Ok(());
        }
        let mut topics: BTreeMap<&TopicName, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
        for (partition, (offset, leader_epoch)) in offsets {
            let wanted = OffsetCommitRequestPartition::default()
                .with_partition_index(partition.partition.raw())
                .with_committed_offset(offset.raw())
                .with_committed_leader_epoch(leader_epoch.raw())
                .with_committed_metadata(Some(StrBytes::default()));
            topics.entry(&partition.topic).or_default().push(wanted);
        }
        let topic = |(name, partitions): (&TopicName, _)| {
            OffsetCommitRequestTopic::default().with_name(wire_name(name)).with_partitions(partitions)
        };
        let request = OffsetCommitRequest::default()
            .with_group_id(messages::GroupId(text(self.identity.group.as_str())))
            .with_generation_id_or_member_epoch(epoch)
            .with_member_id(text(&self.identity.member))
            .with_group_instance_id(self.identity.instance.as_deref().map(text))
            .with_topics(topics.into_iter().map(topic).collect());
        let connection = self.connection().await?;
        let timeout = self.cluster.config().request_timeout;
        let response = connection.call_at(&request, OFFSETS_VERSION, timeout).await?;
        let mut codes = response.topics.iter().flat_map(|topic| &topic.partitions);
        let failed = codes.find_map(|partition| ErrorCode::new(partition.error_code).ok().err());
        let what = || format!("committing offsets of group '{}'", self.identity.group);
        failed.map_or(Ok(()), |code| Err(ClientError::refused(what(), code)))
    }

    /// The offsets that the group has committed for some partitions.
    ///
    /// # Errors
    /// The broker's code; what concerns connections.
    pub async fn committed(
        &mut self,
        epoch: i32,
        partitions: &BTreeSet<TopicPartition>,
    ) -> Result<Offsets, ClientError> {
        if partitions.is_empty() {
            return Ok(Offsets::new());
        }
        let mut topics: BTreeMap<&TopicName, Vec<i32>> = BTreeMap::new();
        for partition in partitions {
            topics.entry(&partition.topic).or_default().push(partition.partition.raw());
        }
        let topic = |(name, partitions): (&TopicName, _)| {
            OffsetFetchRequestTopics::default().with_name(wire_name(name)).with_partition_indexes(partitions)
        };
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(messages::GroupId(text(self.identity.group.as_str())))
            .with_member_id(Some(text(&self.identity.member)))
            .with_member_epoch(epoch)
            .with_topics(Some(topics.into_iter().map(topic).collect()));
        let request = OffsetFetchRequest::default().with_groups(vec![group]).with_require_stable(true);
        let connection = self.connection().await?;
        let timeout = self.cluster.config().request_timeout;
        let response = connection.call_at(&request, OFFSETS_VERSION, timeout).await?;
        let what = || format!("asking for offsets of group '{}'", self.identity.group);
        let mut offsets = Offsets::new();
        for group in response.groups {
            ErrorCode::new(group.error_code).ok().map_err(|code| ClientError::refused(what(), code))?;
            for topic in group.topics {
                let name = TopicName::from(topic.name.as_str());
                for partition in topic.partitions {
                    ErrorCode::new(partition.error_code)
                        .ok()
                        .map_err(|code| ClientError::refused(what(), code))?;
                    if partition.committed_offset >= 0 {
                        let place =
                            TopicPartition::new(name.clone(), PartitionId::new(partition.partition_index));
                        offsets.insert(place, Offset::new(partition.committed_offset));
                    }
                }
            }
        }
        Ok(offsets)
    }
}

/// Partitions as a heartbeat carries them; those whose topic has no known identity are left out.
pub fn on_the_wire(cluster: &Cluster, partitions: &BTreeSet<TopicPartition>) -> Vec<TopicPartitions> {
    let known = cluster.known();
    let mut topics: BTreeMap<&TopicName, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        topics.entry(&partition.topic).or_default().push(partition.partition.raw());
    }
    let topic = |(name, partitions): (&TopicName, Vec<i32>)| {
        let id = known.topics.get(name)?.id;
        Some(TopicPartitions::default().with_topic_id(id.raw()).with_partitions(partitions))
    };
    topics.into_iter().filter_map(topic).collect()
}
