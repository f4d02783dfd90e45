//! AlterPartitionReassignments (KIP-455): partitions move to other brokers, or stay after all. The answer comes when the
//! registry has it; the controller sees it through.

use std::collections::BTreeMap;
use std::sync::Arc;

use loggos_protocol::ids::{BrokerId, PartitionId, TopicName};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::alter_partition_reassignments_request::ReassignableTopic;
use loggos_protocol::kafka::messages::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use loggos_protocol::kafka::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse,
};

use super::{Context, names, patience, told};
use crate::controller::{AdminError, Target};
use crate::metadata::View;

pub(super) async fn handle(
    context: Arc<Context>,
    version: i16,
    request: AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    let may_resize = version == 0 || request.allow_replication_factor_change;
    let mut responses = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let name = names::topic(&topic.name);
        let (targets, mut answers) = targets(&context.metadata.view(), topic, &name, may_resize);
        if !targets.is_empty() {
            answers.extend(context.admin.reassign(&name, &targets).await);
        }
        let done = |id: &PartitionId| answers.get(id).is_some_and(Result::is_ok);
        let moved: Vec<(PartitionId, Target)> = targets.into_iter().filter(|(id, _)| done(id)).collect();
        if !moved.is_empty() {
            // Whoever asks this broker next is to see what was asked for.
            let shows = |view: &View| shows(view, &name, &moved);
            context.settled(patience(request.timeout_ms), shows).await;
        }
        let partitions = answers.into_iter().map(|(id, result)| {
            let (code, message) = told(result);
            ReassignablePartitionResponse::default()
                .with_partition_index(id.raw())
                .with_error_code(code.raw())
                .with_error_message(names::optional(message))
        });
        responses.push(
            ReassignableTopicResponse::default()
                .with_name(names::wire_topic(&name))
                .with_partitions(partitions.collect()),
        );
    }
    AlterPartitionReassignmentsResponse::default()
        .with_error_message(None)
        .with_allow_replication_factor_change(may_resize)
        .with_responses(responses)
}

type Answers = BTreeMap<PartitionId, Result<(), AdminError>>;

/// What is asked for, and what is refused at once.
fn targets(
    view: &View,
    topic: &ReassignableTopic,
    name: &TopicName,
    may_resize: bool,
) -> (BTreeMap<PartitionId, Target>, Answers) {
    let (mut targets, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for partition in &topic.partitions {
        let id = PartitionId::new(partition.partition_index);
        let target: Target = partition
            .replicas
            .as_ref()
            .map(|replicas| replicas.iter().map(|broker| BrokerId::new(broker.0)).collect());
        let known = view.topics.get(name).and_then(|topic| topic.partitions.get(&id));
        let before = known.map(|known| known.replicas.len() - known.adding.len());
        match (&target, before) {
            (Some(target), Some(before)) if !may_resize && target.len() != before => {
                let message = format!("The replication factor is changed from {before} to {}.", target.len());
                refused.insert(id, Err(AdminError::new(ErrorCode::INVALID_REPLICATION_FACTOR, message)));
            }
            _ => {
                targets.insert(id, target);
            }
        }
    }
    (targets, refused)
}

fn shows(view: &View, name: &TopicName, moved: &[(PartitionId, Target)]) -> bool {
    let Some(topic) = view.topics.get(name) else { return true };
    moved.iter().all(|(id, target)| match (topic.partitions.get(id), target) {
        (Some(partition), Some(target)) => partition.target() == *target,
        (Some(partition), None) => !partition.is_reassigning(),
        (None, _) => true,
    })
}
