//! A group that is being upgraded to KIP-848, or back: members of the classic protocol inside a consumer group, and the
//! two conversions. A classic member joins and is answered at once with its member epoch as the generation; its
//! SyncGroup gives what the broker assigned, in the members' own format. Source: KIP-848, "Online migration".
//!
//! Pure; called by `machine`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use loggos_protocol::ids::{Generation, MemberId, PartitionId, TopicName};
use loggos_protocol::kafka::consumer_protocol::{self, Partitions, Subscription};
use loggos_protocol::kafka::error_code::ErrorCode;

use super::assignor::{Held, Topics};
use super::consumer_member::{AWAY, ClassicSide, ConsumerMember, Profile, Progress};
use super::consumer_state::{ConsumerLimits, ConsumerState};
use super::member::{Introduction, Member, Waiting};
use super::record::CONSUMER;
use super::state::{Action, Caller, Join, Joined, Leaver, Limits, Phase, Reply, State, Sync};

impl ConsumerState {
    /// A classic member wants in, or comes again.
    pub(super) fn classic_join(&mut self, now: Instant, join: Join, limits: &Limits) -> Reply {
        let asked = join.member.clone();
        let refused = |code: ErrorCode| Reply::NotJoined(code, asked.clone());
        let timeout = join.introduction.session_timeout;
        if timeout < limits.session_min || timeout > limits.session_max {
            return refused(ErrorCode::INVALID_SESSION_TIMEOUT);
        }
        let Some(said) = subscription_of(&join.introduction).filter(|_| join.protocol_type == CONSUMER)
        else {
            return refused(ErrorCode::INCONSISTENT_GROUP_PROTOCOL);
        };
        let bearer =
            join.introduction.instance.as_ref().and_then(|instance| self.statics.get(instance).cloned());
        let id = match (&join.member, bearer) {
            (None, Some(old)) => {
                if self.replace(now, &old, &join.fresh).is_err() {
                    return refused(ErrorCode::UNRELEASED_INSTANCE_ID);
                }
                join.fresh.clone()
            }
            (None, None) if join.must_return && join.introduction.instance.is_none() => {
                return Reply::NotJoined(ErrorCode::MEMBER_ID_REQUIRED, Some(join.fresh));
            }
            (None, None) => join.fresh.clone(),
            (Some(id), Some(bearer)) if *id != bearer => return refused(ErrorCode::FENCED_INSTANCE_ID),
            (Some(id), _) => id.clone(),
        };
        if !self.members.contains_key(&id) {
            if self.members.len() >= self.limits.members {
                return refused(ErrorCode::GROUP_MAX_SIZE_REACHED);
            }
            let member = ConsumerMember::new(id.clone(), profile(&join.introduction, &said), now);
            self.put(member, Held::new());
            self.advance();
        }
        let owned = spots(&said.owned, &self.topics);
        let member = self.members.get_mut(&id).expect("it is there now");
        let mut profile = profile(&join.introduction, &said);
        profile.since = member.profile.since;
        let reads_else = member.profile.names != profile.names;
        member.profile = profile;
        let sync_deadline = Some(now + member.profile.rebalance_timeout);
        member.classic = Some(ClassicSide { protocols: join.introduction.protocols.clone(), sync_deadline });
        member.touch(now);
        self.dirty.insert(id.clone());
        if reads_else {
            self.advance();
        }
        self.reconcile(now, &id, Some(&owned));
        let member = &self.members[&id];
        Reply::Joined(Joined {
            generation: Generation::new(member.epoch),
            member: id,
            // The broker assigns: nobody leads.
            leader: MemberId::from(""),
            protocol_type: CONSUMER.to_owned(),
            protocol: protocol_of(member),
            members: Vec::new(),
            skip_assignment: join.may_skip_assignment,
        })
    }

    /// A classic member wants its assignment.
    pub(super) fn classic_sync(&mut self, now: Instant, sync: &Sync) -> Reply {
        let code = self.check_classic(&sync.caller);
        if code != ErrorCode::NONE {
            return Reply::NotSynced(code);
        }
        let epoch = self.epoch;
        let member = self.members.get_mut(&sync.caller.member).expect("checked above");
        let asked = sync.protocol.1.as_ref().is_none_or(|name| *name == protocol_of(member));
        if !asked || sync.protocol.0.as_ref().is_some_and(|kind| kind != CONSUMER) {
            return Reply::NotSynced(ErrorCode::INCONSISTENT_GROUP_PROTOCOL);
        }
        if epoch > member.epoch && member.progress != Progress::Revoking {
            return Reply::NotSynced(ErrorCode::REBALANCE_IN_PROGRESS);
        }
        if let Some(classic) = &mut member.classic {
            classic.sync_deadline = None;
        }
        member.touch(now);
        let given = named(&member.assigned, &self.topics);
        Reply::Synced(CONSUMER.to_owned(), protocol_of(member), consumer_protocol::write_assignment(&given))
    }

