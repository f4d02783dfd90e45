//! Fetch sessions (KIP-227): a client names its partitions once, and afterwards only what changed. A session
//! belongs to its connection and goes with it; a client that reconnects begins another, as it does after any error.
//!
//! The session stays registered with its partitions, which tell it when there is more to see: a request costs what
//! moved, not what there is. Called by `fetch`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use loggos_protocol::ids::{LeaderEpoch, Offset, PartitionId, TopicId, TopicName};
use loggos_protocol::kafka::ErrorCode;
use tokio::sync::Mutex;

use crate::partition::Partition;
use crate::partition::waiters::FetchWatch;

/// Sessions of one connection: clients have one.
const SESSIONS_MAX: usize = 4;

/// A partition that a fetch wants.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub topic: TopicName,
    pub topic_id: TopicId,
    pub partition: PartitionId,
    pub offset: Offset,
    pub max_bytes: usize,
    pub believed: LeaderEpoch,
    pub last_fetched: LeaderEpoch,
}

/// A partition of a session.
pub(super) struct Member {
    pub wanted: Wanted,
    pub partition: Option<Arc<Partition>>,
    /// The high watermark and the log start that were told last.
    pub told: Option<(Offset, Offset)>,
    /// The number that the partition knows this member by.
    token: u32,
}

/// What identifies a member: the topic by whatever the client calls it.
pub(super) type MemberKey = (TopicName, TopicId, PartitionId);

/// One session, or a fetch without one.
pub(super) struct Session {
    pub id: i32,
    pub epoch: i32,
    pub members: BTreeMap<MemberKey, Member>,
    by_token: BTreeMap<u32, MemberKey>,
    next_token: u32,
    /// Members that are to be looked at.
    pub due: BTreeSet<MemberKey>,
    pub watch: Arc<FetchWatch>,
    /// Whether a broker asks, that copies what is appended.
    pub follows: bool,
}

impl Session {
    pub(super) fn new(id: i32) -> Self {
        Self {
            id,
            epoch: 1,
            members: BTreeMap::new(),
            by_token: BTreeMap::new(),
            next_token: 0,
            due: BTreeSet::new(),
            watch: Arc::default(),
            follows: false,
        }
    }

    /// Takes up what a request says of a partition. It is looked at in this request.
    pub(super) fn set(&mut self, wanted: Wanted, partition: Option<Arc<Partition>>) {
        let key = (wanted.topic.clone(), wanted.topic_id, wanted.partition);
        self.due.insert(key.clone());
        if let Some(member) = self.members.get_mut(&key) {
            member.wanted = wanted;
            let same = match (&member.partition, &partition) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            };
            if !same {
                if let Some(partition) = &partition {
                    partition.watch(&self.watch, member.token, self.follows);
                }
                member.partition = partition;
            }
            return;
        }
        let token = self.next_token;
        self.next_token += 1;
        if let Some(partition) = &partition {
            partition.watch(&self.watch, token, self.follows);
        }
        self.by_token.insert(token, key.clone());
        self.members.insert(key, Member { wanted, partition, told: None, token });
    }

    /// Forgets a partition.
    pub(super) fn forget(&mut self, key: &MemberKey) {
        self.due.remove(key);
        if let Some(member) = self.members.remove(key) {
            self.by_token.remove(&member.token);
            if let Some(partition) = member.partition {
                partition.unwatch(&self.watch, member.token);
            }
        }
    }

    /// Notes which partitions have moved; whether any has.
    pub(super) fn take_moved(&mut self) -> bool {
        let moved = self.watch.take_moved();
        let any = !moved.is_empty();
        self.due.extend(moved.iter().filter_map(|token| self.by_token.get(token)).cloned());
        any
    }
}

/// A connection's sessions.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<Vec<Arc<Mutex<Session>>>>,
    peer: String,
}

impl Sessions {
    /// No sessions yet of a client at this address.
    pub fn of(peer: std::net::IpAddr) -> Self {
        Self { open: Mutex::default(), peer: format!("/{peer}") }
    }

    /// Where the client is, as Kafka shows it: `/127.0.0.1`.
    pub(super) fn peer(&self) -> &str {
        &self.peer
    }

    /// Begins a session, whose id is the caller's draw; the oldest gives way.
    pub(super) async fn begin(&self, id: i32) -> Arc<Mutex<Session>> {
        let session = Arc::new(Mutex::new(Session::new(id)));
        let mut open = self.open.lock().await;
        if open.len() == SESSIONS_MAX {
            open.remove(0);
        }
        open.push(Arc::clone(&session));
        session
    }

    /// The session that a request goes on with.
    pub(super) async fn resume(&self, id: i32, epoch: i32) -> Result<Arc<Mutex<Session>>, ErrorCode> {
        let open = self.open.lock().await.clone();
        for session in open {
            let mut held = session.lock().await;
            if held.id != id {
                continue;
            }
            if held.epoch != epoch {
                return Err(ErrorCode::INVALID_FETCH_SESSION_EPOCH);
            }
            held.epoch = if epoch == i32::MAX { 1 } else { epoch + 1 };
            drop(held);
            return Ok(session);
        }
        Err(ErrorCode::FETCH_SESSION_ID_NOT_FOUND)
    }

    /// Ends a session.
    pub(super) async fn end(&self, id: i32) {
        let mut open = self.open.lock().await;
        let mut kept = Vec::with_capacity(open.len());
        for session in open.drain(..) {
            if session.lock().await.id != id {
                kept.push(session);
            }
        }
        *open = kept;
    }
}
