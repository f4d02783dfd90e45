//! Clients: they open sessions, write, read, lock, go silent, hang up and come back elsewhere, and write down what
//! they asked for and what they were told.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use loggos_coordinator::paxos::ballot::ServerId;
use loggos_coordinator::tree::{CreateKind, Outcome, Write};
use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::Acl;
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::clocks::True;
use crate::coverage::{Coverage, Seen};
use crate::host::{Answer, OperationId, Request, ToClient, ToServer};
use crate::replica::{ClientId, Fence};

/// Registers: written, compared-and-set and read fresh; judged as such by `linearizability`.
pub const REGISTERS: [&str; 3] = ["/r0", "/r1", "/r2"];
/// Nodes that the workload lives in.
const BASE: [&str; 7] = ["/r0", "/r1", "/r2", "/d", "/e", "/lock", "/q"];
/// Requests under way on one connection.
const PIPELINE: usize = 4;
/// Patience with a connection and with an answer, in microseconds.
const OPEN_PATIENCE: u64 = 1_500_000;
const ANSWER_PATIENCE: u64 = 2_500_000;

/// What was asked, and what came of it.
#[derive(Clone, Debug)]
pub struct Operation {
    /// On which connection.
    pub fence: Fence,
    /// Its place among the connection's writes.
    pub number: Option<u64>,
    /// What.
    pub request: Request,
    /// When.
    pub invoked: True,
    /// When it was answered, how, and as of which zxid. `None`: nobody knows what became of it.
    pub completed: Option<(True, Answer, Zxid)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Away { until: True },
    Opening { since: True },
    Open,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    phase: Phase,
    fence: Fence,
    server: ServerId,
    session: Option<SessionId>,
    timeout_ms: u32,
    writes: u64,
    outstanding: VecDeque<OperationId>,
    pinged: True,
    seen: Zxid,
    versions: BTreeMap<String, i32>,
    lock: Option<String>,
    prepared: usize,
}

/// All clients and their history.
pub struct Workload {
    clients: Vec<Client>,
    /// Everything asked so far.
    pub history: Vec<Operation>,
    fences: u64,
    values: u64,
    /// No new requests: what is under way is waited for.
    pub quiet: bool,
    /// Whether clients misbehave: silence, hanging up.
    pub moody: bool,
}

/// Something for a server.
pub type Mail = (ServerId, ToServer);

impl Workload {
    /// That many clients, none connected.
    pub fn new(count: u32, rng: &mut SmallRng) -> Self {
        let clients = (0..count)
            .map(|n| Client {
                id: ClientId(n),
                phase: Phase::Away { until: 0 },
                fence: Fence(0),
                server: ServerId::NONE,
                session: None,
                timeout_ms: rng.random_range(1_000..5_000),
                writes: 0,
                outstanding: VecDeque::new(),
                pinged: 0,
                seen: Zxid::new(0),
                versions: BTreeMap::new(),
                lock: None,
                prepared: if n == 0 { 0 } else { BASE.len() },
            })
            .collect();
        Self { clients, history: Vec::new(), fences: 0, values: 0, quiet: false, moody: true }
    }

    /// All of them.
    pub fn ids(&self) -> Vec<ClientId> {
        self.clients.iter().map(|client| client.id).collect()
    }

    /// Whether nobody waits for anything.
    pub fn is_idle(&self) -> bool {
        self.clients
            .iter()
            .all(|client| client.outstanding.is_empty() && !matches!(client.phase, Phase::Opening { .. }))
    }

    /// Whether every client has a connection and a session.
    pub fn all_connected(&self) -> bool {
        self.clients.iter().all(|client| client.phase == Phase::Open)
    }