    /// A classic member is alive; it is told to come again when there is something to give up or to take.
    pub(super) fn classic_heartbeat(&mut self, now: Instant, caller: &Caller) -> ErrorCode {
        let code = self.check_classic(caller);
        if code != ErrorCode::NONE {
            return code;
        }
        let waits = |member: &ConsumerMember| {
            let target = self.target.get(&member.id);
            let is_busy = |spot| self.owners.get(spot).is_some_and(|owner| *owner != member.id);
            target.is_some_and(|target| target.iter().any(is_busy))
        };
        let member = &self.members[&caller.member];
        let comes_again = member.epoch < self.epoch
            || member.progress == Progress::Revoking
            || (member.progress == Progress::Waiting && !waits(member));
        self.members.get_mut(&caller.member).expect("checked above").touch(now);
        if comes_again { ErrorCode::REBALANCE_IN_PROGRESS } else { ErrorCode::NONE }
    }

    fn check_classic(&self, caller: &Caller) -> ErrorCode {
        if let Some(instance) = &caller.instance {
            match self.statics.get(instance) {
                None => return ErrorCode::UNKNOWN_MEMBER_ID,
                Some(bearer) if *bearer != caller.member => return ErrorCode::FENCED_INSTANCE_ID,
                Some(_) => {}
            }
        }
        match self.members.get(&caller.member) {
            None => ErrorCode::UNKNOWN_MEMBER_ID,
            Some(member) if member.classic.is_none() => ErrorCode::UNKNOWN_MEMBER_ID,
            Some(member) if member.epoch != caller.generation.raw() => ErrorCode::ILLEGAL_GENERATION,
            Some(_) => ErrorCode::NONE,
        }
    }

    /// Members go, or an administrator takes them out.
    pub(super) fn classic_leave(&mut self, leavers: Vec<Leaver>) -> Reply {
        let mut answers = Vec::with_capacity(leavers.len());
        let mut changed = false;
        for leaver in leavers {
            let id = match &leaver.instance {
                None => Ok(MemberId::new(leaver.member.as_str())),
                Some(instance) => match self.statics.get(instance) {
                    None => Err(ErrorCode::UNKNOWN_MEMBER_ID),
                    Some(bearer) if !leaver.member.is_empty() && bearer.as_str() != leaver.member => {
                        Err(ErrorCode::FENCED_INSTANCE_ID)
                    }
                    Some(bearer) => Ok(bearer.clone()),
                },
            };
            let code = match id {
                Ok(id) if self.take_out(&id) => ErrorCode::NONE,
                Ok(_) => ErrorCode::UNKNOWN_MEMBER_ID,
                Err(code) => code,
            };
            changed |= code == ErrorCode::NONE;
            answers.push((leaver, code));
        }
        if changed {
            self.advance();
        }
        Reply::Left(answers)
    }

    /// The group as a classic one, once only classic members are left in it; they are told to join again.
    pub(super) fn downgraded(&self, now: Instant, limits: &Limits) -> Option<State> {
        if self.members.is_empty() || self.members.len() > limits.members {
            return None;
        }
        if self.members.values().any(|member| member.classic.is_none() || member.epoch == AWAY) {
            return None;
        }
        let mut state = State::new(limits.clone());
        state.generation = Generation::new(self.epoch);
        state.protocol_type = Some(CONSUMER.to_owned());
        for kept in self.members.values() {
            let classic = kept.classic.as_ref()?;
            let introduction = Introduction {
                instance: kept.profile.instance.clone(),
                since: kept.profile.since,
                client_id: kept.profile.client_id.clone(),
                client_host: kept.profile.client_host.clone(),
                session_timeout: kept.profile.session_timeout,
                rebalance_timeout: kept.profile.rebalance_timeout,
                protocols: classic.protocols.clone(),
            };
            let mut member = Member::new(kept.id.clone(), introduction, now);
            member.assignment = consumer_protocol::write_assignment(&named(&kept.assigned, &self.topics));
            if let Some(instance) = &member.introduction.instance {
                state.statics.insert(instance.clone(), member.id.clone());
            }
            state.dirty.insert(member.id.clone());
            state.members.insert(member.id.clone(), member);
        }
        let shared = |name: &str| {
            let offers =
                |member: &Member| member.introduction.protocols.iter().any(|offer| offer.name == name);
            state.members.values().all(offers)
        };
        let first = state.members.values().next()?;
        if !first.introduction.protocols.iter().any(|offered| shared(&offered.name)) {
            return None;
        }
        state.dirty.extend(self.dirty.iter().cloned());
        state.begin_rebalance(now, &mut Vec::new());
        Some(state)
    }

