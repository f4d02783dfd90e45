//! When the faults have ended every replica is in sync again and every log is the same: no two replicas wait for each
//! other for ever (KIP-279's fast leader changes, and epochs without records).

use super::Scene;

pub fn check(scene: &Scene<'_>, deleted: i64) {
    let partition = &scene.registry.now.partition;
    let mut in_sync = partition.isr.clone();
    let mut replicas = partition.replicas.clone();
    in_sync.sort_unstable();
    replicas.sort_unstable();
    assert_eq!(in_sync, replicas, "all are in sync in the end; leader {}", partition.leader);
    assert!(!partition.is_reassigning(), "a reassignment never ends");
    let leader = &scene.disks[&partition.leader];
    for broker in &replicas {
        let disk = &scene.disks[broker];
        assert_eq!(disk.end, leader.end, "broker {broker} and its leader {} end together", partition.leader);
        for offset in deleted.max(disk.start).max(leader.start)..disk.end {
            assert_eq!(
                disk.at(offset),
                leader.at(offset),
                "broker {broker} and its leader differ at {offset}"
            );
        }
    }
}
