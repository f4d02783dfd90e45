//! AlterConfigs: replaces all configs of a resource. Old; tools should use IncrementalAlterConfigs.

use std::sync::Arc;

use loggos_protocol::kafka::messages::alter_configs_request::AlterConfigsResource;
use loggos_protocol::kafka::messages::alter_configs_response::AlterConfigsResourceResponse;
use loggos_protocol::kafka::messages::{AlterConfigsRequest, AlterConfigsResponse};

use super::incremental_alter_configs::{check, entity};
use super::{Context, names, told};
use crate::config::{Configs, FORGOTTEN};
use crate::controller::AdminError;

pub(super) async fn handle(context: Arc<Context>, request: AlterConfigsRequest) -> AlterConfigsResponse {
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
    AlterConfigsResponse::default().with_responses(responses)
}

async fn alter(
    context: &Context,
    resource: &AlterConfigsResource,
    validate_only: bool,
) -> Result<(), AdminError> {
    let entity = entity(context, resource.resource_type, resource.resource_name.as_str())?;
    let given = resource.configs.iter().filter(|config| !FORGOTTEN.contains(&config.name.as_str()));
    let all: Configs = given
        .filter_map(|config| Some((config.name.to_string(), config.value.as_ref()?.to_string())))
        .collect();
    check(&entity, &all)?;
    context.change_configs(&entity, |_| Ok(all.clone()), validate_only).await
}
