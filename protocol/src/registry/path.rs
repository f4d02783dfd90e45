//! Every node's path.
//!
//! ```text
//! /brokers/ids/<id>                               ephemeral   a live broker
//! /brokers/topics/<topic>                                     id and replicas
//! /brokers/topics/<topic>/partitions/<p>/state                leader, epoch, replicas in sync
//! /brokers/seqid                                              its version gives broker ids
//! /brokers/lives/<id>                                         its version counts a broker's registrations (ours)
//! /controller, /controller_epoch                  ephemeral, persistent
//! /cluster/id
//! /config/{topics,brokers}/<name>, /config/changes/config_change_<n>
//! /admin/delete_topics/<topic>
//! /latest_producer_id_block
//! /consumers/<group>                                          who runs a group; what a broker-run one is
//! /consumers/<group>/ids/<member>                             a member; ephemeral where members run the group
//! /consumers/<group>/owners/<topic>/<p>                       who holds a partition; ephemeral likewise
//! /consumers/<group>/offsets/<topic>/<p>                      what was committed
//! ```

use crate::ids::{BrokerId, GroupId, MemberId, PartitionId, TopicName};

/// Live brokers.
pub const BROKER_IDS: &str = "/brokers/ids";
/// Topics.
pub const TOPICS: &str = "/brokers/topics";
/// How often each broker has registered: the one node among the brokers' that Kafka has not.
pub const BROKER_LIVES: &str = "/brokers/lives";
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
/// Consumer groups.
pub const GROUPS: &str = "/consumers";
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

/// How often a broker has registered.
pub fn lives(id: BrokerId) -> String {
    format!("{BROKER_LIVES}/{id}")
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

/// A group: whatever isn't a letter, a digit, `_` or `-` is percent-encoded, dots at the beginning too.
pub fn group(group: &GroupId) -> String {
    format!("{GROUPS}/{}", encoded(group.as_str()))
}

/// The group that a node of that name is of.
pub fn group_of(name: &str) -> Option<GroupId> {
    decoded(name).map(GroupId::new)
}

fn encoded(text: &str) -> String {
    let mut name = String::new();
    for byte in text.bytes() {
        let plain =
            byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b'.' && !name.is_empty());
        if plain {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name
}

fn decoded(name: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), name.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

/// A group's members.
pub fn members(id: &GroupId) -> String {
    format!("{}/ids", group(id))
}

/// A group's member, its id encoded as group ids are.
pub fn member(id: &GroupId, member: &MemberId) -> String {
    format!("{}/ids/{}", group(id), encoded(member.as_str()))
}

/// The member that a node of that name is of.
pub fn member_of(name: &str) -> Option<MemberId> {
    decoded(name).map(MemberId::new)
}

/// Who holds a group's partitions.
pub fn owners(id: &GroupId) -> String {
    format!("{}/owners", group(id))
}

/// Who holds a group's partitions of a topic.
pub fn topic_owners(id: &GroupId, topic: &TopicName) -> String {
    format!("{}/owners/{topic}", group(id))
}

/// Who holds a partition.
pub fn owner(id: &GroupId, topic: &TopicName, partition: PartitionId) -> String {
    format!("{}/owners/{topic}/{partition}", group(id))
}

/// A group's offsets.
pub fn offsets(id: &GroupId) -> String {
    format!("{}/offsets", group(id))
}

/// A group's offsets of a topic.
pub fn topic_offsets(id: &GroupId, topic: &TopicName) -> String {
    format!("{}/offsets/{topic}", group(id))
}

/// A group's offset of a partition.
pub fn offset(id: &GroupId, topic: &TopicName, partition: PartitionId) -> String {
    format!("{}/offsets/{topic}/{partition}", group(id))
}

/// What a path that changed is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The list of brokers, or one of them.
    Brokers,
    /// The list of topics.
    Topics,
    /// One topic: its replicas, its configs.
    Topic(TopicName),
    /// One partition's state.
    State(TopicName, PartitionId),
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
        ["brokers", "topics", topic, "partitions", partition, "state"] => match partition.parse() {
            Ok(partition) => Subject::State(TopicName::new(*topic), PartitionId::new(partition)),
            Err(_) => Subject::Other,
        },
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
    fn any_group_id_is_a_node_s_name_and_back() {
        for id in ["g", "a/b", "..", ".x.y", "ü %", "console-consumer-1"] {
            let path = group(&GroupId::new(id));
            let name = path.strip_prefix("/consumers/").expect("a group's path");
            assert!(!name.contains('/') && !name.starts_with('.'), "{name}");
            assert_eq!(group_of(name), Some(GroupId::new(id)));
        }
        assert_eq!(group_of("%zz"), None);
    }

    #[test]
    fn every_path_is_about_what_it_was_built_for() {
        let name = TopicName::new("a.b-c_d");
        assert_eq!(
            subject(&state(&name, PartitionId::new(7))),
            Subject::State(name.clone(), PartitionId::new(7))
        );
        for path in [topic(&name), partitions(&name), topic_config(&name)] {
            assert_eq!(subject(&path), Subject::Topic(name.clone()));
        }
        assert_eq!(state(&name, PartitionId::new(7)), "/brokers/topics/a.b-c_d/partitions/7/state");
        assert_eq!(subject(&broker(BrokerId::new(1))), Subject::Brokers);
        assert_eq!(subject(&lives(BrokerId::new(1))), Subject::Other);
        assert_eq!(subject(&broker_config(None)), Subject::BrokerConfigs);
        assert_eq!(subject(CONTROLLER), Subject::Controller);
        assert_eq!(subject("/zookeeper/quota"), Subject::Other);
    }
}
