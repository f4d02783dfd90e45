//! What waits to be sent to one client: frames in the order in which the driver queued them.
//!
//! The driver never waits for a client. A client that reads slowly is not read from ([`Outbox::room`]); one whose
//! watches pile up unread beyond [`BYTES_MAX`] is cut off, and its session lives on. Filled by `driver`, emptied by
//! `connection`.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Requests of one client that are under way; beyond it its socket isn't read.
const OUTSTANDING_MAX: usize = 1000;
/// Unsent bytes from which on the client's socket isn't read.
const BYTES_CROWDED: usize = 1 << 20;
/// Unsent bytes from which on the client is cut off.
const BYTES_MAX: usize = 64 << 20;

/// One client's outbox.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    outstanding: AtomicUsize,
    /// Wakes the one who sends.
    sender: Notify,
    /// Wakes the one who reads.
    reader: Notify,
}

#[derive(Debug, Default)]
struct State {
    frames: BytesMut,
    /// Nothing is queued any more; the end comes when all is sent.
    closing: bool,
    /// The connection is over.
    ended: bool,
}

impl Outbox {
    /// Lets `write` append frames. They are sent at the next [`Outbox::flush`].
    pub fn queue(&self, write: impl FnOnce(&mut BytesMut)) {
        let mut state = self.state.lock();
        if state.closing || state.ended {
            return;
        }
        write(&mut state.frames);
        if state.frames.len() > BYTES_MAX {
            state.frames = BytesMut::new();
            state.ended = true;
            drop(state);
            self.wake_both();
        }
    }

    /// Has what is queued sent.
    pub fn flush(&self) {
        self.sender.notify_one();
    }

    /// Ends the connection when what is queued now has been sent.
    pub fn close(&self) {
        self.state.lock().closing = true;
        self.sender.notify_one();
    }

    /// Ends the connection now.
    pub fn abort(&self) {
        self.state.lock().ended = true;
        self.wake_both();
    }

    /// A request came in.
    pub fn began(&self) {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was answered.
    pub fn answered(&self) {
        if self.outstanding.fetch_sub(1, Ordering::Relaxed) == OUTSTANDING_MAX {
            self.reader.notify_one();
        }
    }

    /// Requests under way.
    pub fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// What is to be sent next; waits until there is something. `None` at the end.
    pub async fn next(&self) -> Option<BytesMut> {
        loop {
            {
                let mut state = self.state.lock();
                if state.ended {
                    return None;
                }
                if !state.frames.is_empty() {
                    let frames = std::mem::take(&mut state.frames);
                    drop(state);
                    if frames.len() >= BYTES_CROWDED {
                        self.reader.notify_one();
                    }
                    return Some(frames);
                }
                if state.closing {
                    return None;
                }
            }
            self.sender.notified().await;
        }
    }

    /// Waits until another request may be read; false at the end.
    pub async fn room(&self) -> bool {
        loop {
            {
                let state = self.state.lock();
                if state.ended {
                    return false;
                }
                if state.frames.len() < BYTES_CROWDED && self.outstanding() < OUTSTANDING_MAX {
                    return true;
                }
            }
            self.reader.notified().await;
        }
    }

    /// Waits for the connection's end.
    pub async fn ended(&self) {
        while !self.state.lock().ended {
            self.reader.notified().await;
        }
    }

    fn wake_both(&self) {
        self.sender.notify_one();
        self.reader.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_queued_before_the_close_is_sent_and_nothing_after() {
        let outbox = Outbox::default();
        outbox.queue(|out| out.extend_from_slice(b"a"));
        outbox.queue(|out| out.extend_from_slice(b"b"));
        outbox.close();
        outbox.queue(|out| out.extend_from_slice(b"c"));
        assert_eq!(outbox.next().await.as_deref(), Some(&b"ab"[..]));
        assert_eq!(outbox.next().await, None);
    }

    #[tokio::test]
    async fn a_reader_waits_for_answers_and_a_hoarder_is_cut_off() {
        let outbox = Outbox::default();
        (0..OUTSTANDING_MAX).for_each(|_| outbox.began());
        let (room, ()) = tokio::join!(outbox.room(), async { outbox.answered() });
        assert!(room);
        outbox.queue(|out| out.resize(BYTES_MAX + 1, 0));
        assert!(!outbox.room().await);
        assert_eq!(outbox.next().await, None);
    }
}
