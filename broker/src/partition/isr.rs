//! Who is in sync, as far as this broker leads: it alone knows who has lagged and who has caught up, and asks the
//! registry to take the change by compare-and-set (KIP-497). The role that comes back with the next view counts.
//!
//! Run as a task by `broker`.

use std::sync::Arc;
use std::time::Duration;

use loggos_client::registry::Registry;
use loggos_protocol::registry::record::PartitionState;

use super::{Partition, Table};
use crate::clock;
use crate::metadata::Metadata;

/// How often followers are looked at: much shorter than any lag that is allowed.
const LOOK: Duration = Duration::from_millis(200);

/// Looks after the replicas in sync until the task is ended.
pub async fn run(registry: Registry, metadata: Metadata, table: Arc<Table>) {
    let mut views = metadata.changes();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            changed = views.changed() => if changed.is_err() { return },
        }
        let lag_ms = table.configs().number("replica.lag.time.max.ms");
        for partition in table.all() {
            if partition.role().replicas.len() > 1 {
                look(&registry, &metadata, &partition, lag_ms).await;
            }
        }
    }
}

async fn look(registry: &Registry, metadata: &Metadata, partition: &Partition, lag_ms: i64) {
    let view = metadata.view();
    let is_alive = |broker| view.brokers.contains_key(&broker);
    let Some(isr) = partition.isr_change(clock::now(), lag_ms, is_alive) else { return };
    let known =
        view.topic_by_id(partition.topic_id()).and_then(|topic| topic.partitions.get(&partition.id()));
    let role = partition.role();
    let Some((known, version)) = known.and_then(|known| Some((known, known.state_version?))) else {
        return partition.isr_refused();
    };
    if known.leader_epoch != role.leader_epoch || known.leader != role.leader {
        return partition.isr_refused();
    }
    let isr: Vec<_> = known.replicas.iter().copied().filter(|replica| isr.contains(replica)).collect();
    let shown = format!("{isr:?}");
    let state = PartitionState::new(role.leader, role.leader_epoch, known.controller_epoch, isr);
    match registry.set_state(partition.topic(), partition.id(), &state, version, None).await {
        Ok(_) => tracing::info!(
            topic = %partition.topic(), partition = %partition.id(), isr = shown, "other replicas are in sync"
        ),
        Err(error) => {
            tracing::debug!(topic = %partition.topic(), partition = %partition.id(), %error, "not taken");
            partition.isr_refused();
        }
    }
}
