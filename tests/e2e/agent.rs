//! `loggos agent`: logrotate in its modes under a writer that never stops, an agent that is killed, brokers that are
//! away, sockets, syslog, stdin.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::{DEADLINE, Server, binary, eventually, have, http_get, loggos_ok};

/// A running agent.
struct Agent {
    child: Option<Child>,
    config: PathBuf,
    state: PathBuf,
}

#[derive(serde::Deserialize)]
struct Addresses {
    http: SocketAddr,
    listeners: Vec<String>,
}

impl Agent {
    fn start(dir: &Path, bootstrap: &str, more: &str) -> Self {
        let (config, state) = (dir.join("agent.toml"), dir.join("state"));
        let text = format!(
            "bootstrap = '{bootstrap}'\ntopic = 'logs'\nstate-dir = '{}'\nhttp-listen = '127.0.0.1:0'\nhost = 'here'\n\
             poll-ms = 50\ncommit-ms = 100\n{more}",
            state.display()
        );
        fs::write(&config, text).expect("a writable file");
        let mut agent = Self { child: None, config, state };
        agent.launch();
        agent
    }

    fn launch(&mut self) {
        let _ = fs::remove_file(self.state.join("addresses.json"));
        let mut command = Command::new(binary());
        command.arg("agent").arg("--config").arg(&self.config).stdin(Stdio::null());
        if std::env::var_os("LOGGOS_E2E_LOG").is_none() {
            command.stderr(Stdio::null());
        }
        self.child = Some(command.spawn().expect("the agent starts"));
        eventually("the agent is up", || self.state.join("addresses.json").exists());
    }

    fn kill(&mut self) {
        let mut child = self.child.take().expect("a running agent");
        child.kill().expect("a killable child");
        child.wait().expect("a killed child ends");
    }

    fn stop(&mut self) {
        let mut child = self.child.take().expect("a running agent");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal to our own child");
        assert!(child.wait().expect("it ends").success());
    }

    fn addresses(&self) -> Addresses {
        let text = fs::read_to_string(self.state.join("addresses.json")).expect("written at the start");
        serde_json::from_str(&text).expect("JSON")
    }

