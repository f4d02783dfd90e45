//! Three coordination servers as real processes: they form a cell, and whatever happens to one of them, no write
//! that was acknowledged is lost and no session ends that was in time.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use zookeeper_client::{Acls, Client, CreateMode, Error};

use crate::process::{DEADLINE, binary, eventually, free_port, http_get, loggos, loggos_ok};

/// A node that stays and that anybody may change.
pub const OPEN: zookeeper_client::CreateOptions<'static> =
    CreateMode::Persistent.with_acls(Acls::anyone_all());

/// One server's process.
pub struct Node {
    child: Option<Child>,
    dir: PathBuf,
    /// What runs the binary, such as another network's namespace.
    wrapper: Vec<String>,
    arguments: Vec<String>,
    pub client: String,
    peer: String,
    http: String,
}

impl Node {
    fn new(dir: PathBuf, extra: &[String], peer: String) -> Self {
        let (client, http) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let bulk = format!("127.0.0.1:{}", free_port());
        let mut arguments: Vec<String> =
            ["coordinator", "--coordinator-listen", &client, "--peer-listen", &peer]
                .map(str::to_owned)
                .to_vec();
        arguments.extend(["--bulk-listen", &bulk, "--http-listen", &http].map(str::to_owned));
        arguments.extend_from_slice(extra);
        Self { child: None, dir, wrapper: Vec::new(), arguments, client, peer, http }
    }

    /// A server on a host of its own, which is a network namespace, at the default ports.
    fn in_namespace(dir: PathBuf, servers: &str, host: &str, namespace: &str) -> Self {
        let at = |port: u16| format!("{host}:{port}");
        let (client, peer, http) = (at(2181), at(2888), at(9644));
        let arguments = [
            "coordinator",
            "--coordinator-listen",
            &client,
            "--peer-listen",
            &peer,
            "--http-listen",
            &http,
            "--servers",
            servers,
        ]
        .map(str::to_owned)
        .to_vec();
        let wrapper = ["ip", "netns", "exec", namespace].map(str::to_owned).to_vec();
        Self { child: None, dir, wrapper, arguments, client, peer, http }
    }

