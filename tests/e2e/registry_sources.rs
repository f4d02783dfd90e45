//! Real input: the sources in Cargo's registry folder, hundreds of MB of real lines, shipped by `loggos produce` and by
//! kcat in every codec, over 1 and 12 partitions, with segments rolling, and read back by kcat, librdkafka, Java's
//! console consumer and `loggos consume`, byte-identical. Run by `make interop`; `LOGGOS_INTEROP_MIB` bounds it.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;

use crate::process::{DEADLINE, Server, binary, have, loggos_ok};

const MIB_DEFAULT: usize = 200;
/// Longer lines are left out: a record has its limit.
const LINE_LIMIT: usize = 200_000;

fn mib() -> usize {
    std::env::var("LOGGOS_INTEROP_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(MIB_DEFAULT)
}

fn sources(under: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(under) else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Writes the lines to `path`; how many, and their bytes. Empty lines are left out: kcat sends none.
fn corpus(path: &Path) -> (usize, usize) {
    let home = std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cargo"),
        PathBuf::from,
    );
    let mut files = Vec::new();
    sources(&home.join("registry/src"), &mut files);
    let mut out = BufWriter::new(fs::File::create(path).expect("a file"));
    let (mut lines, mut bytes) = (0, 0);
    // The same sources again, if there are too few.
    'all: while !files.is_empty() {
        for file in &files {
            let text = fs::read(file).expect("a readable source");
            for line in text.split(|byte| *byte == b'\n') {
                if line.is_empty() || line.len() > LINE_LIMIT || line.contains(&b'\r') {
                    continue;
                }
                out.write_all(line).and_then(|()| out.write_all(b"\n")).expect("written");
                lines += 1;
                bytes += line.len() + 1;
                if bytes >= mib() << 20 {
                    break 'all;
                }
            }
        }
    }
    out.flush().expect("written");
    assert!(lines > 0, "there are no sources in Cargo's registry folder");
    (lines, bytes)
}

/// The SHA-256 of a file, of its sorted lines where there is no order to keep.
fn digest(path: &Path, in_order: bool) -> String {
    let shell = if in_order { "sha256sum < \"$0\"" } else { "LC_ALL=C sort \"$0\" | sha256sum" };
    let output = Command::new("bash").args(["-c", shell]).arg(path).output().expect("bash runs");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a program with its input from one file and its output to another; says how fast it was.
fn pipe(what: &str, command: &mut Command, input: Option<&Path>, output: &Path, bytes: usize) {
    let stdin = input.map_or_else(Stdio::null, |path| Stdio::from(fs::File::open(path).expect("a file")));
    let began = Instant::now();
    let status = command
        .stdin(stdin)
        .stdout(fs::File::create(output).expect("a file"))
        .stderr(Stdio::null())
        .status()
        .expect("the program starts");
    assert!(status.success(), "{what}: {status}");
    eprintln!("{what}: {:.0} MB/s", bytes as f64 / began.elapsed().as_secs_f64() / 1e6);
}

fn by_librdkafka(bootstrap: &str, topic: &str, partitions: i32, lines: usize, output: &Path, bytes: usize) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "sources")
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("a place");
    }
    consumer.assign(&list).expect("assigned");
    let mut out = BufWriter::new(fs::File::create(output).expect("a file"));
    let began = Instant::now();
    for _ in 0..lines {
        let message = consumer.poll(DEADLINE).expect("a record in time").expect("a record");
        out.write_all(message.payload().unwrap_or_default())
            .and_then(|()| out.write_all(b"\n"))
            .expect("written");
    }
    out.flush().expect("written");
    eprintln!("  librdkafka reads: {:.0} MB/s", bytes as f64 / began.elapsed().as_secs_f64() / 1e6);
}

/// Java's own console consumer, where `make bench` or `make interop` has fetched Kafka's jars.
fn console_consumer(bootstrap: &str, topic: &str, lines: usize) -> Option<Command> {
    let jars = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/peers/kafka-4.3.1/lib");
    if !jars.join(".done").exists() || !have("java") {
        eprintln!("skipped: no console consumer (benches/peers/fetch fetches it)");
        return None;
    }
    let mut command = Command::new("java");
    command
        .args(["-cp", &format!("{}/*", jars.display()), "org.apache.kafka.tools.consumer.ConsoleConsumer"])
        .args(["--bootstrap-server", bootstrap, "--topic", topic, "--partition", "0", "--from-beginning"])
        .args(["--max-messages", &lines.to_string()]);
    Some(command)
}

#[test]
#[ignore = "hundreds of MB: make interop"]
fn the_registry_s_sources_come_back_byte_identical_by_every_way() {
    if !have("kcat") {
        return;
    }
    let dir = TempDir::with_prefix("loggos-sources-").expect("a temporary directory");
    let (source, read) = (dir.path().join("source"), dir.path().join("read"));
    let (lines, bytes) = corpus(&source);
    eprintln!("{lines} lines, {bytes} bytes");
    let (in_order, sorted) = (digest(&source, true), digest(&source, false));
    for partitions in [1, 12] {
        let expected = if partitions == 1 { &in_order } else { &sorted };
        for (number, codec) in ["none", "gzip", "snappy", "lz4", "zstd"].into_iter().enumerate() {
            // A new server for each: the disk is not to be filled.
            let server = Server::start(&[]);
            let bootstrap = server.bootstrap();
            let create = |topic: &str| {
                let count = partitions.to_string();
                loggos_ok(&[
                    "topic",
                    "create",
                    topic,
                    "--partitions",
                    &count,
                    "--config",
                    "segment.bytes=4194304",
                    "--bootstrap",
                    &bootstrap,
                ]);
            };
            let producer = if number % 2 == 0 || partitions == 1 { "loggos" } else { "kcat" };
            let producers: &[&str] = if partitions == 1 { &["loggos", "kcat"] } else { &[producer] };
            for producer in producers {
                let topic = format!("sources-{producer}");
                create(&topic);
                eprintln!("{codec}, {partitions} partitions, by {producer}");
                let mut command = if *producer == "loggos" {
                    let mut command = Command::new(binary());
                    command.args(["produce", &topic, "--compression", codec, "--bootstrap", &bootstrap]);
                    command
                } else {
                    let mut command = Command::new("kcat");
                    command.args(["-P", "-b", &bootstrap, "-t", &topic, "-z", codec, "-X", "acks=all"]);
                    command
                };
                pipe("  written", &mut command, Some(&source), &read, bytes);
                let check = |what: &str| assert_eq!(&digest(&read, partitions == 1), expected, "{what}");
                let mut command = Command::new(binary());
                command.args([
                    "consume",
                    &topic,
                    "--from",
                    "beginning",
                    "--stop-at-end",
                    "--bootstrap",
                    &bootstrap,
                ]);
                pipe("  loggos reads", &mut command, None, &read, bytes);
                check("loggos consume");
                let mut command = Command::new("kcat");
                command.args(["-C", "-b", &bootstrap, "-t", &topic, "-o", "beginning", "-e", "-q"]);
                pipe("  kcat reads", &mut command, None, &read, bytes);
                check("kcat");
                by_librdkafka(&bootstrap, &topic, partitions, lines, &read, bytes);
                check("librdkafka");
                if partitions == 1
                    && *producer == "loggos"
                    && let Some(mut command) = console_consumer(&bootstrap, &topic, lines)
                {
                    pipe("  Java reads", &mut command, None, &read, bytes);
                    check("Java's console consumer");
                }
            }
        }
    }
}
