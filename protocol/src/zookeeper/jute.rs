//! Jute, ZooKeeper's serialisation: big-endian integers, buffers and strings behind a length (-1 is null),
//! vectors behind a count (-1 is null).
//!
//! Source: ZooKeeper's `jute` (`BinaryInputArchive`, `BinaryOutputArchive`) and `zookeeper.jute`. Called by
//! `request` and `reply`. A count is believed only as far as bytes are there for it, so that a short frame can't
//! ask for memory.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::stat::{Acl, Id, Stat};
use crate::ids::{SessionId, Zxid};

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JuteError {
    /// The bytes end too early.
    #[error("a record ends {missing} bytes too early")]
    Truncated {
        /// How many more bytes the field at hand needs.
        missing: usize,
    },
    /// A length or a count that can't be.
    #[error("a length of {length} can't be")]
    Length {
        /// As it was announced.
        length: i32,
    },
    /// A string isn't UTF-8.
    #[error("a string is not UTF-8")]
    Text,
    /// A part of a multi that may not stand there.
    #[error("operation {op} may not stand in this multi")]
    Part {
        /// The part's operation code.
        op: i32,
    },
    /// An operation without a number of ours.
    #[error("there is no operation {op}")]
    UnknownOperation {
        /// The code in the header.
        op: i32,
    },
}

/// Reads fields off the front of a record.
#[derive(Clone, Debug)]
pub struct Reader {
    bytes: Bytes,
}

impl Reader {
    /// A reader of `bytes`.
    pub const fn new(bytes: Bytes) -> Self {
        Self { bytes }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn need(&self, count: usize) -> Result<(), JuteError> {
        match count.saturating_sub(self.bytes.len()) {
            0 => Ok(()),
            missing => Err(JuteError::Truncated { missing }),
        }
    }

    /// A bool; any byte but 0 is true, as in Java.
    pub fn bool(&mut self) -> Result<bool, JuteError> {
        self.need(1)?;
        Ok(self.bytes.get_u8() != 0)
    }

    /// An int.
    pub fn int(&mut self) -> Result<i32, JuteError> {
        self.need(4)?;
        Ok(self.bytes.get_i32())
    }

    /// A long.
    pub fn long(&mut self) -> Result<i64, JuteError> {
        self.need(8)?;
        Ok(self.bytes.get_i64())
    }

    /// A buffer; null and empty differ.
    pub fn buffer(&mut self) -> Result<Option<Bytes>, JuteError> {
        let length = self.int()?;
        if length == -1 {
            return Ok(None);
        }
        let count = usize::try_from(length).map_err(|_| JuteError::Length { length })?;
        self.need(count)?;
        Ok(Some(self.bytes.split_to(count)))
    }

    /// A string that may be null.
    pub fn nullable_string(&mut self) -> Result<Option<String>, JuteError> {
        let Some(bytes) = self.buffer()? else { return Ok(None) };
        let text = std::str::from_utf8(&bytes).map_err(|_| JuteError::Text)?;
        Ok(Some(text.to_owned()))
    }

    /// A string; null is read as empty, which no path and no scheme is.
    pub fn string(&mut self) -> Result<String, JuteError> {
        Ok(self.nullable_string()?.unwrap_or_default())
    }

    /// A vector whose elements take `smallest` bytes each at least; null is read as empty.
    pub fn vector<T>(
        &mut self,
        smallest: usize,
        mut element: impl FnMut(&mut Self) -> Result<T, JuteError>,
    ) -> Result<Vec<T>, JuteError> {
        let length = self.int()?;
        if length == -1 {
            return Ok(Vec::new());
        }
        let count = usize::try_from(length).map_err(|_| JuteError::Length { length })?;
        self.need(count.saturating_mul(smallest.max(1)))?;
        (0..count).map(|_| element(self)).collect()
    }

    /// A vector of strings.
    pub fn strings(&mut self) -> Result<Vec<String>, JuteError> {
        self.vector(4, Self::string)
    }

    /// An identity.
    pub fn id(&mut self) -> Result<Id, JuteError> {
        Ok(Id { scheme: self.string()?, id: self.string()? })
    }

    /// An ACL's entries.
    pub fn acl(&mut self) -> Result<Vec<Acl>, JuteError> {
        self.vector(12, |r| Ok(Acl { perms: r.int()?, id: r.id()? }))
    }

    /// A stat.
    pub fn stat(&mut self) -> Result<Stat, JuteError> {
        Ok(Stat {
            czxid: Zxid::new(self.long()?),
            mzxid: Zxid::new(self.long()?),
            ctime_ms: self.long()?,
            mtime_ms: self.long()?,
            version: self.int()?,
            cversion: self.int()?,
            aversion: self.int()?,
            ephemeral_owner: SessionId::new(self.long()?),
            data_length: self.int()?,
            num_children: self.int()?,
            pzxid: Zxid::new(self.long()?),
        })
    }
}

/// Appends fields to a buffer.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut BytesMut,
}

