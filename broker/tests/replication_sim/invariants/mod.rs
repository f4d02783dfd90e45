//! What must hold, one invariant per file, each with its source.

mod acknowledged_stays;
mod acknowledged_under_a_session;
mod enough_hold_it;
mod everybody_heals;
mod high_watermark_only_rises;
mod logs_agree_below_the_high_watermark;
mod one_acknowledges_per_epoch;
mod seen_stays_seen;

use std::collections::{BTreeMap, BTreeSet};

use loggos_protocol::ids::BrokerId;

use super::disk::{Disk, Record};
use super::registry::Registry;
use super::replica::{Process, Waiting};

/// What the world remembers for its invariants.
#[derive(Default)]
pub struct Ledger {
    /// Acknowledged values by offset.
    pub acknowledged: BTreeMap<i64, u64>,
    /// Which process acknowledged in which epoch.
    acknowledgers: BTreeMap<i32, u64>,
    /// What was at or below any replica's high watermark.
    committed: BTreeMap<i64, Record>,
    /// High watermarks by process.
    marks: BTreeMap<u64, i64>,
    /// What a consumer has seen.
    seen: BTreeMap<i64, u64>,
    /// Everything before it was deleted by request.
    pub deleted: i64,
    /// Brokers whose disk is gone, and that the registry still takes for replicas in sync.
    pub lost: BTreeSet<BrokerId>,
}

/// What the invariants look at.
pub struct Scene<'a> {
    pub registry: &'a Registry,
    pub disks: &'a BTreeMap<BrokerId, Disk>,
    pub min_in_sync: usize,
}

impl Ledger {
    /// A producer is answered.
    pub fn acknowledge(&mut self, scene: &Scene<'_>, by: &Process, waiting: Waiting) {
        one_acknowledges_per_epoch::check(&mut self.acknowledgers, by.incarnation, waiting.epoch);
        acknowledged_under_a_session::check(scene.registry, by.session);
        enough_hold_it::check(scene, self.lost.len(), waiting);
        let before = self.acknowledged.insert(waiting.offset, waiting.value);
        assert!(
            before.is_none_or(|value| value == waiting.value),
            "offset {} is acknowledged twice",
            waiting.offset
        );
        if waiting.offset >= self.deleted {
            acknowledged_stays::check_one(scene, &self.lost, waiting.offset, waiting.value);
        }
    }

    /// A replica, a role or a disk has changed.
    pub fn check(&self, scene: &Scene<'_>) {
        acknowledged_stays::check(scene, &self.lost, self.acknowledged.range(self.deleted..));
    }

    /// A replica's high watermark is `mark`.
    pub fn watermark(&mut self, by: &Process, disk: &Disk) {
        let mark = by.replication.high_watermark().raw();
        high_watermark_only_rises::check(&mut self.marks, by.incarnation, mark);
        logs_agree_below_the_high_watermark::check(&mut self.committed, disk, mark);
    }

    /// A consumer reads what is at `offset`.
    pub fn read(&mut self, offset: i64, value: u64) {
        seen_stays_seen::check(&mut self.seen, offset, value);
    }

    /// After all faults have ended.
    pub fn healed(&self, scene: &Scene<'_>) {
        everybody_heals::check(scene, self.deleted);
        for (offset, value) in self.seen.range(self.deleted..) {
            let leader = &scene.disks[&scene.registry.now.partition.leader];
            assert_eq!(
                leader.at(*offset).map(|found| found.value),
                Some(*value),
                "seen at {offset}, and gone"
            );
        }
    }
}
