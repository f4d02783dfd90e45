//! A classic consumer group as one pure machine: `step(now, Event, &mut Vec<Action>)`. Members join, the group waits for
//! all of them, its leader hands out assignments, silence removes. Source: KIP-62, KIP-134, KIP-345, KIP-394,
//! KIP-559, KIP-814, and what Kafka's own coordinator answers in each state.
//!
//! The shell (`group`) performs actions in order; what follows an [`Action::Persist`] is done only once the record
//! is in the registry, so that a member never holds an assignment that the group's next broker doesn't know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use loggos_protocol::ids::{Generation, MemberId, TopicName};
use loggos_protocol::kafka::consumer_protocol;
use loggos_protocol::kafka::error_code::ErrorCode;

use super::assignor::Topics;
use super::consumer_state::{Beat, Beaten, Refusal, unknown};
use super::member::{Introduction, Member, Waiting};
use super::record::{CONSUMER, Change, HeadRecord, Kind, MemberRecord};

/// Bounds that the broker's configs set.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `group.min.session.timeout.ms`.
    pub session_min: Duration,
    /// `group.max.session.timeout.ms`.
    pub session_max: Duration,
    /// `group.max.size`.
    pub members: usize,
    /// `group.initial.rebalance.delay.ms`: how long an empty group waits for more members.
    pub initial_delay: Duration,
}

/// Where a group is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No members; offsets may be kept.
    Empty,
    /// Waiting for members to join.
    PreparingRebalance,
    /// Waiting for the leader's assignments.
    CompletingRebalance,
    /// Everybody has an assignment.
    Stable,
}

impl Phase {
    /// The state's name as Kafka's tools show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

/// A JoinGroup request.
#[derive(Clone, Debug)]
pub struct Join {
    /// The member's id; `None` for one that has none yet.
    pub member: Option<MemberId>,
    /// An id to give it if it has none: randomness is the shell's.
    pub fresh: MemberId,
    /// What it says of itself.
    pub introduction: Introduction,
    /// `consumer` for consumers, `connect` for Connect.
    pub protocol_type: String,
    /// Whether a new member must come again with the id that it is given (KIP-394).
    pub must_return: bool,
    /// Whether the client understands that a returning leader need not assign again (KIP-814).
    pub may_skip_assignment: bool,
}

/// A SyncGroup request.
#[derive(Clone, Debug)]
pub struct Sync {
    /// Who asks.
    pub caller: Caller,
    /// The protocol type and name that the member believes in, where its version says so (KIP-559).
    pub protocol: (Option<String>, Option<String>),
    /// The leader's assignments; empty from everybody else.
    pub assignments: Vec<(MemberId, Bytes)>,
}

/// How a member names itself in every request after the first.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its id.
    pub member: MemberId,
    /// Its static name, if it has one.
    pub instance: Option<String>,
    /// The generation that it believes in.
    pub generation: Generation,
}

/// A member that leaves: by id, or a static one by its name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaver {
    /// Its id; empty where only the name is known.
    pub member: String,
    /// Its static name.
    pub instance: Option<String>,
}

/// What happens to a group.
#[derive(Clone, Debug)]
pub enum Event {
    /// A member wants in, or comes again for a rebalance.
    Join(Join, Waiting),
    /// A member wants its assignment.
    Sync(Sync, Waiting),
    /// A member is alive.
    Heartbeat(Caller, Waiting),
    /// Members go.
    Leave(Vec<Leaver>, Waiting),
    /// A member of a consumer group says what it has (KIP-848).
    Beat(Beat, Waiting),
    /// Topics were made, deleted or enlarged.
    Topics(Arc<Topics>),
    /// Time has passed.
    Tick,
}

/// What the shell must do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Keep this in the registry before anything after it.
    Persist(Change),
    /// Answer a request.
    Reply(Waiting, Reply),
}

