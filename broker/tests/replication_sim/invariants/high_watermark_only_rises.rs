//! A replica's high watermark never falls while it runs: what it has shown it shows on (KIP-207 says what a new leader
//! may tell; elections are clean here).

use std::collections::BTreeMap;

pub fn check(marks: &mut BTreeMap<u64, i64>, incarnation: u64, mark: i64) {
    let before = marks.insert(incarnation, mark).unwrap_or(0);
    assert!(mark >= before, "the high watermark falls from {before} to {mark}");
}
