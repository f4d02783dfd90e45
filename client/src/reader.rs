//! Many partitions read side by side: one request per leader at a time, sent before its records are asked for.
//!
//! The reader holds a position for each partition and moves it as records are handed out; [`Reader::seek`] moves it
//! anywhere, back too. Called by the tools and by group consumers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use loggos_protocol::ids::{BrokerId, Offset, TopicName, TopicPartition};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::ClientError;
use crate::simple::{FetchFrom, Fetched, OffsetSpec, SimpleConsumer};

type Outcomes = Result<Vec<(TopicPartition, Result<Fetched, ClientError>)>, ClientError>;

/// What became of one request.
#[derive(Debug)]
struct Answer {
    broker: BrokerId,
    wanted: Vec<FetchFrom>,
    outcomes: Outcomes,
}

/// Reads many partitions. Dropping it stops what is under way.
#[derive(Debug)]
pub struct Reader {
    consumer: SimpleConsumer,
    positions: BTreeMap<TopicPartition, Position>,
    asking: JoinSet<Answer>,
    /// Brokers that have a request of ours.
    busy: BTreeSet<BrokerId>,
    stale: BTreeSet<TopicName>,
    failures: u32,
    not_before: Instant,
    /// Partitions that a request names first are served first: each request begins with another one.
    turn: usize,
}

#[derive(Clone, Copy, Debug)]
struct Position {
    offset: Offset,
    end: Option<Offset>,
}

impl Reader {
    /// Reads the partitions of `positions`, from there.
    pub fn new(
        consumer: SimpleConsumer,
        positions: impl IntoIterator<Item = (TopicPartition, Offset)>,
    ) -> Self {
        let position = |(partition, offset)| (partition, Position { offset, end: None });
        Self {
            consumer,
            positions: positions.into_iter().map(position).collect(),
            asking: JoinSet::new(),
            busy: BTreeSet::new(),
            stale: BTreeSet::new(),
            failures: 0,
            not_before: Instant::now(),
            turn: 0,
        }
    }

    /// Reads all partitions of a topic, from `spec` in each.
    ///
    /// # Errors
    /// As [`SimpleConsumer::offsets`].
    pub async fn of_topic(
        consumer: SimpleConsumer,
        topic: &TopicName,
        spec: OffsetSpec,
    ) -> Result<Self, ClientError> {
        let offsets = consumer.offsets(topic, spec).await?;
        let at = |(partition, offset)| (TopicPartition { topic: topic.clone(), partition }, offset);
        Ok(Self::new(consumer, offsets.into_iter().map(at)))
    }

    /// The offset that comes next, for each partition.
    pub fn positions(&self) -> impl Iterator<Item = (&TopicPartition, Offset)> {
        self.positions.iter().map(|(partition, position)| (partition, position.offset))
    }

    /// The offset that comes next.
    pub fn position(&self, partition: &TopicPartition) -> Option<Offset> {
        self.positions.get(partition).map(|position| position.offset)
    }

    /// The end of what consumers are shown, as of the last answer.
    pub fn high_watermark(&self, partition: &TopicPartition) -> Option<Offset> {
        self.positions.get(partition)?.end
    }

    /// Reads `partition` from `offset` on, whether it was read before or not. What was fetched is forgotten.
    pub fn seek(&mut self, partition: TopicPartition, offset: Offset) {
        let end = self.high_watermark(&partition);
        self.positions.insert(partition, Position { offset, end });
    }

    /// Reads `partition` no more.
    pub fn remove(&mut self, partition: &TopicPartition) {
        self.positions.remove(partition);
    }

