//! The long-running roles: what starts in which order, what is printed, and how it all ends. Decides nothing about
//! records or votes.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use loggos_broker::{Broker, BrokerHandle, BrokerOptions};
use loggos_coordinator::{Coordinator, CoordinatorHandle, CoordinatorOptions};
use loggos_protocol::ids::BrokerId;
use loggos_storage::disk::{Disk, FsDisk};
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{CellOptions, CommonOptions, CoordinatorRoleOptions, ServeOptions, settings_map};
use crate::{commands, ops, telemetry};

/// How long a stopping server may take to flush and say goodbye before the process ends regardless.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two looks for the cell's leader.
const LEADER_PAUSE: Duration = Duration::from_millis(5);
/// What serves `/metrics` may take this long to finish its last answers.
const HTTP_STOP_DEADLINE: Duration = Duration::from_millis(200);

/// Why a role can't run: one sentence that names the option and the fix.
#[derive(Debug)]
pub struct Refusal(String);

impl Refusal {
    /// Wraps the sentence.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Refusal {
    fn from(sentence: String) -> Self {
        Self(sentence)
    }
}

/// Where a running process can be reached; printed first and kept in `<data-dir>/addresses.json`.
#[derive(Serialize)]
struct Addresses {
    #[serde(skip_serializing_if = "Option::is_none")]
    kafka: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    coordinator: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<SocketAddr>,
    http: SocketAddr,
    pid: u32,
}

/// Runs `loggos serve` until a signal ends it.
pub fn serve(options: ServeOptions) -> Result<ExitCode, Refusal> {
    let started = Instant::now();
    telemetry::start_for_server(&options.common.log)?;
    let broker_options = broker_options(&options)?;
    let external = !options.coordinator.is_empty();
    if external && (!options.cell.servers.is_empty() || !options.cell.join.is_empty()) {
        return Err(Refusal::new(
            "--coordinator names an ensemble elsewhere, --servers and --join make one here: give one or the other",
        ));
    }
    let _lock = claim_data_dir(&options.common.data_dir)?;
    runtime(&options.common)?.block_on(async {
        let http = ops::bind(options.common.http_listen).await?;
        let coordinator = if external {
            None
        } else {
            Some(start_coordinator(&options.common.data_dir, &options.cell).await?)
        };
        let broker_options = match &coordinator {
            Some(handle) => in_cell(broker_options, handle).await,
            None => broker_options,
        };
        let broker = Broker::start(broker_options).await.map_err(|error| Refusal::new(error.to_string()))?;
        run(options.common, http, coordinator, Some(broker), started).await
    })
}

/// Runs `loggos coordinator` until a signal ends it.
pub fn coordinate(options: CoordinatorRoleOptions) -> Result<ExitCode, Refusal> {
    let started = Instant::now();
    telemetry::start_for_server(&options.common.log)?;
    let _lock = claim_data_dir(&options.common.data_dir)?;
    runtime(&options.common)?.block_on(async {
        let http = ops::bind(options.common.http_listen).await?;
        let coordinator = start_coordinator(&options.common.data_dir, &options.cell).await?;
        run(options.common, http, Some(coordinator), None, started).await
    })
}

