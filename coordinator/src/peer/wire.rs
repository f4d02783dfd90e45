//! Frames on one socket between servers.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use loggos_protocol::frame::{FrameDecoder, put_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest frame: a batch with one entry of a client's longest frame, or values for a server that lags.
pub(super) const FRAME_LIMIT: usize = 64 << 20;
/// Room made in the buffer before each read.
const READ_ROOM: usize = 64 << 10;

/// A socket and what was read of it.
pub(super) struct Wire {
    stream: TcpStream,
    buffer: BytesMut,
    decoder: FrameDecoder,
}

impl Wire {
    /// Dials; the name is resolved now.
    pub async fn dial(address: &str) -> io::Result<Self> {
        Self::new(TcpStream::connect(address).await?)
    }

    /// Takes over a socket.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::new(), decoder: FrameDecoder::new(FRAME_LIMIT) })
    }

    /// Our end.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Sends one frame.
    pub async fn send(&mut self, payload: &[u8]) -> io::Result<()> {
        let mut frame = BytesMut::with_capacity(payload.len() + 4);
        put_frame(&mut frame, payload);
        self.stream.write_all(&frame).await
    }

    /// The next frame.
    pub async fn frame(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).map_err(io::Error::other)? {
                return Ok(frame);
            }
            self.buffer.reserve(READ_ROOM);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The socket, when the handshake is over and nothing more was read.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// The same host with another port.
pub(super) fn address_on(peer: &str, port: u16) -> String {
    let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host);
    format!("{host}:{port}")
}
