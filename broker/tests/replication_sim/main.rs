//! N replicas of one partition with their controller, in virtual time: the production code's decisions
//! (`partition::{replication, divergence, lease}`, `controller::{election, reassignment}`) in a world of a network
//! that loses, repeats and reorders, of crashes, power cuts, pauses, lost sessions and replaced disks.
//!
//! One seed is one run; a failing one is replayed by
//! `LOGGOS_REPLICA_SEED=<seed> cargo test -p loggos-broker --test replication_sim`. `LOGGOS_REPLICA_SEEDS` says how
//! many are run.

#![expect(clippy::print_stderr, reason = "the line that replays a failure is for whoever runs it")]

mod disk;
mod invariants;
mod registry;
mod replica;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use replica::Mutant;
use world::World;

/// Runs of `make test`.
const SEEDS: u64 = 100;
/// A planted mistake that isn't found by so many runs won't be.
const MUTANT_SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn whatever_happens_what_was_acknowledged_stays_and_everybody_agrees() {
    if let Some(seed) = number("LOGGOS_REPLICA_SEED") {
        World::new(seed, None).tracing().run();
        return;
    }
    let seeds = number("LOGGOS_REPLICA_SEEDS").unwrap_or(SEEDS);
    let mut done = world::Done::default();
    for seed in 0..seeds {
        match catch_unwind(AssertUnwindSafe(|| World::new(seed, None).run())) {
            Ok(one) => done.add(&one),
            Err(panic) => {
                eprintln!(
                    "replay: LOGGOS_REPLICA_SEED={seed} cargo test -p loggos-broker --test replication_sim"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{seeds} seeds: {done:?}");
    // A simulation in which nothing happens finds nothing.
    let least = seeds.min(20);
    assert!(done.acknowledged > 50 * least && done.elections > 2 * least && done.truncations > 0, "{done:?}");
    assert!(done.power_cuts > least && done.sessions_lost > least && done.reassigned > 0, "{done:?}");
}

#[test]
fn every_planted_mistake_is_found() {
    if number("LOGGOS_REPLICA_SEED").is_some() {
        return;
    }
    let found: Vec<(Mutant, Option<u64>)> = Mutant::ALL
        .into_iter()
        .map(|mutant| {
            let fails = |seed: &u64| catch_unwind(|| World::new(*seed, Some(mutant)).run()).is_err();
            let found = (0..MUTANT_SEEDS).find(fails);
            eprintln!("{mutant:?}: {found:?}");
            (mutant, found)
        })
        .collect();
    let missed: Vec<Mutant> =
        found.iter().filter(|(_, seed)| seed.is_none()).map(|(mutant, _)| *mutant).collect();
    assert!(missed.is_empty(), "mistakes that nothing found: {missed:?}");
}
