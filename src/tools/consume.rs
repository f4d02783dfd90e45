//! `loggos consume`: records to lines on stdout, as text or as JSON. As a member of a group: see `consume_group`.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use loggos_client::{ClientError, ConsumerConfig, OffsetSpec, Reader, SimpleConsumer};
use loggos_protocol::batch::{Record, RecordHeader};
use loggos_protocol::ids::{Offset, PartitionId, TopicName, TopicPartition};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::ser::SerializeTuple;

use super::Failure;
use super::consume_group::{self, Member};
use super::instant::place;
use super::options::{Bootstrap, topic_name};

/// Output that is gathered before it's written.
const OUTPUT_BUFFER: usize = 256 * 1024;
/// How long one poll waits.
const POLL: Duration = Duration::from_secs(1);

/// How a record becomes a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The value and a newline
    Raw,
    /// An object: partition, offset, timestamp, key, value, headers
    Json,
}

/// What to print, and until when.
#[derive(Args)]
pub struct Options {
    /// The topic
    #[arg(value_parser = topic_name)]
    topic: TopicName,

    #[command(flatten)]
    member: Member,

    /// Only this partition
    #[arg(long, value_name = "P", conflicts_with = "group", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,

    /// Where to begin: beginning, end, an offset, @MILLISECONDS since 1970, or a time like 2024-01-31T12:00:00Z. As a
    /// member of a group: beginning or end, for partitions that the group has not read yet
    #[arg(long, value_name = "PLACE", default_value = "end", value_parser = place)]
    from: OffsetSpec,

    /// Go on with records as they come, which is the default
    #[arg(long, conflicts_with = "stop_at_end")]
    follow: bool,

    /// End behind the last record that was there when the command began
    #[arg(long)]
    stop_at_end: bool,

    /// End after this many records
    #[arg(long, value_name = "N")]
    max: Option<u64>,

    /// How a record becomes a line
    #[arg(long, value_enum, default_value = "raw")]
    format: Format,

    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// Does it.
pub async fn run(options: Options) -> Result<(), Failure> {
    if let Some(group) = options.member.group.clone() {
        let output = Output::new(options.format, options.max);
        let place = (options.from, options.stop_at_end);
        return consume_group::run(options.member, group, options.topic, place, options.bootstrap, output)
            .await;
    }
    let cluster = options.bootstrap.cluster().await?;
    let config = ConsumerConfig { cluster: options.bootstrap.config(), ..ConsumerConfig::default() };
    let consumer = SimpleConsumer::with_cluster(cluster, config);
    let partitions = chosen_partitions(&consumer, &options).await?;
    let starts = offsets(&consumer, &partitions, options.from).await?;
    let ends = if options.stop_at_end {
        Some(offsets(&consumer, &partitions, OffsetSpec::Latest).await?)
    } else {
        None
    };
    if let (OffsetSpec::Exactly(offset), Some(ends)) = (options.from, &ends) {
        check_not_behind(consumer.clone(), offset, ends).await?;
    }
    let mut output = Output::new(options.format, options.max);
    let mut reader = Reader::new(consumer, starts.clone());
    while !output.is_full() && !is_at_end(&reader, ends.as_ref()) {
        match reader.poll(POLL).await {
            Ok(found) => {
                for (partition, fetched) in found {
                    let end = ends.as_ref().and_then(|ends| ends.get(&partition));
                    let wanted = |record: &&Record| end.is_none_or(|end| record.offset < *end);
                    for record in fetched.records.iter().take_while(wanted) {
                        output.print(partition.partition, record)?;
                    }
                }
                output.flush()?;
            }
            Err(error) => recover(&mut reader, &starts, &options, error)?,
        }
    }
    output.flush()
}

fn is_at_end(reader: &Reader, ends: Option<&BTreeMap<TopicPartition, Offset>>) -> bool {
    let behind = |(partition, end): (&TopicPartition, &Offset)| {
        reader.position(partition).is_none_or(|position| position >= *end)
    };
    ends.is_some_and(|ends| ends.iter().all(behind))
}

/// Whether somebody still reads stdout. A pipe without a reader says so to the next write, which may never come.
fn is_read() -> bool {
    let stdout = io::stdout();
    let mut looked_at = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut looked_at, Some(&now)).is_err() || !looked_at[0].revents().contains(PollFlags::ERR)
}

async fn chosen_partitions(
    consumer: &SimpleConsumer,
    options: &Options,
) -> Result<Vec<TopicPartition>, ClientError> {
    let at = |partition| TopicPartition { topic: options.topic.clone(), partition };
    let all = consumer.cluster().partitions(&options.topic).await?;
    match options.partition.map(PartitionId::new) {
        None => Ok(all.into_iter().map(at).collect()),
        Some(partition) if all.contains(&partition) => Ok(vec![at(partition)]),
        Some(partition) => Err(ClientError::UnknownPartition { partition: at(partition) }),
    }
}

