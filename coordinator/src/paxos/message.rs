//! What the servers of a cell say to one another (design 1.2). Loss, delay, duplication and reordering are all
//! allowed; a frame that arrives is what was sent (checksums see to that).

use std::time::Duration;

use bytes::Bytes;

use super::ballot::{Ballot, CellId, Incarnation, ServerId, Slot, SlotRange};
use super::moment::Moment;
use super::value::Value;

/// A message with its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// The cell; frames of another one are dropped.
    pub cell: CellId,
    /// The sender.
    pub from: ServerId,
    /// The sender's life.
    pub from_incarnation: Incarnation,
    /// The addressee.
    pub to: ServerId,
    /// The addressee's life as far as the sender knows it. Replies need the right one, requests may not know it.
    pub to_incarnation: Incarnation,
    /// The slot of the latest membership that the sender has applied.
    pub config_slot: Slot,
    /// What it says.
    pub message: Message,
}

/// What an acceptor reports about one slot in a promise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    /// It accepted this at this ballot, the highest there.
    Accepted {
        /// The ballot.
        ballot: Ballot,
        /// The value.
        value: Value,
    },
    /// It knows that this is chosen.
    Chosen {
        /// The value.
        value: Value,
    },
}

/// What an acceptor says when it promises: P1b of the paper for all slots from `from_slot` on at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Promise {
    /// The ballot promised.
    pub ballot: Ballot,
    /// As asked.
    pub from_slot: Slot,
    /// The sender's chosen prefix.
    pub chosen_upto: Slot,
    /// Slots from `from_slot` on of which it knows something.
    pub items: Vec<(Slot, Report)>,
    /// From this slot on the sender's silence about a slot proves nothing: records may have been lost (design 1.11).
    pub certain_below: Slot,
    /// Counts the sender's answers: the parts of two answers must not be mixed.
    pub answer: u64,
    /// This part, from 0 on; a promise counts once all its parts are there.
    pub part: u32,
    /// How many parts there are.
    pub parts: u32,
}

/// A leader's sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    /// The leader's ballot.
    pub ballot: Ballot,
    /// Its chosen prefix (see the rule of 1.6 for what a follower may make of it). A witness is told the prefix that
    /// every full voter holds instead, in accepts too: it may forget up to there.
    pub chosen_upto: Slot,
    /// Counts the rounds of this leadership.
    pub round: u64,
    /// The highest slot proposed at this ballot; 0 until `LeaderStart` is proposed.
    pub last_proposed: Slot,
    /// The addressee's last batch of touches that this leader registered.
    pub touches: u64,
    /// The leader gives up its lease: acceptors need not wait for its end.
    pub released: bool,
    /// The leader's monotonic clock, for watching clock rates.
    pub clock: Moment,
}

/// A follower's answer to a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeartbeatAck {
    /// As in the heartbeat.
    pub ballot: Ballot,
    /// As in the heartbeat.
    pub round: u64,
    /// The sender's chosen and applied prefix, as far as it would know it again after a crash.
    pub applied_upto: Slot,
    /// Its batch of touches that isn't registered yet (0: none).
    pub touches: u64,
    /// What they say.
    pub payload: Bytes,
    /// Its monotonic clock.
    pub clock: Moment,
}

