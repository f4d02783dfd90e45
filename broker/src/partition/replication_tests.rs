//! What a single replica says, change by change; N replicas together are in `tests/replication_sim`.

use super::*;

const ME: BrokerId = BrokerId::new(1);
const TWO: BrokerId = BrokerId::new(2);
const THREE: BrokerId = BrokerId::new(3);
const LIFE: BrokerEpoch = BrokerEpoch::new(7);
const AT: Moment = Moment::new(1000);

fn role(leader: i32, epoch: i32, isr: &[i32], version: i32) -> Role {
    let isr: BTreeSet<BrokerId> = isr.iter().copied().map(BrokerId::new).collect();
    let replicas = [1, 2, 3].map(BrokerId::new).to_vec();
    Role { leader: BrokerId::new(leader), leader_epoch: LeaderEpoch::new(epoch), isr, replicas, version }
}

fn replica(flushed: i64, end: i64) -> Replication {
    Replication::new(ME, Offset::new(flushed), Offset::new(end))
}

fn fetched(replica: &mut Replication, broker: BrokerId, end: i64, at: i64) -> i64 {
    replica.fetched(Fetched { broker, life: LIFE, end: Offset::new(end) }, Moment::new(at));
    replica.high_watermark().raw()
}

fn lives(_: BrokerId) -> Option<BrokerEpoch> {
    Some(LIFE)
}

#[test]
fn alone_everything_flushed_is_seen_and_nothing_else() {
    let mut replica = replica(5, 5);
    assert!(replica.set_role(role(1, 0, &[1], 0), AT));
    assert_eq!(replica.high_watermark(), Offset::new(5));
    assert!(replica.knows_its_end());
    replica.appended(Offset::new(9), AT);
    assert_eq!(replica.high_watermark(), Offset::new(5));
    replica.flushed(Offset::new(7));
    assert_eq!(replica.high_watermark(), Offset::new(7));
    replica.set_policy(Policy { exposes_appended: true, min_in_sync: 2 });
    assert_eq!(replica.progress(), Progress { high_watermark: Offset::new(9), enough: false });
}

#[test]
fn the_slowest_replica_in_sync_decides() {
    let mut replica = replica(10, 10);
    replica.set_role(role(1, 3, &[1, 2, 3], 4), AT);
    assert!(!replica.knows_its_end());
    assert_eq!(fetched(&mut replica, TWO, 8, 1000), 0);
    assert_eq!(fetched(&mut replica, THREE, 6, 1000), 6);
    replica.set_role(role(1, 3, &[1, 2], 5), AT);
    assert_eq!(replica.high_watermark(), Offset::new(8));
    assert!(!replica.set_role(role(2, 2, &[2], 6), AT), "an older epoch is ignored");
    assert!(!replica.set_role(role(1, 3, &[1], 4), AT), "an older state is ignored");
    assert_eq!(fetched(&mut replica, BrokerId::new(9), 99, 1000), 8, "not a replica");
}

#[test]
fn a_follower_sees_what_it_has_flushed_itself() {
    let mut replica = replica(4, 9);
    replica.set_role(role(2, 1, &[1, 2], 1), AT);
    replica.leader_says(Offset::new(8));
    assert_eq!(replica.high_watermark(), Offset::new(4));
    replica.flushed(Offset::new(9));
    replica.leader_says(Offset::new(8));
    assert_eq!(replica.high_watermark(), Offset::new(8));
    replica.truncated(Offset::new(3));
    assert_eq!(replica.high_watermark(), Offset::new(3));
}

#[test]
fn who_lags_goes_and_who_has_caught_up_comes_back() {
    let mut replica = replica(10, 10);
    replica.set_role(role(1, 3, &[1, 2, 3], 0), AT);
    fetched(&mut replica, TWO, 10, 1400);
    fetched(&mut replica, THREE, 4, 1400);
    assert_eq!(replica.isr_change(Moment::new(1500), 500, lives), None);
    let smaller = replica.isr_change(Moment::new(1600), 500, lives).expect("three has lagged");
    assert_eq!((smaller.isr.clone(), smaller.joining.is_empty()), (BTreeSet::from([ME, TWO]), true));
    assert_eq!(replica.high_watermark(), Offset::new(4), "until the registry has taken it");
    assert_eq!(replica.isr_change(Moment::new(1600), 500, lives), None, "one change at a time");
    assert_eq!(replica.pending_change(), Some(&smaller));
    replica.set_role(role(1, 3, &[1, 2], 1), AT);
    assert_eq!(replica.high_watermark(), Offset::new(10));
    assert_eq!(replica.pending_change(), None);
    fetched(&mut replica, TWO, 10, 1700);
    fetched(&mut replica, THREE, 10, 1700);
    let larger = replica.isr_change(Moment::new(1700), 500, lives).expect("three has caught up");
    assert_eq!(larger.joining, [(THREE, LIFE)]);
    replica.appended(Offset::new(12), Moment::new(1700));
    replica.flushed(Offset::new(12));
    assert_eq!(fetched(&mut replica, TWO, 12, 1700), 10, "who joins counts at once");
    replica.set_role(role(1, 3, &[1, 2], 1), AT);
    assert_eq!(fetched(&mut replica, TWO, 12, 1700), 10, "an old view, read again, decides nothing");
    replica.set_role(role(1, 3, &[1, 2], 2), AT);
    assert_eq!(fetched(&mut replica, TWO, 12, 1700), 12, "a later state, and three isn't in it");
    let alone = replica.isr_change(Moment::new(1700), 500, |broker| (broker == ME).then_some(LIFE));
    assert_eq!(alone.expect("the dead go at once").isr, BTreeSet::from([ME]));
}

#[test]
fn who_caught_up_in_an_earlier_life_does_not_join() {
    let mut replica = replica(10, 10);
    replica.set_role(role(1, 3, &[1], 0), AT);
    fetched(&mut replica, TWO, 10, 1100);
    let reborn = |_| Some(BrokerEpoch::new(8));
    assert_eq!(replica.isr_change(Moment::new(1200), 500, reborn), None);
    replica.fetched(Fetched { broker: TWO, life: BrokerEpoch::new(8), end: Offset::ZERO }, AT);
    assert_eq!(replica.isr_change(Moment::new(1200), 500, reborn), None);
    assert_eq!(fetched(&mut replica, TWO, 10, 1300), 10, "a question of the earlier life, come late");
    assert_eq!(replica.isr_change(Moment::new(1300), 500, reborn), None);
}

#[test]
fn consumers_are_sent_to_who_has_it_all() {
    let mut replica = replica(10, 10);
    replica.set_role(role(1, 3, &[1, 2], 0), AT);
    fetched(&mut replica, TWO, 8, 1100);
    fetched(&mut replica, THREE, 10, 1100);
    assert_eq!(replica.holders_of(Offset::new(8)), [TWO], "three isn't in sync");
    assert_eq!(replica.holders_of(Offset::new(9)), []);
}

#[test]
fn who_had_everything_begins_to_lag_with_the_next_append() {
    let mut replica = replica(10, 10);
    replica.set_role(role(1, 3, &[1, 2], 0), AT);
    fetched(&mut replica, TWO, 10, 1100);
    assert_eq!(replica.isr_change(Moment::new(99_000), 500, lives), None, "idle for long");
    replica.appended(Offset::new(11), Moment::new(99_000));
    assert_eq!(replica.isr_change(Moment::new(99_500), 500, lives), None);
    assert!(replica.isr_change(Moment::new(99_501), 500, lives).is_some());
}
