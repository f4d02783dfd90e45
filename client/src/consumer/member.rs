//! The task of a member of a broker-run group (KIP-848): heartbeats, and what their answers ask for. Started by `group`.
//!
//! Partitions that the broker takes away are given up first: reading ends, offsets are committed, and the next heartbeat
//! says so; only then does the broker give them to others. A member that was fenced drops everything and joins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use loggos_protocol::ids::{LeaderEpoch, Offset, PartitionId, TopicId, TopicName, TopicPartition};
use loggos_protocol::kafka::messages::ConsumerGroupHeartbeatRequest;
use loggos_protocol::kafka::messages::consumer_group_heartbeat_response::Assignment;
use loggos_protocol::kafka::{ErrorCode, StrBytes};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use super::balancer::Offsets;
use super::error::ConsumerError;
use super::group::Subscription;
use super::group_broker::{GroupBroker, Identity, on_the_wire};
use super::lane::Lane;
use super::prefetch::Prefetch;
use super::queue::{Chunk, Queue};
use crate::config::GroupConfig;
use crate::error::ClientError;

/// The member epoch of one who wants to join.
const JOINS: i32 = 0;
/// The member epoch of one who leaves.
const LEAVES: i32 = -1;
/// The member epoch of a static member that will be back.
const LEAVES_FOR_NOW: i32 = -2;
/// Between heartbeats until the broker has said otherwise.
const FIRST_INTERVAL: Duration = Duration::from_secs(3);
/// A period that never ends.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// What the consumer asks for.
#[derive(Debug)]
pub enum Command {
    /// Read these topics.
    Subscribe(Subscription),
    /// Commit what is done with.
    Commit(Option<oneshot::Sender<Result<(), ConsumerError>>>),
    /// What is committed.
    Committed(BTreeSet<TopicPartition>, oneshot::Sender<Result<Offsets, ConsumerError>>),
    /// Leave the group.
    Close(oneshot::Sender<Result<(), ConsumerError>>),
}

/// The task's state.
pub struct Member {
    config: GroupConfig,
    identity: Identity,
    broker: GroupBroker,
    prefetch: Arc<Prefetch>,
    queue: Arc<Queue>,
    subscription: Option<Subscription>,
    epoch: i32,
    interval: Duration,
    next_heartbeat: Instant,
    failures: u32,
    target: BTreeSet<TopicPartition>,
    /// Offsets of partitions that are given up, and not committed yet.
    unsaved: BTreeMap<TopicPartition, (Offset, LeaderEpoch)>,
    share: watch::Sender<BTreeSet<TopicPartition>>,
    /// What made the task give up, for the one who polls.
    fatal: Arc<Mutex<Option<ConsumerError>>>,
}

impl Member {
    /// A member that has joined nothing yet.
    pub fn new(
        config: GroupConfig,
        instance: Option<String>,
        prefetch: Arc<Prefetch>,
        queue: Arc<Queue>,
        share: watch::Sender<BTreeSet<TopicPartition>>,
        fatal: Arc<Mutex<Option<ConsumerError>>>,
    ) -> Self {
        let member = uuid::Uuid::new_v4().to_string();
        let identity = Identity { group: config.group.clone(), member, instance };
        let broker = GroupBroker::new(prefetch.consumer().cluster().clone(), identity.clone());
        Self {
            config,
            identity,
            broker,
            prefetch,
            queue,
            subscription: None,
            epoch: JOINS,
            interval: FIRST_INTERVAL,
            next_heartbeat: Instant::now(),
            failures: 0,
            target: BTreeSet::new(),
            unsaved: BTreeMap::new(),
            share,
            fatal,
        }
    }

