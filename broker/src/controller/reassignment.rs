//! How a partition moves to other brokers (KIP-455): first its replicas are the new and the old ones together, then,
//! when all new ones are in sync, the new ones alone. Everything stands in the topic's node, so that any controller
//! goes on with it, and it can be given up at any time. Pure. Called by `controller`.

use loggos_client::registry::Assignment;
use loggos_protocol::ids::BrokerId;

use super::election::{self, Elected, NotElected};
use crate::metadata::PartitionView;

/// A step of a reassignment: where the replicas are, and the state that goes with it, if that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where they are.
    pub assignment: Assignment,
    /// The state.
    pub state: Option<Elected>,
}

/// The replicas from before the reassignment under way.
fn original(partition: &PartitionView) -> Vec<BrokerId> {
    partition.replicas.iter().copied().filter(|replica| !partition.adding.contains(replica)).collect()
}

/// Begins to move a partition to `target`, or to another target than that of the reassignment under way.
///
/// # Errors
/// When the replicas in sync are all among those that an earlier reassignment added and this one doesn't want.
pub fn begin(
    partition: &PartitionView,
    target: &[BrokerId],
    is_alive: impl Fn(BrokerId) -> bool,
) -> Result<Step, NotElected> {
    let before = original(partition);
    let adding: Vec<BrokerId> = target.iter().copied().filter(|broker| !before.contains(broker)).collect();
    let removing: Vec<BrokerId> = before.iter().copied().filter(|broker| !target.contains(broker)).collect();
    let replicas: Vec<BrokerId> = target.iter().chain(&removing).copied().collect();
    let state = election::keep_only(partition, &replicas, is_alive)?;
    Ok(Step { assignment: Assignment { replicas, adding, removing }, state })
}

/// Ends a reassignment, when all that it leads to are in sync.
pub fn complete(partition: &PartitionView, is_alive: impl Fn(BrokerId) -> bool) -> Option<Step> {
    let target = partition.target();
    let is_ready = !target.is_empty() && target.iter().all(|broker| partition.isr.contains(broker));
    // Without a live leader in the end it would be a loss, and not a move.
    let may_lead = target.iter().any(|broker| is_alive(*broker));
    if !partition.is_reassigning() || !is_ready || !may_lead {
        return None;
    }
    let state = election::keep_only(partition, &target, is_alive).ok()?;
    Some(Step { assignment: Assignment { replicas: target, ..Assignment::default() }, state })
}

/// Gives a reassignment up: the replicas are those from before.
///
/// # Errors
/// When none of them is in sync.
pub fn cancel(partition: &PartitionView, is_alive: impl Fn(BrokerId) -> bool) -> Result<Step, NotElected> {
    if !partition.is_reassigning() {
        return Err(NotElected::NotNeeded);
    }
    let replicas = original(partition);
    let state = election::keep_only(partition, &replicas, is_alive)?;
    Ok(Step { assignment: Assignment { replicas, ..Assignment::default() }, state })
}

#[cfg(test)]
mod tests {
    use super::*;
    use loggos_protocol::ids::LeaderEpoch;
    use proptest::prelude::*;

    fn ids(raw: &[i32]) -> Vec<BrokerId> {
        raw.iter().copied().map(BrokerId::new).collect()
    }

    fn partition(replicas: &[i32], leader: i32, isr: &[i32]) -> PartitionView {
        PartitionView {
            replicas: ids(replicas),
            leader: BrokerId::new(leader),
            leader_epoch: LeaderEpoch::new(5),
            isr: ids(isr),
            state_version: Some(3),
            ..PartitionView::default()
        }
    }

    fn apply(partition: &mut PartitionView, step: Step) {
        partition.replicas = step.assignment.replicas;
        partition.adding = step.assignment.adding;
        partition.removing = step.assignment.removing;
        if let Some(state) = step.state {
            (partition.leader, partition.leader_epoch, partition.isr) =
                (state.leader, state.leader_epoch, state.isr);
        }
    }

    #[test]
    fn a_partition_moves_in_two_steps() {
        let mut moving = partition(&[1, 2, 3], 1, &[1, 2, 3]);
        let step = begin(&moving, &ids(&[3, 4, 5]), |_| true).expect("in sync");
        assert_eq!(step.state, None);
        apply(&mut moving, step);
        assert_eq!(moving.replicas, ids(&[3, 4, 5, 1, 2]));
        assert_eq!((moving.adding.clone(), moving.removing.clone()), (ids(&[4, 5]), ids(&[1, 2])));
        assert_eq!(complete(&moving, |_| true), None);
        moving.isr = ids(&[3, 4, 5, 1]);
        let step = complete(&moving, |_| true).expect("all new ones are in sync");
        apply(&mut moving, step);
        assert_eq!((moving.replicas.clone(), moving.leader.raw()), (ids(&[3, 4, 5]), 3));
        assert_eq!((moving.isr.clone(), moving.leader_epoch.raw()), (ids(&[3, 4, 5]), 6));
        assert!(!moving.is_reassigning());
    }

    #[test]
    fn a_move_that_is_given_up_leaves_what_was_there() {
        let mut moving = partition(&[1, 2], 1, &[1, 2]);
        let step = begin(&moving, &ids(&[3, 4]), |_| true).expect("in sync");
        apply(&mut moving, step);
        moving.isr = ids(&[1, 2, 3]);
        let step = cancel(&moving, |_| true).expect("in sync");
        apply(&mut moving, step);
        assert_eq!((moving.replicas.clone(), moving.isr.clone()), (ids(&[1, 2]), ids(&[1, 2])));
        assert_eq!(cancel(&moving, |_| true), Err(NotElected::NotNeeded));
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_a_leader_in_sync_is_left_and_the_last_target_is_reached(
            targets in proptest::collection::vec(proptest::sample::subsequence(vec![1, 2, 3, 4, 5, 6], 1..4), 1..5),
            synced in proptest::collection::vec(any::<bool>(), 32),
        ) {
            let mut moving = partition(&[1, 2, 3], 1, &[1, 2, 3]);
            let mut synced = synced.into_iter().cycle();
            for target in &targets {
                let before = original(&moving);
                let Ok(step) = begin(&moving, &ids(target), |_| true) else { continue };
                apply(&mut moving, step);
                prop_assert_eq!(original(&moving).len(), before.len(), "the way back stays open");
                prop_assert!(moving.isr.contains(&moving.leader));
                for broker in moving.replicas.clone() {
                    if !moving.isr.contains(&broker) && synced.next() == Some(true) {
                        moving.isr.push(broker);
                    }
                }
            }
            moving.isr = moving.replicas.clone();
            let wanted = moving.target();
            if let Some(step) = complete(&moving, |_| true) {
                apply(&mut moving, step);
            }
            prop_assert_eq!(&moving.replicas, &wanted);
            prop_assert!(moving.isr.contains(&moving.leader) && !moving.is_reassigning());
        }
    }
}
