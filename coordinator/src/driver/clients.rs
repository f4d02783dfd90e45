//! Who is connected, and each client's requests in the order in which they came.
//!
//! A client's replies go out in the order of its requests. A read waits for the writes that the same client sent
//! before it, and for nobody else's. What isn't applied is kept, and proposed again when the leader changes: numbers
//! and fences make repetitions harmless. Called by `driver` alone.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::code::XID_AUTH;
use loggos_protocol::zookeeper::reply::{encode_notification, encode_reply};
use loggos_protocol::zookeeper::{ErrorCode, Id, Reply, Request};

use super::opening::{Barrier, Wish};
use super::{Arrival, Driver, Entries, Input, Outcome};
use crate::metrics;
use crate::paxos::event::{Event, ReadId};
use crate::server::outbox::Outbox;
use crate::server::request::{self, Shape, Sorted};
use crate::tree::{Applied, Fence, Stamp};
use crate::watches::ConnectionId;

/// A command that makes no progress for this long is proposed again: it may have been lost on the way.
const LATE: Duration = Duration::from_secs(1);

/// A connected client.
pub(super) struct Client {
    pub outbox: Arc<Outbox>,
    pub peer: SocketAddr,
    pub session: SessionId,
    pub timeout: Duration,
    pub received: u64,
    pub sent: u64,
    pub stage: Stage,
    /// This attachment of its session, and the number of its next entry.
    pub stamp: Stamp,
    /// The zxid that it must not fall behind, until that is applied.
    pub ahead: Option<Zxid>,
    /// What the connect request said of it; the response says as much.
    pub read_only: Option<bool>,
    /// What it may call itself: its address, and what it has proved.
    ids: Arc<Vec<Id>>,
    /// Requests that aren't answered, in their order; empty unless a write or a barrier is under way.
    waiting: VecDeque<Waiting>,
    /// Its entries that aren't applied, in their order.
    unapplied: Entries,
    /// When one of them was applied, or all were proposed, last.
    progress: Instant,
}

pub(super) enum Stage {
    /// Its session is being made or taken over; what it sent already is kept.
    Opening(VecDeque<Arrival>, Wish),
    /// It is served.
    Open,
    /// It reads what is here while there is no leader.
    ReadOnly,
    /// It isn't listened to any more: it said goodbye, or it was cut off.
    Deaf,
}

/// A request that waits for its turn.
enum Waiting {
    /// A write under way.
    Write { xid: i32, shape: Shape, at: Instant, last: bool },
    /// A `sync` whose barrier is under way, or has been reached.
    Barrier { id: u64, xid: i32, path: String, at: Instant, reached: bool },
    /// A read behind one of these.
    Read { xid: i32, request: Request, at: Instant },
    /// Something that is decided already.
    Decided { xid: i32, outcome: Outcome, at: Instant, last: bool },
}

impl Client {
    pub fn new(
        outbox: Arc<Outbox>,
        peer: SocketAddr,
        timeout: Duration,
        stage: Stage,
        ids: Vec<Id>,
        read_only: Option<bool>,
    ) -> Self {
        Self {
            outbox,
            peer,
            session: SessionId::new(0),
            timeout,
            received: 1,
            sent: 0,
            stage,
            stamp: Stamp::default(),
            ahead: None,
            read_only,
            ids: Arc::new(ids),
            waiting: VecDeque::new(),
            unapplied: VecDeque::new(),
            progress: Instant::now(),
        }
    }

    /// Its identities, for the tree.
    pub fn ids(&self) -> &[Id] {
        &self.ids
    }

    /// Its attachment.
    pub const fn fence(&self) -> Fence {
        self.stamp.fence
    }

    /// Whether it reads without a leader.
    pub const fn is_read_only(&self) -> bool {
        matches!(self.stage, Stage::ReadOnly)
    }

    /// Ends the connection when what is queued has been sent.
    pub fn close(&mut self) {
        self.stage = Stage::Deaf;
        self.outbox.close();
    }

    /// Requests of it that aren't answered.
    pub fn queued(&self) -> usize {
        self.outbox.outstanding()
    }

    pub fn reply(&mut self, xid: i32, zxid: Zxid, outcome: &Outcome) {
        self.outbox.queue(|out| encode_reply(out, xid, zxid, outcome.as_ref().map_err(|code| *code)));
        self.outbox.answered();
        self.sent += 1;
    }
}

impl Driver {
    pub(super) fn input(&mut self, input: Input) {
        match input {
            Input::Connect { connection, peer, connect, outbox } => {
                self.connect(connection, peer, connect, outbox);
            }
            Input::Request { connection, arrival } => self.arrive(connection, arrival),
            Input::Closed { connection } => {
                self.let_go(connection);
                self.clients.remove(&connection);
            }
            // Whoever asked may have given up.
            Input::Ask { word, answer } => drop(answer.send(self.report(word))),
            Input::Cell(request) => self.cell_request(request),
        }
    }

    /// Forgets what a connection had under way; what was proposed takes effect or doesn't.
    fn let_go(&mut self, connection: ConnectionId) {
        self.watches.remove_connection(connection);
        self.behind.retain(|(id, _)| *id != connection);
        let Some(client) = self.clients.get_mut(&connection) else { return };
        self.unapplied -= client.unapplied.len();
        client.unapplied.clear();
        client.waiting.clear();
        self.opening.remove(&client.stamp.fence);
        if self.connected.get(&client.session) == Some(&connection) {
            self.connected.remove(&client.session);
        }
    }

