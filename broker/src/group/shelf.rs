//! What a group has committed, as this broker knows it: what stands in the registry, and how much is on its way there.
//! Shared by the group's requests and by the committer, which doesn't wait for the group's own lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use loggos_client::registry::{GroupFence, Place};
use loggos_protocol::ids::TopicName;
use loggos_protocol::registry::group::OffsetRecord;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Committed offsets by partition.
pub type Offsets = BTreeMap<Place, OffsetRecord>;

/// A group's offsets.
#[derive(Debug)]
pub(super) struct Shelf {
    /// The version that commits must find.
    pub fence: GroupFence,
    kept: Mutex<Kept>,
    /// Counts the offsets on all shelves of this broker.
    held: Arc<AtomicUsize>,
    /// Offsets that are on their way.
    under_way: watch::Sender<usize>,
    /// Whether what stands in the registry may differ from this: it is to be read again.
    unsure: AtomicBool,
}

#[derive(Debug, Default)]
struct Kept {
    offsets: Offsets,
    topics: BTreeSet<TopicName>,
}

impl Shelf {
    pub(super) fn new(
        fence: GroupFence,
        offsets: Offsets,
        topics: BTreeSet<TopicName>,
        held: Arc<AtomicUsize>,
    ) -> Self {
        held.fetch_add(offsets.len(), Ordering::Relaxed);
        Self {
            fence,
            held,
            kept: Mutex::new(Kept { offsets, topics }),
            under_way: watch::Sender::new(0),
            unsure: AtomicBool::new(false),
        }
    }

    /// All that stands in the registry.
    pub(super) fn offsets(&self) -> Offsets {
        self.kept.lock().offsets.clone()
    }

    /// How many offsets stand there.
    pub(super) fn len(&self) -> usize {
        self.kept.lock().offsets.len()
    }

    /// One of them.
    pub(super) fn get(&self, place: &Place) -> Option<OffsetRecord> {
        self.kept.lock().offsets.get(place).cloned()
    }

    /// Whether a topic has a node for its offsets.
    pub(super) fn has_topic(&self, topic: &TopicName) -> bool {
        self.kept.lock().topics.contains(topic)
    }

    /// A commit was written, or a deletion: whether it was the topic's last offset.
    pub(super) fn written(&self, place: &Place, value: Option<OffsetRecord>) -> bool {
        let mut kept = self.kept.lock();
        match value {
            Some(value) => {
                kept.topics.insert(place.0.clone());
                if kept.offsets.insert(place.clone(), value).is_none() {
                    self.held.fetch_add(1, Ordering::Relaxed);
                }
                false
            }
            None => {
                if kept.offsets.remove(place).is_some() {
                    self.held.fetch_sub(1, Ordering::Relaxed);
                }
                !kept.offsets.keys().any(|(topic, _)| *topic == place.0)
            }
        }
    }

    /// A topic's node has gone.
    pub(super) fn dropped(&self, topic: &TopicName) {
        self.kept.lock().topics.remove(topic);
    }

    pub(super) fn doubt(&self) {
        self.unsure.store(true, Ordering::Release);
    }

    pub(super) fn is_unsure(&self) -> bool {
        self.unsure.load(Ordering::Acquire)
    }

    /// So many more offsets are on their way; fewer with a negative number.
    pub(super) fn add_under_way(&self, by: isize) {
        self.under_way.send_modify(|count| *count = count.saturating_add_signed(by));
    }

    /// Whether nothing is on its way.
    pub(super) fn is_quiet(&self) -> bool {
        *self.under_way.borrow() == 0
    }

    /// Waits until nothing is on its way.
    pub(super) async fn settled(&self) {
        // The sender lives as long as this shelf.
        let _ = self.under_way.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.held.fetch_sub(self.kept.lock().offsets.len(), Ordering::Relaxed);
    }
}
