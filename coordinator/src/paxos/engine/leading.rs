//! What a leader does: it proposes, counts votes, and speaks often enough to be believed (design 1.4, 1.5, 1.9).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::changing::ChangeUnderWay;
use super::handing_over::HandOver;
use super::post::Post;
use super::reading::Barriers;
use super::standing::Standing;
use super::{Engine, Outcome, Step};
use crate::paxos::ballot::{Ballot, ServerId, Slot, SlotRange};
use crate::paxos::event::{Action, Actions, LeaderView, Options};
use crate::paxos::learner::Learner;
use crate::paxos::lease::Tenure;
use crate::paxos::membership::{ConfigHistory, Role};
use crate::paxos::message::{Heartbeat, HeartbeatAck, Message};
use crate::paxos::moment::Moment;
use crate::paxos::mutation::Mutations;
use crate::paxos::proposer::{Proposer, View};
use crate::paxos::recovery::Promises;

/// What the leader knows of another member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Progress {
    /// Its chosen prefix, as far as it would survive a crash.
    pub applied: Slot,
    /// How many slots it lay behind when it said so.
    pub lag: u64,
    /// When it last answered.
    pub heard: Moment,
    /// Its last batch of touches registered here.
    touches: u64,
}

/// A leadership.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leading {
    pub proposer: Proposer,
    pub tenure: Tenure,
    /// The own `LeaderStart` has been applied: the end of the chosen prefix is known, reads may be answered.
    pub started: bool,
    pub members: BTreeMap<ServerId, Progress>,
    pub barriers: Barriers,
    pub hand_over: Option<HandOver>,
    pub change: Option<ChangeUnderWay>,
    /// When this leadership began.
    pub since: Moment,
    heartbeat_at: Moment,
    prepare_at: Moment,
    /// The prefix that the members have been told of.
    announced: Slot,
}

impl Leading {
    /// Phase 1 has just succeeded.
    pub fn new(promises: Promises, now: Moment, mutations: Mutations) -> Self {
        Self {
            proposer: Proposer::new(promises.ballot(), promises, mutations),
            tenure: Tenure::new(now, mutations),
            started: false,
            members: BTreeMap::new(),
            barriers: Barriers::default(),
            hand_over: None,
            change: None,
            since: now,
            heartbeat_at: now,
            prepare_at: now,
            announced: Slot::ZERO,
        }
    }

    /// Until when reads may rely on the lease.
    pub fn lease_until(&self, configs: &ConfigHistory, learner: &Learner, options: &Options) -> Moment {
        self.tenure.lease_until(configs.open(learner.chosen_upto()), options)
    }

    /// A member begins a new life.
    pub fn forget(&mut self, server: ServerId) {
        self.tenure.forget(server);
        self.members.remove(&server);
    }

    pub fn deadline(&self, options: &Options) -> Moment {
        let hand_over = self.hand_over.as_ref().map_or(Moment::NEVER, HandOver::until);
        self.heartbeat_at.min(self.proposer.next_resend(options)).min(hand_over)
    }

    /// Those who wait for this leadership are told that it is over.
    pub fn abandon(self, actions: &mut Actions, post: &Post) {
        self.barriers.abandon(actions, post);
        if let Some(change) = self.change {
            change.abandon(actions);
        }
    }
}

impl Engine {
    /// Entries to be chosen.
    pub(super) fn propose(&mut self, step: &mut Step<'_>, entries: Vec<Bytes>) {
        if let Standing::Leading(leading) = &mut self.standing {
            leading.proposer.enqueue(entries, &self.options);
        } else if !self.view.leader.is_none() && !self.is_witness() {
            self.forward(step, entries);
        }
    }

