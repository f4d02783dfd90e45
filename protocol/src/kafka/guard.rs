//! A buffer that message structs are decoded from, and that doesn't believe lengths before it has seen the bytes.
//!
//! The decoders reserve memory for as many elements as an array's length field announces, before the first element
//! is read: four bytes could ask for hundreds of gigabytes, and failing to get them ends the process. A buffer
//! can't know whether a number is an array's length, so it does this. A number that would be too much for an array
//! is handed out smaller, and noted. If the next thing read is that many bytes, the number was the length of a
//! string or of bytes, and the true length is served. If not, then it was an array's length, and the elements run
//! out of bytes, as more were handed out than bytes are left and each takes one at least; or it was a plain integer
//! of an old version, and nothing else depended on it: then the message is whole, every array's length was true,
//! and decoding once more without the guard is safe. Versions with compact lengths never need that second pass.
//!
//! The number of fields read is bounded as well, as elements of two bytes on the wire take a hundred in memory.
//! Called by `codec` alone.

use bytes::{Buf, Bytes, TryGetError};
use kafka_protocol::protocol::buf::{ByteBuf, NotEnoughBytesError};

/// No array has more elements than this: the limit that Kafka 4.4 set.
const ELEMENTS_LIMIT: usize = 1_000_000;
/// Below this many elements an array's length is harmless even when it's a lie.
const HARMLESS: usize = 16 * 1024;
/// No request has more fields than this: some twenty thousand topics with fifty partitions each.
pub(super) const REQUEST_FIELDS: usize = 4_000_000;
/// No response has more fields than this; a broker is trusted more than a client, and knows more partitions.
pub(super) const RESPONSE_FIELDS: usize = 64_000_000;

/// What the guard saw by the end of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every number was handed out as it is.
    Exact,
    /// Some plain integer was handed out smaller: decode again, without the guard.
    Altered,
    /// The message asks for too much.
    Excessive,
}

/// See the module.
pub(super) struct GuardedBytes {
    rest: Bytes,
    flexible: bool,
    /// How many more fields may be read.
    fields_left: usize,
    /// The number handed out last, if it was handed out smaller than the bytes say.
    doubted: Option<Doubt>,
    altered: bool,
    excessive: bool,
    varint: Varint,
}

#[derive(Clone, Copy)]
struct Doubt {
    told: usize,
    served: usize,
    /// Whether the elements, if it's an array's length, may not run out of bytes.
    fatal: bool,
}

/// The rest of a number of variable length: `left` more of its bytes, lowest seven bits of `value` first.
#[derive(Clone, Copy, Default)]
struct Varint {
    value: u32,
    left: u8,
}

impl GuardedBytes {
    /// Guards `bytes`; `flexible` says whether the message's version has compact lengths.
    pub(super) fn new(bytes: Bytes, flexible: bool, fields: usize) -> Self {
        Self {
            rest: bytes,
            flexible,
            fields_left: fields,
            doubted: None,
            altered: false,
            excessive: false,
            varint: Varint::default(),
        }
    }

    /// What is left to read.
    pub(super) fn into_rest(self) -> Bytes {
        self.rest
    }

    /// To be asked once the decoder is done, whether it succeeded or not.
    pub(super) fn verdict(mut self) -> Verdict {
        self.settle_doubt();
        // Compact lengths can't be mistaken for integers: what was altered there was an array's length.
        if self.excessive || (self.altered && self.flexible) {
            Verdict::Excessive
        } else if self.altered {
            Verdict::Altered
        } else {
            Verdict::Exact
        }
    }

    /// Something else than bytes was read after a doubted number: it wasn't a length of bytes.
    fn settle_doubt(&mut self) {
        if let Some(doubt) = self.doubted.take() {
            self.altered = true;
            self.excessive |= doubt.fatal;
        }
    }

