//! Looks at directories, opens, reads and lets go of files as [`Tail`] decides. One thread of its own; what it reads
//! goes into a bounded channel, and when that is full, reading waits. Called by `mod`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use regex::bytes::Regex;
use tokio::sync::mpsc;

use super::config::{Config, From as Begin};
use super::item::{FileMeta, FilePosition, Origin, Parcel, Stamp, wall_clock};
use super::lines::{Cutting, Line, Lines};
use super::on_disk::{OnDisk, begins_as_known, inode, mtime_of, sighting};
use super::sighting::{FileKey, Progress, Remembered, Sighting, is_rotated};
use super::status::{Status, add, set};
use super::tail::{Action, Event, Settings, Tail};

/// Bytes read of one file before the next one's turn.
pub(super) const CHUNK: usize = 64 * 1024;
/// Turns of reading before the directories are looked at again.
const TURNS: usize = 64;
/// How long the rest of a file that has gone is looked for.
pub const MISSING_WAIT: Duration = Duration::from_secs(5);
/// Files that are open at the same time; more are left for later, and said.
const OPEN_LIMIT: usize = 4_000;
/// Endings of compressed files, which patterns never match.
const COMPRESSED: [&str; 6] = [".gz", ".xz", ".zst", ".bz2", ".Z", ".zip"];

/// One `[[files]]` of the configuration.
#[derive(Debug)]
struct Input {
    patterns: Vec<glob::Pattern>,
    exclude: Vec<glob::Pattern>,
    cutting: Cutting,
    place: usize,
}

/// A file that is being read, or was until it was cut.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) source: Option<Source>,
    position: u64,
    mark: Vec<u8>,
    mtime: u64,
    meta: Arc<FileMeta>,
    head: Bytes,
    lines: Lines,
    stamp: Stamp,
}

#[derive(Debug)]
pub(super) enum Source {
    Plain(File),
    Packed(Box<MultiGzDecoder<BufReader<File>>>),
}

/// What one attempt to read gave.
enum Found {
    Bytes(usize),
    AtEnd,
    Changed,
    Ended,
    Broken,
}

/// Follows files.
pub struct Follower {
    config: Arc<Config>,
    host: String,
    inputs: Vec<Input>,
    tail: Tail,
    readings: BTreeMap<FileKey, Reading>,
    parcels: mpsc::Sender<Parcel>,
    status: Arc<Status>,
    started: Instant,
    once: bool,
    stop: Arc<AtomicBool>,
    buffer: Vec<u8>,
}

/// For how long to follow.
#[derive(Debug)]
pub struct Run {
    /// To the end of what is there.
    pub once: bool,
    /// Until this is set.
    pub stop: Arc<AtomicBool>,
}

/// The tail that goes on from what is remembered.
pub fn tail(config: &Config, remembered: Vec<Remembered>) -> (Tail, Vec<(FileKey, Remembered)>) {
    let rotated_wait = Duration::from_millis(config.rotated_wait_ms);
    Tail::new(Settings { rotated_wait, missing_wait: MISSING_WAIT }, Duration::ZERO, remembered)
}

impl Follower {
    /// Checks the patterns; the error is a sentence.
    pub fn new(
        config: Arc<Config>,
        host: &str,
        tail: Tail,
        parcels: mpsc::Sender<Parcel>,
        status: Arc<Status>,
        run: Run,
    ) -> Result<Self, String> {
        let compile = |patterns: &[String]| -> Result<Vec<glob::Pattern>, String> {
            let each = |text: &String| {
                glob::Pattern::new(text).map_err(|error| format!("'{text}' is not a pattern: {error}"))
            };
            patterns.iter().map(each).collect()
        };
        let mut inputs = Vec::new();
        for (place, files) in config.files.iter().enumerate() {
            let pattern = files.multiline.as_deref().map(Regex::new).transpose();
            let pattern = pattern.map_err(|error| format!("multiline: {error}"))?;
            let cutting = Cutting {
                pattern,
                wait: Duration::from_millis(files.multiline_wait_ms),
                limit: config.max_record_bytes,
            };
            let (patterns, exclude) = (compile(&files.paths)?, compile(&files.exclude)?);
            inputs.push(Input { patterns, exclude, cutting, place });
        }
        let Run { once, stop } = run;
        let (started, host) = (Instant::now(), host.to_owned());
        let (readings, buffer) = (BTreeMap::new(), vec![0; CHUNK]);
        Ok(Self { config, host, inputs, tail, readings, parcels, status, started, once, stop, buffer })
    }

