//! The broker's connection to its coordinator breaks and comes back while the session lives: what it watches must be
//! watched again, and what changed meanwhile must be read.

use std::time::Duration;

use rustix::process::Signal;

use crate::process::{Server, eventually, loggos, loggos_ok};

/// Longer than a broker's client waits for an answer, shorter than its session lasts.
const PAUSE: Duration = Duration::from_millis(1500);

#[test]
fn a_broker_watches_again_after_its_connection_broke() {
    let coordinator = Server::start(&[]);
    let ensemble = coordinator.addresses().coordinator.expect("built in").to_string();
    let broker = Server::start(&["--coordinator", &ensemble, "--session-timeout-ms", "3000"]);
    let bootstrap = broker.bootstrap();
    for round in 0..3 {
        coordinator.signal(Signal::STOP);
        std::thread::sleep(PAUSE);
        coordinator.signal(Signal::CONT);
        let topic = format!("after-{round}");
        eventually("a topic is made after the pause", || {
            let made = loggos(&["topic", "create", &topic, "--bootstrap", &bootstrap]);
            made.status.success() || String::from_utf8_lossy(&made.stderr).contains("already exists")
        });
        // Made elsewhere, it is seen here by a watch alone.
        let elsewhere = format!("elsewhere-{round}");
        eventually("a topic is made by the other broker", || {
            let other = coordinator.bootstrap();
            loggos(&["topic", "create", &elsewhere, "--bootstrap", &other]).status.success()
        });
        eventually("a topic that was made elsewhere is seen", || {
            loggos_ok(&["topic", "list", "--bootstrap", &bootstrap]).contains(&elsewhere)
        });
    }
}
