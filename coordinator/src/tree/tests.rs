//! What clients and their test suites observe of the tree.

use bytes::Bytes;
use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::{Acl, ErrorCode, EventType, Id, perms};
use proptest::prelude::*;

use super::{Applied, Command, CreateKind, Entry, Fence, Outcome, Part, Stamp, Tree, Write};

struct Bench {
    tree: Tree,
    session: SessionId,
    begun: u8,
    time_ms: i64,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self { tree: Tree::default(), session: SessionId::new(0), begun: 0, time_ms: 1000 };
        bench.session = bench.begin();
        bench
    }

    fn begin(&mut self) -> SessionId {
        self.begun += 1;
        let (password, fence) = ([self.begun; 16], Fence(self.begun.into()));
        let applied = self.apply(Command::CreateSession { timeout_ms: 1000, password, fence });
        applied.session().expect("a session")
    }

    fn apply(&mut self, command: Command) -> Applied {
        self.time_ms += 1;
        self.tree.apply(&Entry { time_ms: self.time_ms, command })
    }

    fn write(&mut self, write: Write) -> Result<Outcome, ErrorCode> {
        self.apply(self.command(vec![], write)).outcome
    }

    /// A write with the session's next stamp.
    fn command(&self, ids: Vec<Id>, write: Write) -> Command {
        let stamp = self.tree.attachment(self.session).unwrap_or_default();
        Command::Write { session: self.session, stamp, ids, write }
    }

    fn create(&mut self, path: &str, kind: CreateKind) -> Result<String, ErrorCode> {
        match self.write(create(path, kind))? {
            Outcome::Created { path, .. } => Ok(path),
            other => panic!("{other:?}"),
        }
    }
}

fn create(path: &str, kind: CreateKind) -> Write {
    Write::Create { path: path.to_owned(), data: Some(Bytes::from_static(b"x")), acl: Acl::open(), kind }
}

fn delete(path: &str, version: i32) -> Write {
    Write::Delete { path: path.to_owned(), version }
}

fn set(path: &str, version: i32) -> Write {
    Write::SetData { path: path.to_owned(), data: None, version }
}

use CreateKind::{Container, Ephemeral, Persistent, PersistentSequential, Ttl};

#[test]
fn the_first_error_is_the_one_that_zookeeper_gives() {
    let mut bench = Bench::new();
    bench.create("/a", Persistent).expect("new");
    bench.create("/a/e", Ephemeral).expect("new");
    assert_eq!(bench.create("/a", Persistent), Err(ErrorCode::NODE_EXISTS));
    assert_eq!(bench.create("/b/c", Persistent), Err(ErrorCode::NO_NODE));
    assert_eq!(bench.create("/a/e/c", Persistent), Err(ErrorCode::NO_CHILDREN_FOR_EPHEMERALS));
    assert_eq!(bench.create("/a/", Persistent), Err(ErrorCode::BAD_ARGUMENTS));
    let no_acl = Write::Create { path: "/x".to_owned(), data: None, acl: vec![], kind: Persistent };
    assert_eq!(bench.write(no_acl), Err(ErrorCode::INVALID_ACL));
    assert_eq!(bench.write(delete("/a", -1)), Err(ErrorCode::NOT_EMPTY));
    assert_eq!(bench.write(delete("/a", 7)), Err(ErrorCode::BAD_VERSION));
    assert_eq!(bench.write(delete("/zookeeper", -1)), Err(ErrorCode::BAD_ARGUMENTS));
    assert_eq!(bench.write(set("/a", 1)), Err(ErrorCode::BAD_VERSION));
    assert_eq!(bench.write(set("/none", -1)), Err(ErrorCode::NO_NODE));
    assert_eq!(bench.write(Write::Refused(ErrorCode::BAD_ARGUMENTS)), Err(ErrorCode::BAD_ARGUMENTS));
}

