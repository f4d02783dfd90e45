//! Chubby's services on the coordinator's tree (Burrows 2006): locks, semaphores, elections, sequencers, and a lease
//! that says how far a session can be trusted.
//!
//! | file | what it knows |
//! |---|---|
//! | `mod` | the service: one session, its lease, its lock-delay |
//! | `lease` | safe, in jeopardy, expired: from answered calls and the clock (P) |
//! | `keeper` | the task that asks, and tells of the lease's state |
//! | `order` | names of contenders, and who waits for whom (P) |
//! | `holder` | acquiring, holding, losing and giving back a lock |
//! | `semaphore` | a number of places |
//! | `election` | one of many leads, and all find it |
//! | `sequencer` | what a holder shows to what it changes, and its check (P) |
//! | `guard` | a check that knows of a holder's end without asking |
//!
//! Locks are advisory and coarse: they conflict with other acquisitions of the same lock, never with reads or writes
//! of the node that they name. The nodes are kazoo's, so that its locks, semaphores and elections take part, on our
//! ensemble or any ZooKeeper. A lock alone can't exclude: a holder may be paused between its look at the lease and
//! what it does then. What must not be done twice carries a [`Sequencer`], and is checked where it is done.
//!
//! Called by applications and tools; nothing of Kafka's wire is known here.

mod election;
mod guard;
mod holder;
mod keeper;
mod lease;
mod order;
mod semaphore;
mod sequencer;

use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

pub use election::{Election, Leader};
pub use guard::Guard;
pub use holder::{Held, Lock};
pub use lease::LeaseState;
pub use order::Mode;
pub use semaphore::{Place, Semaphore};
pub use sequencer::{Highest, Sequencer, SequencerError};

use crate::registry::{RegistryError, Session};

/// Why there is no lock.
#[derive(Debug, Error)]
pub enum LockError {
    /// The ensemble said no, or can't be reached.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Somebody else had it all the time.
    #[error("the lock was not free in time")]
    Timeout,
    /// The session ended while we waited; a new one can try again.
    #[error("the session ended before the lock was free")]
    SessionLost,
    /// Sequencers of this lock would be too long.
    #[error("a lock's path may take {most} bytes; this one takes {bytes}")]
    PathTooLong {
        /// Bytes of the path.
        bytes: usize,
        /// The most that it may take.
        most: usize,
    },
    /// Others use this semaphore with another number of places.
    #[error("this semaphore has {found} places, not {wanted}")]
    Places {
        /// As its node says.
        found: usize,
        /// As was asked for.
        wanted: usize,
    },
}

/// Options of a lock service. Every field has a default, Chubby's where it had one.
#[derive(Clone, Debug)]
pub struct LockOptions {
    /// How long the ensemble waits for a sign of us: the lease.
    pub session_timeout: Duration,
    /// How long a session without contact may still be saved: nobody is told that it is lost before. (Whether it
    /// can be saved is the ensemble's business.)
    pub grace: Duration,
    /// Lock-delay: how long our locks stay taken when our session expires; a minute at most. Loggos' own ensemble
    /// alone does it.
    pub linger: Duration,
}

impl Default for LockOptions {
    fn default() -> Self {
        Self {
            session_timeout: Duration::from_secs(12),
            grace: Duration::from_secs(45),
            linger: Duration::ZERO,
        }
    }
}

/// What the lease's keeper says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Counts sessions: a new number is a new session, and what was held under an old one is lost.
    pub generation: u64,
    /// How far this session can be trusted.
    pub state: LeaseState,
}

/// A session with its lease. Clones are the same.
#[derive(Clone)]
pub struct LockService {
    session: Session,
    lease: watch::Receiver<LeaseView>,
    /// Stops the keeper with the last clone.
    _keeper: std::sync::Arc<keeper::Keeper>,
}

impl LockService {
    /// Connects to the ensemble at `host:port,…[/chroot]`.
    ///
    /// # Errors
    /// `Registry`.
    pub async fn connect(cluster: &str, options: LockOptions) -> Result<Self, LockError> {
        let LockOptions { session_timeout, grace, linger } = options;
        let session = Session::connect_with_grace(cluster, session_timeout, grace).await?;
        let (keeper, lease) = keeper::Keeper::start(session.clone(), grace, linger).await;
        Ok(Self { session, lease, _keeper: std::sync::Arc::new(keeper) })
    }

    /// The session underneath.
    pub const fn session(&self) -> &Session {
        &self.session
    }

    /// The lease's state, and each change of it: in jeopardy, an application stops what only a holder may do; safe
    /// again, it goes on; expired, what it held is lost.
    pub fn lease(&self) -> watch::Receiver<LeaseView> {
        self.lease.clone()
    }

    /// A lock, named by a path. Its node is made when it is first taken.
    ///
    /// # Errors
    /// `PathTooLong`.
    pub fn lock(&self, path: &str) -> Result<Lock, LockError> {
        Lock::new(self.clone(), path)
    }

    /// A semaphore of so many places.
    ///
    /// # Errors
    /// `PathTooLong`.
    pub fn semaphore(&self, path: &str, places: usize) -> Result<Semaphore, LockError> {
        Semaphore::new(self.clone(), path, places)
    }

    /// An election.
    ///
    /// # Errors
    /// `PathTooLong`.
    pub fn election(&self, path: &str) -> Result<Election, LockError> {
        Election::new(self.clone(), path)
    }

    fn view(&self) -> LeaseView {
        *self.lease.borrow()
    }

    /// Waits until the lease is safe, at most for `left`; false if the session is another one than `generation`.
    async fn wait_safe(&self, generation: u64, left: Duration) -> bool {
        let mut lease = self.lease.clone();
        let settled = lease.wait_for(|view| view.generation != generation || view.state == LeaseState::Safe);
        // Too late is as good as any answer: the caller looks at its deadline.
        let _ = tokio::time::timeout(left, settled).await;
        self.view().generation == generation
    }
}
