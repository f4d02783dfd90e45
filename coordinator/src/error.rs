//! Why a coordination server can't start or had to stop: one sentence each, naming the option and the fix.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use loggos_storage::journal::JournalError;

/// Why a coordination server can't start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// An option's value can't work.
    #[error("{option}: {why}")]
    Option {
        /// As it is given on the command line.
        option: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// Somebody listens there already.
    #[error("{option}: {address} is in use; stop what listens there, or give another port")]
    AddressInUse {
        /// As it is given on the command line.
        option: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The address can't be listened on.
    #[error("{option}: can't listen on {address}: {source}")]
    Listen {
        /// As it is given on the command line.
        option: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What is kept on disk can't be read or written.
    #[error("--data-dir: {0}")]
    Ledger(#[from] LedgerError),
    /// The cell can't be formed, or doesn't let this server in.
    #[error("{0}")]
    Cell(String),
}

/// Why a server that was running had to stop.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DriverError {
    /// What is kept on disk can't be written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The rules that make the servers agree were broken somewhere: going on could make it worse.
    #[error("the servers disagree: {0}; stopping, so that nothing is overwritten")]
    Violation(#[from] crate::paxos::event::Violation),
    /// The engine and its shell disagree.
    #[error("the snapshot of slot {0} isn't there")]
    NoSnapshot(crate::paxos::ballot::Slot),
}

/// Why the ledger can't be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// The journal failed; a failed write is never tried again.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The disk failed.
    #[error("can't {what} {}: {why}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// Acknowledged entries can't be read any more.
    #[error("{}: {why}; restore this directory from a copy", path.display())]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
}

impl LedgerError {
    pub(crate) fn io(what: &'static str, path: &std::path::Path, source: &io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), why: source.to_string() }
    }
}
