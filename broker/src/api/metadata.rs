//! Metadata: brokers, topics, leaders; makes an unknown topic when that is allowed.

use std::sync::Arc;
use std::time::Duration;

use loggos_protocol::ids::{BrokerId, TopicId, TopicName};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use loggos_protocol::kafka::messages::{MetadataRequest, MetadataResponse};

use super::{Context, names};
use crate::config::Configs;
use crate::controller::{Placement, Wish};
use crate::metadata::{TopicView, View};

/// How long a request waits for a topic that it has made.
const CREATION_DEADLINE: Duration = Duration::from_secs(5);
/// What stands for "not asked for".
const NO_OPERATIONS: i32 = i32::MIN;

pub(super) async fn handle(context: Arc<Context>, request: MetadataRequest) -> MetadataResponse {
    let mut view = context.metadata.view();
    let mut topics = Vec::new();
    match &request.topics {
        None => topics.extend(view.topics.values().map(|topic| described(topic, &view))),
        Some(asked) => {
            for topic in asked {
                let id = TopicId::new(topic.topic_id);
                // Who asks by identity may send an empty name with it, as Java's client does.
                let by_name = topic.name.as_ref().filter(|_| id == TopicId::NONE).map(names::topic);
                if let Some(name) = &by_name
                    && !view.topics.contains_key(name)
                    && request.allow_auto_topic_creation
                    && context.table.configs().flag("auto.create.topics.enable")
                    && TopicName::is_valid(name.as_str())
                {
                    make(&context, name).await;
                    view = context.metadata.view();
                }
                topics.push(match by_name {
                    Some(name) => match view.topics.get(&name) {
                        Some(topic) => described(topic, &view),
                        None => unknown(&name),
                    },
                    None => match view.topic_by_id(id) {
                        Some(topic) => described(topic, &view),
                        None => MetadataResponseTopic::default()
                            .with_error_code(ErrorCode::UNKNOWN_TOPIC_ID.raw())
                            .with_name(None)
                            .with_topic_id(id.raw())
                            .with_topic_authorized_operations(NO_OPERATIONS),
                    },
                });
            }
        }
    }
    let brokers = view.brokers.iter().map(|(id, broker)| {
        MetadataResponseBroker::default()
            .with_node_id(names::broker(*id))
            .with_host(names::text(&broker.host))
            .with_port(broker.port.into())
            .with_rack(names::optional(broker.rack.clone()))
    });
    MetadataResponse::default()
        .with_brokers(brokers.collect())
        .with_cluster_id(Some(names::text(&view.cluster_id)))
        .with_controller_id(names::broker(view.controller.unwrap_or(BrokerId::NONE)))
        .with_topics(topics)
        .with_cluster_authorized_operations(NO_OPERATIONS)
}

/// Makes a topic on the defaults. Who asks again finds it.
async fn make(context: &Context, name: &TopicName) {
    let placement = Placement::Automatic { partitions: -1, factor: -1 };
    let wish = Wish { name: name.clone(), placement, configs: Configs::new() };
    let made = match context.admin.check_topic(&wish, context.defaults()) {
        Ok(topic) => context.admin.create_topic(&topic).await,
        Err(error) => Err(error),
    };
    match made {
        Ok(()) => {
            tracing::info!(topic = %name, "made because it was asked for");
            context.settled(CREATION_DEADLINE, |view| view.topics.contains_key(name)).await;
        }
        Err(error) => tracing::debug!(topic = %name, %error, "not made"),
    }
}

fn unknown(name: &TopicName) -> MetadataResponseTopic {
    let code = if TopicName::is_valid(name.as_str()) {
        ErrorCode::UNKNOWN_TOPIC_OR_PARTITION
    } else {
        ErrorCode::INVALID_TOPIC_EXCEPTION
    };
    MetadataResponseTopic::default()
        .with_error_code(code.raw())
        .with_name(Some(names::wire_topic(name)))
        .with_topic_authorized_operations(NO_OPERATIONS)
}

fn described(topic: &TopicView, view: &View) -> MetadataResponseTopic {
    let partitions = topic.partitions.iter().map(|(id, partition)| {
        let has_leader = view.brokers.contains_key(&partition.leader);
        let code = if has_leader { ErrorCode::NONE } else { ErrorCode::LEADER_NOT_AVAILABLE };
        let leader = if has_leader { partition.leader } else { BrokerId::NONE };
        let offline: Vec<BrokerId> =
            partition.replicas.iter().copied().filter(|broker| !view.brokers.contains_key(broker)).collect();
        MetadataResponsePartition::default()
            .with_error_code(code.raw())
            .with_partition_index(id.raw())
            .with_leader_id(names::broker(leader))
            .with_leader_epoch(partition.leader_epoch.raw())
            .with_replica_nodes(names::brokers(&partition.replicas))
            .with_isr_nodes(names::brokers(&partition.isr))
            .with_offline_replicas(names::brokers(&offline))
    });
    MetadataResponseTopic::default()
        .with_name(Some(names::wire_topic(&topic.name)))
        .with_topic_id(topic.id.raw())
        .with_partitions(partitions.collect())
        .with_topic_authorized_operations(NO_OPERATIONS)
}
