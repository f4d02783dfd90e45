//! Chubby's services of the client library, on our coordinator and on a real ZooKeeper: locks, semaphores,
//! elections and sequencers, kazoo among the contenders, leases in jeopardy, lock-delay.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use loggos_client::lock::{
    Guard, Highest, LeaseState, LockError, LockOptions, LockService, Mode, SequencerError,
};
use loggos_client::registry::{Op, RegistryError};
use tempfile::TempDir;

use crate::process::{DEADLINE, binary, loggos, loggos_ok};
use crate::zookeeper::ZooKeeper;

/// Too short for anything that isn't free.
const IMPATIENT: Duration = Duration::from_millis(300);

/// A coordination server of ours, alone.
struct Coordinator {
    child: Option<Child>,
    port: u16,
    dir: TempDir,
}

impl Coordinator {
    fn start() -> Self {
        let dir = TempDir::with_prefix("loggos-locks-").expect("a temporary directory");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let mut coordinator = Self { child: None, port, dir };
        coordinator.run();
        coordinator
    }

    fn run(&mut self) {
        let child = Command::new(binary())
            .args(["coordinator", "--data-dir"])
            .arg(self.dir.path())
            .args(["--coordinator-listen", &self.address()])
            .args(["--peer-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        self.child = Some(child);
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(self.address()).is_err() {
            assert!(Instant::now() < deadline, "the coordinator isn't up");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("a killable child");
        child.wait().expect("a killed child ends");
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A wire that can be cut.
struct Wire {
    address: String,
    ends: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Wire {
    fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let ends = Arc::new(Mutex::new(Some(Vec::new())));
        let kept = Arc::clone(&ends);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let mut ends = kept.lock().expect("no panic under the lock");
                // Cut for good: whoever comes is turned away.
                let Some(ends) = ends.as_mut() else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().expect("a clone"), to.try_clone().expect("a clone"));
                    std::thread::spawn(move || pump(from, to));
                }
                ends.extend([client, server]);
            }
        });
        Self { address, ends }
    }

