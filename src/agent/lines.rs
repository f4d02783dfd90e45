//! Bytes of a file into records (P): whole lines, or several lines that belong together.
//!
//! What has no end yet is kept for what comes next. With a pattern a record begins at each line that it matches, and
//! ends when the next one begins or nothing has come for a while. What is longer than a record may be goes in pieces.
//! Called by `files` and by the listeners.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use regex::bytes::Regex;

use super::sighting::MARK_LIMIT;

/// One record's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The text, without the newline at its end.
    pub text: Bytes,
    /// Where it begins.
    pub start: u64,
    /// Where the next one begins.
    pub end: u64,
    /// The last bytes before `end`.
    pub mark: Bytes,
    /// Whether it is a part of something that was too long.
    pub piece: bool,
}

/// How records are told apart.
#[derive(Clone, Debug)]
pub struct Cutting {
    /// What the first line of a record looks like; each line is one when absent.
    pub pattern: Option<Regex>,
    /// How long a record of several lines waits for one more.
    pub wait: Duration,
    /// The longest text.
    pub limit: usize,
}

/// What one file has given so far.
#[derive(Debug)]
pub struct Lines {
    cutting: Cutting,
    pending: BytesMut,
    /// Where `pending` begins.
    start: u64,
    /// Bytes at the front of `pending` that are whole lines of a record that may go on.
    held: usize,
    /// Bytes of `pending` that were searched for a newline.
    searched: usize,
    /// Whether `pending` begins in the middle of something that was too long.
    torn: bool,
    grown: Duration,
}

impl Lines {
    /// Nothing yet; the first byte comes from `start`.
    pub fn new(cutting: Cutting, start: u64) -> Self {
        let grown = Duration::ZERO;
        Self { cutting, pending: BytesMut::new(), start, held: 0, searched: 0, torn: false, grown }
    }

    /// Takes the bytes that come next.
    pub fn push(&mut self, now: Duration, bytes: &[u8], out: &mut Vec<Line>) {
        self.grown = now;
        self.pending.extend_from_slice(bytes);
        while let Some(at) = self.pending[self.searched..].iter().position(|byte| *byte == b'\n') {
            let end = self.searched + at + 1;
            match &self.cutting.pattern {
                None => out.push(self.take(end, false)),
                Some(pattern) => {
                    let begins = self.held > 0 && pattern.is_match(&self.pending[self.held..end - 1]);
                    let end = if begins {
                        let length = end - self.held;
                        out.push(self.take(self.held, false));
                        length
                    } else {
                        end
                    };
                    (self.held, self.searched) = (end, end);
                    if self.held > self.cutting.limit {
                        out.push(self.take(self.held, false));
                    }
                }
            }
        }
        self.searched = self.pending.len();
        if self.held > 0 && self.pending.len() > self.cutting.limit {
            out.push(self.take(self.held, false));
        }
        while self.pending.len() > self.cutting.limit {
            out.push(self.take(self.cutting.limit, true));
        }
        self.searched = self.pending.len();
    }

    /// Gives a record of several lines up that nothing was added to for long enough.
    pub fn expire(&mut self, now: Duration, out: &mut Vec<Line>) {
        if self.held > 0 && now >= self.grown + self.cutting.wait {
            out.push(self.take(self.held, false));
            self.searched = self.pending.len();
        }
    }

    /// Gives everything up that is left, a last line without its newline too.
    pub fn finish(&mut self, out: &mut Vec<Line>) {
        if self.held > 0 {
            out.push(self.take(self.held, false));
        }
        if !self.pending.is_empty() {
            out.push(self.take(self.pending.len(), false));
        }
    }

    /// Cuts `count` bytes off the front.
    fn take(&mut self, count: usize, torn: bool) -> Line {
        let whole = self.pending.split_to(count).freeze();
        let text = if whole.ends_with(b"\n") { whole.slice(..count - 1) } else { whole.clone() };
        let mark = whole.slice(count.saturating_sub(MARK_LIMIT)..);
        let start = self.start;
        self.start += count as u64;
        self.held = self.held.saturating_sub(count);
        self.searched = 0;
        let piece = torn || self.torn;
        self.torn = torn;
        Line { text, start, end: self.start, mark, piece }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cutting(pattern: Option<&str>, limit: usize) -> Cutting {
        let pattern = pattern.map(|pattern| Regex::new(pattern).expect("a pattern"));
        Cutting { pattern, wait: Duration::from_secs(1), limit }
    }

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| std::str::from_utf8(&line.text).expect("text")).collect()
    }

    #[test]
    fn a_record_of_several_lines_ends_where_the_next_begins_or_after_a_while() {
        let mut lines = Lines::new(cutting(Some("^[0-9]"), 1_000), 0);
        let mut out = Vec::new();
        lines.push(Duration::ZERO, b"1 first\n  at a\n  at b\n2 sec", &mut out);
        assert!(out.is_empty(), "the second may still belong to the first");
        lines.push(Duration::ZERO, b"ond\n  at c\n", &mut out);
        assert_eq!(texts(&out), ["1 first\n  at a\n  at b"]);
        lines.expire(Duration::from_millis(999), &mut out);
        assert_eq!(out.len(), 1);
        lines.expire(Duration::from_secs(1), &mut out);
        assert_eq!(texts(&out)[1], "2 second\n  at c");
        assert_eq!(out[1].end, 38);
    }

    #[test]
    fn what_is_too_long_goes_in_pieces() {
        let mut lines = Lines::new(cutting(None, 4), 0);
        let mut out = Vec::new();
        lines.push(Duration::ZERO, b"abcdefghij\nxy\n", &mut out);
        assert_eq!(texts(&out), ["abcdefghij", "xy"], "a line that is there whole is one record");
        out.clear();
        lines.push(Duration::ZERO, b"abcdef", &mut out);
        lines.push(Duration::ZERO, b"gh\nxy\n", &mut out);
        assert_eq!(texts(&out), ["abcd", "efgh", "xy"]);
        assert_eq!(out.iter().map(|line| line.piece).collect::<Vec<_>>(), [true, true, false]);
    }

    proptest! {
        #[test]
        fn however_the_bytes_arrive_the_lines_are_the_same(
            text in proptest::collection::vec("[a-c1 ]{0,12}", 0..40),
            cuts in proptest::collection::vec(1usize..9, 1..200),
            several in any::<bool>(),
        ) {
            let whole: String = text.iter().map(|line| format!("{line}\n")).collect();
            let cutting = cutting(several.then_some("^1"), 100_000);
            let mut at_once = Vec::new();
            let mut lines = Lines::new(cutting.clone(), 0);
            lines.push(Duration::ZERO, whole.as_bytes(), &mut at_once);
            lines.finish(&mut at_once);
            let mut piecemeal = Vec::new();
            let mut lines = Lines::new(cutting, 0);
            let mut rest = whole.as_bytes();
            for cut in cuts.iter().cycle().take(whole.len()) {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                lines.push(Duration::ZERO, now, &mut piecemeal);
                rest = later;
            }
            lines.push(Duration::ZERO, rest, &mut piecemeal);
            lines.finish(&mut piecemeal);
            prop_assert_eq!(&at_once, &piecemeal);
            let mut end = 0;
            for line in &at_once {
                prop_assert_eq!(line.start, end);
                end = line.end;
            }
            prop_assert_eq!(end, whole.len() as u64);
        }
    }
}
