//! A full disk: produce gets a storage error, reads go on, and writing resumes when space returns.

use std::fs;
use std::io::Write;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::power_cut::Image;
use crate::process::{DEADLINE, Server, eventually, is_root, loggos_ok};
use crate::storm::read_numbers;

/// Room for a small journal ring and a few segments.
const IMAGE_MIB: u64 = 160;

#[test]
fn a_full_disk_refuses_produce_and_loses_nothing() {
    if !is_root() {
        return;
    }
    let Some(image) = Image::new(IMAGE_MIB) else { return };
    let server = Server::start_in(&image.path().join("data"), &["--set", "loggos.journal.bytes=33554432"]);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "full", "--bootstrap", &bootstrap]);
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &bootstrap)
        .set("retries", "0")
        .set("message.timeout.ms", "20000")
        .create()
        .expect("a producer");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut sent = Vec::new();
    let mut number = 0_u64;
    let mut send = |sent: &mut Vec<u64>| {
        number += 1;
        let mut payload = number.to_string().into_bytes();
        payload.resize(8_000, b' ');
        let record = FutureRecord::<(), _>::to("full").partition(0).payload(&payload);
        let delivered = runtime.block_on(producer.send(record, DEADLINE)).is_ok();
        if delivered {
            sent.push(number);
        }
        delivered
    };
    assert!(send(&mut sent));
    let ballast = image.path().join("ballast");
    fill(&ballast);
    let mut refused = 0;
    for _ in 0..2_000 {
        if !send(&mut sent) {
            refused += 1;
            if refused == 3 {
                break;
            }
        }
    }
    assert!(refused > 0, "a full disk must show");
    assert_eq!(read_numbers(&bootstrap, "full", 0), sent, "what was acknowledged is readable on a full disk");
    fs::remove_file(&ballast).expect("the ballast goes");
    eventually("appends resume", || send(&mut sent));
    let read = read_numbers(&bootstrap, "full", 0);
    assert_eq!(read, sent, "acknowledged records, once and in order");
}

/// Takes what is left of the disk.
fn fill(path: &std::path::Path) {
    let mut file = fs::File::create(path).expect("a file");
    let mut block = vec![0x5a_u8; 1 << 20];
    while !block.is_empty() {
        if file.write_all(&block).is_err() {
            block.truncate(block.len() / 2);
        }
    }
    let _ = file.sync_all();
}
