//! Java's clients, unmodified: Curator's framework and recipes, and ZooKeeper's own command line. Skipped where
//! `make setup` could not fetch them.

mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use support::Server;
use support::zookeeper::SUPER_DIGEST;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// A JVM beside other work takes its time.
const JAVA_DEADLINE: Duration = Duration::from_secs(300);

fn peers(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers").join(name)
}

async fn server() -> Server {
    Server::start_of_our_own(|options| {
        options.unused_check = Duration::from_millis(200);
        options.super_digest = Some(SUPER_DIGEST.to_owned());
    })
    .await
}

/// Runs a Java class to its end: what it wrote.
async fn java(class_path: &str, arguments: &[&str], input: &str) -> (bool, String) {
    // The command line prints to either stream, and the order matters.
    let mut child = Command::new("sh")
        .args(["-c", "exec java \"$@\" 2>&1", "java"])
        .args(["-Xmx200m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
        .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", class_path])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("java starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).await.expect("it reads");
    drop(stdin);
    let output = tokio::time::timeout(JAVA_DEADLINE, child.wait_with_output()).await;
    let output = output.expect("it ends in time").expect("an output");
    let text =
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curator_s_framework_and_recipes_work() {
    let home = peers("curator");
    if !home.join("build/classes/loggos/Recipes.class").exists() {
        return eprintln!("skipped: Curator isn't there; make setup fetches it where Java and Maven are");
    }
    let server = server().await;
    let class_path = format!("{}:{}/*", home.join("build/classes").display(), home.join("lib").display());
    let (good, text) = java(&class_path, &["loggos.Recipes", server.address()], "").await;
    assert!(good && text.lines().any(|line| line == "curator: ok"), "{text}");
}

/// A script for ZooKeeper's command line, and what it has to print, in this order.
const SCRIPT: &[(&str, &[&str])] = &[
    ("create /cli hello", &["Created /cli"]),
    ("create -s /cli/n- x", &["Created /cli/n-0000000000"]),
    ("create -e /cli/e x", &["Created /cli/e"]),
    ("create -c /cli/container", &["Created /cli/container"]),
    ("create -t 100000 /cli/ttl x", &["Created /cli/ttl"]),
    ("ls /cli", &["[container, e, n-0000000000, ttl]"]),
    ("ls -s /cli", &["numChildren = 4"]),
    ("getAllChildrenNumber /cli", &["4"]),
    ("getEphemerals /cli", &["[/cli/e]"]),
    ("get -s /cli", &["hello", "dataVersion = 0"]),
    ("set -v 0 /cli world", &[]),
    ("set -v 0 /cli again", &["version No is not valid : /cli"]),
    ("stat /cli", &["dataVersion = 1"]),
    ("addWatch -m PERSISTENT /cli", &[]),
    ("set /cli other", &["WatchedEvent state:SyncConnected type:NodeDataChanged path:/cli"]),
    ("removewatches /cli", &["WATCHER::", "type:PersistentWatchRemoved path:/cli"]),
    ("setquota -n 5 /cli", &[]),
    ("listquota /cli", &["Output quota for /cli count=5", "Output stat for /cli count=5"]),
    ("setquota -N 6 /cli", &[]),
    ("create /cli/f6 x", &["Created /cli/f6"]),
    ("create /cli/f7 x", &["Quota has exceeded : /cli/f7"]),
    ("delquota /cli", &[]),
    ("create /cli/f7 x", &["Created /cli/f7"]),
    ("addauth digest me:secret", &[]),
    ("whoami", &["Auth scheme: User", "digest: me"]),
    ("create /cli/mine x auth::rw", &["Created /cli/mine"]),
    ("getAcl /cli/mine", &["'digest,'me:", ": rw"]),
    ("setAcl /cli/mine world:anyone:r", &["Insufficient permission : /cli/mine"]),
    ("addauth digest super:test", &[]),
    ("setAcl /cli/mine world:anyone:r", &[]),
    ("getAcl /cli/mine", &["'world,'anyone", ": r"]),
    ("sync /cli", &["Sync is OK"]),
    ("config", &[]),
    ("reconfig -remove 1", &["Reconfig is disabled"]),
    ("delete /cli", &["Node not empty: /cli"]),
    ("deleteall /cli", &[]),
    ("ls /", &["[zookeeper]"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zookeeper_s_command_line_works() {
    if support::zookeeper::jars().is_none() {
        return eprintln!("skipped: ZooKeeper isn't there; make setup fetches it where Java and Maven are");
    }
    let server = server().await;
    let class_path = format!("{}/*", peers("zookeeper/lib").display());
    let main = "org.apache.zookeeper.ZooKeeperMain";
    let input: String = SCRIPT.iter().map(|(command, _)| format!("{command}\n")).collect();
    let (_, text) =
        java(&class_path, &[main, "-waitforconnection", "-server", server.address()], &input).await;
    let mut rest = text.as_str();
    for (command, answers) in SCRIPT {
        for answer in *answers {
            let at = rest.find(answer);
            let at = at.unwrap_or_else(|| {
                panic!("{command}: no \"{answer}\" in what follows:\n{rest}\nall:\n{text}")
            });
            rest = &rest[at + answer.len()..];
        }
    }
}
