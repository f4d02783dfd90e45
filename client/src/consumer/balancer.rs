//! The task of a member of a member-run group: does what `rebalance` decides, on the registries and with the fetcher.
//!
//! One thing at a time, in order: a commit never overtakes a partition that is given up, and what a user asks for
//! waits for the step that is under way. Started by `connector`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use loggos_protocol::ids::{LeaderEpoch, MemberId, Offset, Timestamp, TopicId, TopicName, TopicPartition};
use loggos_protocol::registry::group::{ConsumerRecord, OffsetRecord};
use loggos_protocol::registry::path;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until, timeout};

use super::assignment::{Registries, Subscription, ThreadId};
use super::error::ConsumerError;
use super::intake::Intake;
use super::lane::Lane;
use super::listen::Ear;
use super::prefetch::Prefetch;
use super::queue::{Chunk, Queue};
use super::rebalance::{Action, Claims, Event, Rebalance};
use super::stream::MessageStream;
use crate::config::StreamsConfig;
use crate::error::ClientError;
use crate::registry::{Membership, Registry};
use crate::simple::OffsetSpec;

/// Changes that come together are looked at together.
const GATHER: Duration = Duration::from_millis(20);
/// How long brokers are asked where a partition begins, before the step is tried again as a whole.
const OFFSETS_DEADLINE: Duration = Duration::from_secs(5);
/// Reads of consumers' nodes, and questions about offsets, under way at the same time.
const READS: usize = 64;
/// How long an owner's node is waited for before the claim is tried again.
const OWNER_DEADLINE: Duration = Duration::from_secs(60);
/// How long a partition that begins without an offset, and may not choose one, counts in its queue: nothing.
const NO_BYTES: usize = 0;

/// What the connector asks for.
#[derive(Debug)]
pub enum Command {
    /// Read a topic with so many streams.
    Subscribe(TopicName, usize, oneshot::Sender<Result<Vec<MessageStream>, ConsumerError>>),
    /// Commit what is done with.
    Commit(oneshot::Sender<Result<(), ConsumerError>>),
    /// Go on from there, in these partitions.
    Rewind(Vec<TopicPartition>, OffsetSpec, oneshot::Sender<Result<Offsets, ConsumerError>>),
    /// Leave the group.
    Close,
}

/// Offsets by partition.
pub type Offsets = BTreeMap<TopicPartition, Offset>;

/// What a consumer is told of its part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// The partitions that are read, each with the number of its stream.
    pub partitions: BTreeMap<TopicPartition, usize>,
    /// Whether nothing is about to change, as far as this member knows.
    pub settled: bool,
}

/// The task's state.
pub struct Balancer {
    config: StreamsConfig,
    registry: Registry,
    prefetch: Arc<Prefetch>,
    machine: Rebalance,
    member: Membership,
    actions: VecDeque<Action>,
    subscription: Subscription,
    queues: BTreeMap<(TopicName, usize), Arc<Queue>>,
    /// What other consumers read; a consumer's node that changes is forgotten.
    known: BTreeMap<MemberId, Subscription>,
    topics: BTreeMap<TopicName, TopicId>,
    /// Offsets of partitions that are read no more, and not committed yet.
    unsaved: BTreeMap<TopicPartition, (Offset, LeaderEpoch)>,
    ear: Ear,
    /// Names of earlier sessions. One may have been registered in the newer session, by a call that didn't know of it.
    former: Vec<MemberId>,
    /// Waits for others to let go what is ours.
    waiting: JoinSet<()>,
    share: watch::Sender<Share>,
}

impl Balancer {
    /// A member that reads nothing yet.
    pub fn new(
        config: StreamsConfig,
        registry: Registry,
        prefetch: Arc<Prefetch>,
        share: watch::Sender<Share>,
    ) -> Self {
        let member = Membership { group: config.group.group.clone(), consumer: fresh_id(&config) };
        let patience = super::rebalance::Patience {
            backoff: config.rebalance_backoff,
            attempts: config.rebalance_attempts,
            recheck: config.session_timeout.saturating_mul(5),
        };
        Self {
            machine: Rebalance::new(member.consumer.clone(), patience),
            config,
            registry,
            prefetch,
            member,
            actions: VecDeque::new(),
            subscription: Subscription::new(),
            queues: BTreeMap::new(),
            known: BTreeMap::new(),
            topics: BTreeMap::new(),
            unsaved: BTreeMap::new(),
            ear: Ear::new(),
            former: Vec::new(),
            waiting: JoinSet::new(),
            share,
        }
    }

