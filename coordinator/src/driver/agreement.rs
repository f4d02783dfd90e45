//! What the engine wants done: made durable, sent, applied, kept as a snapshot.
//!
//! Whatever waits for the disk beyond the journal runs on a thread that may wait, and comes back as a [`Notice`].
//! Called by `driver` alone.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use loggos_protocol::zookeeper::reply::encode_notification;

use super::{Driver, cell, config_text};
use crate::error::{DriverError, LedgerError};
use crate::ledger::{Received, Snapshot};
use crate::metrics;
use crate::paxos::ballot::Slot;
use crate::paxos::event::{Action, Event, LeaderView, SnapshotMark};
use crate::paxos::message::{Envelope, Message};
use crate::paxos::value::Value;
use crate::tree::{Applied, Command, Entry, Outcome, Tree};
use crate::watches::ConnectionId;

/// What comes back from threads that wait for the disk.
pub(super) enum Notice {
    /// A snapshot is kept, or isn't.
    Kept(Slot, Result<SnapshotMark, LedgerError>),
    /// A piece of a snapshot for a peer.
    Piece(Envelope),
    /// A piece of a peer's snapshot was taken in.
    TakenIn(Slot, Result<Received, LedgerError>),
    /// Votes were let go of, or weren't.
    Released(Result<(), LedgerError>),
    /// The kept snapshots were read again.
    Scrubbed(Vec<LedgerError>),
}

/// Snapshots under way.
#[derive(Default)]
pub(super) struct Storing {
    /// One that was received, with its tree, until the engine says that it replaces the state.
    received: Option<(Slot, Tree)>,
}

