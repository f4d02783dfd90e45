//! ListGroups: the groups that this broker runs.

use std::sync::Arc;

use loggos_protocol::kafka::messages::list_groups_response::ListedGroup;
use loggos_protocol::kafka::messages::{self, ListGroupsRequest, ListGroupsResponse};

use super::{Context, names};

/// The first version that tells states, and the first that tells types.
const STATES: i16 = 4;
const TYPES: i16 = 5;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: ListGroupsRequest,
) -> ListGroupsResponse {
    let ids = match context.groups.ids().await {
        Ok(ids) => ids,
        Err(code) => return ListGroupsResponse::default().with_error_code(code.raw()),
    };
    let mut groups = Vec::new();
    for id in ids {
        let Ok(found) = context.groups.describe(&id).await else { continue };
        let state = found.phase().name();
        let wanted = request.states_filter.is_empty()
            || request.states_filter.iter().any(|wanted| wanted.as_str().eq_ignore_ascii_case(state));
        let of_type = request.types_filter.is_empty()
            || request.types_filter.iter().any(|wanted| wanted.as_str().eq_ignore_ascii_case("classic"));
        if !wanted || !of_type {
            continue;
        }
        let mut group = ListedGroup::default()
            .with_group_id(messages::GroupId(names::text(id.as_str())))
            .with_protocol_type(names::text(found.protocol_type().unwrap_or_default()));
        if version >= STATES {
            group.group_state = names::text(state);
        }
        if version >= TYPES {
            group.group_type = names::text("classic");
        }
        groups.push(group);
    }
    ListGroupsResponse::default().with_groups(groups)
}
