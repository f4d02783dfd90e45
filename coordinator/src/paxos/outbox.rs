//! What is to be written, and what must not leave this server before it is (design 1.8).
//!
//! Every step's writes leave as one [`Write`] with a ticket. Promises, votes and prepares are held under the newest
//! ticket and come out once the shell says that it is durable: never earlier, in the order in which they were made.
//! Called by `engine`.

use std::collections::VecDeque;

use super::ballot::{Ballot, Slot};
use super::event::{Record, Ticket, Write};
use super::message::Envelope;
use super::moment::Moment;

/// Something that waits for the disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Held {
    /// A promise, prepare or acknowledgement.
    Send(Envelope),
    /// A vote, for the owner of the ballot, who may be this server.
    Vote {
        /// The ballot.
        ballot: Ballot,
        /// The slot.
        slot: Slot,
    },
    /// This server's own promise to its own candidacy.
    OwnPromise(Ballot),
}

/// Writes and what waits for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Outbox {
    issued: Ticket,
    persisted: Ticket,
    promise: Option<Ballot>,
    records: Vec<Record>,
    held: VecDeque<(Ticket, Held)>,
    /// Writes under way, when they were issued, and the prefix that was chosen by then.
    under_way: VecDeque<(Ticket, Moment, Slot)>,
    /// The prefix of which all records are durable.
    durable_upto: Slot,
}

impl Outbox {
    /// The promise block is to hold this.
    pub fn promise(&mut self, ballot: Ballot) {
        self.promise = self.promise.max(Some(ballot));
    }

    /// This record is to be written.
    pub fn record(&mut self, record: Record) {
        self.records.push(record);
    }

    /// Holds something until all that was written so far, in this step too, is durable.
    pub fn hold(&mut self, held: Held) {
        let dirty = self.promise.is_some() || !self.records.is_empty();
        let ticket = if dirty { Ticket(self.issued.0 + 1) } else { self.issued };
        self.held.push_back((ticket, held));
    }

    /// Lets something out at once, durable or not: for planted errors only.
    pub fn hold_not(&mut self, held: Held) {
        self.held.push_front((Ticket(0), held));
    }

    /// The write of this step, if it has one.
    pub fn flush(&mut self, chosen_upto: Slot, uncertain: bool, now: Moment) -> Option<Write> {
        if self.promise.is_none() && self.records.is_empty() {
            return None;
        }
        self.issued = Ticket(self.issued.0 + 1);
        self.under_way.push_back((self.issued, now, chosen_upto));
        Some(Write {
            ticket: self.issued,
            promise: self.promise.take(),
            records: std::mem::take(&mut self.records),
            chosen_upto,
            uncertain,
        })
    }

    /// All writes up to `ticket` are durable.
    pub fn persisted(&mut self, ticket: Ticket) {
        self.persisted = self.persisted.max(ticket.min(self.issued));
        while let Some((_, _, chosen_upto)) =
            self.under_way.pop_front_if(|(waiting, _, _)| *waiting <= self.persisted)
        {
            self.durable_upto = self.durable_upto.max(chosen_upto);
        }
    }

    /// The next thing that need wait no longer.
    pub fn ready(&mut self) -> Option<Held> {
        let (ticket, _) = self.held.front()?;
        if *ticket > self.persisted { None } else { self.held.pop_front().map(|(_, held)| held) }
    }

    /// Whether nothing is being written.
    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// The part of the chosen prefix that would be known again after a crash at this moment.
    pub fn durable_upto(&self, chosen_upto: Slot) -> Slot {
        let clean = self.is_idle() && self.promise.is_none() && self.records.is_empty();
        if clean { chosen_upto } else { self.durable_upto }
    }

    /// Since when the oldest write has been under way.
    pub fn oldest(&self) -> Option<Moment> {
        self.under_way.front().map(|(_, since, _)| *since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paxos::ballot::ServerId;

    #[test]
    fn nothing_leaves_before_the_writes_before_it_are_durable() {
        let mut outbox = Outbox::default();
        let ballot = Ballot::of(1, ServerId::FIRST);
        outbox.promise(ballot);
        outbox.hold(Held::OwnPromise(ballot));
        assert_eq!(outbox.ready(), None);
        let write = outbox.flush(Slot::ZERO, false, Moment::ZERO).unwrap();
        assert_eq!((write.ticket, write.promise), (Ticket(1), Some(ballot)));
        outbox.hold(Held::Vote { ballot, slot: Slot::FIRST });
        assert_eq!(outbox.ready(), None, "a second answer waits for the same write");
        outbox.persisted(Ticket(1));
        assert_eq!(outbox.ready(), Some(Held::OwnPromise(ballot)));
        assert_eq!(outbox.ready(), Some(Held::Vote { ballot, slot: Slot::FIRST }));
        assert!(outbox.is_idle() && outbox.flush(Slot::ZERO, false, Moment::ZERO).is_none());
    }
}
