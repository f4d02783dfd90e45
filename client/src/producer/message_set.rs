//! The 2011 shape of producing: a set of messages for a topic, sent to the partition that a key, chance or the caller
//! decides.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::TryJoinAll;
use loggos_protocol::ids::{PartitionId, TopicName};

use super::{Delivery, Producer, RecordMeta};
use crate::error::ClientError;
use crate::message::Message;

/// How a set's partitions are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partitioner {
    /// Each message by its key; those without one fill one partition's batch after the other.
    #[default]
    ByKey,
    /// The set as a whole goes to a partition that chance picks.
    Random,
    /// To this one.
    Fixed(PartitionId),
}

/// Messages that are sent together, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessageSet {
    messages: Vec<Message>,
    partitioner: Partitioner,
}

impl MessageSet {
    /// A set of these messages.
    pub fn new(messages: impl IntoIterator<Item = Message>) -> Self {
        Self { messages: messages.into_iter().collect(), partitioner: Partitioner::default() }
    }

    /// The same with another choice of partitions.
    #[must_use]
    pub const fn with_partitioner(mut self, partitioner: Partitioner) -> Self {
        self.partitioner = partitioner;
        self
    }

    /// How many messages it has.
    pub const fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

impl From<Message> for MessageSet {
    fn from(message: Message) -> Self {
        Self::new([message])
    }
}

impl FromIterator<Message> for MessageSet {
    fn from_iter<I: IntoIterator<Item = Message>>(messages: I) -> Self {
        Self::new(messages)
    }
}

/// A set that is queued: the future of where its messages were written, in order.
#[derive(Debug)]
#[must_use = "a message may fail after it was queued"]
pub struct SetDelivery {
    all: TryJoinAll<Delivery>,
}

impl Future for SetDelivery {
    type Output = Result<Vec<RecordMeta>, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.all).poll(context)
    }
}

impl Producer {
    /// Queues a set of messages, or one, for `topic`; what it gives is the future of their offsets. Waits only while
    /// the topic is unknown or the buffer full.
    ///
    /// # Errors
    /// Those of [`queue`](Self::queue); messages before the one that failed are on their way.
    pub async fn send(
        &self,
        topic: impl Into<TopicName>,
        set: impl Into<MessageSet>,
    ) -> Result<SetDelivery, ClientError> {
        let (topic, set) = (topic.into(), set.into());
        let partition = match set.partitioner {
            Partitioner::ByKey => None,
            Partitioner::Fixed(partition) => Some(partition),
            Partitioner::Random => {
                let partitions = self.cluster().partitions(&topic).await?;
                partitions.get(rand::random_range(0..partitions.len().max(1))).copied()
            }
        };
        let mut deliveries = Vec::with_capacity(set.len());
        for message in set.messages {
            deliveries.push(self.queue(&topic, partition, message).await?);
        }
        Ok(SetDelivery { all: futures::future::try_join_all(deliveries) })
    }
}
