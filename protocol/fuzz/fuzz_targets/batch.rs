//! Any bytes are looked at as batches without harm, and records are read within bounds.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use loggos_protocol::batch::{self, Limits};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let _ = batch::validate(bytes.clone(), &Limits::produced(1 << 20));
    let _ = batch::validate(bytes.clone(), &Limits::replicated());
    for found in batch::split(bytes).flatten() {
        if let Ok(records) = batch::records_within(&found, 1 << 20) {
            for record in records.take(10_000) {
                if record.is_err() {
                    break;
                }
            }
        }
    }
});
