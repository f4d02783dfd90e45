//! The coordinator's options, as the binary hands them over.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::error::CoordinatorError;
use crate::paxos::membership::VOTERS_LIMIT;

/// Options of one coordination server. Every field has a default.
#[derive(Clone, Debug)]
pub struct CoordinatorOptions {
    /// Where the ledger and the snapshots are kept; made if absent.
    pub data_dir: PathBuf,
    /// Where ZooKeeper clients connect; port 0 takes a free one.
    pub client_listen: SocketAddr,
    /// Where the other servers connect; port 0 takes a free one.
    pub peer_listen: SocketAddr,
    /// Where the other servers connect to catch up; `None` takes the port 1000 above that of `peer_listen`,
    /// or a free one.
    pub bulk_listen: Option<SocketAddr>,
    /// All servers of a new ensemble; empty for a server of its own.
    pub servers: Vec<String>,
    /// A server of the ensemble to be let into.
    pub join: Option<String>,
    /// How often the leaseholder speaks to the others.
    pub heartbeat: Duration,
    /// How long a lease runs.
    pub lease: Duration,
    /// A voter that is silent for so long gives its place to a server that stands by.
    pub replace_after: Duration,
    /// Whether clients that ask for it may read here while there is no leader.
    pub read_only: bool,
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
            bulk_listen: None,
            servers: Vec::new(),
            join: None,
            heartbeat: Duration::from_millis(50),
            lease: Duration::from_millis(300),
            replace_after: Duration::from_secs(3 * 3600),
            read_only: false,
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
        if !self.servers.is_empty() && self.join.is_some() {
            return refuse("--join", "--servers forms a cell, --join grows one: give one or the other");
        }
        if !self.servers.is_empty() && self.servers.len().is_multiple_of(2) {
            return refuse(
                "--servers",
                "an even number of servers survives no more failures: name 1, 3, 5 or 7",
            );
        }
        if self.servers.len() > VOTERS_LIMIT {
            return refuse("--servers", "more than 7 servers only slow a cell down; the others may --join");
        }
        for (at, server) in self.servers.iter().enumerate() {
            if host_and_port(server).is_none() {
                return refuse(
                    "--servers",
                    &format!("'{server}' is not HOST:PORT, as in a:2888,b:2888,c:2888"),
                );
            }
            if self.servers[..at].contains(server) {
                return refuse("--servers", &format!("'{server}' is named twice"));
            }
        }
        if self.join.as_deref().is_some_and(|server| host_and_port(server).is_none()) {
            return refuse("--join", "a server of the cell by its peer address, HOST:PORT, as in a:2888");
        }
        if self.heartbeat.is_zero() || self.lease < self.heartbeat * 3 {
            return refuse("--lease-ms", "a lease must outlast three heartbeats (--heartbeat-ms)");
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

    /// Whether other machines take part: then listeners that were left at their defaults must be reachable.
    pub fn spans_machines(&self) -> bool {
        let is_here = |server: &String| {
            let host = host_and_port(server).map_or("", |(host, _)| host);
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        };
        !self.servers.iter().chain(&self.join).all(is_here)
    }

    /// Opens listeners that were left at their defaults to other machines, if any take part.
    pub(crate) fn widen(&mut self) {
        if self.spans_machines() {
            let default = Self::default();
            for (listen, left) in [
                (&mut self.client_listen, default.client_listen),
                (&mut self.peer_listen, default.peer_listen),
            ] {
                if *listen == left {
                    listen.set_ip(Ipv4Addr::UNSPECIFIED.into());
                }
            }
        }
    }

    /// The engine's settings.
    pub(crate) fn engine(&self) -> crate::paxos::event::Options {
        crate::paxos::event::Options {
            heartbeat: self.heartbeat,
            lease: self.lease,
            election_min: self.lease,
            election_max: self.lease * 5 / 3,
            replace_after: self.replace_after,
            ..crate::paxos::event::Options::default()
        }
    }

    /// The time-out that a client gets which asks for `asked_ms`.
    pub(crate) fn session_timeout(&self, asked_ms: i32) -> Duration {
        Duration::from_millis(u64::try_from(asked_ms).unwrap_or(0)).clamp(self.session_min, self.session_max)
    }
}

/// Host and port of `HOST:PORT`; brackets around an IPv6 address stay outside.
pub(crate) fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some((host, port.parse().ok()?))
}
