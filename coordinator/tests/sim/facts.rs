//! What an all-seeing observer knows: every proposal, promise and durable vote of every server that ever was, and
//! what is chosen by them. The invariants compare the servers with this; no server sees any of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use loggos_coordinator::paxos::ballot::{Ballot, ServerId, Slot};
use loggos_coordinator::paxos::event::{Action, Event, Record, Recovered, Status, Write};
use loggos_coordinator::paxos::membership::{Config, ConfigHistory};
use loggos_coordinator::paxos::moment::Moment;
use loggos_coordinator::paxos::quorum::majority;
use loggos_coordinator::paxos::value::Value;
use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::EventType;

use crate::clocks::True;
use crate::disk::Disk;
use crate::replica::{ClientId, Effect, Fence, Replica};

/// Something that was seen.
pub enum Observation<'a> {
    /// A server's process began.
    Started {
        /// Which.
        server: ServerId,
        /// What it remembers.
        recovered: &'a Recovered,
        /// What it let go, being covered elsewhere.
        released: Slot,
        /// Its clock.
        at: Moment,
    },
    /// A process ended; so did the belief in any lease.
    Ended {
        /// Which.
        server: ServerId,
    },
    /// An engine took an event.
    Stepped {
        /// Which.
        server: ServerId,
        /// Its status before.
        before: &'a Status,
        /// The event.
        event: &'a Event,
        /// What it wants done.
        actions: &'a [Action],
        /// Its status after.
        after: &'a Status,
        /// Its clock.
        at: Moment,
        /// What is durable there at this moment.
        disk: &'a Disk,
    },
    /// A write became durable, be it that nobody will be told.
    Durable {
        /// Where.
        server: ServerId,
        /// What.
        write: &'a Write,
    },
    /// A slot is chosen by durable votes.
    Chosen {
        /// The slot.
        slot: Slot,
        /// At which ballot.
        ballot: Ballot,
        /// The value.
        value: &'a Value,
    },
    /// A server has applied a slot.
    Applied {
        /// Which.
        server: ServerId,
        /// The slot.
        slot: Slot,
        /// The value.
        value: &'a Value,
        /// What its entries came to.
        effects: &'a [Effect],
        /// The state after it.
        replica: &'a Replica,
    },
    /// A server took up a snapshot.
    Restored {
        /// Which.
        server: ServerId,
        /// The slot that it stands for.
        slot: Slot,
        /// The state.
        replica: &'a Replica,
    },
    /// A client has asked for a read that must be fresh.
    ReadAsked {
        /// Of which server.
        server: ServerId,
        /// Its number there.
        read: u64,
    },
    /// It may be served now, from the state at this slot.
    ReadServed {
        /// By which server.
        server: ServerId,
        /// Its number there.
        read: u64,
        /// The last slot applied there.
        applied: Slot,
    },
    /// A write is acknowledged to a client by a server that has applied up to `slot`.
    Acknowledged {
        /// The slot.
        slot: Slot,
    },
    /// A server puts a reply on a connection.
    Replied {
        /// The connection.
        fence: Fence,
        /// The zxid that the reply carries.
        zxid: Zxid,
    },
    /// A client has received a reply.
    Seen {
        /// Who.
        client: ClientId,
        /// The zxid that the reply carries.
        zxid: Zxid,
    },
    /// A connection has set a watch.
    Watching {
        /// The connection.
        fence: Fence,
        /// The node.
        path: &'a str,
        /// As of when.
        zxid: Zxid,
    },
    /// A server puts an event on a connection.
    WatchFired {
        /// The connection.
        fence: Fence,
        /// The node.
        path: &'a str,
        /// The change's zxid.
        zxid: Zxid,
    },
}

/// A lease in which a leader believes.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// Whose leadership.
    pub ballot: Ballot,
    /// When its belief ends.
    pub ends: True,
}

/// A chosen slot.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The value.
    pub value: Value,
    /// The first ballot at which a majority had it.
    pub ballot: Ballot,
}

