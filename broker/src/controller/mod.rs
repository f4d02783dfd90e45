//! What is decided for the whole cluster: topics are made and deleted, leaders elected. Any broker takes an
//! administrator's request and writes it to the registry; one broker at a time, the controller, looks after the
//! rest. It speaks to the others through the registry alone (decisions D7 and D8).
//!
//! | file | what it knows |
//! |---|---|
//! | `mod` | [`Admin`]: requests on topics, configs, producer ids |
//! | `moves` | requests on who leads and who keeps what |
//! | `elected` | the controller's loop |
//! | `placement`, `election`, `reassignment`, `balance` | which brokers keep and lead what (pure) |

mod balance;
mod elected;
pub mod election;
mod moves;
pub mod placement;
pub mod reassignment;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use loggos_client::registry::{NewTopic, Registry, RegistryError};
use loggos_protocol::ids::{BrokerId, PartitionId, ProducerId, TopicId, TopicName};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::registry::path;
use tokio::sync::Mutex;

use crate::config::{self, Configs};
use crate::metadata::{Metadata, View};

pub use elected::Controller;
pub use moves::{Named, Target};

/// Producer ids that a broker takes at once.
const PRODUCER_ID_BLOCK: i64 = 1000;
/// Attempts at a change that somebody else's may have overtaken.
const ATTEMPTS: usize = 10;
/// How long such a change is waited for to show in this broker's view.
const VIEW_PATIENCE: Duration = Duration::from_secs(2);
/// The most partitions that one request may ask for.
const PARTITIONS_MAX: i32 = 100_000;

/// A request that can't be fulfilled: Kafka's code, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AdminError {
    /// Kafka's code.
    pub code: ErrorCode,
    /// Why.
    pub message: String,
}

impl AdminError {
    /// An error with its sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<RegistryError> for AdminError {
    fn from(error: RegistryError) -> Self {
        let code = match error.root() {
            RegistryError::Exists => ErrorCode::TOPIC_ALREADY_EXISTS,
            RegistryError::Absent => ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
            error if error.retriable() => ErrorCode::REQUEST_TIMED_OUT,
            _ => ErrorCode::UNKNOWN_SERVER_ERROR,
        };
        Self::new(code, error.to_string())
    }
}

/// Where a new topic's replicas are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Wherever there is room: so many partitions, with so many replicas each.
    Automatic {
        /// Partitions; -1 for the broker's default.
        partitions: i32,
        /// Replicas; -1 for the broker's default.
        factor: i16,
    },
    /// Where the request says.
    Explicit(BTreeMap<PartitionId, Vec<BrokerId>>),
}

/// A topic that is asked for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Its name.
    pub name: TopicName,
    /// Where.
    pub placement: Placement,
    /// Its configs.
    pub configs: Configs,
}

/// Defaults that a request may leave open.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// `num.partitions`.
    pub partitions: i32,
    /// `default.replication.factor`.
    pub factor: i16,
}

/// Administrators' requests.
#[derive(Clone)]
pub struct Admin {
    me: BrokerId,
    registry: Registry,
    metadata: Metadata,
    producer_ids: Arc<Mutex<std::ops::Range<i64>>>,
}

impl Admin {
    /// Takes requests on broker `me`.
    pub fn new(me: BrokerId, registry: Registry, metadata: Metadata) -> Self {
        Self { me, registry, metadata, producer_ids: Arc::new(Mutex::new(0..0)) }
    }

