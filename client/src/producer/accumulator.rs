//! Records into batches, and batches out in order (P): who may send what when, what a retry does, what is lost.
//!
//! Each partition has one open batch that grows and a line of closed ones, oldest first. A batch stays in line
//! until its records are resolved; in flight, its bytes are with the sender, who gives them back for a retry.
//! Order is kept by two rules: a batch that is tried again goes only at the head of the line, and a producer whose
//! records are not numbered has one batch per partition in flight.
//!
//! Numbered (idempotent) batches keep their sequence over retries, so that the broker tells a repetition. When the
//! broker has lost count, or a batch leaves the line without having been written, the partition starts over:
//! nothing in flight, the next producer epoch, sequences from 0. A batch that may have been written under the old
//! epoch is not sent under the new one: it fails with `OutcomeUnknown`, rather than being written twice.
//!
//! Times are durations since any fixed moment. Called by `producer` (push) and `sender` (all else).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use loggos_protocol::batch::{BatchBuilder, BatchOptions, BatchProducer, Compression, RecordView};
use loggos_protocol::ids::{Offset, ProducerEpoch, ProducerId, TopicPartition};

use super::line::{Entry, Line};
use crate::error::ClientError;

pub use super::line::{Failure, Sending};

/// What the accumulator goes by.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The codec.
    pub compression: Compression,
    /// Its level.
    pub level: Option<i32>,
    /// How long an open batch waits to be filled.
    pub linger: Duration,
    /// A batch is full at this size.
    pub batch_bytes: usize,
    /// No record may be larger.
    pub record_limit: usize,
    /// Bytes of unresolved records.
    pub buffer_bytes: usize,
    /// Batches of one partition in flight.
    pub in_flight: usize,
    /// Whether records are numbered.
    pub idempotent: bool,
    /// How long a record may stay here.
    pub delivery_timeout: Duration,
    /// After a failed attempt.
    pub backoff: Duration,
    /// The longest that `backoff` grows to.
    pub backoff_max: Duration,
}

/// Why a record was not taken; the waiter is given back.
#[derive(Debug)]
pub enum Rejected<W> {
    /// No room; try again when some is freed.
    Full(W),
    /// Never.
    TooLarge(W, ClientError),
}

/// What taking a record changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The record's number, counted over all partitions.
    pub number: u64,
    /// Whether the senders have something new to look at: a batch that is full, or one that just began.
    pub wake: bool,
}

/// What `drain` found.
#[derive(Debug)]
pub struct Drained<W> {
    /// Batches to be sent in one request, one per partition.
    pub sendings: Vec<Sending>,
    /// Records that will not be sent any more.
    pub failed: Vec<(W, ClientError)>,
}

/// All partitions' batches; `W` is whoever waits for a record.
#[derive(Debug)]
pub struct Accumulator<W> {
    settings: Settings,
    lines: BTreeMap<TopicPartition, Line<W>>,
    identity: Option<(ProducerId, ProducerEpoch)>,
    used: usize,
    pushed: u64,
    flush_to: u64,
    /// Somebody waits for room: open batches don't linger.
    pressed: bool,
    batches: u64,
}

impl<W> Accumulator<W> {
    /// An empty one.
    pub const fn new(settings: Settings) -> Self {
        Self {
            settings,
            lines: BTreeMap::new(),
            identity: None,
            used: 0,
            pushed: 0,
            flush_to: 0,
            pressed: false,
            batches: 0,
        }
    }

    /// The numbers that an idempotent producer was given; nothing is sent before.
    pub const fn set_identity(&mut self, id: ProducerId, epoch: ProducerEpoch) {
        self.identity = Some((id, epoch));
    }

    /// Whether records are numbered.
    pub const fn is_idempotent(&self) -> bool {
        self.settings.idempotent
    }

    /// Numbers records no more; only before the first batch was sent, for brokers that can't.
    pub const fn give_up_idempotence(&mut self) {
        self.settings.idempotent = false;
        self.settings.in_flight = 1;
    }

    /// Whether an idempotent producer still lacks its numbers.
    pub const fn lacks_identity(&self) -> bool {
        self.settings.idempotent && self.identity.is_none()
    }

