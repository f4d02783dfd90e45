//! Majorities. Any two majorities of one membership share a server: the fact on which all of Paxos rests.

use std::collections::BTreeSet;

use super::ballot::ServerId;

/// How many of `voters` make a majority.
pub const fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// The votes of one membership on one question. Votes of others are not counted (I12).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tally {
    votes: BTreeSet<ServerId>,
}

impl Tally {
    /// No votes yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a vote; a second one of the same server changes nothing.
    pub fn add(&mut self, server: ServerId) {
        self.votes.insert(server);
    }

    /// Whether `server` has voted.
    pub fn has(&self, server: ServerId) -> bool {
        self.votes.contains(&server)
    }

    /// Whether a majority of `voters` has voted.
    pub fn is_majority_of(&self, voters: &BTreeSet<ServerId>) -> bool {
        !voters.is_empty() && self.votes.intersection(voters).count() >= majority(voters.len())
    }
}

/// The highest of the values that at least a majority of `voters` reach: each voter's own is given by `reached`.
/// Used for lease ends and for acknowledged rounds.
pub fn reached_by_majority<T: Ord + Copy>(
    voters: &BTreeSet<ServerId>,
    reached: impl Fn(ServerId) -> Option<T>,
) -> Option<T> {
    let mut values: Vec<T> = voters.iter().filter_map(|voter| reached(*voter)).collect();
    let needed = majority(voters.len());
    if voters.is_empty() || values.len() < needed {
        return None;
    }
    values.sort_unstable_by(|a, b| b.cmp(a));
    Some(values[needed - 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn servers(ids: &[u16]) -> BTreeSet<ServerId> {
        ids.iter().copied().map(ServerId::new).collect()
    }

    #[test]
    fn votes_of_strangers_do_not_count() {
        let voters = servers(&[1, 2, 3]);
        let mut tally = Tally::new();
        tally.add(ServerId::new(1));
        tally.add(ServerId::new(9));
        assert!(!tally.is_majority_of(&voters));
        tally.add(ServerId::new(2));
        assert!(tally.is_majority_of(&voters));
    }

    #[test]
    fn the_majority_value_is_the_one_that_enough_voters_reach() {
        let voters = servers(&[1, 2, 3]);
        let reached = |s: ServerId| Some(u64::from(s.raw()) * 10);
        assert_eq!(reached_by_majority(&voters, reached), Some(20));
        assert_eq!(reached_by_majority(&voters, |s| (s.raw() == 1).then_some(5)), None);
        assert_eq!(reached_by_majority(&servers(&[]), reached), None);
    }

    proptest! {
        #[test]
        fn any_two_majorities_share_a_server(n in 1usize..9, a in any::<u16>(), b in any::<u16>()) {
            let pick = |bits: u16| (0..n as u16).filter(|i| bits >> i & 1 == 1).collect::<BTreeSet<_>>();
            let (a, b) = (pick(a), pick(b));
            if a.len() >= majority(n) && b.len() >= majority(n) {
                prop_assert!(a.intersection(&b).next().is_some());
            }
        }
    }
}
