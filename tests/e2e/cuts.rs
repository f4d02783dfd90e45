//! Three coordination servers on hosts of their own (network namespaces), and cuts between them: in both directions,
//! and in one. Needs root.

use std::process::{Command, Stdio};

use crate::cell::{Cell, Writer, check, connect};
use crate::process::{eventually, have};

/// Three namespaces on one bridge, which this process can reach; gone when it is dropped.
struct Network {
    bridge: String,
    hosts: Vec<String>,
    namespaces: Vec<String>,
}

fn ip(arguments: &str) -> bool {
    run("ip", arguments)
}

fn run(program: &str, arguments: &str) -> bool {
    let status = Command::new(program)
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

impl Network {
    /// Makes one, if this machine lets us; `number` tells those of this process apart.
    fn make(number: u8) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root, to make network namespaces");
            return None;
        }
        if !have("ip") || !have("iptables") {
            return None;
        }
        let id = std::process::id();
        let (tag, subnet) = (format!("{id}{number}"), id % 200 + 20);
        let net = format!("10.{}.{subnet}", 90 + number);
        let network = Self {
            bridge: format!("lgb{tag}"),
            hosts: (1..=3).map(|at| format!("{net}.{at}")).collect(),
            namespaces: (1..=3).map(|at| format!("loggos-{tag}-{at}")).collect(),
        };
        let bridge = &network.bridge;
        let mut made = ip(&format!("link add {bridge} type bridge"))
            && ip(&format!("addr add {net}.254/24 dev {bridge}"))
            && ip(&format!("link set {bridge} up"));
        for (at, (host, namespace)) in network.hosts.iter().zip(&network.namespaces).enumerate() {
            let (outside, inside) = (format!("lgo{tag}{at}"), format!("lgi{tag}{at}"));
            made = made
                && ip(&format!("netns add {namespace}"))
                && ip(&format!("link add {outside} type veth peer name {inside}"))
                && ip(&format!("link set {inside} netns {namespace}"))
                && ip(&format!("link set {outside} master {bridge} up"))
                && ip(&format!("-n {namespace} addr add {host}/24 dev {inside}"))
                && ip(&format!("-n {namespace} link set {inside} up"))
                && ip(&format!("-n {namespace} link set lo up"));
        }
        let filters = made && network.filter(0, "-L");
        if !filters {
            eprintln!("skipped: this machine makes no network namespaces with packet filters");
            return None;
        }
        Some(network)
    }

    fn filter(&self, at: usize, rule: &str) -> bool {
        run("ip", &format!("netns exec {} iptables -w {rule}", self.namespaces[at]))
    }

    /// From now on `deaf` hears nothing of `speaker`.
    fn cut(&self, speaker: usize, deaf: usize) {
        assert!(
            self.filter(deaf, &format!("-A INPUT -s {} -j DROP", self.hosts[speaker])),
            "a packet filter"
        );
    }

    fn mend(&self) {
        (0..3).for_each(|at| assert!(self.filter(at, "-F INPUT"), "a packet filter"));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            ip(&format!("netns del {namespace}"));
        }
        ip(&format!("link del {}", self.bridge));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_gives_way_and_follows_when_it_is_back() {
    let Some(network) = Network::make(1) else { return };
    let cell = Cell::form_in(&network.hosts, &network.namespaces);
    let writer = Writer::start(connect(&cell.addresses()).await, "/cut-off");
    writer.wait_for(50).await;
    // In both directions; then it is heard and hears nobody; then it hears all and nobody hears it.
    for (speaks, hears) in [(false, false), (true, false), (false, true)] {
        let leader = cell.wait_for_leader();
        for other in (0..3).filter(|other| *other != leader) {
            if !hears {
                network.cut(other, leader);
            }
            if !speaks {
                network.cut(leader, other);
            }
        }
        eventually("another one leads", || {
            (0..3).any(|at| at != leader && cell.nodes[at].mode() == "leader")
        });
        writer.wait_for(50).await;
        network.mend();
        eventually("it follows", || cell.nodes[leader].mode() == "follower");
        writer.wait_for(50).await;
    }
    let (_client, written) = writer.end().await;
    eprintln!("{} writes, the longest pause {:?}", written.acknowledged.len(), written.gap);
    cell.wait_for_agreement();
    check(&cell, "/cut-off", &written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_hears_nobody_disturbs_nobody() {
    let Some(network) = Network::make(2) else { return };
    let cell = Cell::form_in(&network.hosts, &network.namespaces);
    let leader = cell.wait_for_leader();
    let deaf = (leader + 1) % 3;
    let writer = Writer::start(connect(&cell.nodes[leader].client).await, "/deaf");
    writer.wait_for(50).await;
    (0..3).filter(|other| *other != deaf).for_each(|other| network.cut(other, deaf));
    eventually("it knows no leader", || cell.nodes[deaf].mode() == "looking");
    writer.wait_for(200).await;
    assert_eq!(cell.nodes[leader].mode(), "leader", "it is heard, and asks in vain");
    network.mend();
    eventually("it follows", || cell.nodes[deaf].mode() == "follower");
    assert_eq!(cell.nodes[leader].mode(), "leader", "coming back changes nothing");
    writer.wait_for(50).await;
    let (_client, written) = writer.end().await;
    cell.wait_for_agreement();
    check(&cell, "/deaf", &written).await;
}
