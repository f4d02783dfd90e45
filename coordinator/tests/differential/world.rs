//! One of the two servers, with its clients: sends the same steps, and writes down what came back in words that
//! don't depend on which server it was. Zxids become distances from where the run began, sessions become the
//! client's number, times are left out.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use loggos_protocol::frame::put_frame;
use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::code::op;
use loggos_protocol::zookeeper::jute::{JuteError, Reader};
use loggos_protocol::zookeeper::{ConnectRequest, ConnectResponse, ErrorCode, ReplyHeader, Request, Stat};

use crate::operations::{CLIENTS, Sent, Step};
use crate::support::raw::{Raw, connect_request};

/// A server that says nothing for so long has hung.
const SILENCE: Duration = Duration::from_secs(60);
/// Answers that are a connection's last.
const LAST: [&str; 2] = ["UNIMPLEMENTED (-6)", "AUTH_FAILED (-115)"];
/// What each client asks to learn that everything before has been told.
const BARRIER_XID: i32 = 1 << 20;

/// A server and its clients.
pub struct World {
    address: String,
    clients: Vec<Client>,
    /// Which client a session is or was of.
    sessions: BTreeMap<i64, usize>,
    base: i64,
}

struct Client {
    raw: Option<Raw>,
    own: ConnectResponse,
    /// Requests without a reply so far, by their order.
    pending: VecDeque<(i32, i32)>,
}

impl World {
    /// New sessions for all clients.
    pub async fn begin(address: &str) -> Self {
        let mut world =
            Self { address: address.to_owned(), clients: Vec::new(), sessions: BTreeMap::new(), base: 0 };
        for number in 0..CLIENTS {
            let (raw, own) = Raw::open(address).await;
            world.sessions.insert(own.session.raw(), number);
            world.clients.push(Client { raw: Some(raw), own, pending: VecDeque::new() });
        }
        let mut raw = world.clients[0].raw.take().expect("a connection");
        raw.send(&[(1, Request::Exists { path: "/".to_owned(), watch: false })]).await;
        world.base = raw.reply().await.0.zxid.raw();
        world.clients[0].raw = Some(raw);
        world
    }

    /// Does one step; what every client saw of it, in order.
    pub async fn step(&mut self, step: &Step) -> Vec<String> {
        let mut seen = Vec::new();
        match step {
            Step::Send { client, sent } => self.send(*client, sent, &mut seen).await,
            Step::Reconnect { client } => self.reconnect(*client, &mut seen).await,
            Step::Renew { client } => self.renew(*client, &mut seen).await,
        }
        for client in 0..CLIENTS {
            let barrier = Request::Exists { path: "/zookeeper".to_owned(), watch: false };
            let sent = Sent::Request { xid: BARRIER_XID, request: barrier };
            self.send(client, &[sent], &mut seen).await;
        }
        if step.closes() {
            order_events(&mut seen);
        }
        seen
    }

    /// Ends all sessions: none is left to expire, and to take a zxid, while another run goes on.
    pub async fn end(mut self) {
        for client in 0..CLIENTS {
            self.close(client, &mut Vec::new()).await;
        }
    }

    async fn close(&mut self, number: usize, seen: &mut Vec<String>) {
        if self.clients[number].raw.is_none() {
            self.reconnect(number, seen).await;
        }
        let bye = Sent::Request { xid: 1, request: Request::CloseSession };
        self.send(number, &[bye], seen).await;
    }

    async fn send(&mut self, number: usize, sent: &[Sent], seen: &mut Vec<String>) {
        let base = self.base;
        let client = &mut self.clients[number];
        let Some(raw) = &mut client.raw else { return };
        let mut frames = BytesMut::new();
        for sent in sent {
            let (xid, code, payload) = sent.payload(base);
            client.pending.push_back((xid, code));
            put_frame(&mut frames, &payload);
        }
        raw.send_bytes(&frames).await;
        self.take(number, seen).await;
    }

    /// Takes what comes until everything is answered or the connection has ended.
    async fn take(&mut self, number: usize, seen: &mut Vec<String>) {
        while !self.clients[number].pending.is_empty() {
            let client = &mut self.clients[number];
            let Some(raw) = &mut client.raw else { return };
            let frame = tokio::time::timeout(SILENCE, raw.frame()).await;
            let line = match frame {
                Ok(Some(frame)) => self.line(number, frame),
                Ok(None) => {
                    client.raw = None;
                    client.pending.clear();
                    "closed".to_owned()
                }
                Err(_) => panic!("{} says nothing to client {number}; so far {seen:#?}", self.address),
            };
            // A barrier that went as it should says nothing.
            if line.is_empty() {
                continue;
            }
            seen.push(format!("client {number}: {line}"));
            if LAST.iter().any(|last| line.ends_with(last)) {
                self.wait_for_the_end(number, seen).await;
            }
        }
    }

    /// The server closes the connection behind such an answer: sooner or later.
    async fn wait_for_the_end(&mut self, number: usize, seen: &mut Vec<String>) {
        let client = &mut self.clients[number];
        client.pending.clear();
        let Some(mut raw) = client.raw.take() else { return };
        let end = async { while raw.frame().await.is_some() {} };
        let closed = tokio::time::timeout(SILENCE, end).await.is_ok();
        seen.push(format!("client {number}: {}", if closed { "closed" } else { "still open" }));
    }

    async fn reconnect(&mut self, number: usize, seen: &mut Vec<String>) {
        let client = &mut self.clients[number];
        client.raw = None;
        client.pending.clear();
        let request = ConnectRequest {
            session: client.own.session,
            password: Bytes::copy_from_slice(&client.own.password),
            ..connect_request()
        };
        self.connect(number, &request, seen).await;
    }

