//! Whatever two replicas have below their high watermarks is the same, leader epochs included (KIP-101, KIP-320).

use std::collections::BTreeMap;

use super::super::disk::{Disk, Record};

pub fn check(committed: &mut BTreeMap<i64, Record>, disk: &Disk, mark: i64) {
    let from = committed.last_key_value().map_or(0, |(offset, _)| (*offset - 8).min(mark)).max(disk.start);
    for offset in from..mark {
        let Some(record) = disk.at(offset) else {
            panic!(
                "offset {offset} is below the high watermark {mark} and isn't there: the log ends at {}",
                disk.end
            )
        };
        let known = committed.entry(offset).or_insert(record);
        assert_eq!(*known, record, "two replicas differ at {offset}, below the high watermark");
    }
}
