//! What the agent has done, as numbers: JSON at `/status`, Prometheus at `/metrics`. Written by the inputs and by
//! `pump`, read by the HTTP port.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{counter, gauge};
use serde_json::{Value, json};

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters since the start, and a few levels.
        #[derive(Debug, Default)]
        pub struct Status { $($(#[$doc])* pub $name: AtomicU64),* }

        impl Status {
            /// As JSON.
            pub fn to_json(&self) -> Value {
                json!({ $(stringify!($name): self.$name.load(Ordering::Relaxed)),* })
            }

            fn each(&self, mut show: impl FnMut(&'static str, u64)) {
                $(show(concat!("loggos_agent_", stringify!($name)), self.$name.load(Ordering::Relaxed));)*
            }
        }
    };
}

numbers! {
    /// Records that inputs gave.
    records_read,
    /// Bytes of them.
    bytes_read,
    /// Records that brokers have acknowledged.
    records_acknowledged,
    /// Records that were sent again because it wasn't known whether they had arrived.
    records_sent_again,
    /// Records that no broker takes: too large, or refused for good.
    records_refused,
    /// Records that went through the spool.
    records_spooled,
    /// Records that a full spool dropped.
    records_dropped,
    /// Records on their way.
    in_flight_records,
    /// Bytes in the spool.
    spool_bytes,
    /// Files that are open.
    open_files,
    /// Files whose rest was nowhere to be found.
    files_lost,
    /// Files that were cut while they were read.
    files_truncated,
    /// 1 while brokers take nothing.
    brokers_away,
    /// 1 when the run before this one was killed: its last records may have been sent twice.
    unclean_start,
}

/// What goes up and down, among the numbers.
const LEVELS: [&str; 5] = ["in_flight_records", "spool_bytes", "open_files", "brokers_away", "unclean_start"];

impl Status {
    /// Hands the numbers to the recorder behind `/metrics`.
    pub fn record(&self) {
        self.each(|name, value| {
            if LEVELS.iter().any(|level| name.ends_with(level)) {
                gauge!(name).set(value as f64);
            } else {
                counter!(name).absolute(value);
            }
        });
    }
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Sets a level.
pub fn set(level: &AtomicU64, value: u64) {
    level.store(value, Ordering::Relaxed);
}
