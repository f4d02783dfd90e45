//! A consumer group whose partitions the broker assigns (KIP-848), as one pure machine: members say what they read
//! and what they have, and are told what to give up and what to take; nobody waits for anybody who is silent. Source:
//! KIP-848, and what Kafka's own coordinator answers in each state.
//!
//! Members of the classic protocol may be in it too, for as long as a group is being upgraded: see `upgrade`.
//! Called by `machine`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use loggos_protocol::ids::{MemberId, Timestamp, TopicId, TopicName};
use loggos_protocol::kafka::error_code::ErrorCode;
use regex::RegexBuilder;

use super::assignor::{Assignor, Held, Spot, Subscriber, Topics};
use super::consumer_member::{AWAY, ConsumerMember, JOINING, LEAVING, Profile, Progress};
use super::state::Caller;

/// Memory that a pattern may take, in bytes.
const REGEX_BYTES: usize = 1 << 20;

/// Bounds that the broker's configs set.
#[derive(Clone, Debug)]
pub struct ConsumerLimits {
    /// `group.consumer.session.timeout.ms`.
    pub session: Duration,
    /// `group.consumer.heartbeat.interval.ms`.
    pub interval: Duration,
    /// `group.consumer.max.size`.
    pub members: usize,
}

/// A ConsumerGroupHeartbeat request.
#[derive(Clone, Debug)]
pub struct Beat {
    /// The member's id.
    pub member: MemberId,
    /// The epoch that it believes in, or that it joins or leaves with.
    pub epoch: i32,
    /// Its static name.
    pub instance: Option<String>,
    /// Its rack, where it says so.
    pub rack: Option<String>,
    /// How long it may take to give partitions up, where it says so.
    pub rebalance_timeout: Option<Duration>,
    /// Topics by name, where it says so.
    pub names: Option<BTreeSet<TopicName>>,
    /// Topics by pattern, where it says so; empty to take the pattern back.
    pub regex: Option<String>,
    /// The assignor that it would like, where it says so.
    pub assignor: Option<String>,
    /// What it has, where it says so.
    pub owned: Option<Held>,
    /// What the client calls itself.
    pub client_id: String,
    /// The address that it comes from.
    pub client_host: String,
    /// When it comes.
    pub at: Timestamp,
}

impl Beat {
    /// Whether it says everything that there is to say, and wants to be told everything.
    fn is_full(&self) -> bool {
        self.epoch == JOINING
            || (self.rebalance_timeout.is_some()
                && self.owned.is_some()
                && (self.names.is_some() || self.regex.is_some()))
    }
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beaten {
    /// Who it is for.
    pub member: MemberId,
    /// The epoch that it is in now.
    pub epoch: i32,
    /// How long until it should come again.
    pub interval: Duration,
    /// What it is to have, if that changed or was asked for.
    pub assignment: Option<Held>,
}

/// A refusal with a sentence.
pub type Refusal = (ErrorCode, String);

/// One consumer group.
#[derive(Clone, Debug)]
pub struct ConsumerState {
    pub(super) limits: ConsumerLimits,
    pub(super) epoch: i32,
    pub(super) members: BTreeMap<MemberId, ConsumerMember>,
    /// Static names and who bears them now.
    pub(super) statics: BTreeMap<String, MemberId>,
    /// What everybody is to have in this epoch.
    pub(super) target: BTreeMap<MemberId, Held>,
    /// Who has a partition, or hasn't said that it gave it up.
    pub(super) owners: BTreeMap<Spot, MemberId>,
    pub(super) topics: Arc<Topics>,
    /// Patterns, and the topics that they mean now.
    patterns: BTreeMap<String, BTreeSet<TopicId>>,
    /// Members whose nodes in the registry aren't what they are.
    pub(super) dirty: BTreeSet<MemberId>,
    /// Whether the group's own node isn't what it is.
    pub(super) is_dirty: bool,
}

impl ConsumerState {
    /// A group without members.
    pub fn new(limits: ConsumerLimits, epoch: i32, topics: Arc<Topics>) -> Self {
        Self {
            limits,
            epoch,
            members: BTreeMap::new(),
            statics: BTreeMap::new(),
            target: BTreeMap::new(),
            owners: BTreeMap::new(),
            topics,
            patterns: BTreeMap::new(),
            dirty: BTreeSet::new(),
            is_dirty: false,
        }
    }