/// The answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// To JoinGroup.
    Joined(Joined),
    /// To JoinGroup, a refusal with the id that the member should use.
    NotJoined(ErrorCode, Option<MemberId>),
    /// To SyncGroup: protocol type, protocol name, assignment.
    Synced(String, String, Bytes),
    /// To SyncGroup, a refusal.
    NotSynced(ErrorCode),
    /// To Heartbeat.
    Heard(ErrorCode),
    /// To LeaveGroup, one code for each leaver.
    Left(Vec<(Leaver, ErrorCode)>),
    /// To ConsumerGroupHeartbeat.
    Beaten(Result<Beaten, Refusal>),
}

/// A completed join.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// The new generation.
    pub generation: Generation,
    /// Who the reply is for.
    pub member: MemberId,
    /// Who assigns.
    pub leader: MemberId,
    /// The group's protocol type.
    pub protocol_type: String,
    /// The strategy that all share.
    pub protocol: String,
    /// For the leader: everybody's id, static name and metadata.
    pub members: Vec<(MemberId, Option<String>, Bytes)>,
    /// Whether the leader should leave the assignments as they are.
    pub skip_assignment: bool,
}

/// One classic group.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) limits: Limits,
    pub(super) phase: Phase,
    pub(super) generation: Generation,
    pub(super) protocol_type: Option<String>,
    pub(super) protocol: Option<String>,
    pub(super) leader: Option<MemberId>,
    pub(super) members: BTreeMap<MemberId, Member>,
    /// Static names and who bears them now.
    pub(super) statics: BTreeMap<String, MemberId>,
    /// Ids given out that haven't come back yet (KIP-394), and until when they are good.
    pub(super) pending: BTreeMap<MemberId, Instant>,
    /// When the current phase ends by itself.
    pub(super) phase_deadline: Option<Instant>,
    /// An empty group's first rebalance may wait no longer than this for stragglers.
    pub(super) initial_limit: Option<Instant>,
    /// Members whose nodes in the registry aren't what they are.
    pub(super) dirty: BTreeSet<MemberId>,
}

