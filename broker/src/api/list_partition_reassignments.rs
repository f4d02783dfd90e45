//! ListPartitionReassignments (KIP-455): the partitions that are moving.

use loggos_protocol::ids::{BrokerId, PartitionId, TopicName};
use loggos_protocol::kafka::messages::list_partition_reassignments_response::{
    OngoingPartitionReassignment, OngoingTopicReassignment,
};
use loggos_protocol::kafka::messages::{
    self, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};

use super::{Context, names};

pub(super) fn handle(
    context: &Context,
    request: ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    let wanted = |name: &TopicName, id: PartitionId| match &request.topics {
        None => true,
        Some(topics) => topics
            .iter()
            .any(|topic| names::topic(&topic.name) == *name && topic.partition_indexes.contains(&id.raw())),
    };
    let ids = |brokers: &[BrokerId]| -> Vec<messages::BrokerId> {
        brokers.iter().map(|broker| names::broker(*broker)).collect()
    };
    let view = context.metadata.view();
    let topics = view.topics.values().filter_map(|topic| {
        let moving = topic
            .partitions
            .iter()
            .filter(|(id, partition)| partition.is_reassigning() && wanted(&topic.name, **id));
        let partitions: Vec<_> = moving
            .map(|(id, partition)| {
                OngoingPartitionReassignment::default()
                    .with_partition_index(id.raw())
                    .with_replicas(ids(&partition.replicas))
                    .with_adding_replicas(ids(&partition.adding))
                    .with_removing_replicas(ids(&partition.removing))
            })
            .collect();
        (!partitions.is_empty()).then(|| {
            OngoingTopicReassignment::default()
                .with_name(names::wire_topic(&topic.name))
                .with_partitions(partitions)
        })
    });
    ListPartitionReassignmentsResponse::default().with_error_message(None).with_topics(topics.collect())
}
