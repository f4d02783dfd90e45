//! A stream of messages that never ends: for a thread, `for message in stream`; for a task, a `futures::Stream`.
//!
//! ```text
//! for message in stream {                          while let Some(message) = stream.next().await {
//!     let message = message?;                          let message = message?;
//!     work(message.payload());                         work(message.payload()).await;
//! }                                                }
//! ```
//!
//! Where offsets are committed automatically, asking for the next message says that the one before is done with: it may
//! be committed from then on. Adapters that ask ahead of their caller (`ready_chunks`, `buffered`) should therefore be
//! used with commits by hand.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use loggos_protocol::batch::{Record, RecordHeader};
use loggos_protocol::ids::{Offset, Timestamp, TopicPartition};

use super::error::ConsumerError;
use super::intake::Intake;
use super::queue::Popped;

/// A message as a consumer gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The partition that it is from.
    pub partition: TopicPartition,
    /// The record: offset, time, key, value, headers.
    pub record: Record,
}

impl Received {
    /// The bytes that were sent; empty for a tombstone.
    pub fn payload(&self) -> &[u8] {
        self.record.value.as_deref().unwrap_or_default()
    }

    /// The value, which shares the memory of what was fetched; `None` is a tombstone.
    pub const fn value(&self) -> Option<&Bytes> {
        self.record.value.as_ref()
    }

    /// The key.
    pub const fn key(&self) -> Option<&Bytes> {
        self.record.key.as_ref()
    }

    /// The headers in order.
    pub fn headers(&self) -> &[RecordHeader] {
        &self.record.headers
    }

    /// Its place in its partition.
    pub const fn offset(&self) -> Offset {
        self.record.offset
    }

    /// When it was made, or appended where the topic says so.
    pub const fn timestamp(&self) -> Timestamp {
        self.record.timestamp
    }
}

/// A stream of one topic's messages: those of the partitions that this stream has at the time, each in order.
///
/// It ends when its connector is closed or dropped, and not before. An error concerns one partition, which is not
/// read on until it is rewound; the stream goes on with the others.
#[derive(Debug)]
pub struct MessageStream {
    intake: Intake,
}

impl MessageStream {
    pub(super) const fn new(intake: Intake) -> Self {
        Self { intake }
    }

    /// Waits for the next message; blocks the thread. `None` when the connector is closed.
    fn next_blocking(&mut self) -> Option<Result<Received, ConsumerError>> {
        self.intake.ask();
        loop {
            if let Some(next) = self.intake.next_ready() {
                return Some(next.map_err(ConsumerError::from));
            }
            match self.intake.queue().pop_blocking(None) {
                Popped::Chunk(chunk) => self.intake.begin(chunk),
                Popped::Nothing => {}
                Popped::Closed => return None,
            }
        }
    }
}

impl Stream for MessageStream {
    type Item = Result<Received, ConsumerError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.intake.ask();
        loop {
            if let Some(next) = self.intake.next_ready() {
                return Poll::Ready(Some(next.map_err(ConsumerError::from)));
            }
            let polled = self.intake.queue().poll_pop(context);
            match polled {
                Poll::Pending | Poll::Ready(Popped::Nothing) => return Poll::Pending,
                Poll::Ready(Popped::Closed) => return Poll::Ready(None),
                Poll::Ready(Popped::Chunk(chunk)) => self.intake.begin(chunk),
            }
        }
    }
}

/// The messages of a stream, for a thread that waits for them. Must not be used by a task: it blocks.
#[derive(Debug)]
pub struct Messages<S>(S);

impl Iterator for Messages<MessageStream> {
    type Item = Result<Received, ConsumerError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next_blocking()
    }
}

impl Iterator for Messages<&mut MessageStream> {
    type Item = Result<Received, ConsumerError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next_blocking()
    }
}

impl IntoIterator for MessageStream {
    type Item = Result<Received, ConsumerError>;
    type IntoIter = Messages<Self>;

    fn into_iter(self) -> Self::IntoIter {
        Messages(self)
    }
}

impl<'a> IntoIterator for &'a mut MessageStream {
    type Item = Result<Received, ConsumerError>;
    type IntoIter = Messages<&'a mut MessageStream>;

    fn into_iter(self) -> Self::IntoIter {
        Messages(self)
    }
}
