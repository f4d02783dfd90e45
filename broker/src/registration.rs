//! This broker's presence in the ensemble: its registration, anew with each session, and the lease that each answer of
//! the ensemble gives it. Called by `broker`.

use std::sync::Arc;
use std::time::Duration;

use loggos_client::registry::{NewState, Registry, RegistryError};
use loggos_protocol::ids::{BrokerEpoch, BrokerId};
use loggos_protocol::registry::record::{BrokerRecord, PartitionState};

use crate::clock;
use crate::metadata::Metadata;
use crate::partition::Table;
use crate::partition::lease::Stalls;

/// Pause before something that the registry refused is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Questions to the ensemble within one lease.
const BEATS: u32 = 6;
/// But no more often than this.
const BEAT_MIN: Duration = Duration::from_millis(20);

/// What this broker says of itself.
#[derive(Clone)]
pub struct Registration {
    /// Its id.
    pub id: BrokerId,
    /// Where clients connect.
    pub host: String,
    /// And on which port.
    pub port: u16,
    /// Where other brokers connect, if that is another place.
    pub replication: Option<(String, u16)>,
    /// Its rack.
    pub rack: Option<String>,
}

impl Registration {
    /// Registers; gives the life that begins, and the session in which it lasts.
    ///
    /// # Errors
    /// The registry's.
    pub async fn register(&self, registry: &Registry) -> Result<(BrokerEpoch, i64), RegistryError> {
        let mut record =
            BrokerRecord::plaintext(&self.host, self.port, self.rack.clone(), clock::now().raw());
        if let Some((host, port)) = &self.replication {
            record = record.with_replication(host, *port);
        }
        loop {
            let session = registry.session().id();
            let epoch = registry.register_broker(self.id, &record).await?;
            if registry.session().id() == session {
                return Ok((epoch, session));
            }
        }
    }
}

/// Keeps a broker present.
pub struct Presence {
    registration: Registration,
    registry: Registry,
    metadata: Metadata,
    table: Arc<Table>,
}

impl Presence {
    /// Of this broker.
    pub const fn new(
        registration: Registration,
        registry: Registry,
        metadata: Metadata,
        table: Arc<Table>,
    ) -> Self {
        Self { registration, registry, metadata, table }
    }

    /// Renews the lease while `session` lasts, and everything when another one begins.
    pub async fn keep(self, mut session: i64) {
        let mut generation = self.registry.generation();
        let base = self.registry.session().asked_timeout();
        let mut stalls = Stalls::default();
        loop {
            if self.registry.session().id() != session {
                self.table.lease().end();
                session = self.begin_again().await;
            }
            let sent = clock::moment();
            match self.registry.session().touch().await {
                // Of another session it would say nothing about the registration in this one.
                Ok((answered, timeout)) if answered == session => self.table.lease().confirm(sent, timeout),
                Ok(_) => continue,
                Err(RegistryError::Expired) => self.table.lease().end(),
                Err(error) => tracing::debug!(%error, "the lease is not renewed"),
            }
            let pause = (self.registry.session().timeout() / BEATS).max(BEAT_MIN);
            let before = clock::moment();
            tokio::select! {
                () = tokio::time::sleep(pause) => {
                    let now = clock::moment();
                    stalls.measured(now, now.since(before) - i64::try_from(pause.as_millis()).unwrap_or(0));
                }
                changed = generation.changed() => if changed.is_err() { return },
            }
            self.registry.session().ask_for(stalls.patience(clock::moment(), base));
        }
    }

    /// Registers under a new session; gives that session. What was led in the last life is led no more.
    async fn begin_again(&self) -> i64 {
        loop {
            match self.registration.register(&self.registry).await {
                Ok((epoch, session)) => {
                    let (table, view) = (Arc::clone(&self.table), self.metadata.clone());
                    let begun = tokio::task::spawn_blocking(move || {
                        table.set_epoch(epoch);
                        table.apply(&view.view())
                    });
                    if !matches!(begun.await, Ok(Ok(()))) {
                        tracing::warn!("roles are not taken up yet");
                        tokio::time::sleep(RETRY_PAUSE).await;
                        continue;
                    }
                    return session;
                }
                Err(error) => tracing::warn!(%error, "this broker is not registered yet"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// Takes a broker whose disk was replaced out of the replicas in sync, before it registers and could be elected: it
/// has nothing of what it had. Where it is the only one there is nobody to leave it to, and that is said.
///
/// # Errors
/// The registry's.
pub async fn disown(registry: &Registry, me: BrokerId) -> Result<(), RegistryError> {
    for name in registry.topic_names().await? {
        loop {
            let Some(topic) = registry.topic(&name).await? else { break };
            let mut states = Vec::new();
            for (id, partition) in topic.partitions {
                let Some(stored) = partition.state.filter(|stored| stored.state.isr.contains(&me)) else {
                    continue;
                };
                let isr: Vec<BrokerId> =
                    stored.state.isr.iter().copied().filter(|broker| *broker != me).collect();
                if isr.is_empty() {
                    tracing::error!(topic = %name, partition = %id, "the only replica in sync was on the disk that is gone");
                    continue;
                }
                let leader = if stored.state.leader == me { BrokerId::NONE } else { stored.state.leader };
                let epoch = stored.state.leader_epoch.next();
                let state = PartitionState::new(leader, epoch, stored.state.controller_epoch, isr);
                states.push(NewState { topic: name.clone(), partition: id, state, version: stored.version });
            }
            match write(registry, &states).await {
                // Somebody has changed one of them meanwhile.
                Err(RegistryError::Refused { .. }) => {}
                other => break other?,
            }
        }
    }
    Ok(())
}

/// States that are written with one change.
const STATES_MAX: usize = 400;

async fn write(registry: &Registry, states: &[NewState]) -> Result<(), RegistryError> {
    for chunk in states.chunks(STATES_MAX) {
        registry.set_states(chunk, &[]).await?;
        tracing::warn!(partitions = chunk.len(), "this broker's disk is new: it leaves the replicas in sync");
    }
    Ok(())
}
