//! The controller's loop: whoever holds its node looks after the partitions whose leaders have gone, come back or
//! come anew, after reassignments and after deletions that somebody began. Everything is derived from the view, so
//! that a new controller goes on where the last one stopped; a loss is one change for all partitions that it touches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use loggos_client::registry::{Assignment, Fence, NewState, Registry, RegistryError};
use loggos_protocol::ids::{BrokerId, PartitionId};
use loggos_protocol::registry::record::PartitionState;
use tokio::sync::watch;
use tokio::time::Instant;

use super::election::{self, Elected};
use super::{balance, reassignment};
use crate::clock;
use crate::config::{BrokerConfigs, Configs, topic_key};
use crate::metadata::{Metadata, PartitionView, TopicView, View};

/// Pause after the registry has refused.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How often a view without news is looked through: a change that failed is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// States that are written with one change.
const STATES_MAX: usize = 400;

/// Runs for election, and does the controller's work while elected.
pub struct Controller {
    me: BrokerId,
    registry: Registry,
    metadata: Metadata,
    /// What this process was started with.
    start: Configs,
}

impl Controller {
    /// A candidate.
    pub fn new(me: BrokerId, registry: Registry, metadata: Metadata, start: Configs) -> Self {
        Self { me, registry, metadata, start }
    }

