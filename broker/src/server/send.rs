//! An answer's pieces onto the socket: bytes by send, slices of files by sendfile, so that records never pass
//! through this process (decision D4). The one file that knows the platform.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use loggos_protocol::kafka::fetch_response::Part;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::log::LogSlice;

/// Slices up to this size are read and sent together with the bytes around them: one call instead of two.
const COPY_BYTES: usize = 16 << 10;
/// Copied pieces are sent when so many have come together.
const GATHER_BYTES: usize = 64 << 10;
/// The most that one sendfile moves.
const SENDFILE_BYTES: usize = 1 << 20;

/// Sends all parts.
///
/// # Errors
/// The socket's; `UnexpectedEof` when a file is shorter than its slice: the connection must then be closed.
pub(super) async fn send(stream: &TcpStream, parts: Vec<Part<LogSlice>>) -> io::Result<()> {
    if let [Part::Bytes(bytes)] = parts.as_slice() {
        // An answer in one piece needs no copy.
        return send_bytes(stream, bytes, false).await;
    }
    let mut gathered = BytesMut::new();
    let mut parts = parts.into_iter().peekable();
    while let Some(part) = parts.next() {
        match part {
            Part::Bytes(bytes) => gathered.extend_from_slice(&bytes),
            Part::Records(slice) if slice.len() <= COPY_BYTES && is_cached(&slice) => {
                let start = gathered.len();
                gathered.resize(start + slice.len(), 0);
                slice.file().read_exact_at(&mut gathered[start..], slice.position())?;
            }
            Part::Records(slice) => {
                send_bytes(stream, &gathered, true).await?;
                gathered.clear();
                send_slice(stream, slice).await?;
            }
        }
        if gathered.len() >= GATHER_BYTES {
            send_bytes(stream, &gathered, parts.peek().is_some()).await?;
            gathered.clear();
        }
    }
    send_bytes(stream, &gathered, false).await
}

fn is_cached(slice: &LogSlice) -> bool {
    slice.file().is_cached(slice.position(), slice.len() as u64) != Some(false)
}

/// Sends bytes; `more` tells the kernel to wait for what follows.
async fn send_bytes(stream: &TcpStream, bytes: &[u8], more: bool) -> io::Result<()> {
    let flags = if more { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
    let mut sent = 0;
    while sent < bytes.len() {
        let send = || rustix::net::send(stream, &bytes[sent..], flags).map_err(io::Error::from);
        sent += stream.async_io(Interest::WRITABLE, send).await?;
    }
    Ok(())
}

async fn send_slice(stream: &TcpStream, slice: LogSlice) -> io::Result<()> {
    if slice.file().descriptor().is_none() {
        return send_bytes(stream, &slice.read()?, false).await;
    }
    if !is_cached(&slice) {
        // The disk is waited for elsewhere: a thread of the network never does. It reads what is sent next into the
        // page cache.
        let warmed = slice.clone();
        tokio::task::spawn_blocking(move || warmed.read()).await.map_err(io::Error::other)??;
    }
    let file = Arc::clone(slice.file());
    let mut offset = slice.position();
    let end = slice.position() + slice.len() as u64;
    while offset < end {
        let count = usize::try_from(end - offset).unwrap_or(usize::MAX).min(SENDFILE_BYTES);
        let mut next = offset;
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let descriptor = file.descriptor().ok_or(io::ErrorKind::Unsupported)?;
                Ok(rustix::fs::sendfile(stream, descriptor, Some(&mut next), count)?)
            })
            .await?;
        if sent == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        offset = next;
    }
    Ok(())
}
