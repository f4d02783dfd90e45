//! OffsetCommit: where a group goes on reading. The answer comes when the registry has it.

use std::sync::Arc;

use loggos_protocol::ids::{
    Generation, GroupId, LeaderEpoch, MemberId, Offset, PartitionId, TopicId, TopicName,
};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use loggos_protocol::kafka::messages::{OffsetCommitRequest, OffsetCommitResponse};

use super::{Context, names};
use crate::group::state::Caller;
use crate::group::table::{Committed, Groups, Offsets};

/// The first version that names topics by their ids.
const TOPIC_IDS: i16 = 10;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: OffsetCommitRequest,
) -> OffsetCommitResponse {
    let group = GroupId::new(request.group_id.0.as_str());
    let caller = Caller {
        member: MemberId::new(request.member_id.as_str()),
        instance: request.group_instance_id.as_ref().map(ToString::to_string),
        generation: Generation::new(request.generation_id_or_member_epoch),
    };
    let view = context.metadata.view();
    let longest = usize::try_from(context.table.configs().number("offset.metadata.max.bytes")).unwrap_or(0);
    let mut offsets = Offsets::new();
    let mut refused: Vec<((usize, i32), ErrorCode)> = Vec::new();
    for (at, topic) in request.topics.iter().enumerate() {
        let found = if version >= TOPIC_IDS {
            view.topic_by_id(TopicId::new(topic.topic_id))
        } else {
            view.topics.get(&names::topic(&topic.name))
        };
        for partition in &topic.partitions {
            let id = PartitionId::new(partition.partition_index);
            let note = partition.committed_metadata.as_ref().map(ToString::to_string).unwrap_or_default();
            let code = match found {
                None if version >= TOPIC_IDS => ErrorCode::UNKNOWN_TOPIC_ID,
                Some(found) if found.partitions.contains_key(&id) && note.len() <= longest => {
                    let committed = Committed {
                        offset: Offset::new(partition.committed_offset),
                        leader_epoch: LeaderEpoch::new(partition.committed_leader_epoch),
                        metadata: note,
                        timestamp: Groups::now(),
                    };
                    offsets.insert((found.name.clone(), id), committed);
                    continue;
                }
                Some(found) if found.partitions.contains_key(&id) => ErrorCode::OFFSET_METADATA_TOO_LARGE,
                _ => ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
            };
            refused.push(((at, partition.partition_index), code));
        }
    }
    let done = context.groups.commit(&group, &caller, offsets).await;
    let topics = request.topics.iter().enumerate().map(|(at, topic)| {
        let partitions = topic.partitions.iter().map(|partition| {
            let own = refused.iter().find(|(place, _)| *place == (at, partition.partition_index));
            let code = own.map_or(done.err().unwrap_or(ErrorCode::NONE), |(_, code)| *code);
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code.raw())
        });
        let mut answer = OffsetCommitResponseTopic::default().with_partitions(partitions.collect());
        (answer.name, answer.topic_id) = (topic.name.clone(), topic.topic_id);
        answer
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

/// A topic that a request names.
pub(super) fn named(context: &Context, id: TopicId, name: TopicName, by_id: bool) -> Option<TopicName> {
    if !by_id {
        return Some(name);
    }
    context.metadata.view().topic_by_id(id).map(|topic| topic.name.clone())
}
