//! What to read next, of which file, from where (P): the tail's decisions, from facts about names, inodes, lengths and
//! contents.
//!
//! A log file is known by what it holds and not by its name: the first bytes (*head*) and the last bytes that were
//! read (*mark*) tell whether some file goes on where reading stopped. That covers what rotation does: a rename, a
//! copy followed by a truncation, a compressed copy, an inode that was given out again, and all of it while nobody
//! looked. Files of one path are read in the order in which they were written: what rotated first, then what follows.
//!
//! The shell (`files`) looks at directories, opens, reads, and says what it saw; [`Tail`] says what to open and when
//! to let go. Facts that cost a read are asked for through [`Contents`]. Called by `files`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::sighting::{Contents, FileKey, Inode, Progress, Remembered, Sighting, is_rotated};

/// Finished files that are remembered, so that a late copy of one isn't taken for something new.
const DONE_LIMIT: usize = 1_024;

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// The directories were looked at.
    Looked {
        /// What is there.
        sightings: Vec<Sighting>,
        /// Whether neighbours are among it.
        neighbours: bool,
    },
    /// Bytes were read, at the file's position.
    Read {
        /// Of which file.
        file: FileKey,
        /// What.
        bytes: &'a [u8],
        /// Whether that was the end, as of now.
        at_end: bool,
    },
    /// The file is shorter than its position, or holds something else before it.
    Changed(FileKey),
    /// A compressed file was read to its true end.
    Ended(FileKey),
    /// It couldn't be opened, or broke off.
    Unreadable(FileKey),
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open `path` and read it from `position`.
    Open {
        /// The file.
        file: FileKey,
        /// The path that it's reported under.
        named: String,
        /// Where it is.
        at: Sighting,
        /// From where.
        position: u64,
    },
    /// The descriptor is of no use any more; what was read and not handed on waits for the rest.
    Suspend(FileKey),
    /// Nothing more will come: hand on what is left, and let go.
    Close(FileKey),
    /// The rest of it is nowhere to be found: as `Close`, and to be counted.
    Lost(FileKey),
}

/// How long the tail waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A file that has left its path is let go after nobody wrote to it for so long.
    pub rotated_wait: Duration,
    /// The rest of a file that has gone is looked for so long.
    pub missing_wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At its path.
    Live,
    /// Open, and no longer at its path.
    Leaving,
    /// Not open: whoever goes on where it stopped is its continuation.
    Missing { since: Duration },
}

#[derive(Clone, Debug)]
struct File {
    path: String,
    inode: Inode,
    /// When it was last written, as of the last reading.
    mtime: u64,
    /// The same as of the last look: by then it may hold something else.
    seen_mtime: u64,
    progress: Progress,
    place: Place,
    packed: bool,
    /// It was empty, and isn't any more: what it held first may have been cut off already.
    awakened: bool,
    at_end: bool,
    /// When `at_end` was seen.
    looked_at: Duration,
    quiet_since: Duration,
}

#[derive(Clone, Debug)]
struct Done {
    path: String,
    mtime: u64,
    progress: Progress,
}

/// Every file that is read.
#[derive(Debug)]
pub struct Tail {
    settings: Settings,
    files: BTreeMap<FileKey, File>,
    /// Files by path, in the order in which they are read.
    order: BTreeMap<String, VecDeque<FileKey>>,
    done: VecDeque<Done>,
    /// Files that are of no interest at this length.
    settled: BTreeMap<Inode, u64>,
    /// Compressed files that weren't complete at this length.
    partial: BTreeMap<Inode, u64>,
    next_key: u64,
    /// Paths of files that were finished lately, and until when their neighbours stay of interest.
    lingering: BTreeMap<String, Duration>,
    /// Nothing was known before, and nobody has looked yet.
    fresh: bool,
    /// Nobody has looked yet.
    starting: bool,
}

