//! The one task that owns the tree and the Paxos engine: it feeds events to the engine, does what the engine wants
//! done, applies what is chosen, tells watchers, and answers; everything that clients observe about order is decided
//! here.
//!
//! | file | what it knows |
//! |---|---|
//! | `driver` | the loop: what happens becomes events, at the end of a turn what was queued goes out |
//! | `driver/agreement` | the engine's actions: durability, messages, application, snapshots |
//! | `driver/clients` | who is connected, each client's requests in their order |
//! | `driver/opening` | the handshake: sessions begin, come back, and move between servers |
//! | `driver/sessions` | who was heard of, pings, expiry |
//! | `driver/cell` | the membership: status, questions of other servers, changes |
//! | `driver/report` | the numbers of four-letter words |
//!
//! Nothing is applied before a majority has it on disk, and reads see applied state alone, so that what a client
//! has been told survives any crash. Fed by `server/connection` and `peer` through bounded channels.

mod agreement;
mod cell;
mod clients;
mod opening;
mod report;
mod sessions;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use loggos_protocol::ids::{SessionId, Timestamp};
use loggos_protocol::zookeeper::{ConnectRequest, ErrorCode, JuteError, Request, RequestHeader};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::config::CoordinatorOptions;
use crate::error::{DriverError, LedgerError};
use crate::ledger::{Ledger, Told};
use crate::metrics;
use crate::paxos::ballot::Slot;
use crate::paxos::engine::Engine;
use crate::paxos::event::{Action, Actions, Event, Identity, LeaderView, Ticket};
use crate::paxos::membership::Config;
use crate::paxos::moment::{Moment, Now};
use crate::peer::door::Asked;
use crate::peer::handshake::Card;
use crate::peer::{Heard, Links};
use crate::server::four_letter::{Report, Word};
use crate::server::outbox::Outbox;
use crate::session_expiry::TICK;
use crate::tree::{Command, Fence, Tree};
use crate::watches::{ConnectionId, Watches};
use agreement::{Notice, Storing};
pub(crate) use cell::{CellRequest, config_text};
pub use cell::{CellStatus, MemberStatus};
use clients::Client;
use report::Statistics;
use sessions::Sessions;

/// Inputs that wait for the driver; connections wait when it is full.
pub(crate) const INPUTS_MAX: usize = 4096;
/// Frames of peers that wait for the driver; their connections wait when it is full.
pub(crate) const HEARD_MAX: usize = 1024;
/// Questions of peers and operators that wait for the driver.
pub(crate) const QUESTIONS_MAX: usize = 64;
/// Inputs that are taken at once, before replies go out.
const TURN_INPUTS: usize = 512;
/// Frames of peers that are taken at once.
const TURN_HEARD: usize = 256;
/// Notices of snapshots: a few are under way at most.
const NOTICES_MAX: usize = 64;
/// Clients' commands that aren't applied; beyond it nothing is taken from the sockets.
const UNAPPLIED_MAX: usize = 32 << 10;
/// Unused containers and nodes with a time to live that one look removes at most.
const SWEEP_NODES: usize = 10_000;
/// How often the gauges are set.
const GAUGES: Duration = Duration::from_secs(1);
/// At the end, what is under way may take this long to be answered, and another server to take over.
const STOP_DEADLINE: Duration = Duration::from_secs(2);
/// Without a leader for this long, clients are sent away to find one elsewhere (design 2.6).
const LEADERLESS: Duration = Duration::from_secs(3);

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub header: RequestHeader,
    pub request: Result<Request, JuteError>,
    pub at: Instant,
}

/// What comes from the sockets.
#[derive(Debug)]
pub(crate) enum Input {
    /// A client's first frame.
    Connect { connection: ConnectionId, peer: SocketAddr, connect: ConnectRequest, outbox: Arc<Outbox> },
    /// A further one.
    Request { connection: ConnectionId, arrival: Arrival },
    /// The connection has gone.
    Closed { connection: ConnectionId },
    /// A four-letter word.
    Ask { word: Word, answer: oneshot::Sender<Report> },
    /// An operator's wish.
    Cell(CellRequest),
}

/// The owner of the tree.
pub(crate) struct Driver {
    options: CoordinatorOptions,
    identity: Identity,
    card: Card,
    engine: Engine,
    actions: Actions,
    ledger: Arc<Ledger>,
    told: Told,
    links: Links,
    tree: Tree,
    applied: Slot,
    view: LeaderView,
    /// Since when no leader is known.
    leaderless: Option<Instant>,
    /// The latest membership.
    config: Arc<Config>,
    changes: BTreeMap<u64, cell::Asker>,
    reads: BTreeMap<u64, opening::Barrier>,
    /// Barriers that could not be asked for: again at the next tick.
    refused: Vec<u64>,
    next_id: u64,
    storing: Storing,
    notices: mpsc::Sender<Notice>,
    watches: Watches,
    sessions: Sessions,
    clients: BTreeMap<ConnectionId, Client>,
    /// Where a session is connected.
    connected: BTreeMap<SessionId, ConnectionId>,
    /// Connections whose session is being made or taken over.
    opening: BTreeMap<Fence, ConnectionId>,
    /// Connections that have seen more than is applied here, and until when they wait.
    behind: Vec<(ConnectionId, Instant)>,
    /// Entries to be proposed at the end of this turn.
    proposals: Vec<Bytes>,
    /// Clients' commands that aren't applied.
    unapplied: usize,
    /// Clients whose outbox has something new in this turn.
    dirty: BTreeSet<ConnectionId>,
    swept: Instant,
    gauged: Instant,
    statistics: Statistics,
    failure: Option<DriverError>,
}

