//! Topics: their partitions' replicas and states, their configs; brokers' configs too.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};
use loggos_protocol::ids::{BrokerId, LeaderEpoch, PartitionId, TopicId, TopicName, Zxid};
use loggos_protocol::registry::path;
use loggos_protocol::registry::record::{
    ConfigChangeRecord, ConfigRecord, PartitionState, Record, TopicRecord,
};

use super::{Fence, Op, Registry, RegistryError};

/// Nodes that one change makes or removes at most: an ensemble's requests are bounded.
const OPS_MAX: usize = 500;
/// Reads under way at the same time.
const READS: usize = 64;

/// A topic that is to be made.
#[derive(Clone, Debug)]
pub struct NewTopic {
    /// Its name.
    pub name: TopicName,
    /// Its identity.
    pub id: TopicId,
    /// The replicas of each partition, the first one leading.
    pub replicas: BTreeMap<PartitionId, Vec<BrokerId>>,
    /// Its configs.
    pub configs: BTreeMap<String, String>,
}

/// A topic as it stands in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTopic {
    /// Its identity.
    pub id: TopicId,
    /// Its partitions.
    pub partitions: BTreeMap<PartitionId, StoredPartition>,
    /// Its configs.
    pub configs: BTreeMap<String, String>,
    /// The version of its node.
    pub version: i32,
}

/// A partition as it stands in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPartition {
    /// Its replicas.
    pub replicas: Vec<BrokerId>,
    /// Those of them that a reassignment under way adds.
    pub adding: Vec<BrokerId>,
    /// Those that it takes away in the end.
    pub removing: Vec<BrokerId>,
    /// Its state; none before a controller has seen it.
    pub state: Option<StoredState>,
}

/// A partition's state as it stands in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredState {
    /// The state.
    pub state: PartitionState,
    /// The version of its node.
    pub version: i32,
    /// What wrote it: whoever registered later has not led in this epoch.
    pub written: Zxid,
}

/// A state that is to be written.
#[derive(Clone, Debug)]
pub struct NewState {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The state.
    pub state: PartitionState,
    /// The version that its node must have.
    pub version: i32,
}

/// Where a partition's replicas are, and where a reassignment is taking them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// All replicas, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// Those of them that are being added.
    pub adding: Vec<BrokerId>,
    /// Those that go in the end.
    pub removing: Vec<BrokerId>,
}

