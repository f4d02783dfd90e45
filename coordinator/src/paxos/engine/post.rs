//! Addresses on what leaves, and the check of those on what arrives: cell, addressee, and lives (design 1.2).

use std::collections::BTreeMap;

use crate::paxos::ballot::{Incarnation, ServerId, Slot};
use crate::paxos::event::{Action, Actions, Identity};
use crate::paxos::message::{Envelope, Message};

/// What is made of an envelope's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Not for this server, or from or to a life that is over.
    Refused,
    /// A request to a former life of this server: not to be read, but its sender must hear of the present one.
    FormerLife,
    /// To be read.
    Admitted,
    /// To be read, and it is the first of a new life of its sender.
    NewLife,
}

/// Writes and reads envelopes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Post {
    identity: Identity,
    lives: BTreeMap<ServerId, Incarnation>,
    /// The slot of the latest membership applied here.
    pub config_slot: Slot,
}

impl Post {
    /// Knows no other life yet.
    pub fn new(identity: Identity, config_slot: Slot) -> Self {
        Self { identity, lives: BTreeMap::new(), config_slot }
    }

    /// Checks an envelope and remembers its sender's life.
    pub fn admit(&mut self, envelope: &Envelope) -> Admission {
        let me = &self.identity;
        let mine = envelope.cell == me.cell && envelope.to == me.server && envelope.from != me.server;
        let unaddressed = envelope.to_incarnation == Incarnation::UNKNOWN && !envelope.message.is_reply();
        let present = envelope.to_incarnation == me.incarnation || unaddressed;
        let known = self.lives.get(&envelope.from).copied();
        if !mine || known.is_some_and(|life| envelope.from_incarnation < life) {
            return Admission::Refused;
        }
        if !present {
            let former = envelope.to_incarnation < me.incarnation && !envelope.message.is_reply();
            return if former { Admission::FormerLife } else { Admission::Refused };
        }
        self.lives.insert(envelope.from, envelope.from_incarnation);
        match known {
            Some(life) if life < envelope.from_incarnation => Admission::NewLife,
            _ => Admission::Admitted,
        }
    }

    /// An envelope around `message`.
    pub fn envelope(&self, to: ServerId, message: Message) -> Envelope {
        Envelope {
            cell: self.identity.cell,
            from: self.identity.server,
            from_incarnation: self.identity.incarnation,
            to,
            to_incarnation: self.lives.get(&to).copied().unwrap_or(Incarnation::UNKNOWN),
            config_slot: self.config_slot,
            message,
        }
    }

    /// Sends at once.
    pub fn send(&self, actions: &mut Actions, to: ServerId, message: Message) {
        actions.push(Action::Send(self.envelope(to, message)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paxos::ballot::{Ballot, CellId};

    fn post(server: u16, incarnation: u64) -> Post {
        let identity = Identity {
            cell: CellId::new(5),
            server: ServerId::new(server),
            incarnation: Incarnation::new(incarnation),
        };
        Post::new(identity, Slot::ZERO)
    }

    #[test]
    fn messages_of_and_to_former_lives_are_dropped() {
        let (mut one, mut two) = (post(1, 4), post(2, 9));
        let question = || Message::FetchChosen { from: Slot::FIRST };
        let answer = || Message::CanvassOk { ballot: Ballot::NONE };
        let unaddressed = one.envelope(ServerId::new(2), question());
        assert_eq!(two.admit(&unaddressed), Admission::Admitted);
        assert_eq!(
            two.admit(&one.envelope(ServerId::new(2), answer())),
            Admission::Refused,
            "a reply to nobody"
        );
        let reply = two.envelope(ServerId::new(1), answer());
        assert_eq!(one.admit(&reply), Admission::Admitted);
        let mut reborn = post(1, 5);
        assert_eq!(reborn.admit(&reply), Admission::Refused, "meant for the former life");
        let late = two.envelope(ServerId::new(1), question());
        assert_eq!(reborn.admit(&late), Admission::FormerLife, "its sender must hear of the new life");
        assert_eq!(two.admit(&reborn.envelope(ServerId::new(2), question())), Admission::NewLife);
        assert_eq!(two.admit(&unaddressed), Admission::Refused, "from the former life");
        assert_eq!(two.admit(&two.envelope(ServerId::new(2), question())), Admission::Refused, "from itself");
    }
}