/// What a driver starts with.
pub(crate) struct Start {
    pub options: CoordinatorOptions,
    pub identity: Identity,
    pub card: Card,
    pub engine: Engine,
    pub tree: Tree,
    pub applied: Slot,
    pub config: Arc<Config>,
    pub ledger: Arc<Ledger>,
    pub links: Links,
}

/// What a driver listens to.
pub(crate) struct Ears {
    pub inputs: mpsc::Receiver<Input>,
    pub heard: mpsc::Receiver<Heard>,
    pub questions: mpsc::Receiver<Asked>,
    pub stop: oneshot::Receiver<()>,
}

/// Runs until `stop` is told, or the ledger fails.
pub(crate) async fn run(start: Start, mut ears: Ears) -> Result<(), DriverError> {
    let (notices, mut noticed) = mpsc::channel(NOTICES_MAX);
    let (durable, mut persisted) = watch::channel((Ticket(0), None::<LedgerError>));
    // Runs on the journal's thread: the newest ticket stands for all before it.
    let told: Told = Arc::new(move |result| {
        durable.send_modify(|(newest, failure)| match result {
            Ok(ticket) => *newest = (*newest).max(ticket),
            Err(error) => *failure = Some(error),
        });
    });
    let mut driver = Driver::new(start, notices, told);
    driver.event(Event::Start);
    driver.turn();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turn = Vec::with_capacity(TURN_INPUTS);
    let mut frames = Vec::with_capacity(TURN_HEARD);
    let mut stopping: Option<Instant> = None;
    loop {
        let deadline = driver.until_deadline();
        tokio::select! {
            biased;
            _ = &mut ears.stop, if stopping.is_none() => {
                stopping = Some(Instant::now());
                driver.event(Event::Transfer(None));
            }
            _ = persisted.changed() => driver.durable(&persisted.borrow_and_update().clone()),
            Some(notice) = noticed.recv() => driver.notice(notice),
            _ = ears.heard.recv_many(&mut frames, TURN_HEARD) => frames.drain(..).for_each(|heard| driver.hear(heard)),
            _ = tokio::time::sleep(deadline) => driver.event(Event::Tick),
            _ = ticks.tick() => driver.tick(),
            Some(asked) = ears.questions.recv() => driver.asked(asked),
            count = ears.inputs.recv_many(&mut turn, TURN_INPUTS), if driver.has_room() => match count {
                0 => break,
                _ if stopping.is_some() => turn.clear(),
                _ => turn.drain(..).for_each(|input| driver.input(input)),
            },
        }
        driver.turn();
        if driver.failure.is_some() || stopping.is_some_and(|since| driver.may_end(since)) {
            break;
        }
    }
    driver.finish().await
}

impl Driver {
    fn new(start: Start, notices: mpsc::Sender<Notice>, told: Told) -> Self {
        let Start { options, identity, card, engine, tree, applied, config, ledger, links } = start;
        Self {
            sessions: Sessions::default(),
            options,
            identity,
            card,
            engine,
            actions: Actions::new(),
            ledger,
            told,
            links,
            tree,
            applied,
            view: LeaderView::default(),
            leaderless: Some(Instant::now()),
            config,
            changes: BTreeMap::new(),
            reads: BTreeMap::new(),
            refused: Vec::new(),
            next_id: 0,
            storing: Storing::default(),
            notices,
            watches: Watches::default(),
            clients: BTreeMap::new(),
            connected: BTreeMap::new(),
            opening: BTreeMap::new(),
            behind: Vec::new(),
            proposals: Vec::new(),
            unapplied: 0,
            dirty: BTreeSet::new(),
            swept: Instant::now(),
            gauged: Instant::now(),
            statistics: Statistics::new(Instant::now()),
            failure: None,
        }
    }

    /// Monotonic time since the start.
    fn now(&self) -> Duration {
        self.statistics.started.elapsed()
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Feeds the engine, and does what it wants done.
    fn event(&mut self, event: Event) {
        self.engine.step(clocks(), event, &mut self.actions);
        let actions: Vec<Action> = self.actions.take();
        for action in actions {
            self.perform(action);
        }
    }

    fn until_deadline(&self) -> Duration {
        let engine = self.engine.next_deadline().since(clocks().at);
        engine.min(self.touches_due()).min(Duration::from_secs(1))
    }

    fn durable(&mut self, (ticket, failure): &(Ticket, Option<LedgerError>)) {
        if let Some(error) = failure {
            self.fail(error.clone().into());
            return;
        }
        self.event(Event::Persisted(*ticket));
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Frame(envelope) => self.event(Event::Received(envelope)),
            Heard::Unreachable(peer) => self.event(Event::Unreachable(peer)),
        }
    }

