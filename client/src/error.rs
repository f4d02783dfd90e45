//! Everything that can go wrong between a client and a broker, in words for the one who asked.
//!
//! Errors are cloned, because one broken connection or refused batch fails many callers. Named by every file here.

use std::time::Duration;

use loggos_protocol::batch::BatchError;
use loggos_protocol::error::WireError;
use loggos_protocol::ids::{Offset, TopicPartition};
use loggos_protocol::kafka::ErrorCode;
use thiserror::Error;

/// Why a client didn't get what it asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    /// No connection came about.
    #[error("can't connect to {address}: {reason}")]
    Connect {
        /// The broker's `host:port`.
        address: String,
        /// The system's words.
        reason: String,
    },
    /// The connection broke; a request may have been carried out without its answer arriving.
    #[error("the connection to {address} ended: {reason}")]
    Disconnected {
        /// The broker's `host:port`.
        address: String,
        /// What was seen of it.
        reason: String,
    },
    /// Nothing came in time.
    #[error("{what} took longer than {} ms", after.as_millis())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// None of the known addresses answers.
    #[error("no broker can be reached: {last}")]
    Unreachable {
        /// What the last one tried had to say.
        last: String,
    },
    /// A broker's answer, or a request of ours, that is not Kafka's protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A batch of records that can't be read.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The broker said no.
    #[error("{what}: {}", describe(*code, message.as_deref()))]
    Refused {
        /// What was asked.
        what: String,
        /// The broker's code.
        code: ErrorCode,
        /// The broker's words, if it had any.
        message: Option<String>,
    },
    /// The broker doesn't serve any version of this request that we speak.
    #[error("the broker at {address} does not serve {api} in a version that this client speaks")]
    Unsupported {
        /// The broker's `host:port`.
        address: String,
        /// Kafka's name of the request.
        api: &'static str,
    },
    /// The topic has no such partition.
    #[error("there is no partition {partition}")]
    UnknownPartition {
        /// The partition that was asked for.
        partition: TopicPartition,
    },
    /// The partition exists and nobody leads it now.
    #[error("partition {partition} has no leader at the moment")]
    NoLeader {
        /// The partition.
        partition: TopicPartition,
    },
    /// The offset is before the first record that is kept, or behind the last.
    #[error(
        "offset {offset} of {partition} is out of range: records from {log_start} to before {end} are there"
    )]
    OffsetOutOfRange {
        /// The partition.
        partition: TopicPartition,
        /// What was asked for.
        offset: Offset,
        /// The first offset that is kept.
        log_start: Offset,
        /// The high watermark.
        end: Offset,
    },
    /// The group has no offset for the partition, and its consumer is told to choose none.
    #[error(
        "no offset is committed for {partition}, and none is to be chosen: seek, or set another reset policy"
    )]
    NoOffset {
        /// The partition.
        partition: TopicPartition,
    },
    /// A record that fits no request.
    #[error("a record of {bytes} bytes is larger than the {limit} allowed")]
    RecordTooLarge {
        /// Its size in a batch.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A record whose acknowledgement was lost and can't be asked for again without writing it twice.
    #[error("whether the record was written to {partition} is not known: {reason}")]
    OutcomeUnknown {
        /// The partition.
        partition: TopicPartition,
        /// What happened to the request.
        reason: String,
    },
    /// The record waited too long, for room or for an acknowledgement.
    #[error("a record for {partition} was not delivered within {} ms{}", after.as_millis(), because(last.as_deref()))]
    Undelivered {
        /// The partition.
        partition: TopicPartition,
        /// How long it waited.
        after: Duration,
        /// The last error on the way.
        last: Option<String>,
    },
    /// The client was closed first.
    #[error("the client is closed")]
    Closed,
}

fn describe(code: ErrorCode, message: Option<&str>) -> String {
    match message {
        Some(message) if !message.is_empty() => format!("{message} ({code})"),
        _ => code.to_string(),
    }
}

fn because(last: Option<&str>) -> String {
    last.map(|last| format!(", at last: {last}")).unwrap_or_default()
}

impl ClientError {
    /// A refusal with the broker's code alone.
    pub fn refused(what: impl Into<String>, code: ErrorCode) -> Self {
        Self::Refused { what: what.into(), code, message: None }
    }

    /// The broker's code, if it was the broker that said no.
    pub const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether asking again may succeed.
    pub const fn retriable(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Disconnected { .. }
            | Self::Timeout { .. }
            | Self::Unreachable { .. }
            | Self::NoLeader { .. } => true,
            Self::Refused { code, .. } => code.retriable(),
            _ => false,
        }
    }

    /// Whether the client's picture of the cluster must be looked at again before asking again.
    pub const fn stale_metadata(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Disconnected { .. }
            | Self::Timeout { .. }
            | Self::NoLeader { .. } => true,
            Self::Refused { code, .. } => code.stale_metadata(),
            _ => false,
        }
    }

    /// Whether the request may have been carried out all the same.
    pub const fn outcome_unknown(&self) -> bool {
        match self {
            Self::Disconnected { .. } | Self::Timeout { .. } => true,
            Self::Refused { code, .. } => matches!(
                *code,
                ErrorCode::REQUEST_TIMED_OUT
                    | ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND
                    | ErrorCode::NETWORK_EXCEPTION
                    | ErrorCode::UNKNOWN_SERVER_ERROR
            ),
            _ => false,
        }
    }
}
