//! Inputs that others write to: stdin, and sockets for lines and for syslog. What they give goes into a bounded
//! channel; while it is full, senders on streams wait, and the kernel drops datagrams. Called by `mod`.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, UdpSocket, UnixDatagram, UnixListener};
use tokio::sync::{Semaphore, mpsc};

use super::item::{Item, Origin, Parcel, Stamp, wall_clock};
use super::lines::{Cutting, Line, Lines};
use super::status::{Status, add};
use super::syslog;

/// Senders that one listener serves at the same time; more wait to be accepted.
const CONNECTIONS: usize = 256;
/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;
/// The largest datagram.
const DATAGRAM: usize = 64 * 1024;
/// Datagrams that go on together.
const TOGETHER: usize = 128;
/// After an accept that failed, as when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener's records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One line each.
    Lines,
    /// Syslog messages.
    Syslog,
}

/// What every listener needs.
#[derive(Clone, Debug)]
pub struct Outlet {
    /// Who the records are from.
    pub stamp: Arc<Stamp>,
    /// Where they go.
    pub parcels: mpsc::Sender<Parcel>,
    /// Where they are counted.
    pub status: Arc<Status>,
    /// The longest text.
    pub limit: usize,
}

impl Outlet {
    fn item(&self, text: Bytes, offset: u64, format: Format) -> Item {
        let facts = if format == Format::Syslog { syslog::facts(&text) } else { Vec::new() };
        add(&self.status.records_read, 1);
        add(&self.status.bytes_read, text.len() as u64);
        self.stamp.item(text, offset, wall_clock(), facts, Origin::None)
    }

    fn line(&self, line: Line) -> Item {
        let piece = line.piece.then(|| ("piece", Bytes::from_static(b"1")));
        add(&self.status.records_read, 1);
        add(&self.status.bytes_read, line.end - line.start);
        self.stamp.item(line.text, line.start, wall_clock(), piece, Origin::None)
    }

    fn cutting(&self) -> Cutting {
        Cutting { pattern: None, wait: Duration::ZERO, limit: self.limit }
    }
}

/// A bound socket.
#[derive(Debug)]
pub enum Socket {
    /// A stream of lines or messages.
    Tcp(TcpListener),
    /// The same on this machine.
    Unix(UnixListener),
    /// A message per datagram.
    Udp(UdpSocket),
    /// The same on this machine.
    Unixgram(UnixDatagram),
}

/// Binds `tcp:…`, `unix:…`, `udp:…`, `unixgram:…`; the error is a sentence.
pub async fn bind(listen: &str, format: Format) -> Result<Socket, String> {
    let failed = |error: io::Error| format!("can't listen on {listen}: {error}");
    let (kind, address) = listen.split_once(':').unwrap_or((listen, ""));
    match (kind, format) {
        ("tcp", _) => TcpListener::bind(address).await.map(Socket::Tcp).map_err(failed),
        ("unix", _) => {
            remove_stale(Path::new(address));
            UnixListener::bind(address).map(Socket::Unix).map_err(failed)
        }
        ("udp", Format::Syslog) => UdpSocket::bind(address).await.map(Socket::Udp).map_err(failed),
        ("unixgram", Format::Syslog) => {
            remove_stale(Path::new(address));
            UnixDatagram::bind(address).map(Socket::Unixgram).map_err(failed)
        }
        _ => Err(format!(
            "'{listen}' is no address to listen on: tcp:ADDR:PORT or unix:PATH, for syslog udp:ADDR:PORT and \
             unixgram:PATH too"
        )),
    }
}

/// A socket that a killed agent left behind; anything else at the path stays.
fn remove_stale(path: &Path) {
    use std::os::unix::fs::FileTypeExt;
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        // If it can't be removed, binding says why.
        let _ = std::fs::remove_file(path);
    }
}

impl Socket {
    /// The address, with the port that was free.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map(|address| format!("tcp:{address}")).unwrap_or_default()
            }
            Self::Udp(socket) => {
                socket.local_addr().map(|address| format!("udp:{address}")).unwrap_or_default()
            }
            Self::Unix(listener) => format!("unix:{}", path_of(listener.local_addr().ok())),
            Self::Unixgram(socket) => format!("unixgram:{}", path_of(socket.local_addr().ok())),
        }
    }
}

