//! `loggos dump-log`: the batches of segment files, damaged ones too, without a broker.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use loggos_protocol::batch::{Batch, BatchView, Record, records, scan};

use super::Failure;

/// Which files.
#[derive(Args)]
pub struct Options {
    /// Segment files, for instance loggos-data/orders-0/00000000000000000000.log
    #[arg(required = true)]
    files: Vec<PathBuf>,

    /// Print the records too
    #[arg(long)]
    records: bool,
}

/// Prints the files; fails at the end if something in them is damaged.
pub fn run(options: &Options) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut damaged = 0;
    for file in &options.files {
        damaged += dump(file, options.records, &mut out)?;
    }
    out.flush()?;
    match damaged {
        0 => Ok(()),
        1 => Err(Failure::Failed("one place is damaged".to_owned())),
        several => Err(Failure::Failed(format!("{several} places are damaged"))),
    }
}

/// Prints one file; gives the number of damaged places.
fn dump(file: &Path, with_records: bool, out: &mut impl Write) -> Result<usize, Failure> {
    let read = std::fs::read(file);
    let bytes = Bytes::from(read.map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))?);
    writeln!(out, "{}", file.display())?;
    let (mut damaged, mut batches, mut count) = (0, 0u64, 0i64);
    let mut scan = scan(&bytes);
    let broken = loop {
        match scan.next() {
            None => break None,
            Some(Err(error)) => break Some(error),
            Some(Ok(view)) => {
                batches += 1;
                count += i64::from(view.header.record_count);
                damaged += dump_batch(&bytes, &view, with_records, out)?;
            }
        }
    };
    let rest = &bytes[scan.position()..];
    let place = scan.position();
    match broken {
        _ if rest.is_empty() => {}
        // Space that was set aside and not yet written.
        _ if rest.iter().all(|byte| *byte == 0) => {
            writeln!(out, "position {place}: {} zero bytes", rest.len())?
        }
        Some(error) => {
            damaged += 1;
            writeln!(out, "position {place}: {error}; {} bytes from there on are not read", rest.len())?;
        }
        None => {
            damaged += 1;
            writeln!(out, "position {place}: a batch that is cut to {} bytes", rest.len())?;
        }
    }
    writeln!(out, "{batches} batches, {count} records, {} bytes", bytes.len())?;
    Ok(damaged)
}

fn dump_batch(
    file: &Bytes,
    view: &BatchView<'_>,
    with_records: bool,
    out: &mut impl Write,
) -> Result<usize, Failure> {
    let header = &view.header;
    let codec = header.compression().map_or_else(|error| error.to_string(), |codec| codec.to_string());
    let crc = view.check_crc();
    write!(
        out,
        "position {} offsets {}..{} count {} epoch {} codec {codec} bytes {} times {}..{}",
        view.position,
        header.base_offset,
        header.last_offset(),
        header.record_count,
        header.leader_epoch,
        view.bytes.len(),
        header.base_timestamp,
        header.max_timestamp,
    )?;
    if header.has_producer() {
        let (id, epoch) = (header.producer_id, header.producer_epoch);
        write!(out, " producer {id} epoch {epoch} sequence {}", header.base_sequence)?;
    }
    if header.is_transactional() {
        write!(out, " transactional")?;
    }
    if header.is_control() {
        write!(out, " control")?;
    }
    match &crc {
        Ok(()) => writeln!(out, " crc ok")?,
        Err(error) => writeln!(out, " crc WRONG: {error}")?,
    }
    let mut damaged = usize::from(crc.is_err());
    if with_records {
        let read = Batch::from_bytes(&file.slice_ref(view.bytes)).and_then(|batch| records(&batch));
        match read {
            Ok(found) => {
                for record in found {
                    match record {
                        Ok(record) => dump_record(&record, out)?,
                        Err(error) => {
                            damaged += 1;
                            writeln!(out, "  {error}")?;
                        }
                    }
                }
            }
            Err(error) => {
                damaged += 1;
                writeln!(out, "  {error}")?;
            }
        }
    }
    Ok(damaged)
}

fn dump_record(record: &Record, out: &mut impl Write) -> io::Result<()> {
    let text = |bytes: &Option<Bytes>| {
        bytes.as_ref().map_or_else(|| "null".to_owned(), |bytes| format!("\"{}\"", bytes.escape_ascii()))
    };
    let (key, value) = (text(&record.key), text(&record.value));
    write!(out, "  offset {} time {} key {key} value {value}", record.offset, record.timestamp)?;
    for header in &record.headers {
        write!(out, " header {}={}", header.key_text(), text(&header.value))?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use loggos_protocol::batch::{BatchBuilder, BatchOptions, RecordView};

    #[test]
    fn whole_batches_are_shown_and_damage_is_named() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let file = dir.path().join("0.log");
        let mut builder = BatchBuilder::new(BatchOptions::default());
        builder.push(&RecordView { value: Some(b"hello\n"), ..RecordView::default() });
        let batch = builder.build().to_bytes();
        let show = |content: &[u8]| {
            std::fs::write(&file, content).expect("a file");
            let mut out = Vec::new();
            let damaged = dump(&file, true, &mut out).expect("readable");
            (damaged, String::from_utf8(out).expect("text"))
        };
        let (damaged, text) = show(&[&batch[..], &batch, &[0; 100]].concat());
        assert_eq!(damaged, 0, "{text}");
        assert!(
            text.contains("crc ok") && text.contains("value \"hello\\n\"") && text.contains("100 zero bytes")
        );
        assert!(text.contains("2 batches, 2 records"), "{text}");
        let mut bent = batch.to_vec();
        *bent.last_mut().expect("bytes") ^= 1;
        let (damaged, text) = show(&bent);
        assert!(damaged > 0 && text.contains("crc WRONG"), "{text}");
        let (damaged, text) = show(&batch[..batch.len() - 1]);
        assert!(damaged == 1 && text.contains("cut to"), "{text}");
    }
}
