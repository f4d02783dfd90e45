//! The accumulator against a broker that loses answers, refuses, forgets and remembers.

use std::collections::BTreeMap;
use std::time::Duration;

use loggos_protocol::batch::{Compression, RecordView, records};
use loggos_protocol::ids::{Offset, PartitionId, ProducerEpoch, ProducerId, Timestamp, TopicPartition};
use loggos_protocol::kafka::ErrorCode;
use proptest::prelude::*;

use super::accumulator::{Accumulator, Failure, Rejected, Sending, Settings};
use crate::error::ClientError;

const MILLI: Duration = Duration::from_millis(1);

fn settings(idempotent: bool) -> Settings {
    Settings {
        compression: Compression::None,
        level: None,
        linger: 5 * MILLI,
        batch_bytes: 100,
        record_limit: 1_000,
        buffer_bytes: 100_000,
        in_flight: if idempotent { 5 } else { 1 },
        idempotent,
        delivery_timeout: Duration::from_secs(3_600),
        backoff: MILLI,
        backoff_max: 4 * MILLI,
    }
}

fn at(partition: i32) -> TopicPartition {
    TopicPartition::new("t", PartitionId::new(partition))
}

fn push(
    accumulator: &mut Accumulator<u64>,
    now: Duration,
    partition: i32,
    value: u64,
) -> Result<(), Rejected<u64>> {
    let bytes = value.to_be_bytes();
    let record = RecordView { timestamp: Timestamp::new(1), value: Some(&bytes), ..RecordView::default() };
    accumulator.push(now, &at(partition), &record, value).map(|_| ())
}

/// A leader's log, and what it remembers of the one producer: epoch, next sequence, and the last five batches.
#[derive(Default)]
struct BrokerLog {
    values: Vec<u64>,
    epoch: i16,
    next: Option<i32>,
    recent: Vec<(i16, i32, i64)>,
}

impl BrokerLog {
    fn append(&mut self, sending: &Sending) -> Result<Offset, ErrorCode> {
        let batch = sending.sealed().expect("the test seals");
        batch.check_crc().expect("a good checksum");
        let header = &batch.header;
        if header.has_producer() {
            let (epoch, sequence) = (header.producer_epoch.raw(), header.base_sequence.raw());
            if let Some(known) = self.recent.iter().find(|known| (known.0, known.1) == (epoch, sequence)) {
                return Ok(Offset::new(known.2));
            }
            if epoch < self.epoch {
                return Err(ErrorCode::INVALID_PRODUCER_EPOCH);
            }
            let expected = if epoch > self.epoch { Some(0) } else { self.next };
            if expected.is_some_and(|expected| expected != sequence) {
                return Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER);
            }
            self.epoch = epoch;
            self.next = Some(sequence + header.record_count);
            self.recent.push((epoch, sequence, self.values.len() as i64));
            if self.recent.len() > 5 {
                self.recent.remove(0);
            }
        }
        let base = Offset::new(self.values.len() as i64);
        for record in records(batch).expect("readable") {
            let value = record.expect("readable").value.expect("a value");
            self.values.push(u64::from_be_bytes(value[..].try_into().expect("eight bytes")));
        }
        Ok(base)
    }

    /// Loses count of the producer: only a new epoch helps.
    fn forget(&mut self) {
        self.recent.clear();
        self.next = Some(i32::MAX);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Push(i32),
    Drain,
    Answer,
    LoseAnswer,
    LoseRequest,
    NotLeader,
    TooLarge,
    ForgetProducer(i32),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0..3).prop_map(Step::Push),
        6 => Just(Step::Drain),
        6 => Just(Step::Answer),
        1 => Just(Step::LoseAnswer),
        1 => Just(Step::LoseRequest),
        1 => Just(Step::NotLeader),
        1 => Just(Step::TooLarge),
        1 => (0..3).prop_map(Step::ForgetProducer),
        3 => (1u64..8).prop_map(Step::Pass),
    ]
}

