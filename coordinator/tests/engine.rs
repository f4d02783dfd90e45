//! The engine, a few of them joined by hand: elections, choosing, recovery, catching up, reads, membership.
//!
//! Each test stages one situation. Random faults over whole cells are the simulator's, exhaustive interleavings the
//! model checker's.

#[path = "support/hand.rs"]
mod hand;

use std::time::Duration;

use hand::{Cell, entry, id};
use loggos_coordinator::paxos::ballot::Slot;
use loggos_coordinator::paxos::event::{Event, ReadId};
use loggos_coordinator::paxos::value::Value;

const LONG: Duration = Duration::from_secs(2);

#[test]
fn a_cell_of_one_chooses_without_any_network() {
    let mut cell = Cell::of(1);
    cell.elect();
    cell.propose(id(1), "a");
    cell.run(Duration::from_millis(10));
    assert_eq!(cell.entries(id(1)), ["a"]);
    assert!(cell.trace.is_empty());
    cell.crash(id(1));
    cell.start(id(1));
    cell.elect();
    assert_eq!(cell.entries(id(1)), ["a"]);
    cell.feed(id(1), Event::Read(ReadId(1)));
    assert!(cell.nodes[&id(1)].reads[&ReadId(1)]);
}

#[test]
fn three_elect_a_leader_and_apply_the_same_in_the_same_order() {
    let mut cell = Cell::of(3);
    let leader = cell.elect();
    for n in 0..200 {
        let server = id(n % 3 + 1);
        cell.propose(server, &n.to_string());
        cell.run(Duration::from_micros(300));
    }
    cell.run(LONG);
    cell.check();
    for server in 1..=3 {
        let mut entries = cell.entries(id(server));
        assert_eq!(entries.len(), 200);
        entries.sort_by_key(|entry| entry.parse::<u32>().unwrap());
        assert_eq!(entries, (0..200).map(|n| n.to_string()).collect::<Vec<_>>());
    }
    assert_eq!(cell.leader(), Some(leader), "a healthy leader stays");
}

#[test]
fn a_dead_leader_is_followed_by_one_that_keeps_what_was_chosen() {
    let mut cell = Cell::of(3);
    let first = cell.elect();
    cell.propose(first, "kept");
    cell.run(Duration::from_millis(20));
    cell.crash(first);
    cell.until("another leader", |cell| cell.leader().is_some_and(|leader| leader != first));
    let second = cell.leader().unwrap();
    cell.propose(second, "next");
    cell.run(Duration::from_millis(20));
    assert_eq!(cell.entries(second), ["kept", "next"]);
    cell.start(first);
    cell.run(LONG);
    assert_eq!(cell.entries(first), ["kept", "next"]);
    cell.check();
}

#[test]
fn a_leader_cut_off_steps_down_and_loses_what_was_never_chosen() {
    let mut cell = Cell::of(3);
    let old = cell.elect();
    cell.run(Duration::from_millis(200));
    cell.cut_off(old);
    cell.propose(old, "lost");
    cell.until("another leader", |cell| cell.leader().is_some_and(|leader| leader != old));
    let new = cell.leader().unwrap();
    cell.propose(new, "won");
    cell.run(LONG);
    assert!(!cell.nodes[&old].view.leading, "a leader that hears no majority gives up");
    cell.heal();
    cell.run(LONG);
    for server in 1..=3 {
        assert_eq!(cell.entries(id(server)), ["won"]);
    }
    cell.check();
}

#[test]
fn a_gap_is_filled_with_a_noop_and_a_vote_beyond_it_survives() {
    let mut cell = Cell::of(3);
    cell.elect_this(id(1));
    cell.run(Duration::from_millis(200));
    // "gone" reaches nobody; "seen" reaches server 2's disk, but no vote comes back.
    cell.cut_off(id(1));
    cell.propose(id(1), "gone");
    cell.run(Duration::from_millis(5));
    cell.heal();
    cell.cut.extend([(id(2), id(1)), (id(3), id(1)), (id(1), id(3))]);
    cell.propose(id(1), "seen");
    cell.run(Duration::from_millis(5));
    cell.crash(id(1));
    cell.heal();
    cell.until("another leader", |cell| cell.leader().is_some());
    cell.run(LONG);
    let leader = cell.leader().unwrap();
    assert_eq!(cell.entries(leader), ["seen"]);
    let noops = cell.nodes[&leader].applied.iter().filter(|(_, value)| *value == Value::Noop).count();
    assert_eq!(noops, 1);
    cell.start(id(1));
    cell.run(LONG);
    assert_eq!(cell.entries(id(1)), ["seen"]);
    cell.check();
}

