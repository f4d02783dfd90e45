//! DescribeLogDirs: how large each replica is, and how much space is left.

use std::collections::BTreeMap;

use loggos_protocol::ids::{PartitionId, TopicName};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use loggos_protocol::kafka::messages::{DescribeLogDirsRequest, DescribeLogDirsResponse};

use super::{Context, names};

pub(super) fn handle(context: &Context, request: DescribeLogDirsRequest) -> DescribeLogDirsResponse {
    let wanted = |name: &TopicName, partition: PartitionId| match &request.topics {
        None => true,
        Some(topics) => topics
            .iter()
            .any(|topic| names::topic(&topic.topic) == *name && topic.partitions.contains(&partition.raw())),
    };
    let mut topics: BTreeMap<TopicName, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
    for partition in context.table.all() {
        if !wanted(partition.topic(), partition.id()) {
            continue;
        }
        let size = i64::try_from(partition.log().size()).unwrap_or(i64::MAX);
        topics.entry(partition.topic().clone()).or_default().push(
            DescribeLogDirsPartition::default()
                .with_partition_index(partition.id().raw())
                .with_partition_size(size)
                .with_offset_lag(0),
        );
    }
    let dir = context.table.dir();
    let (total, usable) = space(dir.path());
    let failed = dir.failure().is_some();
    let code = if failed { ErrorCode::KAFKA_STORAGE_ERROR } else { ErrorCode::NONE };
    let topics = topics.into_iter().map(|(name, partitions)| {
        DescribeLogDirsTopic::default().with_name(names::wire_topic(&name)).with_partitions(partitions)
    });
    let result = DescribeLogDirsResult::default()
        .with_error_code(code.raw())
        .with_log_dir(names::text(&dir.path().display().to_string()))
        .with_topics(topics.collect())
        .with_total_bytes(total)
        .with_usable_bytes(usable);
    DescribeLogDirsResponse::default().with_results(vec![result])
}

/// The file system's bytes, and those that are free for us; -1 where it doesn't say.
fn space(path: &std::path::Path) -> (i64, i64) {
    let bytes = |blocks: u64, size: u64| i64::try_from(blocks.saturating_mul(size)).unwrap_or(i64::MAX);
    match rustix::fs::statvfs(path) {
        Ok(about) => (bytes(about.f_blocks, about.f_frsize), bytes(about.f_bavail, about.f_frsize)),
        Err(_) => (-1, -1),
    }
}
