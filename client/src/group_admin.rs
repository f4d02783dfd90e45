//! Consumer groups, as an administrator handles them: what there is, who holds what, where it stands, and where it is
//! to go on. The half of [`Admin`] that talks to the groups' own brokers. Called by the tools.

use std::collections::BTreeMap;

use loggos_protocol::ids::{BrokerId, GroupId, LeaderEpoch, Offset, PartitionId, TopicName, TopicPartition};
use loggos_protocol::kafka::consumer_protocol;
use loggos_protocol::kafka::messages::consumer_group_describe_response::DescribedGroup as DescribedConsumerGroup;
use loggos_protocol::kafka::messages::describe_groups_response::DescribedGroup;
use loggos_protocol::kafka::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use loggos_protocol::kafka::messages::offset_fetch_request::OffsetFetchRequestGroup;
use loggos_protocol::kafka::messages::{
    self, ConsumerGroupDescribeRequest, DeleteGroupsRequest, DescribeGroupsRequest, FindCoordinatorRequest,
    ListGroupsRequest, OffsetCommitRequest, OffsetFetchRequest,
};
use loggos_protocol::kafka::{ApiKey, ErrorCode, KafkaRequest, StrBytes};
use tokio::time::{Instant, sleep};

use crate::admin::Admin;
use crate::cluster::{Lane, wire_name};
use crate::error::ClientError;

/// The first version of FindCoordinator, and of OffsetFetch, that asks for many at once.
const MANY: [i16; 2] = [4, 8];

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    /// Its name.
    pub id: GroupId,
    /// `classic` or `consumer`; empty where the broker doesn't say.
    pub kind: String,
    /// As Kafka's tools show it.
    pub state: String,
}

/// A group's member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Its id.
    pub id: String,
    /// Its static name.
    pub instance: Option<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// Where it is.
    pub host: String,
    /// What it holds.
    pub partitions: Vec<TopicPartition>,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its name.
    pub id: GroupId,
    /// `classic` or `consumer`.
    pub kind: String,
    /// As Kafka's tools show it.
    pub state: String,
    /// The strategy in force; empty without members.
    pub assignor: String,
    /// The broker that runs it.
    pub broker: BrokerId,
    /// Its members.
    pub members: Vec<GroupMember>,
}

impl Admin {
    /// Every group of every broker.
    ///
    /// # Errors
    /// `Refused`, `Unreachable`.
    pub async fn list_groups(&self) -> Result<Vec<GroupListing>, ClientError> {
        let timeout = self.cluster().config().request_timeout;
        let metadata = self.cluster().refresh_all().await?;
        let mut found = BTreeMap::new();
        for broker in metadata.brokers.keys() {
            let connection = self.cluster().connection(*broker, Lane::Control).await?;
            let response = connection.call(&ListGroupsRequest::default(), timeout).await?;
            let code = ErrorCode::new(response.error_code);
            code.ok().map_err(|code| ClientError::refused("listing groups", code))?;
            for group in response.groups {
                let id = GroupId::new(group.group_id.0.as_str());
                let (kind, state) = (group.group_type.to_string(), group.group_state.to_string());
                found.insert(id.clone(), GroupListing { id, kind, state });
            }
        }
        Ok(found.into_values().collect())
    }

    /// The broker that runs a group.
    async fn runner(&self, group: &GroupId) -> Result<BrokerId, ClientError> {
        let connection = self.cluster().any().await?;
        let name = text(group.as_str());
        let many = connection.version_of(ApiKey::FindCoordinator).is_some_and(|version| version >= MANY[0]);
        let request = if many {
            FindCoordinatorRequest::default().with_coordinator_keys(vec![name])
        } else {
            FindCoordinatorRequest::default().with_key(name)
        };
        let response = connection.call(&request, self.cluster().config().request_timeout).await?;
        let (code, id) = match response.coordinators.first() {
            Some(found) => (found.error_code, found.node_id),
            None => (response.error_code, response.node_id),
        };
        let refused = |code| ClientError::refused(format!("looking for the broker of group '{group}'"), code);
        ErrorCode::new(code).ok().map_err(refused)?;
        Ok(BrokerId::new(id.0))
    }

