//! Exhaustive search over small cells (design 6.1), with `stateright`.
//!
//! Four models: choosing (three acceptors, two proposers, one or two slots, a network that loses, doubles and
//! reorders, crashes, damage), a change of membership, five acceptors of which one loses its disk, and leases. The
//! acceptors are whole engines, the proposers use the real promises, findings, tallies and membership histories.
//!
//! mutants-covered: all twelve of `paxos::mutation::Mutation`. Each is switched on below and found by the checker:
//! PromiseNotDurable, VoteNotDurable, PromiseInRecordOnly, CommitIndexIgnoresBallot, RecoveryPicksLowest,
//! DamageCountsAsEmpty, RejoinAfterOneInstance, NoPhaseOneAtNewVoters, LeaseFromReceipt, NoWaitAfterRestart,
//! LeaseKeptDuringTransfer, AcceptBelowPromise.

#[path = "model_checking/cell.rs"]
mod cell;
#[path = "model_checking/leases.rs"]
mod leases;

use cell::{Cell, Scene, Step};
use leases::Leases;
use loggos_coordinator::paxos::mutation::{Mutation, Mutations};
use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// More states than any of these models has: one that outgrows it is not exhaustive any more, and fails.
const STATES_LIMIT: usize = 400_000;

/// Visits every state: nothing that must always hold is broken, and all of `sometimes` happens.
fn holds<M: Model + Send + Sync + 'static>(model: M, sometimes: &[&'static str])
where
    M::State: std::hash::Hash + Send + Sync + std::fmt::Debug + Clone + PartialEq,
    M::Action: std::fmt::Debug + Clone + PartialEq,
{
    let checker = model
        .checker()
        .target_state_count(STATES_LIMIT)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    for (name, path) in checker.discoveries() {
        let property = checker.model().property(name);
        assert!(property.expectation == Expectation::Sometimes, "{name}: {:?}", path.into_actions());
    }
    for name in sometimes {
        assert!(checker.discovery(name).is_some(), "never: {name}");
    }
    assert!(checker.state_count() < STATES_LIMIT, "the search was cut short");
}

/// Searches until something that must always hold is broken: it must be one of `broken`.
fn caught<M: Model + Send + Sync + 'static>(model: M, broken: &[&'static str])
where
    M::State: std::hash::Hash + Send + Sync + std::fmt::Debug + Clone + PartialEq,
    M::Action: std::fmt::Debug + Clone + PartialEq,
{
    let checker = model
        .checker()
        .target_state_count(STATES_LIMIT)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let found = broken.iter().any(|name| checker.discovery(name).is_some());
    assert!(found, "the planted error was not noticed");
}

fn planted(mutation: Mutation) -> Mutations {
    Mutations::only(mutation)
}

const I1: &str = "I1: a promise that has left is never taken back";
const I5: &str = "I5: one value per slot is chosen";
const I6: &str = "I6: above a chosen ballot nothing else is issued";
const I8: &str = "I8: what is applied is chosen";
const I14: &str = "I14: nobody else is elected while the lease holds";
const I15: &str = "I15: no promise within a lease of a restart";
const CHOSEN: &str = "a value is chosen";
const SURVIVES: &str = "a value survives its proposer";

/// A leader that everybody has promised, and a challenger.
fn led() -> Cell {
    Cell { led: 1, ..Cell::new(3) }
}

#[test]
fn a_leader_and_a_challenger_over_a_network_that_doubles() {
    holds(Cell { duplicates: 1, ..led() }, &[CHOSEN, SURVIVES]);
}

#[test]
fn without_p1a_two_values_are_chosen() {
    caught(Cell { mutations: planted(Mutation::AcceptBelowPromise), ..led() }, &[I5, I6]);
}

#[test]
fn what_is_announced_as_chosen_is_applied_only_where_it_was_accepted_at_that_ballot() {
    let cell = Cell { announces: Some(1), ..led() };
    holds(cell.clone(), &[CHOSEN, SURVIVES]);
    caught(Cell { mutations: planted(Mutation::CommitIndexIgnoresBallot), ..cell }, &[I8]);
}

