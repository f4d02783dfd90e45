//! Has the page cache written to the disk early and steadily, so that a checkpoint's syncs find little to do and no
//! burst of theirs stands in the way of the journal (measured: docs/decisions/0006). Called by `disk_fs`.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Begins to write what is dirty in this range, and waits for none of it. An error isn't told: `fdatasync` tells it.
#[expect(unsafe_code, reason = "rustix has no sync_file_range")]
pub(crate) fn start(file: BorrowedFd<'_>, position: u64, len: u64) {
    let (Ok(position), Ok(len)) = (i64::try_from(position), i64::try_from(len)) else { return };
    // SAFETY: the call takes no pointer, and the descriptor is open for as long as it is borrowed. It changes no
    // byte of the file and no memory of the process.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), position, len, libc::SYNC_FILE_RANGE_WRITE) };
}
