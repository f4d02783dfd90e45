//! One source into the target: record by record, each at the offset that it has in the source.
//!
//! Nothing is remembered: where the target ends is where the mirror goes on, and an acknowledgement that names
//! another offset than the source's ends the mirror, because then somebody else writes there. Called by `mod`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use loggos_client::admin::{ConfigOwner, NewTopic};
use loggos_client::{
    Admin, ClientError, Cluster, ConsumerConfig, Delivery, Isolation, Message, OffsetSpec, Producer,
    ProducerConfig, Reader, SimpleConsumer,
};
use loggos_protocol::batch::{Record, RecordHeader};
use loggos_protocol::ids::{Offset, TopicName, TopicPartition};
use loggos_protocol::kafka::ErrorCode;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::groups::{Committed, Groups, Offsets};
use super::plan::{GAP_HEADER, GAP_LIMIT, ORIGINS_GROUP, Origin, Selection, Share, Step, step};
use super::status::Status;

/// Records on their way to the target.
const IN_FLIGHT: usize = 50_000;
/// How long one look for records takes at most.
const POLL: Duration = Duration::from_millis(500);
/// How often topics, groups and origins are looked at.
const REFRESH: Duration = Duration::from_secs(5);
/// Before the next attempt after something failed.
const PAUSE: Duration = Duration::from_secs(1);
/// A killed mirror's last request may still be on its way: the target's ends must stand still for so long.
const STILL: Duration = Duration::from_millis(500);
/// At the end of a session, what is on its way is waited for so long.
const SETTLE: Duration = Duration::from_secs(30);
/// Topic configs that a mirrored topic takes over.
const CONFIGS: [&str; 4] = ["cleanup.policy", "max.message.bytes", "retention.bytes", "retention.ms"];
/// Bytes asked for when one record is compared.
const ONE_RECORD: usize = 1024 * 1024;

/// Why a session ended.
#[derive(Debug)]
pub enum Ended {
    /// It may go better the next time.
    Later(ClientError),
    /// It won't.
    Never(String),
}

impl From<ClientError> for Ended {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::RecordTooLarge { .. } => {
                Self::Never(format!("{error}; raise max.message.bytes of the target's topic"))
            }
            error => Self::Later(error),
        }
    }
}

/// What to mirror.
#[derive(Debug)]
pub struct Source {
    /// What it's called in the status.
    pub name: String,
    /// The topics.
    pub selection: Selection,
    /// The groups whose offsets are carried.
    pub groups: Option<regex::Regex>,
    /// Which partitions, if there are several mirrors.
    pub share: Option<Share>,
    /// Whether to end when everything that was there has been mirrored.
    pub once: bool,
    /// The source.
    pub from: SimpleConsumer,
    /// How the target is written to.
    pub to: ProducerConfig,
    /// Where progress is shown.
    pub status: Arc<Status>,
}

/// One partition.
#[derive(Debug)]
struct Line {
    target: TopicPartition,
    /// The offset that the next record gets.
    end: Offset,
    /// Everything before it is acknowledged.
    acknowledged: Offset,
    /// With `once`, to here.
    goal: Offset,
}

#[derive(Debug)]
struct Sent {
    delivery: Delivery,
    place: TopicPartition,
    offset: Offset,
}

struct Session<'a> {
    source: &'a Source,
    producer: Producer,
    target: SimpleConsumer,
    reader: Reader,
    lines: BTreeMap<TopicPartition, Line>,
    sent: VecDeque<Sent>,
    /// Topics that are left alone because they have come from the target.
    looped: Vec<TopicName>,
}

