//! Why a consumer of a group can't, by what its owner can do about it.

use std::sync::Arc;

use loggos_protocol::ids::{GroupId, TopicPartition};
use loggos_protocol::registry::group::RunBy;
use thiserror::Error;

use crate::error::ClientError;
use crate::registry::RegistryError;

/// Why a consumer didn't get what it asked for.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// The brokers' answer, or their silence. [`ClientError::retriable`] says whether asking again may help.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The coordinator's answer, or its silence. Retried by itself where it concerns the balance; a commit or a
    /// rewind may be tried again.
    #[error("the group's registry: {0}")]
    Registry(Arc<RegistryError>),
    /// The group is run in the other way, by brokers or by its members. Use another group, or delete this one.
    #[error(
        "group '{group}' is run {}; delete the group, or use another one",
        match run_by {
            RunBy::Broker => "by the brokers, with Kafka's group protocols",
            RunBy::Members => "by its members, over the registries",
        }
    )]
    OtherKind {
        /// The group.
        group: GroupId,
        /// How it is run.
        run_by: RunBy,
    },
    /// The group has given this consumer's partitions to others, because it was silent for too long or asked for too
    /// little. It joins again by itself; what it had in hand is read by others too.
    #[error("this consumer of group '{group}' is a member no more; it joins again")]
    Fenced {
        /// The group.
        group: GroupId,
    },
    /// This consumer doesn't read that partition now.
    #[error("{partition} is not read by this consumer at the moment")]
    NotAssigned {
        /// The partition.
        partition: TopicPartition,
    },
    /// A setting or an argument that can't be; see the text.
    #[error("{0}")]
    Invalid(String),
    /// The consumer was closed first.
    #[error("the consumer is closed")]
    Closed,
}

impl From<RegistryError> for ConsumerError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Arc::new(error))
    }
}

impl ConsumerError {
    /// Whether the same may succeed later.
    pub fn retriable(&self) -> bool {
        match self {
            Self::Client(error) => error.retriable(),
            Self::Registry(error) => error.retriable(),
            Self::Fenced { .. } => true,
            Self::OtherKind { .. } | Self::NotAssigned { .. } | Self::Invalid(_) | Self::Closed => false,
        }
    }
}
