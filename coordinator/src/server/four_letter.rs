//! Four-letter words: what operators and some clients send as the first four bytes, and the texts that they get.
//!
//! Source: ZooKeeper 3.9's `server/command`; kazoo compares `ruok` and reads the version out of `envi` and `srvr`,
//! exporters parse `mntr`. Called by `connection`; the numbers come from `driver`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

/// The version that clients parse: what we speak, and who we are.
pub(crate) const VERSION: &str = concat!("3.9.3-loggos-", env!("CARGO_PKG_VERSION"), ", built on loggos");
/// What is said when no tree is there to speak about.
pub(crate) const NOT_SERVING: &str = "This ZooKeeper instance is not currently serving requests\n";

/// A word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words are their own names")]
pub(crate) enum Word {
    Ruok,
    Isro,
    Srvr,
    Stat,
    Mntr,
    Conf,
    Envi,
    Cons,
    Crst,
    Srst,
    Dump,
    Dirs,
    Wchs,
    Wchc,
    Wchp,
    Hash,
}

impl Word {
    /// The word that these bytes are, if they are one.
    pub fn of_bytes(bytes: &[u8; 4]) -> Option<Self> {
        Some(match bytes {
            b"ruok" => Self::Ruok,
            b"isro" => Self::Isro,
            b"srvr" => Self::Srvr,
            b"stat" => Self::Stat,
            b"mntr" => Self::Mntr,
            b"conf" => Self::Conf,
            b"envi" => Self::Envi,
            b"cons" => Self::Cons,
            b"crst" => Self::Crst,
            b"srst" => Self::Srst,
            b"dump" => Self::Dump,
            b"dirs" => Self::Dirs,
            b"wchs" => Self::Wchs,
            b"wchc" => Self::Wchc,
            b"wchp" => Self::Wchp,
            b"hash" => Self::Hash,
            _ => return None,
        })
    }
}

/// Everything that the words tell. Lists are filled for the words that show them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// ZooKeeper's word for what the server is: `leader`, `follower`, `standalone` and so on.
    pub mode: &'static str,
    pub uptime: Duration,
    /// Shortest, mean and longest time from a request's arrival to its reply.
    pub latency: (Duration, Duration, Duration),
    pub received: u64,
    pub sent: u64,
    pub outstanding: usize,
    pub connections: usize,
    pub sessions: usize,
    pub zxid: i64,
    pub digest: u64,
    pub nodes: usize,
    pub ephemerals: usize,
    pub data_bytes: usize,
    pub watches: usize,
    pub watching_connections: usize,
    pub watched_paths: usize,
    pub descriptors: (u64, u64),
    pub clients: Vec<Client>,
    /// Each session that has any, with its ephemeral nodes.
    pub owners: Vec<(i64, Vec<String>)>,
    pub session_ids: Vec<i64>,
    /// Each watched path with its watchers' sessions.
    pub watched: Vec<(String, Vec<i64>)>,
    /// Key and value of `conf`.
    pub settings: Vec<(&'static str, String)>,
    pub ledger_bytes: (u64, u64),
}

/// One connected client.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub peer: SocketAddr,
    pub queued: usize,
    pub received: u64,
    pub sent: u64,
    pub session: i64,
    pub timeout: Duration,
}

/// The text that answers `word`.
pub(crate) fn answer(word: Word, report: &Report) -> String {
    match word {
        Word::Ruok => "imok".to_owned(),
        Word::Isro => if report.mode == "read-only" { "ro" } else { "rw" }.to_owned(),
        Word::Srvr => format!("Zookeeper version: {VERSION}\n{}", server(report)),
        Word::Stat => {
            let clients: String = report.clients.iter().map(|client| client_line(client, false)).collect();
            format!("Zookeeper version: {VERSION}\nClients:\n{clients}\n{}", server(report))
        }
        Word::Mntr => monitor(report),
        Word::Conf => lines(report.settings.iter().map(|(key, value)| format!("{key}={value}"))),
        Word::Envi => environment(),
        Word::Cons => report.clients.iter().map(|client| client_line(client, true)).collect(),
        Word::Crst => "Connection stats reset.\n".to_owned(),
        Word::Srst => "Server stats reset.\n".to_owned(),
        Word::Dump => dump(report),
        Word::Dirs => {
            format!("datadir_size: {}\nlogdir_size: {}\n", report.ledger_bytes.0, report.ledger_bytes.1)
        }
        Word::Wchs => format!(
            "{} connections watching {} paths\nTotal watches:{}\n",
            report.watching_connections, report.watched_paths, report.watches
        ),
        Word::Wchc => by_session(report),
        Word::Wchp => lines(report.watched.iter().flat_map(|(path, sessions)| {
            std::iter::once(path.clone()).chain(sessions.iter().map(|session| format!("\t0x{session:x}")))
        })),
        Word::Hash => format!("{:x}\t{:x}\n", report.zxid, report.digest),
    }
}

