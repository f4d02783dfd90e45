//! The groups that this broker runs: which those are follows from the live brokers alone, so that nothing says it but
//! the view. A group is claimed in the registry and read from it, moved by its machine, and kept there before anybody
//! hears of what changed.
//!
//! Each group has a lock of its own, held while its machine moves and while that is written; no group waits for
//! another's. Called by the group handlers of the api.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use loggos_client::registry::{Claim, GroupChange, GroupNodes, Registry, RegistryError};
use loggos_protocol::ids::{BrokerId, GroupId};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::registry::group::OffsetRecord;
use loggos_protocol::registry::record::Record;
use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, oneshot, watch};

use super::assignor::Topics;
use super::committer::Committer;
use super::liveness::Liveness;
use super::machine::{Machine, Setting};
use super::member::Waiting;
use super::record::{Change, HeadRecord, MemberRecord};
use super::runner::runner;
use super::seen;
use super::setting::setting_of;
use super::shelf::{Offsets, Shelf};
use super::state::{Action, Event, Reply};
use crate::clock;
use crate::config::BrokerConfigs;
use crate::metadata::Metadata;

/// No request waits longer for its group than this: the longest rebalance that a client may ask for.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Gives the configs in force.
pub type ConfigsInForce = Box<dyn Fn() -> Arc<BrokerConfigs> + Send + Sync>;

/// One group in this broker's care.
pub(super) struct Group {
    pub(super) machine: Machine,
    pub(super) answers: HashMap<Waiting, oneshot::Sender<Reply>>,
    pub(super) nodes: GroupNodes,
    pub(super) shelf: Arc<Shelf>,
    /// Since when nobody is in it.
    pub(super) head: HeadRecord,
    /// The session in which it was claimed.
    session: u64,
}

impl Group {
    /// Whether there is anything to know of it.
    pub(super) fn is_void(&self) -> bool {
        !self.nodes.exist() && self.answers.is_empty() && self.machine.is_untouched()
    }
}

/// A place for a group: empty until it is claimed, and again when it isn't ours any more.
pub(super) type Cell = Arc<tokio::sync::Mutex<Option<Group>>>;

/// A group that a request works with.
pub(super) struct Entered {
    guard: OwnedMutexGuard<Option<Group>>,
}

impl std::ops::Deref for Entered {
    type Target = Group;

    fn deref(&self) -> &Group {
        self.guard.as_ref().expect("who enters finds a group")
    }
}

impl std::ops::DerefMut for Entered {
    fn deref_mut(&mut self) -> &mut Group {
        self.guard.as_mut().expect("who enters finds a group")
    }
}

impl Entered {
    /// Lets the group go: what stands in the registry may be something else.
    pub(super) fn forget(mut self) {
        *self.guard = None;
    }
}

/// A group as it is.
pub struct Described {
    /// Whether anybody has ever used it.
    pub exists: bool,
    /// Its machine.
    pub machine: Machine,
}

/// The groups.
pub struct Groups {
    me: BrokerId,
    pub(super) registry: Registry,
    pub(super) metadata: Metadata,
    pub(super) configs: ConfigsInForce,
    pub(super) cells: Mutex<HashMap<GroupId, Cell>>,
    /// Topics as machines know them, and the view that they are of.
    topics: Mutex<(u64, Arc<Topics>)>,
    pub(super) committer: Arc<Committer>,
    pub(super) liveness: Liveness,
    sessions: watch::Receiver<u64>,
    /// Offsets in the registry for this broker's groups.
    pub(super) held: Arc<AtomicUsize>,
    next: AtomicU64,
}

pub(super) fn code_of(error: &RegistryError) -> ErrorCode {
    tracing::warn!(%error, "a group's state can't be reached");
    ErrorCode::COORDINATOR_NOT_AVAILABLE
}

impl Groups {
    /// No groups yet.
    pub fn new(me: BrokerId, registry: Registry, metadata: Metadata, configs: ConfigsInForce) -> Self {
        Self {
            me,
            committer: Arc::new(Committer::new(registry.clone())),
            liveness: Liveness::new(registry.clone()),
            sessions: registry.generation(),
            registry,
            metadata,
            configs,
            cells: Mutex::default(),
            topics: Mutex::default(),
            held: Arc::default(),
            next: AtomicU64::new(0),
        }
    }

