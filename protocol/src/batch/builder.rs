//! Records into one batch.
//!
//! Called by the client's producer, by tests, and wherever the broker writes records of its own. Sizes are exact
//! before compression, so that an accumulator can close a batch at `batch.size`.

use super::codec::compress;
use super::header::{Attributes, BatchHeader, Compression, HEADER_LEN, TimestampType};
use super::records::RecordHeader;
use super::{Batch, varint};
use crate::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};

/// Who numbers the batch's records, for an idempotent producer (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchProducer {
    /// The producer's number.
    pub id: ProducerId,
    /// Which life of it.
    pub epoch: ProducerEpoch,
    /// The number of the batch's first record.
    pub base_sequence: Sequence,
}

/// What a batch is to be, apart from its records. The default is an uncompressed batch of a plain producer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchOptions {
    /// The codec.
    pub compression: Compression,
    /// The codec's level; its own default when absent.
    pub level: Option<i32>,
    /// The idempotent producer, if there is one.
    pub producer: Option<BatchProducer>,
    /// Whether the records belong to a transaction.
    pub transactional: bool,
    /// Whether the batch holds a control record.
    pub control: bool,
}

/// A record to be written, borrowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// When the record was made.
    pub timestamp: Timestamp,
    /// The key, which decides its partition and what compaction keeps.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// The headers in order.
    pub headers: &'a [RecordHeader],
}

/// Collects records and makes a [`Batch`] of them.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    options: BatchOptions,
    body: Vec<u8>,
    count: i32,
    base_timestamp: Timestamp,
    max_timestamp: Timestamp,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new(options: BatchOptions) -> Self {
        Self::with_capacity(options, 0)
    }

    /// An empty batch with room for `bytes` of records before they are compressed.
    pub fn with_capacity(options: BatchOptions, bytes: usize) -> Self {
        Self {
            options,
            body: Vec::with_capacity(bytes),
            count: 0,
            base_timestamp: Timestamp::NONE,
            max_timestamp: Timestamp::NONE,
        }
    }

    /// How many records there are.
    pub const fn count(&self) -> i32 {
        self.count
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the batch as it stands, before compression, header included.
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(&self) -> usize {
        HEADER_LEN + self.body.len()
    }

    /// Bytes that [`push`](Self::push) would add for `record`.
    pub fn record_len(&self, record: &RecordView<'_>) -> usize {
        let length = self.content_len(record);
        varint::len(length as i64) + length
    }

    /// Appends a record.
    pub fn push(&mut self, record: &RecordView<'_>) {
        if self.count == 0 {
            self.base_timestamp = record.timestamp;
            self.max_timestamp = record.timestamp;
        }
        let length = self.content_len(record);
        let timestamp_delta = self.timestamp_delta(record);
        self.max_timestamp = self.max_timestamp.max(record.timestamp);
        let body = &mut self.body;
        varint::put(body, length as i64);
        // The record's own attributes: no bit of them has a meaning yet.
        body.push(0);
        varint::put(body, timestamp_delta);
        varint::put(body, i64::from(self.count));
        put_bytes(body, record.key);
        put_bytes(body, record.value);
        varint::put(body, record.headers.len() as i64);
        for header in record.headers {
            put_bytes(body, Some(&header.key));
            put_bytes(body, header.value.as_deref());
        }
        self.count += 1;
    }

    /// Compresses the records and closes the batch: base offset 0, no leader epoch, as producers send it.
    pub fn build(self) -> Batch {
        let mut attributes = Attributes::default()
            .with_compression(self.options.compression)
            .with_timestamp_type(TimestampType::CreateTime);
        if self.options.transactional {
            attributes = attributes.transactional();
        }
        if self.options.control {
            attributes = attributes.control();
        }
        let producer = self.options.producer.unwrap_or(BatchProducer {
            id: ProducerId::NONE,
            epoch: ProducerEpoch::new(-1),
            base_sequence: Sequence::new(-1),
        });
        let header = BatchHeader {
            base_offset: Offset::ZERO,
            batch_length: 0,
            leader_epoch: LeaderEpoch::NONE,
            crc: 0,
            attributes,
            last_offset_delta: self.count - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            base_sequence: producer.base_sequence,
            record_count: self.count,
        };
        let payload = compress(self.options.compression, self.options.level, self.body).into();
        let mut batch = Batch { header, payload };
        batch.seal();
        batch
    }

    fn timestamp_delta(&self, record: &RecordView<'_>) -> i64 {
        let base = if self.count == 0 { record.timestamp } else { self.base_timestamp };
        // Times at both ends of an i64 can't be told apart by a delta; readers add it back with the same wrap.
        record.timestamp.raw().wrapping_sub(base.raw())
    }

    fn content_len(&self, record: &RecordView<'_>) -> usize {
        let headers: usize = record
            .headers
            .iter()
            .map(|header| bytes_len(Some(&header.key)) + bytes_len(header.value.as_deref()))
            .sum();
        1 + varint::len(self.timestamp_delta(record))
            + varint::len(i64::from(self.count))
            + bytes_len(record.key)
            + bytes_len(record.value)
            + varint::len(record.headers.len() as i64)
            + headers
    }
}

fn bytes_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| varint::len(bytes.len() as i64) + bytes.len())
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => varint::put(out, -1),
        Some(bytes) => {
            varint::put(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}
