//! The coordinator's options, as the binary hands them over.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::error::CoordinatorError;

/// Options of one coordination server. Every field has a default.
#[derive(Clone, Debug)]
pub struct CoordinatorOptions {
    /// Where the ledger and the snapshots are kept; made if absent.
    pub data_dir: PathBuf,
    /// Where ZooKeeper clients connect; port 0 takes a free one.
    pub client_listen: SocketAddr,
    /// Where the other servers connect; port 0 takes a free one.
    pub peer_listen: SocketAddr,
    /// All servers of a new ensemble; empty for a server of its own.
    pub servers: Vec<String>,
    /// A server of the ensemble to be let into.
    pub join: Option<String>,
    /// How often the leaseholder speaks to the others.
    pub heartbeat: Duration,
    /// How long a lease runs.
    pub lease: Duration,
    /// The shortest session that a client can have.
    pub session_min: Duration,
    /// The longest session that a client can have.
    pub session_max: Duration,
    /// Whoever authenticates with `user:password` whose `user:base64(sha1(...))` this is may do anything.
    pub super_digest: Option<String>,
    /// The longest frame of a client in bytes (ZooKeeper's `jute.maxbuffer`).
    pub frame_limit: usize,
    /// How many clients may be connected at a time.
    pub connections_max: usize,
    /// How many of them from one address; 0 is no limit.
    pub connections_per_address: usize,
    /// How often containers and nodes with a time to live are looked through for unused ones.
    pub unused_check: Duration,
}

impl Default for CoordinatorOptions {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./loggos-data/coordinator"),
            client_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 2181)),
            peer_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 2888)),
            servers: Vec::new(),
            join: None,
            heartbeat: Duration::from_millis(50),
            lease: Duration::from_millis(300),
            session_min: Duration::from_millis(500),
            session_max: Duration::from_secs(60),
            super_digest: None,
            frame_limit: 1_048_575,
            connections_max: 10_000,
            connections_per_address: 0,
            unused_check: Duration::from_secs(60),
        }
    }
}

impl CoordinatorOptions {
    /// Says no to what can't work, by the option's name.
    pub(crate) fn check(&self) -> Result<(), CoordinatorError> {
        let refuse = |option, why: &str| Err(CoordinatorError::Option { option, why: why.to_owned() });
        if !self.servers.is_empty() {
            return refuse("--servers", "an ensemble isn't built yet; leave it out for a server of its own");
        }
        if self.join.is_some() {
            return refuse("--join", "an ensemble isn't built yet; leave it out for a server of its own");
        }
        if self.session_min.is_zero() {
            return refuse("--session-min-ms", "a session needs more than 0 ms; 500 is the default");
        }
        if self.session_min > self.session_max {
            return refuse("--session-min-ms", "the shortest session is longer than --session-max-ms");
        }
        if self.unused_check.is_zero() {
            return refuse("--unused-check-ms", "there is a pause between two looks; 60000 is the default");
        }
        if i32::try_from(self.session_max.as_millis()).is_err() {
            return refuse("--session-max-ms", "ZooKeeper's clients can't hear of more than 2147483647 ms");
        }
        Ok(())
    }

    /// The time-out that a client gets which asks for `asked_ms`.
    pub(crate) fn session_timeout(&self, asked_ms: i32) -> Duration {
        Duration::from_millis(u64::try_from(asked_ms).unwrap_or(0)).clamp(self.session_min, self.session_max)
    }
}
