//! Brokers: the nodes that a cluster has, broker ids, registrations.

use std::collections::BTreeMap;
use std::time::Duration;

use loggos_protocol::ids::{BrokerEpoch, BrokerId};
use loggos_protocol::registry::path;
use loggos_protocol::registry::record::{BrokerRecord, ClusterIdRecord, Record};

use super::{Op, Registry, RegistryError};

/// Ids up to this one are for people to give (`reserved.broker.max.id`).
const RESERVED_IDS: i32 = 1000;
/// An old registration of ours may outlive its session's time-out by so much.
const EXPIRY_MARGIN: Duration = Duration::from_secs(4);

/// A live broker as it stands in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBroker {
    /// What it says of itself.
    pub record: BrokerRecord,
    /// Which life of it: greater than each earlier one.
    pub epoch: BrokerEpoch,
    /// How many lives it has begun: what a change can be made to depend on.
    pub lives: i32,
}

impl Registry {
    /// Makes the nodes that a cluster has, where they are absent; gives the cluster's id, `fresh` if it had none.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn ensure_roots(&self, fresh: &str) -> Result<String, RegistryError> {
        let known: Option<(ClusterIdRecord, _)> = self.record(path::CLUSTER_ID).await?;
        if let Some((record, _)) = known {
            return Ok(record.id);
        }
        for root in path::ROOTS {
            self.session().create_if_absent(root, b"").await?;
        }
        self.session().create_if_absent(path::CONTROLLER_EPOCH, b"0").await?;
        let record = ClusterIdRecord::new(fresh.to_owned());
        self.session().create_if_absent(path::CLUSTER_ID, &record.to_bytes()).await?;
        // Two may have come at once: what stands there counts.
        let settled: Option<(ClusterIdRecord, _)> = self.record(path::CLUSTER_ID).await?;
        settled.map(|(record, _)| record.id).ok_or(RegistryError::Absent)
    }

    /// An id that no broker has had.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn next_broker_id(&self) -> Result<BrokerId, RegistryError> {
        let version = self.session().set(path::SEQID, b"", None).await?;
        Ok(BrokerId::new(RESERVED_IDS + version))
    }

    /// Registers a live broker, for as long as the session lives; its epoch is greater than that of each of its
    /// earlier lives (KIP-380). An older registration is waited out.
    ///
    /// # Errors
    /// `BrokerIdTaken` when the other registration lives on; those of the session.
    pub async fn register_broker(
        &self,
        id: BrokerId,
        record: &BrokerRecord,
    ) -> Result<BrokerEpoch, RegistryError> {
        let path = path::broker(id);
        let mut waited = false;
        loop {
            self.session().create_if_absent(path::BROKER_LIVES, b"").await?;
            self.session().create_if_absent(&path::lives(id), b"").await?;
            let ops = [
                Op::Create { path: path.clone(), data: Vec::new(), ephemeral: true },
                Op::Set { path: path.clone(), data: record.to_bytes(), version: Some(0) },
                Op::Set { path: path::lives(id), data: Vec::new(), version: None },
            ];
            match self.session().multi(&ops).await {
                Ok(done) => {
                    let created = done.get(1).copied().flatten().map(|(created, _)| created.raw());
                    return Ok(BrokerEpoch::new(created.unwrap_or_default()));
                }
                Err(error) if matches!(error.root(), RegistryError::Exists) => {}
                Err(error) => return Err(error),
            }
            let Some(node) = self.session().get(&path).await? else { continue };
            if node.owner == self.session().id() {
                // The answer to our own registration was lost.
                return Ok(BrokerEpoch::new(node.created.raw()));
            }
            if waited {
                return Err(RegistryError::BrokerIdTaken { id: id.raw() });
            }
            waited = true;
            let deadline = self.session().timeout() + EXPIRY_MARGIN;
            match self.session().wait_gone(&path, deadline).await {
                Ok(()) | Err(RegistryError::Timeout) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a registration back, before a clean stop.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn deregister_broker(&self, id: BrokerId) -> Result<(), RegistryError> {
        self.session().delete(&path::broker(id)).await
    }

    /// The part of a change that fails when the broker has begun another life than its `lives`th.
    pub fn check_life(id: BrokerId, lives: i32) -> Op {
        Op::Check { path: path::lives(id), version: lives }
    }

    /// The live brokers.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn brokers(&self) -> Result<BTreeMap<BrokerId, StoredBroker>, RegistryError> {
        let mut brokers = BTreeMap::new();
        for name in self.session().children(path::BROKER_IDS).await? {
            let Ok(id) = name.parse().map(BrokerId::new) else { continue };
            // Counted first: a registration that follows makes the count too low, and no check with it succeeds.
            let lives = self.session().get(&path::lives(id)).await?.map_or(0, |node| node.version);
            if let Some((record, node)) = self.record::<BrokerRecord>(&path::broker(id)).await? {
                brokers
                    .insert(id, StoredBroker { record, epoch: BrokerEpoch::new(node.created.raw()), lives });
            }
        }
        Ok(brokers)
    }
}
