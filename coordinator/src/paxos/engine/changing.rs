//! Changes of the membership, as the leader makes them (design 1.12).
//!
//! One at a time: a membership chosen in slot `i` governs from `i + alpha` on, and an idle leader fills the slots
//! between with no-ops. Before it proposes in a slot of the new membership it needs promises of that membership's
//! majority, and until the change is through its lease and its reads need majorities of both.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::standing::Standing;
use super::{Engine, Step};
use crate::paxos::ballot::{ServerId, Slot};
use crate::paxos::event::{Action, Actions, ChangeError, RequestId};
use crate::paxos::membership::{
    Change, Config, Health, Role, apply_change, automatic_change, has_live_majority,
};
use crate::paxos::message::Message;
use crate::paxos::moment::Moment;
use crate::paxos::value::Value;

/// A change that this leader has begun.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ChangeUnderWay {
    /// Who asked; nobody, if the leader did it by itself.
    id: Option<RequestId>,
    config: Arc<Config>,
}

impl ChangeUnderWay {
    /// Leadership is over: whoever asked can't be told what will come of it.
    pub fn abandon(self, actions: &mut Actions) {
        if let Some(id) = self.id {
            actions.push(Action::Reconfigured { id, outcome: Err(ChangeError::Unknown) });
        }
    }
}

impl Engine {
    /// Somebody wants another membership.
    pub(super) fn reconfigure(&mut self, step: &mut Step<'_>, id: RequestId, change: &Change) {
        match self.begin_change(step.at(), Some(id), change) {
            Ok(true) => {}
            Ok(false) => step.act(Action::Reconfigured { id, outcome: Ok(()) }),
            Err(error) => step.act(Action::Reconfigured { id, outcome: Err(error) }),
        }
    }

    /// Begins a change; false if there is nothing to be changed.
    fn begin_change(
        &mut self,
        now: Moment,
        id: Option<RequestId>,
        change: &Change,
    ) -> Result<bool, ChangeError> {
        let leader = self.view.leader;
        let live = self.live_members(now);
        let chosen_upto = self.learner.chosen_upto();
        let leading = match &mut self.standing {
            Standing::Leading(leading) if leading.started && leading.hand_over.is_none() => leading,
            _ => return Err(ChangeError::NotLeader { leader }),
        };
        let (_, latest) = self.configs.latest();
        if let Change::Join { member } = change
            && member.token != 0
            && latest.members.iter().any(|known| known.token == member.token)
        {
            return Ok(false);
        }
        if leading.change.is_some() || leading.proposer.has_config() || self.configs.pending(chosen_upto) {
            return Err(ChangeError::InProgress);
        }
        let config = apply_change(latest, change)?;
        if config == **latest {
            return Ok(false);
        }
        if !has_live_majority(&config, &live) {
            return Err(ChangeError::NoQuorum);
        }
        let config = Arc::new(config);
        leading.proposer.enqueue_config(config.clone());
        leading.change = Some(ChangeUnderWay { id, config });
        Ok(true)
    }

    /// Members that answer and are within the window of the end.
    fn live_members(&self, now: Moment) -> BTreeSet<ServerId> {
        self.members_within(now, self.options.alpha)
    }

    fn members_within(&self, now: Moment, lag: u64) -> BTreeSet<ServerId> {
        let Standing::Leading(leading) = &self.standing else { return BTreeSet::new() };
        let (_, latest) = self.configs.latest();
        let close = |id: ServerId, behind: u64| latest.role(id) == Some(Role::Witness) || behind <= lag;
        let answering = leading.members.iter().filter(|(id, member)| {
            member.heard.after(self.options.election_max) > now && close(**id, member.lag)
        });
        answering.map(|(id, _)| *id).chain([self.identity.server]).collect()
    }

    /// With nothing else to do the leader proposes no-ops up to here, so that a change gets through.
    pub(super) fn push_upto(&self) -> Slot {
        let (slot, _) = self.configs.latest();
        if self.configs.pending(self.learner.chosen_upto()) {
            self.configs.governs_from(slot)
        } else {
            Slot::ZERO
        }
    }

    /// The prefix has grown: a change may be through, or this leader's time over.
    pub(super) fn change_on(&mut self, step: &mut Step<'_>, upto: Slot) {
        let (_, latest) = self.configs.latest();
        if self.configs.pending(upto) {
            return;
        }
        let removed = !latest.may_lead(self.identity.server);
        let Standing::Leading(leading) = &mut self.standing else { return };
        if let Some(ChangeUnderWay { id, .. }) =
            leading.change.take_if(|change| change.config.as_ref() == latest.as_ref())
            && let Some(id) = id
        {
            step.act(Action::Reconfigured { id, outcome: Ok(()) });
        }
        if removed && leading.started && leading.hand_over.is_none() {
            self.transfer(step, None);
            if matches!(&self.standing, Standing::Leading(leading) if leading.hand_over.is_none()) {
                self.stand_down(step);
            }
        }
    }

    /// Makes the changes that need nobody's wish: 1 to 3 to 5 voters, a voter that is dead for good, a voter whose
    /// successor has come up at its address.
    pub(super) fn change_automatically(&mut self, step: &mut Step<'_>) {
        let (_, latest) = self.configs.latest();
        let learners = latest.members.iter().any(|member| member.role == Role::Learner);
        let Standing::Leading(leading) = &self.standing else { return };
        if !self.options.auto_promote || !learners || !leading.started || leading.change.is_some() {
            return;
        }
        let silent = |id: ServerId| {
            let heard =
                leading.members.get(&id).map_or(leading.since, |member| member.heard.max(leading.since));
            heard.after(self.options.replace_after) <= step.at()
        };
        let mut dead = latest.voters();
        dead.retain(|id| *id != self.identity.server && silent(*id));
        let health = Health { caught_up: self.members_within(step.at(), self.options.window), dead };
        if let Some(change) = automatic_change(latest, &health) {
            // Refused for now, it is thought of again with the next round.
            let _ = self.begin_change(step.at(), None, &change);
        }
    }

    /// A witness applies nothing, so that it must be told of memberships.
    pub(super) fn inform_witness(&mut self, step: &mut Step<'_>, to: ServerId, config_slot: Slot) {
        let (slot, latest) = self.configs.latest();
        if slot > config_slot && latest.role(to) == Some(Role::Witness) {
            let values = vec![Value::Config { config: latest.clone(), time: self.latest }];
            let chosen_upto = self.learner.chosen_upto();
            self.post.send(step.actions, to, Message::Chosen { first: slot, values, chosen_upto });
        }
    }

    /// Tells the shell whom to be connected with, if that has changed: all members of memberships that still matter.
    pub(super) fn tell_peers(&mut self, step: &mut Step<'_>) {
        let (_, latest) = self.configs.latest();
        let mut peers = latest.as_ref().clone();
        for config in self.configs.open(self.learner.chosen_upto()) {
            let gone = config.members.iter().filter(|member| latest.member(member.id).is_none());
            peers.members.extend(gone.cloned());
        }
        peers.members.sort();
        peers.members.dedup_by_key(|member| member.id);
        if peers != self.peers_told {
            self.peers_told = peers.clone();
            step.act(Action::Peers(peers));
        }
    }
}
