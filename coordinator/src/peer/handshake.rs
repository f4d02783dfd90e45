//! The first frames of a connection between servers, and the questions that a server may ask of another before both
//! belong to one cell, or on an operator's behalf (P).
//!
//! A connection begins with a [`Hello`]. On the agreement and the bulk channel a [`Welcome`] answers, and envelopes
//! follow; a question is followed by one [`Question`] and answered by one [`Answer`]. Called by `peer`, `door`.

use bytes::{BufMut, Bytes, BytesMut};

use crate::paxos::ballot::{CellId, Incarnation, ServerId};
use crate::paxos::codec::{
    CodecError, Reader, put_bytes, put_config, put_list, put_member, take_config, take_member,
};
use crate::paxos::membership::{Change, Config, MEMBERS_LIMIT, Role};

/// What a connection of ours begins with; its last digit is the protocol's version.
const MAGIC: u64 = u64::from_be_bytes(*b"lgpeer01");

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// Everything that must not wait.
    Agreement,
    /// Catching up.
    Bulk,
    /// One question.
    Question,
}

/// What the one who dials says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub channel: Channel,
    pub cell: CellId,
    pub from: ServerId,
    pub incarnation: Incarnation,
}

/// What the one who is dialled says: who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub cell: CellId,
    pub server: ServerId,
    pub incarnation: Incarnation,
    /// Where its bulk channel is in this life.
    pub bulk_port: u16,
}

/// What one server may ask of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Who are you, and what do you belong to?
    Who,
    /// Change the membership: let me in, or what an operator wishes.
    Change(Change),
    /// Give the lead to this server, or to the best one.
    Transfer(Option<ServerId>),
}

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Card {
    /// Drawn at each start: who meets its own number has dialled itself.
    pub boot: u64,
    pub cell: CellId,
    pub server: ServerId,
    pub token: u64,
    /// The list that it was started with.
    pub servers: Vec<String>,
    pub bulk_port: u16,
    /// Where clients reach it: host and port, or only `:port`, to be completed by who knows its host.
    pub client: String,
    /// The membership with which its cell began.
    pub founding: Config,
    /// The membership now.
    pub config: Config,
    /// Who leads, as far as it knows.
    pub leader: ServerId,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// To `Who`.
    Card(Box<Card>),
    /// The change governs.
    Done,
    /// Ask the leader, at this peer address; empty if none is known.
    Elsewhere(String),
    /// It is not done, and this is why.
    Refused(String),
}

impl Hello {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64(MAGIC);
        out.put_u8(match self.channel {
            Channel::Agreement => 1,
            Channel::Bulk => 2,
            Channel::Question => 3,
        });
        put_who(&mut out, self.cell, self.from, self.incarnation);
        out.freeze()
    }

    pub fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        if reader.u64()? != MAGIC {
            return Err(CodecError::Range("the first word"));
        }
        let channel = match reader.u8()? {
            1 => Channel::Agreement,
            2 => Channel::Bulk,
            3 => Channel::Question,
            _ => return Err(CodecError::Range("a channel")),
        };
        let (cell, from, incarnation) = take_who(&mut reader)?;
        reader.end(Self { channel, cell, from, incarnation })
    }
}

impl Welcome {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64(MAGIC);
        put_who(&mut out, self.cell, self.server, self.incarnation);
        out.put_u16(self.bulk_port);
        out.freeze()
    }

    pub fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        if reader.u64()? != MAGIC {
            return Err(CodecError::Range("the first word"));
        }
        let (cell, server, incarnation) = take_who(&mut reader)?;
        let bulk_port = reader.u16()?;
        reader.end(Self { cell, server, incarnation, bulk_port })
    }
}

fn put_who(out: &mut BytesMut, cell: CellId, server: ServerId, incarnation: Incarnation) {
    out.put_u128(cell.raw());
    out.put_u16(server.raw());
    out.put_u64(incarnation.raw());
}

fn take_who(reader: &mut Reader) -> Result<(CellId, ServerId, Incarnation), CodecError> {
    Ok((CellId::new(reader.u128()?), reader.server()?, Incarnation::new(reader.u64()?)))
}

impl Question {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Who => out.put_u8(1),
            Self::Change(change) => {
                out.put_u8(2);
                put_change(&mut out, change);
            }
            Self::Transfer(target) => {
                out.put_u8(3);
                out.put_u16(target.unwrap_or_default().raw());
            }
        }
        out.freeze()
    }

    pub fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let question = match reader.u8()? {
            1 => Self::Who,
            2 => Self::Change(take_change(&mut reader)?),
            3 => Self::Transfer(Some(reader.server()?).filter(|server| !server.is_none())),
            _ => return Err(CodecError::Range("a question")),
        };
        reader.end(question)
    }
}

