//! The store on disk for what can't be sent now: a queue of files, bounded, read in the order of writing.
//!
//! A file holds frames: length (4 bytes, big-endian), length of the topic's name (2), the name, and a record batch of
//! format 2, whose CRC says whether it is whole. A frame that isn't ends its file: at the end of the newest one that
//! is a write that a crash cut off. Called by `pump`.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use loggos_client::Message;
use loggos_protocol::batch::{Batch, BatchBuilder, BatchOptions, Compression, RecordView, records};
use loggos_protocol::ids::{Timestamp, TopicName};
use serde::{Deserialize, Serialize};

use super::config::WhenFull;

/// A frame may not say that it is longer.
const FRAME_LIMIT: usize = 128 * 1024 * 1024;
/// Bytes in front of a frame's content.
const PREFIX: u64 = 4;
/// The spool is made of about so many files, so that dropping the oldest drops little.
const FILES: u64 = 16;
/// A file is never larger, and never smaller, before the next one is begun.
const FILE_BYTES: (u64, u64) = (64 * 1024, 16 * 1024 * 1024);

/// A place in the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    file: u64,
    at: u64,
}

#[derive(Debug)]
struct Piece {
    number: u64,
    len: u64,
    file: File,
}

/// The queue.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    max_bytes: u64,
    file_bytes: u64,
    when_full: WhenFull,
    pieces: VecDeque<Piece>,
    next_number: u64,
    read: Cursor,
    unsynced: bool,
    dropped: u64,
}

impl Spool {
    /// Opens or makes it; everything before `arrived` has been delivered by an earlier run.
    pub fn open(dir: &Path, max_bytes: u64, when_full: WhenFull, arrived: Cursor) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut numbers: Vec<u64> = fs::read_dir(dir)?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".spool")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        let mut spool = Self {
            dir: dir.to_owned(),
            max_bytes,
            file_bytes: (max_bytes / FILES).clamp(FILE_BYTES.0, FILE_BYTES.1),
            when_full,
            pieces: VecDeque::new(),
            next_number: numbers.last().map_or(0, |last| last + 1).max(arrived.file + 1),
            read: arrived,
            unsynced: false,
            dropped: 0,
        };
        for number in numbers {
            let file = OpenOptions::new().read(true).append(true).open(spool.path(number))?;
            let len = whole_frames(&file)?;
            spool.pieces.push_back(Piece { number, len, file });
        }
        spool.release(arrived)?;
        Ok(spool)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:020}.spool"))
    }

    /// Where the next record is written.
    pub fn end(&self) -> Cursor {
        self.pieces.back().map_or(Cursor { file: self.next_number, at: 0 }, |last| Cursor {
            file: last.number,
            at: last.len,
        })
    }

    /// Where the next record is read.
    pub const fn read(&self) -> Cursor {
        self.read
    }

    /// Reads on from a later place.
    pub fn skip_to(&mut self, place: Cursor) {
        self.read = self.read.max(place);
    }

    /// Whether something hasn't been read yet.
    pub fn has_more(&self) -> bool {
        let (number, at) = (self.read.file, self.read.at);
        self.pieces.iter().any(|piece| piece.number > number && piece.len > 0)
            || self.pieces.iter().any(|piece| piece.number == number && piece.len > at)
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len).sum()
    }

    /// Records that made room for newer ones since the start.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Appends records of one topic; `false` when there's no room for them.
    pub fn append(&mut self, topic: &TopicName, messages: &[&Message]) -> io::Result<bool> {
        let frame = encode(topic, messages);
        let bytes = frame.len() as u64;
        while self.bytes() > 0 && self.bytes() + bytes > self.max_bytes {
            if self.when_full == WhenFull::Block {
                return Ok(false);
            }
            self.drop_oldest()?;
        }
        if self.pieces.back().is_none_or(|last| last.len >= self.file_bytes) {
            self.begin_file()?;
        }
        let last = self.pieces.back_mut().expect("begun just now");
        if let Err(error) = last.file.write_all(&frame) {
            // Half a frame must not stand before whole ones.
            last.file.set_len(last.len)?;
            return Err(error);
        }
        last.len += bytes;
        self.unsynced = true;
        Ok(true)
    }

    fn begin_file(&mut self) -> io::Result<()> {
        // What is written before it must not be younger on the disk.
        self.sync()?;
        let number = self.next_number;
        let file = OpenOptions::new().read(true).append(true).create_new(true).open(self.path(number))?;
        File::open(&self.dir)?.sync_all()?;
        self.next_number += 1;
        self.pieces.push_back(Piece { number, len: 0, file });
        Ok(())
    }

    fn drop_oldest(&mut self) -> io::Result<()> {
        let Some(oldest) = self.pieces.front() else { return Ok(()) };
        let from = if oldest.number == self.read.file { self.read.at } else { 0 };
        if oldest.number >= self.read.file {
            let mut at = Cursor { file: oldest.number, at: from };
            while let Some((_, messages, next)) = read_frame(oldest, at)? {
                self.dropped += messages.len() as u64;
                at = next;
            }
        }
        let number = oldest.number;
        self.pieces.pop_front();
        fs::remove_file(self.path(number))?;
        let next = self.pieces.front().map_or(self.next_number, |piece| piece.number);
        self.read = self.read.max(Cursor { file: next, at: 0 });
        Ok(())
    }

    /// The records that come next, and the place behind them.
    pub fn next(&mut self) -> io::Result<Option<(TopicName, Vec<Message>, Cursor)>> {
        loop {
            let Some(piece) = self.pieces.iter().find(|piece| piece.number >= self.read.file) else {
                return Ok(None);
            };
            if piece.number > self.read.file {
                self.read = Cursor { file: piece.number, at: 0 };
            }
            if self.read.at < piece.len {
                if let Some(found) = read_frame(piece, self.read)? {
                    self.read = found.2;
                    return Ok(Some(found));
                }
                tracing::error!(
                    file = piece.number,
                    at = self.read.at,
                    "the spool is damaged here; the rest of the file is left out"
                );
            }
            if self.pieces.back().is_none_or(|last| last.number == self.read.file) {
                return Ok(None);
            }
            self.read = Cursor { file: self.read.file + 1, at: 0 };
        }
    }

    /// Makes durable what was appended.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.unsynced
            && let Some(last) = self.pieces.back()
        {
            last.file.sync_data()?;
        }
        self.unsynced = false;
        Ok(())
    }

    /// Lets go of files whose records have all arrived.
    pub fn release(&mut self, arrived: Cursor) -> io::Result<()> {
        while let Some(oldest) = self.pieces.front() {
            let arrived_whole =
                oldest.number < arrived.file || (oldest.number == arrived.file && arrived.at >= oldest.len);
            // The newest is kept while it may grow.
            if !arrived_whole || (self.pieces.len() == 1 && oldest.len < self.file_bytes) {
                break;
            }
            let number = oldest.number;
            self.pieces.pop_front();
            fs::remove_file(self.path(number))?;
        }
        Ok(())
    }
}

