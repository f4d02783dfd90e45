//! This broker's view of the cluster, read from the registry and kept current by its watches (decision D7): nobody
//! pushes metadata to anybody.
//!
//! A view is immutable; a change makes a new one that shares what stayed the same. Called by the api, `partition`
//! and `controller`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use loggos_client::registry::{Registry, RegistryError, StoredState, StoredTopic, TreeWatch};
use loggos_protocol::ids::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionId, TopicId, TopicName, Zxid};
use loggos_protocol::registry::path::{self, Subject};
use tokio::sync::{mpsc, watch};

use crate::config::Configs;

/// Changes that wait to be read; a watcher waits when it is full.
const CHANGES_MAX: usize = 1024;
/// Pause before the registry is asked again after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A live broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerView {
    /// Where clients connect.
    pub host: String,
    /// And on which port.
    pub port: u16,
    /// Where other brokers connect, as `host:port`.
    pub replication: String,
    /// Its rack.
    pub rack: Option<String>,
    /// Which life of it.
    pub epoch: BrokerEpoch,
    /// How many lives it has begun.
    pub lives: i32,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    /// Its name.
    pub name: TopicName,
    /// Its identity.
    pub id: TopicId,
    /// Its configs.
    pub configs: Configs,
    /// Its partitions.
    pub partitions: BTreeMap<PartitionId, PartitionView>,
    /// The version of its node.
    pub version: i32,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionView {
    /// Its replicas, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// Those of them that a reassignment under way adds.
    pub adding: Vec<BrokerId>,
    /// Those that it takes away in the end.
    pub removing: Vec<BrokerId>,
    /// Who leads, or `NONE`.
    pub leader: BrokerId,
    /// In which epoch.
    pub leader_epoch: LeaderEpoch,
    /// The replicas in sync.
    pub isr: Vec<BrokerId>,
    /// The version of its state's node; `None` before it has one.
    pub state_version: Option<i32>,
    /// What wrote its state.
    pub state_written: Zxid,
    /// The controller that elected its leader.
    pub controller_epoch: i32,
}

/// The cluster.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Counts the views.
    pub version: u64,
    /// The cluster's id.
    pub cluster_id: String,
    /// Who the controller is.
    pub controller: Option<BrokerId>,
    /// The live brokers.
    pub brokers: BTreeMap<BrokerId, BrokerView>,
    /// The topics by name.
    pub topics: BTreeMap<TopicName, Arc<TopicView>>,
    /// Their names by identity.
    pub names: BTreeMap<TopicId, TopicName>,
    /// Brokers' configs; those of all brokers under `None`.
    pub broker_configs: BTreeMap<Option<BrokerId>, Configs>,
    /// Topics that are to go.
    pub deletions: BTreeSet<TopicName>,
}

impl Default for PartitionView {
    /// A partition that no controller has seen.
    fn default() -> Self {
        Self {
            replicas: Vec::new(),
            adding: Vec::new(),
            removing: Vec::new(),
            leader: BrokerId::NONE,
            leader_epoch: LeaderEpoch::NONE,
            isr: Vec::new(),
            state_version: None,
            state_written: Zxid::new(0),
            controller_epoch: 0,
        }
    }
}

impl PartitionView {
    fn set_state(&mut self, stored: StoredState) {
        self.leader = stored.state.leader;
        self.leader_epoch = stored.state.leader_epoch;
        self.isr = stored.state.isr;
        self.controller_epoch = stored.state.controller_epoch;
        self.state_version = Some(stored.version);
        self.state_written = stored.written;
    }

    /// Whether a reassignment is under way.
    pub fn is_reassigning(&self) -> bool {
        !self.adding.is_empty() || !self.removing.is_empty()
    }

    /// The replicas that there are to be in the end.
    pub fn target(&self) -> Vec<BrokerId> {
        self.replicas.iter().copied().filter(|replica| !self.removing.contains(replica)).collect()
    }

    /// Whether a broker began the life of `epoch` after this state was written: it may have lost what it gave out in
    /// this leader epoch, and must not lead in it (decision D10).
    pub fn is_older_than(&self, epoch: BrokerEpoch) -> bool {
        self.state_written.raw() < epoch.raw()
    }
}

