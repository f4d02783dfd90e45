//! Who reads what, when the broker decides (KIP-848): `uniform` shares all partitions evenly and moves as few as it
//! can; `range` gives each member a run of each topic's partitions, the same run of each topic. Pure; called by
//! `consumer_state`.

use std::collections::{BTreeMap, BTreeSet};

use loggos_protocol::ids::{MemberId, PartitionId, TopicId, TopicName};

/// A partition of a topic's identity.
pub type Spot = (TopicId, PartitionId);

/// Partitions that somebody has or is to have.
pub type Held = BTreeSet<Spot>;

/// Rounds of moves towards balance where members read different topics; each makes some member's share smaller.
const BALANCE_ROUNDS: usize = 64;

/// The topics that there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topics {
    by_name: BTreeMap<TopicName, (TopicId, i32)>,
    names: BTreeMap<TopicId, TopicName>,
}

impl Topics {
    /// Topics with their identities and counts of partitions.
    pub fn new(topics: impl Iterator<Item = (TopicName, TopicId, i32)>) -> Self {
        let mut found = Self::default();
        for (name, id, partitions) in topics {
            found.names.insert(id, name.clone());
            found.by_name.insert(name, (id, partitions));
        }
        found
    }

    /// A topic's identity.
    pub fn id(&self, name: &TopicName) -> Option<TopicId> {
        self.by_name.get(name).map(|(id, _)| *id)
    }

    /// A topic's name.
    pub fn name(&self, id: TopicId) -> Option<&TopicName> {
        self.names.get(&id)
    }

    /// How many partitions a topic has.
    pub fn partitions(&self, id: TopicId) -> i32 {
        self.name(id).and_then(|name| self.by_name.get(name)).map_or(0, |(_, count)| *count)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = (&TopicName, TopicId)> {
        self.by_name.iter().map(|(name, (id, _))| (name, *id))
    }
}

/// The assignors that Kafka has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Assignor {
    /// Even, and sticky.
    #[default]
    Uniform,
    /// Runs of each topic.
    Range,
}

impl Assignor {
    /// The assignor of that name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "uniform" => Some(Self::Uniform),
            "range" => Some(Self::Range),
            _ => None,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Range => "range",
        }
    }

    /// Shares the partitions out.
    pub fn assign(self, members: &[Subscriber], topics: &Topics) -> BTreeMap<MemberId, Held> {
        match self {
            Self::Uniform => uniform(members, topics),
            Self::Range => range(members, topics),
        }
    }
}

/// A member, as an assignor sees it.
#[derive(Clone, Debug)]
pub struct Subscriber {
    /// Its id.
    pub id: MemberId,
    /// Its static name: who has one keeps its place among the others across lives.
    pub instance: Option<String>,
    /// The topics that it reads.
    pub topics: BTreeSet<TopicId>,
    /// What it was to have so far.
    pub held: Held,
}

fn all_of(topic: TopicId, topics: &Topics) -> impl Iterator<Item = Spot> {
    (0..topics.partitions(topic)).map(move |partition| (topic, PartitionId::new(partition)))
}

fn range(members: &[Subscriber], topics: &Topics) -> BTreeMap<MemberId, Held> {
    let mut order: Vec<&Subscriber> = members.iter().collect();
    order.sort_by_key(|member| (member.instance.is_none(), member.instance.clone(), member.id.clone()));
    let mut given: BTreeMap<MemberId, Held> =
        members.iter().map(|member| (member.id.clone(), Held::new())).collect();
    let read: BTreeSet<TopicId> = members.iter().flat_map(|member| member.topics.iter().copied()).collect();
    for topic in read {
        let readers: Vec<&&Subscriber> =
            order.iter().filter(|member| member.topics.contains(&topic)).collect();
        let spots: Vec<Spot> = all_of(topic, topics).collect();
        let (least, more) = (spots.len() / readers.len(), spots.len() % readers.len());
        let mut rest = spots.into_iter();
        for (at, reader) in readers.iter().enumerate() {
            let share = least + usize::from(at < more);
            given.entry(reader.id.clone()).or_default().extend(rest.by_ref().take(share));
        }
    }
    given
}

