//! Committed offsets of member-run groups: many in one change, behind the consumer's fence.

use std::collections::BTreeMap;

use futures::StreamExt;
use loggos_protocol::ids::{GroupId, TopicName, TopicPartition};
use loggos_protocol::registry::group::OffsetRecord;
use loggos_protocol::registry::path;
use loggos_protocol::registry::record::{Record, RecordError};

use super::{Membership, Op, Registry, RegistryError};

/// Offsets that one change commits at most: the change stays below 64 KiB.
const COMMITS_MAX: usize = 256;
/// Reads under way at the same time.
const READS: usize = 64;

impl Registry {
    /// The offsets that a group has committed for some partitions.
    ///
    /// # Errors
    /// `Malformed`; those of the session.
    pub async fn committed_of(
        &self,
        group: &GroupId,
        partitions: impl IntoIterator<Item = &TopicPartition>,
    ) -> Result<BTreeMap<TopicPartition, OffsetRecord>, RegistryError> {
        // Owned, since futures over borrowed items are not `Send` in the compiler's eyes.
        let partitions: Vec<TopicPartition> = partitions.into_iter().cloned().collect();
        let reads = partitions.into_iter().map(|partition| async move {
            let path = path::offset(group, &partition.topic, partition.partition);
            Ok::<_, RegistryError>((partition, self.session().get(&path).await?))
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(READS);
        let mut committed = BTreeMap::new();
        while let Some(read) = reads.next().await {
            let (partition, found) = read?;
            // A node without data was made by a commit that came no further.
            let Some(node) = found.filter(|node| !node.data.is_empty()) else { continue };
            let reason = || String::from_utf8_lossy(&node.data).into_owned();
            let record = OffsetRecord::read(&node.data)
                .ok_or_else(|| RecordError { what: OffsetRecord::WHAT, reason: reason() })?;
            committed.insert(partition, record);
        }
        Ok(committed)
    }

    /// Commits offsets for a consumer of a member-run group, in as few changes as may be.
    ///
    /// # Errors
    /// `Absent` in `Refused` with part 0 when the consumer is registered no more: what it holds is somebody else's.
    /// Those of the session.
    pub async fn commit_as(
        &self,
        member: &Membership,
        offsets: &BTreeMap<TopicPartition, OffsetRecord>,
    ) -> Result<(), RegistryError> {
        let mut left: Vec<(&TopicPartition, &OffsetRecord)> = offsets.iter().collect();
        let mut made = false;
        while !left.is_empty() {
            let count = left.len().min(COMMITS_MAX);
            let sets = left[..count].iter().map(|(partition, offset)| Op::Set {
                path: path::offset(&member.group, &partition.topic, partition.partition),
                data: offset.to_bytes(),
                version: None,
            });
            let ops: Vec<Op> = std::iter::once(member.check()).chain(sets).collect();
            match self.session().multi(&ops).await {
                Ok(_) => drop(left.drain(..count)),
                Err(RegistryError::Refused { part: 1.., source })
                    if !made && matches!(*source, RegistryError::Absent) =>
                {
                    made = true;
                    self.make_offsets(member, offsets.keys()).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes the nodes of partitions that nobody has committed before.
    async fn make_offsets(
        &self,
        member: &Membership,
        partitions: impl Iterator<Item = &TopicPartition>,
    ) -> Result<(), RegistryError> {
        let mut known: Option<&TopicName> = None;
        for partition in partitions {
            if known != Some(&partition.topic) {
                self.session().create_if_absent(&path::offsets(&member.group), b"").await?;
                let topic = path::topic_offsets(&member.group, &partition.topic);
                self.session().create_if_absent(&topic, b"").await?;
                known = Some(&partition.topic);
            }
            let path = path::offset(&member.group, &partition.topic, partition.partition);
            self.session().create_if_absent(&path, b"").await?;
        }
        Ok(())
    }
}
