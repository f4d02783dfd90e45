//! Who belongs to the cell, and which slots each membership governs (design 1.12).
//!
//! A membership chosen in slot `i` governs the slots from `i + alpha` on; no slot beyond `chosen + alpha` may be
//! proposed; so whoever may propose a slot knows its membership. One change at a time.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ballot::{ServerId, Slot};
use super::event::ChangeError;
use super::quorum::majority;

/// The most voters that a cell may have.
pub const VOTERS_LIMIT: usize = 7;
/// The most members of all kinds.
pub const MEMBERS_LIMIT: usize = 64;

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Votes, holds the state, serves clients, may lead.
    Voter,
    /// Holds the state and serves clients; its votes don't count.
    Learner,
    /// Votes and remembers, but holds no state: Cheap Paxos' auxiliary acceptor.
    Witness,
}

/// One member of the cell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Its identity.
    pub id: ServerId,
    /// What it does.
    pub role: Role,
    /// Where its peers reach it: `host:port`.
    pub peer: String,
    /// The port of its bulk channel, on the same host.
    pub bulk_port: u16,
    /// Where clients reach it: `host:port`.
    pub client: String,
    /// Drawn by a server that asks to be let in, so that asking twice gives one identity. 0 for founders.
    pub token: u64,
}

/// The members of the cell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Config {
    /// All members, ordered by id.
    pub members: Vec<Member>,
    /// The next identity to give out: identities are never used twice.
    pub next_id: ServerId,
}

impl Config {
    /// A membership of these members; the next identity is one above the highest.
    pub fn founding(mut members: Vec<Member>) -> Self {
        members.sort();
        let highest = members.last().map_or(ServerId::NONE, |member| member.id);
        Self { members, next_id: highest.next() }
    }

    /// Those whose votes count.
    pub fn voters(&self) -> BTreeSet<ServerId> {
        self.members.iter().filter(|m| m.role != Role::Learner).map(|m| m.id).collect()
    }

    /// The member of this id.
    pub fn member(&self, id: ServerId) -> Option<&Member> {
        self.members.iter().find(|m| m.id == id)
    }

    /// What `id` does; `None` for a stranger.
    pub fn role(&self, id: ServerId) -> Option<Role> {
        self.member(id).map(|m| m.role)
    }

    /// Whether the vote of `id` counts.
    pub fn is_voter(&self, id: ServerId) -> bool {
        self.role(id).is_some_and(|role| role != Role::Learner)
    }

    /// Whether `id` may lead.
    pub fn may_lead(&self, id: ServerId) -> bool {
        self.role(id) == Some(Role::Voter)
    }
}

/// A wish to change the membership.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// Let a server in as a learner; the leader gives it an identity. Asking again with the same token is harmless.
    Join {
        /// Its addresses and token; its id is ignored.
        member: Member,
    },
    /// These ids shall be the voters; the members that lose their vote leave the cell.
    Voters(BTreeSet<ServerId>),
    /// These ids leave the cell.
    Remove(BTreeSet<ServerId>),
    /// As the other two, after an external client's `reconfig`: the members kept, and what each shall be.
    Roles(Vec<(ServerId, Role)>),
}

/// The memberships that matter: the one in force, those before it that still govern open slots, and a pending one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConfigHistory {
    /// (slot where it was chosen, membership), ascending, never empty. A founding membership stands at slot 0 and
    /// governs from slot 1 on.
    entries: Vec<(Slot, Arc<Config>)>,
    alpha: u64,
}

impl ConfigHistory {
    /// The history of a cell that has just been formed.
    pub fn founding(config: Config, alpha: u64) -> Self {
        Self { entries: vec![(Slot::ZERO, Arc::new(config))], alpha }
    }

    /// A history as it stood in a snapshot. `None` if it is empty or out of order.
    pub fn from_entries(entries: Vec<(Slot, Arc<Config>)>, alpha: u64) -> Option<Self> {
        let ordered = entries.windows(2).all(|pair| pair[0].0 < pair[1].0);
        (!entries.is_empty() && ordered).then_some(Self { entries, alpha })
    }

    /// All entries, for the snapshot.
    pub fn entries(&self) -> &[(Slot, Arc<Config>)] {
        &self.entries
    }

    /// The slot from which a membership chosen in `slot` governs.
    pub fn governs_from(&self, slot: Slot) -> Slot {
        if slot == Slot::ZERO { Slot::FIRST } else { slot.plus(self.alpha) }
    }

    /// The membership that governs `slot`: the last one chosen at or before `slot - alpha`.
    ///
    /// Only for slots up to `chosen + alpha`, and not below those kept in the history.
    pub fn at(&self, slot: Slot) -> &Arc<Config> {
        let governing = self.entries.iter().rev().find(|(chosen, _)| self.governs_from(*chosen) <= slot);
        &governing.unwrap_or(&self.entries[0]).1
    }

    /// The memberships that govern a slot in `(chosen_upto, chosen_upto + alpha]`, each once.
    pub fn open(&self, chosen_upto: Slot) -> impl Iterator<Item = &Arc<Config>> {
        let first = chosen_upto.next();
        let last = chosen_upto.plus(self.alpha);
        let in_force =
            self.entries.iter().rposition(|(slot, _)| self.governs_from(*slot) <= first).unwrap_or(0);
        self.entries[in_force..]
            .iter()
            .filter(move |(slot, _)| self.governs_from(*slot) <= last)
            .map(|(_, c)| c)
    }

