//! Who was heard of: touches, the pings that are answered by them, and expiry (design 2.6).
//!
//! The leader alone decides that a session has been silent for too long, and only under a valid lease. A server that
//! doesn't lead collects the sessions that it hears of and tells the leader; it answers a ping when the leader has
//! it, so that an answered ping is a promise of the whole time-out (decision C8). Called by `driver` alone.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use loggos_protocol::ids::SessionId;
use loggos_protocol::zookeeper::Reply;
use loggos_protocol::zookeeper::code::XID_PING;

use super::{Driver, millis};
use crate::metrics;
use crate::paxos::event::Event;
use crate::session_expiry::SessionExpiry;
use crate::tree::Command;
use crate::watches::ConnectionId;

/// Touches are collected for so long before they go to the leader.
const COLLECT: Duration = Duration::from_millis(10);
/// An expiry that was proposed and isn't applied by then is proposed again.
const EXPIRE_AGAIN: Duration = Duration::from_secs(1);
/// How often the kept snapshots are read again.
const SCRUB: Duration = Duration::from_secs(6 * 3600);

/// A ping that waits until the leader knows of it.
struct Ping {
    batch: u64,
    connection: ConnectionId,
    at: Instant,
}

/// What is known of who was heard of.
pub(super) struct Sessions {
    /// The leader's deadlines.
    expiry: SessionExpiry,
    /// Heard of here, and not registered by the leader yet.
    touched: BTreeSet<SessionId>,
    /// Since when something new is in `touched`.
    new_since: Option<Instant>,
    /// The last batch that was handed over.
    batch: u64,
    pings: VecDeque<Ping>,
    scrubbed: Instant,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            expiry: SessionExpiry::default(),
            touched: BTreeSet::new(),
            new_since: None,
            batch: 0,
            pings: VecDeque::new(),
            scrubbed: Instant::now(),
        }
    }
}

impl Sessions {
    /// A session is no more.
    pub fn ended(&mut self, session: SessionId) {
        self.expiry.forget(session);
        self.touched.remove(&session);
    }
}

impl Driver {
    /// A client of this server was heard.
    pub(super) fn touch(&mut self, session: SessionId) {
        if self.view.leading {
            self.touch_here(session);
        } else if self.sessions.touched.insert(session) {
            self.sessions.new_since.get_or_insert_with(Instant::now);
        }
    }

    /// This server leads: the session gets its whole time-out again.
    pub(super) fn touch_here(&mut self, session: SessionId) {
        let now = self.now();
        self.sessions.expiry.touch(session, now);
    }

    /// This server leads: the session is watched over from now on.
    pub(super) fn track(&mut self, session: SessionId) {
        let now = self.now();
        if let Some(timeout_ms) = self.tree.session_timeout_ms(session) {
            self.sessions.expiry.track(session, millis(timeout_ms), now);
        }
    }

    /// A client asks whether it is heard.
    pub(super) fn ping(&mut self, connection: ConnectionId, session: SessionId, at: Instant) {
        self.touch(session);
        if self.may_decide() {
            return self.pong(connection, at);
        }
        let batch = self.sessions.batch + 1;
        // The session may be among the touches already: the next batch says it again.
        self.sessions.new_since.get_or_insert_with(Instant::now);
        self.sessions.pings.push_back(Ping { batch, connection, at });
    }

    fn pong(&mut self, connection: ConnectionId, at: Instant) {
        let zxid = self.tree.zxid();
        let Some(client) = self.clients.get_mut(&connection) else { return };
        client.reply(XID_PING, zxid, &Ok(Reply::Empty));
        self.dirty.insert(connection);
        self.statistics.answered(false, at);
    }

    /// When the collected touches are to be handed over.
    pub(super) fn touches_due(&self) -> Duration {
        match self.sessions.new_since {
            Some(since) if !self.view.leading => COLLECT.saturating_sub(since.elapsed()),
            _ => Duration::MAX,
        }
    }

    /// Hands the collected touches over, if it is time.
    pub(super) fn tell_touches(&mut self) {
        if self.view.leading || self.sessions.new_since.is_none_or(|since| since.elapsed() < COLLECT) {
            return;
        }
        self.sessions.new_since = None;
        self.sessions.batch += 1;
        let mut payload = BytesMut::with_capacity(self.sessions.touched.len() * 8);
        self.sessions.touched.iter().for_each(|session| payload.put_i64(session.raw()));
        let batch = self.sessions.batch;
        self.event(Event::Touches { batch, payload: payload.freeze() });
    }

    /// The leader has this server's touches up to a batch.
    pub(super) fn touches_registered(&mut self, batch: u64) {
        if batch >= self.sessions.batch && self.sessions.new_since.is_none() {
            self.sessions.touched.clear();
        }
        while let Some(ping) = self.sessions.pings.pop_front_if(|ping| ping.batch <= batch) {
            self.pong(ping.connection, ping.at);
        }
    }

    /// This server leads, and hears of sessions that are connected anywhere.
    pub(super) fn touched_elsewhere(&mut self, mut payload: &[u8]) {
        let now = self.now();
        while let Ok(session) = payload.try_get_i64() {
            self.sessions.expiry.touch(SessionId::new(session), now);
        }
    }

    /// This server leads from now on: nobody could be heard before, so everybody gets a whole time-out.
    pub(super) fn begin_to_lead(&mut self) {
        self.sessions.expiry = SessionExpiry::default();
        let now = self.now();
        for (session, timeout_ms) in self.tree.sessions() {
            self.sessions.expiry.track(session, millis(timeout_ms), now);
        }
        self.sessions.touched.clear();
        self.sessions.new_since = None;
    }

    /// Another server decides from now on; it must hear of everybody who is connected here.
    pub(super) fn stop_leading(&mut self) {
        self.sessions.expiry = SessionExpiry::default();
        self.sessions.touched.extend(self.connected.keys().copied());
        self.sessions.new_since.get_or_insert_with(Instant::now);
    }

    pub(super) fn tick_sessions(&mut self) {
        if self.sessions.scrubbed.elapsed() > SCRUB {
            self.sessions.scrubbed = Instant::now();
            self.scrub();
        }
        // Who isn't listened to can't be found silent: the gap is a stall of our own.
        if !self.has_room() || !self.may_decide() {
            return;
        }
        while let Some(ping) = self.sessions.pings.pop_front() {
            self.pong(ping.connection, ping.at);
        }
        let now = self.now();
        let expired = self.sessions.expiry.expired(now);
        if expired.is_empty() {
            return;
        }
        metrics::expired(expired.len());
        let epoch = self.tree.epoch();
        for session in expired {
            let shown = session.raw();
            tracing::info!(session = format_args!("{shown:#x}"), "a session expires");
            self.sessions.expiry.track(session, EXPIRE_AGAIN, now);
            let entry: Bytes = Command::Expire { session, epoch }.encode();
            self.propose(entry);
        }
    }
}
