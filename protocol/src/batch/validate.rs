//! The checks that bytes from a producer must pass before they become part of a log: Kafka's `UnifiedLog` and
//! `LogValidator`, as far as they go without decompression.
//!
//! The order is Kafka's, so that the same broken batch gets the same code. What Kafka checks by decompressing each
//! batch and looking at each record (its bytes, its timestamp, that offset deltas run from 0 without gaps, and a
//! key for compacted topics) is not checked: the CRC covers the producer's own bytes, a consumer checks them again,
//! and decision D4 keeps the broker out of the payload. Called by the broker's produce handler and followers.

use bytes::Bytes;

use super::{Batch, split};
use crate::error::{BatchError, InvalidBatch};
use crate::ids::{Offset, ProducerId, Timestamp};

/// What a topic and the sender's role allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The topic's `max.message.bytes`: the largest batch, header included.
    pub max_batch_bytes: usize,
    /// The earliest timestamp allowed (`message.timestamp.before.max.ms` before now).
    pub min_timestamp: Timestamp,
    /// The latest timestamp allowed (`message.timestamp.after.max.ms` after now).
    pub max_timestamp: Timestamp,
    /// Whether the sender is a leader whose log we copy: many batches, any base offset, control batches, gaps that
    /// compaction left, and no limit on size or time, for these were checked when the leader took them.
    pub replicated: bool,
}

impl Limits {
    /// Limits for a producer on a topic with `max.message.bytes=max_batch_bytes` and any timestamp.
    pub const fn produced(max_batch_bytes: usize) -> Self {
        Self {
            max_batch_bytes,
            min_timestamp: Timestamp::new(i64::MIN),
            max_timestamp: Timestamp::new(i64::MAX),
            replicated: false,
        }
    }

    /// What a follower asks of its leader's bytes.
    pub const fn replicated() -> Self {
        Self { replicated: true, ..Self::produced(usize::MAX) }
    }

    /// These limits with timestamps from `min` to `max` only.
    #[must_use]
    pub const fn with_timestamps(self, min: Timestamp, max: Timestamp) -> Self {
        Self { min_timestamp: min, max_timestamp: max, ..self }
    }
}

/// Walks `bytes` and checks every batch; the batches share the memory of `bytes`.
///
/// From a producer there must be exactly one batch and nothing after it. From a leader a last batch that is cut
/// by the fetch's byte limit is left out, and no batch at all is fine.
///
/// # Errors
/// The first thing that is wrong; none is worth a retry with the same bytes.
pub fn validate(bytes: Bytes, limits: &Limits) -> Result<Vec<Batch>, BatchError> {
    if limits.replicated {
        return split(bytes).map(|batch| batch.and_then(replicated)).collect();
    }
    let batch = match Batch::from_bytes(&bytes) {
        Err(BatchError::Cut { available: 0, .. }) => return Err(InvalidBatch::Empty.into()),
        other => other?,
    };
    if batch.len() != bytes.len() {
        return Err(InvalidBatch::SeveralBatches.into());
    }
    produced(&batch, limits)?;
    Ok(vec![batch])
}

fn replicated(batch: Batch) -> Result<Batch, BatchError> {
    batch.check_crc()?;
    let header = &batch.header;
    let possible =
        header.last_offset_delta >= 0 && header.record_count >= 0 && header.base_offset >= Offset::ZERO;
    if !possible || header.record_count.saturating_sub(1) > header.last_offset_delta {
        return Err(InvalidBatch::Count.into());
    }
    Ok(batch)
}

fn produced(batch: &Batch, limits: &Limits) -> Result<(), BatchError> {
    let header = &batch.header;
    if header.base_offset != Offset::ZERO {
        return Err(InvalidBatch::BaseOffset.into());
    }
    if batch.len() > limits.max_batch_bytes {
        return Err(BatchError::TooLarge { length: batch.len(), limit: limits.max_batch_bytes });
    }
    batch.check_crc()?;
    header.compression()?;
    if header.attributes.has_unknown_bits() || header.attributes.has_delete_horizon() {
        return Err(InvalidBatch::Attributes.into());
    }
    if header.record_count <= 0 {
        return Err(InvalidBatch::Empty.into());
    }
    // The count is one more than the last delta: the subtraction can't overflow, as the count is positive here.
    if header.record_count - 1 != header.last_offset_delta {
        return Err(InvalidBatch::Count.into());
    }
    if header.is_control() {
        return Err(InvalidBatch::Control.into());
    }
    check_producer(batch)?;
    if header.max_timestamp > limits.max_timestamp || header.base_timestamp < limits.min_timestamp {
        return Err(InvalidBatch::Timestamp.into());
    }
    Ok(())
}

fn check_producer(batch: &Batch) -> Result<(), InvalidBatch> {
    let header = &batch.header;
    if !header.has_producer() {
        return if header.is_transactional() { Err(InvalidBatch::Transactional) } else { Ok(()) };
    }
    let numbered = header.producer_epoch.raw() >= 0 && header.base_sequence.raw() >= 0;
    if header.producer_id < ProducerId::new(0) || !numbered {
        return Err(InvalidBatch::Producer);
    }
    Ok(())
}