    fn status(&self) -> BTreeMap<String, u64> {
        let (code, body) = http_get(self.addresses().http, "/status");
        assert_eq!(code, 200);
        serde_json::from_str(&body).expect("JSON")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Numbered lines into a file, for as long as it's wanted, reopening the file when it has another inode.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(path: PathBuf, reopens: bool) -> Self {
        use std::os::unix::fs::MetadataExt;
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = std::thread::spawn(move || {
            let open = || OpenOptions::new().create(true).append(true).open(&path).expect("a writable file");
            let mut file = open();
            while !stopped.load(Ordering::Acquire) {
                let number = count.load(Ordering::Acquire);
                // A line in two halves now and then, as programs write them.
                let line =
                    format!("{number:08} a line of the writer {}\n", "x".repeat((number % 61) as usize));
                let (front, back) = line.split_at(if number % 7 == 0 { line.len() / 2 } else { 0 });
                file.write_all(front.as_bytes()).expect("writable");
                file.write_all(back.as_bytes()).expect("writable");
                count.store(number + 1, Ordering::Release);
                if number % 20 == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                    let ours = file.metadata().expect("open").ino();
                    if reopens && fs::metadata(&path).map_or(0, |metadata| metadata.ino()) != ours {
                        file = open();
                    }
                }
            }
        });
        Self { stop, written, thread: Some(thread) }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    fn end(&mut self) -> u64 {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the writer is well");
        }
        self.written()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

fn rotate(dir: &Path, directives: &str) {
    let (config, state) = (dir.join("logrotate.conf"), dir.join("logrotate.state"));
    let text = format!("{}/log/app.log {{\nrotate 100\n{directives}\n}}\n", dir.display());
    fs::write(&config, text).expect("writable");
    let mut permissions = fs::metadata(&config).expect("there").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    fs::set_permissions(&config, permissions).expect("ours");
    let output =
        Command::new("logrotate").arg("-f").arg("-s").arg(&state).arg(&config).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Everything in the topic, partition by partition.
fn shipped(bootstrap: &str) -> Vec<String> {
    let read =
        loggos_ok(&["consume", "logs", "--from", "beginning", "--stop-at-end", "--bootstrap", bootstrap]);
    read.lines().map(str::to_owned).collect()
}

fn number(line: &str) -> u64 {
    let (number, rest) = line.split_once(' ').unwrap_or_else(|| panic!("a cut line: {line:?}"));
    let number: u64 = number.parse().unwrap_or_else(|_| panic!("a cut line: {line:?}"));
    assert_eq!(rest, format!("a line of the writer {}", "x".repeat((number % 61) as usize)), "a cut line");
    number
}

/// All lines that files of the directory hold now, the compressed ones too.
fn on_disk(dir: &Path) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(dir).expect("there") {
        let path = entry.expect("an entry").path();
        let bytes = if path.extension().is_some_and(|extension| extension == "gz") {
            Command::new("zcat").arg(&path).output().expect("zcat runs").stdout
        } else {
            fs::read(&path).expect("readable")
        };
        numbers.extend(String::from_utf8(bytes).expect("text").lines().map(number));
    }
    numbers
}

/// Checks what arrived against what was written; how many arrived twice.
fn check(lines: &[String], expected: &BTreeSet<u64>) -> usize {
    let mut seen = BTreeSet::new();
    let mut firsts = Vec::new();
    for line in lines {
        let number = number(line);
        if seen.insert(number) {
            firsts.push(number);
        }
    }
    let missing: Vec<&u64> = expected.difference(&seen).take(5).collect();
    assert!(missing.is_empty(), "{} lines are missing, {missing:?}", expected.difference(&seen).count());
    assert!(firsts.is_sorted(), "lines of one file arrive in order");
    lines.len() - firsts.len()
}

/// Rotates under a writer, in several rounds; `meddle` does the rest.
fn rotation(directives: &str, reopens: bool, mut meddle: impl FnMut(u64, &mut Agent, &mut Server)) -> usize {
    let dir = TempDir::with_prefix("loggos-agent-").expect("a directory");
    fs::create_dir(dir.path().join("log")).expect("writable");
    let log = dir.path().join("log/app.log");
    let mut server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "logs", "--partitions", "1", "--bootstrap", &bootstrap]);
    let mut writer = Writer::start(log.clone(), reopens);
    eventually("the writer writes", || writer.written() > 100);
    let more = format!(
        "rotated-wait-ms = 2000\n[spool]\nafter-ms = 500\n[[files]]\npaths = ['{}']\n",
        log.display()
    );
    let mut agent = Agent::start(dir.path(), &bootstrap, &more);
    eventually("the first lines arrive", || agent.status()["records_acknowledged"] > 100);
    for round in 0..6 {
        let before = writer.written();
        eventually("the writer goes on", || writer.written() > before + 200);
        meddle(round, &mut agent, &mut server);
        if directives.contains("dateext") {
            // Names go by the second.
            std::thread::sleep(Duration::from_millis(1_100));
        }
        rotate(dir.path(), directives);
    }
    let before = writer.written();
    eventually("the writer goes on", || writer.written() > before + 200);
    let written = writer.end();
    // What logrotate itself loses between a copy and a truncation is in no file; how much that is, the machine decides.
    let expected = on_disk(&dir.path().join("log"));
    if directives.contains("copytruncate") {
        assert!(expected.len() as u64 > written / 4);
    } else {
        assert!(expected.len() as u64 > written * 9 / 10);
    }
    let last = *expected.last().expect("some");
    let deadline = Instant::now() + DEADLINE;
    loop {
        let lines = shipped(&bootstrap);
        let found: BTreeSet<u64> = lines.iter().map(|line| number(line)).collect();
        if (found.contains(&last) && expected.is_subset(&found)) || Instant::now() > deadline {
            let twice = check(&lines, &expected);
            agent.stop();
            return twice;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn every_line_arrives_once_in_each_mode_of_logrotate() {
    if !have("logrotate") {
        return;
    }
    let modes = [
        ("create", true),
        ("nocreate\ncompress", true),
        ("create\ncompress\ndelaycompress", true),
        ("create\ndateext\ndateformat -%Y%m%d-%s\nextension .log", true),
        ("copytruncate", false),
        ("copytruncate\ncompress", false),
    ];
    std::thread::scope(|scope| {
        for (directives, reopens) in modes {
            scope.spawn(move || {
                let twice = rotation(directives, reopens, |_, _, _| {});
                assert_eq!(twice, 0, "no line twice without a crash ({directives})");
            });
        }
    });
}

#[test]
fn a_killed_agent_and_absent_brokers_lose_no_line() {
    if !have("logrotate") {
        return;
    }
    for (directives, reopens) in [("create\ncompress", true), ("copytruncate", false)] {
        let twice = rotation(directives, reopens, |round, agent, server| match round % 3 {
            0 => {
                agent.kill();
                std::thread::sleep(Duration::from_millis(30 * round));
                agent.launch();
            }
            1 => {
                server.kill();
                eventually("the agent notices", || agent.status()["brokers_away"] == 1);
                server.restart();
            }
            _ => {
                agent.kill();
                agent.launch();
            }
        });
        eprintln!("{directives:?}: {twice} lines twice after kills of the agent");
    }
}

#[test]
fn brokers_that_are_away_fill_the_spool_and_find_everything_later() {
    let dir = TempDir::with_prefix("loggos-agent-").expect("a directory");
    let mut server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "logs", "--partitions", "1", "--bootstrap", &bootstrap]);
    let log = dir.path().join("app.log");
    fs::write(&log, "").expect("writable");
    let more = format!(
        "[spool]\nafter-ms = 200\n[[files]]\npaths = ['{}']\n[[lines]]\nlisten = 'tcp:127.0.0.1:0'\nkey = 'none'\n",
        log.display()
    );
    let mut agent = Agent::start(dir.path(), &bootstrap, &more);
    let address = agent.addresses().listeners[0].strip_prefix("tcp:").expect("a TCP listener").to_owned();
    server.kill();
    let mut expected = BTreeSet::new();
    let mut file = OpenOptions::new().append(true).open(&log).expect("there");
    let mut socket = TcpStream::connect(address).expect("the agent listens");
    for n in 0..20_000 {
        writeln!(file, "file {n:06} while nobody was there").expect("writable");
        expected.insert(format!("file {n:06} while nobody was there"));
        if n % 10 == 0 {
            writeln!(socket, "socket {n:06}").expect("the agent reads");
            expected.insert(format!("socket {n:06}"));
        }
    }
    drop(socket);
    eventually("all of it is read", || agent.status()["records_read"] == 22_000);
    eventually("brokers are away", || agent.status()["brokers_away"] == 1);
    // What was taken from the socket survives a kill of the agent, and so does what rotation removes.
    eventually("the spool has it", || agent.status()["records_spooled"] >= 21_000);
    std::thread::sleep(Duration::from_millis(500));
    agent.kill();
    server.restart();
    agent.launch();
    eventually("everything arrives", || {
        let found: BTreeSet<String> = shipped(&bootstrap).into_iter().collect();
        expected.is_subset(&found)
    });
    assert_eq!(agent.status()["unclean_start"], 1);
    agent.stop();
}

