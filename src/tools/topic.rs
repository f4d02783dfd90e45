//! `loggos topic`: create, list, describe, alter, delete; `reassign` is in the file of that name.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use loggos_client::admin::{Admin, ConfigChange, ConfigOwner, NewTopic};
use loggos_client::metadata::TopicMetadata;
use loggos_client::{ClientError, ConsumerConfig, OffsetSpec, SimpleConsumer};
use loggos_protocol::ids::{BrokerId, Offset, PartitionId, TopicName};
use loggos_protocol::kafka::ErrorCode;
use tokio::time::{Instant, sleep};

use super::options::{Bootstrap, pair, topic_name};
use super::{Failure, reassign, table};

/// How long a command waits until what it did is seen by the broker that it asks; nothing fails after that.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const SETTLE_PAUSE: Duration = Duration::from_millis(50);

/// What to do with topics.
#[derive(Subcommand)]
pub enum Command {
    /// Create a topic
    Create(Create),
    /// Print the topics' names
    List(List),
    /// Print a topic's partitions, and the configurations that differ from the defaults
    Describe(Named),
    /// Give a topic more partitions, or other configurations
    Alter(Alter),
    /// Delete a topic and its records
    Delete(Named),
    /// Move a topic's replicas to other brokers, or change how many there are
    Reassign(reassign::Options),
}

/// A topic to be created.
#[derive(Args)]
pub struct Create {
    #[command(flatten)]
    named: Named,

    /// How many partitions; by default as many as the broker's num.partitions says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,

    /// How many brokers hold a copy; by default as many as default.replication.factor says
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(i16).range(1..))]
    replication_factor: Option<i16>,

    /// A configuration, for instance retention.ms=86400000; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    config: Vec<(String, String)>,

    /// Succeed if the topic exists, whatever it looks like
    #[arg(long)]
    if_not_exists: bool,
}

/// Which topics to list.
#[derive(Args)]
pub struct List {
    /// Name the cluster's own topics too
    #[arg(long)]
    internal: bool,

    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// A topic.
#[derive(Args)]
pub struct Named {
    /// The topic
    #[arg(value_name = "NAME", value_parser = topic_name)]
    topic: TopicName,

    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// Changes.
#[derive(Args)]
pub struct Alter {
    #[command(flatten)]
    named: Named,

    /// How many partitions there are to be, all in all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,

    /// Set a configuration; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    config: Vec<(String, String)>,

    /// Set a configuration back to the default; may be given several times
    #[arg(long, value_name = "KEY")]
    delete_config: Vec<String>,
}

/// Does it.
pub async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Create(options) => create(options).await,
        Command::List(options) => list(options).await,
        Command::Describe(named) => describe(named).await,
        Command::Alter(options) => alter(options).await,
        Command::Delete(named) => delete(named).await,
        Command::Reassign(options) => reassign::run(options).await,
    }
}

async fn create(options: Create) -> Result<(), Failure> {
    let admin = Admin::new(options.named.bootstrap.cluster().await?);
    let name = options.named.topic;
    let topic = NewTopic {
        name: name.clone(),
        partitions: options.partitions,
        replication_factor: options.replication_factor,
        configs: options.config.into_iter().collect(),
    };
    match admin.create_topic(&topic).await {
        Err(error) if options.if_not_exists && error.code() == Some(ErrorCode::TOPIC_ALREADY_EXISTS) => {
            Ok(())
        }
        Err(error) => Err(error.into()),
        Ok(()) => {
            let is_led = |topic: Result<TopicMetadata, ClientError>| {
                topic.is_ok_and(|topic| topic.partitions.values().all(|partition| partition.leader.is_some()))
            };
            settle(&admin, &name, is_led).await;
            Ok(())
        }
    }
}

/// Waits until `done` says that the topic is as it should be, as far as patience goes.
async fn settle(admin: &Admin, topic: &TopicName, done: impl Fn(Result<TopicMetadata, ClientError>) -> bool) {
    let deadline = Instant::now() + SETTLE_PATIENCE;
    while !done(admin.describe_topic(topic).await) && Instant::now() < deadline {
        sleep(SETTLE_PAUSE).await;
    }
}

