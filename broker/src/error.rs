//! Why a broker can't start, in sentences that name the option and the fix.

use std::net::SocketAddr;
use std::path::PathBuf;

use loggos_client::registry::RegistryError;
use thiserror::Error;

use crate::log::LogError;

/// Why a broker can't start.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// The port is taken, or the address isn't this machine's.
    #[error("--listen: can't listen on {address}: {source}; stop what listens there, or give another port")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A broker config that can't be.
    #[error("{0}")]
    Config(String),
    /// The log directory can't be used.
    #[error("--data-dir: {0}")]
    Log(#[from] LogError),
    /// The registry can't be used.
    #[error("--coordinator: {0}")]
    Registry(#[from] RegistryError),
    /// The data belongs to another cluster.
    #[error(
        "--data-dir: {} belongs to cluster {theirs}, and the coordinator serves cluster {ours}; give the right \
         --coordinator, or another directory", path.display()
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Whose the data is.
        theirs: String,
        /// Whose the coordinator is.
        ours: String,
    },
    /// The directory's own file can't be used.
    #[error("--data-dir: can't use {}: {reason}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is the matter.
        reason: String,
    },
    /// A task of the start ended before it should.
    #[error("the start was interrupted")]
    Interrupted,
}