    /// Whether this broker runs the group.
    pub(super) fn runs(&self, id: &GroupId) -> bool {
        runner(self.metadata.view().brokers.keys().copied(), id.as_str()) == Some(self.me)
    }

    /// What machines are to know of configs and topics.
    pub(super) fn setting(&self) -> Setting {
        let view = self.metadata.view();
        let topics = {
            let mut known = self.topics.lock();
            if known.0 != view.version {
                let each = view.topics.values().map(|topic| {
                    let count = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
                    (topic.name.clone(), topic.id, count)
                });
                let topics = Topics::new(each);
                // Most views differ in something else.
                if topics != *known.1 {
                    known.1 = Arc::new(topics);
                }
                known.0 = view.version;
            }
            Arc::clone(&known.1)
        };
        setting_of(&(self.configs)(), topics)
    }

    fn session(&self) -> u64 {
        *self.sessions.borrow()
    }

    /// The group, if this broker runs it and is sure that it does.
    pub(super) async fn enter(&self, id: &GroupId) -> Result<Entered, ErrorCode> {
        self.liveness.ensure().await?;
        if !self.runs(id) {
            self.cells.lock().remove(id);
            return Err(ErrorCode::NOT_COORDINATOR);
        }
        let cell = Arc::clone(self.cells.lock().entry(id.clone()).or_default());
        let mut guard = cell.lock_owned().await;
        let session = self.session();
        if guard.as_ref().is_some_and(|group| group.shelf.is_unsure() || group.session != session) {
            *guard = None;
        }
        if guard.is_none() {
            *guard = Some(self.claim(id, session).await?);
        }
        // It may have become another's while we waited.
        if !self.runs(id) {
            *guard = None;
            return Err(ErrorCode::NOT_COORDINATOR);
        }
        Ok(Entered { guard })
    }

    /// Takes the group over, with all that the registry has of it.
    async fn claim(&self, id: &GroupId, session: u64) -> Result<Group, ErrorCode> {
        let setting = self.setting();
        let claim = self.registry.claim_group(id).await.map_err(|error| code_of(&error))?;
        let (nodes, head, offsets, topics) = match claim {
            Claim::New(nodes) => (nodes, Vec::new(), Offsets::new(), BTreeSet::new()),
            Claim::Ours { nodes, head, offsets, topics } => {
                let read = offsets.into_iter();
                let read = read.filter_map(|(place, bytes)| Some((place, OffsetRecord::read(&bytes)?)));
                (nodes, head, read.collect(), topics)
            }
            Claim::Theirs => {
                tracing::info!(group = %id, "its members run this group themselves");
                return Err(ErrorCode::INCONSISTENT_GROUP_PROTOCOL);
            }
        };
        let shelf = Arc::new(Shelf::new(nodes.fence(), offsets, topics, Arc::clone(&self.held)));
        let malformed = |error| {
            tracing::error!(group = %id, %error, "a group can't be read; delete its node to begin anew");
            ErrorCode::UNKNOWN_SERVER_ERROR
        };
        let (machine, head) = if head.is_empty() {
            let machine = Machine::new(&setting);
            let head = machine.head();
            (machine, head)
        } else {
            let head = HeadRecord::from_bytes(&head).map_err(malformed)?;
            let members = nodes.members().values().map(|bytes| MemberRecord::from_bytes(bytes));
            let members = members.collect::<Result<Vec<_>, _>>().map_err(malformed)?;
            (Machine::restore(&setting, head.clone(), members, Instant::now()), head)
        };
        tracing::debug!(group = %id, generation = %head.generation, "group claimed");
        Ok(Group { machine, answers: HashMap::new(), nodes, shelf, head, session })
    }

