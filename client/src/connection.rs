//! One socket to one broker: versions agreed on, requests pipelined, answers matched by correlation id.
//!
//! A broker answers in the order of the requests, so a slow one holds up those behind it: whoever waits long
//! (fetches) has a connection of their own, see [`Lane`](crate::cluster::Lane). A connection that breaks, or on
//! which an answer is late, fails everything in flight and is never used again. Called by `cluster`.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use loggos_protocol::frame::FrameDecoder;
use loggos_protocol::kafka::messages::{ApiVersionsRequest, ApiVersionsResponse};
use loggos_protocol::kafka::{
    self, ApiKey, ErrorCode, KafkaRequest, StrBytes, VersionRange, api, decode_response, encode_request,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::ClientError;

/// Requests without an answer on one connection; who wants more waits.
const IN_FLIGHT_LIMIT: usize = 64;
/// Encoded requests that wait for the socket.
const WRITE_QUEUE: usize = 16;
/// A broker that takes no bytes for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Least room in front of a read.
const READ_ROOM: usize = 16 * 1024;
/// Most room in front of a read: an announced length costs memory only as its bytes arrive.
const READ_ROOM_LIMIT: usize = 1024 * 1024;
/// The version of ApiVersions asked with first; brokers that don't know it say so (KIP-511).
const API_VERSIONS_FIRST: i16 = 3;
/// From version 13 on, Produce and Fetch name topics by id alone; names are enough for a client that holds no
/// identity over a topic's deletion.
const LAST_VERSION_WITH_NAMES: i16 = 12;

/// A connection; cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Outgoing>,
    permits: Arc<Semaphore>,
    versions: BTreeMap<i16, VersionRange>,
    reader: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    address: String,
    client_id: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_correlation: i32,
    waiting: BTreeMap<i32, Waiting>,
    broken: Option<ClientError>,
}

/// A request without its answer. The permit goes with it, so that a caller that gave up frees no place too early.
#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Result<Bytes, ClientError>>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Outgoing {
    frame: Bytes,
    written: Option<oneshot::Sender<()>>,
}

/// A request that is on its way; the answer is asked for with [`Pending::answer`].
#[derive(Debug)]
pub struct Pending<T> {
    shared: Arc<Shared>,
    answer: oneshot::Receiver<Result<Bytes, ClientError>>,
    version: i16,
    deadline: Instant,
    timeout: Duration,
    request: PhantomData<fn() -> T>,
}

