//! A coordinator that is away for a moment: brokers keep their sessions, and still learn of what changes afterwards.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::process::{Server, binary, eventually, loggos_ok};

/// `loggos coordinator`, ended with its test.
struct Coordinator {
    child: Child,
}

impl Coordinator {
    fn start(dir: &Path, address: &str) -> Self {
        let child = Command::new(binary())
            .args(["coordinator", "--coordinator-listen", address, "--data-dir"])
            .arg(dir)
            .args(["--peer-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        Self { child }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn brokers_see_what_changes_after_their_coordinator_was_away() {
    let dir = TempDir::with_prefix("loggos-coordinator-").expect("a temporary directory");
    let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let address = address.to_string();
    let coordinator = Coordinator::start(dir.path(), &address);
    let one = Server::start(&["--coordinator", &address]);
    let other = Server::start(&["--coordinator", &address]);
    drop(coordinator);
    let _coordinator = Coordinator::start(dir.path(), &address);
    eventually("a topic is made", || {
        let made = crate::process::loggos(&["topic", "create", "late", "--bootstrap", &one.bootstrap()]);
        made.status.success() || String::from_utf8_lossy(&made.stderr).contains("exists")
    });
    eventually("both brokers know of it", || {
        [&one, &other]
            .iter()
            .all(|server| loggos_ok(&["topic", "list", "--bootstrap", &server.bootstrap()]).contains("late"))
    });
}
