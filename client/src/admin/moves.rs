//! Who leads and who keeps what: elections that are asked for, and partitions that move to other brokers.

use std::collections::BTreeMap;

use loggos_protocol::ids::{BrokerId, PartitionId, TopicName, TopicPartition};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use loggos_protocol::kafka::messages::elect_leaders_request::TopicPartitions;
use loggos_protocol::kafka::messages::{
    self, AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, ElectLeadersRequest,
    ElectLeadersResponse, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};

use super::Admin;
use crate::cluster::wire_name;
use crate::error::ClientError;

/// Which replica is to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Election {
    /// The preferred one, the first in the list.
    Preferred,
    /// Any that lives, where none in sync does: records may be lost.
    Unclean,
}

/// A partition that moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reassignment {
    /// All its replicas.
    pub replicas: Vec<BrokerId>,
    /// Those of them that are new.
    pub adding: Vec<BrokerId>,
    /// Those that go in the end.
    pub removing: Vec<BrokerId>,
}

/// What became of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Which.
    pub partition: TopicPartition,
    /// Kafka's code.
    pub code: ErrorCode,
    /// The broker's sentence.
    pub message: Option<String>,
}

impl Admin {
    /// Holds elections for `partitions`; each has its own outcome.
    ///
    /// # Errors
    /// `Refused` as a whole, `Unreachable`.
    pub async fn elect_leaders(
        &self,
        partitions: &[TopicPartition],
        election: Election,
    ) -> Result<Vec<Outcome>, ClientError> {
        let mut topics: BTreeMap<&TopicName, Vec<i32>> = BTreeMap::new();
        for partition in partitions {
            topics.entry(&partition.topic).or_default().push(partition.partition.raw());
        }
        let asked = topics.into_iter().map(|(name, partitions)| {
            TopicPartitions::default().with_topic(wire_name(name)).with_partitions(partitions)
        });
        let request = ElectLeadersRequest::default()
            .with_election_type(i8::from(election == Election::Unclean))
            .with_topic_partitions(Some(asked.collect()))
            .with_timeout_ms(self.timeout_ms());
        let code = |response: &ElectLeadersResponse| (response.error_code, None);
        let response = self.ask("electing leaders", &request, code).await?;
        let results = response.replica_election_results.iter().flat_map(|topic| {
            topic.partition_result.iter().map(|result| Outcome {
                partition: named(&topic.topic, result.partition_id),
                code: ErrorCode::new(result.error_code),
                message: result.error_message.as_ref().map(ToString::to_string),
            })
        });
        Ok(results.collect())
    }

    /// Moves partitions to the replicas given, or gives a move up where none are; each has its own outcome.
    ///
    /// # Errors
    /// `Refused` as a whole, `Unreachable`.
    pub async fn reassign(
        &self,
        moves: &BTreeMap<TopicPartition, Option<Vec<BrokerId>>>,
    ) -> Result<Vec<Outcome>, ClientError> {
        let mut topics: BTreeMap<&TopicName, Vec<ReassignablePartition>> = BTreeMap::new();
        for (partition, replicas) in moves {
            let replicas = replicas.as_ref().map(|replicas| {
                replicas.iter().map(|broker| messages::BrokerId(broker.raw())).collect::<Vec<_>>()
            });
            topics.entry(&partition.topic).or_default().push(
                ReassignablePartition::default()
                    .with_partition_index(partition.partition.raw())
                    .with_replicas(replicas),
            );
        }
        let topics = topics.into_iter().map(|(name, partitions)| {
            ReassignableTopic::default().with_name(wire_name(name)).with_partitions(partitions)
        });
        let request = AlterPartitionReassignmentsRequest::default()
            .with_topics(topics.collect())
            .with_timeout_ms(self.timeout_ms());
        let code = |response: &AlterPartitionReassignmentsResponse| {
            (response.error_code, response.error_message.clone())
        };
        let response = self.ask("moving partitions", &request, code).await?;
        let results = response.responses.iter().flat_map(|topic| {
            topic.partitions.iter().map(|result| Outcome {
                partition: named(&topic.name, result.partition_index),
                code: ErrorCode::new(result.error_code),
                message: result.error_message.as_ref().map(ToString::to_string),
            })
        });
        Ok(results.collect())
    }

    /// The partitions that are moving.
    ///
    /// # Errors
    /// `Refused`, `Unreachable`.
    pub async fn reassignments(&self) -> Result<BTreeMap<TopicPartition, Reassignment>, ClientError> {
        let request =
            ListPartitionReassignmentsRequest::default().with_topics(None).with_timeout_ms(self.timeout_ms());
        let code = |response: &ListPartitionReassignmentsResponse| {
            (response.error_code, response.error_message.clone())
        };
        let response = self.ask("listing the partitions that move", &request, code).await?;
        let moving = response.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|moving| {
                let reassignment = Reassignment {
                    replicas: brokers(&moving.replicas),
                    adding: brokers(&moving.adding_replicas),
                    removing: brokers(&moving.removing_replicas),
                };
                (named(&topic.name, moving.partition_index), reassignment)
            })
        });
        Ok(moving.collect())
    }
}

fn named(topic: &messages::TopicName, partition: i32) -> TopicPartition {
    TopicPartition { topic: TopicName::new(topic.0.as_str()), partition: PartitionId::new(partition) }
}

fn brokers(ids: &[messages::BrokerId]) -> Vec<BrokerId> {
    ids.iter().map(|id| BrokerId::new(id.0)).collect()
}
