//! Logs to stderr and metrics to whoever scrapes them. Called once, by `main` and `roles`.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// What a long-running role logs unless told otherwise.
pub const DEFAULT_FILTER: &str = "info";
/// What a tool logs unless `LOGGOS_LOG` says otherwise: its own output is what the user asked for. A consumer of a group
/// warns when there are more consumers than partitions, or when others don't let theirs go.
const TOOL_FILTER: &str = "error,loggos_client::consumer=warn";
/// Upper bounds of the latency histograms, in seconds: from a write in cache to a stalled disk.
const LATENCY_BUCKETS_SECONDS: [f64; 13] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// Starts logging for a server, with a filter as `tracing_subscriber::EnvFilter` reads it.
pub fn start_for_server(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        format!("--log: '{filter}' is not a log filter ({error}); try info, or warn,loggos_broker=debug")
    })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    Ok(())
}

/// Starts logging for a short-lived command.
pub fn start_for_tool() {
    let filter = EnvFilter::try_from_env("LOGGOS_LOG").unwrap_or_else(|_| EnvFilter::new(TOOL_FILTER));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}

/// Installs the recorder behind `/metrics`.
pub fn record_metrics() -> Result<PrometheusHandle, String> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &LATENCY_BUCKETS_SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| format!("can't record metrics: {error}"))
}

/// One sentence on stderr for a person, outside the log.
#[expect(clippy::print_stderr, reason = "the one place where the binary speaks to its user about errors")]
pub fn complain(sentence: &str) {
    eprintln!("loggos: {sentence}");
}