impl Tail {
    /// A tail that goes on from what is remembered; also, under which key it goes on with each unfinished file.
    pub fn new(
        settings: Settings,
        now: Duration,
        mut remembered: Vec<Remembered>,
    ) -> (Self, Vec<(FileKey, Remembered)>) {
        let mut tail = Self {
            settings,
            files: BTreeMap::new(),
            order: BTreeMap::new(),
            done: VecDeque::new(),
            settled: BTreeMap::new(),
            partial: BTreeMap::new(),
            next_key: 0,
            lingering: BTreeMap::new(),
            fresh: remembered.is_empty(),
            starting: true,
        };
        let mut adopted = Vec::new();
        remembered.sort_by_key(|known| known.mtime);
        for known in remembered {
            if known.done {
                tail.note_done(Done { path: known.path, mtime: known.mtime, progress: known.progress });
                continue;
            }
            let file = File {
                path: known.path.clone(),
                inode: known.inode,
                mtime: known.mtime,
                seen_mtime: known.mtime,
                progress: known.progress.clone(),
                place: Place::Missing { since: now },
                packed: false,
                awakened: false,
                at_end: false,
                looked_at: now,
                quiet_since: now,
            };
            adopted.push((tail.add(file), known));
        }
        (tail, adopted)
    }

    /// Files that may be read now, each path's in order: nothing is read before what was written earlier has been.
    pub fn readable(&self) -> Vec<FileKey> {
        let mut keys = Vec::new();
        for queue in self.order.values() {
            for key in queue {
                let file = &self.files[key];
                if matches!(file.place, Place::Missing { .. }) {
                    break;
                }
                // What was empty is looked at before it is read.
                if !file.progress.head.is_empty() {
                    keys.push(*key);
                }
                if !file.at_end {
                    break;
                }
            }
        }
        keys
    }

    /// Whether the neighbours of watched files are of interest: something has left its path, or is missing, or may
    /// have while nobody looked.
    pub fn wants_neighbours(&self) -> bool {
        self.starting
            || !self.lingering.is_empty()
            || self.files.values().any(|file| file.place != Place::Live || file.awakened)
    }

    /// Whether everything that can be found has been read to its end.
    pub fn is_caught_up(&self) -> bool {
        self.files.values().all(|file| file.at_end && !matches!(file.place, Place::Missing { .. }))
    }

    /// How far a file was read.
    pub fn progress(&self, file: FileKey) -> Option<&Progress> {
        self.files.get(&file).map(|file| &file.progress)
    }

    /// Paths whose neighbours are asked for.
    pub fn paths(&self) -> BTreeSet<&str> {
        let done = self.done.iter().filter(|_| self.starting).map(|done| done.path.as_str());
        let lingering = self.lingering.keys().map(String::as_str);
        self.order.keys().map(String::as_str).chain(done).chain(lingering).collect()
    }

    /// How many files are open.
    pub fn open_files(&self) -> usize {
        self.files.values().filter(|file| !matches!(file.place, Place::Missing { .. })).count()
    }

    /// Takes an event in.
    pub fn step(
        &mut self,
        now: Duration,
        event: Event<'_>,
        contents: &mut dyn Contents,
        actions: &mut Vec<Action>,
    ) {
        match event {
            Event::Looked { sightings, neighbours } => {
                self.notice(now, &sightings, actions);
                // What has left its path just now may have been followed by more than one file.
                if neighbours || !self.wants_neighbours() {
                    self.look(now, &sightings, contents, actions);
                }
            }
            Event::Read { file, bytes, at_end } => self.read(now, file, bytes, at_end),
            Event::Changed(file) => self.changed(now, file, actions),
            Event::Ended(file) => self.finish(now, file, Action::Close(file), actions),
            Event::Unreadable(file) => {
                if let Some(file) = self.files.get_mut(&file) {
                    file.place = Place::Missing { since: now };
                    file.at_end = false;
                }
            }
        }
    }

    fn add(&mut self, file: File) -> FileKey {
        let key = FileKey(self.next_key);
        self.next_key += 1;
        let queue = self.order.entry(file.path.clone()).or_default();
        // What is at the path now is the newest of all; of the others the time of the last write says.
        let files = &self.files;
        let later = queue.iter().position(|other| {
            let other = &files[other];
            file.place != Place::Live
                && (other.place == Place::Live
                    || (other.progress.position == 0 && other.seen_mtime > file.mtime))
        });
        queue.insert(later.unwrap_or(queue.len()), key);
        let path = file.path.clone();
        self.files.insert(key, file);
        self.reopen_question(&path);
        key
    }

