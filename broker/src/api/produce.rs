//! Produce: each partition's batch is checked, stamped and appended at once; the answer waits for the flushes that
//! `acks` asks for. Walk 1 of docs/ARCHITECTURE.md.

use std::sync::Arc;
use std::time::Duration;

use loggos_protocol::batch::{self, BatchError, InvalidBatch, Limits};
use loggos_protocol::ids::{BrokerId, LeaderEpoch, Offset, PartitionId, Timestamp, TopicId};
use loggos_protocol::kafka::messages::produce_request::{PartitionProduceData, TopicProduceData};
use loggos_protocol::kafka::messages::produce_response::{
    LeaderIdAndEpoch, PartitionProduceResponse, TopicProduceResponse,
};
use loggos_protocol::kafka::messages::{ProduceRequest, ProduceResponse};
use loggos_protocol::kafka::{ErrorCode, Request, RequestHeader};
use tokio::time::Instant;

use super::{Answer, Context, Outcome, names, reply};
use crate::clock;
use crate::partition::{Acks, Partition, Ticket};

/// The first version that names topics by their ids.
const TOPIC_IDS: i16 = 13;
/// The first version that can say who leads instead.
const LEADER_HINTS: i16 = 10;
/// The longest that an answer waits, whatever the request says.
const PATIENCE: Duration = Duration::from_secs(120);

/// A partition's append: a ticket, or why there is none.
struct Appended {
    index: i32,
    result: Result<Ticket, ErrorCode>,
    message: Option<String>,
    leader: Option<(BrokerId, LeaderEpoch)>,
}

pub(super) fn begin(context: &Arc<Context>, request: &Request) -> Answer {
    let body = match request.decode::<ProduceRequest>() {
        Ok(body) => body,
        Err(error) => return Answer::Now(Outcome::Close(error.to_string())),
    };
    let header = request.header.clone();
    let acks = Acks::from_wire(body.acks);
    let refusal = match acks {
        None => Some(ErrorCode::INVALID_REQUIRED_ACKS),
        // Transactions aren't served: nothing of one may be mistaken for a record that is there for good.
        Some(_) if body.transactional_id.is_some() => Some(ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED),
        Some(_) => None,
    };
    let acks = acks.unwrap_or(Acks::All);
    let now = clock::now();
    let mut topics = Vec::with_capacity(body.topic_data.len());
    for mut topic in body.topic_data {
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        for data in &topic.partition_data {
            partitions.push(match refusal {
                Some(code) => Appended { index: data.index, result: Err(code), message: None, leader: None },
                None => append(context, &header, &topic, data, (acks, now)),
            });
        }
        // The answer needs the names alone: the records' memory goes when the disk has them.
        topic.partition_data = Vec::new();
        topics.push((topic, partitions));
    }
    if acks == Acks::None && refusal.is_none() {
        // Nobody listens: an error can only be told by closing (as Kafka does).
        let failed =
            topics.iter().flat_map(|(_, partitions)| partitions).find_map(|done| done.result.as_ref().err());
        return Answer::Now(match failed {
            Some(code) => Outcome::Close(format!("an append with acks=0 failed: {code:?}")),
            None => Outcome::Silence,
        });
    }
    let deadline =
        Instant::now() + Duration::from_millis(u64::try_from(body.timeout_ms).unwrap_or(0)).min(PATIENCE);
    Answer::later(async move {
        let mut responses = Vec::with_capacity(topics.len());
        for (topic, partitions) in topics {
            let mut answered = Vec::with_capacity(partitions.len());
            for appended in partitions {
                answered.push(settle(appended, deadline, header.version).await);
            }
            let mut response = TopicProduceResponse::default().with_partition_responses(answered);
            (response.name, response.topic_id) = (topic.name, topic.topic_id);
            responses.push(response);
        }
        reply(&header, &ProduceResponse::default().with_responses(responses))
    })
}

