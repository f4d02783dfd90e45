//! The client's picture of a cluster: who leads what, and the connections to them.
//!
//! The picture is a snapshot, replaced as a whole by each refresh; refreshes of several callers melt into one, and
//! none follows another sooner than the back-off. Called by the producer, the consumers and the admin client.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use loggos_protocol::ids::{BrokerId, PartitionId, TopicName, TopicPartition};
use loggos_protocol::kafka::messages::metadata_request::MetadataRequestTopic;
use loggos_protocol::kafka::messages::{self, MetadataRequest};
use loggos_protocol::kafka::{ErrorCode, StrBytes};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use crate::config::ClusterConfig;
use crate::connection::Connection;
use crate::error::ClientError;

pub use crate::metadata::{Metadata, Node, PartitionMetadata, TopicMetadata};

/// How long a topic that brokers don't know is asked for again: one that was just created is on its way to them.
const UNKNOWN_TOPIC_PATIENCE: Duration = Duration::from_secs(5);
/// Topics whose refresh times are remembered before the oldest are forgotten.
const REMEMBERED_REFRESHES: usize = 10_000;

/// What a connection is for. Each broker has one of each, as a broker answers in the order of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Metadata, offsets and administration.
    Control,
    /// Records to the broker.
    Produce,
    /// Fetches, which wait for records to come.
    Fetch,
}

/// A cluster; clones share metadata and connections.
#[derive(Clone, Debug)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ClusterConfig,
    metadata: Mutex<Arc<Metadata>>,
    refreshed: Mutex<BTreeMap<TopicName, Instant>>,
    /// One refresh at a time.
    refreshing: Semaphore,
    slots: Mutex<BTreeMap<(String, Lane), Arc<Slot>>>,
}

