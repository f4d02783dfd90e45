//! The membership as operators, clients and other servers see it: status, the text of `/zookeeper/config`, questions
//! of other servers, and changes on their way through the leader. Called by `driver`.

use bytes::Bytes;
use loggos_protocol::ids::Zxid;
use serde::Serialize;
use tokio::sync::oneshot;

use super::{Driver, clocks};
use crate::paxos::ballot::ServerId;
use crate::paxos::event::{ChangeError, Event, RequestId};
use crate::paxos::membership::{Change, Config, Role};
use crate::peer::door::Asked;
use crate::peer::handshake::{Answer, Card, Question};

/// Changes under way at one time.
const CHANGES_MAX: usize = 64;

/// An operator's wish, with the way back.
#[derive(Debug)]
pub(crate) enum CellRequest {
    /// How are things?
    Status(oneshot::Sender<CellStatus>),
    /// The same question as another server would ask.
    Ask(Asked),
}

/// Who waits for a change.
pub(super) type Asker = oneshot::Sender<Answer>;

/// One member of the cell.
#[derive(Clone, Debug, Serialize)]
pub struct MemberStatus {
    /// Its number.
    pub server: u16,
    /// `voter`, `learner` or `witness`.
    pub role: &'static str,
    /// Whether it leads.
    pub leader: bool,
    /// Where its peers reach it.
    pub peer: String,
    /// The port of its bulk channel.
    pub bulk_port: u16,
    /// Where clients reach it.
    pub client: String,
}

/// How a server and its cell are, as this server sees it.
#[derive(Clone, Debug, Serialize)]
pub struct CellStatus {
    /// The cell.
    pub cell: String,
    /// This server's number.
    pub server: u16,
    /// `leader`, `follower`, `observer`, `standalone`, `read-only`, or `looking` for a leader.
    pub mode: &'static str,
    /// The leader's number; 0 if none is known.
    pub leader: u16,
    /// Where clients reach the leader.
    pub leader_client: String,
    /// Its ballot, as round and owner.
    pub ballot: String,
    /// What is left of this server's lease; 0 if it doesn't lead.
    pub lease_left_ms: u64,
    /// The last slot applied here.
    pub applied: u64,
    /// Slots up to this one are covered by a snapshot.
    pub log_floor: u64,
    /// The newest zxid here.
    pub zxid: i64,
    /// Whether votes may have been lost on this disk, and the others have not made up for it yet.
    pub uncertain: bool,
    /// Connected clients.
    pub connections: usize,
    /// Sessions of the whole cell.
    pub sessions: usize,
    /// All members, ordered by number.
    pub members: Vec<MemberStatus>,
}

impl Driver {
    pub(super) fn cell_request(&mut self, request: CellRequest) {
        match request {
            // Whoever asked may have given up.
            CellRequest::Status(answer) => drop(answer.send(self.status())),
            CellRequest::Ask(asked) => self.asked(asked),
        }
    }

