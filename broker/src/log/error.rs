//! What a log can't do, sorted by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use loggos_protocol::ids::Offset;
use loggos_storage::journal::JournalError;
use thiserror::Error;

use super::producers::SequenceError;

/// Why a log refuses.
#[derive(Clone, Debug, Error)]
pub enum LogError {
    /// There is no space. Nothing was appended; try again when there is.
    #[error("no space left for {}", path.display())]
    Full {
        /// What should have grown.
        path: PathBuf,
    },
    /// The disk failed; the log directory is offline until the next start.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The journal failed; the log directory is offline until the next start.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Bytes that were whole once are not any more.
    #[error("{} is damaged at byte {position}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where, in bytes.
        position: u64,
    },
    /// The offset is before the log's start or behind its end.
    #[error("offset {offset} is outside {start} to {end}")]
    OutOfRange {
        /// What was asked for.
        offset: Offset,
        /// The first offset that there is.
        start: Offset,
        /// The offset that comes next.
        end: Offset,
    },
    /// The batch's sequence number doesn't fit.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// A replicated batch doesn't follow the log's end.
    #[error("a batch at {found} doesn't follow the log's end at {expected}")]
    Gap {
        /// The log's end.
        expected: Offset,
        /// The batch's offset.
        found: Offset,
    },
    /// The log is being deleted or the broker stops.
    #[error("the log is closed")]
    Closed,
}

impl LogError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::Full { path: path.to_owned() };
        }
        Self::Io { what, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Whether nothing more can be written in this log directory.
    pub const fn takes_offline(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Journal(_))
    }
}
