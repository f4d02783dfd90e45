//! The numbers behind four-letter words. Called by `driver`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use loggos_protocol::ids::SessionId;
use loggos_storage::disk::{Disk as _, FsDisk};

use super::Driver;
use crate::metrics;
use crate::server::four_letter::{self, Report, Word};
use crate::watches::ConnectionId;

/// What was counted since the start, or since somebody set it back.
pub(super) struct Statistics {
    pub started: Instant,
    latency_least: Duration,
    latency_most: Duration,
    latency_sum: Duration,
    answered: u64,
}

impl Statistics {
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            latency_least: Duration::ZERO,
            latency_most: Duration::ZERO,
            latency_sum: Duration::ZERO,
            answered: 0,
        }
    }

    /// A request that came at `at` is answered.
    pub fn answered(&mut self, write: bool, at: Instant) {
        let took = at.elapsed();
        self.latency_least = if self.answered == 0 { took } else { self.latency_least.min(took) };
        self.latency_most = self.latency_most.max(took);
        self.latency_sum += took;
        self.answered += 1;
        metrics::request(write, took);
    }

    fn mean(&self) -> Duration {
        let count = u32::try_from(self.answered).unwrap_or(u32::MAX);
        self.latency_sum.checked_div(count).unwrap_or_default()
    }
}

impl Driver {
    pub(super) fn report(&mut self, word: Word) -> Report {
        match word {
            Word::Srst => self.statistics = Statistics::new(self.statistics.started),
            Word::Crst => {
                self.clients.values_mut().for_each(|client| (client.received, client.sent) = (0, 0))
            }
            _ => {}
        }
        let statistics = &self.statistics;
        let mut report = Report {
            mode: self.mode(),
            uptime: statistics.started.elapsed(),
            latency: (statistics.latency_least, statistics.mean(), statistics.latency_most),
            received: self.clients.values().map(|client| client.received).sum(),
            sent: self.clients.values().map(|client| client.sent).sum(),
            outstanding: self.clients.values().map(super::Client::queued).sum(),
            connections: self.clients.len(),
            sessions: self.tree.session_count(),
            zxid: self.tree.zxid().raw(),
            nodes: self.tree.node_count(),
            watches: self.watches.count(),
            watching_connections: self.watches.connection_count(),
            ..Report::default()
        };
        match word {
            Word::Stat | Word::Cons => report.clients = self.client_reports(),
            Word::Mntr => {
                report.ephemerals = self.tree.ephemeral_count();
                report.data_bytes = self.tree.data_bytes();
                report.descriptors = descriptors();
            }
            Word::Dump => {
                let sessions = self.tree.sessions();
                report.session_ids = sessions.iter().map(|(session, _)| session.raw()).collect();
                report.owners = sessions
                    .iter()
                    .map(|(session, _)| (session.raw(), self.tree.ephemerals(*session, "/")))
                    .filter(|(_, paths)| !paths.is_empty())
                    .collect();
            }
            Word::Wchs => report.watched_paths = self.watches.path_count(),
            Word::Wchc | Word::Wchp => report.watched = self.watched(),
            Word::Hash => report.digest = self.tree.digest(),
            Word::Conf => report.settings = self.settings(),
            _ => {}
        }
        report
    }

    fn client_reports(&self) -> Vec<four_letter::Client> {
        let report = |client: &super::Client| four_letter::Client {
            peer: client.peer,
            queued: client.queued(),
            received: client.received,
            sent: client.sent,
            session: client.session.raw(),
            timeout: client.timeout,
        };
        self.clients.values().map(report).collect()
    }

    fn watched(&self) -> Vec<(String, Vec<i64>)> {
        let sessions: BTreeMap<_, SessionId> =
            self.clients.iter().map(|(connection, client)| (*connection, client.session)).collect();
        let name = |connection: &ConnectionId| sessions.get(connection).map(|session| session.raw());
        self.watches
            .paths()
            .into_iter()
            .map(|(path, watchers)| (path.to_owned(), watchers.iter().filter_map(name).collect()))
            .collect()
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let options = &self.options;
        vec![
            ("clientPort", options.client_listen.port().to_string()),
            ("secureClientPort", "-1".to_owned()),
            ("dataDir", options.data_dir.display().to_string()),
            ("dataLogDir", options.data_dir.display().to_string()),
            ("tickTime", crate::session_expiry::TICK.as_millis().to_string()),
            ("maxClientCnxns", options.connections_max.to_string()),
            ("minSessionTimeout", options.session_min.as_millis().to_string()),
            ("maxSessionTimeout", options.session_max.as_millis().to_string()),
            ("clientPortAddress", options.client_listen.ip().to_string()),
            ("serverId", self.identity.server.raw().to_string()),
        ]
    }
}

/// Open file descriptors of the process, and how many it may have.
fn descriptors() -> (u64, u64) {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let open = FsDisk.list(Path::new("/proc/self/fd")).map_or(0, |entries| entries.len() as u64);
    (open, most)
}
