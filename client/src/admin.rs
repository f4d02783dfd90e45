//! Topics, partitions, configurations and the cluster itself, as an administrator handles them.
//!
//! Requests go to any broker; one that isn't the controller and minds says so, and the controller is asked then.
//! Called by the tools.

mod moves;

use std::collections::BTreeMap;

use loggos_protocol::ids::{BrokerId, Offset, TopicName, TopicPartition};
use loggos_protocol::kafka::messages::create_partitions_request::CreatePartitionsTopic;
use loggos_protocol::kafka::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use loggos_protocol::kafka::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use loggos_protocol::kafka::messages::delete_topics_request::DeleteTopicState;
use loggos_protocol::kafka::messages::describe_configs_request::DescribeConfigsResource;
use loggos_protocol::kafka::messages::describe_configs_response::DescribeConfigsResourceResult;
use loggos_protocol::kafka::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use loggos_protocol::kafka::messages::{
    CreatePartitionsRequest, CreateTopicsRequest, DeleteRecordsRequest, DeleteTopicsRequest,
    DescribeClusterRequest, DescribeConfigsRequest, IncrementalAlterConfigsRequest,
};
use loggos_protocol::kafka::{ErrorCode, KafkaRequest, StrBytes};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, Lane, wire_name};
use crate::error::ClientError;
use crate::metadata::{Node, TopicMetadata};

pub use moves::{Election, Outcome, Reassignment};

/// Kafka's number for "a topic's configuration".
const TOPIC_RESOURCE: i8 = 2;
/// Kafka's number for "a broker's configuration".
const BROKER_RESOURCE: i8 = 4;
/// Kafka's number for "the default", where a configuration's value comes from.
const SOURCE_DEFAULT: i8 = 5;
/// Kafka's number for "this topic's own".
const SOURCE_TOPIC: i8 = 1;

/// A topic to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name.
    pub name: TopicName,
    /// How many partitions; the cluster's default when absent.
    pub partitions: Option<i32>,
    /// How many copies; the cluster's default when absent.
    pub replication_factor: Option<i16>,
    /// Configurations that differ from the defaults.
    pub configs: BTreeMap<String, String>,
}

/// Whose configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigOwner {
    /// A topic's.
    Topic(TopicName),
    /// A broker's.
    Broker(BrokerId),
}

impl ConfigOwner {
    fn on_the_wire(&self) -> (i8, StrBytes) {
        match self {
            Self::Topic(name) => (TOPIC_RESOURCE, StrBytes::from_string(name.as_str().to_owned())),
            Self::Broker(id) => (BROKER_RESOURCE, StrBytes::from_string(id.to_string())),
        }
    }
}

/// One configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigValue {
    /// Its name.
    pub name: String,
    /// Its value; `None` when the broker keeps it to itself.
    pub value: Option<String>,
    /// Whether it is the default that nobody changed.
    pub is_default: bool,
    /// Whether it was set for this very topic, not for the cluster.
    pub is_own: bool,
    /// Whether it can't be changed.
    pub read_only: bool,
}

/// A change of one configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigChange {
    /// To this value.
    Set(String, String),
    /// Back to the default.
    Delete(String),
}

/// A cluster as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterDescription {
    /// Its name.
    pub cluster_id: String,
    /// Who decides on topics.
    pub controller: BrokerId,
    /// The live brokers.
    pub brokers: Vec<Node>,
}

/// Administers a cluster.
#[derive(Clone, Debug)]
pub struct Admin {
    cluster: Cluster,
}

impl Admin {
    /// An administrator of `cluster`.
    pub const fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// The cluster.
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn timeout_ms(&self) -> i32 {
        i32::try_from(self.cluster.config().request_timeout.as_millis()).unwrap_or(i32::MAX)
    }

