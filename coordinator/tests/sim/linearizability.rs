//! The clients' history as a black box: each register by itself, without trust in zxids.
//!
//! Source: Wing and Gong, "Testing and Verifying Concurrent Objects" (1993), with Lowe's memory of configurations
//! (2017): a search for an order of the operations that fits both real time and the register's rules. Operations
//! with an unknown outcome may take effect at any time after they were asked for, or never.

use std::collections::HashSet;

use bytes::Bytes;
use loggos_coordinator::tree::{Outcome, Write};
use loggos_protocol::zookeeper::ErrorCode;

use crate::clocks::True;
use crate::host::{Answer, Request};
use crate::workload::{Operation, REGISTERS};

/// Configurations that the search may look at before it gives up undecided.
const LIMIT: usize = 200_000;

/// What a register can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Create(Bytes),
    Set { value: Bytes, version: i32 },
    Get,
}

/// What it answers; `None` for what nobody was told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Unknown,
    Failed(ErrorCode),
    Version(i32),
    Value(Bytes, i32),
}

#[derive(Clone, Debug)]
struct Entry {
    call: Call,
    told: Told,
    from: True,
    to: True,
}

/// Nothing yet, or a value and its version.
type State = Option<(Bytes, i32)>;

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none.
    Violation,
    /// The search was too long.
    Undecided,
}

/// The register's rules: the state after the call, if it may have been answered so.
fn step(state: &State, entry: &Entry) -> Option<State> {
    let (after, told) = match (&entry.call, state) {
        (Call::Create(value), None) => (Some((value.clone(), 0)), Told::Version(0)),
        (Call::Create(_), Some(_)) => (state.clone(), Told::Failed(ErrorCode::NODE_EXISTS)),
        (_, None) => (None, Told::Failed(ErrorCode::NO_NODE)),
        (Call::Set { version, .. }, Some((_, known))) if *version != -1 && version != known => {
            (state.clone(), Told::Failed(ErrorCode::BAD_VERSION))
        }
        (Call::Set { value, .. }, Some((_, known))) => {
            (Some((value.clone(), known + 1)), Told::Version(known + 1))
        }
        (Call::Get, Some((value, version))) => (state.clone(), Told::Value(value.clone(), *version)),
    };
    (entry.told == Told::Unknown || entry.told == told).then_some(after)
}

/// The operations on one register. A multi that succeeded, or may have, counts as the set in it, its check made.
fn entries(register: &str, history: &[Operation], trust_reads: bool) -> Vec<Entry> {
    history.iter().filter_map(|operation| entry(register, operation, trust_reads)).collect()
}

fn entry(register: &str, operation: &Operation, trust_reads: bool) -> Option<Entry> {
    let answer = operation.completed.as_ref().map(|(_, answer, _)| answer);
    let call = match &operation.request {
        Request::Write(Write::Create { path, data, .. }) if path == register => Call::Create(data.clone()?),
        Request::Write(Write::SetData { path, data, version }) if path == register => {
            Call::Set { value: data.clone()?, version: *version }
        }
        Request::Write(Write::Multi(parts)) => return multi(register, operation, parts),
        Request::Get { path, fresh: true, .. } if path == register && trust_reads => Call::Get,
        _ => return None,
    };
    let told = match answer {
        None if call == Call::Get => return None,
        None => Told::Unknown,
        // A session that had ended already: it took no effect.
        Some(Answer::Applied(Err(ErrorCode::SESSION_EXPIRED))) => return None,
        Some(Answer::Applied(Err(code)) | Answer::Data(Err(code))) => Told::Failed(*code),
        Some(Answer::Applied(Ok(Outcome::Created { stat, .. } | Outcome::Changed(stat)))) => {
            Told::Version(stat.version)
        }
        Some(Answer::Data(Ok((data, stat)))) => Told::Value(data.clone()?, stat.version),
        Some(_) => return None,
    };
    let to = operation.completed.as_ref().map_or(True::MAX, |(at, _, _)| *at);
    Some(Entry { call, told, from: operation.invoked, to })
}

