//! Groups of real clients under traffic: one member, then three, then one again. Whatever is acknowledged is read by
//! somebody, in order, and what was committed isn't read again by an heir. `make setup` fetches the clients.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::clients::{peers, root};
use crate::process::{DEADLINE, Server, have, loggos_ok};

const PARTITIONS: i32 = 6;
const TOPIC: &str = "shared";
/// Records after which it is looked who read them.
const WINDOW: usize = 20 * PARTITIONS as usize;
/// Clients of every language settle slowly on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(240);
/// Pause between two records of the traffic.
const PAUSE: Duration = Duration::from_millis(2);

/// A record as a member printed it.
type Told = (i32, i64, u32);

/// A member in its own process; it leaves when its input ends.
struct Member {
    child: Child,
    input: Option<ChildStdin>,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Member {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the member starts");
        let told = Arc::new(Mutex::new(Vec::new()));
        let (mine, pipe) = (Arc::clone(&told), child.stdout.take().expect("a pipe"));
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let mut words = line.split_whitespace();
                let mut next = || words.next().and_then(|word| word.parse::<i64>().ok());
                let (Some(partition), Some(offset), Some(value)) = (next(), next(), next()) else { continue };
                let partition = i32::try_from(partition).expect("a partition");
                let value = u32::try_from(value).expect("a number");
                mine.lock().expect("unharmed").push((partition, offset, value));
            }
        });
        Self { input: child.stdin.take(), child, told }
    }

    fn count(&self) -> usize {
        self.told.lock().expect("unharmed").len()
    }

    /// The partitions of what it has read after the first `skip` records.
    fn partitions_after(&self, skip: usize) -> BTreeSet<i32> {
        self.told.lock().expect("unharmed").iter().skip(skip).map(|(partition, ..)| *partition).collect()
    }

    /// Leaves the group and ends.
    fn leave(&mut self) {
        drop(self.input.take());
        let deadline = Instant::now() + DEADLINE;
        while self.child.try_wait().expect("a child to ask").is_none() {
            assert!(Instant::now() < deadline, "a member doesn't leave");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Numbers, one after the other, until it is told to end; what was acknowledged.
struct Traffic {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u32>,
}

impl Traffic {
    fn start(bootstrap: &str) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .create()
            .expect("a producer");
        let thread = std::thread::spawn(move || {
            let mut next = 0u32;
            while !ended.load(Ordering::Relaxed) {
                let text = next.to_string();
                let partition = i32::try_from(next).expect("small") % PARTITIONS;
                let record = BaseRecord::<str, str>::to(TOPIC).payload(&text).partition(partition);
                producer.send(record).map_err(|(error, _)| error).expect("queued");
                producer.poll(Duration::ZERO);
                next += 1;
                std::thread::sleep(PAUSE);
            }
            producer.flush(DEADLINE).expect("acknowledged");
            next
        });
        Self { over, thread }
    }

    fn end(self) -> u32 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("unharmed")
    }
}

