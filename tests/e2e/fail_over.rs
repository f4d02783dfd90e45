//! How long writes wait when a cell's leader is lost: a client of a follower writes on, and the first write that was
//! begun after the loss tells. The figures are printed; `make chaos` takes fifty of each kind.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use zookeeper_client::Error;

use crate::cell::{Cell, OPEN, connect};
use crate::process::{DEADLINE, eventually};

fn rounds() -> usize {
    std::env::var("LOGGOS_FAIL_OVERS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

/// How a leader is lost, and how it comes back.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Killed,
    Paused,
}

/// One loss: from then until the first write is acknowledged that was begun after it.
async fn lose(cell: &mut Cell, loss: Loss, round: usize) -> Duration {
    let leader = cell.wait_for_leader();
    let follower = (leader + 1) % 3;
    let client = connect(&cell.nodes[follower].client).await;
    let path = |number: usize| format!("/{loss:?}-{round}-{number}");
    for number in 0..5 {
        client.create(&path(number), b"", &OPEN).await.expect("a cell with a leader");
    }
    match loss {
        Loss::Killed => cell.nodes[leader].kill(),
        Loss::Paused => cell.nodes[leader].signal(Signal::STOP),
    }
    let lost = Instant::now();
    match client.create(&path(5), b"", &OPEN).await {
        Ok(_) | Err(Error::NodeExists) => {}
        Err(error) => panic!("a follower keeps its clients over a fail-over: {error}"),
    }
    let waited = lost.elapsed();
    assert!(waited < DEADLINE);
    match loss {
        Loss::Killed => cell.nodes[leader].start(),
        Loss::Paused => cell.nodes[leader].signal(Signal::CONT),
    }
    eventually("all three are there again", || {
        let modes: Vec<String> = cell.nodes.iter().map(|node| node.mode()).collect();
        modes.iter().filter(|mode| *mode == "follower").count() == 2
    });
    waited
}

async fn distribution(loss: Loss) {
    let mut cell = Cell::form(&[]);
    let mut waits = Vec::new();
    for round in 0..rounds() {
        waits.push(lose(&mut cell, loss, round).await);
    }
    waits.sort_unstable();
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share).round() as usize].as_millis();
    eprintln!(
        "leader {loss:?} {} times, ms until a write is acknowledged: p50 {}, p90 {}, p99 {}, most {}",
        waits.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fail_over_after_a_kill() {
    distribution(Loss::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fail_over_after_a_pause() {
    distribution(Loss::Paused).await;
}
