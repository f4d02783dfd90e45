//! Who is told of which change: one-shot watches on data and on children, persistent ones, and persistent ones of
//! whole subtrees (P).
//!
//! Source: ZooKeeper 3.9's `WatchManager` with the modes independent of each other (ZOOKEEPER-4466). Called by
//! `driver`, which applies a change, asks [`Watches::fire`] who is told, and queues the events before any reply
//! that reflects the change. Watches die with their connection; nothing here is replicated or kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use loggos_protocol::zookeeper::EventType;
use smallvec::SmallVec;

/// One TCP connection of a client, numbered in the order of arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// Wraps a number.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The next number.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a watch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WatchKind {
    /// The node's creation, change or end; once.
    Data,
    /// A change of the node's list of children, or its end; once.
    Child,
    /// All of these, until removed.
    Persistent,
    /// Creations, changes and ends of the node and everything below it, until removed.
    Recursive,
}

impl WatchKind {
    /// All of them, as `Any` means in checkWatches and removeWatches.
    pub const ALL: [Self; 4] = [Self::Data, Self::Child, Self::Persistent, Self::Recursive];

    /// What a watcher type of checkWatches and removeWatches stands for, if it is one.
    pub const fn of_type(raw: i32) -> Option<&'static [Self]> {
        match raw {
            1 => Some(&[Self::Child]),
            2 => Some(&[Self::Data]),
            3 => Some(&Self::ALL),
            4 => Some(&[Self::Persistent]),
            5 => Some(&[Self::Recursive]),
            _ => None,
        }
    }
}

/// Who watches one path in one way, ascending. Most paths have one or two watchers.
type Watchers = SmallVec<[ConnectionId; 2]>;

/// Whom a change is told to, ascending; each connection once.
pub type Told = SmallVec<[ConnectionId; 4]>;

type Table = BTreeMap<Arc<str>, Watchers>;

/// What a watch costs beside its path, in bytes: its places in a table and in its connection's list.
const WATCH_BYTES: usize = 160;
/// What the watches of one connection may cost.
const CONNECTION_BYTES: usize = 256 << 20;
/// What all watches may cost.
const BYTES: usize = 1 << 30;

/// There are too many watches: this one is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood;

/// What one connection watches.
#[derive(Clone, Debug, Default)]
struct Own {
    watches: BTreeSet<(WatchKind, Arc<str>)>,
    bytes: usize,
}

/// All watches of one server.
#[derive(Clone, Debug, Default)]
pub struct Watches {
    data: Table,
    child: Table,
    persistent: Table,
    recursive: Table,
    by_connection: BTreeMap<ConnectionId, Own>,
    count: usize,
    bytes: usize,
}

impl Watches {
    fn table(&mut self, kind: WatchKind) -> &mut Table {
        match kind {
            WatchKind::Data => &mut self.data,
            WatchKind::Child => &mut self.child,
            WatchKind::Persistent => &mut self.persistent,
            WatchKind::Recursive => &mut self.recursive,
        }
    }

    /// Sets a watch; setting it twice is setting it once.
    ///
    /// # Errors
    /// `Flood` when the connection's watches, or all of them, take too much memory.
    pub fn add(&mut self, connection: ConnectionId, kind: WatchKind, path: &str) -> Result<(), Flood> {
        // The path's text is shared by the table and every watcher's list.
        let shared = match self.table(kind).get_key_value(path) {
            Some((shared, _)) => Arc::clone(shared),
            None => Arc::from(path),
        };
        let bytes = WATCH_BYTES + path.len();
        let own = self.by_connection.entry(connection).or_default();
        let watch = (kind, Arc::clone(&shared));
        let flood = own.bytes + bytes > CONNECTION_BYTES || self.bytes + bytes > BYTES;
        if flood && !own.watches.contains(&watch) {
            if own.watches.is_empty() {
                self.by_connection.remove(&connection);
            }
            return Err(Flood);
        }
        if own.watches.insert(watch) {
            own.bytes += bytes;
            self.bytes += bytes;
            self.count += 1;
            let watchers = self.table(kind).entry(shared).or_default();
            if let Err(at) = watchers.binary_search(&connection) {
                watchers.insert(at, connection);
            }
        }
        Ok(())
    }

    /// Whether the connection has a watch of one of `kinds` on `path`.
    pub fn has(&self, connection: ConnectionId, kinds: &[WatchKind], path: &str) -> bool {
        let path: Arc<str> = Arc::from(path);
        self.by_connection
            .get(&connection)
            .is_some_and(|own| kinds.iter().any(|kind| own.watches.contains(&(*kind, Arc::clone(&path)))))
    }

    /// Removes the connection's watches of `kinds` on `path`; false if there was none.
    pub fn remove(&mut self, connection: ConnectionId, kinds: &[WatchKind], path: &str) -> bool {
        let path: Arc<str> = Arc::from(path);
        let mut found = false;
        for &kind in kinds {
            if self.forget(connection, kind, &path) {
                self.strike(connection, kind, &path);
                found = true;
            }
        }
        found
    }

