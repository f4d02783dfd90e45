//! Broker-run consumer groups: what a group is, and the offsets that it has committed. Group ids may hold anything and
//! are percent-encoded in paths.

use std::collections::BTreeMap;

use loggos_protocol::ids::{GroupId, PartitionId, TopicName};
use loggos_protocol::registry::path;

use super::{Op, Registry, RegistryError};

/// Offsets that one change commits at most.
const COMMITS_MAX: usize = 256;

/// Committed bytes by partition.
pub type StoredOffsets = BTreeMap<(TopicName, PartitionId), Vec<u8>>;

impl Registry {
    /// What is kept of a group; `None` if there is nothing.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn group_record(&self, group: &GroupId) -> Result<Option<Vec<u8>>, RegistryError> {
        let node = self.session().get(&path::group(group)).await?;
        Ok(node.map(|node| node.data).filter(|data| !data.is_empty()))
    }

    /// Keeps what a group is.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn set_group_record(&self, group: &GroupId, record: &[u8]) -> Result<(), RegistryError> {
        let path = path::group(group);
        match self.session().set(&path, record, None).await {
            Err(RegistryError::Absent) => {
                self.session().create_if_absent(&path, b"").await?;
                self.session().set(&path, record, None).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }

    /// The ids of all groups.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn group_ids(&self) -> Result<Vec<GroupId>, RegistryError> {
        let names = self.session().children(path::GROUPS).await?;
        Ok(names.iter().filter_map(|name| path::group_of(name)).collect())
    }

    /// All offsets that a group has committed.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn committed(&self, group: &GroupId) -> Result<StoredOffsets, RegistryError> {
        let mut found = StoredOffsets::new();
        for name in self.session().children(&path::offsets(group)).await? {
            let topic = TopicName::new(name);
            for partition in self.session().children(&path::topic_offsets(group, &topic)).await? {
                let Ok(partition) = partition.parse().map(PartitionId::new) else { continue };
                if let Some(node) = self.session().get(&path::offset(group, &topic, partition)).await? {
                    found.insert((topic.clone(), partition), node.data);
                }
            }
        }
        Ok(found)
    }

    /// Commits offsets: one change for all, up to a bound.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn commit(&self, group: &GroupId, offsets: &StoredOffsets) -> Result<(), RegistryError> {
        let all: Vec<_> = offsets.iter().collect();
        for chunk in all.chunks(COMMITS_MAX) {
            let ops: Vec<Op> = chunk
                .iter()
                .map(|((topic, partition), data)| Op::Set {
                    path: path::offset(group, topic, *partition),
                    data: (*data).clone(),
                    version: None,
                })
                .collect();
            match self.session().multi(&ops).await {
                Ok(_) => {}
                Err(error) if matches!(error.root(), RegistryError::Absent) => {
                    for ((topic, partition), data) in chunk {
                        self.commit_first(group, topic, *partition, data).await?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Commits where perhaps nothing was committed before.
    async fn commit_first(
        &self,
        group: &GroupId,
        topic: &TopicName,
        partition: PartitionId,
        data: &[u8],
    ) -> Result<(), RegistryError> {
        for parent in [path::group(group), path::offsets(group), path::topic_offsets(group, topic)] {
            self.session().create_if_absent(&parent, b"").await?;
        }
        let path = path::offset(group, topic, partition);
        self.session().create_if_absent(&path, data).await?;
        self.session().set(&path, data, None).await.map(|_| ())
    }
}