/// One member, three, one again.
fn one_three_one(server: &Server, member: impl Fn(&str) -> Command) {
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", TOPIC, "--partitions", "6", "--bootstrap", &bootstrap]);
    let traffic = Traffic::start(&bootstrap);
    let start = || Member::start(&mut member(&bootstrap));
    let mut members = vec![start()];
    eventually("one reads everything", || members[0].partitions_after(0).len() == 6);
    members.extend([start(), start()]);
    eventually("three read", || members.iter().all(|member| member.count() > 0));
    // What each reads from here on, until together they read everything and nobody reads what another does.
    eventually("three share the partitions", || {
        let marks: Vec<usize> = members.iter().map(Member::count).collect();
        let enough = marks.iter().sum::<usize>() + WINDOW;
        let deadline = Instant::now() + Duration::from_secs(5);
        while members.iter().map(Member::count).sum::<usize>() < enough && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let read: Vec<BTreeSet<i32>> =
            members.iter().zip(marks).map(|(member, mark)| member.partitions_after(mark)).collect();
        read.iter().all(|read| read.len() == 2)
    });
    let mark = members[0].count();
    for member in &mut members[1..] {
        member.leave();
    }
    eventually("the one that stays reads everything", || members[0].partitions_after(mark).len() == 6);
    let count = traffic.end();
    let told = |members: &[Member]| -> Vec<Vec<Told>> {
        members.iter().map(|member| member.told.lock().expect("unharmed").clone()).collect()
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen: BTreeSet<u32> = told(&members).into_iter().flatten().map(|(_, _, value)| value).collect();
        if seen.len() == count as usize {
            break;
        }
        let missing: Vec<u32> = (0..count).filter(|number| !seen.contains(number)).collect();
        assert!(Instant::now() < deadline, "of {count} are missing {missing:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    members[0].leave();
    check(&told(&members), count);
}

/// Waits until `condition` holds.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Nothing is missing, every partition's order is kept, and little is read twice: what a member had read and not yet
/// committed when it lost a partition.
fn check(told: &[Vec<Told>], count: u32) {
    let mut places: BTreeMap<(i32, i64), u32> = BTreeMap::new();
    let mut times = 0;
    for told in told {
        let mut last: BTreeMap<i32, i64> = BTreeMap::new();
        for (partition, offset, value) in told {
            times += 1;
            let before = places.insert((*partition, *offset), *value);
            assert!(before.is_none_or(|before| before == *value), "{partition} {offset} is one record");
            assert_eq!(i64::from(*value), offset * i64::from(PARTITIONS) + i64::from(*partition), "in order");
            last.insert(*partition, *offset);
        }
    }
    assert_eq!(places.len(), count as usize, "every record once");
    let twice = times - places.len();
    assert!(twice * 4 < count as usize, "{twice} of {count} were read twice");
}

/// Settings under which members hear of each other soon.
const QUICK: [&str; 2] = ["--set", "group.consumer.heartbeat.interval.ms=300"];

fn run(name: &str, program: Option<PathBuf>, arguments: &[&str]) {
    let Some(program) = program.filter(|program| program.exists()) else {
        eprintln!("skipped: no {name} (make setup fetches it)");
        return;
    };
    let server = Server::start(&QUICK);
    one_three_one(&server, |bootstrap| {
        let mut command = Command::new(&program);
        command.args(arguments.iter().map(|argument| argument.replace("BOOTSTRAP", bootstrap)));
        // Where Node finds what was fetched.
        command.env("NODE_PATH", peers().join("node/node_modules"));
        command
    });
}

fn python(client: &str) {
    let script = root().join("tests/interop/python/member.py").display().to_string();
    let interpreter = Some(peers().join("python/bin/python"));
    run(client, interpreter, &[&script, client, "BOOTSTRAP", "members", TOPIC]);
}

fn java(protocol: &str) {
    let java = peers().join("java");
    let program = java.join(".complete-2").exists().then(|| PathBuf::from("/usr/bin/java"));
    let classpath = format!("{0}/build/classes:{0}/lib/*", java.display());
    let arguments = ["-Xmx128m", "-cp", &classpath, "loggos.Member", protocol, "BOOTSTRAP", "members", TOPIC];
    run("Java", program, &arguments);
}

fn go(client: &str) {
    run(client, Some(peers().join("go/interop")), &[client, "BOOTSTRAP", "members", TOPIC]);
}

#[test]
fn confluent_kafka_members_come_and_go() {
    python("confluent");
}

#[test]
fn kafka_python_members_come_and_go() {
    python("kafka-python");
}

#[test]
fn aiokafka_members_come_and_go() {
    python("aiokafka");
}

#[test]
fn java_members_come_and_go_by_the_classic_protocol() {
    java("classic");
}

#[test]
fn java_members_come_and_go_by_kip_848() {
    java("consumer");
}

#[test]
fn franz_go_members_come_and_go() {
    go("franz");
}

#[test]
fn sarama_members_come_and_go() {
    go("sarama");
}

#[test]
fn kafkajs_members_come_and_go() {
    let modules = peers().join("node/node_modules");
    let program = modules.exists().then(|| PathBuf::from("/usr/bin/node"));
    let script = root().join("tests/interop/node/member.js").display().to_string();
    run("kafkajs", program, &[&script, "BOOTSTRAP", "members", TOPIC]);
}

#[test]
fn kcat_members_come_and_go() {
    if !have("kcat") {
        return;
    }
    let settings = ["-X", "auto.offset.reset=earliest", "-X", "session.timeout.ms=6000"];
    let commits = ["-X", "auto.commit.interval.ms=100", "-f", "%p %o %s\\n", "-u"];
    let server = Server::start(&[]);
    // Told to end, kcat commits one record more than it prints: these members die instead, and are missed only when
    // their sessions end. A shell passes the end of the input on as the signal.
    one_three_one(&server, |bootstrap| {
        let mut command = Command::new("sh");
        let script = "kcat \"$@\" & read _; kill -KILL $!; wait $!";
        command
            .args(["-c", script, "sh", "-b", bootstrap, "-G", "members"])
            .args(settings)
            .args(commits)
            .arg(TOPIC);
        command
    });
}

#[test]
fn java_groups_rewind_come_back_are_administered_and_upgraded() {
    let java = peers().join("java");
    if !java.join(".complete-2").exists() {
        eprintln!("skipped: no Java clients (make setup builds them)");
        return;
    }
    let server = Server::start(&QUICK);
    let classpath = format!("{0}/build/classes:{0}/lib/*", java.display());
    let bootstrap = server.bootstrap();
    let output = Command::new("java")
        .args(["-Xmx256m", "-cp", &classpath, "loggos.GroupRound", &bootstrap])
        .output()
        .expect("java starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.trim_end().ends_with("ok"), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    // Kafka's own tool for lags.
    let tool = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let lags = Command::new("java")
        .args(["-Xmx256m", "-cp", &classpath, tool, "--bootstrap-server", &bootstrap])
        .args(["--describe", "--group", "rewind-classic"])
        .output()
        .expect("java starts");
    let lags = String::from_utf8_lossy(&lags.stdout).into_owned();
    let row = lags.lines().find(|line| line.starts_with("rewind-classic  grouped") && line.contains(" 0 "));
    assert!(row.is_some(), "{lags}");
    let lag: Vec<&str> = lags
        .lines()
        .filter(|line| line.starts_with("rewind-classic"))
        .filter_map(|line| line.split_whitespace().nth(5))
        .collect();
    assert_eq!(lag.iter().filter(|lag| **lag == "0").count(), 3, "{lags}");
    assert!(lag.contains(&"3"), "{lags}");
}