#[test]
fn counters_and_numbers_are_zookeepers() {
    let mut bench = Bench::new();
    bench.create("/q", Persistent).expect("new");
    assert_eq!(bench.create("/q/n", PersistentSequential).as_deref(), Ok("/q/n0000000000"));
    assert_eq!(bench.create("/q/", PersistentSequential).as_deref(), Ok("/q/0000000001"));
    bench.write(delete("/q/n0000000000", -1)).expect("there");
    let stat = bench.tree.stat("/q").expect("there");
    assert_eq!((stat.cversion, stat.num_children, stat.version), (3, 1, 0));
    assert_eq!(stat.pzxid, bench.tree.zxid());
    assert_eq!(bench.create("/q/n", PersistentSequential).as_deref(), Ok("/q/n0000000002"));
    let before = bench.tree.zxid();
    bench.write(delete("/none", -1)).expect_err("isn't there");
    assert_eq!(bench.tree.zxid().raw(), before.raw() + 1, "a failed write takes a zxid");
}

#[test]
fn a_broker_learns_its_epoch_from_a_multi_as_kafka_does() {
    let mut bench = Bench::new();
    let parts =
        vec![create("/b", Ephemeral), Write::SetData { path: "/b".to_owned(), data: None, version: 0 }];
    let Ok(Outcome::Parts(parts)) = bench.write(Write::Multi(parts)) else { panic!("a multi") };
    let Part::Changed(stat) = &parts[1] else { panic!("{parts:?}") };
    assert_eq!((stat.czxid, stat.mzxid, stat.version), (bench.tree.zxid(), bench.tree.zxid(), 1));
    assert_eq!(stat.ephemeral_owner, bench.session);
}

#[test]
fn a_multi_is_all_or_nothing() {
    let mut bench = Bench::new();
    bench.create("/a", Persistent).expect("new");
    let before = (bench.tree.stat("/a"), bench.tree.node_count(), bench.tree.data_bytes());
    let parts = vec![create("/a/b", Ephemeral), delete("/a", -1), set("/a", -1)];
    let applied = bench.apply(bench.command(vec![], Write::Multi(parts)));
    let codes = [ErrorCode::OK, ErrorCode::NOT_EMPTY, ErrorCode::RUNTIME_INCONSISTENCY];
    assert_eq!(applied.outcome, Ok(Outcome::Parts(codes.map(Part::Failed).to_vec())));
    assert!(applied.events.is_empty());
    assert_eq!((bench.tree.stat("/a"), bench.tree.node_count(), bench.tree.data_bytes()), before);
    assert_eq!(bench.tree.ephemeral_count(), 0);
    assert_eq!(applied.zxid, bench.tree.zxid(), "the tree's zxid is that of the failed multi");
}

#[test]
fn ephemerals_go_with_their_session_in_one_zxid() {
    let mut bench = Bench::new();
    bench.create("/a", Persistent).expect("new");
    bench.create("/a/one", Ephemeral).expect("new");
    bench.create("/a/two", Ephemeral).expect("new");
    let applied = bench.apply(Command::Expire { session: bench.session, epoch: 0 });
    let told: Vec<_> =
        applied.events.iter().map(|event| (event.event.event, event.event.path.as_str())).collect();
    let (deleted, children) = (EventType::NodeDeleted, EventType::NodeChildrenChanged);
    assert_eq!(told, [(deleted, "/a/one"), (children, "/a"), (deleted, "/a/two"), (children, "/a")]);
    assert_eq!(applied.ended, [bench.session]);
    assert_eq!(bench.create("/late", Persistent), Err(ErrorCode::SESSION_EXPIRED));
    let again = bench.apply(Command::Expire { session: bench.session, epoch: 0 });
    assert!(again.outcome.is_err() && again.ended.is_empty());
}

#[test]
fn only_who_may_does_and_is_told() {
    let mut bench = Bench::new();
    let me = Id { scheme: "digest".to_owned(), id: "me:hash".to_owned() };
    let acl = vec![Acl { perms: perms::ALL, id: me.clone() }];
    let write = Write::Create { path: "/mine".to_owned(), data: None, acl, kind: Persistent };
    let applied = bench.apply(bench.command(vec![], write));
    assert!(applied.events[0].readable_by(std::slice::from_ref(&me)) && !applied.events[0].readable_by(&[]));
    assert_eq!(bench.tree.get_data("/mine", &[]), Err(ErrorCode::NO_AUTH));
    assert_eq!(bench.tree.get_data("/mine", &[me]).map(|(data, _)| data), Ok(None));
    assert_eq!(bench.write(set("/mine", -1)), Err(ErrorCode::NO_AUTH));
}

