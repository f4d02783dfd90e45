//! The tail against a file system that rotates in every way while the agent looks, reads, and is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::super::lines::{Cutting, Line, Lines};
use super::super::sighting::HEAD_LIMIT;
use super::*;

const LOG: &str = "/var/log/app.log";

/// Names, inodes and contents; an inode lives while it has a name or somebody has it open, then its number is free.
#[derive(Default)]
struct Disk {
    names: BTreeMap<String, u64>,
    contents: BTreeMap<u64, Vec<u8>>,
    mtimes: BTreeMap<u64, u64>,
    clock: u64,
    writer: Option<u64>,
    written: u64,
    banner: bool,
}

impl Disk {
    fn new_inode(&mut self) -> u64 {
        let ino = (1..).find(|ino| !self.contents.contains_key(ino)).expect("there are many");
        self.contents.insert(ino, Vec::new());
        self.clock += 1;
        self.mtimes.insert(ino, self.clock);
        ino
    }

    fn collect(&mut self, open: &BTreeSet<u64>) {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        let writer = self.writer;
        self.contents.retain(|ino, _| named.contains(ino) || open.contains(ino) || writer == Some(*ino));
    }

    fn reopen(&mut self) {
        let ino = match self.names.get(LOG) {
            Some(ino) => *ino,
            None => {
                let ino = self.new_inode();
                self.names.insert(LOG.to_owned(), ino);
                ino
            }
        };
        self.writer = Some(ino);
    }

    fn create(&mut self) {
        let ino = self.new_inode();
        self.names.insert(LOG.to_owned(), ino);
    }

    fn write(&mut self, lines: u64, whole: bool) {
        if self.writer.is_none() {
            self.reopen();
        }
        let ino = self.writer.expect("opened");
        self.clock += 1;
        self.mtimes.insert(ino, self.clock);
        let content = self.contents.get_mut(&ino).expect("open files live");
        if self.banner && content.is_empty() {
            content.extend_from_slice(b"# a line that all the files of this writer begin with\n");
        }
        for _ in 0..lines {
            let text = format!("{:06} {}\n", self.written, "x".repeat((self.written % 13) as usize));
            content.extend_from_slice(text.as_bytes());
            self.written += 1;
        }
        if !whole && lines > 0 {
            // The last line stands there without its end for now.
            content.pop();
            self.written -= 1;
            let begin = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            // As far as to what tells it from others: nothing can be known by what all lines begin with.
            content.truncate(begin + ((content.len() - begin) / 2).max(6));
        }
    }

    fn complete(&mut self) {
        let Some(ino) = self.writer else { return };
        let content = self.contents.get_mut(&ino).expect("open files live");
        if content.last().is_some_and(|byte| *byte != b'\n') {
            let begin = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            content.truncate(begin);
            let text = format!("{:06} {}\n", self.written, "x".repeat((self.written % 13) as usize));
            content.extend_from_slice(text.as_bytes());
            self.written += 1;
        }
    }

    /// `app.log.1` becomes `app.log.2`, and so on, the compressed ones too.
    fn shift(&mut self) {
        let numbered: Vec<(u32, String)> = self
            .names
            .keys()
            .filter_map(|name| {
                let rest = name.strip_prefix(LOG)?.strip_prefix('.')?;
                Some((rest.trim_end_matches(".gz").parse().ok()?, name.clone()))
            })
            .collect();
        for (number, name) in numbered.into_iter().rev().collect::<BTreeMap<_, _>>().into_iter().rev() {
            let ino = self.names.remove(&name).expect("listed");
            let ending = if name.ends_with(".gz") { ".gz" } else { "" };
            self.names.insert(format!("{LOG}.{}{ending}", number + 1), ino);
        }
    }

    fn rename(&mut self) {
        if let Some(ino) = self.names.get(LOG).copied() {
            self.complete_before_rotation(ino);
            self.shift();
            self.names.remove(LOG);
            self.names.insert(format!("{LOG}.1"), ino);
        }
    }

    fn complete_before_rotation(&mut self, ino: u64) {
        if self.writer == Some(ino) {
            self.complete();
        }
    }

    fn copy_truncate(&mut self) {
        let Some(ino) = self.names.get(LOG).copied() else { return };
        if self.writer != Some(ino) || self.contents[&ino].is_empty() {
            return;
        }
        self.complete();
        self.shift();
        let copy = self.new_inode();
        let content = std::mem::take(self.contents.get_mut(&ino).expect("named"));
        self.contents.insert(copy, content);
        self.mtimes.insert(copy, self.mtimes[&ino]);
        self.clock += 1;
        self.mtimes.insert(ino, self.clock);
        self.names.insert(format!("{LOG}.1"), copy);
    }

