//! Consumer groups' nodes: who runs a group, its members, who holds what, what was committed.
//!
//! A broker that runs a group claims it first: the claim raises the version of the group's node, and every later
//! write names that version, so that a broker which was replaced without knowing writes nothing any more. Called by
//! the broker's groups; the mark also by consumers that run their group themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use futures::StreamExt;
use loggos_protocol::ids::{GroupId, MemberId, PartitionId, TopicName};
use loggos_protocol::registry::group::{GroupMark, RunBy};
use loggos_protocol::registry::path;
use loggos_protocol::registry::record::Record;

use super::{Op, Registry, RegistryError};

/// Nodes that one change touches at most: an ensemble's requests are bounded.
const OPS_MAX: usize = 500;
/// Bytes that one change carries at most; a ZooKeeper refuses 1 MiB.
const BYTES_MAX: usize = 512 << 10;
/// What a node's path and lengths add to its data, roughly.
const OP_OVERHEAD: usize = 100;
/// Reads under way at the same time.
const READS: usize = 64;
/// Attempts at a claim while others claim too.
const CLAIMS: usize = 5;
/// The version of a node that isn't there.
const ABSENT: i32 = -1;

/// A topic's partition.
pub type Place = (TopicName, PartitionId);

/// Committed bytes by partition.
pub type StoredOffsets = BTreeMap<Place, Vec<u8>>;

/// The version of a group's node, as whoever claimed it knows it; clones are the same.
#[derive(Clone, Debug)]
pub struct GroupFence(Arc<AtomicI32>);

impl GroupFence {
    /// The version now; `None` while there is no node.
    pub fn version(&self) -> Option<i32> {
        Some(self.0.load(Ordering::Acquire)).filter(|version| *version != ABSENT)
    }

    fn set(&self, version: i32) {
        self.0.store(version, Ordering::Release);
    }
}

/// A claimed group's nodes, as its broker wrote them: nobody else does.
#[derive(Debug)]
pub struct GroupNodes {
    group: GroupId,
    fence: GroupFence,
    members: BTreeMap<MemberId, Vec<u8>>,
    owners: BTreeMap<Place, Option<MemberId>>,
    owner_topics: BTreeSet<TopicName>,
}

impl GroupNodes {
    /// Its fence.
    pub fn fence(&self) -> GroupFence {
        self.fence.clone()
    }

    /// Whether the registry knows the group.
    pub fn exist(&self) -> bool {
        self.fence.version().is_some()
    }

    /// Its members' values.
    pub const fn members(&self) -> &BTreeMap<MemberId, Vec<u8>> {
        &self.members
    }

    /// Partitions with a holder.
    pub fn owned(&self) -> impl Iterator<Item = &Place> {
        self.owners.keys()
    }
}

/// What a claim found.
#[derive(Debug)]
pub enum Claim {
    /// Nobody has used the group yet; the first write makes it.
    New(GroupNodes),
    /// It is ours now.
    Ours {
        /// Its nodes.
        nodes: GroupNodes,
        /// The value of its own node; empty where nobody has written one.
        head: Vec<u8>,
        /// What was committed.
        offsets: StoredOffsets,
        /// Topics with a node for offsets.
        topics: BTreeSet<TopicName>,
    },
    /// Its members run it.
    Theirs,
}

/// A group as anybody sees it, whoever runs it.
#[derive(Clone, Debug, Default)]
pub struct SeenGroup {
    /// Its members' values.
    pub members: BTreeMap<MemberId, Vec<u8>>,
    /// Who holds what, as it is written there.
    pub owners: BTreeMap<Place, Vec<u8>>,
    /// What was committed.
    pub offsets: StoredOffsets,
}

/// A change of a group: all of it is written, or the group must be claimed anew.
#[derive(Clone, Debug, Default)]
pub struct GroupChange {
    /// The new value of its node.
    pub head: Vec<u8>,
    /// Members' new values; `None` for one that has gone.
    pub members: BTreeMap<MemberId, Option<Vec<u8>>>,
    /// Partitions' new holders.
    pub owners: BTreeMap<Place, Option<MemberId>>,
}

/// One offset of a round of commits.
#[derive(Clone, Debug)]
pub struct CommitPart {
    /// Whose.
    pub group: GroupId,
    /// The version that the group's node must have.
    pub version: i32,
    /// Of what.
    pub place: Place,
    /// Its value; `None` to delete it.
    pub data: Option<Vec<u8>>,
    /// Whether it has a node already.
    pub exists: bool,
    /// Whether its topic's node is to be made first.
    pub first_of_topic: bool,
}

/// Why a round wrote nothing.
#[derive(Debug)]
pub enum RoundFailure {
    /// The group's node has another version.
    Fenced(GroupId),
    /// This part can't be written.
    Part(usize, RegistryError),
    /// The round as a whole.
    Whole(RegistryError),
}

