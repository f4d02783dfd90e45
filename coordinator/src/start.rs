//! Starting and stopping a coordination server: the listeners, its cell, the ledger's memory, the driver, in this
//! order. Called by the binary and by tests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use loggos_protocol::ids::Zxid;
use loggos_storage::disk::{Disk, FsDisk};
use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::config::CoordinatorOptions;
use crate::driver::{
    self, CellRequest, CellStatus, Ears, HEARD_MAX, INPUTS_MAX, Input, QUESTIONS_MAX, Start, config_text,
};
use crate::error::{CoordinatorError, DriverError, LedgerError};
use crate::forming::{self, Listening};
use crate::ledger::{Identity, IdentityFile, Ledger, Memory, refuse_old_layout};
use crate::metrics;
use crate::paxos::ballot::{ServerId, Slot};
use crate::paxos::codec::decode_history;
use crate::paxos::engine::Engine;
use crate::paxos::event::{self, Options, Recovered};
use crate::paxos::membership::{Change, Config, ConfigHistory};
use crate::paxos::mutation::Mutations;
use crate::peer::door::{Asked, Behind, Door, accept};
use crate::peer::handshake::{Answer, Card, Question};
use crate::peer::{Links, ask};
use crate::server::connection::Limits;
use crate::server::four_letter::{self, Word};
use crate::server::listener::{self, Most};
use crate::tree::Tree;

/// An operator's wish is passed on to the leader so many times before it is given up.
const FORWARDS_MAX: usize = 4;

/// A coordination server.
#[derive(Debug)]
pub struct Coordinator;

/// A running coordination server. Dropped without [`CoordinatorHandle::shutdown`] it stops as well, and nobody waits
/// for it.
#[derive(Debug)]
pub struct CoordinatorHandle {
    client_addr: SocketAddr,
    peer_addr: SocketAddr,
    operator: Operator,
    stop: Option<oneshot::Sender<()>>,
    driver: JoinHandle<Result<(), DriverError>>,
    accepting: JoinHandle<()>,
    stop_accepting: Option<oneshot::Sender<()>>,
    peers: Doors,
}

/// The tasks that accept peers; they end with the server.
#[derive(Debug)]
struct Doors {
    door: Door,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Doors {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What operators ask of a running server; may be cloned.
#[derive(Clone, Debug)]
pub struct Operator {
    inputs: mpsc::Sender<Input>,
    identity: event::Identity,
}

impl Coordinator {
    /// Starts a server and returns when clients can connect. With `servers` or `join` and an empty directory, that
    /// is when the cell is formed or has let this server in.
    ///
    /// # Errors
    /// One sentence that names the option: an address in use, a directory that can't be read.
    pub async fn start(mut options: CoordinatorOptions) -> Result<CoordinatorHandle, CoordinatorError> {
        options.check()?;
        options.widen();
        let clients = listener::bind("--coordinator-listen", options.client_listen)?;
        let peers = listener::bind("--peer-listen", options.peer_listen)?;
        options.client_listen = bound("--coordinator-listen", &clients, options.client_listen)?;
        options.peer_listen = bound("--peer-listen", &peers, options.peer_listen)?;
        let bulk = bind_bulk(&options)?;
        let listening = Listening {
            peer: options.peer_listen,
            bulk: bound("--bulk-listen", &bulk, options.peer_listen)?,
            client: options.client_listen,
        };
        metrics::describe();
        let file = open_identity(&options.data_dir).await?;
        let card = listening.card(&options, file.get());
        let door: Door = Arc::new(RwLock::new(Behind::Card(Box::new(card.clone()))));
        let tasks = [peers, bulk].map(|listener| tokio::spawn(accept(listener, Arc::clone(&door))));
        let doors = Doors { door, tasks };
        let file = forming::settle(&options, listening, &card, file).await?;
        let identity = file.get().clone();
        let memory = remember(&options, &identity, listening).await?;
        Ok(Self::serve(options, &identity, card, memory, clients, doors))
    }

    fn serve(
        options: CoordinatorOptions,
        identity: &Identity,
        card: Card,
        remembered: Remembered,
        clients: TcpListener,
        peers: Doors,
    ) -> CoordinatorHandle {
        let Remembered { ledger, engine, tree, applied, config } = remembered;
        let (client_addr, peer_addr) = (options.client_listen, options.peer_listen);
        let own = identity.of_engine();
        tracing::info!(
            clients = %client_addr,
            cell = %own.cell,
            server = %own.server,
            zxid = tree.zxid().raw(),
            "the coordinator serves"
        );
        let limits = Limits { frame: options.frame_limit };
        let most = Most { all: options.connections_max, of_one: options.connections_per_address };
        let (inputs, received) = mpsc::channel(INPUTS_MAX);
        let (frames, heard) = mpsc::channel(HEARD_MAX);
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let (stop, stopped) = oneshot::channel();
        *peers.door.write() =
            Behind::Member { identity: own, bulk_port: card.bulk_port, frames: frames.clone(), questions };
        let card = Card { cell: own.cell, server: own.server, founding: identity.founding.clone(), ..card };
        let links = Links::new(own, frames);
        let start = Start { options, identity: own, card, engine, tree, applied, config, ledger, links };
        let ears = Ears { inputs: received, heard, questions: asked, stop: stopped };
        let driver = tokio::spawn(driver::run(start, ears));
        let (stop_accepting, accept_until) = oneshot::channel();
        let accepting = listener::accept(clients, inputs.clone(), limits, most, accept_until);
        CoordinatorHandle {
            client_addr,
            peer_addr,
            operator: Operator { inputs, identity: own },
            stop: Some(stop),
            driver,
            accepting: tokio::spawn(accepting),
            stop_accepting: Some(stop_accepting),
            peers,
        }
    }
}

impl CoordinatorHandle {
    /// Where ZooKeeper's clients connect.
    pub const fn client_addr(&self) -> SocketAddr {
        self.client_addr
    }

    /// Where the other servers connect.
    pub const fn peer_addr(&self) -> SocketAddr {
        self.peer_addr
    }

    /// What operators ask of it.
    pub fn operator(&self) -> Operator {
        self.operator.clone()
    }

    /// Returns when the server has ended by itself, and why: its disk failed, or the servers disagree.
    pub async fn failed(&mut self) -> DriverError {
        match (&mut self.driver).await {
            Ok(Err(error)) => error,
            _ => std::future::pending().await,
        }
    }

    /// Stops: what is under way is answered, another server leads if this one did. Sessions live on.
    pub async fn shutdown(mut self) {
        // A driver that has failed needs no word; its error is in the log.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Ok(Err(error)) = (&mut self.driver).await {
            tracing::error!(%error, "the coordinator stopped on an error");
        }
        drop(self.stop_accepting.take());
        drop(self.peers);
        // It ends by itself: its own wait has a deadline.
        let _ = (&mut self.accepting).await;
    }
}

impl Operator {
    /// How the server and its cell are; `None` when it has stopped.
    pub async fn status(&self) -> Option<CellStatus> {
        let (answer, answered) = oneshot::channel();
        self.inputs.send(Input::Cell(CellRequest::Status(answer))).await.ok()?;
        answered.await.ok()
    }

