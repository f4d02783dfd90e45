//! `loggos topic reassign`: where a topic's replicas should be, what has to move for it, and the moving itself. The plan
//! moves as little as it can: replicas that may stay do.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use loggos_client::admin::{Admin, ConfigChange, ConfigOwner, Outcome};
use loggos_protocol::ids::{BrokerId, PartitionId, TopicName, TopicPartition};
use tokio::time::sleep;

use super::Failure;
use super::options::{Bootstrap, topic_name};

/// Between two looks at how far it is.
const PAUSE: Duration = Duration::from_millis(200);
/// The configs that a throttled move sets, and takes back in the end.
const REPLICAS: [&str; 2] =
    ["leader.replication.throttled.replicas", "follower.replication.throttled.replicas"];
const RATES: [&str; 2] = ["leader.replication.throttled.rate", "follower.replication.throttled.rate"];

/// A topic, and where it is to be.
#[derive(Args)]
pub struct Options {
    /// The topic
    #[arg(value_name = "NAME", value_parser = topic_name)]
    topic: TopicName,

    /// The brokers that are to hold it; by default all that are there
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    brokers: Vec<i32>,

    /// How many copies there are to be; by default as many as now
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u16).range(1..))]
    replication_factor: Option<u16>,

    /// Print what would move, and move nothing
    #[arg(long)]
    dry_run: bool,

    /// Give up what is moving: the replicas are those from before
    #[arg(long, conflicts_with_all = ["brokers", "replication_factor", "throttle"])]
    cancel: bool,

    /// Copy no faster than so many bytes a second per broker
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    throttle: Option<u64>,

    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// Where partitions are: the preferred leader first.
pub type Placed = BTreeMap<PartitionId, Vec<BrokerId>>;

/// Does it, and waits until it is done.
pub async fn run(options: Options) -> Result<(), Failure> {
    let admin = Admin::new(options.bootstrap.cluster().await?);
    let topic = admin.describe_topic(&options.topic).await?;
    let now: Placed = topic.partitions.iter().map(|(id, known)| (*id, known.replicas.clone())).collect();
    if options.cancel {
        return cancel(&admin, &options.topic).await;
    }
    let live: Vec<BrokerId> = admin.describe_cluster().await?.brokers.iter().map(|node| node.id).collect();
    let targets: Vec<BrokerId> = if options.brokers.is_empty() {
        live.clone()
    } else {
        options.brokers.iter().copied().map(BrokerId::new).collect()
    };
    if let Some(dead) = targets.iter().find(|broker| !live.contains(broker)) {
        return Err(Failure::Refused(format!("--brokers: broker {dead} is not there")));
    }
    let factor = options.replication_factor.map(usize::from);
    let wanted = plan(&now, &targets, factor).ok_or_else(|| {
        Failure::Refused(format!("{} brokers can't hold so many copies of each partition", targets.len()))
    })?;
    let moves = changes(&options.topic, &now, &wanted);
    print(&now, &wanted)?;
    if options.dry_run || moves.is_empty() {
        return Ok(());
    }
    let throttled = match options.throttle {
        Some(rate) => Some(throttle(&admin, &options.topic, &live, rate).await?),
        None => None,
    };
    let moved = async {
        refuse_failures(&admin.reassign(&moves).await?)?;
        wait(&admin, moves.keys()).await
    };
    let moved = moved.await;
    if let Some(changed) = throttled {
        release(&admin, changed).await?;
    }
    moved
}

/// What has to change; `None` gives nothing up here.
fn changes(
    topic: &TopicName,
    now: &Placed,
    wanted: &Placed,
) -> BTreeMap<TopicPartition, Option<Vec<BrokerId>>> {
    let differs = wanted.iter().filter(|(id, replicas)| now.get(id) != Some(replicas));
    differs
        .map(|(id, replicas)| {
            (TopicPartition { topic: topic.clone(), partition: *id }, Some(replicas.clone()))
        })
        .collect()
}

