//! `loggos group`: list, describe, reset-offsets, delete.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use loggos_client::admin::Admin;
use loggos_client::{ConsumerConfig, OffsetSpec, SimpleConsumer};
use loggos_protocol::ids::{GroupId, Offset, PartitionId, Timestamp, TopicName, TopicPartition};
use loggos_protocol::kafka::ErrorCode;

use super::Failure;
use super::instant::place;
use super::options::{Bootstrap, topic_name};

/// What to do with consumer groups.
#[derive(Subcommand)]
pub enum Command {
    /// Print the groups: name, protocol, state
    List(List),
    /// Print a group's members, what each holds, and how far behind it is
    Describe(Named),
    /// Show where a group without members would go on reading, and with --execute make it so
    ResetOffsets(Box<Reset>),
    /// Delete a group without members, and its offsets
    Delete(Named),
}

/// Which groups to list.
#[derive(Args)]
pub struct List {
    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// A group.
#[derive(Args)]
pub struct Named {
    /// The group
    #[arg(value_name = "GROUP", value_parser = group_name)]
    group: GroupId,

    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// Where a group is to go on.
#[derive(Args)]
pub struct Reset {
    #[command(flatten)]
    named: Named,

    /// Only these topics; by default all that the group has committed offsets of
    #[arg(long = "topic", value_name = "TOPIC", value_parser = topic_name)]
    topics: Vec<TopicName>,

    #[command(flatten)]
    to: To,

    /// Do it; without this the new offsets are only shown
    #[arg(long)]
    execute: bool,
}

/// One of these.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct To {
    /// To the first record that is still there
    #[arg(long)]
    to_earliest: bool,

    /// To the end: only what comes from now on
    #[arg(long)]
    to_latest: bool,

    /// To the first record at or after a time: 2024-01-31T12:00:00Z, or @ and milliseconds since 1970
    #[arg(long, value_name = "TIME", value_parser = time)]
    to_time: Option<Timestamp>,

    /// To this offset of each partition, or as near as there are records
    #[arg(long, value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    to_offset: Option<i64>,

    /// To the first record of so long ago: 90s, 15m, 6h, 2d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    by_duration: Option<Duration>,
}

fn group_name(text: &str) -> Result<GroupId, String> {
    if text.is_empty() { Err("a group has a name".to_owned()) } else { Ok(GroupId::new(text)) }
}

fn time(text: &str) -> Result<Timestamp, String> {
    match place(text) {
        Ok(OffsetSpec::At(at)) => Ok(at),
        _ => Err("it must be 2024-01-31T12:00:00Z or @1700000000000 (milliseconds since 1970)".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let refused = || "it must be a number and s, m, h or d, for instance 90s or 2d".to_owned();
    let unit = text.chars().last().ok_or_else(refused)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(refused()),
    };
    let count: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| refused())?;
    count.checked_mul(seconds).map(Duration::from_secs).ok_or_else(refused)
}

/// Does it.
pub async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::List(options) => list(options).await,
        Command::Describe(named) => describe(named).await,
        Command::ResetOffsets(options) => reset(*options).await,
        Command::Delete(named) => delete(named).await,
    }
}

async fn list(options: List) -> Result<(), Failure> {
    let admin = Admin::new(options.bootstrap.cluster().await?);
    let groups = admin.list_groups().await?;
    let mut rows = vec![["group", "protocol", "state"].map(str::to_owned)];
    rows.extend(groups.into_iter().map(|group| [group.id.to_string(), group.kind, group.state]));
    print(&rows)
}

/// Ends and beginnings of partitions.
type Ends = BTreeMap<PartitionId, Offset>;

fn consumer(admin: &Admin, bootstrap: &Bootstrap) -> SimpleConsumer {
    let config = ConsumerConfig { cluster: bootstrap.config(), ..ConsumerConfig::default() };
    SimpleConsumer::with_cluster(admin.cluster().clone(), config)
}

