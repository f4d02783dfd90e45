//! The agent's options: one TOML file, each key once, with its default and unit. Called by `mod`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use loggos_client::{ClusterConfig, ProducerConfig};
use loggos_protocol::batch::Compression;
use loggos_protocol::ids::TopicName;
use serde::Deserialize;

/// The agent never gives a record up: whoever is away for longer than this won't come back.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long one attempt to hand a record to the producer may take before the agent looks after everything else.
const MAX_BLOCK: Duration = Duration::from_secs(1);
/// Room in a request beside the record's text: headers, key, the batch's own.
const RECORD_ROOM: usize = 64 * 1024;

/// Everything that can be set.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Brokers to begin with.
    pub bootstrap: String,
    /// The topic of every input that names none.
    pub topic: String,
    /// Where positions and the spool are kept; made if absent.
    pub state_dir: PathBuf,
    /// Where /status, /metrics and /healthz are served; port 0 takes a free one.
    pub http_listen: SocketAddr,
    /// What the `host` header says; the machine's name when empty.
    pub host: String,
    /// none, gzip, snappy, lz4 or zstd.
    pub compression: String,
    /// How long a batch waits to be filled, in milliseconds.
    pub linger_ms: u64,
    /// Size at which a batch is full.
    pub batch_bytes: usize,
    /// Bytes of records that may be on their way without an acknowledgement.
    pub window_bytes: usize,
    /// The longest text of a record; what is longer goes in pieces.
    pub max_record_bytes: usize,
    /// Records a second at most; 0 is no limit.
    pub rate_limit: u64,
    /// How often files are looked at, in milliseconds.
    pub poll_ms: u64,
    /// How often positions are saved, in milliseconds.
    pub commit_ms: u64,
    /// How long a rotated file is still watched after its last line, in milliseconds.
    pub rotated_wait_ms: u64,
    /// What is kept on disk while brokers are away.
    pub spool: Spool,
    /// Files to follow.
    pub files: Vec<Files>,
    /// Lines of the agent's own stdin.
    pub stdin: Option<Stdin>,
    /// Sockets that take lines.
    pub lines: Vec<Listener>,
    /// Sockets that take syslog messages.
    pub syslog: Vec<Listener>,
    /// systemd's journal.
    pub journal: Vec<Journal>,
    /// This machine's own numbers.
    pub metrics: Option<Metrics>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bootstrap: "127.0.0.1:9092".to_owned(),
            topic: "logs".to_owned(),
            state_dir: "./loggos-agent".into(),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 9645)),
            host: String::new(),
            compression: "lz4".to_owned(),
            linger_ms: 100,
            batch_bytes: 64 * 1024,
            window_bytes: 1024 * 1024,
            max_record_bytes: 512 * 1024,
            rate_limit: 0,
            poll_ms: 250,
            commit_ms: 1_000,
            rotated_wait_ms: 10_000,
            spool: Spool::default(),
            files: Vec::new(),
            stdin: None,
            lines: Vec::new(),
            syslog: Vec::new(),
            journal: Vec::new(),
            metrics: None,
        }
    }
}

/// What is kept on disk while brokers are away.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Spool {
    /// Bytes at most.
    pub max_bytes: u64,
    /// What happens then.
    pub when_full: WhenFull,
    /// Brokers that take nothing for so long are away, in milliseconds.
    pub after_ms: u64,
}

impl Default for Spool {
    fn default() -> Self {
        Self { max_bytes: 256 * 1024 * 1024, when_full: WhenFull::Block, after_ms: 5_000 }
    }
}

/// What happens when the spool is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// Inputs wait: files are read no further, senders on sockets stall.
    Block,
    /// The oldest records make room, and are counted.
    DropOldest,
}

/// What decides a record's partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Key {
    /// The file, or whatever else it came from: its records stay in order.
    Path,
    /// The machine.
    Host,
    /// The turn.
    None,
}

/// Files to follow.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Files {
    /// Shell patterns: `/var/log/*.log`, `/srv/**/app.log`. Compressed files are never followed by name.
    pub paths: Vec<String>,
    /// Patterns of what is left out.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Directories where rotation moves files to, if not beside them.
    #[serde(default)]
    pub rotated_to: Vec<PathBuf>,
    /// Where records go.
    pub topic: Option<String>,
    /// What decides the partition.
    #[serde(default = "by_path")]
    pub key: Key,
    /// A regular expression that matches the first line of each record.
    pub multiline: Option<String>,
    /// How long a record of several lines waits for one more, in milliseconds.
    #[serde(default = "one_second")]
    pub multiline_wait_ms: u64,
    /// Where a file begins that is there when the agent starts for the first time.
    #[serde(default)]
    pub from: From,
}

/// Where reading begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    /// At the first line.
    #[default]
    Beginning,
    /// Behind the last.
    End,
}

/// The agent's own stdin.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Stdin {
    /// Where records go.
    pub topic: Option<String>,
    /// What decides the partition.
    #[serde(default = "by_path")]
    pub key: Key,
}