#[test]
fn containers_and_the_forgotten_are_found_and_go() {
    let mut bench = Bench::new();
    bench.create("/c", Container).expect("new");
    bench.create("/t", Ttl(5000)).expect("new");
    bench.create("/c/x", Persistent).expect("new");
    bench.write(delete("/c/x", -1)).expect("there");
    assert_eq!(bench.tree.removable(bench.time_ms, 10), ["/c"]);
    assert_eq!(bench.tree.removable(bench.time_ms + 6000, 10), ["/c", "/t"]);
    bench.apply(Command::Remove { path: "/t".to_owned() }).outcome.expect_err("not yet");
    bench.apply(Command::Remove { path: "/c".to_owned() }).outcome.expect("unused");
    assert_eq!(bench.tree.stat("/c"), None);
}

#[test]
fn each_entry_of_a_session_takes_effect_once_in_order_or_never() {
    let mut bench = Bench::new();
    let stamp = |fence, number| Stamp { fence: Fence(fence), number };
    let session = bench.session;
    let entry = |stamp, path| Command::Write { session, stamp, ids: vec![], write: create(path, Persistent) };
    let zxid = bench.tree.zxid();
    assert!(bench.apply(entry(stamp(1, 2), "/two")).skipped, "a gap: the first is missing");
    assert!(!bench.apply(entry(stamp(1, 1), "/one")).skipped);
    assert!(bench.apply(entry(stamp(1, 1), "/one")).skipped, "a repetition");
    assert!(!bench.apply(entry(stamp(1, 2), "/two")).skipped);
    assert_eq!(bench.tree.zxid().raw(), zxid.raw() + 2, "what is skipped takes no zxid");
    let attach = |before, fence| Command::Attach { session, before: Fence(before), fence: Fence(fence) };
    assert_eq!(bench.apply(attach(1, 7)).outcome, Ok(Outcome::Session(session)));
    assert_eq!(bench.apply(attach(1, 8)).outcome, Err(ErrorCode::SESSION_MOVED));
    assert!(bench.apply(entry(stamp(1, 3), "/late")).skipped, "sealed by the attachment");
    assert!(!bench.apply(entry(stamp(7, 1), "/three")).skipped);
    assert_eq!(bench.apply(attach(1, 7)).outcome, Ok(Outcome::Session(session)), "a repetition");
    assert!(bench.apply(entry(stamp(7, 1), "/three")).skipped, "which doesn't count anew");
    let begin = Command::CreateSession { timeout_ms: 1000, password: [1; 16], fence: Fence(1) };
    let again = bench.apply(begin);
    assert_eq!((again.session(), again.skipped), (Some(session), true), "one password, one session");
    assert_eq!(bench.tree.stat("/late"), None);
}

#[test]
fn what_a_former_leader_decided_alone_has_no_effect() {
    let mut bench = Bench::new();
    bench.tree.lead(5, 2000);
    let old = bench.apply(Command::Expire { session: bench.session, epoch: 4 });
    assert!(old.skipped && old.ended.is_empty());
    assert_eq!(bench.apply(Command::Expire { session: bench.session, epoch: 5 }).ended, [bench.session]);
    assert_eq!(Tree::restore(&bench.tree.snapshot()).map(|tree| tree.epoch()), Ok(5));
}

