//! The table of Kafka's API keys that Loggos knows, with the versions it can read and write (decision D13).
//!
//! A key being here doesn't mean that it's served: the broker's table of handlers says that, within these ranges.
//! Keys of KRaft's own business (votes, broker registration, snapshots) are absent, as are keys that ended with
//! Kafka 3. Called by `codec`, and by the broker's api to answer ApiVersions.

pub use kafka_protocol::messages::ApiKey;

/// The first and the last version of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// The first version.
    pub min: i16,
    /// The last version.
    pub max: i16,
}

impl VersionRange {
    /// Whether `version` is one of these.
    pub const fn contains(&self, version: i16) -> bool {
        self.min <= version && version <= self.max
    }
}

/// What is known of one API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api {
    /// The key.
    pub key: ApiKey,
    /// Kafka's name of the key.
    pub name: &'static str,
    /// The versions that can be decoded and answered.
    pub versions: VersionRange,
    /// The first version to tell clients of, where it's below the first that can be decoded.
    pub advertised_min: i16,
    /// The first version with compact lengths and tagged fields (KIP-482); above the range when there is none.
    pub flexible_from: i16,
}

impl Api {
    /// Whether `version` has compact lengths and tagged fields.
    pub const fn is_flexible(&self, version: i16) -> bool {
        version >= self.flexible_from
    }

    /// The version of the header in front of a request of `version`.
    pub const fn request_header_version(&self, version: i16) -> i16 {
        if self.is_flexible(version) { 2 } else { 1 }
    }

    /// The version of the header in front of a response of `version`. ApiVersions' is always 0: a client that
    /// asked with a version too new must be able to read the refusal.
    pub const fn response_header_version(&self, version: i16) -> i16 {
        if self.is_flexible(version) && !matches!(self.key, ApiKey::ApiVersions) { 1 } else { 0 }
    }
}

/// Above every version: the key has no flexible one.
const NEVER: i16 = i16::MAX;

const fn api(key: ApiKey, name: &'static str, min: i16, max: i16, flexible_from: i16) -> Api {
    // Old librdkafka takes a Produce that starts above 0 for a broker without message format 2 (KAFKA-18659).
    let advertised_min = if matches!(key, ApiKey::Produce) { 0 } else { min };
    Api { key, name, versions: VersionRange { min, max }, advertised_min, flexible_from }
}

