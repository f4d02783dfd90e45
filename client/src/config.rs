//! Every setting of the clients, with its default. Defaults are Kafka's unless a comment says otherwise.

use std::time::Duration;

use loggos_protocol::batch::Compression;
use loggos_protocol::ids::GroupId;

/// How a client finds and talks to a cluster; part of every other configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// `host:port` of some brokers; one that answers is enough. Default: `127.0.0.1:9092`.
    pub bootstrap: Vec<String>,
    /// What the client calls itself in the broker's log. Default: `loggos`.
    pub client_id: String,
    /// For a connection to come about. Default: 5 s.
    pub connect_timeout: Duration,
    /// For an answer. Default: 30 s.
    pub request_timeout: Duration,
    /// Between an attempt that failed and the next. Default: 100 ms.
    pub retry_backoff: Duration,
    /// The longest that `retry_backoff` grows to by doubling. Default: 1 s.
    pub retry_backoff_max: Duration,
    /// After this time the cluster is looked at again, though nothing failed. Default: 5 min.
    pub metadata_max_age: Duration,
    /// Whether asking for a topic may create it, if the brokers allow. Default: false; Kafka's clients: true.
    pub auto_create_topics: bool,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            bootstrap: vec!["127.0.0.1:9092".to_owned()],
            client_id: "loggos".to_owned(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            retry_backoff: Duration::from_millis(100),
            retry_backoff_max: Duration::from_secs(1),
            metadata_max_age: Duration::from_secs(300),
            auto_create_topics: false,
        }
    }
}

impl ClusterConfig {
    /// The defaults with these addresses: `a:9092,b:9092`.
    pub fn with_bootstrap(addresses: &str) -> Self {
        let bootstrap = addresses.split(',').map(|address| address.trim().to_owned());
        Self { bootstrap: bootstrap.filter(|address| !address.is_empty()).collect(), ..Self::default() }
    }
}

/// Whose copy a record must reach before it counts as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// Nobody's: the broker sends no answer, offsets are unknown.
    None,
    /// The leader's.
    Leader,
    /// Every in-sync replica's.
    #[default]
    All,
}

impl Acks {
    /// The number on the wire.
    pub const fn raw(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Leader => 1,
            Self::All => -1,
        }
    }
}

/// How a producer batches, retries and waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerConfig {
    /// The cluster.
    pub cluster: ClusterConfig,
    /// Default: all.
    pub acks: Acks,
    /// Default: none.
    pub compression: Compression,
    /// The codec's level; its own default when absent.
    pub level: Option<i32>,
    /// How long an unfilled batch waits for more records. Default: 5 ms.
    pub linger: Duration,
    /// A batch is closed at this size before compression. Default: 64 KiB (Kafka: 16 KiB).
    pub batch_bytes: usize,
    /// The largest request, and so the largest record. Default: 1 MiB.
    pub max_request_bytes: usize,
    /// Records of this many bytes may wait for an acknowledgement; after that `send` waits. Default: 32 MiB.
    pub buffer_bytes: usize,
    /// Requests without an answer per broker. Default and, for idempotence, the limit: 5.
    pub max_in_flight: usize,
    /// Whether records are numbered, so that a retry writes none twice. Needs `Acks::All`. Default: true.
    pub idempotence: bool,
    /// How long `send` waits for the topic's metadata and for room. Default: 60 s.
    pub max_block: Duration,
    /// From `send` to the last retry. Default: 120 s.
    pub delivery_timeout: Duration,
}

/// Brokers remember the last five batches of a producer, so that more than five in flight can't be told apart.
pub const IDEMPOTENT_IN_FLIGHT: usize = 5;

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            cluster: ClusterConfig { auto_create_topics: true, ..ClusterConfig::default() },
            acks: Acks::All,
            compression: Compression::None,
            level: None,
            linger: Duration::from_millis(5),
            batch_bytes: 64 * 1024,
            max_request_bytes: 1024 * 1024,
            buffer_bytes: 32 * 1024 * 1024,
            max_in_flight: IDEMPOTENT_IN_FLIGHT,
            idempotence: true,
            max_block: Duration::from_secs(60),
            delivery_timeout: Duration::from_secs(120),
        }
    }
}

