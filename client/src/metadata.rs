//! One answer to Metadata as plain values, and how a newer answer goes over an older one (P). Called by `cluster`.

use std::collections::BTreeMap;

use loggos_protocol::ids::{BrokerId, LeaderEpoch, PartitionId, TopicId, TopicName};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::MetadataResponse;
use loggos_protocol::kafka::messages::metadata_response::{MetadataResponsePartition, MetadataResponseTopic};

/// A broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: BrokerId,
    /// The host that clients are to use.
    pub host: String,
    /// The port.
    pub port: i32,
    /// Where it stands, if it says so.
    pub rack: Option<String>,
}

impl Node {
    /// `host:port`, with brackets around an IPv6 address.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// Who takes and gives its records; `None` while nobody does.
    pub leader: Option<BrokerId>,
    /// Counts the leaders.
    pub leader_epoch: LeaderEpoch,
    /// Who holds a copy, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// Those in sync.
    pub isr: Vec<BrokerId>,
    /// What the broker says of it.
    pub error: ErrorCode,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicMetadata {
    /// Its identity; `NONE` from brokers that don't tell.
    pub id: TopicId,
    /// Whether it is the cluster's own.
    pub internal: bool,
    /// Its partitions.
    pub partitions: BTreeMap<PartitionId, PartitionMetadata>,
    /// What the broker says of it.
    pub error: ErrorCode,
}

/// The cluster, as of the newest answer about each topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The cluster's name.
    pub cluster_id: Option<String>,
    /// Who decides on topics.
    pub controller: Option<BrokerId>,
    /// The live brokers.
    pub brokers: BTreeMap<BrokerId, Node>,
    /// The topics that were asked for.
    pub topics: BTreeMap<TopicName, TopicMetadata>,
}

impl Metadata {
    /// This picture after `response` to a question about `asked`, or about all topics.
    pub(crate) fn updated(&self, response: &MetadataResponse, asked: Option<&[TopicName]>) -> Self {
        let mut topics = if asked.is_some() { self.topics.clone() } else { BTreeMap::new() };
        for topic in &response.topics {
            let Some(name) = &topic.name else { continue };
            let name = TopicName::from(name.as_str());
            let updated = topic_of(topic, self.topics.get(&name));
            topics.insert(name, updated);
        }
        let node =
            |broker: &loggos_protocol::kafka::messages::metadata_response::MetadataResponseBroker| Node {
                id: BrokerId::new(broker.node_id.0),
                host: broker.host.to_string(),
                port: broker.port,
                rack: broker.rack.as_ref().map(ToString::to_string),
            };
        Self {
            cluster_id: response.cluster_id.as_ref().map(ToString::to_string),
            controller: known_broker(response.controller_id.0),
            brokers: response.brokers.iter().map(node).map(|node| (node.id, node)).collect(),
            topics,
        }
    }

    /// Who leads a partition, as far as is known.
    pub fn leader(&self, topic: &TopicName, partition: PartitionId) -> Option<BrokerId> {
        self.topics.get(topic)?.partitions.get(&partition)?.leader
    }
}

fn known_broker(raw: i32) -> Option<BrokerId> {
    (raw >= 0).then(|| BrokerId::new(raw))
}

fn topic_of(topic: &MetadataResponseTopic, before: Option<&TopicMetadata>) -> TopicMetadata {
    let id = TopicId::new(topic.topic_id);
    // A broker that lags behind may tell of an older leader; epochs of another topic by that name say nothing.
    let before = before.filter(|before| before.id == id);
    let partitions = topic.partitions.iter().map(|partition| {
        let number = PartitionId::new(partition.partition_index);
        let told = partition_of(partition);
        let newer = before
            .and_then(|before| before.partitions.get(&number))
            .filter(|known| known.leader_epoch > told.leader_epoch && told.leader_epoch != LeaderEpoch::NONE);
        (number, newer.cloned().unwrap_or(told))
    });
    TopicMetadata {
        id,
        internal: topic.is_internal,
        partitions: partitions.collect(),
        error: ErrorCode::new(topic.error_code),
    }
}

fn partition_of(partition: &MetadataResponsePartition) -> PartitionMetadata {
    let brokers = |ids: &[loggos_protocol::kafka::messages::BrokerId]| -> Vec<BrokerId> {
        ids.iter().map(|id| BrokerId::new(id.0)).collect()
    };
    PartitionMetadata {
        leader: known_broker(partition.leader_id.0),
        leader_epoch: LeaderEpoch::new(partition.leader_epoch),
        replicas: brokers(&partition.replica_nodes),
        isr: brokers(&partition.isr_nodes),
        error: ErrorCode::new(partition.error_code),
    }
}
