//! Starts, kills and stops the real binary.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A server that isn't up by then never will be.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Time for a clean stop, and for any other condition that a test waits for.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("LOGGOS_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_loggos")), PathBuf::from)
}

/// `loggos` with `arguments`, run to its end.
pub fn loggos(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).stdin(Stdio::null()).output().expect("the binary starts")
}

/// `loggos` with `arguments`, which must succeed; what it printed.
pub fn loggos_ok(arguments: &[&str]) -> String {
    let output = loggos(arguments);
    assert!(
        output.status.success(),
        "loggos {arguments:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// A running `loggos serve`.
pub struct Server {
    child: Option<Child>,
    data_dir: PathBuf,
    extra: Vec<String>,
    addresses: Addresses,
    _own: Option<TempDir>,
}

/// What `addresses.json` says.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Addresses {
    pub kafka: SocketAddr,
    pub coordinator: Option<SocketAddr>,
    pub http: SocketAddr,
}

impl Server {
    /// Starts one on free ports and a new directory.
    pub fn start(extra: &[&str]) -> Self {
        let own = TempDir::with_prefix("loggos-e2e-").expect("a temporary directory");
        let data_dir = own.path().join("data");
        let mut server = Self::start_in(&data_dir, extra);
        server._own = Some(own);
        server
    }

    /// Starts one on free ports and this directory.
    pub fn start_in(data_dir: &Path, extra: &[&str]) -> Self {
        let extra: Vec<String> = extra.iter().map(|&argument| argument.to_owned()).collect();
        let (child, addresses) = launch(data_dir, &extra, None);
        Self { child: Some(child), data_dir: data_dir.to_owned(), extra, addresses, _own: None }
    }

    /// `host:port` for Kafka clients.
    pub fn bootstrap(&self) -> String {
        self.addresses.kafka.to_string()
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Where it keeps everything.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// SIGKILL: nothing is flushed, no goodbye.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running server");
        child.kill().expect("a killable child");
        child.wait().expect("a killed child ends");
    }

    /// Sends a signal to the process, such as STOP and CONT for a pause.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().expect("a running server"));
        rustix::process::kill_process(pid, signal).expect("a signal to our own child");
    }

    /// SIGSTOP: it stands still, its connections open.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// SIGTERM, and the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        let mut child = self.child.take().expect("a running server");
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = child.try_wait().expect("a child to ask") {
                return status.code();
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("the server didn't stop within {DEADLINE:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it again, on the same directory and the same ports.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// The same with other options in place of the first ones, where any are given.
    pub fn restart_with(&mut self, extra: &[&str]) {
        assert!(self.child.is_none(), "stop or kill it first");
        if !extra.is_empty() {
            self.extra = extra.iter().map(|&argument| argument.to_owned()).collect();
        }
        let (child, addresses) = launch(&self.data_dir, &self.extra, Some(&self.addresses));
        self.child = Some(child);
        self.addresses = addresses;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a server listens on for others that it isn't told of.
const ANY_PEER_PORT: [&str; 2] = ["--peer-listen", "127.0.0.1:0"];

fn launch(data_dir: &Path, extra: &[String], again: Option<&Addresses>) -> (Child, Addresses) {
    let _ = fs::remove_file(data_dir.join("addresses.json"));
    let kafka = again.map_or_else(|| "127.0.0.1:0".to_owned(), |addresses| addresses.kafka.to_string());
    let coordinator = again.and_then(|addresses| addresses.coordinator);
    let coordinator = coordinator.map_or_else(|| "127.0.0.1:0".to_owned(), |address| address.to_string());
    let mut child = Command::new(binary())
        .args(["serve", "--data-dir"])
        .arg(data_dir)
        .args(["--listen", &kafka, "--coordinator-listen", &coordinator])
        .args(["--http-listen", "127.0.0.1:0"])
        .args(if extra.iter().any(|given| given == "--peer-listen") { &[][..] } else { &ANY_PEER_PORT })
        .args(extra)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let log = forward_log(&mut child);
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        if let Some(addresses) = read_addresses(data_dir) {
            return (child, addresses);
        }
        if let Some(status) = child.try_wait().expect("a child to ask") {
            let said = log.join().unwrap_or_default();
            panic!("the server ended with {status} before it was up: {said}");
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("the server wasn't up within {START_DEADLINE:?}: {}", log.join().unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read_addresses(data_dir: &Path) -> Option<Addresses> {
    let text = fs::read_to_string(data_dir.join("addresses.json")).ok()?;
    serde_json::from_str(&text).ok()
}

/// Keeps the child's pipe empty; its last lines are there when a start fails.
fn forward_log(child: &mut Child) -> std::thread::JoinHandle<String> {
    let pipe = child.stderr.take().expect("stderr is piped");
    let echo = std::env::var_os("LOGGOS_E2E_LOG").is_some();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if echo {
                eprintln!("{line}");
            }
            kept.push(line);
            if kept.len() > 200 {
                kept.remove(0);
            }
        }
        kept.join("\n")
    })
}

/// A port that nobody has, below those that the system gives to whoever asks for any: a server that is restarted
/// finds its own again.
pub fn free_port() -> u16 {
    static NEXT: std::sync::OnceLock<std::sync::atomic::AtomicU16> = std::sync::OnceLock::new();
    let first = 12_000 + (std::process::id() % 180) as u16 * 100;
    let next = NEXT.get_or_init(|| first.into());
    loop {
        let port = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until `condition` holds, and panics with `what` after the deadline.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One HTTP GET on the operations port: status and body.
pub fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
    use std::io::Write;
    let mut socket = std::net::TcpStream::connect(address).expect("the HTTP port answers");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    write!(socket, "GET {path} HTTP/1.1\r\nHost: loggos\r\nConnection: close\r\n\r\n").expect("a request");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    (status, body)
}

/// A program that a test needs, or a sentence that says why the test is skipped.
pub fn have(program: &str) -> bool {
    let found = Command::new("which").arg(program).output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: {program} isn't installed (make setup installs it)");
    }
    found
}

/// Whether this process may mount images and make network namespaces.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root, to mount an image");
    }
    root
}
