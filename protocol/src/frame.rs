//! The length prefix that Kafka, ZooKeeper and the ensemble's own servers share: four bytes, big-endian, not
//! counting themselves.
//!
//! Called by every connection: it reads what the socket has into a `BytesMut` and asks for whole frames until
//! there is none. Nothing is copied: a frame is split off the buffer.

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use crate::error::FrameError;

/// Bytes of the prefix.
pub const PREFIX_LEN: usize = 4;

/// Kafka's `socket.request.max.bytes` by default: 100 MiB.
pub const DEFAULT_FRAME_LIMIT: usize = 100 * 1024 * 1024;

/// Takes frames off a buffer of received bytes, none longer than its limit.
#[derive(Clone, Copy, Debug)]
pub struct FrameDecoder {
    limit: usize,
}

impl FrameDecoder {
    /// A decoder for frames of up to `limit` bytes, prefix not counted.
    pub const fn new(limit: usize) -> Self {
        Self { limit }
    }

    /// The largest frame in bytes, prefix not counted.
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Splits the next whole frame off `buffer`, or says `None` when more bytes are needed.
    ///
    /// An error is final: the buffer's position in the stream is lost, so the connection must be closed. The
    /// buffer isn't grown to the announced length here: a peer must send bytes before it costs memory.
    pub fn decode(&self, buffer: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.announced(buffer)? else { return Ok(None) };
        if buffer.len() < PREFIX_LEN + length {
            return Ok(None);
        }
        buffer.advance(PREFIX_LEN);
        Ok(Some(buffer.split_to(length).freeze()))
    }

    /// How many more bytes the next frame needs at least; 0 when it is whole. A reader may reserve by it.
    pub fn missing(&self, buffer: &[u8]) -> Result<usize, FrameError> {
        let needed = match self.announced(buffer)? {
            Some(length) => PREFIX_LEN + length,
            None => PREFIX_LEN,
        };
        Ok(needed.saturating_sub(buffer.len()))
    }

    fn announced(&self, buffer: &[u8]) -> Result<Option<usize>, FrameError> {
        let Some(prefix) = buffer.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let announced = i32::from_be_bytes(*prefix);
        let length = usize::try_from(announced).map_err(|_| FrameError::Negative { length: announced })?;
        if length > self.limit {
            return Err(FrameError::Oversize { length, limit: self.limit });
        }
        Ok(Some(length))
    }
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new(DEFAULT_FRAME_LIMIT)
    }
}

/// Appends `payload` to `out` behind its prefix.
///
/// # Panics
/// When `payload` is longer than `i32::MAX`: no caller builds one.
pub fn put_frame(out: &mut BytesMut, payload: &[u8]) {
    let length = i32::try_from(payload.len()).expect("a frame of ours is shorter than 2 GiB");
    out.reserve(PREFIX_LEN + payload.len());
    out.put_i32(length);
    out.put_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_negative_or_oversize_length_is_refused_before_its_bytes_come() {
        let decoder = FrameDecoder::new(10);
        let mut negative = BytesMut::from(&(-1i32).to_be_bytes()[..]);
        assert_eq!(decoder.decode(&mut negative), Err(FrameError::Negative { length: -1 }));
        let mut oversize = BytesMut::from(&11i32.to_be_bytes()[..]);
        assert_eq!(decoder.decode(&mut oversize), Err(FrameError::Oversize { length: 11, limit: 10 }));
        assert_eq!(
            decoder.missing(&11i32.to_be_bytes()),
            Err(FrameError::Oversize { length: 11, limit: 10 })
        );
    }

    #[test]
    fn an_empty_frame_is_a_frame() {
        let mut buffer = BytesMut::from(&[0u8; 4][..]);
        assert_eq!(FrameDecoder::default().decode(&mut buffer), Ok(Some(Bytes::new())));
        assert!(buffer.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn frames_come_out_whole_however_the_stream_is_cut(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..12),
            cuts in proptest::collection::vec(1usize..30, 1..20),
        ) {
            let mut stream = BytesMut::new();
            for payload in &payloads {
                put_frame(&mut stream, payload);
            }
            let decoder = FrameDecoder::new(60);
            let (mut buffer, mut found, mut cuts) = (BytesMut::new(), Vec::new(), cuts.iter().cycle());
            while !stream.is_empty() {
                let take = (*cuts.next().expect("a cycle never ends")).min(stream.len());
                buffer.extend_from_slice(&stream.split_to(take));
                while let Some(frame) = decoder.decode(&mut buffer).expect("an honest stream") {
                    found.push(frame.to_vec());
                }
                prop_assert!(decoder.missing(&buffer).expect("an honest stream") > 0);
            }
            prop_assert_eq!(found, payloads);
        }
    }
}
