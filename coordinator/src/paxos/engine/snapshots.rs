//! Snapshots: when one is taken, what it lets go, and how a server that lies below everybody's log gets one from
//! another (design 1.7). The bytes never pass through the engine in whole.

use std::collections::VecDeque;

use bytes::Bytes;

use super::standing::Standing;
use super::{Engine, Outcome, Step};
use crate::paxos::ballot::{ServerId, Slot};
use crate::paxos::codec::{decode_history, encode_history};
use crate::paxos::event::{Action, SnapshotMark};
use crate::paxos::message::Message;
use crate::paxos::moment::Moment;

/// Snapshots that a server goes on offering: a receiver may still be busy with one when the next is stored.
const OFFERED: usize = 3;
/// A chunk may take this many times `Options::resend`.
const PATIENCE: u32 = 4;
/// How often a chunk is asked for before the snapshot is given up.
const TRIES_LIMIT: u32 = 10;

/// The snapshots stored here, the newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Stored {
    marks: VecDeque<SnapshotMark>,
}

impl Stored {
    /// Only the one loaded at the start, if any.
    pub fn new(loaded: Option<SnapshotMark>) -> Self {
        Self { marks: loaded.into_iter().collect() }
    }

    fn push(&mut self, mark: SnapshotMark) {
        if self.marks.back().is_none_or(|newest| newest.slot < mark.slot) {
            self.marks.push_back(mark);
        }
        if self.marks.len() > OFFERED {
            self.marks.pop_front();
        }
    }

    fn newest(&self) -> Option<SnapshotMark> {
        self.marks.back().copied()
    }

    fn find(&self, slot: Slot) -> Option<SnapshotMark> {
        self.marks.iter().find(|mark| mark.slot == slot).copied()
    }
}

/// A snapshot being received.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reception {
    source: ServerId,
    slot: Slot,
    offset: u64,
    sent: Moment,
    tries: u32,
    /// A chunk is on its way to the disk.
    storing: bool,
}

impl Engine {
    /// Asks for a snapshot of the state as it is now.
    pub(super) fn take_snapshot(&mut self, step: &mut Step<'_>) {
        let slot = self.learner.chosen_upto();
        let mut configs = self.configs.clone();
        configs.forget_below(slot);
        step.act(Action::TakeSnapshot { slot, head: encode_history(&configs) });
    }

    /// It is durable and was read back: what it covers may go, but for a tail kept for servers that lag a little.
    pub(super) fn snapshot_stored(&mut self, step: &mut Step<'_>, slot: Slot, bytes: u64) {
        let mark = SnapshotMark { slot, bytes };
        if slot <= self.learner.chosen_upto() {
            self.stored.push(mark);
        }
        if let Some(upto) = self.learner.snapshot_stored(mark, self.options.keep_slots) {
            self.configs.forget_below(upto);
            step.act(Action::Release { upto });
        }
    }

    /// `to` is below the log.
    pub(super) fn offer_snapshot(&mut self, step: &mut Step<'_>, to: ServerId) {
        if let Some(SnapshotMark { slot, bytes }) = self.stored.newest() {
            self.post.send(step.actions, to, Message::SnapOffer { slot, bytes });
        }
    }

    pub(super) fn on_snap_offer(&mut self, step: &mut Step<'_>, from: ServerId, slot: Slot, _bytes: u64) {
        let leads = matches!(self.standing, Standing::Leading(_));
        let busy = self.reception.as_ref().is_some_and(|reception| {
            // The one under way goes on, unless its source has it no more.
            reception.source != from || reception.slot >= slot || reception.storing
        });
        if leads || busy || self.is_witness() || slot <= self.learner.chosen_upto() {
            return;
        }
        self.fetch = None;
        self.reception =
            Some(Reception { source: from, slot, offset: 0, sent: step.at(), tries: 0, storing: false });
        self.ask_chunk(step);
    }

