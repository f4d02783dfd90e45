//! A model of leases: the real grants of three acceptors and the real tenure of a leader, clocks that tick, and a
//! candidate that asks whenever it likes. Messages take any time; one acceptor may restart; leadership may be handed
//! over.

use std::collections::BTreeSet;
use std::time::Duration;

use loggos_coordinator::paxos::ballot::{Ballot, ServerId, Slot};
use loggos_coordinator::paxos::event::Options;
use loggos_coordinator::paxos::lease::{Grant, Tenure};
use loggos_coordinator::paxos::membership::{Config, ConfigHistory, Member, Role};
use loggos_coordinator::paxos::moment::Moment;
use loggos_coordinator::paxos::mutation::Mutations;
use loggos_coordinator::paxos::quorum::Tally;
use stateright::{Model, Property};

const LEADER: Ballot = Ballot::of(1, ServerId::new(1));
const CANDIDATE: Ballot = Ballot::of(2, ServerId::new(2));
/// A tick of the true clock, which the leader's shows.
const TICK: Duration = Duration::from_millis(20);
const TICKS: u32 = 5;
const ROUNDS: u64 = 1;

/// What the model varies.
#[derive(Clone, Debug)]
pub struct Leases {
    pub mutations: Mutations,
    /// How fast the acceptors' clocks run, in tenths of the true rate.
    pub rate_tenths: u32,
}

impl Leases {
    fn options(&self) -> Options {
        Options { lease: Duration::from_millis(60), clock_drift_ppm: 100_000, ..Options::default() }
    }

    fn configs(&self) -> ConfigHistory {
        let member = |n: u16| Member {
            id: ServerId::new(n),
            role: Role::Voter,
            peer: String::new(),
            bulk_port: 0,
            client: String::new(),
            token: 0,
        };
        ConfigHistory::founding(Config::founding((1..=3).map(member).collect()), 64)
    }

    /// What an acceptor's clock shows; the leader's own shows the true time.
    fn clock(&self, acceptor: u16, ticks: u32) -> Moment {
        let tenths = if acceptor == 1 { 10 } else { self.rate_tenths };
        Moment::from_millis(1000).after(TICK * ticks * tenths / 10)
    }

    /// States that differ in what is over alone are one.
    fn forget_the_past(&self, state: &mut State) {
        for acceptor in 1..=3 {
            let now = self.clock(acceptor, state.ticks);
            let grant = &mut state.grants[usize::from(acceptor) - 1];
            if grant.left(CANDIDATE, now) == Duration::ZERO {
                grant.release(LEADER);
            }
            let lease = self.options().lease;
            if let Some((who, at)) = &mut state.restarted
                && *who == acceptor
                && now >= at.after(lease)
            {
                *at = Moment::ZERO;
            }
        }
    }

    fn lease_until(&self, state: &State) -> Moment {
        state.tenure.lease_until(self.configs().open(Slot::ZERO), &self.options())
    }

    fn lease_holds(&self, state: &State) -> bool {
        self.clock(1, state.ticks) < self.lease_until(state)
    }

    fn elected(&self, state: &State) -> bool {
        state.promised.is_majority_of(&self.configs().at(Slot::FIRST).voters())
    }
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    ticks: u32,
    grants: Vec<Grant>,
    tenure: Tenure,
    heartbeats: BTreeSet<(u64, u16)>,
    acknowledgements: BTreeSet<(u64, u16)>,
    /// Those who promised the candidate's ballot.
    promised: Tally,
    /// The leader has asked the candidate to stand.
    handed_over: bool,
    restarted: Option<(u16, Moment)>,
    /// An acceptor promised within a lease's length of its restart.
    hasty: bool,
}

/// What may happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Tick,
    Round,
    Hear(u64, u16),
    Acknowledge(u64, u16),
    Prepare(u16),
    Restart(u16),
    HandOver,
}

