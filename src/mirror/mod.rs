//! `loggos mirror`: topics of other clusters into one, at the same offsets.
//!
//! | file | what it does |
//! |---|---|
//! | `plan` (P) | which topics, whose share, gaps, loops |
//! | `source` | one source's records into the target |
//! | `groups` | offsets of consumer groups, and where topics have come from |
//! | `status` | how far it is |
//!
//! It is a client like any other, of Kafka's protocol on both sides. Called by `main`.

mod groups;
mod plan;
mod source;
mod status;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use clap::Args;
use loggos_client::{ClusterConfig, ConsumerConfig, ProducerConfig, SimpleConsumer};
use loggos_protocol::batch::Compression;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::plan::{Selection, Share, whole};
use self::source::{Source, reading};
use self::status::Status;
use crate::{ops, telemetry};

/// A mirror never gives a record up.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// The largest record that is mirrored.
const RECORD_LIMIT: usize = 64 * 1024 * 1024;

/// Options of `loggos mirror`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Brokers of the source
    #[arg(long, value_name = "HOST:PORT,...", required_unless_present = "config")]
    from: Option<String>,

    /// Brokers of the target
    #[arg(long, env = "LOGGOS_BOOTSTRAP", value_name = "HOST:PORT,...")]
    to: Option<String>,

    /// Which topics: a regular expression that matches the whole name
    #[arg(long, value_name = "REGEX", default_value = ".*")]
    topics: String,

    /// Which of them not
    #[arg(long, value_name = "REGEX")]
    exclude: Option<String>,

    /// What a topic's name begins with in the target
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,

    /// Carry the offsets of these consumer groups
    #[arg(long, value_name = "REGEX")]
    groups: Option<String>,

    /// Mirror what is there, and end
    #[arg(long)]
    once: bool,

    /// Be one of several that divide the partitions, as 2/3
    #[arg(long, value_name = "I/N", value_parser = Share::parse)]
    share: Option<Share>,

    /// How batches are compressed: none, gzip, snappy, lz4 or zstd
    #[arg(long, value_name = "CODEC", default_value = "lz4")]
    compression: String,

    /// A TOML file with several [[source]]s: see docs/mirror.md
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where /status and /metrics are served over HTTP
    #[arg(long, value_name = "ADDR:PORT")]
    http_listen: Option<SocketAddr>,

    /// What to log on stderr
    #[arg(long, env = "LOGGOS_LOG", value_name = "FILTER", default_value = telemetry::DEFAULT_FILTER)]
    log: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    to: Option<String>,
    #[serde(rename = "source")]
    sources: Vec<FromFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FromFile {
    name: String,
    from: String,
    #[serde(default = "everything")]
    topics: String,
    exclude: Option<String>,
    #[serde(default)]
    prefix: String,
    groups: Option<String>,
}

fn everything() -> String {
    ".*".to_owned()
}

impl Options {
    /// The sources and the target; the error is a sentence.
    fn settle(&self) -> Result<(Vec<FromFile>, String), String> {
        let mut to = self.to.clone();
        let mut sources = Vec::new();
        if let Some(path) = &self.config {
            let failed = |error: &dyn std::fmt::Display| format!("--config: {}: {error}", path.display());
            let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
            let file: File = toml::from_str(&text).map_err(|error| failed(&error))?;
            to = to.or(file.to);
            sources = file.sources;
        }
        if let Some(from) = &self.from {
            sources.push(FromFile {
                name: "source".to_owned(),
                from: from.clone(),
                topics: self.topics.clone(),
                exclude: self.exclude.clone(),
                prefix: self.prefix.clone(),
                groups: self.groups.clone(),
            });
        }
        for (place, one) in sources.iter().enumerate() {
            let others = sources.iter().enumerate().filter(|(other, _)| *other != place);
            if let Some((_, other)) =
                others.into_iter().find(|(_, other)| other.prefix.starts_with(&one.prefix))
            {
                return Err(format!(
                    "the topics of '{}' and '{}' could get the same names: give each source a prefix of its own",
                    one.name, other.name
                ));
            }
        }
        if sources.is_empty() {
            return Err("nothing to mirror: name a source with --from, or [[source]] in --config".to_owned());
        }
        Ok((sources, to.unwrap_or_else(|| "127.0.0.1:9092".to_owned())))
    }
}

/// Runs the mirror to its end; the error is a sentence.
pub fn run(options: &Options) -> Result<ExitCode, String> {
    telemetry::start_for_server(&options.log)?;
    let (sources, to) = options.settle()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("can't start the runtime: {error}"))?;
    let outcome = runtime.block_on(mirror(options, sources, &to));
    runtime.shutdown_background();
    match outcome {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(sentence) => {
            telemetry::complain(&sentence);
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn mirror(options: &Options, sources: Vec<FromFile>, to: &str) -> Result<(), String> {
    let status = Arc::new(Status::default());
    let (stop, stopped) = watch::channel(false);
    if let Some(address) = options.http_listen {
        serve_http(address, &status, stopped.clone()).await?;
    }
    let producer = ProducerConfig {
        cluster: ClusterConfig { auto_create_topics: false, ..ClusterConfig::with_bootstrap(to) },
        compression: Compression::from_name(&options.compression)
            .ok_or_else(|| "--compression must be none, gzip, snappy, lz4 or zstd".to_owned())?,
        linger: Duration::from_millis(5),
        batch_bytes: 256 * 1024,
        max_request_bytes: RECORD_LIMIT,
        buffer_bytes: RECORD_LIMIT,
        max_block: FOREVER,
        delivery_timeout: FOREVER,
        ..ProducerConfig::default()
    };
    let mut running = JoinSet::new();
    for one in sources {
        let cluster = ClusterConfig::with_bootstrap(&one.from);
        let source = Source {
            selection: Selection::new(&one.topics, one.exclude.as_deref(), &one.prefix)?,
            groups: one.groups.as_deref().map(|pattern| whole("groups", pattern)).transpose()?,
            share: options.share,
            once: options.once,
            from: SimpleConsumer::new(reading(ConsumerConfig { cluster, ..ConsumerConfig::default() })),
            to: producer.clone(),
            status: Arc::clone(&status),
            name: one.name,
        };
        running.spawn(source.run(stopped.clone()));
    }
    tokio::spawn(async move {
        ops::wait_for_signal().await;
        stop.send_replace(true);
    });
    // One source that can't go on doesn't stop the others.
    let mut first = Ok(());
    while let Some(ended) = running.join_next().await {
        let outcome = ended.map_err(|error| error.to_string()).and_then(|outcome| outcome);
        if let Err(sentence) = &outcome {
            tracing::error!(sentence, "a source is mirrored no more");
        }
        first = first.and(outcome);
    }
    first
}

async fn serve_http(
    address: SocketAddr,
    status: &Arc<Status>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), String> {
    let listener = ops::bind(address).await?;
    let recorder = telemetry::record_metrics()?;
    let ready = ops::Readiness::default();
    ready.set(true);
    let shown = Arc::clone(status);
    let routes = Router::new().route("/status", get(move || async move { axum::Json(shown.to_json()) }));
    let stop = async move {
        // A sender that is gone is an end too.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    tokio::spawn(ops::serve(listener, recorder, ready, routes, stop));
    Ok(())
}