    /// What came next of some partitions, or nothing after `max_wait`. Failures that may pass are retried here.
    ///
    /// # Errors
    /// What doesn't pass, `OffsetOutOfRange` among it: [`seek`](Self::seek) or [`remove`](Self::remove), and go on.
    pub async fn poll(&mut self, max_wait: Duration) -> Result<Vec<(TopicPartition, Fetched)>, ClientError> {
        let deadline = Instant::now() + max_wait;
        loop {
            if let Ok(outcome) = timeout_at(deadline, self.ask()).await {
                self.note(outcome);
            }
            let pause = self.not_before.min(deadline);
            let ended = if self.asking.is_empty() {
                sleep_until(pause.max(Instant::now())).await;
                None
            } else {
                timeout_at(deadline, self.asking.join_next()).await.ok().flatten()
            };
            if let Some(ended) = ended {
                // Only a panic ends a request without an answer.
                let answer = ended.map_err(|error| ClientError::Unreachable { last: error.to_string() })?;
                self.busy.remove(&answer.broker);
                let found = self.take(answer)?;
                if !found.is_empty() {
                    // The next records come while the caller looks at these.
                    let _ = timeout_at(deadline, self.ask()).await;
                    return Ok(found);
                }
            }
            if Instant::now() >= deadline {
                return Ok(Vec::new());
            }
        }
    }

    fn note(&mut self, outcome: Result<(), ClientError>) {
        match outcome {
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(%error, "a look at the cluster failed");
                self.back_off();
            }
        }
    }

    fn back_off(&mut self) {
        self.failures += 1;
        self.not_before = Instant::now() + self.consumer.cluster().backoff(self.failures);
    }

    /// Sends a request to each leader that has none.
    async fn ask(&mut self) -> Result<(), ClientError> {
        if Instant::now() < self.not_before {
            return Ok(());
        }
        let metadata = self.consumer.cluster().known();
        let leader = |partition: &TopicPartition| metadata.leader(&partition.topic, partition.partition);
        let leaderless = self.positions.keys().filter(|partition| leader(partition).is_none());
        self.stale.extend(leaderless.map(|partition| partition.topic.clone()));
        let metadata = if self.stale.is_empty() {
            metadata
        } else {
            let topics: Vec<TopicName> = self.stale.iter().cloned().collect();
            let metadata = self.consumer.cluster().refresh(&topics).await?;
            self.stale.clear();
            metadata
        };
        let mut wanted: BTreeMap<BrokerId, Vec<FetchFrom>> = BTreeMap::new();
        let max_bytes = self.consumer.config().partition_max_bytes;
        self.turn = (self.turn + 1) % self.positions.len().max(1);
        let (front, behind) = (self.positions.iter().take(self.turn), self.positions.iter().skip(self.turn));
        for (partition, position) in behind.chain(front) {
            let Some(leader) = metadata.leader(&partition.topic, partition.partition) else { continue };
            if !self.busy.contains(&leader) {
                let from = FetchFrom { partition: partition.clone(), offset: position.offset, max_bytes };
                wanted.entry(leader).or_default().push(from);
            }
        }
        for (broker, wanted) in wanted {
            self.busy.insert(broker);
            let consumer = self.consumer.clone();
            let max_wait = consumer.config().max_wait;
            self.asking.spawn(async move {
                let outcomes = consumer.fetch_from(broker, &wanted, max_wait).await;
                Answer { broker, wanted, outcomes }
            });
        }
        Ok(())
    }

    /// Moves the positions by an answer; gives what has records, or moved on without.
    fn take(&mut self, answer: Answer) -> Result<Vec<(TopicPartition, Fetched)>, ClientError> {
        let topics = answer.wanted.iter().map(|from| from.partition.topic.clone());
        let outcomes = match answer.outcomes {
            Ok(outcomes) => outcomes,
            Err(error) if error.retriable() => {
                self.stale.extend(topics);
                self.back_off();
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        let mut fatal = None;
        for ((partition, outcome), from) in outcomes.into_iter().zip(&answer.wanted) {
            // Whoever sought another place, or gave the partition up, isn't interested.
            let Some(position) = self.positions.get_mut(&partition).filter(|at| at.offset == from.offset)
            else {
                continue;
            };
            match outcome {
                Ok(fetched) => {
                    *position = Position { offset: fetched.next, end: Some(fetched.high_watermark) };
                    self.failures = 0;
                    if fetched.next > from.offset {
                        found.push((partition, fetched));
                    }
                }
                Err(error) if error.retriable() => {
                    self.stale.insert(partition.topic);
                    self.back_off();
                }
                Err(error) => fatal = Some(error),
            }
        }
        match fatal {
            // What others gave must not be lost; the error comes again.
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }
}
