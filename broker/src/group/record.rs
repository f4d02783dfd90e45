//! What the registry keeps of a broker-run group, so that another broker takes it over as it stands. Values only;
//! `offsets` and the shell store them.

use std::time::Duration;

use bytes::Bytes;
use loggos_protocol::ids::{Generation, MemberId};
use serde::{Deserialize, Serialize};

use super::member::{Introduction, Member, Protocol};

/// One generation of a classic group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Which generation.
    pub generation: Generation,
    /// `consumer`, `connect`, or what the members said.
    pub protocol_type: String,
    /// The strategy in force; none in an empty group.
    pub protocol: Option<String>,
    /// Who assigned.
    pub leader: Option<MemberId>,
    /// Everybody, with what they were given.
    pub members: Vec<MemberRecord>,
}

/// One member of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
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
    /// Strategies and subscriptions, as base64.
    pub protocols: Vec<(String, Text)>,
    /// What it was given, as base64.
    #[serde(with = "text_bytes")]
    pub assignment: Bytes,
}

/// Bytes that stand as base64 in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Text(#[serde(with = "text_bytes")] pub Bytes);

impl MemberRecord {
    /// A member as the registry keeps it.
    pub fn of(member: &Member) -> Self {
        let said = &member.introduction;
        Self {
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
        }
    }

    /// What the member said of itself.
    pub fn into_introduction(self) -> Introduction {
        Introduction {
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