    /// What a client does now.
    pub fn act(
        &mut self,
        id: ClientId,
        now: True,
        servers: &[ServerId],
        rng: &mut SmallRng,
        coverage: &mut Coverage,
    ) -> Vec<Mail> {
        let client = &mut self.clients[id.0 as usize];
        match client.phase {
            Phase::Away { until } => {
                if now < until || servers.is_empty() {
                    return vec![];
                }
                self.fences += 1;
                let server = servers[rng.random_range(0..servers.len())];
                if client.session.is_some() && server != client.server {
                    coverage.count(Seen::SessionMoved);
                }
                (client.fence, client.server, client.writes) = (Fence(self.fences), server, 0);
                client.phase = Phase::Opening { since: now };
                let (fence, session, timeout_ms) = (client.fence, client.session, client.timeout_ms);
                vec![(server, ToServer::Open { client: id, fence, session, timeout_ms, sent: now })]
            }
            Phase::Opening { since } if now - since > OPEN_PATIENCE => vec![client.hang_up(now, coverage)],
            Phase::Opening { .. } => vec![],
            Phase::Open => self.act_open(id, now, rng, coverage),
        }
    }

    fn act_open(
        &mut self,
        id: ClientId,
        now: True,
        rng: &mut SmallRng,
        coverage: &mut Coverage,
    ) -> Vec<Mail> {
        let oldest = self.clients[id.0 as usize].outstanding.front();
        let oldest = oldest.map(|operation| self.history[operation.0].invoked);
        let client = &mut self.clients[id.0 as usize];
        if oldest.is_some_and(|invoked| now - invoked > ANSWER_PATIENCE) {
            return vec![client.hang_up(now, coverage)];
        }
        if self.moody && rng.random_bool(0.004) {
            // Sometimes for so long that the session ends.
            let away = rng.random_range(0..3 * u64::from(client.timeout_ms)) * 1000;
            return vec![client.hang_up(now + away, coverage)];
        }
        let mut mail = Vec::new();
        if now - client.pinged > u64::from(client.timeout_ms) * 1000 / 4 {
            client.pinged = now;
            mail.push((client.server, ToServer::Ping { fence: client.fence, sent: now }));
        }
        let pipelined = client.outstanding.is_empty() || rng.random_bool(0.15);
        if self.quiet || !pipelined || client.outstanding.len() >= PIPELINE {
            return mail;
        }
        self.values += 1;
        let request = client.request(self.values, rng);
        let number = matches!(request, Request::Write(_) | Request::Close).then(|| {
            client.writes += 1;
            client.writes
        });
        let operation = OperationId(self.history.len());
        client.outstanding.push_back(operation);
        mail.push((
            client.server,
            ToServer::Request { fence: client.fence, operation, request: request.clone() },
        ));
        let fence = client.fence;
        self.history.push(Operation { fence, number, request, invoked: now, completed: None });
        mail
    }

    /// A client is told something; the zxid that it shows, if it is news.
    ///
    /// # Errors
    /// Answers out of order.
    pub fn receive(
        &mut self,
        id: ClientId,
        fence: Fence,
        message: ToClient,
        now: True,
        coverage: &mut Coverage,
    ) -> Result<Option<Zxid>, String> {
        let client = &mut self.clients[id.0 as usize];
        if client.fence != fence || matches!(client.phase, Phase::Away { .. }) {
            return Ok(None);
        }
        match message {
            ToClient::Opened(Some(session)) => {
                if client.session != Some(session) {
                    coverage.count(Seen::SessionOpened);
                }
                (client.session, client.phase, client.pinged) = (Some(session), Phase::Open, now);
                Ok(None)
            }
            ToClient::Opened(None) => {
                (client.session, client.lock) = (None, None);
                client.hang_up(now, coverage);
                Ok(None)
            }
            ToClient::Reply(operation, answer, zxid) => {
                if client.outstanding.pop_front() != Some(operation) {
                    return Err(format!("{id:?} is answered {operation:?} out of order"));
                }
                client.learn(&self.history[operation.0].request, &answer, now, coverage);
                client.seen = client.seen.max(zxid);
                self.history[operation.0].completed = Some((now, answer, zxid));
                Ok(Some(zxid))
            }
            ToClient::Pong => {
                coverage.count(Seen::Touched);
                Ok(None)
            }
            ToClient::Event => {
                coverage.count(Seen::WatchFired);
                Ok(None)
            }
            ToClient::Closed => {
                client.hang_up(now + 20_000, coverage);
                Ok(None)
            }
        }
    }
}

