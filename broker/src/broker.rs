//! The wiring: what a broker consists of, the order in which it starts and stops. The one file that knows all rooms.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use loggos_client::registry::Registry;
use loggos_protocol::ids::{BrokerEpoch, BrokerId, TopicId};
use loggos_storage::disk::FsDisk;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::Context;
use crate::clock;
use crate::config::BrokerConfigs;
use crate::controller::{Admin, Controller};
use crate::error::BrokerError;
use crate::group::table::Groups;
use crate::log::{JournalMode, LogDir, LogDirOptions, LogError};
use crate::mend;
use crate::metadata::{Metadata, View};
use crate::partition::{Table, follower, isr};
use crate::registration::{self, Presence, Registration};
use crate::server::Listener;

/// The file in the data directory that says who this broker is.
const IDENTITY_FILE: &str = "broker.json";
/// How long a start waits for its partitions to have their leaders.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);
/// Pause before something that the disk or the registry refused is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Between two looks at whether there is a lease yet.
const LEASE_PAUSE: Duration = Duration::from_millis(1);
/// How long a stopping broker tries to have others lead in its place.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(3);
/// Between two looks at what is left to hand over.
const HAND_OVER_PAUSE: Duration = Duration::from_millis(20);
/// How long it then tells clients who leads instead.
const FAREWELL: Duration = Duration::from_millis(200);
/// How long the last requests may take at a stop.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// What a broker is started with.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// Where its logs are kept.
    pub data_dir: PathBuf,
    /// Where clients connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What clients are told to connect to; `None` for where we listen.
    pub advertise: Option<(String, u16)>,
    /// What other brokers are told to connect to; `None` for what clients are told.
    pub replication_advertise: Option<(String, u16)>,
    /// The ensemble, as `host:port,…[/chroot]`.
    pub coordinator: String,
    /// Its id; `None` for the one that it has or is given.
    pub broker_id: Option<BrokerId>,
    /// Its rack.
    pub rack: Option<String>,
    /// Kafka's broker configs.
    pub configs: BTreeMap<String, String>,
    /// How long the ensemble waits for a sign of it.
    pub session_timeout: Duration,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./loggos-data/broker"),
            listen: SocketAddr::from(([127, 0, 0, 1], 9092)),
            advertise: None,
            replication_advertise: None,
            coordinator: "127.0.0.1:2181".to_owned(),
            broker_id: None,
            rack: None,
            configs: BTreeMap::new(),
            session_timeout: Duration::from_millis(600),
        }
    }
}

/// Who a broker is, remembered in its data directory.
#[derive(Serialize, Deserialize)]
struct Identity {
    broker_id: BrokerId,
    cluster_id: String,
}

/// A broker.
pub struct Broker;

/// A running broker.
pub struct BrokerHandle {
    id: BrokerId,
    address: SocketAddr,
    registry: Registry,
    admin: Admin,
    table: Arc<Table>,
    dir: Arc<LogDir>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
}

impl Broker {
    /// Starts a broker: recovers its logs, registers, takes its partitions' roles, serves.
    ///
    /// # Errors
    /// One sentence that names the option and the fix.
    pub async fn start(options: BrokerOptions) -> Result<BrokerHandle, BrokerError> {
        let configs = BrokerConfigs::from_start(options.configs.clone()).map_err(BrokerError::Config)?;
        let failed = |source| BrokerError::Listen { address: options.listen, source };
        let listener = Listener::bind(options.listen).map_err(failed)?;
        let address = listener.address().map_err(failed)?;
        // The disk and the ensemble are waited for side by side.
        let opening = open_logs(options.data_dir.clone(), log_options(&configs));
        let connecting = Registry::connect(&options.coordinator, options.session_timeout);
        let (dir, registry) = tokio::join!(opening, connecting);
        let (dir, registry) = (Arc::new(dir?), registry?);
        let fresh = TopicId::new(uuid::Uuid::new_v4()).to_string();
        let cluster_id = registry.ensure_roots(&fresh).await?;
        let (id, is_new) = identity(&options, &registry, &cluster_id).await?;
        if is_new && options.broker_id.is_some() {
            registration::disown(&registry, id).await?;
        }
        let (host, port) =
            options.advertise.clone().unwrap_or_else(|| (address.ip().to_string(), address.port()));
        let (replication, rack) = (options.replication_advertise.clone(), options.rack.clone());
        let registration = Registration { id, host, port, replication, rack };
        let (epoch, session) = registration.register(&registry).await?;
        let metadata = Metadata::start(registry.clone(), cluster_id).await?;
        let start = configs.start.clone();
        let table = Arc::new(Table::new(id, Arc::clone(&dir), configs, epoch));
        let admin = Admin::new(id, registry.clone(), metadata.clone());
        let presence = Presence::new(registration, registry.clone(), metadata.clone(), Arc::clone(&table));
        let mut tasks = vec![
            tokio::spawn(Controller::new(id, registry.clone(), metadata.clone(), start).run()),
            tokio::spawn(presence.keep(session)),
            tokio::spawn(follow(metadata.clone(), Arc::clone(&table))),
            tokio::spawn(expire(Arc::clone(&table))),
            tokio::spawn(mend::scrub(Arc::clone(&table))),
            tokio::spawn(mend::mend(admin.clone(), Arc::clone(&table))),
            tokio::spawn(follower::run(id, metadata.clone(), Arc::clone(&table))),
            tokio::spawn(isr::run(registry.clone(), metadata.clone(), Arc::clone(&table))),
        ];
        settle(&metadata, &table, id, epoch).await;
        let configs = {
            let table = Arc::clone(&table);
            Box::new(move || table.configs())
        };
        let groups = Arc::new(Groups::new(id, registry.clone(), metadata.clone(), configs));
        tasks.push(tokio::spawn(Arc::clone(&groups).run()));
        let context =
            Arc::new(Context { me: id, metadata, admin: admin.clone(), table: Arc::clone(&table), groups });
        let (stop, stopping) = watch::channel(false);
        let serving = tokio::spawn(listener.run(context, stopping));
        tasks.push(tokio::spawn(gauges(Arc::clone(&table))));
        tracing::info!(broker = %id, %address, "broker started");
        Ok(BrokerHandle { id, address, registry, admin, table, dir, stop, serving, tasks })
    }
}

