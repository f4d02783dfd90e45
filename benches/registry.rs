//! The coordinator beside Apache ZooKeeper: the same machine, the same run, the same client (the crate
//! `zookeeper-client`), fsync on in both. Prints a Markdown table of medians with their ranges.
//!
//! `cargo bench -p loggos-benches --bench registry -- --runs 3`

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use futures::stream::{FuturesUnordered, StreamExt};
use loggos_benches::ensemble::{Ensemble, Kind};
use loggos_benches::kernel;
use loggos_benches::load::{Latencies, latencies};
use loggos_benches::table::{Figures, side_by_side};
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions};

const LASTING: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
const PASSING: CreateOptions<'static> = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
/// Bytes of a value.
const VALUE: [u8; 100] = [b'x'; 100];
/// Nothing is waited for longer.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Options {
    /// Runs of each
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Servers of each ensemble
    #[arg(long, default_value_t = 3)]
    servers: usize,
    /// Seconds of each load
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Watchers of one node
    #[arg(long, default_value_t = 10_000)]
    watchers: usize,
    /// Idle sessions
    #[arg(long, default_value_t = 2_000)]
    sessions: usize,
    /// Where ZooKeeper's jars are
    #[arg(long, env = "LOGGOS_PEERS", default_value = "target/peers")]
    peers: PathBuf,
    /// Cargo passes this to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench reports on stdout, and its progress on stderr"
)]
fn main() {
    let options = Options::parse();
    let kinds = [Kind::Loggos, Kind::ZooKeeper];
    let mut figures = [Figures::default(), Figures::default()];
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for run in 0..options.runs {
        for (kind, figures) in kinds.iter().zip(&mut figures) {
            eprintln!("run {} of {}: {}", run + 1, options.runs, kind.name());
            if let Err(error) = runtime.block_on(measure(*kind, &options, figures)) {
                eprintln!("{}: {error}", kind.name());
            }
        }
    }
    println!("{}", side_by_side(&kinds.map(Kind::name), &figures));
}

async fn measure(kind: Kind, options: &Options, figures: &mut Figures) -> Result<(), Failure> {
    let began = Instant::now();
    let mut ensemble = Ensemble::start(kind, options.servers, &options.peers)?;
    figures.note("exec to a leader, ms", began.elapsed().as_secs_f64() * 1e3);
    let time = Duration::from_secs(options.seconds);
    for (connections, depth) in [(1, 1), (8, 8), (8, 32)] {
        let name = format!("set 100 B, {connections} × {depth} in flight");
        load(&ensemble, Work::Set, (connections, depth), time, &name, figures).await?;
    }
    for (connections, depth) in [(1, 1), (8, 32)] {
        let name = format!("get 100 B, {connections} × {depth} in flight");
        load(&ensemble, Work::Get, (connections, depth), time, &name, figures).await?;
    }
    load(&ensemble, Work::Create, (8, 8), time, "create 100 B, 8 × 8 in flight", figures).await?;
    let memory = ensemble.pids().iter().map(|pid| kernel::memory_mib(*pid).0).fold(0.0, f64::max);
    figures.note("resident MiB of the largest server, after that", memory);
    churn(&ensemble, time, figures).await?;
    fan_out(&ensemble, options.watchers, figures).await?;
    idle(&ensemble, options.sessions, figures).await?;
    if options.servers > 1 {
        fail_over(&mut ensemble, figures).await?;
    }
    Ok(())
}

async fn connect(addresses: &str) -> Result<Client, Failure> {
    let connecting = Client::connector().with_session_timeout(Duration::from_secs(10)).connect(addresses);
    Ok(tokio::time::timeout(PATIENCE, connecting).await??)
}

#[derive(Clone, Copy)]
enum Work {
    Set,
    Get,
    Create,
}

/// So many connections with so many requests under way on each, spread over the servers.
async fn load(
    ensemble: &Ensemble,
    work: Work,
    (connections, depth): (usize, usize),
    time: Duration,
    name: &str,
    figures: &mut Figures,
) -> Result<(), Failure> {
    let addresses: Vec<String> = ensemble.addresses().split(',').map(str::to_owned).collect();
    let before = cpu(ensemble);
    let mut running = Vec::new();
    for number in 0..connections {
        let client = connect(&addresses[number % addresses.len()]).await?;
        let folder = format!("/load-{}-{number}", rand::random::<u32>());
        client.create(&folder, &[], &LASTING).await?;
        for slot in 0..depth {
            client.create(&format!("{folder}/{slot}"), &VALUE, &LASTING).await?;
        }
        let driver = Driver { client, folder, work, made: AtomicU64::new(0) };
        running.push(tokio::spawn(drive(driver, depth, time)));
    }
    let mut all = latencies();
    for one in running {
        all.add(&one.await??)?;
    }
    let count = all.len().max(1) as f64;
    figures.note(format!("{name}: operations/s"), count / time.as_secs_f64());
    for (label, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        figures.note(format!("{name}: {label} ms"), all.value_at_quantile(quantile) as f64 / 1e3);
    }
    figures
        .note(format!("{name}: CPU µs of all servers"), (cpu(ensemble) - before).as_secs_f64() * 1e6 / count);
    Ok(())
}

