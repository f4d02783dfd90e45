//! What goes wrong, and the operator who changes the membership meanwhile.
//!
//! Any number of servers may be down at once: memory survives that. Memory itself is lost or damaged only while
//! every membership that matters keeps a majority of sound ones, since no algorithm survives more.

use std::collections::{BTreeMap, BTreeSet};

use loggos_coordinator::paxos::ballot::{ServerId, Slot};
use loggos_coordinator::paxos::event::{ChangeError, Event, RequestId};
use loggos_coordinator::paxos::membership::{Change, Member, Role};
use loggos_coordinator::paxos::mutation::Mutation;
use loggos_coordinator::paxos::quorum::majority;
use rand::RngExt;

use crate::clocks::True;
use crate::coverage::Seen;
use crate::disk::Disk;
use crate::plan::{Fault, SECOND};
use crate::world::{Happening, Step, World};

/// Between two losses or damages of memory: time for leaders to see who is there.
const BETWEEN_LOSSES: True = 4 * SECOND;

/// Who lets machines in and changes who votes.
pub struct Operator {
    spares_left: u16,
    tokens: u64,
    /// Machines that ask to be let in, by token, with their addresses.
    asking: BTreeMap<u64, String>,
    requests: u64,
    /// Changes of who votes that are not answered yet.
    open: BTreeSet<RequestId>,
    last_loss: True,
}

impl Operator {
    /// With so many machines to bring.
    pub fn new(spares_left: u16) -> Self {
        Self {
            spares_left,
            tokens: 0,
            asking: BTreeMap::new(),
            requests: 0,
            open: BTreeSet::new(),
            last_loss: 0,
        }
    }

    fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// A request was answered; whether it was refused for what it says.
    pub fn answered(&mut self, id: RequestId, outcome: &Result<(), ChangeError>) -> bool {
        self.open.remove(&id);
        matches!(outcome, Err(ChangeError::Invalid(_) | ChangeError::NoQuorum | ChangeError::InProgress))
    }

    /// Whether a machine still waits to be let in.
    pub fn is_asked(&self) -> bool {
        !self.asking.is_empty()
    }
}

impl World {
    /// Something fails, and the next failure is on its way.
    pub fn fault(&mut self) -> Step {
        if !self.failing {
            return Ok(());
        }
        let gap = self.plan.gap;
        let next = self.rng.random_range(0..2 * gap);
        self.after(next, Happening::Fault);
        let total: u32 = self.plan.faults.iter().map(|(_, weight)| weight).sum();
        if total == 0 {
            return Ok(());
        }
        let mut pick = self.rng.random_range(0..total);
        let drawn = self.plan.faults.iter().find(|(_, weight)| {
            let hit = pick < *weight;
            pick = pick.saturating_sub(*weight);
            hit
        });
        let Some((fault, _)) = drawn else { return Ok(()) };
        self.inflict(*fault)
    }

    fn inflict(&mut self, fault: Fault) -> Step {
        let Some(victim) = self.draw_server() else { return Ok(()) };
        self.judge.say(|| format!("FAULT {fault:?} {victim}"));
        let now = self.now();
        match fault {
            Fault::CutOneWay | Fault::CutPartly | Fault::CutFully => self.cut(fault, victim),
            Fault::Ambush => self.network.ambush = self.rng.random_range(1..8),
            Fault::Crash => return self.crash(victim),
            Fault::CrashAll => {
                let all: Vec<ServerId> = self.servers.keys().copied().collect();
                return all.into_iter().try_for_each(|id| self.crash(id));
            }
            Fault::Pause => self.pause(victim),
            Fault::ClockJump => {
                let micros = self.rng.random_range(0..2 * SECOND);
                if let Some(server) = self.servers.get_mut(&victim) {
                    server.clock.jump(now, micros);
                    self.judge.coverage.count(Seen::ClockJump);
                }
                self.judge.facts.leases.remove(&victim);
                return self.run_server_if_awake(victim, Event::Tick);
            }
            Fault::WallJump => {
                let offset = self.rng.random_range(-100_000..100_000);
                if let Some(server) = self.servers.get_mut(&victim) {
                    server.clock.set_wall(offset);
                    self.judge.coverage.count(Seen::WallJump);
                }
            }
            Fault::SlowDisk => {
                let until = now + self.rng.random_range(0..4 * SECOND);
                if let Some(server) = self.servers.get_mut(&victim) {
                    server.slow_until = until;
                    self.judge.coverage.count(Seen::SlowDisk);
                }
            }
            Fault::FailedWrite => {
                if let Some(server) = self.servers.get_mut(&victim) {
                    server.fail_next_write = true;
                }
            }
            Fault::BitRot => return self.rot(victim),
            Fault::DiskLoss => return self.lose_disk(victim),
            Fault::Transfer => {
                let to = if self.rng.random_bool(0.5) { self.draw_server() } else { None };
                let leader = self.leader().unwrap_or(victim);
                return self.run_server_if_awake(leader, Event::Transfer(to));
            }
            Fault::Reconfigure => return self.reconfigure(),
            Fault::Spare => {
                if self.operator.spares_left > 0 {
                    self.operator.spares_left -= 1;
                    let peer = format!("spare{}:2888", self.operator.spares_left);
                    self.bring(peer);
                }
            }
        }
        Ok(())
    }

