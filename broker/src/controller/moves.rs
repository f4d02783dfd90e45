//! Administrators' requests on who leads and who keeps what: elections that are asked for, reassignments, a broker
//! that leaves. Each is one compare-and-set behind the controller's fence, made by whichever broker is asked; what
//! takes time is seen through by the controller.

use std::collections::BTreeMap;

use loggos_client::registry::{Assignment, Fence, NewState, RegistryError};
use loggos_protocol::ids::{BrokerId, PartitionId, TopicName};
use loggos_protocol::kafka::ErrorCode;

use super::elected::new_state;
use super::election::{self, Elected, NotElected};
use super::reassignment::{self, Step};
use super::{ATTEMPTS, Admin, AdminError};
use crate::metadata::{PartitionView, TopicView, View};

/// States that are written with one change.
const STATES_MAX: usize = 400;

/// A partition by its topic's name.
pub type Named = (TopicName, PartitionId);

/// Where a partition is to go; `None` gives up a reassignment under way.
pub type Target = Option<Vec<BrokerId>>;

impl Admin {
    /// Holds elections: of preferred replicas, or unclean ones. Gives what became of each partition; with no list,
    /// of each for which there was something to do.
    pub async fn elect_leaders(
        &self,
        asked: Option<&[Named]>,
        unclean: bool,
    ) -> Vec<(Named, Result<(), AdminError>)> {
        let view = self.metadata.view();
        let all: Vec<Named> = match asked {
            Some(asked) => asked.to_vec(),
            None => view
                .topics
                .values()
                .flat_map(|topic| topic.partitions.keys().map(|id| (topic.name.clone(), *id)))
                .collect(),
        };
        let fence = match self.registry.current_fence().await {
            Ok(fence) => fence,
            Err(error) => {
                let error = AdminError::from(error);
                return all.into_iter().map(|named| (named, Err(error.clone()))).collect();
            }
        };
        let (mut due, mut answers): (Vec<(Named, NewState)>, Vec<_>) = (Vec::new(), Vec::new());
        for named in all {
            match election_of(&view, &named, unclean, &fence) {
                Ok(state) => due.push((named, state)),
                Err(error) if asked.is_none() && error.code == ErrorCode::ELECTION_NOT_NEEDED => {}
                Err(error) => answers.push((named, Err(error))),
            }
        }
        for chunk in due.chunks(STATES_MAX) {
            let states: Vec<NewState> = chunk.iter().map(|(_, state)| state.clone()).collect();
            if self.registry.set_states(&states, &[fence.check()]).await.is_ok() {
                answers.extend(chunk.iter().map(|(named, _)| (named.clone(), Ok(()))));
                continue;
            }
            for (named, state) in chunk {
                let done = self.registry.set_states(std::slice::from_ref(state), &[fence.check()]).await;
                answers.push((named.clone(), done.map_err(overtaken)));
            }
        }
        answers.sort_by(|(a, _), (b, _)| a.cmp(b));
        answers
    }

    /// Begins, changes or gives up reassignments of one topic's partitions.
    ///
    /// # Errors
    /// What is wrong with the request as a whole; each partition has its own answer besides.
    pub async fn reassign(
        &self,
        name: &TopicName,
        targets: &BTreeMap<PartitionId, Target>,
    ) -> BTreeMap<PartitionId, Result<(), AdminError>> {
        let mut last =
            AdminError::new(ErrorCode::REQUEST_TIMED_OUT, "others kept changing this topic; try again");
        for _ in 0..ATTEMPTS {
            let view = self.metadata.view();
            let (steps, refused) = steps_of(&view, name, targets);
            let Some(topic) = view.topics.get(name).filter(|_| !steps.is_empty()) else { return refused };
            match self.write_steps(topic, &steps).await {
                Ok(()) => {
                    let done = steps.keys().map(|id| (*id, Ok(())));
                    return refused.into_iter().chain(done).collect();
                }
                Err(RegistryError::Refused { .. } | RegistryError::Conflict) => {
                    // Our view was behind: the next one shows how it is.
                    let seen = view.version;
                    self.metadata.wait_for(super::VIEW_PATIENCE, |view| view.version > seen).await;
                }
                Err(error) => {
                    last = error.into();
                    break;
                }
            }
        }
        targets.keys().map(|id| (*id, Err(last.clone()))).collect()
    }

    async fn write_steps(
        &self,
        topic: &TopicView,
        steps: &BTreeMap<PartitionId, Step>,
    ) -> Result<(), RegistryError> {
        let fence = self.registry.current_fence().await?;
        let changed: BTreeMap<PartitionId, Assignment> =
            steps.iter().map(|(id, step)| (*id, step.assignment.clone())).collect();
        let states: Vec<NewState> = steps
            .iter()
            .filter_map(|(id, step)| new_state(topic, *id, step.state.clone()?, &fence))
            .collect();
        self.registry.reassign(&topic.name, topic.version, &changed, &states, &fence).await
    }

