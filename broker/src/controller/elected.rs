//! The controller's loop: whoever holds its node looks after the partitions whose leaders have gone, come back or
//! come anew, and after deletions that somebody began. Everything is derived from the view, so that a new controller
//! goes on where the last one stopped.

use std::sync::Arc;
use std::time::Duration;

use loggos_client::registry::{Fence, NewState, Registry, RegistryError};
use loggos_protocol::ids::BrokerId;
use loggos_protocol::registry::record::PartitionState;
use tokio::sync::watch;

use super::election;
use crate::clock;
use crate::metadata::{Metadata, TopicView, View};

/// Pause after the registry has refused.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How often a view without news is looked through: a change that failed is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// States that are written with one change.
const STATES_MAX: usize = 250;

/// Runs for election, and does the controller's work while elected.
pub struct Controller {
    me: BrokerId,
    registry: Registry,
    metadata: Metadata,
}

impl Controller {
    /// A candidate.
    pub fn new(me: BrokerId, registry: Registry, metadata: Metadata) -> Self {
        Self { me, registry, metadata }
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
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            if view.controller != Some(self.me) {
                return;
            }
            match self.look_after(&view, fence).await {
                Ok(()) => {}
                Err(RegistryError::Refused { part: 0, .. }) => {
                    tracing::info!(broker = %self.me, "a newer controller has been elected");
                    return;
                }
                Err(error) => tracing::warn!(%error, "the controller's work is put off"),
            }
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                _ = generation.changed() => return,
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    async fn look_after(&self, view: &View, fence: &Fence) -> Result<(), RegistryError> {
        for name in &view.deletions {
            self.registry.delete_topic(name).await?;
        }
        let topics = view.topics.values().filter(|topic| !view.deletions.contains(&topic.name));
        let due: Vec<NewState> = topics.flat_map(|topic| due_elections(view, topic, fence)).collect();
        for chunk in due.chunks(STATES_MAX) {
            match self.registry.set_states(chunk, fence).await {
                // A leader has changed one of them meanwhile: the others are done one by one.
                Err(RegistryError::Refused { part, .. }) if part > 0 => self.one_by_one(chunk, fence).await?,
                other => other?,
            }
        }
        if !due.is_empty() {
            tracing::info!(partitions = due.len(), "leaders elected");
        }
        Ok(())
    }

    async fn one_by_one(&self, states: &[NewState], fence: &Fence) -> Result<(), RegistryError> {
        for new in states {
            match self.registry.set_states(std::slice::from_ref(new), fence).await {
                // The next view shows how it is.
                Err(RegistryError::Refused { part, .. }) if part > 0 => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// The elections that a topic's partitions need.
fn due_elections(view: &View, topic: &TopicView, fence: &Fence) -> Vec<NewState> {
    let unclean = topic.configs.get("unclean.leader.election.enable").is_some_and(|value| value == "true");
    let elected = topic.partitions.iter().filter_map(|(id, partition)| {
        let version = partition.state_version?;
        let is_alive = |broker: BrokerId| view.brokers.contains_key(&broker);
        let leader = view.brokers.get(&partition.leader);
        let has_restarted = leader.is_some_and(|leader| partition.is_older_than(leader.epoch));
        let elected = election::elect(partition, is_alive, has_restarted, unclean)?;
        let state = PartitionState::new(elected.leader, elected.leader_epoch, fence.epoch, elected.isr);
        Some(NewState { topic: topic.name.clone(), partition: *id, state, version })
    });
    elected.collect()
}
