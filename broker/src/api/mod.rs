//! Kafka's requests: one handler per file and API key. The table here is what ApiVersions tells clients.
//!
//! A handler has two halves. The first runs at once, in the order of the connection's requests: it decodes, and
//! appends where there is something to append. The second, if there is one, is a future: it waits for the disk, the
//! registry or more records, while later requests begin. Called by `server::connection`.

mod alter_configs;
mod alter_partition_reassignments;
mod api_versions;
mod consumer_group_describe;
mod consumer_group_heartbeat;
mod create_partitions;
mod create_topics;
mod delete_groups;
mod delete_records;
mod delete_topics;
mod describe_cluster;
mod describe_configs;
mod describe_groups;
mod describe_log_dirs;
mod elect_leaders;
mod fetch;
mod fetch_session;
mod find_coordinator;
mod heartbeat;
mod incremental_alter_configs;
mod init_producer_id;
mod join_group;
mod leave_group;
mod list_groups;
mod list_offsets;
mod list_partition_reassignments;
mod metadata;
mod names;
mod offset_commit;
mod offset_delete;
mod offset_fetch;
mod offset_for_leader_epoch;
mod produce;
mod sync_group;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use loggos_protocol::ids::{BrokerId, Offset, TopicName};
use loggos_protocol::kafka::fetch_response::{Part, Records};
use loggos_protocol::kafka::{
    ApiKey, Encodable, ErrorCode, HeaderVersion, KafkaRequest, Request, RequestHeader, encode_response,
};

use crate::config::Configs;
use crate::controller::{Admin, AdminError, Defaults, Entity};
use crate::group::table::Groups;
use crate::log::LogSlice;
use crate::metadata::Metadata;
use crate::partition::{Partition, Table};

pub use fetch_session::Sessions;

/// The keys that are served, each in all versions that `protocol::kafka::api` has.
pub const SERVED: &[ApiKey] = &[
    ApiKey::Produce,
    ApiKey::Fetch,
    ApiKey::ListOffsets,
    ApiKey::Metadata,
    ApiKey::OffsetCommit,
    ApiKey::OffsetFetch,
    ApiKey::FindCoordinator,
    ApiKey::JoinGroup,
    ApiKey::Heartbeat,
    ApiKey::LeaveGroup,
    ApiKey::SyncGroup,
    ApiKey::DescribeGroups,
    ApiKey::ListGroups,
    ApiKey::ApiVersions,
    ApiKey::CreateTopics,
    ApiKey::DeleteTopics,
    ApiKey::DeleteRecords,
    ApiKey::InitProducerId,
    ApiKey::OffsetForLeaderEpoch,
    ApiKey::DescribeConfigs,
    ApiKey::AlterConfigs,
    ApiKey::DescribeLogDirs,
    ApiKey::CreatePartitions,
    ApiKey::DeleteGroups,
    ApiKey::ElectLeaders,
    ApiKey::IncrementalAlterConfigs,
    ApiKey::AlterPartitionReassignments,
    ApiKey::ListPartitionReassignments,
    ApiKey::OffsetDelete,
    ApiKey::DescribeCluster,
    ApiKey::ConsumerGroupHeartbeat,
    ApiKey::ConsumerGroupDescribe,
];

/// No request of an administrator waits longer than this, whatever it says.
const PATIENCE: Duration = Duration::from_secs(60);

/// What handlers work with.
pub struct Context {
    /// This broker.
    pub me: BrokerId,
    /// Its view of the cluster.
    pub metadata: Metadata,
    /// Requests on the registry.
    pub admin: Admin,
    /// Its partitions.
    pub table: Arc<Table>,
    /// The consumer groups that it runs.
    pub groups: Arc<Groups>,
}

impl Context {
    /// What a request for a topic may leave open.
    fn defaults(&self) -> Defaults {
        let configs = self.table.configs();
        Defaults {
            partitions: i32::try_from(configs.number("num.partitions")).unwrap_or(1),
            factor: i16::try_from(configs.number("default.replication.factor")).unwrap_or(1),
        }
    }

    /// Whether this broker knows where it is.
    fn has_rack(&self) -> bool {
        self.metadata.view().brokers.get(&self.me).is_some_and(|broker| broker.rack.is_some())
    }

