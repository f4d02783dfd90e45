//! CreateTopics: written to the registry; answered when this broker's own view and partitions show it.

use std::collections::BTreeMap;
use std::sync::Arc;

use loggos_client::registry::NewTopic;
use loggos_protocol::ids::{BrokerId, PartitionId};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::create_topics_request::CreatableTopic;
use loggos_protocol::kafka::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use loggos_protocol::kafka::messages::{CreateTopicsRequest, CreateTopicsResponse};

use super::{Context, names, patience};
use crate::config::TOPIC_KEYS;
use crate::controller::{AdminError, Placement, Wish};

/// The first version that tells the new topic's configs.
const CONFIGS: i16 = 5;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: CreateTopicsRequest,
) -> CreateTopicsResponse {
    let mut results = Vec::with_capacity(request.topics.len());
    let mut made = Vec::new();
    for topic in &request.topics {
        let twice = request.topics.iter().filter(|other| other.name == topic.name).count() > 1;
        let result = if twice {
            Err(AdminError::new(ErrorCode::INVALID_REQUEST, "The topic is named twice in this request."))
        } else {
            create(&context, topic, request.validate_only).await
        };
        if result.is_ok() && !request.validate_only {
            made.push(names::topic(&topic.name));
        }
        let described = described(&context, topic, result);
        results.push(if version >= CONFIGS { described } else { described.with_configs(None) });
    }
    let all = |view: &crate::metadata::View| made.iter().all(|name| view.topics.contains_key(name));
    if !made.is_empty() && !context.settled(patience(request.timeout_ms), all).await {
        for result in results.iter_mut().filter(|result| result.error_code == 0) {
            result.error_code = ErrorCode::REQUEST_TIMED_OUT.raw();
            result.error_message = Some(names::text("The topic is made, but not known to this broker yet."));
        }
    }
    CreateTopicsResponse::default().with_topics(results)
}

async fn create(
    context: &Context,
    topic: &CreatableTopic,
    validate_only: bool,
) -> Result<NewTopic, AdminError> {
    let placement = if topic.assignments.is_empty() {
        Placement::Automatic { partitions: topic.num_partitions, factor: topic.replication_factor }
    } else if topic.num_partitions != -1 || topic.replication_factor != -1 {
        let message =
            "Both an assignment and a number of partitions or replicas were given; give one or the other.";
        return Err(AdminError::new(ErrorCode::INVALID_REQUEST, message));
    } else {
        let explicit: BTreeMap<PartitionId, Vec<BrokerId>> = topic
            .assignments
            .iter()
            .map(|assigned| {
                let brokers = assigned.broker_ids.iter().map(|id| BrokerId::new(id.0)).collect();
                (PartitionId::new(assigned.partition_index), brokers)
            })
            .collect();
        Placement::Explicit(explicit)
    };
    let configs = topic
        .configs
        .iter()
        .filter_map(|config| config.value.as_ref().map(|value| (config.name.to_string(), value.to_string())));
    let wish = Wish { name: names::topic(&topic.name), placement, configs: configs.collect() };
    let checked = context.admin.check_topic(&wish, context.defaults())?;
    if !validate_only {
        context.admin.create_topic(&checked).await?;
        tracing::info!(topic = %checked.name, partitions = checked.replicas.len(), "topic made");
    }
    Ok(checked)
}

fn described(
    context: &Context,
    asked: &CreatableTopic,
    result: Result<NewTopic, AdminError>,
) -> CreatableTopicResult {
    let answer = CreatableTopicResult::default().with_name(asked.name.clone());
    let topic = match result {
        Ok(topic) => topic,
        Err(error) => {
            return answer
                .with_error_code(error.code.raw())
                .with_error_message(Some(names::text(&error.message)))
                .with_num_partitions(-1)
                .with_replication_factor(-1);
        }
    };
    let brokers = context.table.configs();
    let configs = TOPIC_KEYS.iter().filter_map(|key| {
        let first = brokers.topic(&topic.configs, key).into_iter().next()?;
        Some(
            CreatableTopicConfigs::default()
                .with_name(names::text(key.name))
                .with_value(Some(names::text(&first.converted())))
                .with_config_source(first.source.wire()),
        )
    });
    let factor = topic.replicas.values().next().map_or(0, Vec::len);
    answer
        .with_topic_id(topic.id.raw())
        .with_num_partitions(i32::try_from(topic.replicas.len()).unwrap_or(i32::MAX))
        .with_replication_factor(i16::try_from(factor).unwrap_or(i16::MAX))
        .with_configs(Some(configs.collect()))
}
