//! What a consumer has seen never vanishes and never changes, whichever replica it reads (decision D5, KIP-392).

use std::collections::BTreeMap;

pub fn check(seen: &mut BTreeMap<i64, u64>, offset: i64, value: u64) {
    let known = seen.entry(offset).or_insert(value);
    assert_eq!(*known, value, "a consumer sees something else at {offset} than before");
}
