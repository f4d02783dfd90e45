//! The handshake: sessions begin, come back, and move here from other servers; and the barriers that some of this,
//! and `sync`, must wait for.
//!
//! A session moves by an entry of the log (decision C6): when it is applied, everything sent on earlier connections
//! has taken effect or never will. A client that has seen more than is applied here waits a while (design 2.7);
//! before a session is called dead, the newest state is asked for, as this server may be behind. Called by `driver`.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use loggos_protocol::ids::SessionId;
use loggos_protocol::zookeeper::{ConnectRequest, ConnectResponse, ErrorCode, Id};

use super::clients::{Client, Stage};
use super::{Driver, millis};
use crate::paxos::event::{Event, ReadId};
use crate::server::outbox::Outbox;
use crate::tree::{Command, Fence};
use crate::watches::ConnectionId;

/// Who waits for a read barrier.
#[derive(Clone, Copy, Debug)]
pub(super) enum Barrier {
    /// A client's `sync`.
    Sync(ConnectionId),
    /// A session that isn't known here, or not by that password.
    Resume(ConnectionId),
}

/// What a handshake is about.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    /// The session that comes back, or none.
    session: SessionId,
    password: bytes::Bytes,
    /// The newest state has been waited for.
    sure: bool,
}

impl Driver {
    pub(super) fn connect(
        &mut self,
        connection: ConnectionId,
        peer: SocketAddr,
        connect: ConnectRequest,
        outbox: Arc<Outbox>,
    ) {
        let address = Id { scheme: "ip".to_owned(), id: address_text(peer.ip()) };
        let timeout = self.options.session_timeout(connect.timeout_ms);
        let wish = Wish { session: connect.session, password: connect.password, sure: false };
        let stage = Stage::Opening(VecDeque::new(), wish);
        let mut client = Client::new(outbox, peer, timeout, stage, vec![address], connect.read_only);
        if self.leaderless.is_some() && self.options.read_only && connect.read_only == Some(true) {
            client.open_read_only(connect.session);
            self.dirty.insert(connection);
            self.clients.insert(connection, client);
            return;
        }
        let patience = timeout / 3;
        self.clients.insert(connection, client);
        if connect.last_zxid_seen > self.tree.zxid() {
            if let Some(client) = self.clients.get_mut(&connection) {
                client.ahead = Some(connect.last_zxid_seen);
            }
            self.behind.push((connection, Instant::now() + patience));
        } else {
            self.open(connection);
        }
    }

    /// Proposes what the handshake asks for.
    fn open(&mut self, connection: ConnectionId) {
        let Some(client) = self.clients.get_mut(&connection) else { return };
        let Stage::Opening(_, wish) = &client.stage else { return };
        let wish = wish.clone();
        let fence = client.renew_fence();
        let entry = if wish.session.raw() == 0 {
            let timeout_ms = u32::try_from(client.timeout.as_millis()).unwrap_or(u32::MAX);
            Command::CreateSession { timeout_ms, password: rand::random(), fence }
        } else {
            let known = self.tree.session_password(wish.session);
            if known.is_none_or(|password| password != wish.password[..]) {
                return self.doubt(connection, wish.sure);
            }
            let before = self.tree.attachment(wish.session).unwrap_or_default().fence;
            Command::Attach { session: wish.session, before, fence }
        };
        self.opening.insert(fence, connection);
        self.enqueue(connection, entry.encode());
        if wish.session.raw() != 0 {
            self.touch(wish.session);
        }
    }

    /// A session isn't known here: that counts only when everything that was acknowledged before is applied here.
    fn doubt(&mut self, connection: ConnectionId, sure: bool) {
        if sure {
            return self.refuse_session(connection);
        }
        let id = self.next_id();
        self.reads.insert(id, Barrier::Resume(connection));
        self.event(Event::Read(ReadId(id)));
    }

    pub(super) fn read_ready(&mut self, id: u64) {
        match self.reads.remove(&id) {
            Some(Barrier::Sync(connection)) => self.synced(connection, id),
            Some(Barrier::Resume(connection)) => {
                if let Some(client) = self.clients.get_mut(&connection)
                    && let Stage::Opening(_, wish) = &mut client.stage
                {
                    wish.sure = true;
                    self.open(connection);
                }
            }
            None => {}
        }
    }