/// Everything stands: say so, wait for a signal, and take it down in the opposite order.
async fn run(
    common: CommonOptions,
    http: tokio::net::TcpListener,
    coordinator: Option<CoordinatorHandle>,
    broker: Option<BrokerHandle>,
    started: Instant,
) -> Result<ExitCode, Refusal> {
    let recorder = telemetry::record_metrics()?;
    let addresses = Addresses {
        kafka: broker.as_ref().map(BrokerHandle::kafka_addr),
        coordinator: coordinator.as_ref().map(CoordinatorHandle::client_addr),
        peer: coordinator.as_ref().map(CoordinatorHandle::peer_addr),
        http: http.local_addr().map_err(|error| Refusal::new(format!("--http-listen: {error}")))?,
        pid: std::process::id(),
    };
    keep_addresses(&common.data_dir, &addresses)?;
    announce(&common.data_dir, &addresses, started.elapsed());
    let readiness = ops::Readiness::default();
    readiness.set(true);
    let (stop_http, stopped) = tokio::sync::oneshot::channel::<()>();
    let commands =
        coordinator.as_ref().map_or_else(axum::Router::new, |own| commands::router(own.operator()));
    let server = tokio::spawn(ops::serve(http, recorder, readiness.clone(), commands, async {
        let _ = stopped.await;
    }));
    let mut coordinator = coordinator;
    let signal = tokio::select! {
        signal = wait_for_signal() => signal?,
        error = failure(&mut coordinator) => {
            tracing::error!(%error, "the coordination server has failed: the process ends");
            return Ok(ExitCode::FAILURE);
        }
    };
    tracing::info!(signal, "stopping");
    readiness.set(false);
    let stopping = async {
        if let Some(broker) = broker {
            broker.shutdown().await;
        }
        if let Some(coordinator) = coordinator {
            coordinator.shutdown().await;
        }
    };
    let code = if tokio::time::timeout(STOP_DEADLINE, stopping).await.is_ok() {
        tracing::info!("stopped cleanly");
        ExitCode::SUCCESS
    } else {
        tracing::error!(
            deadline_ms = STOP_DEADLINE.as_millis() as u64,
            "stopped at the deadline, not cleanly"
        );
        ExitCode::FAILURE
    };
    let _ = stop_http.send(());
    let _ = tokio::time::timeout(HTTP_STOP_DEADLINE, server).await;
    Ok(code)
}

/// Waits for the failure of a coordination server; for ever, if there is none.
async fn failure(coordinator: &mut Option<CoordinatorHandle>) -> loggos_coordinator::DriverError {
    match coordinator {
        Some(handle) => handle.failed().await,
        None => std::future::pending().await,
    }
}

/// A broker beside a coordination server of its cell: it knows all of them, its own first, and is told to clients as
/// its machine is to the other servers. Returns when somebody leads the cell.
async fn in_cell(options: BrokerOptions, handle: &CoordinatorHandle) -> BrokerOptions {
    let operator = handle.operator();
    let status = loop {
        match operator.status().await {
            Some(status) if status.leader != 0 => break status,
            Some(_) => tokio::time::sleep(LEADER_PAUSE).await,
            // It has failed, and says so itself.
            None => return options,
        }
    };
    let mut own = handle.client_addr();
    if own.ip().is_unspecified() {
        own.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let others = status.members.iter().filter(|member| member.server != status.server);
    let ensemble = std::iter::once(own.to_string())
        .chain(others.map(|member| member.client.clone()))
        .collect::<Vec<_>>();
    let me = status.members.iter().find(|member| member.server == status.server);
    let host = me.and_then(|member| host_and_port(&member.peer)).map(|(host, _)| host);
    let mut advertise = options.advertise.clone();
    if advertise.is_none() && options.listen.ip().is_unspecified() {
        advertise = host.map(|host| (host, options.listen.port()));
    }
    BrokerOptions { coordinator: ensemble.join(","), advertise, ..options }
}

fn broker_options(options: &ServeOptions) -> Result<BrokerOptions, Refusal> {
    let advertise = advertised("--advertise", &options.advertise)?;
    let replication_advertise = advertised("--replication-advertise", &options.replication_advertise)?;
    let mut listen = options.listen;
    if coordinator_options(&options.common.data_dir, &options.cell)?.spans_machines()
        && listen == BrokerOptions::default().listen
    {
        listen.set_ip(std::net::Ipv4Addr::UNSPECIFIED.into());
    }
    Ok(BrokerOptions {
        data_dir: options.common.data_dir.join("broker"),
        listen,
        advertise,
        replication_advertise,
        coordinator: options.coordinator.clone(),
        broker_id: (options.broker_id >= 0).then(|| BrokerId::new(options.broker_id)),
        rack: (!options.rack.is_empty()).then(|| options.rack.clone()),
        configs: settings_map(&options.set)?,
        session_timeout: Duration::from_millis(options.session_timeout_ms.into()),
    })
}

/// An address that others are told, if there is one.
fn advertised(option: &str, text: &str) -> Result<Option<(String, u16)>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let example = format!("'{text}' is not HOST:PORT, as in {option} broker1.example:9092");
    host_and_port(text).map(Some).ok_or_else(|| Refusal::new(format!("{option}: {example}")))
}