fn uniform(members: &[Subscriber], topics: &Topics) -> BTreeMap<MemberId, Held> {
    let read: BTreeSet<TopicId> = members.iter().flat_map(|member| member.topics.iter().copied()).collect();
    let mut free: Held = read.iter().flat_map(|topic| all_of(*topic, topics)).collect();
    // Everybody keeps what it may.
    let mut given: BTreeMap<MemberId, Held> = BTreeMap::new();
    for member in members {
        let mine = member.held.iter().filter(|spot| member.topics.contains(&spot.0) && free.contains(spot));
        let mine: Held = mine.copied().collect();
        free.retain(|spot| !mine.contains(spot));
        given.insert(member.id.clone(), mine);
    }
    if members.iter().all(|member| member.topics == read) {
        even(members.len(), &mut given, free);
    } else {
        fair(members, &mut given, free);
    }
    given
}

/// Everybody reads the same: shares differ by one at most.
fn even(count: usize, given: &mut BTreeMap<MemberId, Held>, mut free: Held) {
    if count == 0 {
        return;
    }
    let total = free.len() + given.values().map(BTreeSet::len).sum::<usize>();
    let (least, more) = (total / count, total % count);
    // Who has most already has the larger shares, so that less moves.
    let mut order: Vec<MemberId> = given.keys().cloned().collect();
    order.sort_by_key(|id| std::cmp::Reverse(given[id].len()));
    let shares: Vec<(MemberId, usize)> =
        order.into_iter().enumerate().map(|(at, id)| (id, least + usize::from(at < more))).collect();
    for (id, share) in &shares {
        let held = given.get_mut(id).expect("every member has an entry");
        while held.len() > *share {
            free.extend(held.pop_last());
        }
    }
    for (id, share) in &shares {
        let held = given.get_mut(id).expect("every member has an entry");
        while held.len() < *share {
            held.extend(free.pop_first());
        }
    }
}

