//! How far each partition is, as JSON at `/status` and as Prometheus metrics. Written by `source`.

use std::collections::BTreeMap;

use loggos_protocol::ids::{Offset, TopicPartition};
use metrics::{counter, gauge};
use serde::Serialize;
use std::sync::Mutex;

/// One partition's progress.
#[derive(Clone, Debug, Serialize)]
struct Progress {
    mirrored_to: i64,
    source_end: i64,
    lag: i64,
}

/// Everything's progress.
#[derive(Debug, Default)]
pub struct Status {
    sources: Mutex<BTreeMap<String, BTreeMap<String, Progress>>>,
}

impl Status {
    /// Records that the target has acknowledged.
    pub fn count(&self, records: u64) {
        counter!("loggos_mirror_records_total").increment(records);
    }

    /// Where a partition is.
    pub fn show(&self, source: &str, place: &TopicPartition, mirrored: Offset, end: Offset) {
        let lag = (end.raw() - mirrored.raw()).max(0);
        let labels = [("source", source.to_owned()), ("partition", place.to_string())];
        gauge!("loggos_mirror_lag_records", &labels).set(lag as f64);
        let progress = Progress { mirrored_to: mirrored.raw(), source_end: end.raw(), lag };
        let mut sources = self.sources.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sources.entry(source.to_owned()).or_default().insert(place.to_string(), progress);
    }

    /// As JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let sources = self.sources.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        serde_json::to_value(&*sources).unwrap_or_default()
    }
}
