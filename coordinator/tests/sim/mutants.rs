//! Errors planted on purpose (`paxos::mutation`): each must break a rule within a bounded number of seeds, or the
//! simulation proves nothing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use loggos_coordinator::paxos::mutation::{Mutation, Mutations};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::plan::{Fault, Plan};
use crate::world::World;
use crate::{THREADS, catching, number};

/// Seeds that may pass before an error must have shown itself.
const SEEDS: u64 = 200;

/// The rules that each error may break: another one says nothing about this error.
fn rules(mutation: Mutation) -> &'static [&'static str] {
    match mutation {
        Mutation::PromiseNotDurable => &["I9 ", "I1 "],
        Mutation::VoteNotDurable => &["I9 ", "I8 "],
        Mutation::PromiseInRecordOnly => &["I2 ", "I9 "],
        Mutation::CommitIndexIgnoresBallot => &["I8 ", "I10 "],
        Mutation::RecoveryPicksLowest => &["I4 ", "I5 ", "I6 "],
        Mutation::DamageCountsAsEmpty => &["I13 ", "I4 "],
        Mutation::RejoinAfterOneInstance => &["I12 ", "I9 ", "I1 "],
        Mutation::NoPhaseOneAtNewVoters => &["I4 "],
        Mutation::LeaseFromReceipt => &["I14 ", "I16 "],
        Mutation::NoWaitAfterRestart => &["I15 ", "I14 "],
        Mutation::LeaseKeptDuringTransfer => &["I14 ", "I16 "],
        Mutation::AcceptBelowPromise => &["I2 "],
    }
}

/// Makes what the error needs to show itself more frequent: the same world, with other weather.
fn provoke(plan: &mut Plan, mutation: Mutation) {
    let more: &[Fault] = match mutation {
        Mutation::RecoveryPicksLowest => &[Fault::Ambush],
        Mutation::DamageCountsAsEmpty => &[Fault::BitRot, Fault::Ambush],
        Mutation::RejoinAfterOneInstance => &[Fault::DiskLoss],
        Mutation::NoPhaseOneAtNewVoters => &[Fault::Spare, Fault::Reconfigure, Fault::Ambush],
        Mutation::LeaseFromReceipt => &[Fault::Pause],
        Mutation::LeaseKeptDuringTransfer => &[Fault::Transfer],
        _ => &[Fault::Crash],
    };
    plan.faults.extend(more.iter().map(|fault| (*fault, 15)));
    if mutation == Mutation::LeaseFromReceipt {
        // Answers that wait while the leader sleeps are received late, and sent in time.
        plan.weather.long = 0.0;
        plan.gap = 1_000_000;
        // A leader trusts no lease of a server whose clock it has caught running away or leaping.
        plan.drift_ppm = plan.drift_ppm.min(2_000);
        plan.faults.retain(|(fault, _)| *fault != Fault::ClockJump);
    }
}

/// The first seed in which the error breaks one of its rules.
fn catch(mutation: Mutation, seeds: u64) -> Option<(u64, &'static str)> {
    (0..seeds).find_map(|seed| {
        let mut plan = Plan::draw(&mut SmallRng::seed_from_u64(seed), Mutations::only(mutation));
        provoke(&mut plan, mutation);
        let mut world = World::new(plan, seed, false);
        let broken = catching(&mut world, |world| world.run_until(world.plan.duration)).err()?;
        rules(mutation).iter().any(|rule| broken.rule.starts_with(rule)).then_some((seed, broken.rule))
    })
}

#[test]
fn every_planted_error_is_caught() {
    let seeds = number("LOGGOS_PAXOS_SEEDS").unwrap_or(SEEDS);
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(mutation) = Mutation::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match catch(*mutation, seeds) {
                        Some((seed, rule)) => eprintln!("{mutation:?}: seed {seed}, {rule}"),
                        None => missed.lock().expect("no thread panics with it").push(*mutation),
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().expect("no thread panics with it");
    assert!(missed.is_empty(), "never caught: {missed:?}");
}
