//! One connection. One half takes frames and begins requests in their order; the other awaits the answers in that
//! order and sends them. Between them lies a bounded queue: a client that doesn't read its answers is not read
//! from, and costs no more than the queue.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use loggos_protocol::frame::{FrameDecoder, PREFIX_LEN};
use loggos_protocol::kafka::fetch_response::Part;
use loggos_protocol::kafka::{Request, decode_request, refuse};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::listener::told_to_stop;
use super::send::send;
use crate::api::{self, Answer, Context, Outcome, Sessions};

/// Requests of one connection that are under way at the same time.
const UNDER_WAY: usize = 64;
/// KiB of requests of one connection that are under way at the same time; a larger one goes alone.
const UNDER_WAY_KIB: u32 = 8 << 10;
/// Bytes that are read at once; a larger frame gets the room that it needs as its bytes come.
const READ_BYTES: usize = 64 << 10;
/// Room that an idle connection keeps.
const IDLE_BYTES: usize = 1 << 10;
/// Silence after which the kernel asks whether the peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A request that was begun: its answer, and the room that it holds until that is sent.
type Begun = (Answer, Option<OwnedSemaphorePermit>);

/// Serves a connection until its end.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    context: Arc<Context>,
    mut stop: watch::Receiver<bool>,
) {
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
    // Neither is worth refusing a connection for.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let stream = Arc::new(stream);
    let (begun, answers) = mpsc::channel::<Begun>(UNDER_WAY);
    let reading = read(&stream, peer, &context, begun);
    let writing = write(&stream, answers);
    let ended = async {
        // When no more requests come, the answers to those before are still sent; when answers can't be sent, no
        // more requests are taken.
        let (mut reading, mut writing) = (std::pin::pin!(reading), std::pin::pin!(writing));
        tokio::select! {
            reason = &mut reading => {
                let last = writing.await;
                reason.and(last)
            }
            reason = &mut writing => reason,
        }
    };
    let reason = tokio::select! {
        reason = ended => reason,
        () = told_to_stop(&mut stop) => Ok(()),
    };
    match reason {
        Ok(()) => tracing::trace!(%peer, "connection closed"),
        Err(reason) => tracing::debug!(%peer, reason, "connection closed"),
    }
}

async fn read(
    stream: &TcpStream,
    peer: SocketAddr,
    context: &Arc<Context>,
    begun: mpsc::Sender<Begun>,
) -> Result<(), String> {
    let configs = context.table.configs();
    let limit = usize::try_from(configs.number("socket.request.max.bytes")).unwrap_or(usize::MAX);
    let idle = configs.duration("connections.max.idle.ms");
    drop(configs);
    let decoder = FrameDecoder::new(limit);
    let sessions = Arc::new(Sessions::of(peer.ip()));
    let room = Arc::new(Semaphore::new(UNDER_WAY_KIB as usize));
    let mut buffer = BytesMut::new();
    loop {
        while let Some(frame) = decoder.decode(&mut buffer).map_err(|error| error.to_string())? {
            let request = match decode_request(frame.clone()) {
                Ok(request) => request,
                Err(error) => match refuse(&frame, &error) {
                    Some(answer) => {
                        let answer = Answer::Now(Outcome::Reply(vec![Part::Bytes(answer)]));
                        if begun.send((answer, None)).await.is_err() {
                            return Ok(());
                        }
                        continue;
                    }
                    None => return Err(error.to_string()),
                },
            };
            // A client that sends faster than the disk takes it waits here, and holds no more memory than this.
            let kib = u32::try_from(frame.len() >> 10).unwrap_or(u32::MAX).min(UNDER_WAY_KIB);
            let Ok(held) = Arc::clone(&room).acquire_many_owned(kib).await else { return Ok(()) };
            drop(frame);
            if !begin(context, &sessions, &begun, (request, held)).await {
                return Ok(());
            }
        }
        if buffer.is_empty() && buffer.capacity() > IDLE_BYTES {
            // Thousands of idle connections hold no memory to speak of.
            buffer = BytesMut::new();
        }
        let missing = decoder.missing(&buffer).map_err(|error| error.to_string())?;
        match tokio::time::timeout(idle, fill(stream, &mut buffer, missing)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Ok(()),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) if begun.capacity() == UNDER_WAY => return Err("idle for too long".to_owned()),
            Err(_) => {}
        }
    }
}

/// Begins a request and queues its answer; false when the connection has ended.
async fn begin(
    context: &Arc<Context>,
    sessions: &Arc<Sessions>,
    begun: &mpsc::Sender<Begun>,
    (request, held): (Request, OwnedSemaphorePermit),
) -> bool {
    // A place for the answer first: nothing is begun that could not be answered.
    let Ok(place) = begun.reserve().await else { return false };
    if api::appends(request.header.key()) && !context.table.dir().has_room() {
        context.table.dir().room().await;
    }
    place.send((api::begin(context, sessions, request), Some(held)));
    true
}

/// Reads what there is, at least a byte; false at the end of the stream.
async fn fill(stream: &TcpStream, buffer: &mut BytesMut, missing: usize) -> std::io::Result<bool> {
    loop {
        stream.readable().await?;
        // Room for the frame under way, so that it lies in one piece, but never far ahead of what has come.
        let room = missing.clamp(PREFIX_LEN, buffer.len().max(READ_BYTES));
        buffer.reserve(room.max(READ_BYTES.min(room * 2)).max(IDLE_BYTES));
        match stream.try_read_buf(buffer) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn write(stream: &TcpStream, mut answers: mpsc::Receiver<Begun>) -> Result<(), String> {
    while let Some((answer, held)) = answers.recv().await {
        let outcome = match answer {
            Answer::Now(outcome) => outcome,
            Answer::Later(later) => later.await,
        };
        match outcome {
            Outcome::Reply(parts) => send(stream, parts).await.map_err(|error| error.to_string())?,
            Outcome::Silence => {}
            Outcome::Close(reason) => return Err(reason),
        }
        drop(held);
    }
    Ok(())
}
