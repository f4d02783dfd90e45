//! The 61 bytes in front of every batch of message format 2, decoded and written back.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | base offset, set by the leader, outside the CRC |
//! | 8..12 | length of what follows these twelve bytes |
//! | 12..16 | leader epoch, set by the leader, outside the CRC |
//! | 16 | magic, 2 |
//! | 17..21 | CRC-32C of everything from byte 21 on |
//! | 21..23 | attributes: codec in bits 0-2, timestamp type 3, transactional 4, control 5, delete horizon 6 |
//! | 23..27 | last offset delta |
//! | 27..43 | base and max timestamp |
//! | 43..57 | producer id, producer epoch, base sequence |
//! | 57..61 | record count |
//!
//! Source: KIP-98 and `DefaultRecordBatch.java`. Called by `scan`, the builder, and everyone who holds a batch.

use crate::error::BatchError;
use crate::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};

/// Bytes of a batch's header.
pub const HEADER_LEN: usize = 61;
/// Bytes in front of those that the length field counts.
pub const LENGTH_PREFIX: usize = 12;
/// Where the checksummed bytes begin.
pub const CRC_START: usize = 21;
/// The only message format since Kafka 4.0.
pub const MAGIC: i8 = 2;

const MAGIC_AT: usize = 16;
const CODEC_MASK: i16 = 0b111;
const APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;
const DELETE_HORIZON: i16 = 1 << 6;
const UNUSED: i16 = !(CODEC_MASK | APPEND_TIME | TRANSACTIONAL | CONTROL | DELETE_HORIZON);

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// Snappy blocks in xerial's framing, as Kafka's Java client writes them; raw blocks are read too.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// Zstandard frames (KIP-110).
    Zstd,
}

impl Compression {
    /// All codecs, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The number in the attributes.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The codec of a number, if there is one.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The name in configurations: `none`, `gzip`, `snappy`, `lz4`, `zstd`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The codec that a configuration names; `uncompressed` is the broker's word for none.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "none" | "uncompressed" => Some(Self::None),
            "gzip" => Some(Self::Gzip),
            "snappy" => Some(Self::Snappy),
            "lz4" => Some(Self::Lz4),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Who gave the records their timestamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// The producer, record by record.
    #[default]
    CreateTime,
    /// The leader that appended them: all records have the batch's max timestamp.
    LogAppendTime,
}

/// Bits 0 to 15 of a batch's attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attributes(i16);

impl Attributes {
    /// Wraps the bits as they stand on the wire, unchecked.
    pub const fn new(raw: i16) -> Self {
        Self(raw)
    }

    /// The bits for the wire.
    pub const fn raw(self) -> i16 {
        self.0
    }

    /// The three bits that name the codec, known or not.
    pub const fn codec(self) -> u8 {
        (self.0 & CODEC_MASK) as u8
    }

    /// Whether bits are set that Kafka has not assigned.
    pub const fn has_unknown_bits(self) -> bool {
        self.0 & UNUSED != 0
    }

    /// Who gave the timestamps.
    pub const fn timestamp_type(self) -> TimestampType {
        if self.0 & APPEND_TIME != 0 { TimestampType::LogAppendTime } else { TimestampType::CreateTime }
    }

    /// Whether the records belong to a transaction.
    pub const fn is_transactional(self) -> bool {
        self.0 & TRANSACTIONAL != 0
    }

    /// Whether the batch holds a control record (a transaction's marker).
    pub const fn is_control(self) -> bool {
        self.0 & CONTROL != 0
    }

    /// Whether the base timestamp is a tombstone's delete horizon (KIP-534), set by the log's cleaner alone.
    pub const fn has_delete_horizon(self) -> bool {
        self.0 & DELETE_HORIZON != 0
    }

    /// These attributes with codec `compression`.
    #[must_use]
    pub const fn with_compression(self, compression: Compression) -> Self {
        Self(self.0 & !CODEC_MASK | compression.code() as i16)
    }

    /// These attributes with timestamps of `timestamp_type`.
    #[must_use]
    pub const fn with_timestamp_type(self, timestamp_type: TimestampType) -> Self {
        match timestamp_type {
            TimestampType::CreateTime => Self(self.0 & !APPEND_TIME),
            TimestampType::LogAppendTime => Self(self.0 | APPEND_TIME),
        }
    }

