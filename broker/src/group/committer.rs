//! Writes commits to the registry, a round at a time: while one is under way, the next one gathers. Each round is one
//! change for all groups in it, fenced by the node of each; a group that fails leaves the others' commits alone.
//!
//! Called by `table`, which has checked that the committer may commit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use loggos_client::registry::{CommitPart, Registry, RegistryError, RoundFailure};
use loggos_protocol::ids::GroupId;
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::registry::group::OffsetRecord;
use loggos_protocol::registry::record::Record;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::commits::{Commits, Part, Ticket};
use super::shelf::Shelf;
use loggos_client::registry::Place;

/// Attempts at a round whose group was rebalanced by this broker meanwhile.
const ATTEMPTS: usize = 10;

/// The committer.
pub(super) struct Committer {
    registry: Registry,
    commits: Mutex<Commits>,
    shelves: Mutex<HashMap<GroupId, Arc<Shelf>>>,
    answers: Mutex<HashMap<Ticket, oneshot::Sender<Result<(), ErrorCode>>>>,
    next: AtomicU64,
    wake: Notify,
}

/// A part with its group's offsets.
type Shelved = (Part, Arc<Shelf>);

impl Committer {
    pub(super) fn new(registry: Registry) -> Self {
        Self {
            registry,
            commits: Mutex::default(),
            shelves: Mutex::default(),
            answers: Mutex::default(),
            next: AtomicU64::new(0),
            wake: Notify::new(),
        }
    }

    /// Queues changes of a group's offsets; the receiver hears when they are durable.
    pub(super) fn submit(
        &self,
        group: &GroupId,
        shelf: &Arc<Shelf>,
        changes: Vec<(Place, Option<OffsetRecord>)>,
    ) -> Result<oneshot::Receiver<Result<(), ErrorCode>>, ErrorCode> {
        let (tell, answer) = oneshot::channel();
        if changes.is_empty() {
            // Nobody waits long for nothing.
            let _ = tell.send(Ok(()));
            return Ok(answer);
        }
        let ticket = Ticket(self.next.fetch_add(1, Ordering::Relaxed));
        let mut commits = self.commits.lock();
        let before = commits.waiting();
        commits.submit(ticket, group, changes.into_iter())?;
        let added = commits.waiting() - before;
        shelf.add_under_way(added.cast_signed());
        self.shelves.lock().insert(group.clone(), Arc::clone(shelf));
        self.answers.lock().insert(ticket, tell);
        drop(commits);
        self.wake.notify_one();
        Ok(answer)
    }

