//! Accepts clients, up to a limit, and gives each connection a task of its own. Called by `Coordinator::start`.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use super::connection::{self, Limits};
use crate::driver::Input;
use crate::error::CoordinatorError;
use crate::watches::ConnectionId;

/// How many connections the kernel keeps for us while we are busy.
const BACKLOG: u32 = 1024;
/// Out of descriptors or memory, accepting rests for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// At the end, connections may take this long to send what is queued.
const GOODBYE_DEADLINE: Duration = Duration::from_millis(500);

/// Listens on `address`, which `option` names in an error.
pub(crate) fn bind(option: &'static str, address: SocketAddr) -> Result<TcpListener, CoordinatorError> {
    let listen = || -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart shall not wait for the old connections' TIME_WAIT; two servers still can't share a port.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => CoordinatorError::AddressInUse { option, address },
        _ => CoordinatorError::Listen { option, address, source },
    })
}

/// How many clients may be connected: in all, and from one address (0: as many as in all).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    pub all: usize,
    pub of_one: usize,
}

/// Who is connected, by address.
#[derive(Debug, Default)]
struct ByAddress(Mutex<HashMap<IpAddr, usize>>);

/// One client's place among those of its address.
struct PlaceOfAddress {
    of: Arc<ByAddress>,
    address: IpAddr,
}

impl ByAddress {
    fn take(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<PlaceOfAddress> {
        let mut taken = self.0.lock();
        let count = taken.entry(address).or_default();
        if most > 0 && *count >= most {
            return None;
        }
        *count += 1;
        Some(PlaceOfAddress { of: Arc::clone(self), address })
    }
}

impl Drop for PlaceOfAddress {
    fn drop(&mut self) {
        let mut taken = self.of.0.lock();
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// Accepts until `stop` is told or dropped; then the connections, which the driver has closed, have a moment to
/// send what is queued for them.
pub(crate) async fn accept(
    listener: TcpListener,
    driver: mpsc::Sender<Input>,
    limits: Limits,
    most: Most,
    mut stop: oneshot::Receiver<()>,
) {
    let places = Arc::new(Semaphore::new(most.all));
    let by_address = Arc::new(ByAddress::default());
    let mut connections = JoinSet::new();
    let mut id = ConnectionId::default();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stop => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "can't accept a client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(%peer, most = most.all, "a client is turned away: too many are connected");
            continue;
        };
        let Some(place_of_address) = by_address.take(peer.ip().to_canonical(), most.of_one) else {
            tracing::warn!(%peer, most = most.of_one, "a client is turned away: too many of its address");
            continue;
        };
        id = id.next();
        let driver = driver.clone();
        connections.spawn(async move {
            connection::serve(stream, peer, id, &driver, limits).await;
            drop((place, place_of_address));
        });
    }
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GOODBYE_DEADLINE, all).await.is_err() {
        tracing::debug!("some clients didn't take their last replies");
    }
}
