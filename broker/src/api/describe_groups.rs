//! DescribeGroups: a classic group's state, its members, what each was given.

use std::sync::Arc;

use bytes::Bytes;
use loggos_protocol::ids::GroupId;
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use loggos_protocol::kafka::messages::{DescribeGroupsRequest, DescribeGroupsResponse};

use super::{Context, names};
use crate::group::machine::Machine;
use crate::group::state::{Phase, State};

/// The first version that tells static members' names.
const STATIC: i16 = 4;
/// The first version that says what it didn't find (KIP-1043).
const NOT_FOUND: i16 = 6;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let mut groups = Vec::with_capacity(request.groups.len());
    for id in request.groups {
        let answer = DescribedGroup::default().with_authorized_operations(i32::MIN);
        let described = match context.groups.describe(&GroupId::new(id.0.as_str())).await {
            Ok(found) => match found.machine {
                Machine::Classic(state) if found.exists => describe(answer, &state, version),
                Machine::Classic(_) => absent(answer, version, format!("Group {} not found.", id.0)),
                Machine::Consumer(_) => {
                    absent(answer, version, format!("Group {} is not a classic group.", id.0))
                }
            },
            Err(code) => answer.with_error_code(code.raw()),
        };
        groups.push(described.with_group_id(id));
    }
    DescribeGroupsResponse::default().with_groups(groups)
}

fn absent(answer: DescribedGroup, version: i16, message: String) -> DescribedGroup {
    let answer = answer.with_group_state(names::text("Dead"));
    if version < NOT_FOUND {
        return answer;
    }
    answer
        .with_error_code(ErrorCode::GROUP_ID_NOT_FOUND.raw())
        .with_error_message(Some(names::text(&message)))
}

fn describe(answer: DescribedGroup, state: &State, version: i16) -> DescribedGroup {
    let is_stable = state.phase() == Phase::Stable;
    let protocol = state.protocol().filter(|_| is_stable).unwrap_or_default().to_owned();
    let members = state.members().map(|member| {
        let mut told = DescribedGroupMember::default()
            .with_member_id(names::text(member.id.as_str()))
            .with_client_id(names::text(&member.introduction.client_id))
            .with_client_host(names::text(&member.introduction.client_host))
            .with_member_metadata(if is_stable { member.metadata(&protocol) } else { Bytes::new() })
            .with_member_assignment(if is_stable { member.assignment.clone() } else { Bytes::new() });
        if version >= STATIC {
            told.group_instance_id = names::optional(member.introduction.instance.clone());
        }
        told
    });
    answer
        .with_group_state(names::text(state.phase().name()))
        .with_protocol_type(names::text(state.protocol_type().unwrap_or_default()))
        .with_protocol_data(names::text(&protocol))
        .with_members(members.collect())
}