/// A socket.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Listener {
    /// `tcp:ADDR:PORT`, `unix:PATH`, and for syslog `udp:ADDR:PORT` and `unixgram:PATH`.
    pub listen: String,
    /// Where records go.
    pub topic: Option<String>,
    /// What decides the partition.
    #[serde(default = "by_path")]
    pub key: Key,
}

/// systemd's journal, read with `journalctl`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Journal {
    /// Journal files; the machine's own journal when there are none and no directory.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// A directory of journal files.
    pub directory: Option<PathBuf>,
    /// Where records go.
    pub topic: Option<String>,
    /// What decides the partition; `path` is the unit.
    #[serde(default = "by_path")]
    pub key: Key,
}

/// This machine's own numbers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Metrics {
    /// How often, in milliseconds.
    #[serde(default = "ten_seconds")]
    pub interval_ms: u64,
    /// Where records go.
    pub topic: Option<String>,
    /// What decides the partition.
    #[serde(default = "by_host")]
    pub key: Key,
}

const fn by_path() -> Key {
    Key::Path
}

const fn by_host() -> Key {
    Key::Host
}

const fn one_second() -> u64 {
    1_000
}

const fn ten_seconds() -> u64 {
    10_000
}

impl Config {
    /// Reads a file; the error is a sentence.
    pub fn read(file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("--config: can't read {}: {error}", file.display()))?;
        toml::from_str(&text).map_err(|error| format!("--config: {}: {error}", file.display()))
    }

    /// Refuses what can't be, before anything is opened.
    pub fn validate(&self) -> Result<(), String> {
        let no_input = self.files.is_empty()
            && self.stdin.is_none()
            && self.lines.is_empty()
            && self.syslog.is_empty()
            && self.journal.is_empty()
            && self.metrics.is_none();
        if no_input {
            return Err(
                "nothing to ship: name files, or a --config with [[files]], [stdin], [[lines]], [[syslog]], \
                        [[journal]] or [metrics]"
                    .to_owned(),
            );
        }
        self.compression()?;
        let topics = std::iter::once(Some(&self.topic))
            .chain(self.files.iter().map(|input| input.topic.as_ref()))
            .chain(self.lines.iter().chain(&self.syslog).map(|input| input.topic.as_ref()))
            .chain(self.journal.iter().map(|input| input.topic.as_ref()));
        if let Some(wrong) = topics.flatten().find(|name| !TopicName::is_valid(name)) {
            return Err(format!("'{wrong}' is not a topic's name: 1 to 249 of a-z A-Z 0-9 . _ -"));
        }
        let at_least = [
            ("linger-ms", self.linger_ms, 0, 60_000),
            ("batch-bytes", self.batch_bytes as u64, 1_024, 16 << 20),
            ("window-bytes", self.window_bytes as u64, 64 * 1_024, 1 << 30),
            ("max-record-bytes", self.max_record_bytes as u64, 64, 16 << 20),
            ("poll-ms", self.poll_ms, 10, 60_000),
            ("commit-ms", self.commit_ms, 10, 60_000),
            ("spool.max-bytes", self.spool.max_bytes, 1 << 20, 1 << 50),
            ("spool.after-ms", self.spool.after_ms, 0, 3_600_000),
        ];
        for (name, value, least, most) in at_least {
            if value < least || value > most {
                return Err(format!("{name} is {value}; it must be from {least} to {most}"));
            }
        }
        Ok(())
    }

    /// The topic of an input.
    pub fn topic_of(&self, own: Option<&String>) -> TopicName {
        TopicName::new(own.unwrap_or(&self.topic).as_str())
    }

    fn compression(&self) -> Result<Compression, String> {
        Compression::from_name(&self.compression).ok_or_else(|| {
            format!("compression is '{}'; it must be none, gzip, snappy, lz4 or zstd", self.compression)
        })
    }

    /// How records are sent: in order, numbered, and never given up.
    pub fn producer(&self) -> Result<ProducerConfig, String> {
        let cluster = ClusterConfig {
            client_id: "loggos-agent".to_owned(),
            auto_create_topics: true,
            ..ClusterConfig::with_bootstrap(&self.bootstrap)
        };
        Ok(ProducerConfig {
            cluster,
            compression: self.compression()?,
            linger: Duration::from_millis(self.linger_ms),
            batch_bytes: self.batch_bytes,
            max_request_bytes: (self.max_record_bytes + RECORD_ROOM).max(1024 * 1024),
            buffer_bytes: self.window_bytes * 4,
            max_block: MAX_BLOCK,
            delivery_timeout: FOREVER,
            ..ProducerConfig::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_a_wrong_key_refused() {
        let text = "topic = 'app'\n[[files]]\npaths = ['/var/log/*.log']\nmultiline = '^\\d'\n\
                    [spool]\nwhen-full = 'drop-oldest'\n[[syslog]]\nlisten = 'udp:127.0.0.1:5514'\n[metrics]\n";
        let config: Config = toml::from_str(text).expect("a configuration");
        config.validate().expect("valid");
        assert_eq!(config.spool.when_full, WhenFull::DropOldest);
        assert_eq!(config.metrics.expect("there").interval_ms, 10_000);
        assert!(toml::from_str::<Config>("topik = 'x'").is_err());
        assert!(Config::default().validate().is_err(), "no input");
    }
}
