//! `loggos registry`: the coordinator's tree as files: ls, get, set, watch. It speaks to any ZooKeeper.

use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use loggos_client::registry::{RegistryError, Session, Znode};

use super::Failure;

/// How long the ensemble keeps our session when we vanish.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// What to do with the tree.
#[derive(Subcommand)]
pub enum Command {
    /// Print the names of the nodes below a node
    Ls(Ls),
    /// Print a node's data
    Get(Named),
    /// Replace a node's data
    Set(Set),
    /// Print every change at and below a node, until interrupted
    Watch(Watch),
}

/// Which ensemble, and which node.
#[derive(Args)]
pub struct Named {
    /// The node's path
    #[arg(value_name = "PATH", value_parser = path)]
    path: String,

    /// The ensemble, Loggos' or ZooKeeper's
    #[arg(
        long,
        env = "LOGGOS_COORDINATOR",
        value_name = "HOST:PORT,…[/CHROOT]",
        default_value = "127.0.0.1:2181"
    )]
    coordinator: String,
}

/// What to list.
#[derive(Args)]
pub struct Ls {
    #[command(flatten)]
    named: Named,

    /// Also print each node's bytes, version, zxid of its last change, and the session that it goes with
    #[arg(long, short)]
    long: bool,
}

/// What to write.
#[derive(Args)]
pub struct Set {
    #[command(flatten)]
    named: Named,

    /// The new data
    #[arg(value_name = "TEXT")]
    text: String,

    /// Write only if the node has this version
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..), conflicts_with = "create")]
    version: Option<i32>,

    /// Make the node, and those above it, if it isn't there
    #[arg(long)]
    create: bool,
}

/// What to watch.
#[derive(Args)]
pub struct Watch {
    #[command(flatten)]
    named: Named,

    /// End after so many changes
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

fn path(text: &str) -> Result<String, String> {
    match text {
        "/" => Ok(text.to_owned()),
        _ if text.starts_with('/') => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err("a path begins with /".to_owned()),
    }
}

/// Runs it to its end.
pub async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Ls(ls) => list(&ls).await,
        Command::Get(named) => get(&named).await,
        Command::Set(set) => write(&set).await,
        Command::Watch(watch) => follow(&watch).await,
    }
}

async fn connect(named: &Named) -> Result<Session, Failure> {
    Session::connect(&named.coordinator, SESSION_TIMEOUT).await.map_err(|error| failed(&named.path, &error))
}

fn failed(path: &str, error: &RegistryError) -> Failure {
    Failure::Failed(format!("{path}: {error}"))
}

async fn list(ls: &Ls) -> Result<(), Failure> {
    let path = ls.named.path.as_str();
    let session = connect(&ls.named).await?;
    if session.get(path).await.map_err(|error| failed(path, &error))?.is_none() {
        return Err(failed(path, &RegistryError::Absent));
    }
    let names = session.children(path).await.map_err(|error| failed(path, &error))?;
    let mut out = io::stdout().lock();
    for name in names {
        if !ls.long {
            writeln!(out, "{name}")?;
            continue;
        }
        let child = format!("{}/{name}", path.trim_end_matches('/'));
        // Who went meanwhile is not listed.
        if let Some(node) = session.get(&child).await.map_err(|error| failed(&child, &error))? {
            writeln!(out, "{} {name}", described(&node))?;
        }
    }
    Ok(())
}

fn described(node: &Znode) -> String {
    let owner = match node.owner {
        0 => "-".to_owned(),
        session => format!("{session:#x}"),
    };
    format!("{:>8} v{:<5} {:#010x} {owner:>18}", node.data.len(), node.version, node.modified.raw())
}

async fn get(named: &Named) -> Result<(), Failure> {
    let found = connect(named).await?.get(&named.path).await.map_err(|error| failed(&named.path, &error))?;
    let node = found.ok_or_else(|| failed(&named.path, &RegistryError::Absent))?;
    let mut out = io::stdout().lock();
    out.write_all(&node.data)?;
    if !node.data.ends_with(b"\n") {
        writeln!(out)?;
    }
    Ok(())
}

async fn write(set: &Set) -> Result<(), Failure> {
    let (path, data) = (set.named.path.as_str(), set.text.as_bytes());
    let session = connect(&set.named).await?;
    let refused = |error: RegistryError| failed(path, &error);
    match session.set(path, data, set.version).await {
        Err(RegistryError::Absent) if set.create => {
            for (at, _) in path.match_indices('/').skip(1) {
                session.create_if_absent(&path[..at], b"").await.map_err(refused)?;
            }
            session.create_if_absent(path, data).await.map_err(refused)?;
            // Somebody else may have made it.
            session.set(path, data, None).await.map_err(refused)?;
        }
        other => drop(other.map_err(refused)?),
    }
    Ok(())
}

async fn follow(watch: &Watch) -> Result<(), Failure> {
    let path = watch.named.path.as_str();
    let session = connect(&watch.named).await?;
    let mut changes = session.watch_tree(path).await.map_err(|error| failed(path, &error))?;
    let mut left = watch.count.unwrap_or(u64::MAX);
    while left > 0 {
        let changed = changes.changed().await.ok_or_else(|| failed(path, &RegistryError::Expired))?;
        let node = session.get(&changed).await.map_err(|error| failed(&changed, &error))?;
        let mut out = io::stdout().lock();
        match node {
            Some(node) => writeln!(out, "{} {changed}", described(&node))?,
            None => writeln!(out, "{:>8} {changed}", "gone")?,
        }
        out.flush()?;
        left -= 1;
    }
    Ok(())
}
