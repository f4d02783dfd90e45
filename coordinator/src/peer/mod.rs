//! The wire between the servers of a cell: whom to dial, who dials, and bounded queues in between.
//!
//! | file | what it knows |
//! |---|---|
//! | `peer` | links: one connection per channel to each peer, dialled again whenever it breaks |
//! | `door` | connections of others: frames to the driver, questions to whoever can answer |
//! | `handshake` | the first frames, and questions |
//! | `wire` | frames on a socket, with deadlines |
//!
//! Each server dials each other one for what it has to say, twice: the agreement channel, and the bulk channel for
//! catching up, which can't delay the other. Messages may be lost: a queue that is full drops, a broken connection
//! forgets what waited. Names are resolved anew at every connection. Called by `driver`, `start`, `forming`.

pub(crate) mod door;
pub(crate) mod handshake;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use loggos_protocol::frame::put_frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::paxos::ballot::ServerId;
use crate::paxos::codec::encode_envelope;
use crate::paxos::event::Identity;
use crate::paxos::membership::Config;
use crate::paxos::message::Envelope;
use handshake::{Answer, Channel, Hello, Question, Welcome};
use wire::{Wire, address_on};

/// Frames that wait for one connection.
const FRAMES_MAX: usize = 8192;
/// Bytes that wait for one connection; beyond it frames are dropped.
const QUEUED_BYTES_MAX: usize = 32 << 20;
/// Frames of one write.
const WRITE_BYTES: usize = 256 << 10;
/// A peer that doesn't answer a dial or a hello by then is dialled again.
const DIAL_DEADLINE: Duration = Duration::from_secs(2);
/// A peer that takes nothing for this long is dialled again.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// The first pause between two dials; it doubles,
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// up to this.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A question must be answered by then: a change of the membership takes its time.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// What the links and the door tell the driver.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A frame of our cell.
    Frame(Envelope),
    /// A peer's socket was refused or reset: its process is gone, or was.
    Unreachable(ServerId),
}

/// What waits for one connection.
#[derive(Debug)]
struct Queue {
    frames: mpsc::Sender<Bytes>,
    bytes: Arc<AtomicUsize>,
}

/// The two connections to one peer.
#[derive(Debug)]
struct Link {
    peer: String,
    bulk_port: u16,
    agreement: Queue,
    bulk: Queue,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The connections to all peers.
#[derive(Debug)]
pub(crate) struct Links {
    identity: Identity,
    heard: mpsc::Sender<Heard>,
    links: BTreeMap<ServerId, Link>,
}

impl Links {
    /// None yet.
    pub fn new(identity: Identity, heard: mpsc::Sender<Heard>) -> Self {
        Self { identity, heard, links: BTreeMap::new() }
    }

    /// Links to all members but this server, where they are now.
    pub fn set(&mut self, config: &Config) {
        let others: BTreeMap<ServerId, (&str, u16)> = config
            .members
            .iter()
            .filter(|member| member.id != self.identity.server)
            .map(|member| (member.id, (member.peer.as_str(), member.bulk_port)))
            .collect();
        self.links.retain(|id, link| others.get(id) == Some(&(link.peer.as_str(), link.bulk_port)));
        for (id, (peer, bulk_port)) in others {
            if !self.links.contains_key(&id) {
                self.links.insert(id, self.link(id, peer, bulk_port));
            }
        }
    }

    fn link(&self, to: ServerId, peer: &str, bulk_port: u16) -> Link {
        // The membership says where the bulk channel was; the peer's welcome says where it is.
        let port = Arc::new(AtomicU16::new(bulk_port));
        let start = |channel| {
            let (frames, waiting) = mpsc::channel(FRAMES_MAX);
            let bytes = Arc::new(AtomicUsize::new(0));
            let dialler = Dialler {
                to,
                peer: peer.to_owned(),
                bulk_port: Arc::clone(&port),
                hello: Hello {
                    channel,
                    cell: self.identity.cell,
                    from: self.identity.server,
                    incarnation: self.identity.incarnation,
                },
                waiting,
                bytes: Arc::clone(&bytes),
                heard: self.heard.clone(),
            };
            (Queue { frames, bytes }, tokio::spawn(dialler.run()))
        };
        let (agreement, first) = start(Channel::Agreement);
        let (bulk, second) = start(Channel::Bulk);
        Link { peer: peer.to_owned(), bulk_port, agreement, bulk, tasks: [first, second] }
    }