    /// These attributes, marked as part of a transaction.
    #[must_use]
    pub const fn transactional(self) -> Self {
        Self(self.0 | TRANSACTIONAL)
    }

    /// These attributes, marked as a control batch.
    #[must_use]
    pub const fn control(self) -> Self {
        Self(self.0 | CONTROL)
    }
}

/// A batch's header as values. Stamping is setting `base_offset` and `leader_epoch`: both are outside the CRC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The first record's offset.
    pub base_offset: Offset,
    /// Bytes after the first twelve: the batch's total minus [`LENGTH_PREFIX`].
    pub batch_length: i32,
    /// The epoch of the leader that took the batch; `LeaderEpoch::NONE` from producers.
    pub leader_epoch: LeaderEpoch,
    /// CRC-32C of the bytes from [`CRC_START`] to the end.
    pub crc: u32,
    /// Codec, timestamp type and flags.
    pub attributes: Attributes,
    /// The last record's offset minus the first's.
    pub last_offset_delta: i32,
    /// What the records' timestamps are relative to: the first record's.
    pub base_timestamp: Timestamp,
    /// The greatest timestamp of its records.
    pub max_timestamp: Timestamp,
    /// The idempotent producer, or `ProducerId::NONE`.
    pub producer_id: ProducerId,
    /// Which life of the producer, or -1.
    pub producer_epoch: ProducerEpoch,
    /// The first record's sequence number, or -1.
    pub base_sequence: Sequence,
    /// How many records there are; fewer than offsets once compacted.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the header that `bytes` begin with. The length, the magic and the codec are looked at, the CRC is not.
    ///
    /// # Errors
    /// `Cut` with fewer than [`HEADER_LEN`] bytes, `Magic` for another message format, `Length` below a header.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchError> {
        // Formats 0 and 1 have shorter headers with the magic at the same place: tell them apart first.
        if let Some(&magic) = bytes.get(MAGIC_AT)
            && magic as i8 != MAGIC
        {
            return Err(BatchError::Magic { magic: magic as i8 });
        }
        let Some(raw) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(BatchError::Cut { needed: HEADER_LEN, available: bytes.len() });
        };
        let batch_length = i32_at(raw, 8);
        if batch_length < (HEADER_LEN - LENGTH_PREFIX) as i32 {
            return Err(BatchError::Length { length: batch_length });
        }
        Ok(Self {
            base_offset: Offset::new(i64_at(raw, 0)),
            batch_length,
            leader_epoch: LeaderEpoch::new(i32_at(raw, 12)),
            crc: i32_at(raw, 17) as u32,
            attributes: Attributes::new(i16_at(raw, 21)),
            last_offset_delta: i32_at(raw, 23),
            base_timestamp: Timestamp::new(i64_at(raw, 27)),
            max_timestamp: Timestamp::new(i64_at(raw, 35)),
            producer_id: ProducerId::new(i64_at(raw, 43)),
            producer_epoch: ProducerEpoch::new(i16_at(raw, 51)),
            base_sequence: Sequence::new(i32_at(raw, 53)),
            record_count: i32_at(raw, 57),
        })
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut raw = [0; HEADER_LEN];
        raw[0..8].copy_from_slice(&self.base_offset.raw().to_be_bytes());
        raw[8..12].copy_from_slice(&self.batch_length.to_be_bytes());
        raw[12..16].copy_from_slice(&self.leader_epoch.raw().to_be_bytes());
        raw[MAGIC_AT] = MAGIC as u8;
        raw[17..21].copy_from_slice(&self.crc.to_be_bytes());
        raw[21..23].copy_from_slice(&self.attributes.raw().to_be_bytes());
        raw[23..27].copy_from_slice(&self.last_offset_delta.to_be_bytes());
        raw[27..35].copy_from_slice(&self.base_timestamp.raw().to_be_bytes());
        raw[35..43].copy_from_slice(&self.max_timestamp.raw().to_be_bytes());
        raw[43..51].copy_from_slice(&self.producer_id.raw().to_be_bytes());
        raw[51..53].copy_from_slice(&self.producer_epoch.raw().to_be_bytes());
        raw[53..57].copy_from_slice(&self.base_sequence.raw().to_be_bytes());
        raw[57..61].copy_from_slice(&self.record_count.to_be_bytes());
        raw
    }

    /// Bytes of the whole batch, header included.
    pub const fn total_len(&self) -> usize {
        LENGTH_PREFIX + self.batch_length as usize
    }

    /// The last record's offset. Bytes from anywhere may say anything, hence the wrapping sum.
    pub const fn last_offset(&self) -> Offset {
        Offset::new(self.base_offset.raw().wrapping_add(self.last_offset_delta as i64))
    }

    /// The offset after the last record.
    pub const fn next_offset(&self) -> Offset {
        Offset::new(self.last_offset().raw().wrapping_add(1))
    }

    /// The last record's sequence number, wrapped as Kafka's are.
    pub const fn last_sequence(&self) -> Sequence {
        if self.base_sequence.raw() < 0 {
            self.base_sequence
        } else {
            self.base_sequence.plus(self.last_offset_delta)
        }
    }

    /// Whether the batch holds a control record.
    pub const fn is_control(&self) -> bool {
        self.attributes.is_control()
    }

    /// Whether the records belong to a transaction.
    pub const fn is_transactional(&self) -> bool {
        self.attributes.is_transactional()
    }

    /// Whether an idempotent producer sent it.
    pub const fn has_producer(&self) -> bool {
        self.producer_id.raw() != ProducerId::NONE.raw()
    }

    /// The codec.
    ///
    /// # Errors
    /// `Codec` for a number that no codec has.
    pub fn compression(&self) -> Result<Compression, BatchError> {
        let codec = self.attributes.codec();
        Compression::from_code(codec).ok_or(BatchError::Codec { codec })
    }

    /// Who gave the timestamps.
    pub const fn timestamp_type(&self) -> TimestampType {
        self.attributes.timestamp_type()
    }

    /// The CRC-32C that this header and the bytes after it give.
    pub fn checksum(&self, payload: &[u8]) -> u32 {
        let head = self.encode();
        crc32c::crc32c_append(crc32c::crc32c(&head[CRC_START..]), payload)
    }
}

