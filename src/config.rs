//! The options of the long-running roles, each named once: its flag, its environment variable, its key in the
//! TOML file, its default and its unit all come from one field. A flag wins over the environment, that over the
//! file, that over the default.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// Options of `loggos serve`.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServeOptions {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub cell: CellOptions,

    /// Where Kafka clients connect, as ADDRESS:PORT; port 0 takes a free one
    #[arg(long, env = "LOGGOS_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:9092")]
    pub listen: SocketAddr,

    /// The HOST:PORT that clients are told to connect to; empty means the one that we listen on
    #[arg(
        long,
        env = "LOGGOS_ADVERTISE",
        value_name = "HOST:PORT",
        default_value = "",
        hide_default_value = true
    )]
    pub advertise: String,

    /// The HOST:PORT that other brokers are told to connect to, where it isn't the clients'; empty means the same
    #[arg(
        long,
        env = "LOGGOS_REPLICATION_ADVERTISE",
        value_name = "HOST:PORT",
        default_value = "",
        hide_default_value = true
    )]
    pub replication_advertise: String,

    /// Run a broker alone, against this ensemble (Loggos' or ZooKeeper's, 3.5 or newer), as HOST:PORT,…[/chroot]
    #[arg(
        long,
        env = "LOGGOS_COORDINATOR",
        value_name = "HOST:PORT,…",
        default_value = "",
        hide_default_value = true
    )]
    pub coordinator: String,

    /// This broker's number; -1 has one assigned through the registry and remembered in the data directory
    #[arg(long, env = "LOGGOS_BROKER_ID", value_name = "ID", default_value_t = -1, allow_negative_numbers = true)]
    pub broker_id: i32,

    /// The rack or zone of this machine: replicas are spread over racks, consumers may read from their own
    #[arg(long, env = "LOGGOS_RACK", value_name = "NAME", default_value = "", hide_default_value = true)]
    pub rack: String,

    /// The broker's session with the coordinator, in milliseconds: how long a dead broker leads on (an external
    /// ZooKeeper rounds it up to two of its ticks)
    #[arg(long, env = "LOGGOS_SESSION_TIMEOUT_MS", value_name = "MS", default_value_t = 600)]
    pub session_timeout_ms: u32,

    /// One of Kafka's broker configs, as KEY=VALUE; may be given many times (env: separated by ';')
    #[arg(long = "set", env = "LOGGOS_SET", value_name = "KEY=VALUE", value_delimiter = ';')]
    #[serde(default)]
    pub set: Vec<String>,
}

/// Options of `loggos coordinator`.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CoordinatorRoleOptions {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub cell: CellOptions,
}

/// What every long-running role has.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CommonOptions {
    /// Where everything is kept; made if absent
    #[arg(long, env = "LOGGOS_DATA_DIR", value_name = "DIR", default_value = "./loggos-data")]
    pub data_dir: PathBuf,

    /// Where /metrics, /healthz and /readyz are served over HTTP
    #[arg(long, env = "LOGGOS_HTTP_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:9644")]
    pub http_listen: SocketAddr,

    /// What to log on stderr: error, warn, info, debug, or a filter like warn,loggos_broker=debug
    #[arg(long, env = "LOGGOS_LOG", value_name = "FILTER", default_value = crate::telemetry::DEFAULT_FILTER)]
    pub log: String,

    /// Threads that serve the network; 0 means one per processor
    #[arg(long, env = "LOGGOS_THREADS", value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

