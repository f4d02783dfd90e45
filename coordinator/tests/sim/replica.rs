//! The state machine of a simulated server: the real tree, fed with values as the driver feeds it.

use bytes::Bytes;
use loggos_coordinator::paxos::value::Value;
use loggos_coordinator::tree::{Applied, Command, Entry, Tree};
use loggos_protocol::ids::Zxid;

pub use loggos_coordinator::tree::{Fence, Stamp};

/// A client of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u32);

/// What a part of a value came to.
#[derive(Clone, Debug)]
pub struct Effect {
    /// The entry; `None` for a membership.
    pub command: Option<Command>,
    /// What the tree said.
    pub applied: Applied,
}

/// The tree.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    /// The real thing.
    pub tree: Tree,
}

impl Replica {
    /// Applies a slot's value, entry by entry: `each` looks at every effect with the state right after it.
    pub fn apply(&mut self, value: &Value, mut each: impl FnMut(&Effect, &Self)) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut keep = |effect: Effect, replica: &Self| {
            each(&effect, replica);
            effects.push(effect);
        };
        match value {
            Value::Noop => {}
            Value::LeaderStart { ballot, time } => self.tree.lead(ballot.raw(), time.raw()),
            Value::Config { config, time } => {
                let text = |zxid: Zxid| Bytes::from(format!("{:?} {zxid}", config.voters()));
                let applied = self.tree.configure(time.raw(), text);
                keep(Effect { command: None, applied }, self);
            }
            Value::Batch(batch) => {
                for bytes in &batch.entries {
                    let command = Command::decode(bytes).expect("entries are chosen as they were submitted");
                    let entry = Entry { time_ms: batch.time.raw(), command };
                    let applied = self.tree.apply(&entry);
                    keep(Effect { command: Some(entry.command), applied }, self);
                }
            }
        }
        effects
    }

    /// All of it as bytes.
    pub fn snapshot(&self) -> Bytes {
        self.tree.snapshot().into()
    }

    /// Reads it back.
    pub fn restore(bytes: &[u8]) -> Self {
        Self { tree: Tree::restore(bytes).expect("snapshots are verified before they are used") }
    }

    /// Equal states have equal digests.
    pub fn digest(&self) -> u64 {
        let tree = &self.tree;
        tree.digest() ^ tree.epoch().rotate_left(32) ^ tree.zxid().raw().unsigned_abs()
    }
}