/// Spreads partitions over `targets`, moving as little as possible; `None` when there are fewer than copies.
pub fn plan(now: &Placed, targets: &[BrokerId], factor: Option<usize>) -> Option<Placed> {
    let mut kept: BTreeMap<BrokerId, usize> = targets.iter().map(|broker| (*broker, 0)).collect();
    let most = |factor: usize, partitions: usize| (factor * partitions).div_ceil(targets.len().max(1));
    let copies = now.values().map(|replicas| factor.unwrap_or(replicas.len())).max().unwrap_or(0);
    if targets.len() < copies || copies == 0 {
        return None;
    }
    let most = most(copies, now.len());
    let mut placed = Placed::new();
    // First what may stay stays, as long as nobody has more than a fair part; then the rest goes to who has least.
    for (id, replicas) in now {
        let factor = factor.unwrap_or(replicas.len());
        let mut stay = Vec::new();
        for broker in replicas {
            let Some(count) = kept.get_mut(broker) else { continue };
            if stay.len() < factor && *count < most {
                *count += 1;
                stay.push(*broker);
            }
        }
        placed.insert(*id, stay);
    }
    for (id, replicas) in &mut placed {
        let factor = factor.unwrap_or_else(|| now.get(id).map_or(0, Vec::len));
        while replicas.len() < factor {
            let least =
                kept.iter().filter(|(broker, _)| !replicas.contains(broker)).min_by_key(|(_, count)| **count);
            let broker = *least?.0;
            *kept.entry(broker).or_default() += 1;
            replicas.push(broker);
        }
    }
    level(&mut placed, &mut kept);
    let mut leads: BTreeMap<BrokerId, usize> = BTreeMap::new();
    for replicas in placed.values_mut() {
        // The one that leads least; of those the first, which has led before.
        let best = (0..replicas.len()).min_by_key(|at| leads.get(&replicas[*at]).copied().unwrap_or(0))?;
        replicas[..=best].rotate_right(1);
        *leads.entry(replicas[0]).or_default() += 1;
    }
    Some(placed)
}

/// Moves single copies from who has most to who has least, until nobody has two more than another who could take one.
/// The last partitions may have found only brokers that were full already.
fn level(placed: &mut Placed, kept: &mut BTreeMap<BrokerId, usize>) {
    let copies: usize = kept.values().sum();
    // Each step brings two counts nearer to one another, so it ends; the bound says so to the reader.
    for _ in 0..copies * kept.len() {
        let mut order: Vec<(usize, BrokerId)> =
            kept.iter().map(|(broker, count)| (*count, *broker)).collect();
        order.sort_unstable();
        let pairs = order.iter().rev().flat_map(|most| order.iter().map(move |least| (*most, *least)));
        let step = pairs.filter(|(most, least)| most.0 >= least.0 + 2).find_map(|((_, from), (_, to))| {
            let partition = placed
                .iter()
                .rev()
                .find(|(_, replicas)| replicas.contains(&from) && !replicas.contains(&to))
                .map(|(id, _)| *id)?;
            Some((partition, from, to))
        });
        let Some((partition, from, to)) = step else { return };
        for replica in placed.get_mut(&partition).into_iter().flatten() {
            if *replica == from {
                *replica = to;
            }
        }
        *kept.entry(from).or_default() -= 1;
        *kept.entry(to).or_default() += 1;
    }
}

async fn cancel(admin: &Admin, topic: &TopicName) -> Result<(), Failure> {
    let moving = admin.reassignments().await?;
    let moves: BTreeMap<_, _> =
        moving.into_keys().filter(|partition| partition.topic == *topic).map(|one| (one, None)).collect();
    if moves.is_empty() {
        return Err(Failure::Refused(format!("nothing of '{topic}' is moving")));
    }
    refuse_failures(&admin.reassign(&moves).await?)
}

/// The first partition that couldn't be, as a sentence.
pub(super) fn refuse_failures(outcomes: &[Outcome]) -> Result<(), Failure> {
    match outcomes.iter().find(|outcome| !outcome.code.is_none()) {
        None => Ok(()),
        Some(failed) => {
            let why = failed.message.clone().unwrap_or_else(|| format!("{:?}", failed.code));
            Err(Failure::Failed(format!("{}: {why}", failed.partition)))
        }
    }
}

