//! The one task that owns the tree: it puts writes in order, has them made durable in groups, applies them, tells
//! watchers, and answers; everything that clients observe about order is decided here.
//!
//! | file | what it knows |
//! |---|---|
//! | `driver` | the loop: groups, application, events before replies, deadlines, snapshots |
//! | `driver/clients` | who is connected, the handshake, each client's requests in their order |
//! | `driver/report` | the numbers of four-letter words |
//!
//! One group is written at a time; what arrives meanwhile is the next. Nothing is applied before it is durable, and
//! reads see applied state alone, so that what a client has been told survives any crash. Fed by
//! `server/connection` through a bounded channel.

mod clients;
mod report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use loggos_protocol::ids::SessionId;
use loggos_protocol::zookeeper::reply::encode_notification;
use loggos_protocol::zookeeper::{ConnectRequest, ErrorCode, JuteError, Request, RequestHeader};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use crate::config::CoordinatorOptions;
use crate::error::LedgerError;
use crate::ledger::{Ledger, Position, Record, Snapshot};
use crate::metrics;
use crate::server::four_letter::{Report, Word};
use crate::server::outbox::Outbox;
use crate::session_expiry::{SessionExpiry, TICK};
use crate::tree::{Applied, Command, Entry, Tree};
use crate::watches::{ConnectionId, Watches};
use clients::Client;
use report::Statistics;

/// Inputs that wait for the driver; connections wait when it is full.
pub(crate) const INPUTS_MAX: usize = 4096;
/// Inputs that are taken at once, before replies go out.
const TURN_INPUTS: usize = 512;
/// Notices of the ledger: one group and one snapshot are under way at most.
const NOTICES_MAX: usize = 8;
/// Commands that wait for their group; beyond it nothing is taken from the sockets.
const QUEUE_MAX: usize = 64 << 10;
/// Entries of one group.
const GROUP_ENTRIES: usize = 512;
/// Bytes of one group; a single entry may be longer.
const GROUP_BYTES: usize = 256 << 10;
/// A snapshot is taken after so many entries,
const SNAPSHOT_ENTRIES: u64 = 100_000;
/// or so many bytes of them.
const SNAPSHOT_BYTES: u64 = 64 << 20;
/// Unused containers and nodes with a time to live that one look removes at most.
const SWEEP_NODES: usize = 10_000;
/// How often the gauges are set.
const GAUGES: Duration = Duration::from_secs(1);
/// At the end, what is under way may take this long to become durable.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

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
}

/// What comes from the ledger.
enum Notice {
    Durable(Result<loggos_storage::journal::Lsn, LedgerError>),
    SnapshotKept(Result<(), LedgerError>),
}

/// A command on its way into the log, and who waits for it.
struct Queued {
    command: Command,
    origin: Origin,
}

/// Who waits for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// A connected client, for a reply.
    Client(ConnectionId),
    /// A client that connects, for its session.
    Opening(ConnectionId),
    /// Nobody.
    Own,
}

/// A group that is being written.
struct Group {
    entries: Vec<(Entry, Origin)>,
    began: Instant,
}

/// The owner of the tree.
pub(crate) struct Driver {
    options: CoordinatorOptions,
    tree: Tree,
    ledger: Arc<dyn Ledger>,
    position: Position,
    watches: Watches,
    expiry: SessionExpiry,
    clients: BTreeMap<ConnectionId, Client>,
    /// Where a session is connected.
    connected: BTreeMap<SessionId, ConnectionId>,
    queue: VecDeque<Queued>,
    in_flight: Option<Group>,
    /// Clients whose outbox has something new in this turn.
    dirty: BTreeSet<ConnectionId>,
    /// The newest entry's time: it never goes back.
    last_time_ms: i64,
    /// Entries and bytes since the last snapshot.
    unkept: (u64, u64),
    snapshot_under_way: bool,
    notices: mpsc::Sender<Notice>,
    swept: Instant,
    gauged: Instant,
    statistics: Statistics,
}

/// What a driver starts with.
pub(crate) struct Start {
    pub options: CoordinatorOptions,
    pub tree: Tree,
    pub ledger: Arc<dyn Ledger>,
    pub position: Position,
    /// Entries and bytes behind the snapshot that was taken up.
    pub replayed: (u64, u64),
}

/// Runs until `stop` is told, or the ledger fails.
pub(crate) async fn run(
    start: Start,
    mut inputs: mpsc::Receiver<Input>,
    mut stop: oneshot::Receiver<()>,
) -> Result<(), LedgerError> {
    let (notices, mut told) = mpsc::channel(NOTICES_MAX);
    let mut driver = Driver::new(start, notices);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turn = Vec::with_capacity(TURN_INPUTS);
    let result = loop {
        let mut outcome = Ok(());
        tokio::select! {
            biased;
            _ = &mut stop => break driver.drain(&mut told).await,
            notice = told.recv() => if let Some(notice) = notice { outcome = driver.notice(notice) },
            _ = ticks.tick() => driver.tick(),
            count = inputs.recv_many(&mut turn, TURN_INPUTS), if driver.has_room() => match count {
                0 => break driver.drain(&mut told).await,
                _ => turn.drain(..).for_each(|input| driver.input(input)),
            },
        }
        driver.write_group();
        driver.flush();
        if outcome.is_err() {
            break outcome;
        }
    };
    driver.finish(result).await
}