fn server(report: &Report) -> String {
    let (least, mean, most) = report.latency;
    format!(
        "Latency min/avg/max: {}/{:.4}/{}\nReceived: {}\nSent: {}\nConnections: {}\nOutstanding: {}\n\
         Zxid: 0x{:x}\nMode: {}\nNode count: {}\n",
        least.as_millis(),
        millis(mean),
        most.as_millis(),
        report.received,
        report.sent,
        report.connections,
        report.outstanding,
        report.zxid,
        report.mode,
        report.nodes,
    )
}

fn client_line(client: &Client, full: bool) -> String {
    let counts = format!("queued={},recved={},sent={}", client.queued, client.received, client.sent);
    let rest = if full {
        format!(",sid=0x{:x},to={}", client.session, client.timeout.as_millis())
    } else {
        String::new()
    };
    format!(" /{}[1]({counts}{rest})\n", client.peer)
}

fn monitor(report: &Report) -> String {
    let (least, mean, most) = report.latency;
    let pairs = [
        ("version", VERSION.to_owned()),
        ("server_state", report.mode.to_owned()),
        ("avg_latency", format!("{:.4}", millis(mean))),
        ("max_latency", most.as_millis().to_string()),
        ("min_latency", least.as_millis().to_string()),
        ("packets_received", report.received.to_string()),
        ("packets_sent", report.sent.to_string()),
        ("num_alive_connections", report.connections.to_string()),
        ("outstanding_requests", report.outstanding.to_string()),
        ("znode_count", report.nodes.to_string()),
        ("watch_count", report.watches.to_string()),
        ("ephemerals_count", report.ephemerals.to_string()),
        ("approximate_data_size", report.data_bytes.to_string()),
        ("open_file_descriptor_count", report.descriptors.0.to_string()),
        ("max_file_descriptor_count", report.descriptors.1.to_string()),
        ("uptime", report.uptime.as_millis().to_string()),
        ("global_sessions", report.sessions.to_string()),
        ("loggos_applied", report.zxid.to_string()),
    ];
    lines(pairs.into_iter().map(|(key, value)| format!("zk_{key}\t{value}")))
}

fn environment() -> String {
    let pairs = [
        ("zookeeper.version", VERSION.to_owned()),
        ("host.name", rustix::system::uname().nodename().to_string_lossy().into_owned()),
        ("os.name", std::env::consts::OS.to_owned()),
        ("os.arch", std::env::consts::ARCH.to_owned()),
        ("os.version", rustix::system::uname().release().to_string_lossy().into_owned()),
    ];
    format!("Environment:\n{}", lines(pairs.into_iter().map(|(key, value)| format!("{key}={value}"))))
}

fn dump(report: &Report) -> String {
    let mut text = format!("Session Sets ({})/({}):\n", report.session_ids.len(), report.session_ids.len());
    for session in &report.session_ids {
        let _ = writeln!(text, "\t0x{session:x}");
    }
    let _ = writeln!(text, "ephemeral nodes dump:\nSessions with Ephemerals ({}):", report.owners.len());
    for (session, paths) in &report.owners {
        let _ = writeln!(text, "0x{session:x}:");
        for path in paths {
            let _ = writeln!(text, "\t{path}");
        }
    }
    text
}

fn by_session(report: &Report) -> String {
    let mut sessions: std::collections::BTreeMap<i64, Vec<&str>> = std::collections::BTreeMap::new();
    for (path, watchers) in &report.watched {
        for session in watchers {
            sessions.entry(*session).or_default().push(path);
        }
    }
    lines(sessions.into_iter().flat_map(|(session, paths)| {
        std::iter::once(format!("0x{session:x}"))
            .chain(paths.into_iter().map(|path| format!("\t{path}")).collect::<Vec<_>>())
    }))
}

fn lines(all: impl Iterator<Item = String>) -> String {
    all.fold(String::new(), |mut text, line| {
        text.push_str(&line);
        text.push('\n');
        text
    })
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_compare_texts_find_theirs() {
        let report = Report { mode: "standalone", zxid: 31, nodes: 5, ..Report::default() };
        assert_eq!(answer(Word::Ruok, &report), "imok");
        assert_eq!(answer(Word::Isro, &report), "rw");
        let srvr = answer(Word::Srvr, &report);
        assert!(srvr.starts_with("Zookeeper version: 3.9.3-loggos-"), "{srvr}");
        assert!(srvr.contains("\nZxid: 0x1f\nMode: standalone\nNode count: 5\n"), "{srvr}");
        assert!(answer(Word::Mntr, &report).contains("\nzk_znode_count\t5\n"));
        assert!(answer(Word::Envi, &report).starts_with("Environment:\nzookeeper.version=3.9.3"));
    }

    #[test]
    fn a_frame_s_length_is_no_word() {
        assert_eq!(Word::of_bytes(&[0, 0, 0, 45]), None);
        assert_eq!(Word::of_bytes(b"ruok"), Some(Word::Ruok));
    }
}