impl<'a> Writer<'a> {
    /// A writer behind what `out` holds already.
    pub const fn new(out: &'a mut BytesMut) -> Self {
        Self { out }
    }

    /// Bytes in the buffer so far.
    pub fn position(&self) -> usize {
        self.out.len()
    }

    /// A bool.
    pub fn bool(&mut self, value: bool) {
        self.out.put_u8(u8::from(value));
    }

    /// An int.
    pub fn int(&mut self, value: i32) {
        self.out.put_i32(value);
    }

    /// A long.
    pub fn long(&mut self, value: i64) {
        self.out.put_i64(value);
    }

    /// A length or a count.
    ///
    /// # Panics
    /// When it is greater than `i32::MAX`: no caller builds such a record.
    pub fn length(&mut self, length: usize) {
        self.int(i32::try_from(length).expect("a record of ours is shorter than 2 GiB"));
    }

    /// A buffer, or null.
    pub fn buffer(&mut self, value: Option<&[u8]>) {
        match value {
            None => self.int(-1),
            Some(bytes) => {
                self.length(bytes.len());
                self.out.put_slice(bytes);
            }
        }
    }

    /// A string.
    pub fn string(&mut self, value: &str) {
        self.buffer(Some(value.as_bytes()));
    }

    /// A vector of strings.
    pub fn strings(&mut self, values: &[String]) {
        self.length(values.len());
        for value in values {
            self.string(value);
        }
    }

    /// An identity.
    pub fn id(&mut self, id: &Id) {
        self.string(&id.scheme);
        self.string(&id.id);
    }

    /// An ACL's entries.
    pub fn acl(&mut self, acl: &[Acl]) {
        self.length(acl.len());
        for entry in acl {
            self.int(entry.perms);
            self.id(&entry.id);
        }
    }

    /// A stat.
    pub fn stat(&mut self, stat: &Stat) {
        self.long(stat.czxid.raw());
        self.long(stat.mzxid.raw());
        self.long(stat.ctime_ms);
        self.long(stat.mtime_ms);
        self.int(stat.version);
        self.int(stat.cversion);
        self.int(stat.aversion);
        self.long(stat.ephemeral_owner.raw());
        self.int(stat.data_length);
        self.int(stat.num_children);
        self.long(stat.pzxid.raw());
    }

    /// Reserves a frame's prefix; `end_frame` fills it in.
    pub fn begin_frame(&mut self) -> usize {
        let at = self.out.len();
        self.out.put_i32(0);
        at
    }

    /// Fills in the prefix that `begin_frame` reserved at `at`.
    ///
    /// # Panics
    /// When the frame is longer than `i32::MAX`: no caller builds one.
    pub fn end_frame(&mut self, at: usize) {
        let length = i32::try_from(self.out.len() - at - 4).expect("a frame of ours is shorter than 2 GiB");
        self.out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_empty_buffers_differ() {
        let mut out = BytesMut::new();
        let mut writer = Writer::new(&mut out);
        writer.buffer(None);
        writer.buffer(Some(b""));
        let mut reader = Reader::new(out.freeze());
        assert_eq!(reader.buffer(), Ok(None));
        assert_eq!(reader.buffer(), Ok(Some(Bytes::new())));
        assert_eq!(reader.buffer(), Err(JuteError::Truncated { missing: 4 }));
    }

    #[test]
    fn a_count_without_bytes_behind_it_is_refused_before_anything_is_allocated() {
        let mut reader = Reader::new(Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]));
        assert!(matches!(reader.strings(), Err(JuteError::Truncated { .. })));
        let mut reader = Reader::new(Bytes::from_static(&[0xff, 0xff, 0xff, 0xfe]));
        assert_eq!(reader.strings(), Err(JuteError::Length { length: -2 }));
    }

    #[test]
    fn a_stat_is_68_bytes() {
        let stat = Stat { czxid: Zxid::new(3), version: 9, num_children: 4, ..Stat::default() };
        let mut out = BytesMut::new();
        Writer::new(&mut out).stat(&stat);
        assert_eq!(out.len(), 68);
        assert_eq!(Reader::new(out.freeze()).stat(), Ok(stat));
    }
}
