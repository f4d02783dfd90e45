//! The groups that this broker runs: which those are follows from the live brokers alone, so that nothing says it but
//! the view. A group is read from the registry when it is first asked for, and kept there with each generation.
//!
//! Called by the group handlers of the api, and ticked by `broker`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use loggos_client::registry::{Registry, RegistryError, StoredOffsets};
use loggos_protocol::ids::{BrokerId, GroupId, LeaderEpoch, Offset, PartitionId, Timestamp, TopicName};
use loggos_protocol::kafka::ErrorCode;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, oneshot};

use super::member::Waiting;
use super::record::GroupRecord;
use super::runner::runner;
use super::state::{Action, Caller, Event, Limits, Reply, State};
use crate::clock;
use crate::config::BrokerConfigs;
use crate::metadata::Metadata;

/// How often groups are looked at for members that are silent and rebalances that are over.
const TICK: Duration = Duration::from_millis(50);

/// A committed offset, as it stands in the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The next offset to read.
    pub offset: Offset,
    /// The leader epoch of the record before it, or -1.
    pub leader_epoch: LeaderEpoch,
    /// What the client noted.
    pub metadata: String,
    /// When it was committed.
    pub timestamp: Timestamp,
}

impl Committed {
    /// Reads what the registry holds: our JSON, or plain decimal text as consumers of Kafka 0.8 wrote it.
    fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().or_else(|| {
            let offset = std::str::from_utf8(bytes).ok()?.trim().parse().ok().map(Offset::new)?;
            let (leader_epoch, timestamp) = (LeaderEpoch::NONE, Timestamp::NONE);
            Some(Self { offset, leader_epoch, metadata: String::new(), timestamp })
        })
    }
}

/// What the registry keeps of a group: the mark that a broker runs it, and what it is.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: i32,
    run_by: String,
    group: GroupRecord,
}

/// Committed offsets by partition.
pub type Offsets = BTreeMap<(TopicName, PartitionId), Committed>;

/// One group in this broker's care.
struct Group {
    state: State,
    answers: HashMap<Waiting, oneshot::Sender<Reply>>,
    offsets: Offsets,
}

/// What a tool is told of a group.
pub struct Described {
    /// The group as it is.
    pub state: State,
}

/// Gives the configs in force.
pub type ConfigsInForce = Box<dyn Fn() -> Arc<BrokerConfigs> + Send + Sync>;

/// The groups.
pub struct Groups {
    me: BrokerId,
    registry: Registry,
    metadata: Metadata,
    configs: ConfigsInForce,
    groups: Mutex<HashMap<GroupId, Arc<Mutex<Group>>>>,
    next: AtomicU64,
}

fn code_of(error: &RegistryError) -> ErrorCode {
    tracing::warn!(%error, "a group's state can't be reached");
    ErrorCode::COORDINATOR_NOT_AVAILABLE
}

fn limits(configs: &BrokerConfigs) -> Limits {
    Limits {
        session_min: configs.duration("group.min.session.timeout.ms"),
        session_max: configs.duration("group.max.session.timeout.ms"),
        members: usize::try_from(configs.number("group.max.size")).unwrap_or(usize::MAX),
        initial_delay: configs.duration("group.initial.rebalance.delay.ms"),
    }
}

impl Groups {
    /// No groups yet.
    pub fn new(me: BrokerId, registry: Registry, metadata: Metadata, configs: ConfigsInForce) -> Self {
        Self { me, registry, metadata, configs, groups: Mutex::new(HashMap::new()), next: AtomicU64::new(0) }
    }

