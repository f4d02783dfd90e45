//! ConsumerGroupDescribe: a consumer group's epochs and members, what each has and is to have (KIP-848).

use std::sync::Arc;

use loggos_protocol::ids::GroupId;
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::consumer_group_describe_response::{
    Assignment, DescribedGroup, Member, TopicPartitions,
};
use loggos_protocol::kafka::messages::{ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse};

use super::{Context, names};
use crate::group::assignor::{Held, Topics};
use crate::group::consumer_member::ConsumerMember;
use crate::group::consumer_state::ConsumerState;
use crate::group::machine::Machine;

/// The first version that tells which protocol a member speaks.
const MEMBER_TYPES: i16 = 1;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: ConsumerGroupDescribeRequest,
) -> ConsumerGroupDescribeResponse {
    let mut groups = Vec::with_capacity(request.group_ids.len());
    for id in request.group_ids {
        let answer = DescribedGroup::default().with_authorized_operations(i32::MIN);
        let found = context.groups.describe(&GroupId::new(id.0.as_str())).await;
        let described = match found {
            Ok(found) => match found.machine {
                Machine::Consumer(state) => describe(answer, &state, version),
                Machine::Classic(_) => {
                    let message = format!("Group {} is not a consumer group.", id.0);
                    answer
                        .with_error_code(ErrorCode::GROUP_ID_NOT_FOUND.raw())
                        .with_error_message(Some(names::text(&message)))
                }
            },
            Err(code) => answer.with_error_code(code.raw()),
        };
        groups.push(described.with_group_id(id));
    }
    ConsumerGroupDescribeResponse::default().with_groups(groups)
}

fn describe(answer: DescribedGroup, state: &ConsumerState, version: i16) -> DescribedGroup {
    let members = state.members().map(|member| describe_member(state, member, version));
    answer
        .with_group_state(names::text(state.phase()))
        .with_group_epoch(state.epoch())
        .with_assignment_epoch(state.epoch())
        .with_assignor_name(names::text(state.assignor().name()))
        .with_members(members.collect())
}

fn describe_member(state: &ConsumerState, member: &ConsumerMember, version: i16) -> Member {
    let said = &member.profile;
    let target = state.target(&member.id).cloned().unwrap_or_default();
    let told = Member::default()
        .with_member_id(names::text(member.id.as_str()))
        .with_instance_id(names::optional(said.instance.clone()))
        .with_rack_id(names::optional(said.rack.clone()))
        .with_member_epoch(member.epoch)
        .with_client_id(names::text(&said.client_id))
        .with_client_host(names::text(&said.client_host))
        .with_subscribed_topic_names(said.names.iter().map(names::wire_topic).collect())
        .with_subscribed_topic_regex(names::optional(said.regex.clone()))
        .with_assignment(assignment(&member.assigned, state.topics()))
        .with_target_assignment(assignment(&target, state.topics()));
    if version < MEMBER_TYPES {
        return told;
    }
    told.with_member_type(i8::from(member.classic.is_none()))
}

fn assignment(held: &Held, topics: &Topics) -> Assignment {
    let mut told: Vec<TopicPartitions> = Vec::new();
    for (id, partition) in held {
        let Some(name) = topics.name(*id) else { continue };
        match told.last_mut() {
            Some(last) if last.topic_id == id.raw() => last.partitions.push(partition.raw()),
            _ => told.push(
                TopicPartitions::default()
                    .with_topic_id(id.raw())
                    .with_topic_name(names::wire_topic(name))
                    .with_partitions(vec![partition.raw()]),
            ),
        }
    }
    Assignment::default().with_topic_partitions(told)
}
