//! Kafka's error codes: what a response says when it says no, and whether asking again can help.
//!
//! Source: `Errors.java` of Kafka 4.3; `protocol/tests/golden/errors.txt` holds its own listing. Called by every
//! handler of the broker and by the client. The map from this crate's errors to codes stands here too.

use std::fmt;

use crate::error::{BatchError, InvalidBatch, WireError};

/// A code as it stands in responses. Codes of the future are carried, and named by their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErrorCode(i16);

/// Defines a constant for each code, and the tables of names and of what is worth a retry.
macro_rules! error_codes {
    ($($name:ident = $code:literal, $retry:ident;)*) => {
        impl ErrorCode {
            $(
                #[doc = concat!("Code ", stringify!($code), ", see [`ErrorCode::retriable`]: ", stringify!($retry), ".")]
                pub const $name: Self = Self($code);
            )*

            /// Every code that Kafka 4.3 has, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Kafka's name of the code, if it is one of 4.3's.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// Whether the same request may succeed later, perhaps after a refresh of metadata.
            pub const fn retriable(self) -> bool {
                match self.0 {
                    $($code => error_codes!(@ $retry),)*
                    _ => false,
                }
            }
        }
    };
    (@ retry) => { true };
    (@ last) => { false };
}

error_codes! {
    UNKNOWN_SERVER_ERROR = -1, last;
    NONE = 0, last;
    OFFSET_OUT_OF_RANGE = 1, last;
    CORRUPT_MESSAGE = 2, retry;
    UNKNOWN_TOPIC_OR_PARTITION = 3, retry;
    INVALID_FETCH_SIZE = 4, last;
    LEADER_NOT_AVAILABLE = 5, retry;
    NOT_LEADER_OR_FOLLOWER = 6, retry;
    REQUEST_TIMED_OUT = 7, retry;
    BROKER_NOT_AVAILABLE = 8, last;
    REPLICA_NOT_AVAILABLE = 9, retry;
    MESSAGE_TOO_LARGE = 10, last;
    STALE_CONTROLLER_EPOCH = 11, last;
    OFFSET_METADATA_TOO_LARGE = 12, last;
    NETWORK_EXCEPTION = 13, retry;
    COORDINATOR_LOAD_IN_PROGRESS = 14, retry;
    COORDINATOR_NOT_AVAILABLE = 15, retry;
    NOT_COORDINATOR = 16, retry;
    INVALID_TOPIC_EXCEPTION = 17, last;
    RECORD_LIST_TOO_LARGE = 18, last;
    NOT_ENOUGH_REPLICAS = 19, retry;
    NOT_ENOUGH_REPLICAS_AFTER_APPEND = 20, retry;
    INVALID_REQUIRED_ACKS = 21, last;
    ILLEGAL_GENERATION = 22, last;
    INCONSISTENT_GROUP_PROTOCOL = 23, last;
    INVALID_GROUP_ID = 24, last;
    UNKNOWN_MEMBER_ID = 25, last;
    INVALID_SESSION_TIMEOUT = 26, last;
    REBALANCE_IN_PROGRESS = 27, last;
    INVALID_COMMIT_OFFSET_SIZE = 28, last;
    TOPIC_AUTHORIZATION_FAILED = 29, last;
    GROUP_AUTHORIZATION_FAILED = 30, last;
    CLUSTER_AUTHORIZATION_FAILED = 31, last;
    INVALID_TIMESTAMP = 32, last;
    UNSUPPORTED_SASL_MECHANISM = 33, last;
    ILLEGAL_SASL_STATE = 34, last;
    UNSUPPORTED_VERSION = 35, last;
    TOPIC_ALREADY_EXISTS = 36, last;
    INVALID_PARTITIONS = 37, last;
    INVALID_REPLICATION_FACTOR = 38, last;
    INVALID_REPLICA_ASSIGNMENT = 39, last;
    INVALID_CONFIG = 40, last;
    NOT_CONTROLLER = 41, retry;
    INVALID_REQUEST = 42, last;
    UNSUPPORTED_FOR_MESSAGE_FORMAT = 43, last;
    POLICY_VIOLATION = 44, last;
    OUT_OF_ORDER_SEQUENCE_NUMBER = 45, last;
    DUPLICATE_SEQUENCE_NUMBER = 46, last;
    INVALID_PRODUCER_EPOCH = 47, last;
    INVALID_TXN_STATE = 48, last;
    INVALID_PRODUCER_ID_MAPPING = 49, last;
    INVALID_TRANSACTION_TIMEOUT = 50, last;
    CONCURRENT_TRANSACTIONS = 51, last;
    TRANSACTION_COORDINATOR_FENCED = 52, last;
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED = 53, last;
    SECURITY_DISABLED = 54, last;
    OPERATION_NOT_ATTEMPTED = 55, last;
    KAFKA_STORAGE_ERROR = 56, retry;
    LOG_DIR_NOT_FOUND = 57, last;
    SASL_AUTHENTICATION_FAILED = 58, last;
    UNKNOWN_PRODUCER_ID = 59, last;
    REASSIGNMENT_IN_PROGRESS = 60, last;
    DELEGATION_TOKEN_AUTH_DISABLED = 61, last;
    DELEGATION_TOKEN_NOT_FOUND = 62, last;
    DELEGATION_TOKEN_OWNER_MISMATCH = 63, last;
    DELEGATION_TOKEN_REQUEST_NOT_ALLOWED = 64, last;
    DELEGATION_TOKEN_AUTHORIZATION_FAILED = 65, last;
    DELEGATION_TOKEN_EXPIRED = 66, last;
    INVALID_PRINCIPAL_TYPE = 67, last;
    NON_EMPTY_GROUP = 68, last;
    GROUP_ID_NOT_FOUND = 69, last;
    FETCH_SESSION_ID_NOT_FOUND = 70, retry;
    INVALID_FETCH_SESSION_EPOCH = 71, retry;
    LISTENER_NOT_FOUND = 72, retry;
    TOPIC_DELETION_DISABLED = 73, last;
    FENCED_LEADER_EPOCH = 74, retry;
    UNKNOWN_LEADER_EPOCH = 75, retry;
    UNSUPPORTED_COMPRESSION_TYPE = 76, last;
    STALE_BROKER_EPOCH = 77, last;
    OFFSET_NOT_AVAILABLE = 78, retry;
    MEMBER_ID_REQUIRED = 79, last;
    PREFERRED_LEADER_NOT_AVAILABLE = 80, retry;
    GROUP_MAX_SIZE_REACHED = 81, last;
    FENCED_INSTANCE_ID = 82, last;
    ELIGIBLE_LEADERS_NOT_AVAILABLE = 83, retry;
    ELECTION_NOT_NEEDED = 84, retry;
    NO_REASSIGNMENT_IN_PROGRESS = 85, last;
    GROUP_SUBSCRIBED_TO_TOPIC = 86, last;
    INVALID_RECORD = 87, last;
    UNSTABLE_OFFSET_COMMIT = 88, retry;
    THROTTLING_QUOTA_EXCEEDED = 89, retry;
    PRODUCER_FENCED = 90, last;
    RESOURCE_NOT_FOUND = 91, last;
    DUPLICATE_RESOURCE = 92, last;
    UNACCEPTABLE_CREDENTIAL = 93, last;
    INCONSISTENT_VOTER_SET = 94, last;
    INVALID_UPDATE_VERSION = 95, last;
    FEATURE_UPDATE_FAILED = 96, last;
    PRINCIPAL_DESERIALIZATION_FAILURE = 97, last;
    SNAPSHOT_NOT_FOUND = 98, last;
    POSITION_OUT_OF_RANGE = 99, last;
    UNKNOWN_TOPIC_ID = 100, retry;
    DUPLICATE_BROKER_REGISTRATION = 101, last;
    BROKER_ID_NOT_REGISTERED = 102, last;
    INCONSISTENT_TOPIC_ID = 103, retry;
    INCONSISTENT_CLUSTER_ID = 104, last;
    TRANSACTIONAL_ID_NOT_FOUND = 105, last;
    FETCH_SESSION_TOPIC_ID_ERROR = 106, retry;
    INELIGIBLE_REPLICA = 107, last;
    NEW_LEADER_ELECTED = 108, last;
    OFFSET_MOVED_TO_TIERED_STORAGE = 109, last;
    FENCED_MEMBER_EPOCH = 110, last;
    UNRELEASED_INSTANCE_ID = 111, last;
    UNSUPPORTED_ASSIGNOR = 112, last;
    STALE_MEMBER_EPOCH = 113, last;
    MISMATCHED_ENDPOINT_TYPE = 114, last;
    UNSUPPORTED_ENDPOINT_TYPE = 115, last;
    UNKNOWN_CONTROLLER_ID = 116, last;
    UNKNOWN_SUBSCRIPTION_ID = 117, last;
    TELEMETRY_TOO_LARGE = 118, last;
    INVALID_REGISTRATION = 119, last;
    TRANSACTION_ABORTABLE = 120, last;
    INVALID_RECORD_STATE = 121, last;
    SHARE_SESSION_NOT_FOUND = 122, retry;
    INVALID_SHARE_SESSION_EPOCH = 123, retry;
    FENCED_STATE_EPOCH = 124, last;
    INVALID_VOTER_KEY = 125, last;
    DUPLICATE_VOTER = 126, last;
    VOTER_NOT_FOUND = 127, last;
    INVALID_REGULAR_EXPRESSION = 128, last;
    REBOOTSTRAP_REQUIRED = 129, last;
    STREAMS_INVALID_TOPOLOGY = 130, last;
    STREAMS_INVALID_TOPOLOGY_EPOCH = 131, last;
    STREAMS_TOPOLOGY_FENCED = 132, last;
    SHARE_SESSION_LIMIT_REACHED = 133, retry;
}

