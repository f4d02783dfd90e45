//! ElectLeaders (KIP-183, KIP-460): preferred replicas lead again, or any replica where none in sync is left.

use std::collections::BTreeMap;
use std::sync::Arc;

use loggos_protocol::ids::PartitionId;
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use loggos_protocol::kafka::messages::{ElectLeadersRequest, ElectLeadersResponse};

use super::{Context, names, told};
use crate::controller::Named;

/// Kafka's numbers of the kinds of elections.
const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: ElectLeadersRequest,
) -> ElectLeadersResponse {
    // Before version 1 there was one kind.
    let kind = if version == 0 { PREFERRED } else { request.election_type };
    if !matches!(kind, PREFERRED | UNCLEAN) {
        return ElectLeadersResponse::default().with_error_code(ErrorCode::INVALID_REQUEST.raw());
    }
    let asked: Option<Vec<Named>> = request.topic_partitions.as_ref().map(|topics| {
        let named = topics.iter().flat_map(|topic| {
            let name = names::topic(&topic.topic);
            topic.partitions.iter().map(move |partition| (name.clone(), PartitionId::new(*partition)))
        });
        named.collect()
    });
    let answers = context.admin.elect_leaders(asked.as_deref(), kind == UNCLEAN).await;
    let mut topics: BTreeMap<_, Vec<PartitionResult>> = BTreeMap::new();
    for ((name, partition), result) in answers {
        let (code, message) = told(result);
        topics.entry(name).or_default().push(
            PartitionResult::default()
                .with_partition_id(partition.raw())
                .with_error_code(code.raw())
                .with_error_message(names::optional(message)),
        );
    }
    let results = topics.into_iter().map(|(name, partitions)| {
        ReplicaElectionResult::default()
            .with_topic(names::wire_topic(&name))
            .with_partition_result(partitions)
    });
    ElectLeadersResponse::default().with_replica_election_results(results.collect())
}
