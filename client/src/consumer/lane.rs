//! One partition that is read: how far it is fetched, handed out, and done with. Shared by the task that fetches, the
//! reader, and whoever commits, seeks or gives the partition up.
//!
//! A lane has lives: a seek, or giving it up, begins a new one, and whatever was fetched in an older one is stale.

use std::sync::Arc;

use loggos_protocol::ids::{LeaderEpoch, Offset, TopicPartition};
use parking_lot::{Mutex, MutexGuard};

use super::queue::{Chunk, Queue};

/// A partition that is read into a queue.
#[derive(Debug)]
pub struct Lane {
    /// Which.
    pub partition: TopicPartition,
    /// Where its records go.
    pub queue: Arc<Queue>,
    progress: Mutex<Progress>,
}

/// Where a lane is.
#[derive(Debug)]
pub struct Progress {
    /// Counts seeks.
    pub life: u64,
    /// The next offset to fetch; behind what is queued.
    pub fetch: Offset,
    /// The next offset to hand out.
    pub position: Offset,
    /// The leader epoch of the record before `position`.
    pub position_epoch: LeaderEpoch,
    /// The next offset to commit: what is before it was handed out, and its reader has asked for more since.
    pub done: Offset,
    /// The leader epoch of the record before `done`.
    pub epoch: LeaderEpoch,
    /// What is committed, as far as this process knows.
    pub committed: Option<Offset>,
    /// The end of what consumers are shown, as of the last answer.
    pub end: Option<Offset>,
    /// Nothing is handed out or fetched for now.
    pub paused: bool,
    /// Nothing is fetched before a seek: an error says why.
    pub failed: bool,
    /// Bytes that are queued.
    pub buffered: usize,
    /// What its reader came across while it was paused.
    pub parked: Vec<Chunk>,
}

impl Lane {
    /// Reads `partition` from `offset` on; `committed` is what stands in the registry or at the group's broker.
    pub fn new(
        partition: TopicPartition,
        queue: Arc<Queue>,
        offset: Offset,
        committed: Option<Offset>,
    ) -> Arc<Self> {
        let progress = Progress {
            life: 0,
            fetch: offset,
            position: offset,
            position_epoch: LeaderEpoch::NONE,
            done: offset,
            epoch: LeaderEpoch::NONE,
            committed,
            end: None,
            paused: false,
            failed: false,
            buffered: 0,
            parked: Vec::new(),
        };
        Arc::new(Self { partition, queue, progress: Mutex::new(progress) })
    }

    /// Where it is; held for moments only.
    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock()
    }

    /// Whether what was fetched in `life` still counts.
    pub fn is_in(&self, life: u64) -> bool {
        self.progress.lock().life == life
    }

    /// Goes on from `offset`; what was fetched is forgotten.
    pub fn seek(&self, offset: Offset) {
        let mut progress = self.progress.lock();
        progress.life += 1;
        (progress.fetch, progress.position, progress.done) = (offset, offset, offset);
        (progress.epoch, progress.position_epoch) = (LeaderEpoch::NONE, LeaderEpoch::NONE);
        progress.failed = false;
        self.forget(progress);
    }

    /// Counts all that was handed out as done with.
    pub fn settle(&self) {
        let mut progress = self.progress.lock();
        (progress.done, progress.epoch) = (progress.position, progress.position_epoch);
    }

    /// Hands out nothing any more; gives the offset to commit, if it isn't committed.
    pub fn end(&self) -> Option<(Offset, LeaderEpoch)> {
        let mut progress = self.progress.lock();
        progress.life += 1;
        progress.failed = true;
        let uncommitted = progress.uncommitted();
        self.forget(progress);
        uncommitted
    }

    fn forget(&self, mut progress: MutexGuard<'_, Progress>) {
        let parked = std::mem::take(&mut progress.parked);
        progress.buffered = 0;
        drop(progress);
        self.queue.release(parked.iter().map(|chunk| chunk.bytes).sum());
        self.queue.purge();
    }

    /// Hands nothing out until it is resumed.
    pub fn pause(&self) {
        self.progress.lock().paused = true;
    }

    /// Hands out again, what was found while it was paused first.
    pub fn resume(&self) {
        let parked = {
            let mut progress = self.progress.lock();
            progress.paused = false;
            std::mem::take(&mut progress.parked)
        };
        self.queue.push_front(parked);
    }
}

impl Progress {
    /// The offset to commit, if it isn't committed.
    pub fn uncommitted(&self) -> Option<(Offset, LeaderEpoch)> {
        (self.committed != Some(self.done)).then_some((self.done, self.epoch))
    }
}
