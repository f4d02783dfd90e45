//! Memberships, witnesses, snapshots, hand-overs: engines joined by hand, one situation per test.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "support/hand.rs"]
mod hand;

use std::time::Duration;

use hand::{Cell, Node, entry, id, member};
use loggos_coordinator::paxos::ballot::{ServerId, Slot};
use loggos_coordinator::paxos::event::{Action, ChangeError, Event, Options, ReadId, RequestId};
use loggos_coordinator::paxos::membership::{Change, Config, ConfigHistory, Role};
use loggos_coordinator::paxos::mutation::Mutations;

const LONG: Duration = Duration::from_secs(2);

fn voters(cell: &Cell, server: ServerId) -> Vec<u16> {
    cell.status(server).config.voters().iter().map(|voter| voter.raw()).collect()
}

fn outcome(node: &Node, request: u64) -> Option<Result<(), ChangeError>> {
    node.told.iter().find_map(|action| match action {
        Action::Reconfigured { id, outcome } if *id == RequestId(request) => Some(outcome.clone()),
        _ => None,
    })
}

/// Asks the leader for a change and waits for the outcome.
fn change(cell: &mut Cell, request: u64, change: Change) -> Result<(), ChangeError> {
    let leader = cell.elect();
    cell.feed(leader, Event::Reconfigure { id: RequestId(request), change });
    cell.until("an outcome", |cell| outcome(&cell.nodes[&leader], request).is_some());
    outcome(&cell.nodes[&leader], request).unwrap()
}

/// A new server joins as a learner and is started under the identity that it was given.
fn join(cell: &mut Cell, request: u64, place: u16) -> ServerId {
    let mut new = member(place, Role::Learner);
    new.token = request + 1000;
    change(cell, request, Change::Join { member: new.clone() }).unwrap();
    let leader = cell.elect();
    let config = cell.status(leader).config;
    let given = config.members.iter().find(|known| known.token == new.token).unwrap().id;
    cell.add(given, ConfigHistory::founding(config, cell.options.alpha));
    cell.start(given);
    given
}

fn manual() -> Options {
    Options { auto_promote: false, ..Options::default() }
}

fn full(n: u16) -> Vec<loggos_coordinator::paxos::membership::Member> {
    (1..=n).map(|n| member(n, Role::Voter)).collect()
}

#[test]
fn one_grows_to_three_and_to_five_by_itself_and_shrinks_on_request() {
    let mut cell = Cell::of(1);
    cell.elect();
    cell.propose(id(1), "a");
    let mut all = vec![id(1)];
    for step in 0..4 {
        all.push(join(&mut cell, step, step as u16 + 2));
        cell.run(LONG);
        let expected = [1, 3, 3, 5][step as usize];
        let leader = cell.elect();
        assert_eq!(voters(&cell, leader).len(), expected);
    }
    cell.propose(id(1), "b");
    cell.run(LONG);
    for server in &all {
        assert_eq!(cell.entries(*server), ["a", "b"]);
        assert_eq!(voters(&cell, *server), [1, 2, 3, 4, 5]);
    }
    cell.options.auto_promote = false;
    let three = Change::Voters([id(2), id(3), id(4)].into());
    change(&mut cell, 10, three).unwrap();
    cell.until("a leader that remains", |cell| {
        cell.leader().is_some_and(|leader| leader != id(1) && leader != id(5))
    });
    let leader = cell.leader().unwrap();
    cell.crash(id(1));
    cell.crash(id(5));
    cell.propose(leader, "c");
    cell.run(LONG);
    for server in 2..=4 {
        assert_eq!(cell.entries(id(server)), ["a", "b", "c"]);
        assert_eq!(voters(&cell, id(server)), [2, 3, 4]);
    }
    cell.check();
}

