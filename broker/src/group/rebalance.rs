//! How a classic group gets from one generation to the next: joining, choosing a protocol, handing out assignments.
//! The other half of the machine in `state`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use loggos_protocol::ids::{Generation, MemberId};
use loggos_protocol::kafka::error_code::ErrorCode;

use super::member::{Introduction, Member, Waiting};
use super::record::Change;
use super::state::{Action, Join, Joined, Phase, Reply, State, Sync};

impl State {
    pub(super) fn join(&mut self, now: Instant, join: Join, waiting: Waiting, actions: &mut Vec<Action>) {
        let timeout = join.introduction.session_timeout;
        if timeout < self.limits.session_min || timeout > self.limits.session_max {
            return refuse(waiting, ErrorCode::INVALID_SESSION_TIMEOUT, join.member, actions);
        }
        if !self.speaks(&join) {
            return refuse(waiting, ErrorCode::INCONSISTENT_GROUP_PROTOCOL, join.member, actions);
        }
        match join.member.clone() {
            None => self.join_new(now, join, waiting, actions),
            Some(id) => self.join_known(now, id, join, waiting, actions),
        }
    }

    /// A member without an id: it takes its static name over, is asked to come again, or is let in.
    fn join_new(&mut self, now: Instant, join: Join, waiting: Waiting, actions: &mut Vec<Action>) {
        let bearer =
            join.introduction.instance.as_ref().and_then(|instance| self.statics.get(instance).cloned());
        if let Some(old) = bearer {
            return self.replace_static(now, old, join, waiting, actions);
        }
        if self.members.len() + self.pending.len() >= self.limits.members {
            return refuse(waiting, ErrorCode::GROUP_MAX_SIZE_REACHED, None, actions);
        }
        if join.must_return && join.introduction.instance.is_none() {
            self.pending.insert(join.fresh.clone(), now + join.introduction.session_timeout);
            return refuse(waiting, ErrorCode::MEMBER_ID_REQUIRED, Some(join.fresh), actions);
        }
        self.admit(now, join.fresh.clone(), join, waiting, actions);
    }

    fn join_known(
        &mut self,
        now: Instant,
        id: MemberId,
        join: Join,
        waiting: Waiting,
        actions: &mut Vec<Action>,
    ) {
        if self.pending.remove(&id).is_some() {
            return self.admit(now, id, join, waiting, actions);
        }
        let code = self.check_member(&id, join.introduction.instance.as_deref());
        if code != ErrorCode::NONE {
            return refuse(waiting, code, Some(id), actions);
        }
        let unchanged = self
            .members
            .get(&id)
            .is_some_and(|member| offers_the_same(&member.introduction, &join.introduction));
        let is_leader = self.leader.as_ref() == Some(&id);
        // A lost reply is repeated as long as the member still says the same; a leader that comes again wants a
        // new assignment.
        match self.phase {
            Phase::CompletingRebalance if unchanged => self.repeat_join(now, &id, waiting, false, actions),
            Phase::Stable if unchanged && !is_leader => self.repeat_join(now, &id, waiting, false, actions),
            _ => self.rejoin(now, &id, join, waiting, actions),
        }
    }

    fn admit(&mut self, now: Instant, id: MemberId, join: Join, waiting: Waiting, actions: &mut Vec<Action>) {
        let mut member = Member::new(id.clone(), join.introduction, now);
        member.joining = Some(waiting);
        if let Some(instance) = &member.introduction.instance {
            self.statics.insert(instance.clone(), id.clone());
        }
        self.dirty.insert(id.clone());
        self.members.insert(id, member);
        self.protocol_type.get_or_insert(join.protocol_type);
        self.begin_rebalance(now, actions);
        self.complete_join_if_ready(now, actions);
    }

    fn rejoin(
        &mut self,
        now: Instant,
        id: &MemberId,
        join: Join,
        waiting: Waiting,
        actions: &mut Vec<Action>,
    ) {
        self.dirty.insert(id.clone());
        if let Some(member) = self.members.get_mut(id) {
            if let Some(earlier) = member.joining.replace(waiting) {
                // The member lost patience with its own request; whoever still reads that connection is told so.
                actions.push(Action::Reply(
                    earlier,
                    Reply::NotJoined(ErrorCode::REBALANCE_IN_PROGRESS, Some(id.clone())),
                ));
            }
            member.introduction = join.introduction;
            member.touch(now);
        }
        self.begin_rebalance(now, actions);
        self.complete_join_if_ready(now, actions);
    }