impl View {
    /// The topic of that identity.
    pub fn topic_by_id(&self, id: TopicId) -> Option<&Arc<TopicView>> {
        self.names.get(&id).and_then(|name| self.topics.get(name))
    }

    fn set_topic(&mut self, name: &TopicName, stored: Option<StoredTopic>) {
        if let Some(gone) = self.topics.remove(name) {
            self.names.remove(&gone.id);
        }
        if let Some(stored) = stored {
            self.names.insert(stored.id, name.clone());
            self.topics.insert(name.clone(), Arc::new(topic_view(name, stored)));
        }
    }

    /// Partitions' states that were read after this view was.
    fn set_states(&mut self, read: Vec<((TopicName, PartitionId), Option<StoredState>)>) {
        for ((name, partition), stored) in read {
            let Some(stored) = stored else { continue };
            let Some(topic) = self.topics.get_mut(&name) else { continue };
            // Views that are looked at keep the topic as it was: it's copied once for all of its states.
            let known = Arc::make_mut(topic).partitions.get_mut(&partition);
            let Some(known) = known else { continue };
            if known.state_version.is_none_or(|version| version < stored.version) {
                known.set_state(stored);
            }
        }
    }
}

fn topic_view(name: &TopicName, stored: StoredTopic) -> TopicView {
    let partitions = stored.partitions.into_iter().map(|(id, stored)| {
        let mut view = PartitionView {
            replicas: stored.replicas,
            adding: stored.adding,
            removing: stored.removing,
            ..PartitionView::default()
        };
        if let Some(state) = stored.state {
            view.set_state(state);
        }
        (id, view)
    });
    TopicView {
        name: name.clone(),
        id: stored.id,
        configs: stored.configs,
        partitions: partitions.collect(),
        version: stored.version,
    }
}

/// The view's handle; clones are the same view.
#[derive(Clone)]
pub struct Metadata {
    views: watch::Receiver<Arc<View>>,
}

impl Metadata {
    /// Reads everything, and keeps it current until the last handle has gone.
    ///
    /// # Errors
    /// Those of the registry's session.
    pub async fn start(registry: Registry, cluster_id: String) -> Result<Self, RegistryError> {
        let (changes, watches) = watch_all(&registry).await?;
        let view = read_all(&registry, &cluster_id).await?;
        let (publish, views) = watch::channel(Arc::new(view));
        let follower = Follower { registry, publish };
        tokio::spawn(follower.run(changes, watches));
        Ok(Self { views })
    }

    /// The newest view.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.views.borrow())
    }

    /// Tells of new views.
    pub fn changes(&self) -> watch::Receiver<Arc<View>> {
        self.views.clone()
    }

    /// Waits until a view is as `wanted`; `None` when it isn't in time.
    pub async fn wait_for(&self, deadline: Duration, wanted: impl Fn(&View) -> bool) -> Option<Arc<View>> {
        let mut views = self.views.clone();
        let found = tokio::time::timeout(deadline, views.wait_for(|view| wanted(view))).await;
        found.ok()?.ok().map(|view| Arc::clone(&view))
    }
}

/// Tasks that end with the session that they watch.
type Watches = tokio::task::JoinSet<()>;

/// Watches everything that a view holds; each change comes as a path.
async fn watch_all(registry: &Registry) -> Result<(mpsc::Receiver<String>, Watches), RegistryError> {
    let (sender, changes) = mpsc::channel(CHANGES_MAX);
    let mut tasks = Watches::new();
    for root in ["/brokers", "/config", "/controller", "/admin"] {
        let watch = registry.session().watch_tree(root).await?;
        tasks.spawn(forward(watch, sender.clone()));
    }
    Ok((changes, tasks))
}

async fn forward(mut watch: TreeWatch, sender: mpsc::Sender<String>) {
    while let Some(path) = watch.changed().await {
        if sender.send(path).await.is_err() {
            return;
        }
    }
}

async fn read_all(registry: &Registry, cluster_id: &str) -> Result<View, RegistryError> {
    let mut view = View { version: 1, cluster_id: cluster_id.to_owned(), ..View::default() };
    read(registry, &mut view, BTreeSet::from([Subject::Brokers, Subject::Topics])).await?;
    read(
        registry,
        &mut view,
        BTreeSet::from([Subject::BrokerConfigs, Subject::Controller, Subject::Deletions]),
    )
    .await?;
    Ok(view)
}