    /// Follows until it's told to stop, or with `--once` until everything has been read.
    pub fn run(mut self) {
        let poll = Duration::from_millis(self.config.poll_ms);
        while !self.stop.load(Ordering::Acquire) {
            if self.look_around().is_err() || self.read_all().is_err() {
                return;
            }
            set(&self.status.open_files, self.tail.open_files() as u64);
            if self.expire_lines().is_err() {
                return;
            }
            if self.once && self.tail.is_caught_up() {
                let _ = self.hand_on_what_is_held();
                return;
            }
            std::thread::sleep(poll);
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn step(&mut self, event: Event<'_>) -> Result<(), Gone> {
        let mut actions = Vec::new();
        let now = self.now();
        self.tail.step(now, event, &mut OnDisk::new(&self.readings), &mut actions);
        actions.into_iter().try_for_each(|action| self.perform(action))
    }

    fn perform(&mut self, action: Action) -> Result<(), Gone> {
        match action {
            Action::Open { file, named, at, position } => {
                if let Err(error) = self.open(file, &named, &at, position) {
                    tracing::warn!(path = at.path, %error, "can't be read");
                    return self.step(Event::Unreadable(file));
                }
                tracing::info!(path = at.path, position, "reading");
                Ok(())
            }
            Action::Suspend(file) => {
                if let Some(reading) = self.readings.get_mut(&file) {
                    tracing::info!(path = reading.meta.path, position = reading.position, "cut");
                    reading.source = None;
                    add(&self.status.files_truncated, 1);
                }
                Ok(())
            }
            Action::Close(file) => self.close(file),
            Action::Lost(file) => {
                add(&self.status.files_lost, 1);
                self.close(file)
            }
        }
    }

    fn open(&mut self, key: FileKey, named: &str, at: &Sighting, position: u64) -> io::Result<()> {
        let open = self.readings.values().filter(|reading| reading.source.is_some()).count();
        if open >= OPEN_LIMIT {
            return Err(io::Error::other(format!("{OPEN_LIMIT} files are open already")));
        }
        let file = File::open(&at.path)?;
        if inode(&file.metadata()?) != at.inode {
            return Err(io::Error::other("it has just been replaced"));
        }
        let source = if at.packed {
            let mut decoder = MultiGzDecoder::new(BufReader::new(file));
            let skipped = io::copy(&mut decoder.by_ref().take(position), &mut io::sink())?;
            if skipped < position {
                return Err(io::Error::other("it is shorter than what was read of it"));
            }
            Source::Packed(Box::new(decoder))
        } else {
            Source::Plain(file)
        };
        let progress = self.tail.progress(key).cloned().unwrap_or_default();
        let meta =
            Arc::new(FileMeta { path: named.to_owned(), inode: at.inode, mtime: AtomicU64::new(at.mtime) });
        let (head, mark) = (Bytes::from(progress.head), progress.mark);
        if let Some(reading) = self.readings.get_mut(&key) {
            // Half a line may be waiting for its other half.
            (reading.source, reading.meta, reading.position, reading.mark) =
                (Some(source), meta, position, mark);
            reading.mtime = 0;
            return Ok(());
        }
        let input = self.inputs.iter().find(|input| input.is_for(named));
        let input = input.or(self.inputs.first()).ok_or_else(|| io::Error::other("no input asks for it"))?;
        let files = &self.config.files[input.place];
        let topic = self.config.topic_of(files.topic.as_ref());
        let stamp = Stamp::new(topic, &self.host, named, files.key);
        let lines = Lines::new(input.cutting.clone(), position);
        let source = Some(source);
        self.readings.insert(key, Reading { source, position, mark, mtime: 0, meta, head, lines, stamp });
        Ok(())
    }

    fn close(&mut self, key: FileKey) -> Result<(), Gone> {
        let Some(mut reading) = self.readings.remove(&key) else { return Ok(()) };
        let mut lines = Vec::new();
        reading.lines.finish(&mut lines);
        self.hand_on(key, &reading, lines)?;
        let progress =
            Progress { position: reading.position, head: reading.head.to_vec(), mark: reading.mark.clone() };
        let remembered = Remembered {
            path: reading.meta.path.clone(),
            inode: reading.meta.inode,
            mtime: reading.meta.mtime.load(Ordering::Relaxed),
            progress,
            done: true,
        };
        tracing::info!(path = remembered.path, position = remembered.progress.position, "read to its end");
        self.parcels.blocking_send(Parcel::Done(key, Box::new(remembered))).map_err(|_| Gone)
    }

    /// Reads whatever may be read, in turns.
    fn read_all(&mut self) -> Result<(), Gone> {
        for _ in 0..TURNS {
            let readable = self.tail.readable();
            let mut any = false;
            for &key in &readable {
                if self.stop.load(Ordering::Acquire) {
                    return Err(Gone);
                }
                any |= self.read_one(key)?;
            }
            if !any && self.tail.readable() == readable {
                break;
            }
        }
        Ok(())
    }

    fn read_one(&mut self, key: FileKey) -> Result<bool, Gone> {
        let Some(reading) = self.readings.get_mut(&key) else { return Ok(false) };
        match reading.read(&mut self.buffer).unwrap_or(Found::Broken) {
            Found::Changed => self.step(Event::Changed(key)).map(|()| true),
            Found::Broken => {
                reading.source = None;
                self.step(Event::Unreadable(key)).map(|()| false)
            }
            Found::Ended => self.step(Event::Ended(key)).map(|()| true),
            Found::AtEnd => self.step(Event::Read { file: key, bytes: &[], at_end: true }).map(|()| false),
            Found::Bytes(count) => {
                let bytes = std::mem::take(&mut self.buffer);
                let at_end = count < bytes.len();
                self.step(Event::Read { file: key, bytes: &bytes[..count], at_end })?;
                let now = self.now();
                let reading = self.readings.get_mut(&key).expect("read just now");
                let mut lines = Vec::new();
                reading.took(&bytes[..count], self.tail.progress(key));
                reading.lines.push(now, &bytes[..count], &mut lines);
                self.buffer = bytes;
                self.hand_on_of(key, lines)?;
                Ok(true)
            }
        }
    }

    fn expire_lines(&mut self) -> Result<(), Gone> {
        let now = self.now();
        let keys: Vec<FileKey> = self.readings.keys().copied().collect();
        for key in keys {
            let mut lines = Vec::new();
            self.readings.get_mut(&key).expect("listed").lines.expire(now, &mut lines);
            self.hand_on_of(key, lines)?;
        }
        Ok(())
    }

    /// With `--once`, records of several lines that wait for one more wait no longer.
    fn hand_on_what_is_held(&mut self) -> Result<(), Gone> {
        let keys: Vec<FileKey> = self.readings.keys().copied().collect();
        for key in keys {
            let mut lines = Vec::new();
            self.readings.get_mut(&key).expect("listed").lines.expire(Duration::MAX, &mut lines);
            self.hand_on_of(key, lines)?;
        }
        Ok(())
    }

    fn hand_on_of(&mut self, key: FileKey, lines: Vec<Line>) -> Result<(), Gone> {
        match self.readings.get(&key) {
            Some(reading) => self.hand_on(key, reading, lines),
            None => Ok(()),
        }
    }

    fn hand_on(&self, key: FileKey, reading: &Reading, lines: Vec<Line>) -> Result<(), Gone> {
        if lines.is_empty() {
            return Ok(());
        }
        let time = wall_clock();
        add(&self.status.records_read, lines.len() as u64);
        add(&self.status.bytes_read, lines.iter().map(|line| line.end - line.start).sum());
        let item = |line: Line| {
            let origin = Origin::File(FilePosition {
                key,
                meta: Arc::clone(&reading.meta),
                head: reading.head.clone(),
                end: line.end,
                mark: line.mark,
            });
            let piece = line.piece.then(|| ("piece", Bytes::from_static(b"1")));
            reading.stamp.item(line.text, line.start, time, piece, origin)
        };
        let parcel = Parcel::Items(lines.into_iter().map(item).collect());
        self.parcels.blocking_send(parcel).map_err(|_| Gone)
    }

    fn look_around(&mut self) -> Result<(), Gone> {
        let neighbours = self.tail.wants_neighbours();
        let sightings = self.look(neighbours);
        self.step(Event::Looked { sightings, neighbours })?;
        if neighbours || !self.tail.wants_neighbours() {
            return Ok(());
        }
        let sightings = self.look(true);
        self.step(Event::Looked { sightings, neighbours: true })
    }

    /// What the patterns match, and the neighbours if they are of interest.
    fn look(&self, neighbours: bool) -> Vec<Sighting> {
        let mut sightings = BTreeMap::new();
        for input in &self.inputs {
            let files = &self.config.files[input.place];
            for pattern in &files.paths {
                for path in glob::glob(pattern).into_iter().flatten().flatten() {
                    let Some(text) = path.to_str() else { continue };
                    let left_out = COMPRESSED.iter().any(|ending| text.ends_with(ending))
                        || input.exclude.iter().any(|exclude| exclude.matches(text));
                    if !left_out && let Some(seen) = sighting(&path, text, true, files.from == Begin::End) {
                        sightings.entry(text.to_owned()).or_insert(seen);
                    }
                }
            }
        }
        if neighbours {
            self.look_at_neighbours(&mut sightings);
        }
        // One file under two names is one file.
        let mut inodes = BTreeSet::new();
        let mut all: Vec<Sighting> = sightings.into_values().collect();
        all.sort_by_key(|seen| !seen.matched);
        all.retain(|seen| inodes.insert(seen.inode));
        all
    }

    fn look_at_neighbours(&self, sightings: &mut BTreeMap<String, Sighting>) {
        let mut directories: BTreeMap<PathBuf, Vec<&str>> = BTreeMap::new();
        for path in self.tail.paths() {
            let parent = Path::new(path).parent().map(Path::to_owned);
            let elsewhere = self.config.files.iter().flat_map(|files| files.rotated_to.iter().cloned());
            for directory in parent.into_iter().chain(elsewhere) {
                directories.entry(directory).or_default().push(path);
            }
        }
        for (directory, paths) in directories {
            let shown = if directory.as_os_str().is_empty() { Path::new(".") } else { &directory };
            for entry in std::fs::read_dir(shown).into_iter().flatten().flatten() {
                let path = directory.join(entry.file_name());
                let Some(text) = path.to_str() else { continue };
                if !sightings.contains_key(text)
                    && paths.iter().any(|watched| is_rotated(watched, text))
                    && let Some(seen) = sighting(&path, text, false, false)
                {
                    sightings.insert(text.to_owned(), seen);
                }
            }
        }
    }
}

/// Nobody takes parcels any more.
struct Gone;

impl Input {
    fn is_for(&self, path: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(path))
    }
}

impl Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Found> {
        match &mut self.source {
            None => Ok(Found::AtEnd),
            Some(Source::Packed(decoder)) => match decoder.read(buffer) {
                Ok(0) => Ok(Found::Ended),
                Ok(count) => Ok(Found::Bytes(count)),
                // Whoever compresses it may not be done.
                Err(_) => Ok(Found::Broken),
            },
            Some(Source::Plain(file)) => {
                let metadata = file.metadata()?;
                if metadata.len() < self.position {
                    return Ok(Found::Changed);
                }
                let mtime = mtime_of(&metadata);
                if mtime == self.mtime && metadata.len() == self.position {
                    return Ok(Found::AtEnd);
                }
                let before = self.mark.len();
                let mut seen = vec![0; before];
                file.read_exact_at(&mut seen, self.position - before as u64)?;
                if seen != self.mark || !begins_as_known(file, self.position, &self.head)? {
                    return Ok(Found::Changed);
                }
                self.mtime = mtime;
                self.meta.mtime.store(mtime, Ordering::Relaxed);
                match file.read_at(buffer, self.position)? {
                    0 => Ok(Found::AtEnd),
                    count => Ok(Found::Bytes(count)),
                }
            }
        }
    }

    fn took(&mut self, bytes: &[u8], progress: Option<&Progress>) {
        self.position += bytes.len() as u64;
        if let Some(progress) = progress {
            self.mark.clone_from(&progress.mark);
            if self.head.len() != progress.head.len() {
                self.head = progress.head.clone().into();
            }
        }
    }
}
