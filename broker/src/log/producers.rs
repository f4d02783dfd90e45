//! Sequence numbers of idempotent producers (KIP-98): a batch that was appended before is answered with the offset
//! that it got then, and one that skips is refused. Pure; kept in the checkpoint, so that it survives restarts and
//! retention alike, and brought along by replay.

use std::collections::{BTreeMap, VecDeque};

use loggos_protocol::batch::BatchHeader;
use loggos_protocol::ids::{Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};
use serde::{Deserialize, Serialize};

/// Batches remembered per producer: as many as a producer may have in flight.
const BATCHES_KEPT: usize = 5;

/// What is remembered of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its first record's sequence.
    pub first: Sequence,
    /// Its last record's sequence.
    pub last: Sequence,
    /// Its first record's offset.
    pub base_offset: Offset,
    /// Its last record's offset.
    pub last_offset: Offset,
    /// Its greatest time.
    pub timestamp: Timestamp,
}

/// One producer's latest batches in this partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerState {
    /// The epoch that they carry.
    pub epoch: ProducerEpoch,
    /// The latest batches, oldest first; never empty.
    pub batches: VecDeque<Remembered>,
    /// When the latest was appended.
    pub seen: Timestamp,
}

/// What is to be done with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It comes next.
    Append,
    /// It is there already.
    Duplicate(Remembered),
}

/// Why a batch isn't taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// A batch before it is missing: the producer is to send that first.
    #[error("sequence {found} of producer {producer} doesn't follow {expected}")]
    OutOfOrder {
        /// Whose batch it is.
        producer: ProducerId,
        /// What should come.
        expected: Sequence,
        /// What came.
        found: Sequence,
    },
    /// A newer life of the producer has been here.
    #[error("epoch {found} of producer {producer} is older than {current}")]
    Fenced {
        /// Whose batch it is.
        producer: ProducerId,
        /// The epoch that holds.
        current: ProducerEpoch,
        /// The epoch that came.
        found: ProducerEpoch,
    },
}

/// All producers of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producers(BTreeMap<ProducerId, ProducerState>);

impl Producers {
    /// From what a checkpoint holds.
    pub fn new(states: impl IntoIterator<Item = (ProducerId, ProducerState)>) -> Self {
        Self(states.into_iter().filter(|(_, state)| !state.batches.is_empty()).collect())
    }

    /// All states, for a checkpoint.
    pub fn states(&self) -> impl Iterator<Item = (&ProducerId, &ProducerState)> {
        self.0.iter()
    }

    /// Says what is to be done with a batch that a client sent.
    ///
    /// # Errors
    /// `OutOfOrder` and `Fenced`; the producer knows what to do about either.
    pub fn check(&self, header: &BatchHeader) -> Result<Verdict, SequenceError> {
        if !header.has_producer() {
            return Ok(Verdict::Append);
        }
        // Of a producer that isn't known, be it new or forgotten, any sequence is taken, as Kafka does.
        let Some(state) = self.0.get(&header.producer_id) else { return Ok(Verdict::Append) };
        let (producer, found) = (header.producer_id, header.base_sequence);
        if header.producer_epoch < state.epoch {
            let (current, found) = (state.epoch, header.producer_epoch);
            return Err(SequenceError::Fenced { producer, current, found });
        }
        let expected = if header.producer_epoch > state.epoch {
            Sequence::new(0)
        } else {
            let (first, last) = (header.base_sequence, header.last_sequence());
            if let Some(known) = state.batches.iter().find(|batch| batch.first == first && batch.last == last)
            {
                return Ok(Verdict::Duplicate(*known));
            }
            state.batches.back().map_or(Sequence::new(0), |batch| batch.last.plus(1))
        };
        if found == expected {
            Ok(Verdict::Append)
        } else {
            Err(SequenceError::OutOfOrder { producer, expected, found })
        }
    }