    /// Writes rounds until the task is ended.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            loop {
                let round = self.take_round();
                if round.is_empty() {
                    break;
                }
                metrics::counter!("loggos_group_commit_rounds_total").increment(1);
                metrics::counter!("loggos_group_offsets_written_total").increment(round.len() as u64);
                self.write(round).await;
            }
        }
    }

    fn take_round(&self) -> Vec<Shelved> {
        let mut commits = self.commits.lock();
        let round = commits.take_round();
        let mut shelves = self.shelves.lock();
        let shelved = round.into_iter().map(|part| {
            let shelf = Arc::clone(shelves.get(&part.group).expect("what is submitted has a shelf"));
            (part, shelf)
        });
        let shelved = shelved.collect();
        if commits.waiting() == 0 {
            shelves.clear();
        }
        shelved
    }

    /// Writes a round; where a part of it fails, the rest is written without it.
    async fn write(&self, round: Vec<Shelved>) {
        let mut work = vec![(round, 0)];
        while let Some((mut parts, attempts)) = work.pop() {
            self.drop_unfit(&mut parts);
            if parts.is_empty() {
                continue;
            }
            let written = wire_parts(&parts);
            match self.registry.commit_round(&written).await {
                Ok(()) => self.kept(parts).await,
                Err(RoundFailure::Fenced(group)) => {
                    let version = written.iter().find(|part| part.group == group).map(|part| part.version);
                    let is_ours = |(part, shelf): &Shelved| {
                        part.group != group || (shelf.fence.version() != version && attempts < ATTEMPTS)
                    };
                    // A version that has moved on was moved by a rebalance of our own.
                    let (again, lost): (Vec<_>, Vec<_>) = parts.into_iter().partition(is_ours);
                    self.fail(lost, ErrorCode::NOT_COORDINATOR);
                    work.push((again, attempts + 1));
                }
                Err(RoundFailure::Part(at, error)) if parts.len() > 1 => {
                    tracing::warn!(group = %parts[at].0.group, %error, "a commit is tried alone");
                    let alone = parts.swap_remove(at);
                    work.push((vec![alone], attempts));
                    work.push((parts, attempts));
                }
                Err(RoundFailure::Whole(error)) if parts.len() > 1 && !error.retriable() => {
                    tracing::warn!(%error, parts = parts.len(), "a round of commits is split");
                    let half = parts.split_off(parts.len() / 2);
                    work.push((half, attempts));
                    work.push((parts, attempts));
                }
                Err(RoundFailure::Part(_, error) | RoundFailure::Whole(error)) => {
                    tracing::warn!(%error, parts = parts.len(), "commits could not be kept");
                    self.fail(parts, ErrorCode::COORDINATOR_NOT_AVAILABLE);
                }
            }
        }
    }

    /// Turns away what belongs to groups that aren't ours any more.
    fn drop_unfit(&self, parts: &mut Vec<Shelved>) {
        let is_fit = |(_, shelf): &Shelved| !shelf.is_unsure() && shelf.fence.version().is_some();
        let (fit, lost): (Vec<_>, Vec<_>) = std::mem::take(parts).into_iter().partition(is_fit);
        self.fail(lost, ErrorCode::NOT_COORDINATOR);
        // What isn't there needs no deletion.
        let is_void = |(part, shelf): &Shelved| part.value.is_none() && shelf.get(&part.place).is_none();
        let (void, rest): (Vec<_>, Vec<_>) = fit.into_iter().partition(is_void);
        for (part, shelf) in void {
            self.answer(&part.tickets, Ok(()));
            shelf.add_under_way(-1);
        }
        *parts = rest;
    }

    async fn kept(&self, parts: Vec<Shelved>) {
        for (part, shelf) in parts {
            if shelf.written(&part.place, part.value) {
                match self.registry.drop_offsets_topic(&part.group, &part.place.0).await {
                    Ok(()) => shelf.dropped(&part.place.0),
                    Err(RegistryError::NotEmpty) => {}
                    Err(error) => {
                        tracing::debug!(%error, "a node without offsets stays");
                        shelf.doubt();
                    }
                }
            }
            self.answer(&part.tickets, Ok(()));
            shelf.add_under_way(-1);
        }
    }

    fn fail(&self, parts: Vec<Shelved>, code: ErrorCode) {
        for (part, shelf) in parts {
            shelf.doubt();
            self.answer(&part.tickets, Err(code));
            shelf.add_under_way(-1);
        }
    }

    fn answer(&self, tickets: &[Ticket], outcome: Result<(), ErrorCode>) {
        let answered = self.commits.lock().settle(tickets, outcome);
        let mut answers = self.answers.lock();
        for ticket in answered {
            if let Some(tell) = answers.remove(&ticket) {
                // Who has gone needs no answer.
                let _ = tell.send(outcome);
            }
        }
    }
}

/// Parts as the registry takes them, each knowing whether its nodes are there.
fn wire_parts(parts: &[Shelved]) -> Vec<CommitPart> {
    let mut made = BTreeSet::new();
    // One version for each group, though it may move meanwhile.
    let mut versions: BTreeMap<&GroupId, i32> = BTreeMap::new();
    let wire = parts.iter().map(|(part, shelf)| {
        let (group, topic) = (&part.group, &part.place.0);
        let version = *versions.entry(group).or_insert_with(|| shelf.fence.version().unwrap_or_default());
        CommitPart {
            group: group.clone(),
            version,
            place: part.place.clone(),
            data: part.value.as_ref().map(Record::to_bytes),
            exists: shelf.get(&part.place).is_some(),
            first_of_topic: !shelf.has_topic(topic) && made.insert((group.clone(), topic.clone())),
        }
    });
    wire.collect()
}
