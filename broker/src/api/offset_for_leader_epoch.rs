//! OffsetForLeaderEpoch: where an epoch ends, so that who has read further finds out what was cut (KIP-101, KIP-320).

use loggos_protocol::ids::{LeaderEpoch, PartitionId};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use loggos_protocol::kafka::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use loggos_protocol::kafka::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use super::{Context, names};
use crate::partition::Partition;

pub(super) fn handle(
    context: &Context,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let topics = request.topics.iter().map(|topic| {
        let name = names::topic(&topic.topic);
        let partitions = topic.partitions.iter().map(|asked| {
            let partition = context.table.get(&name, PartitionId::new(asked.partition));
            answer(partition.as_deref(), asked)
        });
        OffsetForLeaderTopicResult::default()
            .with_topic(topic.topic.clone())
            .with_partitions(partitions.collect())
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}

fn answer(partition: Option<&Partition>, asked: &OffsetForLeaderPartition) -> EpochEndOffset {
    let answer =
        EpochEndOffset::default().with_partition(asked.partition).with_leader_epoch(-1).with_end_offset(-1);
    let Some(partition) = partition else {
        return answer.with_error_code(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION.raw());
    };
    let current = match partition.check_leader(LeaderEpoch::new(asked.current_leader_epoch)) {
        Ok(current) => current,
        Err(code) => return answer.with_error_code(code.raw()),
    };
    let epoch = LeaderEpoch::new(asked.leader_epoch);
    if epoch == current {
        let end = partition.log().log_end().raw();
        return answer.with_leader_epoch(epoch.raw()).with_end_offset(end);
    }
    match partition.log().epoch_end(epoch).filter(|_| epoch < current) {
        Some((found, end)) => answer.with_leader_epoch(found.raw()).with_end_offset(end.raw()),
        None => answer,
    }
}