/// What a coordination server has, combined with a broker or alone.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CellOptions {
    /// Where ZooKeeper clients, our brokers among them, connect
    #[arg(
        long,
        env = "LOGGOS_COORDINATOR_LISTEN",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:2181"
    )]
    pub coordinator_listen: SocketAddr,

    /// Where the other servers of the ensemble connect
    #[arg(long, env = "LOGGOS_PEER_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:2888")]
    pub peer_listen: SocketAddr,

    /// Where the other servers connect to catch up; empty takes the port 1000 above that of --peer-listen
    #[arg(
        long,
        env = "LOGGOS_BULK_LISTEN",
        value_name = "ADDR:PORT",
        default_value = "",
        hide_default_value = true
    )]
    pub bulk_listen: String,

    /// All servers of a new ensemble by their peer addresses, the same list on each machine: the cell forms once,
    /// when all of them are there. Without it (and without --join) a server is a cell of its own
    #[arg(long, env = "LOGGOS_SERVERS", value_name = "HOST:PORT,…", value_delimiter = ',')]
    #[serde(default)]
    pub servers: Vec<String>,

    /// A server of a running ensemble, by its peer address: ask to be let in as a new server
    #[arg(
        long,
        env = "LOGGOS_JOIN",
        value_name = "HOST:PORT",
        default_value = "",
        hide_default_value = true
    )]
    pub join: String,

    /// How often the ensemble's leaseholder speaks to the others, in milliseconds
    #[arg(long, env = "LOGGOS_HEARTBEAT_MS", value_name = "MS", default_value_t = 50)]
    pub heartbeat_ms: u64,

    /// How long a leaseholder's lease runs, in milliseconds: the others wait that long before they elect another
    #[arg(long, env = "LOGGOS_LEASE_MS", value_name = "MS", default_value_t = 300)]
    pub lease_ms: u64,

    /// A voter that is silent for so long gives its place to a server that stands by, in milliseconds
    #[arg(long, env = "LOGGOS_REPLACE_AFTER_MS", value_name = "MS", default_value_t = 10_800_000)]
    pub replace_after_ms: u64,

    /// Serve reads to clients that accept it while the ensemble has no leader
    #[arg(long, env = "LOGGOS_READ_ONLY_MODE")]
    #[serde(default)]
    pub read_only_mode: bool,

    /// The shortest session that a client can ask for, in milliseconds
    #[arg(long, env = "LOGGOS_SESSION_MIN_MS", value_name = "MS", default_value_t = 500)]
    pub session_min_ms: u32,

    /// The longest session that a client can ask for, in milliseconds
    #[arg(long, env = "LOGGOS_SESSION_MAX_MS", value_name = "MS", default_value_t = 60_000)]
    pub session_max_ms: u32,

    /// Clients of the coordinator that may be connected from one address; 0 is no limit
    #[arg(long, env = "LOGGOS_CONNECTIONS_PER_ADDRESS", value_name = "N", default_value_t = 0)]
    pub connections_per_address: usize,

    /// How often the coordinator removes unused containers and nodes past their time to live, in milliseconds
    #[arg(long, env = "LOGGOS_UNUSED_CHECK_MS", value_name = "MS", default_value_t = 60_000)]
    pub unused_check_ms: u64,

    /// Who may do anything in the tree: user:base64(sha1(user:password)), as ZooKeeper's superDigest
    #[arg(
        long,
        env = "LOGGOS_SUPER_DIGEST",
        value_name = "USER:DIGEST",
        default_value = "",
        hide_default_value = true,
        hide_env_values = true
    )]
    pub super_digest: String,
}

/// Options as text that `Display` and the file share.
pub trait RoleOptions: Serialize + for<'de> Deserialize<'de> {}
impl RoleOptions for ServeOptions {}
impl RoleOptions for CoordinatorRoleOptions {}

/// Lays the file's keys under what flags and environment gave: a key of the file counts where the command line
/// and the environment were silent.
pub fn merge_file<O: RoleOptions>(options: O, matches: &ArgMatches, file: &Path) -> Result<O, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("--config: can't read {}: {error}", file.display()))?;
    let from_file: Table =
        text.parse().map_err(|error| format!("--config: {} is not TOML: {error}", file.display()))?;
    let mut merged = Table::try_from(&options).map_err(|error| format!("--config: {error}"))?;
    for (key, value) in from_file {
        let id = key.replace('-', "_");
        if !merged.contains_key(&key) {
            return Err(unknown_key(&key, file, &merged));
        }
        if key == "set" {
            merged.insert(key, merge_settings(&value, matches, file)?);
        } else if is_silent(matches, &id) {
            merged.insert(key, value);
        }
    }
    O::deserialize(Value::Table(merged)).map_err(|error| format!("--config: {}: {error}", file.display()))
}

/// The options as a TOML file that `--config` reads back.
pub fn dump<O: RoleOptions>(options: &O) -> Result<String, String> {
    let mut table = Table::try_from(options).map_err(|error| error.to_string())?;
    if let Some(Value::Array(settings)) = table.remove("set") {
        let pairs: Vec<String> = settings.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let pairs = settings_map(&pairs)?;
        let pairs = pairs.into_iter().map(|(key, value)| (key, Value::String(value))).collect();
        table.insert("set".to_owned(), Value::Table(pairs));
    }
    toml::to_string(&table).map_err(|error| error.to_string())
}

/// `KEY=VALUE` pairs as a map; a later pair wins.
pub fn settings_map(pairs: &[String]) -> Result<BTreeMap<String, String>, String> {
    pairs
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                Ok((key.trim().to_owned(), value.trim().to_owned()))
            }
            _ => Err(format!("--set: '{pair}' is not KEY=VALUE, as in --set num.partitions=12")),
        })
        .collect()
}

fn is_silent(matches: &ArgMatches, id: &str) -> bool {
    matches!(matches.value_source(id), None | Some(ValueSource::DefaultValue))
}

/// The file's `[set]` table under the pairs of the command line, which come later and so win.
fn merge_settings(value: &Value, matches: &ArgMatches, file: &Path) -> Result<Value, String> {
    let Value::Table(table) = value else {
        return Err(format!(
            "--config: {}: 'set' is a table of Kafka's broker configs: [set]",
            file.display()
        ));
    };
    let in_file = table.iter().map(|(key, value)| match value {
        Value::String(text) => Value::String(format!("{key}={text}")),
        other => Value::String(format!("{key}={other}")),
    });
    let given = matches.get_many::<String>("set").into_iter().flatten().cloned().map(Value::String);
    Ok(Value::Array(in_file.chain(given).collect()))
}

fn unknown_key(key: &str, file: &Path, known: &Table) -> String {
    let known = known.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    format!("--config: {} has no option '{key}'; known are {known}", file.display())
}
