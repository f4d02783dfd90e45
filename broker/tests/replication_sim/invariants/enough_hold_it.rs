//! At its acknowledgement a record stands flushed on at least `min.insync.replicas` disks (Kafka's
//! `min.insync.replicas`; NOT_ENOUGH_REPLICAS_AFTER_APPEND otherwise).

use super::super::replica::Waiting;
use super::Scene;

/// A disk of `lost` had it, when it said so.
pub fn check(scene: &Scene<'_>, lost: usize, waiting: Waiting) {
    let holds = |disk: &&super::Disk| {
        waiting.offset < disk.flushed
            && (waiting.offset < disk.start
                || disk.at(waiting.offset).is_some_and(|record| record.value == waiting.value))
    };
    let holders = scene.disks.values().filter(holds).count() + lost;
    assert!(holders >= scene.min_in_sync, "acknowledged with {holders} of {} copies", scene.min_in_sync);
}