    /// Looks after time until the task is ended.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            let groups: Vec<(GroupId, Arc<Mutex<Group>>)> =
                self.groups.lock().await.iter().map(|(id, group)| (id.clone(), Arc::clone(group))).collect();
            for (id, group) in groups {
                let mut group = group.lock().await;
                if group.state.next_deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                    self.step(&id, &mut group, Event::Tick).await;
                }
            }
        }
    }

    /// Whether this broker runs the group.
    fn runs(&self, id: &GroupId) -> bool {
        runner(self.metadata.view().brokers.keys().copied(), id.as_str()) == Some(self.me)
    }

    /// The group, if this broker runs it.
    async fn group(&self, id: &GroupId) -> Result<Arc<Mutex<Group>>, ErrorCode> {
        if id.as_str().is_empty() {
            return Err(ErrorCode::INVALID_GROUP_ID);
        }
        let mut groups = self.groups.lock().await;
        if !self.runs(id) {
            // Who runs it now reads it from the registry; so do we if it comes back.
            groups.remove(id);
            return Err(ErrorCode::NOT_COORDINATOR);
        }
        if let Some(known) = groups.get(id) {
            return Ok(Arc::clone(known));
        }
        let kept = self.registry.group_record(id).await.map_err(|error| code_of(&error))?;
        let limits = limits(&(self.configs)());
        let state = match kept.and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok()) {
            Some(kept) => State::restore(limits, kept.group, Instant::now()),
            None => State::new(limits),
        };
        let stored = self.registry.committed(id).await.map_err(|error| code_of(&error))?;
        let offsets = stored.into_iter().filter_map(|(place, bytes)| Some((place, Committed::read(&bytes)?)));
        let group = Group { state, answers: HashMap::new(), offsets: offsets.collect() };
        let group = Arc::new(Mutex::new(group));
        groups.insert(id.clone(), Arc::clone(&group));
        Ok(group)
    }

    /// Takes an event that is answered, now or when the group is ready.
    ///
    /// # Errors
    /// `NOT_COORDINATOR`, `COORDINATOR_NOT_AVAILABLE`, `INVALID_GROUP_ID`.
    pub async fn ask(&self, id: &GroupId, event: impl FnOnce(Waiting) -> Event) -> Result<Reply, ErrorCode> {
        let group = self.group(id).await?;
        let answer = {
            let mut group = group.lock().await;
            let waiting = Waiting(self.next.fetch_add(1, Ordering::Relaxed));
            let (tell, answer) = oneshot::channel();
            group.answers.insert(waiting, tell);
            self.step(id, &mut group, event(waiting)).await;
            answer
        };
        answer.await.map_err(|_| ErrorCode::COORDINATOR_NOT_AVAILABLE)
    }

    async fn step(&self, id: &GroupId, group: &mut Group, event: Event) {
        let mut actions = Vec::new();
        group.state.step(Instant::now(), event, &mut actions);
        for action in actions {
            match action {
                Action::Persist(record) => {
                    if let Err(error) = self.keep(id, record).await {
                        tracing::warn!(group = %id, %error, "a group could not be kept; its members will join again");
                        // Nobody holds an assignment that the registry doesn't know: all that wait are turned away,
                        // and the group is read anew.
                        group.answers.clear();
                        let limits = limits(&(self.configs)());
                        group.state = State::new(limits);
                        return;
                    }
                }
                Action::Reply(waiting, reply) => {
                    if let Some(tell) = group.answers.remove(&waiting) {
                        // Who has gone needs no answer.
                        let _ = tell.send(reply);
                    }
                }
            }
        }
    }

    async fn keep(&self, id: &GroupId, record: GroupRecord) -> Result<(), RegistryError> {
        let kept = Kept { version: 1, run_by: "broker".to_owned(), group: record };
        let bytes = serde_json::to_vec(&kept).expect("records are plain maps, lists and numbers");
        self.registry.set_group_record(id, &bytes).await
    }

    /// Commits offsets for a member, or for a consumer without a group.
    ///
    /// # Errors
    /// The group's refusal, or the registry's.
    pub async fn commit(&self, id: &GroupId, caller: &Caller, offsets: Offsets) -> Result<(), ErrorCode> {
        let group = self.group(id).await?;
        let mut group = group.lock().await;
        group.state.may_commit(Instant::now(), caller).ok()?;
        let mut stored = StoredOffsets::new();
        for (place, committed) in &offsets {
            let bytes = serde_json::to_vec(committed).expect("offsets are plain maps and numbers");
            stored.insert(place.clone(), bytes);
        }
        self.registry.commit(id, &stored).await.map_err(|error| code_of(&error))?;
        group.offsets.extend(offsets);
        Ok(())
    }

    /// What a group has committed, of topics that there are.
    ///
    /// # Errors
    /// As [`Groups::ask`].
    pub async fn committed(&self, id: &GroupId) -> Result<Offsets, ErrorCode> {
        let group = self.group(id).await?;
        let view = self.metadata.view();
        let mut group = group.lock().await;
        group.offsets.retain(|(topic, _), _| view.topics.contains_key(topic));
        Ok(group.offsets.clone())
    }

    /// A group as it is.
    ///
    /// # Errors
    /// As [`Groups::ask`].
    pub async fn describe(&self, id: &GroupId) -> Result<Described, ErrorCode> {
        let group = self.group(id).await?;
        let state = group.lock().await.state.clone();
        Ok(Described { state })
    }

    /// The groups that this broker runs.
    ///
    /// # Errors
    /// The registry's.
    pub async fn ids(&self) -> Result<Vec<GroupId>, ErrorCode> {
        let all = self.registry.group_ids().await.map_err(|error| code_of(&error))?;
        Ok(all.into_iter().filter(|id| self.runs(id)).collect())
    }

    /// The commit's time.
    pub fn now() -> Timestamp {
        clock::now()
    }
}
