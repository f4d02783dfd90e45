//! A log directory's way to the disk: what joins the next write of the journal, what is synced instead, and the
//! thread that ticks. Called by `log` and `dir`.

use std::sync::Arc;
use std::sync::Weak;
use std::sync::mpsc;
use std::thread::JoinHandle;

use loggos_protocol::ids::{Offset, Timestamp};
use loggos_storage::journal::{self, Journal};
use parking_lot::Mutex;

use super::{Core, Log, LogError};

/// Whether appends go through the journal (`loggos.journal`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JournalMode {
    /// Yes: one write for all partitions.
    #[default]
    Journal,
    /// No: each flush is a sync of each segment. What isn't an append is journalled all the same.
    None,
}

/// A sync that was asked for.
struct SyncRequest {
    log: Weak<Log>,
    end: Offset,
}

/// The way to the disk.
pub(super) struct Commit {
    journal: Journal,
    mode: JournalMode,
    /// `None` in simulations, where everything happens in the caller's thread, and after the end.
    syncer: Mutex<Option<(mpsc::Sender<SyncRequest>, JoinHandle<()>)>>,
    /// Logs that hold something back for a time.
    watched: Mutex<Vec<Weak<Log>>>,
    failed: Mutex<Option<LogError>>,
}

impl Commit {
    pub(super) fn new(journal: Journal, mode: JournalMode, inline: bool) -> Result<Self, LogError> {
        let syncer = if inline {
            None
        } else {
            let (sender, requests) = mpsc::channel();
            let thread = std::thread::Builder::new()
                .name("log-sync".to_owned())
                .spawn(move || sync_all(&requests))
                .map_err(|error| LogError::io("start a thread for", std::path::Path::new("syncs"), error))?;
            Some((sender, thread))
        };
        let watched = Mutex::new(Vec::new());
        Ok(Self { journal, mode, syncer: Mutex::new(syncer), watched, failed: Mutex::new(None) })
    }

    pub(super) const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Hands appends to the journal; false when they don't go that way.
    pub(super) fn append(&self, entries: Vec<journal::Entry>, core: &Arc<Core>, end: Offset) -> bool {
        if self.mode == JournalMode::None || self.failed.lock().is_some() {
            return false;
        }
        if entries.is_empty() {
            return true;
        }
        let core = Arc::clone(core);
        let done: journal::Done = Box::new(move |result| match result {
            Ok(_) => core.journalled(end),
            Err(error) => core.fail(&error.into()),
        });
        self.journal.append(entries, done).is_ok()
    }

    /// Journals a change and waits until it's durable.
    pub(super) fn change(&self, entry: journal::Entry) -> Result<(), LogError> {
        self.changes(vec![entry])
    }

    /// Journals changes as one and waits until they are durable.
    pub(super) fn changes(&self, entries: Vec<journal::Entry>) -> Result<(), LogError> {
        if let Some(failed) = self.failed.lock().clone() {
            return Err(failed);
        }
        let (sender, answer) = mpsc::sync_channel(1);
        let done: journal::Done = Box::new(move |result| {
            let _ = sender.send(result);
        });
        self.journal.append(entries, done)?;
        match answer.recv() {
            Ok(result) => result.map(|_| ()).map_err(LogError::from),
            Err(_) => Err(LogError::Closed),
        }
    }

    /// Has a log's segments synced.
    pub(super) fn sync(&self, log: Weak<Log>, end: Offset) {
        let request = SyncRequest { log, end };
        match &*self.syncer.lock() {
            Some((sender, _)) => {
                // It only ends after the last log.
                let _ = sender.send(request);
            }
            None => {
                if let Some(log) = request.log.upgrade() {
                    log.sync(end);
                }
            }
        }
    }

    /// Has `log` asked now and then whether it has waited for long enough.
    pub(super) fn watch(&self, log: Weak<Log>) {
        let mut watched = self.watched.lock();
        if !watched.iter().any(|known| known.ptr_eq(&log)) {
            watched.push(log);
        }
    }

    /// Flushes the logs that have waited for long enough; says whether any still waits.
    pub(super) fn tick(&self, now: Timestamp) -> bool {
        let watched = std::mem::take(&mut *self.watched.lock());
        if watched.is_empty() {
            return false;
        }
        let waiting: Vec<_> =
            watched.into_iter().filter(|log| log.upgrade().is_some_and(|log| log.tick(now))).collect();
        let any = !waiting.is_empty();
        for log in waiting {
            self.watch(log);
        }
        any
    }

    pub(super) fn has_room(&self) -> bool {
        self.journal.has_room()
    }

    pub(super) fn when_room(&self, wake: Box<dyn FnOnce() + Send>) {
        self.journal.when_room(wake);
    }

    /// The disk failed: nothing is written any more.
    pub(super) fn fail(&self, error: &LogError) {
        self.failed.lock().get_or_insert_with(|| error.clone());
    }

    pub(super) fn failure(&self) -> Option<LogError> {
        self.failed.lock().clone()
    }

    /// Ends the threads, after what was asked of them.
    pub(super) fn close(&self) {
        let syncer = self.syncer.lock().take();
        if let Some((sender, thread)) = syncer {
            drop(sender);
            let _ = thread.join();
        }
        self.journal.close();
    }
}

/// Syncs what was asked for, each log once for all that has been asked meanwhile.
fn sync_all(requests: &mpsc::Receiver<SyncRequest>) {
    while let Ok(first) = requests.recv() {
        let mut round = vec![first];
        for request in requests.try_iter() {
            match round.iter_mut().find(|known| known.log.ptr_eq(&request.log)) {
                Some(known) => known.end = known.end.max(request.end),
                None => round.push(request),
            }
        }
        for request in round {
            if let Some(log) = request.log.upgrade() {
                log.sync(request.end);
            }
        }
    }
}
