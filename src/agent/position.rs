//! How far each input has arrived, kept in one file that is written aside, synced and renamed. Called by `pump`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::item::{FilePosition, Origin};
use super::sighting::{FileKey, Progress, Remembered};
use super::spool::Cursor;

const FILE: &str = "positions.json";
/// Finished files that are remembered.
const DONE_LIMIT: usize = 256;

/// What the file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Saved {
    /// Whether the agent that wrote it came to an orderly end: nothing was shipped that isn't counted here.
    clean: bool,
    files: Vec<Remembered>,
    journals: BTreeMap<String, String>,
    spool: Cursor,
}

/// The positions of everything that can be read twice.
#[derive(Debug)]
pub struct Positions {
    dir: PathBuf,
    files: BTreeMap<FileKey, Remembered>,
    done: Vec<Remembered>,
    journals: BTreeMap<String, String>,
    spool: Cursor,
    dirty: bool,
}

impl Positions {
    /// Reads what is there; also whether the last end was an orderly one.
    pub fn open(dir: &Path) -> io::Result<(Self, bool)> {
        let saved: Saved = match fs::read(dir.join(FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", dir.join(FILE).display()))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Saved { clean: true, ..Saved::default() }
            }
            Err(error) => return Err(error),
        };
        let positions = Self {
            dir: dir.to_owned(),
            files: BTreeMap::new(),
            done: saved.files,
            journals: saved.journals,
            spool: saved.spool,
            dirty: true,
        };
        Ok((positions, saved.clean))
    }

    /// What an earlier run knew of files.
    pub fn remembered(&self) -> Vec<Remembered> {
        self.done.clone()
    }

    /// What the tail calls the files that it goes on with.
    pub fn adopt(&mut self, unfinished: Vec<(FileKey, Remembered)>) {
        self.done.retain(|file| file.done);
        self.files.extend(unfinished);
    }

    /// The cursor of a journal.
    pub fn journal(&self, input: &str) -> Option<&str> {
        self.journals.get(input).map(String::as_str)
    }

    /// Up to where the spool's records have arrived.
    pub const fn spool(&self) -> Cursor {
        self.spool
    }

    /// Whether something has changed since it was saved.
    pub const fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// A record has arrived.
    pub fn arrived(&mut self, origin: Origin) {
        match origin {
            Origin::None => return,
            Origin::File(position) => self.file_arrived(position),
            Origin::Journal { input, cursor } => {
                self.journals.insert(input.to_string(), cursor.to_string());
            }
            Origin::Spool(cursor) => self.spool = self.spool.max(cursor),
        }
        self.dirty = true;
    }

    fn file_arrived(&mut self, position: FilePosition) {
        let FilePosition { key, meta, head, end, mark } = position;
        let mtime = meta.mtime.load(Ordering::Relaxed);
        if let Some(file) = self.files.get_mut(&key) {
            // What went to the spool arrived there before it arrives at the brokers.
            if file.progress.position > end {
                return;
            }
            file.mtime = mtime;
            file.inode = meta.inode;
            if file.progress.head.len() != head.len() {
                file.progress.head = head.to_vec();
            }
            file.progress.position = end;
            file.progress.mark.clear();
            file.progress.mark.extend_from_slice(&mark);
            return;
        }
        let progress = Progress { position: end, head: head.to_vec(), mark: mark.to_vec() };
        let (path, inode) = (meta.path.clone(), meta.inode);
        self.files.insert(key, Remembered { path, inode, mtime, progress, done: false });
    }

    /// Nothing more will come of a file, and all of it has arrived.
    pub fn finished(&mut self, key: FileKey, file: Remembered) {
        self.files.remove(&key);
        self.done.push(file);
        if self.done.len() > DONE_LIMIT {
            self.done.remove(0);
        }
        self.dirty = true;
    }

    /// Makes it durable; `clean` at an orderly end.
    pub fn save(&mut self, clean: bool) -> io::Result<()> {
        let files = self.done.iter().chain(self.files.values()).cloned().collect();
        let saved = Saved { clean, files, journals: self.journals.clone(), spool: self.spool };
        let (aside, path) = (self.dir.join("positions.json.new"), self.dir.join(FILE));
        let mut file = File::create(&aside)?;
        file.write_all(&serde_json::to_vec(&saved).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&aside, &path)?;
        File::open(&self.dir)?.sync_all()?;
        self.dirty = false;
        Ok(())
    }
}
