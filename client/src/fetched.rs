//! What one fetch of one partition gave: batches as they came, and their records one at a time.
//!
//! Nothing is decompressed, checked or taken apart before its record is asked for, so that what is fetched ahead costs
//! what it cost on the wire, and the work is done by the thread that wants the records. Called by `simple` and by the
//! consumers.

use bytes::Bytes;
use loggos_protocol::batch::{Batch, Record, Records, records, split};
use loggos_protocol::ids::{LeaderEpoch, Offset};
use loggos_protocol::kafka::messages::fetch_response::{AbortedTransaction, PartitionData};

use crate::config::{ConsumerConfig, Isolation};
use crate::error::ClientError;

/// The type of a control record that ends an aborted transaction.
const ABORT_MARKER: i16 = 0;

/// The batches of one partition's answer.
#[derive(Debug)]
pub struct FetchedBatches {
    /// The offset to ask for next. It may be further than the last record: compaction leaves gaps, and markers of
    /// transactions are not shown.
    pub next: Offset,
    /// The end of what consumers are shown.
    pub high_watermark: Offset,
    /// The first offset that is kept; -1 when the broker didn't say.
    pub log_start: Offset,
    /// Bytes of the batches, as they came.
    pub bytes: usize,
    from: Offset,
    batches: std::vec::IntoIter<Batch>,
    aborted: Aborted,
    check_crcs: bool,
    leader_epoch: LeaderEpoch,
    current: Option<Records>,
}

impl FetchedBatches {
    /// What `data` says, of records from `offset` on.
    ///
    /// # Errors
    /// `Batch` when the batches' headers can't be read.
    pub(crate) fn new(
        config: &ConsumerConfig,
        offset: Offset,
        data: &PartitionData,
    ) -> Result<Self, ClientError> {
        let aborted = match config.isolation {
            Isolation::ReadCommitted => {
                Aborted::new(data.aborted_transactions.as_deref().unwrap_or_default())
            }
            Isolation::ReadUncommitted => Aborted::default(),
        };
        let bytes: Bytes = data.records.clone().unwrap_or_default();
        let batches: Vec<Batch> = split(bytes).collect::<Result<_, _>>()?;
        let next = batches.iter().map(|batch| batch.header.next_offset()).fold(offset, Offset::max);
        Ok(Self {
            next,
            high_watermark: Offset::new(data.high_watermark),
            log_start: Offset::new(data.log_start_offset),
            bytes: batches.iter().map(Batch::len).sum(),
            from: offset,
            batches: batches.into_iter(),
            aborted,
            check_crcs: config.check_crcs,
            leader_epoch: LeaderEpoch::NONE,
            current: None,
        })
    }

    /// The leader epoch of the batch that the last record was in.
    pub const fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    /// Goes on to the next batch that is shown; false when there's none.
    fn turn(&mut self) -> Result<bool, ClientError> {
        for batch in self.batches.by_ref() {
            if self.check_crcs {
                batch.check_crc()?;
            }
            if self.aborted.hides(&batch)? {
                continue;
            }
            self.leader_epoch = batch.header.leader_epoch;
            self.current = Some(records(&batch)?);
            return Ok(true);
        }
        Ok(false)
    }
}

/// Records in order; an error is the last that comes.
impl Iterator for FetchedBatches {
    type Item = Result<Record, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let record = self.current.as_mut().and_then(Iterator::next);
            match record {
                // A batch is given whole, though the asked offset may be in its middle.
                Some(Ok(record)) if record.offset < self.from => {}
                Some(Ok(record)) => return Some(Ok(record)),
                Some(Err(error)) => {
                    (self.current, self.batches) = (None, Vec::new().into_iter());
                    return Some(Err(error.into()));
                }
                None => match self.turn() {
                    Ok(true) => {}
                    Ok(false) => {
                        self.current = None;
                        return None;
                    }
                    Err(error) => {
                        (self.current, self.batches) = (None, Vec::new().into_iter());
                        return Some(Err(error));
                    }
                },
            }
        }
    }
}

/// Transactions in a fetch's answer that were aborted, walked along with the batches.
#[derive(Debug, Default)]
struct Aborted {
    /// Those to come, by first offset, the last one first.
    coming: Vec<(i64, i64)>,
    open: Vec<i64>,
}

impl Aborted {
    fn new(transactions: &[AbortedTransaction]) -> Self {
        let mut coming: Vec<_> =
            transactions.iter().map(|one| (one.first_offset, one.producer_id.0)).collect();
        coming.sort_unstable_by(|a, b| b.cmp(a));
        Self { coming, open: Vec::new() }
    }

    /// Whether a batch is not to be shown: a marker, or part of an aborted transaction.
    fn hides(&mut self, batch: &Batch) -> Result<bool, ClientError> {
        let header = &batch.header;
        while let Some((_, producer)) = self.coming.pop_if(|(first, _)| *first <= header.last_offset().raw())
        {
            self.open.push(producer);
        }
        let producer = header.producer_id.raw();
        if header.is_control() {
            if marker(batch)? == Some(ABORT_MARKER) {
                self.open.retain(|&open| open != producer);
            }
            return Ok(true);
        }
        Ok(header.is_transactional() && self.open.contains(&producer))
    }
}

/// The type of a control batch: the second number in its record's key.
fn marker(batch: &Batch) -> Result<Option<i16>, ClientError> {
    let Some(record) = records(batch)?.next() else { return Ok(None) };
    let key = record?.key.unwrap_or_default();
    Ok(key.first_chunk::<4>().map(|raw| i16::from_be_bytes([raw[2], raw[3]])))
}