impl Registry {
    /// Says that a group's members run it, if nobody has said anything else; who runs it is the answer.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn mark_group(&self, group: &GroupId, run_by: RunBy) -> Result<RunBy, RegistryError> {
        let path = path::group(group);
        for _ in 0..CLAIMS {
            let mark = GroupMark::new(run_by).to_bytes();
            match self.session().get(&path).await? {
                None => {
                    self.session().create_if_absent(&path, &mark).await?;
                    self.session().sync().await?;
                }
                Some(node) if node.data.is_empty() => {
                    match self.session().set(&path, &mark, Some(node.version)).await {
                        Ok(_) | Err(RegistryError::Conflict | RegistryError::Absent) => {}
                        Err(error) => return Err(error),
                    }
                }
                Some(node) => return Ok(GroupMark::from_bytes(&node.data)?.run_by),
            }
        }
        Err(RegistryError::Conflict)
    }

    /// The ids of all groups.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn group_ids(&self) -> Result<Vec<GroupId>, RegistryError> {
        let names = self.session().children(path::GROUPS).await?;
        Ok(names.iter().filter_map(|name| path::group_of(name)).collect())
    }

    /// Takes a group over: whoever ran it before writes nothing any more.
    ///
    /// # Errors
    /// Those of the session; `Conflict` when others claim it again and again.
    pub async fn claim_group(&self, group: &GroupId) -> Result<Claim, RegistryError> {
        let path = path::group(group);
        for _ in 0..CLAIMS {
            let Some(node) = self.session().get(&path).await? else {
                return Ok(Claim::New(nodes(group, ABSENT)));
            };
            if node.data.is_empty() {
                // Not marked: consumers of before our time may be at work here.
                if !self.session().children(&path::members(group)).await?.is_empty() {
                    return Ok(Claim::Theirs);
                }
            } else if GroupMark::from_bytes(&node.data)?.run_by == RunBy::Members {
                return Ok(Claim::Theirs);
            }
            match self.session().set(&path, &node.data, Some(node.version)).await {
                Ok(version) => return self.read_claimed(nodes(group, version), node.data).await,
                Err(RegistryError::Conflict | RegistryError::Absent) => self.session().sync().await?,
                Err(error) => return Err(error),
            }
        }
        Err(RegistryError::Conflict)
    }

    /// Looks at a group without claiming it.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn see_group(&self, group: &GroupId) -> Result<SeenGroup, RegistryError> {
        let names = self.session().children(&path::members(group)).await?;
        let members = names.iter().filter_map(|name| {
            let id = path::member_of(name)?;
            Some((format!("{}/{name}", path::members(group)), id))
        });
        let members = self.read_many(members.collect()).await?;
        let (mut owners, mut offsets) = (Vec::new(), Vec::new());
        for (topic, names) in self.topics_below(&path::owners(group)).await? {
            let each = places(&topic, &names);
            owners.extend(each.map(|place| (path::owner(group, &topic, place.1), place)));
        }
        for (topic, names) in self.topics_below(&path::offsets(group)).await? {
            let each = places(&topic, &names);
            offsets.extend(each.map(|place| (path::offset(group, &topic, place.1), place)));
        }
        let (owners, offsets) = (self.read_many(owners).await?, self.read_many(offsets).await?);
        Ok(SeenGroup { members, owners, offsets })
    }

    async fn read_claimed(&self, mut nodes: GroupNodes, head: Vec<u8>) -> Result<Claim, RegistryError> {
        let group = nodes.group.clone();
        for parent in [path::members(&group), path::owners(&group), path::offsets(&group)] {
            self.session().create_if_absent(&parent, b"").await?;
        }
        let names = self.session().children(&path::members(&group)).await?;
        let members = names.iter().filter_map(|name| path::member_of(name));
        let paths = members.map(|id| (path::member(&group, &id), id)).collect();
        nodes.members = self.read_many(paths).await?;
        for (topic, names) in self.topics_below(&path::owners(&group)).await? {
            nodes.owners.extend(places(&topic, &names).map(|place| (place, None)));
            nodes.owner_topics.insert(topic);
        }
        let mut topics = BTreeSet::new();
        let mut paths = Vec::new();
        for (topic, names) in self.topics_below(&path::offsets(&group)).await? {
            paths.extend(places(&topic, &names).map(|place| (path::offset(&group, &topic, place.1), place)));
            topics.insert(topic);
        }
        let offsets = self.read_many(paths).await?;
        Ok(Claim::Ours { nodes, head, offsets, topics })
    }

    async fn topics_below(&self, parent: &str) -> Result<Vec<(TopicName, Vec<String>)>, RegistryError> {
        let topics = self.session().children(parent).await?;
        let reads = topics.into_iter().map(|topic| async move {
            let names = self.session().children(&format!("{parent}/{topic}")).await?;
            Ok::<_, RegistryError>((TopicName::new(topic), names))
        });
        let reads = futures::stream::iter(reads).buffered(READS);
        reads.collect::<Vec<_>>().await.into_iter().collect()
    }

    async fn read_many<K: Ord>(
        &self,
        paths: Vec<(String, K)>,
    ) -> Result<BTreeMap<K, Vec<u8>>, RegistryError> {
        let reads = paths.into_iter().map(|(path, key)| async move {
            let node = self.session().get(&path).await?;
            Ok::<_, RegistryError>((key, node.map(|node| node.data)))
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(READS);
        let mut found = BTreeMap::new();
        while let Some(read) = reads.next().await {
            let (key, data) = read?;
            found.extend(data.map(|data| (key, data)));
        }
        Ok(found)
    }

    /// Writes a change: at once if the ensemble takes it in one piece, else the group's own node last.
    ///
    /// # Errors
    /// `Refused` when the group isn't ours any more; those of the session. After any of them what stands in the
    /// registry must be read again.
    pub async fn keep_group(
        &self,
        nodes: &mut GroupNodes,
        change: &GroupChange,
    ) -> Result<(), RegistryError> {
        let group = nodes.group.clone();
        let path = path::group(&group);
        let rest = rest_of(nodes, change);
        let bytes: usize = change.head.len() + rest.iter().map(weight).sum::<usize>();
        let fits = rest.len() + 4 <= OPS_MAX && bytes <= BYTES_MAX;
        let mut ops = match nodes.fence.version() {
            Some(version) => {
                vec![Op::Set { path: path.clone(), data: change.head.clone(), version: Some(version) }]
            }
            None => vec![
                Op::create(path.clone(), change.head.clone()),
                Op::create(path::members(&group), Vec::new()),
                Op::create(path::owners(&group), Vec::new()),
                Op::create(path::offsets(&group), Vec::new()),
            ],
        };
        let version = nodes.fence.version().map_or(0, |version| version + 1);
        if fits {
            ops.extend(rest);
            self.session().multi(&ops).await?;
        } else {
            if nodes.fence.version().is_none() {
                self.session().multi(&ops).await?;
                nodes.fence.set(version);
            }
            let version = nodes.fence.version().unwrap_or_default();
            for chunk in chunks(&rest) {
                let check = Op::Check { path: path.clone(), version };
                let fenced: Vec<Op> = std::iter::once(check).chain(chunk.iter().cloned()).collect();
                self.session().multi(&fenced).await?;
            }
            let head = Op::Set { path, data: change.head.clone(), version: Some(version) };
            self.session().multi(&[head]).await?;
            nodes.fence.set(version + 1);
            remember(nodes, change);
            return Ok(());
        }
        nodes.fence.set(version);
        remember(nodes, change);
        Ok(())
    }

    /// Writes a round of commits, of many groups, all of it or nothing.
    ///
    /// # Errors
    /// Whose fault it was.
    pub async fn commit_round(&self, parts: &[CommitPart]) -> Result<(), RoundFailure> {
        let fences: BTreeMap<&GroupId, i32> = parts.iter().map(|part| (&part.group, part.version)).collect();
        let mut ops: Vec<Op> = fences
            .iter()
            .map(|(group, version)| Op::Check { path: path::group(group), version: *version })
            .collect();
        // Which part an operation is for.
        let mut of = vec![0; ops.len()];
        for (at, part) in parts.iter().enumerate() {
            let (topic, partition) = &part.place;
            let path = path::offset(&part.group, topic, *partition);
            if part.first_of_topic && part.data.is_some() {
                ops.push(Op::create(path::topic_offsets(&part.group, topic), Vec::new()));
                of.push(at);
            }
            ops.push(match (&part.data, part.exists) {
                (Some(data), true) => Op::Set { path, data: data.clone(), version: None },
                (Some(data), false) => Op::create(path, data.clone()),
                (None, _) => Op::Delete { path, version: None },
            });
            of.push(at);
        }
        match self.session().multi(&ops).await {
            Ok(_) => Ok(()),
            Err(RegistryError::Refused { part, .. }) if part < fences.len() => {
                let group = fences.keys().nth(part).expect("one check for each group");
                Err(RoundFailure::Fenced((*group).clone()))
            }
            Err(RegistryError::Refused { part, source }) => match of.get(part) {
                Some(at) => Err(RoundFailure::Part(*at, *source)),
                None => Err(RoundFailure::Whole(*source)),
            },
            Err(error) => Err(RoundFailure::Whole(error)),
        }
    }

    /// Removes a topic's node below a group's offsets, if nothing is left in it.
    ///
    /// # Errors
    /// `NotEmpty`; those of the session.
    pub async fn drop_offsets_topic(&self, group: &GroupId, topic: &TopicName) -> Result<(), RegistryError> {
        self.session().delete(&path::topic_offsets(group, topic)).await
    }

    /// Removes a group and all below it.
    ///
    /// # Errors
    /// `Refused` when it isn't ours any more; those of the session.
    pub async fn delete_group(&self, nodes: &mut GroupNodes) -> Result<(), RegistryError> {
        let group = nodes.group.clone();
        let Some(version) = nodes.fence.version() else { return Ok(()) };
        let mut doomed: Vec<Op> = nodes.members.keys().map(|id| gone(path::member(&group, id))).collect();
        for parent in [path::owners(&group), path::offsets(&group)] {
            for (topic, names) in self.topics_below(&parent).await? {
                doomed.extend(names.iter().map(|name| gone(format!("{parent}/{topic}/{name}"))));
                doomed.push(gone(format!("{parent}/{topic}")));
            }
            doomed.push(gone(parent));
        }
        doomed.push(gone(path::members(&group)));
        for chunk in chunks(&doomed) {
            let check = Op::Check { path: path::group(&group), version };
            let fenced: Vec<Op> = std::iter::once(check).chain(chunk.iter().cloned()).collect();
            self.session().multi(&fenced).await?;
        }
        self.session().multi(&[Op::Delete { path: path::group(&group), version: Some(version) }]).await?;
        nodes.fence.set(ABSENT);
        Ok(())
    }
}

fn nodes(group: &GroupId, version: i32) -> GroupNodes {
    GroupNodes {
        group: group.clone(),
        fence: GroupFence(Arc::new(AtomicI32::new(version))),
        members: BTreeMap::new(),
        owners: BTreeMap::new(),
        owner_topics: BTreeSet::new(),
    }
}

fn places(topic: &TopicName, names: &[String]) -> impl Iterator<Item = Place> {
    let partitions = names.iter().filter_map(|name| name.parse().ok());
    partitions.map(|partition| (topic.clone(), PartitionId::new(partition)))
}

fn gone(path: String) -> Op {
    Op::Delete { path, version: None }
}

/// Everything of a change but the group's own node.
fn rest_of(nodes: &GroupNodes, change: &GroupChange) -> Vec<Op> {
    let group = &nodes.group;
    let mut ops = Vec::new();
    let mut made = nodes.owner_topics.clone();
    for (id, value) in &change.members {
        let path = path::member(group, id);
        match (nodes.members.get(id), value) {
            (Some(before), Some(now)) if before == now => {}
            (Some(_), Some(now)) => ops.push(Op::Set { path, data: now.clone(), version: None }),
            (None, Some(now)) => ops.push(Op::create(path, now.clone())),
            (Some(_), None) => ops.push(gone(path)),
            (None, None) => {}
        }
    }
    for (place, holder) in &change.owners {
        let (topic, partition) = place;
        let path = path::owner(group, topic, *partition);
        match (nodes.owners.get(place), holder) {
            (Some(before), Some(_)) if before == holder => {}
            (Some(_), Some(now)) => ops.push(Op::Set { path, data: now.as_str().into(), version: None }),
            (None, Some(now)) => {
                if made.insert(topic.clone()) {
                    ops.push(Op::create(path::topic_owners(group, topic), Vec::new()));
                }
                ops.push(Op::create(path, now.as_str().into()));
            }
            (Some(_), None) => ops.push(gone(path)),
            (None, None) => {}
        }
    }
    ops
}

fn remember(nodes: &mut GroupNodes, change: &GroupChange) {
    for (id, value) in &change.members {
        match value {
            Some(value) => nodes.members.insert(id.clone(), value.clone()),
            None => nodes.members.remove(id),
        };
    }
    for (place, holder) in &change.owners {
        match holder {
            Some(_) => {
                nodes.owner_topics.insert(place.0.clone());
                nodes.owners.insert(place.clone(), holder.clone());
            }
            None => {
                nodes.owners.remove(place);
            }
        }
    }
}

fn weight(op: &Op) -> usize {
    OP_OVERHEAD
        + match op {
            Op::Create { data, .. } | Op::Set { data, .. } => data.len(),
            Op::Check { .. } | Op::Delete { .. } => 0,
        }
}

/// Pieces that an ensemble takes, each with room for a check.
fn chunks(ops: &[Op]) -> Vec<&[Op]> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, op) in ops.iter().enumerate() {
        let weight = weight(op);
        if at > start && (at - start + 1 >= OPS_MAX || bytes + weight > BYTES_MAX) {
            pieces.push(&ops[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += weight;
    }
    if start < ops.len() {
        pieces.push(&ops[start..]);
    }
    pieces
}
