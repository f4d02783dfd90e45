//! How a server comes to belong to a cell: a cell of its own, one formed with others, or one that lets it in
//! (design 1.12).
//!
//! A number in a cell stands for one memory. A directory that has one keeps it; an empty one never takes up a number
//! that was given out before: each empty directory draws a token, and a number is given to a token. So a server
//! whose disk was lost, and which finds its cell formed, is let in as a new one. With a list of servers the first
//! in it forms the cell, once all the others have been heard and have said that they are empty, with one list; a
//! server that hears of an existing cell never forms another. Called by `start`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::{CoordinatorOptions, host_and_port};
use crate::error::{CoordinatorError, LedgerError};
use crate::ledger::{Identity, IdentityFile};
use crate::paxos::ballot::{CellId, ServerId};
use crate::paxos::membership::{Change, Config, Member, Role};
use crate::peer::ask;
use crate::peer::handshake::{Answer, Card, Question};

/// Pause between two rounds of questions.
const ROUND: Duration = Duration::from_millis(100);
/// What keeps a cell from being formed is said so often.
const COMPLAIN: Duration = Duration::from_secs(5);

/// Where this server is reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listening {
    pub peer: SocketAddr,
    pub bulk: SocketAddr,
    pub client: SocketAddr,
}

impl Listening {
    /// This server as a member; `peer` is where the others reach it.
    fn member(&self, peer: String, token: u64) -> Member {
        let host = peer.rsplit_once(':').map_or(peer.as_str(), |(host, _)| host);
        let client = advertised(host, self.client);
        let (id, role, bulk_port) = (ServerId::NONE, Role::Voter, self.bulk.port());
        Member { id, role, peer, bulk_port, client, token }
    }

    /// This server as a member of a cell of its own.
    pub fn alone(&self, token: u64) -> Member {
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Member { id: ServerId::FIRST, ..self.member(advertised(&node, self.peer), token) }
    }

    /// What is told of this server before it belongs to a cell. A client address without a host is completed by
    /// whoever knows the host.
    pub fn card(&self, options: &CoordinatorOptions, identity: &Identity) -> Card {
        Card {
            boot: rand::random(),
            token: identity.token,
            servers: options.servers.clone(),
            bulk_port: self.bulk.port(),
            client: advertised("", self.client),
            ..Card::default()
        }
    }
}

/// Where a listener is reached by others who reach its machine as `host`.
fn advertised(host: &str, listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() { format!("{host}:{}", listen.port()) } else { listen.to_string() }
}

/// Returns when the directory belongs to a server of a cell.
pub(crate) async fn settle(
    options: &CoordinatorOptions,
    listening: Listening,
    card: &Card,
    file: IdentityFile,
) -> Result<IdentityFile, CoordinatorError> {
    if file.get().is_member() {
        return Ok(file);
    }
    let mut applicant = Applicant { listening, card, complained: None };
    let token = file.get().token;
    let identity = if let Some(target) = &options.join {
        applicant.ask_in(target, token).await
    } else if options.servers.is_empty() {
        let config = Config::founding(vec![listening.alone(token)]);
        founder(file.get(), ServerId::FIRST, config)
    } else {
        applicant.form(&options.servers, file.get()).await?
    };
    let incarnation = file.get().incarnation;
    keep(file, Identity { incarnation, token, ..identity }).await
}

fn founder(now: &Identity, server: ServerId, config: Config) -> Identity {
    let cell = CellId::new(rand::random::<u128>() | 1);
    Identity { cell, server, founding: config.clone(), entry: config, ..now.clone() }
}

/// Makes the directory the server's, on a thread that may wait for the disk.
async fn keep(mut file: IdentityFile, identity: Identity) -> Result<IdentityFile, CoordinatorError> {
    let kept = tokio::task::spawn_blocking(move || file.keep(identity).map(|()| file));
    match kept.await {
        Ok(file) => Ok(file?),
        Err(error) => {
            Err(LedgerError::io("write", std::path::Path::new("identity"), &std::io::Error::other(error))
                .into())
        }
    }
}