    /// Takes a record.
    ///
    /// # Errors
    /// See [`Rejected`].
    pub fn push(
        &mut self,
        now: Duration,
        partition: &TopicPartition,
        record: &RecordView<'_>,
        waiter: W,
    ) -> Result<Pushed, Rejected<W>> {
        let options = self.batch_options();
        let empty = BatchBuilder::new(options);
        let alone = empty.len() + empty.record_len(record);
        if alone > self.settings.record_limit {
            let error = ClientError::RecordTooLarge { bytes: alone, limit: self.settings.record_limit };
            return Err(Rejected::TooLarge(waiter, error));
        }
        // A record larger than the whole buffer goes through alone.
        if self.used > 0 && self.used + alone > self.settings.buffer_bytes {
            self.pressed = true;
            return Err(Rejected::Full(waiter));
        }
        self.pressed = false;
        let line = match self.lines.get_mut(partition) {
            Some(line) => line,
            None => self.lines.entry(partition.clone()).or_default(),
        };
        let mut wake = line.close_unless_fits(record, self.settings.batch_bytes);
        if line.open.is_none() {
            self.batches += 1;
            line.open = Some(Entry::new(self.batches, empty, now, self.pushed + 1));
            wake = true;
        }
        let open = line.open.as_mut().expect("opened just now");
        self.used += open.push(record, waiter);
        if open.is_full(self.settings.batch_bytes) {
            line.close();
            wake = true;
        }
        self.pushed += 1;
        Ok(Pushed { number: self.pushed, wake })
    }

    fn batch_options(&self) -> BatchOptions {
        let Settings { compression, level, .. } = self.settings;
        BatchOptions { compression, level, ..BatchOptions::default() }
    }

    /// Batches for one broker: those of partitions that it `leads`, one each, up to `max_bytes` together but one
    /// at least. `cursor` remembers where the last drain ended, so that no partition is starved.
    pub fn drain(
        &mut self,
        now: Duration,
        leads: &dyn Fn(&TopicPartition) -> bool,
        max_bytes: usize,
        cursor: &mut Option<TopicPartition>,
    ) -> Drained<W> {
        let mut drained = Drained { sendings: Vec::new(), failed: Vec::new() };
        if self.lacks_identity() {
            return drained;
        }
        let mut total = 0;
        for partition in self.ripe(now, leads, max_bytes, cursor.as_ref()) {
            let line = self.lines.get_mut(&partition).expect("found ripe just now");
            if line.restart {
                let failed = line.start_over(&partition);
                self.used -= failed.iter().map(|entry| entry.bytes).sum::<usize>();
                drained.failed.extend(failed.into_iter().flat_map(Entry::into_failed));
            }
            let producer = if self.settings.idempotent { self.identity } else { None };
            if let Some(sending) = line.take(&partition, producer) {
                total += sending.bytes;
                drained.sendings.push(sending);
                *cursor = Some(partition);
            }
            if total >= max_bytes {
                break;
            }
        }
        drained
    }

    /// Partitions with something to send, from behind the cursor around to it.
    fn ripe(
        &self,
        now: Duration,
        leads: &dyn Fn(&TopicPartition) -> bool,
        max_bytes: usize,
        cursor: Option<&TopicPartition>,
    ) -> Vec<TopicPartition> {
        let (behind, before) = match cursor {
            None => (self.lines.range::<TopicPartition, _>(..), None),
            Some(at) => (
                self.lines.range::<TopicPartition, _>((Bound::Excluded(at), Bound::Unbounded)),
                Some(self.lines.range::<TopicPartition, _>(..=at)),
            ),
        };
        let mut total = 0;
        let mut found = Vec::new();
        for (partition, line) in behind.chain(before.into_iter().flatten()) {
            let Some(bytes) = self.sendable(line, now) else { continue };
            if !leads(partition) {
                continue;
            }
            total += bytes;
            if total > max_bytes && !found.is_empty() {
                break;
            }
            found.push(partition.clone());
        }
        found
    }

    /// The size of the batch that `line` may send now.
    fn sendable(&self, line: &Line<W>, now: Duration) -> Option<usize> {
        let in_flight = line.in_flight();
        let limit = if line.proven || !self.settings.idempotent { self.settings.in_flight } else { 1 };
        let blocked = now < line.not_before || in_flight >= limit || (line.restart && in_flight > 0);
        if blocked {
            return None;
        }
        match line.first_waiting() {
            Some((place, entry)) => (entry.attempts == 0 || place == 0).then_some(entry.bytes),
            None => line.open.as_ref().filter(|open| self.is_ripe(open, now)).map(|open| open.bytes),
        }
    }

    fn is_ripe(&self, open: &Entry<W>, now: Duration) -> bool {
        self.pressed || open.first_record <= self.flush_to || now >= open.created + self.settings.linger
    }

