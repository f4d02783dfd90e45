//! InitProducerId: a number for an idempotent producer (KIP-98, KIP-360). Transactions aren't served.

use std::sync::Arc;

use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::{self, InitProducerIdRequest, InitProducerIdResponse};

use super::Context;

pub(super) async fn handle(context: Arc<Context>, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let refused = |code: ErrorCode| {
        InitProducerIdResponse::default()
            .with_error_code(code.raw())
            .with_producer_id(messages::ProducerId(-1))
            .with_producer_epoch(-1)
    };
    match request.transactional_id {
        Some(id) if id.0.is_empty() => return refused(ErrorCode::INVALID_REQUEST),
        Some(_) => return refused(ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED),
        None => {}
    }
    // A producer that numbers its batches anew gets a new id: its old one needs no fencing.
    match context.admin.next_producer_id().await {
        Ok(id) => InitProducerIdResponse::default()
            .with_producer_id(messages::ProducerId(id.raw()))
            .with_producer_epoch(0)
            .with_ongoing_txn_producer_id(messages::ProducerId(-1)),
        Err(error) => {
            tracing::warn!(%error, "no producer id");
            refused(ErrorCode::COORDINATOR_LOAD_IN_PROGRESS)
        }
    }
}
