//! Copies partitions that other brokers lead, with the Fetch API as Kafka's followers do: one loop per leader. What
//! is asked for next says what has been flushed here, so that nothing counts as replicated before it is on this
//! disk (decision D10). Where the logs have gone different ways the leader says so, and ours is cut (KIP-595).
//!
//! Run as a task by `broker`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use loggos_client::connection::Connection;
use loggos_protocol::batch::{self, Limits};
use loggos_protocol::ids::{BrokerEpoch, BrokerId, LeaderEpoch, Offset, PartitionId, TopicName};
use loggos_protocol::kafka::messages::fetch_request::{FetchPartition, FetchTopic};
use loggos_protocol::kafka::messages::fetch_response::PartitionData;
use loggos_protocol::kafka::messages::{self, FetchRequest, FetchResponse};
use loggos_protocol::kafka::{ErrorCode, StrBytes};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Partition, Table};
use crate::clock;
use crate::log::LogError;
use crate::metadata::Metadata;

/// How long a leader may hold a fetch that has nothing to give.
const FETCH_WAIT: Duration = Duration::from_millis(500);
/// How long an answer may take on top of that.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// The most that one fetch takes of a partition, and of all.
const PARTITION_BYTES: i32 = 1 << 20;
const FETCH_BYTES: i32 = 16 << 20;
/// The last version that names topics.
const VERSION: i16 = 12;