fn encode(topic: &TopicName, messages: &[&Message]) -> Vec<u8> {
    let mut batch =
        BatchBuilder::new(BatchOptions { compression: Compression::Lz4, ..BatchOptions::default() });
    for message in messages {
        batch.push(&RecordView {
            timestamp: message.timestamp.unwrap_or(Timestamp::NONE),
            key: message.key.as_deref(),
            value: message.value.as_deref(),
            headers: &message.headers,
        });
    }
    let mut batch = batch.build();
    batch.seal();
    let batch = batch.to_bytes();
    let name = topic.as_str().as_bytes();
    let length = u32::try_from(2 + name.len() + batch.len()).expect("a frame is a few lines");
    let mut frame = Vec::with_capacity(length as usize + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&u16::try_from(name.len()).expect("a topic's name is short").to_be_bytes());
    frame.extend_from_slice(name);
    frame.extend_from_slice(&batch);
    frame
}

/// The frame at a place, if a whole one is there.
fn read_frame(piece: &Piece, at: Cursor) -> io::Result<Option<(TopicName, Vec<Message>, Cursor)>> {
    let Some(body) = read_body(&piece.file, at.at)? else { return Ok(None) };
    let next = Cursor { file: piece.number, at: at.at + PREFIX + body.len() as u64 };
    Ok(decode(body).map(|(topic, messages)| (topic, messages, next)))
}

fn read_body(file: &File, at: u64) -> io::Result<Option<Bytes>> {
    let mut prefix = [0; PREFIX as usize];
    match file.read_exact_at(&mut prefix, at) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_be_bytes(prefix) as usize;
    if length > FRAME_LIMIT || file.metadata()?.len() < at + PREFIX + length as u64 {
        return Ok(None);
    }
    let mut body = vec![0; length];
    file.read_exact_at(&mut body, at + PREFIX)?;
    Ok(Some(body.into()))
}

