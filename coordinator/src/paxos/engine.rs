//! One server's part in the agreement: the whole of Multi-Paxos behind `step(now, event, actions)` (design 1).
//!
//! The roles of the papers are in `acceptor`, `proposer`, `learner`; leases and elections in `lease`. This file ties
//! them together, and the files below say what a server does:
//!
//! | file | what |
//! |---|---|
//! | `promising` | the acceptor's answers to canvasses and prepares (phase 1b) |
//! | `following` | the acceptor's answers to proposals (phase 2b), and what a leader's word is worth |
//! | `standing` | elections: canvass, prepare, back-off (phase 1a) |
//! | `leading` | proposals, votes, signs of life (phase 2a) |
//! | `handing_over` | a leader that gives way |
//! | `changing` | memberships |
//! | `reading` | read barriers |
//! | `catching_up`, `snapshots` | what one server learns from another |
//! | `post`, `dice` | addresses, randomness |
//!
//! Called by `driver` and by the simulator, with the events and actions of `event`.

mod catching_up;
mod changing;
mod dice;
mod following;
mod handing_over;
mod leading;
mod post;
mod promising;
mod reading;
mod snapshots;
mod standing;

use std::collections::BTreeMap;

use bytes::Bytes;
use loggos_protocol::ids::Timestamp;

use self::catching_up::Fetch;
use self::dice::Dice;
use self::post::{Admission, Post};
use self::reading::Questions;
use self::snapshots::{Reception, Stored};
use self::standing::Standing;
use super::acceptor::Acceptor;
use super::ballot::{Ballot, ServerId, Slot, SlotRange};
use super::event::{
    Action, Actions, Event, Identity, LeaderView, Options, Record, Recovered, Status, Violation,
};
use super::learner::Learner;
use super::lease::Grant;
use super::membership::{Config, ConfigHistory, Role};
use super::message::{Envelope, Message};
use super::moment::{Moment, Now};
use super::mutation::{Mutation, Mutations};
use super::outbox::{Held, Outbox};
use super::value::Value;

/// A step either succeeds or proves that safety was broken somewhere.
type Outcome = Result<(), Violation>;

/// What a step works with: the time, and where its actions go.
struct Step<'a> {
    now: Now,
    actions: &'a mut Actions,
}

impl Step<'_> {
    fn at(&self) -> Moment {
        self.now.at
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }
}

/// Session touches on their way from this server to the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Touches {
    /// The batch that no leader has confirmed yet.
    pending: Option<(u64, Bytes)>,
    /// The last heartbeat answered: its ballot and round.
    answered: (Ballot, u64),
}

/// One server's Paxos.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Engine {
    identity: Identity,
    options: Options,
    mutations: Mutations,
    dice: Dice,
    post: Post,
    acceptor: Acceptor,
    learner: Learner,
    configs: ConfigHistory,
    outbox: Outbox,
    grant: Grant,
    standing: Standing,
    view: LeaderView,
    /// The highest ballot seen anywhere.
    seen: Ballot,
    /// What a leader last announced as chosen, and the ballot at which it did.
    announced: (Ballot, Slot),
    /// Without a leader's word until then, stand for election.
    election_at: Moment,
    /// Candidacies that failed since a leader was last heard.
    failures: u32,
    /// The time of the latest value applied.
    latest: Timestamp,
    touches: Touches,
    fetch: Option<Fetch>,
    reception: Option<Reception>,
    stored: Stored,
    questions: Questions,
    /// Promises given, so that the parts of two are told apart.
    answers: u64,
    /// This server's place in the spread of snapshots.
    snapshot_share: u64,
    /// What the shell was last told of the peers.
    peers_told: Config,
    /// `Event::Start` has come.
    started: bool,
    /// A violation was found.
    stopped: bool,
}