    fn draw_server(&mut self) -> Option<ServerId> {
        let there: Vec<ServerId> =
            self.servers.values().filter(|server| !server.gone).map(|server| server.id).collect();
        if there.is_empty() { None } else { Some(there[self.rng.random_range(0..there.len())]) }
    }

    /// A server that believes that it leads.
    pub fn leader(&self) -> Option<ServerId> {
        let leads = |server: &&crate::server::Server| {
            server.life.as_ref().is_some_and(|life| life.status.leader.leading)
        };
        self.servers
            .values()
            .filter(leads)
            .max_by_key(|server| server.life.as_ref().map(|life| life.status.leader.ballot))
            .map(|server| server.id)
    }

    fn cut(&mut self, fault: Fault, victim: ServerId) {
        let until = self.now() + self.rng.random_range(50_000..3 * SECOND);
        let others: Vec<ServerId> = self.servers.keys().copied().filter(|id| *id != victim).collect();
        if others.is_empty() {
            return;
        }
        match fault {
            Fault::CutOneWay => {
                let other = others[self.rng.random_range(0..others.len())];
                self.network.cut(victim, other, until);
                self.judge.coverage.count(Seen::OneWayCut);
            }
            Fault::CutPartly => {
                let both = self.rng.random_bool(0.5);
                for other in others {
                    if self.rng.random_bool(0.5) {
                        self.network.cut(victim, other, until);
                        if both {
                            self.network.cut(other, victim, until);
                        }
                    }
                }
                self.judge.coverage.count(Seen::PartialPartition);
            }
            _ => {
                let (here, there): (Vec<_>, Vec<_>) =
                    self.servers.keys().copied().partition(|id| *id == victim || self.rng.random_bool(0.4));
                for one in &here {
                    for two in &there {
                        self.network.cut(*one, *two, until);
                        self.network.cut(*two, *one, until);
                    }
                }
                self.judge.coverage.count(Seen::FullPartition);
            }
        }
    }

    /// A process is killed and comes back after a while.
    pub fn crash(&mut self, id: ServerId) -> Step {
        if self.servers.get(&id).is_none_or(|server| server.life.is_none()) {
            return Ok(());
        }
        self.kill(id)?;
        let later = if self.rng.random_bool(0.5) { SECOND / 5 } else { 4 * SECOND };
        let later = self.rng.random_range(1_000..later);
        self.after(later, Happening::Restart(id));
        Ok(())
    }

    fn pause(&mut self, id: ServerId) {
        let span = if self.rng.random_bool(0.7) { SECOND } else { 5 * SECOND };
        let span = self.rng.random_range(10_000..span);
        let Some(server) = self.servers.get_mut(&id) else { return };
        if server.life.is_some() && server.paused.is_none() {
            server.paused = Some(Default::default());
            self.judge.coverage.count(Seen::Pause);
            self.after(span, Happening::Resume(id));
        }
    }

    /// Whether `id` may lose memory: every membership that matters keeps a majority of sound voters.
    fn may_lose(&self, id: ServerId) -> bool {
        let weak = |id: &ServerId| {
            self.servers.get(id).is_none_or(|server| server.gone || server.disk.uncertain_above.is_some())
        };
        // Whoever governed slots that not every sound voter knows to be chosen may be the only one to know.
        let latest = self.judge.facts.configs.latest().1.voters();
        let known = latest.iter().filter(|voter| **voter != id && !weak(voter));
        let known = known.map(|voter| self.servers[voter].disk.known_upto()).min().unwrap_or(Slot::ZERO);
        let long_ago = self.operator.last_loss + BETWEEN_LOSSES <= self.now();
        long_ago
            && self.operator.open.is_empty()
            && self.judge.facts.live_configs(known).iter().all(|config| {
                let voters = config.voters();
                let sound = voters.iter().filter(|voter| **voter != id && !weak(voter)).count();
                sound >= majority(voters.len())
            })
    }

    fn rot(&mut self, id: ServerId) -> Step {
        if !self.may_lose(id) {
            return Ok(());
        }
        self.kill(id)?;
        let Some(server) = self.servers.get_mut(&id) else { return Ok(()) };
        if server.disk.rot(&mut self.rng) {
            self.judge.coverage.count(Seen::BitRot);
            let lost = server.disk.lost.iter().map(|(slot, ballot)| (id, *slot, *ballot));
            self.judge.facts.lost.extend(lost);
            self.operator.last_loss = self.judge.facts.now;
        }
        let later = self.rng.random_range(1_000..SECOND);
        self.after(later, Happening::Restart(id));
        Ok(())
    }