impl Driver {
    fn new(start: Start, notices: mpsc::Sender<Notice>) -> Self {
        let Start { options, tree, ledger, position, replayed } = start;
        let last_time_ms = tree.last_time_ms();
        let mut driver = Self {
            options,
            tree,
            ledger,
            position,
            watches: Watches::default(),
            expiry: SessionExpiry::default(),
            clients: BTreeMap::new(),
            connected: BTreeMap::new(),
            queue: VecDeque::new(),
            in_flight: None,
            dirty: BTreeSet::new(),
            last_time_ms,
            unkept: replayed,
            snapshot_under_way: false,
            notices,
            swept: Instant::now(),
            gauged: Instant::now(),
            statistics: Statistics::new(Instant::now()),
        };
        // Nobody could be heard while we were away: every session gets its whole time-out again.
        let now = driver.now();
        for (session, timeout_ms) in driver.tree.sessions() {
            driver.expiry.track(session, millis(timeout_ms), now);
        }
        driver
    }

    /// Monotonic time since the start.
    fn now(&self) -> Duration {
        self.statistics.started.elapsed()
    }

    fn notice(&mut self, notice: Notice) -> Result<(), LedgerError> {
        match notice {
            Notice::Durable(Ok(place)) => {
                self.position.place = place;
                self.apply_group();
                self.snapshot_if_due();
                Ok(())
            }
            Notice::Durable(Err(error)) => Err(error),
            Notice::SnapshotKept(result) => {
                self.snapshot_under_way = false;
                match result {
                    Ok(()) => metrics::snapshot(),
                    // The journal keeps everything meanwhile; the next one is due after as many entries again.
                    Err(error) => tracing::error!(%error, "a snapshot can't be kept"),
                }
                Ok(())
            }
        }
    }

    /// Whether more requests may come.
    fn has_room(&self) -> bool {
        self.queue.len() < QUEUE_MAX
    }

    fn tick(&mut self) {
        // Who isn't listened to can't be found silent: the gap is a stall of our own.
        if !self.has_room() {
            return;
        }
        let now = self.now();
        let expired = self.expiry.expired(now);
        if !expired.is_empty() {
            metrics::expired(expired.len());
        }
        for session in expired {
            tracing::info!(
                session = format_args!("{session:#x}", session = session.raw()),
                "a session expires"
            );
            let epoch = self.tree.epoch();
            self.enqueue(Command::Expire { session, epoch }, Origin::Own);
        }
        let time_ms = self.time_ms();
        for path in self.tree.lingered(time_ms, SWEEP_NODES) {
            self.enqueue(Command::Remove { path }, Origin::Own);
        }
        if self.swept.elapsed() >= self.options.unused_check {
            self.swept = Instant::now();
            for path in self.tree.removable(time_ms, SWEEP_NODES) {
                self.enqueue(Command::Remove { path }, Origin::Own);
            }
        }
        if self.gauged.elapsed() >= GAUGES {
            self.gauged = Instant::now();
            self.tell_gauges();
        }
    }

    fn enqueue(&mut self, command: Command, origin: Origin) {
        self.queue.push_back(Queued { command, origin });
    }

    /// Wall-clock time, never before that of an earlier entry.
    fn time_ms(&mut self) -> i64 {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_time_ms = self.last_time_ms.max(i64::try_from(wall.as_millis()).unwrap_or(i64::MAX));
        self.last_time_ms
    }

