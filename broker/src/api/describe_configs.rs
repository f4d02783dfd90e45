//! DescribeConfigs: each config with its value in force, where it comes from, and what else was said (KIP-226).

use loggos_protocol::ids::TopicName;
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::describe_configs_request::DescribeConfigsResource;
use loggos_protocol::kafka::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use loggos_protocol::kafka::messages::{DescribeConfigsRequest, DescribeConfigsResponse};

use super::{Context, names, no_topic};
use crate::config::{BROKER_KEYS, Candidate, Key, Source, TOPIC_KEYS, TopicConfig};
use crate::controller::AdminError;

/// The resource is a topic.
pub(super) const TOPIC: i8 = 2;
/// The resource is a broker.
pub(super) const BROKER: i8 = 4;

pub(super) fn handle(context: &Context, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let results = request.resources.iter().map(|resource| {
        let answer = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        match describe(context, resource, &request) {
            Ok(configs) => answer.with_configs(configs),
            Err(error) => {
                answer.with_error_code(error.code.raw()).with_error_message(Some(names::text(&error.message)))
            }
        }
    });
    DescribeConfigsResponse::default().with_results(results.collect())
}

fn describe(
    context: &Context,
    resource: &DescribeConfigsResource,
    request: &DescribeConfigsRequest,
) -> Result<Vec<DescribeConfigsResourceResult>, AdminError> {
    let wanted = |key: &Key| match &resource.configuration_keys {
        Some(names) if !names.is_empty() => names.iter().any(|name| name.as_str() == key.name),
        _ => true,
    };
    let name = resource.resource_name.as_str();
    let brokers = context.table.configs();
    match resource.resource_type {
        TOPIC => {
            let view = context.metadata.view();
            let topic = TopicName::new(name);
            let own = &view.topics.get(&topic).ok_or_else(|| no_topic(&topic))?.configs;
            let flush_messages = TopicConfig::new(own, &brokers).log.flush_messages.to_string();
            let keys = TOPIC_KEYS.iter().filter(|key| wanted(key));
            let told = keys.map(|key| {
                let mut result = result(key, &brokers.topic(own, key), request);
                // A time to flush alone changes what the count is: what is obeyed is what is told.
                if key.name == "flush.messages" {
                    result.value = Some(names::text(&flush_messages));
                }
                result
            });
            Ok(told.collect())
        }
        BROKER if name.is_empty() => {
            let all = BROKER_KEYS.iter().filter(|key| wanted(key)).filter_map(|key| {
                let said: Vec<Candidate> = brokers
                    .broker(key)
                    .into_iter()
                    .filter(|said| said.source == Source::AllBrokers)
                    .collect();
                (!said.is_empty()).then(|| result(key, &said, request))
            });
            Ok(all.collect())
        }
        BROKER if name == context.me.to_string() => {
            let keys = BROKER_KEYS.iter().filter(|key| wanted(key));
            Ok(keys.map(|key| result(key, &brokers.broker(key), request)).collect())
        }
        BROKER => {
            let message = format!("Unexpected broker id, expected {} but received {name}", context.me);
            Err(AdminError::new(ErrorCode::INVALID_REQUEST, message))
        }
        other => {
            let message = format!("Resources of type {other} have no configs here.");
            Err(AdminError::new(ErrorCode::INVALID_REQUEST, message))
        }
    }
}

fn result(key: &Key, said: &[Candidate], request: &DescribeConfigsRequest) -> DescribeConfigsResourceResult {
    let first = said.first();
    let source = first.map_or(Source::Default, |first| first.source);
    let mut result = DescribeConfigsResourceResult::default()
        .with_name(names::text(key.name))
        .with_value(first.map(|first| names::text(&first.converted())))
        .with_config_source(source.wire())
        .with_config_type(key.kind.wire());
    if request.include_synonyms {
        let synonyms = said.iter().map(|said| {
            DescribeConfigsSynonym::default()
                .with_name(names::text(said.name))
                .with_value(Some(names::text(&said.value)))
                .with_source(said.source.wire())
        });
        result.synonyms = synonyms.collect();
    }
    if request.include_documentation {
        result.documentation = Some(names::text(key.doc));
    }
    result
}
