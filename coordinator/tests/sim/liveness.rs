//! The end of every world: nothing fails any more, and the cell must show that it lives within bounded virtual time.
//!
//! L1 some leader leads. L2 every admitted request is answered, or its connection closed. L3 every live member
//! catches up. Source: design 1.14; TigerBeetle's lesson that safety alone is satisfied by a cell that stands still.

use loggos_coordinator::paxos::membership::{Member, Role};

use crate::clocks::True;
use crate::invariants::Broken;
use crate::plan::SECOND;
use crate::world::World;

/// How long clients go on after the last fault.
const AFTERGLOW: True = 3 * SECOND;
/// How long the cell may take for everything.
const PATIENCE: True = 60 * SECOND;
/// Between two looks.
const LOOK: True = SECOND / 10;

impl World {
    /// Heals, waits, and says what is still wrong at the end.
    ///
    /// # Errors
    /// A rule that is broken, L1 to L3 among them.
    pub fn demand_life(&mut self) -> Result<(), Broken> {
        self.heal()?;
        let end = self.now() + PATIENCE;
        self.run_until(self.now() + AFTERGLOW)?;
        while let Some(wrong) = self.lacks_life() {
            if self.now() >= end {
                return Err(wrong);
            }
            self.workload.quiet = self.workload.all_connected();
            self.run_until(self.now() + LOOK)?;
        }
        Ok(())
    }

    fn lacks_life(&self) -> Option<Broken> {
        let facts = &self.judge.facts;
        let broken = |rule, detail| Some(Broken { rule, detail });
        let Some(leader) = self.leader() else {
            return broken("L1 some leader leads", format!("nobody does; {}", self.describe()));
        };
        if self.operator.is_asked() {
            return broken(
                "L2 requests are answered",
                format!("a machine is not let in; {}", self.describe()),
            );
        }
        if !self.workload.is_idle() || !self.workload.all_connected() {
            return broken("L2 requests are answered", format!("clients still wait; {}", self.describe()));
        }
        let config = facts.configs.latest().1;
        let behind = |member: &&Member| {
            let server = self.servers.get(&member.id);
            let life = server.and_then(|server| server.life.as_ref());
            let lost = server.is_some_and(|server| server.gone);
            let current = life.is_some_and(|life| {
                let applied = life.status.chosen_upto == facts.prefix || member.role == Role::Witness;
                applied && life.status.leader.leader == leader && !life.status.uncertain
            });
            !lost && !current
        };
        match config.members.iter().find(behind) {
            Some(member) => {
                let id = member.id;
                broken("L3 members catch up", format!("server {id} at {}; {}", facts.prefix, self.describe()))
            }
            None => None,
        }
    }

    /// Where everybody is.
    pub fn describe(&self) -> String {
        let mut lines =
            vec![format!("prefix {}, {:?}", self.judge.facts.prefix, self.judge.facts.configs.latest())];
        for server in self.servers.values() {
            let status = server.life.as_ref().map(|life| &life.status);
            lines.push(match status {
                Some(status) => format!(
                    "{}: at {} promised {} follows {} at {} leading {} uncertain {}",
                    server.id,
                    status.chosen_upto,
                    status.promised,
                    status.leader.leader,
                    status.leader.ballot,
                    status.leader.leading,
                    status.uncertain
                ),
                None => format!("{}: down{}", server.id, if server.gone { " for good" } else { "" }),
            });
        }
        lines.join("\n  ")
    }
}