    /// Starts the process, and waits for nothing.
    pub fn start(&mut self) {
        let log = match std::env::var_os("LOGGOS_E2E_LOG") {
            Some(_) => Stdio::inherit(),
            None => Stdio::null(),
        };
        let mut command = match self.wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(binary());
                command
            }
            None => Command::new(binary()),
        };
        let child = command
            .args(&self.arguments)
            .arg("--data-dir")
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        self.child = Some(child);
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a running server");
        kill_process(Pid::from_child(child), signal).expect("a signal to our own child");
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running server");
        child.kill().expect("a killable child");
        child.wait().expect("a killed child ends");
    }

    fn stop(&mut self) {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("a running server");
        let deadline = Instant::now() + DEADLINE;
        while child.try_wait().expect("a child to ask").is_none() {
            assert!(Instant::now() < deadline, "the server didn't stop within {DEADLINE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What a four-letter word says; nothing if the server doesn't answer.
    fn ask(&self, word: &str) -> String {
        use std::io::{Read, Write};
        let address = self.client.parse().expect("an address");
        let Ok(mut socket) = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
            return String::new();
        };
        let mut answer = String::new();
        let _ = socket.set_read_timeout(Some(Duration::from_secs(1)));
        let _ = socket.write_all(word.as_bytes()).and_then(|()| socket.read_to_string(&mut answer));
        answer
    }

    pub fn mode(&self) -> String {
        let answer = self.ask("srvr");
        answer.lines().find_map(|line| line.strip_prefix("Mode: ")).unwrap_or_default().to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The servers of one cell.
pub struct Cell {
    pub nodes: Vec<Node>,
    dir: TempDir,
}

impl Cell {
    /// Three servers that form a cell.
    pub fn form(extra: &[&str]) -> Self {
        let dir = TempDir::with_prefix("loggos-cell-").expect("a temporary directory");
        let peers: Vec<String> = (0..3).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let mut arguments = vec!["--servers".to_owned(), peers.join(",")];
        arguments.extend(extra.iter().map(|&argument| argument.to_owned()));
        let nodes = peers
            .iter()
            .enumerate()
            .map(|(at, peer)| Node::new(dir.path().join(format!("server{at}")), &arguments, peer.clone()));
        let mut cell = Self { nodes: nodes.collect(), dir };
        cell.nodes.iter_mut().for_each(Node::start);
        cell.wait_for_leader();
        cell
    }

    /// Three servers on hosts of their own, one namespace each.
    pub fn form_in(hosts: &[String], namespaces: &[String]) -> Self {
        let dir = TempDir::with_prefix("loggos-cell-").expect("a temporary directory");
        let servers = hosts.iter().map(|host| format!("{host}:2888")).collect::<Vec<_>>().join(",");
        let node = |(at, (host, namespace)): (usize, (&String, &String))| {
            Node::in_namespace(dir.path().join(format!("server{at}")), &servers, host, namespace)
        };
        let nodes = hosts.iter().zip(namespaces).enumerate().map(node).collect();
        let mut cell = Self { nodes, dir };
        cell.nodes.iter_mut().for_each(Node::start);
        cell.wait_for_leader();
        cell
    }

    fn running(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, node)| node.child.is_some())
    }

    fn leader(&self) -> Option<usize> {
        self.running().find(|(_, node)| node.mode() == "leader").map(|(at, _)| at)
    }

    pub fn wait_for_leader(&self) -> usize {
        let mut leader = None;
        eventually("a leader is there", || {
            leader = self.leader();
            leader.is_some()
        });
        leader.expect("just found")
    }

    /// All client addresses.
    pub fn addresses(&self) -> String {
        self.nodes.iter().map(|node| node.client.as_str()).collect::<Vec<_>>().join(",")
    }

    /// Waits until all running servers show the same tree.
    pub fn wait_for_agreement(&self) {
        eventually("all servers hold the same", || {
            let hashes: std::collections::BTreeSet<String> =
                self.running().map(|(_, node)| node.ask("hash")).collect();
            hashes.len() == 1 && !hashes.contains("")
        });
    }
}

/// A client with a session.
pub async fn connect(addresses: &str) -> Client {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let connector = Client::connector().with_session_timeout(Duration::from_secs(6)).connect(addresses);
        match connector.await {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "no session within {DEADLINE:?}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Writes numbered nodes without a pause, and remembers which were acknowledged.
pub struct Writer {
    stop: tokio::sync::watch::Sender<bool>,
    task: tokio::task::JoinHandle<(Client, Written)>,
    count: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

/// What a writer has seen.
pub struct Written {
    pub acknowledged: Vec<String>,
    /// The longest time between two acknowledgements.
    pub gap: Duration,
}

impl Writer {
    /// Begins to write.
    pub fn start(client: Client, folder: &'static str) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = count.clone();
        let task = tokio::spawn(async move {
            while !matches!(client.create(folder, b"", &OPEN).await, Ok(_) | Err(Error::NodeExists)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut written = Written { acknowledged: Vec::new(), gap: Duration::ZERO };
            let (mut number, mut last) = (0u64, Instant::now());
            while !*stopped.borrow() {
                number += 1;
                let path = format!("{folder}/{number:08}");
                match client.create(&path, path.as_bytes(), &OPEN).await {
                    Ok(_) | Err(Error::NodeExists) => {
                        written.gap = written.gap.max(last.elapsed());
                        last = Instant::now();
                        written.acknowledged.push(path);
                        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                    Err(error @ (Error::SessionExpired | Error::NoAuth | Error::NoNode)) => panic!("{error}"),
                    // It may have taken effect, or not: the next number tells nothing about this one.
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
            (client, written)
        });
        Self { stop, task, count }
    }

    /// Waits until so many more are acknowledged.
    pub async fn wait_for(&self, more: usize) {
        let wanted = self.count.load(std::sync::atomic::Ordering::Relaxed) + more;
        let deadline = Instant::now() + DEADLINE;
        while self.count.load(std::sync::atomic::Ordering::Relaxed) < wanted {
            assert!(!self.task.is_finished(), "the writer has ended");
            assert!(Instant::now() < deadline, "writes don't go on within {DEADLINE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops writing.
    pub async fn end(self) -> (Client, Written) {
        self.stop.send(true).expect("a writer");
        self.task.await.expect("it ends well")
    }
}

/// Every acknowledged node is there, on each server.
pub async fn check(cell: &Cell, folder: &str, written: &Written) {
    for (at, node) in cell.running() {
        let client = connect(&node.client).await;
        client.sync("/").await.expect("a barrier");
        let (names, _) = client.get_children(folder).await.expect("the folder");
        let names: std::collections::BTreeSet<String> = names.into_iter().collect();
        for path in &written.acknowledged {
            let name = path.rsplit('/').next().expect("a name");
            assert!(names.contains(name), "server {at} has lost {path}, which was acknowledged");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_when_leaders_are_killed_and_come_back() {
    let mut cell = Cell::form(&[]);
    let owner = connect(&cell.addresses()).await;
    let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    owner.create("/mine", b"", &ephemeral).await.expect("a new node");
    let writer = Writer::start(connect(&cell.addresses()).await, "/kills");
    writer.wait_for(100).await;
    for _ in 0..3 {
        let leader = cell.wait_for_leader();
        cell.nodes[leader].kill();
        writer.wait_for(100).await;
        cell.nodes[leader].start();
        writer.wait_for(50).await;
    }
    let (_client, written) = writer.end().await;
    eprintln!("{} writes, the longest pause {:?}", written.acknowledged.len(), written.gap);
    cell.wait_for_agreement();
    check(&cell, "/kills", &written).await;
    assert!(owner.check_stat("/mine").await.expect("the session lives").is_some(), "the session was in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_paused_gives_way_and_follows_when_it_wakes() {
    let cell = Cell::form(&[]);
    let writer = Writer::start(connect(&cell.addresses()).await, "/pauses");
    writer.wait_for(100).await;
    for _ in 0..3 {
        let leader = cell.wait_for_leader();
        cell.nodes[leader].signal(Signal::STOP);
        writer.wait_for(50).await;
        cell.nodes[leader].signal(Signal::CONT);
        writer.wait_for(50).await;
    }
    let (_client, written) = writer.end().await;
    eprintln!("{} writes, the longest pause {:?}", written.acknowledged.len(), written.gap);
    cell.wait_for_agreement();
    check(&cell, "/pauses", &written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_ends_no_session_and_a_restart_of_all_forgets_nothing() {
    let mut cell = Cell::form(&[]);
    let owner = connect(&cell.addresses()).await;
    let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    owner.create("/mine", b"", &ephemeral).await.expect("a new node");
    let writer = Writer::start(connect(&cell.addresses()).await, "/rolling");
    writer.wait_for(50).await;
    for at in 0..3 {
        cell.nodes[at].stop();
        writer.wait_for(50).await;
        cell.nodes[at].start();
        let cell = &cell;
        eventually("it follows again", || ["leader", "follower"].contains(&cell.nodes[at].mode().as_str()));
    }
    let (client, written) = writer.end().await;
    eprintln!("{} writes, the longest pause {:?}", written.acknowledged.len(), written.gap);
    check(&cell, "/rolling", &written).await;
    assert!(client.check_stat("/mine").await.expect("the session lives").is_some());
    for node in &mut cell.nodes {
        node.kill();
    }
    for node in &mut cell.nodes {
        node.start();
    }
    cell.wait_for_leader();
    check(&cell, "/rolling", &written).await;
    assert!(owner.check_stat("/mine").await.expect("the session lives").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_disk_is_lost_comes_back_as_a_new_one() {
    let mut cell = Cell::form(&[]);
    let writer = Writer::start(connect(&cell.addresses()).await, "/disk");
    writer.wait_for(50).await;
    let lost = (cell.wait_for_leader() + 1) % 3;
    cell.nodes[lost].kill();
    std::fs::remove_dir_all(&cell.nodes[lost].dir).expect("a directory to lose");
    writer.wait_for(50).await;
    cell.nodes[lost].start();
    let text = |cell: &Cell| {
        let leader = cell.leader().map(|at| cell.nodes[at].client.clone());
        let peer = cell.nodes[lost].peer.clone();
        async move {
            let client = connect(&leader?).await;
            let (data, _) = client.get_data("/zookeeper/config").await.ok()?;
            let text = String::from_utf8(data).expect("text");
            text.lines().find(|line| line.contains(&peer)).map(str::to_owned)
        }
    };
    let deadline = Instant::now() + DEADLINE;
    loop {
        let line = text(&cell).await.unwrap_or_default();
        if line.starts_with("server.4=") && line.contains(":participant;") {
            break;
        }
        assert!(Instant::now() < deadline, "it is no voter under a new number within {DEADLINE:?}: {line}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    writer.wait_for(50).await;
    // The new voter counts: with it, one of the old ones may go.
    let other =
        (0..3).find(|at| *at != lost && cell.nodes[*at].mode() != "leader").expect("another follower");
    cell.nodes[other].kill();
    writer.wait_for(50).await;
    let (_client, written) = writer.end().await;
    cell.wait_for_agreement();
    check(&cell, "/disk", &written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_its_own_grows_to_three() {
    let dir = TempDir::with_prefix("loggos-cell-").expect("a temporary directory");
    let peer = || format!("127.0.0.1:{}", free_port());
    let first = Node::new(dir.path().join("server0"), &[], peer());
    let mut cell = Cell { nodes: vec![first], dir };
    cell.nodes[0].start();
    let single = &cell.nodes[0];
    eventually("it serves alone", || single.mode() == "standalone");
    let writer = Writer::start(connect(&cell.addresses()).await, "/growth");
    writer.wait_for(50).await;
    let join = ["--join".to_owned(), cell.nodes[0].peer.clone()];
    for at in 1..3 {
        let mut node = Node::new(cell.dir.path().join(format!("server{at}")), &join, peer());
        node.start();
        cell.nodes.push(node);
    }
    eventually("all three vote", || {
        let modes: Vec<String> = cell.nodes.iter().map(Node::mode).collect();
        modes.iter().filter(|mode| *mode == "follower").count() == 2
            && modes.iter().any(|mode| mode == "leader")
    });
    writer.wait_for(50).await;
    let (_client, written) = writer.end().await;
    cell.wait_for_agreement();
    check(&cell, "/growth", &written).await;
    let leader = cell.wait_for_leader();
    cell.nodes[leader].kill();
    cell.wait_for_leader();
    check(&cell, "/growth", &written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_see_the_cell_and_change_it() {
    let mut cell = Cell::form(&[]);
    let leader = cell.wait_for_leader();
    let http = cell.nodes[leader].http.clone();
    let status = loggos_ok(&["coordinator", "status", "--http", &http]);
    assert!(status.contains("leader") && status.contains(&cell.nodes[leader].client), "{status}");
    let other = (leader + 1) % 3;
    let number = (other + 1).to_string();
    // Any server passes the wish on to the leader.
    loggos_ok(&["coordinator", "transfer", &number, "--http", &cell.nodes[other].http]);
    eventually("the other one leads", || cell.nodes[other].mode() == "leader");
    let peer = format!("127.0.0.1:{}", free_port());
    let join = ["--join".to_owned(), cell.nodes[leader].peer.clone()];
    let mut node = Node::new(cell.dir.path().join("server3"), &join, peer.clone());
    node.start();
    cell.nodes.push(node);
    eventually("it stands by", || cell.nodes[3].mode() == "observer");
    let line = |http: &str| {
        let members = loggos_ok(&["coordinator", "members", "--http", http]);
        members.lines().find(|line| line.contains(&peer)).map(str::to_owned)
    };
    assert!(line(&http).expect("a member").starts_with("4       learner"));
    let refused = loggos(&["coordinator", "add", "4", "--http", &http]);
    assert_eq!(refused.status.code(), Some(1), "four voters survive no more than three do");
    loggos_ok(&["coordinator", "remove", "4", "--http", &http]);
    eventually("it is gone", || line(&http).is_none());
    let (status, body) = http_get(http.parse().expect("an address"), "/commands/voting_view");
    assert!(status == 200 && body.contains(&cell.nodes[other].client), "{body}");
    let (status, body) = http_get(http.parse().expect("an address"), "/commands/monitor");
    assert!(status == 200 && body.contains("\"server_state\":\"follower\""), "{body}");
}

#[test]
fn kazoo_finds_its_recipes_in_a_cell_whose_leader_changes() {
    let interpreter = crate::clients::peers().join("python/bin/python");
    if !interpreter.exists() {
        eprintln!("skipped: no Python clients (make setup fetches them)");
        return;
    }
    let cell = Cell::form(&[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/python/kazoo_recipes.py");
    let mut kazoo = Command::new(interpreter)
        .arg(script)
        .arg(cell.addresses())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python runs");
    let mut next = 0;
    while kazoo.try_wait().expect("a child to ask").is_none() {
        std::thread::sleep(Duration::from_secs(1));
        next = next % 3 + 1;
        let http = &cell.nodes[0].http;
        // The one that leads already, or that is behind, refuses: there is another round.
        let _ = loggos(&["coordinator", "transfer", &next.to_string(), "--http", http]);
    }
    let output = kazoo.wait_with_output().expect("it has ended");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.trim_end().ends_with("ok"), "kazoo said: {said}");
}

#[test]
fn an_empty_directory_waits_for_the_others() {
    let dir = TempDir::with_prefix("loggos-cell-").expect("a temporary directory");
    let peers: Vec<String> = (0..3).map(|_| format!("127.0.0.1:{}", free_port())).collect();
    let arguments = ["--servers".to_owned(), peers.join(",")];
    let path = |at: usize| -> PathBuf { Path::new(dir.path()).join(format!("server{at}")) };
    let mut nodes: Vec<Node> =
        peers.iter().enumerate().map(|(at, peer)| Node::new(path(at), &arguments, peer.clone())).collect();
    nodes[0].start();
    nodes[2].start();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(nodes[0].mode(), "", "two of three form no cell: the third may have one already");
    nodes[1].start();
    eventually("the cell is formed", || nodes.iter().any(|node| node.mode() == "leader"));
}
