//! A number of places, each taken by one. The nodes are kazoo's: `<path>` says how many places there are and holds
//! one node for each that is taken; whoever wants one waits under the lock `<path>-__lock__`, so that one alone
//! watches the places.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::holder::Lock;
use super::lease::LeaseState;
use super::order::Mode;
use super::{LockError, LockService};
use crate::registry::RegistryError;

/// A semaphore, named by a path.
#[derive(Clone)]
pub struct Semaphore {
    service: LockService,
    path: String,
    lock: Lock,
    places: usize,
}

impl Semaphore {
    pub(super) fn new(service: LockService, path: &str, places: usize) -> Result<Self, LockError> {
        let lock = Lock::new(service.clone(), &format!("{path}-{}", Mode::Exclusive.mark()))?;
        Ok(Self { service, path: path.to_owned(), lock, places })
    }

    /// Takes a place; waits for at most `patience`.
    ///
    /// # Errors
    /// `Timeout`; `Places` if others count otherwise; what the ensemble says. After `Registry` the place may be
    /// taken until the session ends.
    pub async fn acquire(&self, identifier: &[u8], patience: Duration) -> Result<Place, LockError> {
        let deadline = Instant::now() + patience;
        self.agree().await?;
        let turn = self.lock.acquire(Mode::Exclusive, identifier, patience).await?;
        let taken = self.take(identifier, deadline).await;
        turn.release().await;
        taken
    }

    async fn take(&self, identifier: &[u8], deadline: Instant) -> Result<Place, LockError> {
        let (session, generation) = (self.service.session(), self.service.view().generation);
        let free = session.wait_children(&self.path, deadline, |taken| taken.len() < self.places).await;
        match free {
            Ok(_) => {}
            Err(RegistryError::Timeout) => return Err(LockError::Timeout),
            Err(error) => return Err(error.into()),
        }
        let path = format!("{}/{}", self.path, Uuid::new_v4().simple());
        session.create_passing(&path, identifier, false).await?;
        Ok(Place { service: self.service.clone(), path, generation, released: false })
    }

    /// All count the same number of places.
    async fn agree(&self) -> Result<(), LockError> {
        let session = self.service.session();
        let wanted = self.places.to_string();
        let found = session.get(&self.path).await?;
        if found.is_none() {
            session.create_container(&format!("{}-{}", self.path, Mode::Exclusive.mark())).await?;
            session.create_if_absent(&self.path, wanted.as_bytes()).await?;
        }
        let found = session.get(&self.path).await?.ok_or(RegistryError::Absent)?;
        // As kazoo: what is no number is none of ours.
        let found = std::str::from_utf8(&found.data).ok().and_then(|text| text.parse().ok());
        match found {
            Some(found) if found != self.places => Err(LockError::Places { found, wanted: self.places }),
            _ => Ok(()),
        }
    }
}

/// A place that is taken, until it is given back. Dropped, it is given back in the background.
pub struct Place {
    service: LockService,
    path: String,
    generation: u64,
    released: bool,
}

impl Place {
    /// Whether it is ours for sure: the lease is safe.
    pub fn is_held(&self) -> bool {
        let view = self.service.view();
        view.generation == self.generation && view.state == LeaseState::Safe
    }

    /// Gives it back, and waits until others can have it.
    ///
    /// # Errors
    /// `Registry`; then it is free when the session ends.
    pub async fn release(mut self) -> Result<(), LockError> {
        self.released = true;
        Ok(self.service.session().delete(&self.path).await?)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        // Without a runtime there is nobody to do it: the session's end will.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (session, path) = (self.service.session().clone(), self.path.clone());
            runtime.spawn(async move {
                if let Err(error) = session.delete(&path).await {
                    tracing::warn!(%error, path, "a place can't be given back; its session's end will");
                }
            });
        }
    }
}
