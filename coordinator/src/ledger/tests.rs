//! The ledger on a disk that fails: whatever was acknowledged is there after a crash at any step, nothing is there
//! that was never written, and lost memory is noticed.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use loggos_protocol::ids::Timestamp;
use loggos_storage::disk::{DirEntry, Disk};
use loggos_storage::disk_sim::{Faults, SimDisk};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{Ledger, Memory};
use crate::error::LedgerError;
use crate::paxos::ballot::{Ballot, ServerId, Slot};
use crate::paxos::event::{Record, Ticket, Write};
use crate::paxos::value::Value;

const DIR: &str = "/ledger";

fn open(disk: &SimDisk) -> Result<(Arc<Ledger>, Memory), LedgerError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Ledger::open(disk, Path::new(DIR), 0, true).map(|(ledger, memory)| (Arc::new(ledger), memory))
}

/// What a history has handed to the ledger, and how much of it counts.
#[derive(Default)]
struct Model {
    issued: Vec<Write>,
    durable: usize,
    released: Slot,
    snapshot: Slot,
}

impl Model {
    fn persist(&mut self, ledger: &Arc<Ledger>, mut write: Write) -> bool {
        write.ticket = Ticket(self.issued.len() as u64 + 1);
        self.issued.push(write.clone());
        let heard = Arc::new(Mutex::new(None));
        let theirs = Arc::clone(&heard);
        ledger.persist(write, Arc::new(move |result| *theirs.lock() = Some(result.is_ok())));
        let durable = heard.lock().expect("an inline ledger has told");
        if durable {
            self.durable = self.issued.len();
        }
        durable
    }

    /// What must be found, and what may be.
    fn check(&self, memory: &Memory, context: &str) {
        let promise =
            |writes: &[Write]| writes.iter().filter_map(|write| write.promise).max().unwrap_or_default();
        let (least, most) = (promise(&self.issued[..self.durable]), promise(&self.issued));
        assert!(
            memory.promised >= least && memory.promised <= most,
            "{context}: promise {}",
            memory.promised
        );
        let above = |writes: &[Write], slot: Slot| -> Vec<Record> {
            let all = writes.iter().flat_map(|write| write.records.iter().cloned());
            all.filter(|record| record.slot() > slot).collect()
        };
        let covered = memory.snapshot.as_ref().map_or(Slot::ZERO, |snapshot| snapshot.mark.slot);
        assert!(covered >= self.snapshot, "{context}: the snapshot is gone");
        let (must, may) = (above(&self.issued[..self.durable], covered), above(&self.issued, covered));
        assert!(memory.records.len() >= must.len(), "{context}: acknowledged records are gone");
        assert_eq!(memory.records, may[..memory.records.len()], "{context}: other records, or another order");
        assert_eq!(memory.uncertain_above, None, "{context}: nothing is damaged");
    }
}

fn random_write(rng: &mut SmallRng, at: &mut u64) -> Write {
    let promise = rng.random_bool(0.2).then(|| Ballot::of(*at + 1, ServerId::new(1)));
    let count = rng.random_range(0..3);
    let mut record = || {
        *at += 1;
        let entry = Bytes::from(vec![*at as u8; rng.random_range(0..3000)]);
        let value = Value::batch(Timestamp::new(*at as i64), vec![entry]);
        let (ballot, slot) = (Ballot::of(*at, ServerId::new(1)), Slot::new(*at));
        match rng.random_bool(0.5) {
            true => Record::Accepted { ballot, slot, value },
            false => Record::Learned { slot, value },
        }
    };
    let records = (0..count).map(|_| record()).collect();
    Write {
        ticket: Ticket(0),
        promise,
        records,
        chosen_upto: Slot::new(at.saturating_sub(3)),
        uncertain: false,
    }
}

