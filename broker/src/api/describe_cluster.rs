//! DescribeCluster: the brokers and the controller (KIP-700).

use loggos_protocol::ids::BrokerId;
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::describe_cluster_response::DescribeClusterBroker;
use loggos_protocol::kafka::messages::{DescribeClusterRequest, DescribeClusterResponse};

use super::{Context, names};

/// The endpoints of brokers; those of controllers (2) are none of a client's business here.
const BROKERS: i8 = 1;

pub(super) fn handle(context: &Context, request: DescribeClusterRequest) -> DescribeClusterResponse {
    let view = context.metadata.view();
    let answer = DescribeClusterResponse::default()
        .with_endpoint_type(request.endpoint_type)
        .with_cluster_id(names::text(&view.cluster_id))
        .with_controller_id(names::broker(view.controller.unwrap_or(BrokerId::NONE)))
        .with_cluster_authorized_operations(i32::MIN);
    if request.endpoint_type != BROKERS {
        return answer
            .with_error_code(ErrorCode::UNSUPPORTED_ENDPOINT_TYPE.raw())
            .with_error_message(Some(names::text("There are no endpoints but those of brokers.")));
    }
    let brokers = view.brokers.iter().map(|(id, broker)| {
        DescribeClusterBroker::default()
            .with_broker_id(names::broker(*id))
            .with_host(names::text(&broker.host))
            .with_port(broker.port.into())
            .with_rack(names::optional(broker.rack.clone()))
    });
    answer.with_brokers(brokers.collect())
}
