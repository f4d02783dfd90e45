//! A real ZooKeeper in a process of its own, for tests that compare: the pinned one that `make setup` fetches. An
//! older one won't do: ZooKeeper 3.8 reads multis differently, and its notifications carry no zxid.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::raw::Raw;

/// A Java process on a busy machine may take this long to start.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// What the super user shows, `super:test`, as both servers keep it.
pub const SUPER_DIGEST: &str = "super:D/InIHSb7yEEbrWz8b9l71RjZJU=";

/// A ZooKeeper that ends with its test.
pub struct ZooKeeper {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

/// Where the pinned jars are, if they are there.
pub fn jars() -> Option<PathBuf> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/zookeeper/lib");
    lib.join("zookeeper-3.9.5.jar").exists().then_some(lib)
}

impl ZooKeeper {
    /// Starts one.
    ///
    /// # Errors
    /// A sentence where there is no Java or no ZooKeeper: the test is skipped with it.
    pub async fn start() -> Result<Self, &'static str> {
        let jars = jars().ok_or("there is no ZooKeeper here; make setup fetches it where Maven is")?;
        let dir = TempDir::with_prefix("loggos-zookeeper-").expect("a temporary directory");
        let address =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let config = dir.path().join("zoo.cfg");
        let text = format!(
            "tickTime=2000\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0\n\
             minSessionTimeout=500\nmaxSessionTimeout=60000\nadmin.enableServer=false\nforceSync=no\n\
             4lw.commands.whitelist=*\nextendedTypesEnabled=true\n",
            dir.path().join("data").display(),
            address.port()
        );
        std::fs::write(&config, text).expect("a file");
        let started = Command::new("java")
            .args(["-Xmx300m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg(format!("-Dzookeeper.DigestAuthenticationProvider.superDigest={SUPER_DIGEST}"))
            .args(["-Dzookeeper.extendedTypesEnabled=true", "-Dzookeeper.enforceQuota=true"])
            // No unused node goes by itself while two servers are compared.
            .arg("-Dznode.container.checkIntervalMs=86400000")
            .args(["-Dzookeeper.admin.enableServer=false", "-cp"])
            .arg(format!("{}/*", jars.display()))
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = started.map_err(|_| "java isn't installed")?;
        let mut zookeeper = Self { child, address, _dir: dir };
        let deadline = Instant::now() + START_DEADLINE;
        while !zookeeper.is_ok().await {
            let ended = zookeeper.child.try_wait().expect("a child to ask");
            assert!(ended.is_none(), "ZooKeeper ended with {ended:?}");
            assert!(Instant::now() < deadline, "ZooKeeper isn't up within {START_DEADLINE:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(zookeeper)
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    async fn is_ok(&self) -> bool {
        if tokio::net::TcpStream::connect(self.address).await.is_err() {
            return false;
        }
        let mut raw = Raw::connect(&self.address.to_string()).await;
        raw.send_bytes(b"srvr").await;
        raw.text().await.contains("Mode: ")
    }
}

impl Drop for ZooKeeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