impl Client {
    fn hang_up(&mut self, until: True, coverage: &mut Coverage) -> Mail {
        for _ in self.outstanding.drain(..) {
            coverage.count(Seen::OutcomeUnknown);
        }
        self.phase = Phase::Away { until };
        (self.server, ToServer::Gone { fence: self.fence })
    }

    fn learn(&mut self, request: &Request, answer: &Answer, now: True, coverage: &mut Coverage) {
        match (request, answer) {
            (Request::Get { path, fresh, .. }, Answer::Data(data)) => {
                coverage.count(if *fresh { Seen::SyncRead } else { Seen::ReadLocally });
                if let Ok((_, stat)) = data {
                    self.versions.insert(path.clone(), stat.version);
                }
            }
            (
                Request::Write(Write::Create { path, .. }),
                Answer::Applied(Ok(Outcome::Created { path: made, .. })),
            ) if path.starts_with("/lock/") => {
                self.lock = Some(made.clone());
                coverage.count(Seen::LockPassedOn);
            }
            (Request::Write(Write::Delete { path, .. }), _) if self.lock.as_ref() == Some(path) => {
                self.lock = None
            }
            (Request::Write(Write::Multi(_)), _) => coverage.count(Seen::MultiWritten),
            (Request::Close, Answer::Applied(Ok(_))) => {
                (self.session, self.lock) = (None, None);
                coverage.count(Seen::SessionClosed);
                self.hang_up(now, coverage);
            }
            _ => {}
        }
        if matches!(request, Request::Write(_)) {
            coverage.count(Seen::Written);
        }
    }

    fn request(&mut self, value: u64, rng: &mut SmallRng) -> Request {
        if self.prepared < BASE.len() {
            self.prepared += 1;
            return Request::Write(create(BASE[self.prepared - 1], value, CreateKind::Persistent));
        }
        let register = REGISTERS[rng.random_range(0..REGISTERS.len())].to_owned();
        let known = self.versions.get(&register).copied().unwrap_or(0);
        let place = format!("/d/n{}", rng.random_range(0..6));
        let write = match rng.random_range(0..100) {
            0..14 => set(&register, value, -1),
            14..28 => set(&register, value, known),
            28..44 => return Request::Get { path: register, fresh: true, watch: false },
            44..52 => return Request::Get { path: register, fresh: false, watch: rng.random_bool(0.5) },
            52..58 => create(&place, value, CreateKind::Persistent),
            58..63 => Write::Delete { path: place, version: -1 },
            63..66 => {
                return Request::Get {
                    path: place,
                    fresh: rng.random_bool(0.3),
                    watch: rng.random_bool(0.5),
                };
            }
            66..70 => create(&format!("/e/c{}-{}", self.id.0, value % 4), value, CreateKind::Ephemeral),
            70..75 => return Request::Children { path: "/e".into(), fresh: rng.random_bool(0.5) },
            75..82 => match &self.lock {
                Some(path) => Write::Delete { path: path.clone(), version: -1 },
                None => create("/lock/l-", value, CreateKind::EphemeralSequential),
            },
            82..85 => create("/q/q-", value, CreateKind::PersistentSequential),
            85..87 => return Request::Children { path: "/lock".into(), fresh: true },
            87..92 => Write::Multi(vec![
                Write::Check { path: register.clone(), version: known },
                set(&register, value, -1),
                create(&place, value, CreateKind::Persistent),
            ]),
            92..95 => Write::Multi(vec![
                Write::Delete { path: place.clone(), version: -1 },
                create(&place, value, CreateKind::Ephemeral),
            ]),
            95..98 => create(BASE[rng.random_range(0..BASE.len())], value, CreateKind::Persistent),
            98 => Write::Delete { path: "/q".into(), version: -1 },
            _ => return Request::Close,
        };
        Request::Write(write)
    }
}

fn bytes_of(value: u64) -> Option<Bytes> {
    Some(Bytes::from(format!("v{value}")))
}

fn create(path: &str, value: u64, kind: CreateKind) -> Write {
    Write::Create { path: path.to_owned(), data: bytes_of(value), acl: Acl::open(), kind }
}

fn set(path: &str, value: u64, version: i32) -> Write {
    Write::SetData { path: path.to_owned(), data: bytes_of(value), version }
}
