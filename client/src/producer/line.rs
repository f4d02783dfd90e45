//! One partition's batches, oldest first (P): the open one, those that wait, those in flight. The rules that hold
//! between them stand in `accumulator`, which is the only caller.

use std::collections::VecDeque;
use std::time::Duration;

use loggos_protocol::batch::{Batch, BatchBuilder, BatchProducer, RecordView};
use loggos_protocol::ids::{ProducerEpoch, ProducerId, Sequence, TopicPartition};

use super::accumulator::numbers;
use crate::error::ClientError;

/// A batch's records, before and after they were compressed and checksummed.
#[derive(Debug)]
enum Body {
    Open(BatchBuilder),
    Sealed(Batch),
}

/// A batch on its way: to be sealed outside the accumulator's lock, and given back if it must be tried again.
#[derive(Debug)]
pub struct Sending {
    /// Where it goes.
    pub partition: TopicPartition,
    /// Its number.
    pub batch: u64,
    /// About how large it is.
    pub bytes: usize,
    body: Body,
    producer: Option<BatchProducer>,
}

impl Sending {
    /// Compresses and numbers the batch, if that isn't done yet.
    #[must_use]
    pub fn seal(self) -> Self {
        let mut batch = match self.body {
            Body::Open(builder) => builder.build(),
            Body::Sealed(batch) => batch,
        };
        if let Some(BatchProducer { id, epoch, base_sequence }) = self.producer {
            let header = &batch.header;
            if (header.producer_id, header.producer_epoch, header.base_sequence) != (id, epoch, base_sequence)
            {
                batch.restamp_producer(id, epoch, base_sequence);
            }
        }
        Self { body: Body::Sealed(batch), ..self }
    }

    /// The batch, once sealed.
    pub const fn sealed(&self) -> Option<&Batch> {
        match &self.body {
            Body::Sealed(batch) => Some(batch),
            Body::Open(_) => None,
        }
    }
}

/// How an attempt failed.
#[derive(Clone, Debug)]
pub enum Failure {
    /// It may succeed later. The error knows whether it may have succeeded already.
    Retry(ClientError),
    /// The broker's count of the producer's records is not ours.
    Sequence(ClientError),
    /// It never will.
    Fatal(ClientError),
}

/// A batch in line.
#[derive(Debug)]
pub(super) struct Entry<W> {
    number: u64,
    /// Absent in flight.
    body: Option<Body>,
    pub(super) waiters: Vec<W>,
    count: i32,
    pub(super) bytes: usize,
    pub(super) created: Duration,
    pub(super) first_record: u64,
    pub(super) attempts: u32,
    /// An attempt may have been carried out.
    ambiguous: bool,
    sequence: Option<Sequence>,
    pub(super) last: Option<ClientError>,
}

impl<W> Entry<W> {
    pub(super) const fn new(
        number: u64,
        builder: BatchBuilder,
        created: Duration,
        first_record: u64,
    ) -> Self {
        Self {
            number,
            bytes: builder.len(),
            body: Some(Body::Open(builder)),
            waiters: Vec::new(),
            count: 0,
            created,
            first_record,
            attempts: 0,
            ambiguous: false,
            sequence: None,
            last: None,
        }
    }

    const fn builder(&mut self) -> Option<&mut BatchBuilder> {
        match &mut self.body {
            Some(Body::Open(builder)) => Some(builder),
            _ => None,
        }
    }

    /// Appends a record to an open batch; the bytes that it took, the header's with the first.
    pub(super) fn push(&mut self, record: &RecordView<'_>, waiter: W) -> usize {
        let before = if self.count == 0 { 0 } else { self.bytes };
        let builder = self.builder().expect("the open batch has its builder");
        builder.push(record);
        let (bytes, count) = (builder.len(), builder.count());
        (self.bytes, self.count) = (bytes, count);
        self.waiters.push(waiter);
        bytes - before
    }

    pub(super) const fn is_full(&self, limit: usize) -> bool {
        self.bytes >= limit
    }

    pub(super) fn failed_with(mut self, error: ClientError) -> Self {
        self.last = Some(error);
        self
    }

    /// The waiters, each with the last error.
    pub(super) fn into_failed(self) -> Vec<(W, ClientError)> {
        let error = self.last.unwrap_or(ClientError::Closed);
        self.waiters.into_iter().map(|waiter| (waiter, error.clone())).collect()
    }
}

/// A partition.
#[derive(Debug)]
pub(super) struct Line<W> {
    pub(super) open: Option<Entry<W>>,
    closed: VecDeque<Entry<W>>,
    next_sequence: Sequence,
    epoch_bumps: i16,
    pub(super) not_before: Duration,
    /// The sequences start over in the next epoch, as soon as nothing is in flight.
    pub(super) restart: bool,
    /// A batch of this epoch was written. Before, a leader that knows nothing of the producer takes any sequence
    /// for the first: a second batch in flight could be written in front of the first one.
    pub(super) proven: bool,
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self {
            open: None,
            closed: VecDeque::new(),
            next_sequence: Sequence::new(0),
            epoch_bumps: 0,
            not_before: Duration::ZERO,
            restart: false,
            proven: false,
        }
    }
}

