//! DeleteGroups: groups without members go, with their offsets.

use std::sync::Arc;

use loggos_protocol::ids::GroupId;
use loggos_protocol::kafka::messages::delete_groups_response::DeletableGroupResult;
use loggos_protocol::kafka::messages::{DeleteGroupsRequest, DeleteGroupsResponse};

use super::Context;

pub(super) async fn handle(context: Arc<Context>, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let mut results = Vec::with_capacity(request.groups_names.len());
    for name in request.groups_names {
        let deleted = context.groups.delete(&GroupId::new(name.0.as_str())).await;
        let code = deleted.err().map_or(0, |code| code.raw());
        results.push(DeletableGroupResult::default().with_group_id(name).with_error_code(code));
    }
    DeleteGroupsResponse::default().with_results(results)
}
