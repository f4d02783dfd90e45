//! Consumer groups that the broker runs for Kafka's clients. What a group is stands in the registry (decision D9), so
//! that any broker can take it over; this room holds the machine that moves it.
//!
//! | file | what it knows |
//! |---|---|
//! | `runner` | which broker runs a group |
//! | `state`, `rebalance`, `member` | a classic group as a pure machine |
//! | `record` | what the registry keeps of a group |
//! | `table` | the groups that this broker runs, and their answers |
//! | `offsets`, `shelf` | commits and fetches of offsets; what a group has committed |
//! | `commits`, `committer` | commits on their way: gathered, and written a round at a time |
//! | `liveness` | whether this broker may speak for its groups |
//! | `upkeep` | silence, take-overs, deleted topics, expiry |

mod commits;
mod committer;
mod liveness;
pub mod member;
mod offsets;
mod rebalance;
pub mod record;
pub mod runner;
mod shelf;
pub mod state;
pub mod table;
mod upkeep;

pub use shelf::Offsets;
