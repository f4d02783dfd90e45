//! What groups commit and fetch: checks by the group's machine, the committer behind them, expiry.
//! The other half of [`Groups`]; called by the handlers of offsets and by `upkeep`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use loggos_client::registry::Place;
use loggos_protocol::ids::{Generation, GroupId, MemberId, Timestamp, TopicName};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::registry::group::OffsetRecord;

use super::seen;
use super::shelf::{Offsets, Shelf};
use super::state::Caller;
use super::table::{Entered, Groups, code_of};
use crate::clock;
use crate::metadata::View;

/// A commit that says nothing new is written only when the one that stands is older than this.
const REFRESH_AFTER_MS: i64 = 60 * 60 * 1000;
/// How long a fetch of offsets waits for commits that are on their way.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

impl Groups {
    /// Commits offsets for a member, or for a consumer without a group; returns when they are durable.
    ///
    /// # Errors
    /// The group's refusal, or the registry's; `INVALID_COMMIT_OFFSET_SIZE` when this cluster holds as many offsets
    /// as it may.
    pub async fn commit(&self, id: &GroupId, caller: &Caller, offsets: Offsets) -> Result<(), ErrorCode> {
        let mut group = self.enter(id).await?;
        if !group.nodes.exist() && caller.generation.raw() >= 0 && group.machine.is_empty() {
            return Err(ErrorCode::ILLEGAL_GENERATION);
        }
        group.machine.may_commit(Instant::now(), caller).ok()?;
        let fresh = fresh(&group.shelf, offsets);
        if fresh.is_empty() {
            return Ok(());
        }
        self.has_room(id, &group.shelf, &fresh)?;
        self.make_sure_it_exists(&mut group).await?;
        let changes = fresh.into_iter().map(|(place, record)| (place, Some(record)));
        let answer = self.committer.submit(id, &group.shelf, changes.collect())?;
        // What was let in is written, whatever becomes of the group meanwhile: the group is free for others.
        drop(group);
        answer.await.map_err(|_| ErrorCode::COORDINATOR_NOT_AVAILABLE)?
    }

    /// A group of consumers that only commit has no generations; its node is made with the first commit.
    async fn make_sure_it_exists(&self, group: &mut Entered) -> Result<(), ErrorCode> {
        if group.nodes.exist() {
            return Ok(());
        }
        let change = super::record::Change { head: group.machine.head(), members: Default::default() };
        if let Err(error) = self.keep(group, change).await {
            group.shelf.doubt();
            return Err(code_of(&error));
        }
        Ok(())
    }

    /// The registry is in every server's memory: what it holds is bounded, each broker having its share.
    fn has_room(&self, id: &GroupId, shelf: &Shelf, fresh: &Offsets) -> Result<(), ErrorCode> {
        let added = fresh.keys().filter(|place| shelf.get(place).is_none()).count();
        if added == 0 {
            return Ok(());
        }
        let limit =
            usize::try_from((self.configs)().number("loggos.group.offsets.max")).unwrap_or(usize::MAX);
        let share = limit / self.metadata.view().brokers.len().max(1);
        let held = self.held.load(Ordering::Relaxed);
        if held + added <= share {
            return Ok(());
        }
        metrics::counter!("loggos_group_commits_refused_total").increment(1);
        tracing::error!(
            group = %id, held, share,
            "a commit is refused: this broker's groups hold as many offsets as loggos.group.offsets.max allows it; \
             delete groups that nobody uses, or raise it"
        );
        Err(ErrorCode::INVALID_COMMIT_OFFSET_SIZE)
    }

    /// What a group has committed, of topics that there are. A caller with a member id must be current (KIP-848).
    ///
    /// # Errors
    /// As [`Groups::ask`](super::table::Groups::ask).
    pub async fn committed(
        &self,
        id: &GroupId,
        caller: Option<(MemberId, Generation)>,
    ) -> Result<Offsets, ErrorCode> {
        let view = self.metadata.view();
        let group = match self.enter(id).await {
            Ok(group) => group,
            Err(ErrorCode::INCONSISTENT_GROUP_PROTOCOL) if caller.is_none() => {
                // Its members run it: anybody may see where they are.
                let seen = self.registry.see_group(id).await.map_err(|error| code_of(&error))?;
                let offsets = seen::offsets(&seen).into_iter();
                return Ok(offsets.filter(|(place, record)| is_current(&view, place, record)).collect());
            }
            Err(code) => return Err(code),
        };
        if let Some((member, epoch)) = caller {
            group.machine.may_fetch(&member, epoch).ok()?;
        }
        let shelf = Arc::clone(&group.shelf);
        drop(group);
        // Whoever takes a partition over goes on where its last holder said, though that was only just said.
        let settled = tokio::time::timeout(SETTLE_PATIENCE, shelf.settled());
        settled.await.map_err(|_| ErrorCode::COORDINATOR_LOAD_IN_PROGRESS)?;
        Ok(shelf.offsets().into_iter().filter(|(place, record)| is_current(&view, place, record)).collect())
    }

