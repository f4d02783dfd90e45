//! A check that knows of a holder's end without asking: it watches the holder's node, and counts as long as its own
//! lease is safe (Burrows 2006 §2.4, the server's own session).

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::holder::watch_node;
use super::lease::LeaseState;
use super::sequencer::Sequencer;
use super::{LockError, LockService};

/// Watches over one sequencer.
pub struct Guard {
    service: LockService,
    sequencer: Sequencer,
    generation: u64,
    gone: watch::Receiver<bool>,
    watching: JoinHandle<()>,
}

impl Guard {
    /// Begins to watch. `None` if the holder is one no more already.
    ///
    /// # Errors
    /// `Registry`.
    pub async fn watch(service: &LockService, sequencer: Sequencer) -> Result<Option<Self>, LockError> {
        let (session, generation) = (service.session(), service.view().generation);
        // A server that lags could show a holder that is gone.
        session.sync().await?;
        let found = session.get(&sequencer.path()).await?;
        if found.is_none_or(|node| node.created != sequencer.generation) {
            return Ok(None);
        }
        let (tell, gone) = watch::channel(false);
        let watching = tokio::spawn(watch_node(session.clone(), sequencer.path(), tell));
        Ok(Some(Self { service: service.clone(), sequencer, generation, gone, watching }))
    }

    /// Whether the holder's node still stands, as far as we know, and our lease is safe, so that we would know. An
    /// event may be on its way: pair it with [`Highest`](super::Highest) where that matters.
    pub fn holds(&self) -> bool {
        let view = self.service.view();
        view.generation == self.generation && view.state == LeaseState::Safe && !*self.gone.borrow()
    }

    /// The sequencer that it watches over.
    pub const fn sequencer(&self) -> &Sequencer {
        &self.sequencer
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.watching.abort();
    }
}
