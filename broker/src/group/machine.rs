//! A group of either protocol as one machine: `step(now, Event, &mut Vec<Action>)`. A group is classic or a consumer
//! group (KIP-848); it changes from one to the other while its members go on reading. Pure; called by `table`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use loggos_client::registry::Place;
use loggos_protocol::ids::{Generation, MemberId, TopicName};
use loggos_protocol::kafka::consumer_protocol;
use loggos_protocol::kafka::error_code::ErrorCode;

use super::assignor::Topics;
use super::consumer_record;
use super::consumer_state::{ConsumerLimits, ConsumerState};
use super::record::{CONSUMER, HeadRecord, Kind, MemberRecord};
use super::state::{Action, Caller, Event, Limits, Phase, Reply, State};
use super::upgrade::{can_upgrade, named};

/// Which conversions are made: `group.consumer.migration.policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// From classic to consumer.
    pub upgrade: bool,
    /// And back.
    pub downgrade: bool,
}

/// What the broker's configs and topics are.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Bounds of the classic protocol.
    pub classic: Limits,
    /// Bounds of KIP-848's.
    pub consumer: ConsumerLimits,
    /// Conversions.
    pub migration: Migration,
    /// Topics.
    pub topics: Arc<Topics>,
}

/// A group of either protocol.
#[derive(Clone, Debug)]
pub enum Machine {
    /// Members assign.
    Classic(State),
    /// The broker assigns.
    Consumer(ConsumerState),
}

impl Machine {
    /// A group without members.
    pub fn new(setting: &Setting) -> Self {
        Self::Classic(State::new(setting.classic.clone()))
    }

    /// A group as its last broker left it.
    pub fn restore(setting: &Setting, head: HeadRecord, members: Vec<MemberRecord>, now: Instant) -> Self {
        match head.kind {
            Kind::Classic => Self::Classic(State::restore(setting.classic.clone(), head, members, now)),
            Kind::Consumer => Self::Consumer(consumer_record::restore(setting, &head, members, now)),
        }
    }

    /// Takes one event and says what must be done.
    pub fn step(&mut self, now: Instant, setting: &Setting, event: Event, actions: &mut Vec<Action>) {
        self.convert(now, setting, &event, actions);
        match self {
            Self::Classic(state) => match event {
                Event::Beat(beat, waiting) if beat.epoch == 0 => {
                    let message = "The group's members follow the classic protocol.".to_owned();
                    let refusal = (ErrorCode::GROUP_ID_NOT_FOUND, message);
                    actions.push(Action::Reply(waiting, Reply::Beaten(Err(refusal))));
                }
                event => state.step(now, event, actions),
            },
            Self::Consumer(state) => {
                let mut replies = Vec::new();
                consumer_step(state, now, setting, event, &mut replies);
                if setting.migration.downgrade
                    && let Some(classic) = state.downgraded(now, &setting.classic)
                {
                    let mut classic = classic;
                    actions.push(Action::Persist(classic.change()));
                    *self = Self::Classic(classic);
                } else if state.is_dirty || !state.dirty.is_empty() {
                    actions.push(Action::Persist(consumer_record::change(state)));
                }
                // Nobody hears of what isn't in the registry.
                actions.extend(replies);
            }
        }
    }

    /// Changes the group's protocol where the newcomer's asks for it.
    fn convert(&mut self, now: Instant, setting: &Setting, event: &Event, actions: &mut Vec<Action>) {
        match (&mut *self, event) {
            (Self::Classic(state), Event::Beat(beat, _)) if beat.epoch == 0 => {
                let may = state.phase() == Phase::Empty || setting.migration.upgrade;
                if !may || !can_upgrade(state) {
                    return;
                }
                let (limits, topics) = (setting.consumer.clone(), Arc::clone(&setting.topics));
                if let Some(group) = ConsumerState::upgraded(state, limits, topics, now, actions) {
                    *self = Self::Consumer(group);
                }
            }
            (Self::Consumer(group), Event::Join(..)) if group.members.is_empty() => {
                let mut state = State::new(setting.classic.clone());
                state.generation = Generation::new(group.epoch);
                state.dirty.extend(group.dirty.iter().cloned());
                *self = Self::Classic(state);
            }
            _ => {}
        }
    }

