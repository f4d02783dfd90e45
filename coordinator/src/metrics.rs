//! The coordinator's numbers on `/metrics`, by their names; `loggos metrics-reference` lists them from here.

use std::time::Duration;

/// Requests answered, by operation kind.
const REQUESTS: &str = "loggos_coordinator_requests_total";
/// Seconds from a request's arrival to its reply.
const REQUEST_SECONDS: &str = "loggos_coordinator_request_seconds";
/// Records of one durable write.
const GROUP_ENTRIES: &str = "loggos_coordinator_group_entries";
/// Seconds that one durable write took.
const GROUP_SECONDS: &str = "loggos_coordinator_group_seconds";
/// Sessions that ended because their client was silent for too long.
const EXPIRED: &str = "loggos_coordinator_sessions_expired_total";
/// Snapshots written.
const SNAPSHOTS: &str = "loggos_coordinator_snapshots_total";
/// Notifications sent.
const NOTIFICATIONS: &str = "loggos_coordinator_notifications_total";
/// Gauges, in the order of [`Gauges`].
const GAUGES: [&str; 7] = [
    "loggos_coordinator_connections",
    "loggos_coordinator_sessions",
    "loggos_coordinator_nodes",
    "loggos_coordinator_watches",
    "loggos_coordinator_leading",
    "loggos_coordinator_applied_slot",
    "loggos_coordinator_zxid",
];

/// Values that go up and down.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gauges {
    pub connections: usize,
    pub sessions: usize,
    pub nodes: usize,
    pub watches: usize,
    pub leading: bool,
    pub applied: u64,
    pub zxid: i64,
}

/// Says what the numbers mean, once at start.
pub(crate) fn describe() {
    metrics::describe_counter!(REQUESTS, "Requests of ZooKeeper clients that were answered");
    metrics::describe_histogram!(
        REQUEST_SECONDS,
        metrics::Unit::Seconds,
        "From a request's arrival to its reply"
    );
    metrics::describe_histogram!(GROUP_ENTRIES, "Records that one durable write carried");
    metrics::describe_histogram!(GROUP_SECONDS, metrics::Unit::Seconds, "How long one durable write took");
    metrics::describe_counter!(EXPIRED, "Sessions whose client was silent for too long");
    metrics::describe_counter!(SNAPSHOTS, "Snapshots of the tree that were written");
    metrics::describe_counter!(NOTIFICATIONS, "Notifications that were sent to watchers");
    let texts = [
        "Connected clients",
        "Sessions that live",
        "Nodes of the tree",
        "Watches that are set",
        "Whether this server leads the cell",
        "The last slot of the log that is applied",
        "The newest zxid that is applied",
    ];
    for (name, text) in GAUGES.into_iter().zip(texts) {
        metrics::describe_gauge!(name, text);
    }
}

/// One request was answered.
pub(crate) fn request(write: bool, took: Duration) {
    let kind = if write { "write" } else { "read" };
    metrics::counter!(REQUESTS, "kind" => kind).increment(1);
    metrics::histogram!(REQUEST_SECONDS, "kind" => kind).record(took.as_secs_f64());
}

/// One group became durable.
pub(crate) fn group(entries: usize, took: Duration) {
    metrics::histogram!(GROUP_ENTRIES).record(u32::try_from(entries).unwrap_or(u32::MAX));
    metrics::histogram!(GROUP_SECONDS).record(took.as_secs_f64());
}

/// Sessions expired.
pub(crate) fn expired(count: usize) {
    metrics::counter!(EXPIRED).increment(count as u64);
}

/// A snapshot stands.
pub(crate) fn snapshot() {
    metrics::counter!(SNAPSHOTS).increment(1);
}

/// Watchers were told.
pub(crate) fn notifications(count: usize) {
    metrics::counter!(NOTIFICATIONS).increment(count as u64);
}

/// The values of now.
pub(crate) fn gauges(now: Gauges) {
    let values = [now.connections, now.sessions, now.nodes, now.watches, now.leading.into()];
    for (name, value) in GAUGES.into_iter().zip(values) {
        metrics::gauge!(name).set(u32::try_from(value).unwrap_or(u32::MAX));
    }
    // Slots and zxids count from 0 in each cell: below 2^53 for as long as anyone will look.
    metrics::gauge!(GAUGES[5]).set(now.applied as f64);
    metrics::gauge!(GAUGES[6]).set(now.zxid as f64);
}
