//! The HTTP port: `/metrics` for Prometheus, `/healthz` (the process answers), `/readyz` (it serves its clients).
//! Lives here so that no library crate needs HTTP. And the signals that end an agent or a mirror.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Is done when somebody wants the process to end; never where signals can't be had.
pub async fn wait_for_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Shared between the roles, which set it, and `/readyz`, which shows it.
#[derive(Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// From now on `/readyz` answers 200 (`true`) or 503.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[derive(Clone)]
struct Shared {
    metrics: PrometheusHandle,
    ready: Readiness,
}

/// Serves on `listener` until `stop` resolves. `more` holds routes of the roles that run, such as the coordinator's
/// `/commands`.
pub async fn serve(
    listener: TcpListener,
    metrics: PrometheusHandle,
    ready: Readiness,
    more: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/metrics", get(render_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(show_readiness))
        .with_state(Shared { metrics, ready })
        .merge(more);
    axum::serve(listener, app).with_graceful_shutdown(stop).await
}

/// Binds the HTTP port; the error is a sentence that names the option.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("--http-listen: {address} is in use by another process; choose another port, or 0 for a free one")
        }
        _ => format!("--http-listen: can't listen on {address}: {error}"),
    })
}

async fn render_metrics(State(shared): State<Shared>) -> String {
    record_process();
    shared.metrics.run_upkeep();
    shared.metrics.render()
}

async fn show_readiness(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if shared.ready.get() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

/// Resident memory and open descriptors, as the kernel counts them.
fn record_process() {
    let page_bytes = rustix::param::page_size() as u64;
    let resident_pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()));
    if let Some(pages) = resident_pages {
        gauge!("process_resident_memory_bytes").set((pages * page_bytes) as f64);
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        gauge!("process_open_fds").set(descriptors.count() as f64);
    }
}