impl Engine {
    /// A server with what it remembers. It does nothing before [`Event::Start`].
    pub fn new(
        identity: Identity,
        recovered: Recovered,
        options: Options,
        mutations: Mutations,
        seed: u64,
    ) -> Self {
        let mut dice = Dice::new(seed);
        let snapshot_share = dice.below(16);
        let (acceptor, learner) = remember(identity.server, &recovered, mutations);
        Self {
            identity,
            mutations,
            snapshot_share,
            dice,
            post: Post::new(identity, recovered.configs.latest().0),
            seen: acceptor.promised(),
            acceptor,
            learner,
            outbox: Outbox::default(),
            grant: Grant::after_start(Ballot::NONE, Moment::ZERO, &options, mutations),
            standing: Standing::Following,
            view: LeaderView::default(),
            announced: (Ballot::NONE, Slot::ZERO),
            election_at: Moment::NEVER,
            failures: 0,
            latest: Timestamp::default(),
            touches: Touches::default(),
            fetch: None,
            reception: None,
            stored: Stored::new(recovered.snapshot),
            questions: Questions::default(),
            answers: 0,
            peers_told: Config::default(),
            started: false,
            stopped: false,
            configs: recovered.configs,
            options,
        }
    }

    /// Handles one event. After [`Action::Stop`] nothing happens any more.
    pub fn step(&mut self, now: Now, event: Event, actions: &mut Actions) {
        if self.stopped || (!self.started && event != Event::Start) {
            return;
        }
        let mut step = Step { now, actions };
        let outcome = self.handle(&mut step, event).and_then(|()| self.settle(&mut step));
        if let Err(violation) = outcome {
            self.stopped = true;
            step.act(Action::Stop(violation));
        }
    }

    /// When the next [`Event::Tick`] is wanted.
    pub fn next_deadline(&self) -> Moment {
        if self.stopped || !self.started {
            return Moment::NEVER;
        }
        [self.standing_deadline(), self.fetch_deadline(), self.reception_deadline(), self.question_deadline()]
            .into_iter()
            .min()
            .unwrap_or(Moment::NEVER)
    }

    /// What an operator or a test may want to know.
    pub fn status(&self) -> Status {
        let lease_until = match &self.standing {
            Standing::Leading(leading) => {
                Some(leading.lease_until(&self.configs, &self.learner, &self.options))
            }
            _ => None,
        };
        Status {
            identity: self.identity,
            leader: self.view,
            promised: self.acceptor.promised(),
            chosen_upto: self.learner.chosen_upto(),
            floor: self.learner.floor(),
            config: self.configs.at(self.learner.chosen_upto().next()).as_ref().clone(),
            lease_until,
            uncertain: self.acceptor.is_uncertain(),
        }
    }

    fn handle(&mut self, step: &mut Step<'_>, event: Event) -> Outcome {
        match event {
            Event::Start => return self.start(step),
            Event::Tick => return self.on_time(step),
            Event::Received(envelope) => return self.receive(step, envelope),
            Event::Persisted(ticket) => self.outbox.persisted(ticket),
            Event::Propose(entries) => self.propose(step, entries),
            Event::Read(id) => self.read(step, id),
            Event::Touches { batch, payload } => self.touch(step, batch, payload),
            Event::Reconfigure { id, change } => self.reconfigure(step, id, &change),
            Event::SnapshotStored { slot, bytes } => self.snapshot_stored(step, slot, bytes),
            Event::SnapshotChunkStored { slot, offset } => self.chunk_stored(step, slot, offset),
            Event::SnapshotReceived { slot, bytes, head } => {
                return self.snapshot_received(step, slot, bytes, head);
            }
            Event::SnapshotBroken { slot } => self.snapshot_broken(step, slot),
            Event::Transfer(target) => self.transfer(step, target),
            Event::Unreachable(server) => self.unreachable(step, server),
        }
        Ok(())
    }

    fn start(&mut self, step: &mut Step<'_>) -> Outcome {
        if self.started {
            return Ok(());
        }
        self.started = true;
        self.grant = Grant::after_start(self.acceptor.promised(), step.at(), &self.options, self.mutations);
        self.deliver(step)?;
        self.tell_peers(step);
        self.await_leader(step);
        let voters = self.configs.at(self.learner.chosen_upto().next()).voters();
        if self.may_stand() && voters.len() == 1 {
            // Nobody else could lead, so there is nobody to wait for.
            self.prepare(step, Ballot::NONE);
        }
        self.seek(step);
        Ok(())
    }

    fn on_time(&mut self, step: &mut Step<'_>) -> Outcome {
        match &self.standing {
            Standing::Leading(_) => self.lead_on(step)?,
            Standing::Following | Standing::Canvassing { .. } if self.election_at <= step.at() => {
                self.election_due(step);
            }
            Standing::Preparing(_) => self.prepare_on(step),
            _ => {}
        }
        self.fetch_on(step);
        self.receive_on(step);
        self.ask_on(step);
        Ok(())
    }

