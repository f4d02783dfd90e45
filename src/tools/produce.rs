//! `loggos produce`: lines of files or of stdin, one record each, written when the command ends.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use clap::Args;
use futures::FutureExt;
use indicatif::{ProgressBar, ProgressStyle};
use loggos_client::{ClientError, Delivery, Message, Producer};
use loggos_protocol::batch::RecordHeader;
use loggos_protocol::ids::{PartitionId, TopicName};
use tokio::sync::mpsc;

use super::Failure;
use super::options::{Bootstrap, Sending, pair, topic_name};

/// Pieces of input that wait to be sent.
const PIECES_AHEAD: usize = 4;
/// Bytes asked of the input at a time.
const PIECE: usize = 256 * 1024;

/// What to send, and how.
#[derive(Args)]
pub struct Options {
    /// The topic
    #[arg(value_parser = topic_name)]
    topic: TopicName,

    /// Files to read; stdin when there's none
    files: Vec<PathBuf>,

    /// Send everything to this partition; by default the key decides, or the turn
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,

    /// Take what stands in a line before this text as the key
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key_separator: Option<String>,

    /// A header for each record; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    header: Vec<(String, String)>,

    /// Say at the end how much was sent
    #[arg(long)]
    verbose: bool,

    #[command(flatten)]
    sending: Sending,

    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// A piece of input: whole lines, except for the last of a file.
struct Piece {
    lines: Bytes,
    read: u64,
}

/// What became of the records.
#[derive(Default)]
struct Tally {
    waiting: VecDeque<Delivery>,
    sent: u64,
    bytes: u64,
    failed: u64,
    first: Option<ClientError>,
}

impl Tally {
    fn note(&mut self, outcome: Result<(), ClientError>) {
        if let Err(error) = outcome {
            self.failed += 1;
            self.first.get_or_insert(error);
        }
    }

