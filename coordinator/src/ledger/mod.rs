//! What the coordinator keeps: every entry in the order in which it is applied, and now and then the whole tree.
//!
//! | file | what it knows |
//! |---|---|
//! | `snapshot` | a snapshot's file: written aside, synced, renamed; the newest few are kept |
//! | `journaled` | entries on `loggos_storage::journal`, replayed behind the newest snapshot that can be read |
//!
//! Entries are opaque here and carry their own number, so that replay skips what the snapshot holds and notices
//! what is missing. Called by `driver`.

mod journaled;
mod snapshot;

use bytes::Bytes;
use loggos_protocol::ids::Zxid;
use loggos_storage::journal::Lsn;

use crate::error::LedgerError;
pub use journaled::JournalLedger;

/// One entry.
#[derive(Clone, Debug)]
pub struct Record {
    /// Entries are counted from 1, without gaps.
    pub sequence: u64,
    /// What it says.
    pub bytes: Bytes,
}

/// A state of the tree to be kept.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The last entry that it holds.
    pub sequence: u64,
    /// The last zxid that it holds, for the file's name.
    pub zxid: Zxid,
    /// The place behind that entry, where replay begins.
    pub place: Lsn,
    /// The tree.
    pub state: Bytes,
}

/// How far the ledger reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The last entry.
    pub sequence: u64,
    /// The place behind it.
    pub place: Lsn,
}

/// What opening meets, in order: at most one snapshot that is taken, then entries.
#[derive(Clone, Debug)]
pub enum Recovered {
    /// A snapshot. Whoever refuses it is offered an older one.
    Snapshot(Bytes),
    /// The next entry.
    Entry(Bytes),
}

/// Takes what opening meets; the text of a refusal ends up in the error.
pub type Visit<'a> = dyn FnMut(Recovered) -> Result<(), String> + 'a;

/// Told when a group is durable, or never will be.
pub type Done = Box<dyn FnOnce(Result<Lsn, LedgerError>) + Send>;

/// Where entries and snapshots are kept.
pub trait Ledger: Send + Sync {
    /// Appends entries as one group, durable together. Never waits for the disk.
    fn append(&self, group: Vec<Record>, done: Done);
    /// Keeps a snapshot and lets go of what it replaces. Waits for the disk: not for a runtime's thread.
    fn keep_snapshot(&self, snapshot: &Snapshot) -> Result<(), LedgerError>;
    /// Ends: what was appended is written, nothing more is taken. Waits for the disk.
    fn close(&self);
}