    /// Something new may be read at `path`: whether what was there before has grown since it was read matters again.
    fn reopen_question(&mut self, path: &str) {
        for key in self.order.get(path).into_iter().flatten() {
            if let Some(file) = self.files.get_mut(key).filter(|file| !file.progress.head.is_empty()) {
                file.at_end = false;
            }
        }
    }

    fn read(&mut self, now: Duration, key: FileKey, bytes: &[u8], at_end: bool) {
        let Some(file) = self.files.get_mut(&key) else { return };
        file.at_end = at_end && !file.packed;
        file.looked_at = now;
        file.mtime = file.mtime.max(file.seen_mtime);
        if bytes.is_empty() {
            return;
        }
        file.quiet_since = now;
        file.progress.advance(bytes);
    }

    /// The file was cut: what it held is looked for in a copy, what it holds now is something new.
    fn changed(&mut self, now: Duration, key: FileKey, actions: &mut Vec<Action>) {
        let Some(file) = self.files.get_mut(&key) else { return };
        if matches!(file.place, Place::Missing { .. }) {
            return;
        }
        file.place = Place::Missing { since: now };
        file.at_end = false;
        file.seen_mtime = file.mtime;
        actions.push(Action::Suspend(key));
        // Copies that were of no interest while the file itself was there may be what is missing now.
        self.settled.clear();
    }

    /// Where the open files are now.
    fn notice(&mut self, now: Duration, sightings: &[Sighting], actions: &mut Vec<Action>) {
        let at_path: BTreeMap<&str, &Sighting> =
            sightings.iter().filter(|seen| seen.matched).map(|seen| (seen.path.as_str(), seen)).collect();
        let known: BTreeMap<Inode, &Sighting> = sightings.iter().map(|seen| (seen.inode, seen)).collect();
        let mut changed = Vec::new();
        for (key, file) in &mut self.files {
            if matches!(file.place, Place::Missing { .. }) {
                continue;
            }
            if let Some(seen) = known.get(&file.inode) {
                file.awakened |= file.progress.head.is_empty() && seen.len > 0;
                file.seen_mtime = seen.mtime;
            }
            match at_path.get(file.path.as_str()).filter(|seen| seen.inode == file.inode) {
                Some(seen) if seen.len < file.progress.position && !file.packed => changed.push(*key),
                Some(_) => file.place = Place::Live,
                None if file.place == Place::Live => {
                    file.place = Place::Leaving;
                    file.at_end = false;
                    file.quiet_since = now;
                }
                None => {}
            }
        }
        for key in changed {
            self.changed(now, key, actions);
        }
    }

    /// What all the others are.
    fn look(
        &mut self,
        now: Duration,
        sightings: &[Sighting],
        contents: &mut dyn Contents,
        actions: &mut Vec<Action>,
    ) {
        // What was empty when it was opened is to be known again all the same.
        let mut filled = Vec::new();
        for (key, file) in &mut self.files {
            if file.progress.head.is_empty() && !matches!(file.place, Place::Missing { .. }) {
                (file.progress.head, file.seen_mtime) = contents.head_of(*key);
                file.at_end = file.progress.head.is_empty();
                filled.extend((!file.at_end).then(|| file.path.clone()));
            }
        }
        filled.iter().for_each(|path| self.reopen_question(path));
        let is_unknown = |tail: &Self, seen: &Sighting| {
            tail.settled.get(&seen.inode) != Some(&seen.len) && !tail.open_inodes().contains(&seen.inode)
        };
        if sightings.iter().any(|seen| is_unknown(self, seen)) {
            // A copy is told from something new by what the file itself holds: that must still be what was read.
            let open = self.files.iter().filter(|(_, file)| !matches!(file.place, Place::Missing { .. }));
            let open: Vec<(FileKey, Progress)> =
                open.map(|(key, file)| (*key, file.progress.clone())).collect();
            for (key, progress) in open {
                if !contents.intact(key, &progress) {
                    self.changed(now, key, actions);
                }
            }
        }
        let mut unknown: Vec<&Sighting> =
            sightings.iter().filter(|seen| !self.open_inodes().contains(&seen.inode)).collect();
        unknown.sort_by_key(|seen| (seen.mtime, seen.packed));
        for seen in unknown {
            if is_unknown(self, seen) {
                self.judge(now, seen, contents, actions);
            }
        }
        (self.fresh, self.starting) = (false, false);
        self.files.values_mut().for_each(|file| file.awakened = false);
        let present: BTreeSet<Inode> = sightings.iter().map(|seen| seen.inode).collect();
        self.settled.retain(|inode, _| present.contains(inode));
        self.partial.retain(|inode, _| present.contains(inode));
        self.lingering.retain(|_, until| now < *until);
        self.expire(now, actions);
    }