fn put_change(out: &mut BytesMut, change: &Change) {
    match change {
        Change::Join { member } => {
            out.put_u8(1);
            put_member(out, member);
        }
        Change::Voters(ids) => {
            out.put_u8(2);
            put_list(out, ids.iter(), |out, id| out.put_u16(id.raw()));
        }
        Change::Remove(ids) => {
            out.put_u8(3);
            put_list(out, ids.iter(), |out, id| out.put_u16(id.raw()));
        }
        Change::Roles(roles) => {
            out.put_u8(4);
            put_list(out, roles.iter(), |out, (id, role)| {
                out.put_u16(id.raw());
                out.put_u8(match role {
                    Role::Voter => 0,
                    Role::Learner => 1,
                    Role::Witness => 2,
                });
            });
        }
    }
}

fn take_change(reader: &mut Reader) -> Result<Change, CodecError> {
    Ok(match reader.u8()? {
        1 => Change::Join { member: take_member(reader)? },
        2 => Change::Voters(reader.list(MEMBERS_LIMIT, Reader::server)?.into_iter().collect()),
        3 => Change::Remove(reader.list(MEMBERS_LIMIT, Reader::server)?.into_iter().collect()),
        4 => Change::Roles(reader.list(MEMBERS_LIMIT, |reader| {
            let id = reader.server()?;
            let role = match reader.u8()? {
                0 => Role::Voter,
                1 => Role::Learner,
                2 => Role::Witness,
                _ => return Err(CodecError::Range("a role")),
            };
            Ok((id, role))
        })?),
        _ => return Err(CodecError::Range("a change")),
    })
}

impl Answer {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Card(card) => {
                out.put_u8(1);
                out.put_u64(card.boot);
                out.put_u128(card.cell.raw());
                out.put_u16(card.server.raw());
                out.put_u64(card.token);
                put_list(&mut out, card.servers.iter(), |out, server| put_bytes(out, server.as_bytes()));
                out.put_u16(card.bulk_port);
                put_bytes(&mut out, card.client.as_bytes());
                put_config(&mut out, &card.founding);
                put_config(&mut out, &card.config);
                out.put_u16(card.leader.raw());
            }
            Self::Done => out.put_u8(2),
            Self::Elsewhere(address) => {
                out.put_u8(3);
                put_bytes(&mut out, address.as_bytes());
            }
            Self::Refused(why) => {
                out.put_u8(4);
                put_bytes(&mut out, why.as_bytes());
            }
        }
        out.freeze()
    }

    pub fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let answer = match reader.u8()? {
            1 => Self::Card(Box::new(Card {
                boot: reader.u64()?,
                cell: CellId::new(reader.u128()?),
                server: reader.server()?,
                token: reader.u64()?,
                servers: reader.list(MEMBERS_LIMIT, Reader::text)?,
                bulk_port: reader.u16()?,
                client: reader.text()?,
                founding: take_config(&mut reader)?,
                config: take_config(&mut reader)?,
                leader: reader.server()?,
            })),
            2 => Self::Done,
            3 => Self::Elsewhere(reader.text()?),
            4 => Self::Refused(reader.text()?),
            _ => return Err(CodecError::Range("an answer")),
        };
        reader.end(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paxos::membership::Member;
    use proptest::prelude::*;

    fn member(id: u16) -> Member {
        Member {
            id: ServerId::new(id),
            role: Role::Voter,
            peer: format!("host{id}:2888"),
            bulk_port: 2889,
            client: format!("host{id}:2181"),
            token: 77,
        }
    }

    #[test]
    fn all_that_is_said_reads_back() {
        let (cell, server, incarnation) = (CellId::new(9), ServerId::new(2), Incarnation::new(3));
        for channel in [Channel::Agreement, Channel::Bulk, Channel::Question] {
            let hello = Hello { channel, cell, from: server, incarnation };
            assert_eq!(Hello::decode(hello.encode()), Ok(hello));
        }
        let welcome = Welcome { cell, server, incarnation, bulk_port: 3888 };
        assert_eq!(Welcome::decode(welcome.encode()), Ok(welcome));
        let changes = [
            Change::Join { member: member(4) },
            Change::Voters([1, 2, 4].map(ServerId::new).into()),
            Change::Remove([3].map(ServerId::new).into()),
            Change::Roles(vec![(server, Role::Learner), (ServerId::new(1), Role::Witness)]),
        ];
        let others = [Question::Who, Question::Transfer(None), Question::Transfer(Some(server))];
        for question in changes.map(Question::Change).into_iter().chain(others) {
            assert_eq!(Question::decode(question.encode()), Ok(question));
        }
        let card = Card {
            boot: 5,
            cell,
            server,
            token: 6,
            servers: vec!["a:1".to_owned(), "b:2".to_owned()],
            bulk_port: 7,
            client: ":2181".to_owned(),
            founding: Config::founding(vec![member(1)]),
            config: Config::founding(vec![member(1), member(2)]),
            leader: ServerId::new(1),
        };
        let answers = [
            Answer::Card(Box::new(card)),
            Answer::Done,
            Answer::Elsewhere("a:2888".to_owned()),
            Answer::Refused("no".to_owned()),
        ];
        for answer in answers {
            assert_eq!(Answer::decode(answer.encode()), Ok(answer));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let bytes = Bytes::from(bytes);
            let _ = Hello::decode(bytes.clone());
            let _ = Welcome::decode(bytes.clone());
            let _ = Question::decode(bytes.clone());
            let _ = Answer::decode(bytes);
        }
    }
}