/// Who has accepted what at one ballot in one slot.
#[derive(Clone, Debug)]
pub struct Votes {
    /// The value.
    pub value: Value,
    /// Those whose vote was durable at some time.
    pub by: BTreeSet<ServerId>,
}

/// Everything.
pub struct Facts {
    /// True time.
    pub now: True,
    /// Slots after which a membership governs.
    pub alpha: u64,
    /// How long a lease lasts.
    pub lease: std::time::Duration,
    /// Whether all clocks have kept within the bound that leases rely on.
    pub clocks_bounded: bool,
    /// The value of each proposal, as first seen.
    pub proposals: BTreeMap<(Slot, Ballot), Value>,
    /// Durable votes.
    pub votes: BTreeMap<Slot, BTreeMap<Ballot, Votes>>,
    /// Who has durably promised exactly this ballot.
    pub promises: BTreeMap<Ballot, BTreeSet<ServerId>>,
    /// What is chosen.
    pub chosen: BTreeMap<Slot, Decided>,
    /// The end of the chosen prefix.
    pub prefix: Slot,
    /// The memberships chosen in the prefix.
    pub configs: ConfigHistory,
    /// Entries that were submitted by anyone who may.
    pub submitted: HashSet<Bytes>,
    /// The highest durable promise of each identity.
    pub promised: BTreeMap<ServerId, Ballot>,
    /// Votes that damage has made unreadable.
    pub lost: BTreeSet<(ServerId, Slot, Ballot)>,
    /// Which leaders believe in a lease.
    pub leases: BTreeMap<ServerId, Lease>,
    /// Whether fresh reads may rely on leases.
    pub lease_reads: bool,
    /// Until when a session was promised to live.
    pub safe_until: BTreeMap<SessionId, True>,
    /// When each node's data changed.
    pub changes: BTreeMap<String, BTreeSet<Zxid>>,
    changes_upto: Slot,
    reported: BTreeSet<(Slot, Ballot)>,
}

impl Facts {
    /// Nothing has happened yet.
    pub fn new(founding: Config, alpha: u64, lease: std::time::Duration) -> Self {
        Self {
            now: 0,
            alpha,
            lease,
            clocks_bounded: true,
            proposals: BTreeMap::new(),
            votes: BTreeMap::new(),
            promises: BTreeMap::new(),
            chosen: BTreeMap::new(),
            prefix: Slot::ZERO,
            configs: ConfigHistory::founding(founding, alpha),
            submitted: HashSet::new(),
            promised: BTreeMap::new(),
            lost: BTreeSet::new(),
            leases: BTreeMap::new(),
            lease_reads: true,
            safe_until: BTreeMap::new(),
            changes: BTreeMap::new(),
            changes_upto: Slot::ZERO,
            reported: BTreeSet::new(),
        }
    }

    /// The membership of `slot`; `None` if what decides it is not chosen yet.
    pub fn config(&self, slot: Slot) -> Option<&Arc<Config>> {
        (slot.since(self.prefix) <= self.alpha).then(|| self.configs.at(slot))
    }

    /// All memberships that may matter: those that govern slots above `known`, and those proposed and not decided.
    pub fn live_configs(&self, known: Slot) -> Vec<Arc<Config>> {
        let entries = self.configs.entries();
        let ended = |at: &usize| {
            entries.get(at + 1).is_some_and(|(next, _)| self.configs.governs_from(*next) <= known.next())
        };
        let governing = (0..entries.len()).filter(|at| !ended(at));
        let mut configs: Vec<Arc<Config>> = governing.map(|at| Arc::clone(&entries[at].1)).collect();
        let open = self.proposals.range((self.prefix.next(), Ballot::NONE)..);
        configs.extend(open.filter_map(|(_, value)| value.config().cloned()));
        configs
    }