#[test]
fn two_slots_are_proposed_at_once_and_a_hole_is_filled() {
    let script = vec![
        Scene::Step(Step::Propose(0, 1)),
        Scene::Deliver(0, 1, "Accept"),
        Scene::LoseMessages,
        Scene::Step(Step::Propose(0, 2)),
        Scene::Deliver(0, 2, "Accept"),
    ];
    holds(Cell { slots: 2, script, ..led() }, &[CHOSEN, SURVIVES, "a hole is filled"]);
}

#[test]
fn crashes_at_every_write_lose_nothing_that_has_left() {
    let cell = Cell { slow_disks: true, crashes: 1, ..led() };
    holds(cell.clone(), &[CHOSEN, SURVIVES]);
    caught(Cell { mutations: planted(Mutation::PromiseNotDurable), ..cell.clone() }, &[I1]);
    caught(Cell { mutations: planted(Mutation::VoteNotDurable), ..cell }, &[I1, I5, I6]);
}

#[test]
fn damaged_votes_are_never_counted_as_none() {
    let cell = Cell { damage: true, crashes: 1, ..led() };
    holds(cell.clone(), &[CHOSEN, SURVIVES]);
    caught(Cell { mutations: planted(Mutation::DamageCountsAsEmpty), ..cell.clone() }, &[I5, I6]);
    caught(Cell { mutations: planted(Mutation::PromiseInRecordOnly), ..cell }, &[I1]);
}

/// Server 1 has accepted ballot 1's value, 2 and 3 are about to accept ballot 2's, and ballot 3 comes.
#[test]
fn recovery_takes_the_value_of_the_highest_ballot() {
    let script = vec![
        Scene::Step(Step::Propose(0, 1)),
        Scene::Deliver(0, 1, "Accept"),
        Scene::LoseMessages,
        Scene::Step(Step::Prepare(1)),
        Scene::Deliver(1, 2, "Prepare"),
        Scene::Deliver(1, 3, "Prepare"),
        Scene::Step(Step::Propose(1, 1)),
    ];
    let cell = Cell { rounds: vec![1, 2, 3], script, ..led() };
    holds(cell.clone(), &[CHOSEN, SURVIVES]);
    caught(Cell { mutations: planted(Mutation::RecoveryPicksLowest), ..cell }, &[I5, I6]);
}

/// Voters 1, 2, 3 become 1, 2, 4, two slots later. The leader at ballot 1 has had the change chosen; the challenger
/// has promises of 1 and 3 alone, of whom only 1 votes in slot 3; server 2 hears nothing of it for now.
#[test]
fn a_new_membership_needs_promises_of_its_own_majority() {
    let mut script = Vec::new();
    for slot in [1, 2] {
        script.push(Scene::Step(Step::Propose(0, slot)));
        script.extend([1, 2, 3].map(|to| Scene::Deliver(0, to, "Accept")));
    }
    script.push(Scene::Step(Step::Prepare(1)));
    script.extend([1, 3].map(|to| Scene::Deliver(1, to, "Prepare")));
    script.push(Scene::LoseTo(2));
    script.push(Scene::Step(Step::Propose(1, 1)));
    script.extend([1, 3].map(|to| Scene::Deliver(1, to, "Accept")));
    script.push(Scene::LoseTo(2));
    script.push(Scene::Step(Step::Propose(0, 3)));
    let cell = Cell { led: 1, slots: 3, alpha: 2, next_config: Some(vec![1, 2, 4]), script, ..Cell::new(4) };
    holds(cell.clone(), &[CHOSEN, SURVIVES, "a membership takes effect"]);
    caught(Cell { mutations: planted(Mutation::NoPhaseOneAtNewVoters), ..cell }, &[I5, I6]);
}