fn path_of(address: Option<tokio::net::unix::SocketAddr>) -> String {
    let path = address.and_then(|address| address.as_pathname().map(PathBuf::from));
    path.map_or_else(String::new, |path| path.display().to_string())
}

/// Serves until nobody takes parcels any more, or the task is ended.
pub async fn serve(socket: Socket, format: Format, outlet: Outlet) {
    match socket {
        Socket::Tcp(listener) => {
            accept(format, outlet, || async { listener.accept().await.map(|(stream, _)| stream) }).await;
        }
        Socket::Unix(listener) => {
            accept(format, outlet, || async { listener.accept().await.map(|(stream, _)| stream) }).await;
        }
        Socket::Udp(socket) => {
            let wait = || async { socket.readable().await };
            datagrams(outlet, wait, |buffer| socket.try_recv(buffer)).await;
        }
        Socket::Unixgram(socket) => {
            let wait = || async { socket.readable().await };
            datagrams(outlet, wait, |buffer| socket.try_recv(buffer)).await;
        }
    }
}

async fn accept<S, F>(format: Format, outlet: Outlet, next: impl Fn() -> F)
where
    S: AsyncRead + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes the semaphore");
        match next().await {
            Ok(stream) => {
                let outlet = outlet.clone();
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(error) = read_stream(stream, format, &outlet).await {
                        tracing::debug!(%error, "a sender's connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn read_stream(mut stream: impl AsyncRead + Unpin, format: Format, outlet: &Outlet) -> io::Result<()> {
    let mut lines = Lines::new(outlet.cutting(), 0);
    let mut messages = BytesMut::new();
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        let count = stream.read(&mut chunk).await?;
        let mut items = Vec::new();
        match format {
            Format::Lines => {
                let mut found = Vec::new();
                lines.push(Duration::ZERO, &chunk[..count], &mut found);
                if count == 0 {
                    lines.finish(&mut found);
                }
                items.extend(found.into_iter().map(|line| outlet.line(line)));
            }
            Format::Syslog => {
                messages.extend_from_slice(&chunk[..count]);
                while let Some(message) = syslog::next_message(&mut messages, outlet.limit) {
                    let length = message.len() as u64;
                    items.push(outlet.item(message, offset, format));
                    offset += length;
                }
                if count == 0 && !messages.is_empty() {
                    items.push(outlet.item(messages.split().freeze(), offset, format));
                }
            }
        }
        if !items.is_empty() && outlet.parcels.send(Parcel::Items(items)).await.is_err() {
            return Ok(());
        }
        if count == 0 {
            return Ok(());
        }
    }
}

async fn datagrams<F>(outlet: Outlet, wait: impl Fn() -> F, receive: impl Fn(&mut [u8]) -> io::Result<usize>)
where
    F: Future<Output = io::Result<()>>,
{
    let mut buffer = vec![0; DATAGRAM];
    let mut number = 0;
    loop {
        if let Err(error) = wait().await {
            tracing::error!(%error, "a datagram socket failed");
            return;
        }
        let mut items = Vec::new();
        while items.len() < TOGETHER {
            let Ok(count) = receive(&mut buffer) else { break };
            let mut message = BytesMut::from(&buffer[..count]).freeze();
            while message.ends_with(b"\n") || message.ends_with(b"\0") {
                message.truncate(message.len() - 1);
            }
            items.push(outlet.item(message, number, Format::Syslog));
            number += 1;
        }
        if !items.is_empty() && outlet.parcels.send(Parcel::Items(items)).await.is_err() {
            return;
        }
    }
}

/// Reads stdin to its end, on a thread of its own.
pub fn read_stdin(outlet: &Outlet) -> io::Result<()> {
    let mut stdin = io::stdin().lock();
    let mut lines = Lines::new(outlet.cutting(), 0);
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = match stdin.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let mut found = Vec::new();
        lines.push(Duration::ZERO, &chunk[..count], &mut found);
        if count == 0 {
            lines.finish(&mut found);
        }
        let items: Vec<Item> = found.into_iter().map(|line| outlet.line(line)).collect();
        if !items.is_empty() && outlet.parcels.blocking_send(Parcel::Items(items)).is_err() {
            return Ok(());
        }
        if count == 0 {
            return Ok(());
        }
    }
}