impl BrokerHandle {
    /// Where clients connect.
    pub const fn kafka_addr(&self) -> SocketAddr {
        self.address
    }

    /// Its id.
    pub const fn broker_id(&self) -> BrokerId {
        self.id
    }

    /// How many partitions it keeps.
    pub fn partitions(&self) -> usize {
        self.table.all().len()
    }

    /// Stops: others lead in our place, no more requests, a clean goodbye to the ensemble, everything flushed, a last
    /// checkpoint.
    pub async fn shutdown(self) {
        let handed_over = tokio::time::timeout(HAND_OVER_DEADLINE, self.hand_over()).await;
        if handed_over.is_err() {
            tracing::warn!("not everything was handed over in time");
        }
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(STOP_DEADLINE, self.serving).await;
        for task in &self.tasks {
            task.abort();
        }
        if let Err(error) = self.registry.resign().await {
            tracing::debug!(%error, "the controller's node is left to expire");
        }
        if let Err(error) = self.registry.deregister_broker(self.id).await {
            tracing::debug!(%error, "the registration is left to expire");
        }
        let dir = self.dir;
        let closed = tokio::task::spawn_blocking(move || dir.close()).await;
        if closed.is_err() {
            tracing::error!("the logs could not be closed");
        }
    }
}

impl BrokerHandle {
    /// Lets others lead what this broker leads, and goes on answering until clients have heard of it.
    async fn hand_over(&self) {
        let mut left = 0;
        loop {
            match self.admin.leave(None).await {
                Ok(0) => break,
                Ok(count) => left += count,
                Err(error) => {
                    tracing::warn!(%error, "the partitions led here are not handed over");
                    break;
                }
            }
            tokio::time::sleep(HAND_OVER_PAUSE).await;
        }
        if left > 0 {
            tracing::info!(partitions = left, "others lead what this broker led");
            tokio::time::sleep(FAREWELL).await;
        }
    }
}

fn log_options(configs: &BrokerConfigs) -> LogDirOptions {
    LogDirOptions {
        journal: if configs.text("loggos.journal") == "none" {
            JournalMode::None
        } else {
            JournalMode::Journal
        },
        journal_bytes: configs.number("loggos.journal.bytes").unsigned_abs(),
        checkpoint_interval: configs.duration("loggos.checkpoint.interval.ms"),
        inline: false,
    }
}

async fn open_logs(path: PathBuf, options: LogDirOptions) -> Result<LogDir, BrokerError> {
    let began = Instant::now();
    let open = move || LogDir::open(Arc::new(FsDisk), &path, options, clock::now);
    let dir = tokio::task::spawn_blocking(open).await.map_err(|_| BrokerError::Interrupted)??;
    tracing::info!(
        logs = dir.logs().len(),
        elapsed_ms = began.elapsed().as_millis() as u64,
        "logs recovered"
    );
    Ok(dir)
}