/// A server that belongs to no cell yet.
struct Applicant<'a> {
    listening: Listening,
    card: &'a Card,
    complained: Option<Instant>,
}

impl Applicant<'_> {
    /// Until a cell with this server is formed, or found.
    async fn form(&mut self, servers: &[String], now: &Identity) -> Result<Identity, CoordinatorError> {
        tracing::info!(?servers, "waiting for the servers of a new cell");
        loop {
            let cards = ask_all(servers).await;
            let own = cards.iter().position(|card| card.as_ref().is_some_and(|c| c.boot == self.card.boot));
            if own.is_none() && cards.iter().all(Option::is_some) {
                return Err(CoordinatorError::Cell(format!(
                    "--servers: none of {} is this server; name it as the others reach it, and let --peer-listen \
                     listen there",
                    servers.join(",")
                )));
            }
            if let Some(formed) = cards.iter().flatten().find(|card| card.cell != CellId::NONE) {
                if let Some(identity) = adopted(formed, now.token) {
                    tracing::info!(cell = %identity.cell, server = %identity.server, "belongs to the cell");
                    return Ok(identity);
                }
                if let Some(own) = own {
                    let member = self.listening.member(servers[own].clone(), now.token);
                    let at = formed_at(servers, &cards);
                    self.complain(
                        "an empty directory, and the cell is formed: asking to be let in as a new server",
                    );
                    self.apply(at, member).await;
                }
            } else if own == Some(0) {
                match founding(servers, &cards) {
                    Ok(members) => {
                        let config = Config::founding(members);
                        let identity = founder(now, ServerId::FIRST, config);
                        tracing::info!(cell = %identity.cell, servers = servers.len(), "forms a cell");
                        return Ok(identity);
                    }
                    Err(why) => self.complain(&why),
                }
            } else {
                self.complain("waiting for the first server of the list to form the cell");
            }
            tokio::time::sleep(ROUND).await;
        }
    }

    /// Until the cell of `target` has let this server in.
    async fn ask_in(&mut self, target: &str, token: u64) -> Identity {
        tracing::info!(target, "asking to be let into a cell");
        loop {
            match ask(target, None, &Question::Who).await {
                Ok((Answer::Card(card), _)) if card.cell == CellId::NONE => {
                    self.complain("the server named by --join belongs to no cell yet");
                }
                Ok((Answer::Card(card), local)) => {
                    if let Some(identity) = adopted(&card, token) {
                        tracing::info!(cell = %identity.cell, server = %identity.server, "let in");
                        return identity;
                    }
                    let host = match local.ip() {
                        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
                        std::net::IpAddr::V4(ip) => ip.to_string(),
                    };
                    let member = self.listening.member(advertised(&host, self.listening.peer), token);
                    self.apply(target, member).await;
                }
                Ok((_, _)) => self.complain("the server named by --join answers something else"),
                Err(error) => self.complain(&format!("the server named by --join can't be asked: {error}")),
            }
            tokio::time::sleep(ROUND).await;
        }
    }

    /// Asks once to be let in, where the leader is.
    async fn apply(&mut self, target: &str, member: Member) {
        let question = Question::Change(Change::Join { member });
        let mut at = target.to_owned();
        // The one who is asked first may know who leads, who may know better.
        for _ in 0..3 {
            match ask(&at, None, &question).await {
                Ok((Answer::Elsewhere(leader), _)) if !leader.is_empty() => at = leader,
                Ok((Answer::Refused(why), _)) => return self.complain(&format!("not let in yet: {why}")),
                Ok((_, _)) => return,
                Err(error) => return self.complain(&format!("{at} can't be asked: {error}")),
            }
        }
    }

    fn complain(&mut self, why: &str) {
        if self.complained.is_none_or(|last| last.elapsed() > COMPLAIN) {
            self.complained = Some(Instant::now());
            tracing::warn!("{why}");
        }
    }
}