fn coordinator_options(data_dir: &Path, cell: &CellOptions) -> Result<CoordinatorOptions, Refusal> {
    let bulk_listen = match cell.bulk_listen.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            Refusal::new(format!("--bulk-listen: '{text}' is not ADDR:PORT, as in 0.0.0.0:3888"))
        })?),
    };
    Ok(CoordinatorOptions {
        data_dir: data_dir.join("coordinator"),
        client_listen: cell.coordinator_listen,
        peer_listen: cell.peer_listen,
        bulk_listen,
        servers: cell.servers.clone(),
        join: (!cell.join.is_empty()).then(|| cell.join.clone()),
        heartbeat: Duration::from_millis(cell.heartbeat_ms),
        lease: Duration::from_millis(cell.lease_ms),
        replace_after: Duration::from_millis(cell.replace_after_ms),
        read_only: cell.read_only_mode,
        session_min: Duration::from_millis(cell.session_min_ms.into()),
        session_max: Duration::from_millis(cell.session_max_ms.into()),
        connections_per_address: cell.connections_per_address,
        unused_check: Duration::from_millis(cell.unused_check_ms),
        super_digest: (!cell.super_digest.is_empty()).then(|| cell.super_digest.clone()),
        ..CoordinatorOptions::default()
    })
}

async fn start_coordinator(data_dir: &Path, cell: &CellOptions) -> Result<CoordinatorHandle, Refusal> {
    let options = coordinator_options(data_dir, cell)?;
    Coordinator::start(options).await.map_err(|error| Refusal::new(error.to_string()))
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    (!host.is_empty()).then_some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
}

/// As many descriptors as the system lets us have: segments of many partitions and many connections are open.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn runtime(common: &CommonOptions) -> Result<Runtime, Refusal> {
    raise_descriptor_limit();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if common.threads > 0 {
        builder.worker_threads(common.threads);
    }
    builder.enable_all().build().map_err(|error| Refusal::new(format!("can't start the runtime: {error}")))
}

/// Makes the data directory and locks it against a second process.
fn claim_data_dir(dir: &Path) -> Result<Box<dyn fmt::Debug + Send + Sync>, Refusal> {
    let disk = FsDisk;
    disk.create_dir_all(dir)
        .map_err(|error| Refusal::new(format!("--data-dir: can't make {}: {error}", dir.display())))?;
    disk.lock(&dir.join("lock")).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => Refusal::new(format!(
            "--data-dir: {} is in use by another process; stop it, or name another directory",
            dir.display()
        )),
        _ => Refusal::new(format!("--data-dir: {} is not writable: {error}", dir.display())),
    })
}

fn keep_addresses(dir: &Path, addresses: &Addresses) -> Result<(), Refusal> {
    let path: PathBuf = dir.join("addresses.json");
    let aside = dir.join("addresses.json.new");
    let text = serde_json::to_string_pretty(addresses).map_err(|error| Refusal::new(error.to_string()))?;
    std::fs::write(&aside, text + "\n")
        .and_then(|()| std::fs::rename(&aside, &path))
        .map_err(|error| Refusal::new(format!("--data-dir: can't write {}: {error}", path.display())))
}

/// The first lines of stdout: where we are, where the data is, what to type next.
#[expect(clippy::print_stdout, reason = "a server's greeting goes to whoever started it")]
fn announce(dir: &Path, addresses: &Addresses, elapsed: Duration) {
    println!("Loggos {} is up, {} ms after its start", env!("CARGO_PKG_VERSION"), elapsed.as_millis());
    if let Some(kafka) = addresses.kafka {
        println!("  kafka        {kafka}");
    }
    if let Some(coordinator) = addresses.coordinator {
        println!("  coordinator  {coordinator}   (ZooKeeper's protocol)");
    }
    println!("  http         {}   (/metrics /healthz /readyz)", addresses.http);
    println!("  data         {}", dir.display());
    let Some(kafka) = addresses.kafka else { return };
    let at = if kafka.port() == 9092 { String::new() } else { format!(" --bootstrap {kafka}") };
    println!("Try, in another terminal:");
    println!("  loggos topic create orders --partitions 3{at}");
    println!("  echo hello | loggos produce orders{at}");
    println!("  loggos consume orders --from beginning{at}");
}

async fn wait_for_signal() -> Result<&'static str, Refusal> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| Refusal::new(error.to_string()))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| Refusal::new(error.to_string()))?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