/// Who this broker is: what the options say, what the data directory remembers, or a new id; and whether the directory
/// remembers nothing.
async fn identity(
    options: &BrokerOptions,
    registry: &Registry,
    cluster_id: &str,
) -> Result<(BrokerId, bool), BrokerError> {
    let path = options.data_dir.join(IDENTITY_FILE);
    let failed = |reason: String| BrokerError::Identity { path: path.clone(), reason };
    let known: Option<Identity> = match std::fs::read(&path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error.to_string())),
    };
    if let Some(known) = &known
        && known.cluster_id != cluster_id
    {
        let (theirs, ours) = (known.cluster_id.clone(), cluster_id.to_owned());
        return Err(BrokerError::OtherCluster { path: options.data_dir.clone(), theirs, ours });
    }
    let id = match (options.broker_id, &known) {
        (Some(asked), Some(known)) if asked != known.broker_id => {
            let reason = format!(
                "it belongs to broker {}, and --broker-id says {asked}; leave the option out, or give another --data-dir",
                known.broker_id
            );
            return Err(failed(reason));
        }
        (Some(id), _) => id,
        (None, Some(known)) => known.broker_id,
        (None, None) => registry.next_broker_id().await?,
    };
    if known.is_none() {
        let identity = Identity { broker_id: id, cluster_id: cluster_id.to_owned() };
        keep(&path, &identity).map_err(|error| failed(error.to_string()))?;
    }
    Ok((id, known.is_none()))
}

fn keep(path: &Path, identity: &Identity) -> std::io::Result<()> {
    let aside = path.with_extension("json.new");
    let mut file = std::fs::File::create(&aside)?;
    serde_json::to_writer_pretty(&mut file, identity)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
}

/// Applies each new view to the table.
async fn follow(metadata: Metadata, table: Arc<Table>) {
    let mut views = metadata.changes();
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        let (mine, applied) = (Arc::clone(&table), Arc::clone(&view));
        let done = tokio::task::spawn_blocking(move || mine.apply(&applied)).await;
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                retry_or_report(&error);
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
            Err(_) => return,
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

fn retry_or_report(error: &LogError) {
    if error.takes_offline() {
        tracing::error!(%error, "partitions can't be made or deleted");
    } else {
        tracing::warn!(%error, "partitions can't be made or deleted yet");
    }
}

/// Waits until this broker's partitions have leaders in epochs of this life.
async fn settle(metadata: &Metadata, table: &Table, me: BrokerId, epoch: BrokerEpoch) {
    let is_settled = |view: &View| {
        view.controller.is_some()
            && view.brokers.contains_key(&me)
            && view
                .topics
                .values()
                .flat_map(|topic| topic.partitions.values())
                .all(|partition| partition.leader != me || !partition.is_older_than(epoch))
    };
    let Some(view) = metadata.wait_for(SETTLE_DEADLINE, is_settled).await else {
        tracing::warn!("partitions have no leaders yet; serving those that have");
        return;
    };
    let mut applied = table.applied();
    let done =
        tokio::time::timeout(SETTLE_DEADLINE, applied.wait_for(|version| *version >= view.version)).await;
    if done.is_err() {
        tracing::warn!("partitions are still being opened; serving those that are");
    }
    let leased = tokio::time::timeout(SETTLE_DEADLINE, async {
        while !table.lease().holds(clock::moment()) {
            tokio::time::sleep(LEASE_PAUSE).await;
        }
    });
    if leased.await.is_err() {
        tracing::warn!("the ensemble doesn't answer; nothing is led until it does");
    }
}

/// Looks after retention.
async fn expire(table: Arc<Table>) {
    loop {
        tokio::time::sleep(table.configs().duration("log.retention.check.interval.ms")).await;
        let mine = Arc::clone(&table);
        if tokio::task::spawn_blocking(move || mine.expire()).await.is_err() {
            tracing::error!("retention was interrupted");
        }
    }
}

/// How often the gauges are set.
const GAUGES_EVERY: Duration = Duration::from_secs(5);

async fn gauges(table: Arc<Table>) {
    loop {
        let partitions = table.all();
        let bytes: u64 = partitions.iter().map(|partition| partition.log().size()).sum();
        let leading = partitions.iter().filter(|partition| partition.leads()).count();
        metrics::gauge!("loggos_broker_partitions").set(partitions.len() as f64);
        metrics::gauge!("loggos_broker_partitions_led").set(leading as f64);
        metrics::gauge!("loggos_broker_log_bytes").set(bytes as f64);
        let offline = table.dir().failure().is_some();
        metrics::gauge!("loggos_broker_log_dir_offline").set(f64::from(u8::from(offline)));
        tokio::time::sleep(GAUGES_EVERY).await;
    }
}
