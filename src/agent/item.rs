//! A record on its way from an input to the brokers, and how its input is told that it has arrived. Named by every
//! file of the room.

use std::sync::Arc;

use bytes::Bytes;
use loggos_client::Message;
use loggos_protocol::batch::RecordHeader;
use loggos_protocol::ids::{Timestamp, TopicName};

use super::config::Key;
use super::sighting::{FileKey, Inode, Remembered};
use super::spool::Cursor;

/// A record, and where it goes.
#[derive(Clone, Debug)]
pub struct Item {
    /// The topic.
    pub topic: TopicName,
    /// The record.
    pub message: Message,
    /// What its acknowledgement moves.
    pub origin: Origin,
}

/// What an acknowledgement moves.
#[derive(Clone, Debug, Default)]
pub enum Origin {
    /// Nothing: what it came from can't be read twice.
    #[default]
    None,
    /// A file's position.
    File(FilePosition),
    /// A journal's cursor.
    Journal {
        /// Which journal.
        input: Arc<str>,
        /// Its own word for the place.
        cursor: Arc<str>,
    },
    /// The spool's beginning.
    Spool(Cursor),
}

/// How far a file has arrived.
#[derive(Clone, Debug)]
pub struct FilePosition {
    /// The file.
    pub key: FileKey,
    /// What doesn't change while it's read.
    pub meta: Arc<FileMeta>,
    /// The file's first bytes.
    pub head: Bytes,
    /// The position behind the record.
    pub end: u64,
    /// The last bytes before it.
    pub mark: Bytes,
}

/// What doesn't change while a file is read.
#[derive(Debug)]
pub struct FileMeta {
    /// The path that it's reported under.
    pub path: String,
    /// Its inode.
    pub inode: Inode,
    /// When it was last written, as of its opening or later.
    pub mtime: std::sync::atomic::AtomicU64,
}

/// What inputs hand over.
#[derive(Debug)]
pub enum Parcel {
    /// Records, in order.
    Items(Vec<Item>),
    /// Nothing more will come of a file.
    Done(FileKey, Box<Remembered>),
}

/// What all records of one source share.
#[derive(Clone, Debug)]
pub struct Stamp {
    topic: TopicName,
    host: Bytes,
    path: Bytes,
    key: Key,
}

impl Stamp {
    /// For records from `path` (a file, a socket, a unit) on `host`.
    pub fn new(topic: TopicName, host: &str, path: &str, key: Key) -> Self {
        let (host, path) = (Bytes::copy_from_slice(host.as_bytes()), Bytes::copy_from_slice(path.as_bytes()));
        Self { topic, host, path, key }
    }

    /// A record, with the headers that each has, and `more` of its own.
    pub fn item(
        &self,
        text: Bytes,
        offset: u64,
        time: Timestamp,
        more: impl IntoIterator<Item = (&'static str, Bytes)>,
        origin: Origin,
    ) -> Item {
        let header =
            |(name, value): (&'static str, Bytes)| RecordHeader { key: name.into(), value: Some(value) };
        let mut headers = Vec::with_capacity(5);
        headers.push(header(("host", self.host.clone())));
        headers.push(header(("path", self.path.clone())));
        headers.push(header(("offset", offset.to_string().into())));
        headers.push(header(("time", time.raw().to_string().into())));
        headers.extend(more.into_iter().map(header));
        let key = match self.key {
            Key::Path => Some(self.path.clone()),
            Key::Host => Some(self.host.clone()),
            Key::None => None,
        };
        let message = Message { key, value: Some(text), headers, timestamp: Some(time) };
        Item { topic: self.topic.clone(), message, origin }
    }
}

/// Bytes that a record takes in memory, about.
pub fn weight(message: &Message) -> usize {
    let text = message.value.as_ref().map_or(0, Bytes::len) + message.key.as_ref().map_or(0, Bytes::len);
    let header = |header: &RecordHeader| header.key.len() + header.value.as_ref().map_or(0, Bytes::len);
    text + message.headers.iter().map(header).sum::<usize>() + ITEM_ROOM
}

/// What a record takes beside its bytes.
const ITEM_ROOM: usize = 256;

/// The time of day.
pub fn wall_clock() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
