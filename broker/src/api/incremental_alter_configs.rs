//! IncrementalAlterConfigs: sets, deletes, appends to and takes from single configs (KIP-339).

use std::sync::Arc;

use loggos_protocol::ids::{BrokerId, TopicName};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::incremental_alter_configs_request::AlterConfigsResource;
use loggos_protocol::kafka::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use loggos_protocol::kafka::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use super::describe_configs::{BROKER, TOPIC};
use super::{Context, names, no_topic, told};
use crate::config::{self, Configs, FORGOTTEN, Kind};
use crate::controller::{AdminError, Entity, check_topic_config};

pub(super) async fn handle(
    context: Arc<Context>,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in &request.resources {
        let (code, message) = told(alter(&context, resource, request.validate_only).await);
        responses.push(
            AlterConfigsResourceResponse::default()
                .with_error_code(code.raw())
                .with_error_message(names::optional(message))
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name.clone()),
        );
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

async fn alter(
    context: &Context,
    resource: &AlterConfigsResource,
    validate_only: bool,
) -> Result<(), AdminError> {
    let entity = entity(context, resource.resource_type, resource.resource_name.as_str())?;
    let change = |mut configs: Configs| {
        for config in &resource.configs {
            let value = config.value.as_ref().map(|value| value.as_str());
            apply(&mut configs, config.name.as_str(), config.config_operation, value)?;
        }
        check(&entity, &configs)?;
        Ok(configs)
    };
    context.change_configs(&entity, change, validate_only).await
}

/// What has the configs that a request names.
pub(super) fn entity(context: &Context, resource_type: i8, name: &str) -> Result<Entity, AdminError> {
    let view = context.metadata.view();
    match resource_type {
        TOPIC => {
            let topic = TopicName::new(name);
            if view.topics.contains_key(&topic) { Ok(Entity::Topic(topic)) } else { Err(no_topic(&topic)) }
        }
        BROKER if name.is_empty() => Ok(Entity::Broker(None)),
        BROKER => {
            let id = name.parse().map(BrokerId::new).ok().filter(|id| view.brokers.contains_key(id));
            let unknown =
                || AdminError::new(ErrorCode::INVALID_REQUEST, format!("There is no broker {name}."));
            id.map(|id| Entity::Broker(Some(id))).ok_or_else(unknown)
        }
        other => {
            let message = format!("Resources of type {other} have no configs here.");
            Err(AdminError::new(ErrorCode::INVALID_REQUEST, message))
        }
    }
}

/// Says what is wrong with an entity's configs, if anything is.
pub(super) fn check(entity: &Entity, configs: &Configs) -> Result<(), AdminError> {
    for (name, value) in configs {
        match entity {
            Entity::Topic(_) => check_topic_config(name, value)?,
            Entity::Broker(_) => {
                let invalid = |message: String| AdminError::new(ErrorCode::INVALID_CONFIG, message);
                let key = config::broker_key(name)
                    .ok_or_else(|| invalid(format!("Unknown broker config: {name}")))?;
                config::check(key, value).map_err(invalid)?;
            }
        }
    }
    Ok(())
}

fn apply(configs: &mut Configs, name: &str, operation: i8, value: Option<&str>) -> Result<(), AdminError> {
    if FORGOTTEN.contains(&name) {
        return Ok(());
    }
    let invalid = |message: String| AdminError::new(ErrorCode::INVALID_CONFIG, message);
    let value = || value.ok_or_else(|| invalid(format!("{name} was given no value")));
    let is_list = config::topic_key(name).or_else(|| config::broker_key(name));
    let is_list = is_list.is_some_and(|key| matches!(key.kind, Kind::List(_)));
    match operation {
        0 => {
            configs.insert(name.to_owned(), value()?.to_owned());
        }
        1 => {
            configs.remove(name);
        }
        2 | 3 if !is_list => return Err(invalid(format!("{name} is not a list: it can't be appended to"))),
        2 | 3 => {
            let default = config::topic_key(name).map_or("", |key| key.default);
            let held = configs.get(name).map_or(default, String::as_str);
            let mut words: Vec<&str> = held.split(',').filter(|word| !word.is_empty()).collect();
            for word in value()?.split(',').map(str::trim) {
                words.retain(|known| *known != word);
                if operation == 2 {
                    words.push(word);
                }
            }
            let joined = words.join(",");
            configs.insert(name.to_owned(), joined);
        }
        other => {
            let message = format!("Unknown operation {other} on {name}");
            return Err(AdminError::new(ErrorCode::INVALID_REQUEST, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_appended_to_and_taken_from() {
        let mut configs = Configs::new();
        apply(&mut configs, "cleanup.policy", 2, Some("compact")).expect("a list");
        assert_eq!(configs["cleanup.policy"], "delete,compact");
        apply(&mut configs, "cleanup.policy", 3, Some("delete")).expect("a list");
        assert_eq!(configs["cleanup.policy"], "compact");
        apply(&mut configs, "cleanup.policy", 1, None).expect("anything can be deleted");
        assert!(configs.is_empty());
        apply(&mut configs, "retention.ms", 2, Some("1")).expect_err("not a list");
    }
}
