//! `loggos agent`: ships what a machine writes down to the brokers: log files, sockets, syslog, the journal, numbers.
//!
//! | file | what it does |
//! |---|---|
//! | `config` | the TOML file |
//! | `tail` (P) | which file to read next, from where: rotation, truncation, copies, inodes given out again |
//! | `sighting` (P) | what is known of a file, and how to know it again |
//! | `lines` (P) | bytes into records |
//! | `syslog` (P) | messages on a stream, and what their headers say |
//! | `files`, `on_disk`, `sockets`, `journal`, `host` | the inputs |
//! | `item` | a record on its way, and what its arrival moves |
//! | `pump` | what is sent when, what goes to the spool, what has arrived |
//! | `spool`, `position` | what is kept on disk |
//! | `status` | the numbers |
//!
//! Of our crates it names the client's producer alone. Called by `main`.

mod config;
mod files;
mod host;
mod item;
mod journal;
mod lines;
mod on_disk;
mod position;
mod pump;
mod sighting;
mod sockets;
mod spool;
mod status;
mod syslog;
mod tail;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use clap::Args;
use loggos_client::Producer;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::config::{Config, Files, From as Begin, Key, Stdin};
use self::item::{Origin, Parcel, Stamp, wall_clock};
use self::position::Positions;
use self::pump::{Inputs, Pump};
use self::sockets::{Format, Outlet, Socket};
use self::spool::Spool;
use self::status::Status;
use crate::{ops, telemetry};

/// Parcels between an input and the pump.
const PARCELS: usize = 4;
/// After the end, what serves HTTP may take so long to finish its last answers.
const HTTP_STOP_DEADLINE: Duration = Duration::from_millis(200);

/// What the command line says; the file says the rest.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Files to follow, as shell patterns (quote them: the agent looks for new ones itself)
    paths: Vec<String>,

    /// The TOML file with everything else: see docs/agent.md
    #[arg(long, env = "LOGGOS_AGENT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Ship what is there, and end
    #[arg(long)]
    once: bool,

    /// Ship the lines of stdin
    #[arg(long)]
    stdin: bool,

    /// Brokers to begin with
    #[arg(long, env = "LOGGOS_BOOTSTRAP", value_name = "HOST:PORT,...")]
    bootstrap: Option<String>,

    /// The topic of every input that names none
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,

    /// Where positions and the spool are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Where /status and /metrics are served over HTTP
    #[arg(long, value_name = "ADDR:PORT")]
    http_listen: Option<SocketAddr>,

    /// What to log on stderr
    #[arg(long, env = "LOGGOS_LOG", value_name = "FILTER", default_value = telemetry::DEFAULT_FILTER)]
    log: String,
}

impl Options {
    fn config(&self) -> Result<Config, String> {
        let mut config = self.config.as_deref().map_or_else(|| Ok(Config::default()), Config::read)?;
        if !self.paths.is_empty() {
            config.files.push(Files {
                paths: self.paths.clone(),
                exclude: Vec::new(),
                rotated_to: Vec::new(),
                topic: None,
                key: Key::Path,
                multiline: None,
                multiline_wait_ms: 0,
                from: Begin::Beginning,
            });
        }
        if self.stdin && config.stdin.is_none() {
            config.stdin = Some(Stdin { topic: None, key: Key::Path });
        }
        if let Some(bootstrap) = &self.bootstrap {
            config.bootstrap.clone_from(bootstrap);
        }
        if let Some(topic) = &self.topic {
            config.topic.clone_from(topic);
        }
        if let Some(directory) = &self.state_dir {
            config.state_dir.clone_from(directory);
        }
        config.http_listen = self.http_listen.unwrap_or(config.http_listen);
        config.validate()?;
        Ok(config)
    }
}

/// Where the agent can be reached, kept in `<state-dir>/addresses.json`.
#[derive(Serialize)]
struct Addresses {
    http: SocketAddr,
    listeners: Vec<String>,
    pid: u32,
}

