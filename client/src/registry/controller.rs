//! The controller: who holds its node (Chubby's election of a primary), and what only it may do once at a time.

use loggos_protocol::ids::BrokerId;
use loggos_protocol::registry::path;
use loggos_protocol::registry::record::{ControllerRecord, ProducerIdBlock, Record};

use super::{Op, Registry, RegistryError};

/// Attempts at a compare-and-set before somebody else's luck is reported.
const ATTEMPTS: usize = 10;

/// A controller's sequencer: its writes happen only while nobody has been elected after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// How many controllers there have been.
    pub epoch: i32,
    /// The version of the node that counts them.
    version: i32,
}

impl Fence {
    /// The part of a change that fails when there is a newer controller.
    pub fn check(&self) -> Op {
        Op::Check { path: path::CONTROLLER_EPOCH.to_owned(), version: self.version }
    }
}

impl Registry {
    /// Tries to become the controller; `None` when somebody is.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn elect(&self, me: BrokerId, now_ms: i64) -> Result<Option<Fence>, RegistryError> {
        self.session().create_if_absent(path::CONTROLLER_EPOCH, b"0").await?;
        let (epoch, version) = self.controller_epoch().await?;
        let record = ControllerRecord::new(me, now_ms).to_bytes();
        let ops = [
            Op::Create { path: path::CONTROLLER.to_owned(), data: record, ephemeral: true },
            Op::Set {
                path: path::CONTROLLER_EPOCH.to_owned(),
                data: (epoch + 1).to_string().into_bytes(),
                version: Some(version),
            },
        ];
        match self.session().multi(&ops).await {
            Ok(_) => Ok(Some(Fence { epoch: epoch + 1, version: version + 1 })),
            Err(error) => match error.root() {
                RegistryError::Exists | RegistryError::Conflict => {
                    // It may be our own, from an attempt whose answer was lost.
                    let holder = self.session().get(path::CONTROLLER).await?;
                    if holder.is_some_and(|node| node.owner == self.session().id()) {
                        let (epoch, version) = self.controller_epoch().await?;
                        return Ok(Some(Fence { epoch, version }));
                    }
                    Ok(None)
                }
                _ => Err(error),
            },
        }
    }

    /// Gives the controller's node up, if this session holds it.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn resign(&self) -> Result<(), RegistryError> {
        let holder = self.session().get(path::CONTROLLER).await?;
        if holder.is_some_and(|node| node.owner == self.session().id()) {
            self.session().delete(path::CONTROLLER).await?;
        }
        Ok(())
    }

    async fn controller_epoch(&self) -> Result<(i32, i32), RegistryError> {
        let node = self.session().get(path::CONTROLLER_EPOCH).await?.ok_or(RegistryError::Absent)?;
        let epoch = String::from_utf8_lossy(&node.data).trim().parse().unwrap_or(0);
        Ok((epoch, node.version))
    }

    /// The fence of the controller that is, for a change that any broker may make in its time.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn current_fence(&self) -> Result<Fence, RegistryError> {
        let (epoch, version) = self.controller_epoch().await?;
        Ok(Fence { epoch, version })
    }

    /// The controller, if there is one.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn controller(&self) -> Result<Option<BrokerId>, RegistryError> {
        let found: Option<(ControllerRecord, _)> = self.record(path::CONTROLLER).await?;
        Ok(found.map(|(record, _)| record.brokerid))
    }

    /// Takes the next `count` producer ids; gives the first.
    ///
    /// # Errors
    /// `Conflict` after many attempts; those of the session.
    pub async fn take_producer_ids(&self, me: BrokerId, count: i64) -> Result<i64, RegistryError> {
        for _ in 0..ATTEMPTS {
            let known: Option<(ProducerIdBlock, _)> = self.record(path::PRODUCER_IDS).await?;
            let start = known.as_ref().and_then(|(block, _)| block.range()).map_or(0, |(_, end)| end + 1);
            let block = ProducerIdBlock::new(me, start, start + count - 1).to_bytes();
            let taken = match known {
                Some((_, node)) => {
                    self.session().set(path::PRODUCER_IDS, &block, Some(node.version)).await.map(|_| ())
                }
                None => {
                    let op = Op::create(path::PRODUCER_IDS, block);
                    self.session().multi(&[op]).await.map(|_| ())
                }
            };
            match taken {
                Ok(()) => return Ok(start),
                Err(error) if matches!(error.root(), RegistryError::Conflict | RegistryError::Exists) => {}
                Err(error) => return Err(error),
            }
        }
        Err(RegistryError::Conflict)
    }
}
