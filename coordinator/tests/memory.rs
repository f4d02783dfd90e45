//! What a node costs in memory: a process of its own, so that nothing else is counted.

use loggos_coordinator::tree::{Command, CreateKind, Entry, Fence, Stamp, Tree, Write};
use loggos_protocol::zookeeper::Acl;

const NODES: u64 = 200_000;
/// Bytes that a node with 100 bytes of data may take in all. It was 489 when this was written: the data, the node,
/// its path once, and its places in two half-full trees. The goal of 400 is not reached.
const MOST: u64 = 560;

/// Resident bytes of this process.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("a Linux");
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    kib * 1024
}

#[test]
fn a_node_of_100_bytes_costs_less_than_560() {
    let mut tree = Tree::default();
    let open = Command::CreateSession { timeout_ms: 1000, password: [1; 16], fence: Fence(1) };
    let session = tree.apply(&Entry { time_ms: 1, command: open }).session().expect("a session");
    let mut number = 0;
    let mut create = |tree: &mut Tree, path: String, bytes: usize| {
        number += 1;
        let write = Write::Create {
            path,
            data: Some(vec![b'x'; bytes].into()),
            acl: Acl::open(),
            kind: CreateKind::Persistent,
        };
        let stamp = Stamp { fence: Fence(1), number };
        let command = Command::Write { session, stamp, ids: vec![], write };
        tree.apply(&Entry { time_ms: 1, command }).outcome.expect("made");
    };
    for folder in 0..NODES / 1000 {
        create(&mut tree, format!("/folder-{folder:05}"), 0);
    }
    let before = resident();
    for node in 0..NODES {
        create(&mut tree, format!("/folder-{:05}/node-{node:07}", node / 1000), 100);
    }
    let each = (resident() - before) / NODES;
    println!("{each} bytes for each of {NODES} nodes with 100 bytes of data");
    assert!(each < MOST, "{each} bytes");
}