impl ErrorCode {
    /// Wraps a code from the wire.
    pub const fn new(raw: i16) -> Self {
        Self(raw)
    }

    /// The code for the wire.
    pub const fn raw(self) -> i16 {
        self.0
    }

    /// Whether it says that nothing went wrong.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// `Ok` for [`ErrorCode::NONE`], the code itself as the error otherwise.
    ///
    /// # Errors
    /// Any other code.
    pub const fn ok(self) -> Result<(), Self> {
        if self.is_none() { Ok(()) } else { Err(self) }
    }

    /// Whether the client must refresh its metadata before it asks again: the answer came from the wrong broker,
    /// or the broker knows a newer or older cluster.
    pub const fn stale_metadata(self) -> bool {
        matches!(
            self,
            Self::UNKNOWN_TOPIC_OR_PARTITION
                | Self::LEADER_NOT_AVAILABLE
                | Self::NOT_LEADER_OR_FOLLOWER
                | Self::REPLICA_NOT_AVAILABLE
                | Self::KAFKA_STORAGE_ERROR
                | Self::LISTENER_NOT_FOUND
                | Self::FENCED_LEADER_EPOCH
                | Self::UNKNOWN_LEADER_EPOCH
                | Self::UNKNOWN_TOPIC_ID
                | Self::INCONSISTENT_TOPIC_ID
        )
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {}", self.0),
        }
    }
}