    /// Runs until the task is ended.
    pub async fn run(self) {
        let mut views = self.metadata.changes();
        loop {
            match self.registry.elect(self.me, clock::now().raw()).await {
                Ok(Some(fence)) => {
                    tracing::info!(broker = %self.me, epoch = fence.epoch, "this broker is the controller");
                    self.lead(&fence, &mut views).await;
                }
                Ok(None) => {
                    // Somebody is; until they aren't.
                    let gone = views.wait_for(|view| view.controller.is_none()).await.is_err();
                    if gone {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "no election now");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Works until somebody else is elected or the session ends.
    async fn lead(&self, fence: &Fence, views: &mut watch::Receiver<Arc<View>>) {
        let mut generation = self.registry.generation();
        generation.mark_unchanged();
        // We may have been elected before our view shows it.
        let seen = self.metadata.wait_for(LOOK_AGAIN, |view| view.controller == Some(self.me)).await;
        if seen.is_none() {
            return;
        }
        let mut balanced = Instant::now();
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            if view.controller != Some(self.me) {
                return;
            }
            let configs = self.configs(&view);
            let mut done = self.look_after(&view, &configs, fence).await;
            let interval =
                u64::try_from(configs.number("leader.imbalance.check.interval.seconds")).unwrap_or(1);
            if done.is_ok() && balanced.elapsed() >= Duration::from_secs(interval) {
                balanced = Instant::now();
                done = self.balance(&view, &configs, fence).await;
            }
            match done {
                Ok(()) => {}
                Err(Interrupted::Deposed) => {
                    tracing::info!(broker = %self.me, "a newer controller has been elected");
                    return;
                }
                Err(Interrupted::Registry(error)) => {
                    tracing::warn!(%error, "the controller's work is put off")
                }
            }
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                _ = generation.changed() => return,
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    fn configs(&self, view: &View) -> BrokerConfigs {
        let of = |who| view.broker_configs.get(&who).cloned().unwrap_or_default();
        BrokerConfigs { own: of(Some(self.me)), all: of(None), start: self.start.clone() }
    }

    async fn look_after(
        &self,
        view: &View,
        configs: &BrokerConfigs,
        fence: &Fence,
    ) -> Result<(), Interrupted> {
        // First what somebody waits for.
        let topics = || view.topics.values().filter(|topic| !view.deletions.contains(&topic.name));
        let due: Vec<NewState> =
            topics().flat_map(|topic| due_elections(view, topic, configs, fence)).collect();
        if !due.is_empty() {
            self.set_states(&due, fence).await?;
            tracing::info!(partitions = due.len(), "leaders elected");
        }
        for topic in topics() {
            self.complete_reassignments(view, topic, fence).await?;
        }
        for name in &view.deletions {
            self.registry.delete_topic(name).await?;
        }
        Ok(())
    }

    /// Gives preferred replicas their partitions back, where too many of a broker's are led by others.
    async fn balance(&self, view: &View, configs: &BrokerConfigs, fence: &Fence) -> Result<(), Interrupted> {
        if configs.text("auto.leader.rebalance.enable") != "true" {
            return Ok(());
        }
        let percentage = configs.number("leader.imbalance.per.broker.percentage");
        let due: Vec<NewState> = balance::due(view, percentage)
            .into_iter()
            .filter_map(|(topic, id, elected)| new_state(view.topics.get(&topic)?, id, elected, fence))
            .collect();
        if !due.is_empty() {
            self.set_states(&due, fence).await?;
            tracing::info!(partitions = due.len(), "preferred replicas lead again");
        }
        Ok(())
    }

    async fn set_states(&self, due: &[NewState], fence: &Fence) -> Result<(), Interrupted> {
        for chunk in due.chunks(STATES_MAX) {
            match self.registry.set_states(chunk, &[fence.check()]).await {
                // A leader has changed one of them meanwhile: the others are done one by one.
                Err(RegistryError::Refused { part, .. }) if part < chunk.len() => {
                    self.one_by_one(chunk, fence).await?;
                }
                other => settled(other, chunk.len())?,
            }
        }
        Ok(())
    }

    async fn one_by_one(&self, states: &[NewState], fence: &Fence) -> Result<(), Interrupted> {
        for new in states {
            match self.registry.set_states(std::slice::from_ref(new), &[fence.check()]).await {
                // The next view shows how it is.
                Err(RegistryError::Refused { part: 0, .. }) => {}
                other => settled(other, 1)?,
            }
        }
        Ok(())
    }

    async fn complete_reassignments(
        &self,
        view: &View,
        topic: &TopicView,
        fence: &Fence,
    ) -> Result<(), Interrupted> {
        let is_alive = |broker: BrokerId| view.brokers.contains_key(&broker);
        let (mut changed, mut states): (BTreeMap<PartitionId, Assignment>, Vec<NewState>) =
            Default::default();
        for (id, partition) in topic.partitions.iter().filter(|(_, partition)| partition.is_reassigning()) {
            let Some(step) = reassignment::complete(partition, is_alive) else { continue };
            changed.insert(*id, step.assignment);
            states.extend(step.state.and_then(|elected| new_state(topic, *id, elected, fence)));
        }
        if changed.is_empty() {
            return Ok(());
        }
        match self.registry.reassign(&topic.name, topic.version, &changed, &states, fence).await {
            Ok(()) => {
                tracing::info!(topic = %topic.name, partitions = changed.len(), "reassignments are complete");
                Ok(())
            }
            Err(RegistryError::Refused { part: 0, .. }) => Err(Interrupted::Deposed),
            // Somebody has changed it meanwhile: the next view shows how it is.
            Err(RegistryError::Refused { .. } | RegistryError::Conflict | RegistryError::Absent) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Why the work stops here.
enum Interrupted {
    /// Somebody else is the controller.
    Deposed,
    /// The registry can't now.
    Registry(RegistryError),
}

impl From<RegistryError> for Interrupted {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

/// What became of a change of `count` states with the fence behind them.
fn settled(done: Result<(), RegistryError>, count: usize) -> Result<(), Interrupted> {
    match done {
        Err(RegistryError::Refused { part, .. }) if part >= count => Err(Interrupted::Deposed),
        other => Ok(other?),
    }
}

/// The state that an election gives a partition.
pub(super) fn new_state(
    topic: &TopicView,
    id: PartitionId,
    elected: Elected,
    fence: &Fence,
) -> Option<NewState> {
    let version = topic.partitions.get(&id)?.state_version?;
    let state = PartitionState::new(elected.leader, elected.leader_epoch, fence.epoch, elected.isr);
    Some(NewState { topic: topic.name.clone(), partition: id, state, version })
}

/// The elections that a topic's partitions need.
fn due_elections(view: &View, topic: &TopicView, configs: &BrokerConfigs, fence: &Fence) -> Vec<NewState> {
    let unclean = || {
        let key = topic_key("unclean.leader.election.enable").expect("the name is in the table");
        configs.topic(&topic.configs, key).first().is_some_and(|found| found.converted() == "true")
    };
    let needs = |partition: &PartitionView| {
        let leader = view.brokers.get(&partition.leader);
        leader.is_none_or(|leader| partition.is_older_than(leader.epoch))
    };
    // Most need nothing: what costs more is asked only for those that do.
    let due: Vec<_> = topic.partitions.iter().filter(|(_, partition)| needs(partition)).collect();
    if due.is_empty() {
        return Vec::new();
    }
    let unclean = unclean();
    let elected = due.into_iter().filter_map(|(id, partition)| {
        let is_alive = |broker: BrokerId| view.brokers.contains_key(&broker);
        let leader = view.brokers.get(&partition.leader);
        let has_restarted = leader.is_some_and(|leader| partition.is_older_than(leader.epoch));
        let elected = election::elect(partition, is_alive, has_restarted, unclean)?;
        new_state(topic, *id, elected, fence)
    });
    elected.collect()
}
