//! What stands between clients and an engine on one server: connections with their requests in order, watches,
//! touches, and the clock of sessions. The driver's rules (design 2.6, 2.7) in small, for virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use loggos_coordinator::paxos::ballot::{Ballot, Slot};
use loggos_coordinator::paxos::event::{Event, LeaderView, ReadId, Status};
use loggos_coordinator::paxos::moment::Moment;
use loggos_coordinator::session_expiry::SessionExpiry;
use loggos_coordinator::tree::{Applied, Command, Outcome, Tree, Write};
use loggos_coordinator::watches::{ConnectionId, WatchKind, Watches};
use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::{ErrorCode, EventType, Stat};

use crate::clocks::True;
use crate::replica::{ClientId, Effect, Fence, Replica, Stamp};

/// Entries that are not applied yet are proposed again after so long.
const PROPOSE_AGAIN: Duration = Duration::from_millis(300);

/// Names an operation in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub usize);

/// What a client wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Change the tree.
    Write(Write),
    /// End the session.
    Close,
    /// A node's data: from this server's state, or fresh; with a watch or without.
    Get {
        /// The node.
        path: String,
        /// Whether every write acknowledged before must be seen.
        fresh: bool,
        /// Whether the next change is to be told.
        watch: bool,
    },
    /// A node's children.
    Children {
        /// The node.
        path: String,
        /// Whether every write acknowledged before must be seen.
        fresh: bool,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A write, or the end.
    Applied(Result<Outcome, ErrorCode>),
    /// Data.
    Data(Result<(Option<Bytes>, Stat), ErrorCode>),
    /// Children.
    Children(Result<(Vec<String>, Stat), ErrorCode>),
}

/// From a client.
#[derive(Clone, Debug)]
pub enum ToServer {
    /// A connection.
    Open {
        /// Who.
        client: ClientId,
        /// The connection's name.
        fence: Fence,
        /// The session to come back to.
        session: Option<SessionId>,
        /// How long a new one lives in silence.
        timeout_ms: u32,
        /// When it was sent.
        sent: True,
    },
    /// A request.
    Request {
        /// On which connection.
        fence: Fence,
        /// Its name.
        operation: OperationId,
        /// What.
        request: Request,
    },
    /// A sign of life.
    Ping {
        /// On which connection.
        fence: Fence,
        /// When it was sent.
        sent: True,
    },
    /// The client has hung up.
    Gone {
        /// The connection.
        fence: Fence,
    },
}

/// To a client.
#[derive(Clone, Debug)]
pub enum ToClient {
    /// The session is there; `None` if it is no more.
    Opened(Option<SessionId>),
    /// An answer.
    Reply(OperationId, Answer, Zxid),
    /// A sign of life was registered.
    Pong,
    /// A watched node has changed.
    Event,
    /// The connection is closed.
    Closed,
}

/// What a host wants done, in order.
#[derive(Debug)]
pub enum Output {
    /// For the engine.
    Engine(Event),
    /// An entry, to be noted as submitted, and for the engine.
    Propose(Vec<Bytes>),
    /// For a client.
    Client(ClientId, Fence, ToClient),
    /// A fresh read is asked for under this number.
    ReadAsked(u64),
    /// It was served.
    ReadServed(u64),
    /// A write of this slot is acknowledged.
    Acknowledged(Slot),
    /// A reply stands on a connection.
    Replied(Fence, Zxid),
    /// A watch was set.
    Watching(Fence, String, Zxid),
    /// A watch fired.
    WatchFired(Fence, String, Zxid),
    /// The client of this session is promised a further time-out from then on.
    Safe(SessionId, True, u32),
}

/// A request on its way.
#[derive(Debug)]
struct Pending {
    operation: OperationId,
    request: Request,
    /// Its place among the connection's writes.
    number: Option<u64>,
    /// Its entry, as long as a read before it is not answered.
    held: Option<Bytes>,
    /// The open read of this number serves it.
    read: Option<u64>,
    ready: Option<(Answer, Zxid, Slot)>,
}

