//! All partitions of this broker. It follows the metadata: makes the logs of new partitions, gives roles and configs,
//! deletes what is no longer ours.
//!
//! Called by `broker`, which feeds it views, and by the api, which looks partitions up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use loggos_protocol::ids::{BrokerEpoch, BrokerId, PartitionId, TopicId, TopicName};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::Partition;
use super::lease::Lease;
use super::replication::Role;
use super::throttle::Bucket;
use crate::clock;
use crate::config::{BrokerConfigs, TopicConfig};
use crate::log::{Log, LogConfig, LogDir, LogError};
use crate::metadata::{PartitionView, TopicView, View};

/// Logs that are made with one write at most.
const CREATED_AT_ONCE: usize = 1000;

/// The partitions of one topic.
type OfTopic = BTreeMap<PartitionId, Arc<Partition>>;

/// The table.
pub struct Table {
    me: BrokerId,
    dir: Arc<LogDir>,
    topics: RwLock<HashMap<TopicId, OfTopic>>,
    names: RwLock<HashMap<TopicName, TopicId>>,
    configs: RwLock<Arc<BrokerConfigs>>,
    /// Which life of this broker it is.
    epoch: Mutex<BrokerEpoch>,
    lease: Arc<Lease>,
    given: Bucket,
    copied: Bucket,
    applying: Mutex<Arc<View>>,
    applied: watch::Sender<u64>,
}

impl Table {
    /// An empty table over a log directory.
    pub fn new(me: BrokerId, dir: Arc<LogDir>, configs: BrokerConfigs, epoch: BrokerEpoch) -> Self {
        Self {
            me,
            dir,
            topics: RwLock::new(HashMap::new()),
            names: RwLock::new(HashMap::new()),
            configs: RwLock::new(Arc::new(configs)),
            epoch: Mutex::new(epoch),
            lease: Arc::default(),
            given: Bucket::default(),
            copied: Bucket::default(),
            applying: Mutex::new(Arc::new(View::default())),
            applied: watch::Sender::new(0),
        }
    }

    /// The partition, if this broker keeps a replica of it.
    pub fn get(&self, topic: &TopicName, partition: PartitionId) -> Option<Arc<Partition>> {
        let id = *self.names.read().get(topic)?;
        self.get_by_id(id, partition)
    }

    /// The same by the topic's identity.
    pub fn get_by_id(&self, topic: TopicId, partition: PartitionId) -> Option<Arc<Partition>> {
        self.topics.read().get(&topic)?.get(&partition).cloned()
    }

