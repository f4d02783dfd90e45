//! Every node's value as JSON, with the fields and versions of Kafka 3.9. Fields that we don't know are ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{BrokerId, LeaderEpoch, PartitionId, TopicId};

/// A node's bytes that aren't what they should be.
#[derive(Debug, Error)]
#[error("{what}: {reason}")]
pub struct RecordError {
    /// What they should be.
    pub what: &'static str,
    /// What is wrong.
    pub reason: String,
}

/// A value of a node.
pub trait Record: Serialize + for<'de> Deserialize<'de> {
    /// What it is called in messages.
    const WHAT: &'static str;

    /// The node's bytes.
    fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("records are plain maps, lists and numbers")
    }

    /// Reads the node's bytes.
    ///
    /// # Errors
    /// When they aren't this record's JSON.
    fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        serde_json::from_slice(bytes)
            .map_err(|error| RecordError { what: Self::WHAT, reason: error.to_string() })
    }
}

/// A live broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerRecord {
    version: i32,
    /// Where clients connect.
    pub host: String,
    /// And on which port.
    pub port: u16,
    /// The same for newer readers.
    pub endpoints: Vec<String>,
    #[serde(default)]
    listener_security_protocol_map: BTreeMap<String, String>,
    #[serde(default = "no_port")]
    jmx_port: i32,
    /// When it registered, in milliseconds since 1970.
    #[serde(default)]
    pub timestamp: String,
    /// Its rack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    #[serde(default)]
    features: BTreeMap<String, serde_json::Value>,
}

const fn no_port() -> i32 {
    -1
}

impl BrokerRecord {
    /// A broker without encryption at one address.
    pub fn plaintext(host: &str, port: u16, rack: Option<String>, now_ms: i64) -> Self {
        let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Self {
            version: 5,
            host: host.to_owned(),
            port,
            endpoints: vec![format!("PLAINTEXT://{shown}:{port}")],
            listener_security_protocol_map: [("PLAINTEXT".to_owned(), "PLAINTEXT".to_owned())].into(),
            jmx_port: -1,
            timestamp: now_ms.to_string(),
            rack,
            features: BTreeMap::new(),
        }
    }

    /// The same broker, reached by other brokers at an address of its own.
    pub fn with_replication(mut self, host: &str, port: u16) -> Self {
        let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        self.endpoints.push(format!("{REPLICATION}://{shown}:{port}"));
        self.listener_security_protocol_map.insert(REPLICATION.to_owned(), "PLAINTEXT".to_owned());
        self
    }

    /// Where other brokers connect, as `host:port`: the listener of that name, or else where clients do.
    pub fn replication_address(&self) -> String {
        let own = self.endpoints.iter().find_map(|endpoint| {
            endpoint.strip_prefix(REPLICATION).and_then(|rest| rest.strip_prefix("://"))
        });
        own.map_or_else(|| format!("{}:{}", self.host, self.port), str::to_owned)
    }
}

/// The name of the listener that other brokers use, where it isn't the clients'.
const REPLICATION: &str = "REPLICATION";

impl Record for BrokerRecord {
    const WHAT: &'static str = "a broker's registration";
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicRecord {
    version: i32,
    /// Its identity; absent in topics of Kafka before 2.8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topic_id: Option<String>,
    /// The replicas of each partition, the preferred leader first.
    pub partitions: BTreeMap<PartitionId, Vec<BrokerId>>,
    /// Replicas that a reassignment under way adds (KIP-455).
    #[serde(default)]
    pub adding_replicas: BTreeMap<PartitionId, Vec<BrokerId>>,
    /// Replicas that it takes away in the end.
    #[serde(default)]
    pub removing_replicas: BTreeMap<PartitionId, Vec<BrokerId>>,
}

impl TopicRecord {
    /// A topic.
    pub fn new(id: TopicId, partitions: BTreeMap<PartitionId, Vec<BrokerId>>) -> Self {
        let (adding_replicas, removing_replicas) = (BTreeMap::new(), BTreeMap::new());
        Self { version: 3, topic_id: Some(id.to_string()), partitions, adding_replicas, removing_replicas }
    }

    /// Its identity.
    pub fn id(&self) -> Option<TopicId> {
        self.topic_id.as_deref().and_then(TopicId::parse)
    }
}

impl Record for TopicRecord {
    const WHAT: &'static str = "a topic";
}

/// A partition's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    #[serde(default = "one")]
    version: i32,
    /// Who leads; -1 is nobody.
    pub leader: BrokerId,
    /// In which epoch.
    pub leader_epoch: LeaderEpoch,
    /// Which controller said so.
    pub controller_epoch: i32,
    /// The replicas in sync.
    pub isr: Vec<BrokerId>,
}

const fn one() -> i32 {
    1
}

impl PartitionState {
    /// A state.
    pub const fn new(
        leader: BrokerId,
        leader_epoch: LeaderEpoch,
        controller_epoch: i32,
        isr: Vec<BrokerId>,
    ) -> Self {
        Self { version: 1, leader, leader_epoch, controller_epoch, isr }
    }
}

impl Record for PartitionState {
    const WHAT: &'static str = "a partition's state";
}

/// The controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerRecord {
    version: i32,
    /// Which broker it is.
    pub brokerid: BrokerId,
    /// Since when, in milliseconds since 1970.
    pub timestamp: String,
    #[serde(rename = "kraftControllerEpoch", default = "minus_one")]
    kraft_controller_epoch: i32,
}