    fn receive(&mut self, step: &mut Step<'_>, envelope: Envelope) -> Outcome {
        let from = envelope.from;
        match self.post.admit(&envelope) {
            Admission::Refused => return Ok(()),
            Admission::FormerLife => {
                // It may be a member that this server's memberships don't name yet, and so never looked for.
                self.greet(step, from);
                return Ok(());
            }
            Admission::Admitted => {}
            Admission::NewLife => self.greet_new_life(step, from),
        }
        let addressed = envelope.to_incarnation == self.identity.incarnation;
        match envelope.message {
            Message::Canvass { ballot, chosen_upto } => self.on_canvass(step, from, ballot, chosen_upto),
            Message::CanvassOk { ballot } => self.on_canvass_ok(step, from, ballot),
            Message::CanvassNo { promised, chosen_upto, .. } => {
                self.on_canvass_no(step, from, promised, chosen_upto)
            }
            Message::Prepare { ballot, from_slot, released } => {
                self.on_prepare(step, from, ballot, from_slot, released);
            }
            Message::Promise(promise) => self.on_promise(step, from, promise),
            Message::Accept { ballot, slot, value, chosen_upto } => {
                return self.on_accept(step, from, (ballot, slot, value), chosen_upto);
            }
            Message::Accepted { ballot, slots } => return self.count_votes(step, from, ballot, &slots),
            Message::Reject { ballot, promised, lease_left: _, chosen_upto } => {
                self.on_reject(step, from, ballot, promised, chosen_upto);
            }
            Message::Heartbeat(heartbeat) => return self.on_heartbeat(step, from, heartbeat, addressed),
            Message::HeartbeatAck(ack) => self.on_heartbeat_ack(step, from, ack, envelope.config_slot),
            Message::FetchChosen { from: first } => self.on_fetch(step, from, first),
            Message::Chosen { first, values, chosen_upto } => {
                return self.on_chosen(step, from, first, values, chosen_upto);
            }
            Message::SnapOffer { slot, bytes } => self.on_snap_offer(step, from, slot, bytes),
            Message::SnapFetch { slot, offset } => self.on_snap_fetch(step, from, slot, offset),
            Message::SnapChunk { slot, offset, total, bytes } => {
                self.on_snap_chunk(step, from, (slot, offset, total), bytes);
            }
            Message::Forward { entries } => self.on_forward(entries),
            Message::ReadIndex { id } => self.on_read_index(step, from, id),
            Message::ReadIndexOk { id, slot } => self.on_read_index_ok(step, id, slot),
            Message::ReadIndexNo { id } => self.on_read_index_no(step, id),
            Message::TransferNow { ballot } => self.on_transfer_now(step, from, ballot),
        }
        Ok(())
    }

    /// A peer has restarted: what its former life granted or acknowledged counts no more, and if it led, its lease
    /// died with it.
    fn greet_new_life(&mut self, step: &mut Step<'_>, server: ServerId) {
        if let Standing::Leading(leading) = &mut self.standing {
            leading.forget(server);
        }
        if self.view.leader == server {
            self.grant.release(self.view.ballot);
            self.unreachable(step, server);
        }
    }

    /// Proposes what may be proposed, writes what is to be written, lets out what need wait no longer, until
    /// nothing more comes of it. Each turn ends a write or a window, both of which are bounded.
    fn settle(&mut self, step: &mut Step<'_>) -> Outcome {
        loop {
            self.propose_on(step)?;
            let (chosen_upto, uncertain) = (self.learner.chosen_upto(), self.acceptor.is_uncertain());
            if let Some(write) = self.outbox.flush(chosen_upto, uncertain, step.at()) {
                step.act(Action::Persist(write));
            }
            if !self.release(step)? {
                break;
            }
        }
        self.announce(step);
        Ok(())
    }

    /// Lets out what was held back for the disk. Whether there was anything.
    fn release(&mut self, step: &mut Step<'_>) -> Result<bool, Violation> {
        let mut votes: BTreeMap<Ballot, Vec<Slot>> = BTreeMap::new();
        let mut any = false;
        while let Some(held) = self.outbox.ready() {
            any = true;
            match held {
                Held::Send(envelope) => step.act(Action::Send(envelope)),
                Held::Vote { ballot, slot } => votes.entry(ballot).or_default().push(slot),
                Held::OwnPromise(ballot) => self.own_promise(step, ballot),
            }
        }
        for (ballot, mut slots) in votes {
            slots.sort_unstable();
            let slots = SlotRange::collect(slots);
            if ballot.owner() == self.identity.server {
                self.count_votes(step, self.identity.server, ballot, &slots)?;
            } else {
                self.post.send(step.actions, ballot.owner(), Message::Accepted { ballot, slots });
            }
        }
        Ok(any)
    }

