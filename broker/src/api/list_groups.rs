//! ListGroups: the groups that this broker runs.

use std::sync::Arc;

use loggos_protocol::kafka::messages::list_groups_response::ListedGroup;
use loggos_protocol::kafka::messages::{self, ListGroupsRequest, ListGroupsResponse};

use loggos_protocol::kafka::StrBytes;

use super::{Context, names};
use crate::group::record::Kind;

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
        // One that moved to another broker meanwhile is told by that one.
        let Ok(found) = context.groups.describe(&id).await else { continue };
        if !found.exists {
            continue;
        }
        let state = found.machine.phase();
        let kind = match found.machine.kind() {
            Kind::Classic => "classic",
            Kind::Consumer => "consumer",
        };
        if !is_wanted(&request.states_filter, state) || !is_wanted(&request.types_filter, kind) {
            continue;
        }
        let mut group = ListedGroup::default()
            .with_group_id(messages::GroupId(names::text(id.as_str())))
            .with_protocol_type(names::text(found.machine.protocol_type().unwrap_or_default()));
        if version >= STATES {
            group.group_state = names::text(state);
        }
        if version >= TYPES {
            group.group_type = names::text(kind);
        }
        groups.push(group);
    }
    ListGroupsResponse::default().with_groups(groups)
}

/// Whether a filter lets a name through: an empty one lets all.
fn is_wanted(filter: &[StrBytes], name: &str) -> bool {
    filter.is_empty() || filter.iter().any(|wanted| wanted.as_str().eq_ignore_ascii_case(name))
}