    /// Asks any broker, and the controller if that one says it must be. `code` finds the answer's error.
    async fn ask<T: KafkaRequest>(
        &self,
        what: &str,
        request: &T,
        code: impl Fn(&T::Response) -> (i16, Option<StrBytes>),
    ) -> Result<T::Response, ClientError> {
        let timeout = self.cluster.config().request_timeout;
        let deadline = Instant::now() + timeout;
        let mut connection = self.cluster.any().await?;
        let mut failures = 0;
        loop {
            let response = connection.call(request, timeout).await?;
            let (raw, message) = code(&response);
            let code = ErrorCode::new(raw);
            if code.is_none() {
                return Ok(response);
            }
            failures += 1;
            let pause = self.cluster.backoff(failures);
            if code != ErrorCode::NOT_CONTROLLER || Instant::now() + pause >= deadline {
                let message = message.map(|message| message.to_string());
                return Err(ClientError::Refused { what: what.to_owned(), code, message });
            }
            sleep(pause).await;
            let metadata = self.cluster.refresh_all().await?;
            connection = match metadata.controller {
                Some(controller) => self.cluster.connection(controller, Lane::Control).await?,
                None => self.cluster.any().await?,
            };
        }
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// `Refused` with `TOPIC_ALREADY_EXISTS` and others of Kafka's.
    pub async fn create_topic(&self, topic: &NewTopic) -> Result<(), ClientError> {
        let config = |(name, value): (&String, &String)| {
            CreatableTopicConfig::default()
                .with_name(StrBytes::from_string(name.clone()))
                .with_value(Some(StrBytes::from_string(value.clone())))
        };
        let wanted = CreatableTopic::default()
            .with_name(wire_name(&topic.name))
            .with_num_partitions(topic.partitions.unwrap_or(-1))
            .with_replication_factor(topic.replication_factor.unwrap_or(-1))
            .with_configs(topic.configs.iter().map(config).collect());
        let request =
            CreateTopicsRequest::default().with_topics(vec![wanted]).with_timeout_ms(self.timeout_ms());
        let what = format!("creating topic '{}'", topic.name);
        let code = |response: &loggos_protocol::kafka::messages::CreateTopicsResponse| {
            first(response.topics.iter().map(|topic| (topic.error_code, topic.error_message.clone())))
        };
        self.ask(&what, &request, code).await.map(|_| ())
    }

    /// Every topic.
    ///
    /// # Errors
    /// `Unreachable` and its like.
    pub async fn list_topics(&self) -> Result<BTreeMap<TopicName, TopicMetadata>, ClientError> {
        Ok(self.cluster.refresh_all().await?.topics.clone())
    }

    /// One topic, as it is now.
    ///
    /// # Errors
    /// `Refused` with `UNKNOWN_TOPIC_OR_PARTITION`.
    pub async fn describe_topic(&self, topic: &TopicName) -> Result<TopicMetadata, ClientError> {
        let metadata = self.cluster.refresh(std::slice::from_ref(topic)).await?;
        let unknown =
            || ClientError::refused(format!("topic '{topic}'"), ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
        let found = metadata.topics.get(topic).ok_or_else(unknown)?;
        found.error.ok().map_err(|code| ClientError::refused(format!("topic '{topic}'"), code))?;
        Ok(found.clone())
    }

    /// Deletes a topic and its records.
    ///
    /// # Errors
    /// `Refused` with `UNKNOWN_TOPIC_OR_PARTITION`.
    pub async fn delete_topic(&self, topic: &TopicName) -> Result<(), ClientError> {
        // Up to version 5 names stand in a list of their own; the encoder takes the field that the version has.
        let version = self.cluster.any().await?.version_of(loggos_protocol::kafka::ApiKey::DeleteTopics);
        let request = DeleteTopicsRequest::default().with_timeout_ms(self.timeout_ms());
        let request = if version.is_some_and(|version| version >= 6) {
            request.with_topics(vec![DeleteTopicState::default().with_name(Some(wire_name(topic)))])
        } else {
            request.with_topic_names(vec![wire_name(topic)])
        };
        let code = |response: &loggos_protocol::kafka::messages::DeleteTopicsResponse| {
            first(response.responses.iter().map(|topic| (topic.error_code, topic.error_message.clone())))
        };
        self.ask(&format!("deleting topic '{topic}'"), &request, code).await.map(|_| ())
    }

    /// Gives a topic more partitions, `count` in all.
    ///
    /// # Errors
    /// `Refused` with `INVALID_PARTITIONS` when it has as many.
    pub async fn create_partitions(&self, topic: &TopicName, count: i32) -> Result<(), ClientError> {
        let wanted = CreatePartitionsTopic::default()
            .with_name(wire_name(topic))
            .with_count(count)
            .with_assignments(None);
        let request =
            CreatePartitionsRequest::default().with_topics(vec![wanted]).with_timeout_ms(self.timeout_ms());
        let code = |response: &loggos_protocol::kafka::messages::CreatePartitionsResponse| {
            first(response.results.iter().map(|topic| (topic.error_code, topic.error_message.clone())))
        };
        self.ask(&format!("adding partitions to '{topic}'"), &request, code).await.map(|_| ())
    }

    /// All configurations of a topic or a broker.
    ///
    /// # Errors
    /// `Refused`.
    pub async fn describe_configs(&self, owner: &ConfigOwner) -> Result<Vec<ConfigValue>, ClientError> {
        let (kind, name) = owner.on_the_wire();
        let what = format!("describing the configuration of '{name}'");
        let resource = DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(name)
            .with_configuration_keys(None);
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        let code = |response: &loggos_protocol::kafka::messages::DescribeConfigsResponse| {
            first(response.results.iter().map(|result| (result.error_code, result.error_message.clone())))
        };
        let response = match owner {
            ConfigOwner::Topic(_) => self.ask(&what, &request, code).await?,
            // What a broker was started with only it knows.
            ConfigOwner::Broker(broker) => {
                self.cluster.refresh_all().await?;
                let connection = self.cluster.connection(*broker, Lane::Control).await?;
                let response = connection.call(&request, self.cluster.config().request_timeout).await?;
                let (refusal, message) = code(&response);
                let message = message.map(|message| message.to_string());
                let code = ErrorCode::new(refusal);
                if !code.is_none() {
                    return Err(ClientError::Refused { what, code, message });
                }
                response
            }
        };
        Ok(response.results.iter().flat_map(|result| &result.configs).map(config_value).collect())
    }

    /// Changes some configurations, and leaves the others alone.
    ///
    /// # Errors
    /// `Refused` with `INVALID_CONFIG`.
    pub async fn alter_configs(
        &self,
        owner: &ConfigOwner,
        changes: &[ConfigChange],
    ) -> Result<(), ClientError> {
        let (kind, name) = owner.on_the_wire();
        let what = format!("changing the configuration of '{name}'");
        let change = |change: &ConfigChange| match change {
            ConfigChange::Set(name, value) => AlterableConfig::default()
                .with_name(StrBytes::from_string(name.clone()))
                .with_config_operation(0)
                .with_value(Some(StrBytes::from_string(value.clone()))),
            ConfigChange::Delete(name) => AlterableConfig::default()
                .with_name(StrBytes::from_string(name.clone()))
                .with_config_operation(1)
                .with_value(None),
        };
        let resource = AlterConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(name)
            .with_configs(changes.iter().map(change).collect());
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        let code = |response: &loggos_protocol::kafka::messages::IncrementalAlterConfigsResponse| {
            first(response.responses.iter().map(|result| (result.error_code, result.error_message.clone())))
        };
        self.ask(&what, &request, code).await.map(|_| ())
    }

    /// Deletes a partition's records before `offset`; gives the first offset that is left.
    ///
    /// # Errors
    /// `Refused` with `OFFSET_OUT_OF_RANGE` when there are not so many.
    pub async fn delete_records(
        &self,
        partition: &TopicPartition,
        offset: Offset,
    ) -> Result<Offset, ClientError> {
        let wanted = DeleteRecordsPartition::default()
            .with_partition_index(partition.partition.raw())
            .with_offset(offset.raw());
        let topic = DeleteRecordsTopic::default()
            .with_name(wire_name(&partition.topic))
            .with_partitions(vec![wanted]);
        let request =
            DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(self.timeout_ms());
        let leader = self.cluster.leader(partition).await?;
        let connection = self.cluster.connection(leader, Lane::Control).await?;
        let response = connection.call(&request, self.cluster.config().request_timeout).await?;
        let what = format!("deleting records of {partition}");
        let Some(answer) = response.topics.iter().flat_map(|topic| &topic.partitions).next() else {
            return Err(ClientError::refused(what, ErrorCode::UNKNOWN_SERVER_ERROR));
        };
        ErrorCode::new(answer.error_code).ok().map_err(|code| ClientError::refused(what, code))?;
        Ok(Offset::new(answer.low_watermark))
    }

    /// The cluster's name, controller and brokers.
    ///
    /// # Errors
    /// `Refused`, `Unreachable`.
    pub async fn describe_cluster(&self) -> Result<ClusterDescription, ClientError> {
        let code = |response: &loggos_protocol::kafka::messages::DescribeClusterResponse| {
            (response.error_code, response.error_message.clone())
        };
        let response = self.ask("describing the cluster", &DescribeClusterRequest::default(), code).await?;
        let node =
            |broker: &loggos_protocol::kafka::messages::describe_cluster_response::DescribeClusterBroker| {
                Node {
                    id: BrokerId::new(broker.broker_id.0),
                    host: broker.host.to_string(),
                    port: broker.port,
                    rack: broker.rack.as_ref().map(ToString::to_string),
                }
            };
        Ok(ClusterDescription {
            cluster_id: response.cluster_id.to_string(),
            controller: BrokerId::new(response.controller_id.0),
            brokers: response.brokers.iter().map(node).collect(),
        })
    }
}

/// The code of the one thing that was asked for; an answer without it is an error too.
fn first(mut codes: impl Iterator<Item = (i16, Option<StrBytes>)>) -> (i16, Option<StrBytes>) {
    codes.next().unwrap_or((ErrorCode::UNKNOWN_SERVER_ERROR.raw(), None))
}

fn config_value(config: &DescribeConfigsResourceResult) -> ConfigValue {
    ConfigValue {
        name: config.name.to_string(),
        value: config.value.as_ref().map(ToString::to_string),
        is_default: config.config_source == SOURCE_DEFAULT,
        is_own: config.config_source == SOURCE_TOPIC,
        read_only: config.read_only,
    }
}