fn multi(register: &str, operation: &Operation, parts: &[Write]) -> Option<Entry> {
    let (Write::Check { path, version }, Write::SetData { data, .. }) = (parts.first()?, parts.get(1)?)
    else {
        return None;
    };
    if path != register {
        return None;
    }
    let call = Call::Set { value: data.clone()?, version: *version };
    let (told, to) = match &operation.completed {
        None => (Told::Unknown, True::MAX),
        Some((at, Answer::Applied(Ok(Outcome::Parts(parts))), _)) => match parts.get(1)? {
            loggos_coordinator::tree::Part::Changed(stat) => (Told::Version(stat.version), *at),
            // It failed for this or another reason, and changed nothing.
            _ => return None,
        },
        Some(_) => return None,
    };
    Some(Entry { call, told, from: operation.invoked, to })
}

/// Searches an order for these operations.
fn search(entries: &[Entry]) -> Verdict {
    let mut seen: HashSet<(Vec<u64>, State)> = HashSet::new();
    let words = entries.len().div_ceil(64);
    let mut stack = vec![(vec![0_u64; words], None)];
    while let Some((done, state)) = stack.pop() {
        if seen.len() > LIMIT {
            return Verdict::Undecided;
        }
        if !seen.insert((done.clone(), state.clone())) {
            continue;
        }
        let open = |at: usize| done[at / 64] >> (at % 64) & 1 == 0;
        // Whoever was answered before another one asked must come first.
        let first_end = (0..entries.len()).filter(|at| open(*at)).map(|at| entries[at].to).min();
        let Some(first_end) = first_end.filter(|end| *end != True::MAX) else { return Verdict::Linearizable };
        for (at, entry) in entries.iter().enumerate().filter(|(at, _)| open(*at)) {
            if entry.from > first_end {
                continue;
            }
            if let Some(after) = step(&state, entry) {
                let mut next = done.clone();
                next[at / 64] |= 1 << (at % 64);
                stack.push((next, after));
            }
        }
    }
    Verdict::Violation
}

/// Judges every register; how many searches were undecided.
///
/// # Errors
/// The register whose history has no order.
pub fn check(history: &[Operation], trust_reads: bool) -> Result<usize, String> {
    let mut undecided = 0;
    for register in REGISTERS {
        let entries = entries(register, history, trust_reads);
        match search(&entries) {
            Verdict::Linearizable => {}
            Verdict::Undecided => undecided += 1,
            Verdict::Violation => {
                let list: Vec<String> = entries.iter().map(|entry| format!("{entry:?}")).collect();
                return Err(format!("the history of {register} has no order:\n{}", list.join("\n")));
            }
        }
    }
    Ok(undecided)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(value: &str, told: Told, from: True, to: True) -> Entry {
        Entry { call: Call::Set { value: Bytes::from(value.to_owned()), version: -1 }, told, from, to }
    }

    fn get(value: &str, version: i32, from: True, to: True) -> Entry {
        Entry { call: Call::Get, told: Told::Value(Bytes::from(value.to_owned()), version), from, to }
    }

    fn created() -> Entry {
        Entry { call: Call::Create(Bytes::from("a")), told: Told::Version(0), from: 0, to: 1 }
    }

    #[test]
    fn a_stale_read_has_no_order_and_a_concurrent_one_has() {
        let write = set("b", Told::Version(1), 10, 20);
        assert_eq!(search(&[created(), write.clone(), get("a", 0, 30, 40)]), Verdict::Violation);
        assert_eq!(search(&[created(), write.clone(), get("a", 0, 15, 40)]), Verdict::Linearizable);
        assert_eq!(search(&[created(), write, get("b", 1, 30, 40)]), Verdict::Linearizable);
    }

    #[test]
    fn an_unknown_outcome_may_come_late_or_never_but_not_twice() {
        let unknown = set("b", Told::Unknown, 10, True::MAX);
        assert_eq!(search(&[created(), unknown.clone(), get("a", 0, 30, 40)]), Verdict::Linearizable);
        assert_eq!(
            search(&[created(), unknown.clone(), get("a", 0, 30, 40), get("b", 1, 50, 60)]),
            Verdict::Linearizable
        );
        let back = [created(), unknown, get("b", 1, 30, 40), get("a", 0, 50, 60)];
        assert_eq!(search(&back), Verdict::Violation);
    }
}