    async fn renew(&mut self, number: usize, seen: &mut Vec<String>) {
        self.close(number, seen).await;
        self.connect(number, &connect_request(), seen).await;
    }

    async fn connect(&mut self, number: usize, request: &ConnectRequest, seen: &mut Vec<String>) {
        let mut raw = Raw::connect(&self.address).await;
        raw.send_connect(request).await;
        let frame = tokio::time::timeout(SILENCE, raw.frame()).await.expect("an answer in time");
        let Some(frame) = frame else {
            seen.push(format!("client {number}: not connected"));
            return;
        };
        let response = ConnectResponse::decode(frame).expect("a response");
        seen.push(format!(
            "client {number}: session for {} ms, {}",
            response.timeout_ms,
            if response.session == request.session { "the same" } else { "another" }
        ));
        if response.timeout_ms <= 0 {
            assert_ne!(request.session.raw(), 0, "a new session is never refused");
            return Box::pin(self.connect(number, &connect_request(), seen)).await;
        }
        self.sessions.insert(response.session.raw(), number);
        self.clients[number] = Client { raw: Some(raw), own: response, pending: VecDeque::new() };
    }

    /// A frame in words; empty for a barrier's reply.
    fn line(&mut self, number: usize, frame: Bytes) -> String {
        let mut reader = Reader::new(frame);
        let header = ReplyHeader::decode(&mut reader).expect("a header");
        let zxid = self.zxid(header.zxid);
        if header.xid == -1 {
            let event = (reader.int(), reader.int(), reader.string(), reader.remaining());
            return format!("event {event:?} at {zxid}");
        }
        let client = &mut self.clients[number];
        // A malformed request's answer may carry another xid; the order tells which it is.
        let Some((xid, code)) = client.pending.pop_front() else { return format!("unasked {}", header.xid) };
        if xid == BARRIER_XID && header.xid == xid && header.error == ErrorCode::OK {
            return String::new();
        }
        let body = if header.error == ErrorCode::OK {
            self.body(code, &mut reader).unwrap_or_else(|error| format!("unreadable: {error}"))
        } else {
            header.error.to_string()
        };
        let rest = reader.remaining();
        let xid = if header.xid == xid { String::new() } else { format!(" as {}", header.xid) };
        format!(
            "op {code}{xid} at {zxid}: {body}{}",
            if rest > 0 { format!(" +{rest}") } else { String::new() }
        )
    }

    fn body(&self, code: i32, r: &mut Reader) -> Result<String, JuteError> {
        Ok(match code {
            op::CREATE | op::SYNC => r.string()?,
            op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL => {
                format!("{} {}", r.string()?, self.stat(r)?)
            }
            op::EXISTS | op::SET_DATA | op::SET_ACL => self.stat(r)?,
            op::GET_DATA => format!("{:?} {}", r.buffer()?, self.stat(r)?),
            op::GET_ACL => format!("{:?} {}", r.acl()?, self.stat(r)?),
            op::GET_CHILDREN | op::GET_EPHEMERALS => format!("{:?}", sorted(r.strings()?)),
            op::GET_CHILDREN2 => format!("{:?} {}", sorted(r.strings()?), self.stat(r)?),
            op::GET_ALL_CHILDREN_NUMBER | op::ADD_WATCH => r.int()?.to_string(),
            op::WHO_AM_I => format!("{:?}", sorted(r.vector(8, Reader::id)?)),
            op::MULTI | op::MULTI_READ => self.parts(r)?,
            _ => String::new(),
        })
    }

    fn parts(&self, r: &mut Reader) -> Result<String, JuteError> {
        let mut text = String::new();
        loop {
            let (code, done, error) = (r.int()?, r.bool()?, r.int()?);
            if done {
                let _ = write!(text, "end {code} {error}");
                return Ok(text);
            }
            let body = match code {
                op::NONE => ErrorCode::new(r.int()?).to_string(),
                code => self.body(code, r)?,
            };
            let _ = write!(text, "[{code} {error} {body}] ");
        }
    }

    fn stat(&self, r: &mut Reader) -> Result<String, JuteError> {
        let Stat {
            czxid,
            mzxid,
            version,
            cversion,
            aversion,
            ephemeral_owner,
            data_length,
            num_children,
            pzxid,
            ..
        } = r.stat()?;
        let owner = self.owner(ephemeral_owner);
        let [czxid, mzxid, pzxid] = [czxid, mzxid, pzxid].map(|zxid| self.zxid(zxid));
        Ok(format!(
            "czxid {czxid} mzxid {mzxid} pzxid {pzxid} versions {version} {cversion} {aversion} owner {owner} \
             bytes {data_length} children {num_children}"
        ))
    }

    fn zxid(&self, zxid: Zxid) -> String {
        match zxid.raw() {
            raw @ (0 | -1) => raw.to_string(),
            raw => format!("{:+}", raw - self.base),
        }
    }

    fn owner(&self, session: SessionId) -> String {
        match (session.raw(), self.sessions.get(&session.raw())) {
            (0, _) => "none".to_owned(),
            (_, Some(client)) => format!("client {client}"),
            (raw, None) => format!("{raw:#x}"),
        }
    }
}

/// A session's ephemeral nodes go in an order that ZooKeeper's hash table gives: what one client is told in a row is
/// sorted.
fn order_events(seen: &mut [String]) {
    let is_event = |line: &String| line.contains(": event ");
    for run in seen.chunk_by_mut(|one, other| is_event(one) && is_event(other) && one[..9] == other[..9]) {
        run.sort();
    }
}

fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort();
    items
}