    /// Forgets offsets of partitions, where nobody reads the topic.
    ///
    /// # Errors
    /// For each partition; `GROUP_ID_NOT_FOUND` and `NON_EMPTY_GROUP` for all.
    pub async fn delete_offsets(
        &self,
        id: &GroupId,
        places: &[Place],
    ) -> Result<Vec<Result<(), ErrorCode>>, ErrorCode> {
        let group = self.enter(id).await?;
        if !group.nodes.exist() {
            return Err(ErrorCode::GROUP_ID_NOT_FOUND);
        }
        let Some(read) = group.machine.topics_read() else { return Err(ErrorCode::NON_EMPTY_GROUP) };
        let outcomes: Vec<Result<(), ErrorCode>> = places
            .iter()
            .map(
                |(topic, _)| {
                    if read.contains(topic) { Err(ErrorCode::GROUP_SUBSCRIBED_TO_TOPIC) } else { Ok(()) }
                },
            )
            .collect();
        let doomed = places.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
        let doomed: BTreeSet<Place> = doomed.map(|(place, _)| place.clone()).collect();
        self.forget(id, &group.shelf, doomed).await?;
        Ok(outcomes)
    }

    /// Removes a group that has no members, with its offsets.
    ///
    /// # Errors
    /// `GROUP_ID_NOT_FOUND`, `NON_EMPTY_GROUP`; the registry's.
    pub async fn delete(&self, id: &GroupId) -> Result<(), ErrorCode> {
        let mut group = self.enter(id).await?;
        if !group.nodes.exist() {
            return Err(ErrorCode::GROUP_ID_NOT_FOUND);
        }
        if !group.machine.is_empty() {
            return Err(ErrorCode::NON_EMPTY_GROUP);
        }
        let shelf = Arc::clone(&group.shelf);
        let settled = tokio::time::timeout(SETTLE_PATIENCE, shelf.settled());
        settled.await.map_err(|_| ErrorCode::COORDINATOR_LOAD_IN_PROGRESS)?;
        let deleted = self.registry.delete_group(&mut group.nodes).await;
        shelf.doubt();
        group.forget();
        deleted.map_err(|error| code_of(&error))
    }

    /// Removes offsets, and waits until they are gone.
    pub(super) async fn forget(
        &self,
        id: &GroupId,
        shelf: &Arc<Shelf>,
        doomed: BTreeSet<Place>,
    ) -> Result<(), ErrorCode> {
        if doomed.is_empty() {
            return Ok(());
        }
        let changes = doomed.into_iter().map(|place| (place, None)).collect();
        let answer = self.committer.submit(id, shelf, changes)?;
        answer.await.map_err(|_| ErrorCode::COORDINATOR_NOT_AVAILABLE)?
    }

    /// Offsets of an empty group that nobody has needed for `offsets.retention.minutes`.
    pub(super) fn expired(&self, group: &Entered, now: Timestamp) -> BTreeSet<Place> {
        let minutes = (self.configs)().number("offsets.retention.minutes");
        let oldest = now.raw().saturating_sub(minutes.saturating_mul(60_000));
        let Some(empty_since) = group.head.empty_since else { return BTreeSet::new() };
        if !group.machine.is_empty() {
            return BTreeSet::new();
        }
        let is_old = |record: &OffsetRecord| record.timestamp.raw().max(empty_since.raw()) <= oldest;
        let offsets = group.shelf.offsets();
        offsets.into_iter().filter(|(_, record)| is_old(record)).map(|(place, _)| place).collect()
    }

    /// The commit's time.
    pub fn now() -> Timestamp {
        clock::now()
    }
}

/// What is not said already.
fn fresh(shelf: &Shelf, offsets: Offsets) -> Offsets {
    let is_fresh = |place: &Place, record: &OffsetRecord| {
        shelf.get(place).is_none_or(|kept| {
            !kept.says_the_same(record) || record.timestamp.raw() - kept.timestamp.raw() > REFRESH_AFTER_MS
        })
    };
    // While something is on its way, the last word may not be the one that stands.
    let quiet = shelf.is_quiet();
    offsets.into_iter().filter(|(place, record)| !quiet || is_fresh(place, record)).collect()
}

/// Whether the topic is there, and the one that was meant.
pub(super) fn is_current(view: &View, place: &Place, record: &OffsetRecord) -> bool {
    view.topics.get(&place.0).is_some_and(|topic| record.is_of(topic.id))
}

/// Topics that offsets stand for and that the view doesn't have so.
pub(super) fn strange(view: &View, offsets: &Offsets) -> BTreeSet<TopicName> {
    let strange = offsets.iter().filter(|(place, record)| !is_current(view, place, record));
    strange.map(|(place, _)| place.0.clone()).collect()
}
