//! Acquiring, holding, losing and giving back a lock.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::lease::LeaseState;
use super::order::{Mode, predecessor};
use super::sequencer::{Sequencer, TEXT_MAX};
use super::{LockError, LockService};
use crate::registry::{RegistryError, Session};

/// What a sequencer takes beside its lock's path, in bytes.
const SEQUENCER_REST: usize = 112;
/// The longest path of a lock, in bytes.
pub(super) const PATH_MAX: usize = TEXT_MAX - SEQUENCER_REST;
/// Pause before a broken connection is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// A node is watched for so long at a time.
const WATCH: Duration = Duration::from_secs(3600);
/// Attempts to give a lock back while the connection breaks; after that it goes with the session.
const RELEASE_ATTEMPTS: usize = 5;

/// A lock, named by a path.
#[derive(Clone)]
pub struct Lock {
    service: LockService,
    path: String,
}

impl Lock {
    pub(super) fn new(service: LockService, path: &str) -> Result<Self, LockError> {
        if path.len() > PATH_MAX {
            return Err(LockError::PathTooLong { bytes: path.len(), most: PATH_MAX });
        }
        Ok(Self { service, path: path.to_owned() })
    }

    /// Its path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Takes the lock, alone or with others; waits for at most `patience`. `identifier` is for those who ask who
    /// holds it.
    ///
    /// # Errors
    /// `Timeout`; `SessionLost`, after which a new attempt is worth it; what the ensemble says.
    pub async fn acquire(
        &self,
        mode: Mode,
        identifier: &[u8],
        patience: Duration,
    ) -> Result<Held, LockError> {
        let deadline = Instant::now() + patience;
        let (session, generation) = (self.service.session(), self.service.view().generation);
        let contender =
            Contender { lock: self, mode, token: Uuid::new_v4().simple().to_string(), identifier };
        let taken = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match contender.take(deadline).await {
                // The connection broke, or the client library gave the session up: it may well live on.
                Err(LockError::Registry(error)) if error.retriable() && !left.is_zero() => {
                    tokio::time::sleep(RETRY_PAUSE.min(left)).await;
                    if !self.service.wait_safe(generation, left).await {
                        break Err(LockError::SessionLost);
                    }
                    // What we sent before is there now, or never will be.
                    match session.sync().await {
                        Ok(()) => {}
                        Err(error) if error.retriable() => {}
                        Err(error) => break Err(error.into()),
                    }
                }
                other => break other,
            }
        };
        match taken {
            Ok(sequencer) => Ok(Held::new(self.service.clone(), sequencer, generation)),
            Err(error) => {
                contender.withdraw().await;
                Err(error)
            }
        }
    }
}

/// One attempt to get a lock.
struct Contender<'a> {
    lock: &'a Lock,
    mode: Mode,
    /// What our node's name begins with: how we find it again when the answer to its creation is lost.
    token: String,
    identifier: &'a [u8],
}