#[test]
fn nothing_is_chosen_while_the_disks_are_stalled() {
    let mut cell = Cell::of(3);
    let leader = cell.elect();
    for node in cell.nodes.values_mut() {
        node.stalled = true;
    }
    cell.propose(leader, "a");
    cell.run(Duration::from_millis(100));
    for server in 1..=3 {
        assert!(cell.entries(id(server)).is_empty());
    }
    for server in 1..=3 {
        cell.unstall(id(server));
    }
    cell.run(LONG);
    for server in 1..=3 {
        assert_eq!(cell.entries(id(server)), ["a"]);
    }
}

#[test]
fn a_server_that_slept_fetches_what_it_missed() {
    let mut cell = Cell::of(3);
    let leader = cell.elect();
    let sleeper = id(leader.raw() % 3 + 1);
    cell.crash(sleeper);
    for n in 0..500 {
        cell.propose(leader, &n.to_string());
        cell.run(Duration::from_millis(1));
    }
    cell.start(sleeper);
    cell.run(LONG);
    assert_eq!(cell.entries(sleeper).len(), 500);
    cell.check();
}

#[test]
fn reads_anywhere_see_all_that_was_chosen_before() {
    for lease_reads in [true, false] {
        let mut cell = Cell::of(3);
        cell.options.lease_reads = lease_reads;
        for server in 1..=3 {
            cell.crash(id(server));
            cell.start(id(server));
        }
        let leader = cell.elect();
        cell.run(Duration::from_millis(200));
        cell.propose(leader, "a");
        cell.until("chosen", |cell| cell.entries(leader) == ["a"]);
        for server in 1..=3 {
            cell.feed(id(server), Event::Read(ReadId(1)));
            cell.feed(id(server), Event::Read(ReadId(2)));
            cell.until("read", |cell| cell.nodes[&id(server)].reads.len() == 2);
            assert!(cell.nodes[&id(server)].reads.values().all(|ready| *ready));
            assert_eq!(cell.entries(id(server)), ["a"]);
        }
    }
}

#[test]
fn a_leader_cut_off_answers_no_read_once_another_may_lead() {
    let mut cell = Cell::of(3);
    let old = cell.elect();
    cell.run(Duration::from_millis(200));
    cell.cut_off(old);
    let mut read = 0;
    while cell.leader().is_none_or(|leader| leader == old) {
        cell.run(Duration::from_millis(5));
        read += 1;
        cell.feed(old, Event::Read(ReadId(read)));
    }
    let new = cell.leader().unwrap();
    cell.propose(new, "a");
    cell.run(Duration::from_millis(20));
    assert_eq!(cell.entries(new), ["a"]);
    cell.feed(old, Event::Read(ReadId(9999)));
    cell.run(LONG);
    let reads = &cell.nodes[&old].reads;
    assert!(!reads[&ReadId(9999)]);
    assert!(reads[&ReadId(1)], "the lease still held right after the cut");
}

#[test]
fn followers_pass_entries_on_and_hear_of_their_fate_at_once() {
    let mut cell = Cell::of(3);
    let leader = cell.elect();
    cell.run(Duration::from_millis(220));
    let follower = id(leader.raw() % 3 + 1);
    let before = cell.at;
    cell.feed(follower, Event::Propose(vec![entry("x"), entry("y")]));
    cell.until("applied", |cell| cell.entries(follower) == ["x", "y"]);
    assert!(cell.at.since(before) < Duration::from_millis(10), "no heartbeat had to be waited for");
}