    fn compress(&mut self, open: &BTreeSet<u64>) {
        let plain = self.names.keys().find(|name| *name != LOG && !name.ends_with(".gz")).cloned();
        let Some(name) = plain else { return };
        let ino = self.names[&name];
        // Nobody compresses what is still being written to.
        if self.writer == Some(ino) {
            return;
        }
        let packed = self.new_inode();
        self.contents.insert(packed, self.contents[&ino].clone());
        self.mtimes.insert(packed, self.mtimes[&ino]);
        self.names.remove(&name);
        self.names.insert(format!("{name}.gz"), packed);
        self.collect(open);
    }

    fn sightings(&self, all: bool, wide: bool) -> Vec<Sighting> {
        let seen = self.names.iter().filter_map(|(name, ino)| {
            let packed = name.ends_with(".gz");
            let matched = !packed && (name == LOG || wide);
            (matched || all).then(|| Sighting {
                path: name.clone(),
                inode: Inode { dev: 1, ino: *ino },
                len: if packed {
                    self.contents[ino].len() as u64 / 4 + 20
                } else {
                    self.contents[ino].len() as u64
                },
                mtime: self.mtimes[ino],
                packed,
                matched,
                from_end: false,
            })
        });
        seen.collect()
    }
}

struct Facts<'a> {
    disk: &'a Disk,
    open: &'a BTreeMap<FileKey, Reader>,
}

impl Contents for Facts<'_> {
    fn head(&mut self, at: &Sighting) -> Vec<u8> {
        let content = &self.disk.contents[&at.inode.ino];
        content[..content.len().min(HEAD_LIMIT)].to_vec()
    }

    fn head_of(&mut self, file: FileKey) -> (Vec<u8>, u64) {
        let Some(ino) = self.open.get(&file).and_then(|reader| reader.ino) else { return (Vec::new(), 0) };
        let content = &self.disk.contents[&ino];
        (content[..content.len().min(HEAD_LIMIT)].to_vec(), self.disk.mtimes[&ino])
    }

    fn is_whole(&mut self, _: &Sighting) -> bool {
        true
    }

    fn intact(&mut self, file: FileKey, progress: &Progress) -> bool {
        let Some(ino) = self.open.get(&file).and_then(|reader| reader.ino) else { return false };
        let content = &self.disk.contents[&ino];
        let before = content.get(..progress.position as usize);
        content.starts_with(&progress.head) && before.is_some_and(|before| before.ends_with(&progress.mark))
    }

    fn has(&mut self, at: &Sighting, position: u64, mark: &[u8]) -> bool {
        let content = &self.disk.contents[&at.inode.ino];
        content.get(..position as usize).is_some_and(|before| before.ends_with(mark))
    }

    fn same(&mut self, at: &Sighting, file: FileKey) -> bool {
        let Some(ours) = self.open.get(&file).and_then(|reader| reader.ino) else { return false };
        let (a, b) = (&self.disk.contents[&at.inode.ino], &self.disk.contents[&ours]);
        let end = a.len().min(b.len());
        a[..end] == b[..end]
    }
}

struct Reader {
    ino: Option<u64>,
    packed: bool,
    position: u64,
    lines: Lines,
    path: String,
    inode: Inode,
}

/// The shell, without a disk.
struct Agent {
    tail: Tail,
    open: BTreeMap<FileKey, Reader>,
    /// What has arrived, by file.
    arrived: BTreeMap<FileKey, Remembered>,
    done: Vec<Remembered>,
    delivered: Vec<u64>,
    wide: bool,
}

const SETTINGS: Settings =
    Settings { rotated_wait: Duration::from_secs(10), missing_wait: Duration::from_secs(5) };

fn lines_from(position: u64) -> Lines {
    Lines::new(Cutting { pattern: None, wait: Duration::ZERO, limit: 1_000 }, position)
}

impl Agent {
    fn start(now: Duration, saved: Vec<Remembered>, wide: bool) -> Self {
        let (tail, adopted) = Tail::new(SETTINGS, now, saved.clone());
        let done = saved.into_iter().filter(|file| file.done).collect();
        let arrived = adopted.into_iter().collect();
        Self { tail, open: BTreeMap::new(), arrived, done, delivered: Vec::new(), wide }
    }