#[test]
fn one_change_at_a_time_and_only_to_a_live_majority() {
    let mut cell = Cell::with(full(3), manual(), Mutations::NONE);
    let leader = cell.elect();
    cell.run(Duration::from_millis(200));
    let follower = id(leader.raw() % 3 + 1);
    cell.feed(follower, Event::Reconfigure { id: RequestId(1), change: Change::Remove([id(9)].into()) });
    assert_eq!(outcome(&cell.nodes[&follower], 1), Some(Err(ChangeError::NotLeader { leader })));

    let (mut one, mut two) = (member(4, Role::Learner), member(5, Role::Learner));
    (one.token, two.token) = (40, 50);
    cell.feed(leader, Event::Reconfigure { id: RequestId(2), change: Change::Join { member: one.clone() } });
    cell.feed(leader, Event::Reconfigure { id: RequestId(3), change: Change::Join { member: two.clone() } });
    assert_eq!(outcome(&cell.nodes[&leader], 3), Some(Err(ChangeError::InProgress)));
    cell.until("the first change", |cell| outcome(&cell.nodes[&leader], 2) == Some(Ok(())));
    // Asked again, it is the same server.
    assert_eq!(change(&mut cell, 4, Change::Join { member: one }), Ok(()));
    assert_eq!(change(&mut cell, 5, Change::Join { member: two }), Ok(()));
    assert_eq!(cell.status(leader).config.members.len(), 5);

    // Neither has ever been started: with them the cell would stand still.
    let five = Change::Voters([leader, id(4), id(5)].into());
    assert_eq!(change(&mut cell, 6, five), Err(ChangeError::NoQuorum));
    let even = Change::Voters([id(1), id(2)].into());
    assert!(matches!(change(&mut cell, 7, even), Err(ChangeError::Invalid(_))));
    cell.propose(leader, "a");
    cell.run(LONG);
    assert_eq!(cell.entries(leader), ["a"]);
}

#[test]
fn a_server_that_lost_its_disk_comes_back_under_a_new_name_and_takes_its_own_place() {
    let mut cell = Cell::of(3);
    cell.elect_this(id(1));
    cell.propose(id(1), "a");
    cell.run(LONG);
    cell.crash(id(3));
    // The same address, an empty disk: a new identity.
    let new = join(&mut cell, 1, 3);
    assert_eq!(new, id(4));
    cell.run(LONG);
    let leader = cell.elect();
    assert_eq!(voters(&cell, leader), [1, 2, 4]);
    cell.crash(id(2));
    let leader = cell.elect();
    cell.propose(leader, "b");
    cell.run(LONG);
    cell.run(LONG);
    let leader = cell.elect();
    assert_eq!(cell.entries(leader).first().unwrap(), "a");
    cell.check();
}

#[test]
fn a_spare_takes_the_place_of_a_voter_that_is_dead_for_good() {
    let options = Options { replace_after: Duration::from_secs(3), ..Options::default() };
    let mut cell = Cell::with(full(3), options, Mutations::NONE);
    cell.elect_this(id(1));
    let spare = join(&mut cell, 1, 4);
    cell.run(LONG);
    assert_eq!(voters(&cell, id(1)), [1, 2, 3], "a learner alone makes no even number");
    cell.crash(id(2));
    cell.run(Duration::from_secs(2));
    assert_eq!(voters(&cell, id(1)), [1, 2, 3], "too early");
    cell.run(Duration::from_secs(4));
    assert_eq!(voters(&cell, id(1)), [1, 3, spare.raw()]);
    // The dead one comes back, hears of its removal, and leaves the others in peace.
    let leader = cell.elect();
    let ballot = cell.nodes[&leader].view.ballot;
    cell.start(id(2));
    cell.run(Duration::from_secs(5));
    let leader = cell.elect();
    assert_eq!(cell.nodes[&leader].view.ballot, ballot);
    assert_eq!(voters(&cell, id(2)), [1, 3, spare.raw()]);
    cell.check();
}

