//! The zigzag numbers of variable length inside records (protocol buffers' `sint32` and `sint64`).
//!
//! Called by the builder and by `records`.

/// The longest number in bytes: ten groups of seven bits.
const VARLONG_LIMIT: usize = 10;

/// Appends `value`.
pub(super) fn put(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Bytes that [`put`] appends.
pub(super) const fn len(value: i64) -> usize {
    let zigzag = ((value << 1) ^ (value >> 63)) as u64;
    let bits = 64 - (zigzag | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Takes a number off the front of `bytes`; `None` when it is cut or too long.
pub(super) fn take(bytes: &mut &[u8]) -> Option<i64> {
    // Nine of ten numbers in a record fit in one byte: a length, a delta, a count of headers.
    if let Some((&first, rest)) = bytes.split_first()
        && first < 0x80
    {
        *bytes = rest;
        return Some(unzigzag(u64::from(first)));
    }
    let mut zigzag = 0u64;
    for (index, &byte) in bytes.iter().take(VARLONG_LIMIT).enumerate() {
        zigzag |= u64::from(byte & 0x7f) << (index * 7);
        if byte < 0x80 {
            *bytes = &bytes[index + 1..];
            return Some(unzigzag(zigzag));
        }
    }
    None
}

/// As [`take`], for a field that must fit in 32 bits.
pub(super) fn take_i32(bytes: &mut &[u8]) -> Option<i32> {
    i32::try_from(take(bytes)?).ok()
}

const fn unzigzag(zigzag: u64) -> i64 {
    (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_survive_their_bytes(value in any::<i64>(), shift in 0u32..64) {
            let value = value >> shift;
            let mut out = Vec::new();
            put(&mut out, value);
            prop_assert_eq!(out.len(), len(value));
            let mut rest = &out[..];
            prop_assert_eq!(take(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
            prop_assert_eq!(take(&mut &out[..out.len() - 1]), None);
        }
    }

    #[test]
    fn an_endless_number_is_refused() {
        assert_eq!(take(&mut &[0xff; 20][..]), None);
        let mut wide = Vec::new();
        put(&mut wide, 1 << 40);
        assert_eq!(take_i32(&mut &wide[..]), None);
    }
}
