//! ConsumerGroupHeartbeat: a member says what it reads and has, and is told what to have (KIP-848).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use loggos_protocol::ids::{GroupId, MemberId, PartitionId, TopicId};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::consumer_group_heartbeat_response::{Assignment, TopicPartitions};
use loggos_protocol::kafka::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

use super::{Context, names};
use crate::group::assignor::Held;
use crate::group::consumer_member::{AWAY, JOINING};
use crate::group::consumer_state::{Beat, Beaten, Refusal};
use crate::group::state::{Event, Reply};
use crate::group::table::Groups;

/// The first version whose members draw their ids themselves.
const OWN_IDS: i16 = 1;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    client: (String, String),
    request: ConsumerGroupHeartbeatRequest,
) -> ConsumerGroupHeartbeatResponse {
    let group = GroupId::new(request.group_id.0.as_str());
    if let Err(message) = check(&request, version) {
        return refused((ErrorCode::INVALID_REQUEST, message.to_owned()));
    }
    let beat = beat(request, client);
    match context.groups.ask(&group, |waiting| Event::Beat(beat, waiting)).await {
        Ok(Reply::Beaten(Ok(beaten))) => answer(beaten),
        Ok(Reply::Beaten(Err(refusal))) => refused(refusal),
        Ok(_) => refused((ErrorCode::UNKNOWN_SERVER_ERROR, "The group answered something else.".to_owned())),
        Err(code) => refused((code, sentence(code))),
    }
}

fn sentence(code: ErrorCode) -> String {
    let text = match code {
        ErrorCode::INCONSISTENT_GROUP_PROTOCOL => "The group's members run it themselves, on the registry.",
        ErrorCode::NOT_COORDINATOR => "Another broker runs this group.",
        _ => "The group can't be reached.",
    };
    text.to_owned()
}

/// What no heartbeat may leave out or say.
fn check(request: &ConsumerGroupHeartbeatRequest, version: i16) -> Result<(), &'static str> {
    let text_is_empty = |text: &Option<loggos_protocol::kafka::StrBytes>| {
        text.as_ref().is_some_and(|text| text.trim().is_empty())
    };
    if request.group_id.0.trim().is_empty() {
        return Err("GroupId can't be empty.");
    }
    if text_is_empty(&request.instance_id) {
        return Err("InstanceId can't be empty.");
    }
    if text_is_empty(&request.rack_id) {
        return Err("RackId can't be empty.");
    }
    if text_is_empty(&request.server_assignor) {
        return Err("ServerAssignor can't be empty.");
    }
    let draws_its_id = version >= OWN_IDS || request.member_epoch != JOINING;
    if draws_its_id && request.member_id.trim().is_empty() {
        return Err("MemberId can't be empty.");
    }
    match request.member_epoch {
        JOINING if request.rebalance_timeout_ms == -1 => {
            Err("RebalanceTimeoutMs must be provided in first request.")
        }
        JOINING if request.topic_partitions.as_ref().is_none_or(|owned| !owned.is_empty()) => {
            Err("TopicPartitions must be empty when (re-)joining.")
        }
        JOINING if request.subscribed_topic_names.is_none() && request.subscribed_topic_regex.is_none() => {
            Err("Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.")
        }
        AWAY if request.instance_id.is_none() => Err("InstanceId can't be null."),
        ..AWAY => Err("MemberEpoch is invalid."),
        _ => Ok(()),
    }
}

fn beat(request: ConsumerGroupHeartbeatRequest, (client_id, client_host): (String, String)) -> Beat {
    let member = match request.member_id.as_str() {
        "" => MemberId::new(uuid::Uuid::new_v4().to_string()),
        id => MemberId::new(id),
    };
    let topics = request.subscribed_topic_names;
    let owned = request.topic_partitions.map(|topics| {
        let each = topics.into_iter().flat_map(|topic| {
            let id = TopicId::new(topic.topic_id);
            topic.partitions.into_iter().map(move |partition| (id, PartitionId::new(partition)))
        });
        each.collect::<Held>()
    });
    let timeout = u64::try_from(request.rebalance_timeout_ms).ok();
    Beat {
        member,
        epoch: request.member_epoch,
        instance: request.instance_id.map(|id| id.to_string()),
        rack: request.rack_id.map(|rack| rack.to_string()),
        rebalance_timeout: timeout.map(Duration::from_millis),
        names: topics.map(|topics| topics.iter().map(names::topic).collect::<BTreeSet<_>>()),
        regex: request.subscribed_topic_regex.map(|regex| regex.to_string()),
        assignor: request.server_assignor.map(|name| name.to_string()),
        owned,
        client_id,
        client_host,
        at: Groups::now(),
    }
}

fn refused((code, message): Refusal) -> ConsumerGroupHeartbeatResponse {
    ConsumerGroupHeartbeatResponse::default()
        .with_error_code(code.raw())
        .with_error_message(Some(names::text(&message)))
        .with_member_id(None)
        .with_assignment(None)
}

fn answer(beaten: Beaten) -> ConsumerGroupHeartbeatResponse {
    let interval = i32::try_from(beaten.interval.as_millis()).unwrap_or(i32::MAX);
    ConsumerGroupHeartbeatResponse::default()
        .with_member_id(Some(names::text(beaten.member.as_str())))
        .with_member_epoch(beaten.epoch)
        .with_heartbeat_interval_ms(interval)
        .with_assignment(beaten.assignment.map(|held| {
            let mut topics: Vec<TopicPartitions> = Vec::new();
            for (topic, partition) in held {
                match topics.last_mut() {
                    Some(last) if last.topic_id == topic.raw() => last.partitions.push(partition.raw()),
                    _ => topics.push(
                        TopicPartitions::default()
                            .with_topic_id(topic.raw())
                            .with_partitions(vec![partition.raw()]),
                    ),
                }
            }
            Assignment::default().with_topic_partitions(topics)
        }))
}