    /// Counts a field. Fails once there are too many, or when a lie was found out, which ends the decoder's loops.
    fn count(&mut self) -> Result<(), TryGetError> {
        self.settle_doubt();
        if self.fields_left == 0 {
            self.excessive = true;
        }
        // A boolean that isn't 0 or 1 looked like the beginning of a longer number.
        if self.excessive || self.varint.left > 0 {
            return Err(TryGetError { requested: 1, available: 0 });
        }
        self.fields_left -= 1;
        Ok(())
    }

    /// The number to hand out for `told`, which may be a length.
    fn doubt(&mut self, told: usize) -> usize {
        let left = self.rest.len();
        if told <= HARMLESS.max(left.min(ELEMENTS_LIMIT)) {
            return told;
        }
        let served = (left + 1).clamp(HARMLESS, ELEMENTS_LIMIT);
        self.doubted = Some(Doubt { told, served, fatal: served <= left });
        served
    }

    /// The next byte of a number of variable length, altered where the whole number is beyond belief.
    fn varint_byte(&mut self) -> Result<u8, TryGetError> {
        if self.varint.left == 0 {
            self.begin_varint()?;
        }
        self.varint.left -= 1;
        let low = (self.varint.value & 0x7f) as u8;
        self.varint.value >>= 7;
        Ok(if self.varint.left > 0 { low | 0x80 } else { low })
    }

    fn begin_varint(&mut self) -> Result<(), TryGetError> {
        self.count()?;
        let (told, length) = peek_varint(&self.rest)?;
        self.rest.advance(length);
        // Compact lengths count from 1, so that 0 can say null.
        let served = if told == 0 { 0 } else { self.doubt(told as usize - 1) as u32 + 1 };
        let bits = 32 - (served | 1).leading_zeros();
        self.varint = Varint { value: served, left: bits.div_ceil(7) as u8 };
        Ok(())
    }

    /// The true length behind a request for `size` bytes, if that was doubted.
    fn true_size(&mut self, size: usize) -> usize {
        match self.doubted.take() {
            Some(doubt) if doubt.served == size => doubt.told,
            other => {
                self.doubted = other;
                self.settle_doubt();
                size
            }
        }
    }
}

/// Reads a number of variable length as the decoders do, at most five bytes, without taking it.
fn peek_varint(bytes: &[u8]) -> Result<(u32, usize), TryGetError> {
    let mut value = 0u32;
    for (index, &byte) in bytes.iter().take(5).enumerate() {
        value |= u32::from(byte & 0x7f).wrapping_shl(index as u32 * 7);
        if byte < 0x80 || index == 4 {
            return Ok((value, index + 1));
        }
    }
    Err(TryGetError { requested: 1, available: 0 })
}

impl Buf for GuardedBytes {
    fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.rest
    }

    fn advance(&mut self, count: usize) {
        self.rest.advance(count);
    }

    /// Booleans and the bytes of compact lengths come this way; a boolean is one byte either way.
    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        if self.flexible && (self.varint.left > 0 || self.rest.first().is_some_and(|byte| *byte >= 0x80)) {
            return self.varint_byte();
        }
        self.count()?;
        self.rest.try_get_u8()
    }

    fn try_get_i8(&mut self) -> Result<i8, TryGetError> {
        self.count()?;
        self.rest.try_get_i8()
    }

    fn try_get_i16(&mut self) -> Result<i16, TryGetError> {
        self.count()?;
        self.rest.try_get_i16()
    }

    fn try_get_u16(&mut self) -> Result<u16, TryGetError> {
        self.count()?;
        self.rest.try_get_u16()
    }

    fn try_get_u32(&mut self) -> Result<u32, TryGetError> {
        self.count()?;
        self.rest.try_get_u32()
    }

    fn try_get_i64(&mut self) -> Result<i64, TryGetError> {
        self.count()?;
        self.rest.try_get_i64()
    }

    fn try_get_f64(&mut self) -> Result<f64, TryGetError> {
        self.count()?;
        self.rest.try_get_f64()
    }

    fn try_copy_to_slice(&mut self, target: &mut [u8]) -> Result<(), TryGetError> {
        self.count()?;
        self.rest.try_copy_to_slice(target)
    }

    fn try_get_i32(&mut self) -> Result<i32, TryGetError> {
        self.count()?;
        let told = self.rest.try_get_i32()?;
        match usize::try_from(told) {
            Ok(length) if !self.flexible => Ok(self.doubt(length) as i32),
            _ => Ok(told),
        }
    }
}