    /// All partitions that this broker keeps a replica of.
    pub fn all(&self) -> Vec<Arc<Partition>> {
        self.topics.read().values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// The broker's configs in force.
    pub fn configs(&self) -> Arc<BrokerConfigs> {
        Arc::clone(&self.configs.read())
    }

    /// The log directory.
    pub fn dir(&self) -> &LogDir {
        &self.dir
    }

    /// The number of the view that was applied last.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Something that a view doesn't show has changed: whoever follows looks again.
    pub fn look_again(&self) {
        self.applied.send_modify(|_| ());
    }

    /// This broker begins another life: it leads nothing in the epochs of the last one.
    pub fn set_epoch(&self, epoch: BrokerEpoch) {
        *self.epoch.lock() = epoch;
        // Every role is looked at again with the next view.
        let mut last = self.applying.lock();
        let version = last.version;
        *last = Arc::new(View { version, ..View::default() });
    }

    /// Which life of this broker it is.
    pub fn epoch(&self) -> BrokerEpoch {
        *self.epoch.lock()
    }

    /// How long this broker may act as the leader that it was.
    pub const fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// Whether more may be given to throttled followers now (`leader.replication.throttled.rate`).
    pub fn may_give(&self) -> bool {
        self.given.flows(self.configs().number("leader.replication.throttled.rate"), clock::moment())
    }

    /// So much was given to them.
    pub fn gave(&self, bytes: usize) {
        self.given.spend(bytes);
    }

    /// Whether more may be copied to throttled replicas here (`follower.replication.throttled.rate`).
    pub fn may_copy(&self) -> bool {
        self.copied.flows(self.configs().number("follower.replication.throttled.rate"), clock::moment())
    }

    /// So much was copied to them.
    pub fn copied(&self, bytes: usize) {
        self.copied.spend(bytes);
    }

    /// The brokers that lead something of which this one keeps a replica.
    pub fn leaders(&self) -> BTreeSet<BrokerId> {
        let leaders = self.all().iter().map(|partition| partition.leader().0).collect::<BTreeSet<_>>();
        leaders.into_iter().filter(|leader| *leader != BrokerId::NONE).collect()
    }

    /// Makes this broker's partitions what `view` says. Waits for the disk.
    ///
    /// # Errors
    /// What takes the log directory offline, or a full disk: to be tried again.
    pub fn apply(&self, view: &Arc<View>) -> Result<(), LogError> {
        let mut last = self.applying.lock();
        if view.version < last.version {
            // A newer one came first.
            return Ok(());
        }
        let configs_changed = self.take_configs(view);
        let mut wanted = Vec::new();
        for topic in view.topics.values() {
            let same = last.topics.get(&topic.name).is_some_and(|known| Arc::ptr_eq(known, topic));
            if !same || configs_changed || last.version == 0 {
                wanted.push(Arc::clone(topic));
            }
        }
        self.make_missing(&wanted)?;
        for topic in &wanted {
            self.update(topic);
        }
        self.drop_unwanted(view)?;
        *last = Arc::clone(view);
        drop(last);
        self.applied.send_replace(view.version);
        Ok(())
    }

    fn take_configs(&self, view: &View) -> bool {
        let own = view.broker_configs.get(&Some(self.me)).cloned().unwrap_or_default();
        let all = view.broker_configs.get(&None).cloned().unwrap_or_default();
        let mut configs = self.configs.write();
        if configs.own == own && configs.all == all {
            return false;
        }
        *configs = Arc::new(BrokerConfigs { own, all, start: configs.start.clone() });
        true
    }

    fn is_mine(&self, partition: &PartitionView) -> bool {
        partition.replicas.contains(&self.me)
    }

    /// Opens or makes the logs that `topics` want and the table hasn't.
    fn make_missing(&self, topics: &[Arc<TopicView>]) -> Result<(), LogError> {
        let mut missing = Vec::new();
        for topic in topics {
            for (id, partition) in &topic.partitions {
                if self.is_mine(partition) && self.get_by_id(topic.id, *id).is_none() {
                    missing.push((topic.id, topic.name.clone(), *id));
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let mut found: HashMap<(TopicId, PartitionId), Arc<Log>> =
            self.dir.logs().into_iter().map(|log| ((log.id().topic_id, log.id().partition), log)).collect();
        let (mut logs, mut absent) = (Vec::new(), Vec::new());
        for wish in missing {
            match found.remove(&(wish.0, wish.2)) {
                Some(log) => logs.push(log),
                None => absent.push(wish),
            }
        }
        for chunk in absent.chunks(CREATED_AT_ONCE) {
            logs.extend(self.dir.create(chunk, &LogConfig::default())?);
        }
        let configs = self.configs();
        for log in logs {
            let own = topics.iter().find(|topic| topic.id == log.id().topic_id).map(|topic| &topic.configs);
            let config = Arc::new(TopicConfig::new(own.unwrap_or(&BTreeMap::new()), &configs));
            let partition = Partition::new(self.me, log, config, Arc::clone(&self.lease));
            self.names.write().insert(partition.topic().clone(), partition.topic_id());
            self.topics.write().entry(partition.topic_id()).or_default().insert(partition.id(), partition);
        }
        Ok(())
    }

    /// Gives a topic's partitions their configs and roles.
    fn update(&self, topic: &TopicView) {
        let config = Arc::new(TopicConfig::new(&topic.configs, &self.configs()));
        let epoch = *self.epoch.lock();
        let Some(partitions) = self.topics.read().get(&topic.id).cloned() else { return };
        self.names.write().insert(topic.name.clone(), topic.id);
        for (id, view) in &topic.partitions {
            let Some(partition) = partitions.get(id) else { continue };
            if *partition.config() != *config {
                partition.set_config(Arc::clone(&config));
            }
            // A leader of an older life waits for its new epoch (decision D10).
            let stale = view.leader == self.me && view.is_older_than(epoch);
            partition.set_role(Role {
                leader: if stale { BrokerId::NONE } else { view.leader },
                leader_epoch: view.leader_epoch,
                isr: view.isr.iter().copied().collect(),
                replicas: view.replicas.clone(),
                version: view.state_version.unwrap_or(-1),
            });
        }
    }

    /// Deletes the logs of partitions that are no longer this broker's.
    fn drop_unwanted(&self, view: &View) -> Result<(), LogError> {
        let gone: Vec<Arc<Partition>> = self
            .all()
            .into_iter()
            .filter(|partition| {
                let topic = view.topic_by_id(partition.topic_id());
                let held = topic.and_then(|topic| topic.partitions.get(&partition.id()));
                !held.is_some_and(|held| self.is_mine(held))
            })
            .collect();
        for partition in gone {
            tracing::info!(topic = %partition.topic(), partition = %partition.id(), "a replica is deleted");
            let mut topics = self.topics.write();
            if let Some(partitions) = topics.get_mut(&partition.topic_id()) {
                partitions.remove(&partition.id());
                if partitions.is_empty() {
                    topics.remove(&partition.topic_id());
                    self.names.write().retain(|_, id| *id != partition.topic_id());
                }
            }
            drop(topics);
            partition.close();
            self.dir.delete(partition.log())?;
        }
        Ok(())
    }

    /// Lets go what has had its time, in all partitions. Waits for the disk.
    pub fn expire(&self) {
        for partition in self.all() {
            partition.expire(clock::now());
        }
    }
}