#[test]
fn syslog_arrives_with_what_its_headers_say() {
    let dir = TempDir::with_prefix("loggos-agent-").expect("a directory");
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    let more = "[[syslog]]\nlisten = 'udp:127.0.0.1:0'\n[[syslog]]\nlisten = 'tcp:127.0.0.1:0'\n[metrics]\ntopic = 'numbers'\n";
    let mut agent = Agent::start(dir.path(), &bootstrap, more);
    let listeners = agent.addresses().listeners;
    let address = |kind: &str| {
        let found = listeners.iter().find_map(|listener| listener.strip_prefix(kind));
        found.expect("it listens").to_owned()
    };
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    udp.send_to(b"<34>Oct 11 22:14:15 mymachine su: 'su root' failed", address("udp:")).expect("sent");
    let mut tcp = TcpStream::connect(address("tcp:")).expect("it listens");
    let counted = "<165>1 2003-10-11T22:14:15Z host app 7 ID1 - hello";
    writeln!(tcp, "{} {counted}<13>a line", counted.len()).expect("sent");
    drop(tcp);
    eventually("all three arrive", || agent.status()["records_acknowledged"] >= 4);
    let lines = shipped(&bootstrap);
    assert_eq!(lines.iter().filter(|line| line.contains("su root")).count(), 1, "{lines:?}");
    assert!(lines.iter().any(|line| line.ends_with("- hello")), "{lines:?}");
    assert!(lines.iter().any(|line| line == "<13>a line"), "{lines:?}");
    let numbers =
        loggos_ok(&["consume", "numbers", "--from", "beginning", "--stop-at-end", "--bootstrap", &bootstrap]);
    let sample: serde_json::Value = serde_json::from_str(numbers.lines().next().expect("one")).expect("JSON");
    assert!(sample["memory"]["total"].as_u64().expect("a number") > 0);
    agent.stop();
}