fn cpu(ensemble: &Ensemble) -> Duration {
    ensemble.pids().iter().map(|pid| kernel::cpu_time(*pid)).sum()
}

/// What one connection does.
struct Driver {
    client: Client,
    folder: String,
    work: Work,
    made: AtomicU64,
}

impl Driver {
    async fn one(&self, slot: usize) -> Result<(usize, Duration), zookeeper_client::Error> {
        let began = Instant::now();
        let path = format!("{}/{slot}", self.folder);
        match self.work {
            Work::Set => drop(self.client.set_data(&path, &VALUE, None).await?),
            Work::Get => drop(self.client.get_data(&path).await?),
            Work::Create => {
                let path = format!("{}/n{}", self.folder, self.made.fetch_add(1, Ordering::Relaxed));
                self.client.create(&path, &VALUE, &LASTING).await?;
            }
        }
        Ok((slot, began.elapsed()))
    }
}

async fn drive(driver: Driver, depth: usize, time: Duration) -> Result<Latencies, Failure> {
    let (mut all, end) = (latencies(), Instant::now() + time);
    let mut under_way: FuturesUnordered<_> = (0..depth).map(|slot| driver.one(slot)).collect();
    while let Some(done) = under_way.next().await {
        let (slot, took) = done?;
        all.saturating_record(took.as_micros() as u64);
        if Instant::now() < end {
            under_way.push(driver.one(slot));
        }
    }
    Ok(all)
}

/// A session with an ephemeral node, one after the other on eight tasks.
async fn churn(ensemble: &Ensemble, time: Duration, figures: &mut Figures) -> Result<(), Failure> {
    let (addresses, end) = (Arc::new(ensemble.addresses()), Instant::now() + time);
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            let addresses = Arc::clone(&addresses);
            tokio::spawn(async move {
                let mut count = 0_u64;
                while Instant::now() < end {
                    let client = connect(&addresses).await?;
                    client.create(&format!("/churn-{number}-{count}"), &[], &PASSING).await?;
                    drop(client);
                    count += 1;
                }
                Ok::<_, Failure>(count)
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    figures
        .note("sessions with an ephemeral node, begun and ended a second", total as f64 / time.as_secs_f64());
    Ok(())
}

/// One node, many watchers: from its change to the last event.
async fn fan_out(ensemble: &Ensemble, watchers: usize, figures: &mut Figures) -> Result<(), Failure> {
    const PER_CLIENT: usize = 100;
    let writer = connect(&ensemble.addresses()).await?;
    // Each client watches its own name of the node through its own watcher: one event per connection and path.
    let mut waiting = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..watchers.div_ceil(PER_CLIENT) {
        clients.push(connect(&ensemble.addresses()).await?);
    }
    for number in 0..PER_CLIENT {
        writer.create(&format!("/watched-{number}"), &[], &LASTING).await?;
    }
    for client in &clients {
        client.sync("/").await?;
        for number in 0..PER_CLIENT {
            let (_, _, watcher) = client.get_and_watch_data(&format!("/watched-{number}")).await?;
            waiting.push(watcher);
        }
    }
    let began = Instant::now();
    for number in 0..PER_CLIENT {
        writer.set_data(&format!("/watched-{number}"), &VALUE, None).await?;
    }
    let mut events: FuturesUnordered<_> = waiting.into_iter().map(|watcher| watcher.changed()).collect();
    let last = async { while events.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, last).await?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    figures.note(format!("{watchers} watches of 100 nodes, all changed: to the last event, ms"), took);
    Ok(())
}

/// Sessions that do nothing: what they cost.
async fn idle(ensemble: &Ensemble, sessions: usize, figures: &mut Figures) -> Result<(), Failure> {
    const WATCHED: Duration = Duration::from_secs(5);
    let addresses = ensemble.addresses();
    let mut held = Vec::with_capacity(sessions);
    while held.len() < sessions {
        let batch = (0..50.min(sessions - held.len())).map(|_| connect(&addresses));
        held.extend(futures::future::try_join_all(batch).await?);
    }
    let before = cpu(ensemble);
    tokio::time::sleep(WATCHED).await;
    let share = (cpu(ensemble) - before).as_secs_f64() / WATCHED.as_secs_f64() * 100.0;
    figures.note(format!("{sessions} idle sessions: % of a core, all servers"), share);
    Ok(())
}

/// From the leader's death to the first write that is acknowledged.
async fn fail_over(ensemble: &mut Ensemble, figures: &mut Figures) -> Result<(), Failure> {
    let leader = ensemble.leader().ok_or("nobody leads")?;
    ensemble.kill(leader)?;
    let began = Instant::now();
    let addresses = ensemble.addresses();
    // A client of its own, so that no client's back-off is measured.
    loop {
        let attempt = async {
            let client = connect(&addresses).await?;
            client.create(&format!("/after-{}", rand::random::<u32>()), &[], &LASTING).await?;
            Ok::<_, Failure>(())
        };
        match tokio::time::timeout(Duration::from_millis(500), attempt).await {
            Ok(Ok(())) => break,
            _ if began.elapsed() > PATIENCE => return Err("no write after the fail-over".into()),
            _ => {}
        }
    }
    figures.note("leader killed, to the first acknowledged write, ms", began.elapsed().as_secs_f64() * 1e3);
    Ok(())
}