impl Contender<'_> {
    /// Waits in the queue; goes on where an attempt that broke has left off.
    async fn take(&self, deadline: Instant) -> Result<Sequencer, LockError> {
        let (session, path) = (self.lock.service.session(), self.lock.path.as_str());
        let found = self.own(&session.children(path).await?);
        let own = match found {
            Some(own) => own,
            None => self.queue_up(session, path).await?,
        };
        loop {
            let names = session.children(path).await?;
            // Somebody removed our node: we begin anew, at the end.
            let Ok(before) = predecessor(&names, &own) else { return Err(RegistryError::Lost.into()) };
            let Some(before) = before else { break };
            let left = deadline.saturating_duration_since(Instant::now());
            match session.wait_gone(&format!("{path}/{before}"), left).await {
                Ok(()) => {}
                Err(RegistryError::Timeout) if Instant::now() >= deadline => return Err(LockError::Timeout),
                Err(error) => return Err(error.into()),
            }
        }
        let node = session.get(&format!("{path}/{own}")).await?.ok_or(RegistryError::Lost)?;
        Ok(Sequencer {
            lock: path.to_owned(),
            holder: own,
            mode: self.mode,
            generation: node.created,
            session: node.owner,
        })
    }

    async fn queue_up(&self, session: &Session, path: &str) -> Result<String, LockError> {
        let prefix = format!("{path}/{}{}", self.token, self.mode.mark());
        let made = match session.create_passing(&prefix, self.identifier, true).await {
            // The lock's node isn't there, or went with its last contender.
            Err(RegistryError::Absent) => {
                session.create_container(path).await?;
                session.create_passing(&prefix, self.identifier, true).await?
            }
            made => made?,
        };
        Ok(made[path.len() + 1..].to_owned())
    }

    fn own(&self, names: &[String]) -> Option<String> {
        names.iter().find(|name| name.starts_with(&self.token)).cloned()
    }

    /// Leaves the queue. What can't be removed goes with the session.
    async fn withdraw(&self) {
        let (session, path) = (self.lock.service.session(), self.lock.path.as_str());
        if let Ok(names) = session.children(path).await
            && let Some(own) = self.own(&names)
        {
            give_back(session, &format!("{path}/{own}")).await;
        }
    }
}

async fn give_back(session: &Session, path: &str) {
    for _ in 0..RELEASE_ATTEMPTS {
        match session.delete(path).await {
            Err(error) if error.retriable() => tokio::time::sleep(RETRY_PAUSE).await,
            Err(error) => {
                return tracing::warn!(%error, path, "a lock can't be given back; its session's end will");
            }
            Ok(()) => return,
        }
    }
}

/// A lock that is held, until it is given back, or lost. Dropped, it is given back in the background.
pub struct Held {
    service: LockService,
    sequencer: Sequencer,
    generation: u64,
    /// Whether the holder's node has gone.
    gone: watch::Receiver<bool>,
    watching: JoinHandle<()>,
    released: bool,
}

impl Held {
    fn new(service: LockService, sequencer: Sequencer, generation: u64) -> Self {
        let (tell, gone) = watch::channel(false);
        let session = service.session().clone();
        let watching = tokio::spawn(watch_node(session, sequencer.path(), tell));
        Self { service, sequencer, generation, gone, watching, released: false }
    }

    /// What is to be shown to whatever is changed under this lock.
    pub const fn sequencer(&self) -> &Sequencer {
        &self.sequencer
    }

    /// Whether the lock is ours for sure: the lease is safe, and nobody removed our node. What the answer is
    /// worth a moment later, a sequencer's check alone can tell.
    pub fn is_held(&self) -> bool {
        let view = self.service.view();
        view.generation == self.generation && view.state == LeaseState::Safe && !*self.gone.borrow()
    }

    /// Waits until the lock is lost. Jeopardy is no loss yet: see [`LockService::lease`].
    pub async fn lost(&self) {
        let (mut lease, mut gone) = (self.service.lease(), self.gone.clone());
        let generation = self.generation;
        let expired =
            lease.wait_for(|view| view.generation != generation || view.state == LeaseState::Expired);
        // A channel that has ended says as much.
        tokio::select! {
            _ = expired => {}
            _ = gone.wait_for(|gone| *gone) => {}
        }
    }

    /// Gives the lock back, and waits until others can have it.
    pub async fn release(mut self) {
        self.released = true;
        self.watching.abort();
        give_back(self.service.session(), &self.sequencer.path()).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.watching.abort();
        if self.released {
            return;
        }
        // Without a runtime there is nobody to do it: the session's end will.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (service, path) = (self.service.clone(), self.sequencer.path());
            runtime.spawn(async move { give_back(service.session(), &path).await });
        }
    }
}

/// Tells when a node has gone.
pub(super) async fn watch_node(session: Session, path: String, tell: watch::Sender<bool>) {
    loop {
        match session.wait_gone(&path, WATCH).await {
            Ok(()) => {
                // Nobody may listen any more.
                let _ = tell.send(true);
                return;
            }
            Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
        }
    }
}
