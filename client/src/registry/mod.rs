//! The registry: what brokers and consumers share through the coordinator's tree, typed.
//!
//! | file | what it knows |
//! |---|---|
//! | `session` | a session with the ensemble; the one user of the crate `zookeeper-client` |
//! | `brokers` | registration, broker ids, the cluster's id |
//! | `topics` | topics, partitions' states, configs |
//! | `controller` | election, producer ids |
//! | `groups` | consumer groups: who runs one, members, holders, offsets |
//! | `consumers`, `owners`, `offsets` | member-run groups: who is in them, who reads what, how far they are |
//!
//! Nothing here knows whether the ensemble is ours (decision D1). Called by the broker's metadata and controller,
//! and by the consumer's rebalancing.

mod brokers;
mod consumers;
mod controller;
mod groups;
mod offsets;
mod owners;
mod session;
mod topics;

use std::time::Duration;

use loggos_protocol::registry::record::{Record, RecordError};
use thiserror::Error;
use tokio::sync::watch;

pub use brokers::StoredBroker;
pub use consumers::Membership;
pub use controller::Fence;
pub use groups::{
    Claim, CommitPart, GroupChange, GroupFence, GroupNodes, Place, RoundFailure, SeenGroup, StoredOffsets,
};
pub use session::{Done, Op, Session, TreeWatch, Znode};
pub use topics::{Assignment, NewState, NewTopic, StoredPartition, StoredState, StoredTopic};

/// Why the registry can't.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// Nobody answers there.
    #[error("the coordinator at {cluster} can't be reached: {reason}")]
    Unreachable {
        /// Where.
        cluster: String,
        /// What was the matter.
        reason: String,
    },
    /// The connection broke: the change may have happened or not.
    #[error("the connection to the coordinator broke")]
    Lost,
    /// No answer in time: the change may have happened or not.
    #[error("the coordinator didn't answer in time")]
    Timeout,
    /// The session has expired, and with it what depended on it.
    #[error("the session with the coordinator has expired")]
    Expired,
    /// There is no such node.
    #[error("there is no such node")]
    Absent,
    /// The node is there already.
    #[error("the node is there already")]
    Exists,
    /// Somebody else was faster.
    #[error("the node was changed by somebody else")]
    Conflict,
    /// The node has children.
    #[error("the node has children")]
    NotEmpty,
    /// The server can't.
    #[error("the coordinator doesn't serve this operation")]
    Unsupported,
    /// A part of a change failed, and so nothing happened.
    #[error("part {part} of a change failed: {source}")]
    Refused {
        /// Which, from 0.
        part: usize,
        /// Why.
        source: Box<RegistryError>,
    },
    /// Another broker has this id.
    #[error("another broker is registered as {id}; give this one another --broker-id")]
    BrokerIdTaken {
        /// The id.
        id: i32,
    },
    /// A node holds what nobody of ours wrote.
    #[error("a node can't be read: {0}")]
    Malformed(#[from] RecordError),
    /// Anything else.
    #[error("the coordinator refused: {reason}")]
    Other {
        /// In its words.
        reason: String,
    },
}

impl RegistryError {
    /// Whether the same may succeed later.
    pub const fn retriable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Lost | Self::Timeout | Self::Expired)
    }

    /// What a change's failing part said, or the error itself.
    pub fn root(&self) -> &Self {
        match self {
            Self::Refused { source, .. } => source,
            other => other,
        }
    }
}

/// The registry's handle; clones are the same session.
#[derive(Clone)]
pub struct Registry {
    session: Session,
}

impl Registry {
    /// Connects to the ensemble at `host:port,…[/chroot]`.
    ///
    /// # Errors
    /// `Unreachable`.
    pub async fn connect(cluster: &str, session_timeout: Duration) -> Result<Self, RegistryError> {
        Ok(Self { session: Session::connect(cluster, session_timeout).await? })
    }

    /// The session underneath.
    pub const fn session(&self) -> &Session {
        &self.session
    }

    /// Counts sessions: with each new number everything ephemeral is to be made again, and everything read again.
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.session.generation()
    }

    async fn record<R: Record>(&self, path: &str) -> Result<Option<(R, Znode)>, RegistryError> {
        let Some(node) = self.session.get(path).await? else { return Ok(None) };
        // A node without data is a record that somebody is about to write.
        if node.data.is_empty() {
            return Ok(None);
        }
        Ok(Some((R::from_bytes(&node.data)?, node)))
    }
}