    /// Puts a member in as it was kept.
    pub(super) fn put(&mut self, member: ConsumerMember, target: Held) {
        if let Some(instance) = &member.profile.instance {
            self.statics.insert(instance.clone(), member.id.clone());
        }
        self.owners.extend(member.holds().map(|spot| (*spot, member.id.clone())));
        if let Some(pattern) = &member.profile.regex
            && let Ok(found) = matching(pattern, &self.topics)
        {
            self.patterns.insert(pattern.clone(), found);
        }
        self.target.insert(member.id.clone(), target);
        self.members.insert(member.id.clone(), member);
    }

    /// The group's epoch.
    pub fn epoch(&self) -> i32 {
        self.epoch
    }

    /// Its members, by id.
    pub fn members(&self) -> impl Iterator<Item = &ConsumerMember> {
        self.members.values()
    }

    /// What a member is to have in this epoch.
    pub fn target(&self, member: &MemberId) -> Option<&Held> {
        self.target.get(member)
    }

    /// The topics that it knows.
    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// The state's name as Kafka's tools show it.
    pub fn phase(&self) -> &'static str {
        let is_settled =
            |member: &ConsumerMember| member.epoch == self.epoch && member.progress == Progress::Stable;
        match (self.members.is_empty(), self.members.values().all(is_settled)) {
            (true, _) => "Empty",
            (false, true) => "Stable",
            (false, false) => "Reconciling",
        }
    }

