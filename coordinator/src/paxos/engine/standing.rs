//! Elections: who stands, when, and how a candidate becomes the leader (design 1.4, 1.10).
//!
//! `Following -> Canvassing -> Preparing -> Leading`. Time-outs, canvasses and back-off serve liveness alone; safety
//! rests on ballots, promises and P2c. A candidate's own promise is durable before its prepare leaves, so that no
//! ballot is used twice with different values, whatever it forgets.

use std::time::Duration;

use super::leading::Leading;
use super::{Engine, Step};
use crate::paxos::acceptor::Prepared;
use crate::paxos::ballot::{Ballot, ServerId, Slot};
use crate::paxos::event::LeaderView;
use crate::paxos::message::{Message, Promise};
use crate::paxos::moment::Moment;
use crate::paxos::outbox::Held;
use crate::paxos::quorum::Tally;
use crate::paxos::recovery::Promises;

/// After the first failed candidacy, wait at most this long; twice as long after each further one.
const BACK_OFF: Duration = Duration::from_millis(50);
/// But never longer than this.
const BACK_OFF_LIMIT: Duration = Duration::from_secs(2);
/// Doublings after which the limit is surely reached.
const DOUBLINGS_LIMIT: u32 = 6;

/// Where a server stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    /// Listens.
    Following,
    /// Asks whether a candidacy would be welcome.
    Canvassing {
        /// The ballot that it would use.
        ballot: Ballot,
        /// Those who said yes.
        welcomed: Tally,
    },
    /// Phase 1.
    Preparing(Candidacy),
    /// Phase 2.
    Leading(Box<Leading>),
}

/// A phase 1 under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Candidacy {
    promises: Promises,
    /// The ballot of a leader that asked for this candidacy, or none.
    released: Ballot,
    resend_at: Moment,
    until: Moment,
}

impl Engine {
    /// The ballot that this server leads or wants to lead at.
    pub(super) fn standing_ballot(&self) -> Option<Ballot> {
        match &self.standing {
            Standing::Following => None,
            Standing::Canvassing { ballot, .. } => Some(*ballot),
            Standing::Preparing(candidacy) => Some(candidacy.promises.ballot()),
            Standing::Leading(leading) => Some(leading.proposer.ballot()),
        }
    }

    pub(super) fn standing_deadline(&self) -> Moment {
        match &self.standing {
            Standing::Following | Standing::Canvassing { .. } => self.election_at,
            Standing::Preparing(candidacy) => candidacy.resend_at.min(candidacy.until),
            Standing::Leading(leading) => leading.deadline(&self.options),
        }
    }

    /// Whether this server may lead a slot that is open.
    pub(super) fn may_stand(&self) -> bool {
        self.configs.open(self.learner.chosen_upto()).any(|config| config.may_lead(self.identity.server))
    }

    /// Gives the leader, or the next one, a random time to be heard.
    pub(super) fn await_leader(&mut self, step: &Step<'_>) {
        let patience = self.dice.span(self.options.election_min, self.options.election_max);
        self.election_at = step.at().after(patience);
    }

    /// No leader was heard for too long.
    pub(super) fn election_due(&mut self, step: &mut Step<'_>) {
        self.standing = Standing::Following;
        self.forget_leader(step);
        self.await_leader(step);
        if self.may_stand() {
            self.canvass(step);
        } else {
            self.seek(step);
        }
    }

    /// The connection to a peer broke. If it leads, it may be dead: look sooner, but not before its lease ends.
    pub(super) fn unreachable(&mut self, step: &mut Step<'_>, server: ServerId) {
        let following = matches!(self.standing, Standing::Following);
        if following && self.view.leader == server && self.may_stand() {
            let soon = step
                .at()
                .max(self.grant.until())
                .after(self.dice.span(Duration::ZERO, self.options.heartbeat));
            self.election_at = self.election_at.min(soon);
        }
    }

    pub(super) fn forget_leader(&mut self, step: &mut Step<'_>) {
        self.set_view(step, LeaderView::default());
    }