    /// Sends entries to the leader, in pieces of at most a batch.
    fn forward(&mut self, step: &mut Step<'_>, entries: Vec<Bytes>) {
        let mut piece = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            let full =
                piece.len() == self.options.batch_entries || bytes + entry.len() > self.options.batch_bytes;
            if full && !piece.is_empty() {
                let entries = std::mem::take(&mut piece);
                self.post.send(step.actions, self.view.leader, Message::Forward { entries });
                bytes = 0;
            }
            bytes += entry.len();
            piece.push(entry);
        }
        if !piece.is_empty() {
            self.post.send(step.actions, self.view.leader, Message::Forward { entries: piece });
        }
    }

    /// Another server's clients want these chosen. Not forwarded any further: that server asks again.
    pub(super) fn on_forward(&mut self, entries: Vec<Bytes>) {
        if let Standing::Leading(leading) = &mut self.standing {
            leading.proposer.enqueue(entries, &self.options);
        }
    }

    /// Phase 2a: proposes as much as the window allows.
    pub(super) fn propose_on(&mut self, step: &mut Step<'_>) -> Outcome {
        loop {
            let push_upto = self.push_upto();
            let Standing::Leading(leading) = &mut self.standing else { return Ok(()) };
            let view = View {
                learner: &self.learner,
                configs: &self.configs,
                options: &self.options,
                disk_free: self.outbox.is_idle(),
                paused: leading.hand_over.is_some(),
                latest: self.latest,
                push_upto,
            };
            let Some((slot, value)) = leading.proposer.next_proposal(step.now, &view) else { return Ok(()) };
            let ballot = leading.proposer.ballot();
            leading.announced = leading.announced.max(self.learner.chosen_upto());
            for voter in self.acceptors_of(slot, step.at(), false) {
                self.send_accept(step, voter, ballot, (slot, value.clone()));
            }
            if !self.vote(ballot, slot, &value)? {
                // It has promised more meanwhile, so that it leads no longer.
                self.stand_down(step);
            }
        }
    }

    fn send_accept(
        &self,
        step: &mut Step<'_>,
        to: ServerId,
        ballot: Ballot,
        (slot, value): (Slot, crate::paxos::value::Value),
    ) {
        let chosen_upto = self.chosen_for(to);
        self.post.send(step.actions, to, Message::Accept { ballot, slot, value, chosen_upto });
    }

    /// Who is asked to accept a proposal: the voters of the slot's membership. A witness only while a full voter
    /// isn't answering (Cheap Paxos' auxiliary acceptor), or for what one has left unanswered (`urgent`).
    fn acceptors_of(&self, slot: Slot, now: Moment, urgent: bool) -> Vec<ServerId> {
        let config = self.configs.at(slot);
        let Standing::Leading(leading) = &self.standing else { return Vec::new() };
        let patience = self.options.heartbeat * 3;
        let answers =
            |id: ServerId| leading.members.get(&id).is_some_and(|member| member.heard.after(patience) > now);
        let others = config.members.iter().filter(|member| member.id != self.identity.server);
        let all_answer =
            others.clone().filter(|member| member.role == Role::Voter).all(|member| answers(member.id));
        others
            .filter(|member| match member.role {
                Role::Voter => true,
                Role::Witness => urgent || !all_answer,
                Role::Learner => false,
            })
            .map(|member| member.id)
            .collect()
    }

    /// What `to` is told to be chosen: a witness is told only what it may forget, see [`Heartbeat::chosen_upto`].
    fn chosen_for(&self, to: ServerId) -> Slot {
        let chosen_upto = self.learner.chosen_upto();
        let witness = self.configs.open(chosen_upto).any(|config| config.role(to) == Some(Role::Witness));
        if witness { self.held_by_all() } else { chosen_upto }
    }

    /// The prefix that every full voter of an open membership holds, durably.
    fn held_by_all(&self) -> Slot {
        let Standing::Leading(leading) = &self.standing else { return Slot::ZERO };
        let chosen_upto = self.learner.chosen_upto();
        let open = self.configs.open(chosen_upto);
        let full = open.flat_map(|config| config.members.iter().filter(|member| member.role == Role::Voter));
        let holds = |id: ServerId| {
            if id == self.identity.server {
                self.outbox.durable_upto(chosen_upto)
            } else {
                leading.members.get(&id).map_or(Slot::ZERO, |member| member.applied)
            }
        };
        full.map(|member| holds(member.id)).min().unwrap_or(Slot::ZERO)
    }

    /// Phase 2b: durable votes have come in, this server's own or another's.
    pub(super) fn count_votes(
        &mut self,
        step: &mut Step<'_>,
        from: ServerId,
        ballot: Ballot,
        slots: &[SlotRange],
    ) -> Outcome {
        let Standing::Leading(leading) = &mut self.standing else { return Ok(()) };
        if leading.proposer.ballot() != ballot {
            return Ok(());
        }
        let chosen = leading.proposer.vote(from, slots, &self.configs);
        if chosen.is_empty() {
            return Ok(());
        }
        for (slot, value) in chosen {
            self.learner.learn(slot, value, ballot)?;
        }
        self.deliver(step)
    }

    /// The prefix has grown to `upto`.
    pub(super) fn lead_past(&mut self, step: &mut Step<'_>, upto: Slot) {
        let Standing::Leading(leading) = &mut self.standing else { return };
        leading.proposer.chosen(upto);
        let start = leading.proposer.start();
        if !leading.started && start != Slot::ZERO && start <= upto {
            leading.started = true;
            let ballot = leading.proposer.ballot();
            self.set_view(step, LeaderView { leader: self.identity.server, ballot, leading: true });
        }
        self.barriers_on(step);
        self.change_on(step, upto);
        self.hand_over_on(step);
    }

    /// Time has passed.
    pub(super) fn lead_on(&mut self, step: &mut Step<'_>) -> Outcome {
        let Standing::Leading(leading) = &mut self.standing else { return Ok(()) };
        if leading.heartbeat_at <= step.at() {
            let confirmed = leading.tenure.confirmed_at(self.configs.open(self.learner.chosen_upto()));
            if confirmed.after(self.options.election_max) <= step.at() {
                // No majority has answered for so long: another leader may be at work already.
                self.stand_down(step);
                return Ok(());
            }
            self.begin_round(step);
            self.ask_new_voters(step);
            self.watch_disk(step);
            self.change_automatically(step);
        }
        self.repeat_proposals(step);
        self.hand_over_on(step);
        Ok(())
    }

    /// Sends again what was not answered in time, to those who have not answered.
    fn repeat_proposals(&mut self, step: &mut Step<'_>) {
        let Standing::Leading(leading) = &mut self.standing else { return };
        let ballot = leading.proposer.ballot();
        for (voter, slot, value) in leading.proposer.overdue(step.at(), &self.options, &self.configs) {
            if voter != self.identity.server {
                self.send_accept(step, voter, ballot, (slot, value));
            }
        }
    }

    /// Proposals wait for promises of voters that have given none: those of a new membership, or such as may make up
    /// for one that is uncertain.
    fn ask_new_voters(&mut self, step: &mut Step<'_>) {
        let others = self.other_voters();
        let Standing::Leading(leading) = &mut self.standing else { return };
        if leading.prepare_at > step.at() || !leading.proposer.lacks_promises(&self.configs) {
            return;
        }
        leading.prepare_at = step.at().after(self.options.resend);
        let (ballot, from_slot) = (leading.proposer.ballot(), self.learner.chosen_upto().next());
        for voter in others.into_iter().filter(|voter| !leading.proposer.promises().has(*voter)) {
            let message = Message::Prepare { ballot, from_slot, released: Ballot::NONE };
            self.post.send(step.actions, voter, message);
        }
    }

    /// A round of heartbeats to every member; its acknowledgements extend the lease and confirm reads.
    pub(super) fn begin_round(&mut self, step: &mut Step<'_>) {
        let Standing::Leading(leading) = &mut self.standing else { return };
        let round = leading.tenure.begin_round(step.at());
        leading.tenure.acknowledge(self.identity.server, round, step.at());
        leading.heartbeat_at = step.at().after(self.options.heartbeat);
        let ballot = leading.proposer.ballot();
        if !leading.tenure.is_given_up() {
            self.grant.extend(ballot, step.at(), &self.options);
        }
        self.send_heartbeats(step);
        self.barriers_on(step);
    }

    /// The chosen prefix has grown and no proposal will say so: the members learn it now, not at the next round.
    pub(super) fn announce(&mut self, step: &mut Step<'_>) {
        let chosen_upto = self.learner.chosen_upto();
        if let Standing::Leading(leading) = &self.standing
            && leading.announced < chosen_upto
            && leading.proposer.is_quiet()
        {
            if leading.hand_over.is_some() {
                // A new round is answered by how far they are, which the hand-over waits for.
                self.begin_round(step);
            } else {
                self.send_heartbeats(step);
            }
        }
    }

    fn send_heartbeats(&mut self, step: &mut Step<'_>) {
        let chosen_upto = self.learner.chosen_upto();
        let Standing::Leading(leading) = &mut self.standing else { return };
        leading.announced = chosen_upto;
        let (ballot, last_proposed) = (leading.proposer.ballot(), leading.proposer.last_proposed());
        let template = Heartbeat {
            ballot,
            chosen_upto,
            round: leading.tenure.round(),
            last_proposed,
            touches: 0,
            released: leading.tenure.is_given_up(),
            clock: step.at(),
        };
        self.end_uncertainty(ballot, last_proposed);
        for member in self.configs.everyone(chosen_upto) {
            if member == self.identity.server {
                continue;
            }
            let Standing::Leading(leading) = &self.standing else { return };
            let touches = leading.members.get(&member).map_or(0, |progress| progress.touches);
            let heartbeat = Heartbeat { touches, chosen_upto: self.chosen_for(member), ..template.clone() };
            self.post.send(step.actions, member, Message::Heartbeat(heartbeat));
        }
    }

    /// A member has heard the leader.
    pub(super) fn on_heartbeat_ack(
        &mut self,
        step: &mut Step<'_>,
        from: ServerId,
        ack: HeartbeatAck,
        config_slot: Slot,
    ) {
        let Standing::Leading(leading) = &mut self.standing else { return };
        if leading.proposer.ballot() != ack.ballot {
            return;
        }
        leading.tenure.acknowledge(from, ack.round, step.at());
        leading.tenure.watch_clock(from, ack.round, ack.clock, step.at(), &self.options);
        let progress = leading.members.entry(from).or_default();
        progress.applied = progress.applied.max(ack.applied_upto);
        progress.lag = self.learner.chosen_upto().since(progress.applied);
        progress.heard = step.at();
        if ack.touches > progress.touches {
            progress.touches = ack.touches;
            step.act(Action::Touched { from, payload: ack.payload });
        }
        self.inform_witness(step, from, config_slot);
        self.barriers_on(step);
        self.hand_over_on(step);
        self.yield_to_knowledge(step, from, ack.applied_upto);
    }
}
