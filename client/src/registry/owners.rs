//! Who reads which partition in a member-run group: an ephemeral node per partition, which only one can make.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use loggos_protocol::ids::{GroupId, PartitionId, TopicName, TopicPartition};
use loggos_protocol::registry::path;

use super::{Membership, Op, Registry, RegistryError};

/// Nodes that one change makes or removes at most.
const OPS_MAX: usize = 500;
/// Attempts at a change of which others take parts meanwhile.
const ATTEMPTS: usize = 10;
/// Reads under way at the same time.
const READS: usize = 64;

impl Registry {
    /// Claims partitions, each with the text that its node is to hold, as far as nobody has them; gives those that are
    /// claimed. What the same session has claimed before counts as claimed.
    ///
    /// # Errors
    /// `Absent` in `Refused` when the consumer is registered no more; those of the session.
    pub async fn claim(
        &self,
        member: &Membership,
        claims: &BTreeMap<TopicPartition, String>,
    ) -> Result<BTreeSet<TopicPartition>, RegistryError> {
        let topics: BTreeSet<&TopicName> = claims.keys().map(|partition| &partition.topic).collect();
        for topic in topics {
            self.session().create_if_absent(&path::topic_owners(&member.group, topic), b"").await?;
        }
        let (mut mine, others) = self.owned(&member.group, claims.keys()).await?;
        let mut free: Vec<(&TopicPartition, &String)> = claims
            .iter()
            .filter(|(partition, _)| !mine.contains(*partition) && !others.contains(*partition))
            .collect();
        for _ in 0..ATTEMPTS {
            let Some(chunk) = free.get(..free.len().min(OPS_MAX)).filter(|chunk| !chunk.is_empty()) else {
                return Ok(mine);
            };
            let creates = chunk.iter().map(|(partition, thread)| Op::Create {
                path: path::owner(&member.group, &partition.topic, partition.partition),
                data: thread.as_bytes().to_vec(),
                ephemeral: true,
            });
            let ops: Vec<Op> = std::iter::once(member.check()).chain(creates).collect();
            let count = chunk.len();
            match self.session().multi(&ops).await {
                Ok(_) => mine.extend(free.drain(..count).map(|(partition, _)| partition.clone())),
                Err(RegistryError::Refused { part: part @ 1.., source })
                    if matches!(*source, RegistryError::Exists) =>
                {
                    // Somebody was faster with this one; part 0 is the fence.
                    free.remove(part - 1);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(mine)
    }

    /// Gives partitions back, those of them that this session has claimed.
    ///
    /// # Errors
    /// `Absent` in `Refused` when the consumer is registered no more, and so holds nothing; those of the session.
    pub async fn release(
        &self,
        member: &Membership,
        partitions: &BTreeSet<TopicPartition>,
    ) -> Result<(), RegistryError> {
        let (mine, _) = self.owned(&member.group, partitions.iter()).await?;
        let mine: Vec<TopicPartition> = mine.into_iter().collect();
        for chunk in mine.chunks(OPS_MAX) {
            let deletes = chunk.iter().map(|partition| Op::Delete {
                path: path::owner(&member.group, &partition.topic, partition.partition),
                version: None,
            });
            let ops: Vec<Op> = std::iter::once(member.check()).chain(deletes).collect();
            self.session().multi(&ops).await?;
        }
        Ok(())
    }

    /// Those of `partitions` that this session has claimed, and those that others have.
    async fn owned(
        &self,
        group: &GroupId,
        partitions: impl Iterator<Item = &TopicPartition>,
    ) -> Result<(BTreeSet<TopicPartition>, BTreeSet<TopicPartition>), RegistryError> {
        let me = self.session().id();
        // Owned, since futures over borrowed items are not `Send` in the compiler's eyes.
        let partitions: Vec<TopicPartition> = partitions.cloned().collect();
        let reads = partitions.into_iter().map(|partition| async move {
            let path = path::owner(group, &partition.topic, partition.partition);
            Ok::<_, RegistryError>((self.session().get(&path).await?, partition))
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(READS);
        let (mut mine, mut others) = (BTreeSet::new(), BTreeSet::new());
        while let Some(read) = reads.next().await {
            match read? {
                (Some(node), partition) if node.owner == me => mine.insert(partition),
                (Some(_), partition) => others.insert(partition),
                (None, _) => false,
            };
        }
        Ok((mine, others))
    }

    /// Who reads what in a member-run group, in the words of the owners: consumer and number of the stream.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn owners(&self, group: &GroupId) -> Result<BTreeMap<TopicPartition, String>, RegistryError> {
        let mut owners = BTreeMap::new();
        for topic in self.session().children(&path::owners(group)).await? {
            let topic = TopicName::new(topic);
            for partition in self.session().children(&path::topic_owners(group, &topic)).await? {
                let Ok(partition) = partition.parse().map(PartitionId::new) else { continue };
                let node = self.session().get(&path::owner(group, &topic, partition)).await?;
                if let Some(node) = node {
                    let thread = String::from_utf8_lossy(&node.data).into_owned();
                    owners.insert(TopicPartition::new(topic.clone(), partition), thread);
                }
            }
        }
        Ok(owners)
    }
}