#[test]
fn a_change_begun_by_a_leader_that_dies_is_carried_through_by_the_next() {
    let mut cell = Cell::with(full(3), manual(), Mutations::NONE);
    cell.elect_this(id(1));
    let new = [join(&mut cell, 1, 4), join(&mut cell, 2, 5)];
    cell.run(LONG);
    let five = Change::Voters([id(1), id(2), id(3), new[0], new[1]].into());
    cell.feed(id(1), Event::Reconfigure { id: RequestId(3), change: five });
    // The membership is chosen, the no-ops behind it are not.
    cell.run(Duration::from_micros(2500));
    cell.crash(id(1));
    cell.until("another leader", |cell| cell.leader().is_some());
    cell.run(LONG);
    let leader = cell.elect();
    assert_eq!(voters(&cell, leader), [1, 2, 3, 4, 5]);
    cell.crash(leader);
    cell.until("a third leader", |cell| cell.leader().is_some_and(|third| third != leader));
    let third = cell.leader().unwrap();
    cell.propose(third, "three of five live");
    cell.run(LONG);
    assert_eq!(cell.entries(third), ["three of five live"]);
    cell.check();
}

#[test]
fn leadership_is_handed_over_without_waiting_for_the_lease() {
    let mut cell = Cell::of(3);
    let old = cell.elect();
    cell.propose(old, "a");
    cell.run(LONG);
    let new = id(old.raw() % 3 + 1);
    let before = cell.at;
    cell.feed(old, Event::Transfer(Some(new)));
    assert_eq!(cell.status(old).lease_until, Some(Default::default()), "the lease is not used any more");
    cell.until("the new leader", |cell| cell.leader() == Some(new));
    assert!(cell.at.since(before) < Duration::from_millis(50), "{:?}", cell.at.since(before));
    cell.propose(new, "b");
    cell.run(LONG);
    for server in 1..=3 {
        assert_eq!(cell.entries(id(server)), ["a", "b"]);
    }
    assert_eq!(cell.leader(), Some(new));
}

#[test]
fn a_hand_over_to_a_deaf_server_is_taken_back() {
    let mut cell = Cell::of(3);
    let old = cell.elect();
    cell.run(LONG);
    let deaf = id(old.raw() % 3 + 1);
    cell.lost.insert("TransferNow");
    cell.feed(old, Event::Transfer(Some(deaf)));
    cell.run(Duration::from_secs(3));
    let leader = cell.elect();
    cell.propose(leader, "a");
    cell.run(LONG);
    assert_eq!(cell.entries(leader), ["a"]);
    assert!(cell.status(leader).lease_until > Some(cell.at), "and has a lease again");
}

#[test]
fn a_leader_with_a_stalled_disk_hands_over() {
    let mut cell = Cell::of(3);
    let old = cell.elect();
    cell.run(LONG);
    cell.nodes.get_mut(&old).unwrap().stalled = true;
    cell.propose(old, "a");
    cell.until("another leader", |cell| cell.leader().is_some_and(|leader| leader != old));
    let new = cell.leader().unwrap();
    cell.propose(new, "b");
    cell.run(Duration::from_millis(100));
    assert_eq!(cell.entries(new), ["a", "b"]);
    cell.unstall(old);
    cell.run(LONG);
    assert_eq!(cell.entries(old), ["a", "b"]);
    cell.check();
}

#[test]
fn a_server_below_everybodys_log_gets_a_snapshot_and_then_the_tail() {
    let options = Options { snapshot_entries: 100, keep_slots: 20, ..Options::default() };
    let mut cell = Cell::with(full(3), options, Mutations::NONE);
    let leader = cell.elect();
    let sleeper = id(leader.raw() % 3 + 1);
    cell.crash(sleeper);
    for n in 0..400 {
        cell.propose(leader, &n.to_string());
        cell.run(Duration::from_millis(2));
    }
    assert!(cell.status(leader).floor > Slot::new(100));
    cell.start(sleeper);
    cell.run(LONG);
    assert_eq!(cell.entries(sleeper).len(), 400);
    assert!(cell.nodes[&sleeper].told.iter().any(|action| matches!(action, Action::Restore { .. })));
    // All of them start from their snapshots.
    for server in 1..=3 {
        cell.crash(id(server));
        cell.start(id(server));
    }
    let leader = cell.elect();
    cell.propose(leader, "after");
    cell.run(LONG);
    for server in 1..=3 {
        assert_eq!(cell.entries(id(server)).len(), 401);
    }
    cell.check();
}