    fn cut(&self) {
        for end in self.ends.lock().expect("no panic under the lock").take().into_iter().flatten() {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count) = from.read(&mut buffer)
        && count > 0
        && to.write_all(&buffer[..count]).is_ok()
    {}
    let _ = to.shutdown(Shutdown::Both);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

async fn service(address: &str) -> LockService {
    LockService::connect(address, LockOptions::default()).await.expect("a service")
}

/// What `work` gives, if it does so in time.
async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// All that any ensemble serves.
async fn everything(address: &str) {
    let (one, two) = (service(address).await, service(address).await);
    locks(&one, &two).await;
    sequencers(&one, &two).await;
    semaphores(&one, &two).await;
    elections(one, &two).await;
}

async fn locks(one: &LockService, two: &LockService) {
    let (mine, theirs) = (one.lock("/locks/a").expect("a lock"), two.lock("/locks/a").expect("a lock"));
    let held = mine.acquire(Mode::Exclusive, b"one", DEADLINE).await.expect("free");
    assert!(held.is_held());
    // A held lock is nobody's obstacle but that of who wants the same lock.
    let read = two.session().get("/locks/a").await.expect("readable").expect("there");
    two.session().set("/locks/a", b"data", Some(read.version)).await.expect("writable");
    assert_eq!(one.session().get("/locks/a").await.expect("readable").expect("there").data, b"data");
    for mode in [Mode::Exclusive, Mode::Shared] {
        let refused = theirs.acquire(mode, b"two", IMPATIENT).await;
        assert!(matches!(refused, Err(LockError::Timeout)), "{:?}", refused.err());
    }
    assert_eq!(
        one.session().children("/locks/a").await.expect("a list").len(),
        1,
        "who gave up left the queue"
    );
    let waiting = tokio::spawn(async move { theirs.acquire(Mode::Shared, b"two", DEADLINE).await });
    held.release().await;
    let shared = waiting.await.expect("no panic").expect("its turn");
    let beside = mine.acquire(Mode::Shared, b"one", DEADLINE).await.expect("shared");
    assert!(matches!(mine.acquire(Mode::Exclusive, b"one", IMPATIENT).await, Err(LockError::Timeout)));
    shared.release().await;
    // Dropped is given back too.
    drop(beside);
    let alone = mine.acquire(Mode::Exclusive, b"one", DEADLINE).await.expect("free");
    // Somebody removes the node by hand: the holder learns of it.
    two.session().delete(&alone.sequencer().path()).await.expect("deleted");
    within("the loss", alone.lost()).await;
    assert!(!alone.is_held());
    assert!(matches!(one.lock(&format!("/{}", "x".repeat(300))), Err(LockError::PathTooLong { .. })));
}

async fn sequencers(one: &LockService, two: &LockService) {
    let lock = one.lock("/locks/guarded").expect("a lock");
    let first = lock.acquire(Mode::Exclusive, b"", DEADLINE).await.expect("free");
    let (old, mut highest) = (first.sequencer().clone(), Highest::default());
    assert_eq!(old.to_string().parse(), Ok(old.clone()));
    highest.admit(&old).expect("the first");
    let guard = Guard::watch(two, old.clone()).await.expect("looked").expect("it holds");
    assert!(guard.holds());
    two.session().create_if_absent("/guarded", b"").await.expect("made");
    let write =
        |check: Op| vec![check, Op::Set { path: "/guarded".to_owned(), data: vec![1], version: None }];
    two.session().multi(&write(old.check())).await.expect("a holder's write");
    first.release().await;
    let second = lock.acquire(Mode::Exclusive, b"", DEADLINE).await.expect("free");
    let new = second.sequencer().clone();
    assert!(new.generation > old.generation);
    within("the guard's end", async {
        while guard.holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(Guard::watch(two, old.clone()).await.expect("looked").is_none());
    highest.admit(&new).expect("the second");
    assert!(matches!(highest.admit(&old), Err(SequencerError::Stale { .. })));
    let refused = two.session().multi(&write(old.check())).await.expect_err("it holds it no more");
    assert!(matches!(refused.root(), RegistryError::Absent), "{refused}");
    two.session().multi(&write(new.check())).await.expect("a holder's write");
}

async fn semaphores(one: &LockService, two: &LockService) {
    let (mine, theirs) =
        (one.semaphore("/places", 2).expect("one"), two.semaphore("/places", 2).expect("one"));
    let first = mine.acquire(b"one", DEADLINE).await.expect("a place");
    let second = theirs.acquire(b"two", DEADLINE).await.expect("another");
    assert!(first.is_held() && second.is_held());
    assert!(matches!(mine.acquire(b"one", IMPATIENT).await, Err(LockError::Timeout)));
    let other = two.semaphore("/places", 3).expect("one").acquire(b"", IMPATIENT).await;
    assert!(matches!(other, Err(LockError::Places { found: 2, wanted: 3 })));
    let waiting = tokio::spawn(async move { theirs.acquire(b"two", DEADLINE).await });
    first.release().await.expect("given back");
    let third = waiting.await.expect("no panic").expect("its place");
    third.release().await.expect("given back");
    drop(second);
}

async fn elections(one: LockService, two: &LockService) {
    let (mine, theirs) = (one.election("/chair").expect("one"), two.election("/chair").expect("one"));
    assert_eq!(theirs.leader().await.expect("nobody"), None);
    let follower = {
        let theirs = theirs.clone();
        tokio::spawn(async move { theirs.next_leader(None, DEADLINE).await })
    };
    let chair = mine.lead(b"host-1:99", DEADLINE).await.expect("elected");
    let leader = follower.await.expect("no panic").expect("a leader");
    assert_eq!(leader.location, b"host-1:99");
    let next = {
        let theirs = theirs.clone();
        tokio::spawn(async move { theirs.lead(b"host-2:99", DEADLINE).await })
    };
    // The first one's session ends, and its leadership with it.
    drop((chair, mine, one));
    let chair = next.await.expect("no panic").expect("elected in its place");
    let found = theirs.next_leader(Some(&leader), DEADLINE).await.expect("a leader");
    assert_eq!(found.location, b"host-2:99");
    chair.release().await;
}

#[test]
fn locks_semaphores_elections_and_sequencers_work_on_our_coordinator() {
    let coordinator = Coordinator::start();
    runtime().block_on(everything(&coordinator.address()));
    runtime().block_on(everything(&format!("{}/some/where", coordinator.address())));
}

#[test]
fn locks_semaphores_elections_and_sequencers_work_on_a_real_zookeeper() {
    let Some(zookeeper) = ZooKeeper::start() else { return };
    runtime().block_on(everything(&zookeeper.address()));
}

#[test]
fn kazoo_contends_for_the_same_locks() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/peers/python/bin/python");
    if !python.exists() {
        return eprintln!("skipped: kazoo isn't there (make setup installs it)");
    }
    let coordinator = Coordinator::start();
    let kazoo = |pairs: &[&str]| {
        let output = Command::new(&python)
            .arg(root.join("tests/interop/python/kazoo_contends.py"))
            .arg(coordinator.address())
            .args(pairs)
            .output()
            .expect("python runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let all = ["WriteLock", "/shared/lock", "ReadLock", "/shared/lock", "Semaphore", "/shared/places"];
    let runtime = runtime();
    runtime.block_on(async {
        let service = service(&coordinator.address()).await;
        let lock = service.lock("/shared/lock").expect("a lock");
        let semaphore = service.semaphore("/shared/places", 2).expect("one");
        let held = lock.acquire(Mode::Exclusive, b"ours", DEADLINE).await.expect("free");
        let places = (
            semaphore.acquire(b"", DEADLINE).await.expect("one"),
            semaphore.acquire(b"", DEADLINE).await.expect("two"),
        );
        let said = tokio::task::block_in_place(|| kazoo(&all));
        assert_eq!(
            said,
            "busy WriteLock /shared/lock\nbusy ReadLock /shared/lock\nbusy Semaphore /shared/places\n"
        );
        held.release().await;
        places.0.release().await.expect("given back");
        let reader = lock.acquire(Mode::Shared, b"ours", DEADLINE).await.expect("free");
        let said = tokio::task::block_in_place(|| kazoo(&all));
        assert!(said.starts_with("busy WriteLock /shared/lock\ntaken ReadLock /shared/lock\n"), "{said}");
        assert!(said.contains("contenders ours kazoo\n"), "{said}");
        assert!(said.ends_with("taken Semaphore /shared/places\n"), "{said}");
        reader.release().await;
        assert!(tokio::task::block_in_place(|| kazoo(&all)).starts_with("taken WriteLock /shared/lock\n"));
    });
}

/// Waits until the lease of `service` is as wanted.
async fn lease(service: &LockService, wanted: LeaseState) {
    let mut lease = service.lease();
    within("the lease", lease.wait_for(|view| view.state == wanted)).await.expect("a keeper");
}

#[test]
fn a_lock_survives_an_ensemble_that_was_away_for_longer_than_the_session() {
    let mut coordinator = Coordinator::start();
    runtime().block_on(async {
        let timeout = Duration::from_secs(1);
        let options = LockOptions { session_timeout: timeout, ..LockOptions::default() };
        let service = LockService::connect(&coordinator.address(), options).await.expect("a service");
        let lock = service.lock("/locks/a").expect("a lock");
        let held = lock.acquire(Mode::Exclusive, b"", DEADLINE).await.expect("free");
        let before = held.sequencer().clone();
        coordinator.kill();
        lease(&service, LeaseState::Jeopardy).await;
        assert!(!held.is_held(), "nothing is sure in jeopardy");
        // By now the client library has given the session up.
        tokio::time::sleep(timeout * 2).await;
        coordinator.run();
        lease(&service, LeaseState::Safe).await;
        assert_eq!(service.lease().borrow().generation, 0, "the same session");
        assert!(held.is_held());
        let names = service.session().children("/locks/a").await.expect("a list");
        assert_eq!(names, [before.holder], "nobody queued up twice");
        held.release().await;
        lock.acquire(Mode::Exclusive, b"", DEADLINE).await.expect("free");
    });
}

#[test]
fn a_holder_that_is_cut_off_learns_of_it_and_its_lock_lingers() {
    let coordinator = Coordinator::start();
    let wire = Wire::to(coordinator.address());
    runtime().block_on(async {
        let (timeout, linger) = (Duration::from_secs(1), Duration::from_secs(3));
        let options = LockOptions { session_timeout: timeout, grace: Duration::from_secs(2), linger };
        let lonely = LockService::connect(&wire.address, options).await.expect("a service");
        let held = lonely.lock("/locks/a").expect("a lock").acquire(Mode::Exclusive, b"", DEADLINE).await;
        let held = held.expect("free");
        let other = service(&coordinator.address()).await;
        wire.cut();
        let cut = Instant::now();
        lease(&lonely, LeaseState::Jeopardy).await;
        let lock = other.lock("/locks/a").expect("a lock");
        let taken = lock.acquire(Mode::Exclusive, b"", DEADLINE).await.expect("free in the end");
        assert!(cut.elapsed() >= linger, "it was taken {:?} after the cut", cut.elapsed());
        assert!(taken.sequencer().generation > held.sequencer().generation);
        within("the holder's loss", held.lost()).await;
        assert_eq!(lonely.lease().borrow().state, LeaseState::Expired);
    });
}

#[test]
fn the_tree_is_shown_as_files() {
    let coordinator = Coordinator::start();
    let address = coordinator.address();
    let registry =
        |arguments: &[&str]| loggos_ok(&[&["registry"], arguments, &["--coordinator", &address]].concat());
    assert_eq!(registry(&["ls", "/"]), "zookeeper\n");
    let refused = loggos(&["registry", "get", "/a/b", "--coordinator", &address]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("/a/b: there is no such node"), "{refused:?}");
    assert_eq!(registry(&["set", "/a/b", "one", "--create"]), "");
    assert_eq!(registry(&["get", "/a/b/"]), "one\n");
    assert_eq!(registry(&["set", "/a/b", "two", "--version", "1"]), "");
    let refused = loggos(&["registry", "set", "/a/b", "three", "--version", "1", "--coordinator", &address]);
    assert!(!refused.status.success());
    assert!(registry(&["ls", "/a", "--long"]).contains(" v2 "), "{}", registry(&["ls", "/a", "--long"]));
    let mut watching = Command::new(binary())
        .args(["registry", "watch", "/a", "--count", "2", "--coordinator", &address])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // It says nothing when it begins: so we write until it has seen enough.
    let deadline = Instant::now() + DEADLINE;
    while watching.try_wait().expect("a child to ask").is_none() {
        assert!(Instant::now() < deadline, "it sees nothing");
        registry(&["set", "/a/b", "more"]);
    }
    let output = watching.wait_with_output().expect("an output");
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(text.lines().filter(|line| line.ends_with(" /a/b")).count(), 2, "{text}");
}
