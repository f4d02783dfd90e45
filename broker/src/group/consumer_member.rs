//! One member of a consumer group (KIP-848): what it reads, what it holds, what it is still giving up. It moves from
//! what it holds to what it is to hold in steps: first it gives up, and says so, then it takes what others have given
//! up. Pure; called by `consumer_state`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use loggos_protocol::ids::{MemberId, Timestamp, TopicName};

use super::assignor::{Assignor, Held, Spot};
use super::member::Protocol;

/// The epoch with which a member joins.
pub const JOINING: i32 = 0;
/// The epoch with which a member leaves.
pub const LEAVING: i32 = -1;
/// The epoch of a static member that is away for a while.
pub const AWAY: i32 = -2;

/// How far a member has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// It holds what it is to hold.
    #[default]
    Stable,
    /// It has been told to give partitions up and hasn't said that it did.
    Revoking,
    /// It waits for partitions that others haven't given up.
    Waiting,
}

/// What is kept of a member that speaks the classic protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassicSide {
    /// Strategies and subscriptions, as it offered them.
    pub protocols: Vec<Protocol>,
    /// Until when it must ask for its assignment.
    pub sync_deadline: Option<Instant>,
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its static name, if it has one.
    pub instance: Option<String>,
    /// Its rack.
    pub rack: Option<String>,
    /// When it came.
    pub since: Timestamp,
    /// What the client calls itself.
    pub client_id: String,
    /// The address it came from.
    pub client_host: String,
    /// How long it may be silent.
    pub session_timeout: Duration,
    /// How long it may take to give partitions up.
    pub rebalance_timeout: Duration,
    /// Topics by name.
    pub names: BTreeSet<TopicName>,
    /// Topics by pattern.
    pub regex: Option<String>,
    /// The assignor that it would like.
    pub assignor: Option<Assignor>,
}

/// A member.
#[derive(Clone, Debug)]
pub struct ConsumerMember {
    /// Its id.
    pub id: MemberId,
    /// What it says of itself.
    pub profile: Profile,
    /// The epoch that it is in.
    pub epoch: i32,
    /// The one before, for a member whose answer was lost.
    pub previous_epoch: i32,
    /// How far it has come.
    pub progress: Progress,
    /// What it holds and may keep.
    pub assigned: Held,
    /// What it is to give up.
    pub revoking: Held,
    /// When it is given up unless heard from.
    pub deadline: Instant,
    /// When it is given up unless it has given up `revoking`.
    pub revoke_deadline: Option<Instant>,
    /// Set for a member that speaks the classic protocol.
    pub classic: Option<ClassicSide>,
}

impl ConsumerMember {
    /// A member that holds nothing.
    pub fn new(id: MemberId, profile: Profile, now: Instant) -> Self {
        let deadline = now + profile.session_timeout;
        Self {
            id,
            profile,
            epoch: JOINING,
            previous_epoch: JOINING,
            progress: Progress::Stable,
            assigned: Held::new(),
            revoking: Held::new(),
            deadline,
            revoke_deadline: None,
            classic: None,
        }
    }

    /// It was heard from.
    pub fn touch(&mut self, now: Instant) {
        self.deadline = now + self.profile.session_timeout;
    }

    /// All that nobody else may take.
    pub fn holds(&self) -> impl Iterator<Item = &Spot> {
        self.assigned.iter().chain(&self.revoking)
    }

    /// Whether it has waited too long, for whatever reason.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.first_deadline() <= now
    }

    /// When it is to be looked at.
    pub fn first_deadline(&self) -> Instant {
        let sync = self.classic.as_ref().and_then(|classic| classic.sync_deadline);
        [Some(self.deadline), self.revoke_deadline, sync].into_iter().flatten().min().unwrap_or(self.deadline)
    }

    /// Takes the next step towards `target`, which stands for `epoch`. `owned` is what the member says that it has, if
    /// it says so; `owners` says what nobody else may take. Whether anything changed.
    pub fn reconcile(
        &mut self,
        now: Instant,
        (epoch, target): (i32, &Held),
        owned: Option<&Held>,
        owners: &BTreeMap<Spot, MemberId>,
    ) -> bool {
        match self.progress {
            Progress::Stable if self.epoch == epoch => return false,
            Progress::Revoking if owned.is_none_or(|owned| !owned.is_disjoint(&self.revoking)) => {
                return false;
            }
            _ => {}
        }
        let before = (self.epoch, self.progress, self.assigned.clone(), self.revoking.clone());
        let revoke: Held = self.assigned.difference(target).copied().collect();
        self.assigned.retain(|spot| target.contains(spot));
        self.revoking.clear();
        if !revoke.is_empty() && owned.is_none_or(|owned| !owned.is_disjoint(&revoke)) {
            self.revoking = revoke;
            self.progress = Progress::Revoking;
            self.revoke_deadline.get_or_insert(now + self.profile.rebalance_timeout);
        } else {
            let others = |spot: &Spot| owners.get(spot).is_some_and(|owner| *owner != self.id);
            let (busy, free): (Held, Held) = target.iter().copied().partition(others);
            self.assigned = free;
            self.progress = if busy.is_empty() { Progress::Stable } else { Progress::Waiting };
            if self.epoch != epoch {
                self.previous_epoch = self.epoch;
                self.epoch = epoch;
            }
            self.revoke_deadline = None;
        }
        before != (self.epoch, self.progress, self.assigned.clone(), self.revoking.clone())
    }
}
