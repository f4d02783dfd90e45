//! Starts the broker under test on free loopback ports and an empty directory, and ends it.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A JVM on a busy machine needs its time.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Loggos on its defaults: flushed before acknowledged.
    Loggos,
    /// Loggos with Kafka's habit: the page cache counts as flushed.
    LoggosUnflushed,
    /// Apache Kafka 4.3.1 as it comes: the page cache counts as flushed.
    Kafka,
    /// Apache Kafka 4.3.1 with `log.flush.interval.messages=1`.
    KafkaFlushed,
}

impl Kind {
    /// The name in tables and on the command line.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Loggos => "loggos",
            Self::LoggosUnflushed => "loggos-unflushed",
            Self::Kafka => "kafka",
            Self::KafkaFlushed => "kafka-flushed",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Loggos, Self::LoggosUnflushed, Self::Kafka, Self::KafkaFlushed]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// A running broker.
pub struct Broker {
    child: Child,
    command: Command,
    name: &'static str,
    /// `host:port` for clients.
    pub bootstrap: String,
    /// From exec to the first accepted connection.
    pub started_in: Duration,
    dir: TempDir,
}

impl Broker {
    /// Starts one. `peers` is where Kafka's jars are (`kafka-4.3.1/lib`).
    pub fn start(kind: &Kind, peers: &Path) -> io::Result<Self> {
        let dir = TempDir::with_prefix("loggos-bench-")?;
        let port = free_port()?;
        let bootstrap = format!("127.0.0.1:{port}");
        let mut command = match kind {
            Kind::Loggos => loggos(dir.path(), &bootstrap, &[]),
            Kind::LoggosUnflushed => loggos(dir.path(), &bootstrap, &UNFLUSHED),
            Kind::Kafka => kafka(dir.path(), port, peers, "")?,
            Kind::KafkaFlushed => kafka(dir.path(), port, peers, "log.flush.interval.messages=1\n")?,
        };
        command.stdin(Stdio::null());
        let (child, started_in) = run(&mut command, &bootstrap, dir.path(), kind.name())?;
        Ok(Self { child, command, name: kind.name(), bootstrap, started_in, dir })
    }

    /// Kills it and starts it again on the same directory and port; `started_in` is of the new start.
    pub fn restart(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        (self.child, self.started_in) = run(&mut self.command, &self.bootstrap, self.dir.path(), self.name)?;
        Ok(())
    }

    /// The process whose CPU time and memory count.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it keeps its data.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `command` and waits until it accepts connections; the time that took.
fn run(command: &mut Command, bootstrap: &str, dir: &Path, name: &str) -> io::Result<(Child, Duration)> {
    let log = fs::File::create(dir.join("log"))?;
    let began = Instant::now();
    let mut child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
    while TcpStream::connect(bootstrap).is_err() {
        let ended = child.try_wait()?;
        if ended.is_some() || began.elapsed() > START_DEADLINE {
            let _ = child.kill();
            let said = fs::read_to_string(dir.join("log")).unwrap_or_default();
            return Err(io::Error::other(format!("{name} didn't start: {said}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok((child, began.elapsed()))
}

const UNFLUSHED: [&str; 6] = [
    "--set",
    "loggos.expose=appended",
    "--set",
    "log.flush.interval.messages=9223372036854775807",
    "--set",
    "log.flush.interval.ms=9223372036854775807",
];

pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The release binary, or the one that `LOGGOS_BINARY` names.
pub(crate) fn loggos_binary() -> PathBuf {
    std::env::var_os("LOGGOS_BINARY").map_or_else(
        || {
            let target =
                std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
            target.join("release/loggos")
        },
        PathBuf::from,
    )
}

fn loggos(dir: &Path, listen: &str, more: &[&str]) -> Command {
    let mut command = Command::new(loggos_binary());
    command.args(["serve", "--listen", listen, "--data-dir"]).arg(dir.join("data"));
    command.args(["--coordinator-listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0"]);
    command.args(["--http-listen", "127.0.0.1:0", "--log", "warn"]).args(more);
    command
}

fn kafka(dir: &Path, port: u16, peers: &Path, more: &str) -> io::Result<Command> {
    let controller = free_port()?;
    let properties = dir.join("server.properties");
    let data = dir.join("data").display().to_string();
    fs::write(
        &properties,
        format!(
            "process.roles=broker,controller\nnode.id=1\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\nlog.dirs={data}\n\
             offsets.topic.replication.factor=1\ntransaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\nshare.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\ngroup.initial.rebalance.delay.ms=0\n{more}"
        ),
    )?;
    let classpath = format!("{}/*", peers.join("kafka-4.3.1/lib").display());
    let formatted = Command::new("java")
        .args(["-cp", &classpath, "kafka.tools.StorageTool", "format", "-t", "AAAAAAAAQACAAAAAAAAAAQ", "-c"])
        .arg(&properties)
        .output()?;
    if !formatted.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&formatted.stderr).into_owned()));
    }
    let mut command = Command::new("java");
    command.args(["-Xmx1g", "-Xms1g", "-XX:+UseG1GC", "-cp", &classpath, "kafka.Kafka"]).arg(&properties);
    Ok(command)
}
