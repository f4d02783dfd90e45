//! Consumer groups that the broker runs for Kafka's clients. What a group is stands in the registry (decision D9), so
//! that any broker can take it over; this room holds the machine that moves it.
//!
//! | file | what it knows |
//! |---|---|
//! | `state`, `rebalance`, `member` | a classic group as a pure machine |
//! | `record` | what the registry keeps of it |
//! | `runner` | which broker runs a group |
//! | `table` | the groups that this broker runs, their answers, their offsets |

pub mod member;
mod rebalance;
pub mod record;
pub mod runner;
pub mod state;
pub mod table;