async fn offsets(
    consumer: &SimpleConsumer,
    partitions: &[TopicPartition],
    spec: OffsetSpec,
) -> Result<BTreeMap<TopicPartition, Offset>, ClientError> {
    let each = partitions.iter().map(|partition| async move {
        consumer.offset(partition, spec).await.map(|offset| (partition.clone(), offset))
    });
    futures::future::try_join_all(each).await.map(BTreeMap::from_iter)
}

/// An offset behind the end of every partition is a mistake, and not an empty answer.
async fn check_not_behind(
    consumer: SimpleConsumer,
    offset: Offset,
    ends: &BTreeMap<TopicPartition, Offset>,
) -> Result<(), ClientError> {
    match ends.iter().max_by_key(|(_, end)| **end) {
        Some((partition, &end)) if end < offset => {
            let log_start = consumer.offset(partition, OffsetSpec::Earliest).await?;
            Err(ClientError::OffsetOutOfRange { partition: partition.clone(), offset, log_start, end })
        }
        _ => Ok(()),
    }
}

/// Retention may overtake a reader: then it goes on with the first record that is left. An offset that was typed
/// is another matter.
fn recover(
    reader: &mut Reader,
    starts: &BTreeMap<TopicPartition, Offset>,
    options: &Options,
    error: ClientError,
) -> Result<(), Failure> {
    let ClientError::OffsetOutOfRange { partition, offset, log_start, .. } = &error else {
        return Err(error.into());
    };
    let typed = matches!(options.from, OffsetSpec::Exactly(_)) && starts.get(partition) == Some(offset);
    if typed || offset >= log_start {
        return Err(error.into());
    }
    crate::telemetry::complain(&format!(
        "records {offset} to before {log_start} of {partition} are gone; going on"
    ));
    reader.seek(partition.clone(), *log_start);
    Ok(())
}

/// Where records go.
pub struct Output {
    out: BufWriter<io::Stdout>,
    format: Format,
    left: u64,
}

impl Output {
    fn new(format: Format, max: Option<u64>) -> Self {
        let out = BufWriter::with_capacity(OUTPUT_BUFFER, io::stdout());
        Self { out, format, left: max.unwrap_or(u64::MAX) }
    }

    /// Whether as many as were asked for are printed.
    pub const fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Prints a record, unless enough are printed.
    pub fn print(&mut self, partition: PartitionId, record: &Record) -> Result<(), Failure> {
        if self.is_full() {
            return Ok(());
        }
        self.left -= 1;
        match self.format {
            Format::Raw => self.out.write_all(record.value.as_deref().unwrap_or_default())?,
            Format::Json => {
                let line = Line::of(partition, record);
                // Whatever goes wrong here is the writing.
                serde_json::to_writer(&mut self.out, &line).map_err(io::Error::from)?;
            }
        }
        Ok(self.out.write_all(b"\n")?)
    }

    /// Sees to it that what was printed is out, and that somebody reads on.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush()?;
        if is_read() { Ok(()) } else { Err(Failure::Unread) }
    }
}

/// A record as a JSON object.
#[derive(Serialize)]
struct Line<'a> {
    partition: i32,
    offset: i64,
    timestamp: i64,
    key: Option<Text<'a>>,
    value: Option<Text<'a>>,
    headers: Vec<Header<'a>>,
}

impl<'a> Line<'a> {
    fn of(partition: PartitionId, record: &'a Record) -> Self {
        Self {
            partition: partition.raw(),
            offset: record.offset.raw(),
            timestamp: record.timestamp.raw(),
            key: record.key.as_ref().map(Text),
            value: record.value.as_ref().map(Text),
            headers: record.headers.iter().map(Header).collect(),
        }
    }
}

/// Bytes as a string, or as `{"hex": "..."}` where they are no UTF-8: nothing is lost.
struct Text<'a>(&'a Bytes);

impl Serialize for Text<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
                serializer.collect_map([("hex", hex)])
            }
        }
    }
}

/// A header as `[key, value]`: keys may occur several times.
struct Header<'a>(&'a RecordHeader);

impl Serialize for Header<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut pair = serializer.serialize_tuple(2)?;
        pair.serialize_element(&Text(&self.0.key))?;
        pair.serialize_element(&self.0.value.as_ref().map(Text))?;
        pair.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loggos_protocol::ids::Timestamp;

    #[test]
    fn a_record_is_one_object_in_a_fixed_order() {
        let header = RecordHeader { key: "h".into(), value: None };
        let record = Record {
            offset: Offset::new(3),
            timestamp: Timestamp::new(9),
            key: Some(Bytes::from_static(&[0xff, 0x00])),
            value: Some("a \"b\"".into()),
            headers: vec![header.clone(), header],
        };
        let line = serde_json::to_string(&Line::of(PartitionId::new(1), &record)).expect("JSON");
        let expected = r#"{"partition":1,"offset":3,"timestamp":9,"key":{"hex":"ff00"},"value":"a \"b\"","headers":[["h",null],["h",null]]}"#;
        assert_eq!(line, expected);
    }
}
