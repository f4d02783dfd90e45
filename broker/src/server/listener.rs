//! Accepts connections until it is told to stop, and then waits for those that are open to end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connection;
use crate::api::Context;

/// Connections that the system may hold for us before we accept them.
const BACKLOG: i32 = 1024;
/// Pause after an accept that failed, as when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long open connections may take to send their last answers.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// A bound listener.
pub(crate) struct Listener {
    socket: TcpListener,
}

impl Listener {
    /// Binds; port 0 takes a free one.
    pub fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let domain = if address.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        // A port whose last server has just ended is free.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self { socket: TcpListener::from_std(socket.into())? })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop` says so.
    pub async fn run(self, context: Arc<Context>, stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        let mut stopping = stop.clone();
        loop {
            tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let most = context.table.configs().number("max.connections");
                        if i64::try_from(connections.len()).unwrap_or(i64::MAX) >= most {
                            tracing::warn!(%peer, most, "refused: max.connections are open");
                            continue;
                        }
                        connections.spawn(connection::serve(stream, peer, Arc::clone(&context), stop.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                () = told_to_stop(&mut stopping) => break,
            }
        }
        drop(self.socket);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE_DEADLINE, all).await.is_err() {
            connections.abort_all();
        }
    }
}

/// Is done when the broker stops.
pub(super) async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // Without a sender there is no broker any more.
    let _ = stop.wait_for(|stop| *stop).await;
}
