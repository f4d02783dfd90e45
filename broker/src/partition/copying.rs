//! What a follower asks one leader for: its side of a fetch session (KIP-227). A partition is named again only when
//! there is something new to say of it, so that a fetch costs what moved and not what there is.
//!
//! Called by `follower`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use loggos_protocol::ids::{BrokerEpoch, BrokerId, LeaderEpoch, Offset, PartitionId, TopicId};
use loggos_protocol::kafka::messages::fetch_request::{
    FetchPartition, FetchTopic, ForgottenTopic, ReplicaState,
};
use loggos_protocol::kafka::messages::fetch_response::PartitionData;
use loggos_protocol::kafka::messages::{FetchRequest, FetchResponse};

use super::Partition;
use super::divergence::Asked;
use super::follower::wire_id;

/// How long a leader may hold a fetch that has nothing to give.
pub(super) const FETCH_WAIT: Duration = Duration::from_millis(500);
/// The same while something waits here, to be flushed or for its turn.
const HELD_WAIT: Duration = Duration::from_millis(20);
/// The most that one fetch takes of a partition, and of all.
const PARTITION_BYTES: i32 = 1 << 20;
const FETCH_BYTES: i32 = 16 << 20;

type Key = (TopicId, PartitionId);

/// A partition that is copied.
#[derive(Clone)]
pub(super) struct Member {
    pub partition: Arc<Partition>,
    /// In which epoch of its leader.
    pub epoch: LeaderEpoch,
    /// What the leader has been told, as long as it's in the session.
    told: Option<Told>,
}

impl Member {
    /// What the leader was asked last.
    pub(super) fn asked(&self) -> Asked {
        let none = Asked { offset: Offset::new(-1), last_epoch: LeaderEpoch::NONE };
        self.told.map_or(none, |told| Asked { offset: told.offset, last_epoch: told.last_epoch })
    }
}

/// What is said of a partition.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Told {
    offset: Offset,
    last_epoch: LeaderEpoch,
    start: Offset,
    epoch: LeaderEpoch,
}

/// A follower's side of a session.
pub(super) struct Copying {
    me: BrokerId,
    life: BrokerEpoch,
    leader: BrokerId,
    session: i32,
    turn: i32,
    members: BTreeMap<Key, Member>,
    /// Members of which there may be something new to say.
    due: BTreeSet<Key>,
    /// Those of them that the last request left out.
    held: BTreeSet<Key>,
    /// Members that left, and are still in the session.
    left: Vec<Key>,
}

impl Copying {
    pub(super) fn new(me: BrokerId, leader: BrokerId) -> Self {
        Self {
            me,
            life: BrokerEpoch::new(-1),
            leader,
            session: 0,
            turn: 0,
            members: BTreeMap::new(),
            due: BTreeSet::new(),
            held: BTreeSet::new(),
            left: Vec::new(),
        }
    }

    /// Takes up the partitions that follow this leader now, as broker `me` in the life `life`.
    pub(super) fn take_up(&mut self, life: BrokerEpoch, all: Vec<Arc<Partition>>) {
        let is_reborn = std::mem::replace(&mut self.life, life) != life;
        let mut before = std::mem::take(&mut self.members);
        for partition in all {
            let (leader, epoch) = partition.leader();
            let can_not = partition.log().failure().is_some() || partition.damage().is_some();
            if leader != self.leader || can_not {
                continue;
            }
            let key = (partition.topic_id(), partition.id());
            // What an earlier life of ours has said doesn't count for this one.
            let told = before.remove(&key).and_then(|known| known.told).filter(|_| !is_reborn);
            self.due.insert(key);
            self.members.insert(key, Member { partition, epoch, told });
        }
        self.left.extend(before.into_iter().filter(|(_, gone)| gone.told.is_some()).map(|(key, _)| key));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.left.is_empty()
    }

    /// The next request. Left out are partitions of which not everything is flushed, and throttled ones when
    /// `may_copy` says so.
    pub(super) fn request(&mut self, may_copy: impl Fn() -> bool) -> FetchRequest {
        let (mut topics, mut forgotten) = (Vec::new(), Vec::new());
        for (topic, partition) in std::mem::take(&mut self.left) {
            forget(&mut forgotten, (topic, partition));
        }
        let mut held = BTreeSet::new();
        for key in std::mem::take(&mut self.due) {
            let Some(member) = self.members.get_mut(&key) else { continue };
            let log = member.partition.log();
            let is_held_back = member.partition.is_throttled_here(self.me) && !may_copy();
            let Some(offset) = member.partition.asks_from().filter(|_| !is_held_back) else {
                // In the session it would be sent again and again what it has already.
                if member.told.take().is_some() {
                    forget(&mut forgotten, key);
                }
                held.insert(key);
                continue;
            };
            let told = Told {
                offset,
                last_epoch: log.latest_epoch().unwrap_or(LeaderEpoch::NONE),
                start: log.log_start(),
                epoch: member.epoch,
            };
            if member.told != Some(told) {
                member.told = Some(told);
                ask(&mut topics, key, told);
            }
        }
        let wait = if held.is_empty() { FETCH_WAIT } else { HELD_WAIT };
        self.due = held.clone();
        self.held = held;
        let state =
            ReplicaState::default().with_replica_id(wire_id(self.me)).with_replica_epoch(self.life.raw());
        let request = FetchRequest::default()
            .with_replica_state(state)
            .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
            .with_min_bytes(1)
            .with_max_bytes(FETCH_BYTES)
            .with_session_id(self.session)
            .with_session_epoch(self.turn)
            .with_topics(topics)
            .with_forgotten_topics_data(forgotten);
        self.turn = if self.turn == i32::MAX { 1 } else { self.turn + 1 };
        request
    }

    /// The parts of an answer with the partitions that they are for.
    pub(super) fn answered(&mut self, answer: FetchResponse) -> Vec<(Member, PartitionData)> {
        self.session = answer.session_id;
        let mut parts = Vec::new();
        for topic in answer.responses {
            for data in topic.partitions {
                let key = (TopicId::new(topic.topic_id), PartitionId::new(data.partition_index));
                let Some(member) = self.members.get(&key) else { continue };
                self.due.insert(key);
                parts.push((member.clone(), data));
            }
        }
        parts
    }
}

fn ask(topics: &mut Vec<FetchTopic>, (topic, partition): Key, told: Told) {
    let asked = FetchPartition::default()
        .with_partition(partition.raw())
        .with_current_leader_epoch(told.epoch.raw())
        .with_fetch_offset(told.offset.raw())
        .with_last_fetched_epoch(told.last_epoch.raw())
        .with_log_start_offset(told.start.raw())
        .with_partition_max_bytes(PARTITION_BYTES);
    match topics.last_mut().filter(|last| last.topic_id == topic.raw()) {
        Some(last) => last.partitions.push(asked),
        None => {
            topics.push(FetchTopic::default().with_topic_id(topic.raw()).with_partitions(vec![asked]));
        }
    }
}

fn forget(topics: &mut Vec<ForgottenTopic>, (topic, partition): Key) {
    match topics.last_mut().filter(|last| last.topic_id == topic.raw()) {
        Some(last) => last.partitions.push(partition.raw()),
        None => topics.push(
            ForgottenTopic::default().with_topic_id(topic.raw()).with_partitions(vec![partition.raw()]),
        ),
    }
}
