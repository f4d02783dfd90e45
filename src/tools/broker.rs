//! `loggos broker`: list, describe, drain.

use std::collections::BTreeMap;
use std::io::{self, Write};

use clap::{Args, Subcommand};
use loggos_client::admin::{Admin, ConfigOwner, Election};
use loggos_client::metadata::TopicMetadata;
use loggos_protocol::ids::{BrokerId, TopicName, TopicPartition};
use loggos_protocol::kafka::ErrorCode;

use super::Failure;
use super::options::Bootstrap;
use super::reassign::{refuse_failures, wait};

/// What to do with brokers.
#[derive(Subcommand)]
pub enum Command {
    /// Print the live brokers, and what they lead and keep
    List(List),
    /// Print what a broker leads and keeps, and its configurations that differ from the defaults
    Describe(Named),
    /// Let others lead what a broker leads, and keep what it keeps: before it is taken away
    Drain(Drain),
}

/// Where.
#[derive(Args)]
pub struct List {
    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// A broker.
#[derive(Args)]
pub struct Named {
    /// The broker's number
    #[arg(value_name = "ID")]
    broker: i32,

    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// What a broker gives up.
#[derive(Args)]
pub struct Drain {
    #[command(flatten)]
    named: Named,

    /// Move its replicas to other brokers too, and not only what it leads
    #[arg(long)]
    replicas: bool,

    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Does it.
pub async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::List(options) => list(options).await,
        Command::Describe(named) => describe(named).await,
        Command::Drain(options) => drain(options).await,
    }
}

/// What a broker has of all topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    leads: usize,
    keeps: usize,
    out_of_sync: usize,
}

fn shares(topics: &BTreeMap<TopicName, TopicMetadata>) -> BTreeMap<BrokerId, Share> {
    let mut shares: BTreeMap<BrokerId, Share> = BTreeMap::new();
    for partition in topics.values().flat_map(|topic| topic.partitions.values()) {
        for broker in &partition.replicas {
            let share = shares.entry(*broker).or_default();
            share.keeps += 1;
            share.out_of_sync += usize::from(!partition.isr.contains(broker));
            share.leads += usize::from(partition.leader == Some(*broker));
        }
    }
    shares
}

async fn list(options: List) -> Result<(), Failure> {
    let admin = Admin::new(options.bootstrap.cluster().await?);
    let cluster = admin.describe_cluster().await?;
    let shares = shares(&admin.list_topics().await?);
    let mut out = io::stdout().lock();
    writeln!(out, "broker  address  rack  leads  keeps  out-of-sync")?;
    for node in &cluster.brokers {
        let share = shares.get(&node.id).copied().unwrap_or_default();
        let rack = node.rack.as_deref().unwrap_or("-");
        let mark = if node.id == cluster.controller { "  controller" } else { "" };
        let (leads, keeps, out_of_sync) = (share.leads, share.keeps, share.out_of_sync);
        writeln!(out, "{}  {}  {rack}  {leads}  {keeps}  {out_of_sync}{mark}", node.id, node.address())?;
    }
    let dead = shares.iter().filter(|(id, _)| cluster.brokers.iter().all(|node| node.id != **id));
    for (id, share) in dead {
        writeln!(out, "{id}  not there  -  0  {}  {}", share.keeps, share.out_of_sync)?;
    }
    Ok(out.flush()?)
}

async fn describe(named: Named) -> Result<(), Failure> {
    let admin = Admin::new(named.bootstrap.cluster().await?);
    let id = BrokerId::new(named.broker);
    let cluster = admin.describe_cluster().await?;
    let Some(node) = cluster.brokers.iter().find(|node| node.id == id) else {
        return Err(Failure::Failed(format!("broker {id} is not there")));
    };
    let topics = admin.list_topics().await?;
    let configs = admin.describe_configs(&ConfigOwner::Broker(id)).await?;
    let mut out = io::stdout().lock();
    writeln!(out, "broker {id}\naddress {}", node.address())?;
    writeln!(out, "rack {}", node.rack.as_deref().unwrap_or("-"))?;
    writeln!(out, "controller {}", if cluster.controller == id { "yes" } else { "no" })?;
    for (name, topic) in &topics {
        for (number, partition) in topic.partitions.iter().filter(|(_, known)| known.replicas.contains(&id)) {
            let leads = if partition.leader == Some(id) { "leads" } else { "follows" };
            let in_sync = if partition.isr.contains(&id) { "" } else { "  out of sync" };
            writeln!(out, "{name}-{number}  {leads}{in_sync}")?;
        }
    }
    for config in configs.into_iter().filter(|config| !config.is_default) {
        writeln!(out, "{}={}", config.name, config.value.unwrap_or_default())?;
    }
    Ok(out.flush()?)
}