/// Design 1.11, servers L R X Y Z as 1 to 5: L leads at ballot 5, X and R promise 6, R loses its disk, an instance
/// completes with L Y Z.
fn an_instance_completes_without_the_server_that_lost_its_disk() -> Vec<Scene> {
    let mut script = vec![
        Scene::Step(Step::Prepare(1)),
        Scene::Deliver(1, 3, "Prepare"),
        Scene::Deliver(1, 2, "Prepare"),
        Scene::Step(Step::LoseDisk(2)),
        Scene::Step(Step::Propose(0, 1)),
    ];
    script.extend([1, 4, 5].map(|to| Scene::Deliver(0, to, "Accept")));
    script
}

fn five() -> Cell {
    Cell { rounds: vec![5, 6], led: 1, slots: 2, disk_loss: true, crashes: 1, ..Cell::new(5) }
}

/// The published shortcut of Paxos Made Live: a server without memory votes again once it has seen one instance
/// that began after its rebuild. With promises that span instances that is unsafe, and here is why.
#[test]
fn one_instance_is_not_enough_to_vote_again() {
    let model = Cell { mutations: planted(Mutation::RejoinAfterOneInstance), ..five() };
    let mut script = an_instance_completes_without_the_server_that_lost_its_disk();
    // R votes again; L gets its value chosen in the second slot with L R Z.
    script.push(Scene::Step(Step::Rejoin(2)));
    script.push(Scene::Step(Step::Propose(0, 2)));
    script.extend([1, 2, 5].map(|to| Scene::Deliver(0, to, "Accept")));
    // Y promises 6. X has promises of X, the old R, and Y, sees the slot free, and has its own value chosen.
    script.push(Scene::Deliver(1, 4, "Prepare"));
    script.push(Scene::Step(Step::Propose(1, 1)));
    script.push(Scene::Step(Step::Propose(1, 2)));
    let before = model.play(model.init_states().remove(0), &script);
    assert_eq!(model.broken(&before), [I6]);
    let after = [3, 4, 5].map(|to| Scene::Deliver(1, to, "Accept"));
    let after = model.play(before, &after);
    assert_eq!(model.broken(&after), [I5, I6]);
}

#[test]
fn the_checker_finds_that_one_instance_is_not_enough() {
    let mut script = an_instance_completes_without_the_server_that_lost_its_disk();
    script.extend([1, 3, 5].map(Scene::LoseTo));
    script.push(Scene::Step(Step::Propose(0, 2)));
    let cell = Cell { script, ..five() };
    caught(Cell { mutations: planted(Mutation::RejoinAfterOneInstance), ..cell }, &[I5, I6]);
}

/// The rule instead: a server without memory never votes under its old identity.
#[test]
fn without_the_lost_servers_vote_nothing_is_lost() {
    let mut script = an_instance_completes_without_the_server_that_lost_its_disk();
    script.push(Scene::LoseMessages);
    script.push(Scene::Step(Step::Propose(0, 2)));
    holds(Cell { script, ..five() }, &[CHOSEN]);
}

#[test]
fn a_lease_keeps_others_from_being_elected() {
    let leases = Leases { mutations: Mutations::NONE, rate_tenths: 11 };
    let sometimes =
        ["the lease holds", "the lease ends and another is elected", "leadership is handed over at once"];
    holds(leases, &sometimes);
}

#[test]
fn leases_used_wrongly_are_caught() {
    let leases = |mutation| Leases { mutations: planted(mutation), rate_tenths: 11 };
    caught(leases(Mutation::LeaseFromReceipt), &[I14]);
    caught(leases(Mutation::NoWaitAfterRestart), &[I14, I15]);
    caught(leases(Mutation::LeaseKeptDuringTransfer), &[I14]);
}

/// Outside the bound on clock rates a lease protects nothing: the model would see it.
#[test]
fn clocks_beyond_the_bound_break_the_lease() {
    caught(Leases { mutations: Mutations::NONE, rate_tenths: 40 }, &[I14]);
}