/// The messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// Pre-vote: would you promise this ballot? Changes nothing anywhere.
    Canvass {
        /// The ballot it would use.
        ballot: Ballot,
        /// How far it is.
        chosen_upto: Slot,
    },
    /// It would.
    CanvassOk {
        /// The ballot asked about.
        ballot: Ballot,
    },
    /// It would not: it hears a leader, has promised more, or is too far ahead.
    CanvassNo {
        /// The ballot asked about.
        ballot: Ballot,
        /// The highest promise there.
        promised: Ballot,
        /// How far the sender is: the candidate catches up first.
        chosen_upto: Slot,
    },
    /// Phase 1a for all slots from `from_slot` on.
    Prepare {
        /// The ballot.
        ballot: Ballot,
        /// The first slot of interest.
        from_slot: Slot,
        /// The ballot of a leader that itself asked for this candidacy, having given up its lease; or none.
        released: Ballot,
    },
    /// Phase 1b.
    Promise(Promise),
    /// Phase 2a.
    Accept {
        /// The ballot.
        ballot: Ballot,
        /// The slot.
        slot: Slot,
        /// The value proposed.
        value: Value,
        /// The leader's chosen prefix.
        chosen_upto: Slot,
    },
    /// Phase 2b: these are on the sender's disk.
    Accepted {
        /// The ballot.
        ballot: Ballot,
        /// The slots.
        slots: Vec<SlotRange>,
    },
    /// A prepare or accept was refused.
    Reject {
        /// The ballot refused.
        ballot: Ballot,
        /// The promise that forbids it, if that is why.
        promised: Ballot,
        /// What is left of a lease granted to another leader.
        lease_left: Duration,
        /// How far the sender is; a candidate below its log floor must catch up first.
        chosen_upto: Slot,
    },
    /// See [`Heartbeat`].
    Heartbeat(Heartbeat),
    /// See [`HeartbeatAck`].
    HeartbeatAck(HeartbeatAck),
    /// Send me chosen values from this slot on.
    FetchChosen {
        /// The first slot wanted.
        from: Slot,
    },
    /// Values that are chosen, one per slot from `first` on.
    Chosen {
        /// The slot of the first value.
        first: Slot,
        /// The values.
        values: Vec<Value>,
        /// How far the sender is.
        chosen_upto: Slot,
    },
    /// You are below my log: here is a snapshot to be fetched.
    SnapOffer {
        /// The slot that it stands for.
        slot: Slot,
        /// Its length in bytes.
        bytes: u64,
    },
    /// Send me a piece of that snapshot.
    SnapFetch {
        /// The snapshot.
        slot: Slot,
        /// From here on.
        offset: u64,
    },
    /// A piece of a snapshot.
    SnapChunk {
        /// The snapshot.
        slot: Slot,
        /// Where the bytes belong.
        offset: u64,
        /// Its whole length.
        total: u64,
        /// The bytes; empty if the sender has it no more.
        bytes: Bytes,
    },
    /// Entries admitted by a server that doesn't lead.
    Forward {
        /// The entries.
        entries: Vec<Bytes>,
    },
    /// Up to where must I have applied for a read that starts now?
    ReadIndex {
        /// Echoed.
        id: u64,
    },
    /// Up to there.
    ReadIndexOk {
        /// As asked.
        id: u64,
        /// The slot.
        slot: Slot,
    },
    /// Not the leader, or not able to say.
    ReadIndexNo {
        /// As asked.
        id: u64,
    },
    /// The leader gives way: stand for election at once, without canvassing.
    TransferNow {
        /// The ballot that ends.
        ballot: Ballot,
    },
}

impl Message {
    /// Whether it answers something, so that it must name the addressee's present life.
    pub fn is_reply(&self) -> bool {
        matches!(
            self,
            Self::CanvassOk { .. }
                | Self::CanvassNo { .. }
                | Self::Promise(_)
                | Self::Accepted { .. }
                | Self::Reject { .. }
                | Self::HeartbeatAck(_)
                | Self::ReadIndexOk { .. }
                | Self::ReadIndexNo { .. }
        )
    }

    /// Whether it belongs on the bulk channel, where it can't delay heartbeats.
    pub fn is_bulk(&self) -> bool {
        matches!(
            self,
            Self::FetchChosen { .. }
                | Self::Chosen { .. }
                | Self::SnapOffer { .. }
                | Self::SnapFetch { .. }
                | Self::SnapChunk { .. }
        )
    }

    /// Its name, for dialogues and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Canvass { .. } => "Canvass",
            Self::CanvassOk { .. } => "CanvassOk",
            Self::CanvassNo { .. } => "CanvassNo",
            Self::Prepare { .. } => "Prepare",
            Self::Promise(_) => "Promise",
            Self::Accept { .. } => "Accept",
            Self::Accepted { .. } => "Accepted",
            Self::Reject { .. } => "Reject",
            Self::Heartbeat(_) => "Heartbeat",
            Self::HeartbeatAck(_) => "HeartbeatAck",
            Self::FetchChosen { .. } => "FetchChosen",
            Self::Chosen { .. } => "Chosen",
            Self::SnapOffer { .. } => "SnapOffer",
            Self::SnapFetch { .. } => "SnapFetch",
            Self::SnapChunk { .. } => "SnapChunk",
            Self::Forward { .. } => "Forward",
            Self::ReadIndex { .. } => "ReadIndex",
            Self::ReadIndexOk { .. } => "ReadIndexOk",
            Self::ReadIndexNo { .. } => "ReadIndexNo",
            Self::TransferNow { .. } => "TransferNow",
        }
    }
}