    fn next_ballot(&self) -> Ballot {
        self.seen.max(self.acceptor.promised()).next_for(self.identity.server)
    }

    /// Asks all voters whether they would promise; changes nothing anywhere.
    fn canvass(&mut self, step: &mut Step<'_>) {
        let ballot = self.next_ballot();
        if self.grant.left(ballot, step.at()) > Duration::ZERO {
            self.election_at =
                self.grant.until().after(self.dice.span(Duration::ZERO, self.options.heartbeat));
            return;
        }
        let mut welcomed = Tally::new();
        welcomed.add(self.identity.server);
        self.standing = Standing::Canvassing { ballot, welcomed };
        let chosen_upto = self.learner.chosen_upto();
        for voter in self.other_voters() {
            self.post.send(step.actions, voter, Message::Canvass { ballot, chosen_upto });
        }
        self.canvassed(step);
    }

    pub(super) fn on_canvass_ok(&mut self, step: &mut Step<'_>, from: ServerId, answered: Ballot) {
        if let Standing::Canvassing { ballot, welcomed } = &mut self.standing
            && *ballot == answered
        {
            welcomed.add(from);
            self.canvassed(step);
        }
    }

    pub(super) fn on_canvass_no(
        &mut self,
        step: &mut Step<'_>,
        from: ServerId,
        promised: Ballot,
        chosen_upto: Slot,
    ) {
        self.see(promised);
        if chosen_upto > self.learner.chosen_upto() {
            self.want_chosen(step, from, chosen_upto);
        }
    }

    fn canvassed(&mut self, step: &mut Step<'_>) {
        let voters = self.configs.at(self.learner.chosen_upto().next()).voters();
        if let Standing::Canvassing { welcomed, .. } = &self.standing
            && welcomed.is_majority_of(&voters)
        {
            self.prepare(step, Ballot::NONE);
        }
    }

    /// Phase 1a, for every slot that is open here and all that follow. `released` is the ballot of a leader that asked
    /// for it.
    pub(super) fn prepare(&mut self, step: &mut Step<'_>, released: Ballot) {
        let ballot = self.next_ballot();
        let blocked = self.grant.left(ballot, step.at()) > Duration::ZERO;
        if blocked || self.acceptor.prepare(ballot) != Prepared::Promised {
            self.standing = Standing::Following;
            return;
        }
        self.see(ballot);
        self.forget_leader(step);
        self.outbox.promise(ballot);
        let from = self.learner.chosen_upto().next();
        for voter in self.other_voters() {
            let message = Message::Prepare { ballot, from_slot: from, released };
            self.hold_promise(Held::Send(self.post.envelope(voter, message)));
        }
        self.outbox.hold(Held::OwnPromise(ballot));
        let patience = self.dice.span(self.options.election_min, self.options.election_max);
        self.standing = Standing::Preparing(Candidacy {
            promises: Promises::new(ballot, from, self.mutations),
            released,
            resend_at: step.at().after(self.options.resend),
            until: step.at().after(patience),
        });
    }

    /// Time has passed in phase 1: ask again, or give up for now.
    pub(super) fn prepare_on(&mut self, step: &mut Step<'_>) {
        let others = self.other_voters();
        let Standing::Preparing(candidacy) = &mut self.standing else { return };
        if candidacy.until <= step.at() {
            return self.fail(step);
        }
        if candidacy.resend_at > step.at() {
            return;
        }
        candidacy.resend_at = step.at().after(self.options.resend);
        let promises = &candidacy.promises;
        // Before its own promise is durable nothing may leave.
        let asked =
            others.into_iter().filter(|other| promises.has(self.identity.server) && !promises.has(*other));
        for voter in asked {
            let (ballot, from_slot) = (promises.ballot(), promises.from());
            let message = Message::Prepare { ballot, from_slot, released: candidacy.released };
            self.post.send(step.actions, voter, message);
        }
    }

    /// This server's own promise is durable.
    pub(super) fn own_promise(&mut self, step: &mut Step<'_>, ballot: Ballot) {
        let from = match &self.standing {
            Standing::Preparing(candidacy) => candidacy.promises.from(),
            _ => return,
        };
        for part in self.promise_parts(ballot, from) {
            self.on_promise(step, self.identity.server, part);
        }
    }

