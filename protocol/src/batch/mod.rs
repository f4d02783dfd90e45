//! Kafka's record batch of message format 2: the unit that is produced, stored, replicated and fetched.
//!
//! | file | what it knows |
//! |---|---|
//! | `header` | the 61 bytes in front |
//! | `scan` | walking many batches, and the checks that a produced one must pass |
//! | `builder` | records into one batch |
//! | `records` | one batch into records |
//! | `codec` | the four compressions |
//!
//! The broker's hot path is `validate`, then setting two fields of the header: payloads are slices of what the
//! socket gave and are never copied or decompressed. Called by the broker's api and log, and by the client.

mod builder;
mod codec;
mod header;
mod records;
mod scan;
mod validate;
mod varint;

use bytes::Bytes;

pub use crate::error::{BatchError, InvalidBatch};
pub use builder::{BatchBuilder, BatchOptions, BatchProducer, RecordView};
pub use header::{
    Attributes, BatchHeader, CRC_START, Compression, HEADER_LEN, LENGTH_PREFIX, MAGIC, TimestampType,
};
pub use records::{DEFAULT_RECORDS_LIMIT, Record, RecordHeader, Records, records, records_within};
pub use scan::{BatchView, Scan, Split, scan, split};
pub use validate::{Limits, validate};

use crate::ids::{ProducerEpoch, ProducerId, Sequence, Timestamp};

/// One batch: the header as values, which the broker stamps, and the bytes after it, which nobody touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The decoded header. Whoever changes a field inside the CRC calls [`Batch::seal`] afterwards.
    pub header: BatchHeader,
    /// The records as they came, compressed or not: everything after the first [`HEADER_LEN`] bytes.
    pub payload: Bytes,
}

impl Batch {
    /// Takes the batch that `bytes` begin with, and nothing after it. The CRC isn't looked at.
    ///
    /// # Errors
    /// As [`BatchHeader::decode`], and `Cut` when `bytes` end before the batch does.
    pub fn from_bytes(bytes: &Bytes) -> Result<Self, BatchError> {
        let header = BatchHeader::decode(bytes)?;
        let needed = header.total_len();
        if bytes.len() < needed {
            return Err(BatchError::Cut { needed, available: bytes.len() });
        }
        Ok(Self { header, payload: bytes.slice(HEADER_LEN..needed) })
    }

    /// Bytes of the whole batch, header included.
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }

    /// Compares the CRC in the header with the bytes.
    ///
    /// # Errors
    /// `Crc` when they differ.
    pub fn check_crc(&self) -> Result<(), BatchError> {
        let (expected, found) = (self.header.crc, self.header.checksum(&self.payload));
        if expected == found { Ok(()) } else { Err(BatchError::Crc { expected, found }) }
    }

    /// Sets the length and the CRC from the fields and the payload.
    pub fn seal(&mut self) {
        self.header.batch_length = i32::try_from(self.len() - LENGTH_PREFIX)
            .expect("a batch is shorter than a frame, so than 2 GiB");
        self.header.crc = self.header.checksum(&self.payload);
    }

    /// Gives all records the time of the append, as topics with `message.timestamp.type=LogAppendTime` ask, and
    /// computes the CRC anew. The records' own bytes stay as they are: readers take the max timestamp instead.
    pub fn restamp_append_time(&mut self, now: Timestamp) {
        self.header.attributes = self.header.attributes.with_timestamp_type(TimestampType::LogAppendTime);
        self.header.max_timestamp = now;
        self.seal();
    }

    /// Gives the batch another producer identity, which a client does when it must number its unsent batches
    /// anew, and computes the CRC anew.
    pub fn restamp_producer(&mut self, id: ProducerId, epoch: ProducerEpoch, base_sequence: Sequence) {
        self.header.producer_id = id;
        self.header.producer_epoch = epoch;
        self.header.base_sequence = base_sequence;
        self.seal();
    }

    /// The batch as one piece of memory. The broker never needs it: it writes header and payload side by side.
    pub fn to_bytes(&self) -> Bytes {
        let mut whole = Vec::with_capacity(self.len());
        whole.extend_from_slice(&self.header.encode());
        whole.extend_from_slice(&self.payload);
        whole.into()
    }
}