    /// Removes every watch of a connection that has gone.
    pub fn remove_connection(&mut self, connection: ConnectionId) {
        let own = self.by_connection.remove(&connection).unwrap_or_default();
        self.bytes -= own.bytes;
        self.count -= own.watches.len();
        for (kind, path) in own.watches {
            self.strike(connection, kind, &path);
        }
    }

    /// Says who is told of `event` on `path`, and takes the one-shot watches that it uses up.
    pub fn fire(&mut self, event: EventType, path: &str) -> Told {
        let mut told = Told::new();
        match event {
            EventType::NodeCreated | EventType::NodeDataChanged => {
                self.take(WatchKind::Data, path, &mut told);
                self.add_recursive(path, &mut told);
            }
            EventType::NodeDeleted => {
                self.take(WatchKind::Data, path, &mut told);
                self.take(WatchKind::Child, path, &mut told);
                self.add_recursive(path, &mut told);
            }
            EventType::NodeChildrenChanged => self.take(WatchKind::Child, path, &mut told),
        }
        told.extend(self.persistent.get(path).into_iter().flatten().copied());
        told.sort_unstable();
        told.dedup();
        told
    }

    /// How many watches there are.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// How many connections have watches.
    pub fn connection_count(&self) -> usize {
        self.by_connection.len()
    }

    /// How many different paths are watched.
    pub fn path_count(&self) -> usize {
        self.paths().len()
    }

    /// Every watched path with its watchers, in order.
    pub fn paths(&self) -> BTreeMap<&str, BTreeSet<ConnectionId>> {
        let mut paths: BTreeMap<&str, BTreeSet<ConnectionId>> = BTreeMap::new();
        for (connection, own) in &self.by_connection {
            for (_, path) in &own.watches {
                paths.entry(path).or_default().insert(*connection);
            }
        }
        paths
    }

    fn take(&mut self, kind: WatchKind, path: &str, told: &mut Told) {
        let Some((path, watchers)) = self.table(kind).remove_entry(path) else { return };
        for connection in watchers {
            self.forget(connection, kind, &path);
            told.push(connection);
        }
    }

    fn add_recursive(&self, path: &str, told: &mut Told) {
        if self.recursive.is_empty() {
            return;
        }
        let mut at = path;
        loop {
            told.extend(self.recursive.get(at).into_iter().flatten().copied());
            at = match at.rfind('/') {
                _ if at == "/" => return,
                Some(0) => "/",
                Some(end) => &at[..end],
                None => return,
            };
        }
    }

    /// Takes a watch off its connection's list.
    fn forget(&mut self, connection: ConnectionId, kind: WatchKind, path: &Arc<str>) -> bool {
        let Some(own) = self.by_connection.get_mut(&connection) else { return false };
        let found = own.watches.remove(&(kind, Arc::clone(path)));
        if found {
            self.count -= 1;
            own.bytes -= WATCH_BYTES + path.len();
            self.bytes -= WATCH_BYTES + path.len();
        }
        if own.watches.is_empty() {
            self.by_connection.remove(&connection);
        }
        found
    }