impl Model for Leases {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let options = self.options();
        let fresh = Grant::after_start(Ballot::NONE, Moment::ZERO, &options, self.mutations);
        vec![State {
            ticks: 0,
            grants: vec![fresh; 3],
            tenure: Tenure::new(self.clock(1, 0), self.mutations),
            heartbeats: BTreeSet::new(),
            acknowledgements: BTreeSet::new(),
            promised: Tally::new(),
            handed_over: false,
            restarted: None,
            hasty: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.ticks < TICKS {
            steps.push(Step::Tick);
        }
        if state.tenure.round() < ROUNDS {
            steps.push(Step::Round);
        }
        steps.extend(state.heartbeats.iter().map(|(round, to)| Step::Hear(*round, *to)));
        steps.extend(state.acknowledgements.iter().map(|(round, from)| Step::Acknowledge(*round, *from)));
        for acceptor in [2, 3] {
            steps.push(Step::Prepare(acceptor));
            if state.restarted.is_none() {
                steps.push(Step::Restart(acceptor));
            }
        }
        if !state.handed_over {
            steps.push(Step::HandOver);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let options = self.options();
        let mut state = last.clone();
        match step {
            Step::Tick => state.ticks += 1,
            Step::Round => {
                let now = self.clock(1, state.ticks);
                let round = state.tenure.begin_round(now);
                state.grants[0].extend(LEADER, now, &options);
                state.tenure.acknowledge(ServerId::new(1), round, now);
                state.heartbeats.extend([(round, 2), (round, 3)]);
            }
            Step::Hear(round, to) => {
                state.heartbeats.remove(&(round, to));
                if !state.promised.has(ServerId::new(to)) {
                    let now = self.clock(to, state.ticks);
                    state.grants[usize::from(to) - 1].extend(LEADER, now, &options);
                    state.acknowledgements.insert((round, to));
                }
            }
            Step::Acknowledge(round, from) => {
                state.acknowledgements.remove(&(round, from));
                state.tenure.acknowledge(ServerId::new(from), round, self.clock(1, state.ticks));
            }
            Step::Prepare(acceptor) => {
                let now = self.clock(acceptor, state.ticks);
                let grant = &mut state.grants[usize::from(acceptor) - 1];
                if state.handed_over {
                    grant.release(LEADER);
                }
                if grant.left(CANDIDATE, now) == Duration::ZERO
                    && !state.promised.has(ServerId::new(acceptor))
                {
                    state.promised.add(ServerId::new(acceptor));
                    let foreign = !state.handed_over;
                    let restarted = state.restarted.filter(|(who, _)| *who == acceptor);
                    state.hasty |= foreign && restarted.is_some_and(|(_, at)| now < at.after(options.lease));
                }
            }
            Step::Restart(acceptor) => {
                // Its promise is durable, its grants are not.
                let now = self.clock(acceptor, state.ticks);
                let promised = if state.promised.has(ServerId::new(acceptor)) { CANDIDATE } else { LEADER };
                state.grants[usize::from(acceptor) - 1] =
                    Grant::after_start(promised, now, &options, self.mutations);
                state.restarted = Some((acceptor, now));
            }
            Step::HandOver => {
                state.tenure.give_up();
                state.handed_over = true;
            }
        }
        self.forget_the_past(&mut state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "I14: nobody else is elected while the lease holds",
                |model: &Self, state: &State| !(model.lease_holds(state) && model.elected(state)),
            ),
            Property::always("I15: no promise within a lease of a restart", |_, state: &State| !state.hasty),
            Property::sometimes("the lease holds", |model: &Self, state: &State| model.lease_holds(state)),
            Property::sometimes("the lease ends and another is elected", |model: &Self, state: &State| {
                model.elected(state) && !state.handed_over && state.tenure.round() > 0
            }),
            Property::sometimes("leadership is handed over at once", |model: &Self, state: &State| {
                model.elected(state) && state.handed_over && state.ticks == 0
            }),
        ]
    }
}
