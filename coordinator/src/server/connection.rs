//! One client's socket: a four-letter word, or a connect request and then requests, in; the outbox out.
//!
//! Nothing is decided here. Requests go to the driver in the order of their arrival, by its bounded channel: when
//! it is full, or when too much is under way for this client, the socket isn't read. Called by `listener`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use loggos_protocol::frame::FrameDecoder;
use loggos_protocol::zookeeper::{ConnectRequest, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::four_letter::{self, Word};
use super::outbox::Outbox;
use crate::driver::{Arrival, Input};
use crate::watches::ConnectionId;

/// A client has this long to say what it wants.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A client that takes nothing for this long is cut off.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// An operator's client has this long to take its answer and close.
const WORD_DEADLINE: Duration = Duration::from_secs(2);
/// Room made in the buffer before each read.
const READ_ROOM: usize = 16 << 10;

/// What one connection may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The longest frame in bytes.
    pub frame: usize,
}

/// Serves the client until either side ends it.
pub(crate) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    id: ConnectionId,
    driver: &mpsc::Sender<Input>,
    limits: Limits,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "can't switch Nagle's algorithm off");
    }
    let (mut read, write) = stream.into_split();
    let mut buffer = BytesMut::with_capacity(READ_ROOM);
    let decoder = FrameDecoder::new(limits.frame);
    let connect = match timeout(HANDSHAKE_DEADLINE, first(&mut read, &mut buffer, decoder)).await {
        Ok(Ok(First::Connect(connect))) => connect,
        Ok(Ok(First::Word(word))) => return answer_word(word, read, write, driver).await,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "a client left before it said what it wants"),
        Err(_) => return tracing::debug!(%peer, "a client says nothing"),
    };
    let outbox = Arc::new(Outbox::default());
    let input = Input::Connect { connection: id, peer, connect, outbox: Arc::clone(&outbox) };
    if driver.send(input).await.is_err() {
        return;
    }
    let _end = EndOnDrop(&outbox);
    let sender = tokio::spawn(send(write, Arc::clone(&outbox)));
    if let Err(error) = receive(&mut read, &mut buffer, decoder, id, &outbox, driver).await {
        tracing::debug!(%peer, %error, "a client's connection broke");
    }
    // Whoever can't be told has stopped, and with it all that it knew of this connection.
    let _ = driver.send(Input::Closed { connection: id }).await;
    outbox.abort();
    let _ = sender.await;
}

/// A connection task that is aborted takes its sending half with it.
struct EndOnDrop<'a>(&'a Outbox);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum First {
    Connect(ConnectRequest),
    Word(Word),
}

async fn first(read: &mut OwnedReadHalf, buffer: &mut BytesMut, decoder: FrameDecoder) -> io::Result<First> {
    while buffer.len() < 4 {
        fill(read, buffer).await?;
    }
    if let Some(word) = buffer.first_chunk::<4>().and_then(Word::of_bytes) {
        return Ok(First::Word(word));
    }
    loop {
        if let Some(frame) = decoder.decode(buffer).map_err(io::Error::other)? {
            return ConnectRequest::decode(frame).map(First::Connect).map_err(io::Error::other);
        }
        fill(read, buffer).await?;
    }
}

async fn fill(read: &mut OwnedReadHalf, buffer: &mut BytesMut) -> io::Result<()> {
    buffer.reserve(READ_ROOM);
    match read.read_buf(buffer).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

async fn receive(
    read: &mut OwnedReadHalf,
    buffer: &mut BytesMut,
    decoder: FrameDecoder,
    connection: ConnectionId,
    outbox: &Outbox,
    driver: &mpsc::Sender<Input>,
) -> io::Result<()> {
    loop {
        while let Some(frame) = decoder.decode(buffer).map_err(io::Error::other)? {
            let arrival = arrival(frame)?;
            if !outbox.room().await {
                return Ok(());
            }
            outbox.began();
            if driver.send(Input::Request { connection, arrival }).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            read = fill(read, buffer) => match read {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            },
            () = outbox.ended() => return Ok(()),
        }
    }
}

fn arrival(frame: Bytes) -> io::Result<Arrival> {
    let (header, request) = Request::decode(frame).map_err(io::Error::other)?;
    Ok(Arrival { header, request, at: Instant::now() })
}

async fn send(mut write: OwnedWriteHalf, outbox: Arc<Outbox>) {
    while let Some(frames) = outbox.next().await {
        match timeout(WRITE_DEADLINE, write.write_all(&frames)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => break,
        }
    }
    // Also when it fails: the reader learns of the end by the outbox.
    let _ = write.shutdown().await;
    outbox.abort();
}

async fn answer_word(
    word: Word,
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    driver: &mpsc::Sender<Input>,
) {
    let (answer, report) = oneshot::channel();
    let text = match driver.send(Input::Ask { word, answer }).await {
        Ok(()) => timeout(WORD_DEADLINE, report).await.ok().and_then(Result::ok),
        Err(_) => None,
    }
    .map_or_else(|| four_letter::NOT_SERVING.to_owned(), |report| four_letter::answer(word, &report));
    let _ = timeout(WORD_DEADLINE, async {
        write.write_all(text.as_bytes()).await?;
        write.shutdown().await?;
        // Closing with unread bytes would reset the connection, and the answer could be lost with it.
        let mut rest = [0; 64];
        while read.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}
