//! ApiVersions: what is served, in which versions (KIP-35, KIP-511), and which features are on (KIP-584).

use loggos_protocol::kafka::api;
use loggos_protocol::kafka::messages::api_versions_response::{
    ApiVersion, FinalizedFeatureKey, SupportedFeatureKey,
};
use loggos_protocol::kafka::messages::{ApiVersionsRequest, ApiVersionsResponse};

use super::{SERVED, names};

/// The first version that tells features.
const FEATURES: i16 = 3;
/// KIP-848's groups: clients and tools look for it.
const GROUP_VERSION: &str = "group.version";

pub(super) fn handle(version: i16, _request: ApiVersionsRequest) -> ApiVersionsResponse {
    let keys = SERVED.iter().filter_map(|key| api::of(*key)).map(|api| {
        ApiVersion::default()
            .with_api_key(api.key as i16)
            .with_min_version(api.advertised_min)
            .with_max_version(api.versions.max)
    });
    let answer = ApiVersionsResponse::default().with_api_keys(keys.collect());
    if version < FEATURES {
        return answer.with_finalized_features_epoch(-1);
    }
    let supported = SupportedFeatureKey::default()
        .with_name(names::text(GROUP_VERSION))
        .with_min_version(1)
        .with_max_version(1);
    let finalized = FinalizedFeatureKey::default()
        .with_name(names::text(GROUP_VERSION))
        .with_min_version_level(1)
        .with_max_version_level(1);
    answer
        .with_supported_features(vec![supported])
        .with_finalized_features(vec![finalized])
        .with_finalized_features_epoch(0)
}
