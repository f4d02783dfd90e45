//! What a log gives up: the records behind a truncation, those before a moved start, segments that have had their
//! time. Each is in the journal before a file is touched, so that nothing comes back (rule 1 of
//! docs/decisions/0006).
//!
//! Called by `partition`: truncation by followers, the rest by retention and DeleteRecords.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loggos_protocol::ids::{Offset, Timestamp};

use super::entry::{self, Change};
use super::epochs::Epochs;
use super::producers::Producers;
use super::segment::Segment;
use super::{Log, LogError, policy};

impl Log {
    /// Cuts everything from `offset` on, in the middle of no batch: a batch that holds `offset` goes whole. Waits for
    /// the disk.
    ///
    /// # Errors
    /// What takes the directory offline.
    pub fn truncate_to(&self, offset: Offset) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        self.core.check()?;
        if offset >= self.log_end() {
            // An epoch that began here and has no record yet is one that the other log hasn't.
            writer.epochs.truncate(self.log_end());
            writer.changed = true;
            return Ok(());
        }
        // What is held back is cut or comes again: the truncation must not overtake it in the journal.
        self.flush_held(&mut writer);
        let (end, segment, position) = self.place_of_cut(offset.max(self.log_start()))?;
        self.commit.change(entry::change(&self.core.id, &Change::Truncate { end, segment, position }))?;
        self.cut(end, segment, position)?;
        writer.epochs.truncate(end);
        writer.producers.truncate(end);
        writer.changed = true;
        Ok(())
    }

    /// Where a cut before the batch that holds `offset` falls: the log's end after it, the last segment, its length.
    fn place_of_cut(&self, offset: Offset) -> Result<(Offset, Offset, u64), LogError> {
        let every = self.config().index_interval_bytes;
        let segments = self.segments.read();
        let Some(last) = segments.iter().rfind(|segment| segment.base <= offset) else {
            return Ok((offset, segments.first().map_or(offset, |first| first.base), 0));
        };
        let found = last.find(offset, last.len(), every);
        let found = found.map_err(|error| LogError::io("truncate", last.path(), error))?;
        Ok(match found {
            // Offsets before the log start were given out once: they are not given out again.
            Some(placed) => (placed.header.base_offset.max(self.log_start()), last.base, placed.position),
            None => (offset, last.base, last.len()),
        })
    }

    /// Takes the bytes behind a cut out of the files.
    fn cut(&self, end: Offset, segment: Offset, position: u64) -> Result<(), LogError> {
        let every = self.config().index_interval_bytes;
        let mut segments = self.segments.write();
        while let Some(gone) = segments.pop_if(|other| other.base > segment) {
            gone.remove().map_err(|error| LogError::io("remove", gone.path(), error))?;
        }
        if let Some(active) = segments.last() {
            active.neighbours_changed();
            active.cut(position, every).map_err(|error| LogError::io("truncate", active.path(), error))?;
        }
        self.tail.lock().clear();
        self.core.end.store(end.raw(), Ordering::Release);
        self.core.flushed.fetch_min(end.raw(), Ordering::AcqRel);
        Ok(())
    }

    /// Empties the log and lets it begin at `offset`, as a follower does whose leader has nothing older. Waits for
    /// the disk.
    ///
    /// # Errors
    /// What takes the directory offline.
    pub fn restart_at(&self, offset: Offset) -> Result<(), LogError> {
        self.truncate_to(self.log_start())?;
        let mut writer = self.writer.lock();
        self.commit.change(entry::change(&self.core.id, &Change::LogStart(offset)))?;
        self.core.start.store(offset.raw(), Ordering::Release);
        self.core.end.store(offset.raw(), Ordering::Release);
        self.core.flushed.store(offset.raw(), Ordering::Release);
        writer.epochs = Epochs::default();
        writer.producers = Producers::default();
        writer.changed = true;
        Ok(())
    }

    /// Gives up everything before `offset`, which lies at or before the flushed end. Waits for the disk.
    ///
    /// # Errors
    /// `OutOfRange` behind the flushed end, and what takes the directory offline.
    pub fn delete_records_before(&self, offset: Offset) -> Result<Offset, LogError> {
        let mut writer = self.writer.lock();
        self.core.check()?;
        let (start, end) = (self.log_start(), self.flushed_end());
        if offset > end {
            return Err(LogError::OutOfRange { offset, start, end });
        }
        if offset <= start {
            return Ok(start);
        }
        self.commit.change(entry::change(&self.core.id, &Change::LogStart(offset)))?;
        self.core.start.store(offset.raw(), Ordering::Release);
        writer.epochs.start_from(offset);
        writer.changed = true;
        drop(writer);
        self.drop_before(offset)?;
        Ok(offset)
    }

    /// Removes the segments that lie before `offset` as a whole.
    fn drop_before(&self, offset: Offset) -> Result<(), LogError> {
        let gone: Vec<Arc<Segment>> = {
            let mut segments = self.segments.write();
            let keep = segments.windows(2).take_while(|pair| pair[1].base <= offset).count();
            segments.drain(..keep).collect()
        };
        for segment in gone {
            segment.remove().map_err(|error| LogError::io("remove", segment.path(), error))?;
        }
        Ok(())
    }

    /// Lets go what has had its time, up to `upto`, which consumers have been able to see; gives how many bytes that
    /// freed.
    ///
    /// # Errors
    /// What takes the directory offline.
    pub fn expire(&self, upto: Offset, now: Timestamp) -> Result<u64, LogError> {
        let config = self.config();
        let before = self.size();
        let segments: Vec<Arc<Segment>> = self.segments.read().clone();
        let facts: Vec<_> = segments.iter().map(|segment| segment.facts()).collect();
        let upto = upto.min(self.flushed_end());
        let count = policy::expired(&facts, upto, &config, now);
        {
            let mut writer = self.writer.lock();
            let oldest = Timestamp::new(now.raw().saturating_sub(config.producer_expiration_ms));
            writer.producers.expire(oldest);
        }
        if count == 0 {
            return Ok(0);
        }
        let next = facts.get(count).map(|segment| segment.base);
        let start = match next {
            Some(base) => base,
            // The active one goes too, if nothing was added to it: an empty one takes its place.
            None if self.log_end() <= upto => self.close_active()?,
            None => facts[count - 1].base,
        };
        self.delete_records_before(start)?;
        Ok(before.saturating_sub(self.size()))
    }

    /// Puts an empty segment behind the active one; gives its base.
    fn close_active(&self) -> Result<Offset, LogError> {
        let _writer = self.writer.lock();
        let end = self.log_end();
        let active = self.segments.read().last().cloned();
        if let Some(active) = active.filter(|active| active.len() > 0) {
            active.seal().map_err(|error| LogError::io("close", active.path(), error))?;
            let made = Segment::create(Arc::clone(&self.disk), &self.dir, end);
            let segment = made.map_err(|error| LogError::io("make a segment in", &self.dir, error))?;
            self.segments.write().push(Arc::new(segment));
        }
        Ok(end)
    }
}