    /// Takes note of a durable write; what is chosen by it comes out.
    pub fn durable(&mut self, server: ServerId, write: &Write) -> Vec<(Slot, Ballot, Value)> {
        if let Some(ballot) = write.promise {
            self.promises.entry(ballot).or_default().insert(server);
            let known = self.promised.entry(server).or_default();
            *known = (*known).max(ballot);
        }
        let mut touched = BTreeSet::new();
        for record in &write.records {
            let Record::Accepted { ballot, slot, value } = record else { continue };
            let at = self.votes.entry(*slot).or_default().entry(*ballot);
            at.or_insert_with(|| Votes { value: value.clone(), by: BTreeSet::new() }).by.insert(server);
            self.lost.remove(&(server, *slot, *ballot));
            touched.insert(*slot);
        }
        self.decide(touched)
    }

    fn decide(&mut self, mut slots: BTreeSet<Slot>) -> Vec<(Slot, Ballot, Value)> {
        let mut news = Vec::new();
        while let Some(slot) = slots.pop_first() {
            let Some(config) = self.config(slot).cloned() else { continue };
            let Some(at) = self.votes.get(&slot) else { continue };
            let voters = config.voters();
            for (ballot, votes) in at {
                let count = votes.by.intersection(&voters).count();
                if count >= majority(voters.len()) && self.reported.insert((slot, *ballot)) {
                    news.push((slot, *ballot, votes.value.clone()));
                    let decided = Decided { value: votes.value.clone(), ballot: *ballot };
                    self.chosen.entry(slot).or_insert(decided);
                }
            }
            while let Some(decided) = self.chosen.get(&self.prefix.next()) {
                self.prefix = self.prefix.next();
                if let Some(config) = decided.value.config()
                    && self.configs.admits(self.prefix)
                {
                    self.configs.push(self.prefix, Arc::clone(config));
                }
                // One more slot's membership is known now.
                slots.insert(self.prefix.plus(self.alpha));
            }
        }
        news
    }

    /// The highest ballot below `below` at which `server` voted in `slot`, of the votes that still matter.
    pub fn highest_vote(
        &self,
        server: ServerId,
        slot: Slot,
        below: Ballot,
        voters: &BTreeSet<ServerId>,
    ) -> Option<Ballot> {
        let votes = self.votes.get(&slot)?.range(..below).rev();
        let mut own = votes.filter(|(_, votes)| votes.by.contains(&server));
        let matters = |ballot: &Ballot, votes: &Votes| {
            let may_vote = |voter: &&ServerId| {
                votes.by.contains(*voter)
                    || self.promised.get(*voter).is_none_or(|promised| promised <= ballot)
            };
            !self.lost.contains(&(server, slot, *ballot))
                || voters.iter().filter(may_vote).count() >= majority(voters.len())
        };
        own.find(|(ballot, votes)| matters(ballot, votes)).map(|(ballot, _)| *ballot)
    }

    /// Whether fresh reads must be fresh: leases are not used, or the clocks are good enough for them.
    pub fn reads_trusted(&self) -> bool {
        self.clocks_bounded || !self.lease_reads
    }

    /// Takes note of what a slot's entries changed; false if that is known already.
    pub fn applied(&mut self, slot: Slot, effects: &[Effect]) -> bool {
        if slot <= self.changes_upto {
            return false;
        }
        self.changes_upto = slot;
        for applied in effects.iter().map(|effect| &effect.applied) {
            for event in &applied.events {
                if event.event.event != EventType::NodeChildrenChanged {
                    self.changes.entry(event.event.path.clone()).or_default().insert(applied.zxid);
                }
            }
        }
        true
    }

    /// A client is told that its session was heard of at `from`: it lives for another time-out, a little less for
    /// what clocks may differ, if the last promise was renewed in time.
    pub fn promise_time(&mut self, session: SessionId, from: True, timeout_ms: u32) {
        let until = from + u64::from(timeout_ms) * 970;
        let known = self.safe_until.entry(session).or_insert(until);
        if *known >= self.now {
            *known = (*known).max(until);
        }
    }

    /// Takes note of a proposal.
    pub fn propose(&mut self, slot: Slot, ballot: Ballot, value: &Value) {
        self.proposals.entry((slot, ballot)).or_insert_with(|| value.clone());
    }
}