type Moves = BTreeMap<TopicPartition, Option<Vec<BrokerId>>>;

async fn drain(options: Drain) -> Result<(), Failure> {
    let admin = Admin::new(options.named.bootstrap.cluster().await?);
    let id = BrokerId::new(options.named.broker);
    let topics = admin.list_topics().await?;
    let live: Vec<BrokerId> = admin.describe_cluster().await?.brokers.iter().map(|node| node.id).collect();
    let moves = if options.replicas { moves_away(&topics, id, &live) } else { demotions(&topics, id) };
    let moves = moves.map_err(Failure::Refused)?;
    let led: Vec<TopicPartition> = partitions(&topics)
        .filter(|(_, topic, number)| {
            let partition = &topic.partitions[number];
            partition.leader == Some(id) && partition.isr.iter().any(|other| *other != id)
        })
        .map(|(name, _, number)| TopicPartition { topic: name.clone(), partition: number })
        .collect();
    {
        let mut out = io::stdout().lock();
        for (partition, replicas) in &moves {
            let shown: Vec<String> = replicas.iter().flatten().map(ToString::to_string).collect();
            writeln!(out, "{partition}: -> {}", shown.join(","))?;
        }
        writeln!(out, "{} partitions get another leader", led.len())?;
        out.flush()?;
    }
    if options.dry_run {
        return Ok(());
    }
    if !moves.is_empty() {
        refuse_failures(&admin.reassign(&moves).await?)?;
        wait(&admin, moves.keys()).await?;
    }
    // A move away has its leader elected in the end; the others are asked for.
    if !options.replicas && !led.is_empty() {
        let outcomes = admin.elect_leaders(&led, Election::Preferred).await?;
        let failed: Vec<_> =
            outcomes.into_iter().filter(|outcome| outcome.code != ErrorCode::ELECTION_NOT_NEEDED).collect();
        refuse_failures(&failed)?;
    }
    Ok(())
}

fn partitions(
    topics: &BTreeMap<TopicName, TopicMetadata>,
) -> impl Iterator<Item = (&TopicName, &TopicMetadata, loggos_protocol::ids::PartitionId)> {
    topics.iter().flat_map(|(name, topic)| topic.partitions.keys().map(move |number| (name, topic, *number)))
}

/// Puts `broker` behind a replica in sync, where it is the preferred one.
fn demotions(topics: &BTreeMap<TopicName, TopicMetadata>, broker: BrokerId) -> Result<Moves, String> {
    let mut moves = Moves::new();
    for (name, topic, number) in partitions(topics) {
        let partition = &topic.partitions[&number];
        let is_preferred = partition.replicas.first() == Some(&broker);
        let next = partition.replicas.iter().find(|other| **other != broker && partition.isr.contains(other));
        let (true, Some(next)) = (is_preferred, next) else { continue };
        let mut replicas: Vec<BrokerId> =
            partition.replicas.iter().copied().filter(|other| *other != broker && other != next).collect();
        replicas.insert(0, *next);
        replicas.push(broker);
        moves.insert(TopicPartition { topic: name.clone(), partition: number }, Some(replicas));
    }
    Ok(moves)
}

/// Gives each of `broker`'s replicas to the live broker that keeps least.
fn moves_away(
    topics: &BTreeMap<TopicName, TopicMetadata>,
    broker: BrokerId,
    live: &[BrokerId],
) -> Result<Moves, String> {
    let mut keeps: BTreeMap<BrokerId, usize> =
        live.iter().filter(|other| **other != broker).map(|other| (*other, 0)).collect();
    for (other, share) in shares(topics) {
        if let Some(count) = keeps.get_mut(&other) {
            *count = share.keeps;
        }
    }
    let mut moves = Moves::new();
    for (name, topic, number) in partitions(topics) {
        let partition = &topic.partitions[&number];
        if !partition.replicas.contains(&broker) {
            continue;
        }
        let free = keeps.iter().filter(|(other, _)| !partition.replicas.contains(other));
        let Some((heir, _)) = free.min_by_key(|(_, count)| **count).map(|(heir, count)| (*heir, *count))
        else {
            return Err(format!("{name}-{number}: no live broker is left for another replica"));
        };
        *keeps.entry(heir).or_default() += 1;
        let replicas = partition.replicas.iter().map(|other| if *other == broker { heir } else { *other });
        moves.insert(TopicPartition { topic: name.clone(), partition: number }, Some(replicas.collect()));
    }
    Ok(moves)
}
