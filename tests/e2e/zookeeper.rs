//! The same broker on a real ZooKeeper, Debian's: nothing in it knows which ensemble it talks to (decision D1).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::{DEADLINE, Server, have, loggos_ok};
use crate::storm::{Plan, Storm, check};

const JARS: &str = "/usr/share/java";

/// A ZooKeeper that ends with its test.
pub struct ZooKeeper {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl ZooKeeper {
    /// Starts one, if this machine has it.
    pub fn start() -> Option<Self> {
        if !have("java") {
            return None;
        }
        if !Path::new(JARS).join("zookeeper.jar").exists() {
            eprintln!("skipped: Debian's zookeeper isn't installed (make setup installs it)");
            return None;
        }
        let dir = TempDir::with_prefix("loggos-zookeeper-").expect("a temporary directory");
        let address =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let config = dir.path().join("zoo.cfg");
        let text = format!(
            "tickTime=300\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\nminSessionTimeout=600\n\
             maxSessionTimeout=60000\nadmin.enableServer=false\n4lw.commands.whitelist=*\nmaxClientCnxns=0\n",
            dir.path().join("data").display(),
            address.port()
        );
        std::fs::write(&config, text).expect("a file");
        let child = Command::new("java")
            .args(["-Xmx200m", "-cp", &format!("{JARS}/*")])
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("java starts");
        let zookeeper = Self { child, address, _dir: dir };
        let deadline = Instant::now() + DEADLINE;
        while !zookeeper.is_ok() {
            assert!(Instant::now() < deadline, "ZooKeeper isn't up within {DEADLINE:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(zookeeper)
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    fn is_ok(&self) -> bool {
        let Ok(mut socket) = TcpStream::connect(self.address) else { return false };
        // A connection to a port that nobody listens on yet may have met itself.
        let _ = socket.set_read_timeout(Some(Duration::from_secs(1)));
        let mut answer = String::new();
        socket.write_all(b"ruok").is_ok() && socket.read_to_string(&mut answer).is_ok() && answer == "imok"
    }
}

impl Drop for ZooKeeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_broker_lives_on_a_real_zookeeper_as_on_our_own_coordinator() {
    let Some(zookeeper) = ZooKeeper::start() else { return };
    let ensemble = format!("{}/kafka/one", zookeeper.address);
    let mut server = Server::start(&["--coordinator", &ensemble]);
    assert_eq!(server.addresses().coordinator, None, "there is none of our own");
    let bootstrap = server.bootstrap();
    loggos_ok(&[
        "topic",
        "create",
        "storm",
        "--partitions",
        "4",
        "--config",
        "retention.ms=100000000",
        "--bootstrap",
        &bootstrap,
    ]);
    let plan = Plan {
        bootstrap: bootstrap.clone(),
        topic: "storm".to_owned(),
        partitions: 4,
        idempotent: true,
        record_bytes: 120,
    };
    let storm = Storm::start(plan.clone());
    for _ in 0..3 {
        storm.wait_for(300);
        server.kill();
        server.restart();
    }
    storm.wait_for(300);
    let acknowledged = storm.end();
    check(&plan, &acknowledged);
    let described = || loggos_ok(&["topic", "describe", "storm", "--bootstrap", &bootstrap]);
    assert!(described().contains("retention.ms=100000000"), "{}", described());
    let epoch = |text: String| -> i32 {
        let row = text.lines().find(|line| line.starts_with('0')).expect("partition 0").to_owned();
        row.split_whitespace().nth(2).and_then(|epoch| epoch.parse().ok()).expect("an epoch")
    };
    assert!(epoch(described()) >= 3, "each life leads in an epoch of its own: {}", described());
    loggos_ok(&["topic", "alter", "storm", "--config", "retention.ms=200000000", "--bootstrap", &bootstrap]);
    assert_eq!(server.stop(), Some(0));
    server.restart();
    assert!(described().contains("retention.ms=200000000"), "{}", described());
    check(&plan, &acknowledged);
    loggos_ok(&["topic", "delete", "storm", "--bootstrap", &bootstrap]);
    assert!(!loggos_ok(&["topic", "list", "--bootstrap", &bootstrap]).contains("storm"));
}

#[test]
fn two_clusters_share_an_ensemble_and_a_strange_data_directory_is_refused() {
    let Some(zookeeper) = ZooKeeper::start() else { return };
    let one = format!("{}/one", zookeeper.address);
    let two = format!("{}/two", zookeeper.address);
    let mut first = Server::start(&["--coordinator", &one]);
    let second = Server::start(&["--coordinator", &two]);
    loggos_ok(&["topic", "create", "mine", "--bootstrap", &first.bootstrap()]);
    assert!(!loggos_ok(&["topic", "list", "--bootstrap", &second.bootstrap()]).contains("mine"));
    assert_eq!(first.stop(), Some(0));
    let dir = first.data_dir().display().to_string();
    let free = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let said =
        crate::process::loggos(&[&["serve", "--data-dir", &dir, "--coordinator", &two], &free[..]].concat());
    assert_eq!(said.status.code(), Some(2), "{said:?}");
    let said = String::from_utf8(said.stderr).expect("text");
    assert!(said.contains("belongs to cluster"), "another cluster's data is not served: {said}");
}
