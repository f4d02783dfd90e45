//! A session with the ensemble, Loggos' own or ZooKeeper's: the only file that names `zookeeper_client`.
//!
//! An expired session is replaced by a new one; whoever keeps something under the old one watches
//! [`Session::generation`] and does it again. Every call has a deadline. Called by the registry's other files, and
//! by `lock`, whose own calls stand in `session/passing.rs`.

mod passing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use loggos_protocol::ids::Zxid;
use parking_lot::RwLock;
use tokio::sync::watch;
use zookeeper_client as zk;

use super::RegistryError;

/// How long a call may take before it is given up: longer than a fail-over of the ensemble.
const CALL_DEADLINE: Duration = Duration::from_secs(15);
/// How long the first connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);
/// Pauses between attempts to replace an expired session.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How often a server that can't watch subtrees is looked at again.
const POLL: Duration = Duration::from_secs(1);

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Znode {
    /// Its data.
    pub data: Vec<u8>,
    /// Changes of its data: what a compare-and-set names.
    pub version: i32,
    /// What created it.
    pub created: Zxid,
    /// What changed its data last.
    pub modified: Zxid,
    /// The session that it goes with; 0 if none.
    pub owner: i64,
}

/// One part of a change that happens as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The node must have this version.
    Check {
        /// Which.
        path: String,
        /// The version.
        version: i32,
    },
    /// Make a node.
    Create {
        /// Which.
        path: String,
        /// Its data.
        data: Vec<u8>,
        /// Whether it goes with the session.
        ephemeral: bool,
    },
    /// Replace a node's data.
    Set {
        /// Which.
        path: String,
        /// The new data.
        data: Vec<u8>,
        /// The version that it must have.
        version: Option<i32>,
    },
    /// Remove a node.
    Delete {
        /// Which.
        path: String,
        /// The version that it must have.
        version: Option<i32>,
    },
}

impl Op {
    /// A node that stays.
    pub fn create(path: impl Into<String>, data: Vec<u8>) -> Self {
        Self::Create { path: path.into(), data, ephemeral: false }
    }
}

/// What a part of a change gave: the zxid of its node's creation and its version, where there is a node.
pub type Done = Option<(Zxid, i32)>;

/// A session that replaces itself.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

struct Shared {
    cluster: String,
    /// What the first session asked for.
    asked: Duration,
    /// What the next one asks for.
    timeout: RwLock<Duration>,
    /// How long a session that seems lost is asked for again before a new one takes its place.
    grace: Duration,
    client: RwLock<zk::Client>,
    generation: watch::Sender<u64>,
}

impl Session {
    /// Connects to `host:port,…[/chroot]`; the chroot is made if absent.
    ///
    /// # Errors
    /// `Unreachable`.
    pub async fn connect(cluster: &str, timeout: Duration) -> Result<Self, RegistryError> {
        Self::connect_with_grace(cluster, timeout, Duration::ZERO).await
    }

    /// As `connect`; a session without contact is not given up before `grace` has passed, or the ensemble has said
    /// that it is no more. Watches of before tell that they have ended; the session's nodes are still there.
    ///
    /// # Errors
    /// `Unreachable`.
    pub async fn connect_with_grace(
        cluster: &str,
        timeout: Duration,
        grace: Duration,
    ) -> Result<Self, RegistryError> {
        let client = first(cluster, timeout).await?;
        let shared = Arc::new(Shared {
            cluster: cluster.to_owned(),
            asked: timeout,
            timeout: RwLock::new(timeout),
            grace,
            client: RwLock::new(client),
            generation: watch::Sender::new(0),
        });
        tokio::spawn(replace_expired(Arc::downgrade(&shared)));
        Ok(Self { shared })
    }

    /// Counts the sessions: each new number is a new session, without the old one's ephemeral nodes.
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// This session's number in the ensemble.
    pub fn id(&self) -> i64 {
        self.client().session_id().0
    }

    /// How long the ensemble waits for a sign of us.
    pub fn timeout(&self) -> Duration {
        self.client().session_timeout()
    }

    /// Whether a server of the ensemble hears us, as far as we know.
    pub fn is_connected(&self) -> bool {
        self.client().state() == zk::SessionState::SyncConnected
    }