fn i16_at(raw: &[u8; HEADER_LEN], at: usize) -> i16 {
    i16::from_be_bytes([raw[at], raw[at + 1]])
}

fn i32_at(raw: &[u8; HEADER_LEN], at: usize) -> i32 {
    i32::from_be_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

fn i64_at(raw: &[u8; HEADER_LEN], at: usize) -> i64 {
    (i64::from(i32_at(raw, at)) << 32) | i64::from(i32_at(raw, at + 4) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_header_with_a_possible_length_survives_its_bytes(mut raw in proptest::array::uniform32(any::<u8>()), rest in proptest::array::uniform29(any::<u8>())) {
            raw[8] &= 0x7f;
            raw[10] |= 1;
            raw[MAGIC_AT] = 2;
            let mut bytes = raw.to_vec();
            bytes.extend_from_slice(&rest);
            let header = BatchHeader::decode(&bytes).expect("sixty-one bytes with magic 2");
            prop_assert_eq!(header.encode().to_vec(), bytes);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(header) = BatchHeader::decode(&bytes) {
                let _ = (header.next_offset(), header.compression(), header.total_len());
                let _ = header.last_sequence();
            }
        }
    }

    #[test]
    fn older_formats_are_named_even_when_shorter_than_a_header() {
        let mut old = [0; 30];
        old[MAGIC_AT] = 1;
        assert_eq!(BatchHeader::decode(&old), Err(BatchError::Magic { magic: 1 }));
        assert_eq!(BatchHeader::decode(&[0; 5]), Err(BatchError::Cut { needed: HEADER_LEN, available: 5 }));
    }

    #[test]
    fn codecs_keep_their_numbers_and_names() {
        for (number, codec) in Compression::ALL.into_iter().enumerate() {
            assert_eq!(Compression::from_code(number as u8), Some(codec));
            assert_eq!(Compression::from_name(codec.name()), Some(codec));
            assert_eq!(Attributes::default().with_compression(codec).codec(), number as u8);
        }
        assert_eq!(Compression::from_code(5), None);
    }
}
