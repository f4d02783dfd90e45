//! When a segment is full, which segments have had their time, and when a flush is due: the rules, apart from the
//! files. Pure. Called by the log's writer and its upkeep.

use std::time::Duration;

use loggos_protocol::ids::{Offset, Timestamp};

/// The part of a topic's configs that its logs honour, parsed (Kafka's names in the comments).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `segment.bytes`.
    pub segment_bytes: u64,
    /// `segment.ms`.
    pub segment_ms: i64,
    /// `index.interval.bytes`: bytes of log per index entry.
    pub index_interval_bytes: u64,
    /// `retention.ms`; `None` keeps for ever.
    pub retention_ms: Option<i64>,
    /// `retention.bytes`; `None` sets no limit.
    pub retention_bytes: Option<u64>,
    /// Whether `cleanup.policy` says delete: a compacted topic never expires.
    pub expires: bool,
    /// `flush.messages`: records after which a flush is due; 1 is at once, with whatever else waits for the disk.
    pub flush_messages: u64,
    /// `flush.ms`: how long an unflushed record may wait for others.
    pub flush_ms: i64,
    /// `producer.id.expiration.ms` of the broker.
    pub producer_expiration_ms: i64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            segment_ms: 604_800_000,
            index_interval_bytes: 4096,
            retention_ms: Some(604_800_000),
            retention_bytes: None,
            expires: true,
            flush_messages: 1,
            flush_ms: i64::MAX,
            producer_expiration_ms: 86_400_000,
        }
    }
}

impl LogConfig {
    /// Whether `records` that wait since `since` are to be flushed now.
    pub(super) fn flush_due(&self, records: u64, since: Timestamp, now: Timestamp) -> bool {
        records >= self.flush_messages || now.raw().saturating_sub(since.raw()) >= self.flush_ms
    }

    /// How long until records that wait since `since` are to be flushed; `None` when only more records decide.
    pub(super) fn flush_in(&self, since: Timestamp, now: Timestamp) -> Option<Duration> {
        let due = since.raw().checked_add(self.flush_ms)?;
        Some(Duration::from_millis(due.saturating_sub(now.raw()).max(0).unsigned_abs()))
    }
}

/// What the rules look at in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentFacts {
    /// Its first offset.
    pub base: Offset,
    /// Its bytes.
    pub len: u64,
    /// When its first record was appended or created, if it has one.
    pub first_timestamp: Option<Timestamp>,
    /// The greatest time of its records.
    pub max_timestamp: Timestamp,
}

/// Whether the active segment is to be closed before `batch` is appended.
pub(super) fn must_roll(active: SegmentFacts, batch: BatchFacts, config: &LogConfig) -> bool {
    if active.len == 0 {
        return false;
    }
    let age = active.first_timestamp.map_or(0, |first| batch.timestamp.raw().saturating_sub(first.raw()));
    let relative = batch.last_offset.raw() - active.base.raw();
    active.len + batch.len > config.segment_bytes.min(u64::from(u32::MAX))
        || age >= config.segment_ms
        || relative > i64::from(u32::MAX)
}

/// What the rules look at in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchFacts {
    /// Its bytes.
    pub len: u64,
    /// Its last record's offset.
    pub last_offset: Offset,
    /// Its greatest time, or the time of the append where it has none.
    pub timestamp: Timestamp,
}

/// How many of the oldest segments have had their time. The active one, the last, only goes by time, and only when
/// it holds something; its place is then taken by an empty one.
pub(super) fn expired(segments: &[SegmentFacts], upto: Offset, config: &LogConfig, now: Timestamp) -> usize {
    if !config.expires {
        return 0;
    }
    let mut excess = match config.retention_bytes {
        Some(limit) => segments.iter().map(|segment| segment.len).sum::<u64>().saturating_sub(limit),
        None => 0,
    };
    let mut count = 0;
    for (index, segment) in segments.iter().enumerate() {
        // Nothing goes that consumers have not been able to see.
        let end = segments.get(index + 1).map_or(Offset::new(i64::MAX), |next| next.base);
        let is_active = index + 1 == segments.len();
        if segment.len == 0 || (!is_active && end > upto) {
            break;
        }
        let age = now.raw().saturating_sub(segment.max_timestamp.raw());
        let old = segment.max_timestamp.raw() >= 0 && config.retention_ms.is_some_and(|limit| age > limit);
        let too_many = !is_active && excess >= segment.len;
        if !old && !too_many {
            break;
        }
        excess = excess.saturating_sub(segment.len);
        count = index + 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(lens_and_times: &[(u64, i64)]) -> Vec<SegmentFacts> {
        let facts = |(index, (len, time)): (usize, &(u64, i64))| SegmentFacts {
            base: Offset::new(index as i64 * 10),
            len: *len,
            first_timestamp: Some(Timestamp::new(*time)),
            max_timestamp: Timestamp::new(*time),
        };
        lens_and_times.iter().enumerate().map(facts).collect()
    }

    const ALL: Offset = Offset::new(i64::MAX);

    #[test]
    fn the_oldest_go_by_time_and_by_size_and_never_out_of_order() {
        let config = LogConfig { retention_ms: Some(100), retention_bytes: None, ..LogConfig::default() };
        let by_time = segments(&[(5, 0), (5, 50), (5, 10), (5, 200)]);
        assert_eq!(expired(&by_time, ALL, &config, Timestamp::new(120)), 1);
        assert_eq!(expired(&by_time, ALL, &config, Timestamp::new(151)), 3);
        assert_eq!(expired(&by_time, Offset::new(15), &config, Timestamp::new(151)), 1);
        assert_eq!(expired(&by_time, ALL, &config, Timestamp::new(1000)), 4);
        let config = LogConfig { retention_ms: None, retention_bytes: Some(12), ..LogConfig::default() };
        let by_size = segments(&[(5, 0), (5, 0), (5, 0), (5, 0)]);
        assert_eq!(expired(&by_size, ALL, &config, Timestamp::new(0)), 1);
        let compacted = LogConfig { expires: false, ..config };
        assert_eq!(expired(&by_size, ALL, &compacted, Timestamp::new(0)), 0);
    }

    #[test]
    fn a_segment_is_closed_when_the_next_batch_would_not_fit_or_it_is_old() {
        let config = LogConfig { segment_bytes: 100, segment_ms: 50, ..LogConfig::default() };
        let active = segments(&[(90, 10)])[0];
        let batch = |len, timestamp| BatchFacts {
            len,
            last_offset: Offset::new(5),
            timestamp: Timestamp::new(timestamp),
        };
        assert!(!must_roll(active, batch(10, 20), &config));
        assert!(must_roll(active, batch(11, 20), &config));
        assert!(must_roll(active, batch(1, 60), &config));
        assert!(!must_roll(segments(&[(0, 10)])[0], batch(1000, 60), &config));
    }

    #[test]
    fn a_flush_is_due_by_count_or_by_time() {
        let config = LogConfig { flush_messages: 10, flush_ms: 500, ..LogConfig::default() };
        let at = Timestamp::new;
        assert!(!config.flush_due(9, at(0), at(499)));
        assert!(config.flush_due(10, at(0), at(0)));
        assert!(config.flush_due(1, at(0), at(500)));
        assert_eq!(config.flush_in(at(0), at(200)), Some(Duration::from_millis(300)));
        assert_eq!(LogConfig::default().flush_in(at(1), at(200)), None);
    }
}