    /// Ends a connection without another word; its session may live on.
    pub(super) fn cut_off(&mut self, connection: ConnectionId) {
        self.let_go(connection);
        if let Some(client) = self.clients.get_mut(&connection) {
            client.stage = Stage::Deaf;
            client.outbox.abort();
        }
    }

    /// Has a client's entry proposed, and keeps it until it is applied.
    pub(super) fn enqueue(&mut self, connection: ConnectionId, entry: Bytes) {
        let Some(client) = self.clients.get_mut(&connection) else { return };
        if client.unapplied.is_empty() {
            client.progress = Instant::now();
        }
        client.unapplied.push_back(entry.clone());
        self.unapplied += 1;
        self.propose(entry);
    }

    /// The oldest entry of a connection is applied.
    pub(super) fn forget_applied(&mut self, connection: ConnectionId) {
        let Some(client) = self.clients.get_mut(&connection) else { return };
        if client.unapplied.pop_front().is_some() {
            self.unapplied -= 1;
            client.progress = Instant::now();
        }
    }

    /// Another leader: whatever isn't applied may never have reached it.
    pub(super) fn propose_again(&mut self) {
        for client in self.clients.values_mut() {
            client.progress = Instant::now();
            self.proposals.extend(client.unapplied.iter().cloned());
        }
    }

    pub(super) fn propose_again_what_is_late(&mut self) {
        if self.view.leader.is_none() || self.unapplied == 0 {
            return;
        }
        let late = |client: &&mut Client| !client.unapplied.is_empty() && client.progress.elapsed() > LATE;
        for client in self.clients.values_mut().filter(late) {
            client.progress = Instant::now();
            self.proposals.extend(client.unapplied.iter().cloned());
        }
    }

    pub(super) fn arrive(&mut self, connection: ConnectionId, arrival: Arrival) {
        let Some(client) = self.clients.get_mut(&connection) else { return };
        match &mut client.stage {
            Stage::Open | Stage::ReadOnly => {}
            Stage::Opening(early, _) => return early.push_back(arrival),
            Stage::Deaf => return,
        }
        client.received += 1;
        let (session, read_only) = (client.session, client.is_read_only());
        let Arrival { header, request, at } = arrival;
        let xid = header.xid;
        let sorted = request::sort((header.op, request), session, client.stamp, &client.ids);
        if !matches!(sorted, Sorted::Ping) && !read_only {
            self.touch(session);
        }
        let Some(client) = self.clients.get_mut(&connection) else { return };
        match sorted {
            Sorted::Ping if read_only => {
                let zxid = self.tree.zxid();
                client.reply(xid, zxid, &Ok(Reply::Empty));
                self.dirty.insert(connection);
            }
            Sorted::Ping => self.ping(connection, session, at),
            Sorted::Command { last, .. } if read_only => {
                let outcome = if last { Ok(Reply::Empty) } else { Err(ErrorCode::NOT_READ_ONLY) };
                self.answer_in_turn(connection, Waiting::Decided { xid, outcome, at, last });
            }
            Sorted::Command { command, shape, last } => {
                client.stamp.number += 1;
                client.waiting.push_back(Waiting::Write { xid, shape, at, last });
                if last {
                    client.stage = Stage::Deaf;
                }
                self.enqueue(connection, command.encode());
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
            Sorted::Read(Request::Sync { path }) if !read_only => {
                let id = self.next_id();
                let barrier = Waiting::Barrier { id, xid, path, at, reached: false };
                if let Some(client) = self.clients.get_mut(&connection) {
                    client.waiting.push_back(barrier);
                }
                self.reads.insert(id, Barrier::Sync(connection));
                self.event(Event::Read(ReadId(id)));
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

    /// Answers now, or when the client's own requests before it are answered.
    fn answer_in_turn(&mut self, connection: ConnectionId, next: Waiting) {
        let Some(client) = self.clients.get_mut(&connection) else { return };
        if client.waiting.is_empty() {
            self.answer(connection, next);
        } else {
            client.waiting.push_back(next);
        }
    }

    /// A barrier is reached: the `sync` behind it is answered in its turn.
    pub(super) fn synced(&mut self, connection: ConnectionId, barrier: u64) {
        let Some(client) = self.clients.get_mut(&connection) else { return };
        for waiting in &mut client.waiting {
            if let Waiting::Barrier { id, reached, .. } = waiting
                && *id == barrier
            {
                *reached = true;
            }
        }
        self.answer_what_can_be(connection);
    }

    /// A client's write is applied: its reply, and those that waited for it.
    pub(super) fn answer_write(&mut self, connection: ConnectionId, applied: Applied) {
        self.forget_applied(connection);
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
        self.answer_what_can_be(connection);
    }

    fn answer_what_can_be(&mut self, connection: ConnectionId) {
        loop {
            let Some(client) = self.clients.get_mut(&connection) else { return };
            match client.waiting.front() {
                None | Some(Waiting::Write { .. } | Waiting::Barrier { reached: false, .. }) => return,
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
            Waiting::Barrier { xid, path, at, .. } => {
                client.reply(xid, zxid, &Ok(Reply::Path(path)));
                self.statistics.answered(false, at);
            }
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
