//! CreatePartitions: adds partitions to a topic (KIP-195).

use std::sync::Arc;

use loggos_protocol::ids::BrokerId;
use loggos_protocol::kafka::messages::create_partitions_response::CreatePartitionsTopicResult;
use loggos_protocol::kafka::messages::{CreatePartitionsRequest, CreatePartitionsResponse};

use super::{Context, names, patience, told};

pub(super) async fn handle(
    context: Arc<Context>,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let mut results = Vec::with_capacity(request.topics.len());
    let mut grown = Vec::new();
    for topic in &request.topics {
        let name = names::topic(&topic.name);
        let assigned = topic.assignments.as_ref().map(|lists| {
            lists.iter().map(|list| list.broker_ids.iter().map(|id| BrokerId::new(id.0)).collect()).collect()
        });
        let done = context.admin.create_partitions(&name, topic.count, assigned, request.validate_only).await;
        let (code, message) = told(done);
        if code.is_none() && !request.validate_only {
            grown.push((name, usize::try_from(topic.count).unwrap_or(0)));
        }
        results.push(
            CreatePartitionsTopicResult::default()
                .with_name(topic.name.clone())
                .with_error_code(code.raw())
                .with_error_message(names::optional(message)),
        );
    }
    if !grown.is_empty() {
        let all = |view: &crate::metadata::View| {
            grown.iter().all(|(name, count)| {
                view.topics.get(name).is_some_and(|topic| topic.partitions.len() >= *count)
            })
        };
        context.settled(patience(request.timeout_ms), all).await;
    }
    CreatePartitionsResponse::default().with_results(results)
}