impl Connection {
    /// Connects to `address` (`host:port`) and agrees on versions, all of it before `deadline`.
    ///
    /// # Errors
    /// `Connect` when there's no connection, anything else when the broker's answer isn't one.
    pub async fn open(address: &str, client_id: &str, deadline: Instant) -> Result<Self, ClientError> {
        let refused = |reason: String| ClientError::Connect { address: address.to_owned(), reason };
        let connecting = timeout_at(deadline, TcpStream::connect(address)).await;
        let stream = connecting
            .map_err(|_| refused("no answer in time".to_owned()))?
            .map_err(|error| refused(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| refused(error.to_string()))?;
        let mut connection = Self::start(stream, address, client_id);
        let remaining = deadline.saturating_duration_since(Instant::now());
        connection.versions = connection.negotiate(remaining).await.map_err(|error| match error {
            ClientError::Timeout { .. } => refused("it accepts, and answers nothing".to_owned()),
            ClientError::Disconnected { reason, .. } => refused(reason),
            other => other,
        })?;
        Ok(connection)
    }

    fn start(stream: TcpStream, address: &str, client_id: &str) -> Self {
        let shared = Arc::new(Shared {
            address: address.to_owned(),
            client_id: client_id.to_owned(),
            state: Mutex::new(State::default()),
        });
        let (read_half, write_half) = stream.into_split();
        let (outgoing, queue) = mpsc::channel(WRITE_QUEUE);
        let reader = tokio::spawn(read_answers(Arc::clone(&shared), read_half)).abort_handle();
        // The writer ends by itself when the queue's sender is dropped, after what was queued is out.
        tokio::spawn(write_requests(Arc::clone(&shared), write_half, queue));
        let permits = Arc::new(Semaphore::new(IN_FLIGHT_LIMIT));
        Self { shared, outgoing, permits, versions: BTreeMap::new(), reader }
    }

    async fn negotiate(&self, patience: Duration) -> Result<BTreeMap<i16, VersionRange>, ClientError> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("loggos"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let mut response = self.call_at(&request, API_VERSIONS_FIRST, patience).await?;
        if ErrorCode::new(response.error_code) == ErrorCode::UNSUPPORTED_VERSION {
            response = self.call_at(&ApiVersionsRequest::default(), 0, patience).await?;
        }
        let code = ErrorCode::new(response.error_code);
        code.ok().map_err(|code| ClientError::refused("asking for API versions", code))?;
        Ok(ranges(&response))
    }

    /// The broker's `host:port`.
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    /// Whether it failed; a broken connection never works again.
    pub fn is_broken(&self) -> bool {
        self.shared.state.lock().broken.is_some()
    }

    /// The highest version of `key` that both sides speak.
    pub fn version_of(&self, key: ApiKey) -> Option<i16> {
        let ours = api::of(key)?.versions;
        let theirs = self.versions.get(&(key as i16))?;
        let limit =
            if matches!(key, ApiKey::Produce | ApiKey::Fetch) { LAST_VERSION_WITH_NAMES } else { i16::MAX };
        let version = ours.max.min(theirs.max).min(limit);
        (version >= ours.min && version >= theirs.min).then_some(version)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// `Unsupported`, `Wire`, `Disconnected`; `Timeout`, after which the connection is broken.
    pub async fn call<T: KafkaRequest>(
        &self,
        request: &T,
        timeout: Duration,
    ) -> Result<T::Response, ClientError> {
        self.begin(request, timeout).await?.answer().await
    }

    /// Asks in a certain version, for what a version decides, and waits; errors as [`call`](Self::call).
    pub async fn call_at<T: KafkaRequest>(
        &self,
        request: &T,
        version: i16,
        timeout: Duration,
    ) -> Result<T::Response, ClientError> {
        self.begin_at(request, version, timeout).await?.answer().await
    }

    /// Sends a request, behind all whose `begin` returned earlier; errors as [`call`](Self::call). `timeout`
    /// counts from now to the answer.
    pub async fn begin<T: KafkaRequest>(
        &self,
        request: &T,
        timeout: Duration,
    ) -> Result<Pending<T>, ClientError> {
        let version = self.agreed::<T>()?;
        self.begin_at(request, version, timeout).await
    }

    async fn begin_at<T: KafkaRequest>(
        &self,
        request: &T,
        version: i16,
        timeout: Duration,
    ) -> Result<Pending<T>, ClientError> {
        let deadline = Instant::now() + timeout;
        let late = |_| self.shared.late(timeout);
        let permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await.map_err(late)?;
        let permit = permit.expect("nobody closes the semaphore");
        let place = timeout_at(deadline, self.outgoing.reserve()).await.map_err(late)?;
        let place = place.map_err(|_| self.shared.broken())?;
        let (sender, answer) = oneshot::channel();
        let correlation = self.shared.register(Waiting { answer: sender, _permit: permit })?;
        match encode_request(version, correlation, Some(&self.shared.client_id), request) {
            Ok(frame) => place.send(Outgoing { frame, written: None }),
            Err(error) => {
                self.shared.state.lock().waiting.remove(&correlation);
                return Err(error.into());
            }
        }
        let shared = Arc::clone(&self.shared);
        Ok(Pending { shared, answer, version, deadline, timeout, request: PhantomData })
    }

    /// Sends a request that the broker doesn't answer (Produce with `acks=0`); returns when the socket has it.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn send_only<T: KafkaRequest>(
        &self,
        request: &T,
        timeout: Duration,
    ) -> Result<(), ClientError> {
        let version = self.agreed::<T>()?;
        let correlation = self.shared.next_correlation()?;
        let frame = encode_request(version, correlation, Some(&self.shared.client_id), request)?;
        let (written, done) = oneshot::channel();
        let deadline = Instant::now() + timeout;
        let queued =
            timeout_at(deadline, self.outgoing.send(Outgoing { frame, written: Some(written) })).await;
        queued.map_err(|_| self.shared.late(timeout))?.map_err(|_| self.shared.broken())?;
        let outcome = timeout_at(deadline, done).await.map_err(|_| self.shared.late(timeout))?;
        outcome.map_err(|_| self.shared.broken())
    }

    fn agreed<T: KafkaRequest>(&self) -> Result<i16, ClientError> {
        let api = api::find(T::KEY);
        let version = api.and_then(|api| self.version_of(api.key));
        version.ok_or_else(|| ClientError::Unsupported {
            address: self.shared.address.clone(),
            api: api.map_or("this request", |api| api.name),
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        self.shared.fail(ClientError::Closed);
    }
}

impl<T: KafkaRequest> Pending<T> {
    /// Waits for the answer; errors as [`Connection::call`].
    pub async fn answer(self) -> Result<T::Response, ClientError> {
        match timeout_at(self.deadline, self.answer).await {
            Err(_) => {
                let error = self.shared.late(self.timeout);
                // What comes next on this socket is behind the answer that doesn't come.
                self.shared.fail(error.clone());
                Err(error)
            }
            Ok(Err(_)) => Err(self.shared.broken()),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Ok(Ok(frame))) => {
                let decoded = decode_response::<T>(frame, self.version);
                decoded.map(|(_, response)| response).map_err(ClientError::from)
            }
        }
    }
}

impl Shared {
    fn register(&self, waiting: Waiting) -> Result<i32, ClientError> {
        let mut state = self.state.lock();
        if let Some(error) = &state.broken {
            return Err(error.clone());
        }
        let correlation = state.take_correlation();
        state.waiting.insert(correlation, waiting);
        Ok(correlation)
    }

    fn next_correlation(&self) -> Result<i32, ClientError> {
        let mut state = self.state.lock();
        match &state.broken {
            Some(error) => Err(error.clone()),
            None => Ok(state.take_correlation()),
        }
    }

    /// Marks the connection as broken, with the first reason that was seen, and fails everything in flight.
    fn fail(&self, error: ClientError) {
        let (error, waiting) = {
            let mut state = self.state.lock();
            let error = state.broken.get_or_insert(error).clone();
            (error, std::mem::take(&mut state.waiting))
        };
        for (_, waiting) in waiting {
            // Whoever gave up isn't interested.
            let _ = waiting.answer.send(Err(error.clone()));
        }
    }

    fn broken(&self) -> ClientError {
        self.state.lock().broken.clone().unwrap_or_else(|| self.disconnected("closed"))
    }

    fn disconnected(&self, reason: &str) -> ClientError {
        ClientError::Disconnected { address: self.address.clone(), reason: reason.to_owned() }
    }

    fn late(&self, after: Duration) -> ClientError {
        ClientError::Timeout { what: format!("an answer from {}", self.address), after }
    }
}

impl State {
    fn take_correlation(&mut self) -> i32 {
        let correlation = self.next_correlation;
        self.next_correlation = correlation.checked_add(1).unwrap_or(0);
        correlation
    }
}

fn ranges(response: &ApiVersionsResponse) -> BTreeMap<i16, VersionRange> {
    let range = |key: &kafka::messages::api_versions_response::ApiVersion| {
        (key.api_key, VersionRange { min: key.min_version, max: key.max_version })
    };
    response.api_keys.iter().map(range).collect()
}

async fn read_answers(shared: Arc<Shared>, mut socket: OwnedReadHalf) {
    let reason = match read_until_broken(&shared, &mut socket).await {
        Ok(()) => "the broker closed it".to_owned(),
        Err(reason) => reason,
    };
    shared.fail(shared.disconnected(&reason));
}

async fn read_until_broken(shared: &Shared, socket: &mut OwnedReadHalf) -> Result<(), String> {
    let decoder = FrameDecoder::default();
    let mut buffer = BytesMut::new();
    loop {
        while let Some(frame) = decoder.decode(&mut buffer).map_err(|error| error.to_string())? {
            let Some(correlation) = kafka::correlation_id(&frame) else {
                return Err("an answer without a correlation id".to_owned());
            };
            match shared.state.lock().waiting.remove(&correlation) {
                // Whoever gave up isn't interested.
                Some(waiting) => drop(waiting.answer.send(Ok(frame))),
                None => return Err(format!("an answer to request {correlation}, which is not in flight")),
            }
        }
        let missing = decoder.missing(&buffer).map_err(|error| error.to_string())?;
        buffer.reserve(missing.clamp(READ_ROOM, READ_ROOM_LIMIT));
        if socket.read_buf(&mut buffer).await.map_err(|error| error.to_string())? == 0 {
            return Ok(());
        }
    }
}

async fn write_requests(
    shared: Arc<Shared>,
    mut socket: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Outgoing>,
) {
    while let Some(outgoing) = queue.recv().await {
        let reason = match timeout(WRITE_TIMEOUT, socket.write_all(&outgoing.frame)).await {
            Ok(Ok(())) => {
                if let Some(written) = outgoing.written {
                    // Whoever gave up isn't interested.
                    let _ = written.send(());
                }
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it took no bytes for {} s", WRITE_TIMEOUT.as_secs()),
        };
        shared.fail(shared.disconnected(&reason));
        return;
    }
}
