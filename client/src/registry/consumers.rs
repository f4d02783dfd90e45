//! Member-run groups: which consumers one has. A consumer's node is ephemeral, and fences
//! all that the consumer writes: it goes with the session, and its name is never used again.

use loggos_protocol::ids::{GroupId, MemberId};
use loggos_protocol::registry::group::ConsumerRecord;
use loggos_protocol::registry::path;
use loggos_protocol::registry::record::Record;

use super::{Op, Registry, RegistryError};

/// A consumer of a member-run group in one session: the part of a change that fails when the session has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The group.
    pub group: GroupId,
    /// The consumer's id in this session.
    pub consumer: MemberId,
}

impl Membership {
    /// The part of a change that fails when this consumer is registered no more.
    pub fn check(&self) -> Op {
        // Any version: the node is written once, and what matters is that it's there.
        Op::Check { path: path::member(&self.group, &self.consumer), version: -1 }
    }
}

impl Registry {
    /// Registers a consumer of a member-run group for as long as the session lives, or changes what it reads.
    ///
    /// # Errors
    /// `Exists` when somebody else has the name; those of the session.
    pub async fn register_consumer(
        &self,
        member: &Membership,
        record: &ConsumerRecord,
    ) -> Result<(), RegistryError> {
        let path = path::member(&member.group, &member.consumer);
        for parent in
            [path::members(&member.group), path::owners(&member.group), path::offsets(&member.group)]
        {
            self.session().create_if_absent(&parent, b"").await?;
        }
        let create = Op::Create { path: path.clone(), data: record.to_bytes(), ephemeral: true };
        match self.session().multi(&[create]).await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.root(), RegistryError::Exists) => {
                // It may be our own, from an attempt whose answer was lost.
                let found = self.session().get(&path).await?;
                if found.is_none_or(|node| node.owner != self.session().id()) {
                    return Err(RegistryError::Exists);
                }
                self.session().set(&path, &record.to_bytes(), None).await.map(|_| ())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a consumer out of its group.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn deregister_consumer(&self, member: &Membership) -> Result<(), RegistryError> {
        self.session().delete(&path::member(&member.group, &member.consumer)).await
    }

    /// The ids of a member-run group's consumers.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn consumer_ids(&self, group: &GroupId) -> Result<Vec<MemberId>, RegistryError> {
        let names = self.session().children(&path::members(group)).await?;
        Ok(names.iter().filter_map(|name| path::member_of(name)).collect())
    }

    /// What a consumer reads; `None` if it has gone.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn consumer(
        &self,
        group: &GroupId,
        consumer: &MemberId,
    ) -> Result<Option<ConsumerRecord>, RegistryError> {
        Ok(self.record(&path::member(group, consumer)).await?.map(|(record, _)| record))
    }
}