impl Driver {
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Persist(write) => {
                let (records, began, told) = (write.records.len(), Instant::now(), Arc::clone(&self.told));
                let timed = move |result| {
                    metrics::group(records, began.elapsed());
                    told(result);
                };
                self.ledger.persist(write, Arc::new(timed));
            }
            Action::Send(envelope) => self.links.send(&envelope),
            Action::Apply { slot, value } => self.apply(slot, value),
            Action::Leader(view) => self.led_by(view),
            Action::ReadReady(id) => self.read_ready(id.0),
            Action::ReadRefused(id) => self.refused.push(id.0),
            Action::Touched { from: _, payload } => self.touched_elsewhere(&payload),
            Action::TouchesRegistered { batch } => self.touches_registered(batch),
            Action::Reconfigured { id, outcome } => self.reconfigured(id.0, outcome),
            Action::Peers(config) => self.links.set(&config),
            Action::TakeSnapshot { slot, head } => self.take_snapshot(slot, head),
            Action::Release { upto } => {
                let ledger = Arc::clone(&self.ledger);
                self.on_thread(move || Notice::Released(ledger.release(upto)));
            }
            Action::SendSnapshotChunk { envelope } => self.send_piece(envelope),
            Action::StoreSnapshotChunk { slot, offset, total, bytes } => {
                let ledger = Arc::clone(&self.ledger);
                self.on_thread(move || {
                    Notice::TakenIn(slot, ledger.receive_chunk(slot, offset, total, &bytes))
                });
            }
            Action::Restore { slot } => self.restore(slot),
            Action::Stop(violation) => self.fail(DriverError::Violation(violation)),
        }
    }

    /// Runs what waits for the disk elsewhere; its notice comes back.
    fn on_thread(&self, work: impl FnOnce() -> Notice + Send + 'static) {
        let notices = self.notices.clone();
        tokio::task::spawn_blocking(move || {
            let notice = work();
            // Nobody is told once the driver has ended.
            drop(notices.blocking_send(notice));
        });
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Kept(_, Ok(mark)) => {
                metrics::snapshot();
                self.event(Event::SnapshotStored { slot: mark.slot, bytes: mark.bytes });
            }
            // The journal keeps everything meanwhile; the engine asks again in time.
            Notice::Kept(slot, Err(error)) => tracing::error!(%error, %slot, "a snapshot can't be kept"),
            Notice::Piece(envelope) => self.links.send(&envelope),
            Notice::TakenIn(slot, Ok(Received::Partly(offset))) => {
                self.event(Event::SnapshotChunkStored { slot, offset });
            }
            Notice::TakenIn(slot, Ok(Received::Whole(snapshot))) => self.received(slot, snapshot),
            Notice::TakenIn(slot, Err(error)) => {
                tracing::warn!(%error, %slot, "a received snapshot is no good");
                self.event(Event::SnapshotBroken { slot });
            }
            Notice::Released(Ok(())) => {}
            Notice::Released(Err(error)) => tracing::error!(%error, "votes can't be let go of"),
            Notice::Scrubbed(damaged) => {
                for error in damaged {
                    tracing::error!(%error, "a kept snapshot has rotted; the next one replaces it");
                }
            }
        }
    }

    /// Reads the kept snapshots again, in the background.
    pub(super) fn scrub(&self) {
        let ledger = Arc::clone(&self.ledger);
        self.on_thread(move || Notice::Scrubbed(ledger.scrub()));
    }

    fn take_snapshot(&self, slot: Slot, head: Bytes) {
        // The tree shares its structure with the copy: the copy is cheap, and writing it is another thread's work.
        let (tree, ledger) = (self.tree.clone(), Arc::clone(&self.ledger));
        self.on_thread(move || Notice::Kept(slot, ledger.keep_snapshot(slot, &head, &tree.snapshot())));
    }

    fn send_piece(&self, mut envelope: Envelope) {
        let ledger = Arc::clone(&self.ledger);
        self.on_thread(move || {
            if let Message::SnapChunk { slot, offset, total, bytes } = &mut envelope.message {
                match ledger.snapshot_chunk(*slot, *offset) {
                    Ok(Some((length, piece))) => (*total, *bytes) = (length, piece),
                    Ok(None) => *bytes = Bytes::new(),
                    Err(error) => tracing::error!(%error, "a piece of a snapshot can't be read"),
                }
            }
            Notice::Piece(envelope)
        });
    }

    fn received(&mut self, slot: Slot, snapshot: Snapshot) {
        match Tree::restore(&snapshot.state) {
            Ok(tree) => {
                self.storing.received = Some((slot, tree));
                let (bytes, head) = (snapshot.mark.bytes, snapshot.head);
                self.event(Event::SnapshotReceived { slot, bytes, head });
            }
            Err(error) => {
                tracing::warn!(%error, %slot, "a received snapshot is no good");
                self.event(Event::SnapshotBroken { slot });
            }
        }
    }

    /// The state jumps ahead: what changed in between can't be told to watchers, so that all clients come anew.
    fn restore(&mut self, slot: Slot) {
        let Some((_, tree)) = self.storing.received.take_if(|received| received.0 == slot) else {
            self.fail(DriverError::NoSnapshot(slot));
            return;
        };
        tracing::info!(%slot, zxid = tree.zxid().raw(), "caught up by a snapshot of another server");
        self.tree = tree;
        self.applied = slot;
        let all: Vec<ConnectionId> = self.clients.keys().copied().collect();
        all.into_iter().for_each(|connection| self.cut_off(connection));
    }

    fn apply(&mut self, slot: Slot, value: Value) {
        self.applied = slot;
        match value {
            Value::Noop => {}
            Value::LeaderStart { ballot, time } => self.tree.lead(ballot.raw(), time.raw()),
            Value::Config { config, time } => {
                let applied = self.tree.configure(time.raw(), |zxid| config_text(&config, zxid));
                tracing::info!(%slot, members = %cell::summary(&config), "the membership has changed");
                self.config = config;
                self.tell_watchers(&applied);
            }
            Value::Batch(batch) => {
                for bytes in &batch.entries {
                    self.apply_entry(batch.time.raw(), bytes);
                }
            }
        }
        self.let_in_who_was_ahead();
    }

    fn apply_entry(&mut self, time_ms: i64, bytes: &Bytes) {
        let command = match Command::decode(bytes) {
            Ok(command) => command,
            Err(error) => {
                // All servers see the same bytes and skip them alike.
                tracing::error!(%error, "an entry of the log is malformed");
                return;
            }
        };
        let entry = Entry { time_ms, command };
        let applied = self.tree.apply(&entry);
        self.tell_watchers(&applied);
        let mut answered = None;
        match &entry.command {
            Command::Write { session, stamp, .. } | Command::Close { session, stamp } if !applied.skipped => {
                answered = self.connected.get(session).copied().filter(|connection| {
                    self.clients.get(connection).is_some_and(|client| client.fence() == stamp.fence)
                });
            }
            Command::CreateSession { fence, .. } => self.session_begun(*fence, &applied),
            Command::Attach { session, fence, .. } => self.session_attached(*session, *fence, &applied),
            _ => {}
        }
        let ended = applied.ended.clone();
        if let Some(connection) = answered {
            self.answer_write(connection, applied);
        }
        for session in ended {
            self.sessions.ended(session);
            if let Some(connection) = self.connected.remove(&session)
                && answered != Some(connection)
            {
                self.cut_off(connection);
            }
        }
    }

    fn session_begun(&mut self, fence: crate::tree::Fence, applied: &Applied) {
        let Some(session) = applied.session() else { return };
        if self.view.leading && !applied.skipped {
            self.track(session);
        }
        if let Some(connection) = self.opening.remove(&fence) {
            self.opened(connection, session);
        }
    }

    fn session_attached(
        &mut self,
        session: loggos_protocol::ids::SessionId,
        fence: crate::tree::Fence,
        applied: &Applied,
    ) {
        if applied.outcome == Ok(Outcome::Session(session)) {
            // What was sent on an earlier connection stands before this entry, or has no effect.
            if let Some(before) = self.connected.get(&session).copied()
                && self.clients.get(&before).is_some_and(|client| client.fence() != fence)
            {
                self.connected.remove(&session);
                self.cut_off(before);
            }
            if self.view.leading {
                self.touch_here(session);
            }
        }
        let Some(connection) = self.opening.remove(&fence) else { return };
        match &applied.outcome {
            Ok(_) => self.opened(connection, session),
            Err(code) => self.not_attached(connection, *code),
        }
    }

    /// Queues an entry's events on the watchers' outboxes: before any reply that reflects the entry.
    pub(super) fn tell_watchers(&mut self, applied: &Applied) {
        for event in &applied.events {
            let told = self.watches.fire(event.event.event, &event.event.path);
            let mut count = 0;
            for connection in told {
                let Some(client) = self.clients.get(&connection) else { continue };
                // Who may not read the node hears nothing of it.
                if !event.readable_by(client.ids()) {
                    continue;
                }
                client.outbox.queue(|out| encode_notification(out, applied.zxid, &event.event));
                self.dirty.insert(connection);
                count += 1;
            }
            metrics::notifications(count);
        }
    }

    fn led_by(&mut self, view: LeaderView) {
        let before = std::mem::replace(&mut self.view, view);
        if view.leader.is_none() {
            self.leaderless.get_or_insert_with(Instant::now);
        } else {
            self.leaderless = None;
        }
        if before.leader != view.leader || before.leading != view.leading {
            tracing::info!(leader = %view.leader, ballot = %view.ballot, leading = view.leading, "the leader changed");
        }
        if view.leading && !before.leading {
            self.begin_to_lead();
        } else if !view.leading && before.leading {
            self.stop_leading();
        }
        if !view.leader.is_none() && (before.leader, before.ballot) != (view.leader, view.ballot) {
            self.propose_again();
        }
    }
}