/// The place of one connection, and of the attempts to make it.
#[derive(Debug)]
struct Slot {
    /// One attempt at a time.
    connecting: Semaphore,
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    connection: Option<Arc<Connection>>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Cluster {
    /// A cluster that nothing has been asked of: no connection is made yet.
    pub fn new(config: ClusterConfig) -> Self {
        let inner = Inner {
            config,
            metadata: Mutex::default(),
            refreshed: Mutex::default(),
            refreshing: Semaphore::new(1),
            slots: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The settings.
    pub fn config(&self) -> &ClusterConfig {
        &self.inner.config
    }

    /// What is known now, without asking anybody.
    pub fn known(&self) -> Arc<Metadata> {
        Arc::clone(&self.inner.metadata.lock())
    }

    /// A topic's metadata, from memory if it's there and not too old.
    ///
    /// # Errors
    /// The broker's code, after a retry where one may help; `Unreachable`.
    pub async fn topic(&self, topic: &TopicName) -> Result<TopicMetadata, ClientError> {
        self.topic_until(topic, Instant::now() + self.inner.config.request_timeout).await
    }

    /// As [`topic`](Self::topic), with a deadline.
    pub async fn topic_until(
        &self,
        topic: &TopicName,
        deadline: Instant,
    ) -> Result<TopicMetadata, ClientError> {
        let started = Instant::now();
        let unknown_deadline = deadline.min(started + UNKNOWN_TOPIC_PATIENCE);
        let mut asked = false;
        loop {
            let known = self.known().topics.get(topic).filter(|known| known.error.is_none()).cloned();
            if let Some(known) = known.filter(|_| asked || !self.is_old(topic)) {
                return Ok(known);
            }
            let outcome = self.refresh(std::slice::from_ref(topic)).await;
            asked = true;
            let error = match outcome {
                Err(error) => error,
                Ok(metadata) => match metadata.topics.get(topic).map(|known| known.error) {
                    Some(ErrorCode::NONE) => continue,
                    code => {
                        let code = code.unwrap_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
                        ClientError::refused(format!("topic '{topic}'"), code)
                    }
                },
            };
            let unknown = error.code() == Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
            let until = if unknown { unknown_deadline } else { deadline };
            let next = Instant::now() + self.inner.config.retry_backoff;
            if !error.retriable() || next >= until {
                return Err(error);
            }
            sleep_until(next).await;
        }
    }

    /// The partitions of a topic; errors as [`topic`](Self::topic).
    pub async fn partitions(&self, topic: &TopicName) -> Result<Vec<PartitionId>, ClientError> {
        Ok(self.topic(topic).await?.partitions.into_keys().collect())
    }

    /// Who leads a partition, as far as is known.
    ///
    /// # Errors
    /// As [`topic`](Self::topic); `UnknownPartition`, `NoLeader`.
    pub async fn leader(&self, partition: &TopicPartition) -> Result<BrokerId, ClientError> {
        let topic = self.topic(&partition.topic).await?;
        let Some(known) = topic.partitions.get(&partition.partition) else {
            return Err(ClientError::UnknownPartition { partition: partition.clone() });
        };
        known.leader.ok_or_else(|| ClientError::NoLeader { partition: partition.clone() })
    }

    fn is_old(&self, topic: &TopicName) -> bool {
        let refreshed = self.inner.refreshed.lock().get(topic).copied();
        refreshed.is_none_or(|at| at.elapsed() >= self.inner.config.metadata_max_age)
    }

    /// Asks a broker about `topics`, unless another caller does so just now. What it says of each topic, errors
    /// too, stands in the metadata.
    ///
    /// # Errors
    /// `Unreachable`, or what the last broker asked had to say.
    pub async fn refresh(&self, topics: &[TopicName]) -> Result<Arc<Metadata>, ClientError> {
        let asked = Instant::now();
        let _turn = self.inner.refreshing.acquire().await.expect("nobody closes the semaphore");
        let newest_allowed = {
            let refreshed = self.inner.refreshed.lock();
            let times: Vec<Option<Instant>> =
                topics.iter().map(|topic| refreshed.get(topic).copied()).collect();
            if !times.is_empty() && times.iter().all(|time| time.is_some_and(|time| time >= asked)) {
                return Ok(self.known());
            }
            times.into_iter().flatten().min().map(|time| time + self.inner.config.retry_backoff)
        };
        if let Some(at) = newest_allowed {
            sleep_until(at).await;
        }
        let metadata = self.ask_for_metadata(Some(topics)).await?;
        let now = Instant::now();
        let mut refreshed = self.inner.refreshed.lock();
        if refreshed.len() + topics.len() > REMEMBERED_REFRESHES {
            refreshed.clear();
        }
        refreshed.extend(topics.iter().map(|topic| (topic.clone(), now)));
        Ok(metadata)
    }

    /// Asks about all topics; errors as [`refresh`](Self::refresh).
    pub async fn refresh_all(&self) -> Result<Arc<Metadata>, ClientError> {
        self.ask_for_metadata(None).await
    }

    async fn ask_for_metadata(&self, topics: Option<&[TopicName]>) -> Result<Arc<Metadata>, ClientError> {
        let named = |topic: &TopicName| MetadataRequestTopic::default().with_name(Some(wire_name(topic)));
        let request = MetadataRequest::default()
            .with_topics(topics.map(|topics| topics.iter().map(named).collect()))
            .with_allow_auto_topic_creation(self.inner.config.auto_create_topics);
        let connection = self.any().await?;
        let response = connection.call(&request, self.inner.config.request_timeout).await?;
        ErrorCode::new(response.error_code)
            .ok()
            .map_err(|code| ClientError::refused("asking for metadata", code))?;
        let mut current = self.inner.metadata.lock();
        *current = Arc::new(current.updated(&response, topics));
        Ok(Arc::clone(&current))
    }

    /// A connection to some broker: one that is there already, or else the first that comes about.
    ///
    /// # Errors
    /// `Unreachable` with the last failure.
    pub async fn any(&self) -> Result<Arc<Connection>, ClientError> {
        let known = self.known();
        let mut addresses: Vec<String> = known.brokers.values().map(Node::address).collect();
        addresses.extend(self.inner.config.bootstrap.iter().cloned());
        if let Some(open) = addresses.iter().find_map(|address| self.open_connection(address, Lane::Control))
        {
            return Ok(open);
        }
        let mut last = "no address is given".to_owned();
        for address in addresses {
            match self.connect(&address, Lane::Control).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error.to_string(),
            }
        }
        Err(ClientError::Unreachable { last })
    }

    /// The connection to a broker for one purpose, made if need be.
    ///
    /// # Errors
    /// `Connect`, and `Unreachable` when nobody has told of such a broker.
    pub async fn connection(&self, broker: BrokerId, lane: Lane) -> Result<Arc<Connection>, ClientError> {
        let Some(address) = self.known().brokers.get(&broker).map(Node::address) else {
            return Err(ClientError::Unreachable { last: format!("broker {broker} is not in the cluster") });
        };
        self.connect(&address, lane).await
    }

    fn open_connection(&self, address: &str, lane: Lane) -> Option<Arc<Connection>> {
        let slot = self.inner.slots.lock().get(&(address.to_owned(), lane)).cloned()?;
        let state = slot.state.lock();
        state.connection.clone().filter(|connection| !connection.is_broken())
    }

    async fn connect(&self, address: &str, lane: Lane) -> Result<Arc<Connection>, ClientError> {
        if let Some(open) = self.open_connection(address, lane) {
            return Ok(open);
        }
        let slot = {
            let mut slots = self.inner.slots.lock();
            let slot = slots
                .entry((address.to_owned(), lane))
                .or_insert_with(|| Arc::new(Slot { connecting: Semaphore::new(1), state: Mutex::default() }));
            Arc::clone(slot)
        };
        let _turn = slot.connecting.acquire().await.expect("nobody closes the semaphore");
        // Whoever held the turn before may have made it.
        if let Some(open) = self.open_connection(address, lane) {
            return Ok(open);
        }
        let not_before = slot.state.lock().not_before;
        if let Some(at) = not_before {
            sleep_until(at).await;
        }
        let config = &self.inner.config;
        let opened =
            Connection::open(address, &config.client_id, Instant::now() + config.connect_timeout).await;
        let mut state = slot.state.lock();
        match opened {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *state = SlotState { connection: Some(Arc::clone(&connection)), ..SlotState::default() };
                Ok(connection)
            }
            Err(error) => {
                state.failures += 1;
                state.not_before = Some(Instant::now() + self.backoff(state.failures));
                Err(error)
            }
        }
    }

    /// How long to wait after `failures` in a row: doubling, with a fifth of chance either way.
    pub fn backoff(&self, failures: u32) -> Duration {
        let config = &self.inner.config;
        let doubled = config.retry_backoff.saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.min(config.retry_backoff_max).mul_f64(rand::random_range(0.8..1.2))
    }
}

/// A topic's name as the message structs carry it.
pub(crate) fn wire_name(topic: &TopicName) -> messages::TopicName {
    messages::TopicName::from(StrBytes::from_string(topic.as_str().to_owned()))
}