    /// When [`Event::Tick`] is due next.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::Classic(state) => state.next_deadline(),
            Self::Consumer(state) => state.next_deadline(),
        }
    }

    /// Which protocol it follows.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Classic(_) => Kind::Classic,
            Self::Consumer(_) => Kind::Consumer,
        }
    }

    /// The state's name as Kafka's tools show it.
    pub fn phase(&self) -> &'static str {
        match self {
            Self::Classic(state) => state.phase().name(),
            Self::Consumer(state) => state.phase(),
        }
    }

    /// The protocol type, if anybody ever joined.
    pub fn protocol_type(&self) -> Option<&str> {
        match self {
            Self::Classic(state) => state.protocol_type(),
            Self::Consumer(_) => Some(CONSUMER),
        }
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Classic(state) => state.members().next().is_none(),
            Self::Consumer(state) => state.members().next().is_none(),
        }
    }

    /// Whether nobody has ever joined, and nobody is about to.
    pub fn is_untouched(&self) -> bool {
        match self {
            Self::Classic(state) => state.is_untouched(),
            Self::Consumer(state) => state.epoch() == 0 && state.members().next().is_none(),
        }
    }

    /// What the group is, for the registry.
    pub fn head(&self) -> HeadRecord {
        match self {
            Self::Classic(state) => state.head(),
            Self::Consumer(state) => consumer_record::head(state),
        }
    }

    /// Who holds what: what members were given, and what they haven't given up yet.
    pub fn holders(&self) -> BTreeMap<Place, MemberId> {
        let mut holders = BTreeMap::new();
        let mut add = |id: &MemberId, given: consumer_protocol::Partitions| {
            for (topic, partitions) in given {
                holders
                    .extend(partitions.into_iter().map(|partition| ((topic.clone(), partition), id.clone())));
            }
        };
        match self {
            Self::Classic(state) if state.protocol_type() == Some(CONSUMER) => {
                for member in state.members() {
                    add(&member.id, consumer_protocol::assignment(&member.assignment).unwrap_or_default());
                }
            }
            Self::Classic(_) => {}
            Self::Consumer(state) => {
                for member in state.members() {
                    add(&member.id, named(&member.holds().copied().collect(), state.topics()));
                }
            }
        }
        holders
    }

    /// Topics that somebody reads; `None` when members are there that don't say.
    pub fn topics_read(&self) -> Option<BTreeSet<TopicName>> {
        match self {
            Self::Classic(state) => state.topics_read(),
            Self::Consumer(state) => {
                let ids = state.members().flat_map(|member| state.topics_of(member));
                Some(ids.filter_map(|id| state.topics().name(id).cloned()).collect())
            }
        }
    }

    /// Whether a commit by `caller` is current.
    pub fn may_commit(&mut self, now: Instant, caller: &Caller) -> ErrorCode {
        match self {
            Self::Classic(state) => state.may_commit(now, caller),
            Self::Consumer(state) => state.may_commit(now, caller),
        }
    }

    /// Whether a fetch of offsets that names a member is by a current one.
    pub fn may_fetch(&self, member: &MemberId, epoch: Generation) -> ErrorCode {
        match self {
            Self::Classic(state) => state.may_fetch(member),
            Self::Consumer(state) => state.may_fetch(member, epoch.raw()),
        }
    }
}

fn consumer_step(
    state: &mut ConsumerState,
    now: Instant,
    setting: &Setting,
    event: Event,
    replies: &mut Vec<Action>,
) {
    match event {
        Event::Beat(beat, waiting) => {
            replies.push(Action::Reply(waiting, Reply::Beaten(state.beat(now, beat))));
        }
        Event::Topics(topics) => state.set_topics(topics),
        Event::Join(join, waiting) => {
            replies.push(Action::Reply(waiting, state.classic_join(now, join, &setting.classic)));
        }
        Event::Sync(sync, waiting) => {
            replies.push(Action::Reply(waiting, state.classic_sync(now, &sync)));
        }
        Event::Heartbeat(caller, waiting) => {
            let code = state.classic_heartbeat(now, &caller);
            replies.push(Action::Reply(waiting, Reply::Heard(code)));
        }
        Event::Leave(leavers, waiting) => {
            replies.push(Action::Reply(waiting, state.classic_leave(leavers)));
        }
        Event::Tick => state.tick(now),
    }
}
