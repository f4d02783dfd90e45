//! The same random operations on a server of ours and on a real ZooKeeper: results, stats, errors, events and their
//! order must be equal, but for what docs/REGISTRY.md lists as deliberate.
//!
//! `LOGGOS_DIFFERENTIAL_SEEDS=N` runs N seeds, from `LOGGOS_DIFFERENTIAL_FIRST` on; `LOGGOS_DIFFERENTIAL_SEED=S`
//! runs that one alone, and tells all of it. Skipped where there is
//! no Java or no ZooKeeper.

mod operations;
#[path = "../support/mod.rs"]
mod support;
mod world;

use operations::{Operations, Step};
use support::Server;
use support::zookeeper::ZooKeeper;
use world::World;

/// Steps of one run.
const STEPS: usize = 60;
/// Runs of `make test`.
const SEEDS: u64 = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_give_what_a_real_zookeeper_gives() {
    let zookeeper = match ZooKeeper::start().await {
        Ok(zookeeper) => zookeeper,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let ours = Server::start_of_our_own(|options| {
        options.super_digest = Some(support::zookeeper::SUPER_DIGEST.to_owned());
        options.unused_check = std::time::Duration::from_secs(86_400);
    })
    .await;
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("LOGGOS_DIFFERENTIAL_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("LOGGOS_DIFFERENTIAL_FIRST").unwrap_or(0);
            first..first + number("LOGGOS_DIFFERENTIAL_SEEDS").unwrap_or(SEEDS)
        }
    };
    let mut different = Vec::new();
    for seed in seeds {
        match run(seed, ours.address(), &zookeeper.address()).await {
            Ok(told) => eprint!("{told}"),
            Err(difference) => {
                eprintln!("seed {seed}: {difference}\nagain: LOGGOS_DIFFERENTIAL_SEED={seed}");
                different.push(seed);
            }
        }
    }
    assert!(different.is_empty(), "seeds that differ: {different:?}");
}

/// One seed on both servers, up to the first difference.
async fn run(seed: u64, ours: &str, zookeeper: &str) -> Result<String, String> {
    let mut operations = Operations::new(seed);
    let (mut left, mut right) = (World::begin(ours).await, World::begin(zookeeper).await);
    let result = compare(&mut operations, &mut left, &mut right).await;
    left.end().await;
    right.end().await;
    result
}

async fn compare(operations: &mut Operations, left: &mut World, right: &mut World) -> Result<String, String> {
    // A seed that is looked at alone tells all that happened.
    let aloud = std::env::var_os("LOGGOS_DIFFERENTIAL_SEED").is_some();
    let mut told = String::new();
    for number in 0..STEPS {
        let step = if number == 0 { operations.first() } else { operations.next() };
        let (mine, theirs) = (left.step(&step).await, right.step(&step).await);
        if mine != theirs {
            return Err(told + &report(number, &step, &mine, &theirs));
        }
        operations.learn(&mine);
        if aloud {
            told += &report(number, &step, &mine, &theirs);
        }
    }
    Ok(told)
}

/// The lines that differ, and the step that made them.
fn report(number: usize, step: &Step, mine: &[String], theirs: &[String]) -> String {
    let mut text = format!("step {number}: {step:?}\n");
    for at in 0..mine.len().max(theirs.len()) {
        let (mine, theirs) = (mine.get(at), theirs.get(at));
        if mine == theirs {
            text += &format!("   both: {}\n", mine.map_or("", String::as_str));
        } else {
            let shown = |line: Option<&String>| line.map_or("(nothing)", String::as_str).to_owned();
            text += &format!("   ours: {}\n zookee: {}\n", shown(mine), shown(theirs));
        }
    }
    text
}
