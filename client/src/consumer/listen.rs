//! Changes in the tree that a member waits for, gathered until it has time for them. Called by `balancer`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::registry::{RegistryError, Session};

/// Paths that are remembered; after that everything counts as changed.
const PATHS_MAX: usize = 1000;

/// Between attempts to set a watch again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Watches, and what they have told.
pub struct Ear {
    teller: Teller,
    watched: BTreeSet<String>,
    watches: JoinSet<()>,
}

/// Tells an ear that something has changed.
#[derive(Clone)]
pub struct Teller {
    /// The paths that have changed; `None` stands for any.
    paths: Arc<Mutex<Option<BTreeSet<String>>>>,
    notify: Arc<Notify>,
}

impl Teller {
    /// Tells that `path` has changed.
    pub fn tell(&self, path: String) {
        {
            let mut paths = self.paths.lock();
            if let Some(known) = &mut *paths {
                known.insert(path);
                if known.len() > PATHS_MAX {
                    *paths = None;
                }
            }
        }
        self.notify.notify_one();
    }
}

impl Ear {
    /// Nothing is watched yet.
    pub fn new() -> Self {
        let teller =
            Teller { paths: Arc::new(Mutex::new(Some(BTreeSet::new()))), notify: Arc::new(Notify::new()) };
        Self { teller, watched: BTreeSet::new(), watches: JoinSet::new() }
    }

    /// Watches `path`, unless it does already: the node alone, or everything below it too.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn watch(&mut self, session: &Session, path: &str, alone: bool) -> Result<(), RegistryError> {
        if self.watched.contains(path) {
            return Ok(());
        }
        let mut watch = session.watch_tree(path).await?;
        self.watched.insert(path.to_owned());
        let (teller, path, session) = (self.teller.clone(), path.to_owned(), session.clone());
        self.watches.spawn(async move {
            loop {
                while let Some(changed) = watch.changed().await {
                    if !alone || changed == path {
                        teller.tell(changed);
                    }
                }
                // The connection was lost: whatever happened meanwhile, nobody tells it.
                watch = loop {
                    match session.watch_tree(&path).await {
                        Ok(again) => break again,
                        Err(error) => tracing::debug!(%error, path, "a watch isn't set again yet"),
                    }
                    sleep(RETRY_PAUSE).await;
                };
                teller.tell(path.clone());
            }
        });
        Ok(())
    }

    /// What may tell this ear.
    pub fn teller(&self) -> Teller {
        self.teller.clone()
    }

    /// Waits until something has changed.
    pub async fn heard(&self) {
        self.teller.notify.notified().await;
    }

    /// The paths that have changed since the last call; `None` stands for any.
    pub fn take(&self) -> Option<BTreeSet<String>> {
        self.teller.paths.lock().replace(BTreeSet::new())
    }

    /// Watches nothing any more.
    pub fn forget(&mut self) {
        self.watches.abort_all();
        self.watched.clear();
    }
}