    /// Takes an event that is answered, now or when the group is ready.
    ///
    /// # Errors
    /// `NOT_COORDINATOR`, `COORDINATOR_NOT_AVAILABLE`, `INVALID_GROUP_ID`, and `INCONSISTENT_GROUP_PROTOCOL` for a
    /// group that its members run.
    pub async fn ask(&self, id: &GroupId, event: impl FnOnce(Waiting) -> Event) -> Result<Reply, ErrorCode> {
        if id.as_str().is_empty() {
            return Err(ErrorCode::INVALID_GROUP_ID);
        }
        let group = self.enter(id).await?;
        let waiting = Waiting(self.next.fetch_add(1, Ordering::Relaxed));
        let answer = self.step(id, group, event, waiting).await;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            _ => Err(ErrorCode::COORDINATOR_NOT_AVAILABLE),
        }
    }

    async fn step(
        &self,
        id: &GroupId,
        mut group: Entered,
        event: impl FnOnce(Waiting) -> Event,
        waiting: Waiting,
    ) -> oneshot::Receiver<Reply> {
        let (tell, answer) = oneshot::channel();
        group.answers.insert(waiting, tell);
        self.perform(id, group, event(waiting)).await;
        answer
    }

    /// Moves a group and does what its machine says, in order. Where the registry can't keep a change, all that wait
    /// are turned away, and the group is read anew: nobody holds what the next broker wouldn't know.
    pub(super) async fn perform(&self, id: &GroupId, mut group: Entered, event: Event) {
        let mut actions = Vec::new();
        let setting = self.setting();
        group.machine.step(Instant::now(), &setting, event, &mut actions);
        for action in actions {
            match action {
                Action::Persist(change) => {
                    if let Err(error) = self.keep(&mut group, change).await {
                        tracing::warn!(group = %id, %error, "a group could not be kept; it is read anew");
                        group.shelf.doubt();
                        group.forget();
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

    /// Writes a change: the group's head, its members, and who holds what.
    pub(super) async fn keep(&self, group: &mut Group, mut change: Change) -> Result<(), RegistryError> {
        let is_empty = group.machine.is_empty();
        change.head.empty_since = is_empty.then(|| group.head.empty_since.unwrap_or_else(clock::now));
        let mut owners: BTreeMap<_, Option<_>> = BTreeMap::new();
        if !change.head.rebalancing {
            // Everything that somebody holds now, and no longer what nobody does.
            owners.extend(group.nodes.owned().map(|place| (place.clone(), None)));
            owners.extend(group.machine.holders().into_iter().map(|(place, id)| (place, Some(id))));
        }
        let members =
            change.members.into_iter().map(|(id, record)| (id, record.map(|record| record.to_bytes())));
        let change_of_nodes =
            GroupChange { head: change.head.to_bytes(), members: members.collect(), owners };
        self.registry.keep_group(&mut group.nodes, &change_of_nodes).await?;
        group.head = change.head;
        Ok(())
    }

    /// A group as it is.
    ///
    /// # Errors
    /// As [`Groups::ask`].
    pub async fn describe(&self, id: &GroupId) -> Result<Described, ErrorCode> {
        let group = match self.enter(id).await {
            Ok(group) => group,
            Err(ErrorCode::INCONSISTENT_GROUP_PROTOCOL) => {
                let seen = self.registry.see_group(id).await.map_err(|error| code_of(&error))?;
                return Ok(Described {
                    exists: true,
                    machine: seen::shown(&self.setting(), &seen, Instant::now()),
                });
            }
            Err(code) => return Err(code),
        };
        Ok(Described {
            exists: group.nodes.exist() || !group.machine.is_untouched(),
            machine: group.machine.clone(),
        })
    }

    /// The groups that this broker runs.
    ///
    /// # Errors
    /// The registry's.
    pub async fn ids(&self) -> Result<Vec<GroupId>, ErrorCode> {
        self.liveness.ensure().await?;
        let mut all: BTreeSet<GroupId> = self.cells.lock().keys().cloned().collect();
        all.extend(self.registry.group_ids().await.map_err(|error| code_of(&error))?);
        Ok(all.into_iter().filter(|id| self.runs(id)).collect())
    }
}