    /// How long the first session asked to be waited for.
    pub fn asked_timeout(&self) -> Duration {
        self.shared.asked
    }

    /// How long the next session, if there is one, is to be waited for.
    pub fn ask_for(&self, timeout: Duration) {
        *self.shared.timeout.write() = timeout;
    }

    /// Has the ensemble's leader answer; gives the session that was answered, and how long it is waited for.
    ///
    /// # Errors
    /// As `get`.
    pub async fn touch(&self) -> Result<(i64, Duration), RegistryError> {
        let client = self.client();
        let (id, timeout) = (client.session_id().0, client.session_timeout());
        // An answer that comes later than this renews nothing.
        let answer = tokio::time::timeout(timeout, client.sync("/")).await;
        answer.map_err(|_| RegistryError::Timeout)?.map_err(|error| of(&error))?;
        Ok((id, timeout))
    }

    fn client(&self) -> zk::Client {
        self.shared.client.read().clone()
    }

    /// A node, if there is one.
    ///
    /// # Errors
    /// What `RegistryError` says of connections and sessions.
    pub async fn get(&self, path: &str) -> Result<Option<Znode>, RegistryError> {
        match call(self.client().get_data(path)).await {
            Ok((data, stat)) => Ok(Some(znode(data, &stat))),
            Err(RegistryError::Absent) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names of a node's children; none if there is no node.
    ///
    /// # Errors
    /// As `get`.
    pub async fn children(&self, path: &str) -> Result<Vec<String>, RegistryError> {
        let client = self.client();
        match call(client.list_children(path)).await {
            Ok(mut names) => {
                names.sort();
                Ok(names)
            }
            Err(RegistryError::Absent) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Makes a node that stays, unless it is there.
    ///
    /// # Errors
    /// As `get`; `Absent` without a parent.
    pub async fn create_if_absent(&self, path: &str, data: &[u8]) -> Result<(), RegistryError> {
        let client = self.client();
        let options = zk::CreateMode::Persistent.with_acls(zk::Acls::anyone_all());
        match call(client.create(path, data, &options)).await {
            Ok(_) | Err(RegistryError::Exists) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes a node whose name gets the parent's next number.
    ///
    /// # Errors
    /// As `get`.
    pub async fn create_numbered(&self, path: &str, data: &[u8]) -> Result<(), RegistryError> {
        let client = self.client();
        let options = zk::CreateMode::PersistentSequential.with_acls(zk::Acls::anyone_all());
        call(client.create(path, data, &options)).await.map(|_| ())
    }

    /// Replaces a node's data; gives its new version.
    ///
    /// # Errors
    /// As `get`; `Conflict` when the version is another.
    pub async fn set(&self, path: &str, data: &[u8], version: Option<i32>) -> Result<i32, RegistryError> {
        let client = self.client();
        call(client.set_data(path, data, version)).await.map(|stat| stat.version)
    }

    /// Removes a node; no error if it isn't there.
    ///
    /// # Errors
    /// As `get`.
    pub async fn delete(&self, path: &str) -> Result<(), RegistryError> {
        match call(self.client().delete(path, None)).await {
            Err(RegistryError::Absent) => Ok(()),
            other => other,
        }
    }

    /// All of `ops` or none.
    ///
    /// # Errors
    /// `Refused` names the part that failed and why; else as `get`.
    pub async fn multi(&self, ops: &[Op]) -> Result<Vec<Done>, RegistryError> {
        let client = self.client();
        let mut writer = client.new_multi_writer();
        let (lasting, passing) = (
            zk::CreateMode::Persistent.with_acls(zk::Acls::anyone_all()),
            zk::CreateMode::Ephemeral.with_acls(zk::Acls::anyone_all()),
        );
        for op in ops {
            match op {
                Op::Check { path, version } => writer.add_check_version(path, *version),
                Op::Create { path, data, ephemeral } => {
                    writer.add_create(path, data, if *ephemeral { &passing } else { &lasting })
                }
                Op::Set { path, data, version } => writer.add_set_data(path, data, *version),
                Op::Delete { path, version } => writer.add_delete(path, *version),
            }
            .map_err(|error| of(&error))?;
        }
        let done =
            tokio::time::timeout(CALL_DEADLINE, writer.commit()).await.map_err(|_| RegistryError::Timeout)?;
        match done {
            Ok(results) => Ok(results
                .into_iter()
                .map(|result| match result {
                    zk::MultiWriteResult::Create { stat, .. } | zk::MultiWriteResult::SetData { stat } => {
                        Some((Zxid::new(stat.czxid), stat.version))
                    }
                    _ => None,
                })
                .collect()),
            Err(zk::MultiWriteError::OperationFailed { index, source }) => {
                Err(RegistryError::Refused { part: index, source: Box::new(of(&source)) })
            }
            Err(zk::MultiWriteError::RequestFailed { source }) => Err(of(&source)),
        }
    }

    /// Sees to it that what is read next is at least as new as what anybody wrote before.
    ///
    /// # Errors
    /// As `get`.
    pub async fn sync(&self) -> Result<(), RegistryError> {
        let client = self.client();
        call(client.sync("/")).await
    }

    /// Tells of every change at and below `path` from now on.
    ///
    /// # Errors
    /// As `get`.
    pub async fn watch_tree(&self, path: &str) -> Result<TreeWatch, RegistryError> {
        let client = self.client();
        match call(client.watch(path, zk::AddWatchMode::PersistentRecursive)).await {
            Ok(watcher) => Ok(TreeWatch { watcher: Some(watcher), lost: false }),
            // A ZooKeeper before 3.6 can't: we look again and again instead.
            Err(RegistryError::Unsupported) => Ok(TreeWatch { watcher: None, lost: false }),
            Err(error) => Err(error),
        }
    }

    /// Waits until a node has gone.
    ///
    /// # Errors
    /// As `get`; `Timeout` when it's still there after `deadline`.
    pub async fn wait_gone(&self, path: &str, deadline: Duration) -> Result<(), RegistryError> {
        let client = self.client();
        let gone = async {
            loop {
                let (found, watcher) = client.check_and_watch_stat(path).await.map_err(|error| of(&error))?;
                if found.is_none() {
                    return Ok(());
                }
                watcher.changed().await;
            }
        };
        tokio::time::timeout(deadline, gone).await.map_err(|_| RegistryError::Timeout)?
    }
}

/// Changes below a node.
pub struct TreeWatch {
    watcher: Option<zk::PersistentWatcher>,
    /// Whether the connection has gone since the last change that was told.
    lost: bool,
}

impl TreeWatch {
    /// The path that changed next. `None` when the watch has ended, with its session or with its connection: what
    /// changed while there was none is told by nobody, and `zookeeper_client` doesn't set persistent watches again.
    /// Watch anew, and then read everything.
    pub async fn changed(&mut self) -> Option<String> {
        let Some(watcher) = &mut self.watcher else {
            tokio::time::sleep(POLL).await;
            return None;
        };
        loop {
            let event = watcher.changed().await;
            if event.event_type != zk::EventType::Session {
                return Some(event.path);
            }
            match event.session_state {
                state if state.is_terminated() => return None,
                zk::SessionState::Disconnected => self.lost = true,
                _ if self.lost => return None,
                _ => {}
            }
        }
    }
}

fn znode(data: Vec<u8>, stat: &zk::Stat) -> Znode {
    Znode {
        data,
        version: stat.version,
        created: Zxid::new(stat.czxid),
        modified: Zxid::new(stat.mzxid),
        owner: stat.ephemeral_owner,
    }
}

/// The first session: an ensemble that is only being formed, or has just lost its leader, is waited for.
async fn first(cluster: &str, timeout: Duration) -> Result<zk::Client, RegistryError> {
    let deadline = tokio::time::Instant::now() + CONNECT_DEADLINE;
    loop {
        match connect(cluster, timeout).await {
            Err(error) if tokio::time::Instant::now() < deadline => {
                tracing::debug!(%error, "no session with the coordinator yet");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            other => return other,
        }
    }
}

async fn connect(cluster: &str, timeout: Duration) -> Result<zk::Client, RegistryError> {
    let unreachable = |reason: String| RegistryError::Unreachable { cluster: cluster.to_owned(), reason };
    let (hosts, chroot) = match cluster.find('/') {
        Some(at) => (&cluster[..at], &cluster[at..]),
        None => (cluster, "/"),
    };
    if chroot != "/" {
        let root = reach(timeout, hosts).await.map_err(unreachable)?;
        let options = zk::CreateMode::Persistent.with_acls(zk::Acls::anyone_all());
        match call(root.mkdir(chroot, &options)).await {
            Ok(()) | Err(RegistryError::Exists) => {}
            Err(error) => return Err(error),
        }
    }
    reach(timeout, cluster).await.map_err(unreachable)
}

/// A client whose session stands, or why there is none; whoever wants one asks again.
async fn reach(timeout: Duration, cluster: &str) -> Result<zk::Client, String> {
    let connector = zk::Client::connector().with_session_timeout(timeout);
    match tokio::time::timeout(CONNECT_DEADLINE, connector.connect(cluster)).await {
        Ok(connected) => connected.map_err(|error| error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// Takes the session up again that the client library has given up.
async fn resume(shared: &Shared) -> Result<zk::Client, RegistryError> {
    let session = shared.client.read().session().clone();
    let connector =
        zk::Client::connector().with_session_timeout(*shared.timeout.read()).with_session(session);
    let client = tokio::time::timeout(CONNECT_DEADLINE, connector.connect(&shared.cluster));
    client.await.map_err(|_| RegistryError::Timeout)?.map_err(|error| of(&error))
}

/// Waits for the session's end and begins a new one, as long as anybody uses it.
async fn replace_expired(shared: std::sync::Weak<Shared>) {
    loop {
        let Some(mut states) = shared.upgrade().map(|shared| shared.client.read().state_watcher()) else {
            return;
        };
        while !states.state().is_terminated() {
            tokio::select! {
                _ = states.changed() => {}
                () = tokio::time::sleep(CALL_DEADLINE) => {
                    if shared.strong_count() == 0 {
                        return;
                    }
                }
            }
        }
        let lost = Instant::now();
        let mut hope = true;
        loop {
            let Some(held) = shared.upgrade() else { return };
            if hope && lost.elapsed() < held.grace {
                match resume(&held).await {
                    Ok(client) => {
                        tracing::info!("the session with the coordinator goes on");
                        *held.client.write() = client;
                        break;
                    }
                    Err(RegistryError::Expired) => hope = false,
                    Err(error) => tracing::debug!(%error, "the session is not taken up yet"),
                }
                drop(held);
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
            let next_timeout = *held.timeout.read();
            match connect(&held.cluster, next_timeout).await {
                Ok(client) => {
                    tracing::warn!("the session with the coordinator has expired; a new one begins");
                    *held.client.write() = client;
                    held.generation.send_modify(|generation| *generation += 1);
                    break;
                }
                Err(error) => tracing::warn!(%error, "no new session with the coordinator yet"),
            }
            drop(held);
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

async fn call<T>(work: impl Future<Output = Result<T, zk::Error>>) -> Result<T, RegistryError> {
    match tokio::time::timeout(CALL_DEADLINE, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(of(&error)),
        Err(_) => Err(RegistryError::Timeout),
    }
}

fn of(error: &zk::Error) -> RegistryError {
    match error {
        zk::Error::NoNode => RegistryError::Absent,
        zk::Error::NodeExists => RegistryError::Exists,
        zk::Error::BadVersion => RegistryError::Conflict,
        zk::Error::NotEmpty => RegistryError::NotEmpty,
        zk::Error::Unimplemented => RegistryError::Unsupported,
        zk::Error::SessionExpired | zk::Error::SessionMoved => RegistryError::Expired,
        zk::Error::ConnectionLoss | zk::Error::Timeout | zk::Error::NoHosts => RegistryError::Lost,
        // A socket's own error, such as a reset, or no sign of life on it: the library's words for a lost connection too.
        zk::Error::Custom(_) => RegistryError::Lost,
        other => RegistryError::Other { reason: other.to_string() },
    }
}
