//! The command line: what `loggos` can be asked for, and nothing about how it is done.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{self, CoordinatorRoleOptions, RoleOptions, ServeOptions};
use crate::tools::Tool;
use crate::{agent, mirror};

/// A partitioned log broker that speaks Kafka's protocol, kept in order by a Paxos ensemble that speaks
/// ZooKeeper's. Without a command it serves on its defaults.
#[derive(Parser)]
#[command(name = "loggos", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    asked: Option<Asked>,
}

const EXAMPLES: &str = "Examples:
  loggos                                            a complete system on this machine, data in ./loggos-data
  loggos topic create orders --partitions 12
  echo hello | loggos produce orders
  loggos consume orders --from beginning
  loggos serve --servers a:2888,b:2888,c:2888       the same line on three machines is a cluster
  loggos serve --coordinator zk1:2181,zk2:2181/kafka  a broker alone, on an ensemble that is there";

#[derive(Subcommand)]
enum Asked {
    /// Run a broker and a coordination server (or a broker alone, with --coordinator)
    Serve(Role<ServeOptions>),
    /// Run a coordination server alone, or ask one how its cell is and change who belongs to it
    #[command(after_help = COORDINATOR_EXAMPLES)]
    Coordinator(CoordinatorAsked),
    /// Ship log files, syslog, the journal and this machine's numbers to a topic
    Agent(Box<agent::Options>),
    /// Copy topics of another cluster, record by record at the same offsets
    Mirror(Box<mirror::Options>),
    #[command(flatten)]
    Tool(Tool),
}

/// A coordination server to run, or a question for one.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
struct CoordinatorAsked {
    #[command(subcommand)]
    tool: Option<crate::tools::cell::Command>,

    #[command(flatten)]
    role: Role<CoordinatorRoleOptions>,
}

const COORDINATOR_EXAMPLES: &str = "Examples:
  loggos coordinator --servers a:2888,b:2888,c:2888   one of three coordination servers
  loggos coordinator status --http a:9644             who leads, who follows
  loggos coordinator transfer 2 --http a:9644         server 2 shall lead";

/// A long-running role's options, and the two that are about options.
#[derive(Args)]
struct Role<O: Args> {
    #[command(flatten)]
    options: O,

    /// Read options from this TOML file; flags and environment variables win over it
    #[arg(long, env = "LOGGOS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print the options in force as a TOML file, and end
    #[arg(long)]
    dump_config: bool,
}

/// What the user asked for, with every option settled.
pub enum Command {
    /// Run broker and coordinator.
    Serve(Box<ServeOptions>),
    /// Run a coordinator alone.
    Coordinator(Box<CoordinatorRoleOptions>),
    /// Ship what this machine writes.
    Agent(Box<agent::Options>),
    /// Copy another cluster's topics.
    Mirror(Box<mirror::Options>),
    /// Print this text and end.
    DumpConfig(String),
    /// Run a short-lived command.
    Tool(Tool),
}

/// Why there is no command.
pub enum Exit {
    /// Clap's own: help, version, or a bad flag (exit code 2).
    Usage(clap::Error),
    /// A sentence about an option's value.
    Sentence(String),
}

/// Reads the command line, the environment, and the file that they name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Exit> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    if arguments.len() == 1 {
        arguments.push("serve".into());
    }
    let matches = Cli::command().try_get_matches_from(arguments).map_err(Exit::Usage)?;
    let cli = Cli::from_arg_matches(&matches).map_err(Exit::Usage)?;
    let role_matches = matches.subcommand().map(|(_, matches)| matches);
    match cli.asked {
        Some(Asked::Serve(role)) => settle(role, role_matches, |options| Command::Serve(Box::new(options))),
        Some(Asked::Coordinator(CoordinatorAsked { tool: Some(tool), .. })) => {
            Ok(Command::Tool(Tool::Cell(tool)))
        }
        Some(Asked::Coordinator(CoordinatorAsked { tool: None, role })) => {
            settle(role, role_matches, |options| Command::Coordinator(Box::new(options)))
        }
        Some(Asked::Mirror(options)) => Ok(Command::Mirror(options)),
        Some(Asked::Agent(options)) => Ok(Command::Agent(options)),
        Some(Asked::Tool(tool)) => Ok(Command::Tool(tool)),
        None => Err(Exit::Usage(Cli::command().error(
            clap::error::ErrorKind::MissingSubcommand,
            "name a command, or give no argument at all to serve on the defaults",
        ))),
    }
}

fn settle<O: Args + RoleOptions>(
    role: Role<O>,
    matches: Option<&clap::ArgMatches>,
    command: impl FnOnce(O) -> Command,
) -> Result<Command, Exit> {
    let options = match (&role.config, matches) {
        (Some(file), Some(matches)) => {
            config::merge_file(role.options, matches, file).map_err(Exit::Sentence)?
        }
        _ => role.options,
    };
    if role.dump_config {
        return config::dump(&options).map(Command::DumpConfig).map_err(Exit::Sentence);
    }
    Ok(command(options))
}
