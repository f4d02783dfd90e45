//! Commits on their way to the registry, coalesced: the latest offset of each partition, whoever committed it, in
//! bounded rounds. A commit is answered once, when all of its offsets, or later ones in their place, are durable, or
//! one of them failed. Pure; called by `committer`.

use std::collections::{BTreeMap, VecDeque};

use loggos_client::registry::Place;
use loggos_protocol::ids::GroupId;
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::registry::group::OffsetRecord;

/// Offsets in one round at most.
pub const ROUND_PARTS: usize = 512;
/// Bytes in one round at most, roughly.
pub const ROUND_BYTES: usize = 64 << 10;
/// What an offset's path and numbers weigh beside its note.
const PART_BYTES: usize = 200;
/// Offsets that wait for a round at most; beyond it commits are refused, to be tried again.
pub const WAITING_PARTS: usize = 64 << 10;

/// A commit that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One offset of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Whose.
    pub group: GroupId,
    /// Of what.
    pub place: Place,
    /// The offset; `None` to delete it.
    pub value: Option<OffsetRecord>,
    /// The commits that it answers.
    pub tickets: Vec<Ticket>,
}

#[derive(Debug)]
struct Waiting {
    value: Option<OffsetRecord>,
    tickets: Vec<Ticket>,
}

/// Commits that wait.
#[derive(Debug, Default)]
pub struct Commits {
    waiting: BTreeMap<(GroupId, Place), Waiting>,
    /// The first committed first.
    order: VecDeque<(GroupId, Place)>,
    /// How many offsets of a commit aren't durable yet.
    unanswered: BTreeMap<Ticket, usize>,
}

impl Commits {
    /// Takes a commit of at least one offset.
    ///
    /// # Errors
    /// When too much waits already: nothing was taken.
    pub fn submit(
        &mut self,
        ticket: Ticket,
        group: &GroupId,
        changes: impl ExactSizeIterator<Item = (Place, Option<OffsetRecord>)>,
    ) -> Result<(), ErrorCode> {
        assert!(changes.len() > 0, "a commit of nothing is answered by whoever takes it");
        if self.waiting.len() + changes.len() > WAITING_PARTS.max(changes.len()) {
            return Err(ErrorCode::COORDINATOR_LOAD_IN_PROGRESS);
        }
        self.unanswered.insert(ticket, changes.len());
        for (place, value) in changes {
            let key = (group.clone(), place);
            match self.waiting.get_mut(&key) {
                Some(waiting) => {
                    waiting.value = value;
                    waiting.tickets.push(ticket);
                }
                None => {
                    self.order.push_back(key.clone());
                    self.waiting.insert(key, Waiting { value, tickets: vec![ticket] });
                }
            }
        }
        Ok(())
    }

    /// The next round; empty when nothing waits.
    pub fn take_round(&mut self) -> Vec<Part> {
        let (mut round, mut bytes) = (Vec::new(), 0);
        while let Some(key) = self.order.front() {
            let waiting = self.waiting.get(key).expect("what has a turn waits");
            bytes += PART_BYTES + waiting.value.as_ref().map_or(0, |value| value.metadata.len());
            if !round.is_empty() && (round.len() >= ROUND_PARTS || bytes > ROUND_BYTES) {
                break;
            }
            let key = self.order.pop_front().expect("looked at above");
            let Waiting { value, tickets } = self.waiting.remove(&key).expect("looked at above");
            let (group, place) = key;
            round.push(Part { group, place, value, tickets });
        }
        round
    }

    /// Says what became of a part; gives the commits that are answered with it.
    pub fn settle(&mut self, tickets: &[Ticket], outcome: Result<(), ErrorCode>) -> Vec<Ticket> {
        let mut answered = Vec::new();
        for ticket in tickets {
            let Some(left) = self.unanswered.get_mut(ticket) else { continue };
            *left -= 1;
            if *left == 0 || outcome.is_err() {
                self.unanswered.remove(ticket);
                answered.push(*ticket);
            }
        }
        answered
    }