    /// Works until the member has left, or its connector is gone.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut sessions = self.registry.generation();
        sessions.mark_unchanged();
        let period = self.config.group.auto_commit.unwrap_or(Duration::MAX / 4);
        let mut commits = tokio::time::interval_at(Instant::now() + period.min(YEAR), period.min(YEAR));
        commits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while !sessions.has_changed().unwrap_or(true) {
                let Some(action) = self.actions.pop_front() else { break };
                if let Some(event) = self.perform(action).await {
                    self.step(event);
                }
            }
            if self.machine.is_gone() {
                break;
            }
            let deadline = self.machine.next_deadline().map(Instant::from_std);
            tokio::select! {
                biased;
                changed = sessions.changed() => match changed {
                    Ok(()) => self.begin_session(),
                    Err(_) => break,
                },
                command = commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => break,
                },
                () = self.ear.heard() => self.listen().await,
                _ = commits.tick() => {
                    if let Err(error) = self.save().await {
                        tracing::warn!(%error, group = %self.member.group, "offsets are not committed yet");
                    }
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.step(Event::Tick);
                }
            }
        }
        for queue in self.queues.values() {
            queue.close();
        }
    }

    fn step(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.machine.step(std::time::Instant::now(), event, &mut actions);
        self.actions.extend(actions);
        let share = Share { partitions: self.machine.reading().clone(), settled: self.machine.is_settled() };
        self.share.send_if_modified(|known| {
            let modified = *known != share;
            *known = share;
            modified
        });
    }

    /// Everything ephemeral has gone with the old session; so has the name.
    fn begin_session(&mut self) {
        self.actions.retain(|action| matches!(action, Action::Abandon(_)));
        let former = std::mem::replace(&mut self.member.consumer, fresh_id(&self.config));
        self.former.push(former);
        self.ear.forget();
        self.waiting.abort_all();
        self.known.clear();
        if !self.subscription.is_empty() {
            self.step(Event::Session(self.member.consumer.clone()));
        }
    }

    async fn listen(&mut self) {
        sleep(GATHER).await;
        let members = path::members(&self.member.group);
        match self.ear.take() {
            None => self.known.clear(),
            Some(paths) => {
                for path in paths {
                    let name = path.strip_prefix(&members).and_then(|rest| rest.strip_prefix('/'));
                    match name {
                        Some(name) => {
                            path::member_of(name).map(|member| self.known.remove(&member));
                        }
                        None if path == members => self.known.clear(),
                        None => {}
                    }
                }
            }
        }
        // Leaders may have moved.
        self.prefetch.wake().notify_one();
        self.step(Event::Changed);
    }

    async fn obey(&mut self, command: Command) {
        // Whoever gave up isn't interested in the answer.
        match command {
            Command::Subscribe(topic, count, reply) => drop(reply.send(self.subscribe(topic, count))),
            Command::Commit(reply) => drop(reply.send(self.save().await)),
            Command::Rewind(partitions, spec, reply) => {
                drop(reply.send(self.rewind(partitions, spec).await));
            }
            Command::Close => self.step(Event::Leave),
        }
    }

    fn subscribe(&mut self, topic: TopicName, count: usize) -> Result<Vec<MessageStream>, ConsumerError> {
        if count == 0 {
            return Err(ConsumerError::Invalid("at least one stream is needed".to_owned()));
        }
        if self.subscription.contains_key(&topic) {
            return Err(ConsumerError::Invalid(format!("topic '{topic}' has its streams already")));
        }
        let first = self.subscription.is_empty();
        self.subscription.insert(topic.clone(), count);
        let low = self.config.group.prefetch_bytes / 2;
        let asking_settles = self.config.group.auto_commit.is_some();
        let streams = (0..count).map(|number| {
            let queue = Arc::new(Queue::default());
            self.queues.insert((topic.clone(), number), Arc::clone(&queue));
            MessageStream::new(Intake::new(queue, self.prefetch.wake(), low, asking_settles))
        });
        let streams = streams.collect();
        let me = self.member.consumer.clone();
        self.step(if first { Event::Session(me) } else { Event::Resubscribed });
        Ok(streams)
    }

    async fn perform(&mut self, action: Action) -> Option<Event> {
        tracing::debug!(group = %self.member.group, member = %self.member.consumer, ?action, "rebalancing");
        let done = match action {
            Action::Register => self.register().await.map(|()| Event::Registered),
            Action::Read => self.read().await.map(Event::Read),
            Action::GiveUp(partitions) => self.give_up(&partitions).await.map(|()| Event::GivenUp),
            Action::Abandon(partitions) => {
                for partition in &partitions {
                    self.unsaved.remove(partition);
                    self.prefetch.remove(partition).and_then(|lane| lane.end());
                }
                return None;
            }
            Action::Claim(claims) => self.claim(claims).await.map(Event::Claimed),
            Action::Begin(claims) => self.begin(claims).await.map(|()| Event::Begun),
            Action::WarnCrowded(topic, streams, partitions) => {
                tracing::warn!(
                    group = %self.member.group, %topic, streams, partitions,
                    "more streams read the topic than it has partitions; some get nothing. Give it more partitions"
                );
                return None;
            }
            Action::WarnContended(partitions) => {
                let partitions: Vec<String> = partitions.iter().map(ToString::to_string).collect();
                tracing::warn!(
                    group = %self.member.group, partitions = partitions.join(" "),
                    "other consumers hold these partitions for longer than they should; trying on"
                );
                return None;
            }
            Action::Deregister => {
                let done = self.registry.deregister_consumer(&self.member).await;
                done.map(|()| Event::Deregistered).map_err(ConsumerError::from)
            }
        };
        Some(done.unwrap_or_else(|error| {
            tracing::debug!(%error, group = %self.member.group, "a step of the rebalance failed");
            Event::Failed
        }))
    }

    async fn register(&mut self) -> Result<(), ConsumerError> {
        let group = &self.member.group;
        let session = self.registry.session();
        self.ear.watch(session, &path::members(group), false).await?;
        self.ear.watch(session, path::BROKER_IDS, false).await?;
        for topic in self.subscription.keys() {
            self.ear.watch(session, &path::topic(topic), true).await?;
        }
        let topics = self.subscription.iter();
        let topics =
            topics.map(|(topic, count)| (topic.to_string(), i32::try_from(*count).unwrap_or(i32::MAX)));
        let record = ConsumerRecord::new(topics.collect(), "static", now().raw());
        Ok(self.registry.register_consumer(&self.member, &record).await?)
    }

    async fn read(&mut self) -> Result<Registries, ConsumerError> {
        // What others wrote before the change that woke us must be seen.
        self.registry.session().sync().await?;
        let ids = self.registry.consumer_ids(&self.member.group).await?;
        self.known.retain(|id, _| ids.contains(id));
        let unknown: Vec<MemberId> = ids.into_iter().filter(|id| !self.known.contains_key(id)).collect();
        let reads = unknown.into_iter().map(|id| async {
            let found = self.registry.consumer(&self.member.group, &id).await;
            (id, found)
        });
        let found: Vec<_> = futures::stream::iter(reads).buffer_unordered(READS).collect().await;
        for (id, record) in found {
            let Some(record) = record? else { continue };
            let topics = record.subscription.iter();
            let topics = topics.map(|(topic, count)| {
                (TopicName::from(topic.as_str()), usize::try_from(*count).unwrap_or(0))
            });
            self.known.insert(id, topics.collect());
        }
        let mut topics = BTreeMap::new();
        self.topics.clear();
        for topic in self.subscription.keys() {
            let Some((id, partitions)) = self.registry.topic_partitions(topic).await? else { continue };
            self.topics.insert(topic.clone(), id);
            topics.insert(topic.clone(), partitions);
        }
        Ok(Registries { consumers: self.known.clone(), topics })
    }

    /// Reading ends at once, then the offsets are committed, then the partitions are free.
    async fn give_up(&mut self, partitions: &BTreeSet<TopicPartition>) -> Result<(), ConsumerError> {
        for partition in partitions {
            let lane = self.prefetch.remove(partition);
            if let Some(uncommitted) = lane.and_then(|lane| lane.end()) {
                self.unsaved.insert(partition.clone(), uncommitted);
            }
        }
        let records = self.records(self.unsaved.iter().map(|(partition, at)| (partition.clone(), *at)));
        self.registry.commit_as(&self.member, &records).await?;
        // Once committed, never again: after the release somebody else may have come further.
        self.unsaved.clear();
        Ok(self.registry.release(&self.member, partitions).await?)
    }

    async fn claim(&mut self, claims: Claims) -> Result<BTreeSet<TopicPartition>, ConsumerError> {
        let threads = claims.into_iter().map(|(partition, stream)| {
            (partition, ThreadId::new(&self.member.consumer, stream).as_str().to_owned())
        });
        let threads: BTreeMap<TopicPartition, String> = threads.collect();
        let got = self.registry.claim(&self.member, &threads).await?;
        self.waiting.abort_all();
        if let Some(partition) = threads.keys().find(|partition| !got.contains(*partition)) {
            let owner = path::owner(&self.member.group, &partition.topic, partition.partition);
            let (registry, heard) = (self.registry.clone(), self.ear.teller());
            self.waiting.spawn(async move {
                if registry.session().wait_gone(&owner, OWNER_DEADLINE).await.is_ok() {
                    heard.tell(owner);
                }
            });
        }
        Ok(got)
    }

    async fn begin(&mut self, claims: Claims) -> Result<(), ConsumerError> {
        let committed = self.registry.committed_of(&self.member.group, claims.keys()).await?;
        let is_of = |partition: &TopicPartition, record: &OffsetRecord| {
            self.topics.get(&partition.topic).is_none_or(|id| record.is_of(*id))
        };
        let (mut starts, mut unknown) = (Offsets::new(), Vec::new());
        for partition in claims.keys() {
            match committed.get(partition).filter(|record| is_of(partition, record)) {
                Some(record) => drop(starts.insert(partition.clone(), record.offset)),
                None => unknown.push(partition.clone()),
            }
        }
        let fresh = match self.config.group.reset.begins() {
            Some(spec) => self.offsets(&unknown, spec).await?,
            None => Offsets::new(),
        };
        // Where a group begins is committed at once: if this member dies, its heir misses nothing.
        let records = fresh.iter().map(|(partition, at)| (partition.clone(), (*at, LeaderEpoch::NONE)));
        self.registry.commit_as(&self.member, &self.records(records)).await?;
        starts.extend(fresh);
        for (partition, stream) in claims {
            let Some(queue) = self.queues.get(&(partition.topic.clone(), stream)) else { continue };
            let start = starts.get(&partition).copied();
            let lane = Lane::new(partition.clone(), Arc::clone(queue), start.unwrap_or_default(), start);
            if start.is_none() {
                lane.progress().failed = true;
                let content = Err(ClientError::NoOffset { partition });
                queue.push(Chunk { lane: Arc::clone(&lane), life: 0, content, bytes: NO_BYTES });
            }
            self.prefetch.add(lane);
        }
        Ok(())
    }

    async fn offsets(
        &self,
        partitions: &[TopicPartition],
        spec: OffsetSpec,
    ) -> Result<Offsets, ConsumerError> {
        let consumer = self.prefetch.consumer();
        let each = partitions.iter().cloned().map(|partition| async move {
            consumer.offset(&partition, spec).await.map(|offset| (partition, offset))
        });
        let all = async {
            let found: Vec<_> = futures::stream::iter(each).buffer_unordered(READS).collect().await;
            found.into_iter().collect::<Result<Offsets, ClientError>>()
        };
        let late =
            |_| ClientError::Timeout { what: "where partitions begin".to_owned(), after: OFFSETS_DEADLINE };
        Ok(timeout(OFFSETS_DEADLINE, all).await.map_err(late)??)
    }

    async fn rewind(
        &mut self,
        partitions: Vec<TopicPartition>,
        spec: OffsetSpec,
    ) -> Result<Offsets, ConsumerError> {
        for partition in &partitions {
            if self.prefetch.lane(partition).is_none() {
                return Err(ConsumerError::NotAssigned { partition: partition.clone() });
            }
        }
        let offsets = self.offsets(&partitions, spec).await?;
        for (partition, offset) in &offsets {
            if let Some(lane) = self.prefetch.lane(partition) {
                self.prefetch.seek(&lane, *offset);
            }
        }
        // A rewind that isn't committed would be forgotten by the next rebalance.
        self.save().await?;
        Ok(offsets)
    }

    /// Commits what is done with.
    async fn save(&self) -> Result<(), ConsumerError> {
        let lanes = self.prefetch.lanes();
        let uncommitted = |lane: &Arc<Lane>| {
            let progress = lane.progress();
            let at =
                if progress.failed && progress.committed.is_none() { None } else { progress.uncommitted() };
            at.map(|at| (lane.partition.clone(), at))
        };
        let done: Vec<_> = lanes.iter().filter_map(uncommitted).collect();
        self.registry.commit_as(&self.member, &self.records(done.iter().cloned())).await?;
        for (partition, (offset, _)) in done {
            if let Some(lane) = self.prefetch.lane(&partition) {
                lane.progress().committed = Some(offset);
            }
        }
        Ok(())
    }

    /// Offsets as they stand in the registry; a topic that has gone has none.
    fn records(
        &self,
        offsets: impl Iterator<Item = (TopicPartition, (Offset, LeaderEpoch))>,
    ) -> BTreeMap<TopicPartition, OffsetRecord> {
        let record = |(partition, at): (TopicPartition, _)| {
            let topic = *self.topics.get(&partition.topic)?;
            Some((partition, OffsetRecord::new(topic, at, String::new(), now())))
        };
        offsets.filter_map(record).collect()
    }
}

/// A year: the period of what never happens.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// `<group>_<client>-<ms>-<8 hex>`, as Kafka 0.8's; a new one for each session.
fn fresh_id(config: &StreamsConfig) -> MemberId {
    let (group, client) = (&config.group.group, &config.group.fetch.cluster.client_id);
    MemberId::new(format!("{group}_{client}-{}-{:08x}", now().raw(), rand::random::<u32>()))
}

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}
