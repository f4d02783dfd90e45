//! DeleteRecords: moves the log start (KIP-107).

use std::sync::Arc;

use loggos_protocol::ids::{Offset, PartitionId};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use loggos_protocol::kafka::messages::{DeleteRecordsRequest, DeleteRecordsResponse};

use super::{Context, names};

pub(super) async fn handle(context: Arc<Context>, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    // Each waits for the disk.
    let work = move || {
        let topics = request.topics.iter().map(|topic| {
            let name = names::topic(&topic.name);
            let partitions = topic.partitions.iter().map(|asked| {
                let partition = context.table.get(&name, PartitionId::new(asked.partition_index));
                let deleted = match partition {
                    Some(partition) => partition.delete_records(Offset::new(asked.offset)),
                    None => Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION),
                };
                let (code, low) = match deleted {
                    Ok(start) => (ErrorCode::NONE, start.raw()),
                    Err(code) => (code, -1),
                };
                DeleteRecordsPartitionResult::default()
                    .with_partition_index(asked.partition_index)
                    .with_low_watermark(low)
                    .with_error_code(code.raw())
            });
            DeleteRecordsTopicResult::default()
                .with_name(topic.name.clone())
                .with_partitions(partitions.collect())
        });
        DeleteRecordsResponse::default().with_topics(topics.collect())
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}