    fn ask_chunk(&self, step: &mut Step<'_>) {
        if let Some(Reception { source, slot, offset, .. }) = self.reception {
            self.post.send(step.actions, source, Message::SnapFetch { slot, offset });
        }
    }

    pub(super) fn on_snap_fetch(&mut self, step: &mut Step<'_>, from: ServerId, slot: Slot, offset: u64) {
        match self.stored.find(slot) {
            Some(mark) => {
                let chunk = Message::SnapChunk { slot, offset, total: mark.bytes, bytes: Bytes::new() };
                step.act(Action::SendSnapshotChunk { envelope: self.post.envelope(from, chunk) });
            }
            None => self.offer_snapshot(step, from),
        }
    }

    pub(super) fn on_snap_chunk(
        &mut self,
        step: &mut Step<'_>,
        from: ServerId,
        (slot, offset, total): (Slot, u64, u64),
        bytes: Bytes,
    ) {
        let awaited = self.reception.as_mut().filter(|reception| {
            (reception.source, reception.slot, reception.offset) == (from, slot, offset) && !reception.storing
        });
        let Some(reception) = awaited else { return };
        if bytes.is_empty() {
            // The sender has it no more.
            self.reception = None;
            return;
        }
        reception.storing = true;
        step.act(Action::StoreSnapshotChunk { slot, offset, total, bytes });
    }

    pub(super) fn chunk_stored(&mut self, step: &mut Step<'_>, slot: Slot, offset: u64) {
        if let Some(reception) = self.reception.as_mut().filter(|reception| reception.slot == slot) {
            (reception.offset, reception.storing) = (offset, false);
            (reception.sent, reception.tries) = (step.at(), 0);
            self.ask_chunk(step);
        }
    }

    pub(super) fn snapshot_broken(&mut self, step: &mut Step<'_>, slot: Slot) {
        if let Some(reception) = self.reception.as_mut().filter(|reception| reception.slot == slot) {
            (reception.offset, reception.storing) = (0, false);
            (reception.sent, reception.tries) = (step.at(), reception.tries + 1);
            self.ask_chunk(step);
        }
    }

    /// It is here, whole and durable: it becomes the state.
    pub(super) fn snapshot_received(
        &mut self,
        step: &mut Step<'_>,
        slot: Slot,
        bytes: u64,
        head: Bytes,
    ) -> Outcome {
        let leads = matches!(self.standing, Standing::Leading(_));
        self.reception = None;
        if leads || slot <= self.learner.chosen_upto() {
            return Ok(());
        }
        // A head that can't be read is as good as no snapshot: the leader's next word starts over.
        let Ok(configs) = decode_history(head, self.options.alpha) else { return Ok(()) };
        self.stand_down(step);
        self.configs = configs;
        self.post.config_slot = self.configs.latest().0;
        let mark = SnapshotMark { slot, bytes };
        self.learner.restored(mark);
        self.acceptor.chosen(slot);
        self.stored = Stored::new(Some(mark));
        step.act(Action::Restore { slot });
        step.act(Action::Release { upto: slot });
        self.questions_applied(step, slot);
        self.deliver(step)?;
        self.tell_peers(step);
        self.confirm(step)
    }

    /// Time has passed: a chunk may be lost, or its sender dead.
    pub(super) fn receive_on(&mut self, step: &mut Step<'_>) {
        if self.reception_deadline() > step.at() {
            return;
        }
        let Some(reception) = &mut self.reception else { return };
        reception.tries += 1;
        reception.sent = step.at();
        if reception.tries > TRIES_LIMIT {
            self.reception = None;
        } else {
            self.ask_chunk(step);
        }
    }

    pub(super) fn reception_deadline(&self) -> Moment {
        match &self.reception {
            Some(reception) if !reception.storing => reception.sent.after(self.options.resend * PATIENCE),
            _ => Moment::NEVER,
        }
    }
}
