//! What was acknowledged to a producer that wanted to hear of all replicas in sync stands on the disk of each of them,
//! flushed, for as long as they are in sync: any of them may be the only one that is left (KIP-101's promise, decisions
//! D5 and D10). A record that a later epoch has in its place was lost.

use std::collections::BTreeSet;

use loggos_protocol::ids::BrokerId;

use super::Scene;

pub fn check<'a>(
    scene: &Scene<'_>,
    lost: &BTreeSet<BrokerId>,
    acknowledged: impl Iterator<Item = (&'a i64, &'a u64)>,
) {
    for (offset, value) in acknowledged {
        check_one(scene, lost, *offset, *value);
    }
}

pub fn check_one(scene: &Scene<'_>, lost: &BTreeSet<BrokerId>, offset: i64, value: u64) {
    for broker in scene.registry.now.partition.isr.iter().filter(|broker| !lost.contains(broker)) {
        let disk = &scene.disks[broker];
        assert!(
            offset < disk.flushed,
            "broker {broker} is in sync without {offset} flushed: {}",
            disk.flushed
        );
        if offset >= disk.start {
            let found = disk.at(offset).map(|record| record.value);
            assert_eq!(found, Some(value), "broker {broker} is in sync with something else at {offset}");
        }
    }
}