impl<W> Line<W> {
    /// Closes the open batch if `record` would make it larger than `limit`; whether it did.
    pub(super) fn close_unless_fits(&mut self, record: &RecordView<'_>, limit: usize) -> bool {
        let Some(builder) = self.open.as_mut().and_then(Entry::builder) else { return false };
        let fits = builder.len() + builder.record_len(record) <= limit;
        if !fits {
            self.close();
        }
        !fits
    }

    pub(super) fn close(&mut self) {
        self.closed.extend(self.open.take());
    }

    pub(super) fn in_flight(&self) -> usize {
        self.closed.iter().filter(|entry| entry.body.is_none()).count()
    }

    pub(super) fn first_waiting(&self) -> Option<(usize, &Entry<W>)> {
        self.closed.iter().enumerate().find(|(_, entry)| entry.body.is_some())
    }

    /// Takes the first batch that isn't in flight, numbering it if it has no number yet. Without a number left
    /// nothing is taken: 32767 epochs of one partition are used up.
    pub(super) fn take(
        &mut self,
        partition: &TopicPartition,
        producer: Option<(ProducerId, ProducerEpoch)>,
    ) -> Option<Sending> {
        if self.first_waiting().is_none() {
            self.close();
        }
        let (bumps, next) = (self.epoch_bumps, &mut self.next_sequence);
        let entry = self.closed.iter_mut().find(|entry| entry.body.is_some())?;
        let producer = match producer {
            None => None,
            Some(identity) => {
                let sequence = *entry.sequence.get_or_insert_with(|| {
                    let sequence = *next;
                    *next = sequence.plus(entry.count);
                    sequence
                });
                Some(numbers(identity, bumps, sequence)?)
            }
        };
        let body = entry.body.take()?;
        Some(Sending {
            partition: partition.clone(),
            batch: entry.number,
            bytes: entry.bytes,
            body,
            producer,
        })
    }

    pub(super) fn remove(&mut self, batch: u64) -> Option<Entry<W>> {
        let place = self.closed.iter().position(|entry| entry.number == batch)?;
        self.closed.remove(place)
    }

    /// Puts a batch back in its place after `failure`, or takes it out of line for good and gives it.
    pub(super) fn give_back(
        &mut self,
        sending: Sending,
        failure: Failure,
        idempotent: bool,
    ) -> Option<Entry<W>> {
        let place = self.closed.iter().position(|entry| entry.number == sending.batch)?;
        let entry = &mut self.closed[place];
        let (error, again) = match failure {
            Failure::Retry(error) => (error, true),
            // Behind another batch it says only that the other one isn't written yet.
            Failure::Sequence(error) if place > 0 || self.restart => (error, true),
            Failure::Sequence(error) => {
                self.restart = true;
                let again = !entry.ambiguous;
                let reason = error.to_string();
                let unknown = ClientError::OutcomeUnknown { partition: sending.partition.clone(), reason };
                (if again { error } else { unknown }, again)
            }
            Failure::Fatal(error) => {
                // The sequences behind it would leave a gap where it was.
                self.restart = idempotent;
                (error, false)
            }
        };
        entry.attempts += 1;
        entry.ambiguous |= error.outcome_unknown();
        entry.last = Some(error);
        if again {
            entry.body = Some(sending.body);
            return None;
        }
        self.closed.remove(place)
    }

    /// Starts the sequences over in the next epoch. Gives the batches that may have been written in the old one.
    pub(super) fn start_over(&mut self, partition: &TopicPartition) -> Vec<Entry<W>> {
        self.restart = false;
        self.proven = false;
        self.epoch_bumps = self.epoch_bumps.saturating_add(1);
        self.next_sequence = Sequence::new(0);
        let (unknown, kept): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.closed).into_iter().partition(|entry| entry.ambiguous);
        self.closed = kept;
        for entry in &mut self.closed {
            (entry.sequence, entry.attempts) = (None, 0);
        }
        let error = |entry: &Entry<W>| ClientError::OutcomeUnknown {
            partition: partition.clone(),
            reason: entry.last.as_ref().map_or_else(|| "no answer came".to_owned(), ToString::to_string),
        };
        unknown
            .into_iter()
            .map(|entry| (error(&entry), entry))
            .map(|(error, entry)| entry.failed_with(error))
            .collect()
    }

    /// Takes out what is older than `after` and not in flight.
    pub(super) fn expire(&mut self, now: Duration, after: Duration) -> Vec<Entry<W>> {
        let is_late = |entry: &Entry<W>| now >= entry.created + after;
        if self.open.as_ref().is_some_and(is_late) {
            self.close();
        }
        let mut expired = Vec::new();
        while let Some(place) = self.closed.iter().position(|entry| entry.body.is_some() && is_late(entry)) {
            let Some(entry) = self.closed.remove(place) else { break };
            // A number that was used and perhaps not written: what follows it would leave a gap.
            self.restart |= entry.sequence.is_some();
            expired.push(entry);
        }
        expired
    }

    pub(super) fn oldest_record(&self) -> Option<u64> {
        self.closed.front().or(self.open.as_ref()).map(|entry| entry.first_record)
    }
}
