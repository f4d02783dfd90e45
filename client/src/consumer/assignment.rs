//! Which consumer thread reads which partition (P): Algorithm 1 of "Kafka: a Distributed Messaging System for Log
//! Processing" (Kreps, Narkhede, Rao 2011, §3.2), with the shares of a topic differing by at most one.
//!
//! Every member computes this for itself from what the registries say; members that read the same registries come to
//! the same result, and so need no master. Called by `rebalance`.

use std::collections::{BTreeMap, BTreeSet};

use loggos_protocol::ids::{MemberId, PartitionId, TopicName, TopicPartition};

/// A stream of a consumer, the unit that partitions are given to: the consumer's id and the stream's number. Ordered
/// as its text, which is what stands in the registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ThreadId(String);

impl ThreadId {
    /// The thread of `consumer` with this number.
    pub fn new(consumer: &MemberId, number: usize) -> Self {
        Self(format!("{consumer}-{number}"))
    }

    /// As it stands in the owners' registry.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a consumer has said that it reads: topics, and with how many streams each.
pub type Subscription = BTreeMap<TopicName, usize>;

/// What the registries say at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registries {
    /// The group's consumers.
    pub consumers: BTreeMap<MemberId, Subscription>,
    /// The partitions of each topic that anybody reads.
    pub topics: BTreeMap<TopicName, BTreeSet<PartitionId>>,
}

/// The threads of a group that read `topic`, in order, each with its consumer and number.
fn threads<'a>(
    registries: &'a Registries,
    topic: &'a TopicName,
) -> BTreeMap<ThreadId, (&'a MemberId, usize)> {
    let of_consumer = |(consumer, subscription): (&'a MemberId, &Subscription)| {
        let count = subscription.get(topic).copied().unwrap_or(0);
        (0..count).map(move |number| (ThreadId::new(consumer, number), (consumer, number)))
    };
    registries.consumers.iter().flat_map(of_consumer).collect()
}

/// The partitions of `consumer`, each with the number of the stream that reads it.
///
/// Partitions and threads are sorted; each thread takes the next `N / T` partitions, and the first `N mod T` threads
/// take one more.
pub fn assign(registries: &Registries, consumer: &MemberId) -> BTreeMap<TopicPartition, usize> {
    let mut mine = BTreeMap::new();
    let Some(subscription) = registries.consumers.get(consumer) else { return mine };
    for topic in subscription.keys() {
        let Some(partitions) = registries.topics.get(topic) else { continue };
        let threads = threads(registries, topic);
        let (share, more) =
            (partitions.len() / threads.len().max(1), partitions.len() % threads.len().max(1));
        let mut left = partitions.iter();
        for (index, (owner, number)) in threads.into_values().enumerate() {
            let count = share + usize::from(index < more);
            for partition in left.by_ref().take(count) {
                if owner == consumer {
                    mine.insert(TopicPartition::new(topic.clone(), *partition), number);
                }
            }
        }
    }
    mine
}

/// Topics that more threads of the group read than there are partitions, with both numbers: some streams stay empty.
pub fn crowded(registries: &Registries, consumer: &MemberId) -> Vec<(TopicName, usize, usize)> {
    let topics = registries.consumers.get(consumer).into_iter().flat_map(Subscription::keys);
    let numbers = topics.filter_map(|topic| {
        let partitions = registries.topics.get(topic)?.len();
        let threads = threads(registries, topic).len();
        (threads > partitions).then(|| (topic.clone(), threads, partitions))
    });
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn group(streams: &[usize], partitions: i32) -> Registries {
        let topic = TopicName::from("t");
        let consumer = |(number, &streams): (usize, &usize)| {
            (MemberId::new(format!("c{number}")), Subscription::from([(topic.clone(), streams)]))
        };
        Registries {
            consumers: streams.iter().enumerate().map(consumer).collect(),
            topics: [(topic.clone(), (0..partitions).map(PartitionId::new).collect())].into(),
        }
    }

    #[test]
    fn a_hundred_partitions_over_seven_members_differ_by_at_most_one() {
        let registries = group(&[1; 7], 100);
        let counts: Vec<usize> =
            registries.consumers.keys().map(|consumer| assign(&registries, consumer).len()).collect();
        assert_eq!(counts, [15, 15, 14, 14, 14, 14, 14]);
        assert_eq!(crowded(&registries, &MemberId::from("c0")), []);
    }

    #[test]
    fn more_members_than_partitions_leaves_some_idle_and_says_so() {
        let registries = group(&[1, 1, 1], 2);
        assert!(assign(&registries, &MemberId::from("c2")).is_empty());
        assert_eq!(crowded(&registries, &MemberId::from("c2")), [(TopicName::from("t"), 3, 2)]);
    }

    #[test]
    fn who_is_not_registered_or_reads_another_topic_gets_nothing() {
        let mut registries = group(&[1], 4);
        assert!(assign(&registries, &MemberId::from("stranger")).is_empty());
        let other = Subscription::from([(TopicName::from("other"), 1)]);
        registries.consumers.insert(MemberId::from("a"), other);
        assert!(assign(&registries, &MemberId::from("a")).is_empty());
        assert_eq!(assign(&registries, &MemberId::from("c0")).len(), 4);
    }

    proptest! {
        #[test]
        fn every_partition_has_exactly_one_owner(
            streams in prop::collection::vec(1_usize..4, 1..12),
            partitions in 0_i32..150,
        ) {
            let registries = group(&streams, partitions);
            let mut owners: BTreeMap<TopicPartition, Vec<(MemberId, usize)>> = BTreeMap::new();
            let mut loads: BTreeMap<(MemberId, usize), usize> = BTreeMap::new();
            for (consumer, subscription) in &registries.consumers {
                for number in 0..subscription[&TopicName::from("t")] {
                    loads.insert((consumer.clone(), number), 0);
                }
                for (partition, number) in assign(&registries, consumer) {
                    owners.entry(partition).or_default().push((consumer.clone(), number));
                    *loads.get_mut(&(consumer.clone(), number)).expect("a stream that was asked for") += 1;
                }
            }
            prop_assert_eq!(owners.len(), partitions as usize);
            prop_assert!(owners.values().all(|owners| owners.len() == 1));
            let (least, most) = (loads.values().min().expect("streams"), loads.values().max().expect("streams"));
            prop_assert!(most - least <= 1, "shares differ by more than one: {:?}", loads);
        }
    }
}