    /// The replica that a consumer in `rack` should read from instead of this one, the leader: one in sync, with all
    /// before `offset`, in that rack (KIP-392).
    fn nearest(&self, partition: &Partition, offset: Offset, rack: &str) -> Option<BrokerId> {
        let view = self.metadata.view();
        let is_near = |broker: &BrokerId| {
            view.brokers
                .get(broker)
                .and_then(|known| known.rack.as_deref())
                .is_some_and(|known| known == rack)
        };
        if !partition.leads() || is_near(&self.me) {
            return None;
        }
        partition.holders_of(offset).into_iter().find(is_near)
    }

    /// Waits until this broker's view is as `wanted` and its partitions are what the view says.
    async fn settled(&self, deadline: Duration, wanted: impl Fn(&crate::metadata::View) -> bool) -> bool {
        let Some(view) = self.metadata.wait_for(deadline, wanted).await else { return false };
        let mut applied = self.table.applied();
        tokio::time::timeout(deadline, applied.wait_for(|version| *version >= view.version)).await.is_ok()
    }
}

/// How long an answer about changed configs waits for this broker to obey them.
const CONFIGS_DEADLINE: Duration = Duration::from_secs(5);

impl Context {
    /// Changes configs, and waits until this broker obeys them.
    async fn change_configs(
        &self,
        entity: &Entity,
        change: impl Fn(Configs) -> Result<Configs, AdminError>,
        validate_only: bool,
    ) -> Result<(), AdminError> {
        if let Some(after) = self.admin.change_configs(entity, change, validate_only).await? {
            self.settled(CONFIGS_DEADLINE, |view| entity.configs(view) == Some(&after)).await;
        }
        Ok(())
    }
}

/// An answer on its way.
pub type Later = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What a handler's first half gives.
pub enum Answer {
    /// All there is to say.
    Now(Outcome),
    /// To be awaited.
    Later(Later),
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Outcome {
    /// An answer: its pieces in order.
    Reply(Vec<Part<LogSlice>>),
    /// No answer, as with `acks=0`.
    Silence,
    /// The connection is to be closed: the sentence is for the log.
    Close(String),
}

impl Records for LogSlice {
    fn len(&self) -> usize {
        Self::len(self)
    }
}

impl Answer {
    fn later(work: impl Future<Output = Outcome> + Send + 'static) -> Self {
        Self::Later(Box::pin(work))
    }
}

/// Encodes an answer.
fn reply<T: Encodable + HeaderVersion>(header: &RequestHeader, body: &T) -> Outcome {
    match encode_response(header, body) {
        Ok(bytes) => Outcome::Reply(vec![Part::Bytes(bytes)]),
        Err(error) => Outcome::Close(error.to_string()),
    }
}

/// A handler that has all it needs at once.
fn at_once<T: KafkaRequest>(request: &Request, handler: impl FnOnce(T) -> T::Response) -> Answer {
    Answer::Now(match request.decode::<T>() {
        Ok(body) => reply(&request.header, &handler(body)),
        Err(error) => Outcome::Close(error.to_string()),
    })
}

/// A handler that waits for something.
fn in_time<T, F>(request: Request, handler: impl FnOnce(T) -> F + Send + 'static) -> Answer
where
    T: KafkaRequest + Send + 'static,
    T::Response: Send,
    F: Future<Output = T::Response> + Send + 'static,
{
    match request.decode::<T>() {
        Ok(body) => {
            let work = handler(body);
            Answer::later(async move { reply(&request.header, &work.await) })
        }
        Err(error) => Answer::Now(Outcome::Close(error.to_string())),
    }
}

/// How long an administrator's request may take.
fn patience(timeout_ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0)).min(PATIENCE)
}

