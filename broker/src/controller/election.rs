//! Who leads a partition after a broker has gone, come back or come anew. Pure. Called by `controller`.

use loggos_protocol::ids::{BrokerId, LeaderEpoch};

use crate::metadata::PartitionView;

/// What a partition's state should become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elected {
    /// Who leads, or `NONE`.
    pub leader: BrokerId,
    /// In which epoch.
    pub leader_epoch: LeaderEpoch,
    /// The replicas in sync.
    pub isr: Vec<BrokerId>,
}

/// Decides; `None` when all is as it should be.
///
/// A replica in sync leads, the preferred one first. With none alive the partition has no leader and its last
/// replicas in sync are remembered, unless `unclean` allows any live replica to lead at the price of records. A
/// leader that `has_restarted` gets a new epoch, for it may have lost offsets that it gave out and never flushed
/// (decision D10).
pub fn elect(
    partition: &PartitionView,
    is_alive: impl Fn(BrokerId) -> bool,
    has_restarted: bool,
    unclean: bool,
) -> Option<Elected> {
    let alive_in_sync: Vec<BrokerId> =
        partition.isr.iter().copied().filter(|broker| is_alive(*broker)).collect();
    let keeps = partition.leader != BrokerId::NONE && is_alive(partition.leader) && !has_restarted;
    if keeps {
        return None;
    }
    let best = partition.replicas.iter().copied().find(|replica| alive_in_sync.contains(replica));
    let any = || partition.replicas.iter().copied().find(|replica| is_alive(*replica));
    let (leader, isr) = match best {
        Some(leader) => (leader, alive_in_sync),
        None if unclean => match any() {
            Some(leader) => (leader, vec![leader]),
            None => (BrokerId::NONE, partition.isr.clone()),
        },
        None => (BrokerId::NONE, partition.isr.clone()),
    };
    if leader == BrokerId::NONE && partition.leader == BrokerId::NONE {
        return None;
    }
    Some(Elected { leader, leader_epoch: partition.leader_epoch.next(), isr })
}

#[cfg(test)]
mod tests {
    use super::*;
    use loggos_protocol::ids::Zxid;

    fn partition(leader: i32, isr: &[i32]) -> PartitionView {
        PartitionView {
            replicas: [1, 2, 3].map(BrokerId::new).to_vec(),
            leader: BrokerId::new(leader),
            leader_epoch: LeaderEpoch::new(5),
            isr: isr.iter().copied().map(BrokerId::new).collect(),
            state_version: Some(0),
            state_written: Zxid::new(1),
            controller_epoch: 0,
        }
    }

    fn elected(
        partition: &PartitionView,
        alive: &[i32],
        restarted: bool,
        unclean: bool,
    ) -> Option<(i32, i32, Vec<i32>)> {
        let is_alive = |broker: BrokerId| alive.contains(&broker.raw());
        let elected = elect(partition, is_alive, restarted, unclean)?;
        let isr = elected.isr.iter().map(|broker| broker.raw()).collect();
        Some((elected.leader.raw(), elected.leader_epoch.raw(), isr))
    }

    #[test]
    fn only_a_replica_in_sync_leads() {
        assert_eq!(elected(&partition(1, &[1, 2]), &[1, 2, 3], false, false), None);
        assert_eq!(elected(&partition(1, &[1, 2]), &[2, 3], false, false), Some((2, 6, vec![2])));
        assert_eq!(elected(&partition(1, &[1]), &[2, 3], false, false), Some((-1, 6, vec![1])));
        assert_eq!(elected(&partition(-1, &[1]), &[2, 3], false, false), None);
        assert_eq!(elected(&partition(-1, &[1]), &[1, 2], false, false), Some((1, 6, vec![1])));
        assert_eq!(elected(&partition(1, &[1]), &[2, 3], false, true), Some((2, 6, vec![2])));
    }

    #[test]
    fn a_leader_that_restarted_gets_a_new_epoch_even_alone() {
        assert_eq!(elected(&partition(1, &[1]), &[1], true, false), Some((1, 6, vec![1])));
    }
}