/// A client's connection.
#[derive(Debug)]
struct Connection {
    client: ClientId,
    session: Option<SessionId>,
    opened_at: True,
    timeout_ms: u32,
    writes: u64,
    queue: VecDeque<Pending>,
    /// Entries not applied yet; 0 is the attachment.
    unapplied: BTreeMap<u64, Bytes>,
}

/// Sessions heard of, with when their clients spoke.
type Heard = Vec<(Fence, SessionId, True)>;

/// All connections of one life of a server.
#[derive(Default)]
pub struct Host {
    connections: BTreeMap<Fence, Connection>,
    names: BTreeMap<ConnectionId, Fence>,
    watches: Watches,
    reads: BTreeMap<u64, Fence>,
    next_read: u64,
    heard: Heard,
    under_way: Option<(u64, Heard)>,
    batches: u64,
    leading: Option<(Ballot, SessionExpiry)>,
    leader_known: bool,
    proposed_at: Moment,
    out: Vec<Output>,
}

impl Host {
    /// What has been asked for since the last call.
    pub fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.out)
    }

    /// The connections and whose they are, when the process ends.
    pub fn clients(&self) -> Vec<(ClientId, Fence)> {
        self.connections.iter().map(|(fence, connection)| (connection.client, *fence)).collect()
    }

    /// Something came from a client.
    pub fn receive(&mut self, message: ToServer, replica: &Replica) {
        match message {
            ToServer::Open { client, fence, session, timeout_ms, sent } => {
                let command = match session {
                    Some(session) => {
                        let before = replica.tree.attachment(session).map_or(Fence(0), |stamp| stamp.fence);
                        Command::Attach { session, before, fence }
                    }
                    None => {
                        let mut password = [0; 16];
                        password[..8].copy_from_slice(&fence.0.to_be_bytes());
                        Command::CreateSession { timeout_ms, password, fence }
                    }
                };
                let entry = command.encode();
                let connection = Connection {
                    client,
                    session: None,
                    opened_at: sent,
                    timeout_ms,
                    writes: 0,
                    queue: VecDeque::new(),
                    unapplied: BTreeMap::from([(0, entry.clone())]),
                };
                self.connections.insert(fence, connection);
                self.names.insert(ConnectionId::new(fence.0), fence);
                self.out.push(Output::Propose(vec![entry]));
            }
            ToServer::Request { fence, operation, request } => {
                self.request(fence, operation, request, replica)
            }
            ToServer::Ping { fence, sent } => {
                if let Some(session) = self.connections.get(&fence).and_then(|connection| connection.session)
                {
                    self.heard.push((fence, session, sent));
                }
            }
            ToServer::Gone { fence } => self.drop_connection(fence),
        }
    }

    fn drop_connection(&mut self, fence: Fence) {
        self.connections.remove(&fence);
        self.names.remove(&ConnectionId::new(fence.0));
        self.watches.remove_connection(ConnectionId::new(fence.0));
    }

    fn request(&mut self, fence: Fence, operation: OperationId, request: Request, replica: &Replica) {
        let Some(connection) = self.connections.get_mut(&fence) else { return };
        let Some(session) = connection.session else { return };
        let stamp = Stamp { fence, number: connection.writes + 1 };
        let command = match &request {
            Request::Write(write) => {
                Some(Command::Write { session, stamp, ids: vec![], write: write.clone() })
            }
            Request::Close => Some(Command::Close { session, stamp }),
            Request::Get { .. } | Request::Children { .. } => None,
        };
        let number = command.as_ref().map(|_| stamp.number);
        connection.writes = number.unwrap_or(connection.writes);
        let held = command.map(|command| command.encode());
        connection.queue.push_back(Pending { operation, request, number, held, read: None, ready: None });
        self.pump(fence, replica);
    }

    /// Proposes the writes that stand behind no read: such a read must not see them.
    fn let_out(&mut self, fence: Fence) {
        let Some(connection) = self.connections.get_mut(&fence) else { return };
        for pending in connection.queue.iter_mut().take_while(|pending| pending.number.is_some()) {
            if let (Some(entry), Some(number)) = (pending.held.take(), pending.number) {
                connection.unapplied.insert(number, entry.clone());
                self.out.push(Output::Propose(vec![entry]));
            }
        }
    }

    /// Answers what can be answered, in the order of the requests.
    fn pump(&mut self, fence: Fence, replica: &Replica) {
        self.answer(fence, replica);
        self.let_out(fence);
    }

    fn answer(&mut self, fence: Fence, replica: &Replica) {
        while let Some(connection) = self.connections.get_mut(&fence)
            && let Some(first) = connection.queue.front_mut()
        {
            if first.number.is_some() {
                let Some((answer, zxid, slot)) = first.ready.take() else { return };
                self.out.push(Output::Acknowledged(slot));
                self.reply(fence, answer, zxid);
            } else if needs_barrier(&first.request) {
                if first.read.is_none() {
                    self.next_read += 1;
                    first.read = Some(self.next_read);
                    self.reads.insert(self.next_read, fence);
                    self.out.push(Output::ReadAsked(self.next_read));
                    self.out.push(Output::Engine(Event::Read(ReadId(self.next_read))));
                }
                return;
            } else {
                let answer = read_now(&replica.tree, &first.request);
                if let Request::Get { path, watch: true, .. } = &first.request {
                    self.watches.add(ConnectionId::new(fence.0), WatchKind::Data, path).expect("room");
                    self.out.push(Output::Watching(fence, path.clone(), replica.tree.zxid()));
                }
                self.reply(fence, answer, replica.tree.zxid());
            }
        }
    }

    fn reply(&mut self, fence: Fence, answer: Answer, zxid: Zxid) {
        let Some(connection) = self.connections.get_mut(&fence) else { return };
        let Some(first) = connection.queue.pop_front() else { return };
        self.out.push(Output::Replied(fence, zxid));
        let reply = ToClient::Reply(first.operation, answer, zxid);
        self.out.push(Output::Client(connection.client, fence, reply));
    }

    /// An entry was applied: watchers first, then replies.
    pub fn applied(&mut self, slot: Slot, effect: &Effect, replica: &Replica, now: Moment) {
        let applied = &effect.applied;
        self.fire(applied);
        self.keep_time(effect, applied, replica, now);
        match &effect.command {
            Some(Command::CreateSession { fence, .. } | Command::Attach { fence, .. }) => {
                self.attached(*fence, applied);
            }
            Some(Command::Write { stamp, .. } | Command::Close { stamp, .. }) if !applied.skipped => {
                self.answered(*stamp, slot, applied, replica);
            }
            _ => {}
        }
        self.hang_up(applied);
    }

    fn answered(&mut self, stamp: Stamp, slot: Slot, applied: &Applied, replica: &Replica) {
        let Some(connection) = self.connections.get_mut(&stamp.fence) else { return };
        connection.unapplied.remove(&stamp.number);
        if let Some(waiting) =
            connection.queue.iter_mut().find(|pending| pending.number == Some(stamp.number))
        {
            waiting.ready = Some((Answer::Applied(applied.outcome.clone()), applied.zxid, slot));
        }
        self.pump(stamp.fence, replica);
    }

    fn fire(&mut self, applied: &Applied) {
        for event in &applied.events {
            if event.event.event == EventType::NodeChildrenChanged {
                continue;
            }
            for connection in self.watches.fire(event.event.event, &event.event.path) {
                let Some(fence) = self.names.get(&connection).copied() else { continue };
                let Some(client) = self.connections.get(&fence).map(|connection| connection.client) else {
                    continue;
                };
                self.out.push(Output::WatchFired(fence, event.event.path.clone(), applied.zxid));
                self.out.push(Output::Client(client, fence, ToClient::Event));
            }
        }
    }

    /// The leader's clock of sessions.
    fn keep_time(&mut self, effect: &Effect, applied: &Applied, replica: &Replica, now: Moment) {
        let Some((_, expiry)) = &mut self.leading else { return };
        let opens = matches!(effect.command, Some(Command::CreateSession { .. } | Command::Attach { .. }));
        if let Some(session) = applied.session().filter(|_| opens)
            && let Some(timeout_ms) = replica.tree.session_timeout_ms(session)
        {
            expiry.track(session, Duration::from_millis(timeout_ms.into()), monotonic(now));
        }
        for session in &applied.ended {
            expiry.forget(*session);
        }
    }

    fn attached(&mut self, fence: Fence, applied: &Applied) {
        if let Some(session) = applied.session() {
            // An older connection of this session, here, is answered no more.
            let older = self.connections.iter().filter(|(f, c)| c.session == Some(session) && **f != fence);
            let older: Vec<(Fence, ClientId)> = older.map(|(f, c)| (*f, c.client)).collect();
            for (old, client) in older {
                self.drop_connection(old);
                self.out.push(Output::Client(client, old, ToClient::Closed));
            }
        }
        let Some(connection) = self.connections.get_mut(&fence) else { return };
        // An attachment may be applied twice.
        if connection.unapplied.remove(&0).is_none() {
            return;
        }
        let client = connection.client;
        if applied.outcome == Err(ErrorCode::SESSION_MOVED) {
            self.drop_connection(fence);
            return self.out.push(Output::Client(client, fence, ToClient::Closed));
        }
        connection.session = applied.session();
        if let Some(session) = connection.session {
            self.out.push(Output::Safe(session, connection.opened_at, connection.timeout_ms));
        }
        let session = connection.session;
        self.out.push(Output::Client(client, fence, ToClient::Opened(session)));
        if session.is_none() {
            self.drop_connection(fence);
        }
    }

    /// Closes the connections of sessions that ended.
    fn hang_up(&mut self, applied: &Applied) {
        for session in &applied.ended {
            let of_session: Vec<(Fence, ClientId)> = self
                .connections
                .iter()
                .filter(|(_, connection)| connection.session == Some(*session))
                .map(|(fence, connection)| (*fence, connection.client))
                .collect();
            for (fence, client) in of_session {
                self.drop_connection(fence);
                self.out.push(Output::Client(client, fence, ToClient::Closed));
            }
        }
    }

    /// A snapshot replaced the state: whoever waits for what it covers has missed the outcome. Watches are blind to
    /// what it jumped over. All connections are closed.
    pub fn restored(&mut self) {
        for (fence, connection) in std::mem::take(&mut self.connections) {
            self.out.push(Output::Client(connection.client, fence, ToClient::Closed));
        }
        (self.names, self.watches) = (BTreeMap::new(), Watches::default());
        self.reads.clear();
    }

    /// The engine says that a read may be served.
    pub fn read_ready(&mut self, read: ReadId, replica: &Replica) {
        let Some(fence) = self.reads.remove(&read.0) else { return };
        let Some(connection) = self.connections.get_mut(&fence) else { return };
        let Some(first) = connection.queue.front_mut().filter(|first| first.read == Some(read.0)) else {
            return;
        };
        let (answer, zxid) = (read_now(&replica.tree, &first.request), replica.tree.zxid());
        self.out.push(Output::ReadServed(read.0));
        if let Request::Get { path, watch: true, .. } = &first.request {
            self.watches.add(ConnectionId::new(fence.0), WatchKind::Data, path).expect("room");
            self.out.push(Output::Watching(fence, path.clone(), zxid));
        }
        self.reply(fence, answer, zxid);
        self.pump(fence, replica);
    }

    /// The engine could not say; the next tick asks again.
    pub fn read_refused(&mut self, read: ReadId) {
        let Some(fence) = self.reads.remove(&read.0) else { return };
        let Some(connection) = self.connections.get_mut(&fence) else { return };
        for pending in connection.queue.iter_mut().filter(|pending| pending.read == Some(read.0)) {
            pending.read = None;
        }
    }

    /// Leadership has changed.
    pub fn leader(&mut self, view: LeaderView, replica: &Replica, now: Moment) {
        let was = self.leading.as_ref().map(|(ballot, _)| *ballot);
        if !view.leading {
            self.leading = None;
        } else if was != Some(view.ballot) {
            let mut expiry = SessionExpiry::default();
            for (session, timeout_ms) in replica.tree.sessions() {
                expiry.track(session, Duration::from_millis(timeout_ms.into()), monotonic(now));
            }
            self.leading = Some((view.ballot, expiry));
        }
        self.leader_known = !view.leader.is_none();
        if self.leader_known {
            self.propose_again(now);
        }
    }

    fn propose_again(&mut self, now: Moment) {
        self.proposed_at = now;
        for connection in self.connections.values() {
            if !connection.unapplied.is_empty() {
                self.out.push(Output::Propose(connection.unapplied.values().cloned().collect()));
            }
        }
    }

    /// This leader is told of sessions heard of somewhere.
    pub fn touched(&mut self, mut payload: &[u8], now: Moment) {
        let Some((_, expiry)) = &mut self.leading else { return };
        while payload.len() >= 8 {
            expiry.touch(SessionId::new(payload.get_i64()), monotonic(now));
        }
    }

    /// The leader has this server's touches up to a batch.
    pub fn touches_registered(&mut self, batch: u64, replica: &Replica) {
        let Some((under_way, _)) = &self.under_way else { return };
        if *under_way > batch {
            return;
        }
        let (_, heard) = self.under_way.take().expect("it was just looked at");
        for (fence, session, sent) in heard {
            let Some(connection) = self.connections.get(&fence) else { continue };
            let Some(timeout_ms) = replica.tree.session_timeout_ms(session) else { continue };
            self.out.push(Output::Safe(session, sent, timeout_ms));
            self.out.push(Output::Client(connection.client, fence, ToClient::Pong));
        }
    }

    /// Some time has passed.
    pub fn tick(&mut self, now: Moment, status: &Status, replica: &Replica) {
        if self.under_way.is_none() && !self.heard.is_empty() {
            self.batches += 1;
            let heard = std::mem::take(&mut self.heard);
            let mut payload = Vec::new();
            heard.iter().for_each(|(_, session, _)| payload.put_i64(session.raw()));
            self.under_way = Some((self.batches, heard));
            self.out.push(Output::Engine(Event::Touches { batch: self.batches, payload: payload.into() }));
        }
        if self.leader_known && now.since(self.proposed_at) >= PROPOSE_AGAIN {
            self.propose_again(now);
        }
        if let Some((epoch, expiry)) = &mut self.leading
            && status.lease_until.is_some_and(|until| until > now)
        {
            let decisions: Vec<Bytes> = expiry
                .expired(monotonic(now))
                .into_iter()
                .map(|session| Command::Expire { session, epoch: epoch.raw() }.encode())
                .collect();
            if !decisions.is_empty() {
                self.out.push(Output::Propose(decisions));
            }
        }
        let fences: Vec<Fence> = self.connections.keys().copied().collect();
        for fence in fences {
            self.pump(fence, replica);
        }
    }
}

fn needs_barrier(request: &Request) -> bool {
    matches!(request, Request::Get { fresh: true, .. } | Request::Children { fresh: true, .. })
}

fn read_now(tree: &Tree, request: &Request) -> Answer {
    match request {
        Request::Get { path, .. } => Answer::Data(tree.get_data(path, &[])),
        Request::Children { path, .. } => Answer::Children(tree.children(path, &[])),
        Request::Write(_) | Request::Close => unreachable!("writes are answered when they are applied"),
    }
}

fn monotonic(now: Moment) -> Duration {
    Duration::from_micros(now.as_micros())
}
