//! What was fetched ahead and waits for its reader: bounded in bytes, waited for by a thread or by a task. Filled by
//! `prefetch`, emptied by `intake`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::lane::Lane;
use crate::error::ClientError;
use crate::fetched::FetchedBatches;

/// Batches of one partition, as one answer brought them, or why there are none.
#[derive(Debug)]
pub struct Chunk {
    /// The partition.
    pub lane: Arc<Lane>,
    /// The lane's life that they were fetched in; in another one they are stale.
    pub life: u64,
    /// The batches.
    pub content: Result<FetchedBatches, ClientError>,
    /// What they count for in the bounds.
    pub bytes: usize,
}

/// A queue of one reader.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    closed: bool,
    waker: Option<Waker>,
}

/// What a look into the queue gave.
#[derive(Debug)]
pub enum Popped {
    /// The next chunk.
    Chunk(Box<Chunk>),
    /// Nothing yet.
    Nothing,
    /// Nothing any more.
    Closed,
}

impl State {
    fn pop(&mut self) -> Popped {
        match self.chunks.pop_front() {
            Some(chunk) => Popped::Chunk(Box::new(chunk)),
            None if self.closed => Popped::Closed,
            None => Popped::Nothing,
        }
    }
}

impl Queue {
    /// Bytes that are queued or being read.
    pub fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// Puts a chunk behind the others.
    pub fn push(&self, chunk: Chunk) {
        let mut state = self.state.lock();
        state.bytes += chunk.bytes;
        state.chunks.push_back(chunk);
        self.wake(state);
    }

    /// Puts chunks that count already before the others.
    pub fn push_front(&self, chunks: Vec<Chunk>) {
        let mut state = self.state.lock();
        for chunk in chunks.into_iter().rev() {
            state.chunks.push_front(chunk);
        }
        self.wake(state);
    }

    /// Nothing comes any more; what is there may still be read.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        self.wake(state);
    }

    /// Drops what is stale.
    pub fn purge(&self) {
        let mut state = self.state.lock();
        let mut freed = 0;
        state.chunks.retain(|chunk| {
            let fresh = chunk.lane.is_in(chunk.life);
            freed += if fresh { 0 } else { chunk.bytes };
            fresh
        });
        state.bytes -= freed;
    }

    /// A chunk that was popped is read or dropped: its bytes count no more. Gives how many are left.
    pub fn release(&self, bytes: usize) -> usize {
        let mut state = self.state.lock();
        state.bytes -= bytes;
        state.bytes
    }

    /// The next chunk, if it's there.
    pub fn try_pop(&self) -> Popped {
        self.state.lock().pop()
    }

    /// The next chunk; waits for it until `deadline`, or for ever.
    pub fn pop_blocking(&self, deadline: Option<Instant>) -> Popped {
        let mut state = self.state.lock();
        loop {
            match state.pop() {
                Popped::Nothing => {}
                popped => return popped,
            }
            match deadline {
                None => self.filled.wait(&mut state),
                Some(deadline) => {
                    if self.filled.wait_until(&mut state, deadline).timed_out() {
                        return state.pop();
                    }
                }
            }
        }
    }

    /// The same for a task, which is woken.
    pub fn poll_pop(&self, context: &Context<'_>) -> Poll<Popped> {
        let mut state = self.state.lock();
        match state.pop() {
            Popped::Nothing => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
            popped => Poll::Ready(popped),
        }
    }

    fn wake(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        let waker = state.waker.take();
        drop(state);
        self.filled.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
