//! What both durable rooms stand on: the disk behind a small trait, and the commit journal (docs/decisions/0006).
//!
//! | room | what it knows |
//! |---|---|
//! | [`disk`] | the trait [`disk::Disk`] |
//! | `disk_fs` | the real one, [`disk::FsDisk`]: the only `std::fs` outside the binary |
//! | `disk_sim` | its faulty twin for tests (feature `sim`): torn, lost and reordered writes, failing syncs, a full disk |
//! | `writeback` | has the page cache written early; the one `unsafe` call of this crate |
//! | [`journal`] | group commit of opaque entries into blocks written before, direct and synchronous |
//!
//! No tokio, no socket, nobody's wire format.

pub mod disk;
mod disk_fs;
#[cfg(feature = "sim")]
pub mod disk_sim;
pub mod journal;
mod writeback;