async fn describe(named: Named) -> Result<(), Failure> {
    let admin = Admin::new(named.bootstrap.cluster().await?);
    let group = admin.describe_group(&named.group).await?;
    let offsets = admin.group_offsets(&named.group).await?;
    let mut holders: BTreeMap<TopicPartition, String> = BTreeMap::new();
    for member in &group.members {
        let shown = format!("{} {}", member.instance.as_ref().unwrap_or(&member.id), member.host);
        holders.extend(member.partitions.iter().map(|place| (place.clone(), shown.clone())));
    }
    let places: BTreeSet<TopicPartition> = holders.keys().chain(offsets.keys()).cloned().collect();
    let topics: BTreeSet<TopicName> = places.iter().map(|place| place.topic.clone()).collect();
    let reader = consumer(&admin, &named.bootstrap);
    let mut ends: BTreeMap<TopicName, Ends> = BTreeMap::new();
    for topic in topics {
        // Where an end can't be told the lag is unknown, and the rest is still worth printing.
        ends.insert(topic.clone(), reader.offsets(&topic, OffsetSpec::Latest).await.unwrap_or_default());
    }
    let mut rows =
        vec![["topic", "partition", "committed", "end", "lag", "member", "host"].map(str::to_owned)];
    for place in places {
        let committed = offsets.get(&place);
        let end = ends.get(&place.topic).and_then(|ends| ends.get(&place.partition));
        let lag = committed.zip(end).map(|(committed, end)| (end.raw() - committed.raw()).max(0).to_string());
        let holder = holders.get(&place).map_or("-", String::as_str);
        let (member, host) = holder.rsplit_once(' ').unwrap_or((holder, "-"));
        rows.push([
            place.topic.to_string(),
            place.partition.to_string(),
            shown(committed),
            shown(end),
            lag.unwrap_or_else(|| "?".to_owned()),
            member.to_owned(),
            host.to_owned(),
        ]);
    }
    {
        let mut out = io::stdout().lock();
        writeln!(out, "group {}", group.id)?;
        writeln!(out, "state {}", group.state)?;
        let assignor =
            if group.assignor.is_empty() { String::new() } else { format!(", {}", group.assignor) };
        writeln!(out, "protocol {}{assignor}", group.kind)?;
        writeln!(out, "broker {}", group.broker)?;
        writeln!(out, "members {}", group.members.len())?;
    }
    print(&rows)
}

fn shown(offset: Option<&Offset>) -> String {
    offset.map_or_else(|| "-".to_owned(), ToString::to_string)
}

async fn reset(options: Reset) -> Result<(), Failure> {
    let (group, bootstrap) = (options.named.group, options.named.bootstrap);
    let admin = Admin::new(bootstrap.cluster().await?);
    let before = match admin.group_offsets(&group).await {
        Ok(offsets) => offsets,
        Err(error) if error.code() == Some(ErrorCode::GROUP_ID_NOT_FOUND) => BTreeMap::new(),
        Err(error) => return Err(error.into()),
    };
    let mut topics: BTreeSet<TopicName> = options.topics.into_iter().collect();
    if topics.is_empty() {
        topics.extend(before.keys().map(|place| place.topic.clone()));
    }
    if topics.is_empty() {
        let sentence = format!("group '{group}' has committed nothing; say which topics with --topic");
        return Err(Failure::Refused(sentence));
    }
    let reader = consumer(&admin, &bootstrap);
    let mut after: BTreeMap<TopicPartition, Offset> = BTreeMap::new();
    for topic in &topics {
        let starts = reader.offsets(topic, OffsetSpec::Earliest).await?;
        let ends = reader.offsets(topic, OffsetSpec::Latest).await?;
        let wanted = match spec(&options.to) {
            Some(spec) => reader.offsets(topic, spec).await?,
            None => Ends::new(),
        };
        for (partition, end) in &ends {
            let start = starts.get(partition).copied().unwrap_or(Offset::ZERO);
            // Nothing after that time: what comes next.
            let offset = match options.to.to_offset {
                Some(offset) => Offset::new(offset.clamp(start.raw(), end.raw())),
                None => wanted.get(partition).copied().filter(|offset| offset.raw() >= 0).unwrap_or(*end),
            };
            after.insert(TopicPartition::new(topic.clone(), *partition), offset);
        }
    }
    if options.execute {
        admin.set_group_offsets(&group, &after).await.map_err(|error| match error.code() {
            Some(ErrorCode::UNKNOWN_MEMBER_ID) => Failure::Failed(format!(
                "group '{group}' has members; stop them first, then reset its offsets"
            )),
            _ => Failure::from(error),
        })?;
    }
    let mut rows = vec![["topic", "partition", "committed", "new"].map(str::to_owned)];
    rows.extend(after.iter().map(|(place, offset)| {
        [place.topic.to_string(), place.partition.to_string(), shown(before.get(place)), offset.to_string()]
    }));
    print(&rows)?;
    if !options.execute {
        let mut out = io::stdout().lock();
        writeln!(out, "nothing was changed; add --execute to make it so")?;
    }
    Ok(())
}

/// What to look up; none for an offset that is given.
fn spec(to: &To) -> Option<OffsetSpec> {
    if to.to_earliest {
        return Some(OffsetSpec::Earliest);
    }
    if to.to_latest {
        return Some(OffsetSpec::Latest);
    }
    let ago = to.by_duration.map(|duration| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = now.saturating_sub(duration).as_millis();
        Timestamp::new(i64::try_from(at).unwrap_or(i64::MAX))
    });
    to.to_time.or(ago).map(OffsetSpec::At)
}

async fn delete(named: Named) -> Result<(), Failure> {
    let admin = Admin::new(named.bootstrap.cluster().await?);
    admin.delete_group(&named.group).await.map_err(|error| match error.code() {
        Some(ErrorCode::NON_EMPTY_GROUP) => {
            Failure::Failed(format!("group '{}' has members; stop them first", named.group))
        }
        _ => Failure::from(error),
    })
}

fn print<const N: usize>(rows: &[[String; N]]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    super::table::print(&mut out, rows)?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_typed() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "5", "m", "-1h", "1w", "99999999999999999999s", "18446744073709551615d", "5é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
