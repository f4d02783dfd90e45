//! What a log gives to read: slices of segment files, whose bytes nobody here reads. Readers never wait for the
//! writer, but for a moment at the tail's lock.
//!
//! Bytes from before this start are checked once, at their first read: rot is told as corruption and not shipped
//! (decision D4). Called by `partition`.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use loggos_protocol::batch::{self, Batch, BatchHeader, TimestampType};
use loggos_protocol::ids::{LeaderEpoch, Offset, Timestamp};
use loggos_storage::disk::DiskFile;

use super::segment::{Placed, Segment};
use super::{Log, LogError};

/// Batches at the end whose places are kept in memory: who follows closely needs no index.
const TAIL_BATCHES: usize = 128;

/// The places of the last batches.
#[derive(Debug, Default)]
pub(super) struct Tail {
    batches: VecDeque<TailBatch>,
}

#[derive(Clone, Copy, Debug)]
struct TailBatch {
    base: Offset,
    next: Offset,
    segment: Offset,
    position: u64,
    len: u64,
}

impl Tail {
    pub(super) fn push(&mut self, header: &BatchHeader, segment: Offset, position: u64) {
        if self.batches.len() == TAIL_BATCHES {
            self.batches.pop_front();
        }
        let (base, next, len) = (header.base_offset, header.next_offset(), header.total_len() as u64);
        self.batches.push_back(TailBatch { base, next, segment, position, len });
    }

    pub(super) fn clear(&mut self) {
        self.batches.clear();
    }

    /// The batch with the record at `offset`, or the first one behind it.
    fn find(&self, offset: Offset) -> Option<TailBatch> {
        self.batches.front().filter(|first| first.base <= offset)?;
        let at = self.batches.partition_point(|batch| batch.next <= offset);
        self.batches.get(at).copied()
    }

    /// Where in segment `base` the bytes before `upto` end, if the tail knows.
    fn limit(&self, segment: Offset, upto: Offset) -> Option<u64> {
        self.batches.front().filter(|first| first.base <= upto)?;
        let at = self.batches.partition_point(|batch| batch.base < upto);
        match self.batches.get(at) {
            Some(batch) if batch.segment == segment => Some(batch.position),
            // The segment ends before `upto`: at the end of its last batch.
            _ => {
                let last = self.batches.range(..at).rev().find(|batch| batch.segment == segment)?;
                Some(last.position + last.len)
            }
        }
    }
}

/// A range of a segment file: whole batches from its first byte on, the last one perhaps cut.
#[derive(Clone, Debug)]
pub struct LogSlice {
    file: Arc<dyn DiskFile>,
    position: u64,
    len: usize,
    segment: Arc<Segment>,
}

impl LogSlice {
    /// The file.
    pub fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }

    /// Where the range begins in it, in bytes.
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Its bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file's name, for messages.
    pub fn path(&self) -> &Path {
        self.segment.path()
    }

    /// Reads the bytes: for those who can't have the kernel send them.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(&self) -> io::Result<Bytes> {
        let mut bytes = vec![0; self.len];
        self.file.read_exact_at(&mut bytes, self.position)?;
        Ok(bytes.into())
    }

    /// Whether these bytes were written or checked since the start.
    pub fn is_checked(&self) -> bool {
        self.segment.unchecked.lock().covers(self.position, self.position + self.len as u64)
    }

    /// Reads and checks the bytes; cuts the slice before what is damaged. Waits for the disk.
    ///
    /// # Errors
    /// `Corrupt` when its first batch is damaged.
    pub fn check(&mut self) -> Result<(), LogError> {
        let path = self.path().to_owned();
        let bytes = self.read().map_err(|error| LogError::io("read", &path, error))?;
        let mut whole = 0;
        let mut damaged = None;
        for view in batch::scan(&bytes) {
            match view.and_then(|view| view.check_crc().map(|()| view)) {
                Ok(view) => whole = view.position + view.bytes.len(),
                Err(error) => {
                    damaged = Some(error);
                    break;
                }
            }
        }
        self.segment.unchecked.lock().note(self.position, self.position + whole as u64);
        let Some(error) = damaged else { return Ok(()) };
        let position = self.position + whole as u64;
        tracing::error!(%error, path = %path.display(), position, "a segment is damaged");
        if whole == 0 {
            return Err(LogError::Corrupt { path, position });
        }
        self.len = whole;
        Ok(())
    }
}

/// A record found by its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOffset {
    /// Its offset.
    pub offset: Offset,
    /// Its time.
    pub timestamp: Timestamp,
    /// The leader epoch that it was appended in.
    pub leader_epoch: LeaderEpoch,
}

/// How much a read may give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimit {
    /// Nothing at or behind this offset.
    pub upto: Offset,
    /// At most so many bytes.
    pub max_bytes: usize,
    /// But the first batch as a whole in any case.
    pub at_least_one: bool,
}

