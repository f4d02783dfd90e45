//! The ensemble in virtual time: whole cells of engines with real state machines, simulated disks, links and clocks,
//! and clients; everything fails at its own rate, every rule is looked at after every step, and at the end the cell
//! must live (design 6.2).
//!
//! | file | what it knows |
//! |---|---|
//! | `plan` | what a seed decides: shape, options, rates |
//! | `world` | the queue of events; servers, disks and links |
//! | `server`, `disk`, `clocks`, `network` | one server, its memory, its time, the links |
//! | `replica`, `host` | the state machine with its seals; connections, watches, touches, session clocks |
//! | `faults` | what goes wrong, and the operator |
//! | `workload` | clients and their history |
//! | `facts`, `judge`, `invariants/` | what is true, who looks, what must hold |
//! | `history`, `reference`, `linearizability` | the clients' history: against the log, and as a black box |
//! | `liveness` | what must come to pass once all is mended |
//! | `coverage` | how often what happened |
//! | `mutants` | errors planted on purpose, and which rule finds each |
//!
//! One seed is one run: `LOGGOS_PAXOS_SEED=n` replays it, `LOGGOS_PAXOS_TRACE=1` prints every step of it,
//! `LOGGOS_PAXOS_SEEDS=n` runs that many.

#![allow(clippy::print_stderr, reason = "failures and traces are printed")]

mod clocks;
mod coverage;
mod disk;
mod facts;
mod faults;
mod history;
mod host;
mod invariants;
mod judge;
mod linearizability;
mod liveness;
mod mutants;
mod network;
mod plan;
mod reference;
mod replica;
mod server;
mod workload;
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use loggos_coordinator::paxos::mutation::Mutations;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use coverage::Coverage;
use invariants::Broken;
use plan::Plan;
use world::World;

/// Seeds of the slice that every change runs.
const SLICE: u64 = 64;
/// Threads that share the seeds.
const THREADS: usize = 2;
/// Seeds that once showed an error: they run always.
const KEPT: &[u64] = &[81, 169, 324, 463, 1133, 2226, 4377];

/// A panic is a broken rule as well.
fn catching(world: &mut World, run: fn(&mut World) -> Result<(), Broken>) -> Result<(), Broken> {
    std::panic::catch_unwind(AssertUnwindSafe(|| run(world)))
        .unwrap_or_else(|_| Err(Broken { rule: "nothing panics", detail: "see above".to_owned() }))
}

/// Runs one seed to its end.
fn run(seed: u64, trace: bool) -> (Coverage, Result<(), Broken>) {
    let plan = Plan::draw(&mut SmallRng::seed_from_u64(seed), Mutations::NONE);
    let mut world = World::new(plan, seed, trace);
    world.judge.say(|| format!("{:?}", world.plan));
    let outcome = catching(&mut world, |world| {
        world.run_until(world.plan.duration)?;
        world.demand_life()?;
        let told = |rule| move |detail| Broken { rule, detail };
        history::check(&world.judge.facts, &world.workload.history)
            .map_err(told("replies are as the log says"))?;
        let trusted = world.judge.facts.reads_trusted();
        linearizability::check(&world.workload.history, trusted)
            .map_err(told("registers are linearizable"))?;
        Ok(())
    });
    (world.judge.coverage, outcome)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs many seeds on a few threads; the sum of what happened, and the failures.
fn run_all(seeds: &[u64], trace: bool) -> (Coverage, Vec<(u64, Broken)>) {
    let next = AtomicU64::new(0);
    let sum = Mutex::new((Coverage::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(seeds.len()) {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let (coverage, outcome) = run(*seed, trace);
                    let mut sum = sum.lock().expect("no thread panics with it");
                    sum.0.add(&coverage);
                    if let Err(broken) = outcome {
                        eprintln!("seed {seed}: {}: {}", broken.rule, broken.detail);
                        eprintln!(
                            "replay: LOGGOS_PAXOS_SEED={seed} cargo test -p loggos-coordinator --test sim"
                        );
                        sum.1.push((*seed, broken));
                    }
                }
            });
        }
    });
    sum.into_inner().expect("no thread panics with it")
}

#[test]
fn every_invariant_holds_and_the_cell_lives() {
    let one = number("LOGGOS_PAXOS_SEED");
    let seeds: Vec<u64> = match one {
        Some(seed) => vec![seed],
        None => KEPT.iter().copied().chain(0..number("LOGGOS_PAXOS_SEEDS").unwrap_or(SLICE)).collect(),
    };
    let trace = std::env::var_os("LOGGOS_PAXOS_TRACE").is_some();
    let (coverage, failures) = run_all(&seeds, trace);
    eprintln!("{} seeds\n{coverage}", seeds.len());
    assert!(
        failures.is_empty(),
        "failing seeds: {:?}",
        failures.iter().map(|(s, b)| (s, b.rule)).collect::<Vec<_>>()
    );
    if one.is_none() {
        assert!(coverage.missing().is_empty(), "never happened: {:?}", coverage.missing());
    }
}