    /// A static member came back under a new id: the old one is fenced, and if nothing else changed the group
    /// goes on as it was (KIP-345, KIP-814).
    fn replace_static(
        &mut self,
        now: Instant,
        old: MemberId,
        join: Join,
        waiting: Waiting,
        actions: &mut Vec<Action>,
    ) {
        let Some(mut member) = self.members.remove(&old) else { return };
        if let Some(earlier) = member.joining.take() {
            actions.push(Action::Reply(
                earlier,
                Reply::NotJoined(ErrorCode::FENCED_INSTANCE_ID, Some(old.clone())),
            ));
        }
        if let Some(earlier) = member.syncing.take() {
            actions.push(Action::Reply(earlier, Reply::NotSynced(ErrorCode::FENCED_INSTANCE_ID)));
        }
        let id = join.fresh.clone();
        let unchanged = self.protocol.as_ref().is_some_and(|protocol| {
            let said = join.introduction.protocols.iter().find(|offered| &offered.name == protocol);
            said.is_some_and(|offered| offered.metadata == member.metadata(protocol))
        });
        let was_leader = self.leader.as_ref() == Some(&old);
        if was_leader {
            self.leader = Some(id.clone());
        }
        member.id = id.clone();
        member.introduction = join.introduction.clone();
        member.touch(now);
        if let Some(instance) = &member.introduction.instance {
            self.statics.insert(instance.clone(), id.clone());
        }
        self.members.insert(id.clone(), member);
        self.dirty.extend([old.clone(), id.clone()]);
        if self.phase == Phase::Stable && unchanged {
            actions.push(Action::Persist(self.change()));
            // A client too old to be told "assign nothing" must not believe that it leads.
            return self.repeat_join(now, &id, waiting, was_leader && join.may_skip_assignment, actions);
        }
        self.rejoin(now, &id, join, waiting, actions);
    }

    /// Tells a member the generation that it is in.
    fn repeat_join(
        &mut self,
        now: Instant,
        id: &MemberId,
        waiting: Waiting,
        skip_assignment: bool,
        actions: &mut Vec<Action>,
    ) {
        self.touch(now, id);
        let mut joined = self.joined(id);
        let leads_again = self.phase == Phase::CompletingRebalance || skip_assignment;
        if self.leader.as_ref() == Some(id) && !leads_again {
            // An old client that sees itself as leader would assign anew: name its former self instead.
            joined.leader = MemberId::from("");
            joined.members.clear();
        }
        joined.skip_assignment = skip_assignment;
        actions.push(Action::Reply(waiting, Reply::Joined(joined)));
    }

    pub(super) fn begin_rebalance(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.phase == Phase::PreparingRebalance {
            if let Some(limit) = self.initial_limit {
                // A newcomer prolongs the first wait, so that a group that starts together joins in one go.
                self.phase_deadline = Some((now + self.limits.initial_delay).min(limit));
            }
            return;
        }
        for member in self.members.values_mut() {
            member.synced = false;
            if let Some(waiting) = member.syncing.take() {
                actions.push(Action::Reply(waiting, Reply::NotSynced(ErrorCode::REBALANCE_IN_PROGRESS)));
            }
        }
        let patience = self.rebalance_timeout();
        let first = self.phase == Phase::Empty && !self.limits.initial_delay.is_zero();
        self.initial_limit = first.then(|| now + patience);
        self.phase_deadline =
            Some(now + if first { self.limits.initial_delay.min(patience) } else { patience });
        self.phase = Phase::PreparingRebalance;
    }

    /// The longest that any member may take to come again.
    fn rebalance_timeout(&self) -> Duration {
        self.members.values().map(|member| member.introduction.rebalance_timeout).max().unwrap_or_default()
    }

    pub(super) fn complete_join_if_ready(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let waits = self.initial_limit.is_some() || !self.pending.is_empty();
        let all_here = self.members.values().all(|member| member.joining.is_some());
        if self.phase == Phase::PreparingRebalance && all_here && !waits {
            self.complete_join(now, actions);
        }
    }

