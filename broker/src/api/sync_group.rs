//! SyncGroup: the leader hands out assignments, everybody takes theirs.

use std::sync::Arc;

use loggos_protocol::ids::{Generation, GroupId, MemberId};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::{SyncGroupRequest, SyncGroupResponse};

use super::{Context, names};
use crate::group::state::{Caller, Event, Reply, Sync};

/// The first version that tells the protocol (KIP-559).
const PROTOCOLS: i16 = 5;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: SyncGroupRequest,
) -> SyncGroupResponse {
    let group = GroupId::new(request.group_id.0.as_str());
    let assignments = request
        .assignments
        .iter()
        .map(|given| (MemberId::new(given.member_id.as_str()), given.assignment.clone()));
    let sync = Sync {
        caller: Caller {
            member: MemberId::new(request.member_id.as_str()),
            instance: request.group_instance_id.as_ref().map(ToString::to_string),
            generation: Generation::new(request.generation_id),
        },
        protocol: (
            request.protocol_type.as_ref().map(ToString::to_string),
            request.protocol_name.as_ref().map(ToString::to_string),
        ),
        assignments: assignments.collect(),
    };
    let refused = |code: ErrorCode| SyncGroupResponse::default().with_error_code(code.raw());
    match context.groups.ask(&group, |waiting| Event::Sync(sync, waiting)).await {
        Ok(Reply::Synced(kind, protocol, assignment)) => {
            let answer = SyncGroupResponse::default().with_assignment(assignment);
            if version < PROTOCOLS {
                return answer;
            }
            answer
                .with_protocol_type(Some(names::text(&kind)))
                .with_protocol_name(Some(names::text(&protocol)))
        }
        Ok(Reply::NotSynced(code)) | Err(code) => refused(code),
        Ok(_) => refused(ErrorCode::UNKNOWN_SERVER_ERROR),
    }
}