    /// Gives out what has become part of the chosen prefix, and draws the consequences.
    fn deliver(&mut self, step: &mut Step<'_>) -> Outcome {
        let before = self.learner.chosen_upto();
        let mut membership_changed = self.configs.pending(before);
        while let Some((slot, value)) = self.learner.advance() {
            self.latest = self.latest.max(value.time().unwrap_or(self.latest));
            if let Value::Config { config, .. } = &value
                && self.configs.admits(slot)
            {
                self.configs.push(slot, config.clone());
                self.post.config_slot = slot;
                membership_changed = true;
            }
            step.act(Action::Apply { slot, value });
        }
        let upto = self.learner.chosen_upto();
        if upto == before {
            return Ok(());
        }
        self.acceptor.chosen(upto);
        if membership_changed {
            self.tell_peers(step);
        }
        if self.learner.wants_snapshot(&self.options, self.snapshot_share) {
            self.take_snapshot(step);
        }
        self.lead_past(step, upto);
        self.questions_applied(step, upto);
        Ok(())
    }

    /// Takes note that `value` is chosen in `slot`, however that became known.
    fn learn(&mut self, step: &mut Step<'_>, slot: Slot, value: Value, ballot: Ballot) -> Outcome {
        if let Standing::Leading(leading) = &mut self.standing
            && !leading.proposer.learned(slot, &value)
        {
            self.stand_down(step);
        }
        self.learner.learn(slot, value, ballot)
    }

    /// Remembers the highest ballot seen: the next candidacy goes above it.
    fn see(&mut self, ballot: Ballot) {
        self.seen = self.seen.max(ballot);
    }

    fn is_witness(&self) -> bool {
        self.configs.latest().1.role(self.identity.server) == Some(Role::Witness)
    }

    fn set_view(&mut self, step: &mut Step<'_>, view: LeaderView) {
        if self.view == view {
            return;
        }
        let other = self.view.leader != view.leader || self.view.ballot != view.ballot;
        self.view = view;
        if other {
            self.refuse_questions(step);
        }
        step.act(Action::Leader(view));
    }
}

/// What the records, the hint and the snapshot tell of votes and of chosen values.
fn remember(server: ServerId, recovered: &Recovered, mutations: Mutations) -> (Acceptor, Learner) {
    let voted = recovered.records.iter().filter_map(|record| match record {
        Record::Accepted { ballot, .. } => Some(*ballot),
        Record::Learned { .. } => None,
    });
    let in_records = if mutations.has(Mutation::PromiseInRecordOnly) { voted.max() } else { None };
    let mut acceptor = Acceptor::new(recovered.promised.max(in_records.unwrap_or_default()), mutations);
    let mut learner = Learner::new(recovered.snapshot);
    // Where records may be missing, a vote that is left may have been superseded: the hint proves nothing there.
    let hint =
        recovered.uncertain_above.map_or(recovered.chosen_upto, |above| recovered.chosen_upto.min(above));
    let mut chosen: BTreeMap<Slot, Value> = BTreeMap::new();
    for record in &recovered.records {
        match record {
            Record::Accepted { ballot, slot, value } => {
                acceptor.recover(*ballot, *slot, value.clone());
                if *slot <= hint {
                    // The last vote before the prefix passed a slot was for the value chosen there, or else the
                    // chosen one was recorded as learned.
                    chosen.insert(*slot, value.clone());
                }
            }
            Record::Learned { slot, value } => {
                chosen.insert(*slot, value.clone());
            }
        }
    }
    if let Some(above) = recovered.uncertain_above {
        acceptor.recover_uncertain(above);
    }
    if recovered.configs.latest().1.role(server) == Some(Role::Witness) {
        learner.skip_to(hint);
    }
    for (slot, value) in chosen {
        // One value per slot: they come from a map.
        let learned = learner.learn(slot, value, Ballot::NONE);
        learned.expect("a slot is named once");
    }
    acceptor.chosen(learner.chosen_upto());
    (acceptor, learner)
}
