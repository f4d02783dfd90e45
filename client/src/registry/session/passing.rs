//! What locks need of a session: nodes that pass with it, and waits for others to pass.

use std::time::{Duration, Instant};

use super::{Session, call, of, zk};
use crate::registry::RegistryError;

/// Where a session tells Loggos' coordinator how long its nodes shall linger when it expires.
const LINGER: &str = "/zookeeper/loggos/linger";

impl Session {
    /// Makes a node that goes with the session; its name gets the parent's next number if `numbered`. Gives its
    /// path.
    ///
    /// # Errors
    /// As `get`; after `Lost` and `Timeout` it may be there.
    pub async fn create_passing(
        &self,
        path: &str,
        data: &[u8],
        numbered: bool,
    ) -> Result<String, RegistryError> {
        let client = self.client();
        let mode = if numbered { zk::CreateMode::EphemeralSequential } else { zk::CreateMode::Ephemeral };
        let options = mode.with_acls(zk::Acls::anyone_all());
        let (_, number) = call(client.create(path, data, &options)).await?;
        Ok(if numbered { format!("{path}{number}") } else { path.to_owned() })
    }

    /// Makes a node, and those above it, that goes when its last child has gone; a lasting one where the ensemble
    /// has no such nodes. Nothing if it is there.
    ///
    /// # Errors
    /// As `get`.
    pub async fn create_container(&self, path: &str) -> Result<(), RegistryError> {
        let client = self.client();
        for (at, _) in path.match_indices('/').skip(1) {
            self.create_if_absent(&path[..at], b"").await?;
        }
        let options = zk::CreateMode::Container.with_acls(zk::Acls::anyone_all());
        match call(client.create(path, b"", &options)).await {
            Ok(_) | Err(RegistryError::Exists) => Ok(()),
            Err(RegistryError::Unsupported) => self.create_if_absent(path, b"").await,
            Err(error) => Err(error),
        }
    }

    /// Waits until the children of a node are as `wanted` says; gives their names, sorted.
    ///
    /// # Errors
    /// As `get`; `Timeout` when `deadline` has passed before.
    pub async fn wait_children(
        &self,
        path: &str,
        deadline: Instant,
        wanted: impl Fn(&[String]) -> bool,
    ) -> Result<Vec<String>, RegistryError> {
        let client = self.client();
        let come = async {
            loop {
                let listed = client.list_and_watch_children(path).await;
                let (mut names, watcher) = listed.map_err(|error| of(&error))?;
                names.sort();
                if wanted(&names) {
                    return Ok(names);
                }
                watcher.changed().await;
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        tokio::time::timeout(left, come).await.map_err(|_| RegistryError::Timeout)?
    }

    /// Has the session's nodes stay for so long when it expires, where the ensemble is Loggos'.
    ///
    /// # Errors
    /// `Absent` where it isn't; else as `get`.
    pub async fn set_linger(&self, linger: Duration) -> Result<(), RegistryError> {
        // Not in the part of the tree that we are confined to.
        let client = self.client().chroot("/").map_err(|_| RegistryError::Absent)?;
        let text = linger.as_millis().to_string();
        call(client.set_data(LINGER, text.as_bytes(), None)).await.map(|_| ())
    }
}
