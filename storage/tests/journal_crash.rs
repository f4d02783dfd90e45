//! The journal under crashes at every step, on the simulated disk: what was acknowledged is there, in order, once,
//! and nothing that was never appended. A failing seed is run again with `LOGGOS_JOURNAL_SEED=n`; `LOGGOS_SIM_SEEDS=n`
//! runs more of them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use loggos_storage::disk::Disk;
use loggos_storage::disk_sim::{Faults, SimDisk};
use loggos_storage::journal::{Entry, Journal, JournalError, JournalOptions, Lsn, Replayed, Space};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const DIR: &str = "/journal";
/// Appends of one life at most.
const APPENDS: u64 = 40;
/// Seeds of a test run that asks for no number.
const SEEDS: u64 = 8;
/// Crashes that one disk goes through.
const LIVES: u64 = 3;

fn options(direct: bool) -> JournalOptions {
    JournalOptions {
        space: Space::Ring { bytes: 5 * 16384 },
        file_bytes: 16384,
        group_bytes_max: 8192,
        direct,
        inline: true,
        ..JournalOptions::default()
    }
}

/// What one history knows: what may be, and what must be in the journal.
#[derive(Default)]
struct Model {
    /// Every append since the last release, by number, with the end it was acknowledged at.
    appended: Vec<(u64, Option<Lsn>)>,
    next: u64,
    from: Option<Lsn>,
}

fn entry(number: u64, len: usize) -> Entry {
    Entry { head: number.to_be_bytes().to_vec(), body: Bytes::from(vec![number as u8; len]) }
}

fn open(disk: &SimDisk, direct: bool, from: Option<Lsn>) -> (Result<Journal, JournalError>, Vec<u64>, usize) {
    let (mut found, mut damage) = (Vec::new(), 0);
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let journal =
        Journal::open(disk, Path::new(DIR), options(direct), from, &mut |replayed| match replayed {
            Replayed::Group { entries, .. } => found.extend(entries.iter().map(|entry| {
                let number = u64::from_be_bytes(entry[..8].try_into().expect("eight bytes"));
                assert!(entry[8..].iter().all(|byte| *byte == number as u8), "an entry came back changed");
                number
            })),
            Replayed::Damage { .. } => damage += 1,
        });
    (journal, found, damage)
}

/// Appends and releases until the crash or the end.
fn live(disk: &SimDisk, direct: bool, model: &mut Model, rng: &mut SmallRng) -> Result<(), String> {
    let (journal, found, damage) = open(disk, direct, model.from);
    let Ok(journal) = journal else { return Ok(()) };
    if damage > 0 {
        return Err("a crash was taken for damage".to_owned());
    }
    let possible: Vec<u64> = model.appended.iter().map(|(number, _)| *number).collect();
    let certain = model.appended.iter().filter(|(_, end)| end.is_some()).count();
    if !possible.starts_with(&found) || found.len() < certain {
        return Err(format!("found {found:?} of {possible:?}, {certain} of them acknowledged"));
    }
    model.appended.truncate(found.len());
    let known = journal.durable_end();
    for (_, end) in &mut model.appended {
        end.get_or_insert(known);
    }
    for _ in 0..rng.random_range(0..APPENDS) {
        let number = model.next;
        model.next += 1;
        let len = rng.random_range(0..3000);
        let end = Arc::new(Mutex::new(None));
        let told = Arc::clone(&end);
        let done = Box::new(move |result: Result<Lsn, JournalError>| *told.lock() = result.ok());
        journal.append(vec![entry(number, len)], done).map_err(|error| error.to_string())?;
        let end = *end.lock();
        model.appended.push((number, end));
        let Some(end) = end else { return Ok(()) };
        // The caller keeps up: the ring of five files holds at most two released ones behind.
        if rng.random_bool(0.2) || end.position() - journal.released().position() > 30_000 {
            journal.release_before(end);
            model.from = Some(end);
            model.appended.clear();
        }
    }
    Ok(())
}

