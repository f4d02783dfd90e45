//! Heartbeat: a member is alive, and hears whether the group is rebalancing.

use std::sync::Arc;

use loggos_protocol::ids::{Generation, GroupId, MemberId};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::{HeartbeatRequest, HeartbeatResponse};

use super::Context;
use crate::group::state::{Caller, Event, Reply};

pub(super) async fn handle(context: Arc<Context>, request: HeartbeatRequest) -> HeartbeatResponse {
    let group = GroupId::new(request.group_id.0.as_str());
    let caller = Caller {
        member: MemberId::new(request.member_id.as_str()),
        instance: request.group_instance_id.as_ref().map(ToString::to_string),
        generation: Generation::new(request.generation_id),
    };
    let code = match context.groups.ask(&group, |waiting| Event::Heartbeat(caller, waiting)).await {
        Ok(Reply::Heard(code)) | Err(code) => code,
        Ok(_) => ErrorCode::UNKNOWN_SERVER_ERROR,
    };
    HeartbeatResponse::default().with_error_code(code.raw())
}