fn two_and_a_witness() -> Cell {
    let mut members = full(2);
    members.push(member(3, Role::Witness));
    Cell::with(members, manual(), Mutations::NONE)
}

#[test]
fn a_witness_is_left_alone_while_both_full_voters_answer() {
    let mut cell = two_and_a_witness();
    let leader = cell.elect();
    assert_ne!(leader, id(3));
    cell.run(LONG);
    cell.trace.clear();
    for n in 0..20 {
        cell.propose(leader, &n.to_string());
        cell.run(Duration::from_millis(5));
    }
    cell.run(LONG);
    let to_witness = cell.trace.iter().filter(|(_, e)| e.to == id(3) && e.message.name() == "Accept");
    assert_eq!(to_witness.count(), 0);
    assert!(cell.nodes[&id(3)].applied.is_empty());
    assert_eq!(cell.entries(id(1)).len(), 20);
    assert_eq!(cell.entries(id(2)).len(), 20);
}

#[test]
fn two_full_voters_and_a_witness_survive_one_loss_after_another() {
    let mut cell = two_and_a_witness();
    cell.elect_this(id(1));
    cell.run(LONG);
    cell.crash(id(2));
    for n in 0..30 {
        cell.propose(id(1), &n.to_string());
        cell.run(Duration::from_millis(100));
    }
    assert_eq!(cell.entries(id(1)).len(), 30, "the witness stands in");
    assert!(cell.nodes[&id(3)].disk.records.len() >= 30, "and keeps what server 2 lacks");
    // The other full voter is lost while server 2 knows nothing yet: the witness still has it all.
    cell.crash(id(1));
    cell.start(id(2));
    cell.until("server 2 leads", |cell| cell.leader() == Some(id(2)));
    assert_eq!(cell.entries(id(2)).len(), 30);
    cell.propose(id(2), "more");
    cell.run(LONG);
    assert_eq!(cell.entries(id(2)).len(), 31);
    cell.start(id(1));
    cell.run(LONG);
    cell.run(LONG);
    assert_eq!(cell.entries(id(1)).len(), 31);
    assert!(cell.nodes[&id(3)].disk.records.is_empty(), "both hold everything: the witness has let go");
    // Restarted without a leader's word, the two find each other again.
    for server in 1..=3 {
        cell.crash(id(server));
    }
    cell.start(id(1));
    cell.start(id(3));
    cell.elect();
    assert_eq!(cell.entries(id(1)).len(), 31);
    cell.check();
}

#[test]
fn a_witness_never_leads_and_serves_no_reads() {
    let mut cell = two_and_a_witness();
    cell.elect();
    cell.feed(id(3), Event::Read(ReadId(1)));
    assert!(!cell.nodes[&id(3)].reads[&ReadId(1)]);
    cell.crash(id(1));
    cell.crash(id(2));
    cell.run(Duration::from_secs(5));
    assert_eq!(cell.leader(), None);
}

#[test]
fn a_witness_hears_of_memberships() {
    let mut cell = two_and_a_witness();
    cell.elect_this(id(1));
    let new = join(&mut cell, 1, 4);
    cell.run(LONG);
    let swapped = Change::Voters([id(1), new, id(3)].into());
    change(&mut cell, 2, swapped).unwrap();
    cell.run(LONG);
    assert_eq!(cell.status(id(3)).config.voters(), [id(1), id(3), new].into());
    cell.crash(id(1));
    cell.until("the new one leads", |cell| cell.leader() == Some(new));
    cell.propose(new, "a");
    cell.run(LONG);
    assert_eq!(cell.entries(new), ["a"]);
}