impl ByteBuf for GuardedBytes {
    fn peek_bytes(&mut self, range: std::ops::Range<usize>) -> Bytes {
        self.rest.slice(range)
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        self.rest.split_to(size)
    }

    fn try_get_bytes(&mut self, size: usize) -> Result<Bytes, NotEnoughBytesError> {
        let size = self.true_size(size);
        if self.rest.len() < size { Err(NotEnoughBytesError) } else { Ok(self.rest.split_to(size)) }
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::{CreateTopicsRequest, MetadataRequest};
    use kafka_protocol::protocol::Decodable;

    use super::*;

    fn metadata(bytes: &[u8], version: i16) -> (bool, Verdict) {
        let mut guarded = GuardedBytes::new(Bytes::copy_from_slice(bytes), version >= 9, REQUEST_FIELDS);
        let decoded = MetadataRequest::decode(&mut guarded, version).is_ok();
        (decoded, guarded.verdict())
    }

    #[test]
    fn an_array_of_two_thousand_million_topics_is_refused_without_the_memory() {
        let mut old = i32::MAX.to_be_bytes().to_vec();
        old.extend([0; 64]);
        assert!(!metadata(&old, 1).0);
        let mut flexible = vec![0xff, 0xff, 0xff, 0xff, 0x0f];
        flexible.extend([0; 64]);
        assert_eq!(metadata(&flexible, 9), (false, Verdict::Excessive));
    }

    #[test]
    fn the_truth_about_a_long_array_is_served() {
        let mut flexible = vec![0xd1, 0x0f];
        flexible.extend([2, b't', 0].repeat(2000));
        flexible.extend([1, 0, 0, 0]);
        assert_eq!(metadata(&flexible, 9), (true, Verdict::Exact));
    }

    #[test]
    fn a_plain_integer_of_an_old_version_asks_for_a_second_pass() {
        // No topics; a timeout of 60,000 ms, more than the bytes left; validate_only.
        let old = [0, 0, 0, 0, 0, 0, 0xea, 0x60, 0];
        let mut guarded = GuardedBytes::new(Bytes::copy_from_slice(&old), false, REQUEST_FIELDS);
        assert!(CreateTopicsRequest::decode(&mut guarded, 2).is_ok());
        assert_eq!(guarded.verdict(), Verdict::Altered);
    }

    #[test]
    fn a_long_string_of_bytes_comes_whole() {
        let long = Bytes::from(vec![7; 3_000_000]);
        let mut framed = 3_000_000i32.to_be_bytes().to_vec();
        framed.extend_from_slice(&long);
        let mut guarded = GuardedBytes::new(framed.into(), false, REQUEST_FIELDS);
        let served = guarded.try_get_i32().expect("four bytes");
        assert_eq!(served as usize, ELEMENTS_LIMIT);
        assert_eq!(guarded.try_get_bytes(served as usize).expect("the bytes are there"), long);
        assert_eq!(guarded.verdict(), Verdict::Exact);
    }

    #[test]
    fn too_many_fields_are_too_many() {
        let mut guarded = GuardedBytes::new(Bytes::from_static(&[0; 64]), false, 3);
        assert!(
            guarded.try_get_i16().is_ok() && guarded.try_get_i64().is_ok() && guarded.try_get_i8().is_ok()
        );
        assert!(guarded.try_get_i16().is_err());
        assert_eq!(guarded.verdict(), Verdict::Excessive);
    }
}