    /// Asks the broker that runs a group, and the next one while it moves. `code` finds the answer's error.
    async fn ask_runner<T: KafkaRequest>(
        &self,
        group: &GroupId,
        what: &str,
        request: &T,
        code: impl Fn(&T::Response) -> i16,
    ) -> Result<(BrokerId, T::Response), ClientError> {
        let timeout = self.cluster().config().request_timeout;
        let deadline = Instant::now() + timeout;
        let mut failures = 0;
        loop {
            let outcome = async {
                let broker = self.runner(group).await?;
                let connection = self.cluster().connection(broker, Lane::Control).await?;
                let response = connection.call(request, timeout).await?;
                ErrorCode::new(code(&response)).ok().map_err(|code| ClientError::refused(what, code))?;
                Ok::<_, ClientError>((broker, response))
            };
            let error = match outcome.await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let moves = error.code().is_none_or(|code| {
                [
                    ErrorCode::NOT_COORDINATOR,
                    ErrorCode::COORDINATOR_NOT_AVAILABLE,
                    ErrorCode::COORDINATOR_LOAD_IN_PROGRESS,
                ]
                .contains(&code)
            });
            failures += 1;
            let pause = self.cluster().backoff(failures);
            if !moves || Instant::now() + pause >= deadline {
                return Err(error);
            }
            sleep(pause).await;
            self.cluster().refresh_all().await?;
        }
    }