fn append(
    context: &Context,
    header: &RequestHeader,
    topic: &TopicProduceData,
    data: &PartitionProduceData,
    (acks, now): (Acks, Timestamp),
) -> Appended {
    let id = PartitionId::new(data.index);
    let by_id = header.version >= TOPIC_IDS;
    let found = if by_id {
        context.table.get_by_id(TopicId::new(topic.topic_id), id)
    } else {
        context.table.get(&names::topic(&topic.name), id)
    };
    let failed = |result, message| Appended { index: data.index, result: Err(result), message, leader: None };
    let Some(partition) = found else {
        return failed(unknown(context, topic, id, by_id), None);
    };
    if let Err(code) = partition.check_leader(LeaderEpoch::NONE) {
        return Appended { leader: Some(leader_of(context, &partition)), ..failed(code, None) };
    }
    let config = partition.config();
    let (oldest, newest) =
        (now.raw().saturating_sub(config.before_max_ms), now.raw().saturating_add(config.after_max_ms));
    let mut limits = Limits::produced(config.max_message_bytes);
    if !config.append_time {
        limits = limits.with_timestamps(Timestamp::new(oldest), Timestamp::new(newest));
    }
    let bytes = data.records.clone().unwrap_or_default();
    let batch = match batch::validate(bytes, &limits).map(|mut batches| batches.pop()) {
        Ok(Some(batch)) => batch,
        Ok(None) => return failed(ErrorCode::INVALID_RECORD, None),
        Err(error) => return failed(code_of(&error), Some(error.to_string())),
    };
    if batch.header.is_transactional() {
        return failed(ErrorCode::INVALID_TXN_STATE, Some("transactions are not served".to_owned()));
    }
    let result = partition.append(batch, acks, now);
    Appended { index: data.index, result, message: None, leader: None }
}

/// What a partition that isn't here is: unknown to all, or another broker's.
fn unknown(context: &Context, topic: &TopicProduceData, id: PartitionId, by_id: bool) -> ErrorCode {
    let view = context.metadata.view();
    let found = if by_id {
        view.topic_by_id(TopicId::new(topic.topic_id)).cloned()
    } else {
        view.topics.get(&names::topic(&topic.name)).cloned()
    };
    match found {
        Some(found) if found.partitions.contains_key(&id) => ErrorCode::NOT_LEADER_OR_FOLLOWER,
        None if by_id => ErrorCode::UNKNOWN_TOPIC_ID,
        _ => ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
    }
}

fn leader_of(context: &Context, partition: &Partition) -> (BrokerId, LeaderEpoch) {
    let view = context.metadata.view();
    let known =
        view.topic_by_id(partition.topic_id()).and_then(|topic| topic.partitions.get(&partition.id()));
    known.map_or((BrokerId::NONE, LeaderEpoch::NONE), |known| (known.leader, known.leader_epoch))
}

/// Waits for what a ticket still waits for.
async fn settle(appended: Appended, deadline: Instant, version: i16) -> PartitionProduceResponse {
    let mut response = PartitionProduceResponse::default()
        .with_index(appended.index)
        .with_base_offset(-1)
        .with_log_append_time_ms(-1)
        .with_log_start_offset(-1);
    let code = match appended.result {
        Err(code) => code,
        Ok(ticket) => {
            let waited = match ticket.answer {
                None => Ok(()),
                Some(answer) => match tokio::time::timeout_at(deadline, answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_)) => Err(ErrorCode::NOT_LEADER_OR_FOLLOWER),
                    Err(_) => Err(ErrorCode::REQUEST_TIMED_OUT),
                },
            };
            if waited.is_ok() {
                response.base_offset = ticket.appended.base_offset.raw();
                response.log_append_time_ms = ticket.append_time.raw();
                response.log_start_offset = ticket.log_start.max(Offset::ZERO).raw();
            }
            waited.err().unwrap_or(ErrorCode::NONE)
        }
    };
    response.error_code = code.raw();
    response.error_message = names::optional(appended.message);
    if version >= LEADER_HINTS
        && let Some((leader, epoch)) = appended.leader
    {
        response.current_leader =
            LeaderIdAndEpoch::default().with_leader_id(names::broker(leader)).with_leader_epoch(epoch.raw());
    }
    response
}

/// Kafka's code for what is wrong with a batch.
fn code_of(error: &BatchError) -> ErrorCode {
    match error {
        BatchError::Crc { .. } | BatchError::Cut { .. } | BatchError::Length { .. } => {
            ErrorCode::CORRUPT_MESSAGE
        }
        BatchError::Magic { .. } => ErrorCode::UNSUPPORTED_FOR_MESSAGE_FORMAT,
        BatchError::TooLarge { .. } => ErrorCode::MESSAGE_TOO_LARGE,
        BatchError::Codec { .. } => ErrorCode::UNSUPPORTED_COMPRESSION_TYPE,
        BatchError::Invalid { reason: InvalidBatch::Timestamp } => ErrorCode::INVALID_TIMESTAMP,
        _ => ErrorCode::INVALID_RECORD,
    }
}
