//! What the registry keeps of a consumer group (KIP-848) and its members, and the way back. Values only; called by
//! `machine`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use loggos_protocol::ids::{Generation, PartitionId, Timestamp, TopicId, TopicName};
use loggos_protocol::registry::group::ConsumerRecord;
use serde::{Deserialize, Serialize};

use super::assignor::{Assignor, Held};
use super::consumer_member::{ClassicSide, ConsumerMember, Profile, Progress};
use super::consumer_state::ConsumerState;
use super::machine::Setting;
use super::member::Protocol;
use super::record::{CONSUMER, Change, HeadRecord, Kind, MemberRecord, Text};

/// Partitions by their topics' identities.
type Kept = BTreeMap<String, Vec<PartitionId>>;

/// What a member of a consumer group is, beside what all members are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConsumerPart {
    /// The epoch that it is in.
    epoch: i32,
    /// The one before.
    previous_epoch: i32,
    /// Whether it speaks the classic protocol.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    classic: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rack: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    regex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    assignor: Option<String>,
    /// What it holds.
    #[serde(default)]
    assigned: Kept,
    /// What it is giving up.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    revoking: Kept,
    /// What it is to hold in the group's epoch.
    #[serde(default)]
    target: Kept,
}

/// What the group is.
pub(super) fn head(state: &ConsumerState) -> HeadRecord {
    let mut head = HeadRecord::new(Kind::Consumer, Generation::new(state.epoch));
    head.protocol_type = CONSUMER.to_owned();
    head.protocol = Some(state.assignor().name().to_owned());
    head
}

/// What is to be written now.
pub(super) fn change(state: &mut ConsumerState) -> Change {
    state.is_dirty = false;
    let dirty = std::mem::take(&mut state.dirty);
    let members = dirty.into_iter().map(|id| {
        let record = state.members.get(&id).map(|member| record(state, member));
        (id, record)
    });
    let members = members.collect();
    Change { head: head(state), members }
}

/// A member as it is kept.
pub(super) fn record(state: &ConsumerState, member: &ConsumerMember) -> MemberRecord {
    let said = &member.profile;
    let streams = said.names.iter().map(|topic| (topic.as_str().to_owned(), 1)).collect();
    let pattern = if said.regex.is_some() { "white_list" } else { "static" };
    let classic = member.classic.as_ref();
    let protocols = classic.map(|classic| classic.protocols.clone()).unwrap_or_default();
    MemberRecord {
        consumer: ConsumerRecord::new(streams, pattern, said.since.raw()),
        id: member.id.clone(),
        instance: said.instance.clone(),
        client_id: said.client_id.clone(),
        client_host: said.client_host.clone(),
        session_timeout_ms: said.session_timeout.as_millis() as u64,
        rebalance_timeout_ms: said.rebalance_timeout.as_millis() as u64,
        protocols: protocols.into_iter().map(|offered| (offered.name, Text(offered.metadata))).collect(),
        assignment: bytes::Bytes::new(),
        reconciling: Some(ConsumerPart {
            epoch: member.epoch,
            previous_epoch: member.previous_epoch,
            classic: classic.is_some(),
            rack: said.rack.clone(),
            regex: said.regex.clone(),
            assignor: said.assignor.map(|assignor| assignor.name().to_owned()),
            assigned: kept(&member.assigned),
            revoking: kept(&member.revoking),
            target: state.target.get(&member.id).map(kept).unwrap_or_default(),
        }),
    }
}

/// A group as its last broker left it, every member with a whole session before it must be heard.
pub(super) fn restore(
    setting: &Setting,
    head: &HeadRecord,
    members: Vec<MemberRecord>,
    now: Instant,
) -> ConsumerState {
    let epoch = head.generation.raw();
    let mut state = ConsumerState::new(setting.consumer.clone(), epoch, Arc::clone(&setting.topics));
    let mut taken: BTreeSet<_> = BTreeSet::new();
    for kept in members {
        let Some(part) = kept.reconciling.clone() else { continue };
        let mut member = ConsumerMember::new(kept.id.clone(), profile(&kept, &part), now);
        (member.epoch, member.previous_epoch) = (part.epoch, part.previous_epoch);
        // A change that was written in pieces and not to its end may name two holders: the second waits.
        member.assigned = held(&part.assigned).into_iter().filter(|spot| taken.insert(*spot)).collect();
        member.revoking = held(&part.revoking).into_iter().filter(|spot| taken.insert(*spot)).collect();
        let target = held(&part.target);
        member.progress = match (member.revoking.is_empty(), member.assigned == target) {
            (false, _) => Progress::Revoking,
            (true, false) if member.epoch == epoch => Progress::Waiting,
            (true, _) => Progress::Stable,
        };
        if member.progress == Progress::Revoking {
            member.revoke_deadline = Some(now + member.profile.rebalance_timeout);
        }
        if part.classic {
            let offered = kept.protocols.into_iter();
            let protocols = offered.map(|(name, Text(metadata))| Protocol { name, metadata }).collect();
            member.classic = Some(ClassicSide { protocols, sync_deadline: None });
        }
        state.put(member, target);
    }
    state
}

fn profile(kept: &MemberRecord, part: &ConsumerPart) -> Profile {
    Profile {
        instance: kept.instance.clone(),
        rack: part.rack.clone(),
        since: Timestamp::new(kept.consumer.timestamp.parse().unwrap_or(-1)),
        client_id: kept.client_id.clone(),
        client_host: kept.client_host.clone(),
        session_timeout: Duration::from_millis(kept.session_timeout_ms),
        rebalance_timeout: Duration::from_millis(kept.rebalance_timeout_ms),
        names: kept.consumer.subscription.keys().map(|name| TopicName::new(name.as_str())).collect(),
        regex: part.regex.clone(),
        assignor: part.assignor.as_deref().and_then(Assignor::named),
    }
}

fn kept(held: &Held) -> Kept {
    let mut found = Kept::new();
    for (topic, partition) in held {
        found.entry(topic.to_string()).or_default().push(*partition);
    }
    found
}

fn held(kept: &Kept) -> Held {
    let of_topic = |(topic, partitions): (&String, &Vec<PartitionId>)| {
        let partitions = partitions.clone();
        let id = TopicId::parse(topic);
        id.into_iter()
            .flat_map(move |id| partitions.clone().into_iter().map(move |partition| (id, partition)))
    };
    kept.iter().flat_map(of_topic).collect()
}
