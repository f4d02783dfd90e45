//! Records out of a queue, one at a time, with the account of what was handed out and what is done with.
//!
//! A reader that asks for more is done with what it has: that is the moment from which an offset may be committed,
//! and what makes delivery at-least-once. Called by message streams and by the group consumer.

use std::sync::Arc;

use loggos_protocol::ids::{LeaderEpoch, Offset};
use tokio::sync::Notify;

use super::lane::Lane;
use super::queue::{Chunk, Popped, Queue};
use super::stream::Received;
use crate::error::ClientError;
use crate::fetched::FetchedBatches;

/// The reading end of a queue.
#[derive(Debug)]
pub struct Intake {
    queue: Arc<Queue>,
    /// Told when there is room again.
    room: Arc<Notify>,
    /// More is asked for when this much is queued or less.
    low_bytes: usize,
    /// Whether a reader that asks for more is done with what it has.
    asking_settles: bool,
    current: Option<Box<Chunk>>,
    /// What was handed out and may still be worked on.
    in_hand: Vec<Held>,
    /// What the next question is answered with.
    pending: Option<ClientError>,
}

/// How far a partition was handed out.
#[derive(Debug)]
struct Held {
    lane: Arc<Lane>,
    life: u64,
    next: Offset,
    epoch: LeaderEpoch,
}

impl Intake {
    /// Reads `queue`, and tells `room` when `low_bytes` or less are left in it.
    pub const fn new(queue: Arc<Queue>, room: Arc<Notify>, low_bytes: usize, asking_settles: bool) -> Self {
        Self { queue, room, low_bytes, asking_settles, current: None, in_hand: Vec::new(), pending: None }
    }

    /// The queue, to wait for.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Says that the reader asks for more.
    pub fn ask(&mut self) {
        if !self.asking_settles {
            return;
        }
        for held in self.in_hand.drain(..) {
            let mut progress = held.lane.progress();
            if progress.life == held.life {
                (progress.done, progress.epoch) = (held.next, held.epoch);
            }
        }
    }

    /// Takes up a chunk that was waited for.
    pub fn begin(&mut self, chunk: Box<Chunk>) {
        assert!(self.current.is_none(), "one chunk is read at a time");
        self.current = Some(chunk);
    }

    /// The next record of the current chunk, if it has one that still counts.
    pub fn next_here(&mut self) -> Option<Result<Received, ClientError>> {
        let chunk = self.current.as_mut()?;
        let lane = Arc::clone(&chunk.lane);
        let mut progress = lane.progress();
        if progress.life != chunk.life {
            drop(progress);
            self.finish();
            return None;
        }
        if progress.paused {
            let chunk = self.current.take()?;
            progress.parked.push(*chunk);
            return None;
        }
        let next = match &mut chunk.content {
            Ok(batches) => batches.next(),
            Err(error) => Some(Err(error.clone())),
        };
        match next {
            Some(Ok(record)) => {
                let next = record.offset.next();
                progress.position = next;
                if let Ok(batches) = &chunk.content {
                    progress.position_epoch = batches.leader_epoch();
                }
                drop(progress);
                self.hold(&lane, next);
                Some(Ok(Received { partition: lane.partition.clone(), record }))
            }
            Some(Err(error)) => {
                // Whoever wants to go on seeks.
                progress.failed = true;
                progress.buffered = progress.buffered.saturating_sub(chunk.bytes);
                drop(progress);
                self.finish();
                Some(Err(error))
            }
            None => {
                let end = chunk.content.as_ref().map_or(progress.position, |batches| batches.next);
                // Behind the last record may be a gap, or markers that nobody is shown.
                progress.position = progress.position.max(end);
                progress.buffered = progress.buffered.saturating_sub(chunk.bytes);
                let position = progress.position;
                drop(progress);
                self.hold(&lane, position);
                self.finish();
                None
            }
        }
    }

    /// Keeps an error for the next question.
    pub fn put_back(&mut self, error: ClientError) {
        self.pending = Some(error);
    }

    /// The next record that is there.
    ///
    /// # Errors
    /// What stopped a partition; the others go on.
    pub fn next_ready(&mut self) -> Option<Result<Received, ClientError>> {
        if let Some(error) = self.pending.take() {
            return Some(Err(error));
        }
        loop {
            if self.current.is_some() {
                if let Some(next) = self.next_here() {
                    return Some(next);
                }
            } else {
                match self.queue.try_pop() {
                    Popped::Chunk(chunk) => self.current = Some(chunk),
                    Popped::Nothing | Popped::Closed => return None,
                }
            }
        }
    }

    fn hold(&mut self, lane: &Arc<Lane>, next: Offset) {
        if !self.asking_settles {
            return;
        }
        let Some(chunk) = self.current.as_ref() else { return };
        let epoch = chunk.content.as_ref().map_or(LeaderEpoch::NONE, FetchedBatches::leader_epoch);
        let life = chunk.life;
        match self.in_hand.iter_mut().find(|held| Arc::ptr_eq(&held.lane, lane)) {
            Some(held) => (held.life, held.next, held.epoch) = (life, next, epoch),
            None => self.in_hand.push(Held { lane: Arc::clone(lane), life, next, epoch }),
        }
    }

    fn finish(&mut self) {
        let Some(chunk) = self.current.take() else { return };
        if self.queue.release(chunk.bytes) <= self.low_bytes {
            self.room.notify_one();
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.finish();
    }
}
