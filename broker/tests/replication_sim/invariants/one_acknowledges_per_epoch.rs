//! In one leader epoch only one process acknowledges: an epoch has one leader, and a process that has restarted leads in
//! a new one (KIP-101, decision D10).

use std::collections::BTreeMap;

use loggos_protocol::ids::LeaderEpoch;

pub fn check(acknowledgers: &mut BTreeMap<i32, u64>, incarnation: u64, epoch: LeaderEpoch) {
    let known = acknowledgers.entry(epoch.raw()).or_insert(incarnation);
    assert_eq!(*known, incarnation, "two processes acknowledge in epoch {epoch}");
}