#[test]
fn once_ships_files_and_stdin_and_goes_on_where_it_stopped() {
    let dir = TempDir::with_prefix("loggos-agent-").expect("a directory");
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    let (log, state) = (dir.path().join("a.log"), dir.path().join("state"));
    let run = |input: &str| {
        let mut child = Command::new(binary())
            .args(["agent", "--once", "--stdin", "--topic", "logs", "--http-listen", "127.0.0.1:0"])
            .args(["--bootstrap", &bootstrap])
            .arg("--state-dir")
            .arg(&state)
            .arg(dir.path().join("*.log"))
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the agent starts");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
        assert!(child.wait().expect("it ends").success());
    };
    fs::write(&log, "one\ntwo\nthr").expect("writable");
    run("from stdin\n");
    let mut lines = shipped(&bootstrap);
    lines.sort();
    assert_eq!(lines, ["from stdin", "one", "two"], "a line without its end isn't one yet");
    fs::write(&log, "one\ntwo\nthree\n").expect("writable");
    run("");
    let mut lines = shipped(&bootstrap);
    lines.sort();
    assert_eq!(lines, ["from stdin", "one", "three", "two"]);
}

#[test]
fn a_real_rsyslog_forwards_to_the_agent() {
    if !Path::new("/usr/sbin/rsyslogd").exists() {
        eprintln!("skipped: rsyslog isn't installed (make setup installs it)");
        return;
    }
    let dir = TempDir::with_prefix("loggos-agent-").expect("a directory");
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    let mut agent = Agent::start(dir.path(), &bootstrap, "[[syslog]]\nlisten = 'tcp:127.0.0.1:0'\n");
    let listeners = agent.addresses().listeners;
    let port = listeners[0].rsplit_once(':').expect("a port").1;
    let input = dir.path().join("input.log");
    let lines: String = (0..5_000).map(|n| format!("line {n:05} through rsyslog\n")).collect();
    fs::write(&input, lines).expect("writable");
    let config = format!(
        "global(workDirectory=\"{0}\")\nmodule(load=\"imfile\")\n\
         input(type=\"imfile\" file=\"{1}\" tag=\"app:\")\n\
         action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{port}\" protocol=\"tcp\" TCP_Framing=\"octet-counted\" \
         template=\"RSYSLOG_SyslogProtocol23Format\")\n",
        dir.path().display(),
        input.display()
    );
    let file = dir.path().join("rsyslog.conf");
    fs::write(&file, config).expect("writable");
    let mut rsyslog = Command::new("/usr/sbin/rsyslogd")
        .args(["-n", "-f"])
        .arg(&file)
        .arg("-i")
        .arg(dir.path().join("rsyslog.pid"))
        .stderr(Stdio::null())
        .spawn()
        .expect("rsyslog starts");
    let deadline = Instant::now() + DEADLINE;
    while agent.status()["records_acknowledged"] < 5_000 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = rsyslog.kill();
    let _ = rsyslog.wait();
    let shipped = shipped(&bootstrap);
    for n in 0..5_000 {
        let wanted = format!("line {n:05} through rsyslog");
        assert_eq!(shipped.iter().filter(|line| line.ends_with(&wanted)).count(), 1, "{wanted}");
    }
    agent.stop();
}
