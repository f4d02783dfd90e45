//! LeaveGroup: members go, one or many (KIP-345).

use std::sync::Arc;

use loggos_protocol::ids::GroupId;
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::leave_group_response::MemberResponse;
use loggos_protocol::kafka::messages::{LeaveGroupRequest, LeaveGroupResponse};

use super::{Context, names};
use crate::group::state::{Event, Leaver, Reply};

/// The first version that names many.
const MANY: i16 = 3;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: LeaveGroupRequest,
) -> LeaveGroupResponse {
    let group = GroupId::new(request.group_id.0.as_str());
    let leavers: Vec<Leaver> = if version >= MANY {
        let members = request.members.iter();
        members
            .map(|member| Leaver {
                member: member.member_id.to_string(),
                instance: member.group_instance_id.as_ref().map(ToString::to_string),
            })
            .collect()
    } else {
        vec![Leaver { member: request.member_id.to_string(), instance: None }]
    };
    let answer = LeaveGroupResponse::default();
    match context.groups.ask(&group, |waiting| Event::Leave(leavers, waiting)).await {
        Ok(Reply::Left(left)) if version >= MANY => {
            let members = left.into_iter().map(|(leaver, code)| {
                MemberResponse::default()
                    .with_member_id(names::text(&leaver.member))
                    .with_group_instance_id(names::optional(leaver.instance))
                    .with_error_code(code.raw())
            });
            answer.with_members(members.collect())
        }
        Ok(Reply::Left(left)) => {
            let code = left.first().map_or(ErrorCode::NONE, |(_, code)| *code);
            answer.with_error_code(code.raw())
        }
        Ok(_) => answer.with_error_code(ErrorCode::UNKNOWN_SERVER_ERROR.raw()),
        Err(code) => answer.with_error_code(code.raw()),
    }
}
