//! OffsetDelete: a group forgets where it was, in topics that nobody of it reads (KIP-496).

use std::sync::Arc;

use loggos_protocol::ids::{GroupId, PartitionId};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use loggos_protocol::kafka::messages::{OffsetDeleteRequest, OffsetDeleteResponse};

use super::{Context, names};

pub(super) async fn handle(context: Arc<Context>, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let group = GroupId::new(request.group_id.0.as_str());
    let view = context.metadata.view();
    let asked = request.topics.iter().flat_map(|topic| {
        let name = names::topic(&topic.name);
        topic.partitions.iter().map(move |asked| (name.clone(), PartitionId::new(asked.partition_index)))
    });
    let asked: Vec<_> = asked.collect();
    let outcomes = match context.groups.delete_offsets(&group, &asked).await {
        Ok(outcomes) => outcomes,
        Err(code) => return OffsetDeleteResponse::default().with_error_code(code.raw()),
    };
    let mut outcomes = outcomes.into_iter();
    let topics = request.topics.into_iter().map(|topic| {
        let known = view.topics.get(&names::topic(&topic.name));
        let partitions = topic.partitions.into_iter().map(|asked| {
            let outcome = outcomes.next().unwrap_or(Ok(()));
            let id = PartitionId::new(asked.partition_index);
            let there = known.is_some_and(|topic| topic.partitions.contains_key(&id));
            let code = match outcome {
                Ok(()) if !there => ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
                Ok(()) => ErrorCode::NONE,
                Err(code) => code,
            };
            OffsetDeleteResponsePartition::default()
                .with_partition_index(id.raw())
                .with_error_code(code.raw())
        });
        let partitions = partitions.collect();
        OffsetDeleteResponseTopic::default().with_name(topic.name).with_partitions(partitions)
    });
    OffsetDeleteResponse::default().with_topics(topics.collect())
}
