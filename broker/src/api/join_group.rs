//! JoinGroup: a member wants in, or comes again for a rebalance; answered when all have come (KIP-62, KIP-394).

use std::sync::Arc;
use std::time::Duration;

use loggos_protocol::ids::{GroupId, MemberId};
use loggos_protocol::kafka::messages::join_group_response::JoinGroupResponseMember;
use loggos_protocol::kafka::messages::{JoinGroupRequest, JoinGroupResponse};
use loggos_protocol::kafka::{ErrorCode, StrBytes};

use super::{Context, names};
use crate::group::member::{Introduction, Protocol};
use crate::group::state::{Event, Join, Joined, Reply};
use crate::group::table::Groups;

/// The first version whose new members come again with the id that they are given.
const MUST_RETURN: i16 = 4;
/// The first version with static members.
const STATIC: i16 = 5;
/// The first version that tells the protocol's type.
const TYPES: i16 = 7;
/// The first version whose leader may be told to leave the assignments as they are.
const SKIPS: i16 = 9;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    (client_id, client_host): (String, String),
    request: JoinGroupRequest,
) -> JoinGroupResponse {
    let group = GroupId::new(request.group_id.0.as_str());
    let member = Some(request.member_id.as_str()).filter(|id| !id.is_empty()).map(MemberId::new);
    let session_timeout = millis(request.session_timeout_ms);
    // Version 0 has one time for both.
    let rebalance_timeout = if version == 0 { session_timeout } else { millis(request.rebalance_timeout_ms) };
    let protocols = request
        .protocols
        .iter()
        .map(|offered| Protocol { name: offered.name.to_string(), metadata: offered.metadata.clone() });
    let fresh = MemberId::new(format!("{client_id}-{}", uuid::Uuid::new_v4()));
    let join = Join {
        member: member.clone(),
        fresh,
        introduction: Introduction {
            instance: request.group_instance_id.as_ref().map(ToString::to_string),
            client_id,
            client_host,
            since: Groups::now(),
            session_timeout,
            rebalance_timeout,
            protocols: protocols.collect(),
        },
        protocol_type: request.protocol_type.to_string(),
        must_return: version >= MUST_RETURN,
        may_skip_assignment: version >= SKIPS,
    };
    match context.groups.ask(&group, |waiting| Event::Join(join, waiting)).await {
        Ok(Reply::Joined(joined)) => answer(joined, version),
        Ok(Reply::NotJoined(code, id)) => refused(code, id.or(member), version),
        Ok(_) => refused(ErrorCode::UNKNOWN_SERVER_ERROR, member, version),
        Err(code) => refused(code, member, version),
    }
}

fn millis(millis: i32) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn refused(code: ErrorCode, member: Option<MemberId>, version: i16) -> JoinGroupResponse {
    let answer = JoinGroupResponse::default()
        .with_error_code(code.raw())
        .with_generation_id(-1)
        .with_member_id(names::text(member.as_ref().map_or("", MemberId::as_str)));
    if version >= TYPES {
        answer.with_protocol_name(None)
    } else {
        answer.with_protocol_name(Some(StrBytes::default()))
    }
}

fn answer(joined: Joined, version: i16) -> JoinGroupResponse {
    let members = joined.members.into_iter().map(|(id, instance, metadata)| {
        let member = JoinGroupResponseMember::default()
            .with_member_id(names::text(id.as_str()))
            .with_metadata(metadata);
        if version >= STATIC { member.with_group_instance_id(names::optional(instance)) } else { member }
    });
    let mut answer = JoinGroupResponse::default()
        .with_generation_id(joined.generation.raw())
        .with_protocol_name(Some(names::text(&joined.protocol)))
        .with_leader(names::text(joined.leader.as_str()))
        .with_member_id(names::text(joined.member.as_str()))
        .with_members(members.collect());
    if version >= TYPES {
        answer.protocol_type = Some(names::text(&joined.protocol_type));
    }
    if version >= SKIPS {
        answer.skip_assignment = joined.skip_assignment;
    }
    answer
}
