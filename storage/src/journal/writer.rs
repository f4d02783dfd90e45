//! One thread, one write in flight: everything that was appended while the last write was under way goes into the
//! next. Called by the journal's handle.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use super::block::{self, GroupPlace};
use super::files::{Files, JournalFile};
use super::replay::End;
use super::{Append, JournalError, JournalOptions, Lsn, Queue, Shared};
use crate::disk::DIRECT_ALIGNMENT;

/// Once a file holds so much, the next one is prepared.
const PREPARE_AFTER: u64 = 1 << 20;
/// How often a writer without space says so.
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);
/// How often it looks whether there is some.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Owns the end of the journal.
pub(super) struct Writer {
    files: Files,
    current: Option<JournalFile>,
    last: Lsn,
    next_group: u64,
    group_bytes_max: usize,
    buffer: Vec<u8>,
    complained: Option<Instant>,
}

impl Writer {
    pub(super) fn new(mut files: Files, options: JournalOptions, end: End) -> Result<Self, JournalError> {
        let number = end.last.position() / files.file_bytes() as u64;
        let current = files.resume_at(number)?;
        Ok(Self {
            files,
            current,
            last: end.last,
            next_group: end.highest + 1,
            group_bytes_max: options.group_bytes_max.min(options.file_bytes as usize),
            buffer: Vec::new(),
            complained: None,
        })
    }

    /// The thread's whole life.
    pub(super) fn run(mut self, shared: &Shared) {
        loop {
            let mut queue = shared.queue.lock();
            while queue.appends.is_empty() && !queue.closed {
                shared.wake.wait(&mut queue);
            }
            if queue.appends.is_empty() {
                return;
            }
            let group = self.take_group(&mut queue);
            let released = queue.released;
            drop(queue);
            let mut result = self.write(&group, released);
            while let Ok(None) = result {
                result = self.wait_for_space(shared).and_then(|released| self.write(&group, released));
            }
            let result = result.map(|end| end.unwrap_or_default());
            self.finish(shared, group, result);
        }
    }

    /// What fits into one write, the first append in any case.
    fn take_group(&self, queue: &mut Queue) -> Vec<Append> {
        let room = block::entries_room(self.group_bytes_max);
        let (mut group, mut bytes) = (Vec::new(), 0);
        while let Some(append) =
            queue.appends.pop_front_if(|append| bytes == 0 || bytes + append.bytes <= room)
        {
            bytes += append.bytes;
            group.push(append);
        }
        group
    }

    /// Writes `group`; when this returns an end, it is durable. `None` says that the ring is full.
    pub(super) fn write(&mut self, group: &[Append], released: Lsn) -> Result<Option<Lsn>, JournalError> {
        let entries_len = group.iter().map(|append| append.bytes).sum();
        let len = block::disk_len(entries_len);
        if !self.make_way(len as u64, released)? {
            return Ok(None);
        }
        let place = GroupPlace {
            journal_id: self.files.id(),
            number: self.next_group,
            previous: self.last.group,
            position: self.last.position,
        };
        // Direct writes want memory at a page's beginning.
        if self.buffer.len() < len + DIRECT_ALIGNMENT {
            self.buffer = vec![0; len + DIRECT_ALIGNMENT];
        }
        let skip = self.buffer.as_ptr().align_offset(DIRECT_ALIGNMENT);
        let bytes = &mut self.buffer[skip..skip + len];
        let entries = group.iter().flat_map(|append| &append.entries);
        block::encode(place, entries, entries_len, bytes);
        let file = self.current.as_ref().expect("make_way opened a file");
        let (at, next) = (self.last.position % self.files.file_bytes() as u64, file.number + 1);
        let failed = |source| JournalError::io("write", &file.path, source);
        file.file.write_all_at(&[IoSlice::new(bytes)], at).map_err(failed)?;
        if !file.durable_writes {
            file.file.sync_data().map_err(failed)?;
        }
        self.last = Lsn { group: place.number, position: place.position + len as u64 };
        self.next_group += 1;
        if at + len as u64 > PREPARE_AFTER.min(self.files.file_bytes() as u64 / 4) {
            self.files.prepare_next(released.position() / self.files.file_bytes() as u64);
            self.files.name_ready(next);
        }
        Ok(Some(self.last))
    }

    /// Sees to it that the current file has room for `len` bytes; false when the ring is full.
    fn make_way(&mut self, len: u64, released: Lsn) -> Result<bool, JournalError> {
        let file_bytes = self.files.file_bytes() as u64;
        if let Some(file) = &self.current {
            let used = self.last.position.saturating_sub(file.number * file_bytes);
            let better = !file.prepared && self.files.has_ready();
            if used + len <= file_bytes && !better {
                return Ok(true);
            }
        }
        let number =
            self.current.as_ref().map_or(self.last.position.div_ceil(file_bytes), |file| file.number + 1);
        let Some(file) = self.files.next(number, released.position / file_bytes)? else { return Ok(false) };
        self.last.position = file.number * file_bytes;
        self.current = Some(file);
        Ok(true)
    }

    /// Waits until something is released, or for a while, as the disk may have space again.
    fn wait_for_space(&mut self, shared: &Shared) -> Result<Lsn, JournalError> {
        let mut queue = shared.queue.lock();
        if queue.closed {
            return Err(JournalError::Closed);
        }
        let before = queue.released;
        queue.starving = true;
        if self.complained.is_none_or(|last| last.elapsed() > COMPLAIN_EVERY) {
            tracing::warn!("the journal has no space: appends wait");
            self.complained = Some(Instant::now());
        }
        if queue.released == before {
            shared.wake.wait_for(&mut queue, LOOK_AGAIN);
        }
        queue.starving = false;
        Ok(queue.released)
    }

    fn finish(&mut self, shared: &Shared, group: Vec<Append>, result: Result<Lsn, JournalError>) {
        let mut queue = shared.queue.lock();
        queue.bytes -= group.iter().map(|append| append.bytes).sum::<usize>();
        let mut group = group;
        match &result {
            Ok(end) => queue.durable_end = *end,
            Err(error) => {
                // What a failed write left isn't known: nothing is ever written again.
                queue.failed = Some(error.clone());
                queue.bytes = 0;
                group.extend(queue.appends.drain(..));
            }
        }
        let crowded = queue.bytes > shared.pending_bytes_max;
        shared.crowded.store(crowded, std::sync::atomic::Ordering::Relaxed);
        let waiters = if crowded { Vec::new() } else { std::mem::take(&mut queue.room_waiters) };
        drop(queue);
        for append in group {
            (append.done)(result.clone());
        }
        for wake in waiters {
            wake();
        }
    }
}
