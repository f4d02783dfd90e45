//! Who waits for a partition: producers until an offset is flushed or replicated, and fetches until there is more to
//! see. A fetch that watches a thousand partitions is told which of them moved, and looks at no other.
//!
//! Called by `partition` and by the fetch handler.

use std::sync::{Arc, Weak};

use loggos_protocol::ids::Offset;
use loggos_protocol::kafka::ErrorCode;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

/// What a producer is told in the end.
pub type Answer = Result<(), ErrorCode>;

/// What a producer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The leader's own flush (`acks=1`).
    Flushed,
    /// Every replica in sync (`acks=all`).
    Committed,
}

struct Producer {
    goal: Goal,
    end: Offset,
    tell: oneshot::Sender<Answer>,
}

/// A fetch that waits. It stays registered for as long as it lives, a fetch session over many requests.
#[derive(Debug, Default)]
pub struct FetchWatch {
    moved: Mutex<Vec<u32>>,
    notify: Notify,
}

impl FetchWatch {
    /// The partitions that moved since the last call, by the numbers that they were registered under.
    pub fn take_moved(&self) -> Vec<u32> {
        std::mem::take(&mut self.moved.lock())
    }

    /// Waits until one has moved.
    pub async fn moved(&self) {
        if self.moved.lock().is_empty() {
            self.notify.notified().await;
        }
    }

    fn tell(&self, token: u32) {
        let mut moved = self.moved.lock();
        if moved.last() != Some(&token) && !moved.contains(&token) {
            moved.push(token);
        }
        drop(moved);
        self.notify.notify_one();
    }
}

/// Everybody who waits for one partition.
#[derive(Default)]
pub(super) struct Waiters {
    producers: Mutex<Vec<Producer>>,
    fetches: Mutex<Vec<Registered>>,
}

/// A fetch that waits for a partition.
struct Registered {
    watch: Weak<FetchWatch>,
    token: u32,
    /// Followers see what is appended, consumers what is committed.
    follows: bool,
}

impl Waiters {
    /// Waits for `end`; the caller looks again afterwards, for it may have passed meanwhile.
    pub fn wait(&self, goal: Goal, end: Offset) -> oneshot::Receiver<Answer> {
        let (tell, answer) = oneshot::channel();
        self.producers.lock().push(Producer { goal, end, tell });
        answer
    }

    /// Registers a fetch under `token`; of a follower, if it `follows`.
    pub fn watch(&self, watch: &Arc<FetchWatch>, token: u32, follows: bool) {
        let mut fetches = self.fetches.lock();
        fetches.retain(|known| known.watch.strong_count() > 0);
        let watch = Arc::downgrade(watch);
        if !fetches.iter().any(|known| known.watch.ptr_eq(&watch) && known.token == token) {
            fetches.push(Registered { watch, token, follows });
        }
    }

    /// Takes a fetch out.
    pub fn unwatch(&self, watch: &Arc<FetchWatch>, token: u32) {
        let watch = Arc::downgrade(watch);
        self.fetches.lock().retain(|known| !(known.watch.ptr_eq(&watch) && known.token == token));
    }

    /// Answers the producers whose goal is reached with what `verdict` says of such a goal.
    pub fn reached(&self, flushed: Offset, committed: Offset, verdict: impl Fn(Goal) -> Answer) {
        let mut producers = self.producers.lock();
        let mut at = 0;
        while at < producers.len() {
            let reached = match producers[at].goal {
                Goal::Flushed => flushed,
                Goal::Committed => committed,
            };
            if producers[at].end <= reached {
                // Who has gone meanwhile needs no answer.
                let producer = producers.swap_remove(at);
                let _ = producer.tell.send(verdict(producer.goal));
            } else {
                at += 1;
            }
        }
    }

    /// There is more to see, or the log begins later: tells the fetches.
    pub fn moved(&self) {
        self.tell(|_| true);
    }

    /// There is more to copy: tells the followers.
    pub fn appended(&self) {
        self.tell(|known| known.follows);
    }

    fn tell(&self, whom: impl Fn(&Registered) -> bool) {
        let fetches = self.fetches.lock();
        for known in fetches.iter().filter(|known| whom(known)) {
            if let Some(watch) = known.watch.upgrade() {
                watch.tell(known.token);
            }
        }
    }

    /// Tells those who wait for all replicas that there are too few.
    pub fn fail_committed(&self, code: ErrorCode) {
        let mut producers = self.producers.lock();
        let mut at = 0;
        while at < producers.len() {
            if producers[at].goal == Goal::Committed {
                let _ = producers.swap_remove(at).tell.send(Err(code));
            } else {
                at += 1;
            }
        }
    }

    /// Nothing will be reached any more.
    pub fn fail(&self, code: ErrorCode) {
        for producer in self.producers.lock().drain(..) {
            let _ = producer.tell.send(Err(code));
        }
        self.moved();
    }
}