/// Keeps one loop for each broker that leads something of ours, until the task is ended.
pub async fn run(me: BrokerId, metadata: Metadata, table: Arc<Table>) {
    let mut applied = table.applied();
    let mut loops: BTreeMap<(BrokerId, BrokerEpoch), Loop> = BTreeMap::new();
    loop {
        let view = metadata.view();
        let leaders: BTreeSet<BrokerId> =
            table.all().iter().map(|partition| partition.leader().0).filter(|leader| *leader != me).collect();
        let wanted: BTreeMap<(BrokerId, BrokerEpoch), String> = leaders
            .into_iter()
            .filter_map(|leader| {
                let broker = view.brokers.get(&leader)?;
                Some(((leader, broker.epoch), broker.replication.clone()))
            })
            .collect();
        loops.retain(|leader, _| wanted.contains_key(leader));
        for (key, address) in wanted {
            loops.entry(key).or_insert_with(|| {
                let copier = Copier { me, leader: key.0, address, table: Arc::clone(&table) };
                Loop(tokio::spawn(copier.run()))
            });
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}

/// A loop that ends with its handle.
struct Loop(JoinHandle<()>);

impl Drop for Loop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Copies from one leader.
struct Copier {
    me: BrokerId,
    leader: BrokerId,
    address: String,
    table: Arc<Table>,
}

/// A partition that is copied: in which epoch.
type Copied = BTreeMap<(TopicName, PartitionId), (Arc<Partition>, LeaderEpoch)>;

impl Copier {
    async fn run(self) {
        loop {
            let deadline = Instant::now() + CONNECT_DEADLINE;
            match Connection::open(&self.address, &format!("broker-{}", self.me), deadline).await {
                Ok(connection) => {
                    if let Err(reason) = self.copy(&connection).await {
                        tracing::debug!(leader = %self.leader, reason, "copying is interrupted");
                    }
                }
                Err(error) => tracing::debug!(leader = %self.leader, %error, "the leader can't be reached"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Fetches until the connection breaks.
    async fn copy(&self, connection: &Connection) -> Result<(), String> {
        loop {
            let copied = self.copied();
            if copied.is_empty() {
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
            let request = self.request(&copied);
            let answer = connection.call_at(&request, VERSION, FETCH_WAIT + ANSWER_DEADLINE).await;
            let answer = answer.map_err(|error| error.to_string())?;
            // Files are written and cut: not on a thread of the network.
            let taken = tokio::task::spawn_blocking(move || take(answer, &copied)).await;
            let (waits, failed) = taken.map_err(|error| error.to_string())?;
            for flushed in waits {
                // What can't be flushed is not asked for again either: its log has failed.
                let _ = flushed.await;
            }
            if failed {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    fn copied(&self) -> Copied {
        let all = self.table.all().into_iter().filter_map(|partition| {
            let (leader, epoch) = partition.leader();
            let ours = leader == self.leader && partition.log().failure().is_none();
            ours.then(|| ((partition.topic().clone(), partition.id()), (partition, epoch)))
        });
        all.collect()
    }

    fn request(&self, copied: &Copied) -> FetchRequest {
        let mut topics: Vec<FetchTopic> = Vec::new();
        for ((name, id), (partition, epoch)) in copied {
            let log = partition.log();
            let asked = FetchPartition::default()
                .with_partition(id.raw())
                .with_current_leader_epoch(epoch.raw())
                .with_fetch_offset(log.log_end().raw())
                .with_last_fetched_epoch(log.latest_epoch().unwrap_or(LeaderEpoch::NONE).raw())
                .with_log_start_offset(log.log_start().raw())
                .with_partition_max_bytes(PARTITION_BYTES);
            match topics.last_mut().filter(|last| last.topic.0.as_str() == name.as_str()) {
                Some(last) => last.partitions.push(asked),
                None => {
                    let name = messages::TopicName(StrBytes::from_string(name.as_str().to_owned()));
                    topics.push(FetchTopic::default().with_topic(name).with_partitions(vec![asked]));
                }
            }
        }
        FetchRequest::default()
            .with_replica_id(messages::BrokerId(self.me.raw()))
            .with_max_wait_ms(i32::try_from(FETCH_WAIT.as_millis()).unwrap_or(i32::MAX))
            .with_min_bytes(1)
            .with_max_bytes(FETCH_BYTES)
            .with_session_epoch(-1)
            .with_topics(topics)
    }
}

/// What is still to be flushed, and whether anything failed.
type Taken = (Vec<tokio::sync::oneshot::Receiver<super::waiters::Answer>>, bool);

fn take(answer: FetchResponse, copied: &Copied) -> Taken {
    let (mut waits, mut failed) = (Vec::new(), false);
    for topic in answer.responses {
        let name = TopicName::new(topic.topic.0.as_str());
        for data in topic.partitions {
            let Some((partition, epoch)) =
                copied.get(&(name.clone(), PartitionId::new(data.partition_index)))
            else {
                continue;
            };
            match take_one(partition, *epoch, data) {
                Ok(true) => waits.extend(partition.flushed()),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(topic = %name, partition = %partition.id(), error, "not copied");
                    failed = true;
                }
            }
        }
    }
    (waits, failed)
}

/// Takes one partition's part of an answer; whether there were records.
fn take_one(partition: &Partition, epoch: LeaderEpoch, data: PartitionData) -> Result<bool, String> {
    let told = |error: LogError| error.to_string();
    let code = ErrorCode::new(data.error_code);
    if code == ErrorCode::OFFSET_OUT_OF_RANGE {
        let start = Offset::new(data.log_start_offset);
        if partition.log().log_end() < start {
            partition.restart_at(start).map_err(told)?;
        } else {
            partition.truncate(Offset::new(data.high_watermark.max(data.log_start_offset))).map_err(told)?;
        }
        return Ok(false);
    }
    if !code.is_none() {
        return Err(format!("{code:?}"));
    }
    if data.diverging_epoch.epoch >= 0 {
        // Ours may end that epoch earlier than the leader's.
        let theirs = Offset::new(data.diverging_epoch.end_offset);
        let ours = partition.log().epoch_end(LeaderEpoch::new(data.diverging_epoch.epoch));
        let cut = ours.map_or(theirs, |(_, ours)| ours.min(theirs));
        partition.truncate(cut).map_err(told)?;
        return Ok(false);
    }
    let mut has_records = false;
    if let Some(records) = data.records.filter(|records| !records.is_empty()) {
        let batches = batch::validate(records, &Limits::replicated()).map_err(|error| error.to_string())?;
        has_records = !batches.is_empty();
        partition.copy(&batches, epoch, clock::now()).map_err(told)?;
    }
    let start = Offset::new(data.log_start_offset);
    partition.leader_says(Offset::new(data.high_watermark));
    if start > partition.log().log_start() && start <= partition.log().flushed_end() {
        partition.log().delete_records_before(start).map_err(told)?;
    }
    Ok(has_records)
}