    /// The phase's time is up: who hasn't come is left behind.
    pub(super) fn end_phase(&mut self, now: Instant, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::PreparingRebalance => {
                self.initial_limit = None;
                let absent =
                    self.members.values().filter(|member| member.joining.is_none() && !member.is_static());
                let absent: Vec<MemberId> = absent.map(|member| member.id.clone()).collect();
                for id in &absent {
                    self.remove(id, actions);
                }
                if self.members.values().any(|member| member.joining.is_some()) || self.members.is_empty() {
                    self.complete_join(now, actions);
                } else {
                    // Only static members that stay silent are left: wait for them or for their sessions to end.
                    self.phase_deadline = Some(now + self.rebalance_timeout());
                }
            }
            Phase::CompletingRebalance => {
                let unsynced =
                    self.members.values().filter(|member| !member.synced && member.syncing.is_none());
                let unsynced: Vec<MemberId> = unsynced.map(|member| member.id.clone()).collect();
                for id in &unsynced {
                    self.remove(id, actions);
                }
                self.phase_deadline = None;
                self.after_removal(now, actions);
            }
            Phase::Empty | Phase::Stable => self.phase_deadline = None,
        }
    }

    /// A new generation of everybody who has come, and of static members that are still in their sessions.
    fn complete_join(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.generation = Generation::new(self.generation.raw().wrapping_add(1).max(1));
        self.phase_deadline = None;
        self.initial_limit = None;
        if self.members.is_empty() {
            self.become_empty(actions);
            return;
        }
        let leader_stays = self
            .leader
            .as_ref()
            .and_then(|id| self.members.get(id))
            .is_some_and(|leader| leader.joining.is_some());
        if !leader_stays {
            self.leader =
                self.members.values().find(|member| member.joining.is_some()).map(|member| member.id.clone());
        }
        self.protocol = Some(self.choose_protocol());
        self.phase = Phase::CompletingRebalance;
        self.phase_deadline = Some(now + self.rebalance_timeout());
        // No two brokers may tell of different generations under one number: the next one starts beyond this.
        actions.push(Action::Persist(Change { head: self.head(), members: BTreeMap::new() }));
        let ids: Vec<MemberId> = self.members.keys().cloned().collect();
        for id in ids {
            let joined = self.joined(&id);
            let Some(member) = self.members.get_mut(&id) else { continue };
            member.synced = false;
            if let Some(waiting) = member.joining.take() {
                member.touch(now);
                actions.push(Action::Reply(waiting, Reply::Joined(joined)));
            }
        }
    }

    fn become_empty(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Empty;
        self.protocol = None;
        self.leader = None;
        actions.push(Action::Persist(self.change()));
    }

    /// Members have gone: rebalance, or complete the rebalance that waited for them.
    pub(super) fn after_removal(&mut self, now: Instant, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Stable | Phase::CompletingRebalance => {
                self.begin_rebalance(now, actions);
                self.complete_join_if_ready(now, actions);
            }
            Phase::PreparingRebalance => self.complete_join_if_ready(now, actions),
            Phase::Empty => {}
        }
    }

    /// Whether a joiner shares the group's type and at least one protocol with everybody in it.
    fn speaks(&self, join: &Join) -> bool {
        let offered = &join.introduction.protocols;
        if join.protocol_type.is_empty() || offered.is_empty() {
            return false;
        }
        let others: Vec<&Member> =
            self.members.values().filter(|member| Some(&member.id) != join.member.as_ref()).collect();
        if others.is_empty() {
            return true;
        }
        let same_type = self.protocol_type.as_deref().is_none_or(|kind| kind == join.protocol_type);
        same_type
            && offered.iter().any(|mine| {
                others
                    .iter()
                    .all(|member| member.introduction.protocols.iter().any(|theirs| theirs.name == mine.name))
            })
    }

    /// Each member votes for the first of its protocols that all share; ties go to the alphabet.
    fn choose_protocol(&self) -> String {
        let mut shared: Vec<String> = Vec::new();
        if let Some(first) = self.members.values().next() {
            shared.extend(first.introduction.protocols.iter().map(|offered| offered.name.clone()));
        }
        shared.retain(|name| {
            self.members
                .values()
                .all(|member| member.introduction.protocols.iter().any(|offered| &offered.name == name))
        });
        let votes =
            |name: &String| self.members.values().filter(|member| member.vote(&shared) == Some(name)).count();
        let best = shared.iter().max_by(|a, b| votes(a).cmp(&votes(b)).then(b.cmp(a)));
        best.cloned().expect("a joiner that shares no protocol is refused")
    }

    fn joined(&self, id: &MemberId) -> Joined {
        let leader = self.leader.clone().unwrap_or_else(|| MemberId::from(""));
        let protocol = self.protocol.clone().unwrap_or_default();
        let members = if &leader == id {
            let each = |member: &Member| {
                (member.id.clone(), member.introduction.instance.clone(), member.metadata(&protocol))
            };
            self.members.values().map(each).collect()
        } else {
            Vec::new()
        };
        Joined {
            generation: self.generation,
            member: id.clone(),
            leader,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol,
            members,
            skip_assignment: false,
        }
    }

    pub(super) fn sync(&mut self, now: Instant, sync: Sync, waiting: Waiting, actions: &mut Vec<Action>) {
        let code = match self.check(&sync.caller) {
            ErrorCode::NONE if !self.agrees(&sync) => ErrorCode::INCONSISTENT_GROUP_PROTOCOL,
            ErrorCode::NONE if self.phase == Phase::PreparingRebalance => ErrorCode::REBALANCE_IN_PROGRESS,
            ErrorCode::NONE if self.phase == Phase::Empty => ErrorCode::UNKNOWN_MEMBER_ID,
            code => code,
        };
        if code != ErrorCode::NONE {
            actions.push(Action::Reply(waiting, Reply::NotSynced(code)));
            return;
        }
        let id = sync.caller.member.clone();
        self.touch(now, &id);
        if self.phase == Phase::Stable {
            if let Some(member) = self.members.get_mut(&id) {
                member.synced = true;
            }
            let reply = self.synced(&id);
            actions.push(Action::Reply(waiting, reply));
            return;
        }
        if let Some(member) = self.members.get_mut(&id) {
            member.synced = true;
            if let Some(earlier) = member.syncing.replace(waiting) {
                actions.push(Action::Reply(earlier, Reply::NotSynced(ErrorCode::REBALANCE_IN_PROGRESS)));
            }
        }
        if self.leader.as_ref() == Some(&id) {
            self.assign(now, sync, actions);
        }
    }

    /// The leader has spoken: keep it, then tell everybody who waits.
    fn assign(&mut self, now: Instant, sync: Sync, actions: &mut Vec<Action>) {
        for member in self.members.values_mut() {
            member.assignment.clear();
        }
        self.dirty.extend(self.members.keys().cloned());
        for (id, assignment) in sync.assignments {
            if let Some(member) = self.members.get_mut(&id) {
                member.assignment = assignment;
            }
        }
        self.phase = Phase::Stable;
        self.phase_deadline = None;
        actions.push(Action::Persist(self.change()));
        let waiting: Vec<(MemberId, Waiting)> = self
            .members
            .values_mut()
            .filter_map(|member| {
                let waiting = member.syncing.take()?;
                member.touch(now);
                Some((member.id.clone(), waiting))
            })
            .collect();
        for (id, waiting) in waiting {
            let reply = self.synced(&id);
            actions.push(Action::Reply(waiting, reply));
        }
    }

    fn synced(&self, id: &MemberId) -> Reply {
        let assignment = self.members.get(id).map(|member| member.assignment.clone()).unwrap_or_default();
        Reply::Synced(
            self.protocol_type.clone().unwrap_or_default(),
            self.protocol.clone().unwrap_or_default(),
            assignment,
        )
    }

    fn agrees(&self, sync: &Sync) -> bool {
        let same = |mine: &Option<String>, theirs: &Option<String>| theirs.is_none() || mine == theirs;
        same(&self.protocol_type, &sync.protocol.0) && same(&self.protocol, &sync.protocol.1)
    }
}

fn offers_the_same(before: &Introduction, now: &Introduction) -> bool {
    before.protocols == now.protocols
}

fn refuse(waiting: Waiting, code: ErrorCode, member: Option<MemberId>, actions: &mut Vec<Action>) {
    actions.push(Action::Reply(waiting, Reply::NotJoined(code, member)));
}