    /// Remembers a batch that was appended; its offsets are stamped.
    pub fn appended(&mut self, header: &BatchHeader, now: Timestamp) {
        if !header.has_producer() || header.is_control() {
            return;
        }
        let state = self.0.entry(header.producer_id).or_insert_with(|| ProducerState {
            epoch: header.producer_epoch,
            batches: VecDeque::new(),
            seen: now,
        });
        if header.producer_epoch != state.epoch {
            state.epoch = header.producer_epoch;
            state.batches.clear();
        }
        if state.batches.len() == BATCHES_KEPT {
            state.batches.pop_front();
        }
        state.seen = now;
        state.batches.push_back(Remembered {
            first: header.base_sequence,
            last: header.last_sequence(),
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            timestamp: header.max_timestamp,
        });
    }

    /// Forgets batches at and behind `end`.
    pub fn truncate(&mut self, end: Offset) {
        self.0.retain(|_, state| {
            state.batches.retain(|batch| batch.last_offset < end);
            !state.batches.is_empty()
        });
    }

    /// Forgets producers that were not heard of since `before`.
    pub fn expire(&mut self, before: Timestamp) {
        self.0.retain(|_, state| state.seen >= before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loggos_protocol::batch::{BatchBuilder, BatchOptions};
    use proptest::prelude::*;

    fn header(epoch: i16, sequence: i32, count: i32, base: i64) -> BatchHeader {
        let batch = BatchBuilder::new(BatchOptions::default()).build().header;
        BatchHeader {
            base_offset: Offset::new(base),
            last_offset_delta: count - 1,
            record_count: count,
            producer_id: ProducerId::new(1),
            producer_epoch: ProducerEpoch::new(epoch),
            base_sequence: Sequence::new(sequence),
            ..batch
        }
    }

    #[test]
    fn a_repeated_batch_is_answered_with_the_offset_it_got() {
        let mut producers = Producers::default();
        let now = Timestamp::new(0);
        for n in 0..7 {
            let batch = header(0, n * 10, 10, i64::from(n) * 10);
            assert_eq!(producers.check(&batch), Ok(Verdict::Append));
            producers.appended(&batch, now);
        }
        let Ok(Verdict::Duplicate(known)) = producers.check(&header(0, 40, 10, 0)) else { panic!("known") };
        assert_eq!(known.base_offset, Offset::new(40));
        // The oldest two are forgotten: no producer has more than five in flight.
        assert!(matches!(producers.check(&header(0, 0, 10, 0)), Err(SequenceError::OutOfOrder { .. })));
        assert!(matches!(producers.check(&header(0, 80, 10, 0)), Err(SequenceError::OutOfOrder { .. })));
        assert_eq!(producers.check(&header(1, 0, 10, 0)), Ok(Verdict::Append));
        producers.appended(&header(1, 0, 1, 70), now);
        assert!(matches!(producers.check(&header(0, 70, 10, 0)), Err(SequenceError::Fenced { .. })));
    }

    #[test]
    fn sequences_wrap() {
        let mut producers = Producers::default();
        let last = header(0, i32::MAX - 1, 3, 0);
        producers.appended(&last, Timestamp::new(0));
        assert_eq!(producers.check(&header(0, 1, 1, 3)), Ok(Verdict::Append));
    }

    proptest! {
        #[test]
        fn whatever_arrives_each_sequence_is_appended_once_and_in_order(
            arrivals in proptest::collection::vec((0..12i32, 1..4i32), 0..200),
        ) {
            let (mut producers, mut next, mut end) = (Producers::default(), 0, 0i64);
            producers.appended(&header(0, 0, 1, 0), Timestamp::new(0));
            (next, end) = (next + 1, end + 1);
            for (sequence, count) in arrivals {
                let batch = header(0, sequence, count, end);
                match producers.check(&batch) {
                    Ok(Verdict::Append) => {
                        prop_assert_eq!(sequence, next);
                        producers.appended(&batch, Timestamp::new(0));
                        (next, end) = (next + count, end + i64::from(count));
                    }
                    Ok(Verdict::Duplicate(known)) => prop_assert!(known.last_offset.raw() < end),
                    Err(_) => prop_assert!(sequence != next),
                }
            }
        }
    }
}
