//! Looking for rot: a log's flushed bytes are read again and their checksums compared, a piece at a time.
//!
//! Called by `partition`, for its scrubber.

use loggos_protocol::batch;
use loggos_protocol::ids::Offset;

use super::{Log, LogError};

/// What a look at a piece of a log gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrubbed {
    /// So many bytes are whole; the next piece begins at this offset.
    Whole {
        /// Where to go on.
        next: Offset,
        /// How much was read.
        bytes: usize,
    },
    /// There is nothing more that is flushed.
    End,
    /// The batch that begins at this offset, or holds it, is damaged.
    Damaged(Offset),
}

impl Log {
    /// Reads up to `max_bytes` of flushed batches from `from` on, one at least, and checks them. Waits for the disk.
    ///
    /// # Errors
    /// The disk's, and `OutOfRange`.
    pub fn scrub(&self, from: Offset, max_bytes: usize) -> Result<Scrubbed, LogError> {
        let from = from.max(self.log_start());
        let upto = self.flushed_end();
        let slice = match self.read(from, upto, (max_bytes, true)) {
            Ok(Some(slice)) => slice,
            Ok(None) => return Ok(Scrubbed::End),
            // A header that can't be one was found on the way.
            Err(LogError::Corrupt { .. }) => return Ok(Scrubbed::Damaged(from)),
            Err(error) => return Err(error),
        };
        let bytes = slice.read().map_err(|error| LogError::io("read", slice.path(), error))?;
        let (mut next, mut whole) = (from, 0);
        for view in batch::scan(&bytes) {
            match view.and_then(|view| view.check_crc().map(|()| view)) {
                Ok(view) => {
                    next = view.header.next_offset().max(next);
                    whole = view.position + view.bytes.len();
                }
                // The last one may be cut by `max_bytes`; it comes first in the next piece.
                Err(_) if whole > 0 => break,
                Err(error) => {
                    tracing::error!(%error, log = %self.id(), offset = %from, path = %slice.path().display(), "a segment is damaged");
                    return Ok(Scrubbed::Damaged(from));
                }
            }
        }
        if whole == 0 { Ok(Scrubbed::End) } else { Ok(Scrubbed::Whole { next, bytes: whole }) }
    }
}