    /// Has what is queued written, if nothing is being written.
    fn write_group(&mut self) {
        if self.in_flight.is_some() || self.queue.is_empty() {
            return;
        }
        let time_ms = self.time_ms();
        let (mut entries, mut records, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < GROUP_BYTES
            && entries.len() < GROUP_ENTRIES
            && let Some(Queued { command, origin }) = self.queue.pop_front()
        {
            let entry = Entry { time_ms, command };
            let encoded = entry.encode();
            self.position.sequence += 1;
            bytes += encoded.len();
            records.push(Record { sequence: self.position.sequence, bytes: encoded });
            entries.push((entry, origin));
        }
        self.unkept.0 += entries.len() as u64;
        self.unkept.1 += bytes as u64;
        self.in_flight = Some(Group { entries, began: Instant::now() });
        let notices = self.notices.clone();
        // There is room: one group is under way at a time.
        let done = move |result| drop(notices.try_send(Notice::Durable(result)));
        self.ledger.append(records, Box::new(done));
    }

    fn apply_group(&mut self) {
        let Some(group) = self.in_flight.take() else { return };
        metrics::group(group.entries.len(), group.began.elapsed());
        for (entry, origin) in group.entries {
            let applied = self.tree.apply(&entry);
            self.tell_watchers(&applied);
            self.end_sessions(&applied, origin);
            match origin {
                Origin::Client(connection) => self.answer_write(connection, applied),
                Origin::Opening(connection) => self.answer_opening(connection, &entry.command, &applied),
                Origin::Own => {}
            }
        }
    }

    /// Queues an entry's events on the watchers' outboxes: before any reply that reflects the entry.
    fn tell_watchers(&mut self, applied: &Applied) {
        for event in &applied.events {
            let told = self.watches.fire(event.event.event, &event.event.path);
            let mut count = 0;
            for connection in told {
                let Some(client) = self.clients.get(&connection) else { continue };
                // Who may not read the node hears nothing of it.
                if !event.readable_by(client.ids()) {
                    continue;
                }
                client.outbox.queue(|out| encode_notification(out, applied.zxid, &event.event));
                self.dirty.insert(connection);
                count += 1;
            }
            metrics::notifications(count);
        }
    }

    /// Cuts off the connections of sessions that an entry ended, but for the one that asked for it.
    fn end_sessions(&mut self, applied: &Applied, origin: Origin) {
        for session in &applied.ended {
            self.expiry.forget(*session);
            if let Some(connection) = self.connected.remove(session)
                && origin != Origin::Client(connection)
                && let Some(client) = self.clients.get_mut(&connection)
            {
                client.cut_off();
                self.watches.remove_connection(connection);
            }
        }
    }

    fn snapshot_if_due(&mut self) {
        let (entries, bytes) = self.unkept;
        if self.snapshot_under_way || (entries < SNAPSHOT_ENTRIES && bytes < SNAPSHOT_BYTES) {
            return;
        }
        self.unkept = (0, 0);
        self.snapshot_under_way = true;
        // The tree shares its structure with the copy: the copy is cheap, and writing it is another thread's work.
        let (tree, position) = (self.tree.clone(), self.position);
        let (ledger, notices) = (Arc::clone(&self.ledger), self.notices.clone());
        tokio::task::spawn_blocking(move || {
            let result = ledger.keep_snapshot(&snapshot_of(&tree, position));
            // Nobody is told once the driver has ended.
            drop(notices.blocking_send(Notice::SnapshotKept(result)));
        });
    }

    fn flush(&mut self) {
        for connection in std::mem::take(&mut self.dirty) {
            if let Some(client) = self.clients.get(&connection) {
                client.outbox.flush();
            }
        }
    }

    fn tell_gauges(&self) {
        metrics::gauges(metrics::Gauges {
            connections: self.clients.len(),
            sessions: self.expiry.len(),
            nodes: self.tree.node_count(),
            watches: self.watches.count(),
            zxid: self.tree.zxid().raw(),
        });
    }

    /// Takes no more requests, and waits until what was queued is durable and answered.
    async fn drain(&mut self, told: &mut mpsc::Receiver<Notice>) -> Result<(), LedgerError> {
        let all = async {
            loop {
                self.write_group();
                if self.in_flight.is_none() && !self.snapshot_under_way {
                    return Ok(());
                }
                if let Some(notice) = told.recv().await {
                    self.notice(notice)?;
                }
                self.flush();
            }
        };
        match tokio::time::timeout(STOP_DEADLINE, all).await {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!("the disk is slow: stopping without a snapshot");
                Ok(())
            }
        }
    }

    /// Says goodbye to all clients, keeps a snapshot unless the ledger has failed, and closes the ledger.
    async fn finish(mut self, result: Result<(), LedgerError>) -> Result<(), LedgerError> {
        for client in self.clients.values() {
            client.outbox.close();
        }
        if let Err(error) = &result {
            tracing::error!(%error, "the ledger failed: nothing more is served");
        }
        let keep = result.is_ok() && self.in_flight.is_none() && self.unkept.0 > 0;
        let (ledger, position) = (Arc::clone(&self.ledger), self.position);
        let tree = std::mem::take(&mut self.tree);
        let kept = tokio::task::spawn_blocking(move || {
            let kept = if keep { ledger.keep_snapshot(&snapshot_of(&tree, position)) } else { Ok(()) };
            ledger.close();
            kept
        });
        match kept.await {
            Ok(kept) => result.and(kept),
            Err(_) => result,
        }
    }
}

fn snapshot_of(tree: &Tree, position: Position) -> Snapshot {
    Snapshot {
        sequence: position.sequence,
        zxid: tree.zxid(),
        place: position.place,
        state: Bytes::from(tree.snapshot()),
    }
}

const fn millis(timeout_ms: u32) -> Duration {
    Duration::from_millis(timeout_ms as u64)
}

/// An answer that is ready: a reply, or an error.
type Outcome = Result<loggos_protocol::zookeeper::Reply, ErrorCode>;
