//! What must hold after every step, whatever happens: one file per rule, each with its source and the memory that it
//! needs. The numbers are those of docs/PAXOS.md.
//!
//! | rule | file | looked at |
//! |---|---|---|
//! | I1 promises never decrease | `promises_never_decrease` | every step, durable write and start |
//! | I2 P1a: nothing is accepted below the promise | `accepted_at_or_above_promise` | every record |
//! | I3 one value per ballot and slot | `one_value_per_proposal` | every proposal and record |
//! | I4 P2c: proposals follow from a majority's promises | `proposals_follow_promises` | every first proposal |
//! | I5 P2: one chosen value per slot | `one_chosen_value` | every choice |
//! | I6 P2a: later votes carry the chosen value | `later_votes_carry_the_chosen` | every durable vote |
//! | I7 only what was submitted is chosen | `only_submitted_is_chosen` | every choice |
//! | I8 applied prefixes agree | `applied_is_chosen` | every application |
//! | I9 memory covers what was said | `memory_covers_words` | every word and every start |
//! | I10 the commit index confirms its own ballot only | `commit_index_confirms_own_ballot` | every application |
//! | I11 one membership per slot | `memberships_agree` | every step and choice |
//! | I12 identities are never used twice | `identities_are_new` | every membership and start |
//! | I13 damage is never taken for emptiness | `damage_is_not_emptiness` | every promise |
//! | I14 a lease excludes later leaders | `lease_excludes_leaders` | every step and leader's start |
//! | I15 a restarted server waits | `restarted_acceptors_wait` | every promise |
//! | I16 fresh reads see what was acknowledged | `fresh_reads_see_all` | every read |
//! | I17 states and snapshots agree | `states_agree` | every 8th slot, every release |
//! | I18 zxids are dense and never go back | `zxids_are_dense` | every application and reply |
//! | I19 a session's operations are 1, 2, 3 … | `operations_are_in_order` | every application |
//! | I20 ephemeral nodes have live owners, no session ends in time | `sessions_own_ephemerals` | every 8th slot, every expiry |
//! | I21 sequential names are unique and ascending | `sequence_ascends` | every creation |
//! | I22 a watch's event comes once, before its reply | `events_before_replies` | every event and reply |
//! | I23 fencing tokens ascend | `fencing_tokens_ascend` | every application |
//!
//! Real sockets, outboxes and the order of bytes on them are beyond this world: `coordinator/tests/wire.rs` holds
//! the driver to I22 once more.

mod accepted_at_or_above_promise;
mod applied_is_chosen;
mod commit_index_confirms_own_ballot;
mod damage_is_not_emptiness;
mod events_before_replies;
mod fencing_tokens_ascend;
mod fresh_reads_see_all;
mod identities_are_new;
mod later_votes_carry_the_chosen;
mod lease_excludes_leaders;
mod memberships_agree;
mod memory_covers_words;
mod one_chosen_value;
mod one_value_per_proposal;
mod only_submitted_is_chosen;
mod operations_are_in_order;
mod promises_never_decrease;
mod proposals_follow_promises;
mod restarted_acceptors_wait;
mod sequence_ascends;
mod sessions_own_ephemerals;
mod states_agree;
mod zxids_are_dense;

use crate::facts::{Facts, Observation};

/// A rule.
pub trait Invariant {
    /// Its number and name, as failures show it.
    fn name(&self) -> &'static str;

    /// Looks at something that was just seen; the facts include it already.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), String>;
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Its number and name.
    pub rule: &'static str,
    /// What was seen.
    pub detail: String,
}

/// All rules.
pub struct Invariants(Vec<Box<dyn Invariant>>);

impl Invariants {
    /// With nothing seen yet.
    pub fn new() -> Self {
        Self(vec![
            Box::<promises_never_decrease::Rule>::default(),
            Box::<accepted_at_or_above_promise::Rule>::default(),
            Box::<one_value_per_proposal::Rule>::default(),
            Box::<proposals_follow_promises::Rule>::default(),
            Box::<one_chosen_value::Rule>::default(),
            Box::<later_votes_carry_the_chosen::Rule>::default(),
            Box::<only_submitted_is_chosen::Rule>::default(),
            Box::<memory_covers_words::Rule>::default(),
            Box::<applied_is_chosen::Rule>::default(),
            Box::<commit_index_confirms_own_ballot::Rule>::default(),
            Box::<memberships_agree::Rule>::default(),
            Box::<identities_are_new::Rule>::default(),
            Box::<damage_is_not_emptiness::Rule>::default(),
            Box::<lease_excludes_leaders::Rule>::default(),
            Box::<restarted_acceptors_wait::Rule>::default(),
            Box::<fresh_reads_see_all::Rule>::default(),
            Box::<states_agree::Rule>::default(),
            Box::<zxids_are_dense::Rule>::default(),
            Box::<operations_are_in_order::Rule>::default(),
            Box::<sessions_own_ephemerals::Rule>::default(),
            Box::<sequence_ascends::Rule>::default(),
            Box::<events_before_replies::Rule>::default(),
            Box::<fencing_tokens_ascend::Rule>::default(),
        ])
    }

    /// Asks all rules.
    ///
    /// # Errors
    /// The first that is broken.
    pub fn check(&mut self, facts: &Facts, seen: &Observation<'_>) -> Result<(), Broken> {
        for rule in &mut self.0 {
            rule.check(facts, seen).map_err(|detail| Broken { rule: rule.name(), detail })?;
        }
        Ok(())
    }
}

/// Fails with a sentence unless `holds`.
pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