    fn open_inodes(&self) -> BTreeSet<Inode> {
        let open = self.files.values().filter(|file| !matches!(file.place, Place::Missing { .. }));
        open.map(|file| file.inode).collect()
    }

    /// What an unknown file is: the rest of one that is missing, a copy of one that is there, or new.
    fn judge(
        &mut self,
        now: Duration,
        seen: &Sighting,
        contents: &mut dyn Contents,
        actions: &mut Vec<Action>,
    ) {
        // Nothing can be said about an empty file, but that nobody makes a copy at the path itself.
        let own_path = seen.matched && !self.files.values().any(|file| is_rotated(&file.path, &seen.path));
        if seen.len == 0 && !own_path {
            return;
        }
        let head = contents.head(seen);
        if head.is_empty() && seen.len > 0 {
            self.settled.insert(seen.inode, seen.len);
            return;
        }
        if seen.packed && !self.is_whole(seen, contents) {
            return;
        }
        if self.is_copy_of_done(seen, &head, contents) {
            self.settled.insert(seen.inode, seen.len);
            return;
        }
        if let Some(key) = self.continued_by(seen, &head, contents) {
            let file = self.files.get_mut(&key).expect("found just now");
            file.inode = seen.inode;
            file.packed = seen.packed;
            file.seen_mtime = seen.mtime;
            file.place = if seen.matched && seen.path == file.path { Place::Live } else { Place::Leaving };
            file.at_end = false;
            file.quiet_since = now;
            let (named, position) = (file.path.clone(), file.progress.position);
            actions.push(Action::Open { file: key, named, at: seen.clone(), position });
            return;
        }
        if self.is_copy(seen, &head, contents) {
            self.settled.insert(seen.inode, seen.len);
            return;
        }
        let at_own_path = seen.matched && !seen.packed;
        let rotated = self.rotated_unseen(seen);
        let at_own_path = at_own_path && rotated.is_none();
        let Some(path) = rotated.or_else(|| at_own_path.then(|| seen.path.clone())) else {
            self.settled.insert(seen.inode, seen.len);
            return;
        };
        let skip = self.fresh && at_own_path && seen.from_end;
        let file = File {
            path: path.clone(),
            inode: seen.inode,
            mtime: seen.mtime,
            seen_mtime: seen.mtime,
            progress: Progress { position: if skip { seen.len } else { 0 }, head, mark: Vec::new() },
            place: if at_own_path { Place::Live } else { Place::Leaving },
            packed: seen.packed,
            awakened: false,
            at_end: seen.len == 0,
            looked_at: now,
            quiet_since: now,
        };
        let position = file.progress.position;
        let key = self.add(file);
        actions.push(Action::Open { file: key, named: path, at: seen.clone(), position });
    }

    /// Whether a compressed file is complete; asked again only when it has stopped growing.
    fn is_whole(&mut self, seen: &Sighting, contents: &mut dyn Contents) -> bool {
        let grows = self.partial.get(&seen.inode).is_some_and(|len| *len != seen.len);
        if !grows && contents.is_whole(seen) {
            self.partial.remove(&seen.inode);
            return true;
        }
        self.partial.insert(seen.inode, seen.len);
        false
    }

