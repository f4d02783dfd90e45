//! DeleteTopics, by name or by id (KIP-516).

use std::sync::Arc;

use loggos_protocol::ids::{TopicId, TopicName};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::delete_topics_response::DeletableTopicResult;
use loggos_protocol::kafka::messages::{DeleteTopicsRequest, DeleteTopicsResponse};

use super::{Context, names, no_topic, patience, told};
use crate::controller::AdminError;

pub(super) async fn handle(context: Arc<Context>, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let view = context.metadata.view();
    let by_name = request.topic_names.iter().map(|name| (Some(names::topic(name)), TopicId::NONE));
    let by_either = request.topics.iter().map(|topic| {
        let id = TopicId::new(topic.topic_id);
        let found = view.topic_by_id(id).map(|topic| topic.name.clone());
        (topic.name.as_ref().map(names::topic).or(found), id)
    });
    let asked: Vec<(Option<TopicName>, TopicId)> = by_name.chain(by_either).collect();
    let mut results = Vec::with_capacity(asked.len());
    let mut gone = Vec::new();
    for (name, id) in asked {
        let (code, message) = match &name {
            None => (ErrorCode::UNKNOWN_TOPIC_ID, None),
            Some(name) => told(delete(&context, name).await),
        };
        let known = name.as_ref().and_then(|name| view.topics.get(name)).map_or(id, |topic| topic.id);
        results.push(
            DeletableTopicResult::default()
                .with_name(name.as_ref().map(names::wire_topic))
                .with_topic_id(known.raw())
                .with_error_code(code.raw())
                .with_error_message(names::optional(message)),
        );
        gone.extend(name.filter(|_| code.is_none()));
    }
    if !gone.is_empty() {
        let all_gone = |view: &crate::metadata::View| !gone.iter().any(|name| view.topics.contains_key(name));
        context.settled(patience(request.timeout_ms), all_gone).await;
    }
    DeleteTopicsResponse::default().with_responses(results)
}

async fn delete(context: &Context, name: &TopicName) -> Result<(), AdminError> {
    if !context.table.configs().flag("delete.topic.enable") {
        let message = "Topic deletion is disabled (delete.topic.enable=false).";
        return Err(AdminError::new(ErrorCode::TOPIC_DELETION_DISABLED, message));
    }
    if !context.metadata.view().topics.contains_key(name) {
        return Err(no_topic(name));
    }
    context.admin.delete_topic(name).await?;
    tracing::info!(topic = %name, "topic deleted");
    Ok(())
}
