//! The clients' history against the log: what was acknowledged is replayed through the reference tree in the order
//! of its zxids, every result compared, every read evaluated at exactly the zxid that it showed, and real time
//! respected (design 6.2, the fast path).

use std::collections::HashMap;

use loggos_coordinator::paxos::value::Value;
use loggos_coordinator::tree::{Command, Outcome};
use loggos_protocol::ids::Zxid;
use loggos_protocol::zookeeper::ErrorCode;

use crate::facts::Facts;
use crate::host::{Answer, Request};
use crate::invariants::ensure;
use crate::reference::Reference;
use crate::replica::Fence;
use crate::workload::Operation;

type Results = HashMap<(Fence, u64), (Zxid, Result<Outcome, ErrorCode>)>;

/// The log through the reference tree: each write's zxid and result, and the state after each zxid.
struct Replay {
    results: Results,
    states: Vec<Reference>,
}

fn replay(facts: &Facts) -> Replay {
    let mut tree = Reference::new();
    let mut replay = Replay { results: HashMap::new(), states: vec![tree.clone()] };
    for (_, decided) in facts.chosen.range(..=facts.prefix) {
        match &decided.value {
            Value::LeaderStart { ballot, time } => tree.lead(ballot.raw(), time.raw()),
            Value::Noop => {}
            Value::Config { time, .. } => tree.configure(time.raw()),
            Value::Batch(batch) => {
                for entry in &batch.entries {
                    let command = Command::decode(entry).expect("entries are chosen as they were submitted");
                    let result = tree.apply(&command, batch.time.raw());
                    if let Some(result) = result
                        && let Command::Write { stamp, .. } | Command::Close { stamp, .. } = &command
                    {
                        replay.results.insert((stamp.fence, stamp.number), (Zxid::new(tree.zxid), result));
                    }
                    replay.keep(&tree);
                }
            }
        }
        replay.keep(&tree);
    }
    replay
}

impl Replay {
    fn keep(&mut self, tree: &Reference) {
        if usize::try_from(tree.zxid).expect("zxids are positive") == self.states.len() {
            self.states.push(tree.clone());
        }
    }
}

/// Compares.
///
/// # Errors
/// What a client was told and must not have been.
pub fn check(facts: &Facts, history: &[Operation]) -> Result<(), String> {
    let replay = replay(facts);
    for operation in history {
        let Some((_, answer, zxid)) = &operation.completed else { continue };
        let name = |expected: &dyn std::fmt::Debug| {
            format!("{operation:?}\nwas answered as above at {zxid}; the reference says {expected:?}")
        };
        match (&operation.request, answer) {
            (Request::Write(_) | Request::Close, Answer::Applied(result)) => {
                let number = operation.number.expect("writes are numbered");
                let expected = replay.results.get(&(operation.fence, number));
                let same = expected.is_some_and(|(at, expected)| at == zxid && expected == result);
                ensure(same, || name(&expected))?;
            }
            (Request::Get { path, .. }, Answer::Data(data)) => {
                let state = state_at(&replay, *zxid)?;
                ensure(state.data(path) == *data, || name(&state.data(path)))?;
            }
            (Request::Children { path, .. }, Answer::Children(children)) => {
                let state = state_at(&replay, *zxid)?;
                ensure(state.children(path) == *children, || name(&state.children(path)))?;
            }
            (request, answer) => return Err(format!("{request:?} was answered by {answer:?}")),
        }
    }
    real_time(facts, history)
}

fn state_at(replay: &Replay, zxid: Zxid) -> Result<&Reference, String> {
    let at = usize::try_from(zxid.raw()).unwrap_or(usize::MAX);
    replay.states.get(at).ok_or_else(|| format!("a reply shows zxid {zxid}, which the log does not have"))
}

/// Whoever was answered before another one asked comes before it: among writes strictly, among fresh reads and
/// writes at least.
fn real_time(facts: &Facts, history: &[Operation]) -> Result<(), String> {
    let mut ends: Vec<(u64, Zxid)> = history
        .iter()
        .filter(|operation| operation.number.is_some())
        .filter_map(|operation| operation.completed.as_ref().map(|(at, _, zxid)| (*at, *zxid)))
        .collect();
    ends.sort_unstable();
    // The highest zxid acknowledged so far.
    let mut highest = Zxid::new(0);
    for (_, zxid) in &mut ends {
        highest = highest.max(*zxid);
        *zxid = highest;
    }
    for operation in history {
        let Some((_, _, zxid)) = &operation.completed else { continue };
        let before = ends.partition_point(|(at, _)| *at < operation.invoked);
        let Some((_, known)) = before.checked_sub(1).map(|last| ends[last]) else { continue };
        let write = operation.number.is_some();
        let fresh = matches!(
            &operation.request,
            Request::Get { fresh: true, .. } | Request::Children { fresh: true, .. }
        );
        let holds = if write { *zxid > known } else { !fresh || !facts.reads_trusted() || *zxid >= known };
        ensure(holds, || format!("{operation:?}\ncame after zxid {known} was acknowledged"))?;
    }
    Ok(())
}