impl State {
    /// A group without members.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::Empty,
            generation: Generation::new(0),
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            statics: BTreeMap::new(),
            pending: BTreeMap::new(),
            phase_deadline: None,
            initial_limit: None,
            dirty: BTreeSet::new(),
        }
    }

    /// A group as its last broker left it, every member with a whole session before it must be heard. A rebalance
    /// that was under way goes on with a newer generation: what the members were told of the last one is void.
    pub fn restore(limits: Limits, head: HeadRecord, members: Vec<MemberRecord>, now: Instant) -> Self {
        let mut state = Self::new(limits);
        state.generation = head.generation;
        state.protocol_type = Some(head.protocol_type).filter(|kind| !kind.is_empty());
        state.protocol = head.protocol;
        state.leader = head.leader;
        for kept in members {
            let assignment = kept.assignment.clone();
            let mut member = Member::new(kept.id.clone(), kept.into_introduction(), now);
            member.assignment = assignment;
            member.synced = true;
            if let Some(instance) = &member.introduction.instance {
                state.statics.insert(instance.clone(), member.id.clone());
            }
            state.members.insert(member.id.clone(), member);
        }
        state.leader = state.leader.take().filter(|id| state.members.contains_key(id));
        state.phase = match (state.members.is_empty(), head.rebalancing || state.protocol.is_none()) {
            (true, _) => Phase::Empty,
            (false, false) => Phase::Stable,
            (false, true) => {
                let patience = state.members.values().map(|member| member.introduction.rebalance_timeout);
                state.phase_deadline = Some(now + patience.max().unwrap_or_default());
                Phase::PreparingRebalance
            }
        };
        state
    }

    /// Takes one event and says what must be done.
    pub fn step(&mut self, now: Instant, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Join(join, waiting) => self.join(now, join, waiting, actions),
            Event::Sync(sync, waiting) => self.sync(now, sync, waiting, actions),
            Event::Heartbeat(caller, waiting) => {
                let code = self.heartbeat(now, &caller);
                actions.push(Action::Reply(waiting, Reply::Heard(code)));
            }
            Event::Leave(leavers, waiting) => self.leave(now, leavers, waiting, actions),
            Event::Tick => self.tick(now, actions),
            // Members of this protocol see to their topics themselves.
            Event::Topics(_) => {}
            Event::Beat(beat, waiting) => {
                actions.push(Action::Reply(waiting, Reply::Beaten(Err(unknown(&beat.member)))));
            }
        }
        self.assert_whole();
    }

    /// When [`Event::Tick`] is due next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let silent =
            self.members.values().filter(|member| member.joining.is_none() && member.syncing.is_none());
        let sessions = silent.map(|member| member.deadline);
        sessions.chain(self.pending.values().copied()).chain(self.phase_deadline).min()
    }

    /// Where the group is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The current generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The protocol type, if anybody ever joined.
    pub fn protocol_type(&self) -> Option<&str> {
        self.protocol_type.as_deref()
    }

    /// The strategy in force.
    pub fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    /// Its members, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Whether a commit by `caller` is the current generation's. A generation below 0 is a consumer without a
    /// group, which may commit while nobody else is there.
    pub fn may_commit(&mut self, now: Instant, caller: &Caller) -> ErrorCode {
        if caller.generation.raw() < 0 && self.phase == Phase::Empty && caller.instance.is_none() {
            return ErrorCode::NONE;
        }
        match self.check(caller) {
            ErrorCode::NONE if self.phase == Phase::CompletingRebalance => ErrorCode::REBALANCE_IN_PROGRESS,
            ErrorCode::NONE => {
                self.touch(now, &caller.member);
                ErrorCode::NONE
            }
            refusal => refusal,
        }
    }

    /// Whether nobody has ever joined, and nobody is about to.
    pub fn is_untouched(&self) -> bool {
        self.generation.raw() == 0 && self.members.is_empty() && self.pending.is_empty()
    }

    /// Its members as the registry keeps them.
    pub fn records(&self) -> impl Iterator<Item = MemberRecord> {
        self.members.values().map(MemberRecord::of)
    }

    /// Topics that somebody reads; `None` when members are there that don't say.
    pub fn topics_read(&self) -> Option<BTreeSet<TopicName>> {
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            if self.protocol_type.as_deref() != Some(CONSUMER) {
                return None;
            }
            for offered in &member.introduction.protocols {
                topics.extend(consumer_protocol::subscription(&offered.metadata)?.topics);
            }
        }
        Some(topics)
    }

    /// Whether a fetch of offsets that names a member is that member's: only KIP-848's members name themselves.
    pub fn may_fetch(&self, member: &MemberId) -> ErrorCode {
        self.check_member(member, None)
    }

    /// What the group is, for the registry.
    pub fn head(&self) -> HeadRecord {
        let mut head = HeadRecord::new(Kind::Classic, self.generation);
        head.rebalancing = matches!(self.phase, Phase::PreparingRebalance | Phase::CompletingRebalance);
        head.protocol_type = self.protocol_type.clone().unwrap_or_default();
        head.protocol.clone_from(&self.protocol);
        head.leader.clone_from(&self.leader);
        head
    }

    /// What is to be written with the generation's assignments, or when everybody has gone.
    pub(super) fn change(&mut self) -> Change {
        let dirty = std::mem::take(&mut self.dirty);
        let members = dirty.into_iter().map(|id| {
            let record = self.members.get(&id).map(MemberRecord::of);
            (id, record)
        });
        let members = members.collect();
        Change { head: self.head(), members }
    }

    fn heartbeat(&mut self, now: Instant, caller: &Caller) -> ErrorCode {
        match self.check(caller) {
            ErrorCode::NONE => {
                self.touch(now, &caller.member);
                match self.phase {
                    Phase::PreparingRebalance => ErrorCode::REBALANCE_IN_PROGRESS,
                    Phase::CompletingRebalance | Phase::Stable => ErrorCode::NONE,
                    Phase::Empty => ErrorCode::UNKNOWN_MEMBER_ID,
                }
            }
            refusal => refusal,
        }
    }

    /// Whether the caller is a member, under its own name, in this generation.
    pub(super) fn check(&self, caller: &Caller) -> ErrorCode {
        match self.check_member(&caller.member, caller.instance.as_deref()) {
            ErrorCode::NONE if caller.generation != self.generation => ErrorCode::ILLEGAL_GENERATION,
            code => code,
        }
    }

    /// Whether the caller is a member, and a static name is still its own.
    pub(super) fn check_member(&self, member: &MemberId, instance: Option<&str>) -> ErrorCode {
        if let Some(instance) = instance {
            return match self.statics.get(instance) {
                Some(bearer) if bearer == member => ErrorCode::NONE,
                Some(_) => ErrorCode::FENCED_INSTANCE_ID,
                None => ErrorCode::UNKNOWN_MEMBER_ID,
            };
        }
        if self.members.contains_key(member) { ErrorCode::NONE } else { ErrorCode::UNKNOWN_MEMBER_ID }
    }

    pub(super) fn touch(&mut self, now: Instant, member: &MemberId) {
        if let Some(member) = self.members.get_mut(member) {
            member.touch(now);
        }
    }

    fn leave(&mut self, now: Instant, leavers: Vec<Leaver>, waiting: Waiting, actions: &mut Vec<Action>) {
        let mut answers = Vec::with_capacity(leavers.len());
        let mut changed = false;
        for leaver in leavers {
            let code = self.leave_one(&leaver, actions);
            changed |= code == ErrorCode::NONE;
            answers.push((leaver, code));
        }
        actions.push(Action::Reply(waiting, Reply::Left(answers)));
        if changed {
            self.after_removal(now, actions);
        }
    }

    fn leave_one(&mut self, leaver: &Leaver, actions: &mut Vec<Action>) -> ErrorCode {
        let id = match (&leaver.instance, leaver.member.as_str()) {
            (Some(instance), named) => match self.statics.get(instance) {
                None => return ErrorCode::UNKNOWN_MEMBER_ID,
                Some(bearer) if !named.is_empty() && bearer.as_str() != named => {
                    return ErrorCode::FENCED_INSTANCE_ID;
                }
                Some(bearer) => bearer.clone(),
            },
            (None, named) => MemberId::from(named),
        };
        if self.pending.remove(&id).is_some() {
            return ErrorCode::NONE;
        }
        if self.remove(&id, actions) { ErrorCode::NONE } else { ErrorCode::UNKNOWN_MEMBER_ID }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.pending.retain(|_, deadline| *deadline > now);
        let silent: Vec<MemberId> = self
            .members
            .values()
            .filter(|member| member.is_expired(now))
            .map(|member| member.id.clone())
            .collect();
        for id in &silent {
            self.remove(id, actions);
        }
        if !silent.is_empty() {
            self.after_removal(now, actions);
        }
        if self.phase_deadline.is_some_and(|deadline| deadline <= now) {
            self.end_phase(now, actions);
        }
        self.complete_join_if_ready(now, actions);
    }

    /// Takes a member out and answers what it waits for.
    pub(super) fn remove(&mut self, id: &MemberId, actions: &mut Vec<Action>) -> bool {
        let Some(member) = self.members.remove(id) else { return false };
        self.dirty.insert(id.clone());
        if let Some(instance) = &member.introduction.instance {
            self.statics.remove(instance);
        }
        if let Some(waiting) = member.joining {
            actions.push(Action::Reply(waiting, Reply::NotJoined(ErrorCode::UNKNOWN_MEMBER_ID, None)));
        }
        if let Some(waiting) = member.syncing {
            actions.push(Action::Reply(waiting, Reply::NotSynced(ErrorCode::UNKNOWN_MEMBER_ID)));
        }
        if self.leader.as_ref() == Some(id) {
            self.leader = None;
        }
        true
    }

    /// Facts that hold between any two events; a violation is a bug of ours.
    fn assert_whole(&self) {
        for (instance, id) in &self.statics {
            assert!(self.members.contains_key(id), "static name {instance} is borne by nobody");
        }
        if self.phase == Phase::Empty {
            assert!(self.members.is_empty(), "an empty group has members");
        }
        if matches!(self.phase, Phase::Stable | Phase::CompletingRebalance) {
            assert!(self.protocol.is_some(), "a generation without a protocol");
            assert!(
                self.members.values().all(|member| member.joining.is_none()),
                "a join outlived its rebalance"
            );
        }
        if self.phase == Phase::Stable {
            assert!(
                self.members.values().all(|member| member.syncing.is_none()),
                "a sync outlived its generation"
            );
        }
    }
}
