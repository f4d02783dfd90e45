//! One batch into records, one at a time and without copying: keys and values share the memory of the batch, or
//! of what it was decompressed into.
//!
//! Called by the client's consumers and by the broker where it must look inside (time lookups, control records).

use std::borrow::Cow;

use bytes::Bytes;

use super::codec::decompress;
use super::header::TimestampType;
use super::{Batch, varint};
use crate::error::BatchError;
use crate::ids::{Offset, Timestamp};

/// How many bytes a batch may unfold to unless the caller says otherwise: Kafka's largest request, 100 MiB.
pub const DEFAULT_RECORDS_LIMIT: usize = 100 * 1024 * 1024;

/// A record's header: a name, which may occur several times, and a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The name; UTF-8 by agreement, which nobody checks.
    pub key: Bytes,
    /// The value.
    pub value: Option<Bytes>,
}

impl RecordHeader {
    /// The name as text, with replacement characters where it isn't UTF-8.
    pub fn key_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.key)
    }
}

/// One record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the partition.
    pub offset: Offset,
    /// When it was made, or appended where the topic says `LogAppendTime`.
    pub timestamp: Timestamp,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// The headers in order.
    pub headers: Vec<RecordHeader>,
}

/// The records of `batch`, decompressed into at most [`DEFAULT_RECORDS_LIMIT`] bytes.
///
/// # Errors
/// `Codec`, `Decompress` and `Bomb` at once; `Record` from the iterator, which ends with it. The CRC isn't checked.
pub fn records(batch: &Batch) -> Result<Records, BatchError> {
    records_within(batch, DEFAULT_RECORDS_LIMIT)
}

/// The records of `batch`, decompressed into at most `limit` bytes; errors as [`records`].
pub fn records_within(batch: &Batch, limit: usize) -> Result<Records, BatchError> {
    let header = &batch.header;
    let data = decompress(header.compression()?, &batch.payload, limit)?;
    let append_time = match header.timestamp_type() {
        TimestampType::CreateTime => None,
        TimestampType::LogAppendTime => Some(header.max_timestamp),
    };
    Ok(Records {
        data,
        position: 0,
        index: 0,
        count: header.record_count,
        base_offset: header.base_offset,
        base_timestamp: header.base_timestamp,
        append_time,
    })
}

/// The iterator of [`records`].
#[derive(Clone, Debug)]
pub struct Records {
    data: Bytes,
    position: usize,
    index: i32,
    count: i32,
    base_offset: Offset,
    base_timestamp: Timestamp,
    append_time: Option<Timestamp>,
}

impl Iterator for Records {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index >= self.count {
            // Bytes behind the last record mean that the count lies: records would be lost silently.
            let leftover = self.position < self.data.len() && self.index == self.count;
            return leftover.then(|| Err(self.fail()));
        }
        match self.read() {
            Some(record) => {
                self.index += 1;
                Some(Ok(record))
            }
            None => Some(Err(self.fail())),
        }
    }
}

impl Records {
    /// How many records the header promises beyond those already given.
    pub const fn remaining(&self) -> i32 {
        let remaining = self.count.saturating_sub(self.index);
        if remaining < 0 { 0 } else { remaining }
    }

    fn fail(&mut self) -> BatchError {
        let index = self.index;
        (self.index, self.count, self.position) = (0, 0, self.data.len());
        BatchError::Record { index }
    }

    fn read(&mut self) -> Option<Record> {
        let mut rest = &self.data[self.position..];
        let length = usize::try_from(varint::take_i32(&mut rest)?).ok()?;
        let mut fields = rest.get(..length)?;
        let end = self.data.len() - rest.len() + length;
        let (_attributes, after) = fields.split_first()?;
        fields = after;
        let timestamp_delta = varint::take(&mut fields)?;
        let offset_delta = varint::take_i32(&mut fields)?;
        let key = self.take_bytes(&mut fields)?;
        let value = self.take_bytes(&mut fields)?;
        let headers = self.take_headers(&mut fields)?;
        if !fields.is_empty() {
            return None;
        }
        self.position = end;
        let created = Timestamp::new(self.base_timestamp.raw().wrapping_add(timestamp_delta));
        Some(Record {
            offset: Offset::new(self.base_offset.raw().wrapping_add(i64::from(offset_delta))),
            timestamp: self.append_time.unwrap_or(created),
            key,
            value,
            headers,
        })
    }

    fn take_headers(&self, fields: &mut &[u8]) -> Option<Vec<RecordHeader>> {
        let count = usize::try_from(varint::take_i32(fields)?).ok()?;
        // A header takes two bytes at least: a count beyond that is a lie, found before memory is spent on it.
        if count > fields.len() / 2 {
            return None;
        }
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let key = self.take_bytes(fields)??;
            headers.push(RecordHeader { key, value: self.take_bytes(fields)? });
        }
        Some(headers)
    }

    fn take_bytes(&self, fields: &mut &[u8]) -> Option<Option<Bytes>> {
        let length = varint::take_i32(fields)?;
        if length < 0 {
            // Only -1 means null; the Java client takes any negative number for it, and so must a reader of logs.
            return Some(None);
        }
        let (bytes, rest) = fields.split_at_checked(length as usize)?;
        *fields = rest;
        Some(Some(self.data.slice_ref(bytes)))
    }
}
