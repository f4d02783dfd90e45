//! The journal and the log against raw durable writes of the same disk: the same bytes, 64 KiB at a time, first
//! while the ring lasts, then over many rings, when each byte is written twice. Prints a Markdown table.
//!
//! `cargo bench -p loggos-benches --bench append -- --runs 5 --dir .`

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Parser;
use loggos_benches::table::{Runs, markdown};
use loggos_broker::log::{LogConfig, LogDir, LogDirOptions, LogError, LogListener};
use loggos_protocol::batch::{Batch, BatchBuilder, BatchOptions, RecordView};
use loggos_protocol::ids::{LeaderEpoch, Offset, PartitionId, Timestamp, TopicId, TopicName};
use loggos_storage::disk::FsDisk;
use loggos_storage::journal::{Entry, Journal, JournalOptions, Space};

/// Bytes of one append.
const CHUNK: usize = 64 << 10;
/// Appends that may wait for the disk at the same time: what a busy broker has.
const OUTSTANDING: usize = 16;

#[derive(Parser)]
struct Options {
    /// Runs of each
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// On which disk
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// The ring, in MiB
    #[arg(long, default_value_t = 64)]
    ring: u64,
    /// Rings of the sustained measure
    #[arg(long, default_value_t = 20)]
    rings: u64,
    /// Cargo passes this to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[expect(clippy::print_stdout, reason = "a bench reports on stdout")]
fn main() -> io::Result<()> {
    let options = Options::parse();
    let ring = options.ring << 20;
    // A little less than the ring, so that nothing has to be waited for.
    let (short, long) = (ring / 4, ring * options.rings);
    let names = [
        "raw, one write after the other",
        "journal, while the ring lasts",
        "log, while the ring lasts",
        "log, sustained",
    ];
    let mut figures: Vec<Runs> = names.iter().map(|_| Runs::default()).collect();
    for _ in 0..options.runs {
        let measured = [
            raw(&options.dir, short)?,
            journal(&options.dir, ring, short)?,
            log(&options.dir, ring, short)?,
            log(&options.dir, ring, long)?,
        ];
        for (figure, runs) in measured.into_iter().zip(&mut figures) {
            runs.push(figure);
        }
    }
    let rows: Vec<(String, Vec<String>)> =
        names.iter().zip(&figures).map(|(name, runs)| ((*name).to_owned(), vec![runs.show()])).collect();
    println!("{}", markdown(&["MB/s of 64 KiB appends"], &rows));
    Ok(())
}

fn rate(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e6
}

/// Direct, synchronous writes into blocks that were written before.
fn raw(dir: &Path, bytes: u64) -> io::Result<f64> {
    let folder = tempfile::tempdir_in(dir)?;
    let path = folder.path().join("raw");
    let plain = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
    let zeros = vec![0; 1 << 20];
    for at in (0..bytes).step_by(zeros.len()) {
        plain.write_all_at(&zeros, at)?;
    }
    plain.sync_all()?;
    let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = OpenOptions::new().write(true).custom_flags(flags).open(&path)?;
    let memory = vec![7u8; CHUNK + 4096];
    let aligned = &memory[memory.as_ptr().align_offset(4096)..][..CHUNK];
    let began = Instant::now();
    for at in (0..bytes).step_by(CHUNK) {
        file.write_all_at(aligned, at)?;
    }
    Ok(rate(bytes, began.elapsed()))
}

fn journal(dir: &Path, ring: u64, bytes: u64) -> io::Result<f64> {
    let folder = tempfile::tempdir_in(dir)?;
    let options = JournalOptions { space: Space::Ring { bytes: ring }, ..JournalOptions::default() };
    let journal = Journal::open(Arc::new(FsDisk), folder.path(), options, None, &mut |_| ())
        .map_err(io::Error::other)?;
    let body = bytes::Bytes::from(vec![7u8; CHUNK]);
    let (tell, told) = mpsc::sync_channel(OUTSTANDING);
    let append = |_| {
        let tell = tell.clone();
        let done = Box::new(move |result: Result<_, _>| {
            // Room for the answer was counted before the append.
            let _ = tell.send(result.is_ok());
        });
        journal.append(vec![Entry { head: Vec::new(), body: body.clone() }], done).map_err(io::Error::other)
    };
    // The first file grows as it is written; what is measured is what follows.
    window((4 << 20) / CHUNK as u64, append, &told)?;
    let began = Instant::now();
    window(bytes / CHUNK as u64, append, &told)?;
    Ok(rate(bytes, began.elapsed()))
}

/// Runs `count` appends with a bounded number under way.
fn window(
    count: u64,
    mut append: impl FnMut(u64) -> io::Result<()>,
    told: &mpsc::Receiver<bool>,
) -> io::Result<()> {
    let mut waiting = 0;
    for number in 0..count {
        append(number)?;
        waiting += 1;
        if waiting == OUTSTANDING {
            assert!(told.recv().map_err(io::Error::other)?, "an append failed");
            waiting -= 1;
        }
    }
    for _ in 0..waiting {
        assert!(told.recv().map_err(io::Error::other)?, "an append failed");
    }
    Ok(())
}

/// Tells when the log has flushed so far.
struct Flushed(mpsc::Sender<Offset>);

impl LogListener for Flushed {
    fn flushed(&self, end: Offset) {
        // The bench may have ended.
        let _ = self.0.send(end);
    }

    fn failed(&self, _error: &LogError) {}
}

fn now() -> Timestamp {
    Timestamp::new(1_700_000_000_000)
}

fn log(dir: &Path, ring: u64, bytes: u64) -> io::Result<f64> {
    let folder = tempfile::tempdir_in(dir)?;
    let options = LogDirOptions { journal_bytes: ring, ..LogDirOptions::default() };
    let logs = LogDir::open(Arc::new(FsDisk), folder.path(), options, now).map_err(io::Error::other)?;
    let wanted = [(TopicId::from_bytes([1; 16]), TopicName::new("bench"), PartitionId::new(0))];
    let log = logs.create(&wanted, &LogConfig::default()).map_err(io::Error::other)?.remove(0);
    let (tell, told) = mpsc::channel();
    log.listen(Arc::new(Flushed(tell)));
    let batch = batch();
    let run = |count: u64| -> io::Result<()> {
        let goal = log.log_end().raw() + i64::try_from(count).unwrap_or(i64::MAX);
        let mut flushed = log.flushed_end().raw();
        while log.log_end().raw() < goal {
            while log.log_end().raw() - flushed >= OUTSTANDING as i64 {
                flushed = told.recv().map_err(io::Error::other)?.raw();
            }
            log.append_as_leader(batch.clone(), LeaderEpoch::new(0), now()).map_err(io::Error::other)?;
        }
        while flushed < goal {
            flushed = told.recv().map_err(io::Error::other)?.raw();
        }
        Ok(())
    };
    run((4 << 20) / CHUNK as u64)?;
    let count = bytes / CHUNK as u64;
    let began = Instant::now();
    run(count)?;
    Ok(rate(count * batch.len() as u64, began.elapsed()))
}

/// One record of nearly 64 KiB.
fn batch() -> Batch {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    let value = vec![7u8; CHUNK - 100];
    builder.push(&RecordView { key: None, value: Some(&value), headers: &[], timestamp: now() });
    builder.build()
}
