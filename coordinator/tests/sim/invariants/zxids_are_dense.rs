//! I18: the zxid grows by exactly 1 per counted entry, no stat shows a later one, and no client sees it go back,
//! whichever server it talks to.
//!
//! Source: design 2.2 and C5; ZooKeeper's guarantee of a single system image.

use std::collections::BTreeMap;

use loggos_coordinator::paxos::ballot::ServerId;
use loggos_coordinator::tree::{Command, Outcome, Part};
use loggos_protocol::ids::Zxid;
use loggos_protocol::zookeeper::Stat;

use super::{Invariant, ensure};
use crate::facts::{Facts, Observation};
use crate::replica::{ClientId, Effect};

/// What servers and clients have seen.
#[derive(Default)]
pub struct Rule {
    servers: BTreeMap<ServerId, Zxid>,
    clients: BTreeMap<ClientId, Zxid>,
}

fn newest(stat: &Stat) -> Zxid {
    stat.czxid.max(stat.mzxid).max(stat.pzxid)
}

fn stats(outcome: &Outcome) -> Vec<Zxid> {
    match outcome {
        Outcome::Created { stat, .. } | Outcome::Changed(stat) => vec![newest(stat)],
        Outcome::Parts(parts) => parts
            .iter()
            .filter_map(|part| match part {
                Part::Created { stat, .. } | Part::Changed(stat) => Some(newest(stat)),
                Part::Deleted | Part::Checked | Part::Failed(_) => None,
            })
            .collect(),
        Outcome::Session(_) | Outcome::Done => vec![],
    }
}

impl Rule {
    fn applied(&mut self, server: ServerId, effects: &[Effect]) -> Result<(), String> {
        for effect in effects {
            let applied = &effect.applied;
            let moves_only = matches!(effect.command, Some(Command::Attach { .. } | Command::Noop));
            let counted = !applied.skipped && !moves_only;
            let known =
                self.servers.entry(server).or_insert(Zxid::new(applied.zxid.raw() - i64::from(counted)));
            let expected = known.raw() + i64::from(counted);
            ensure(applied.zxid.raw() == expected, || {
                format!("server {server} gives zxid {} where {expected} is due", applied.zxid)
            })?;
            *known = applied.zxid;
            for zxid in applied.outcome.iter().flat_map(stats) {
                ensure(zxid <= applied.zxid, || format!("a stat of zxid {} shows {zxid}", applied.zxid))?;
            }
        }
        Ok(())
    }
}

impl Invariant for Rule {
    fn name(&self) -> &'static str {
        "I18 zxids are dense and never go back"
    }

    fn check(&mut self, _: &Facts, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            Observation::Applied { server, effects, .. } => self.applied(*server, effects),
            Observation::Started { server, .. } | Observation::Restored { server, .. } => {
                self.servers.remove(server);
                Ok(())
            }
            Observation::Seen { client, zxid } => {
                let known = self.clients.insert(*client, *zxid).unwrap_or_default();
                ensure(*zxid >= known, || format!("client {client:?} saw zxid {known} and then {zxid}"))
            }
            _ => Ok(()),
        }
    }
}