    /// Phase 1b has come in. With a majority, lead.
    pub(super) fn on_promise(&mut self, step: &mut Step<'_>, from: ServerId, promise: Promise) {
        match &mut self.standing {
            Standing::Preparing(candidacy) if candidacy.promises.ballot() == promise.ballot => {
                candidacy.promises.add(from, promise);
                let voters = self.configs.at(candidacy.promises.from()).voters();
                if candidacy.promises.is_majority_of(&voters) && candidacy.promises.has(self.identity.server)
                {
                    self.lead(step);
                }
            }
            Standing::Leading(leading) if leading.proposer.ballot() == promise.ballot => {
                leading.proposer.add_promise(from, promise);
            }
            _ => {}
        }
    }

    fn lead(&mut self, step: &mut Step<'_>) {
        let Standing::Preparing(candidacy) = std::mem::replace(&mut self.standing, Standing::Following)
        else {
            return;
        };
        let ballot = candidacy.promises.ballot();
        self.failures = 0;
        self.fetch = None;
        self.standing =
            Standing::Leading(Box::new(Leading::new(candidacy.promises, step.at(), self.mutations)));
        self.set_view(step, LeaderView { leader: self.identity.server, ballot, leading: false });
        self.begin_round(step);
        if let Some((batch, payload)) = self.touches.pending.take() {
            self.touch(step, batch, payload);
        }
    }

    /// A prepare or a proposal was refused.
    pub(super) fn on_reject(
        &mut self,
        step: &mut Step<'_>,
        from: ServerId,
        ballot: Ballot,
        promised: Ballot,
        chosen_upto: Slot,
    ) {
        self.see(promised);
        let leading = matches!(self.standing, Standing::Leading(_));
        if !leading && chosen_upto > self.learner.chosen_upto() {
            self.want_chosen(step, from, chosen_upto);
        }
        if promised > ballot && self.standing_ballot() == Some(ballot) {
            self.fail(step);
        }
        self.yield_to_knowledge(step, from, chosen_upto);
    }

    /// `from` knows chosen values up to `theirs`. A leader that lacks promises for its next slot (its own votes may be
    /// lost, and others are too far ahead to report theirs) does better to learn first than to stand in the way.
    pub(super) fn yield_to_knowledge(&mut self, step: &mut Step<'_>, from: ServerId, theirs: Slot) {
        let Standing::Leading(leading) = &self.standing else { return };
        if theirs > self.learner.chosen_upto() && leading.proposer.lacks_promises(&self.configs) {
            self.stand_down(step);
            self.want_chosen(step, from, theirs);
        }
    }

    /// This candidacy or leadership has failed: wait a random time, longer after each failure, so that duelling
    /// candidates part.
    fn fail(&mut self, step: &mut Step<'_>) {
        self.stand_down(step);
        self.failures += 1;
        let limit = (BACK_OFF * (1 << self.failures.min(DOUBLINGS_LIMIT))).min(BACK_OFF_LIMIT);
        let wait = self.dice.span(Duration::ZERO, limit);
        self.election_at = step.at().max(self.grant.until()).after(wait);
    }

    /// Whatever this server led or wanted to lead is over.
    pub(super) fn stand_down(&mut self, step: &mut Step<'_>) {
        let standing = std::mem::replace(&mut self.standing, Standing::Following);
        if let Standing::Leading(leading) = standing {
            self.forget_leader(step);
            leading.abandon(step.actions, &self.post);
        }
        self.await_leader(step);
    }

    /// Every voter of an open slot but this server.
    pub(super) fn other_voters(&self) -> Vec<ServerId> {
        let open = self.configs.open(self.learner.chosen_upto());
        let mut voters: std::collections::BTreeSet<ServerId> =
            open.flat_map(|config| config.voters()).collect();
        voters.remove(&self.identity.server);
        voters.into_iter().collect()
    }
}
