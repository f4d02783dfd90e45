//! Commands that end: administration, lines in and out, measurements, and a look into segment files.
//!
//! | file | command |
//! |---|---|
//! | `topic`, `reassign` | `loggos topic create, list, describe, alter, delete, reassign` |
//! | `broker` | `loggos broker list, describe, drain` |
//! | `produce` | `loggos produce`: lines to records |
//! | `group` | `loggos group list, describe, reset-offsets, delete` |
//! | `consume`, `consume_group` | `loggos consume`: records to lines; as a member of a group |
//! | `perf` | `loggos perf produce, consume` |
//! | `registry` | `loggos registry ls, get, set, watch`: the tree as files |
//! | `dump_log` | `loggos dump-log` |
//! | `cell` | `loggos coordinator status, members, add, remove, transfer` |
//! | `options`, `instant`, `table` | what several of them take and print |
//!
//! All but `dump-log` and `cell` are clients like any other: they see Kafka's wire, or ZooKeeper's, and nothing else.
//! Called by `main`.

mod broker;
pub mod cell;
mod consume;
mod consume_group;
mod dump_log;
mod group;
mod instant;
mod options;
mod perf;
mod produce;
mod reassign;
mod registry;
mod table;
mod topic;

use std::io;
use std::process::ExitCode;

use clap::Subcommand;
use loggos_client::ClientError;

/// A command that ends.
#[derive(Subcommand)]
pub enum Tool {
    /// Create, list, describe, alter and delete topics
    #[command(subcommand)]
    Topic(topic::Command),
    /// List, describe and drain brokers
    #[command(subcommand)]
    Broker(broker::Command),
    /// Send lines of files or of stdin to a topic, one record each
    Produce(Box<produce::Options>),
    /// Print a topic's records, one line each
    Consume(Box<consume::Options>),
    /// List, describe and delete consumer groups, and set where they go on
    #[command(subcommand)]
    Group(group::Command),
    /// Measure throughput and latency
    #[command(subcommand)]
    Perf(perf::Command),
    /// Look at the coordinator's tree, and change it, as if it were files
    #[command(subcommand)]
    Registry(registry::Command),
    /// Show the batches in segment files (.log)
    DumpLog(dump_log::Options),
    /// Stands below `loggos coordinator`
    #[command(skip)]
    Cell(cell::Command),
}

/// Why a command didn't do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// It can't be: exit code 2.
    Refused(String),
    /// It didn't work: exit code 1.
    Failed(String),
    /// Whoever read the output has seen enough: no failure at all.
    Unread,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Unread } else { Self::Failed(error.to_string()) }
    }
}

/// Runs a command to its end.
pub async fn run(tool: Tool) -> ExitCode {
    let outcome = match tool {
        Tool::Topic(command) => topic::run(command).await,
        Tool::Broker(command) => broker::run(command).await,
        Tool::Produce(options) => produce::run(*options).await,
        Tool::Consume(options) => consume::run(*options).await,
        Tool::Group(command) => group::run(command).await,
        Tool::Perf(command) => perf::run(command).await,
        Tool::Registry(command) => registry::run(command).await,
        Tool::DumpLog(options) => dump_log::run(&options),
        Tool::Cell(command) => cell::run(command).await,
    };
    match outcome {
        Ok(()) | Err(Failure::Unread) => ExitCode::SUCCESS,
        Err(Failure::Failed(sentence)) => {
            crate::telemetry::complain(&sentence);
            ExitCode::FAILURE
        }
        Err(Failure::Refused(sentence)) => {
            crate::telemetry::complain(&sentence);
            ExitCode::from(2)
        }
    }
}