    /// What the four-letter word `mntr` says.
    pub async fn monitor(&self) -> Option<String> {
        let (answer, answered) = oneshot::channel();
        self.inputs.send(Input::Ask { word: Word::Mntr, answer }).await.ok()?;
        answered.await.ok().map(|report| four_letter::answer(Word::Mntr, &report))
    }

    /// Makes these the voters.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub async fn set_voters(&self, ids: impl IntoIterator<Item = u16>) -> Result<(), String> {
        let ids = ids.into_iter().map(ServerId::new).collect();
        self.through_leader(Question::Change(Change::Voters(ids))).await
    }

    /// Takes these out of the cell.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub async fn remove(&self, ids: impl IntoIterator<Item = u16>) -> Result<(), String> {
        let ids = ids.into_iter().map(ServerId::new).collect();
        self.through_leader(Question::Change(Change::Remove(ids))).await
    }

    /// Has the leader give the lead to this server, or to the best one.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub async fn transfer(&self, to: Option<u16>) -> Result<(), String> {
        self.through_leader(Question::Transfer(to.map(ServerId::new))).await
    }

    /// Asks this server, and then the one that it names, until the leader has answered.
    async fn through_leader(&self, question: Question) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { question: question.clone(), answer };
        let stopped = || "the server stops".to_owned();
        self.inputs.send(Input::Cell(CellRequest::Ask(asked))).await.map_err(|_| stopped())?;
        let mut heard = answered.await.map_err(|_| stopped())?;
        for _ in 0..FORWARDS_MAX {
            match heard {
                Answer::Done | Answer::Card(_) => return Ok(()),
                Answer::Refused(why) => return Err(why),
                Answer::Elsewhere(leader) if leader.is_empty() => {
                    return Err("no leader is known; try again".to_owned());
                }
                Answer::Elsewhere(leader) => {
                    let asking = ask(&leader, Some(self.identity), &question).await;
                    heard =
                        asking.map_err(|error| format!("the leader at {leader} can't be asked: {error}"))?.0;
                }
            }
        }
        Err("the leader changes too often; try again".to_owned())
    }
}

fn bound(
    option: &'static str,
    listener: &TcpListener,
    address: SocketAddr,
) -> Result<SocketAddr, CoordinatorError> {
    listener.local_addr().map_err(|source| CoordinatorError::Listen { option, address, source })
}

