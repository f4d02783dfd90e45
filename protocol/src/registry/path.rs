//! Every node's path.
//!
//! ```text
//! /brokers/ids/<id>                               ephemeral   a live broker
//! /brokers/topics/<topic>                                     id and replicas
//! /brokers/topics/<topic>/partitions/<p>/state                leader, epoch, replicas in sync
//! /brokers/seqid                                              its version gives broker ids
//! /controller, /controller_epoch                  ephemeral, persistent
//! /cluster/id
//! /config/{topics,brokers}/<name>, /config/changes/config_change_<n>
//! /admin/delete_topics/<topic>
//! /latest_producer_id_block
//! ```

use crate::ids::{BrokerId, PartitionId, TopicName};

/// Live brokers.
pub const BROKER_IDS: &str = "/brokers/ids";
/// Topics.
pub const TOPICS: &str = "/brokers/topics";
/// Broker ids come of its version.
pub const SEQID: &str = "/brokers/seqid";
/// Who the controller is.
pub const CONTROLLER: &str = "/controller";
/// How many controllers there have been.
pub const CONTROLLER_EPOCH: &str = "/controller_epoch";
/// The cluster's name.
pub const CLUSTER_ID: &str = "/cluster/id";
/// Topics' configs.
pub const TOPIC_CONFIGS: &str = "/config/topics";
/// Brokers' configs.
pub const BROKER_CONFIGS: &str = "/config/brokers";
/// Where changes of configs are announced.
pub const CONFIG_CHANGES: &str = "/config/changes";
/// Topics that are to go.
pub const DELETE_TOPICS: &str = "/admin/delete_topics";
/// Which producer ids are given out.
pub const PRODUCER_IDS: &str = "/latest_producer_id_block";
/// The name under which the configs of all brokers stand.
pub const ALL_BROKERS: &str = "<default>";

/// Nodes that a cluster has from its beginning.
pub const ROOTS: [&str; 16] = [
    "/brokers",
    BROKER_IDS,
    TOPICS,
    SEQID,
    "/cluster",
    "/config",
    TOPIC_CONFIGS,
    BROKER_CONFIGS,
    "/config/clients",
    "/config/users",
    "/config/ips",
    CONFIG_CHANGES,
    "/admin",
    DELETE_TOPICS,
    "/isr_change_notification",
    "/consumers",
];

/// A live broker.
pub fn broker(id: BrokerId) -> String {
    format!("{BROKER_IDS}/{id}")
}

/// A topic.
pub fn topic(topic: &TopicName) -> String {
    format!("{TOPICS}/{topic}")
}

/// A topic's partitions.
pub fn partitions(topic: &TopicName) -> String {
    format!("{TOPICS}/{topic}/partitions")
}

/// A partition.
pub fn partition(topic: &TopicName, partition: PartitionId) -> String {
    format!("{TOPICS}/{topic}/partitions/{partition}")
}

/// A partition's state.
pub fn state(topic: &TopicName, partition: PartitionId) -> String {
    format!("{TOPICS}/{topic}/partitions/{partition}/state")
}

/// A topic's configs.
pub fn topic_config(topic: &TopicName) -> String {
    format!("{TOPIC_CONFIGS}/{topic}")
}

/// A broker's configs, or those of all brokers.
pub fn broker_config(id: Option<BrokerId>) -> String {
    match id {
        Some(id) => format!("{BROKER_CONFIGS}/{id}"),
        None => format!("{BROKER_CONFIGS}/{ALL_BROKERS}"),
    }
}

/// A topic that is to go.
pub fn deletion(topic: &TopicName) -> String {
    format!("{DELETE_TOPICS}/{topic}")
}

/// What a path that changed is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The list of brokers, or one of them.
    Brokers,
    /// The list of topics.
    Topics,
    /// One topic: its replicas, a partition's state, its configs.
    Topic(TopicName),
    /// Brokers' configs.
    BrokerConfigs,
    /// Who the controller is.
    Controller,
    /// Topics that are to go.
    Deletions,
    /// Nothing that a broker's view holds.
    Other,
}

/// Tells what a path is about.
pub fn subject(path: &str) -> Subject {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["brokers", "ids", ..] => Subject::Brokers,
        ["brokers", "topics"] | ["config", "topics"] => Subject::Topics,
        ["brokers", "topics", topic, ..] | ["config", "topics", topic] => {
            Subject::Topic(TopicName::new(*topic))
        }
        ["config", "brokers", ..] => Subject::BrokerConfigs,
        ["controller"] | ["controller_epoch"] => Subject::Controller,
        ["admin", "delete_topics", ..] => Subject::Deletions,
        _ => Subject::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_about_what_it_was_built_for() {
        let name = TopicName::new("a.b-c_d");
        for path in [topic(&name), partitions(&name), state(&name, PartitionId::new(7)), topic_config(&name)]
        {
            assert_eq!(subject(&path), Subject::Topic(name.clone()));
        }
        assert_eq!(state(&name, PartitionId::new(7)), "/brokers/topics/a.b-c_d/partitions/7/state");
        assert_eq!(subject(&broker(BrokerId::new(1))), Subject::Brokers);
        assert_eq!(subject(&broker_config(None)), Subject::BrokerConfigs);
        assert_eq!(subject(CONTROLLER), Subject::Controller);
        assert_eq!(subject("/zookeeper/quota"), Subject::Other);
    }
}
