//! A round with each kind of real client, as its users start it. `make setup` fetches them, pinned; a client that
//! this machine can't have is skipped with a sentence.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::process::{Server, have, loggos_ok};

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Where `make setup` puts what it fetches.
pub fn peers() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from).join("peers")
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("the client starts");
    assert!(
        output.status.success(),
        "{command:?} failed with {}:\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn kcat_produces_with_every_codec_and_reads_back_by_offset() {
    if !have("kcat") {
        return;
    }
    let server = Server::start(&[]);
    let bootstrap = server.bootstrap();
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = format!("kcat-{codec}");
        loggos_ok(&["topic", "create", &topic, "--partitions", "1", "--bootstrap", &bootstrap]);
        let lines: String = (0..2_000).map(|n| format!("{codec} line {n}\n")).collect();
        let mut producer = Command::new("kcat")
            .args(["-P", "-b", &bootstrap, "-t", &topic, "-p", "0", "-z", codec, "-X", "acks=all"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("kcat starts");
        producer.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("kcat reads");
        assert!(producer.wait().expect("kcat ends").success());
        let read = |offset: &str| {
            run(Command::new("kcat")
                .args(["-C", "-b", &bootstrap, "-t", &topic, "-p", "0", "-o", offset, "-e", "-q"]))
        };
        assert_eq!(read("beginning"), lines);
        assert_eq!(read("1999"), format!("{codec} line 1999\n"));
        assert_eq!(read("-1"), format!("{codec} line 1999\n"), "the last one");
    }
    let listing = run(Command::new("kcat").args(["-L", "-b", &bootstrap]));
    assert!(listing.contains("topic \"kcat-zstd\" with 1 partitions"), "{listing}");
}

/// Runs one of the scripts in tests/interop/python against a new server.
fn python(script: &str, address: impl Fn(&Server) -> String) {
    let interpreter = peers().join("python/bin/python");
    if !interpreter.exists() {
        eprintln!("skipped: no Python clients (make setup fetches them)");
        return;
    }
    let server = Server::start(&[]);
    let said = run(Command::new(interpreter)
        .arg(root().join("tests/interop/python").join(script))
        .arg(address(&server)));
    assert!(said.trim_end().ends_with("ok"), "{script} said: {said}");
}

#[test]
fn confluent_kafka_makes_its_round() {
    python("confluent_round.py", Server::bootstrap);
}

#[test]
fn kafka_python_makes_its_round() {
    python("kafka_python_round.py", Server::bootstrap);
}

#[test]
fn aiokafka_makes_its_round() {
    python("aiokafka_round.py", Server::bootstrap);
}

#[test]
fn kazoo_finds_its_recipes_in_the_coordinator() {
    python("kazoo_recipes.py", |server| server.addresses().coordinator.expect("built in").to_string());
}

#[test]
fn java_s_own_client_makes_its_round() {
    let java = peers().join("java");
    if !java.join(".complete-2").exists() {
        eprintln!("skipped: no Java clients (make setup builds them)");
        return;
    }
    let server = Server::start(&[]);
    let classpath = format!("{0}/build/classes:{0}/lib/*", java.display());
    let said =
        run(Command::new("java").args(["-Xmx256m", "-cp", &classpath, "loggos.Round", &server.bootstrap()]));
    assert!(said.trim_end().ends_with("ok"), "Round said: {said}");
}
