//! Who is in sync, as far as this broker leads: it alone knows who has lagged and who has caught up, and asks the
//! registry to take the change by compare-and-set (KIP-497). The role that comes back with the next view counts; an
//! answer that is lost is asked for again, for until it is known the change may have been taken or not.
//!
//! Run as a task by `broker`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use loggos_client::registry::{NewState, Op, Registry, RegistryError};
use loggos_protocol::ids::BrokerId;
use loggos_protocol::registry::record::PartitionState;

use super::{Partition, Table};
use crate::metadata::{Metadata, View};

/// How often followers are looked at: much shorter than any lag that is allowed.
const LOOK: Duration = Duration::from_millis(100);
/// States that are written with one change.
const STATES_MAX: usize = 250;

/// Looks after the replicas in sync until the task is ended.
pub async fn run(registry: Registry, metadata: Metadata, table: Arc<Table>) {
    let mut applied = table.applied();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            changed = applied.changed() => if changed.is_err() { return },
        }
        let lag_ms = table.configs().number("replica.lag.time.max.ms");
        let view = metadata.view();
        let partitions = table.all();
        let replicated = partitions.iter().filter(|partition| partition.is_replicated());
        let due: Vec<Due> = replicated.filter_map(|partition| due(&view, partition, lag_ms)).collect();
        for chunk in due.chunks(STATES_MAX) {
            write(&registry, chunk).await;
        }
    }
}

/// A change that is due.
struct Due {
    partition: Arc<Partition>,
    state: NewState,
    /// The same with the replicas in sync as they are.
    unchanged: NewState,
    /// That who joins is still in the life in which it has caught up (KIP-903).
    checks: Vec<Op>,
}

fn due(view: &View, partition: &Arc<Partition>, lag_ms: i64) -> Option<Due> {
    let life_of = |broker: BrokerId| view.brokers.get(&broker).map(|broker| broker.epoch);
    let change = partition.isr_change(lag_ms, life_of)?;
    let role = partition.role();
    let topic = view.topic_by_id(partition.topic_id());
    // Without a topic there is nothing to be in sync with: the partition goes.
    let known = topic.and_then(|topic| topic.partitions.get(&partition.id()))?;
    let joining = change.joining.iter().filter_map(|(broker, _)| {
        view.brokers.get(broker).map(|known| Registry::check_life(*broker, known.lives))
    });
    let state = |isr: &BTreeSet<BrokerId>| {
        let isr = role.replicas.iter().copied().filter(|replica| isr.contains(replica)).collect();
        NewState {
            topic: partition.topic().clone(),
            partition: partition.id(),
            state: PartitionState::new(role.leader, role.leader_epoch, known.controller_epoch, isr),
            version: change.version,
        }
    };
    let (state, unchanged) = (state(&change.isr), state(&role.isr));
    Some(Due { partition: Arc::clone(partition), checks: joining.collect(), state, unchanged })
}

/// Writes many changes with one, or one by one where one of them can't be.
async fn write(registry: &Registry, due: &[Due]) {
    if try_write(registry, due).await || due.len() == 1 {
        return;
    }
    for one in due {
        try_write(registry, std::slice::from_ref(one)).await;
    }
}

/// Whether what became of them is known, or can't be found out now.
async fn try_write(registry: &Registry, due: &[Due]) -> bool {
    let checks: Vec<Op> = due.iter().flat_map(|one| one.checks.iter().cloned()).collect();
    let states: Vec<NewState> = due.iter().map(|one| one.state.clone()).collect();
    match registry.set_states(&states, &checks).await {
        Ok(()) => {
            for one in due {
                tracing::info!(
                    topic = %one.partition.topic(), partition = %one.partition.id(), isr = ?one.state.state.isr,
                    "other replicas are in sync"
                );
            }
            true
        }
        // A later state, perhaps by our own attempt whose answer was lost: the next view shows it.
        Err(RegistryError::Refused { part, .. }) if part < states.len() => false,
        Err(RegistryError::Refused { .. }) => {
            if let [one] = due {
                // Who was to join has begun another life. The state as it is, written anew, ends the change for good,
                // whatever became of earlier attempts at it.
                let ended = registry.set_states(std::slice::from_ref(&one.unchanged), &[]).await;
                tracing::debug!(topic = %one.partition.topic(), partition = %one.partition.id(), ?ended, "not taken");
            }
            false
        }
        // They may have been taken or not: each stays pending, and is asked again.
        Err(error) => {
            tracing::debug!(%error, "changes of the replicas in sync are put off");
            true
        }
    }
}