/// Runs a random history until it ends or the disk does.
fn live(ledger: &Arc<Ledger>, rng: &mut SmallRng, model: &mut Model, at: &mut u64) -> Result<(), ()> {
    for _ in 0..12 {
        match rng.random_range(0..8) {
            0 => {
                let slot = Slot::new(*at);
                let kept = ledger.keep_snapshot(slot, b"head", &vec![*at as u8; 4000]).map_err(drop)?;
                assert_eq!(kept.slot, slot);
                model.snapshot = slot;
            }
            1 => {
                model.released = model.snapshot;
                ledger.release(model.released).map_err(drop)?;
            }
            _ => {
                let write = random_write(rng, at);
                if !model.persist(ledger, write) {
                    return Err(());
                }
            }
        }
    }
    Ok(())
}

fn seeds() -> std::ops::Range<u64> {
    if let Some(seed) = std::env::var("LOGGOS_LEDGER_SEED").ok().and_then(|text| text.parse().ok()) {
        return seed..seed + 1;
    }
    let count = std::env::var("LOGGOS_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    0..count
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_every_step() {
    for seed in seeds() {
        let calm = SimDisk::new(seed, Faults::default());
        let (ledger, _) = open(&calm).expect("a healthy disk");
        let mut rng = SmallRng::seed_from_u64(seed);
        live(&ledger, &mut rng, &mut Model::default(), &mut 0).expect("a healthy disk");
        for crash_at in 1..=calm.steps() {
            let context = format!("LOGGOS_LEDGER_SEED={seed}, step {crash_at}");
            let disk = SimDisk::new(seed, Faults { crash_at: Some(crash_at), ..Faults::default() });
            let (mut model, mut at) = (Model::default(), 0);
            let mut rng = SmallRng::seed_from_u64(seed);
            if let Ok((ledger, memory)) = open(&disk) {
                model.check(&memory, &context);
                let _ = live(&ledger, &mut rng, &mut model, &mut at);
            }
            let after = disk.after_crash(seed ^ crash_at, Faults::default());
            let (ledger, memory) = open(&after).unwrap_or_else(|error| panic!("{context}: {error}"));
            model.check(&memory, &context);
            // And a second life on what the first one left.
            let promised = memory.promised;
            let kept = memory.records.len();
            let mut second = Model { snapshot: model.snapshot, ..Model::default() };
            second.issued.push(Write {
                ticket: Ticket(1),
                promise: Some(promised),
                records: memory.records,
                chosen_upto: Slot::ZERO,
                uncertain: false,
            });
            second.durable = 1;
            live(&ledger, &mut rng, &mut second, &mut at).expect("a healthy disk");
            drop(ledger);
            let (_, memory) = open(&after).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(memory.records.len() + memory.snapshot.map_or(0, |s| s.mark.slot.raw() as usize) >= kept);
            assert!(memory.promised >= promised);
        }
    }
}

fn accepted(slot: u64) -> Write {
    let value = Value::batch(Timestamp::new(0), vec![Bytes::from(vec![slot as u8; 2000])]);
    let record = Record::Accepted { ballot: Ballot::of(1, ServerId::new(1)), slot: Slot::new(slot), value };
    Write {
        ticket: Ticket(0),
        promise: None,
        records: vec![record],
        chosen_upto: Slot::new(slot - 1),
        uncertain: false,
    }
}

fn journal_files(disk: &SimDisk) -> Vec<DirEntry> {
    let all = disk.list(&Path::new(DIR).join("votes")).expect("a list");
    all.into_iter().filter(|entry| entry.name.ends_with(".journal")).collect()
}

#[test]
fn rotten_votes_make_the_server_uncertain_until_a_write_says_that_it_is_over() {
    let disk = SimDisk::new(3, Faults::default());
    let (ledger, _) = open(&disk).expect("a healthy disk");
    let mut model = Model::default();
    (1..=9).for_each(|slot| assert!(model.persist(&ledger, accepted(slot))));
    drop(ledger);
    let file = Path::new(DIR).join("votes").join(&journal_files(&disk)[0].name);
    // A group takes a page: the fifth one rots.
    disk.rot(&file, 4 * 4096 + 2000);
    let (ledger, memory) = open(&disk).expect("damage is no reason to forget the promise");
    assert_eq!(memory.uncertain_above, Some(Slot::new(3)), "the fourth write said that three were chosen");
    let slots: Vec<u64> = memory.records.iter().map(|record| record.slot().raw()).collect();
    assert_eq!(slots, [1, 2, 3, 4, 6, 7, 8, 9]);
    assert!(model.persist(&ledger, Write { uncertain: true, ..accepted(10) }));
    drop(ledger);
    let (ledger, memory) = open(&disk).expect("again");
    assert_eq!(memory.uncertain_above, Some(Slot::new(3)));
    // A snapshot that covers the damage lets the rotten file go; the mark stays until the engine is certain.
    ledger.keep_snapshot(Slot::new(10), b"", b"").expect("a healthy disk");
    ledger.release(Slot::new(10)).expect("a healthy disk");
    drop(ledger);
    let (ledger, memory) = open(&disk).expect("again");
    assert_eq!(memory.uncertain_above, Some(Slot::new(3)));
    assert!(model.persist(&ledger, accepted(11)));
    drop(ledger);
    assert_eq!(open(&disk).expect("again").1.uncertain_above, None);
}

#[test]
fn a_rotten_snapshot_costs_an_older_one_and_the_hint() {
    let disk = SimDisk::new(4, Faults::default());
    let (ledger, _) = open(&disk).expect("a healthy disk");
    let mut model = Model::default();
    for slot in 1..=4 {
        assert!(model.persist(&ledger, accepted(slot)));
        ledger.keep_snapshot(Slot::new(slot), b"head", &[slot as u8; 3000]).expect("a healthy disk");
        ledger.release(Slot::new(slot)).expect("a healthy disk");
    }
    drop(ledger);
    disk.rot(&Path::new(DIR).join("snapshots/snapshot-0000000000000004"), 1000);
    let (ledger, memory) = open(&disk).expect("two older ones are there");
    let snapshot = memory.snapshot.expect("an older one");
    assert_eq!((snapshot.mark.slot, &snapshot.head[..]), (Slot::new(3), &b"head"[..]));
    assert_eq!(memory.chosen_upto, Slot::ZERO);
    assert_eq!(memory.records.len(), 1, "the fourth vote is still there");
    assert!(ledger.scrub().is_empty(), "what is kept can be read");
}

#[test]
fn a_snapshot_goes_to_a_peer_in_pieces() {
    let (from, to) = (SimDisk::new(5, Faults::default()), SimDisk::new(6, Faults::default()));
    let (sender, receiver) = (open(&from).expect("new").0, open(&to).expect("new").0);
    let state: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let mark = sender.keep_snapshot(Slot::new(7), b"head", &state).expect("a healthy disk");
    let (mut offset, mut rounds) = (0, 0);
    let whole = loop {
        let (total, bytes) = sender.snapshot_chunk(mark.slot, offset).expect("it is there").expect("kept");
        assert_eq!(total, mark.bytes);
        rounds += 1;
        match receiver.receive_chunk(mark.slot, offset, total, &bytes).expect("a healthy disk") {
            super::Received::Partly(next) => offset = next,
            super::Received::Whole(snapshot) => break snapshot,
        }
        assert!(rounds < 100);
    };
    assert_eq!((&whole.head[..], &whole.state[..]), (&b"head"[..], &state[..]));
    let (total, mut bytes) = sender.snapshot_chunk(mark.slot, 0).map(|c| c.expect("kept")).expect("there");
    let damaged = bytes.split_to(100);
    let broken = receiver.receive_chunk(Slot::new(9), 0, total.min(100), &damaged);
    assert!(matches!(broken, Err(LedgerError::Damaged { .. })), "half a snapshot is none");
    drop(receiver);
    assert_eq!(open(&to).expect("again").1.snapshot, Some(whole));
}
