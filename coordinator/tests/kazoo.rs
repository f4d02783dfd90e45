//! kazoo's nodes, watches, recipes, transactions and ACLs against a server of ours. Skipped where `make setup` has
//! not installed kazoo.

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use support::Server;
use tokio::process::Command;

/// All recipes in turn, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kazoo_s_recipes_work() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = root.join("target/peers/python/bin/python");
    if !python.exists() {
        eprintln!("skipped: {} isn't there; `make setup` installs it", python.display());
        return;
    }
    let server = Server::start().await;
    let mut kazoo = Command::new(python);
    kazoo
        .arg(root.join("tests/interop/python/kazoo_recipes.py"))
        .arg(server.address())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, kazoo.output()).await;
    let output = output.expect("it ends in time").expect("python runs");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n{errors}");
    assert_eq!(text.lines().last(), Some("kazoo: ok"), "{errors}");
}
