//! Sequencers (Burrows 2006 §2.4): what a lock's holder shows to whatever it changes, and the check there (P).
//!
//! The generation is the zxid that created the holder's node. Holders of an exclusive lock take it in the order of
//! their creation, so it grows from holder to holder, also when the lock's node was removed and made again. What is
//! guarded keeps the [`Highest`] generation beside its data, and refuses lower ones: no network, and right even
//! when a holder slept for an hour between its look at the lock and its write. (Burrows' other checks are
//! [`Guard`](super::Guard), and [`Sequencer::check`] for changes of the tree itself.)

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use loggos_protocol::ids::Zxid;
use thiserror::Error;

use super::order::Mode;
use crate::registry::Op;

/// The longest sequencer as text, in bytes.
pub(super) const TEXT_MAX: usize = 256;
/// What every sequencer's text begins with.
const HEAD: &str = "loggos-sequencer-1";

/// Who holds a lock, how, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequencer {
    /// The lock.
    pub lock: String,
    /// The holder's node below it.
    pub holder: String,
    /// How it is held.
    pub mode: Mode,
    /// Grows from holder to holder.
    pub generation: Zxid,
    /// The holder's session.
    pub session: i64,
}

/// Why a sequencer is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SequencerError {
    /// It isn't one.
    #[error("this is no sequencer")]
    Malformed,
    /// Somebody else has held the lock since.
    #[error("a newer holder of {lock} was here: generation {seen}, not {shown}")]
    Stale {
        /// The lock.
        lock: String,
        /// The generation that was shown.
        shown: Zxid,
        /// The highest that was seen before.
        seen: Zxid,
    },
}

impl Sequencer {
    /// The holder's path.
    pub fn path(&self) -> String {
        format!("{}/{}", self.lock, self.holder)
    }

    /// The part of a change of the tree that fails when the holder is one no more: the change and the check are one.
    pub fn check(&self) -> Op {
        // Any version: a holder's name is never used twice.
        Op::Check { path: self.path(), version: -1 }
    }
}

impl fmt::Display for Sequencer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Exclusive => 'x',
            Mode::Shared => 's',
        };
        let Self { lock, holder, generation, session, .. } = self;
        write!(f, "{HEAD} {mode} {generation:x} {session:x} {holder} {lock}", generation = generation.raw())
    }
}

impl FromStr for Sequencer {
    type Err = SequencerError;

    fn from_str(text: &str) -> Result<Self, SequencerError> {
        let malformed = SequencerError::Malformed;
        if text.len() > TEXT_MAX {
            return Err(malformed);
        }
        let mut words = text.splitn(6, ' ');
        let mut word = || words.next().ok_or(SequencerError::Malformed);
        let number = |text: &str| i64::from_str_radix(text, 16).map_err(|_| SequencerError::Malformed);
        if word()? != HEAD {
            return Err(malformed);
        }
        let mode = match word()? {
            "x" => Mode::Exclusive,
            "s" => Mode::Shared,
            _ => return Err(malformed),
        };
        let (generation, session) = (Zxid::new(number(word()?)?), number(word()?)?);
        let (holder, lock) = (word()?.to_owned(), word()?.to_owned());
        if holder.is_empty() || holder.contains('/') || !lock.starts_with('/') {
            return Err(malformed);
        }
        Ok(Self { lock, holder, mode, generation, session })
    }
}

/// The highest generations that were seen of some locks: kept, and made durable, with the data that they guard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Highest {
    /// Of each lock: of exclusive holders, and of any.
    seen: BTreeMap<String, (Zxid, Zxid)>,
}

impl Highest {
    /// Admits what a holder does, unless a newer one that it can't share with was here. What it admits it remembers.
    ///
    /// # Errors
    /// `Stale`; nothing may be done then, and nothing helps.
    pub fn admit(&mut self, shown: &Sequencer) -> Result<(), SequencerError> {
        let none = Zxid::new(0);
        let (exclusive, any) = self.seen.get(&shown.lock).copied().unwrap_or((none, none));
        let seen = match shown.mode {
            Mode::Exclusive => any,
            Mode::Shared => exclusive,
        };
        if shown.generation < seen {
            let (lock, shown) = (shown.lock.clone(), shown.generation);
            return Err(SequencerError::Stale { lock, shown, seen });
        }
        let exclusive = match shown.mode {
            Mode::Exclusive => shown.generation,
            Mode::Shared => exclusive,
        };
        self.seen.insert(shown.lock.clone(), (exclusive, any.max(shown.generation)));
        Ok(())
    }

    /// As text, one lock a line.
    pub fn to_text(&self) -> String {
        let line = |(lock, (exclusive, any)): (&String, &(Zxid, Zxid))| {
            format!("{:x} {:x} {lock}\n", exclusive.raw(), any.raw())
        };
        self.seen.iter().map(line).collect()
    }

    /// Reads it back.
    ///
    /// # Errors
    /// `Malformed`: then nothing may be admitted at all.
    pub fn from_text(text: &str) -> Result<Self, SequencerError> {
        let line = |line: &str| {
            let mut words = line.splitn(3, ' ');
            let mut number = || i64::from_str_radix(words.next()?, 16).ok().map(Zxid::new);
            let generations = (number()?, number()?);
            Some((words.next()?.to_owned(), generations))
        };
        let seen = text.lines().map(|text| line(text).ok_or(SequencerError::Malformed));
        Ok(Self { seen: seen.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequencer(mode: Mode, generation: i64) -> Sequencer {
        let (lock, holder) = ("/a lock/x".to_owned(), "0f__lock__0000000007".to_owned());
        Sequencer { lock, holder, mode, generation: Zxid::new(generation), session: 0x4c00_0000_0000_0001 }
    }

    #[test]
    fn who_was_passed_is_refused_and_readers_are_not_passed_by_readers() {
        use Mode::{Exclusive, Shared};
        let mut highest = Highest::default();
        for (mode, generation, good) in [
            (Exclusive, 5, true),
            (Exclusive, 5, true),
            (Exclusive, 4, false),
            (Shared, 8, true),
            (Shared, 7, true),
            (Exclusive, 5, false),
            (Exclusive, 9, true),
            (Shared, 8, false),
        ] {
            assert_eq!(highest.admit(&sequencer(mode, generation)).is_ok(), good, "{mode:?} {generation}");
            highest = Highest::from_text(&highest.to_text()).expect("its own text");
        }
    }

    #[test]
    fn texts_that_are_none_are_refused() {
        let good = sequencer(Mode::Shared, 77).to_string();
        assert_eq!(good.parse(), Ok(sequencer(Mode::Shared, 77)));
        assert!(good.len() <= TEXT_MAX);
        for bad in [
            "",
            "loggos-sequencer-1 x 1",
            &good.replace("-1 s", "-1 q"),
            &format!("{good}{}", "y".repeat(300)),
        ] {
            assert_eq!(bad.parse::<Sequencer>(), Err(SequencerError::Malformed), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in ".{0,300}") {
            if let Ok(found) = text.parse::<Sequencer>() {
                prop_assert_eq!(found.to_string().parse(), Ok(found));
            }
            let _ = Highest::from_text(&text);
        }

        /// Of exclusive holders none is admitted behind one that came later.
        #[test]
        fn admitted_generations_never_fall(generations in prop::collection::vec(1i64..50, 1..40)) {
            let mut highest = Highest::default();
            let mut last = 0;
            for generation in generations {
                if highest.admit(&sequencer(Mode::Exclusive, generation)).is_ok() {
                    prop_assert!(generation >= last);
                    last = generation;
                }
            }
        }
    }
}