#[test]
fn an_uncertain_server_is_not_believed_when_it_knows_of_nothing() {
    let mut cell = Cell::of(3);
    cell.elect_this(id(1));
    cell.run(LONG);
    // Chosen by 1 and 2; 3 hears nothing of it.
    cell.cut_off(id(3));
    cell.propose(id(1), "precious");
    cell.run(Duration::from_millis(20));
    let slot = cell.status(id(1)).chosen_upto;
    assert_eq!(cell.entries(id(1)), ["precious"]);
    for server in 1..=3 {
        cell.crash(id(server));
    }
    cell.heal();
    // Server 2's record is damaged.
    let disk = &mut cell.nodes.get_mut(&id(2)).unwrap().disk;
    disk.records.retain(|record| record.slot() < slot);
    disk.uncertain_above = Some(slot.minus(1));
    cell.start(id(2));
    cell.start(id(3));
    cell.run(Duration::from_secs(5));
    assert_eq!(cell.leader(), None, "of two, only one is certain");
    assert!(cell.status(id(2)).uncertain);
    cell.start(id(1));
    cell.run(Duration::from_secs(5));
    let leader = cell.elect();
    cell.propose(leader, "next");
    cell.run(LONG);
    for server in 1..=3 {
        assert_eq!(cell.entries(id(server)), ["precious", "next"]);
        assert!(!cell.status(id(server)).uncertain, "what was lost can't be missed any more");
    }
    cell.check();
}

#[test]
fn duelling_candidates_part() {
    // Canvasses tell nothing: everybody stands whenever its time is up.
    let mut cell = Cell::of(5);
    for _ in 0..5 {
        let leader = cell.elect();
        cell.crash(leader);
        cell.until("the next one", |cell| cell.leader().is_some());
        cell.start(leader);
        cell.run(Duration::from_millis(400));
    }
    let leader = cell.elect();
    cell.propose(leader, "a");
    cell.run(LONG);
    for server in 1..=5 {
        assert_eq!(cell.entries(id(server)), ["a"]);
    }
}

#[test]
fn a_lonely_server_does_not_disturb_the_leader_when_it_comes_back() {
    let mut cell = Cell::of(3);
    let leader = cell.elect();
    cell.run(LONG);
    let ballot = cell.nodes[&leader].view.ballot;
    cell.cut_off(id(leader.raw() % 3 + 1));
    cell.run(Duration::from_secs(20));
    cell.heal();
    cell.run(LONG);
    let leader = cell.elect();
    assert_eq!(cell.nodes[&leader].view.ballot, ballot, "it has canvassed, never prepared");
}

#[test]
fn a_restarted_acceptor_keeps_to_a_lease_that_it_has_forgotten() {
    let mut cell = Cell::of(3);
    let leader = cell.elect();
    cell.run(LONG);
    let (one, two) = (id(leader.raw() % 3 + 1), id((leader.raw() + 1) % 3 + 1));
    // Cut off from its followers, the leader's lease still runs; both restart at once.
    cell.cut_off(leader);
    cell.crash(one);
    cell.crash(two);
    cell.start(one);
    cell.start(two);
    cell.feed(one, Event::Unreachable(leader));
    while cell.status(leader).lease_until.is_some_and(|until| until > cell.at) {
        assert!(cell.nodes.values().filter(|node| node.view.leading).count() == 1);
        cell.run(Duration::from_millis(1));
    }
    cell.until("another leader", |cell| cell.leader().is_some_and(|new| new != leader));
}

#[test]
fn configs_with_an_even_number_need_a_witness() {
    let config = Config::founding(full(2));
    assert!(
        loggos_coordinator::paxos::membership::apply_change(&config, &Change::Remove([id(9)].into()))
            .is_err()
    );
    let mut cell = two_and_a_witness();
    let leader = cell.elect();
    cell.feed(leader, Event::Propose(vec![entry("a")]));
    cell.run(LONG);
    assert_eq!(cell.entries(leader), ["a"]);
}