/// Waits until none of `partitions` moves.
pub(super) async fn wait(
    admin: &Admin,
    partitions: impl Iterator<Item = &TopicPartition> + Clone,
) -> Result<(), Failure> {
    loop {
        let moving = admin.reassignments().await?;
        if !partitions.clone().any(|partition| moving.contains_key(partition)) {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

/// What was set for a throttled move, with the names to take back.
type Set = Vec<(ConfigOwner, [&'static str; 2])>;

async fn throttle(admin: &Admin, topic: &TopicName, brokers: &[BrokerId], rate: u64) -> Result<Set, Failure> {
    let mut set = Set::new();
    let owner = ConfigOwner::Topic(topic.clone());
    admin
        .alter_configs(&owner, &REPLICAS.map(|name| ConfigChange::Set(name.to_owned(), "*".to_owned())))
        .await?;
    set.push((owner, REPLICAS));
    for broker in brokers {
        let owner = ConfigOwner::Broker(*broker);
        let rates = RATES.map(|name| ConfigChange::Set(name.to_owned(), rate.to_string()));
        admin.alter_configs(&owner, &rates).await?;
        set.push((owner, RATES));
    }
    Ok(set)
}

async fn release(admin: &Admin, set: Set) -> Result<(), Failure> {
    for (owner, names) in set {
        admin.alter_configs(&owner, &names.map(|name| ConfigChange::Delete(name.to_owned()))).await?;
    }
    Ok(())
}

/// One line per partition that changes.
fn print(now: &Placed, wanted: &Placed) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let shown =
        |replicas: &[BrokerId]| replicas.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    for (id, replicas) in wanted {
        let before = now.get(id).map(Vec::as_slice).unwrap_or_default();
        if before != replicas {
            writeln!(out, "partition {id}: {} -> {}", shown(before), shown(replicas))?;
        }
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_plan_is_fair_and_moves_no_more_than_it_must(
            partitions in 1..20i32,
            factor in 1..4usize,
            before in 3..6i32,
            after in 3..8i32,
        ) {
            plan_is_fair(partitions, factor, before, after)?;
        }
    }

    #[test]
    fn a_new_broker_gets_its_part_though_the_others_could_keep_all() {
        plan_is_fair(8, 3, 3, 4).expect("fair");
    }

    fn plan_is_fair(partitions: i32, factor: usize, before: i32, after: i32) -> Result<(), TestCaseError> {
        let ids = |count: i32| (1..=count).map(BrokerId::new).collect::<Vec<_>>();
        let old = ids(before);
        let now: Placed = (0..partitions)
            .map(|id| {
                let replicas = (0..factor).map(|at| old[(id as usize + at) % old.len()]).collect();
                (PartitionId::new(id), replicas)
            })
            .collect();
        let wanted = plan(&now, &ids(after), None).expect("enough brokers");
        let mut kept: BTreeMap<BrokerId, usize> = BTreeMap::new();
        for (id, replicas) in &wanted {
            let distinct: BTreeSet<_> = replicas.iter().collect();
            prop_assert_eq!(distinct.len(), factor);
            prop_assert!(replicas.iter().all(|broker| broker.raw() <= after));
            prop_assert_eq!(now[id].len(), replicas.len());
            for broker in replicas {
                *kept.entry(*broker).or_default() += 1;
            }
        }
        let fair = (factor * partitions as usize).div_ceil(after as usize);
        prop_assert!(kept.values().all(|count| *count <= fair), "{kept:?} of {fair}");
        let again = plan(&wanted, &ids(after), None).expect("enough brokers");
        let sets = |placed: &Placed| -> Vec<BTreeSet<BrokerId>> {
            placed.values().map(|replicas| replicas.iter().copied().collect()).collect()
        };
        let moved = sets(&again).iter().zip(sets(&wanted)).filter(|(a, b)| *a != b).count();
        prop_assert!(moved <= after as usize, "a plan that is done is done again: {moved}");
        Ok(())
    }

    #[test]
    fn too_few_brokers_are_refused() {
        let now = Placed::from([(PartitionId::new(0), vec![BrokerId::new(1), BrokerId::new(2)])]);
        assert_eq!(plan(&now, &[BrokerId::new(1)], None), None);
        assert_eq!(plan(&now, &[BrokerId::new(1)], Some(1)).map(|placed| placed.len()), Some(1));
    }
}
