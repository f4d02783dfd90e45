//! Options that several commands take, and what they are in the client's words. Called by the tools.

use std::time::Duration;

use clap::{Args, ValueEnum};
use loggos_client::{Acks, Cluster, ClusterConfig, ProducerConfig};
use loggos_protocol::batch::Compression;
use loggos_protocol::ids::TopicName;

use super::Failure;

/// How long `send` waits for a topic or for room: a tool says soon that something is wrong.
const MAX_BLOCK: Duration = Duration::from_secs(30);

/// Where the cluster is.
#[derive(Args, Clone, Debug)]
pub struct Bootstrap {
    /// Brokers to begin with; one that answers is enough
    #[arg(
        long,
        env = "LOGGOS_BOOTSTRAP",
        value_name = "HOST:PORT,...",
        default_value = "127.0.0.1:9092",
        value_delimiter = ',',
        value_parser = address
    )]
    bootstrap: Vec<String>,
}

fn address(text: &str) -> Result<String, String> {
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(1..)) => Ok(text.to_owned()),
        _ => Err("it must be HOST:PORT".to_owned()),
    }
}

impl Bootstrap {
    /// The client's settings.
    pub fn config(&self) -> ClusterConfig {
        ClusterConfig { bootstrap: self.bootstrap.clone(), ..ClusterConfig::default() }
    }

    /// The cluster, after a first look whether anybody is there.
    pub async fn cluster(&self) -> Result<Cluster, Failure> {
        let cluster = Cluster::new(self.config());
        cluster.any().await?;
        Ok(cluster)
    }
}

/// When a record counts as written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AcksOption {
    /// When it is sent
    #[value(name = "0")]
    None,
    /// When the leader has it
    #[value(name = "1")]
    Leader,
    /// When all in-sync replicas have it
    #[value(name = "all", alias = "-1")]
    All,
}

/// How to send.
#[derive(Args, Clone, Debug)]
pub struct Sending {
    /// When a record counts as written
    #[arg(long, value_enum, default_value = "all")]
    acks: AcksOption,

    /// How batches are compressed: none, gzip, snappy, lz4 or zstd
    #[arg(long, value_name = "CODEC", default_value = "none", value_parser = compression)]
    compression: Compression,

    /// How long a batch waits to be filled
    #[arg(long, value_name = "MS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=60_000))]
    linger_ms: u64,

    /// Size at which a batch is full
    #[arg(long, value_name = "BYTES", default_value_t = 64 * 1024, value_parser = clap::value_parser!(u32).range(1..=100 * 1024 * 1024))]
    batch_bytes: u32,
}

fn compression(name: &str) -> Result<Compression, String> {
    Compression::from_name(name).ok_or_else(|| "it must be none, gzip, snappy, lz4 or zstd".to_owned())
}

impl Sending {
    /// The producer's settings.
    pub fn config(&self, bootstrap: &Bootstrap) -> ProducerConfig {
        let defaults = ProducerConfig::default();
        let batch_bytes = self.batch_bytes as usize;
        ProducerConfig {
            cluster: ClusterConfig { bootstrap: bootstrap.bootstrap.clone(), ..defaults.cluster.clone() },
            acks: match self.acks {
                AcksOption::None => Acks::None,
                AcksOption::Leader => Acks::Leader,
                AcksOption::All => Acks::All,
            },
            compression: self.compression,
            linger: Duration::from_millis(self.linger_ms),
            batch_bytes,
            max_request_bytes: defaults.max_request_bytes.max(batch_bytes),
            buffer_bytes: defaults.buffer_bytes.max(batch_bytes.saturating_mul(4)),
            max_block: MAX_BLOCK,
            ..defaults
        }
    }
}

/// A topic's name, by Kafka's rule.
pub fn topic_name(text: &str) -> Result<TopicName, String> {
    if TopicName::is_valid(text) {
        Ok(TopicName::from(text))
    } else {
        Err("a topic's name is 1 to 249 of a-z A-Z 0-9 . _ -".to_owned())
    }
}

/// `KEY=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it must be KEY=VALUE".to_owned()),
    }
}
