//! Consumer groups that the broker runs for Kafka's clients. What a group is stands in the registry (decision D9), so
//! that any broker can take it over; this room holds the machine that moves it.
//!
//! | file | what it knows |
//! |---|---|
//! | `runner` | which broker runs a group |
//! | `state`, `rebalance`, `member` | a classic group as a pure machine |
//! | `consumer_state`, `consumer_member`, `assignor` | a consumer group (KIP-848) as a pure machine |
//! | `upgrade` | classic members in a consumer group, and the conversions |
//! | `machine` | a group of either protocol |
//! | `record`, `consumer_record` | what the registry keeps of a group |
//! | `setting` | from configs to what machines obey |
//! | `table` | the groups that this broker runs, and their answers |
//! | `offsets`, `shelf` | commits and fetches of offsets; what a group has committed |
//! | `commits`, `committer` | commits on their way: gathered, and written a round at a time |
//! | `seen` | a group that its members run, as tools show it |
//! | `liveness` | whether this broker may speak for its groups |
//! | `upkeep` | silence, take-overs, deleted topics, expiry |

pub mod assignor;
mod commits;
mod committer;
pub mod consumer_member;
pub mod consumer_record;
pub mod consumer_state;
mod liveness;
pub mod machine;
pub mod member;
mod offsets;
mod rebalance;
pub mod record;
pub mod runner;
mod seen;
mod setting;
mod shelf;
pub mod state;
pub mod table;
mod upgrade;
mod upkeep;

pub use shelf::Offsets;
