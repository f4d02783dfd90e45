//! Walks whole batches that lie one after another, as they do in a fetch response and in a segment file. A last
//! batch that is cut short is no error: a fetch ends where its byte limit falls, a segment where the power went.
//!
//! Called by the client's fetcher, the followers, the log's recovery and `validate`.

use bytes::{Buf, Bytes};

use super::Batch;
use super::header::{BatchHeader, CRC_START};
use crate::error::BatchError;

/// A batch in place: its header, and all its bytes.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    /// The decoded header.
    pub header: BatchHeader,
    /// Where the batch begins, in bytes from where the scan began.
    pub position: usize,
    /// The whole batch, header included.
    pub bytes: &'a [u8],
}

impl BatchView<'_> {
    /// Compares the CRC in the header with the bytes.
    ///
    /// # Errors
    /// `Crc` when they differ.
    pub fn check_crc(&self) -> Result<(), BatchError> {
        let (expected, found) = (self.header.crc, crc32c::crc32c(&self.bytes[CRC_START..]));
        if expected == found { Ok(()) } else { Err(BatchError::Crc { expected, found }) }
    }
}

/// Walks the batches in `bytes` without copying. Ends at a cut batch, silently; and after an error, as nothing
/// behind it can be found.
pub const fn scan(bytes: &[u8]) -> Scan<'_> {
    Scan { bytes, position: 0, failed: false }
}

/// The iterator of [`scan`].
#[derive(Clone, Debug)]
pub struct Scan<'a> {
    bytes: &'a [u8],
    position: usize,
    failed: bool,
}

impl Scan<'_> {
    /// How many bytes the batches so far take: where the next one, whole, cut or broken, begins.
    pub const fn position(&self) -> usize {
        self.position
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Result<BatchView<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let rest = &self.bytes[self.position..];
        let header = match BatchHeader::decode(rest) {
            Ok(header) => header,
            Err(BatchError::Cut { .. }) => return None,
            Err(error) => {
                self.failed = true;
                return Some(Err(error));
            }
        };
        let bytes = rest.get(..header.total_len())?;
        let view = BatchView { header, position: self.position, bytes };
        self.position += bytes.len();
        Some(Ok(view))
    }
}

/// Takes the batches in `bytes` apart; the same walk as [`scan`], giving batches that share the memory of `bytes`.
pub const fn split(bytes: Bytes) -> Split {
    Split { rest: bytes }
}

/// The iterator of [`split`].
#[derive(Clone, Debug)]
pub struct Split {
    rest: Bytes,
}

impl Iterator for Split {
    type Item = Result<Batch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        match Batch::from_bytes(&self.rest) {
            Ok(batch) => {
                self.rest.advance(batch.len());
                Some(Ok(batch))
            }
            Err(BatchError::Cut { .. }) => {
                self.rest.clear();
                None
            }
            Err(error) => {
                self.rest.clear();
                Some(Err(error))
            }
        }
    }
}
