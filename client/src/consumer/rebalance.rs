//! When a member of a member-run group gives partitions up and takes others (P): Algorithm 1's order of steps, as a
//! machine that is told what happened and says what to do next.
//!
//! One action is under way at a time; its outcome is the next event. A partition is taken by an ephemeral node, so two
//! members never hold it at once, whatever each of them believes; and it is given up only after its offset is
//! committed. Unlike the paper's, a rebalance leaves alone what stays with its member: those partitions are read on
//! without a pause. Called by `connector`, and by the simulation beside this file.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use loggos_protocol::ids::{MemberId, TopicName, TopicPartition};

use super::assignment::{Registries, assign, crowded};

/// Partitions, each with the stream that reads it.
pub type Claims = BTreeMap<TopicPartition, usize>;

/// How patient a member is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Between an attempt that failed and the next.
    pub backoff: Duration,
    /// Attempts at partitions that others hold, before somebody is told.
    pub attempts: u32,
    /// How often the registries are read though nothing was heard of a change: a watch may have been lost.
    pub recheck: Duration,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The member begins, or goes on in a new session under a new name; nothing of the old one's stands any more.
    Session(MemberId),
    /// Consumers, brokers or topics have changed, or an owner has gone that is waited for.
    Changed,
    /// The consumer reads other topics from now on.
    Resubscribed,
    /// `Register` has succeeded.
    Registered,
    /// What the registries say, after `Read`.
    Read(Registries),
    /// `GiveUp` has succeeded.
    GivenUp,
    /// `Claim` has given these; the others belong to somebody else.
    Claimed(BTreeSet<TopicPartition>),
    /// `Begin` has succeeded.
    Begun,
    /// `Deregister` has succeeded.
    Deregistered,
    /// What was under way failed; whether it happened is not known.
    Failed,
    /// The member is to leave the group.
    Leave,
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Say in the registry that this consumer is there.
    Register,
    /// Read the registries.
    Read,
    /// Stop reading these, commit their offsets, and then let them go.
    GiveUp(BTreeSet<TopicPartition>),
    /// Stop reading these: they may be somebody else's already, and nothing can be committed.
    Abandon(BTreeSet<TopicPartition>),
    /// Take these for these streams, as far as nobody has them.
    Claim(Claims),
    /// Read these from their committed offsets on.
    Begin(Claims),
    /// Tell that more streams read a topic than it has partitions: topic, streams, partitions.
    WarnCrowded(TopicName, usize, usize),
    /// Tell that others hold partitions for longer than they should.
    WarnContended(BTreeSet<TopicPartition>),
    /// Take the consumer out of the registry; the end.
    Deregister,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before the first session.
    Outside,
    Registering,
    Reading,
    GivingUp,
    Claiming,
    Beginning,
    /// All is as it should be; the registries are looked at again then.
    Settled(Instant),
    /// Something failed, or somebody holds what is ours: on from the beginning then.
    Waiting(Instant),
    Leaving,
    Gone,
}

/// One member's part in its group's balance.
#[derive(Clone, Debug)]
pub struct Rebalance {
    me: MemberId,
    patience: Patience,
    phase: Phase,
    registered: bool,
    /// What has changed since the registries were read.
    stale: bool,
    leaving: bool,
    /// Partitions that may have an owner's node of ours.
    held: Claims,
    /// Those of them that are read.
    reading: Claims,
    target: Claims,
    /// When what others held is asked for again.
    retry_at: Option<Instant>,
    failures: u32,
    crowded: Vec<(TopicName, usize, usize)>,
}

impl Rebalance {
    /// A member that isn't in its group yet.
    pub fn new(me: MemberId, patience: Patience) -> Self {
        Self {
            me,
            patience,
            phase: Phase::Outside,
            registered: false,
            stale: false,
            leaving: false,
            held: Claims::new(),
            reading: Claims::new(),
            target: Claims::new(),
            retry_at: None,
            failures: 0,
            crowded: Vec::new(),
        }
    }

    /// The partitions that are read.
    pub const fn reading(&self) -> &Claims {
        &self.reading
    }

