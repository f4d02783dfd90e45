//! What can be wrong with bytes from the wire or the disk, sorted by what the reader of them can do about it.
//!
//! Called by every room of this crate. `kafka::error_code` maps these to Kafka's codes; nothing here is worth a
//! retry with the same bytes.

use thiserror::Error;

/// A length prefix that no honest peer sends; the connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The length is below zero.
    #[error("a frame announces {length} bytes")]
    Negative {
        /// What the prefix says.
        length: i32,
    },
    /// The length is above what the reader agreed to hold.
    #[error("a frame announces {length} bytes, more than the {limit} allowed")]
    Oversize {
        /// What the prefix says, in bytes.
        length: usize,
        /// The reader's limit, in bytes.
        limit: usize,
    },
}

/// What is wrong with a record batch. None of these goes away by sending the same bytes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BatchError {
    /// Fewer bytes than a header, or than the header says.
    #[error("a batch of {needed} bytes is cut to {available}")]
    Cut {
        /// Bytes the batch should have.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// A length field that cannot be: below the header's own size.
    #[error("a batch length of {length} is impossible")]
    Length {
        /// What the field says.
        length: i32,
    },
    /// Message formats 0 and 1, which brokers since Kafka 4.0 refuse, or a format of the future.
    #[error("message format {magic} is not supported, only 2")]
    Magic {
        /// What the magic byte says.
        magic: i8,
    },
    /// The bytes are not those that were checksummed: damage on the way or on the disk.
    #[error("CRC-32C is {found:08x}, the header says {expected:08x}")]
    Crc {
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// Longer than the topic's `max.message.bytes`.
    #[error("a batch of {length} bytes is larger than the {limit} allowed")]
    TooLarge {
        /// The batch's bytes, header included.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The header contradicts itself or the rules for producers; the text says which.
    #[error("an invalid batch: {reason}")]
    Invalid {
        /// Which rule is broken.
        reason: InvalidBatch,
    },
    /// The attributes name a codec that does not exist.
    #[error("compression codec {codec} is not known")]
    Codec {
        /// The three bits of the attributes.
        codec: u8,
    },
    /// The codec could not make sense of the bytes.
    #[error("the records could not be decompressed")]
    Decompress,
    /// Decompression gave more than the reader agreed to hold.
    #[error("the records decompress to more than the {limit} bytes allowed")]
    Bomb {
        /// The reader's limit in bytes.
        limit: usize,
    },
    /// A record's own fields run past its end, or the records are not as many as the header says.
    #[error("record {index} of a batch is malformed")]
    Record {
        /// The record's place in the batch, from 0.
        index: i32,
    },
}

/// The rules that Kafka's `LogValidator` and `UnifiedLog` hold a produced batch to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidBatch {
    /// No batch at all, or a batch without records.
    #[error("it has no records")]
    Empty,
    /// Produce requests since version 3 carry exactly one batch per partition.
    #[error("a produce request carries one batch per partition")]
    SeveralBatches,
    /// `last_offset_delta` and `record_count` disagree.
    #[error("its record count and its offsets disagree")]
    Count,
    /// A producer numbers its batch from 0.
    #[error("its base offset is not 0")]
    BaseOffset,
    /// Control batches are written by brokers alone.
    #[error("it is a control batch")]
    Control,
    /// A producer id without an epoch or a sequence, or the other way round.
    #[error("its producer id, epoch and sequence disagree")]
    Producer,
    /// Transactional without a producer id.
    #[error("it is transactional without a producer id")]
    Transactional,
    /// Attribute bits that are not assigned.
    #[error("its attributes have unknown bits")]
    Attributes,
    /// The timestamps are outside what the topic allows; Kafka says INVALID_TIMESTAMP.
    #[error("its timestamps are outside the allowed range")]
    Timestamp,
}

impl From<InvalidBatch> for BatchError {
    fn from(reason: InvalidBatch) -> Self {
        Self::Invalid { reason }
    }
}

/// What is wrong with a request or a response; the connection is to be closed unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The bytes end before the message, or hold what its schema forbids.
    #[error("malformed {what}: {reason}")]
    Malformed {
        /// Which message or part of it.
        what: &'static str,
        /// Where it broke, for the log.
        reason: String,
    },
    /// A number of elements that would cost more memory than any honest message.
    #[error("{what} holds more elements than allowed")]
    TooManyElements {
        /// Which message.
        what: &'static str,
    },
    /// An API key that Kafka has never had, or that is not served.
    #[error("API key {key} is not known")]
    UnknownKey {
        /// The key.
        key: i16,
    },
    /// A version outside the key's range. ApiVersions is answered, everything else closes the connection.
    #[error("version {version} of API key {key} is not supported")]
    UnsupportedVersion {
        /// The key.
        key: i16,
        /// The version asked for.
        version: i16,
        /// The request's correlation id, for the answer.
        correlation_id: i32,
    },
    /// A value of ours that this version of the message cannot say; our own bug, reported instead of sent.
    #[error("{what} cannot be written at version {version}: {reason}")]
    Unwritable {
        /// Which message.
        what: &'static str,
        /// The version asked for.
        version: i16,
        /// The encoder's words.
        reason: String,
    },
}