    /// How many offsets wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use loggos_protocol::ids::{LeaderEpoch, Offset, PartitionId, Timestamp, TopicId, TopicName};
    use proptest::prelude::*;

    use super::*;

    fn at(offset: i64) -> Option<OffsetRecord> {
        let place = (Offset::new(offset), LeaderEpoch::NONE);
        Some(OffsetRecord::new(TopicId::NONE, place, String::new(), Timestamp::NONE))
    }

    fn place(partition: i32) -> Place {
        (TopicName::new("t"), PartitionId::new(partition))
    }

    #[test]
    fn a_later_offset_takes_the_place_of_an_earlier_one_and_answers_both() {
        let mut commits = Commits::default();
        let group = GroupId::new("g");
        for (ticket, offset) in [(1, 10), (2, 20)] {
            commits.submit(Ticket(ticket), &group, [(place(0), at(offset))].into_iter()).expect("room");
        }
        let round = commits.take_round();
        assert_eq!(round.len(), 1);
        assert_eq!(round[0].value, at(20));
        assert_eq!(commits.settle(&round[0].tickets, Ok(())), vec![Ticket(1), Ticket(2)]);
        assert!(commits.take_round().is_empty());
    }

    #[test]
    fn what_waits_is_bounded_and_a_single_commit_of_any_size_is_taken() {
        let mut commits = Commits::default();
        let group = GroupId::new("g");
        let many = i32::try_from(WAITING_PARTS).expect("small") + 5;
        commits
            .submit(Ticket(1), &group, (0..many).map(|n| (place(n), at(1))).collect::<Vec<_>>().into_iter())
            .expect("taken");
        let more = commits.submit(Ticket(2), &group, [(place(-1), at(1))].into_iter());
        assert_eq!(more, Err(ErrorCode::COORDINATOR_LOAD_IN_PROGRESS));
    }

    proptest! {
        #[test]
        fn every_commit_is_answered_once_and_the_last_offset_stands(
            steps in prop::collection::vec((0..3u8, 0..4i32, 1..700i32, any::<bool>()), 1..60)
        ) {
            let mut commits = Commits::default();
            let (mut next, mut open) = (0u64, BTreeSet::new());
            let mut last: BTreeMap<(GroupId, Place), i64> = BTreeMap::new();
            let mut stored: BTreeMap<(GroupId, Place), i64> = BTreeMap::new();
            let play = |commits: &mut Commits, open: &mut BTreeSet<Ticket>, stored: &mut BTreeMap<_, _>, fails| {
                let round = commits.take_round();
                assert!(round.len() <= ROUND_PARTS);
                let mut seen = BTreeSet::new();
                for part in &round {
                    assert!(seen.insert((part.group.clone(), part.place.clone())), "one offset for each partition");
                    let offset = part.value.as_ref().expect("a commit").offset.raw();
                    stored.insert((part.group.clone(), part.place.clone()), offset);
                    let outcome = if fails { Err(ErrorCode::NOT_COORDINATOR) } else { Ok(()) };
                    for ticket in commits.settle(&part.tickets, outcome) {
                        assert!(open.remove(&ticket), "{ticket:?} is answered twice");
                    }
                }
                round.len()
            };
            for (kind, group, count, fails) in steps {
                if kind == 0 {
                    play(&mut commits, &mut open, &mut stored, fails);
                    continue;
                }
                next += 1;
                let group = GroupId::new(format!("g{group}"));
                let offset = i64::try_from(next).expect("small");
                let changes: Vec<_> = (0..count).map(|n| (place(n), at(offset))).collect();
                for (place, _) in &changes {
                    last.insert((group.clone(), place.clone()), offset);
                }
                commits.submit(Ticket(next), &group, changes.into_iter()).expect("room");
                open.insert(Ticket(next));
            }
            while play(&mut commits, &mut open, &mut stored, false) > 0 {}
            prop_assert!(open.is_empty(), "{open:?} were never answered");
            prop_assert_eq!(stored, last);
        }
    }
}
