//! Which brokers keep which partition. Pure.
//!
//! Kafka's way: round robin over the brokers from a start that moves, the followers at a shift that moves too, so
//! that a lost broker's work falls on all others; racks are interleaved first, and no rack gets a second replica
//! while another has none. Called by `controller`.

use std::collections::{BTreeMap, BTreeSet};

use loggos_protocol::ids::{BrokerId, PartitionId};

/// Places `count` partitions from number `first` on; `None` when there are fewer brokers than `factor`.
pub fn place(
    brokers: &BTreeMap<BrokerId, Option<String>>,
    first: i32,
    count: i32,
    factor: usize,
) -> Option<BTreeMap<PartitionId, Vec<BrokerId>>> {
    if factor == 0 || brokers.len() < factor {
        return None;
    }
    let order = interleaved(brokers);
    let mut placed = BTreeMap::new();
    for number in first..first + count {
        let start = usize::try_from(number).unwrap_or(0);
        // Once around, the followers sit one further.
        let shift = start / order.len();
        placed.insert(PartitionId::new(number), replicas(brokers, &order, (start, shift), factor));
    }
    Some(placed)
}

fn replicas(
    brokers: &BTreeMap<BrokerId, Option<String>>,
    order: &[BrokerId],
    (start, shift): (usize, usize),
    factor: usize,
) -> Vec<BrokerId> {
    let leader = order[start % order.len()];
    let mut chosen = vec![leader];
    let mut racks = BTreeSet::from([brokers.get(&leader).cloned().flatten()]);
    let others = order.len() - 1;
    let candidates: Vec<BrokerId> =
        (0..others).map(|step| order[(start + 1 + (shift + step) % others.max(1)) % order.len()]).collect();
    // First from racks that have no replica, then from any.
    for wants_new_rack in [true, false] {
        for candidate in &candidates {
            let rack = brokers.get(candidate).cloned().flatten();
            let is_new = rack.is_none() || !racks.contains(&rack);
            if chosen.len() < factor && !chosen.contains(candidate) && (is_new || !wants_new_rack) {
                chosen.push(*candidate);
                racks.insert(rack);
            }
        }
    }
    chosen
}

/// Brokers of different racks side by side.
fn interleaved(brokers: &BTreeMap<BrokerId, Option<String>>) -> Vec<BrokerId> {
    let mut racks: BTreeMap<&Option<String>, Vec<BrokerId>> = BTreeMap::new();
    for (id, rack) in brokers {
        racks.entry(rack).or_default().push(*id);
    }
    let longest = racks.values().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|at| racks.values().filter_map(move |ids| ids.get(at).copied())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn replicas_differ_leaders_are_spread_and_racks_are_used(
            racks in proptest::collection::vec(proptest::option::of(0..3u8), 1..9),
            count in 1..40i32,
            factor in 1..4usize,
        ) {
            let brokers: BTreeMap<BrokerId, Option<String>> = racks
                .iter()
                .enumerate()
                .map(|(id, rack)| (BrokerId::new(id as i32), rack.map(|rack| rack.to_string())))
                .collect();
            let Some(placed) = place(&brokers, 0, count, factor) else {
                prop_assert!(brokers.len() < factor);
                return Ok(());
            };
            let mut leads: BTreeMap<BrokerId, i32> = BTreeMap::new();
            for replicas in placed.values() {
                let distinct: BTreeSet<_> = replicas.iter().collect();
                prop_assert_eq!(distinct.len(), factor);
                *leads.entry(replicas[0]).or_default() += 1;
                let known: BTreeSet<_> = replicas.iter().filter_map(|id| brokers[id].clone()).collect();
                let all: BTreeSet<_> = brokers.values().flatten().cloned().collect();
                let nameless = replicas.iter().filter(|id| brokers[id].is_none()).count();
                prop_assert!(known.len() + nameless >= factor.min(all.len()));
            }
            let most = leads.values().max().copied().unwrap_or(0);
            prop_assert!(most <= count.div_euclid(brokers.len() as i32) + 1);
        }
    }
}