impl Registry {
    /// The names of all topics.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn topic_names(&self) -> Result<Vec<TopicName>, RegistryError> {
        Ok(self.session().children(path::TOPICS).await?.into_iter().map(TopicName::new).collect())
    }

    /// A topic, if there is one.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn topic(&self, name: &TopicName) -> Result<Option<StoredTopic>, RegistryError> {
        let Some((record, node)) = self.record::<TopicRecord>(&path::topic(name)).await? else {
            return Ok(None);
        };
        let configs = self.record::<ConfigRecord>(&path::topic_config(name)).await?;
        let reads = record.partitions.clone().into_iter().map(|(partition, replicas)| async move {
            let state = self.state(name, partition).await?;
            Ok::<_, RegistryError>((partition, (replicas, state)))
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(READS);
        let mut partitions = BTreeMap::new();
        while let Some(read) = reads.next().await {
            let (partition, (replicas, state)) = read?;
            let of = |lists: &BTreeMap<PartitionId, Vec<BrokerId>>| {
                lists.get(&partition).cloned().unwrap_or_default()
            };
            let (adding, removing) = (of(&record.adding_replicas), of(&record.removing_replicas));
            partitions.insert(partition, StoredPartition { replicas, adding, removing, state });
        }
        Ok(Some(StoredTopic {
            id: record.id().unwrap_or_default(),
            partitions,
            configs: configs.map(|(record, _)| record.config).unwrap_or_default(),
            version: node.version,
        }))
    }

    /// A topic's identity and its partitions' numbers alone, if there is such a topic.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn topic_partitions(
        &self,
        name: &TopicName,
    ) -> Result<Option<(TopicId, BTreeSet<PartitionId>)>, RegistryError> {
        let found: Option<(TopicRecord, _)> = self.record(&path::topic(name)).await?;
        Ok(found
            .map(|(record, _)| (record.id().unwrap_or_default(), record.partitions.into_keys().collect())))
    }

    /// Makes a topic with its partitions' first states: seen as a whole or not at all, unless it has hundreds of
    /// partitions; then its states come first, and it is seen when they all stand.
    ///
    /// # Errors
    /// `Exists`; those of the session.
    pub async fn create_topic(&self, topic: &NewTopic, fence: &Fence) -> Result<(), RegistryError> {
        let record = TopicRecord::new(topic.id, topic.replicas.clone()).to_bytes();
        let config = ConfigRecord::new(topic.configs.clone()).to_bytes();
        let config_path = path::topic_config(&topic.name);
        // What an earlier topic of this name, or somebody in advance, has left.
        let has_config = self.session().get(&config_path).await?.is_some();
        let config = if has_config {
            Op::Set { path: config_path, data: config, version: None }
        } else {
            Op::create(config_path, config)
        };
        let mut ops = vec![
            fence.check(),
            config,
            Op::create(path::topic(&topic.name), Vec::new()),
            Op::create(path::partitions(&topic.name), Vec::new()),
        ];
        for (partition, replicas) in &topic.replicas {
            ops.extend(partition_ops(&topic.name, *partition, replicas, fence));
        }
        ops.push(Op::Set { path: path::topic(&topic.name), data: record, version: Some(0) });
        self.in_steps(&ops, fence).await.map_err(already)
    }

    /// Adds partitions to a topic.
    ///
    /// # Errors
    /// `Absent`, `Conflict`; those of the session.
    pub async fn add_partitions(
        &self,
        name: &TopicName,
        added: &BTreeMap<PartitionId, Vec<BrokerId>>,
        fence: &Fence,
    ) -> Result<(), RegistryError> {
        let found: Option<(TopicRecord, _)> = self.record(&path::topic(name)).await?;
        let (record, node) = found.ok_or(RegistryError::Absent)?;
        let mut record = record;
        record.partitions.extend(added.clone());
        let mut ops = vec![fence.check()];
        for (partition, replicas) in added {
            ops.extend(partition_ops(name, *partition, replicas, fence));
        }
        let data = record.to_bytes();
        ops.push(Op::Set { path: path::topic(name), data, version: Some(node.version) });
        self.in_steps(&ops, fence).await
    }

    /// Does `ops` in the fewest changes that the bound allows, each behind the fence.
    async fn in_steps(&self, ops: &[Op], fence: &Fence) -> Result<(), RegistryError> {
        for (step, chunk) in ops.chunks(OPS_MAX).enumerate() {
            if step == 0 {
                self.session().multi(chunk).await?;
            } else {
                let fenced: Vec<Op> = std::iter::once(fence.check()).chain(chunk.iter().cloned()).collect();
                self.session().multi(&fenced).await?;
            }
        }
        Ok(())
    }

    /// Says that a topic is to go: whoever is controller sees it through.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn mark_deleted(&self, name: &TopicName) -> Result<(), RegistryError> {
        self.session().create_if_absent(&path::deletion(name), b"").await
    }

    /// The topics that are to go.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn marked_deleted(&self) -> Result<Vec<TopicName>, RegistryError> {
        Ok(self.session().children(path::DELETE_TOPICS).await?.into_iter().map(TopicName::new).collect())
    }

    /// Removes a topic's nodes, and the mark in the end. May be done again after a failure half-way.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn delete_topic(&self, name: &TopicName) -> Result<(), RegistryError> {
        let partitions = self.session().children(&path::partitions(name)).await?;
        let mut paths = Vec::new();
        for partition in partitions.iter().filter_map(|name| name.parse().ok()).map(PartitionId::new) {
            paths.push(path::state(name, partition));
            paths.push(path::partition(name, partition));
        }
        for chunk in paths.chunks(OPS_MAX) {
            let ops: Vec<Op> =
                chunk.iter().map(|path| Op::Delete { path: path.clone(), version: None }).collect();
            if self.session().multi(&ops).await.is_err() {
                // Some of them are gone already.
                for path in chunk {
                    self.session().delete(path).await?;
                }
            }
        }
        let rest =
            [path::partitions(name), path::topic(name), path::topic_config(name), path::deletion(name)];
        for path in rest {
            self.session().delete(&path).await?;
        }
        Ok(())
    }

    /// Sets many partitions' states, each if its node still has its version, and if what `checks` says holds: all of
    /// it or none.
    ///
    /// # Errors
    /// `Refused` with the part that failed, the states first, then the checks; those of the session.
    pub async fn set_states(&self, states: &[NewState], checks: &[Op]) -> Result<(), RegistryError> {
        let sets = states.iter().map(|new| Op::Set {
            path: path::state(&new.topic, new.partition),
            data: new.state.to_bytes(),
            version: Some(new.version),
        });
        let ops: Vec<Op> = sets.chain(checks.iter().cloned()).collect();
        self.session().multi(&ops).await.map(|_| ())
    }

    /// Changes where a topic's partitions are, and their states with it, if nothing of it has changed since: all of it
    /// or none. Where it is longer than one change may be, the states come first and the topic last.
    ///
    /// # Errors
    /// `Conflict` and `Refused` when somebody else was faster; those of the session.
    pub async fn reassign(
        &self,
        name: &TopicName,
        version: i32,
        changed: &BTreeMap<PartitionId, Assignment>,
        states: &[NewState],
        fence: &Fence,
    ) -> Result<(), RegistryError> {
        let found: Option<(TopicRecord, _)> = self.record(&path::topic(name)).await?;
        let (mut record, node) = found.ok_or(RegistryError::Absent)?;
        if node.version != version {
            return Err(RegistryError::Conflict);
        }
        for (partition, assignment) in changed {
            record.partitions.insert(*partition, assignment.replicas.clone());
            let keep = |lists: &mut BTreeMap<PartitionId, Vec<BrokerId>>, list: &Vec<BrokerId>| {
                if list.is_empty() {
                    lists.remove(partition);
                } else {
                    lists.insert(*partition, list.clone());
                }
            };
            keep(&mut record.adding_replicas, &assignment.adding);
            keep(&mut record.removing_replicas, &assignment.removing);
        }
        let sets = states.iter().map(|new| Op::Set {
            path: path::state(&new.topic, new.partition),
            data: new.state.to_bytes(),
            version: Some(new.version),
        });
        let topic = Op::Set { path: path::topic(name), data: record.to_bytes(), version: Some(version) };
        let ops: Vec<Op> = std::iter::once(fence.check()).chain(sets).chain([topic]).collect();
        self.in_steps(&ops, fence).await
    }

    /// A partition's state, if it has one: what a view shows of it when only that changed.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn state(
        &self,
        name: &TopicName,
        partition: PartitionId,
    ) -> Result<Option<StoredState>, RegistryError> {
        let state: Option<(PartitionState, _)> = self.record(&path::state(name, partition)).await?;
        Ok(state.map(|(state, node)| StoredState { state, version: node.version, written: node.modified }))
    }

    /// Many of them, in the order in which they were asked for.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn states(
        &self,
        asked: &[(TopicName, PartitionId)],
    ) -> Result<Vec<Option<StoredState>>, RegistryError> {
        let asked = asked.to_vec();
        let reads =
            asked.into_iter().map(|(name, partition)| async move { self.state(&name, partition).await });
        futures::stream::iter(reads).buffered(READS).try_collect().await
    }

    /// A topic's configs with their node's version.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn configs_at(
        &self,
        path: &str,
    ) -> Result<(BTreeMap<String, String>, Option<i32>), RegistryError> {
        let found: Option<(ConfigRecord, _)> = self.record(path).await?;
        Ok(found.map(|(record, node)| (record.config, Some(node.version))).unwrap_or_default())
    }

    /// Sets configs if their node still has this version, and announces the change.
    ///
    /// # Errors
    /// `Conflict` when somebody else was faster; those of the session.
    pub async fn set_configs(
        &self,
        path: &str,
        configs: &BTreeMap<String, String>,
        version: Option<i32>,
    ) -> Result<(), RegistryError> {
        let data = ConfigRecord::new(configs.clone()).to_bytes();
        let path = path.to_owned();
        let op = match version {
            Some(_) => Op::Set { path: path.clone(), data, version },
            None => Op::create(path.clone(), data),
        };
        match self.session().multi(&[op]).await {
            Ok(_) => {}
            Err(error) if matches!(error.root(), RegistryError::Exists | RegistryError::Conflict) => {
                return Err(RegistryError::Conflict);
            }
            Err(error) => return Err(error),
        }
        let entity = path.trim_start_matches("/config/").to_owned();
        let change = ConfigChangeRecord::new(entity).to_bytes();
        // Kafka's own tools look here; our brokers watch the node itself.
        self.session().create_numbered(&format!("{}/config_change_", path::CONFIG_CHANGES), &change).await
    }

    /// Brokers' configs: those of all brokers under `None`.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn broker_configs(
        &self,
    ) -> Result<BTreeMap<Option<BrokerId>, BTreeMap<String, String>>, RegistryError> {
        let mut all = BTreeMap::new();
        for name in self.session().children(path::BROKER_CONFIGS).await? {
            let id = if name == path::ALL_BROKERS { None } else { name.parse().ok().map(BrokerId::new) };
            if id.is_none() && name != path::ALL_BROKERS {
                continue;
            }
            let (configs, _) = self.configs_at(&path::broker_config(id)).await?;
            all.insert(id, configs);
        }
        Ok(all)
    }
}

fn partition_ops(name: &TopicName, partition: PartitionId, replicas: &[BrokerId], fence: &Fence) -> [Op; 2] {
    let leader = replicas.first().copied().unwrap_or(BrokerId::NONE);
    let state = PartitionState::new(leader, LeaderEpoch::new(0), fence.epoch, replicas.to_vec());
    [
        Op::create(path::partition(name, partition), Vec::new()),
        Op::create(path::state(name, partition), state.to_bytes()),
    ]
}

fn already(error: RegistryError) -> RegistryError {
    if matches!(error.root(), RegistryError::Exists) { RegistryError::Exists } else { error }
}