    /// The latest membership chosen, whether it governs yet or not, and its slot.
    pub fn latest(&self) -> (Slot, &Arc<Config>) {
        let (slot, config) = self.entries.last().expect("a history is never empty");
        (*slot, config)
    }

    /// Whether the latest membership does not govern all open slots yet, so that another one must wait: not before
    /// slot `i + alpha` is chosen.
    pub fn pending(&self, chosen_upto: Slot) -> bool {
        let (slot, _) = self.latest();
        slot != Slot::ZERO && chosen_upto < self.governs_from(slot)
    }

    /// Whether a membership chosen in `slot` has effect. One that falls into the window of the latest was proposed
    /// without knowledge of it and brought back by a recovery: it has none, or it would undo that one and give out
    /// its identities a second time.
    pub fn admits(&self, slot: Slot) -> bool {
        let (latest, _) = self.latest();
        slot > latest && (latest == Slot::ZERO || slot >= self.governs_from(latest))
    }

    /// Takes note of a membership chosen in `slot`.
    pub fn push(&mut self, slot: Slot, config: Arc<Config>) {
        assert!(slot > self.latest().0, "memberships are chosen in ascending slots");
        self.entries.push((slot, config));
    }

    /// Forgets memberships that govern no slot above `floor`.
    pub fn forget_below(&mut self, floor: Slot) {
        let keep =
            self.entries.iter().rposition(|(slot, _)| self.governs_from(*slot) <= floor.next()).unwrap_or(0);
        self.entries.drain(..keep);
    }

    /// Everyone who is a member of an open or pending membership.
    pub fn everyone(&self, chosen_upto: Slot) -> BTreeSet<ServerId> {
        self.open(chosen_upto).flat_map(|config| config.members.iter().map(|m| m.id)).collect()
    }
}

/// The membership that `change` makes of `config`.
pub fn apply_change(config: &Config, change: &Change) -> Result<Config, ChangeError> {
    let mut next = config.clone();
    match change {
        Change::Join { member } => {
            if next.members.len() >= MEMBERS_LIMIT {
                return Err(ChangeError::Invalid("the cell is full"));
            }
            next.members.push(Member { id: next.next_id, role: Role::Learner, ..member.clone() });
            next.next_id = next.next_id.next();
        }
        Change::Voters(ids) => {
            next.members.retain(|m| m.role == Role::Learner || ids.contains(&m.id));
            for member in &mut next.members {
                if ids.contains(&member.id) && member.role == Role::Learner {
                    member.role = Role::Voter;
                }
            }
            if !ids.iter().all(|id| next.is_voter(*id)) {
                return Err(ChangeError::Invalid("a voter must be a member first"));
            }
        }
        Change::Remove(ids) => next.members.retain(|m| !ids.contains(&m.id)),
        Change::Roles(roles) => {
            next.members.retain(|m| roles.iter().any(|(id, _)| *id == m.id));
            for (id, role) in roles {
                let member = next.members.iter_mut().find(|m| m.id == *id);
                member.ok_or(ChangeError::Invalid("no such server"))?.role = *role;
            }
        }
    }
    check_shape(&next)?;
    Ok(next)
}

/// An odd number of voters, or an even number of full voters and a witness, at most [`VOTERS_LIMIT`].
fn check_shape(config: &Config) -> Result<(), ChangeError> {
    let voters = config.voters().len();
    let full = config.members.iter().filter(|m| m.role == Role::Voter).count();
    match () {
        () if full == 0 => Err(ChangeError::Invalid("a cell needs a voter")),
        () if voters.is_multiple_of(2) => {
            Err(ChangeError::Invalid("an even number of voters survives no more failures"))
        }
        () if voters > VOTERS_LIMIT => Err(ChangeError::Invalid("too many voters")),
        () => Ok(()),
    }
}

/// Whether a majority of the voters of `config` is among `live`.
pub fn has_live_majority(config: &Config, live: &BTreeSet<ServerId>) -> bool {
    let voters = config.voters();
    voters.intersection(live).count() >= majority(voters.len())
}

/// What a leader knows of the members when it looks for a change to make by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Members that answer and have applied nearly all.
    pub caught_up: BTreeSet<ServerId>,
    /// Voters silent for longer than `replace_after`.
    pub dead: BTreeSet<ServerId>,
}

/// The change that a leader makes by itself, if any: a caught-up learner takes the place of the voter whose address
/// it has (that voter's disk is gone), or of a dead one; two caught-up learners make 1 into 3 or 3 into 5.
pub fn automatic_change(config: &Config, health: &Health) -> Option<Change> {
    let ready: Vec<&Member> = config
        .members
        .iter()
        .filter(|m| m.role == Role::Learner && health.caught_up.contains(&m.id))
        .collect();
    let first = ready.first()?;
    let mut voters = config.voters();
    let same_place = ready.iter().find_map(|learner| {
        let old = config.members.iter().find(|m| m.role != Role::Learner && m.peer == learner.peer)?;
        Some((old.id, learner.id))
    });
    let dead = config.members.iter().find(|m| m.role == Role::Voter && health.dead.contains(&m.id));
    if let Some((old, new)) = same_place.or(dead.map(|old| (old.id, first.id))) {
        voters.remove(&old);
        voters.insert(new);
        return Some(Change::Voters(voters));
    }
    let second = ready.get(1)?;
    let witness = config.members.iter().any(|m| m.role == Role::Witness);
    (voters.len() < 5 && !witness).then(|| {
        voters.extend([first.id, second.id]);
        Change::Voters(voters)
    })
}