    /// The assignor that most members would like.
    pub fn assignor(&self) -> Assignor {
        let mut votes: BTreeMap<Assignor, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some(wanted) = member.profile.assignor {
                *votes.entry(wanted).or_default() += 1;
            }
        }
        let most = votes.iter().max_by_key(|(assignor, count)| (**count, std::cmp::Reverse(**assignor)));
        most.map(|(assignor, _)| *assignor).unwrap_or_default()
    }

    /// When somebody is to be looked at next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.members.values().map(ConsumerMember::first_deadline).min()
    }

    /// Takes a heartbeat.
    pub(super) fn beat(&mut self, now: Instant, beat: Beat) -> Result<Beaten, Refusal> {
        if beat.epoch == LEAVING || beat.epoch == AWAY {
            return self.leave(now, &beat);
        }
        let assignor = match &beat.assignor {
            Some(name) => Some(Assignor::named(name).ok_or_else(|| {
                (ErrorCode::UNSUPPORTED_ASSIGNOR, format!("There is no assignor '{name}': uniform, range."))
            })?),
            None => None,
        };
        if let Some(pattern) = beat.regex.as_deref().filter(|pattern| !pattern.is_empty()) {
            self.learn(pattern)?;
        }
        let id = self.identify(now, &beat)?;
        if self.tell(now, &id, &beat, assignor) {
            self.advance();
        }
        let before = self.members.get(&id).map(|member| member.assigned.clone()).unwrap_or_default();
        self.reconcile(now, &id, beat.owned.as_ref());
        let member = self.members.get_mut(&id).expect("identified above");
        member.touch(now);
        let told = beat.is_full() || member.assigned != before;
        Ok(Beaten {
            member: id,
            epoch: member.epoch,
            interval: self.limits.interval,
            assignment: told.then(|| member.assigned.clone()),
        })
    }

    /// The member that a heartbeat is of, made if it joins; an impostor is refused.
    fn identify(&mut self, now: Instant, beat: &Beat) -> Result<MemberId, Refusal> {
        let joins = beat.epoch == JOINING;
        if let Some(instance) = &beat.instance {
            match self.statics.get(instance).cloned() {
                None if joins => {}
                None => return Err(unknown(&beat.member)),
                Some(bearer) if joins && bearer != beat.member => {
                    self.replace(now, &bearer, &beat.member)?;
                }
                Some(bearer) if bearer != beat.member => {
                    let message = format!("Instance id {instance} is another member's now.");
                    return Err((ErrorCode::FENCED_INSTANCE_ID, message));
                }
                Some(_) => {}
            }
        }
        let Some(member) = self.members.get_mut(&beat.member) else {
            if !joins {
                return Err(unknown(&beat.member));
            }
            if self.members.len() >= self.limits.members {
                let message = format!("The group has {} members already.", self.members.len());
                return Err((ErrorCode::GROUP_MAX_SIZE_REACHED, message));
            }
            let member = ConsumerMember::new(beat.member.clone(), self.profile(beat), now);
            self.put(member, Held::new());
            self.dirty.insert(beat.member.clone());
            return Ok(beat.member.clone());
        };
        if joins {
            // Whoever comes anew under its old id has let everything go.
            if member.epoch != JOINING && member.epoch != AWAY {
                let held: Vec<Spot> = member.holds().copied().collect();
                (member.assigned, member.revoking) = (Held::new(), Held::new());
                (member.epoch, member.progress) = (JOINING, Progress::Stable);
                member.revoke_deadline = None;
                self.dirty.insert(beat.member.clone());
                for spot in held {
                    self.owners.remove(&spot);
                }
            }
            return Ok(beat.member.clone());
        }
        let owned_is_a_part = beat.owned.as_ref().is_some_and(|owned| owned.is_subset(&member.assigned));
        let is_lost_answer = beat.epoch == member.previous_epoch && owned_is_a_part;
        if beat.epoch == member.epoch || (beat.epoch < member.epoch && is_lost_answer) {
            return Ok(beat.member.clone());
        }
        let message =
            format!("The member is in epoch {}, not {}; it must join anew.", member.epoch, beat.epoch);
        Err((ErrorCode::FENCED_MEMBER_EPOCH, message))
    }

    fn profile(&self, beat: &Beat) -> Profile {
        Profile {
            instance: beat.instance.clone(),
            rack: beat.rack.clone(),
            since: beat.at,
            client_id: beat.client_id.clone(),
            client_host: beat.client_host.clone(),
            session_timeout: self.limits.session,
            rebalance_timeout: beat.rebalance_timeout.unwrap_or_default(),
            // What it reads is told after this, as a change.
            names: BTreeSet::new(),
            regex: None,
            assignor: None,
        }
    }

    /// A static member that was away comes back under another id, with all that it had.
    pub(super) fn replace(&mut self, now: Instant, old: &MemberId, new: &MemberId) -> Result<(), Refusal> {
        let Some(mut member) = self.members.get(old).cloned() else { return Ok(()) };
        if member.epoch != AWAY && member.classic.is_none() {
            let message = format!("Member {old} is still there under that instance id.");
            return Err((ErrorCode::UNRELEASED_INSTANCE_ID, message));
        }
        let target = self.target.get(old).cloned().unwrap_or_default();
        self.take_out(old);
        member.id = new.clone();
        member.epoch = JOINING;
        // What it was giving up went with its last life.
        member.revoking.clear();
        member.progress = Progress::Stable;
        member.revoke_deadline = None;
        member.touch(now);
        self.put(member, target);
        self.dirty.insert(new.clone());
        Ok(())
    }

    /// Notes what a member says; whether it reads something else than before.
    fn tell(&mut self, _now: Instant, id: &MemberId, beat: &Beat, assignor: Option<Assignor>) -> bool {
        let Some(member) = self.members.get_mut(id) else { return false };
        let before = member.profile.clone();
        let profile = &mut member.profile;
        if let Some(names) = &beat.names {
            profile.names.clone_from(names);
        }
        if let Some(pattern) = &beat.regex {
            profile.regex = Some(pattern.clone()).filter(|pattern| !pattern.is_empty());
        }
        if assignor.is_some() {
            profile.assignor = assignor;
        }
        if let Some(timeout) = beat.rebalance_timeout {
            profile.rebalance_timeout = timeout;
        }
        if beat.rack.is_some() {
            profile.rack.clone_from(&beat.rack);
        }
        let was_classic = member.classic.take().is_some();
        if was_classic {
            profile.session_timeout = self.limits.session;
        }
        if *profile == before && !was_classic {
            return false;
        }
        self.dirty.insert(id.clone());
        let reads_else = profile.names != before.names
            || profile.regex != before.regex
            || profile.assignor != before.assignor;
        let new = !self.target.contains_key(id);
        reads_else || new
    }

    fn leave(&mut self, now: Instant, beat: &Beat) -> Result<Beaten, Refusal> {
        let id = match &beat.instance {
            Some(instance) => match self.statics.get(instance) {
                None => return Err(unknown(&beat.member)),
                Some(bearer) if *bearer != beat.member => {
                    let message = format!("Instance id {instance} is another member's now.");
                    return Err((ErrorCode::FENCED_INSTANCE_ID, message));
                }
                Some(bearer) => bearer.clone(),
            },
            None => beat.member.clone(),
        };
        let Some(member) = self.members.get_mut(&id) else { return Err(unknown(&beat.member)) };
        if beat.epoch == AWAY && beat.instance.is_some() {
            member.epoch = AWAY;
            member.touch(now);
            self.dirty.insert(id.clone());
        } else {
            self.take_out(&id);
            self.advance();
        }
        Ok(Beaten { member: id, epoch: beat.epoch, interval: self.limits.interval, assignment: None })
    }

    /// Takes a member out; what it had is free.
    pub(super) fn take_out(&mut self, id: &MemberId) -> bool {
        let Some(member) = self.members.remove(id) else { return false };
        if let Some(instance) = &member.profile.instance
            && self.statics.get(instance) == Some(id)
        {
            self.statics.remove(instance);
        }
        for spot in member.holds() {
            if self.owners.get(spot) == Some(id) {
                self.owners.remove(spot);
            }
        }
        self.target.remove(id);
        self.dirty.insert(id.clone());
        true
    }

    /// A new epoch with a new target.
    pub(super) fn advance(&mut self) {
        self.epoch = self.epoch.wrapping_add(1).max(1);
        self.is_dirty = true;
        let target = self.compute();
        for (id, held) in &target {
            if self.target.get(id) != Some(held) {
                self.dirty.insert(id.clone());
            }
        }
        self.target = target;
    }

    fn compute(&self) -> BTreeMap<MemberId, Held> {
        let subscribers: Vec<Subscriber> = self
            .members
            .values()
            .map(|member| Subscriber {
                id: member.id.clone(),
                instance: member.profile.instance.clone(),
                topics: self.topics_of(member),
                held: self.target.get(&member.id).cloned().unwrap_or_default(),
            })
            .collect();
        self.assignor().assign(&subscribers, &self.topics)
    }

    /// The topics that a member reads, as far as they are there.
    pub fn topics_of(&self, member: &ConsumerMember) -> BTreeSet<TopicId> {
        let mut found: BTreeSet<TopicId> =
            member.profile.names.iter().filter_map(|name| self.topics.id(name)).collect();
        if let Some(pattern) = &member.profile.regex {
            found.extend(self.patterns.get(pattern).into_iter().flatten());
        }
        found
    }

    /// Compiles a pattern that hasn't been met before.
    fn learn(&mut self, pattern: &str) -> Result<(), Refusal> {
        if !self.patterns.contains_key(pattern) {
            let found = matching(pattern, &self.topics)
                .map_err(|message| (ErrorCode::INVALID_REGULAR_EXPRESSION, message))?;
            self.patterns.insert(pattern.to_owned(), found);
        }
        Ok(())
    }

    /// Topics were made, deleted or enlarged: whoever reads them is to have something else, if that makes a difference.
    pub(super) fn set_topics(&mut self, topics: Arc<Topics>) {
        if *self.topics == *topics {
            return;
        }
        self.topics = topics;
        let used: BTreeSet<&String> =
            self.members.values().filter_map(|member| member.profile.regex.as_ref()).collect();
        let patterns: Vec<String> = used.into_iter().cloned().collect();
        self.patterns = patterns
            .into_iter()
            .filter_map(|pattern| matching(&pattern, &self.topics).ok().map(|found| (pattern, found)))
            .collect();
        if self.compute() != self.target {
            self.advance();
        }
    }

    /// Moves a member on.
    pub(super) fn reconcile(&mut self, now: Instant, id: &MemberId, owned: Option<&Held>) {
        let nothing = Held::new();
        let target = self.target.get(id).unwrap_or(&nothing);
        let Some(member) = self.members.get_mut(id) else { return };
        let held: Vec<Spot> = member.holds().copied().collect();
        if !member.reconcile(now, (self.epoch, target), owned, &self.owners) {
            return;
        }
        for spot in held {
            self.owners.remove(&spot);
        }
        for spot in member.holds() {
            let before = self.owners.insert(*spot, id.clone());
            assert!(before.is_none_or(|before| before == *id), "{spot:?} was taken from its owner");
        }
        self.dirty.insert(id.clone());
    }

    /// Gives up who was silent, or slow to give up, for too long.
    pub(super) fn tick(&mut self, now: Instant) {
        let late: Vec<MemberId> = self
            .members
            .values()
            .filter(|member| member.is_expired(now))
            .map(|member| member.id.clone())
            .collect();
        for id in &late {
            self.take_out(id);
        }
        if !late.is_empty() {
            self.advance();
        }
    }

    /// Whether a commit by `caller` is current. An epoch below 0 is a consumer without a group, which may commit while
    /// nobody else is there.
    pub fn may_commit(&mut self, now: Instant, caller: &Caller) -> ErrorCode {
        if caller.generation.raw() < 0 && self.members.is_empty() {
            return ErrorCode::NONE;
        }
        let Some(member) = self.members.get_mut(&caller.member) else { return ErrorCode::UNKNOWN_MEMBER_ID };
        let bears = |instance: &String| self.statics.get(instance) == Some(&caller.member);
        if caller.instance.as_ref().is_some_and(|instance| !bears(instance)) {
            return ErrorCode::FENCED_INSTANCE_ID;
        }
        if caller.generation.raw() == member.epoch {
            member.touch(now);
            return ErrorCode::NONE;
        }
        if member.classic.is_some() { ErrorCode::ILLEGAL_GENERATION } else { ErrorCode::STALE_MEMBER_EPOCH }
    }

    /// Whether a fetch of offsets is by a current member.
    pub fn may_fetch(&self, member: &MemberId, epoch: i32) -> ErrorCode {
        match self.members.get(member) {
            None => ErrorCode::UNKNOWN_MEMBER_ID,
            Some(member) if member.epoch != epoch => ErrorCode::STALE_MEMBER_EPOCH,
            Some(_) => ErrorCode::NONE,
        }
    }
}

pub(super) fn unknown(member: &MemberId) -> Refusal {
    (ErrorCode::UNKNOWN_MEMBER_ID, format!("Member {member} is not in the group."))
}

/// The topics whose whole names match.
fn matching(pattern: &str, topics: &Topics) -> Result<BTreeSet<TopicId>, String> {
    let regex = RegexBuilder::new(&format!("^(?:{pattern})$"))
        .size_limit(REGEX_BYTES)
        .build()
        .map_err(|error| format!("'{pattern}' is not a regular expression: {error}"))?;
    Ok(topics.names().filter(|(name, _)| regex.is_match(name.as_str())).map(|(_, id)| id).collect())
}
