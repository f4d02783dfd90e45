//! Starting and stopping a coordination server: the listeners, the ledger's recovery, the driver, in this order.
//! Called by the binary and by tests.

use std::net::SocketAddr;
use std::sync::Arc;

use loggos_storage::disk::FsDisk;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::config::CoordinatorOptions;
use crate::driver::{self, INPUTS_MAX, Start};
use crate::error::{CoordinatorError, LedgerError};
use crate::ledger::{JournalLedger, Recovered};
use crate::metrics;
use crate::server::connection::Limits;
use crate::server::listener::{self, Most};
use crate::tree::{Entry, Tree};

/// A coordination server.
#[derive(Debug)]
pub struct Coordinator;

/// A running coordination server. Dropped without [`CoordinatorHandle::shutdown`] it stops as well, and nobody waits
/// for it.
#[derive(Debug)]
pub struct CoordinatorHandle {
    client_addr: SocketAddr,
    peer_addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    driver: JoinHandle<Result<(), LedgerError>>,
    accepting: JoinHandle<()>,
    stop_accepting: Option<oneshot::Sender<()>>,
    /// Bound so that the address is taken; an ensemble of one has no peers.
    _peers: TcpListener,
}

impl Coordinator {
    /// Starts a server and returns when clients can connect.
    ///
    /// # Errors
    /// One sentence that names the option: an address in use, a directory that can't be read.
    pub async fn start(options: CoordinatorOptions) -> Result<CoordinatorHandle, CoordinatorError> {
        options.check()?;
        let clients = listener::bind("--coordinator-listen", options.client_listen)?;
        let peers = listener::bind("--peer-listen", options.peer_listen)?;
        let (client_addr, peer_addr) = (
            bound("--coordinator-listen", &clients, options.client_listen)?,
            bound("--peer-listen", &peers, options.peer_listen)?,
        );
        metrics::describe();
        let options = CoordinatorOptions { client_listen: client_addr, peer_listen: peer_addr, ..options };
        let limits = Limits { frame: options.frame_limit };
        let most = Most { all: options.connections_max, of_one: options.connections_per_address };
        let start = recover(options).await?;
        tracing::info!(
            clients = %client_addr,
            zxid = start.tree.zxid().raw(),
            replayed = start.replayed.0,
            "the coordinator serves"
        );
        let (inputs, received) = mpsc::channel(INPUTS_MAX);
        let (stop, stopped) = oneshot::channel();
        let driver = tokio::spawn(driver::run(start, received, stopped));
        let (stop_accepting, accept_until) = oneshot::channel();
        let accepting = listener::accept(clients, inputs, limits, most, accept_until);
        Ok(CoordinatorHandle {
            client_addr,
            peer_addr,
            stop: Some(stop),
            driver,
            accepting: tokio::spawn(accepting),
            stop_accepting: Some(stop_accepting),
            _peers: peers,
        })
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

    /// Stops: what is under way becomes durable and is answered, a snapshot is kept. Sessions live on.
    pub async fn shutdown(mut self) {
        // A driver that has failed needs no word; its error is in the log.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Ok(Err(error)) = (&mut self.driver).await {
            tracing::error!(%error, "the coordinator stopped on an error");
        }
        drop(self.stop_accepting.take());
        // It ends by itself: its own wait has a deadline.
        let _ = (&mut self.accepting).await;
    }
}

fn bound(
    option: &'static str,
    listener: &TcpListener,
    address: SocketAddr,
) -> Result<SocketAddr, CoordinatorError> {
    listener.local_addr().map_err(|source| CoordinatorError::Listen { option, address, source })
}

/// Reads what the data directory holds: on a thread that may wait for the disk.
async fn recover(options: CoordinatorOptions) -> Result<Start, CoordinatorError> {
    let path = options.data_dir.clone();
    let recovering = tokio::task::spawn_blocking(move || {
        let mut tree = Tree::default();
        let mut replayed = (0, 0);
        let (ledger, position) =
            JournalLedger::open(Arc::new(FsDisk), &options.data_dir, false, &mut |recovered| {
                take(&mut tree, &mut replayed, recovered)
            })?;
        Ok(Start { options, tree, ledger: Arc::new(ledger), position, replayed })
    });
    match recovering.await {
        Ok(start) => start,
        Err(error) => Err(CoordinatorError::Ledger(LedgerError::Damaged { path, why: error.to_string() })),
    }
}

fn take(tree: &mut Tree, replayed: &mut (u64, u64), recovered: Recovered) -> Result<(), String> {
    match recovered {
        Recovered::Snapshot(state) => *tree = Tree::restore(&state).map_err(|error| error.to_string())?,
        Recovered::Entry(bytes) => {
            replayed.0 += 1;
            replayed.1 += bytes.len() as u64;
            let entry = Entry::decode(&bytes).map_err(|error| error.to_string())?;
            // Its events and replies were told, or nobody waits for them any more.
            let _ = tree.apply(&entry);
        }
    }
    Ok(())
}