fn history(seed: u64, crash_at: Option<u64>) -> Result<u64, String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let direct = rng.random_bool(0.7);
    let mut disk = SimDisk::new(seed, Faults { crash_at, ..Faults::default() });
    let mut model = Model::default();
    for life in 0..LIVES {
        live(&disk, direct, &mut model, &mut rng)?;
        let crash_at = rng.random_bool(0.7).then(|| rng.random_range(1..60));
        let next = disk.after_crash(seed ^ life << 32, Faults { crash_at, ..Faults::default() });
        if life == 0 && crash_at.is_none() && !disk.has_crashed() {
            return Ok(disk.steps());
        }
        disk = next;
    }
    let quiet = disk.after_crash(seed, Faults::default());
    live(&quiet, direct, &mut model, &mut rng)?;
    Ok(disk.steps())
}

#[test]
fn a_crash_at_any_step_loses_nothing_acknowledged() {
    let seeds: Vec<u64> = match std::env::var("LOGGOS_JOURNAL_SEED") {
        Ok(seed) => vec![seed.parse().expect("LOGGOS_JOURNAL_SEED is a number")],
        Err(_) => {
            let seeds = std::env::var("LOGGOS_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
            (0..seeds.unwrap_or(SEEDS)).collect()
        }
    };
    for seed in seeds {
        for crash_at in 1..=90 {
            if let Err(problem) = history(seed, Some(crash_at)) {
                panic!("LOGGOS_JOURNAL_SEED={seed} crash at step {crash_at}: {problem}");
            }
        }
    }
}

#[test]
fn rot_before_the_end_is_told_and_what_follows_is_replayed() {
    let disk = SimDisk::new(1, Faults::default());
    let (journal, ..) = open(&disk, true, None);
    let journal = journal.expect("opens");
    for number in 0..3 {
        journal.append(vec![entry(number, 100)], Box::new(|_| ())).expect("fits");
    }
    drop(journal);
    // Each group is one page: the second one's entry.
    disk.rot(&Path::new(DIR).join("000000000000.journal"), 4096 + 100);
    let (_journal, found, damage) = open(&disk, true, None);
    assert_eq!((found, damage), (vec![0, 2], 1));
    // At the end of the journal it is damage too, for all its sectors were written. The third group went into the
    // second file, as that was prepared by then.
    disk.rot(&Path::new(DIR).join("000000000001.journal"), 100);
    let (_journal, found, damage) = open(&disk, true, None);
    assert_eq!((found, damage), (vec![0], 1));
}

#[test]
fn a_thread_of_its_own_groups_what_waits_and_tells_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk: Arc<dyn Disk> = Arc::new(loggos_storage::disk::FsDisk);
    let options = JournalOptions { file_bytes: 1 << 20, ..JournalOptions::default() };
    let told = Arc::new(Mutex::new(Vec::new()));
    let journal = Journal::open(Arc::clone(&disk), folder.path(), options, None, &mut |_| ()).expect("opens");
    for number in 0..2000 {
        let told = Arc::clone(&told);
        let done = Box::new(move |result: Result<Lsn, JournalError>| {
            told.lock().push((number, result.expect("written")));
        });
        journal.append(vec![entry(number, 1500)], done).expect("fits");
    }
    journal.close();
    let told = told.lock();
    assert!(told.is_sorted() && told.len() == 2000);
    let groups = told.iter().map(|(_, end)| end).collect::<std::collections::BTreeSet<_>>().len();
    assert!(groups < 2000, "what waits during a write goes together");
    let mut found = Vec::new();
    Journal::open(disk, folder.path(), options, None, &mut |replayed| {
        let Replayed::Group { entries, .. } = replayed else { panic!("damage") };
        found.extend(entries.iter().map(|entry| u64::from_be_bytes(entry[..8].try_into().expect("eight"))));
    })
    .expect("opens");
    assert_eq!(found, (0..2000).collect::<Vec<u64>>());
}