    /// Works until the member has left, or its consumer is gone.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let period = self.config.auto_commit.unwrap_or(YEAR);
        let mut commits = tokio::time::interval_at(Instant::now() + period, period);
        commits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None => break,
                    Some(Command::Close(reply)) => {
                        // Whoever gave up isn't interested.
                        let _ = reply.send(self.leave().await);
                        break;
                    }
                    Some(command) => self.obey(command).await,
                },
                () = sleep_until(self.next_heartbeat), if self.subscription.is_some() => {
                    if let Err(error) = self.beat().await {
                        tracing::error!(%error, group = %self.identity.group, "the member gives up");
                        *self.fatal.lock() = Some(error);
                        break;
                    }
                }
                _ = commits.tick() => {
                    if let Err(error) = self.save().await {
                        tracing::warn!(%error, group = %self.identity.group, "offsets are not committed yet");
                    }
                }
            }
        }
        self.queue.close();
    }

    async fn obey(&mut self, command: Command) {
        // Whoever gave up isn't interested in the answer.
        match command {
            Command::Subscribe(subscription) => {
                self.subscription = Some(subscription);
                self.next_heartbeat = Instant::now();
            }
            Command::Commit(reply) => {
                let saved = self.save().await;
                match reply {
                    Some(reply) => drop(reply.send(saved)),
                    None => {
                        if let Err(error) = saved {
                            tracing::warn!(%error, group = %self.identity.group, "offsets are not committed yet");
                        }
                    }
                }
            }
            Command::Committed(partitions, reply) => {
                let found = self.broker.committed(self.epoch, &partitions).await;
                drop(reply.send(found.map_err(ConsumerError::from)));
            }
            Command::Close(_) => {}
        }
    }

    fn owned(&self) -> BTreeSet<TopicPartition> {
        self.prefetch.lanes().iter().map(|lane| lane.partition.clone()).collect()
    }

    /// One heartbeat, and what its answer asks for. An error is one that no other attempt mends.
    async fn beat(&mut self) -> Result<(), ConsumerError> {
        match self.try_beat().await {
            Ok(()) => {
                self.failures = 0;
                Ok(())
            }
            Err(error) if is_fenced(&error) => {
                tracing::warn!(%error, group = %self.identity.group, "joining again");
                self.drop_all();
                self.epoch = JOINS;
                self.next_heartbeat = Instant::now();
                Ok(())
            }
            Err(error) if error.retriable() || is_moved(&error) => {
                tracing::debug!(%error, group = %self.identity.group, "a heartbeat failed");
                self.broker.forget();
                self.failures += 1;
                let pause = self.prefetch.consumer().cluster().backoff(self.failures);
                self.next_heartbeat = Instant::now() + pause;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn try_beat(&mut self) -> Result<(), ClientError> {
        let cluster = self.prefetch.consumer().cluster().clone();
        let timeout_ms = i32::try_from(self.config.rebalance_timeout.as_millis()).unwrap_or(i32::MAX);
        let (names, pattern) = match &self.subscription {
            Some(Subscription::Topics(names)) => {
                (Some(names.iter().map(crate::cluster::wire_name).collect()), None)
            }
            Some(Subscription::Pattern(pattern)) => (None, Some(StrBytes::from_string(pattern.clone()))),
            None => (None, None),
        };
        let request = ConsumerGroupHeartbeatRequest::default()
            .with_member_epoch(self.epoch)
            .with_rebalance_timeout_ms(timeout_ms)
            .with_subscribed_topic_names(names)
            .with_subscribed_topic_regex(pattern)
            .with_topic_partitions(Some(on_the_wire(&cluster, &self.owned())));
        let response = self.broker.heartbeat(request).await?;
        self.epoch = response.member_epoch;
        self.interval =
            Duration::from_millis(u64::try_from(response.heartbeat_interval_ms.max(1)).unwrap_or(1));
        self.next_heartbeat = Instant::now() + self.interval;
        if let Some(assignment) = response.assignment {
            self.target = self.named(&assignment).await?;
        }
        self.reconcile().await
    }

    /// The assignment by names.
    async fn named(&self, assignment: &Assignment) -> Result<BTreeSet<TopicPartition>, ClientError> {
        let cluster = self.prefetch.consumer().cluster();
        let mut metadata = cluster.known();
        let find = |metadata: &crate::metadata::Metadata, id: TopicId| -> Option<TopicName> {
            metadata.topics.iter().find(|(_, topic)| topic.id == id).map(|(name, _)| name.clone())
        };
        let ids: Vec<TopicId> =
            assignment.topic_partitions.iter().map(|topic| TopicId::new(topic.topic_id)).collect();
        if ids.iter().any(|id| find(&metadata, *id).is_none()) {
            metadata = cluster.refresh_all().await?;
        }
        let mut named = BTreeSet::new();
        for topic in &assignment.topic_partitions {
            // One that isn't known yet is in the next answer's metadata.
            let Some(name) = find(&metadata, TopicId::new(topic.topic_id)) else {
                return Err(ClientError::refused("an assigned topic", ErrorCode::UNKNOWN_TOPIC_ID));
            };
            named.extend(
                topic
                    .partitions
                    .iter()
                    .map(|partition| TopicPartition::new(name.clone(), PartitionId::new(*partition))),
            );
        }
        Ok(named)
    }

    /// Gives up what the target hasn't, and begins what is new in it.
    async fn reconcile(&mut self) -> Result<(), ClientError> {
        let owned = self.owned();
        let excess: BTreeSet<TopicPartition> = owned.difference(&self.target).cloned().collect();
        let missing: BTreeSet<TopicPartition> = self.target.difference(&owned).cloned().collect();
        for partition in &excess {
            let lane = self.prefetch.remove(partition);
            if let Some(uncommitted) = lane.and_then(|lane| lane.end()) {
                self.unsaved.insert(partition.clone(), uncommitted);
            }
        }
        if !self.unsaved.is_empty() {
            let unsaved = self.unsaved.clone();
            self.broker.commit(self.epoch, &unsaved).await?;
            self.unsaved.clear();
        }
        self.begin(&missing).await?;
        if !excess.is_empty() || !missing.is_empty() {
            self.share.send_replace(self.owned());
            // The broker is waiting to hear of it.
            self.next_heartbeat = Instant::now();
        }
        Ok(())
    }

    async fn begin(&mut self, partitions: &BTreeSet<TopicPartition>) -> Result<(), ClientError> {
        let committed = self.broker.committed(self.epoch, partitions).await?;
        for partition in partitions {
            let known = committed.get(partition).copied();
            let start = match (known, self.config.reset.begins()) {
                (Some(offset), _) => Some(offset),
                (None, Some(spec)) => Some(self.prefetch.consumer().offset(partition, spec).await?),
                (None, None) => None,
            };
            let queue = Arc::clone(&self.queue);
            let lane = Lane::new(partition.clone(), queue, start.unwrap_or_default(), known);
            if start.is_none() {
                lane.progress().failed = true;
                let content = Err(ClientError::NoOffset { partition: partition.clone() });
                self.queue.push(Chunk { lane: Arc::clone(&lane), life: 0, content, bytes: 0 });
            }
            self.prefetch.add(lane);
        }
        Ok(())
    }

    fn drop_all(&mut self) {
        for lane in self.prefetch.lanes() {
            self.prefetch.remove(&lane.partition);
            lane.end();
        }
        self.unsaved.clear();
        self.target.clear();
        self.share.send_replace(BTreeSet::new());
    }

    /// Commits what is done with.
    async fn save(&mut self) -> Result<(), ConsumerError> {
        let lanes = self.prefetch.lanes();
        let uncommitted = |lane: &Arc<Lane>| {
            let progress = lane.progress();
            let nowhere = progress.failed && progress.committed.is_none();
            if nowhere { None } else { progress.uncommitted() }.map(|at| (lane.partition.clone(), at))
        };
        let done: BTreeMap<TopicPartition, (Offset, LeaderEpoch)> =
            lanes.iter().filter_map(uncommitted).collect();
        match self.broker.commit(self.epoch, &done).await {
            Ok(()) => {}
            Err(error) => {
                if is_fenced(&error) {
                    return Err(ConsumerError::Fenced { group: self.identity.group.clone() });
                }
                if error.retriable() || is_moved(&error) {
                    self.broker.forget();
                }
                return Err(error.into());
            }
        }
        for (partition, (offset, _)) in done {
            if let Some(lane) = self.prefetch.lane(&partition) {
                lane.progress().committed = Some(offset);
            }
        }
        Ok(())
    }

    async fn leave(&mut self) -> Result<(), ConsumerError> {
        if self.subscription.is_none() || self.epoch == JOINS {
            return Ok(());
        }
        let saved = self.save().await;
        let epoch = if self.identity.instance.is_some() { LEAVES_FOR_NOW } else { LEAVES };
        let request = ConsumerGroupHeartbeatRequest::default()
            .with_member_epoch(epoch)
            .with_rebalance_timeout_ms(-1)
            .with_topic_partitions(None);
        self.broker.heartbeat(request).await?;
        self.drop_all();
        saved
    }
}

/// Whether the group counts the member out.
fn is_fenced(error: &ClientError) -> bool {
    matches!(error.code(), Some(ErrorCode::FENCED_MEMBER_EPOCH | ErrorCode::UNKNOWN_MEMBER_ID))
}

/// Whether another broker, or another epoch, is the right one by now.
fn is_moved(error: &ClientError) -> bool {
    matches!(
        error.code(),
        Some(
            ErrorCode::NOT_COORDINATOR
                | ErrorCode::COORDINATOR_NOT_AVAILABLE
                | ErrorCode::COORDINATOR_LOAD_IN_PROGRESS
                | ErrorCode::STALE_MEMBER_EPOCH
                | ErrorCode::UNKNOWN_TOPIC_ID
        )
    )
}
