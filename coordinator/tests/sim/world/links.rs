//! Messages between servers, and between servers and clients.

use loggos_coordinator::paxos::ballot::ServerId;
use loggos_coordinator::paxos::event::{ChangeError, Event, RequestId};
use loggos_coordinator::paxos::membership::{Member, Role};
use loggos_coordinator::paxos::message::{Envelope, Message};
use rand::RngExt;

use super::{CLIENT_WAY, Happening, Step, World};
use crate::coverage::Seen;
use crate::facts::Observation;
use crate::host::{ToClient, ToServer};
use crate::invariants::Broken;
use crate::replica::{ClientId, Fence};

impl World {
    pub(super) fn send(&mut self, envelope: Envelope) {
        let now = self.now();
        let link = (envelope.from, envelope.to);
        if matches!(envelope.message, Message::Accept { .. }) {
            self.network.propose(link, now, &mut self.rng, &mut self.judge.coverage);
        }
        let fate = self.network.fate(link, now, &mut self.rng, &mut self.judge.coverage);
        self.order += 1;
        let number = self.order;
        for delay in fate {
            self.after(delay, Happening::Deliver(Box::new(envelope.clone()), number));
        }
    }

    pub(super) fn deliver(&mut self, envelope: Envelope, number: u64) -> Step {
        let (from, to) = (envelope.from, envelope.to);
        let Some(server) = self.servers.get_mut(&to).filter(|server| server.life.is_some()) else {
            // The refusal of a connection comes back, if anything does.
            if self.network.passes(to, from, self.judge.facts.now) && self.rng.random_bool(0.2) {
                return self.run_server_if_awake(from, Event::Unreachable(to));
            }
            return Ok(());
        };
        let last = server.received.insert(from, number).unwrap_or(0);
        if last > number {
            self.judge.coverage.count(Seen::Overtaking);
        }
        self.run_server(to, Event::Received(envelope))
    }

    /// Feeds an event unless the process stands still.
    pub fn run_server_if_awake(&mut self, id: ServerId, event: Event) -> Step {
        let awake =
            self.servers.get(&id).is_some_and(|server| server.life.is_some() && server.paused.is_none());
        if awake { self.run_server(id, event) } else { Ok(()) }
    }

    /// Where clients may knock: members that hold the state.
    pub(super) fn doors(&self) -> Vec<ServerId> {
        let config = self.judge.facts.configs.latest().1;
        let holds = |member: &&Member| member.role != Role::Witness && self.servers.contains_key(&member.id);
        config.members.iter().filter(holds).map(|member| member.id).collect()
    }

    pub(super) fn act(&mut self, client: ClientId) {
        let (now, doors) = (self.now(), self.doors());
        let mail = self.workload.act(client, now, &doors, &mut self.rng, &mut self.judge.coverage);
        for (server, message) in mail {
            self.after(CLIENT_WAY, Happening::ToServer(server, message));
        }
        let pace = self.rng.random_range(2_000..60_000);
        self.after(pace, Happening::Act(client));
    }

    pub(super) fn server_receives(&mut self, id: ServerId, message: ToServer) -> Step {
        let Some(life) = self.servers.get_mut(&id).and_then(|server| server.life.as_mut()) else {
            if let ToServer::Open { client, fence, .. } = message {
                self.after(CLIENT_WAY, Happening::ToClient(client, fence, ToClient::Closed));
            }
            return Ok(());
        };
        life.host.receive(message, &life.replica);
        self.run_host(id)
    }

    pub(super) fn client_receives(&mut self, client: ClientId, fence: Fence, message: ToClient) -> Step {
        let now = self.now();
        let told = self.workload.receive(client, fence, message, now, &mut self.judge.coverage);
        let told = told.map_err(|detail| Broken { rule: "replies come in the order of requests", detail })?;
        match told {
            Some(zxid) => self.judge.see(&Observation::Seen { client, zxid }),
            None => Ok(()),
        }
    }

    /// The outcome of a membership change.
    pub(super) fn reconfigured(&mut self, id: RequestId, outcome: Result<(), ChangeError>) {
        self.judge.say(|| format!("request {id:?}: {outcome:?}"));
        if self.operator.answered(id, &outcome) {
            self.judge.coverage.count(Seen::ChangeRefused);
        }
    }
}