    /// Takes a watch off its table.
    fn strike(&mut self, connection: ConnectionId, kind: WatchKind, path: &str) {
        let table = self.table(kind);
        let Some(watchers) = table.get_mut(path) else { return };
        if let Ok(at) = watchers.binary_search(&connection) {
            watchers.remove(at);
        }
        if watchers.is_empty() {
            table.remove(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use EventType::{NodeChildrenChanged, NodeCreated, NodeDataChanged, NodeDeleted};

    const ONE: ConnectionId = ConnectionId::new(1);
    const TWO: ConnectionId = ConnectionId::new(2);

    #[test]
    fn one_shot_watches_fire_once_and_a_deletion_is_told_once_to_who_watches_both() {
        let mut watches = Watches::default();
        watches.add(ONE, WatchKind::Data, "/a").expect("room");
        watches.add(ONE, WatchKind::Child, "/a").expect("room");
        watches.add(TWO, WatchKind::Child, "/a").expect("room");
        assert_eq!(watches.fire(NodeDeleted, "/a").as_slice(), &[ONE, TWO]);
        assert!(watches.fire(NodeDeleted, "/a").is_empty());
        assert_eq!((watches.count(), watches.connection_count()), (0, 0));
    }

    #[test]
    fn persistent_watches_stay_and_recursive_ones_see_below_but_no_lists_of_children() {
        let mut watches = Watches::default();
        watches.add(ONE, WatchKind::Persistent, "/a").expect("room");
        watches.add(TWO, WatchKind::Recursive, "/a").expect("room");
        for _ in 0..2 {
            assert_eq!(watches.fire(NodeDataChanged, "/a").as_slice(), &[ONE, TWO]);
            assert_eq!(watches.fire(NodeChildrenChanged, "/a").as_slice(), &[ONE]);
            assert_eq!(watches.fire(NodeCreated, "/a/b/c").as_slice(), &[TWO]);
            assert!(watches.fire(NodeCreated, "/ab").is_empty());
        }
        watches.add(ONE, WatchKind::Recursive, "/").expect("room");
        assert_eq!(watches.fire(NodeCreated, "/ab").as_slice(), &[ONE]);
    }

    #[test]
    fn a_connection_s_end_takes_its_watches_alone() {
        let mut watches = Watches::default();
        for kind in WatchKind::ALL {
            watches.add(ONE, kind, "/a").expect("room");
            watches.add(TWO, kind, "/a").expect("room");
        }
        watches.remove_connection(ONE);
        assert_eq!(watches.count(), 4);
        assert_eq!(watches.fire(NodeDeleted, "/a").as_slice(), &[TWO]);
        assert!(watches.has(TWO, &[WatchKind::Persistent], "/a"));
        assert!(!watches.has(TWO, &[WatchKind::Data, WatchKind::Child], "/a"));
        assert!(watches.remove(TWO, &WatchKind::ALL, "/a"));
        assert!(!watches.remove(TWO, &WatchKind::ALL, "/a"));
        assert_eq!((watches.count(), watches.path_count()), (0, 0));
    }

    /// The same, slowly: a list of watches, searched through.
    #[test]
    fn a_list_searched_through_says_the_same() {
        use rand::rngs::SmallRng;
        use rand::{RngExt, SeedableRng};
        const PATHS: [&str; 5] = ["/", "/a", "/a/b", "/a/b/c", "/d"];
        const EVENTS: [EventType; 4] = [NodeCreated, NodeDeleted, NodeDataChanged, NodeChildrenChanged];
        let mut rng = SmallRng::seed_from_u64(7);
        let mut watches = Watches::default();
        let mut list: BTreeSet<(ConnectionId, WatchKind, &str)> = BTreeSet::new();
        for _ in 0..20_000 {
            let connection = ConnectionId::new(rng.random_range(0..4));
            let kind = WatchKind::ALL[rng.random_range(0..4)];
            let path = PATHS[rng.random_range(0..5)];
            match rng.random_range(0..8) {
                0..4 => {
                    watches.add(connection, kind, path).expect("room");
                    list.insert((connection, kind, path));
                }
                4 => {
                    let found = list.remove(&(connection, kind, path));
                    assert_eq!(watches.remove(connection, &[kind], path), found);
                }
                5 => {
                    watches.remove_connection(connection);
                    list.retain(|watch| watch.0 != connection);
                }
                _ => {
                    let event = EVENTS[rng.random_range(0..4)];
                    let hit = |watch: &(ConnectionId, WatchKind, &str)| match watch.1 {
                        WatchKind::Data => watch.2 == path && event != NodeChildrenChanged,
                        WatchKind::Child => {
                            watch.2 == path && matches!(event, NodeChildrenChanged | NodeDeleted)
                        }
                        WatchKind::Persistent => watch.2 == path,
                        WatchKind::Recursive => {
                            let below = format!("{}/", watch.2.trim_end_matches('/'));
                            event != NodeChildrenChanged && (watch.2 == path || path.starts_with(&below))
                        }
                    };
                    let expected: BTreeSet<ConnectionId> =
                        list.iter().filter(|watch| hit(watch)).map(|watch| watch.0).collect();
                    assert_eq!(watches.fire(event, path).into_iter().collect::<BTreeSet<_>>(), expected);
                    list.retain(|watch| {
                        !(hit(watch) && matches!(watch.1, WatchKind::Data | WatchKind::Child))
                    });
                }
            }
            assert_eq!(watches.count(), list.len());
        }
    }

    #[test]
    fn a_flood_of_watches_is_bounded_and_ebbs() {
        let mut watches = Watches::default();
        let path = |number: usize| format!("/{number}-{}", "x".repeat(1 << 20));
        let most = CONNECTION_BYTES / (WATCH_BYTES + path(100).len());
        for number in 0..most {
            watches.add(ONE, WatchKind::Data, &path(number)).expect("room");
        }
        assert_eq!(watches.add(ONE, WatchKind::Data, &path(most)), Err(Flood));
        assert_eq!(watches.add(ONE, WatchKind::Data, &path(0)), Ok(()), "it is set already");
        assert_eq!(watches.add(TWO, WatchKind::Data, &path(most)), Ok(()), "others have room");
        assert!(watches.remove(ONE, &[WatchKind::Data], &path(7)));
        assert_eq!(watches.add(ONE, WatchKind::Data, &path(most)), Ok(()));
        assert_eq!(watches.fire(NodeDeleted, &path(most)).as_slice(), &[ONE, TWO]);
        watches.remove_connection(ONE);
        assert_eq!((watches.count(), watches.bytes), (0, 0));
    }
}
