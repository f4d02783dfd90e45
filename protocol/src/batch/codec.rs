//! The four compressions of a batch's records, each as Kafka's Java client writes and reads it.
//!
//! Decompression stops at a limit: a few kilobytes can unfold to gigabytes. Called by the builder and `records`;
//! the broker's produce and fetch paths never come here.

use std::io::{Read, Write};

use bytes::Bytes;

use super::header::Compression;
use crate::error::BatchError;

/// What xerial's Java binding puts in front of its blocks: magic, then version 1 and lowest readable version 1.
const XERIAL_HEADER: [u8; 16] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1];
/// The part of it that tells framed data from a bare block; the versions behind it may grow.
const XERIAL_MAGIC: usize = 8;
/// Bytes of input per xerial block: the Java binding's default.
const XERIAL_BLOCK: usize = 32 * 1024;
/// Kafka's default level for zstd; for gzip it's zlib's own default.
const ZSTD_LEVEL: i32 = 3;

/// Compresses `plain`. `level` is what `compression.gzip.level` and `compression.zstd.level` mean; codecs without
/// levels ignore it.
pub(super) fn compress(codec: Compression, level: Option<i32>, plain: Vec<u8>) -> Vec<u8> {
    const IN_MEMORY: &str = "writing to memory and compressing valid settings don't fail";
    match codec {
        Compression::None => plain,
        Compression::Gzip => {
            let level = level
                .and_then(|level| u32::try_from(level).ok())
                .map_or_else(Default::default, |level| flate2::Compression::new(level.min(9)));
            let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(plain.len() / 2), level);
            encoder.write_all(&plain).expect(IN_MEMORY);
            encoder.finish().expect(IN_MEMORY)
        }
        Compression::Snappy => compress_xerial(&plain),
        Compression::Lz4 => {
            let info = lz4_flex::frame::FrameInfo::new()
                .block_size(lz4_flex::frame::BlockSize::Max64KB)
                .block_mode(lz4_flex::frame::BlockMode::Independent);
            let out = Vec::with_capacity(plain.len() / 2);
            let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, out);
            encoder.write_all(&plain).expect(IN_MEMORY);
            encoder.finish().expect(IN_MEMORY)
        }
        Compression::Zstd => {
            let range = zstd::compression_level_range();
            let level = level.unwrap_or(ZSTD_LEVEL).clamp(*range.start(), *range.end());
            zstd::bulk::compress(&plain, level).expect(IN_MEMORY)
        }
    }
}

fn compress_xerial(plain: &[u8]) -> Vec<u8> {
    let mut out = XERIAL_HEADER.to_vec();
    let mut encoder = snap::raw::Encoder::new();
    let mut block = vec![0; snap::raw::max_compress_len(XERIAL_BLOCK)];
    for chunk in plain.chunks(XERIAL_BLOCK) {
        let length = encoder.compress(chunk, &mut block).expect("the block has room for the worst case");
        out.extend_from_slice(&(length as u32).to_be_bytes());
        out.extend_from_slice(&block[..length]);
    }
    out
}

/// Undoes [`compress`]; data that isn't compressed is shared, not copied.
///
/// # Errors
/// `Decompress` for bytes that the codec can't read, `Bomb` once more than `limit` bytes come out.
pub(super) fn decompress(codec: Compression, packed: &Bytes, limit: usize) -> Result<Bytes, BatchError> {
    match codec {
        Compression::None => Ok(packed.clone()),
        Compression::Gzip => {
            read_limited(flate2::read::MultiGzDecoder::new(&packed[..]), packed.len(), limit)
        }
        Compression::Snappy => decompress_snappy(packed, limit),
        Compression::Lz4 => {
            read_limited(lz4_flex::frame::FrameDecoder::new(&packed[..]), packed.len(), limit)
        }
        Compression::Zstd => {
            let decoder =
                zstd::stream::read::Decoder::with_buffer(&packed[..]).map_err(|_| BatchError::Decompress)?;
            read_limited(decoder, packed.len(), limit)
        }
    }
}