impl Source {
    /// Mirrors until it's told to stop, or with `once` to the end; the error is a sentence.
    pub async fn run(self, stop: watch::Receiver<bool>) -> Result<(), String> {
        let mut attempts = 0;
        while !*stop.borrow() {
            let mut session = self.begin();
            let outcome = session.run(stop.clone()).await;
            let settled = session.settle().await;
            match outcome.and(settled) {
                Ok(()) => return Ok(()),
                Err(Ended::Never(sentence)) => return Err(format!("{}: {sentence}", self.name)),
                Err(Ended::Later(error)) => {
                    attempts += 1;
                    tracing::warn!(source = self.name, %error, attempts, "mirroring begins again");
                    sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }

    fn begin(&self) -> Session<'_> {
        let producer = Producer::new(self.to.clone());
        let target = SimpleConsumer::with_cluster(producer.cluster().clone(), ConsumerConfig::default());
        let reader = Reader::new(self.from.clone(), []);
        let (lines, sent) = (BTreeMap::new(), VecDeque::new());
        Session { source: self, producer, target, reader, lines, sent, looped: Vec::new() }
    }
}

impl Session<'_> {
    async fn run(&mut self, mut stop: watch::Receiver<bool>) -> Result<(), Ended> {
        self.discover().await?;
        let mut refreshed = Instant::now();
        loop {
            let found = tokio::select! {
                found = self.reader.poll(POLL) => found,
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            };
            match found {
                Ok(found) => {
                    for (place, fetched) in found {
                        self.write(&place, fetched.records).await?;
                    }
                }
                // Retention has overtaken the mirror: what is gone is gone, and becomes a gap.
                Err(ClientError::OffsetOutOfRange { partition, offset, log_start, .. })
                    if offset < log_start =>
                {
                    self.reader.seek(partition, log_start);
                }
                Err(error) => return Err(error.into()),
            }
            self.collect().await?;
            self.show();
            let ended = self.source.once && self.is_done();
            if ended || refreshed.elapsed() >= REFRESH {
                self.carry().await?;
                if ended {
                    return Ok(());
                }
                self.discover().await?;
                refreshed = Instant::now();
            }
        }
    }

    fn is_done(&self) -> bool {
        self.sent.is_empty()
            && self
                .lines
                .iter()
                .all(|(place, line)| self.reader.position(place).is_none_or(|position| position >= line.goal))
    }

    /// Finds topics and partitions that are not mirrored yet, and begins with them.
    async fn discover(&mut self) -> Result<(), Ended> {
        let source = self.source;
        let from = Admin::new(source.from.cluster().clone());
        let to = Admin::new(self.producer.cluster().clone());
        let topics = from.list_topics().await?;
        let there = to.list_topics().await?;
        let ours = to.describe_cluster().await?.cluster_id;
        let origins = self.origins(source.from.cluster()).await?;
        let mut fresh = Vec::new();
        for (topic, metadata) in &topics {
            let Some(target) = source.selection.target(topic).filter(|_| !metadata.internal) else {
                continue;
            };
            if origins.get(topic).is_some_and(|origin| origin.has_passed(&ours)) {
                if !self.looped.contains(topic) {
                    tracing::info!(%topic, "left alone: it has come from the target");
                    self.looped.push(topic.clone());
                }
                continue;
            }
            let wanted = metadata.partitions.len();
            match there.get(&target) {
                None => self.create(&from, &to, topic, &target, wanted).await?,
                Some(known) if known.partitions.len() < wanted => {
                    to.create_partitions(&target, i32::try_from(wanted).unwrap_or(i32::MAX)).await?;
                }
                Some(_) => {}
            }
            for partition in metadata.partitions.keys() {
                let place = TopicPartition { topic: topic.clone(), partition: *partition };
                let mine = source.share.is_none_or(|share| share.has(topic, *partition));
                if mine && !self.lines.contains_key(&place) {
                    fresh.push((place, TopicPartition { topic: target.clone(), partition: *partition }));
                }
            }
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let mut ends = self.ends(&fresh).await?;
        loop {
            sleep(STILL).await;
            let again = self.ends(&fresh).await?;
            if again == ends {
                break;
            }
            ends = again;
        }
        for ((place, target), end) in fresh.into_iter().zip(ends) {
            self.begin_with(place, target, end).await?;
        }
        Ok(())
    }

    async fn ends(&self, places: &[(TopicPartition, TopicPartition)]) -> Result<Vec<Offset>, ClientError> {
        let ends = places.iter().map(|(_, target)| self.target.offset(target, OffsetSpec::Latest));
        futures::future::try_join_all(ends).await
    }

    async fn create(
        &self,
        from: &Admin,
        to: &Admin,
        topic: &TopicName,
        target: &TopicName,
        partitions: usize,
    ) -> Result<(), Ended> {
        let configs = from.describe_configs(&ConfigOwner::Topic(topic.clone())).await?;
        let own =
            configs.into_iter().filter(|config| config.is_own && CONFIGS.contains(&config.name.as_str()));
        let new = NewTopic {
            name: target.clone(),
            partitions: i32::try_from(partitions).ok(),
            replication_factor: None,
            configs: own.filter_map(|config| Some((config.name, config.value?))).collect(),
        };
        match to.create_topic(&new).await {
            Ok(()) => tracing::info!(%topic, %target, partitions, "a topic to mirror to"),
            // Another share's mirror was quicker.
            Err(error) if error.code() == Some(ErrorCode::TOPIC_ALREADY_EXISTS) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Makes sure that what the target holds is the source's, and goes on behind it.
    async fn begin_with(
        &mut self,
        place: TopicPartition,
        target: TopicPartition,
        end: Offset,
    ) -> Result<(), Ended> {
        let from = &self.source.from;
        let first = from.offset(&place, OffsetSpec::Earliest).await?;
        let goal = from.offset(&place, OffsetSpec::Latest).await?;
        if end > goal {
            return Err(Ended::Never(format!(
                "{target} has records up to {end}, and {place} only up to {goal}: it is no mirror of it"
            )));
        }
        if end > first && end > Offset::ZERO {
            self.compare(&place, &target, end.plus(-1)).await?;
        }
        let mut end = end;
        if end == Offset::ZERO && first > Offset::ZERO {
            self.skip(&target, first).await?;
            end = first;
        }
        tracing::info!(%place, %target, offset = %end.max(first), "mirroring");
        self.reader.seek(place.clone(), end.max(first));
        self.lines.insert(place, Line { target, end, acknowledged: end, goal });
        Ok(())
    }

    async fn compare(
        &self,
        place: &TopicPartition,
        target: &TopicPartition,
        at: Offset,
    ) -> Result<(), Ended> {
        let one = |consumer: SimpleConsumer, place: TopicPartition| async move {
            let fetched = consumer.fetch(&place, at, ONE_RECORD, POLL).await?;
            Ok::<_, ClientError>(fetched.records.into_iter().find(|record| record.offset == at))
        };
        let there = one(self.target.clone(), target.clone()).await?;
        let here = one(self.source.from.clone(), place.clone()).await?;
        let differ = match (&here, &there) {
            (Some(here), Some(there)) => {
                !is_filler(there)
                    && (&here.key, &here.value, &here.headers) != (&there.key, &there.value, &there.headers)
            }
            // Compaction or retention may have taken either.
            _ => false,
        };
        if differ {
            return Err(Ended::Never(format!(
                "{target} holds another record at {at} than {place}: it is no mirror of it, or has another writer"
            )));
        }
        Ok(())
    }

    /// Has an empty partition begin where the source begins: offsets before it are filled, and deleted at once.
    async fn skip(&mut self, target: &TopicPartition, first: Offset) -> Result<(), Ended> {
        if first.raw() > GAP_LIMIT {
            return Err(Ended::Never(format!(
                "the source of {target} begins at {first}: offsets can be kept where no more than {GAP_LIMIT} are \
                 missing"
            )));
        }
        let mut last = None;
        for _ in 0..first.raw() {
            last = Some(self.producer.queue(&target.topic, Some(target.partition), filler(None)).await?);
        }
        if let Some(last) = last {
            let written = last.await?;
            if written.offset.next() != first {
                return Err(another_writer(target, first.plus(-1), written.offset));
            }
        }
        Admin::new(self.producer.cluster().clone()).delete_records(target, first).await?;
        Ok(())
    }

    async fn write(&mut self, place: &TopicPartition, records: Vec<Record>) -> Result<(), Ended> {
        for record in records {
            let Some(line) = self.lines.get_mut(place) else { return Ok(()) };
            let gap = match step(line.end, record.offset) {
                Step::Write => 0,
                Step::Behind => continue,
                Step::Fill(gap) => gap,
                Step::TooFar(gap) => {
                    return Err(Ended::Never(format!(
                        "{place} has no record at {gap} offsets from {} on: no more than {GAP_LIMIT} can be filled",
                        line.end
                    )));
                }
            };
            let target = line.target.clone();
            let mut offset = line.end;
            line.end = record.offset.next();
            for _ in 0..gap {
                self.send(place, &target, filler(Some(&record)), offset).await?;
                offset = offset.next();
            }
            let message = Message {
                key: record.key,
                value: record.value,
                headers: record.headers,
                timestamp: Some(record.timestamp),
            };
            self.send(place, &target, message, offset).await?;
        }
        Ok(())
    }

    async fn send(
        &mut self,
        place: &TopicPartition,
        target: &TopicPartition,
        message: Message,
        offset: Offset,
    ) -> Result<(), Ended> {
        if self.sent.len() >= IN_FLIGHT {
            let sent = self.sent.pop_front().expect("it is full");
            let outcome = sent.delivery.await;
            self.settled(&sent.place, sent.offset, outcome)?;
        }
        let delivery = self.producer.queue(&target.topic, Some(target.partition), message).await?;
        self.sent.push_back(Sent { delivery, place: place.clone(), offset });
        Ok(())
    }

    async fn collect(&mut self) -> Result<(), Ended> {
        while let Some(front) = self.sent.front_mut() {
            let Some(outcome) = (&mut front.delivery).now_or_never() else { break };
            let sent = self.sent.pop_front().expect("it was in front");
            self.settled(&sent.place, sent.offset, outcome)?;
        }
        Ok(())
    }

    fn settled(
        &mut self,
        place: &TopicPartition,
        offset: Offset,
        outcome: Result<loggos_client::RecordMeta, ClientError>,
    ) -> Result<(), Ended> {
        let written = outcome?;
        let Some(line) = self.lines.get_mut(place) else { return Ok(()) };
        if written.offset != offset {
            return Err(another_writer(&line.target, offset, written.offset));
        }
        line.acknowledged = offset.next();
        self.source.status.count(1);
        Ok(())
    }

    /// Nothing of this session may be written after the next one has looked where the target ends.
    async fn settle(&mut self) -> Result<(), Ended> {
        let deadline = Instant::now() + SETTLE;
        let mut outcome = Ok(());
        while let Some(sent) = self.sent.pop_front() {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, sent.delivery).await {
                Ok(written) => outcome = outcome.and(self.settled(&sent.place, sent.offset, written)),
                Err(_) => break,
            }
        }
        outcome
    }

    fn show(&self) {
        for (place, line) in &self.lines {
            let end = self.reader.high_watermark(place).unwrap_or(line.goal);
            self.source.status.show(&self.source.name, place, line.acknowledged, end);
        }
    }

    /// Where topics of a cluster have come from.
    async fn origins(&self, cluster: &Cluster) -> Result<BTreeMap<TopicName, Origin>, ClientError> {
        let kept = Groups::of(cluster.clone()).committed(ORIGINS_GROUP).await?;
        let origin = |(place, committed): (TopicPartition, Committed)| {
            Origin::parse(&committed.metadata).map(|origin| (place.topic, origin))
        };
        Ok(kept.into_iter().filter_map(origin).collect())
    }

    /// Carries the offsets of groups, and says in the target where its topics have come from.
    async fn carry(&mut self) -> Result<(), Ended> {
        let source = self.source;
        let theirs = Admin::new(source.from.cluster().clone()).describe_cluster().await?.cluster_id;
        let to = Groups::of(self.producer.cluster().clone());
        let earlier = self.origins(source.from.cluster()).await?;
        let origin = |place: &TopicPartition, line: &Line| {
            let origin = earlier.get(&place.topic).cloned().unwrap_or_default().through(&theirs);
            let metadata = serde_json::to_string(&origin).ok()?;
            Some((line.target.clone(), Committed { offset: line.acknowledged, metadata }))
        };
        let origins: Offsets = self.lines.iter().filter_map(|(place, line)| origin(place, line)).collect();
        if !origins.is_empty() {
            to.commit(ORIGINS_GROUP, &origins).await?;
        }
        let Some(pattern) = &source.groups else { return Ok(()) };
        let from = Groups::of(source.from.cluster().clone());
        for group in from.list().await?.iter().filter(|group| pattern.is_match(group)) {
            if group == ORIGINS_GROUP {
                continue;
            }
            let here = from.committed(group).await?;
            let there = to.committed(group).await?;
            let carried = self.translated(&here, &there);
            if !carried.is_empty() && !to.commit(group, &carried).await? {
                tracing::debug!(group, "has members in the target and keeps its own offsets");
            }
        }
        Ok(())
    }

    /// A group's offsets under the target's names: never beyond what is mirrored, never back.
    fn translated(&self, here: &Offsets, there: &Offsets) -> Offsets {
        let translate = |(place, committed): (&TopicPartition, &Committed)| {
            let line = self.lines.get(place)?;
            let offset = committed.offset.min(line.acknowledged);
            let ahead = there.get(&line.target).is_some_and(|known| known.offset >= offset);
            let metadata = committed.metadata.clone();
            (!ahead).then(|| (line.target.clone(), Committed { offset, metadata }))
        };
        here.iter().filter_map(translate).collect()
    }
}

fn another_writer(target: &TopicPartition, expected: Offset, found: Offset) -> Ended {
    Ended::Never(format!(
        "a record for offset {expected} of {target} was written at {found}: somebody else writes there, and from \
         {expected} on it is no mirror any more; delete the topic and let the mirror make it again"
    ))
}

/// A record that stands for none, at the time of the one that follows.
fn filler(before: Option<&Record>) -> Message {
    let header = RecordHeader { key: GAP_HEADER.into(), value: None };
    let timestamp = before.map(|record| record.timestamp);
    Message { key: None, value: None, headers: vec![header], timestamp }
}

fn is_filler(record: &Record) -> bool {
    record.headers.iter().any(|header| header.key == GAP_HEADER)
}

/// How a source is read: committed records only.
pub fn reading(mut config: ConsumerConfig) -> ConsumerConfig {
    config.isolation = Isolation::ReadCommitted;
    config
}
