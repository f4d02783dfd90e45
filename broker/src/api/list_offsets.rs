//! ListOffsets: the first offset, the next one, the first at or after a time, the one with the greatest time.

use std::sync::Arc;

use loggos_protocol::ids::{LeaderEpoch, Offset, PartitionId, Timestamp};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::list_offsets_request::ListOffsetsPartition;
use loggos_protocol::kafka::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use loggos_protocol::kafka::messages::{ListOffsetsRequest, ListOffsetsResponse};

use super::{Context, names};
use crate::log::{LogError, TimedOffset};
use crate::partition::{Partition, code_of};

/// The first version that tells leader epochs.
const LEADER_EPOCHS: i16 = 4;
/// The first version that has a code for an end that isn't known yet.
const NOT_AVAILABLE: i16 = 5;
/// The next offset.
const LATEST: i64 = -1;
/// The first offset.
const EARLIEST: i64 = -2;
/// The record with the greatest time (KIP-734).
const MAX_TIMESTAMP: i64 = -3;
/// The first offset that is kept here (KIP-405): there is one tier.
const EARLIEST_LOCAL: i64 = -4;
/// The last offset that was moved to another tier (KIP-1005): there is none.
const LATEST_TIERED: i64 = -5;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: ListOffsetsRequest,
) -> ListOffsetsResponse {
    // A time is looked up in files: not on a thread of the network.
    let work = move || {
        let topics = request.topics.iter().map(|topic| {
            let name = names::topic(&topic.name);
            let partitions = topic.partitions.iter().map(|asked| {
                let partition = context.table.get(&name, PartitionId::new(asked.partition_index));
                let answer = answer(partition.as_deref(), asked, version);
                if version >= LEADER_EPOCHS { answer } else { answer.with_leader_epoch(-1) }
            });
            ListOffsetsTopicResponse::default()
                .with_name(topic.name.clone())
                .with_partitions(partitions.collect())
        });
        ListOffsetsResponse::default().with_topics(topics.collect())
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

fn answer(
    partition: Option<&Partition>,
    asked: &ListOffsetsPartition,
    version: i16,
) -> ListOffsetsPartitionResponse {
    let response = ListOffsetsPartitionResponse::default()
        .with_partition_index(asked.partition_index)
        .with_timestamp(-1)
        .with_offset(-1)
        .with_leader_epoch(-1);
    let failed = |code: ErrorCode| response.clone().with_error_code(code.raw());
    let Some(partition) = partition else { return failed(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION) };
    let epoch = match partition.check_leader(LeaderEpoch::new(asked.current_leader_epoch)) {
        Ok(epoch) => epoch,
        Err(code) => return failed(code),
    };
    if !partition.knows_its_end() && !matches!(asked.timestamp, EARLIEST | EARLIEST_LOCAL) {
        // A moment after an election: the end would be told too low (KIP-207).
        let newer = version >= NOT_AVAILABLE;
        return failed(if newer { ErrorCode::OFFSET_NOT_AVAILABLE } else { ErrorCode::LEADER_NOT_AVAILABLE });
    }
    match find(partition, asked.timestamp, epoch) {
        Ok(Some(found)) => response
            .with_timestamp(found.timestamp.raw())
            .with_offset(found.offset.raw())
            .with_leader_epoch(found.leader_epoch.raw()),
        Ok(None) => response,
        Err(error) => failed(code_of(&error)),
    }
}

fn find(partition: &Partition, timestamp: i64, epoch: LeaderEpoch) -> Result<Option<TimedOffset>, LogError> {
    let (log, upto) = (partition.log(), partition.high_watermark());
    let at = |offset: Offset| {
        let leader_epoch = log.epoch_of(offset).unwrap_or(epoch);
        Some(TimedOffset { offset, timestamp: Timestamp::NONE, leader_epoch })
    };
    match timestamp {
        LATEST => Ok(Some(TimedOffset { offset: upto, timestamp: Timestamp::NONE, leader_epoch: epoch })),
        EARLIEST | EARLIEST_LOCAL => Ok(at(log.log_start())),
        MAX_TIMESTAMP => log.latest_by_time(upto),
        LATEST_TIERED => Ok(None),
        time => log.offset_at(Timestamp::new(time), upto),
    }
}