impl std::error::Error for ErrorCode {}

impl From<ErrorCode> for i16 {
    fn from(code: ErrorCode) -> Self {
        code.0
    }
}

impl From<i16> for ErrorCode {
    fn from(raw: i16) -> Self {
        Self(raw)
    }
}

impl From<&BatchError> for ErrorCode {
    fn from(error: &BatchError) -> Self {
        match error {
            BatchError::Cut { .. } | BatchError::Length { .. } | BatchError::Crc { .. } => {
                Self::CORRUPT_MESSAGE
            }
            BatchError::Magic { .. } => Self::UNSUPPORTED_FOR_MESSAGE_FORMAT,
            BatchError::TooLarge { .. } => Self::MESSAGE_TOO_LARGE,
            BatchError::Codec { .. } => Self::UNSUPPORTED_COMPRESSION_TYPE,
            BatchError::Invalid { reason: InvalidBatch::Timestamp } => Self::INVALID_TIMESTAMP,
            BatchError::Invalid { .. } | BatchError::Record { .. } => Self::INVALID_RECORD,
            BatchError::Decompress | BatchError::Bomb { .. } => Self::CORRUPT_MESSAGE,
        }
    }
}

impl From<BatchError> for ErrorCode {
    fn from(error: BatchError) -> Self {
        Self::from(&error)
    }
}

impl From<&WireError> for ErrorCode {
    fn from(error: &WireError) -> Self {
        match error {
            WireError::UnknownKey { .. } | WireError::UnsupportedVersion { .. } => Self::UNSUPPORTED_VERSION,
            WireError::Unwritable { .. } => Self::UNKNOWN_SERVER_ERROR,
            WireError::Malformed { .. } | WireError::TooManyElements { .. } => Self::INVALID_REQUEST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_dense_and_named_once() {
        for (place, code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(code.raw(), place as i16 - 1);
            assert_eq!(Some(code.to_string().as_str()), code.name());
        }
        assert_eq!(ErrorCode::new(999).to_string(), "error code 999");
        assert!(!ErrorCode::new(999).retriable());
    }

    #[test]
    fn stale_metadata_is_always_worth_a_retry() {
        for code in ErrorCode::ALL.iter().filter(|code| code.stale_metadata()) {
            assert!(code.retriable(), "{code}");
        }
    }
}