    /// When something may have to be sent that isn't yet, later than `now`.
    pub fn next_wake(&self, now: Duration) -> Option<Duration> {
        let linger = self.settings.linger;
        let times = self.lines.values().flat_map(|line| {
            let lingering = line.open.as_ref().map(|open| (open.created + linger).max(line.not_before));
            let waiting = line.first_waiting().map(|_| line.not_before);
            [lingering, waiting]
        });
        times.flatten().filter(|&time| time > now).min()
    }

    /// A batch was written at `base` (unknown when negative): its waiters, each with its record's offset.
    pub fn acknowledged(&mut self, partition: &TopicPartition, batch: u64, base: Offset) -> Vec<(W, Offset)> {
        let Some(line) = self.lines.get_mut(partition) else { return Vec::new() };
        let Some(entry) = line.remove(batch) else { return Vec::new() };
        line.not_before = Duration::ZERO;
        line.proven = true;
        self.used -= entry.bytes;
        let offset = |place: usize| {
            if base < Offset::ZERO { base } else { base.plus(i64::try_from(place).unwrap_or(i64::MAX)) }
        };
        entry.waiters.into_iter().enumerate().map(|(place, waiter)| (waiter, offset(place))).collect()
    }

    /// A batch was not written, or nobody knows: it waits for another try, or its waiters are given back.
    pub fn failed(&mut self, now: Duration, sending: Sending, failure: Failure) -> Vec<(W, ClientError)> {
        let Some(line) = self.lines.get_mut(&sending.partition) else { return Vec::new() };
        let idempotent = self.settings.idempotent;
        match line.give_back(sending, failure, idempotent) {
            Some(entry) => {
                self.used -= entry.bytes;
                entry.into_failed()
            }
            None => {
                let attempts = line.first_waiting().map_or(1, |(_, entry)| entry.attempts);
                let doubled = self.settings.backoff.saturating_mul(1 << attempts.saturating_sub(1).min(16));
                line.not_before = now + doubled.min(self.settings.backoff_max);
                Vec::new()
            }
        }
    }

    /// Gives up on records that are here for too long and not in flight.
    pub fn expire(&mut self, now: Duration) -> Vec<(W, ClientError)> {
        let after = self.settings.delivery_timeout;
        let mut expired = Vec::new();
        for (partition, line) in &mut self.lines {
            for entry in line.expire(now, after) {
                self.used -= entry.bytes;
                let last = entry.last.as_ref().map(ToString::to_string);
                let error = ClientError::Undelivered { partition: partition.clone(), after, last };
                expired.extend(entry.failed_with(error).into_failed());
            }
        }
        expired
    }

    /// Gives up on all records that are not in flight.
    pub fn give_up(&mut self, why: &ClientError) -> Vec<(W, ClientError)> {
        let mut failed = Vec::new();
        for line in self.lines.values_mut() {
            for entry in line.expire(Duration::MAX, Duration::ZERO) {
                self.used -= entry.bytes;
                failed.extend(entry.failed_with(why.clone()).into_failed());
            }
        }
        failed
    }

    /// Asks that everything taken so far be sent without lingering; the number to wait for with
    /// [`is_resolved_to`](Self::is_resolved_to).
    pub const fn flush(&mut self) -> u64 {
        self.flush_to = self.pushed;
        self.flush_to
    }

    /// Whether each record up to number `to` is written or given up.
    pub fn is_resolved_to(&self, to: u64) -> bool {
        self.lines.values().all(|line| line.oldest_record().is_none_or(|oldest| oldest > to))
    }

    /// Partitions that have something to send.
    pub fn waiting_partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        let waits = |line: &Line<W>| line.open.is_some() || line.first_waiting().is_some();
        self.lines.iter().filter(move |(_, line)| waits(line)).map(|(partition, _)| partition)
    }

    /// Bytes of records that are neither written nor given up.
    pub const fn used(&self) -> usize {
        self.used
    }
}

/// The producer's numbers as a batch carries them, `bumps` epochs on; `None` when the epochs are used up.
pub(super) fn numbers(
    (id, epoch): (ProducerId, ProducerEpoch),
    bumps: i16,
    base_sequence: loggos_protocol::ids::Sequence,
) -> Option<BatchProducer> {
    let epoch = ProducerEpoch::new(epoch.raw().checked_add(bumps)?);
    Some(BatchProducer { id, epoch, base_sequence })
}