    fn saved(&self) -> Vec<Remembered> {
        self.done.iter().chain(self.arrived.values()).cloned().collect()
    }

    fn inodes(&self) -> BTreeSet<u64> {
        self.open.values().filter_map(|reader| reader.ino).collect()
    }

    fn step(&mut self, now: Duration, disk: &Disk, event: Event<'_>) {
        let mut actions = Vec::new();
        self.tail.step(now, event, &mut Facts { disk, open: &self.open }, &mut actions);
        for action in actions {
            match action {
                Action::Open { file, named, at, position } => {
                    let lines = self.open.remove(&file).map_or_else(|| lines_from(position), |old| old.lines);
                    let (ino, packed) = (Some(at.inode.ino), at.packed);
                    let reader = Reader { ino, packed, position, lines, path: named, inode: at.inode };
                    self.open.insert(file, reader);
                }
                Action::Suspend(file) => self.open.get_mut(&file).expect("it was open").ino = None,
                Action::Close(file) | Action::Lost(file) => {
                    if let Some(mut reader) = self.open.remove(&file) {
                        let mut out = Vec::new();
                        reader.lines.finish(&mut out);
                        self.take(file, &reader.path, reader.inode, &out);
                    }
                    if let Some(mut known) = self.arrived.remove(&file) {
                        known.done = true;
                        self.done.push(known);
                    }
                }
            }
        }
    }

    fn take(&mut self, key: FileKey, path: &str, inode: Inode, lines: &[Line]) {
        for line in lines {
            if line.text.first() != Some(&b'#') {
                let number = std::str::from_utf8(&line.text[..6]).expect("text").parse();
                self.delivered.push(number.expect("a line's number"));
            }
            let head = self.tail.progress(key).map(|progress| progress.head.clone());
            let known = self.arrived.entry(key).or_insert_with(|| Remembered {
                path: path.to_owned(),
                inode,
                mtime: 0,
                progress: Progress::default(),
                done: false,
            });
            known.inode = inode;
            known.progress.position = line.end;
            known.progress.mark = line.mark.to_vec();
            if let Some(head) = head {
                known.progress.head = head;
            }
        }
    }

    fn look(&mut self, now: Duration, disk: &Disk) {
        let neighbours = self.tail.wants_neighbours();
        self.look_once(now, disk, neighbours);
        if !neighbours && self.tail.wants_neighbours() {
            self.look_once(now, disk, true);
        }
    }

    fn look_once(&mut self, now: Duration, disk: &Disk, neighbours: bool) {
        let sightings = disk.sightings(neighbours, self.wide);
        self.step(now, disk, Event::Looked { sightings, neighbours });
    }

    fn read(&mut self, now: Duration, disk: &Disk, chunk: usize) {
        for _ in 0..1_000 {
            let readable = self.tail.readable();
            let mut any = false;
            for key in &readable {
                any |= self.read_one(now, disk, *key, chunk);
            }
            if !any && readable == self.tail.readable() {
                return;
            }
        }
        panic!("reading doesn't come to an end");
    }

    fn read_one(&mut self, now: Duration, disk: &Disk, key: FileKey, chunk: usize) -> bool {
        let Some(reader) = self.open.get_mut(&key) else { return false };
        let content = &disk.contents[&reader.ino.expect("what is readable is open")];
        let Progress { head, mark, .. } = self.tail.progress(key).expect("known");
        let at = reader.position as usize;
        let other_head = at < head.len() && !content.starts_with(head);
        if content.len() < at || other_head || !content[..at].ends_with(mark) {
            self.step(now, disk, Event::Changed(key));
            return true;
        }
        let end = content.len().min(at + chunk);
        let bytes = &content[at..end];
        if bytes.is_empty() && reader.packed {
            self.step(now, disk, Event::Ended(key));
            return true;
        }
        reader.position = end as u64;
        let mut out = Vec::new();
        reader.lines.push(now, bytes, &mut out);
        let (path, inode) = (reader.path.clone(), reader.inode);
        let at_end = end == content.len();
        self.step(now, disk, Event::Read { file: key, bytes, at_end });
        self.take(key, &path, inode, &out);
        if let Some(known) = self.arrived.get_mut(&key) {
            known.mtime = known.mtime.max(disk.mtimes[&inode.ino]);
        }
        !bytes.is_empty()
    }
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Write(u64),
    WriteHalf,
    Complete,
    Rename,
    Reopen,
    CopyTruncate,
    Compress,
    Look,
    Read(usize),
    Save,
    Kill,
    Wait(u64),
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        5 => (1u64..6).prop_map(Move::Write),
        1 => Just(Move::WriteHalf),
        2 => Just(Move::Complete),
        2 => Just(Move::Rename),
        2 => Just(Move::Reopen),
        2 => Just(Move::CopyTruncate),
        2 => Just(Move::Compress),
        5 => Just(Move::Look),
        5 => (8usize..400).prop_map(Move::Read),
        2 => Just(Move::Save),
        1 => Just(Move::Kill),
        1 => (0u64..12).prop_map(Move::Wait),
    ]
}

