//! Who is connected: the handshake, and each client's requests in the order in which they came.
//!
//! A client's replies go out in the order of its requests. A read waits for the writes that the same client sent
//! before it, and for nobody else's. Called by `driver` alone.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::code::{XID_AUTH, XID_PING};
use loggos_protocol::zookeeper::reply::{encode_notification, encode_reply};
use loggos_protocol::zookeeper::{ConnectRequest, ConnectResponse, ErrorCode, Id, Reply, Request};

use super::{Arrival, Driver, Input, Origin, Outcome, millis};
use crate::metrics;
use crate::server::outbox::Outbox;
use crate::server::request::{self, Shape, Sorted};
use crate::tree::{Applied, Command, Fence, Stamp};
use crate::watches::ConnectionId;

/// A connected client.
pub(super) struct Client {
    pub outbox: Arc<Outbox>,
    pub peer: SocketAddr,
    pub session: SessionId,
    pub timeout: Duration,
    pub received: u64,
    pub sent: u64,
    stage: Stage,
    /// This attachment of its session, and the number of its next entry.
    stamp: Stamp,
    /// What it may call itself: its address, and what it has proved.
    ids: Arc<Vec<Id>>,
    /// Requests that aren't answered, in their order; empty unless a write is under way.
    waiting: VecDeque<Waiting>,
    /// What the connect request said of it; the response says as much.
    read_only: Option<bool>,
}

enum Stage {
    /// Its session is being made or taken over; what it sent already is kept.
    Opening(VecDeque<Arrival>),
    /// It is served.
    Open,
    /// It isn't listened to any more: it said goodbye, or it was cut off.
    Deaf,
}

/// A request that waits for its turn.
enum Waiting {
    /// A write under way.
    Write { xid: i32, shape: Shape, at: Instant, last: bool },
    /// A read behind it.
    Read { xid: i32, request: Request, at: Instant },
    /// Something that is decided already.
    Decided { xid: i32, outcome: Outcome, at: Instant, last: bool },
}

impl Client {
    /// Its identities, for the tree.
    pub fn ids(&self) -> &[Id] {
        &self.ids
    }

    /// Ends the connection without another word; the session may live on.
    pub fn cut_off(&mut self) {
        self.stage = Stage::Deaf;
        self.waiting.clear();
        self.outbox.abort();
    }

    /// Ends the connection when what is queued has been sent.
    fn close(&mut self) {
        self.stage = Stage::Deaf;
        self.outbox.close();
    }

    fn reply(&mut self, xid: i32, zxid: Zxid, outcome: &Outcome) {
        self.outbox.queue(|out| encode_reply(out, xid, zxid, outcome.as_ref().map_err(|code| *code)));
        self.outbox.answered();
        self.sent += 1;
    }
}

impl Driver {
    pub(super) fn input(&mut self, input: Input) {
        match input {
            Input::Connect { connection, peer, connect, outbox } => {
                self.connect(connection, peer, &connect, outbox);
            }
            Input::Request { connection, arrival } => self.arrive(connection, arrival),
            Input::Closed { connection } => self.closed(connection),
            // Whoever asked may have given up.
            Input::Ask { word, answer } => drop(answer.send(self.report(word))),
        }
    }

    fn connect(
        &mut self,
        connection: ConnectionId,
        peer: SocketAddr,
        connect: &ConnectRequest,
        outbox: Arc<Outbox>,
    ) {
        let address = Id { scheme: "ip".to_owned(), id: address_text(peer.ip()) };
        let mut client = Client {
            outbox,
            peer,
            session: connect.session,
            timeout: self.options.session_timeout(connect.timeout_ms),
            received: 1,
            sent: 0,
            stage: Stage::Opening(VecDeque::new()),
            stamp: Stamp { fence: Fence(rand::random()), number: 1 },
            ids: Arc::new(vec![address]),
            waiting: VecDeque::new(),
            read_only: connect.read_only,
        };
        if connect.last_zxid_seen > self.tree.zxid() {
            tracing::warn!(%peer, seen = connect.last_zxid_seen.raw(), "a client has seen more than there is");
            client.cut_off();
        } else if connect.session.raw() == 0 {
            let timeout_ms = u32::try_from(client.timeout.as_millis()).unwrap_or(u32::MAX);
            let fence = client.stamp.fence;
            let command = Command::CreateSession { timeout_ms, password: rand::random(), fence };
            self.enqueue(command, Origin::Opening(connection));
        } else if self.tree.session_password(connect.session).is_some_and(|own| own == connect.password[..]) {
            self.expiry.touch(connect.session, self.now());
            self.take_over(connect.session, connection);
            let before = self.tree.attachment(connect.session).unwrap_or_default().fence;
            let (session, fence) = (connect.session, client.stamp.fence);
            self.enqueue(Command::Attach { session, before, fence }, Origin::Opening(connection));
        } else {
            client.refuse_session();
        }
        self.clients.insert(connection, client);
    }

