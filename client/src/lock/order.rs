//! Names of contenders, and who waits for whom (P).
//!
//! A contender's node is `<32 hexadecimal digits>__lock__<10 digits>`, or `__rlock__` for a shared one: kazoo's
//! names (its plain `Lock` sees no shared ones; `WriteLock` does). The digits at the end are the order of arrival; who can't be read is nobody. Called by `holder` and
//! `election`.

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// By one alone.
    Exclusive,
    /// By many, as long as nobody holds it alone.
    Shared,
}

impl Mode {
    /// What stands in a contender's name.
    pub const fn mark(self) -> &'static str {
        match self {
            Self::Exclusive => "__lock__",
            Self::Shared => "__rlock__",
        }
    }
}

/// A contender: how, and as what number.
fn contender(name: &str) -> Option<(Mode, i64)> {
    [Mode::Exclusive, Mode::Shared].into_iter().find_map(|mode| {
        let (_, number) = name.rsplit_once(mode.mark())?;
        Some((mode, number.parse().ok()?))
    })
}

/// All contenders in the order of their arrival.
pub(super) fn queue(names: &[String]) -> Vec<(&str, Mode)> {
    let mut queue: Vec<(i64, &str, Mode)> = names
        .iter()
        .filter_map(|name| contender(name).map(|(mode, number)| (number, name.as_str(), mode)))
        .collect();
    queue.sort();
    queue.into_iter().map(|(_, name, mode)| (name, mode)).collect()
}

/// Whom the contender `own` waits for: the last before it that it can't share with. `Ok(None)`: it holds the lock;
/// `Err`: it isn't there.
pub(super) fn predecessor<'a>(names: &'a [String], own: &str) -> Result<Option<&'a str>, Gone> {
    let queue = queue(names);
    let at = queue.iter().position(|(name, _)| *name == own).ok_or(Gone)?;
    let mode = queue[at].1;
    let before = queue[..at].iter().rev();
    let blocking = |other: Mode| mode == Mode::Exclusive || other == Mode::Exclusive;
    Ok(before.copied().find(|(_, other)| blocking(*other)).map(|(name, _)| name))
}

/// A contender's node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn readers_wait_for_writers_and_writers_for_all() {
        let all = names(&["c__rlock__0000000002", "a__lock__0000000003", "b__rlock__0000000001", "other"]);
        assert_eq!(predecessor(&all, "b__rlock__0000000001"), Ok(None));
        assert_eq!(predecessor(&all, "c__rlock__0000000002"), Ok(None));
        assert_eq!(predecessor(&all, "a__lock__0000000003"), Ok(Some("c__rlock__0000000002")));
        assert_eq!(predecessor(&all, "d__lock__0000000004"), Err(Gone));
        let all = names(&["w__lock__-2147483648", "x__lock__2147483647"]);
        assert_eq!(queue(&all)[0].0, "w__lock__-2147483648");
    }

    proptest! {
        #[test]
        fn one_alone_or_shared_ones_together(modes in prop::collection::vec(any::<bool>(), 1..12)) {
            let mode = |shared: &bool| if *shared { Mode::Shared } else { Mode::Exclusive };
            let all: Vec<String> =
                modes.iter().enumerate().map(|(at, shared)| format!("x{}{at:010}", mode(shared).mark())).collect();
            let holders: Vec<usize> =
                (0..all.len()).filter(|at| predecessor(&all, &all[*at]) == Ok(None)).collect();
            prop_assert!(!holders.is_empty());
            prop_assert!(holders.len() == 1 || holders.iter().all(|at| modes[*at]));
        }
    }
}
