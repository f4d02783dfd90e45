//! Which partitions should be led by their preferred replica again: after a restart a broker leads nothing, and the
//! others do its work (Kafka's `auto.leader.rebalance.enable`). Pure. Called by `controller`.

use std::collections::BTreeMap;

use loggos_protocol::ids::{BrokerId, PartitionId, TopicName};

use super::election::{self, Elected};
use crate::metadata::View;

/// An election of a partition's preferred replica.
type Due = (TopicName, PartitionId, Elected);

/// The elections that are due: for each broker of whose preferred partitions more than `percentage` of a hundred are
/// led by others, those that it can lead.
pub fn due(view: &View, percentage: i64) -> Vec<Due> {
    let mut preferred: BTreeMap<BrokerId, (i64, Vec<Due>)> = BTreeMap::new();
    let is_alive = |broker: BrokerId| view.brokers.contains_key(&broker);
    let topics = view.topics.values().filter(|topic| !view.deletions.contains(&topic.name));
    for (topic, id, partition) in
        topics.flat_map(|topic| topic.partitions.iter().map(move |(id, partition)| (topic, id, partition)))
    {
        let Some(first) = partition.replicas.first() else { continue };
        let (count, able) = preferred.entry(*first).or_default();
        *count += 1;
        // One that moves anyway gets its leader at the end of that.
        if let Ok(elected) = election::prefer(partition, is_alive)
            && !partition.is_reassigning()
        {
            able.push((topic.name.clone(), *id, elected));
        }
    }
    preferred
        .into_values()
        .filter(|(count, able)| able.len() as i64 * 100 > count * percentage)
        .flat_map(|(_, able)| able)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use loggos_protocol::ids::{BrokerEpoch, LeaderEpoch, TopicId};

    use super::*;
    use crate::metadata::{BrokerView, PartitionView, TopicView};

    #[test]
    fn only_a_broker_with_too_much_of_its_work_elsewhere_gets_it_back() {
        let mut view = View::default();
        for id in [1, 2] {
            let broker = BrokerView {
                host: String::new(),
                port: 1,
                replication: String::new(),
                rack: None,
                epoch: BrokerEpoch::new(1),
                lives: 1,
            };
            view.brokers.insert(BrokerId::new(id), broker);
        }
        let mut topic = TopicView {
            name: TopicName::new("t"),
            id: TopicId::NONE,
            configs: BTreeMap::new(),
            partitions: BTreeMap::new(),
            version: 0,
        };
        for number in 0..10 {
            let partition = PartitionView {
                replicas: [1, 2].map(BrokerId::new).to_vec(),
                leader: BrokerId::new(if number < 2 { 2 } else { 1 }),
                leader_epoch: LeaderEpoch::new(3),
                isr: [1, 2].map(BrokerId::new).to_vec(),
                state_version: Some(1),
                ..PartitionView::default()
            };
            topic.partitions.insert(PartitionId::new(number), partition);
        }
        view.topics.insert(topic.name.clone(), Arc::new(topic));
        assert!(due(&view, 20).is_empty());
        let found = due(&view, 10);
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|(_, _, elected)| elected.leader.raw() == 1));
        view.brokers.remove(&BrokerId::new(1));
        assert!(due(&view, 10).is_empty(), "the dead get nothing");
    }
}