/// From the peer port to the bulk port when nothing is told: 2888 and 3888 are the pair that ZooKeeper's users know.
const BULK_PORT_FROM_PEER_PORT: u16 = 1000;

/// The bulk channel's listener: where it was told, or a thousand above the peer port; any free port if that one is
/// taken, as the others learn it from the handshake.
fn bind_bulk(options: &CoordinatorOptions) -> Result<TcpListener, CoordinatorError> {
    if let Some(address) = options.bulk_listen {
        return listener::bind("--bulk-listen", address);
    }
    let above = options.peer_listen.port().checked_add(BULK_PORT_FROM_PEER_PORT).unwrap_or(0);
    let at = |port| SocketAddr::new(options.peer_listen.ip(), port);
    listener::bind("--bulk-listen", at(above)).or_else(|_| listener::bind("--bulk-listen", at(0)))
}

/// Runs `work` on a thread that may wait for the disk.
async fn on_disk<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, CoordinatorError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(LedgerError::Damaged { path: path.to_owned(), why: error.to_string() }.into()),
    }
}

async fn open_identity(dir: &Path) -> Result<IdentityFile, CoordinatorError> {
    let path: PathBuf = dir.to_owned();
    on_disk(dir, move || {
        let disk: Arc<dyn Disk> = Arc::new(FsDisk);
        refuse_old_layout(&disk, &path)?;
        disk.create_dir_all(&path).map_err(|e| LedgerError::io("make", &path, &e))?;
        IdentityFile::open(&disk, &path, rand::random_range(1..=u64::MAX))
    })
    .await
}

/// What the data directory holds, ready to go on.
struct Remembered {
    ledger: Arc<Ledger>,
    engine: Engine,
    tree: Tree,
    applied: Slot,
    config: Arc<Config>,
}

async fn remember(
    options: &CoordinatorOptions,
    identity: &Identity,
    listening: Listening,
) -> Result<Remembered, CoordinatorError> {
    let (dir, settings, identity) = (options.data_dir.clone(), options.engine(), identity.clone());
    on_disk(&options.data_dir, move || {
        let (ledger, memory) = Ledger::open(Arc::new(FsDisk), &dir, settings.keep_slots, false)?;
        wake(&dir, &settings, &identity, listening, ledger, memory)
    })
    .await
}

fn wake(
    dir: &Path,
    settings: &Options,
    identity: &Identity,
    listening: Listening,
    ledger: Ledger,
    memory: Memory,
) -> Result<Remembered, LedgerError> {
    let damaged = |why: &str| LedgerError::Damaged { path: dir.to_owned(), why: why.to_owned() };
    let configs = match &memory.snapshot {
        Some(snapshot) => decode_history(snapshot.head.clone(), settings.alpha)
            .map_err(|_| damaged("the head of a snapshot is of another version"))?,
        None => ConfigHistory::founding(identity.entry.clone(), settings.alpha),
    };
    let configs = where_it_is_now(configs, identity, listening, settings.alpha);
    let (_, config) = configs.latest();
    let config = Arc::clone(config);
    if memory.uncertain_above.is_some() && config.voters().len() == 1 {
        // Nobody else has what is lost here.
        return Err(damaged("entries that were acknowledged can't be read any more"));
    }
    let (tree, applied, mark) = match memory.snapshot {
        Some(snapshot) => {
            let tree = Tree::restore(&snapshot.state).map_err(|error| damaged(&error.to_string()))?;
            (tree, snapshot.mark.slot, Some(snapshot.mark))
        }
        None => {
            let mut tree = Tree::default();
            tree.found(config_text(&identity.founding, Zxid::new(0)));
            (tree, Slot::ZERO, None)
        }
    };
    let recovered = Recovered {
        promised: memory.promised,
        records: memory.records,
        chosen_upto: memory.chosen_upto,
        snapshot: mark,
        configs,
        uncertain_above: memory.uncertain_above,
    };
    let engine =
        Engine::new(identity.of_engine(), recovered, settings.clone(), Mutations::NONE, rand::random());
    Ok(Remembered { ledger: Arc::new(ledger), engine, tree, applied, config })
}

/// A server of its own may have moved to other ports since it was made: nobody else has to be told.
fn where_it_is_now(
    configs: ConfigHistory,
    identity: &Identity,
    listening: Listening,
    alpha: u64,
) -> ConfigHistory {
    let (slot, config) = configs.latest();
    match config.members.as_slice() {
        [only] if only.id == identity.server => {
            let now = listening.alone(only.token);
            let member = crate::paxos::membership::Member { id: only.id, role: only.role, ..now };
            let config = Config { members: vec![member], next_id: config.next_id };
            ConfigHistory::from_entries(vec![(slot, Arc::new(config))], alpha).unwrap_or(configs)
        }
        _ => configs,
    }
}