    /// Takes the outcomes that are there, without waiting.
    fn collect(&mut self) {
        while let Some(outcome) = self.waiting.front_mut().and_then(FutureExt::now_or_never) {
            self.waiting.pop_front();
            self.note(outcome.map(|_| ()));
        }
    }
}

/// Does it.
pub async fn run(options: Options) -> Result<(), Failure> {
    let started = Instant::now();
    let config = options.sending.config(&options.bootstrap);
    let line_limit = config.max_request_bytes;
    let bar = progress(&options.files)?;
    let producer = Producer::new(config);
    producer.cluster().any().await?;
    // The topic is looked at before anything is read: a wrong name shall not swallow the input.
    producer.cluster().topic(&options.topic).await?;
    let (pieces, mut ahead) = mpsc::channel(PIECES_AHEAD);
    let files = options.files.clone();
    let reading = tokio::task::spawn_blocking(move || read_all(&files, line_limit, &pieces));
    let mut tally = Tally::default();
    while let Some(Piece { lines, read }) = ahead.recv().await {
        send_lines(&producer, &options, &lines, &mut tally).await?;
        tally.collect();
        bar.inc(read);
    }
    let input =
        reading.await.map_err(|error| Failure::Failed(format!("reading the input failed: {error}")))?;
    producer.close().await?;
    for delivery in std::mem::take(&mut tally.waiting) {
        tally.note(delivery.await.map(|_| ()));
    }
    bar.finish_and_clear();
    // What was read before a file failed is written; the failure is told all the same.
    input?;
    if let Some(first) = tally.first {
        return Err(Failure::Failed(format!(
            "{} of {} records were not written: {first}",
            tally.failed, tally.sent
        )));
    }
    if options.verbose {
        let seconds = started.elapsed().as_secs_f64();
        writeln!(io::stderr(), "{} records of {} bytes written in {seconds:.1} s", tally.sent, tally.bytes)?;
    }
    Ok(())
}

/// A bar over the files' sizes; hidden where it has no place.
fn progress(files: &[PathBuf]) -> Result<ProgressBar, Failure> {
    if files.is_empty() {
        return Ok(ProgressBar::hidden());
    }
    let mut total = 0;
    for file in files {
        let metadata = std::fs::metadata(file);
        total += metadata.map_err(|error| Failure::Refused(format!("{}: {error}", file.display())))?.len();
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left");
    // It draws on stderr, and only where that is a terminal.
    Ok(ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
}

async fn send_lines(
    producer: &Producer,
    options: &Options,
    lines: &Bytes,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let partition = options.partition.map(PartitionId::new);
    let header = |(key, value): &(String, String)| RecordHeader {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
    };
    let headers: Vec<RecordHeader> = options.header.iter().map(header).collect();
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let line = lines.slice_ref(line.strip_suffix(b"\n").unwrap_or(line));
        let (key, value) = split_key(&line, options.key_separator.as_deref());
        let message = Message { key, value: Some(value), headers: headers.clone(), timestamp: None };
        tally.sent += 1;
        tally.bytes += line.len() as u64;
        match producer.queue(&options.topic, partition, message).await {
            Ok(delivery) => tally.waiting.push_back(delivery),
            // The next record may fit.
            Err(error @ ClientError::RecordTooLarge { .. }) => tally.note(Err(error)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn split_key(line: &Bytes, separator: Option<&str>) -> (Option<Bytes>, Bytes) {
    let found = separator.and_then(|separator| {
        let separator = separator.as_bytes();
        let at = line.windows(separator.len()).position(|window| window == separator)?;
        Some((line.slice(..at), line.slice(at + separator.len()..)))
    });
    match found {
        Some((key, value)) => (Some(key), value),
        None => (None, line.clone()),
    }
}

/// Reads the files, or stdin, on a thread of its own; ends early when nobody takes the pieces any more.
fn read_all(files: &[PathBuf], line_limit: usize, pieces: &mpsc::Sender<Piece>) -> Result<(), Failure> {
    if files.is_empty() {
        return read_pieces(io::stdin().lock(), line_limit, pieces)
            .map_err(|error| Failure::Failed(format!("stdin: {error}")));
    }
    for file in files {
        let failed = |error: io::Error| Failure::Failed(format!("{}: {error}", file.display()));
        let opened = File::open(file).map_err(failed)?;
        read_pieces(opened, line_limit, pieces).map_err(failed)?;
    }
    Ok(())
}

fn read_pieces(mut input: impl Read, line_limit: usize, pieces: &mpsc::Sender<Piece>) -> io::Result<()> {
    let mut pending = BytesMut::new();
    let mut searched = 0;
    loop {
        let filled = pending.len();
        pending.resize(filled + PIECE, 0);
        let read = match input.read(&mut pending[filled..]) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                pending.truncate(filled);
                continue;
            }
            Err(error) => return Err(error),
        };
        pending.truncate(filled + read);
        let whole = if read == 0 {
            pending.len()
        } else {
            pending[searched..].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| searched + at + 1)
        };
        let lines = pending.split_to(whole).freeze();
        if pending.len() > line_limit {
            return Err(io::Error::other(format!(
                "a line is longer than the {line_limit} bytes that a record may have"
            )));
        }
        searched = pending.len();
        let piece = Piece { lines, read: read as u64 };
        if pieces.blocking_send(piece).is_err() || read == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_and_an_unended_last_one_too() {
        let (sender, mut receiver) = mpsc::channel(1_000);
        let text: String = (0..100_000).map(|n| format!("line {n}\n")).collect::<String>() + "the last";
        read_pieces(text.as_bytes(), 1_000, &sender).expect("readable");
        drop(sender);
        let (mut found, mut read) = (Vec::new(), 0);
        while let Ok(piece) = receiver.try_recv() {
            let ends_whole =
                piece.lines.is_empty() || piece.lines.ends_with(b"\n") || piece.lines.ends_with(b"last");
            assert!(ends_whole, "no piece ends within a line");
            found.extend_from_slice(&piece.lines);
            read += piece.read;
        }
        assert_eq!(found, text.as_bytes());
        assert_eq!(read, text.len() as u64);
        let (sender, _receiver) = mpsc::channel(1_000);
        assert!(read_pieces(&vec![b'x'; 600_000][..], 1_000, &sender).is_err());
    }

    #[test]
    fn a_key_stands_before_the_first_separator() {
        let line = Bytes::from_static(b"k::v::w");
        assert_eq!(split_key(&line, Some("::")), (Some("k".into()), "v::w".into()));
        assert_eq!(split_key(&line, Some("#")), (None, line.clone()));
        assert_eq!(split_key(&line, None), (None, line));
    }
}