    /// The entry behind a handshake is applied.
    pub(super) fn opened(&mut self, connection: ConnectionId, session: SessionId) {
        self.forget_applied(connection);
        let details = self.tree.session_password(session).zip(self.tree.session_timeout_ms(session));
        let Some(client) = self.clients.get_mut(&connection) else { return };
        // Deaf already: it was cut off meanwhile.
        let Stage::Opening(early, _) = &mut client.stage else { return };
        let early = std::mem::take(early);
        self.dirty.insert(connection);
        let Some((password, timeout_ms)) = details else {
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
        self.touch(session);
        for arrival in early {
            self.arrive(connection, arrival);
        }
    }

    /// The session had moved on before, or is no more.
    pub(super) fn not_attached(&mut self, connection: ConnectionId, code: ErrorCode) {
        self.forget_applied(connection);
        if code == ErrorCode::SESSION_MOVED {
            // From where it is now, then.
            self.open(connection);
        } else {
            self.refuse_session(connection);
        }
    }

    fn refuse_session(&mut self, connection: ConnectionId) {
        if let Some(client) = self.clients.get_mut(&connection) {
            client.refuse_session();
            self.dirty.insert(connection);
        }
    }

    /// Clients that had seen more than was applied here go on when it is.
    pub(super) fn let_in_who_was_ahead(&mut self) {
        if self.behind.is_empty() {
            return;
        }
        let zxid = self.tree.zxid();
        let caught_up = |id: &ConnectionId| {
            self.clients.get(id).is_none_or(|client| client.ahead.is_none_or(|seen| seen <= zxid))
        };
        let ready: Vec<ConnectionId> = self.behind.iter().map(|(id, _)| *id).filter(caught_up).collect();
        self.behind.retain(|(id, _)| !ready.contains(id));
        ready.into_iter().for_each(|connection| self.open(connection));
    }

    pub(super) fn tick_openings(&mut self) {
        if !self.view.leader.is_none() {
            for id in std::mem::take(&mut self.refused) {
                if self.reads.contains_key(&id) {
                    self.event(Event::Read(ReadId(id)));
                }
            }
        }
        let now = Instant::now();
        let late: Vec<ConnectionId> =
            self.behind.iter().filter(|(_, until)| *until < now).map(|(id, _)| *id).collect();
        self.behind.retain(|(_, until)| *until >= now);
        for connection in late {
            tracing::info!(%connection, "a client has seen more than is applied here: it is sent away");
            self.cut_off(connection);
        }
    }
}

impl Client {
    /// Tells it that its session is no more, and ends the connection.
    pub(super) fn refuse_session(&mut self) {
        let response = ConnectResponse::refused(self.read_only.map(|_| false));
        self.outbox.queue(|out| response.encode(out));
        self.session = SessionId::new(0);
        self.close();
    }

    /// Without a leader: what is here may be read, and nothing else (design 3.7).
    fn open_read_only(&mut self, session: SessionId) {
        // Nobody else knows of it: it lasts as long as the connection.
        self.session = if session.raw() == 0 { SessionId::new(i64::MAX >> 1) } else { session };
        self.stage = Stage::ReadOnly;
        let response = ConnectResponse {
            protocol_version: 0,
            timeout_ms: i32::try_from(self.timeout.as_millis()).unwrap_or(i32::MAX),
            session: self.session,
            password: [0; 16],
            read_only: Some(true),
        };
        self.outbox.queue(|out| response.encode(out));
        self.sent += 1;
    }

    /// A new attachment, whose entries count from 1.
    fn renew_fence(&mut self) -> Fence {
        let fence = Fence(rand::random_range(1..=u64::MAX));
        self.stamp.fence = fence;
        self.stamp.number = 1;
        fence
    }
}

/// The address as ACLs name it: an IPv4 client on an IPv6 socket is an IPv4 client.
fn address_text(address: IpAddr) -> String {
    address.to_canonical().to_string()
}