    /// The disk is gone: its identity never starts again, and the machine asks to be let in under a new one.
    fn lose_disk(&mut self, id: ServerId) -> Step {
        if !self.may_lose(id) {
            return Ok(());
        }
        self.kill(id)?;
        let Some(server) = self.servers.get_mut(&id) else { return Ok(()) };
        if self.plan.mutations.has(Mutation::RejoinAfterOneInstance) {
            // The planted error of "Paxos Made Live": after a while it takes part again as if nothing had happened.
            server.disk = Disk::default();
            self.after(SECOND, Happening::Restart(id));
            return Ok(());
        }
        server.gone = true;
        let peer = server.peer.clone();
        self.judge.coverage.count(Seen::DiskLoss);
        self.operator.last_loss = self.judge.facts.now;
        self.bring(peer);
        Ok(())
    }

    /// A machine with an empty disk begins to ask.
    fn bring(&mut self, peer: String) {
        self.operator.tokens += 1;
        let token = self.operator.tokens;
        self.operator.asking.insert(token, peer);
        let soon = self.rng.random_range(1_000..SECOND / 2);
        self.after(soon, Happening::AskIn(token));
    }

    /// It asks some server, and starts once the membership names it.
    pub fn ask_in(&mut self, token: u64) -> Step {
        let Some(peer) = self.operator.asking.get(&token).cloned() else { return Ok(()) };
        let config = self.judge.facts.configs.latest().1.clone();
        if let Some(member) = config.members.iter().find(|member| member.token == token) {
            self.operator.asking.remove(&token);
            self.judge.coverage.count(Seen::Joined);
            self.add_server(member.id, peer);
            return Ok(());
        }
        self.after(SECOND / 3, Happening::AskIn(token));
        let member = Member {
            id: ServerId::NONE,
            role: Role::Learner,
            client: peer.replace("2888", "2181"),
            peer,
            bulk_port: 2889,
            token,
        };
        let whom = if self.rng.random_bool(0.7) { self.leader() } else { self.draw_server() };
        let Some(whom) = whom else { return Ok(()) };
        let id = self.operator.next_request();
        self.run_server_if_awake(whom, Event::Reconfigure { id, change: Change::Join { member } })
    }

    /// The operator wants other voters, or somebody out.
    fn reconfigure(&mut self) -> Step {
        let config = self.judge.facts.configs.latest().1.clone();
        let alive = |id: &ServerId| self.servers.get(id).is_some_and(|server| !server.gone);
        let mut full: Vec<ServerId> =
            config.members.iter().filter(|m| m.role != Role::Witness && alive(&m.id)).map(|m| m.id).collect();
        let learners: Vec<ServerId> =
            config.members.iter().filter(|m| m.role == Role::Learner).map(|m| m.id).collect();
        let witnesses = config.members.iter().filter(|m| m.role == Role::Witness).map(|m| m.id);
        let change = if !learners.is_empty() && self.rng.random_bool(0.15) {
            Change::Remove([learners[self.rng.random_range(0..learners.len())]].into())
        } else {
            let sizes = [1, 3, 3, 5];
            let size = sizes[self.rng.random_range(0..sizes.len())];
            let mut chosen: BTreeSet<ServerId> = witnesses.collect();
            while chosen.len() < size && !full.is_empty() {
                chosen.insert(full.swap_remove(self.rng.random_range(0..full.len())));
            }
            Change::Voters(chosen)
        };
        // Who loses its memory while the voters change may be needed by the new ones.
        if self.operator.last_loss + BETWEEN_LOSSES > self.now() {
            return Ok(());
        }
        let Some(leader) = self.leader() else { return Ok(()) };
        let id = self.operator.next_request();
        self.operator.open.insert(id);
        self.run_server_if_awake(leader, Event::Reconfigure { id, change })
    }

    /// Everything is mended: links, clocks, disks; whoever is down or stands still comes back. Who is
    /// no member any more goes on too: the others may need what it knows.
    ///
    /// # Errors
    /// A rule that is broken meanwhile.
    pub fn heal(&mut self) -> Step {
        self.judge.say(|| "HEAL".into());
        self.failing = false;
        self.workload.moody = false;
        self.network.heal();
        let now = self.now();
        let all: Vec<ServerId> = self.servers.keys().copied().collect();
        for id in all {
            if let Some(server) = self.servers.get_mut(&id) {
                server.clock.set_drift(now, 0);
                (server.slow_until, server.fail_next_write) = (0, false);
            }
            self.after(1, Happening::Resume(id));
            self.after(1_000, Happening::Restart(id));
        }
        Ok(())
    }
}