const fn minus_one() -> i32 {
    -1
}

impl ControllerRecord {
    /// The controller since `now_ms`.
    pub fn new(broker: BrokerId, now_ms: i64) -> Self {
        Self { version: 2, brokerid: broker, timestamp: now_ms.to_string(), kraft_controller_epoch: -1 }
    }
}

impl Record for ControllerRecord {
    const WHAT: &'static str = "the controller";
}

/// The cluster's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdRecord {
    version: String,
    /// 22 characters.
    pub id: String,
}

impl ClusterIdRecord {
    /// A name.
    pub fn new(id: String) -> Self {
        Self { version: "1".to_owned(), id }
    }
}

impl Record for ClusterIdRecord {
    const WHAT: &'static str = "the cluster's id";
}

/// Configs of a topic or of brokers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigRecord {
    version: i32,
    /// Names and values.
    pub config: BTreeMap<String, String>,
}

impl ConfigRecord {
    /// Configs.
    pub const fn new(config: BTreeMap<String, String>) -> Self {
        Self { version: 1, config }
    }
}

impl Record for ConfigRecord {
    const WHAT: &'static str = "configs";
}

/// Where configs changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigChangeRecord {
    version: i32,
    /// As `topics/orders`.
    pub entity_path: String,
}

impl ConfigChangeRecord {
    /// A change.
    pub fn new(entity_path: String) -> Self {
        Self { version: 2, entity_path }
    }
}

impl Record for ConfigChangeRecord {
    const WHAT: &'static str = "a change of configs";
}

/// Producer ids that were given to a broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerIdBlock {
    version: i32,
    /// Which broker.
    pub broker: BrokerId,
    block_start: String,
    block_end: String,
}

impl ProducerIdBlock {
    /// The ids from `start` to `end`, both included.
    pub fn new(broker: BrokerId, start: i64, end: i64) -> Self {
        Self { version: 1, broker, block_start: start.to_string(), block_end: end.to_string() }
    }

    /// The first and the last id.
    pub fn range(&self) -> Option<(i64, i64)> {
        Some((self.block_start.parse().ok()?, self.block_end.parse().ok()?))
    }
}

impl Record for ProducerIdBlock {
    const WHAT: &'static str = "a block of producer ids";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_brokers_connect_where_the_registration_says() {
        let broker = BrokerRecord::plaintext("outside", 9092, None, 0);
        assert_eq!(broker.replication_address(), "outside:9092");
        let broker = broker.with_replication("::1", 9094);
        let read = BrokerRecord::from_bytes(&broker.to_bytes()).unwrap();
        assert_eq!((read.replication_address().as_str(), read.host.as_str()), ("[::1]:9094", "outside"));
    }

    #[test]
    fn what_kafka_wrote_is_read() {
        let broker = br#"{"features":{},"listener_security_protocol_map":{"PLAINTEXT":"PLAINTEXT"},"endpoints":["PLAINTEXT://h:9092"],"jmx_port":-1,"port":9092,"host":"h","version":5,"timestamp":"1700000000000"}"#;
        let broker = BrokerRecord::from_bytes(broker).expect("a broker of Kafka 3.9");
        assert_eq!((broker.host.as_str(), broker.port, broker.rack), ("h", 9092, None));
        let topic = br#"{"removing_replicas":{},"partitions":{"0":[1,2],"10":[2,3]},"topic_id":"AQEBAQEBAQEBAQEBAQEBAQ","adding_replicas":{},"version":3}"#;
        let topic = TopicRecord::from_bytes(topic).expect("a topic of Kafka 3.9");
        assert_eq!(topic.partitions[&PartitionId::new(10)], [2, 3].map(BrokerId::new));
        assert_eq!(topic.id(), Some(TopicId::from_bytes([1; 16])));
        let old = TopicRecord::from_bytes(br#"{"version":1,"partitions":{"0":[1]}}"#)
            .expect("a topic of Kafka 0.8");
        assert_eq!(old.id(), None);
        let state = br#"{"controller_epoch":57,"leader":1,"version":1,"leader_epoch":12,"isr":[1,2,3]}"#;
        let state = PartitionState::from_bytes(state).expect("a state");
        assert_eq!((state.leader.raw(), state.leader_epoch.raw(), state.isr.len()), (1, 12, 3));
        let block = br#"{"version":1,"broker":0,"block_start":"1000","block_end":"1999"}"#;
        assert_eq!(ProducerIdBlock::from_bytes(block).expect("a block").range(), Some((1000, 1999)));
    }

    #[test]
    fn what_we_write_is_what_kafka_wrote() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let state = PartitionState::new(BrokerId::new(1), LeaderEpoch::new(0), 3, vec![BrokerId::new(1)]);
        assert_eq!(
            text(state.to_bytes()),
            r#"{"version":1,"leader":1,"leader_epoch":0,"controller_epoch":3,"isr":[1]}"#
        );
        let controller = ControllerRecord::new(BrokerId::new(2), 5).to_bytes();
        assert_eq!(
            text(controller),
            r#"{"version":2,"brokerid":2,"timestamp":"5","kraftControllerEpoch":-1}"#
        );
        assert!(RecordError { what: "x", reason: String::new() }.to_string().contains('x'));
    }
}