fn decode(body: Bytes) -> Option<(TopicName, Vec<Message>)> {
    let length = usize::from(u16::from_be_bytes(body.get(..2)?.try_into().ok()?));
    let name = std::str::from_utf8(body.get(2..2 + length)?).ok().filter(|name| TopicName::is_valid(name))?;
    let batch = Batch::from_bytes(&body.slice(2 + length..)).ok()?;
    batch.check_crc().ok()?;
    let mut messages = Vec::new();
    for record in records(&batch).ok()? {
        let record = record.ok()?;
        let (key, value, headers) = (record.key, record.value, record.headers);
        messages.push(Message { key, value, headers, timestamp: Some(record.timestamp) });
    }
    Some((TopicName::new(name), messages))
}

/// Bytes of whole frames at the front of a file; what follows them is cut off.
fn whole_frames(file: &File) -> io::Result<u64> {
    let mut at = 0;
    while let Some(body) = read_body(file, at)? {
        let length = body.len() as u64;
        if decode(body).is_none() {
            break;
        }
        at += PREFIX + length;
    }
    file.set_len(at)?;
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(n: u64) -> Message {
        Message::of(format!("record {n} {}", "x".repeat(900)))
            .with_header("host", "h")
            .with_timestamp(Timestamp::new(5))
    }

    fn fill(spool: &mut Spool, numbers: std::ops::Range<u64>) -> u64 {
        let topic = TopicName::from("t");
        numbers.filter(|n| spool.append(&topic, &[&message(*n)]).expect("a writable disk")).count() as u64
    }

    fn drain(spool: &mut Spool) -> Vec<Message> {
        let mut all = Vec::new();
        while let Some((topic, messages, _)) = spool.next().expect("a readable disk") {
            assert_eq!(topic.as_str(), "t");
            all.extend(messages);
        }
        all
    }

    #[test]
    fn what_goes_in_comes_out_in_order_after_a_restart_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = |arrived| Spool::open(dir.path(), 1 << 20, WhenFull::Block, arrived).expect("a spool");
        let mut spool = open(Cursor::default());
        assert_eq!(fill(&mut spool, 0..100), 100);
        let (_, first, after_first) = spool.next().expect("readable").expect("there");
        assert_eq!(first, [message(0)]);
        drop(spool);
        let mut spool = open(after_first);
        fill(&mut spool, 100..120);
        let expected: Vec<Message> = (1..120).map(message).collect();
        assert_eq!(drain(&mut spool), expected);
        assert!(!spool.has_more());
        let end = spool.read();
        spool.release(end).expect("removable");
        assert!(open(end).next().expect("readable").is_none());
    }

    #[test]
    fn a_cut_frame_is_left_out_and_the_next_one_follows() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut spool =
            Spool::open(dir.path(), 1 << 20, WhenFull::Block, Cursor::default()).expect("a spool");
        fill(&mut spool, 0..10);
        let path = spool.path(spool.end().file);
        drop(spool);
        let file = OpenOptions::new().write(true).open(&path).expect("there");
        file.set_len(file.metadata().expect("there").len() - 3).expect("cut");
        let mut spool =
            Spool::open(dir.path(), 1 << 20, WhenFull::Block, Cursor::default()).expect("a spool");
        fill(&mut spool, 10..11);
        let expected: Vec<Message> = (0..9).chain(10..11).map(message).collect();
        assert_eq!(drain(&mut spool), expected);
    }

    #[test]
    fn a_full_spool_refuses_or_drops_the_oldest_and_counts_them() {
        let random = |n: u64| {
            // Text that compresses badly.
            let text: String = (0..200u64)
                .map(|i| format!("{:x}", (n * 7_919 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
                .collect();
            Message::of(text).with_timestamp(Timestamp::new(n as i64))
        };
        let topic = TopicName::from("t");
        for when_full in [WhenFull::Block, WhenFull::DropOldest] {
            let dir = tempfile::tempdir().expect("a directory");
            let mut spool = Spool::open(dir.path(), 1 << 20, when_full, Cursor::default()).expect("a spool");
            let taken =
                (0..1_000).filter(|n| spool.append(&topic, &[&random(*n)]).expect("writable")).count();
            let left = drain(&mut spool);
            assert!(spool.bytes() <= 1 << 20);
            match when_full {
                WhenFull::Block => {
                    assert!(taken < 1_000 && left.len() == taken && spool.dropped() == 0);
                    assert_eq!(left[0], random(0));
                }
                WhenFull::DropOldest => {
                    assert_eq!(taken, 1_000);
                    assert_eq!(left.len() as u64 + spool.dropped(), 1_000);
                    assert_eq!(*left.last().expect("some"), random(999));
                }
            }
        }
    }
}