    /// Whether nothing is under way and nothing is missing.
    pub const fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Settled(_)) && !self.stale
    }

    /// Whether the member has left.
    pub const fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// When [`Event::Tick`] is due.
    pub const fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Settled(at) | Phase::Waiting(at) => Some(at),
            _ => None,
        }
    }

    /// Takes an event in; what is to be done is appended to `actions`.
    pub fn step(&mut self, now: Instant, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Session(me) => self.begin_session(me, actions),
            Event::Changed => {
                self.stale = true;
                self.retry_at = None;
                if matches!(self.phase, Phase::Settled(_) | Phase::Waiting(_)) {
                    self.go_on(now, actions);
                }
            }
            Event::Resubscribed => {
                self.registered = false;
                if matches!(self.phase, Phase::Settled(_) | Phase::Waiting(_)) {
                    self.go_on(now, actions);
                }
            }
            Event::Leave => {
                self.leaving = true;
                match self.phase {
                    Phase::Outside => self.phase = Phase::Gone,
                    Phase::Settled(_) | Phase::Waiting(_) => self.go_on(now, actions),
                    _ => {}
                }
            }
            Event::Tick => {
                if self.next_deadline().is_some_and(|at| at <= now) {
                    self.stale = true;
                    self.go_on(now, actions);
                }
            }
            Event::Registered if self.phase == Phase::Registering => {
                self.registered = true;
                self.stale = true;
                self.go_on(now, actions);
            }
            Event::Read(registries) if self.phase == Phase::Reading => self.plan(now, &registries, actions),
            Event::GivenUp if self.phase == Phase::GivingUp => {
                let target = &self.target;
                self.held.retain(|partition, stream| target.get(partition) == Some(stream));
                self.go_on(now, actions);
            }
            Event::Claimed(got) if self.phase == Phase::Claiming => self.claimed(now, &got, actions),
            Event::Begun if self.phase == Phase::Beginning => {
                self.reading = self.held.clone();
                self.go_on(now, actions);
            }
            // A node that can't be taken out goes with the session.
            Event::Deregistered | Event::Failed if self.phase == Phase::Leaving => self.phase = Phase::Gone,
            Event::Failed => match self.phase {
                Phase::Outside | Phase::Gone | Phase::Settled(_) | Phase::Waiting(_) => {}
                _ => self.wait(now),
            },
            Event::Registered
            | Event::Read(_)
            | Event::GivenUp
            | Event::Claimed(_)
            | Event::Begun
            | Event::Deregistered => {}
        }
    }

    fn begin_session(&mut self, me: MemberId, actions: &mut Vec<Action>) {
        self.me = me;
        self.registered = false;
        // All that was held, and not only what is read: what was being given up must not be committed any more.
        let lost: BTreeSet<TopicPartition> = std::mem::take(&mut self.held).into_keys().collect();
        if !lost.is_empty() {
            actions.push(Action::Abandon(lost));
        }
        self.reading.clear();
        self.target.clear();
        if self.leaving || self.phase == Phase::Gone {
            self.phase = Phase::Gone;
            return;
        }
        self.phase = Phase::Registering;
        actions.push(Action::Register);
    }

    /// The next step on the way to the target: registered, read, rid of what is too much, owner of what is missing.
    fn go_on(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.leaving {
            return self.leave(actions);
        }
        if !self.registered {
            self.phase = Phase::Registering;
            return actions.push(Action::Register);
        }
        if self.stale {
            self.stale = false;
            self.phase = Phase::Reading;
            return actions.push(Action::Read);
        }
        let excess: BTreeSet<TopicPartition> = self
            .held
            .iter()
            .filter(|(partition, stream)| self.target.get(partition) != Some(stream))
            .map(|(partition, _)| partition.clone())
            .collect();
        if !excess.is_empty() {
            // From here on they are not read, whatever becomes of the commit.
            self.reading.retain(|partition, _| !excess.contains(partition));
            self.phase = Phase::GivingUp;
            return actions.push(Action::GiveUp(excess));
        }
        let missing = difference(&self.target, &self.held);
        if !missing.is_empty() && self.retry_at.is_none_or(|at| at <= now) {
            // If the answer is lost, they may be ours all the same.
            self.held.extend(missing.clone());
            self.retry_at = None;
            self.phase = Phase::Claiming;
            return actions.push(Action::Claim(missing));
        }
        // What could be had is read at once; the rest is asked for again.
        let silent = difference(&self.held, &self.reading);
        if !silent.is_empty() {
            self.phase = Phase::Beginning;
            return actions.push(Action::Begin(silent));
        }
        if let Some(at) = self.retry_at.filter(|_| !missing.is_empty()) {
            self.phase = Phase::Waiting(at);
            return;
        }
        self.failures = 0;
        self.phase = Phase::Settled(now + self.patience.recheck);
    }

    fn plan(&mut self, now: Instant, registries: &Registries, actions: &mut Vec<Action>) {
        if !registries.consumers.contains_key(&self.me) {
            // Somebody has removed it, or the server has not heard of it yet.
            self.registered = false;
            return self.wait(now);
        }
        self.target = assign(registries, &self.me);
        let crowded = crowded(registries, &self.me);
        if crowded != self.crowded {
            let warnings = crowded.iter().cloned();
            actions.extend(
                warnings.map(|(topic, streams, partitions)| Action::WarnCrowded(topic, streams, partitions)),
            );
            self.crowded = crowded;
        }
        // After a claim whose answer was lost, what is held is claimed again, to know.
        let doubtful = difference(&self.held, &self.reading);
        self.held
            .retain(|partition, _| !doubtful.contains_key(partition) || !self.target.contains_key(partition));
        self.go_on(now, actions);
    }

    fn claimed(&mut self, now: Instant, got: &BTreeSet<TopicPartition>, actions: &mut Vec<Action>) {
        let contended: BTreeSet<TopicPartition> = difference(&self.held, &self.reading)
            .into_keys()
            .filter(|partition| !got.contains(partition))
            .collect();
        self.held.retain(|partition, _| !contended.contains(partition));
        if !contended.is_empty() {
            self.failures += 1;
            self.retry_at = Some(now + self.patience.backoff);
            if self.failures == self.patience.attempts {
                actions.push(Action::WarnContended(contended));
            }
        }
        self.go_on(now, actions);
    }

    fn leave(&mut self, actions: &mut Vec<Action>) {
        self.target.clear();
        self.reading.clear();
        if self.held.is_empty() {
            self.phase = Phase::Leaving;
            return actions.push(Action::Deregister);
        }
        self.phase = Phase::GivingUp;
        actions.push(Action::GiveUp(self.held.keys().cloned().collect()));
    }

    fn wait(&mut self, now: Instant) {
        self.stale = true;
        self.phase = Phase::Waiting(now + self.patience.backoff);
    }
}

/// What `all` has and `some` has not, or has with another stream.
fn difference(all: &Claims, some: &Claims) -> Claims {
    let differs = |(partition, stream): &(&TopicPartition, &usize)| some.get(*partition) != Some(*stream);
    all.iter().filter(differs).map(|(partition, stream)| (partition.clone(), *stream)).collect()
}
