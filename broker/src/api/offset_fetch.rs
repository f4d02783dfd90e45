//! OffsetFetch: what groups have committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use loggos_protocol::ids::{Generation, GroupId, MemberId, PartitionId, TopicName};
use loggos_protocol::kafka::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use loggos_protocol::kafka::messages::{OffsetFetchRequest, OffsetFetchResponse};
use loggos_protocol::kafka::{ErrorCode, StrBytes};
use loggos_protocol::registry::group::OffsetRecord;

use super::{Context, names};
use crate::group::Offsets;

/// The first version that has an error of its own.
const ERRORS: i16 = 2;
/// The first version that tells leader epochs.
const EPOCHS: i16 = 5;
/// The first version that asks for many groups.
const MANY: i16 = 8;

/// Topics and partitions that are asked for.
type Asked = Vec<(TopicName, Vec<i32>)>;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    if version >= MANY {
        let mut groups = Vec::with_capacity(request.groups.len());
        for asked in request.groups {
            let topics = asked.topics.map(|topics| {
                let each = topics.into_iter();
                each.map(|topic| (names::topic(&topic.name), topic.partition_indexes)).collect()
            });
            let group = GroupId::new(asked.group_id.0.as_str());
            let caller = asked.member_id.filter(|_| asked.member_epoch >= 0);
            let caller = caller.map(|id| (MemberId::new(id.as_str()), Generation::new(asked.member_epoch)));
            let answer = OffsetFetchResponseGroup::default().with_group_id(asked.group_id);
            groups.push(match context.groups.committed(&group, caller).await {
                Ok(offsets) => answer.with_topics(of_many(&offsets, topics)),
                Err(code) => answer.with_error_code(code.raw()),
            });
        }
        return OffsetFetchResponse::default().with_groups(groups);
    }
    let group = GroupId::new(request.group_id.0.as_str());
    let found = context.groups.committed(&group, None).await;
    let topics = request.topics.map(|topics| {
        let each = topics.into_iter();
        each.map(|topic| (names::topic(&topic.name), topic.partition_indexes)).collect()
    });
    of_one(found, topics, version)
}

fn of_one(found: Result<Offsets, ErrorCode>, asked: Option<Asked>, version: i16) -> OffsetFetchResponse {
    let (offsets, code) = match found {
        Ok(offsets) => (offsets, ErrorCode::NONE),
        Err(code) => (Offsets::new(), code),
    };
    let topics = asked.unwrap_or_else(|| all(&offsets)).into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|id| {
            let (offset, epoch, note) = told(offsets.get(&(name.clone(), PartitionId::new(id))));
            OffsetFetchResponsePartition::default()
                .with_partition_index(id)
                .with_committed_offset(offset)
                .with_committed_leader_epoch(if version >= EPOCHS { epoch } else { -1 })
                .with_metadata(Some(note))
                .with_error_code(code.raw())
        });
        OffsetFetchResponseTopic::default()
            .with_name(names::wire_topic(&name))
            .with_partitions(partitions.collect())
    });
    let answer = OffsetFetchResponse::default().with_topics(topics.collect());
    if version >= ERRORS { answer.with_error_code(code.raw()) } else { answer }
}

fn of_many(offsets: &Offsets, asked: Option<Asked>) -> Vec<OffsetFetchResponseTopics> {
    let topics = asked.unwrap_or_else(|| all(offsets)).into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|id| {
            let (offset, epoch, note) = told(offsets.get(&(name.clone(), PartitionId::new(id))));
            OffsetFetchResponsePartitions::default()
                .with_partition_index(id)
                .with_committed_offset(offset)
                .with_committed_leader_epoch(epoch)
                .with_metadata(Some(note))
        });
        OffsetFetchResponseTopics::default()
            .with_name(names::wire_topic(&name))
            .with_partitions(partitions.collect())
    });
    topics.collect()
}

fn all(offsets: &Offsets) -> Asked {
    let mut topics: BTreeMap<TopicName, Vec<i32>> = BTreeMap::new();
    for (topic, partition) in offsets.keys() {
        topics.entry(topic.clone()).or_default().push(partition.raw());
    }
    topics.into_iter().collect()
}

/// Offset, leader epoch and note; -1 where nothing was committed.
fn told(committed: Option<&OffsetRecord>) -> (i64, i32, StrBytes) {
    match committed {
        Some(known) => (known.offset.raw(), known.leader_epoch.raw(), names::text(&known.metadata)),
        None => (-1, -1, StrBytes::default()),
    }
}
