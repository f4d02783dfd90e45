//! What both durable rooms stand on: the disk behind a small trait, and the commit journal (docs/decisions/0006).
//!
//! | room | what it knows |
//! |---|---|
//! | [`disk`] | trait [`disk::Disk`] and its real implementation: the only `std::fs` outside the binary |
//! | `disk_sim` | its faulty twin for tests (feature `sim`): torn, lost and reordered writes, failing syncs, a full disk |
//! | [`journal`] | group commit of opaque entries into blocks written before, direct and synchronous |
//!
//! No tokio, no socket, nobody's wire format.

pub mod disk;
#[cfg(feature = "sim")]
pub mod disk_sim;
pub mod journal;