    /// A classic group as a consumer group. Whoever waited for a rebalance is told to join again. `None` when its
    /// members aren't all consumers.
    pub(super) fn upgraded(
        state: &mut State,
        limits: ConsumerLimits,
        topics: Arc<Topics>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> Option<Self> {
        let mut group = Self::new(limits, state.generation().raw(), topics);
        let mut given = BTreeSet::new();
        for member in state.members() {
            let said = subscription_of(&member.introduction)?;
            let mut kept = ConsumerMember::new(member.id.clone(), profile(&member.introduction, &said), now);
            let has = consumer_protocol::assignment(&member.assignment).unwrap_or_default();
            // A leader may have given a partition to two; here it has one holder.
            kept.assigned =
                spots(&has, &group.topics).into_iter().filter(|spot| given.insert(*spot)).collect();
            kept.epoch = group.epoch;
            kept.previous_epoch = group.epoch;
            let protocols = member.introduction.protocols.clone();
            kept.classic = Some(ClassicSide { protocols, sync_deadline: None });
            let target = kept.assigned.clone();
            group.dirty.insert(kept.id.clone());
            group.put(kept, target);
        }
        group.dirty.extend(state.dirty.iter().cloned());
        group.is_dirty = true;
        let waiting: Vec<(Option<Waiting>, Option<Waiting>)> =
            state.members.values_mut().map(|member| (member.joining.take(), member.syncing.take())).collect();
        for (joining, syncing) in waiting {
            let again = ErrorCode::REBALANCE_IN_PROGRESS;
            actions.extend(joining.map(|waiting| Action::Reply(waiting, Reply::NotJoined(again, None))));
            actions.extend(syncing.map(|waiting| Action::Reply(waiting, Reply::NotSynced(again))));
        }
        Some(group)
    }
}

/// Whether a classic group can become a consumer group.
pub(super) fn can_upgrade(state: &State) -> bool {
    state.phase() == Phase::Empty
        || (state.protocol_type() == Some(CONSUMER)
            && state.members().all(|member| subscription_of(&member.introduction).is_some()))
}

fn subscription_of(introduction: &Introduction) -> Option<Subscription> {
    introduction.protocols.first().and_then(|offered| consumer_protocol::subscription(&offered.metadata))
}

fn protocol_of(member: &ConsumerMember) -> String {
    let classic = member.classic.as_ref().and_then(|classic| classic.protocols.first());
    classic.map(|offered| offered.name.clone()).unwrap_or_default()
}

fn profile(introduction: &Introduction, said: &Subscription) -> Profile {
    Profile {
        instance: introduction.instance.clone(),
        rack: said.rack.clone(),
        since: introduction.since,
        client_id: introduction.client_id.clone(),
        client_host: introduction.client_host.clone(),
        session_timeout: introduction.session_timeout,
        rebalance_timeout: introduction.rebalance_timeout,
        names: said.topics.iter().cloned().collect(),
        regex: None,
        assignor: None,
    }
}

fn spots(partitions: &Partitions, topics: &Topics) -> Held {
    let of_topic = |(name, partitions): (&TopicName, &Vec<PartitionId>)| {
        let id = topics.id(name);
        let partitions = partitions.clone();
        id.into_iter()
            .flat_map(move |id| partitions.clone().into_iter().map(move |partition| (id, partition)))
    };
    partitions.iter().flat_map(of_topic).collect()
}

/// Partitions by their topics' names, as far as they are there.
pub(super) fn named(held: &Held, topics: &Topics) -> Partitions {
    let mut found: BTreeMap<TopicName, Vec<PartitionId>> = BTreeMap::new();
    for (id, partition) in held {
        if let Some(name) = topics.name(*id) {
            found.entry(name.clone()).or_default().push(*partition);
        }
    }
    found
}