impl ProducerConfig {
    /// Whether records are numbered, all things considered.
    pub const fn is_idempotent(&self) -> bool {
        self.idempotence && matches!(self.acks, Acks::All)
    }
}

/// Which records a consumer is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// All, those of open and aborted transactions included.
    #[default]
    ReadUncommitted,
    /// None of open or aborted transactions.
    ReadCommitted,
}

/// How a consumer fetches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// The cluster.
    pub cluster: ClusterConfig,
    /// How long a broker waits for `min_bytes` before it answers. Default: 500 ms.
    pub max_wait: Duration,
    /// A broker answers as soon as it has this many bytes. Default: 1.
    pub min_bytes: usize,
    /// The largest answer, but for one batch that is larger. Default: 50 MiB.
    pub max_bytes: usize,
    /// The same for each partition. Default: 1 MiB.
    pub partition_max_bytes: usize,
    /// Default: read uncommitted.
    pub isolation: Isolation,
    /// Whether each batch's checksum is compared. Default: true.
    pub check_crcs: bool,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            cluster: ClusterConfig::default(),
            max_wait: Duration::from_millis(500),
            min_bytes: 1,
            max_bytes: 50 * 1024 * 1024,
            partition_max_bytes: 1024 * 1024,
            isolation: Isolation::ReadUncommitted,
            check_crcs: true,
        }
    }
}

/// Where a consumer begins that has no offset, or whose offset isn't there any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffsetReset {
    /// With the first record that is kept.
    Earliest,
    /// With the next record that comes.
    #[default]
    Latest,
    /// Nowhere: the reader gets the error, and decides.
    Fail,
}

/// How a consumer takes part in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// Which group.
    pub group: GroupId,
    /// How records are fetched.
    pub fetch: ConsumerConfig,
    /// Where a partition is begun for which the group has committed nothing. Default: with the next record.
    pub reset: OffsetReset,
    /// How often offsets are committed by themselves: those of what the reader is done with, which it says by asking
    /// for more. `None`: only by hand, and nothing else counts as done with. Default: 5 s.
    pub auto_commit: Option<Duration>,
    /// How long a group that brokers run waits for a member to give partitions up. Default: 5 min.
    pub rebalance_timeout: Duration,
    /// Bytes that are fetched ahead, for each stream. Exceeded by one answer per broker at most. Default: 16 MiB.
    pub prefetch_bytes: usize,
}

impl GroupConfig {
    /// The defaults, for a group on the cluster at these addresses.
    pub fn new(bootstrap: &str, group: impl Into<GroupId>) -> Self {
        let fetch =
            ConsumerConfig { cluster: ClusterConfig::with_bootstrap(bootstrap), ..ConsumerConfig::default() };
        Self {
            group: group.into(),
            fetch,
            reset: OffsetReset::default(),
            auto_commit: Some(Duration::from_secs(5)),
            rebalance_timeout: Duration::from_secs(300),
            prefetch_bytes: 16 * 1024 * 1024,
        }
    }
}

/// How a member of a member-run group finds its registries, and how patient it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamsConfig {
    /// The group.
    pub group: GroupConfig,
    /// The coordinator, ours or a ZooKeeper: `host:port,…[/chroot]`. Default: `127.0.0.1:2181`.
    pub coordinator: String,
    /// After so long without a sign of a member its partitions go to others. Default: 6 s.
    pub session_timeout: Duration,
    /// Between attempts at a partition whose last owner hasn't let it go yet. Default: 500 ms (Kafka 0.8: 2 s).
    pub rebalance_backoff: Duration,
    /// Attempts before that is reported as a warning; it goes on trying. Default: 4.
    pub rebalance_attempts: u32,
}

impl StreamsConfig {
    /// The defaults, for a group on the cluster and the coordinator at these addresses.
    pub fn new(bootstrap: &str, coordinator: &str, group: impl Into<GroupId>) -> Self {
        Self {
            group: GroupConfig::new(bootstrap, group),
            coordinator: coordinator.to_owned(),
            session_timeout: Duration::from_secs(6),
            rebalance_backoff: Duration::from_millis(500),
            rebalance_attempts: 4,
        }
    }
}