    /// Checks a wish and settles what it leaves open, without making anything.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_topic(&self, wish: &Wish, defaults: Defaults) -> Result<NewTopic, AdminError> {
        let view = self.metadata.view();
        let name = wish.name.as_str();
        if !TopicName::is_valid(name) {
            let message =
                format!("'{name}' can't be a topic's name: 1 to 249 letters, digits, '.', '_' and '-'");
            return Err(AdminError::new(ErrorCode::INVALID_TOPIC_EXCEPTION, message));
        }
        if view.topics.contains_key(&wish.name) || view.deletions.contains(&wish.name) {
            return Err(AdminError::new(
                ErrorCode::TOPIC_ALREADY_EXISTS,
                format!("Topic '{name}' already exists."),
            ));
        }
        let alike = |other: &&TopicName| other.as_str().replace('.', "_") == name.replace('.', "_");
        if let Some(other) = view.topics.keys().find(alike) {
            let message = format!("Topic '{name}' collides with existing topics: {other}");
            return Err(AdminError::new(ErrorCode::INVALID_TOPIC_EXCEPTION, message));
        }
        let mut configs = Configs::new();
        for (key, value) in &wish.configs {
            if !config::FORGOTTEN.contains(&key.as_str()) {
                check_topic_config(key, value)?;
                configs.insert(key.clone(), value.clone());
            }
        }
        let replicas = settle(&view, &wish.placement, defaults)?;
        let id = TopicId::new(uuid::Uuid::new_v4());
        Ok(NewTopic { name: wish.name.clone(), id, replicas, configs })
    }

    /// Makes a topic that was checked.
    ///
    /// # Errors
    /// `TOPIC_ALREADY_EXISTS` when somebody was faster; the registry's.
    pub async fn create_topic(&self, topic: &NewTopic) -> Result<(), AdminError> {
        for _ in 0..ATTEMPTS {
            let fence = self.registry.current_fence().await?;
            match self.registry.create_topic(topic, &fence).await {
                // A controller was elected in between.
                Err(error) if matches!(error.root(), RegistryError::Conflict) => {}
                other => return other.map_err(AdminError::from),
            }
        }
        Err(AdminError::new(ErrorCode::NOT_CONTROLLER, "controllers are being elected; try again"))
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// The registry's.
    pub async fn delete_topic(&self, name: &TopicName) -> Result<(), AdminError> {
        self.registry.mark_deleted(name).await?;
        Ok(self.registry.delete_topic(name).await?)
    }

    /// Adds partitions, so that the topic has `total`.
    ///
    /// # Errors
    /// What is wrong with the request; the registry's.
    pub async fn create_partitions(
        &self,
        name: &TopicName,
        total: i32,
        assigned: Option<Vec<Vec<BrokerId>>>,
        validate_only: bool,
    ) -> Result<(), AdminError> {
        let view = self.metadata.view();
        let unknown = || AdminError::new(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, "There is no such topic.");
        let topic = view.topics.get(name).ok_or_else(unknown)?;
        let had = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
        if total <= had || total > PARTITIONS_MAX {
            let message =
                format!("The topic currently has {had} partition(s); {total} would not be an increase.");
            return Err(AdminError::new(ErrorCode::INVALID_PARTITIONS, message));
        }
        let factor = topic.partitions.values().next().map_or(1, |partition| partition.replicas.len());
        let added = match assigned {
            None => placement::place(&racks(&view), had, total - had, factor)
                .ok_or_else(|| too_few(&view, factor))?,
            Some(lists) if i32::try_from(lists.len()).ok() == Some(total - had) => {
                let numbered = (had..total).map(PartitionId::new).zip(lists).collect();
                check_replicas(&view, &numbered)?;
                numbered
            }
            Some(lists) => {
                let message = format!("{} assignments for {} new partitions.", lists.len(), total - had);
                return Err(AdminError::new(ErrorCode::INVALID_REPLICA_ASSIGNMENT, message));
            }
        };
        if validate_only {
            return Ok(());
        }
        let fence = self.registry.current_fence().await?;
        match self.registry.add_partitions(name, &added, &fence).await {
            Err(error) if matches!(error.root(), RegistryError::Conflict | RegistryError::Exists) => Err(
                AdminError::new(ErrorCode::INVALID_PARTITIONS, "Somebody else has just changed this topic."),
            ),
            other => other.map_err(AdminError::from),
        }
    }

    /// Changes configs: `change` is given those in force, and gives those that shall be; so does the result, if
    /// anything changes.
    ///
    /// # Errors
    /// What `change` says; the registry's.
    pub async fn change_configs(
        &self,
        entity: &Entity,
        change: impl Fn(Configs) -> Result<Configs, AdminError>,
        validate_only: bool,
    ) -> Result<Option<Configs>, AdminError> {
        let path = entity.path();
        for _ in 0..ATTEMPTS {
            let (before, version) = self.registry.configs_at(&path).await?;
            let after = change(before.clone())?;
            if validate_only || (after == before && version.is_some()) {
                return Ok(None);
            }
            match self.registry.set_configs(&path, &after, version).await {
                Ok(()) => return Ok(Some(after)),
                Err(RegistryError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(AdminError::new(ErrorCode::REQUEST_TIMED_OUT, "others kept changing these configs; try again"))
    }

    /// A producer id that nobody has had.
    ///
    /// # Errors
    /// The registry's.
    pub async fn next_producer_id(&self) -> Result<ProducerId, AdminError> {
        let mut ids = self.producer_ids.lock().await;
        if ids.is_empty() {
            let start = self.registry.take_producer_ids(self.me, PRODUCER_ID_BLOCK).await?;
            *ids = start..start + PRODUCER_ID_BLOCK;
        }
        let exhausted = || AdminError::new(ErrorCode::UNKNOWN_SERVER_ERROR, "there are no producer ids left");
        ids.next().map(ProducerId::new).ok_or_else(exhausted)
    }
}

/// What has configs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entity {
    /// A topic.
    Topic(TopicName),
    /// A broker, or all of them.
    Broker(Option<BrokerId>),
}

impl Entity {
    /// Its configs as a view has them.
    pub fn configs<'a>(&self, view: &'a View) -> Option<&'a Configs> {
        match self {
            Self::Topic(name) => view.topics.get(name).map(|topic| &topic.configs),
            Self::Broker(id) => view.broker_configs.get(id),
        }
    }

    fn path(&self) -> String {
        match self {
            Self::Topic(name) => path::topic_config(name),
            Self::Broker(id) => path::broker_config(*id),
        }
    }
}