#[test]
fn many_entries_share_a_slot_and_slots_share_the_window() {
    let mut cell = Cell::of(3);
    let leader = cell.elect();
    cell.run(Duration::from_millis(200));
    let before = cell.status(leader).chosen_upto;
    cell.feed(leader, Event::Propose((0..100_000).map(|n| entry(&n.to_string())).collect()));
    cell.run(LONG);
    let limit = cell.options.queue_entries;
    assert_eq!(cell.entries(leader).len(), limit, "the queue is bounded");
    let slots = cell.status(leader).chosen_upto.since(before);
    assert_eq!(slots, (limit / cell.options.batch_entries) as u64);
    cell.check();
}

#[test]
fn touches_reach_the_leader_and_are_confirmed() {
    use loggos_coordinator::paxos::event::Action;
    let mut cell = Cell::of(3);
    let leader = cell.elect();
    cell.run(Duration::from_millis(200));
    let follower = id(leader.raw() % 3 + 1);
    for server in [leader, follower] {
        cell.feed(server, Event::Touches { batch: 1, payload: entry("alive") });
        cell.run(Duration::from_millis(200));
        let touched = Action::Touched { from: server, payload: entry("alive") };
        let heard = cell.nodes[&leader].told.iter().filter(|action| **action == touched).count();
        assert_eq!(heard, 1);
        assert!(cell.nodes[&server].told.contains(&Action::TouchesRegistered { batch: 1 }));
    }
}

#[test]
fn a_lost_message_of_any_kind_only_delays() {
    let kinds =
        ["CanvassOk", "Prepare", "Promise", "Accept", "Accepted", "Heartbeat", "HeartbeatAck", "Chosen"];
    for kind in kinds {
        let mut cell = Cell::of(3);
        cell.lost.insert(kind);
        cell.run(Duration::from_millis(1500));
        cell.heal();
        let leader = cell.elect();
        cell.lost.insert(kind);
        cell.propose(leader, "a");
        cell.run(Duration::from_millis(200));
        cell.heal();
        cell.run(LONG);
        let leader = cell.elect();
        if cell.entries(leader).is_empty() {
            // The leader was lost meanwhile, and its queue with it.
            cell.propose(leader, "a");
            cell.run(LONG);
        }
        for server in 1..=3 {
            assert_eq!(cell.entries(id(server)), ["a"], "{kind}");
        }
        cell.check();
    }
}

#[test]
fn a_leader_trusts_no_lease_of_servers_whose_clocks_were_set() {
    let mut cell = Cell::of(3);
    for node in cell.nodes.values_mut() {
        node.clock_ahead = Duration::from_secs(10);
    }
    let leader = cell.elect();
    cell.run(LONG);
    assert!(cell.status(leader).lease_until > Some(cell.at.after(Duration::from_secs(10))));
    for (server, node) in &mut cell.nodes {
        if *server != leader {
            node.clock_ahead = Duration::from_secs(5);
        }
    }
    cell.run(Duration::from_millis(200));
    assert_eq!(cell.leader(), Some(leader));
    assert_eq!(cell.status(leader).lease_until, Some(Default::default()));
    cell.feed(leader, Event::Read(ReadId(1)));
    assert!(cell.nodes[&leader].reads.is_empty(), "a round has to confirm it");
    cell.run(Duration::from_millis(10));
    assert!(cell.nodes[&leader].reads[&ReadId(1)]);
}

#[test]
fn a_leader_that_restarts_is_replaced_without_waiting_for_its_lease() {
    let mut cell = Cell::of(3);
    let old = cell.elect();
    cell.run(LONG);
    cell.crash(old);
    cell.start(old);
    let before = cell.at;
    cell.until("another leadership", |cell| cell.leader().is_some());
    assert!(cell.at.since(before) < cell.options.lease, "{:?}", cell.at.since(before));
}

#[test]
fn the_chosen_prefix_survives_the_loss_of_all_power() {
    let mut cell = Cell::of(3);
    let leader = cell.elect();
    for n in 0..50 {
        cell.propose(leader, &n.to_string());
        cell.run(Duration::from_millis(3));
    }
    let chosen = cell.status(leader).chosen_upto;
    assert!(chosen > Slot::new(50));
    for server in 1..=3 {
        cell.crash(id(server));
    }
    for server in 1..=3 {
        cell.start(id(server));
    }
    cell.run(LONG);
    for server in 1..=3 {
        assert_eq!(cell.entries(id(server)).len(), 50);
    }
    cell.check();
}
