//! The power cut: the data directory on an ext4 image, the image copied in the instant of a kill under load, the
//! copy mounted and served. What had been acknowledged must be there; with flushing switched off it must not be,
//! or this test could not fail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Server, is_root, loggos_ok};
use crate::storm::{Plan, Storm, read_numbers};

const PARTITIONS: i32 = 6;
const RECORDS: usize = 6_000;
/// Big enough for a ring's first files and the storm's records.
const IMAGE_MIB: u64 = 384;

/// A file with an ext4 file system in it, mounted by loop device.
pub struct Image {
    file: PathBuf,
    mount: PathBuf,
    _dir: TempDir,
}

impl Image {
    /// Makes and mounts an empty one of `mib` MiB.
    pub fn new(mib: u64) -> Option<Self> {
        let dir = TempDir::with_prefix("loggos-image-").expect("a temporary directory");
        let file = dir.path().join("disk.img");
        let made = std::fs::File::create(&file).and_then(|image| image.set_len(mib << 20));
        made.expect("a sparse file");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file));
        Self::mount(dir, file)
    }

    fn mount(dir: TempDir, file: PathBuf) -> Option<Self> {
        let mount = dir.path().join("mnt");
        std::fs::create_dir(&mount).expect("a mount point");
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&mount).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: this machine mounts no loop devices");
            return None;
        }
        Some(Self { file, mount, _dir: dir })
    }

    /// What the disk holds at this instant, mounted elsewhere: what a power cut would have left.
    pub fn cut(&self) -> Option<Self> {
        let dir = TempDir::with_prefix("loggos-image-").expect("a temporary directory");
        let file = dir.path().join("disk.img");
        run(Command::new("cp").arg("--sparse=always").arg(&self.file).arg(&file));
        Self::mount(dir, file)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

fn run(command: &mut Command) {
    let status = command.status().expect("the program starts");
    assert!(status.success(), "{command:?} failed");
}

/// Cuts the power under load and gives how many acknowledged records are missing afterwards.
fn lost_after_a_cut(settings: &[&str]) -> Option<usize> {
    let image = Image::new(IMAGE_MIB)?;
    let mut server = Server::start_in(&image.path().join("data"), settings);
    let bootstrap = server.bootstrap();
    loggos_ok(&["topic", "create", "cut", "--partitions", "6", "--bootstrap", &bootstrap]);
    let plan = Plan {
        bootstrap,
        topic: "cut".to_owned(),
        partitions: PARTITIONS,
        idempotent: false,
        record_bytes: 400,
    };
    let storm = Storm::start(plan);
    storm.wait_for(RECORDS);
    // The acknowledgements counted here came before the image is copied: a cut can excuse none of them.
    let acknowledged = storm.snapshot();
    server.kill();
    let cut = image.cut()?;
    storm.abandon();
    let survivor = Server::start_in(&cut.path().join("data"), settings);
    Some(missing(&survivor.bootstrap(), &acknowledged))
}

fn missing(bootstrap: &str, acknowledged: &BTreeMap<i32, Vec<u64>>) -> usize {
    let mut missing = 0;
    for (&partition, numbers) in acknowledged {
        let read: std::collections::BTreeSet<u64> =
            read_numbers(bootstrap, "cut", partition).into_iter().collect();
        missing += numbers.iter().filter(|number| !read.contains(number)).count();
    }
    missing
}

#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    if !is_root() {
        return;
    }
    if let Some(lost) = lost_after_a_cut(&[]) {
        assert_eq!(lost, 0, "acknowledged records are missing after the cut");
    }
}

#[test]
fn the_power_cut_test_can_fail_when_nothing_is_flushed() {
    if !is_root() {
        return;
    }
    let unflushed = [
        "--set",
        "loggos.expose=appended",
        "--set",
        "log.flush.interval.messages=9223372036854775807",
        "--set",
        "log.flush.interval.ms=9223372036854775807",
    ];
    if let Some(lost) = lost_after_a_cut(&unflushed) {
        assert!(lost > 0, "without flushing the cut must cost something, or this test proves nothing");
    }
}