/// Says whether a topic may have this config.
///
/// # Errors
/// `INVALID_CONFIG` with a sentence.
pub fn check_topic_config(name: &str, value: &str) -> Result<(), AdminError> {
    let invalid = |message: String| AdminError::new(ErrorCode::INVALID_CONFIG, message);
    match config::topic_key(name) {
        Some(key) => config::check(key, value).map_err(invalid),
        None => Err(invalid(format!("Unknown topic config name: {name}"))),
    }
}

fn racks(view: &View) -> BTreeMap<BrokerId, Option<String>> {
    view.brokers.iter().map(|(id, broker)| (*id, broker.rack.clone())).collect()
}

fn too_few(view: &View, factor: usize) -> AdminError {
    let message =
        format!("Replication factor: {factor} larger than available brokers: {}.", view.brokers.len());
    AdminError::new(ErrorCode::INVALID_REPLICATION_FACTOR, message)
}

fn settle(
    view: &View,
    wanted: &Placement,
    defaults: Defaults,
) -> Result<BTreeMap<PartitionId, Vec<BrokerId>>, AdminError> {
    match wanted {
        Placement::Automatic { partitions, factor } => {
            let partitions = if *partitions == -1 { defaults.partitions } else { *partitions };
            if !(1..=PARTITIONS_MAX).contains(&partitions) {
                let message =
                    format!("Number of partitions must be 1 to {PARTITIONS_MAX}, not {partitions}.");
                return Err(AdminError::new(ErrorCode::INVALID_PARTITIONS, message));
            }
            let factor = if *factor == -1 { defaults.factor } else { *factor };
            let factor = usize::try_from(factor).ok().filter(|factor| *factor > 0).ok_or_else(|| {
                AdminError::new(
                    ErrorCode::INVALID_REPLICATION_FACTOR,
                    "Replication factor must be larger than 0.",
                )
            })?;
            placement::place(&racks(view), 0, partitions, factor).ok_or_else(|| too_few(view, factor))
        }
        Placement::Explicit(replicas) => {
            check_replicas(view, replicas)?;
            Ok(replicas.clone())
        }
    }
}

fn check_replicas(view: &View, replicas: &BTreeMap<PartitionId, Vec<BrokerId>>) -> Result<(), AdminError> {
    let invalid = |message: String| AdminError::new(ErrorCode::INVALID_REPLICA_ASSIGNMENT, message);
    for (at, (partition, brokers)) in replicas.iter().enumerate() {
        let distinct: std::collections::BTreeSet<_> = brokers.iter().collect();
        if brokers.is_empty() || distinct.len() != brokers.len() {
            return Err(invalid(format!("Partition {partition} has no replicas, or one twice.")));
        }
        if let Some(unknown) = brokers.iter().find(|broker| !view.brokers.contains_key(broker)) {
            return Err(invalid(format!(
                "Partition {partition} names broker {unknown}, which is not there."
            )));
        }
        let follows = partition.raw() - replicas.keys().next().map_or(0, |first| first.raw());
        if usize::try_from(follows).ok() != Some(at) {
            return Err(invalid("Partitions should be numbered consecutively.".to_owned()));
        }
    }
    Ok(())
}