/// Begins a request; called in the order in which a connection's requests came.
pub fn begin(context: &Arc<Context>, sessions: &Arc<Sessions>, request: Request) -> Answer {
    let context = Arc::clone(context);
    let version = request.header.version;
    match request.header.key() {
        ApiKey::Produce => produce::begin(&context, &request),
        ApiKey::Fetch => fetch::begin(context, Arc::clone(sessions), request),
        ApiKey::ApiVersions => at_once(&request, |body| api_versions::handle(version, body)),
        ApiKey::Metadata => in_time(request, move |body| metadata::handle(context, body)),
        ApiKey::ListOffsets => in_time(request, move |body| list_offsets::handle(context, version, body)),
        ApiKey::FindCoordinator => {
            at_once(&request, |body| find_coordinator::handle(&context, version, body))
        }
        ApiKey::CreateTopics => in_time(request, move |body| create_topics::handle(context, version, body)),
        ApiKey::DeleteTopics => in_time(request, move |body| delete_topics::handle(context, body)),
        ApiKey::DeleteRecords => in_time(request, move |body| delete_records::handle(context, body)),
        ApiKey::InitProducerId => in_time(request, move |body| init_producer_id::handle(context, body)),
        ApiKey::OffsetForLeaderEpoch => {
            at_once(&request, |body| offset_for_leader_epoch::handle(&context, body))
        }
        ApiKey::DescribeConfigs => at_once(&request, |body| describe_configs::handle(&context, body)),
        ApiKey::AlterConfigs => in_time(request, move |body| alter_configs::handle(context, body)),
        ApiKey::IncrementalAlterConfigs => {
            in_time(request, move |body| incremental_alter_configs::handle(context, body))
        }
        ApiKey::DescribeLogDirs => at_once(&request, |body| describe_log_dirs::handle(&context, body)),
        ApiKey::CreatePartitions => in_time(request, move |body| create_partitions::handle(context, body)),
        ApiKey::ElectLeaders => in_time(request, move |body| elect_leaders::handle(context, version, body)),
        ApiKey::AlterPartitionReassignments => {
            in_time(request, move |body| alter_partition_reassignments::handle(context, version, body))
        }
        ApiKey::ListPartitionReassignments => {
            at_once(&request, |body| list_partition_reassignments::handle(&context, body))
        }
        ApiKey::DescribeCluster => at_once(&request, |body| describe_cluster::handle(&context, body)),
        key => begin_group(&context, sessions, key, request),
    }
}

/// What a client calls itself, and where it is.
fn client(request: &Request, sessions: &Sessions) -> (String, String) {
    let id = request.header.client_id.as_ref().map(ToString::to_string).unwrap_or_default();
    (id, sessions.peer().to_owned())
}

/// The requests of consumer groups.
fn begin_group(context: &Arc<Context>, sessions: &Sessions, key: ApiKey, request: Request) -> Answer {
    let context = Arc::clone(context);
    let version = request.header.version;
    match key {
        ApiKey::JoinGroup => {
            let client = client(&request, sessions);
            in_time(request, move |body| join_group::handle(context, version, client, body))
        }
        ApiKey::SyncGroup => in_time(request, move |body| sync_group::handle(context, version, body)),
        ApiKey::Heartbeat => in_time(request, move |body| heartbeat::handle(context, body)),
        ApiKey::LeaveGroup => in_time(request, move |body| leave_group::handle(context, version, body)),
        ApiKey::OffsetCommit => in_time(request, move |body| offset_commit::handle(context, body)),
        ApiKey::OffsetFetch => in_time(request, move |body| offset_fetch::handle(context, version, body)),
        ApiKey::ConsumerGroupHeartbeat => {
            let client = client(&request, sessions);
            in_time(request, move |body| consumer_group_heartbeat::handle(context, version, client, body))
        }
        ApiKey::ConsumerGroupDescribe => {
            in_time(request, move |body| consumer_group_describe::handle(context, version, body))
        }
        ApiKey::OffsetDelete => in_time(request, move |body| offset_delete::handle(context, body)),
        ApiKey::DeleteGroups => in_time(request, move |body| delete_groups::handle(context, body)),
        ApiKey::ListGroups => in_time(request, move |body| list_groups::handle(context, version, body)),
        ApiKey::DescribeGroups => {
            in_time(request, move |body| describe_groups::handle(context, version, body))
        }
        other => Answer::Now(Outcome::Close(format!("{other:?} is not served"))),
    }
}

/// Whether a request of this key is begun only when the journal has room.
pub fn appends(key: ApiKey) -> bool {
    key == ApiKey::Produce
}

/// An error as administrators' answers carry it.
fn told(result: Result<(), AdminError>) -> (ErrorCode, Option<String>) {
    match result {
        Ok(()) => (ErrorCode::NONE, None),
        Err(error) => (error.code, Some(error.message)),
    }
}

/// The error of a topic that isn't there.
fn no_topic(name: &TopicName) -> AdminError {
    AdminError::new(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, format!("There is no topic '{name}'."))
}
