//! Rot, found and mended: a scrubber reads what is flushed again, steadily and slowly; a replica with a damaged batch
//! leaves the replicas in sync, cuts its log before the batch, and refills from its leader. Where it's the only replica
//! in sync there is nobody to refill from, and that is said.
//!
//! Run as tasks by `broker`.

use std::sync::Arc;
use std::time::Duration;

use crate::controller::Admin;
use crate::log::Scrubbed;
use crate::partition::{Partition, Table};

/// What is read at once.
const PIECE_BYTES: usize = 1 << 20;
/// How long the scrubber rests between two passes, and where it's switched off.
const REST: Duration = Duration::from_secs(10);
/// How often damage is looked after.
const LOOK: Duration = Duration::from_millis(500);

/// Reads everything again and again, at `loggos.scrub.bytes.per.second`.
pub async fn scrub(table: Arc<Table>) {
    loop {
        for partition in table.all() {
            scrub_one(&table, partition).await;
        }
        tokio::time::sleep(REST).await;
    }
}

async fn scrub_one(table: &Table, partition: Arc<Partition>) {
    let mut at = partition.log().log_start();
    loop {
        let rate = table.configs().number("loggos.scrub.bytes.per.second");
        let Some(rate) = u64::try_from(rate).ok().filter(|rate| *rate > 0) else { return };
        let (reads, from) = (Arc::clone(&partition), at);
        let done = tokio::task::spawn_blocking(move || reads.log().scrub(from, PIECE_BYTES)).await;
        match done {
            Ok(Ok(Scrubbed::Whole { next, bytes })) => {
                at = next;
                metrics::counter!("loggos_broker_scrubbed_bytes").increment(bytes as u64);
                tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64)).await;
            }
            Ok(Ok(Scrubbed::End)) => return,
            Ok(Ok(Scrubbed::Damaged(offset))) => return partition.note_damage(offset),
            // It may have been cut or moved on meanwhile; the next pass sees.
            Ok(Err(error)) => return tracing::debug!(%error, "not scrubbed"),
            Err(_) => return,
        }
    }
}

/// Mends what is damaged, as far as others have it.
pub async fn mend(admin: Admin, table: Arc<Table>) {
    loop {
        tokio::time::sleep(LOOK).await;
        for partition in table.all() {
            if let Some(offset) = partition.damage() {
                mend_one(&admin, &table, &partition, offset).await;
            }
        }
    }
}

async fn mend_one(
    admin: &Admin,
    table: &Table,
    partition: &Arc<Partition>,
    offset: loggos_protocol::ids::Offset,
) {
    if partition.is_in_sync() {
        let named = (partition.topic().clone(), partition.id());
        match admin.leave(Some(&[named])).await {
            Ok(0) if partition.role().isr.len() < 2 => tracing::error!(
                topic = %partition.topic(), partition = %partition.id(), %offset,
                "a batch is damaged, and no other replica is in sync to mend it from"
            ),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a damaged replica is still in sync"),
        }
        return;
    }
    let mends = Arc::clone(partition);
    match tokio::task::spawn_blocking(move || mends.cut_damage(offset)).await {
        Ok(Ok(true)) => {
            metrics::counter!("loggos_broker_mended").increment(1);
            tracing::warn!(
                topic = %partition.topic(), partition = %partition.id(), %offset,
                "cut before a damaged batch; the leader gives it anew"
            );
            table.look_again();
        }
        // Its leader changes; the next look sees.
        Ok(Ok(false)) | Err(_) => {}
        Ok(Err(error)) => tracing::error!(%error, "a damaged batch can't be cut"),
    }
}
