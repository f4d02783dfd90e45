//! An election: whoever holds a lock leads, and its contenders' data say where to find them (Burrows 2006 §2.1, the
//! election of a primary). kazoo's elections and locks on the same path take part.

use std::time::{Duration, Instant};

use super::holder::{Held, Lock};
use super::order::{Mode, queue};
use super::{LockError, LockService};
use crate::registry::RegistryError;

/// How long a look at the leader lasts before it is taken anew.
const LOOK: Duration = Duration::from_secs(3600);

/// An election, named by a path.
#[derive(Clone)]
pub struct Election {
    service: LockService,
    lock: Lock,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// What it gave as its location.
    pub location: Vec<u8>,
    /// Its node's path.
    pub path: String,
}

impl Election {
    pub(super) fn new(service: LockService, path: &str) -> Result<Self, LockError> {
        let lock = Lock::new(service.clone(), path)?;
        Ok(Self { service, lock })
    }

    /// Stands for election and waits to lead, for at most `patience`. The others find `location`. What is held
    /// is leadership: its sequencer goes with all that a leader does, and [`Held::lost`] ends it.
    ///
    /// # Errors
    /// Those of [`Lock::acquire`].
    pub async fn lead(&self, location: &[u8], patience: Duration) -> Result<Held, LockError> {
        self.lock.acquire(Mode::Exclusive, location, patience).await
    }

    /// Who leads, as the server that we are connected to knows.
    ///
    /// # Errors
    /// `Registry`.
    pub async fn leader(&self) -> Result<Option<Leader>, LockError> {
        let session = self.service.session();
        let names = session.children(self.lock.path()).await?;
        for (name, _) in queue(&names) {
            let path = format!("{}/{name}", self.lock.path());
            // Who has just gone is followed by the next in the queue.
            if let Some(node) = session.get(&path).await? {
                return Ok(Some(Leader { location: node.data, path }));
            }
        }
        Ok(None)
    }

    /// Waits until somebody other than `known` leads.
    ///
    /// # Errors
    /// `Timeout` after `patience`; `Registry`.
    pub async fn next_leader(&self, known: Option<&Leader>, patience: Duration) -> Result<Leader, LockError> {
        let deadline = Instant::now() + patience;
        let session = self.service.session();
        loop {
            let found = self.leader().await?;
            if let Some(found) = found
                && known != Some(&found)
            {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now()).min(LOOK);
            let waited = match known {
                Some(known) => session.wait_gone(&known.path, left).await,
                None => {
                    session.create_container(self.lock.path()).await?;
                    let somebody = |names: &[String]| !queue(names).is_empty();
                    session.wait_children(self.lock.path(), Instant::now() + left, somebody).await.map(|_| ())
                }
            };
            match waited {
                Err(RegistryError::Timeout) if Instant::now() >= deadline => return Err(LockError::Timeout),
                Err(RegistryError::Timeout) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
            // The old leader's node has gone, and nobody else stands: wait for whoever comes.
            if known.is_some() && self.leader().await?.is_none() {
                return Box::pin(self.next_leader(None, deadline.saturating_duration_since(Instant::now())))
                    .await;
            }
        }
    }
}