fn any_write() -> impl Strategy<Value = Write> {
    let path = prop_oneof![Just("/a"), Just("/b"), Just("/a/c"), Just("/a/d"), Just("/b/e")];
    let kind = prop_oneof![
        4 => Just(Persistent),
        2 => Just(Ephemeral),
        1 => Just(PersistentSequential),
        1 => Just(Container),
        1 => Just(Ttl(5)),
    ];
    let single = (path, kind, 0..5, -1..2i32).prop_map(|(path, kind, what, version)| match what {
        0 | 1 => create(path, kind),
        2 => delete(path, version),
        3 => set(path, version),
        _ => Write::Check { path: path.to_owned(), version },
    });
    prop_oneof![3 => single.clone(), 1 => prop::collection::vec(single, 0..4).prop_map(Write::Multi)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn snapshots_and_entries_read_back(writes in prop::collection::vec((any_write(), 0..12u8), 0..60)) {
        let mut bench = Bench::new();
        for (write, dice) in writes {
            let command = match dice {
                0 => Command::Expire { session: bench.session, epoch: 0 },
                _ => bench.command(vec![], write),
            };
            let entry = Entry { time_ms: bench.time_ms, command };
            let read = Entry::decode(&entry.encode()).expect("ours");
            prop_assert_eq!(&read, &entry);
            bench.tree.apply(&read);
            if dice == 0 {
                bench.session = bench.begin();
            }
            let paths = bench.tree.ephemerals(bench.session, "/");
            prop_assert_eq!(paths.len(), bench.tree.ephemeral_count());
        }
        let restored = Tree::restore(&bench.tree.snapshot()).expect("whole");
        prop_assert_eq!(restored.digest(), bench.tree.digest());
        prop_assert_eq!(restored.zxid(), bench.tree.zxid());
        prop_assert_eq!(restored.data_bytes(), bench.tree.data_bytes());
        prop_assert_eq!(restored.ephemeral_count(), bench.tree.ephemeral_count());
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Entry::decode(&bytes);
        let _ = Tree::restore(&bytes);
    }
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let mut bytes = Bench::new().tree.snapshot();
    assert_eq!(Tree::restore(&bytes).map(|tree| tree.zxid()), Ok(Zxid::new(1)));
    bytes[9] ^= 1;
    assert!(Tree::restore(&bytes).is_err());
}

#[test]
fn ephemeral_nodes_linger_when_their_session_expires_and_asked_for_it() {
    let mut bench = Bench::new();
    let other = bench.session;
    bench.session = bench.begin();
    let wish = |data: &'static [u8]| Write::SetData {
        path: super::LINGER.to_owned(),
        data: Some(Bytes::from_static(data)),
        version: -1,
    };
    for wrong in [&b"60001"[..], b"-1", b"", b"soon"] {
        assert_eq!(bench.write(wish(wrong)), Err(ErrorCode::BAD_ARGUMENTS));
    }
    bench.write(wish(b"500")).expect("a wish");
    assert_eq!(bench.tree.linger(bench.session).0, "500");
    assert_eq!(bench.tree.linger(other).0, "0");
    for path in ["/a", "/b"] {
        bench.create(path, CreateKind::Ephemeral).expect("a node");
    }
    let (dead, epoch) = (bench.session, bench.tree.epoch());
    let applied = bench.apply(Command::Expire { session: dead, epoch });
    assert_eq!((applied.events, applied.ended), (vec![], vec![dead]));
    let ends = bench.time_ms + 500;
    assert_eq!(bench.tree.stat("/a").expect("it lingers").ephemeral_owner, dead);
    bench.session = other;
    assert_eq!(bench.create("/a/x", CreateKind::Persistent), Err(ErrorCode::NO_CHILDREN_FOR_EPHEMERALS));
    assert_eq!(bench.create("/a", CreateKind::Ephemeral), Err(ErrorCode::NODE_EXISTS));
    bench.tree = Tree::restore(&bench.tree.snapshot()).expect("a snapshot");
    // Whoever may delete it needs not wait.
    bench.write(Write::Delete { path: "/b".to_owned(), version: -1 }).expect("gone");
    assert_eq!(bench.tree.lingered(ends - 1, 9), Vec::<String>::new());
    assert_eq!(bench.tree.lingered(ends, 9), ["/a"]);
    let early = bench.apply(Command::Remove { path: "/a".to_owned() });
    assert_eq!(early.outcome, Err(ErrorCode::NOT_EMPTY));
    bench.time_ms = ends;
    bench.apply(Command::Remove { path: "/a".to_owned() }).outcome.expect("it goes");
    assert_eq!((bench.tree.stat("/a"), bench.tree.lingered(i64::MAX, 9)), (None, vec![]));
}

#[test]
fn a_session_that_says_goodbye_leaves_nothing_to_linger() {
    let mut bench = Bench::new();
    let data = Some(Bytes::from_static(b"500"));
    bench.write(Write::SetData { path: super::LINGER.to_owned(), data, version: -1 }).expect("a wish");
    bench.create("/a", CreateKind::Ephemeral).expect("a node");
    let stamp = bench.tree.attachment(bench.session).expect("a session");
    bench.apply(Command::Close { session: bench.session, stamp }).outcome.expect("closed");
    assert_eq!(bench.tree.stat("/a"), None);
}
