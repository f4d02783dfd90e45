//! What a user sees of the binary: its greeting, its help, its refusals, its tools.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::process::{Server, binary, http_get, loggos, loggos_ok};

fn refusal(arguments: &[&str]) -> String {
    let output = loggos(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn refusals_are_one_sentence_that_names_the_option_and_exit_with_2() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    let dir = TempDir::new().expect("a directory");
    let data = dir.path().join("d").display().to_string();
    let free = [
        "--coordinator-listen",
        "127.0.0.1:0",
        "--peer-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
    ];
    let serve = |more: &[&str]| refusal(&[&["serve", "--data-dir", &data], &free[..], more].concat());
    assert!(serve(&["--listen", &taken]).contains("--listen"), "a port in use");
    assert!(serve(&["--listen", "nonsense"]).contains("--listen"));
    assert!(serve(&["--listen", "127.0.0.1:0", "--set", "no-equals-sign"]).contains("--set"));
    assert!(serve(&["--listen", "127.0.0.1:0", "--set", "num.partitions=many"]).contains("num.partitions"));
    assert!(serve(&["--listen", "127.0.0.1:0", "--log", "=,="]).contains("--log"));
    assert!(refusal(&["serve", "--config", "/nonexistent.toml"]).contains("--config"));
    assert!(refusal(&["serve", "--data-dir", "/proc/nowhere"]).contains("--data-dir"));
    assert!(refusal(&["sevre"]).contains("sevre"));
}

#[test]
fn a_data_directory_serves_one_process_at_a_time() {
    let server = Server::start(&[]);
    let dir = server.data_dir().display().to_string();
    let said = refusal(&["serve", "--data-dir", &dir, "--listen", "127.0.0.1:0"]);
    assert!(said.contains("in use by another process"), "{said}");
}

#[test]
fn the_configuration_that_is_printed_is_read_back() {
    let dir = TempDir::new().expect("a directory");
    let first =
        loggos_ok(&["serve", "--dump-config", "--listen", "127.0.0.1:19092", "--set", "num.partitions=7"]);
    let file = dir.path().join("loggos.toml");
    std::fs::write(&file, &first).expect("a file");
    let file = file.display().to_string();
    assert_eq!(loggos_ok(&["serve", "--config", &file, "--dump-config"]), first);
    let overridden = loggos_ok(&["serve", "--config", &file, "--listen", "127.0.0.1:1", "--dump-config"]);
    assert!(overridden.contains("127.0.0.1:1\""), "a flag wins over the file: {overridden}");
    std::fs::write(dir.path().join("bad.toml"), "lissten = \"x\"\n").expect("a file");
    let bad = dir.path().join("bad.toml").display().to_string();
    assert!(refusal(&["serve", "--config", &bad]).contains("lissten"));
}

#[test]
fn health_readiness_and_metrics_are_served() {
    let server = Server::start(&[]);
    let http = server.addresses().http;
    assert_eq!(http_get(http, "/healthz").0, 200);
    assert_eq!(http_get(http, "/readyz").0, 200);
    let (status, metrics) = http_get(http, "/metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("process_resident_memory_bytes"), "{metrics}");
}

#[test]
fn lines_go_in_and_come_out_by_the_tools_alone() {
    let mut server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "lines", "--partitions", "1", "--bootstrap", &bootstrap]);
    let lines: String = (0..5_000).map(|n| format!("line {n} of a file\n")).collect();
    let mut producer = Command::new(binary())
        .args(["produce", "lines", "--bootstrap", &bootstrap])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the tool starts");
    producer.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("the tool reads");
    assert!(producer.wait().expect("the tool ends").success());
    let consume = ["consume", "lines", "--from", "beginning", "--stop-at-end", "--bootstrap", &bootstrap];
    assert_eq!(loggos_ok(&consume), lines);
    assert!(loggos_ok(&["topic", "list", "--bootstrap", &bootstrap]).contains("lines"));
    assert!(loggos_ok(&["topic", "describe", "lines", "--bootstrap", &bootstrap]).contains("5000"));
    assert_eq!(server.stop(), Some(0));
    server.restart();
    assert_eq!(loggos_ok(&consume), lines, "the same after a restart");
    loggos_ok(&["topic", "delete", "lines", "--bootstrap", &bootstrap]);
    assert!(!loggos_ok(&["topic", "list", "--bootstrap", &bootstrap]).contains("lines"));
}
