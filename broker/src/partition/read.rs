//! What consumers and followers are given of a partition: slices of its log, or where they find them.
//!
//! Called by the fetch handler.

use std::sync::atomic::Ordering;

use loggos_protocol::ids::{BrokerId, LeaderEpoch, Offset};
use loggos_protocol::kafka::ErrorCode;

use super::divergence::{self, Asked, Ends, Verdict};
use super::replication::Fetched;
use super::{Partition, check_epoch, code_of};
use crate::clock;
use crate::log::{Log, LogError, LogSlice};

/// What a read gave.
#[derive(Debug)]
pub struct Read {
    /// The bytes, if there are any to be seen.
    pub slice: Option<LogSlice>,
    /// Consumers see nothing at or behind it.
    pub high_watermark: Offset,
    /// The first offset that can be read.
    pub log_start: Offset,
    /// Where the asker's log goes another way than ours: the largest epoch that both may know, and its end.
    pub diverging: Option<(LeaderEpoch, Offset)>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A consumer that takes what the leader gives.
    Consumer,
    /// A consumer that may be served by any replica (KIP-392).
    NearConsumer,
    /// A broker that follows.
    Follower(BrokerId, loggos_protocol::ids::BrokerEpoch),
}

/// How much a fetch wants of one partition.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// From where.
    pub offset: Offset,
    /// The epoch of the last record that the asker has; `NONE` if it doesn't say.
    pub last_epoch: LeaderEpoch,
    /// How much at most, in bytes.
    pub max_bytes: usize,
    /// But one batch in any case.
    pub at_least_one: bool,
    /// Who asks.
    pub asker: Asker,
}

impl Ends for Log {
    fn start(&self) -> Offset {
        self.log_start()
    }

    fn end(&self) -> Offset {
        self.log_end()
    }

    fn epoch_end(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        Self::epoch_end(self, epoch)
    }
}

impl Partition {
    /// Reads for a consumer or a follower.
    ///
    /// # Errors
    /// Kafka's code of what is wrong.
    pub fn read(&self, wanted: Wanted, believed: LeaderEpoch) -> Result<Read, ErrorCode> {
        // No role changes and nothing is cut between the look at the role and what is told.
        let _turn = self.turn.read();
        let leads = match wanted.asker {
            Asker::NearConsumer => self.check_replica(believed)?,
            Asker::Consumer | Asker::Follower(..) => self.check_leader(believed).map(|_| true)?,
        };
        let asked = Asked { offset: wanted.offset, last_epoch: wanted.last_epoch };
        let log_start = self.log.log_start();
        match divergence::judge(asked, self.log.as_ref()) {
            Verdict::Serve => {}
            Verdict::Diverging { epoch, end } if leads => {
                let high_watermark = self.high_watermark();
                return Ok(Read { slice: None, high_watermark, log_start, diverging: Some((epoch, end)) });
            }
            // What a follower hasn't yet, its leader may have.
            Verdict::Diverging { .. } => return Err(ErrorCode::OFFSET_NOT_AVAILABLE),
            Verdict::OutOfRange if !leads && wanted.offset > self.log.log_end() => {
                return Err(ErrorCode::OFFSET_NOT_AVAILABLE);
            }
            Verdict::OutOfRange => return Err(ErrorCode::OFFSET_OUT_OF_RANGE),
        }
        let upto = match wanted.asker {
            Asker::Follower(broker, life) => {
                let by = Fetched { broker, life, end: wanted.offset };
                self.progress.change(|replication| replication.fetched(by, clock::moment()));
                self.log.log_end()
            }
            Asker::Consumer | Asker::NearConsumer => self.high_watermark(),
        };
        let limit = (wanted.max_bytes, wanted.at_least_one);
        let slice = self.log.read(wanted.offset, upto, limit).map_err(|error| {
            if matches!(error, LogError::Corrupt { .. }) {
                self.note_damage(wanted.offset);
            }
            code_of(&error)
        })?;
        if !leads && slice.is_some() {
            metrics::counter!("loggos_broker_near_fetches").increment(1);
        }
        Ok(Read { slice, high_watermark: self.high_watermark(), log_start, diverging: None })
    }

    /// Checks that we are a replica that a consumer may read; whether we lead.
    fn check_replica(&self, believed: LeaderEpoch) -> Result<bool, ErrorCode> {
        if self.leads() {
            return self.check_leader(believed).map(|_| true);
        }
        let (leader, epoch) = self.leader();
        if leader == BrokerId::NONE {
            return Err(ErrorCode::NOT_LEADER_OR_FOLLOWER);
        }
        check_epoch(epoch, believed)?;
        Ok(false)
    }

    /// Consumers see nothing at or behind it.
    pub fn high_watermark(&self) -> Offset {
        Offset::new(self.progress.high_watermark.load(Ordering::Acquire)).max(self.log.log_start())
    }

    /// The replicas in sync that have everything before `offset`, furthest first.
    pub fn holders_of(&self, offset: Offset) -> Vec<BrokerId> {
        self.progress.replication.lock().holders_of(offset)
    }
}
