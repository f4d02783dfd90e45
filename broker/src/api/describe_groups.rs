//! DescribeGroups: a group's state, its members, what each was given.

use std::sync::Arc;

use bytes::Bytes;
use loggos_protocol::ids::GroupId;
use loggos_protocol::kafka::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use loggos_protocol::kafka::messages::{DescribeGroupsRequest, DescribeGroupsResponse};

use super::{Context, names};
use crate::group::state::Phase;

/// The first version that tells static members' names.
const STATIC: i16 = 4;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let mut groups = Vec::with_capacity(request.groups.len());
    for id in request.groups {
        let answer = DescribedGroup::default().with_group_id(id.clone()).with_authorized_operations(i32::MIN);
        let state = match context.groups.describe(&GroupId::new(id.0.as_str())).await {
            Ok(state) => state,
            Err(code) => {
                groups.push(answer.with_error_code(code.raw()));
                continue;
            }
        };
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
        // A group that nobody has heard of is a dead one.
        let unknown = state.phase() == Phase::Empty && state.generation().raw() == 0;
        let shown = if unknown { "Dead" } else { state.phase().name() };
        groups.push(
            answer
                .with_group_state(names::text(shown))
                .with_protocol_type(names::text(state.protocol_type().unwrap_or_default()))
                .with_protocol_data(names::text(&protocol))
                .with_members(members.collect()),
        );
    }
    DescribeGroupsResponse::default().with_groups(groups)
}