    /// Whether more requests may come.
    fn has_room(&self) -> bool {
        self.unapplied < UNAPPLIED_MAX
    }

    fn fail(&mut self, error: DriverError) {
        self.failure.get_or_insert(error);
    }

    fn tick(&mut self) {
        self.look_for_leader();
        self.tick_openings();
        self.tick_sessions();
        self.propose_again_what_is_late();
        self.sweep();
        if self.gauged.elapsed() >= GAUGES {
            self.gauged = Instant::now();
            self.tell_gauges();
        }
    }

    /// Removes what has lingered long enough, and now and then what nobody uses: the leader's decisions.
    fn sweep(&mut self) {
        if !self.may_decide() {
            return;
        }
        let time_ms = clocks().wall.raw();
        let mut paths = self.tree.lingered(time_ms, SWEEP_NODES);
        if self.swept.elapsed() >= self.options.unused_check {
            self.swept = Instant::now();
            paths.extend(self.tree.removable(time_ms, SWEEP_NODES));
        }
        for path in paths {
            self.propose(Command::Remove { path }.encode());
        }
    }

    /// The end of a turn: what was queued is proposed, what was answered is sent.
    fn turn(&mut self) {
        self.tell_touches();
        if !self.proposals.is_empty() {
            let entries = std::mem::take(&mut self.proposals);
            self.event(Event::Propose(entries));
        }
        for connection in std::mem::take(&mut self.dirty) {
            if let Some(client) = self.clients.get(&connection) {
                client.outbox.flush();
            }
        }
    }

    /// Has an entry proposed at the end of the turn.
    fn propose(&mut self, entry: Bytes) {
        self.proposals.push(entry);
    }

    /// Sends clients away when there has been no leader for too long.
    fn look_for_leader(&mut self) {
        let lost = self.leaderless.is_some_and(|since| since.elapsed() > LEADERLESS);
        if !lost || self.clients.is_empty() {
            return;
        }
        let all: Vec<ConnectionId> =
            self.clients.iter().filter(|(_, client)| !client.is_read_only()).map(|(id, _)| *id).collect();
        if !all.is_empty() {
            tracing::warn!(
                clients = all.len(),
                "no leader for 3 s: clients are sent away to find one elsewhere"
            );
        }
        for connection in all {
            self.cut_off(connection);
        }
    }

    /// Whether this server leads under a valid lease, so that its own decisions count.
    fn may_decide(&self) -> bool {
        self.view.leading && self.engine.status().lease_until.is_some_and(|until| until > clocks().at)
    }

    fn tell_gauges(&self) {
        metrics::gauges(metrics::Gauges {
            connections: self.clients.len(),
            sessions: self.tree.session_count(),
            nodes: self.tree.node_count(),
            watches: self.watches.count(),
            leading: self.view.leading,
            applied: self.applied.raw(),
            zxid: self.tree.zxid().raw(),
        });
    }

    /// A stopping server may end when somebody else leads and all is answered, or when it took too long.
    fn may_end(&self, since: Instant) -> bool {
        let alone = self.config.voters().len() <= 1;
        let idle = self.unapplied == 0 && (alone || !self.view.leading);
        idle || since.elapsed() > STOP_DEADLINE
    }

    /// Says goodbye to all clients, and closes the ledger.
    async fn finish(self) -> Result<(), DriverError> {
        for client in self.clients.values() {
            client.outbox.close();
        }
        if let Some(error) = &self.failure {
            tracing::error!(%error, "nothing more is served");
        }
        let ledger = self.ledger;
        // A thread that fails to close has nothing to say: what it wrote was acknowledged before.
        let _ = tokio::task::spawn_blocking(move || ledger.close()).await;
        self.failure.map_or(Ok(()), Err)
    }
}

/// What the clocks show.
fn clocks() -> Now {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(boot.tv_sec).unwrap_or_default();
    let micros = u64::try_from(boot.tv_nsec / 1000).unwrap_or_default();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        at: Moment::from_micros(seconds * 1_000_000 + micros),
        wall: Timestamp::new(i64::try_from(wall.as_millis()).unwrap_or(i64::MAX)),
    }
}

const fn millis(timeout_ms: u32) -> Duration {
    Duration::from_millis(timeout_ms as u64)
}

/// An answer that is ready: a reply, or an error.
type Outcome = Result<loggos_protocol::zookeeper::Reply, ErrorCode>;

/// Entries of one attachment that aren't applied, oldest first.
type Entries = VecDeque<Bytes>;
