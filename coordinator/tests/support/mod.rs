//! A server to test against: one of ours in this process, or what `LOGGOS_ZOOKEEPER` names as HOST:PORT, with a
//! folder of the tree for each test.

#![allow(dead_code, reason = "each test binary uses some of it")]

pub mod raw;
pub mod zookeeper;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use loggos_coordinator::{Coordinator, CoordinatorHandle, CoordinatorOptions};
use tempfile::TempDir;
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions};

/// Longer than anything takes on a busy machine: its passing is a failure.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A persistent node that anyone may do anything to.
pub const OPEN: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
/// An ephemeral node that anyone may do anything to.
pub const EPHEMERAL: CreateOptions<'static> = CreateMode::Ephemeral.with_acls(Acls::anyone_all());

/// One test's server.
pub struct Server {
    own: Option<(CoordinatorHandle, TempDir)>,
    address: String,
    folder: String,
}

impl Server {
    /// Starts ours, or takes the one that is named.
    pub async fn start() -> Self {
        static TESTS: AtomicU32 = AtomicU32::new(0);
        let test = TESTS.fetch_add(1, Ordering::Relaxed);
        let folder = format!("/conformance-{}-{test}", std::process::id());
        if let Ok(address) = std::env::var("LOGGOS_ZOOKEEPER") {
            return Self { own: None, address, folder };
        }
        Self { folder, ..Self::start_of_our_own(|_| {}).await }
    }

    /// Starts ours, with options that `change` makes of the usual ones.
    pub async fn start_of_our_own(change: impl FnOnce(&mut CoordinatorOptions)) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut options = options(&dir, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        change(&mut options);
        let handle = Coordinator::start(options).await.expect("a server starts");
        let address = handle.client_addr().to_string();
        Self { own: Some((handle, dir)), address, folder: "/own".to_owned() }
    }

    /// Where clients connect.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The test's own folder of the tree; made by [`Server::client`].
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// Whether the server is in this process.
    pub const fn is_ours(&self) -> bool {
        self.own.is_some()
    }

    /// A client whose root is the test's folder.
    pub async fn client(&self) -> Client {
        let client = within(Client::connect(&self.address)).await.expect("a client connects");
        match within(client.create(&self.folder, b"", &OPEN)).await {
            Ok(_) | Err(zookeeper_client::Error::NodeExists) => {}
            Err(error) => panic!("{error}"),
        }
        client.chroot(self.folder.clone()).expect("an absolute path")
    }

    /// Another server on a copy of what this one has on its disk now, as a crash of the machine would leave it.
    pub async fn crashed_copy(&self) -> Self {
        let (_, dir) = self.own.as_ref().expect("a server of this process");
        let copy = tempfile::tempdir().expect("a folder");
        copy_folder(dir.path(), copy.path());
        let handle = start(&copy, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await;
        let address = handle.client_addr().to_string();
        Self { own: Some((handle, copy)), address, folder: self.folder.clone() }
    }

    /// Stops the server and starts it on what it has kept, at the same address.
    pub async fn restart(self) -> Self {
        let (handle, dir) = self.own.expect("a server of this process");
        let address = handle.client_addr();
        within(handle.shutdown()).await;
        let handle = start(&dir, address).await;
        Self { own: Some((handle, dir)), ..self }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry")) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).expect("a new folder");
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("a copy");
        }
    }
}

fn options(dir: &TempDir, client_listen: SocketAddr) -> CoordinatorOptions {
    CoordinatorOptions {
        data_dir: dir.path().to_owned(),
        client_listen,
        peer_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        ..CoordinatorOptions::default()
    }
}

async fn start(dir: &TempDir, client_listen: SocketAddr) -> CoordinatorHandle {
    Coordinator::start(options(dir, client_listen)).await.expect("a server starts")
}

/// Fails when `future` takes too long.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("it ends in time")
}
