//! Which broker runs a group: derived from the live brokers and the group's id alone, so that nothing is stored and
//! every broker answers the same (decision D9). Rendezvous hashing (Thaler and Ravishankar 1998): when a broker goes,
//! only its groups move, evenly to the others; when it comes back, only its own return. Pure; called by `table` and
//! by FindCoordinator.

use loggos_protocol::ids::BrokerId;

/// The broker with the highest weight for this group; `None` when no broker lives.
pub fn runner(brokers: impl Iterator<Item = BrokerId>, group: &str) -> Option<BrokerId> {
    let seed = fnv(group);
    brokers.max_by_key(|id| (mix(seed ^ mix(u64::from(id.raw().cast_unsigned()) + 1)), *id))
}

/// FNV-1a: the same on every machine and in every release.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finalizer of SplitMix64: spreads what FNV leaves close together.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn ids(range: std::ops::Range<i32>) -> impl Iterator<Item = BrokerId> + Clone {
        range.map(BrokerId::new)
    }

    #[test]
    fn groups_are_spread_evenly() {
        let mut counts: BTreeMap<BrokerId, usize> = BTreeMap::new();
        for n in 0..10_000 {
            *counts.entry(runner(ids(1001..1006), &format!("group-{n}")).expect("live")).or_default() += 1;
        }
        assert_eq!(counts.len(), 5);
        assert!(counts.values().all(|count| (1_800..2_200).contains(count)), "{counts:?}");
    }

    #[test]
    fn only_the_lost_brokers_groups_move_and_they_spread() {
        let lost = BrokerId::new(3);
        let mut heirs: BTreeMap<BrokerId, usize> = BTreeMap::new();
        for n in 0..3_000 {
            let group = format!("g{n}");
            let before = runner(ids(1..6), &group).expect("live");
            let after = runner(ids(1..6).filter(|id| *id != lost), &group).expect("live");
            if before == lost {
                *heirs.entry(after).or_default() += 1;
            } else {
                assert_eq!(before, after, "{group} moved without need");
            }
        }
        assert_eq!(heirs.len(), 4, "{heirs:?}");
    }

    #[test]
    fn the_answer_is_the_same_in_every_release_and_in_any_order() {
        let names: Vec<i32> = ["orders", "a", "ü", ""]
            .iter()
            .map(|group| runner(ids(1001..1004), group).expect("live").raw())
            .collect();
        assert_eq!(names, GOLDEN);
        for group in ["orders", "a"] {
            let back: Vec<BrokerId> = ids(1001..1004).collect();
            assert_eq!(runner(back.into_iter().rev(), group), runner(ids(1001..1004), group));
        }
        assert_eq!(runner(ids(0..0), "orders"), None);
    }

    const GOLDEN: [i32; 4] = [1002, 1001, 1001, 1002];
}