    /// From now on the session is here. Where it was before, nothing is taken or answered any more: what was sent
    /// there stands before the session's next entry, or nowhere.
    fn take_over(&mut self, session: SessionId, connection: ConnectionId) {
        if let Some(before) = self.connected.insert(session, connection)
            && before != connection
            && let Some(old) = self.clients.get_mut(&before)
        {
            old.cut_off();
            self.watches.remove_connection(before);
        }
    }

    /// The entry behind a handshake is applied.
    pub(super) fn answer_opening(&mut self, connection: ConnectionId, command: &Command, applied: &Applied) {
        let session = applied.session();
        let details = session.and_then(|session| {
            Some((session, self.tree.session_password(session)?, self.tree.session_timeout_ms(session)?))
        });
        let now = self.now();
        if let (Command::CreateSession { .. }, Some((session, _, timeout_ms))) = (command, details) {
            self.expiry.track(session, millis(timeout_ms), now);
        }
        let Some(client) = self.clients.get_mut(&connection) else { return };
        // Deaf already: the session has moved on to another connection, or has ended.
        let Stage::Opening(early) = &mut client.stage else { return };
        let early = std::mem::take(early);
        self.dirty.insert(connection);
        let Some((session, password, timeout_ms)) = details else {
            self.connected.retain(|_, at| *at != connection);
            client.refuse_session();
            return;
        };
        client.stage = Stage::Open;
        client.session = session;
        client.timeout = millis(timeout_ms);
        let response = ConnectResponse {
            protocol_version: 0,
            timeout_ms: i32::try_from(timeout_ms).unwrap_or(i32::MAX),
            session,
            password,
            read_only: client.read_only.map(|_| false),
        };
        client.outbox.queue(|out| response.encode(out));
        client.sent += 1;
        self.connected.insert(session, connection);
        for arrival in early {
            self.arrive(connection, arrival);
        }
    }

    fn closed(&mut self, connection: ConnectionId) {
        self.watches.remove_connection(connection);
        if let Some(client) = self.clients.remove(&connection)
            && self.connected.get(&client.session) == Some(&connection)
        {
            self.connected.remove(&client.session);
        }
    }

    fn arrive(&mut self, connection: ConnectionId, arrival: Arrival) {
        let now = self.now();
        let Some(client) = self.clients.get_mut(&connection) else { return };
        match &mut client.stage {
            Stage::Open => {}
            Stage::Opening(early) => return early.push_back(arrival),
            Stage::Deaf => return,
        }
        client.received += 1;
        self.expiry.touch(client.session, now);
        let Arrival { header, request, at } = arrival;
        let xid = header.xid;
        match request::sort((header.op, request), client.session, client.stamp, &client.ids) {
            Sorted::Ping => {
                let zxid = self.tree.zxid();
                client.reply(XID_PING, zxid, &Ok(Reply::Empty));
                self.dirty.insert(connection);
                self.statistics.answered(false, at);
            }
            Sorted::Command { command, shape, last } => {
                client.stamp.number += 1;
                client.waiting.push_back(Waiting::Write { xid, shape, at, last });
                if last {
                    client.stage = Stage::Deaf;
                }
                self.enqueue(command, Origin::Client(connection));
            }
            Sorted::Auth { scheme, auth } => {
                let proved = request::prove(&scheme, &auth, self.options.super_digest.as_deref());
                let last = proved.is_err();
                let outcome = proved.map(|ids| {
                    let own = Arc::make_mut(&mut client.ids);
                    own.extend(ids.into_iter().filter(|id| !own.contains(id)).collect::<Vec<_>>());
                    Reply::Empty
                });
                if last {
                    client.stage = Stage::Deaf;
                }
                self.answer_in_turn(connection, Waiting::Decided { xid, outcome, at, last });
            }
            Sorted::Read(request) => self.answer_in_turn(connection, Waiting::Read { xid, request, at }),
            Sorted::Refused { code, last } => {
                if last {
                    client.stage = Stage::Deaf;
                }
                self.answer_in_turn(connection, Waiting::Decided { xid, outcome: Err(code), at, last });
            }
        }
    }

