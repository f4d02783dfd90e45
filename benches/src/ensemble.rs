//! Starts the ensemble under test, one or three servers on free loopback ports and empty directories, and ends it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::broker::{free_port, loggos_binary};

/// A JVM on a busy machine needs its time.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `loggos coordinator`.
    Loggos,
    /// Apache ZooKeeper 3.9.5, fsync on, as both are.
    ZooKeeper,
}

impl Kind {
    /// The name in tables and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loggos => "loggos",
            Self::ZooKeeper => "zookeeper",
        }
    }
}

/// A running ensemble.
pub struct Ensemble {
    servers: Vec<Server>,
    _dir: TempDir,
}

struct Server {
    child: Option<Child>,
    client: u16,
}

impl Ensemble {
    /// Starts `count` servers, and returns when one of them leads. `peers` is where ZooKeeper's jars are.
    pub fn start(kind: Kind, count: usize, peers: &Path) -> io::Result<Self> {
        let dir = TempDir::with_prefix("loggos-bench-")?;
        let ports: Vec<[u16; 3]> =
            (0..count).map(|_| Ok([free_port()?, free_port()?, free_port()?])).collect::<io::Result<_>>()?;
        let mut servers = Vec::with_capacity(count);
        for at in 0..count {
            let own = dir.path().join(format!("server{at}"));
            fs::create_dir_all(&own)?;
            let mut command = match kind {
                Kind::Loggos => loggos(&own, &ports, at),
                Kind::ZooKeeper => zookeeper(&own, &ports, at, peers)?,
            };
            let log = fs::File::create(own.join("log"))?;
            let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
            servers.push(Server { child: Some(child), client: ports[at][0] });
        }
        let ensemble = Self { servers, _dir: dir };
        let deadline = Instant::now() + START_DEADLINE;
        while ensemble.leader().is_none() {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{} elects no leader", kind.name())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(ensemble)
    }

    /// `host:port,…` of all that run.
    pub fn addresses(&self) -> String {
        let running = self.servers.iter().filter(|server| server.child.is_some());
        running.map(|server| format!("127.0.0.1:{}", server.client)).collect::<Vec<_>>().join(",")
    }

    /// The processes that run.
    pub fn pids(&self) -> Vec<u32> {
        self.servers.iter().filter_map(|server| server.child.as_ref()).map(Child::id).collect()
    }

    /// Which server leads, or stands alone.
    pub fn leader(&self) -> Option<usize> {
        self.servers.iter().position(|server| {
            server.child.is_some() && {
                let said = ask(server.client, "srvr");
                said.contains("Mode: leader") || said.contains("Mode: standalone")
            }
        })
    }

    /// Kills one of them.
    pub fn kill(&mut self, server: usize) -> io::Result<()> {
        if let Some(mut child) = self.servers[server].child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Ensemble {
    fn drop(&mut self) {
        for server in 0..self.servers.len() {
            // It has ended already, if it can't be killed.
            let _ = self.kill(server);
        }
    }
}

fn ask(port: u16, word: &str) -> String {
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let mut answer = String::new();
    let _ = socket.set_read_timeout(Some(Duration::from_secs(1)));
    let _ = socket.write_all(word.as_bytes()).and_then(|()| socket.read_to_string(&mut answer));
    answer
}

fn loggos(dir: &Path, ports: &[[u16; 3]], at: usize) -> Command {
    let [client, peer, bulk] = ports[at].map(|port| format!("127.0.0.1:{port}"));
    let servers: Vec<String> = ports.iter().map(|ports| format!("127.0.0.1:{}", ports[1])).collect();
    let mut command = Command::new(loggos_binary());
    command.args(["coordinator", "--http-listen", "127.0.0.1:0", "--log", "warn", "--data-dir"]).arg(dir);
    command.args(["--coordinator-listen", &client, "--peer-listen", &peer, "--bulk-listen", &bulk]);
    if ports.len() > 1 {
        command.args(["--servers", &servers.join(",")]);
    }
    command
}

fn zookeeper(dir: &Path, ports: &[[u16; 3]], at: usize, peers: &Path) -> io::Result<Command> {
    let data = dir.join("data");
    fs::create_dir_all(&data)?;
    fs::write(data.join("myid"), (at + 1).to_string())?;
    let mut text = format!(
        "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\n\
         maxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=*\nextendedTypesEnabled=true\n",
        data.display(),
        ports[at][0]
    );
    if ports.len() > 1 {
        for (number, [_, peer, election]) in ports.iter().enumerate() {
            text.push_str(&format!("server.{}=127.0.0.1:{peer}:{election}\n", number + 1));
        }
    }
    let config = dir.join("zoo.cfg");
    fs::write(&config, text)?;
    let classpath = format!("{}/*", peers.join("zookeeper/lib").display());
    let mut command = Command::new("java");
    command.args(["-Xmx1g", "-Dzookeeper.admin.enableServer=false", "-cp", &classpath]);
    command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(config);
    Ok(command)
}
