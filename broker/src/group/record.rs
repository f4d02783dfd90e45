//! What the registry keeps of a broker-run group, so that another broker takes it over as it stands: a head in the
//! group's own node, and each member in its own, which 0.8's tools read too. Values only; `table` stores them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use loggos_protocol::ids::{Generation, MemberId, Timestamp};
use loggos_protocol::kafka::consumer_protocol;
use loggos_protocol::registry::group::{ConsumerRecord, RunBy};
use loggos_protocol::registry::record::Record;
use serde::{Deserialize, Serialize};

use super::consumer_record::ConsumerPart;
use super::member::{Introduction, Member, Protocol};

/// Which protocol a group follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Members assign: JoinGroup and SyncGroup.
    #[default]
    Classic,
    /// The broker assigns: ConsumerGroupHeartbeat (KIP-848).
    Consumer,
}

/// What a group is, apart from its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadRecord {
    version: i32,
    run_by: RunBy,
    /// Which protocol it follows.
    #[serde(default)]
    pub kind: Kind,
    /// Which generation, or group epoch.
    pub generation: Generation,
    /// Whether that generation has no assignments yet: its members are to come again.
    #[serde(default)]
    pub rebalancing: bool,
    /// `consumer`, `connect`, or what the members said.
    #[serde(default)]
    pub protocol_type: String,
    /// The strategy in force; none in an empty group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Who assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<MemberId>,
    /// Since when nobody is in it, in milliseconds since 1970; its offsets expire by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_since: Option<Timestamp>,
}

impl HeadRecord {
    /// A group without members.
    pub fn new(kind: Kind, generation: Generation) -> Self {
        Self {
            version: 1,
            run_by: RunBy::Broker,
            kind,
            generation,
            rebalancing: false,
            protocol_type: String::new(),
            protocol: None,
            leader: None,
            empty_since: None,
        }
    }
}

impl Record for HeadRecord {
    const WHAT: &'static str = "a broker-run group";
}

/// One member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// What tools of Kafka 0.8 look for.
    #[serde(flatten)]
    pub consumer: ConsumerRecord,
    /// Its id.
    pub id: MemberId,
    /// Its static name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// Where it came from.
    pub client_host: String,
    /// How long it may be silent, in milliseconds.
    pub session_timeout_ms: u64,
    /// How long a rebalance waits for it, in milliseconds.
    pub rebalance_timeout_ms: u64,
    /// Strategies and subscriptions of the classic protocol, as base64.
    #[serde(default)]
    pub protocols: Vec<(String, Text)>,
    /// What it was given by the classic protocol, as base64.
    #[serde(default, with = "text_bytes")]
    pub assignment: Bytes,
    /// How far it has come in a consumer group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconciling: Option<ConsumerPart>,
}

impl Record for MemberRecord {
    const WHAT: &'static str = "a member of a broker-run group";
}

/// Bytes that stand as base64 in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Text(#[serde(with = "text_bytes")] pub Bytes);

/// A change of a group that is to be in the registry before what follows it is done.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What the group is now.
    pub head: HeadRecord,
    /// Members that changed; `None` for those that have gone.
    pub members: BTreeMap<MemberId, Option<MemberRecord>>,
}

impl MemberRecord {
    /// A classic member as the registry keeps it.
    pub fn of(member: &Member) -> Self {
        let said = &member.introduction;
        let topics =
            said.protocols.first().and_then(|offered| consumer_protocol::subscription(&offered.metadata));
        let streams =
            topics.unwrap_or_default().topics.into_iter().map(|topic| (topic.as_str().to_owned(), 1));
        Self {
            consumer: ConsumerRecord::new(streams.collect(), "static", said.since.raw()),
            id: member.id.clone(),
            instance: said.instance.clone(),
            client_id: said.client_id.clone(),
            client_host: said.client_host.clone(),
            session_timeout_ms: said.session_timeout.as_millis() as u64,
            rebalance_timeout_ms: said.rebalance_timeout.as_millis() as u64,
            protocols: said
                .protocols
                .iter()
                .map(|offered| (offered.name.clone(), Text(offered.metadata.clone())))
                .collect(),
            assignment: member.assignment.clone(),
            reconciling: None,
        }
    }

    /// What the member said of itself.
    pub fn into_introduction(self) -> Introduction {
        Introduction {
            since: Timestamp::new(self.consumer.timestamp.parse().unwrap_or(-1)),
            instance: self.instance,
            client_id: self.client_id,
            client_host: self.client_host,
            session_timeout: Duration::from_millis(self.session_timeout_ms),
            rebalance_timeout: Duration::from_millis(self.rebalance_timeout_ms),
            protocols: self
                .protocols
                .into_iter()
                .map(|(name, Text(metadata))| Protocol { name, metadata })
                .collect(),
        }
    }
}

/// The protocol type of consumers.
pub const CONSUMER: &str = "consumer";

mod text_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Bytes::from).map_err(serde::de::Error::custom)
    }
}
