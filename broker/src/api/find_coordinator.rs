//! FindCoordinator: which broker answers for a group. Brokers keep no state of consumers (decision D9), so any can;
//! all name the same one, so that a group's members meet.

use loggos_protocol::ids::BrokerId;
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::find_coordinator_response::Coordinator;
use loggos_protocol::kafka::messages::{FindCoordinatorRequest, FindCoordinatorResponse};

use super::{Context, names};
use crate::group::runner::runner;
use crate::metadata::View;

/// The first version that asks for many at once.
const MANY: i16 = 4;
/// The key is a group's id.
const GROUP: i8 = 0;

pub(super) fn handle(
    context: &Context,
    version: i16,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    let view = context.metadata.view();
    if version >= MANY {
        let found = request.coordinator_keys.iter().map(|key| find(&view, key.as_str(), request.key_type));
        return FindCoordinatorResponse::default().with_coordinators(found.collect());
    }
    let found = find(&view, request.key.as_str(), request.key_type);
    FindCoordinatorResponse::default()
        .with_error_code(found.error_code)
        .with_error_message(found.error_message)
        .with_node_id(found.node_id)
        .with_host(found.host)
        .with_port(found.port)
}

fn find(view: &View, key: &str, key_type: i8) -> Coordinator {
    let answer = Coordinator::default()
        .with_key(names::text(key))
        .with_node_id(names::broker(BrokerId::NONE))
        .with_port(-1);
    if key_type != GROUP {
        let message = "transactions and share groups are not served";
        return answer
            .with_error_code(ErrorCode::INVALID_REQUEST.raw())
            .with_error_message(Some(names::text(message)));
    }
    let chosen = runner(view.brokers.keys().copied(), key).and_then(|id| view.brokers.get_key_value(&id));
    match chosen {
        Some((id, broker)) => answer
            .with_node_id(names::broker(*id))
            .with_host(names::text(&broker.host))
            .with_port(broker.port.into()),
        None => answer.with_error_code(ErrorCode::COORDINATOR_NOT_AVAILABLE.raw()),
    }
}