    /// Leaves the replicas in sync of `partitions`, or of all that this broker leads: somebody else leads them in the
    /// end. Gives how many were left.
    ///
    /// # Errors
    /// The registry's.
    pub async fn leave(&self, partitions: Option<&[Named]>) -> Result<usize, AdminError> {
        let view = self.metadata.view();
        let is_alive = |broker: BrokerId| broker != self.me && view.brokers.contains_key(&broker);
        let fence = self.registry.current_fence().await?;
        let mut due = Vec::new();
        for topic in view.topics.values() {
            for (id, partition) in &topic.partitions {
                let named = (topic.name.clone(), *id);
                let is_asked = match partitions {
                    Some(asked) => asked.contains(&named),
                    None => partition.leader == self.me,
                };
                let elected = is_asked.then(|| election::leave(partition, self.me, is_alive)).flatten();
                // Nobody gains by a partition without a leader.
                let elected = elected.filter(|elected| elected.leader != BrokerId::NONE);
                due.extend(elected.and_then(|elected| new_state(topic, *id, elected, &fence)));
            }
        }
        let mut left = 0;
        for chunk in due.chunks(STATES_MAX) {
            match self.registry.set_states(chunk, &[fence.check()]).await {
                Ok(()) => left += chunk.len(),
                Err(RegistryError::Refused { .. }) => {
                    for one in chunk {
                        let done =
                            self.registry.set_states(std::slice::from_ref(one), &[fence.check()]).await;
                        left += usize::from(done.is_ok());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(left)
    }
}

fn election_of(
    view: &View,
    (name, id): &Named,
    unclean: bool,
    fence: &Fence,
) -> Result<NewState, AdminError> {
    let is_alive = |broker: BrokerId| view.brokers.contains_key(&broker);
    let topic = view.topics.get(name).filter(|_| !view.deletions.contains(name));
    let found = topic.and_then(|topic| topic.partitions.get(id).map(|partition| (topic, partition)));
    let (topic, partition) = found.ok_or_else(unknown)?;
    let elected: Result<Elected, NotElected> = if unclean {
        election::elect_unclean(partition, is_alive)
    } else {
        election::prefer(partition, is_alive)
    };
    let elected = elected.map_err(|reason| not_elected(reason, partition))?;
    new_state(topic, *id, elected, fence).ok_or_else(unknown)
}

fn steps_of(
    view: &View,
    name: &TopicName,
    targets: &BTreeMap<PartitionId, Target>,
) -> (BTreeMap<PartitionId, Step>, BTreeMap<PartitionId, Result<(), AdminError>>) {
    let is_alive = |broker: BrokerId| view.brokers.contains_key(&broker);
    let topic = view.topics.get(name).filter(|_| !view.deletions.contains(name));
    let (mut steps, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for (id, target) in targets {
        let step = match topic.and_then(|topic| topic.partitions.get(id)) {
            None => Err(unknown()),
            Some(partition) => match target {
                None => reassignment::cancel(partition, is_alive).map_err(|reason| match reason {
                    NotElected::NotNeeded => AdminError::new(
                        ErrorCode::NO_REASSIGNMENT_IN_PROGRESS,
                        "No partition reassignment is in progress.",
                    ),
                    other => not_elected(other, partition),
                }),
                Some(target) => check_target(view, target).and_then(|()| {
                    reassignment::begin(partition, target, is_alive)
                        .map_err(|reason| not_elected(reason, partition))
                }),
            },
        };
        match step {
            Ok(step) => {
                steps.insert(*id, step);
            }
            Err(error) => {
                refused.insert(*id, Err(error));
            }
        }
    }
    (steps, refused)
}

fn check_target(view: &View, target: &[BrokerId]) -> Result<(), AdminError> {
    let invalid = |message: String| AdminError::new(ErrorCode::INVALID_REPLICA_ASSIGNMENT, message);
    let distinct: std::collections::BTreeSet<_> = target.iter().collect();
    if target.is_empty() || distinct.len() != target.len() {
        return Err(invalid("There are no replicas in the list, or one twice.".to_owned()));
    }
    match target.iter().find(|broker| !view.brokers.contains_key(broker)) {
        Some(unknown) => Err(invalid(format!("The list names broker {unknown}, which is not there."))),
        None => Ok(()),
    }
}

fn unknown() -> AdminError {
    AdminError::new(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, "This server does not host this topic-partition.")
}

fn overtaken(error: RegistryError) -> AdminError {
    match error {
        RegistryError::Refused { .. } => {
            AdminError::new(ErrorCode::REQUEST_TIMED_OUT, "Somebody else has just changed this partition.")
        }
        other => other.into(),
    }
}

fn not_elected(reason: NotElected, partition: &PartitionView) -> AdminError {
    match reason {
        NotElected::NotNeeded => AdminError::new(
            ErrorCode::ELECTION_NOT_NEEDED,
            format!("Leader election not needed: broker {} leads.", partition.leader),
        ),
        NotElected::PreferredNotAvailable => AdminError::new(
            ErrorCode::PREFERRED_LEADER_NOT_AVAILABLE,
            "The preferred leader is not alive, or not in sync.",
        ),
        NotElected::NoneEligible => AdminError::new(
            ErrorCode::ELIGIBLE_LEADERS_NOT_AVAILABLE,
            "No replica that could lead is alive and in sync.",
        ),
    }
}