    /// Sends, or drops.
    pub fn send(&self, envelope: &Envelope) {
        let Some(link) = self.links.get(&envelope.to) else { return };
        let queue = if envelope.message.is_bulk() { &link.bulk } else { &link.agreement };
        if queue.bytes.load(Ordering::Relaxed) > QUEUED_BYTES_MAX {
            return;
        }
        let mut payload = BytesMut::new();
        encode_envelope(envelope, &mut payload);
        let len = payload.len();
        queue.bytes.fetch_add(len, Ordering::Relaxed);
        if queue.frames.try_send(payload.freeze()).is_err() {
            queue.bytes.fetch_sub(len, Ordering::Relaxed);
        }
    }
}

/// Keeps one connection to one peer.
struct Dialler {
    to: ServerId,
    peer: String,
    bulk_port: Arc<AtomicU16>,
    hello: Hello,
    waiting: mpsc::Receiver<Bytes>,
    bytes: Arc<AtomicUsize>,
    heard: mpsc::Sender<Heard>,
}

impl Dialler {
    async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut complained = false;
        loop {
            match self.dial().await {
                Ok(stream) => {
                    tracing::debug!(peer = %self.to, address = self.address(), "connected");
                    (pause, complained) = (PAUSE_MIN, false);
                    self.forget_waiting();
                    let error = self.pump(stream).await;
                    tracing::debug!(peer = %self.to, address = self.address(), %error, "disconnected");
                    self.hint(&error);
                }
                Err(error) => {
                    if !complained {
                        tracing::debug!(peer = %self.to, address = self.address(), %error, "can't connect");
                        complained = true;
                    }
                    self.hint(&error);
                }
            }
            let jitter = Duration::from_micros(rand::random_range(0..5_000));
            tokio::time::sleep(pause + jitter).await;
            pause = (pause * 2).min(PAUSE_MAX);
            self.forget_waiting();
        }
    }

    /// Tells that the peer's process may be gone. Only a hint: losing it costs nothing.
    fn hint(&self, error: &io::Error) {
        let gone = matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        );
        if gone && self.hello.channel == Channel::Agreement {
            drop(self.heard.try_send(Heard::Unreachable(self.to)));
        }
    }

    /// What was meant for the connection that broke is of no use on the next one.
    fn forget_waiting(&mut self) {
        while let Ok(frame) = self.waiting.try_recv() {
            self.bytes.fetch_sub(frame.len(), Ordering::Relaxed);
        }
    }

    fn address(&self) -> String {
        match self.hello.channel {
            Channel::Bulk => address_on(&self.peer, self.bulk_port.load(Ordering::Relaxed)),
            _ => self.peer.clone(),
        }
    }

    async fn dial(&self) -> io::Result<TcpStream> {
        let dialling = async {
            let mut wire = Wire::dial(&self.address()).await?;
            wire.send(&self.hello.encode()).await?;
            let welcome = Welcome::decode(wire.frame().await?).map_err(io::Error::other)?;
            if (welcome.cell, welcome.server) != (self.hello.cell, self.to) {
                return Err(io::Error::other(format!(
                    "server {} of cell {} answers there",
                    welcome.server, welcome.cell
                )));
            }
            self.bulk_port.store(welcome.bulk_port, Ordering::Relaxed);
            Ok(wire.into_stream())
        };
        timeout(DIAL_DEADLINE, dialling).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Writes what comes until the connection breaks; says how it did.
    async fn pump(&mut self, stream: TcpStream) -> io::Error {
        let (mut read, mut write) = stream.into_split();
        let mut buffer = BytesMut::new();
        let mut nothing = [0; 16];
        loop {
            let frame = tokio::select! {
                frame = self.waiting.recv() => frame,
                // The peer says nothing here: whatever comes is the end.
                end = read.read(&mut nothing) => {
                    return end.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                }
            };
            let Some(frame) = frame else { return io::ErrorKind::UnexpectedEof.into() };
            self.take(&mut buffer, &frame);
            while buffer.len() < WRITE_BYTES
                && let Ok(frame) = self.waiting.try_recv()
            {
                self.take(&mut buffer, &frame);
            }
            match timeout(WRITE_DEADLINE, write.write_all(&buffer)).await {
                Ok(Ok(())) => buffer.clear(),
                Ok(Err(error)) => return error,
                Err(_) => return io::ErrorKind::TimedOut.into(),
            }
        }
    }

    fn take(&self, buffer: &mut BytesMut, frame: &Bytes) {
        self.bytes.fetch_sub(frame.len(), Ordering::Relaxed);
        put_frame(buffer, frame);
    }
}

/// Asks whoever answers at `address`, and says at which of our own addresses it was dialled from.
pub(crate) async fn ask(
    address: &str,
    identity: Option<Identity>,
    question: &Question,
) -> io::Result<(Answer, std::net::SocketAddr)> {
    let asking = async {
        let mut wire = timeout(DIAL_DEADLINE, Wire::dial(address))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        let local = wire.local_addr()?;
        let hello = Hello {
            channel: Channel::Question,
            cell: identity.map(|own| own.cell).unwrap_or_default(),
            from: identity.map(|own| own.server).unwrap_or_default(),
            incarnation: identity.map(|own| own.incarnation).unwrap_or_default(),
        };
        wire.send(&hello.encode()).await?;
        wire.send(&question.encode()).await?;
        let answer = Answer::decode(wire.frame().await?).map_err(io::Error::other)?;
        Ok((answer, local))
    };
    let deadline = if *question == Question::Who { DIAL_DEADLINE } else { ANSWER_DEADLINE };
    timeout(deadline, asking).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
