//! A record on its way to a topic, before it has an offset. Made by the producer's callers.

use bytes::Bytes;
use loggos_protocol::batch::{RecordHeader, RecordView};
use loggos_protocol::ids::Timestamp;

/// A record to be produced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The key: records of one key go to one partition, in order.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// The headers in order.
    pub headers: Vec<RecordHeader>,
    /// When it happened; the time of the send when absent.
    pub timestamp: Option<Timestamp>,
}

impl Message {
    /// A record with a value and nothing else.
    pub fn of(value: impl Into<Bytes>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// The same with `key`.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same with one more header.
    #[must_use]
    pub fn with_header(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.headers.push(RecordHeader { key: key.into(), value: Some(value.into()) });
        self
    }

    /// The same with a time.
    #[must_use]
    pub const fn with_timestamp(mut self, timestamp: Timestamp) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// The record as the batch builder takes it.
    pub(crate) fn view(&self, now: Timestamp) -> RecordView<'_> {
        RecordView {
            timestamp: self.timestamp.unwrap_or(now),
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: &self.headers,
        }
    }
}