/// Reads anew what changed.
async fn read(
    registry: &Registry,
    view: &mut View,
    subjects: BTreeSet<Subject>,
) -> Result<(), RegistryError> {
    let mut topics: BTreeSet<TopicName> = BTreeSet::new();
    let mut states: Vec<(TopicName, PartitionId)> = Vec::new();
    for subject in subjects {
        match subject {
            Subject::Brokers => {
                let brokers = registry.brokers().await?.into_iter().map(|(id, stored)| {
                    let (record, epoch, lives) = (stored.record, stored.epoch, stored.lives);
                    let replication = record.replication_address();
                    let (host, port, rack) = (record.host, record.port, record.rack);
                    (id, BrokerView { host, port, replication, rack, epoch, lives })
                });
                view.brokers = brokers.collect();
            }
            Subject::Topics => {
                let names: BTreeSet<TopicName> = registry.topic_names().await?.into_iter().collect();
                topics.extend(view.topics.keys().filter(|known| !names.contains(*known)).cloned());
                topics.extend(names.into_iter().filter(|name| !view.topics.contains_key(name)));
            }
            Subject::Topic(name) => {
                topics.insert(name);
            }
            Subject::State(name, partition) => states.push((name, partition)),
            Subject::BrokerConfigs => view.broker_configs = registry.broker_configs().await?,
            Subject::Controller => view.controller = registry.controller().await?,
            Subject::Deletions => view.deletions = registry.marked_deleted().await?.into_iter().collect(),
            Subject::Other => {}
        }
    }
    // A topic that is read anyway brings its states.
    states.retain(|(name, _)| !topics.contains(name));
    let read = registry.states(&states).await?;
    view.set_states(states.into_iter().zip(read).collect());
    for name in topics {
        let stored = registry.topic(&name).await?;
        view.set_topic(&name, stored);
    }
    Ok(())
}

/// Keeps the view current.
struct Follower {
    registry: Registry,
    publish: watch::Sender<Arc<View>>,
}

impl Follower {
    async fn run(self, mut changes: mpsc::Receiver<String>, mut watches: Watches) {
        let mut generation = self.registry.generation();
        generation.mark_unchanged();
        loop {
            let mut subjects = BTreeSet::new();
            tokio::select! {
                change = changes.recv() => {
                    match change {
                        Some(path) => subjects.insert(path::subject(&path)),
                        // All watches have ended, with their connection or their session.
                        None => {
                            generation.mark_unchanged();
                            watches.abort_all();
                            (changes, watches) = self.begin_again().await;
                            continue;
                        }
                    };
                }
                changed = generation.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    watches.abort_all();
                    (changes, watches) = self.begin_again().await;
                    continue;
                }
                () = self.publish.closed() => return,
            }
            while let Ok(path) = changes.try_recv() {
                subjects.insert(path::subject(&path));
            }
            subjects.remove(&Subject::Other);
            if !subjects.is_empty() {
                self.refresh(subjects).await;
            }
        }
    }

    /// Reads what changed until it succeeds, and publishes it.
    async fn refresh(&self, subjects: BTreeSet<Subject>) {
        loop {
            let mut view = View::clone(&self.publish.borrow());
            match read(&self.registry, &mut view, subjects.clone()).await {
                Ok(()) => {
                    view.version += 1;
                    self.publish.send_replace(Arc::new(view));
                    return;
                }
                // The next session reads everything.
                Err(RegistryError::Expired) => return,
                Err(error) => {
                    tracing::warn!(%error, "the registry can't be read; trying again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// New watches and everything read anew, for a new connection or a new session.
    async fn begin_again(&self) -> (mpsc::Receiver<String>, Watches) {
        loop {
            let before = Arc::clone(&self.publish.borrow());
            let begun = async {
                let watches = watch_all(&self.registry).await?;
                let view = read_all(&self.registry, &before.cluster_id).await?;
                Ok::<_, RegistryError>((watches, view))
            };
            match begun.await {
                Ok((watches, mut view)) => {
                    view.version = before.version + 1;
                    self.publish.send_replace(Arc::new(view));
                    return watches;
                }
                Err(error) => {
                    tracing::warn!(%error, "the registry can't be read; trying again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }
}