/// Members read different topics: each partition goes to its reader with the least, and moves while that evens out.
fn fair(members: &[Subscriber], given: &mut BTreeMap<MemberId, Held>, free: Held) {
    let readers = |topic: TopicId| members.iter().filter(move |member| member.topics.contains(&topic));
    let least = |topic: TopicId, given: &BTreeMap<MemberId, Held>| {
        readers(topic).map(|member| &member.id).min_by_key(|id| given[*id].len()).cloned()
    };
    let mut order: Vec<Spot> = free.into_iter().collect();
    order.sort_by_key(|spot| (readers(spot.0).count(), *spot));
    for spot in order {
        if let Some(id) = least(spot.0, given) {
            given.entry(id).or_default().insert(spot);
        }
    }
    for _ in 0..BALANCE_ROUNDS {
        let mut moved = false;
        let places: Vec<(MemberId, Spot)> =
            given.iter().flat_map(|(id, held)| held.iter().map(|spot| (id.clone(), *spot))).collect();
        for (from, spot) in places {
            let Some(to) = least(spot.0, given) else { continue };
            if given[&to].len() + 1 < given[&from].len() {
                given.entry(from).or_default().remove(&spot);
                given.entry(to).or_default().insert(spot);
                moved = true;
            }
        }
        if !moved {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic(n: u8) -> TopicId {
        TopicId::from_bytes([n; 16])
    }

    fn topics(counts: &[i32]) -> Topics {
        Topics::new(counts.iter().enumerate().map(|(n, count)| {
            let n = u8::try_from(n).expect("few");
            (TopicName::new(format!("t{n}")), topic(n), *count)
        }))
    }

    fn reader(n: usize, read: &[u8], held: Held) -> Subscriber {
        let topics = read.iter().map(|n| topic(*n)).collect();
        Subscriber { id: MemberId::new(format!("m{n:03}")), instance: None, topics, held }
    }

    fn whole(given: &BTreeMap<MemberId, Held>, members: &[Subscriber], topics: &Topics) {
        let mut seen = Held::new();
        for member in members {
            for spot in &given[&member.id] {
                assert!(member.topics.contains(&spot.0), "{} reads what it didn't ask for", member.id);
                assert!(seen.insert(*spot), "{spot:?} is given twice");
            }
        }
        let read: BTreeSet<TopicId> = members.iter().flat_map(|member| member.topics.clone()).collect();
        let all: Held = read.iter().flat_map(|id| all_of(*id, topics)).collect();
        assert_eq!(seen, all, "every partition has a reader");
    }

    #[test]
    fn range_gives_runs_and_the_first_members_one_more() {
        let topics = topics(&[7, 7]);
        let members: Vec<_> = (0..3).map(|n| reader(n, &[0, 1], Held::new())).collect();
        let given = Assignor::Range.assign(&members, &topics);
        whole(&given, &members, &topics);
        let of = |n: usize| given[&members[n].id].iter().map(|spot| spot.1.raw()).collect::<Vec<_>>();
        assert_eq!((of(0), of(1), of(2)), (vec![0, 1, 2, 0, 1, 2], vec![3, 4, 3, 4], vec![5, 6, 5, 6]));
    }

    #[test]
    fn a_hundred_partitions_over_seven_differ_by_one_at_most() {
        let topics = topics(&[100]);
        let members: Vec<_> = (0..7).map(|n| reader(n, &[0], Held::new())).collect();
        let sizes: BTreeSet<usize> =
            Assignor::Uniform.assign(&members, &topics).values().map(BTreeSet::len).collect();
        assert_eq!(sizes, BTreeSet::from([14, 15]));
    }

    proptest! {
        #[test]
        fn every_partition_has_exactly_one_reader_who_asked_for_it(
            counts in prop::collection::vec(0..12i32, 1..4),
            wishes in prop::collection::vec(prop::collection::vec(any::<bool>(), 3), 1..7),
            range in any::<bool>(),
        ) {
            let topics = topics(&counts);
            let assignor = if range { Assignor::Range } else { Assignor::Uniform };
            let read = |wish: &Vec<bool>| -> Vec<u8> {
                (0..u8::try_from(counts.len()).expect("few")).filter(|n| wish[usize::from(*n)]).collect()
            };
            let members: Vec<_> =
                wishes.iter().enumerate().map(|(n, wish)| reader(n, &read(wish), Held::new())).collect();
            let given = assignor.assign(&members, &topics);
            whole(&given, &members, &topics);
            // Asked again, nothing moves.
            let again: Vec<_> = members
                .iter()
                .map(|member| Subscriber { held: given[&member.id].clone(), ..member.clone() })
                .collect();
            prop_assert_eq!(assignor.assign(&again, &topics), given);
        }

        #[test]
        fn uniform_moves_no_more_than_balance_needs(count in 1..40i32, before in 1..9usize, after in 1..9usize) {
            let topics = topics(&[count]);
            let old: Vec<_> = (0..before).map(|n| reader(n, &[0], Held::new())).collect();
            let given = Assignor::Uniform.assign(&old, &topics);
            let held = |n: usize| given.get(&MemberId::new(format!("m{n:03}"))).cloned().unwrap_or_default();
            let new: Vec<_> = (0..after).map(|n| reader(n, &[0], held(n))).collect();
            let next = Assignor::Uniform.assign(&new, &topics);
            whole(&next, &new, &topics);
            let sizes: Vec<usize> = next.values().map(BTreeSet::len).collect();
            let (least, most) = (sizes.iter().min().expect("some"), sizes.iter().max().expect("some"));
            prop_assert!(most - least <= 1);
            for member in &new {
                // Who is there before and after gives up only what is above the new share.
                let kept = next[&member.id].intersection(&member.held).count();
                prop_assert!(kept == member.held.len().min(next[&member.id].len()));
            }
        }
    }
}