impl Log {
    /// The bytes from the batch with the record at `from` on; `None` when there are none within the limit.
    ///
    /// # Errors
    /// `OutOfRange` before the log start and behind the log end; the disk's.
    pub fn read(
        &self,
        from: Offset,
        upto: Offset,
        limit: (usize, bool),
    ) -> Result<Option<LogSlice>, LogError> {
        let limit = ReadLimit { upto, max_bytes: limit.0, at_least_one: limit.1 };
        let (start, end) = (self.log_start(), self.log_end());
        if from < start || from > end {
            return Err(LogError::OutOfRange { offset: from, start, end });
        }
        if from >= upto || (limit.max_bytes == 0 && !limit.at_least_one) {
            return Ok(None);
        }
        if let Some(failure) = self.failure().filter(|failure| matches!(failure, LogError::Corrupt { .. })) {
            return Err(failure);
        }
        let found = self.tail.lock().find(from);
        let (segment, position, first_len, base) = match found {
            Some(batch) => {
                let Some(segment) = self.segment_at(batch.segment) else { return Ok(None) };
                (segment, batch.position, batch.len, batch.base)
            }
            None => match self.find(from)? {
                Some((segment, placed)) => {
                    (segment, placed.position, placed.header.total_len() as u64, placed.header.base_offset)
                }
                None => return Ok(None),
            },
        };
        if base >= upto {
            return Ok(None);
        }
        let end = self.end_of_readable(&segment, upto)?;
        let wanted = end.saturating_sub(position).min(limit.max_bytes as u64);
        let len = if wanted >= first_len {
            wanted
        } else if limit.at_least_one {
            first_len
        } else {
            return Ok(None);
        };
        let file = segment.file().map_err(|error| LogError::io("open", segment.path(), error))?;
        Ok(Some(LogSlice { file, position, len: len as usize, segment }))
    }

    fn segment_at(&self, base: Offset) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        let at = segments.partition_point(|segment| segment.base <= base).checked_sub(1)?;
        segments.get(at).cloned()
    }

    /// The segment and place of the batch with the record at `offset`, or of the first one behind it.
    fn find(&self, offset: Offset) -> Result<Option<(Arc<Segment>, Placed)>, LogError> {
        let every = self.config().index_interval_bytes;
        let segments: Vec<Arc<Segment>> = {
            let segments = self.segments.read();
            let at = segments.partition_point(|segment| segment.base <= offset).saturating_sub(1);
            // The record may have been in a hole at the end of its segment.
            segments.iter().skip(at).take(2).cloned().collect()
        };
        for segment in segments {
            let len = segment.len();
            if let Some(placed) = segment.find(offset, len, every).map_err(|error| walked(&segment, error))? {
                return Ok(Some((segment, placed)));
            }
        }
        Ok(None)
    }

    /// Where in `segment` the bytes before `upto` end.
    fn end_of_readable(&self, segment: &Arc<Segment>, upto: Offset) -> Result<u64, LogError> {
        let next = {
            let segments = self.segments.read();
            let at = segments.partition_point(|other| other.base <= segment.base);
            segments.get(at).map(|next| next.base)
        };
        let len = segment.len();
        if next.is_some_and(|next| next <= upto) {
            return Ok(len);
        }
        if let Some(limit) = self.tail.lock().limit(segment.base, upto) {
            return Ok(limit);
        }
        let every = self.config().index_interval_bytes;
        let first_beyond = segment.find(upto, len, every).map_err(|error| walked(segment, error))?;
        Ok(first_beyond.map_or(len, |placed| placed.position))
    }

    /// The first record at or after `time` that lies before `upto`.
    ///
    /// # Errors
    /// `Corrupt`, and the disk's.
    pub fn offset_at(&self, time: Timestamp, upto: Offset) -> Result<Option<TimedOffset>, LogError> {
        let every = self.config().index_interval_bytes;
        let segments: Vec<Arc<Segment>> = self.segments.read().clone();
        for segment in segments {
            if segment.facts().max_timestamp < time {
                continue;
            }
            let len = segment.len();
            let found = segment.find_time(time, len, every).map_err(|error| walked(&segment, error))?;
            let Some(placed) = found else { continue };
            let found = record_at(&segment, placed, time, self.log_start())?;
            if let Some(found) = found.filter(|found| found.offset < upto) {
                return Ok(Some(found));
            }
            return Ok(None);
        }
        Ok(None)
    }

    /// The record with the greatest time before `upto`.
    ///
    /// # Errors
    /// `Corrupt`, and the disk's.
    pub fn latest_by_time(&self, upto: Offset) -> Result<Option<TimedOffset>, LogError> {
        let greatest = {
            let segments = self.segments.read();
            segments.iter().map(|segment| segment.facts().max_timestamp).max()
        };
        match greatest.filter(|time| time.raw() >= 0) {
            Some(time) => self.offset_at(time, upto),
            None => Ok(None),
        }
    }
}

fn walked(segment: &Segment, error: io::Error) -> LogError {
    if error.kind() == io::ErrorKind::InvalidData {
        let path: PathBuf = segment.path().to_owned();
        tracing::error!(%error, path = %path.display(), "a segment is damaged");
        return LogError::Corrupt { path, position: 0 };
    }
    LogError::io("read", segment.path(), error)
}

/// The first record of a batch at or after `time` and `start`.
fn record_at(
    segment: &Segment,
    placed: Placed,
    time: Timestamp,
    start: Offset,
) -> Result<Option<TimedOffset>, LogError> {
    let header = placed.header;
    let found = |offset, timestamp| TimedOffset { offset, timestamp, leader_epoch: header.leader_epoch };
    if header.timestamp_type() == TimestampType::LogAppendTime {
        return Ok(Some(found(header.base_offset.max(start), header.max_timestamp)));
    }
    let failed = |error| LogError::io("read", segment.path(), error);
    let mut bytes = vec![0; header.total_len()];
    segment.file().map_err(failed)?.read_exact_at(&mut bytes, placed.position).map_err(failed)?;
    let corrupt = || LogError::Corrupt { path: segment.path().to_owned(), position: placed.position };
    let batch = Batch::from_bytes(&bytes.into()).map_err(|_| corrupt())?;
    batch.check_crc().map_err(|_| corrupt())?;
    for record in batch::records(&batch).map_err(|_| corrupt())? {
        let record = record.map_err(|_| corrupt())?;
        if record.timestamp >= time && record.offset >= start {
            return Ok(Some(found(record.offset, record.timestamp)));
        }
    }
    Ok(None)
}
