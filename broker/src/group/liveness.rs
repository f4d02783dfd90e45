//! Whether this broker may speak for its groups. One that the ensemble doesn't hear any more may have been replaced
//! already; so may one that stood still for a while, whatever its connection says.
//!
//! Writes are safe without this, as they name the version of the group's node; this keeps answers right that write
//! nothing. Called by `table` and ticked by `upkeep`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use loggos_client::registry::Registry;
use loggos_protocol::kafka::ErrorCode;

/// How long a broker waits for the ensemble's word after it stood still.
const PATIENCE: Duration = Duration::from_secs(5);

/// What this broker knows of itself.
pub(super) struct Liveness {
    registry: Registry,
    began: Instant,
    /// Milliseconds after `began`: when it was seen at work last.
    beat: AtomicU64,
}

impl Liveness {
    pub(super) fn new(registry: Registry) -> Self {
        Self { registry, began: Instant::now(), beat: AtomicU64::new(0) }
    }

    fn elapsed_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// This broker is at work. Called more often than a session may be silent.
    pub(super) async fn beat(&self) {
        // Who comes late asks before it says so.
        if self.stood_still() && self.ask().await.is_err() {
            return;
        }
        self.beat.store(self.elapsed_ms(), Ordering::Release);
    }

    fn stood_still(&self) -> bool {
        let silence = self.elapsed_ms().saturating_sub(self.beat.load(Ordering::Acquire));
        Duration::from_millis(silence) > self.registry.session().timeout() / 2
    }

    async fn ask(&self) -> Result<(), ErrorCode> {
        match tokio::time::timeout(PATIENCE, self.registry.session().sync()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(ErrorCode::COORDINATOR_NOT_AVAILABLE),
        }
    }

    /// Whether this broker may answer for its groups.
    pub(super) async fn ensure(&self) -> Result<(), ErrorCode> {
        if !self.registry.session().is_connected() {
            return Err(ErrorCode::COORDINATOR_NOT_AVAILABLE);
        }
        if self.stood_still() { self.ask().await } else { Ok(()) }
    }
}