async fn list(options: List) -> Result<(), Failure> {
    let admin = Admin::new(options.bootstrap.cluster().await?);
    let topics = admin.list_topics().await?;
    let mut out = io::stdout().lock();
    for (name, _) in topics.iter().filter(|(_, topic)| options.internal || !topic.internal) {
        writeln!(out, "{name}")?;
    }
    Ok(out.flush()?)
}

async fn describe(named: Named) -> Result<(), Failure> {
    let (admin, name) = (Admin::new(named.bootstrap.cluster().await?), named.topic);
    let topic = admin.describe_topic(&name).await?;
    let config = ConsumerConfig { cluster: named.bootstrap.config(), ..ConsumerConfig::default() };
    let consumer = SimpleConsumer::with_cluster(admin.cluster().clone(), config);
    let led = topic.partitions.values().all(|partition| partition.leader.is_some());
    let (mut starts, mut ends) = (BTreeMap::new(), BTreeMap::new());
    if led {
        // Without a leader nobody knows; with one, a failure shows as unknown and the rest is still worth printing.
        starts = consumer.offsets(&name, OffsetSpec::Earliest).await.unwrap_or_default();
        ends = consumer.offsets(&name, OffsetSpec::Latest).await.unwrap_or_default();
    }
    let mut rows =
        vec![["partition", "leader", "epoch", "replicas", "isr", "first", "next"].map(str::to_owned)];
    for (number, partition) in &topic.partitions {
        rows.push([
            number.to_string(),
            partition.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
            partition.leader_epoch.to_string(),
            brokers(&partition.replicas),
            brokers(&partition.isr),
            known(&starts, *number),
            known(&ends, *number),
        ]);
    }
    let configs = admin.describe_configs(&ConfigOwner::Topic(name.clone())).await?;
    let mut out = io::stdout().lock();
    writeln!(out, "topic {name}")?;
    writeln!(out, "id {}", topic.id)?;
    table::print(&mut out, &rows)?;
    for config in configs.into_iter().filter(|config| !config.is_default) {
        let origin = if config.is_own { "" } else { "  (the broker's)" };
        writeln!(out, "{}={}{origin}", config.name, config.value.unwrap_or_default())?;
    }
    Ok(out.flush()?)
}

fn brokers(ids: &[BrokerId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn known(offsets: &BTreeMap<PartitionId, Offset>, partition: PartitionId) -> String {
    offsets.get(&partition).map_or_else(|| "?".to_owned(), ToString::to_string)
}

async fn alter(options: Alter) -> Result<(), Failure> {
    let set = options.config.into_iter().map(|(name, value)| ConfigChange::Set(name, value));
    let delete = options.delete_config.into_iter().map(ConfigChange::Delete);
    let changes: Vec<ConfigChange> = set.chain(delete).collect();
    if changes.is_empty() && options.partitions.is_none() {
        let sentence = "nothing to alter: give --partitions, --config or --delete-config";
        return Err(Failure::Refused(sentence.to_owned()));
    }
    let (admin, name) = (Admin::new(options.named.bootstrap.cluster().await?), options.named.topic);
    if !changes.is_empty() {
        admin.alter_configs(&ConfigOwner::Topic(name.clone()), &changes).await?;
    }
    if let Some(partitions) = options.partitions {
        admin.create_partitions(&name, partitions).await?;
        let count = usize::try_from(partitions).unwrap_or(usize::MAX);
        let has_them = |topic: Result<TopicMetadata, ClientError>| {
            topic.is_ok_and(|topic| {
                let led = topic.partitions.values().filter(|partition| partition.leader.is_some());
                led.count() >= count
            })
        };
        settle(&admin, &name, has_them).await;
    }
    Ok(())
}

async fn delete(named: Named) -> Result<(), Failure> {
    let admin = Admin::new(named.bootstrap.cluster().await?);
    admin.delete_topic(&named.topic).await?;
    settle(&admin, &named.topic, |topic| topic.is_err()).await;
    Ok(())
}
