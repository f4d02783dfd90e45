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

/// Why an election that somebody asks for isn't held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotElected {
    /// All is as it was asked for.
    NotNeeded,
    /// The preferred replica is dead or not in sync.
    PreferredNotAvailable,
    /// No replica that may lead is alive.
    NoneEligible,
}

/// Lets the preferred replica, the first one, lead again.
///
/// # Errors
/// Why not.
pub fn prefer(partition: &PartitionView, is_alive: impl Fn(BrokerId) -> bool) -> Result<Elected, NotElected> {
    let preferred = partition.replicas.first().copied().unwrap_or(BrokerId::NONE);
    if partition.leader == preferred {
        return Err(NotElected::NotNeeded);
    }
    if !is_alive(preferred) || !partition.isr.contains(&preferred) {
        return Err(NotElected::PreferredNotAvailable);
    }
    Ok(Elected { leader: preferred, leader_epoch: partition.leader_epoch.next(), isr: partition.isr.clone() })
}

/// Lets any live replica lead where none does, at the price of records.
///
/// # Errors
/// Why not.
pub fn elect_unclean(
    partition: &PartitionView,
    is_alive: impl Fn(BrokerId) -> bool,
) -> Result<Elected, NotElected> {
    if partition.leader != BrokerId::NONE && is_alive(partition.leader) {
        return Err(NotElected::NotNeeded);
    }
    let elected = elect(partition, is_alive, false, true).ok_or(NotElected::NoneEligible)?;
    if elected.leader == BrokerId::NONE { Err(NotElected::NoneEligible) } else { Ok(elected) }
}

/// Takes `broker` out of the replicas in sync: because it stops, or has lost what it had. `None` when it isn't one of
/// them, or the only one: then there is nobody to leave it to.
pub fn leave(
    partition: &PartitionView,
    broker: BrokerId,
    is_alive: impl Fn(BrokerId) -> bool,
) -> Option<Elected> {
    let isr: Vec<BrokerId> = partition.isr.iter().copied().filter(|other| *other != broker).collect();
    if isr.is_empty() || isr.len() == partition.isr.len() {
        return None;
    }
    let may_lead = |replica: &BrokerId| isr.contains(replica) && is_alive(*replica);
    let keeps = partition.leader != broker;
    let next = if keeps { Some(partition.leader) } else { partition.replicas.iter().copied().find(may_lead) };
    let leader = next.unwrap_or(BrokerId::NONE);
    // A new epoch in any case: a state that somebody else than the leader wrote must not look as if a leader that has
    // restarted meanwhile had been elected in its new life (decision D10).
    Some(Elected { leader, leader_epoch: partition.leader_epoch.next(), isr })
}

/// Keeps only `kept` of the replicas in sync, at the end of a reassignment; the leader is one of them. `None` when
/// nothing changes.
///
/// # Errors
/// When none of `kept` is in sync.
pub fn keep_only(
    partition: &PartitionView,
    kept: &[BrokerId],
    is_alive: impl Fn(BrokerId) -> bool,
) -> Result<Option<Elected>, NotElected> {
    let isr: Vec<BrokerId> = partition.isr.iter().copied().filter(|broker| kept.contains(broker)).collect();
    if isr.is_empty() {
        return Err(NotElected::NoneEligible);
    }
    let may_lead = |broker: &BrokerId| isr.contains(broker) && is_alive(*broker);
    if kept.contains(&partition.leader) && isr.len() == partition.isr.len() {
        return Ok(None);
    }
    let keeps = kept.contains(&partition.leader) && may_lead(&partition.leader);
    let next =
        if keeps { Some(partition.leader) } else { kept.iter().copied().find(|broker| may_lead(broker)) };
    let leader = next.unwrap_or(BrokerId::NONE);
    // A new epoch in any case: who is no longer a replica must not be counted by anybody (Kafka does the same).
    Ok(Some(Elected { leader, leader_epoch: partition.leader_epoch.next(), isr }))
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
            ..PartitionView::default()
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

    fn shown(elected: Elected) -> (i32, i32, Vec<i32>) {
        let isr = elected.isr.iter().map(|broker| broker.raw()).collect();
        (elected.leader.raw(), elected.leader_epoch.raw(), isr)
    }

    #[test]
    fn the_preferred_replica_leads_again_only_when_in_sync() {
        let alive = |_| true;
        assert_eq!(prefer(&partition(2, &[1, 2]), alive).map(shown), Ok((1, 6, vec![1, 2])));
        assert_eq!(prefer(&partition(1, &[1, 2]), alive), Err(NotElected::NotNeeded));
        assert_eq!(prefer(&partition(2, &[2]), alive), Err(NotElected::PreferredNotAvailable));
        let dead = |broker: BrokerId| broker.raw() != 1;
        assert_eq!(prefer(&partition(2, &[1, 2]), dead), Err(NotElected::PreferredNotAvailable));
    }

    #[test]
    fn an_unclean_election_is_for_those_without_a_leader() {
        assert_eq!(elect_unclean(&partition(1, &[1]), |_| true), Err(NotElected::NotNeeded));
        assert_eq!(elect_unclean(&partition(1, &[1]), |_| false), Err(NotElected::NoneEligible));
        let two = |broker: BrokerId| broker.raw() == 2;
        assert_eq!(elect_unclean(&partition(-1, &[1]), two).map(shown), Ok((2, 6, vec![2])));
    }

    #[test]
    fn who_leaves_hands_over_to_somebody_in_sync_and_never_leaves_nobody() {
        let one = BrokerId::new(1);
        assert_eq!(leave(&partition(1, &[1, 2]), one, |_| true).map(shown), Some((2, 6, vec![2])));
        assert_eq!(leave(&partition(1, &[1, 2]), one, |_| false).map(shown), Some((-1, 6, vec![2])));
        assert_eq!(leave(&partition(2, &[1, 2]), one, |_| true).map(shown), Some((2, 6, vec![2])));
        assert_eq!(leave(&partition(1, &[1]), one, |_| true), None);
        assert_eq!(leave(&partition(2, &[2]), one, |_| true), None);
    }
}