struct World {
    accumulator: Accumulator<u64>,
    now: Duration,
    cursor: Option<TopicPartition>,
    logs: BTreeMap<TopicPartition, BrokerLog>,
    wire: Vec<Sending>,
    pushed: BTreeMap<TopicPartition, Vec<u64>>,
    acknowledged: BTreeMap<u64, Offset>,
    failed: BTreeMap<u64, ClientError>,
}

impl World {
    fn new(idempotent: bool) -> Self {
        let mut accumulator = Accumulator::new(settings(idempotent));
        accumulator.set_identity(ProducerId::new(7), ProducerEpoch::new(0));
        Self {
            accumulator,
            now: Duration::ZERO,
            cursor: None,
            logs: (0..3).map(|partition| (at(partition), BrokerLog::default())).collect(),
            wire: Vec::new(),
            pushed: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    fn drain(&mut self) {
        let drained = self.accumulator.drain(self.now, &|_| true, 10_000, &mut self.cursor);
        self.wire.extend(drained.sendings.into_iter().map(Sending::seal));
        self.note_failed(drained.failed);
    }

    fn note_failed(&mut self, failed: Vec<(u64, ClientError)>) {
        for (value, error) in failed {
            assert!(self.failed.insert(value, error).is_none(), "resolved once");
        }
    }

    /// The broker takes the oldest request; `lost` is whether its answer gets lost.
    fn answer(&mut self, lost: bool) {
        if self.wire.is_empty() {
            return;
        }
        let sending = self.wire.remove(0);
        let outcome = self.logs.get_mut(&sending.partition).expect("three logs").append(&sending);
        match outcome {
            _ if lost => self.fail(sending, Failure::Retry(disconnected())),
            Ok(base) => {
                let written = self.accumulator.acknowledged(&sending.partition, sending.batch, base);
                for (value, offset) in written {
                    assert!(self.acknowledged.insert(value, offset).is_none(), "resolved once");
                }
            }
            Err(code) => self.fail(sending, Failure::Sequence(ClientError::refused("writing", code))),
        }
    }

    fn fail(&mut self, sending: Sending, failure: Failure) {
        let failed = self.accumulator.failed(self.now, sending, failure);
        self.note_failed(failed);
    }

    fn refuse(&mut self, failure: Failure) {
        if !self.wire.is_empty() {
            let sending = self.wire.remove(0);
            self.fail(sending, failure);
        }
    }

    fn step(&mut self, step: Step, value: u64) {
        match step {
            Step::Push(partition) => {
                push(&mut self.accumulator, self.now, partition, value).expect("there is room");
                self.pushed.entry(at(partition)).or_default().push(value);
            }
            Step::Drain => self.drain(),
            Step::Answer => self.answer(false),
            Step::LoseAnswer => self.answer(true),
            Step::LoseRequest => self.refuse(Failure::Retry(disconnected())),
            Step::NotLeader => {
                let error = ClientError::refused("writing", ErrorCode::NOT_LEADER_OR_FOLLOWER);
                self.refuse(Failure::Retry(error));
            }
            Step::TooLarge => {
                self.refuse(Failure::Fatal(ClientError::refused("writing", ErrorCode::MESSAGE_TOO_LARGE)));
            }
            Step::ForgetProducer(partition) => {
                self.logs.get_mut(&at(partition)).expect("three logs").forget();
            }
            Step::Pass(millis) => self.now += MILLI * u32::try_from(millis).expect("small"),
        }
    }

    fn finish(&mut self) {
        let to = self.accumulator.flush();
        for _ in 0..10_000 {
            if self.accumulator.is_resolved_to(to) {
                return;
            }
            self.drain();
            self.answer(false);
            self.now += MILLI;
        }
        panic!("never done");
    }
}

fn disconnected() -> ClientError {
    ClientError::Disconnected { address: "b".to_owned(), reason: "cut".to_owned() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn numbered_records_are_written_in_order_once_and_each_is_resolved(
        steps in proptest::collection::vec(step(), 0..300),
    ) {
        let mut world = World::new(true);
        for (value, &step) in steps.iter().enumerate() {
            world.step(step, value as u64);
        }
        world.finish();
        for (partition, pushed) in &world.pushed {
            let log = &world.logs[partition].values;
            prop_assert!(log.is_sorted_by(|a, b| a < b), "in order and none twice: {log:?}");
            for value in pushed {
                let written = log.binary_search(value).ok();
                match (world.acknowledged.get(value), world.failed.get(value)) {
                    (Some(offset), None) => prop_assert_eq!(Some(offset.raw() as usize), written, "acknowledged"),
                    (None, Some(ClientError::OutcomeUnknown { .. })) => {}
                    (None, Some(error)) => {
                        prop_assert_eq!(error.code(), Some(ErrorCode::MESSAGE_TOO_LARGE));
                    }
                    other => prop_assert!(false, "{value} is resolved as {other:?}"),
                }
            }
        }
        prop_assert_eq!(world.accumulator.used(), 0, "all room is given back");
    }

    #[test]
    fn plain_records_are_written_in_order_at_least_once(
        steps in proptest::collection::vec(step(), 0..300),
    ) {
        let mut world = World::new(false);
        for (value, &step) in steps.iter().enumerate() {
            let fatal = matches!(step, Step::TooLarge | Step::ForgetProducer(_));
            world.step(if fatal { Step::Drain } else { step }, value as u64);
        }
        world.finish();
        for (partition, pushed) in &world.pushed {
            let mut seen = Vec::new();
            for value in &world.logs[partition].values {
                if !seen.contains(value) {
                    seen.push(*value);
                }
            }
            prop_assert_eq!(&seen, pushed, "first writings are in order and complete");
            prop_assert!(pushed.iter().all(|value| world.acknowledged.contains_key(value)));
        }
        prop_assert_eq!(world.accumulator.used(), 0);
    }
}

#[test]
fn batches_go_when_full_or_when_they_lingered_or_when_flushed() {
    let mut world = World::new(true);
    push(&mut world.accumulator, MILLI, 0, 1).expect("room");
    world.now = 2 * MILLI;
    world.drain();
    assert!(world.wire.is_empty(), "it lingers");
    assert_eq!(world.accumulator.next_wake(world.now), Some(6 * MILLI));
    world.now = 6 * MILLI;
    world.drain();
    assert_eq!(world.wire.len(), 1);
    for value in 2..6 {
        push(&mut world.accumulator, world.now, 1, value).expect("room");
    }
    world.drain();
    assert_eq!(world.wire.len(), 2, "a full batch doesn't linger");
    push(&mut world.accumulator, world.now, 2, 9).expect("room");
    let to = world.accumulator.flush();
    world.finish();
    assert!(world.accumulator.is_resolved_to(to));
}

#[test]
fn a_full_buffer_pushes_back_and_an_old_record_is_given_up() {
    let mut accumulator = Accumulator::new(Settings { buffer_bytes: 250, ..settings(false) });
    let mut taken = 0;
    while push(&mut accumulator, Duration::ZERO, 0, taken).is_ok() {
        taken += 1;
        assert!(taken < 100, "the buffer is bounded");
    }
    assert!(accumulator.used() <= 250 && taken > 1);
    let expired = accumulator.expire(Duration::from_secs(3_600));
    assert_eq!(expired.len() as u64, taken);
    assert!(matches!(expired[0].1, ClientError::Undelivered { .. }));
    assert_eq!(accumulator.used(), 0);
    let huge = vec![0; 2_000];
    let record = RecordView { value: Some(&huge), ..RecordView::default() };
    let refused = accumulator.push(Duration::ZERO, &at(0), &record, 1);
    assert!(matches!(refused, Err(Rejected::TooLarge(1, ClientError::RecordTooLarge { limit: 1_000, .. }))));
}
