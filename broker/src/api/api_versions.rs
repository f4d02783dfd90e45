//! ApiVersions: what is served, in which versions (KIP-35, KIP-511).

use loggos_protocol::kafka::api;
use loggos_protocol::kafka::messages::api_versions_response::ApiVersion;
use loggos_protocol::kafka::messages::{ApiVersionsRequest, ApiVersionsResponse};

use super::SERVED;

pub(super) fn handle(_request: ApiVersionsRequest) -> ApiVersionsResponse {
    let keys = SERVED.iter().filter_map(|key| api::of(*key)).map(|api| {
        ApiVersion::default()
            .with_api_key(api.key as i16)
            .with_min_version(api.advertised_min)
            .with_max_version(api.versions.max)
    });
    ApiVersionsResponse::default().with_api_keys(keys.collect()).with_finalized_features_epoch(-1)
}
