//! OffsetCommit: where a group goes on reading. The answer comes when the registry has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use loggos_protocol::ids::{Generation, GroupId, LeaderEpoch, MemberId, Offset, PartitionId};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::offset_commit_request::OffsetCommitRequestPartition;
use loggos_protocol::kafka::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use loggos_protocol::kafka::messages::{OffsetCommitRequest, OffsetCommitResponse};
use loggos_protocol::registry::group::OffsetRecord;

use super::{Context, names};
use crate::group::Offsets;
use crate::group::state::Caller;
use crate::group::table::Groups;
use crate::metadata::TopicView;

pub(super) async fn handle(context: Arc<Context>, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let group = GroupId::new(request.group_id.0.as_str());
    let caller = Caller {
        member: MemberId::new(request.member_id.as_str()),
        instance: request.group_instance_id.as_ref().map(ToString::to_string),
        generation: Generation::new(request.generation_id_or_member_epoch),
    };
    let view = context.metadata.view();
    let longest = usize::try_from(context.table.configs().number("offset.metadata.max.bytes")).unwrap_or(0);
    let mut offsets = Offsets::new();
    let mut refused: BTreeMap<(usize, i32), ErrorCode> = BTreeMap::new();
    for (at, topic) in request.topics.iter().enumerate() {
        let found = view.topics.get(&names::topic(&topic.name));
        for partition in &topic.partitions {
            match checked(found.map(AsRef::as_ref), partition, longest) {
                Ok(((name, id), record)) => {
                    offsets.insert((name, id), record);
                }
                Err(code) => {
                    refused.insert((at, partition.partition_index), code);
                }
            }
        }
    }
    let done = context.groups.commit(&group, &caller, offsets).await;
    let topics = request.topics.iter().enumerate().map(|(at, topic)| {
        let partitions = topic.partitions.iter().map(|partition| {
            let own = refused.get(&(at, partition.partition_index)).copied();
            let code = own.unwrap_or(done.err().unwrap_or(ErrorCode::NONE));
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code.raw())
        });
        OffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

type Checked = ((loggos_protocol::ids::TopicName, PartitionId), OffsetRecord);

/// An offset of a partition that there is, with a note that isn't too long.
fn checked(
    topic: Option<&TopicView>,
    asked: &OffsetCommitRequestPartition,
    longest: usize,
) -> Result<Checked, ErrorCode> {
    let id = PartitionId::new(asked.partition_index);
    let topic = topic
        .filter(|topic| topic.partitions.contains_key(&id))
        .ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
    let note = asked.committed_metadata.as_ref().map(ToString::to_string).unwrap_or_default();
    if note.len() > longest {
        return Err(ErrorCode::OFFSET_METADATA_TOO_LARGE);
    }
    let at = (Offset::new(asked.committed_offset), LeaderEpoch::new(asked.committed_leader_epoch));
    Ok(((topic.name.clone(), id), OffsetRecord::new(topic.id, at, note, Groups::now())))
}
