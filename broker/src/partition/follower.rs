//! Copies partitions that other brokers lead, with the Fetch API as Kafka's followers do: one loop per leader, one
//! fetch session per connection. What is asked for next says what has been flushed here, so that nothing counts as
//! replicated before it is on this disk (decision D10). Where the logs have gone different ways the leader says so,
//! and ours is cut (KIP-595, `divergence`).
//!
//! Run as a task by `broker`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use loggos_client::connection::Connection;
use loggos_protocol::batch::{self, Limits};
use loggos_protocol::ids::{BrokerEpoch, BrokerId, LeaderEpoch, Offset};
use loggos_protocol::kafka::messages::fetch_response::PartitionData;
use loggos_protocol::kafka::{ErrorCode, messages};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::copying::{Copying, FETCH_WAIT, Member};
use super::divergence::Verdict;
use super::{Table, waiters};
use crate::clock;
use crate::log::LogError;
use crate::metadata::Metadata;

/// How long an answer may take on top of that.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long copied records are waited for to be flushed before the others are asked on for.
const FLUSH_PATIENCE: Duration = Duration::from_millis(20);
/// The version that is spoken: topics by their ids, and which life of a follower asks.
const VERSION: i16 = 17;

/// Keeps one loop for each broker that leads something of ours, until the task is ended.
pub async fn run(me: BrokerId, metadata: Metadata, table: Arc<Table>) {
    let mut applied = table.applied();
    let mut loops: BTreeMap<(BrokerId, BrokerEpoch), Loop> = BTreeMap::new();
    loop {
        let view = metadata.view();
        let leaders = table.leaders();
        let wanted: BTreeMap<(BrokerId, BrokerEpoch), String> = leaders
            .into_iter()
            .filter(|leader| *leader != me)
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
        let mut copying = Copying::new(self.me, self.leader);
        let mut applied = self.table.applied();
        applied.mark_changed();
        loop {
            if applied.has_changed().unwrap_or(false) {
                applied.mark_unchanged();
                copying.take_up(self.table.epoch(), self.table.all());
            }
            if copying.is_empty() {
                if applied.changed().await.is_err() {
                    return Ok(());
                }
                applied.mark_changed();
                continue;
            }
            let request = copying.request(|| self.table.may_copy());
            let answer = connection.call_at(&request, VERSION, FETCH_WAIT + ANSWER_DEADLINE).await;
            let answer = answer.map_err(|error| error.to_string())?;
            let code = ErrorCode::new(answer.error_code);
            if !code.is_none() {
                return Err(format!("the session has ended: {code:?}"));
            }
            self.take(copying.answered(answer)).await?;
        }
    }

    /// Takes what came, and waits until it is flushed, as far as that goes quickly.
    async fn take(&self, parts: Vec<(Member, PartitionData)>) -> Result<(), String> {
        if parts.is_empty() {
            return Ok(());
        }
        for (member, data) in &parts {
            if member.partition.is_throttled_here(self.me) {
                self.table.copied(data.records.as_ref().map_or(0, Bytes::len));
            }
        }
        // Files are written and cut: not on a thread of the network.
        let taken = tokio::task::spawn_blocking(move || take(parts)).await;
        let (waits, failed) = taken.map_err(|error| error.to_string())?;
        let flushed = async {
            for flushed in waits {
                // What can't be flushed is not asked on for either: its log has failed.
                let _ = flushed.await;
            }
        };
        let _ = tokio::time::timeout(FLUSH_PATIENCE, flushed).await;
        if failed {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Ok(())
    }
}

/// What is still to be flushed, and whether anything failed.
type Taken = (Vec<tokio::sync::oneshot::Receiver<waiters::Answer>>, bool);

fn take(parts: Vec<(Member, PartitionData)>) -> Taken {
    let (mut waits, mut failed) = (Vec::new(), false);
    for (member, data) in parts {
        match take_one(&member, data) {
            Ok(true) => waits.extend(member.partition.flushed()),
            Ok(false) => {}
            Err(error) => {
                let partition = &member.partition;
                tracing::debug!(topic = %partition.topic(), partition = %partition.id(), error, "not copied");
                failed = true;
            }
        }
    }
    (waits, failed)
}

/// Takes one partition's part of an answer; whether there were records.
fn take_one(member: &Member, data: PartitionData) -> Result<bool, String> {
    let (partition, epoch) = (&member.partition, member.epoch);
    let told = |error: LogError| error.to_string();
    let start = Offset::new(data.log_start_offset);
    let verdict = match ErrorCode::new(data.error_code) {
        ErrorCode::OFFSET_OUT_OF_RANGE => Verdict::OutOfRange,
        code if !code.is_none() => return Err(format!("{code:?}")),
        _ if data.diverging_epoch.epoch >= 0 => Verdict::Diverging {
            epoch: LeaderEpoch::new(data.diverging_epoch.epoch),
            end: Offset::new(data.diverging_epoch.end_offset),
        },
        _ => Verdict::Serve,
    };
    if !partition.reconcile(member.asked(), (verdict, start), epoch).map_err(told)? {
        return Ok(false);
    }
    let mut has_records = false;
    if let Some(records) = data.records.filter(|records| !records.is_empty()) {
        let batches = batch::validate(records, &Limits::replicated()).map_err(|error| error.to_string())?;
        has_records = !batches.is_empty();
        partition.copy(&batches, epoch, clock::now()).map_err(told)?;
    }
    partition.leader_says(Offset::new(data.high_watermark), epoch).map_err(told)?;
    if start > partition.log().log_start() && start <= partition.log().flushed_end() {
        partition.log().delete_records_before(start).map_err(told)?;
    }
    Ok(has_records)
}

/// The id of a broker on the wire.
pub(super) fn wire_id(broker: BrokerId) -> messages::BrokerId {
    messages::BrokerId(broker.raw())
}