fn read_limited(reader: impl Read, packed: usize, limit: usize) -> Result<Bytes, BatchError> {
    // A guess at the size saves copies while growing; the guess itself must not be the bomb.
    let mut plain = Vec::with_capacity(packed.saturating_mul(4).min(limit).min(1 << 20));
    let mut reader = reader.take(limit as u64 + 1);
    reader.read_to_end(&mut plain).map_err(|_| BatchError::Decompress)?;
    if plain.len() > limit { Err(BatchError::Bomb { limit }) } else { Ok(plain.into()) }
}

fn decompress_snappy(packed: &[u8], limit: usize) -> Result<Bytes, BatchError> {
    let mut plain = Vec::new();
    if !packed.starts_with(&XERIAL_HEADER[..XERIAL_MAGIC]) {
        append_block(packed, limit, &mut plain)?;
        return Ok(plain.into());
    }
    let mut rest = packed;
    while !rest.is_empty() {
        // Streams that were concatenated repeat the header between blocks.
        if rest.starts_with(&XERIAL_HEADER[..XERIAL_MAGIC]) {
            rest = rest.get(XERIAL_HEADER.len()..).ok_or(BatchError::Decompress)?;
            continue;
        }
        let (length, behind) = rest.split_first_chunk::<4>().ok_or(BatchError::Decompress)?;
        let length = u32::from_be_bytes(*length) as usize;
        let block = behind.get(..length).ok_or(BatchError::Decompress)?;
        append_block(block, limit, &mut plain)?;
        rest = &behind[length..];
    }
    Ok(plain.into())
}

fn append_block(block: &[u8], limit: usize, plain: &mut Vec<u8>) -> Result<(), BatchError> {
    let length = snap::raw::decompress_len(block).map_err(|_| BatchError::Decompress)?;
    let start = plain.len();
    if length > limit.saturating_sub(start) {
        return Err(BatchError::Bomb { limit });
    }
    plain.resize(start + length, 0);
    snap::raw::Decoder::new().decompress(block, &mut plain[start..]).map_err(|_| BatchError::Decompress)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 1 << 20;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_codec_gives_back_what_it_took(
            pattern in proptest::collection::vec(any::<u8>(), 0..200), times in 1usize..900,
        ) {
            let plain = pattern.repeat(times);
            for codec in Compression::ALL {
                let packed = Bytes::from(compress(codec, None, plain.clone()));
                prop_assert_eq!(&decompress(codec, &packed, LIMIT).expect("our own bytes")[..], &plain[..]);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), framed in any::<bool>()) {
            let mut bytes = bytes;
            if framed {
                bytes.splice(0..0, XERIAL_HEADER);
            }
            let bytes = Bytes::from(bytes);
            for codec in Compression::ALL {
                let _ = decompress(codec, &bytes, LIMIT);
            }
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit_by_every_codec() {
        for codec in &Compression::ALL[1..] {
            let packed = Bytes::from(compress(*codec, None, vec![0; 300_000]));
            assert!(packed.len() < 30_000, "{codec}");
            assert_eq!(
                decompress(*codec, &packed, 299_999),
                Err(BatchError::Bomb { limit: 299_999 }),
                "{codec}"
            );
            assert_eq!(decompress(*codec, &packed, 300_000).expect("fits").len(), 300_000, "{codec}");
        }
    }

    #[test]
    fn a_bare_snappy_block_and_joined_streams_are_read_too() {
        let bare = snap::raw::Encoder::new().compress_vec(b"librdkafka writes no frame").expect("in memory");
        let read = decompress(Compression::Snappy, &bare.into(), LIMIT).expect("a bare block");
        assert_eq!(&read[..], b"librdkafka writes no frame");
        let mut joined = compress_xerial(b"one ");
        joined.extend(compress_xerial(b"two"));
        assert_eq!(
            &decompress(Compression::Snappy, &joined.into(), LIMIT).expect("two streams")[..],
            b"one two"
        );
    }
}
