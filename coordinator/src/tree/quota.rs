//! Quotas: how many nodes and bytes the subtree of a node may hold, itself included.
//!
//! A client limits P by making `/zookeeper/quota/P/zookeeper_limits` and `zookeeper_stats` with plain creates; the
//! tree keeps the second one's numbers right. Texts and the order of checks are those of ZooKeeper 3.8 and 3.9 with
//! `enforceQuota` on. Soft limits bind nobody. The nearest limited ancestor alone counts. As in ZooKeeper, a
//! number is written without a new version, and nobody who watches it is told.
//!
//! One difference: the numbers are counted anew when either node is made, and whenever their text makes no sense.
//! ZooKeeper does so at its next start only, and lets them drift until then.
//!
//! Called by `apply`.

use bytes::Bytes;
use loggos_protocol::zookeeper::ErrorCode;

use super::{Tree, path};

/// Below it, the limited nodes' paths are repeated.
const QUOTAS: &str = "/zookeeper/quota";
/// What a subtree may hold.
const LIMITS: &str = "zookeeper_limits";
/// What it holds.
const STATS: &str = "zookeeper_stats";

/// Nodes, and bytes of their data: held, or to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub count: i64,
    pub bytes: i64,
}

impl Usage {
    /// Of so many nodes with so much data.
    pub fn new(count: usize, bytes: usize) -> Self {
        let clamped = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        Self { count: clamped(count), bytes: clamped(bytes) }
    }

    /// The change to `self` of what was `before`.
    pub const fn since(self, before: Self) -> Self {
        Self {
            count: self.count.saturating_sub(before.count),
            bytes: self.bytes.saturating_sub(before.bytes),
        }
    }

    const fn plus(self, change: Self) -> Self {
        Self {
            count: self.count.saturating_add(change.count),
            bytes: self.bytes.saturating_add(change.bytes),
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        Some(Self { count: number(text, "count")?, bytes: number(text, "bytes")? })
    }

    fn text(self) -> Bytes {
        format!("count={},bytes={}", self.count, self.bytes).into()
    }
}

/// A key's number in `count=1,bytes=2=;byteHardLimit=3`. The lone `=` is ZooKeeper's own: it kept older readers from
/// what follows.
fn number(text: &[u8], key: &str) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    text.split([',', ';']).find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        if name == key { value.trim_end_matches('=').parse().ok() } else { None }
    })
}

/// Where one of the two nodes of a limited node stands.
fn kept_at(limited: &str, name: &str) -> String {
    format!("{QUOTAS}{limited}/{name}")
}

impl Tree {
    /// Whether the quota over `path` allows a change, before it is made. What doesn't change is not held against it.
    pub(super) fn check_quota(&self, path: &str, change: Usage) -> Result<(), ErrorCode> {
        let Some(limited) = self.limited(path) else { return Ok(()) };
        let limits = self.nodes.get(kept_at(limited, LIMITS).as_str()).and_then(|node| node.data.clone());
        let limit = |key| number(limits.as_deref().unwrap_or_default(), key).filter(|limit| *limit > -1);
        let (count_limit, byte_limit) = (limit("countHardLimit"), limit("byteHardLimit"));
        if count_limit.is_none() && byte_limit.is_none() {
            return Ok(());
        }
        let Some(held) = self.held(limited) else { return Ok(()) };
        let then = held.plus(change);
        let exceeds = |change: i64, then: i64, limit: Option<i64>| {
            change != 0 && limit.is_some_and(|limit| then > limit)
        };
        if exceeds(change.count, then.count, count_limit) || exceeds(change.bytes, then.bytes, byte_limit) {
            return Err(ErrorCode::QUOTA_EXCEEDED);
        }
        Ok(())
    }

    /// Notes a change below a limited node, after it was made.
    pub(super) fn note_usage(&mut self, path: &str, change: Usage) {
        let Some(limited) = self.limited(path).map(str::to_owned) else { return };
        let held = self.stated(&limited).map(|held| held.plus(change));
        let held = held.unwrap_or_else(|| self.counted(&limited));
        self.write_stats(&limited, held);
    }

    /// Counts what is there already when a node that was just made begins a quota.
    pub(super) fn begin_quota(&mut self, path: &str) {
        let below = path.strip_prefix(QUOTAS).and_then(path::split);
        let Some((limited, LIMITS | STATS)) = below else { return };
        if limited != "/" {
            let held = self.counted(limited);
            self.write_stats(limited, held);
        }
    }

    /// The nearest of `path` and its ancestors that has limits. The root has none, nor has ZooKeeper's own subtree,
    /// so that a quota can always be changed.
    fn limited<'a>(&self, path: &'a str) -> Option<&'a str> {
        if self.nodes.get(QUOTAS).is_none_or(|node| node.children.is_empty())
            || path == "/zookeeper"
            || path.starts_with("/zookeeper/")
        {
            return None;
        }
        std::iter::successors(Some(path), |path| path::split(path).map(|(parent, _)| parent))
            .take_while(|path| *path != "/")
            .find(|path| self.nodes.contains_key(kept_at(path, LIMITS).as_str()))
    }

    /// What a limited node holds; `None` if nobody keeps count.
    fn held(&self, limited: &str) -> Option<Usage> {
        self.nodes.get(kept_at(limited, STATS).as_str())?;
        Some(self.stated(limited).unwrap_or_else(|| self.counted(limited)))
    }

    fn stated(&self, limited: &str) -> Option<Usage> {
        Usage::parse(self.nodes.get(kept_at(limited, STATS).as_str())?.data.as_deref()?)
    }

    fn counted(&self, limited: &str) -> Usage {
        let itself = self.nodes.get(limited);
        let sizes = itself.into_iter().chain(self.below(limited).map(|(_, node)| node));
        let (count, bytes) = sizes.fold((0, 0), |(count, bytes), node| (count + 1, bytes + node.data_len()));
        Usage::new(count, bytes)
    }

    fn write_stats(&mut self, limited: &str, held: Usage) {
        let Some(node) = Self::for_change(&mut self.nodes, kept_at(limited, STATS).as_str()) else { return };
        let before = node.data_len();
        node.data = Some(held.text());
        self.data_bytes = self.data_bytes + node.data_len() - before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_zookeepers() {
        let text = b"count=4,bytes=5=;byteHardLimit=10;countHardLimit=-1";
        assert_eq!(Usage::parse(text), Some(Usage { count: 4, bytes: 5 }));
        assert_eq!((number(text, "byteHardLimit"), number(text, "countHardLimit")), (Some(10), Some(-1)));
        assert_eq!(number(b"count=x,bytes=\xff", "count"), None);
        assert_eq!(Usage::parse(b""), None);
        assert_eq!(&Usage { count: 4, bytes: -5 }.text()[..], b"count=4,bytes=-5");
    }
}