/// Runs the agent to its end; the error is a sentence.
pub fn run(options: &Options) -> Result<ExitCode, String> {
    telemetry::start_for_server(&options.log)?;
    let config = Arc::new(options.config()?);
    std::fs::create_dir_all(&config.state_dir)
        .map_err(|error| format!("state-dir: can't make {}: {error}", config.state_dir.display()))?;
    let _lock = lock(&config.state_dir)?;
    // One thread does all the sending: an agent is a guest on its machine.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("can't start the runtime: {error}"))?;
    let outcome = runtime.block_on(ship(config, options.once));
    runtime.shutdown_background();
    match outcome {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(sentence) => {
            telemetry::complain(&sentence);
            Ok(ExitCode::FAILURE)
        }
    }
}

fn lock(directory: &Path) -> Result<File, String> {
    let path = directory.join("lock");
    let file = File::create(&path).map_err(|error| format!("state-dir: {}: {error}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| format!("state-dir: another agent uses {}", directory.display()))?;
    Ok(file)
}

async fn ship(config: Arc<Config>, once: bool) -> Result<(), String> {
    let status = Arc::new(Status::default());
    let kept =
        |what: &str, error: std::io::Error| format!("{what} in {}: {error}", config.state_dir.display());
    let (mut positions, clean) =
        Positions::open(&config.state_dir).map_err(|error| kept("positions", error))?;
    status::set(&status.unclean_start, u64::from(!clean));
    let spool = &config.spool;
    let spool =
        Spool::open(&config.state_dir.join("spool"), spool.max_bytes, spool.when_full, positions.spool())
            .map_err(|error| kept("the spool", error))?;
    let (files_to, files) = mpsc::channel(PARCELS);
    let (live_to, live) = mpsc::channel(PARCELS);
    let (stop, stopped) = watch::channel(false);
    let halt = Arc::new(AtomicBool::new(false));
    let host = if config.host.is_empty() { machine_name() } else { config.host.clone() };
    let mut inputs = Starting { config: &config, host: &host, once, status: &status, tasks: JoinSet::new() };
    if !config.files.is_empty() {
        let (tail, adopted) = files::tail(&config, positions.remembered());
        positions.adopt(adopted);
        let follower = files::Follower::new(
            Arc::clone(&config),
            &host,
            tail,
            files_to.clone(),
            Arc::clone(&status),
            files::Run { once, stop: Arc::clone(&halt) },
        )?;
        std::thread::Builder::new()
            .name("tail".to_owned())
            .spawn(move || follower.run())
            .map_err(|error| format!("can't start a thread: {error}"))?;
    }
    inputs.journals(&positions, &files_to);
    let listeners = inputs.live(&live_to).await?;
    drop((files_to, live_to));
    let producer = Producer::new(config.producer()?);
    let http = serve_http(&config, &status, &listeners, stopped.clone()).await?;
    tokio::spawn(async move {
        ops::wait_for_signal().await;
        stop.send_replace(true);
    });
    let pump = Pump::new(Arc::clone(&config), producer, spool, positions, status, once);
    let outcome = pump.run(Inputs { files, live }, stopped).await;
    halt.store(true, Ordering::Release);
    let _ = tokio::time::timeout(HTTP_STOP_DEADLINE, http).await;
    outcome
}

/// What starting an input needs.
struct Starting<'a> {
    config: &'a Arc<Config>,
    host: &'a str,
    once: bool,
    status: &'a Arc<Status>,
    tasks: JoinSet<()>,
}

impl Starting<'_> {
    fn outlet(&self, topic: Option<&String>, path: &str, key: Key, to: &mpsc::Sender<Parcel>) -> Outlet {
        Outlet {
            stamp: Arc::new(Stamp::new(self.config.topic_of(topic), self.host, path, key)),
            parcels: to.clone(),
            status: Arc::clone(self.status),
            limit: self.config.max_record_bytes,
        }
    }

    fn journals(&mut self, positions: &Positions, to: &mpsc::Sender<Parcel>) {
        for (place, options) in self.config.journal.iter().enumerate() {
            let input = format!("journal-{place}");
            let cursor = positions.journal(&input).map(str::to_owned);
            let follower = journal::Follower {
                options: options.clone(),
                input: input.into(),
                topic: self.config.topic_of(options.topic.as_ref()),
                host: self.host.to_owned(),
                parcels: to.clone(),
                status: Arc::clone(self.status),
            };
            self.tasks.spawn(follower.run(cursor, self.once));
        }
    }

    /// Starts what can't be read twice; the addresses that listen.
    async fn live(&mut self, to: &mpsc::Sender<Parcel>) -> Result<Vec<String>, String> {
        let mut addresses = Vec::new();
        if let Some(stdin) = &self.config.stdin {
            let outlet = self.outlet(stdin.topic.as_ref(), "stdin", stdin.key, to);
            std::thread::spawn(move || {
                if let Err(error) = sockets::read_stdin(&outlet) {
                    tracing::warn!(%error, "stdin");
                }
            });
        }
        let lines = self.config.lines.iter().map(|listener| (listener, Format::Lines));
        let syslog = self.config.syslog.iter().map(|listener| (listener, Format::Syslog));
        for (listener, format) in lines.chain(syslog).filter(|_| !self.once) {
            let socket: Socket = sockets::bind(&listener.listen, format).await?;
            addresses.push(socket.address());
            let outlet = self.outlet(listener.topic.as_ref(), &listener.listen, listener.key, to);
            self.tasks.spawn(sockets::serve(socket, format, outlet));
        }
        if let Some(metrics) = &self.config.metrics {
            let outlet = self.outlet(metrics.topic.as_ref(), "metrics", metrics.key, to);
            let interval = Duration::from_millis(metrics.interval_ms.max(100));
            self.tasks.spawn(ship_numbers(outlet, interval, self.once));
        }
        Ok(addresses)
    }
}

