//! Sessions as the log sees them: who holds one, and which of its entries is the next (design 2.6).
//!
//! A session is attached to one connection at a time, named by a *fence* that the serving server draws. Each entry
//! of the session carries the fence and its place in that attachment. So an entry may be proposed twice, late, or
//! by a server from which the session has moved away, and still takes effect once, in order, or never. Called by
//! `apply`.

use std::sync::Arc;

use imbl::OrdSet;
use loggos_protocol::ids::SessionId;
use loggos_protocol::zookeeper::ErrorCode;

use super::{NodeEvent, Outcome, SESSION_TAG, Tree};

/// Names one attachment of a session to a connection: drawn at random, never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

/// An entry's place among those of its session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The attachment that it was sent in.
    pub fence: Fence,
    /// Its number in that attachment, from 1 on, without gaps.
    pub number: u64,
}

/// What is known of a session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub timeout_ms: u32,
    pub password: [u8; 16],
    pub fence: Fence,
    /// The number of the next entry of this attachment.
    pub next_number: u64,
    /// How long its ephemeral nodes stay when it expires.
    pub linger_ms: u32,
    /// Paths of its ephemeral nodes.
    pub ephemerals: OrdSet<Arc<str>>,
}

impl Tree {
    /// The attachment of a session, and the number of its next entry.
    pub fn attachment(&self, session: SessionId) -> Option<Stamp> {
        let session = self.sessions.get(&session)?;
        Some(Stamp { fence: session.fence, number: session.next_number })
    }

    /// The session that was begun with this password, if it lives.
    pub(super) fn begun_with(&self, password: &[u8; 16]) -> Option<SessionId> {
        self.passwords.get(password).copied()
    }

    pub(super) fn begin_session(&mut self, timeout_ms: u32, password: [u8; 16], fence: Fence) -> Outcome {
        let id = SessionId::new(SESSION_TAG << 56 | self.zxid.raw());
        let ephemerals = OrdSet::new();
        let session = Session { timeout_ms, password, fence, next_number: 1, linger_ms: 0, ephemerals };
        self.sessions.insert(id, session);
        self.passwords.insert(password, id);
        Outcome::Session(id)
    }

    /// Moves a session from the attachment `before` to the attachment `fence`.
    pub(super) fn attach(
        &mut self,
        id: SessionId,
        before: Fence,
        fence: Fence,
    ) -> Result<Outcome, ErrorCode> {
        let session = self.sessions.get_mut(&id).ok_or(ErrorCode::SESSION_EXPIRED)?;
        if session.fence == fence {
            // Proposed twice: it is where it shall be.
            return Ok(Outcome::Session(id));
        }
        if session.fence != before {
            return Err(ErrorCode::SESSION_MOVED);
        }
        (session.fence, session.next_number) = (fence, 1);
        Ok(Outcome::Session(id))
    }

    /// Whether the session's entry with this stamp takes effect now; its number is used up then.
    pub(super) fn admit(&mut self, id: SessionId, stamp: Stamp) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        let next = session.fence == stamp.fence && session.next_number == stamp.number;
        if next {
            session.next_number += 1;
        }
        next
    }

    /// All its ephemeral nodes go with this one zxid, or begin to linger if it has expired and wished so.
    pub(super) fn end_session(
        &mut self,
        session: SessionId,
        expired: bool,
        events: &mut Vec<NodeEvent>,
    ) -> Result<(), ErrorCode> {
        let ended = self.sessions.remove(&session).ok_or(ErrorCode::SESSION_EXPIRED)?;
        self.passwords.remove(&ended.password);
        for path in &ended.ephemerals {
            if expired && ended.linger_ms > 0 {
                self.let_linger(path, session, ended.linger_ms);
            } else {
                self.take_out(path, events);
            }
        }
        Ok(())
    }
}