    /// ZooKeeper's word for what this server is.
    pub(super) fn mode(&self) -> &'static str {
        match self.config.role(self.identity.server) {
            _ if self.config.members.len() <= 1 => "standalone",
            _ if self.leaderless.is_some() && self.options.read_only => "read-only",
            _ if self.leaderless.is_some() => "looking",
            _ if self.view.leading => "leader",
            Some(Role::Learner) => "observer",
            _ => "follower",
        }
    }

    pub(super) fn status(&self) -> CellStatus {
        let engine = self.engine.status();
        let client_of = |id: ServerId| self.config.member(id).map_or("", |member| member.client.as_str());
        let lease_left = engine.lease_until.map(|until| until.since(clocks().at)).unwrap_or_default();
        CellStatus {
            cell: self.identity.cell.to_string(),
            server: self.identity.server.raw(),
            mode: self.mode(),
            leader: self.view.leader.raw(),
            leader_client: client_of(self.view.leader).to_owned(),
            ballot: self.view.ballot.to_string(),
            lease_left_ms: u64::try_from(lease_left.as_millis()).unwrap_or(u64::MAX),
            applied: self.applied.raw(),
            log_floor: engine.floor.raw(),
            zxid: self.tree.zxid().raw(),
            uncertain: engine.uncertain,
            connections: self.clients.len(),
            sessions: self.tree.session_count(),
            members: self
                .config
                .members
                .iter()
                .map(|member| MemberStatus {
                    server: member.id.raw(),
                    role: role_name(member.role),
                    leader: member.id == self.view.leader,
                    peer: member.peer.clone(),
                    bulk_port: member.bulk_port,
                    client: member.client.clone(),
                })
                .collect(),
        }
    }

    pub(super) fn asked(&mut self, asked: Asked) {
        let Asked { question, answer } = asked;
        match question {
            Question::Who => {
                let card = Card {
                    config: self.config.as_ref().clone(),
                    leader: self.view.leader,
                    ..self.card.clone()
                };
                drop(answer.send(Answer::Card(Box::new(card))));
            }
            Question::Change(change) => self.change(change, answer),
            Question::Transfer(target) => {
                if self.view.leading {
                    self.event(Event::Transfer(target));
                    drop(answer.send(Answer::Done));
                } else {
                    drop(answer.send(self.elsewhere()));
                }
            }
        }
    }

    fn change(&mut self, change: Change, answer: Asker) {
        if self.changes.len() >= CHANGES_MAX {
            drop(answer.send(Answer::Refused("too many changes are under way".to_owned())));
            return;
        }
        let id = self.next_id();
        self.changes.insert(id, answer);
        self.event(Event::Reconfigure { id: RequestId(id), change });
    }

    pub(super) fn reconfigured(&mut self, id: u64, outcome: Result<(), ChangeError>) {
        let Some(asker) = self.changes.remove(&id) else { return };
        let answer = match outcome {
            Ok(()) => Answer::Done,
            Err(ChangeError::NotLeader { .. }) => self.elsewhere(),
            Err(error) => Answer::Refused(error.to_string()),
        };
        // Whoever asked may have given up.
        drop(asker.send(answer));
    }

    fn elsewhere(&self) -> Answer {
        let leader = self.config.member(self.view.leader);
        Answer::Elsewhere(leader.map(|member| member.peer.clone()).unwrap_or_default())
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Voter => "voter",
        Role::Learner => "learner",
        Role::Witness => "witness",
    }
}

/// The members in one line, for the log.
pub(super) fn summary(config: &Config) -> String {
    let member = |member: &crate::paxos::membership::Member| {
        format!("{} {} at {}", role_name(member.role), member.id, member.peer)
    };
    config.members.iter().map(member).collect::<Vec<_>>().join(", ")
}

/// The data of `/zookeeper/config` (design 3.7): a line per server, and the version. A server of its own shows
/// nothing, as ZooKeeper's does: its clients keep to the addresses that they know.
pub(crate) fn config_text(config: &Config, zxid: Zxid) -> Bytes {
    if config.members.len() <= 1 {
        return Bytes::new();
    }
    let mut text = String::new();
    for member in &config.members {
        let kind = match member.role {
            Role::Voter | Role::Witness => "participant",
            Role::Learner => "observer",
        };
        text.push_str(&format!(
            "server.{}={}:{}:{kind};{}\n",
            member.id, member.peer, member.bulk_port, member.client
        ));
    }
    text.push_str(&format!("version={:x}", zxid.raw()));
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paxos::membership::Member;

    #[test]
    fn the_config_node_says_what_java_clients_parse() {
        let member = |id: u16, role| Member {
            id: ServerId::new(id),
            role,
            peer: format!("host{id}:2888"),
            bulk_port: 2889,
            client: format!("host{id}:2181"),
            token: 0,
        };
        let alone = Config::founding(vec![member(1, Role::Voter)]);
        assert!(config_text(&alone, Zxid::new(1)).is_empty());
        let two = Config::founding(vec![member(1, Role::Voter), member(12, Role::Learner)]);
        let text = "server.1=host1:2888:2889:participant;host1:2181\n\
                    server.12=host12:2888:2889:observer;host12:2181\nversion=1f";
        assert_eq!(config_text(&two, Zxid::new(31)), text);
    }
}
