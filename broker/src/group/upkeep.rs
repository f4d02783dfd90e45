//! What groups need though nobody asks: silent members are given up, a lost broker's groups taken over at once,
//! offsets of deleted topics removed, old ones expired. Run by `broker`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt;
use loggos_client::registry::Place;
use loggos_protocol::ids::{BrokerEpoch, BrokerId, GroupId, TopicId, TopicName};
use loggos_protocol::kafka::ErrorCode;

use super::offsets::{is_current, strange};
use super::state::Event;
use super::table::{Cell, Entered, Groups};
use crate::clock;
use crate::metadata::View;

/// How often groups are looked at for members that are silent and rebalances that are over.
const TICK: Duration = Duration::from_millis(50);
/// Groups that are taken over at the same time.
const TAKEN_AT_ONCE: usize = 16;
/// Pause before a take-over that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What of a view decides on groups: brokers with their lives, topics with their identities and partitions.
type Relevant = (Vec<(BrokerId, BrokerEpoch)>, BTreeSet<(TopicName, TopicId, usize)>);

impl Groups {
    /// Looks after the groups until the task is ended.
    pub async fn run(self: Arc<Self>) {
        tokio::join!(
            Arc::clone(&self.committer).run(),
            self.show_life(),
            self.tick(),
            self.follow(),
            self.expire(),
        );
    }

    async fn show_life(&self) {
        loop {
            self.liveness.beat().await;
            tokio::time::sleep(TICK).await;
        }
    }

    fn all(&self) -> Vec<(GroupId, Cell)> {
        self.cells.lock().iter().map(|(id, cell)| (id.clone(), Arc::clone(cell))).collect()
    }

    async fn tick(&self) {
        loop {
            tokio::time::sleep(TICK).await;
            for (id, cell) in self.all() {
                // One that is at work looks at the time itself, or is looked at next time.
                let Ok(guard) = cell.try_lock() else { continue };
                let Some(group) = guard.as_ref() else {
                    drop(guard);
                    self.drop_unused(&id, cell);
                    continue;
                };
                let is_due = group.machine.next_deadline().is_some_and(|deadline| deadline <= Instant::now());
                let is_void = group.is_void();
                drop(guard);
                if is_due && let Ok(group) = self.enter(&id).await {
                    self.perform(&id, group, Event::Tick).await;
                } else if is_void {
                    self.drop_unused(&id, cell);
                }
            }
            metrics::gauge!("loggos_group_offsets").set(self.held.load(Ordering::Relaxed) as f64);
            metrics::gauge!("loggos_groups").set(self.cells.lock().len() as f64);
        }
    }

    /// Forgets a group that there is nothing to know of, unless somebody is on the way to it.
    fn drop_unused(&self, id: &GroupId, cell: Cell) {
        let mut cells = self.cells.lock();
        let unused =
            cell.try_lock().is_ok_and(|group| group.as_ref().is_none_or(super::table::Group::is_void));
        // The table's and ours.
        if unused && Arc::strong_count(&cell) <= 2 {
            cells.remove(id);
        }
    }

    /// Follows the view: groups that became ours are taken over, those that aren't any more let go.
    async fn follow(&self) {
        let mut views = self.metadata.changes();
        let mut last: Option<Relevant> = None;
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            let relevant = relevant(&view);
            if last.as_ref() != Some(&relevant) {
                if self.adopt(&view).await {
                    last = Some(relevant);
                } else {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
            }
            if views.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes over what is ours now; false when that is to be tried again.
    async fn adopt(&self, view: &View) -> bool {
        for (id, cell) in self.all() {
            if !self.runs(&id) {
                self.cells.lock().remove(&id);
                // Whoever waits for an answer is told to look for the group elsewhere.
                if let Ok(mut group) = cell.try_lock() {
                    *group = None;
                }
            }
        }
        let Ok(ids) = self.ids().await else { return false };
        let taken = ids.into_iter().map(|id| async move {
            match self.enter(&id).await {
                Ok(group) => {
                    let kept = self.purge(&id, &group, view).await;
                    let topics = self.setting().topics;
                    self.perform(&id, group, Event::Topics(topics)).await;
                    kept
                }
                Err(code) => code != ErrorCode::COORDINATOR_NOT_AVAILABLE,
            }
        });
        let taken = futures::stream::iter(taken).buffer_unordered(TAKEN_AT_ONCE);
        taken.all(std::future::ready).await
    }

    /// Removes the offsets of topics that are no more. A view may be older than a topic: the registry is asked.
    async fn purge(&self, id: &GroupId, group: &Entered, view: &View) -> bool {
        let offsets = group.shelf.offsets();
        let shelf = Arc::clone(&group.shelf);
        let mut doomed: BTreeSet<Place> = BTreeSet::new();
        for topic in strange(view, &offsets) {
            let known = view.topics.contains_key(&topic);
            if !known && !matches!(self.registry.topic(&topic).await, Ok(None)) {
                continue;
            }
            let old =
                offsets.iter().filter(|(place, record)| place.0 == topic && !is_current(view, place, record));
            doomed.extend(old.map(|(place, _)| place.clone()));
        }
        if !doomed.is_empty() {
            tracing::info!(group = %id, offsets = doomed.len(), "offsets of deleted topics are removed");
        }
        self.forget(id, &shelf, doomed).await.is_ok()
    }

    /// Removes what nobody has needed for long.
    async fn expire(&self) {
        loop {
            tokio::time::sleep((self.configs)().duration("offsets.retention.check.interval.ms")).await;
            for (id, _) in self.all() {
                let Ok(group) = self.enter(&id).await else { continue };
                let doomed = self.expired(&group, clock::now());
                let shelf = Arc::clone(&group.shelf);
                let all = doomed.len() == shelf.len();
                let is_empty = group.head.empty_since.is_some() && group.nodes.exist();
                drop(group);
                if !doomed.is_empty() {
                    tracing::info!(group = %id, offsets = doomed.len(), "old offsets are removed");
                    metrics::counter!("loggos_group_offsets_expired_total").increment(doomed.len() as u64);
                    if self.forget(&id, &shelf, doomed).await.is_err() {
                        continue;
                    }
                }
                if is_empty && all && shelf.len() == 0 && self.delete(&id).await.is_ok() {
                    tracing::info!(group = %id, "a group without members and offsets is removed");
                }
            }
        }
    }
}

fn relevant(view: &View) -> Relevant {
    let brokers = view.brokers.iter().map(|(id, broker)| (*id, broker.epoch)).collect();
    let topics = view.topics.values();
    (brokers, topics.map(|topic| (topic.name.clone(), topic.id, topic.partitions.len())).collect())
}
