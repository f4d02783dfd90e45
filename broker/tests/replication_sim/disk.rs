//! A replica's log as a model: records by offset, how far they are flushed, what a power cut leaves of them.

use std::collections::BTreeMap;

use loggos_broker::log::Epochs;
use loggos_broker::partition::divergence::Ends;
use loggos_protocol::ids::{LeaderEpoch, Offset};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub epoch: LeaderEpoch,
    pub value: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub start: i64,
    pub end: i64,
    pub flushed: i64,
    records: BTreeMap<i64, Record>,
    epochs: Epochs,
}

impl Disk {
    pub fn at(&self, offset: i64) -> Option<Record> {
        self.records.get(&offset).copied()
    }

    pub fn append(&mut self, record: Record) {
        self.epochs.assign(record.epoch, Offset::new(self.end));
        self.records.insert(self.end, record);
        self.end += 1;
    }

    pub fn begin_epoch(&mut self, epoch: LeaderEpoch) {
        self.epochs.assign(epoch, Offset::new(self.end));
    }

    pub fn latest_epoch(&self) -> LeaderEpoch {
        self.epochs.latest().unwrap_or(LeaderEpoch::NONE)
    }

    pub fn flush(&mut self, end: i64) {
        self.flushed = self.flushed.max(end.min(self.end));
    }

    pub fn truncate(&mut self, to: i64) {
        let to = to.clamp(self.start, self.end);
        self.records.split_off(&to);
        self.end = to;
        self.flushed = self.flushed.min(to);
        self.epochs.truncate(Offset::new(to));
    }

    pub fn restart_at(&mut self, offset: i64) {
        *self = Self { start: offset, end: offset, flushed: offset, ..Self::default() };
    }

    pub fn move_start(&mut self, to: i64) {
        if to > self.start && to <= self.flushed {
            self.start = to;
            self.epochs.start_from(Offset::new(to));
        }
    }

    /// What was not flushed is gone.
    pub fn power_cut(&mut self) {
        let epochs: Vec<_> = self.epochs.pairs().to_vec();
        self.truncate(self.flushed);
        // The checkpoint may still know an epoch that has no record any more.
        self.epochs = Epochs::new(epochs.into_iter().filter(|(_, start)| start.raw() < self.end));
    }

    pub fn read(&self, from: i64, upto: i64, most: usize) -> Vec<Record> {
        self.records.range(from..upto.max(from)).take(most).map(|(_, record)| *record).collect()
    }
}

impl Ends for Disk {
    fn start(&self) -> Offset {
        Offset::new(self.start)
    }

    fn end(&self) -> Offset {
        Offset::new(self.end)
    }

    fn epoch_end(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        self.epochs.end_of(epoch, Offset::new(self.end))
    }
}
