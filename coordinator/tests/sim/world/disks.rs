//! Writes, snapshots and received pieces on their way to the disks.

use loggos_coordinator::paxos::ballot::{Incarnation, ServerId, Slot};
use loggos_coordinator::paxos::event::Event;
use loggos_coordinator::paxos::message::{Envelope, Message};
use rand::RngExt;

use super::{Chunk, Happening, Step, World};
use crate::coverage::Seen;
use crate::disk::Blob;

impl World {
    pub(super) fn begin_group(&mut self, id: ServerId) {
        let now = self.now();
        let Some(server) = self.servers.get_mut(&id) else { return };
        let Some(incarnation) = server.life.as_ref().map(|life| life.incarnation) else { return };
        if !server.disk.begin_group() {
            return;
        }
        let (least, most) = self.plan.disk;
        let mut time = self.rng.random_range(least..=most);
        if server.slow_until > now {
            time += self.rng.random_range(0..1_500_000);
        }
        self.after(time, Happening::DiskDone(id, incarnation));
    }

    pub(super) fn disk_done(&mut self, id: ServerId, incarnation: Incarnation) -> Step {
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.lives_as(incarnation)) else {
            return Ok(());
        };
        if std::mem::take(&mut server.fail_next_write) {
            self.judge.coverage.count(Seen::FailedWrite);
            self.kill(id)?;
            let later = self.rng.random_range(100_000..2_000_000);
            self.after(later, Happening::Restart(id));
            return Ok(());
        }
        let group = server.disk.finish_group();
        let last = group.last().map(|write| write.ticket);
        for write in &group {
            self.judge.durable(id, write)?;
        }
        self.begin_group(id);
        match last {
            Some(ticket) => self.run_server(id, Event::Persisted(ticket)),
            None => Ok(()),
        }
    }

    pub(super) fn snapshot_done(
        &mut self,
        id: ServerId,
        incarnation: Incarnation,
        slot: Slot,
        blob: Blob,
    ) -> Step {
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.lives_as(incarnation)) else {
            return Ok(());
        };
        let bytes = blob.encode().len() as u64;
        server.disk.keep_snapshot(slot, blob);
        self.judge.coverage.count(Seen::SnapshotTaken);
        self.run_server(id, Event::SnapshotStored { slot, bytes })
    }

    pub(super) fn send_chunk(&mut self, id: ServerId, mut envelope: Envelope) {
        let Message::SnapChunk { slot, offset, total, bytes } = &mut envelope.message else { return };
        let Some(blob) = self.servers.get(&id).and_then(|server| server.disk.snapshot_at(*slot)) else {
            *bytes = bytes::Bytes::new();
            return self.send(envelope);
        };
        let whole = blob.encode();
        let from = usize::try_from(*offset).unwrap_or(usize::MAX).min(whole.len());
        let to = (from + self.plan.chunk).min(whole.len());
        (*total, *bytes) = (whole.len() as u64, bytes::Bytes::copy_from_slice(&whole[from..to]));
        self.send(envelope);
    }

    pub(super) fn chunk_done(&mut self, id: ServerId, incarnation: Incarnation, chunk: &Chunk) -> Step {
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.lives_as(incarnation)) else {
            return Ok(());
        };
        let slot = chunk.slot;
        let event = match server.disk.receive(slot, chunk.offset, chunk.total, &chunk.bytes) {
            Err(offset) => Event::SnapshotChunkStored { slot, offset },
            Ok(mut whole) => {
                if self.failing && self.rng.random_bool(0.05) {
                    let at = self.rng.random_range(0..whole.len());
                    whole[at] ^= 1;
                }
                match Blob::decode(&whole) {
                    None => {
                        self.judge.coverage.count(Seen::SnapshotBroken);
                        Event::SnapshotBroken { slot }
                    }
                    Some(blob) => {
                        let head = blob.head.clone();
                        server.disk.keep_snapshot(slot, blob);
                        Event::SnapshotReceived { slot, bytes: whole.len() as u64, head }
                    }
                }
            }
        };
        self.run_server(id, event)
    }
}
