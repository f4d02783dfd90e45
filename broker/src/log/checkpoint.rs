//! The checkpoint of a log directory: up to where the journal is no longer needed, and what every log was then.
//! One file for all logs, written aside, synced and renamed: one line of JSON and one with its checksum.
//!
//! Called by `commit` and `recovery`.

use std::io::{self, IoSlice};
use std::path::Path;

use loggos_protocol::ids::{LeaderEpoch, Offset, PartitionId, ProducerId, Timestamp, TopicId, TopicName};
use loggos_storage::disk::{Disk, OpenMode};
use loggos_storage::journal::Lsn;
use serde::{Deserialize, Serialize};

use super::LogId;
use super::producers::ProducerState;

/// The checkpoint's name in the log directory.
const FILE: &str = "checkpoint";
const VERSION: u32 = 1;

/// What a checkpoint holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    version: u32,
    /// Where replay begins; hexadecimal.
    lsn: String,
    /// Every log of the directory.
    pub logs: Vec<LogRecord>,
}

/// One log, as it was: everything before `end` is durable in its segments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LogRecord {
    pub topic: String,
    pub topic_id: String,
    pub partition: PartitionId,
    pub incarnation: u64,
    pub start: Offset,
    pub end: Offset,
    /// The active segment's base, and its length with everything before `end`.
    pub active: Offset,
    pub active_len: u64,
    /// Times of the segments' records: base, first, greatest.
    pub times: Vec<(Offset, Option<Timestamp>, Timestamp)>,
    pub epochs: Vec<(LeaderEpoch, Offset)>,
    pub producers: Vec<(ProducerId, ProducerState)>,
}

impl LogRecord {
    pub(super) fn id(&self) -> Option<LogId> {
        Some(LogId {
            topic_id: TopicId::parse(&self.topic_id)?,
            topic: TopicName::new(self.topic.as_str()),
            partition: self.partition,
            incarnation: self.incarnation,
        })
    }
}

impl Checkpoint {
    pub(super) fn new(lsn: Lsn, logs: Vec<LogRecord>) -> Self {
        let lsn = lsn.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { version: VERSION, lsn, logs }
    }

    pub(super) fn lsn(&self) -> Option<Lsn> {
        let mut bytes = [0; 16];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(self.lsn.get(at * 2..at * 2 + 2)?, 16).ok()?;
        }
        Some(Lsn::from_bytes(bytes))
    }

    /// Writes it so that a crash leaves either this one or the one before.
    pub(super) fn write(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        let crc = format!("{:08x}\n", crc32fast::hash(&text));
        let aside = dir.join("checkpoint.new");
        let file = disk.open(&aside, OpenMode { create: true, truncate: true, ..OpenMode::default() })?;
        file.write_all_at(&[IoSlice::new(&text), IoSlice::new(crc.as_bytes())], 0)?;
        file.sync_data()?;
        disk.rename(&aside, &dir.join(FILE))?;
        disk.sync_dir(dir)
    }

    /// Reads it; `None` when there is none. `InvalidData` when it is damaged.
    pub(super) fn read(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(FILE);
        if !disk.exists(&path)? {
            return Ok(None);
        }
        let file = disk.open(&path, OpenMode { read_only: true, ..OpenMode::default() })?;
        let mut bytes = vec![0; file.len()? as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the checkpoint is damaged");
        let (text, crc) = bytes.split_at_checked(bytes.len().saturating_sub(9)).ok_or_else(damaged)?;
        if format!("{:08x}\n", crc32fast::hash(text)).as_bytes() != crc {
            return Err(damaged());
        }
        let checkpoint: Self = serde_json::from_slice(text)?;
        if checkpoint.version != VERSION || checkpoint.lsn().is_none() {
            return Err(damaged());
        }
        Ok(Some(checkpoint))
    }
}