    /// A missing file that `seen` goes on with.
    fn continued_by(&self, seen: &Sighting, head: &[u8], contents: &mut dyn Contents) -> Option<FileKey> {
        let missing = self.files.iter().filter(|(_, file)| matches!(file.place, Place::Missing { .. }));
        let mut candidates: Vec<(&FileKey, &File)> = missing
            .filter(|(_, file)| {
                file.inode == seen.inode || seen.path == file.path || is_rotated(&file.path, &seen.path)
            })
            .collect();
        candidates.sort_by_key(|(_, file)| file.inode != seen.inode);
        let found = candidates.into_iter().find(|(_, file)| {
            let progress = &file.progress;
            // Of a file that nothing was read of, the inode alone is known.
            if progress.position == 0 && progress.head.is_empty() {
                return file.inode == seen.inode;
            }
            progress.goes_on_in(seen, head, contents)
        });
        found.map(|(key, _)| *key)
    }

    /// Whether `seen` holds nothing but what was read of a file that is finished.
    fn is_copy_of_done(&self, seen: &Sighting, head: &[u8], contents: &mut dyn Contents) -> bool {
        self.done.iter().any(|done| {
            seen.path != done.path
                && is_rotated(&done.path, &seen.path)
                && (seen.packed || seen.len == done.progress.position)
                && done.progress.position > 0
                && done.progress.goes_on_in(seen, head, contents)
        })
    }

    /// Whether `seen` holds nothing but what is being read elsewhere.
    fn is_copy(&self, seen: &Sighting, head: &[u8], contents: &mut dyn Contents) -> bool {
        self.files.iter().any(|(key, file)| {
            if matches!(file.place, Place::Missing { .. }) || !is_rotated(&file.path, &seen.path) {
                return false;
            }
            let shared = head.len().min(file.progress.head.len());
            shared > 0 && head[..shared] == file.progress.head[..shared] && contents.same(seen, *key)
        })
    }

    /// The path that `seen` was rotated away from before anybody saw it there: it is newer than a file that left the
    /// same path.
    fn rotated_unseen(&self, seen: &Sighting) -> Option<String> {
        let left = self.files.values().filter(|file| file.place != Place::Live || file.awakened);
        let mut newer = left.filter(|file| is_rotated(&file.path, &seen.path) && seen.mtime >= file.mtime);
        if let Some(file) = newer.next() {
            return Some(file.path.clone());
        }
        let done = self.done.iter().filter(|done| is_rotated(&done.path, &seen.path));
        done.max_by_key(|done| done.mtime)
            .filter(|done| seen.mtime > done.mtime)
            .map(|done| done.path.clone())
    }

    fn expire(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let Settings { rotated_wait, missing_wait, .. } = self.settings;
        let mut ended = Vec::new();
        for (key, file) in &self.files {
            match file.place {
                Place::Missing { since } if now >= since + missing_wait => ended.push((*key, true)),
                Place::Leaving if file.progress.head.is_empty() && now >= file.quiet_since + rotated_wait => {
                    ended.push((*key, false));
                }
                Place::Leaving if file.at_end && file.looked_at >= file.quiet_since + rotated_wait => {
                    ended.push((*key, false));
                }
                _ => {}
            }
        }
        for (key, lost) in ended {
            let action = if lost { Action::Lost(key) } else { Action::Close(key) };
            self.finish(now, key, action, actions);
        }
    }

    fn finish(&mut self, now: Duration, key: FileKey, action: Action, actions: &mut Vec<Action>) {
        let Some(file) = self.files.remove(&key) else { return };
        if let Some(queue) = self.order.get_mut(&file.path) {
            queue.retain(|other| *other != key);
            if queue.is_empty() {
                self.order.remove(&file.path);
            }
        }
        self.lingering.insert(file.path.clone(), now + self.settings.rotated_wait);
        self.note_done(Done { path: file.path, mtime: file.mtime, progress: file.progress });
        actions.push(action);
    }

    fn note_done(&mut self, done: Done) {
        self.done.push_back(done);
        if self.done.len() > DONE_LIMIT {
            self.done.pop_front();
        }
    }
}

#[cfg(test)]
#[path = "tail_tests.rs"]
mod tests;