    /// One group, whichever protocol it follows.
    ///
    /// # Errors
    /// `Refused` with `GROUP_ID_NOT_FOUND`.
    pub async fn describe_group(&self, group: &GroupId) -> Result<GroupDescription, ClientError> {
        let what = format!("describing group '{group}'");
        let name = messages::GroupId(text(group.as_str()));
        let newer = self.cluster().any().await?.version_of(ApiKey::ConsumerGroupDescribe).is_some();
        if newer {
            let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![name.clone()]);
            let code = |response: &messages::ConsumerGroupDescribeResponse| {
                response
                    .groups
                    .first()
                    .map_or(ErrorCode::UNKNOWN_SERVER_ERROR.raw(), |group| group.error_code)
            };
            match self.ask_runner(group, &what, &request, code).await {
                Ok((broker, response)) => {
                    let described = response.groups.into_iter().next();
                    return described
                        .map(|described| of_consumer(group, broker, described))
                        .ok_or_else(|| ClientError::refused(what, ErrorCode::UNKNOWN_SERVER_ERROR));
                }
                Err(error) if error.code() == Some(ErrorCode::GROUP_ID_NOT_FOUND) => {}
                Err(error) => return Err(error),
            }
        }
        let request = DescribeGroupsRequest::default().with_groups(vec![name]);
        let code = |response: &messages::DescribeGroupsResponse| {
            response.groups.first().map_or(ErrorCode::UNKNOWN_SERVER_ERROR.raw(), |group| group.error_code)
        };
        let (broker, response) = self.ask_runner(group, &what, &request, code).await?;
        match response.groups.into_iter().next() {
            Some(described) if described.group_state.as_str() != "Dead" => {
                Ok(of_classic(group, broker, described))
            }
            _ => Err(ClientError::refused(what, ErrorCode::GROUP_ID_NOT_FOUND)),
        }
    }

    /// Where a group is to go on reading, as far as it has said.
    ///
    /// # Errors
    /// `Refused`; `UNSUPPORTED_VERSION` by brokers older than Kafka 3.0.
    pub async fn group_offsets(
        &self,
        group: &GroupId,
    ) -> Result<BTreeMap<TopicPartition, Offset>, ClientError> {
        let what = format!("fetching the offsets of group '{group}'");
        let version = self.cluster().any().await?.version_of(ApiKey::OffsetFetch);
        if version.is_none_or(|version| version < MANY[1]) {
            return Err(ClientError::refused(what, ErrorCode::UNSUPPORTED_VERSION));
        }
        let asked = OffsetFetchRequestGroup::default()
            .with_group_id(messages::GroupId(text(group.as_str())))
            .with_topics(None);
        let request = OffsetFetchRequest::default().with_groups(vec![asked]);
        let code = |response: &messages::OffsetFetchResponse| {
            response.groups.first().map_or(ErrorCode::UNKNOWN_SERVER_ERROR.raw(), |group| group.error_code)
        };
        let (_, response) = self.ask_runner(group, &what, &request, code).await?;
        let mut found = BTreeMap::new();
        for topic in response.groups.into_iter().flat_map(|group| group.topics) {
            let name = TopicName::new(topic.name.0.as_str());
            for partition in topic.partitions.iter().filter(|partition| partition.committed_offset >= 0) {
                let place = TopicPartition::new(name.clone(), PartitionId::new(partition.partition_index));
                found.insert(place, Offset::new(partition.committed_offset));
            }
        }
        Ok(found)
    }

    /// Says where a group without members is to go on reading.
    ///
    /// # Errors
    /// `Refused` with `UNKNOWN_MEMBER_ID` while the group has members.
    pub async fn set_group_offsets(
        &self,
        group: &GroupId,
        offsets: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<(), ClientError> {
        let mut topics: BTreeMap<&TopicName, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
        for (place, offset) in offsets {
            topics.entry(&place.topic).or_default().push(
                OffsetCommitRequestPartition::default()
                    .with_partition_index(place.partition.raw())
                    .with_committed_offset(offset.raw())
                    .with_committed_leader_epoch(LeaderEpoch::NONE.raw())
                    .with_committed_metadata(Some(StrBytes::default())),
            );
        }
        let topics = topics.into_iter().map(|(name, partitions)| {
            OffsetCommitRequestTopic::default().with_name(wire_name(name)).with_partitions(partitions)
        });
        let request = OffsetCommitRequest::default()
            .with_group_id(messages::GroupId(text(group.as_str())))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(topics.collect());
        let code = |response: &messages::OffsetCommitResponse| {
            let codes = response.topics.iter().flat_map(|topic| &topic.partitions);
            codes.map(|partition| partition.error_code).find(|code| *code != 0).unwrap_or(0)
        };
        let what = format!("setting the offsets of group '{group}'");
        self.ask_runner(group, &what, &request, code).await.map(|_| ())
    }

    /// Removes a group that has no members, with its offsets.
    ///
    /// # Errors
    /// `Refused` with `GROUP_ID_NOT_FOUND`, `NON_EMPTY_GROUP`.
    pub async fn delete_group(&self, group: &GroupId) -> Result<(), ClientError> {
        let names = vec![messages::GroupId(text(group.as_str()))];
        let request = DeleteGroupsRequest::default().with_groups_names(names);
        let code = |response: &messages::DeleteGroupsResponse| {
            response.results.first().map_or(ErrorCode::UNKNOWN_SERVER_ERROR.raw(), |result| result.error_code)
        };
        self.ask_runner(group, &format!("deleting group '{group}'"), &request, code).await.map(|_| ())
    }
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn of_consumer(group: &GroupId, broker: BrokerId, told: DescribedConsumerGroup) -> GroupDescription {
    let members = told.members.into_iter().map(|member| {
        let held = member.assignment.topic_partitions.iter().flat_map(|topic| {
            let name = TopicName::new(topic.topic_name.0.as_str());
            let place = move |id: &i32| TopicPartition::new(name.clone(), PartitionId::new(*id));
            topic.partitions.iter().map(place)
        });
        GroupMember {
            partitions: held.collect(),
            id: member.member_id.to_string(),
            instance: member.instance_id.as_ref().map(ToString::to_string),
            client_id: member.client_id.to_string(),
            host: member.client_host.to_string(),
        }
    });
    GroupDescription {
        id: group.clone(),
        kind: "consumer".to_owned(),
        state: told.group_state.to_string(),
        assignor: told.assignor_name.to_string(),
        broker,
        members: members.collect(),
    }
}

fn of_classic(group: &GroupId, broker: BrokerId, told: DescribedGroup) -> GroupDescription {
    let members = told.members.into_iter().map(|member| {
        let held = consumer_protocol::assignment(&member.member_assignment).unwrap_or_default();
        let each = held.into_iter().flat_map(|(topic, partitions)| {
            partitions.into_iter().map(move |partition| TopicPartition::new(topic.clone(), partition))
        });
        GroupMember {
            partitions: each.collect(),
            id: member.member_id.to_string(),
            instance: member.group_instance_id.as_ref().map(ToString::to_string),
            client_id: member.client_id.to_string(),
            host: member.client_host.to_string(),
        }
    });
    GroupDescription {
        id: group.clone(),
        kind: "classic".to_owned(),
        state: told.group_state.to_string(),
        assignor: told.protocol_data.to_string(),
        broker,
        members: members.collect(),
    }
}