    /// Answers now, or when the client's own writes before it are applied.
    fn answer_in_turn(&mut self, connection: ConnectionId, next: Waiting) {
        let Some(client) = self.clients.get_mut(&connection) else { return };
        if client.waiting.is_empty() {
            self.answer(connection, next);
        } else {
            client.waiting.push_back(next);
        }
    }

    /// A client's write is applied: its reply, and those that waited for it.
    pub(super) fn answer_write(&mut self, connection: ConnectionId, applied: Applied) {
        let Some(client) = self.clients.get_mut(&connection) else { return };
        let Some(Waiting::Write { xid, shape, at, last }) = client.waiting.pop_front() else { return };
        let zxid = applied.zxid;
        client.reply(xid, zxid, &request::write_reply(&shape, applied.outcome));
        self.statistics.answered(true, at);
        self.dirty.insert(connection);
        if last {
            client.close();
            return;
        }
        loop {
            let Some(client) = self.clients.get_mut(&connection) else { return };
            match client.waiting.front() {
                None | Some(Waiting::Write { .. }) => return,
                Some(_) => {}
            }
            if let Some(next) = client.waiting.pop_front() {
                self.answer(connection, next);
            }
        }
    }

    fn answer(&mut self, connection: ConnectionId, next: Waiting) {
        let Some(client) = self.clients.get_mut(&connection) else { return };
        let zxid = self.tree.zxid();
        self.dirty.insert(connection);
        match next {
            Waiting::Write { .. } => {}
            Waiting::Decided { xid, outcome, at, last } => {
                // These say nothing about the tree.
                let zxid = match outcome {
                    _ if xid == XID_AUTH => Zxid::new(0),
                    Err(ErrorCode::UNIMPLEMENTED) => Zxid::new(-1),
                    _ => zxid,
                };
                client.reply(xid, zxid, &outcome);
                self.statistics.answered(false, at);
                if last {
                    client.close();
                }
            }
            Waiting::Read { xid, request, at } => {
                let mut reader = request::Reader {
                    tree: &self.tree,
                    watches: &mut self.watches,
                    connection,
                    session: client.session,
                    ids: &client.ids,
                    missed: Vec::new(),
                };
                let outcome = reader.answer(request);
                let missed = reader.missed;
                metrics::notifications(missed.len());
                for event in missed {
                    // Events that a reconnecting client missed belong to no change of now.
                    client.outbox.queue(|out| encode_notification(out, Zxid::new(-1), &event));
                }
                client.reply(xid, zxid, &outcome);
                self.statistics.answered(false, at);
            }
        }
    }
}

impl Client {
    /// Tells it that its session is no more, and ends the connection.
    fn refuse_session(&mut self) {
        let response = ConnectResponse::refused(self.read_only.map(|_| false));
        self.outbox.queue(|out| response.encode(out));
        self.session = SessionId::new(0);
        self.close();
    }

    /// Requests of it that aren't answered.
    pub fn queued(&self) -> usize {
        self.outbox.outstanding()
    }
}

/// The address as ACLs name it: an IPv4 client on an IPv6 socket is an IPv4 client.
fn address_text(address: IpAddr) -> String {
    address.to_canonical().to_string()
}