fn play(moves: &[Move], wide: bool, create: bool) -> (Vec<u64>, u64, bool) {
    let mut disk = Disk { banner: create, ..Disk::default() };
    let mut now = Duration::ZERO;
    let mut agent = Agent::start(now, Vec::new(), wide);
    // What rotates before anybody has ever looked is of no interest.
    disk.write(3, true);
    agent.look(now, &disk);
    agent.read(now, &disk, 1_000);
    let (mut saved, mut killed, mut delivered) = (agent.saved(), false, Vec::new());
    // Two copies within one pass of the agent leave nothing by which what was cut first could be told.
    let (mut copied, mut looked) = (false, false);
    // Without a new file at the path an old one may not be forgotten meanwhile.
    let mut patience = if create { 1_000 } else { 4 };
    for step in moves {
        now += Duration::from_millis(10);
        match *step {
            Move::Write(lines) => {
                disk.complete();
                disk.write(lines, true);
            }
            Move::WriteHalf => {
                disk.complete();
                disk.write(1, false);
            }
            Move::Complete => disk.complete(),
            Move::Rename => {
                disk.rename();
                if create {
                    disk.create();
                }
            }
            Move::Reopen => {
                disk.complete();
                disk.reopen();
            }
            Move::CopyTruncate if !copied => {
                disk.copy_truncate();
                (copied, looked) = (true, false);
            }
            Move::CopyTruncate => {}
            Move::Compress => disk.compress(&agent.inodes()),
            Move::Look => {
                agent.look(now, &disk);
                looked = true;
            }
            Move::Read(chunk) => {
                agent.read(now, &disk, chunk);
                copied = copied && !looked;
            }
            Move::Save => saved = agent.saved(),
            Move::Kill => {
                delivered.append(&mut agent.delivered);
                agent = Agent::start(now, saved.clone(), wide);
                killed = true;
            }
            Move::Wait(seconds) => {
                // No writer keeps a file that has left its path for so long.
                disk.complete();
                disk.reopen();
                let seconds = seconds.min(patience);
                patience -= seconds;
                now += Duration::from_secs(seconds);
            }
        }
        disk.collect(&agent.inodes());
    }
    disk.complete();
    for _ in 0..40 {
        now += Duration::from_secs(1);
        agent.look(now, &disk);
        agent.read(now, &disk, 1_000);
    }
    delivered.append(&mut agent.delivered);
    (delivered, disk.written, killed)
}

fn check(moves: &[Move], wide: bool, create: bool) -> Result<(), TestCaseError> {
    let (delivered, written, killed) = play(moves, wide, create);
    let mut firsts = Vec::new();
    let mut seen = BTreeSet::new();
    for number in &delivered {
        if seen.insert(*number) {
            firsts.push(*number);
        }
    }
    let all: Vec<u64> = (0..written).collect();
    let mut sorted = firsts.clone();
    sorted.sort_unstable();
    prop_assert_eq!(&sorted, &all, "every line arrives");
    prop_assert_eq!(&firsts, &all, "in order");
    if !killed {
        prop_assert_eq!(&delivered, &all, "once, unless the agent was killed");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_line_arrives_in_order_whatever_rotation_does(
        moves in proptest::collection::vec(any_move(), 1..60),
        wide in any::<bool>(),
        create in any::<bool>(),
    ) {
        check(&moves, wide, create)?;
    }
}

#[test]
fn names_of_rotated_files_are_told_from_others() {
    for other in
        ["app.log.1", "app.log.12.gz", "app.log-20261125", "app-20261125.log", "app-2026-11-25.log.gz"]
    {
        assert!(is_rotated("/a/app.log", &format!("/b/{other}")), "{other}");
    }
    for other in ["app.log", "app-errors.log", "app.log.bak", "app.log2", "other.log.1", "app.logx.1"] {
        assert!(!is_rotated("/a/app.log", &format!("/a/{other}")), "{other}");
    }
}
