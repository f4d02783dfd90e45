//! OffsetFetch: what groups have committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use loggos_protocol::ids::{GroupId, PartitionId, TopicId, TopicName};
use loggos_protocol::kafka::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use loggos_protocol::kafka::messages::{OffsetFetchRequest, OffsetFetchResponse};
use loggos_protocol::kafka::{ErrorCode, StrBytes};

use super::offset_commit::named;
use super::{Context, names};
use crate::group::table::{Committed, Offsets};

/// The first version that asks for many groups.
const MANY: i16 = 8;
/// The first version that tells leader epochs.
const EPOCHS: i16 = 5;
/// The first version that names topics by their ids.
const TOPIC_IDS: i16 = 10;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    if version >= MANY {
        let mut groups = Vec::with_capacity(request.groups.len());
        for asked in request.groups {
            let wanted = asked.topics.map(|topics| {
                topics
                    .into_iter()
                    .map(|topic| (names::topic(&topic.name), topic.topic_id, topic.partition_indexes))
                    .collect()
            });
            let group = GroupId::new(asked.group_id.0.as_str());
            let answer = OffsetFetchResponseGroup::default().with_group_id(asked.group_id);
            groups.push(match context.groups.committed(&group).await {
                Ok(offsets) => answer.with_topics(new_topics(&context, &offsets, wanted, version)),
                Err(code) => answer.with_error_code(code.raw()),
            });
        }
        return OffsetFetchResponse::default().with_groups(groups);
    }
    let group = GroupId::new(request.group_id.0.as_str());
    let found = context.groups.committed(&group).await;
    let offsets = found.clone().unwrap_or_default();
    let asked: Vec<(TopicName, Vec<i32>)> = match request.topics {
        Some(topics) => {
            topics.into_iter().map(|topic| (names::topic(&topic.name), topic.partition_indexes)).collect()
        }
        None => all(&offsets).into_iter().collect(),
    };
    let topics = asked.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|id| {
            let (offset, epoch, note) = told(offsets.get(&(name.clone(), PartitionId::new(id))));
            OffsetFetchResponsePartition::default()
                .with_partition_index(id)
                .with_committed_offset(offset)
                .with_committed_leader_epoch(if version >= EPOCHS { epoch } else { -1 })
                .with_metadata(Some(note))
                .with_error_code(found.as_ref().err().map_or(0, |code| code.raw()))
        });
        OffsetFetchResponseTopic::default()
            .with_name(names::wire_topic(&name))
            .with_partitions(partitions.collect())
    });
    let answer = OffsetFetchResponse::default().with_topics(topics.collect());
    if version >= 2 { answer.with_error_code(found.err().unwrap_or(ErrorCode::NONE).raw()) } else { answer }
}

type Wanted = Vec<(TopicName, uuid::Uuid, Vec<i32>)>;

fn new_topics(
    context: &Context,
    offsets: &Offsets,
    wanted: Option<Wanted>,
    version: i16,
) -> Vec<OffsetFetchResponseTopics> {
    let view = context.metadata.view();
    let by_id = version >= TOPIC_IDS;
    let asked: Wanted = wanted.unwrap_or_else(|| {
        let all = all(offsets).into_iter();
        all.map(|(name, partitions)| {
            let id = view.topics.get(&name).map_or(TopicId::NONE, |topic| topic.id);
            (name, id.raw(), partitions)
        })
        .collect()
    });
    let topics = asked.into_iter().map(|(name, id, partitions)| {
        let known = named(context, TopicId::new(id), name.clone(), by_id);
        let partitions = partitions.into_iter().map(|partition| {
            let place = known.clone().map(|name| (name, PartitionId::new(partition)));
            let (offset, epoch, note) = told(place.as_ref().and_then(|place| offsets.get(place)));
            let code = if known.is_some() { ErrorCode::NONE } else { ErrorCode::UNKNOWN_TOPIC_ID };
            OffsetFetchResponsePartitions::default()
                .with_partition_index(partition)
                .with_committed_offset(offset)
                .with_committed_leader_epoch(epoch)
                .with_metadata(Some(note))
                .with_error_code(code.raw())
        });
        let mut answer = OffsetFetchResponseTopics::default().with_partitions(partitions.collect());
        if by_id {
            answer.topic_id = id;
        } else {
            answer.name = names::wire_topic(&name);
        }
        answer
    });
    topics.collect()
}

fn all(offsets: &Offsets) -> BTreeMap<TopicName, Vec<i32>> {
    let mut topics: BTreeMap<TopicName, Vec<i32>> = BTreeMap::new();
    for (topic, partition) in offsets.keys() {
        topics.entry(topic.clone()).or_default().push(partition.raw());
    }
    topics
}

/// Offset, leader epoch and note; -1 where nothing was committed.
fn told(committed: Option<&Committed>) -> (i64, i32, StrBytes) {
    match committed {
        Some(known) => (known.offset.raw(), known.leader_epoch.raw(), names::text(&known.metadata)),
        None => (-1, -1, StrBytes::default()),
    }
}