/// Every key that Loggos knows, by number.
pub const APIS: &[Api] = &[
    api(ApiKey::Produce, "Produce", 3, 13, 9),
    api(ApiKey::Fetch, "Fetch", 4, 18, 12),
    api(ApiKey::ListOffsets, "ListOffsets", 1, 10, 6),
    api(ApiKey::Metadata, "Metadata", 0, 13, 9),
    api(ApiKey::OffsetCommit, "OffsetCommit", 2, 9, 8),
    api(ApiKey::OffsetFetch, "OffsetFetch", 1, 9, 6),
    api(ApiKey::FindCoordinator, "FindCoordinator", 0, 6, 3),
    api(ApiKey::JoinGroup, "JoinGroup", 0, 9, 6),
    api(ApiKey::Heartbeat, "Heartbeat", 0, 4, 4),
    api(ApiKey::LeaveGroup, "LeaveGroup", 0, 5, 4),
    api(ApiKey::SyncGroup, "SyncGroup", 0, 5, 4),
    api(ApiKey::DescribeGroups, "DescribeGroups", 0, 6, 5),
    api(ApiKey::ListGroups, "ListGroups", 0, 5, 3),
    api(ApiKey::SaslHandshake, "SaslHandshake", 0, 1, NEVER),
    api(ApiKey::ApiVersions, "ApiVersions", 0, 4, 3),
    api(ApiKey::CreateTopics, "CreateTopics", 2, 7, 5),
    api(ApiKey::DeleteTopics, "DeleteTopics", 1, 6, 4),
    api(ApiKey::DeleteRecords, "DeleteRecords", 0, 2, 2),
    api(ApiKey::InitProducerId, "InitProducerId", 0, 5, 2),
    api(ApiKey::OffsetForLeaderEpoch, "OffsetForLeaderEpoch", 2, 4, 4),
    api(ApiKey::AddPartitionsToTxn, "AddPartitionsToTxn", 0, 5, 3),
    api(ApiKey::AddOffsetsToTxn, "AddOffsetsToTxn", 0, 4, 3),
    api(ApiKey::EndTxn, "EndTxn", 0, 5, 3),
    api(ApiKey::WriteTxnMarkers, "WriteTxnMarkers", 1, 1, 1),
    api(ApiKey::TxnOffsetCommit, "TxnOffsetCommit", 0, 5, 3),
    api(ApiKey::DescribeAcls, "DescribeAcls", 1, 3, 2),
    api(ApiKey::CreateAcls, "CreateAcls", 1, 3, 2),
    api(ApiKey::DeleteAcls, "DeleteAcls", 1, 3, 2),
    api(ApiKey::DescribeConfigs, "DescribeConfigs", 1, 4, 4),
    api(ApiKey::AlterConfigs, "AlterConfigs", 0, 2, 2),
    api(ApiKey::DescribeLogDirs, "DescribeLogDirs", 1, 4, 2),
    api(ApiKey::SaslAuthenticate, "SaslAuthenticate", 0, 2, 2),
    api(ApiKey::CreatePartitions, "CreatePartitions", 0, 3, 2),
    api(ApiKey::DeleteGroups, "DeleteGroups", 0, 2, 2),
    api(ApiKey::ElectLeaders, "ElectLeaders", 0, 2, 2),
    api(ApiKey::IncrementalAlterConfigs, "IncrementalAlterConfigs", 0, 1, 1),
    api(ApiKey::AlterPartitionReassignments, "AlterPartitionReassignments", 0, 1, 0),
    api(ApiKey::ListPartitionReassignments, "ListPartitionReassignments", 0, 0, 0),
    api(ApiKey::OffsetDelete, "OffsetDelete", 0, 0, NEVER),
    api(ApiKey::DescribeClientQuotas, "DescribeClientQuotas", 0, 1, 1),
    api(ApiKey::AlterClientQuotas, "AlterClientQuotas", 0, 1, 1),
    api(ApiKey::DescribeUserScramCredentials, "DescribeUserScramCredentials", 0, 0, 0),
    api(ApiKey::AlterUserScramCredentials, "AlterUserScramCredentials", 0, 0, 0),
    api(ApiKey::DescribeQuorum, "DescribeQuorum", 0, 2, 0),
    api(ApiKey::UpdateFeatures, "UpdateFeatures", 0, 2, 0),
    api(ApiKey::DescribeCluster, "DescribeCluster", 0, 2, 0),
    api(ApiKey::DescribeProducers, "DescribeProducers", 0, 0, 0),
    api(ApiKey::UnregisterBroker, "UnregisterBroker", 0, 0, 0),
    api(ApiKey::DescribeTransactions, "DescribeTransactions", 0, 0, 0),
    api(ApiKey::ListTransactions, "ListTransactions", 0, 2, 0),
    api(ApiKey::ConsumerGroupHeartbeat, "ConsumerGroupHeartbeat", 0, 1, 0),
    api(ApiKey::ConsumerGroupDescribe, "ConsumerGroupDescribe", 0, 1, 0),
    api(ApiKey::GetTelemetrySubscriptions, "GetTelemetrySubscriptions", 0, 0, 0),
    api(ApiKey::PushTelemetry, "PushTelemetry", 0, 0, 0),
    api(ApiKey::ListConfigResources, "ListConfigResources", 0, 1, 0),
    api(ApiKey::DescribeTopicPartitions, "DescribeTopicPartitions", 0, 0, 0),
    api(ApiKey::ShareGroupHeartbeat, "ShareGroupHeartbeat", 1, 1, 0),
    api(ApiKey::ShareGroupDescribe, "ShareGroupDescribe", 1, 1, 0),
    api(ApiKey::ShareFetch, "ShareFetch", 1, 1, 0),
    api(ApiKey::ShareAcknowledge, "ShareAcknowledge", 1, 1, 0),
    api(ApiKey::DescribeShareGroupOffsets, "DescribeShareGroupOffsets", 0, 0, 0),
    api(ApiKey::AlterShareGroupOffsets, "AlterShareGroupOffsets", 0, 0, 0),
    api(ApiKey::DeleteShareGroupOffsets, "DeleteShareGroupOffsets", 0, 0, 0),
];

/// Looks a key up by its number.
pub fn find(key: i16) -> Option<&'static Api> {
    let place = APIS.binary_search_by_key(&key, |api| api.key as i16).ok()?;
    Some(&APIS[place])
}

/// Looks a key up; `None` for the keys that Loggos doesn't know.
pub fn of(key: ApiKey) -> Option<&'static Api> {
    find(key as i16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_found_by_number() {
        assert!(APIS.is_sorted_by(|a, b| (a.key as i16) < (b.key as i16)));
        for api in APIS {
            assert_eq!(find(api.key as i16), Some(api));
            assert!(api.versions.min <= api.versions.max);
        }
        assert_eq!(find(4), None);
        assert_eq!(find(-1), None);
    }

    #[test]
    fn ranges_and_headers_are_those_of_the_message_structs() {
        for api in APIS {
            let known = api.key.valid_versions();
            assert!(known.min <= api.versions.min && api.versions.max <= known.max, "{}", api.name);
            for version in api.versions.min..=api.versions.max {
                let headers = (api.request_header_version(version), api.response_header_version(version));
                let expected =
                    (api.key.request_header_version(version), api.key.response_header_version(version));
                assert_eq!(headers, expected, "{} v{version}", api.name);
            }
            assert_eq!(format!("{:?}", api.key), api.name);
        }
    }

    #[test]
    fn only_produce_is_advertised_below_what_is_decoded() {
        for api in APIS {
            let expected = if api.key == ApiKey::Produce { 0 } else { api.versions.min };
            assert_eq!(api.advertised_min, expected, "{}", api.name);
        }
    }
}