async fn ask_all(servers: &[String]) -> Vec<Option<Card>> {
    let asking: Vec<_> = servers
        .iter()
        .map(|server| {
            let server = server.clone();
            tokio::spawn(async move { ask(&server, None, &Question::Who).await })
        })
        .collect();
    let mut cards = Vec::new();
    for asked in asking {
        cards.push(match asked.await {
            Ok(Ok((Answer::Card(card), _))) => Some(*card),
            _ => None,
        });
    }
    cards
}

/// The address of a server that belongs to a cell.
fn formed_at<'a>(servers: &'a [String], cards: &[Option<Card>]) -> &'a str {
    let is_formed = |card: &Option<Card>| card.as_ref().is_some_and(|card| card.cell != CellId::NONE);
    cards.iter().position(is_formed).map_or("", |at| servers[at].as_str())
}

/// Who this directory is in the cell of `card`, if the cell has given its token a number.
fn adopted(card: &Card, token: u64) -> Option<Identity> {
    let member = card.config.members.iter().find(|member| member.token == token)?;
    Some(Identity {
        cell: card.cell,
        server: member.id,
        founding: card.founding.clone(),
        entry: card.config.clone(),
        ..Identity::default()
    })
}

/// The members of a new cell, or what is missing for it.
fn founding(servers: &[String], cards: &[Option<Card>]) -> Result<Vec<Member>, String> {
    let mut members = Vec::new();
    for (at, (server, card)) in servers.iter().zip(cards).enumerate() {
        let Some(card) = card else { return Err(format!("waiting for {server}")) };
        if card.servers != servers {
            return Err(format!("{server} was started with another list: {}", card.servers.join(",")));
        }
        let host = host_and_port(server).map_or("", |(host, _)| host);
        let client =
            if card.client.starts_with(':') { format!("{host}{}", card.client) } else { card.client.clone() };
        members.push(Member {
            id: ServerId::new(at as u16 + 1),
            role: Role::Voter,
            peer: server.clone(),
            bulk_port: card.bulk_port,
            client,
            token: card.token,
        });
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(servers: &[String], token: u64) -> Option<Card> {
        let client = if token == 1 { ":2181" } else { "10.0.0.9:2181" }.to_owned();
        Some(Card {
            boot: token,
            token,
            servers: servers.to_vec(),
            bulk_port: 2889,
            client,
            ..Card::default()
        })
    }

    #[test]
    fn a_cell_is_formed_of_servers_that_agree_and_gives_numbers_to_tokens() {
        let servers = ["a:2888", "b:2888", "c:2888"].map(str::to_owned).to_vec();
        let mut cards: Vec<_> = [1, 2, 3].map(|token| card(&servers, token)).into();
        let members = founding(&servers, &cards).expect("all agree");
        let clients: Vec<&str> = members.iter().map(|member| member.client.as_str()).collect();
        assert_eq!(clients, ["a:2181", "10.0.0.9:2181", "10.0.0.9:2181"]);
        let identity = founder(&Identity::default(), ServerId::FIRST, Config::founding(members));
        let formed = Card {
            cell: identity.cell,
            founding: identity.founding.clone(),
            config: identity.entry.clone(),
            ..Card::default()
        };
        assert_eq!(adopted(&formed, 3).map(|identity| identity.server), Some(ServerId::new(3)));
        assert_eq!(adopted(&formed, 4), None, "another directory at the same address is another server");
        cards[1] = None;
        assert!(founding(&servers, &cards).is_err_and(|why| why.contains("b:2888")));
        cards[1] = card(&servers[..2], 2);
        assert!(founding(&servers, &cards).is_err_and(|why| why.contains("another list")));
    }
}