async fn ship_numbers(outlet: Outlet, interval: Duration, once: bool) {
    let mut ticks = tokio::time::interval(interval);
    let mut number = 0;
    loop {
        ticks.tick().await;
        status::add(&outlet.status.records_read, 1);
        let item = outlet.stamp.item(host::sample().into(), number, wall_clock(), None, Origin::None);
        number += 1;
        if outlet.parcels.send(Parcel::Items(vec![item])).await.is_err() || once {
            return;
        }
    }
}

async fn serve_http(
    config: &Config,
    status: &Arc<Status>,
    listeners: &[String],
    mut stopped: watch::Receiver<bool>,
) -> Result<tokio::task::JoinHandle<std::io::Result<()>>, String> {
    let listener = ops::bind(config.http_listen).await?;
    let http = listener.local_addr().map_err(|error| format!("--http-listen: {error}"))?;
    let addresses = Addresses { http, listeners: listeners.to_vec(), pid: std::process::id() };
    let text = serde_json::to_string_pretty(&addresses).map_err(|error| error.to_string())?;
    let (aside, path) =
        (config.state_dir.join("addresses.json.new"), config.state_dir.join("addresses.json"));
    std::fs::write(&aside, text)
        .and_then(|()| std::fs::rename(&aside, &path))
        .map_err(|error| format!("state-dir: {}: {error}", path.display()))?;
    tracing::info!(%http, listeners = listeners.join(" "), "agent");
    let recorder = telemetry::record_metrics()?;
    let ready = ops::Readiness::default();
    ready.set(true);
    let shown = Arc::clone(status);
    let routes = Router::new().route("/status", get(move || async move { axum::Json(shown.to_json()) }));
    let stop = async move {
        // A sender that is gone is an end too.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    Ok(tokio::spawn(ops::serve(listener, recorder, ready, routes, stop)))
}

fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
