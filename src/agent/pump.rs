//! From the inputs to the brokers: what is sent when, what goes to the spool instead, what counts as arrived.
//!
//! Files are their own store: while brokers take nothing, reading waits, and after `spool.after-ms` what was read goes
//! to the spool so that rotation can't take it away. What can't be read twice (sockets, stdin) goes through the spool
//! at once, so that killing the agent doesn't lose it. An input's records stay in order: what is in the spool is sent
//! before what came later. A position moves when the brokers have acknowledged its record, or when the spool has it
//! on the disk. Called by `mod`.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use loggos_client::{ClientError, Delivery, Message, Producer, RecordMeta};
use loggos_protocol::ids::TopicName;
use loggos_protocol::kafka::ErrorCode;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::config::Config;
use super::item::{Item, Origin, Parcel, weight};
use super::position::Positions;
use super::sighting::{FileKey, Remembered};
use super::spool::{Cursor, Spool};
use super::status::{Status, add, set};

/// Records that are handed to the producer before anything else is looked at.
const SEND_AT_ONCE: usize = 512;
/// Between an attempt that failed and the next.
const BACKOFF: Duration = Duration::from_millis(500);
/// At the end, what is on its way is waited for so long.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// With `--once`, brokers that take nothing for so long end the run.
const ONCE_PATIENCE: Duration = Duration::from_secs(120);

/// What inputs give.
#[derive(Debug)]
pub struct Inputs {
    /// Parcels of files, which can be read again.
    pub files: mpsc::Receiver<Parcel>,
    /// Parcels of everything else.
    pub live: mpsc::Receiver<Parcel>,
}

/// What an arrival moves.
#[derive(Debug)]
enum Arrival {
    Record(Origin),
    Done(FileKey, Box<Remembered>),
}

#[derive(Debug)]
struct Sent {
    delivery: Option<Delivery>,
    record: Option<(TopicName, Message)>,
    arrival: Arrival,
    bytes: usize,
    /// Whether the spool holds it too.
    in_spool: bool,
}

/// Sends and keeps count.
#[derive(Debug)]
pub struct Pump {
    config: Arc<Config>,
    producer: Producer,
    spool: Spool,
    positions: Positions,
    status: Arc<Status>,
    once: bool,
    sent: VecDeque<Sent>,
    sent_bytes: usize,
    /// What has to be sent again, once all that is on its way is settled.
    failed: VecDeque<Item>,
    /// What arrived behind something that failed: it counts when that has arrived too.
    held: Vec<Arrival>,
    /// Taken from files and not sent.
    waiting: VecDeque<Taken>,
    /// Taken from the spool and not sent.
    unspooled: VecDeque<Item>,
    /// Taken from a live input; the spool had no room.
    stalled: Option<Vec<Item>>,
    /// In the spool, and not yet synced there.
    spooled: Vec<Arrival>,
    /// Stretches of the spool that hold copies of what is on its way: read only by a later run.
    copies: VecDeque<(Cursor, Cursor)>,
    last_progress: Instant,
    not_before: Instant,
    next_commit: Instant,
    allowance: Allowance,
}

#[derive(Debug)]
enum Taken {
    Item(Box<Item>),
    Done(FileKey, Box<Remembered>),
}

/// A bucket of records that may be sent.
#[derive(Debug)]
struct Allowance {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        if self.per_second <= 0.0 {
            return Ok(());
        }
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        // A tenth of a second's records may be sent at once.
        self.left = (self.left + since * self.per_second).min((self.per_second / 10.0).max(1.0));
        self.at = now;
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        Err(now + Duration::from_secs_f64((1.0 - self.left) / self.per_second))
    }
}

impl Pump {
    /// Must be called within a runtime.
    pub fn new(
        config: Arc<Config>,
        producer: Producer,
        spool: Spool,
        positions: Positions,
        status: Arc<Status>,
        once: bool,
    ) -> Self {
        let now = Instant::now();
        let allowance = Allowance { per_second: config.rate_limit as f64, left: 0.0, at: now };
        let commit = Duration::from_millis(config.commit_ms);
        Self {
            config,
            producer,
            spool,
            positions,
            status,
            once,
            sent: VecDeque::new(),
            sent_bytes: 0,
            failed: VecDeque::new(),
            held: Vec::new(),
            waiting: VecDeque::new(),
            unspooled: VecDeque::new(),
            stalled: None,
            spooled: Vec::new(),
            copies: VecDeque::new(),
            last_progress: now,
            not_before: now,
            next_commit: now + commit,
            allowance,
        }
    }

    /// Runs until the inputs have ended and everything has arrived, or until `stop` says so.
    pub async fn run(mut self, mut inputs: Inputs, mut stop: watch::Receiver<bool>) -> Result<(), String> {
        self.positions.save(false).map_err(|error| disk("positions", &error))?;
        let (mut files_open, mut live_open) = (true, true);
        loop {
            self.settle();
            self.send_some().await.map_err(|error| disk("the spool", &error))?;
            self.divert().map_err(|error| disk("the spool", &error))?;
            if Instant::now() >= self.next_commit {
                self.commit(false).map_err(|error| disk("positions", &error))?;
            }
            if self.once && !files_open && !live_open && self.is_empty() {
                return self.commit(true).map_err(|error| disk("positions", &error));
            }
            if self.once && self.last_progress.elapsed() > ONCE_PATIENCE {
                self.commit(false).map_err(|error| disk("positions", &error))?;
                return Err(format!("{} takes no records", self.config.bootstrap));
            }
            let wake = self.wake_at();
            let takes_files = self.waiting.is_empty() && files_open && self.failed.is_empty();
            let takes_live = self.stalled.is_none() && live_open;
            let front = self.sent.front_mut().and_then(|sent| sent.delivery.as_mut());
            let arrived = async {
                match front {
                    Some(delivery) => delivery.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                outcome = arrived => {
                    let sent = self.sent.pop_front().expect("it was in front");
                    self.settled(sent, outcome);
                }
                parcel = inputs.files.recv(), if takes_files => match parcel {
                    Some(parcel) => self.take(parcel),
                    None => files_open = false,
                },
                parcel = inputs.live.recv(), if takes_live => match parcel {
                    Some(Parcel::Items(items)) => self.stalled = Some(items),
                    Some(Parcel::Done(..)) => {}
                    None => live_open = false,
                },
                () = sleep_until(wake) => {}
                _ = stop.wait_for(|stop| *stop) => return self.stop(inputs).await,
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.sent.is_empty()
            && self.failed.is_empty()
            && self.waiting.is_empty()
            && self.unspooled.is_empty()
            && self.stalled.is_none()
            && !self.spool.has_more()
    }

    fn wake_at(&self) -> Instant {
        let unsent = !self.waiting.is_empty() || !self.unspooled.is_empty() || !self.failed.is_empty();
        if unsent && self.has_room(0) { self.next_commit.min(self.not_before) } else { self.next_commit }
    }

    fn take(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Items(items) => {
                self.waiting.extend(items.into_iter().map(|item| Taken::Item(Box::new(item))));
            }
            Parcel::Done(key, file) => self.waiting.push_back(Taken::Done(key, file)),
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.sent.is_empty() || self.sent_bytes + bytes <= self.config.window_bytes
    }

    fn is_away(&self) -> bool {
        let after = Duration::from_millis(self.config.spool.after_ms);
        self.last_progress.elapsed() >= after
    }

    /// Takes the outcomes that are there.
    fn settle(&mut self) {
        while let Some(front) = self.sent.front_mut() {
            let outcome = match &mut front.delivery {
                None => None,
                Some(delivery) => match delivery.now_or_never() {
                    None => break,
                    outcome => outcome,
                },
            };
            let sent = self.sent.pop_front().expect("it was in front");
            match outcome {
                Some(outcome) => self.settled(sent, outcome),
                None => self.arrived(sent.arrival),
            }
        }
        if self.sent.is_empty() && self.failed.is_empty() {
            let held: Vec<Arrival> = self.held.drain(..).collect();
            held.into_iter().for_each(|arrival| self.count(arrival));
        }
        set(&self.status.in_flight_records, self.sent.len() as u64);
    }

    fn settled(&mut self, sent: Sent, outcome: Result<RecordMeta, ClientError>) {
        self.sent_bytes -= sent.bytes;
        match outcome {
            Ok(_) => {
                self.last_progress = Instant::now();
                add(&self.status.records_acknowledged, 1);
            }
            Err(error) if is_hopeless(&error) => {
                tracing::error!(%error, "a record that no broker takes is left out");
                add(&self.status.records_refused, 1);
            }
            Err(error) => {
                tracing::warn!(%error, "a record is sent again");
                add(&self.status.records_sent_again, 1);
                let (topic, message) = sent.record.expect("a sent record is kept until it has arrived");
                let origin = match sent.arrival {
                    Arrival::Record(origin) => origin,
                    Arrival::Done(..) => Origin::None,
                };
                self.failed.push_back(Item { topic, message, origin });
                return;
            }
        }
        self.arrived(sent.arrival);
    }

    fn arrived(&mut self, arrival: Arrival) {
        if self.failed.is_empty() && self.held.is_empty() {
            self.count(arrival);
        } else {
            self.held.push(arrival);
        }
    }

    fn count(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Record(origin) => self.positions.arrived(origin),
            Arrival::Done(key, file) => self.positions.finished(key, *file),
        }
    }

    /// Hands to the producer what may be sent now.
    async fn send_some(&mut self) -> io::Result<()> {
        self.append_stalled()?;
        for _ in 0..SEND_AT_ONCE {
            if Instant::now() < self.not_before {
                break;
            }
            if !self.failed.is_empty() {
                // In order: behind everything that is still on its way, before everything else.
                if self.sent.is_empty() {
                    let all: Vec<Item> = self.failed.drain(..).collect();
                    for item in all {
                        if self.not_before > Instant::now() || !self.send(&item).await {
                            self.failed.push_back(item);
                        }
                    }
                }
                break;
            }
            while let Some((from, to)) = self.copies.front().copied()
                && self.spool.read() >= from
            {
                self.spool.skip_to(to);
                self.copies.pop_front();
            }
            if self.unspooled.is_empty()
                && let Some((topic, messages, behind)) = self.spool.next()?
            {
                let last = messages.len() - 1;
                for (place, message) in messages.into_iter().enumerate() {
                    let origin = if place == last { Origin::Spool(behind) } else { Origin::None };
                    self.unspooled.push_back(Item { topic: topic.clone(), message, origin });
                }
            }
            if let Some(item) = self.unspooled.pop_front() {
                if !self.has_room(weight(&item.message)) || !self.may_send() || !self.send(&item).await {
                    self.unspooled.push_front(item);
                    break;
                }
                continue;
            }
            match self.waiting.pop_front() {
                None => break,
                Some(Taken::Done(key, file)) => {
                    let arrival = Arrival::Done(key, file);
                    self.sent.push_back(Sent {
                        delivery: None,
                        record: None,
                        arrival,
                        bytes: 0,
                        in_spool: true,
                    });
                }
                Some(Taken::Item(item)) => {
                    if !self.has_room(weight(&item.message)) || !self.may_send() || !self.send(&item).await {
                        self.waiting.push_front(Taken::Item(item));
                        break;
                    }
                }
            }
        }
        if self.sent.is_empty()
            && self.waiting.is_empty()
            && self.unspooled.is_empty()
            && self.failed.is_empty()
        {
            self.last_progress = Instant::now();
        }
        Ok(())
    }

    fn may_send(&mut self) -> bool {
        match self.allowance.take(Instant::now()) {
            Ok(()) => true,
            Err(at) => {
                self.not_before = at;
                // Waiting for the user's own limit is not waiting for brokers.
                self.last_progress = Instant::now();
                false
            }
        }
    }

    async fn send(&mut self, item: &Item) -> bool {
        match self.producer.queue(&item.topic, None, item.message.clone()).await {
            Ok(delivery) => {
                let bytes = weight(&item.message);
                self.sent_bytes += bytes;
                self.sent.push_back(Sent {
                    delivery: Some(delivery),
                    record: Some((item.topic.clone(), item.message.clone())),
                    arrival: Arrival::Record(item.origin.clone()),
                    bytes,
                    in_spool: !matches!(item.origin, Origin::File(_) | Origin::Journal { .. }),
                });
                true
            }
            Err(error) if is_hopeless(&error) => {
                tracing::error!(%error, "a record that no broker takes is left out");
                add(&self.status.records_refused, 1);
                let arrival = Arrival::Record(item.origin.clone());
                self.sent.push_back(Sent { delivery: None, record: None, arrival, bytes: 0, in_spool: true });
                true
            }
            Err(error) => {
                tracing::debug!(%error, topic = %item.topic, "not sent");
                self.not_before = Instant::now() + BACKOFF;
                false
            }
        }
    }

    /// What a live input gave goes to the spool first.
    fn append_stalled(&mut self) -> io::Result<()> {
        if let Some(items) = self.stalled.take() {
            let left = self.append(items)?;
            self.stalled = (!left.is_empty()).then_some(left);
        }
        Ok(())
    }

    /// While brokers are away, what files gave goes to the spool: what is on its way first, so that a run after a
    /// crash finds all of it in order.
    fn divert(&mut self) -> io::Result<()> {
        let away = self.is_away();
        set(&self.status.brokers_away, u64::from(away));
        if !away || self.waiting.is_empty() || self.once {
            return Ok(());
        }
        if !self.copy_to_spool()? {
            return Ok(());
        }
        let (mut items, mut done) = (Vec::new(), Vec::new());
        for taken in self.waiting.drain(..) {
            match taken {
                Taken::Item(item) => items.push(*item),
                Taken::Done(key, file) => done.push((key, file)),
            }
        }
        let left = self.append(items)?;
        let full = !left.is_empty();
        self.waiting.extend(left.into_iter().map(|item| Taken::Item(Box::new(item))));
        for (key, file) in done {
            if full {
                self.waiting.push_back(Taken::Done(key, file));
            } else {
                self.spooled.push(Arrival::Done(key, file));
            }
        }
        Ok(())
    }

    /// Copies what is on its way and in no spool; whether all of it had room.
    fn copy_to_spool(&mut self) -> io::Result<bool> {
        let items: Vec<Item> = self
            .sent
            .iter()
            .filter(|sent| !sent.in_spool)
            .filter_map(|sent| {
                let (topic, message) = sent.record.clone()?;
                let Arrival::Record(origin) = &sent.arrival else { return None };
                Some(Item { topic, message, origin: origin.clone() })
            })
            .collect();
        if items.is_empty() {
            return Ok(true);
        }
        let (count, from) = (items.len(), self.spool.end());
        let left = self.append(items)?.len();
        let to = self.spool.end();
        self.sent
            .iter_mut()
            .filter(|sent| !sent.in_spool)
            .take(count - left)
            .for_each(|sent| sent.in_spool = true);
        if left < count {
            self.copies.push_back((from, to));
            let arrival = Arrival::Record(Origin::Spool(to));
            self.sent.push_back(Sent { delivery: None, record: None, arrival, bytes: 0, in_spool: true });
        }
        Ok(left == 0)
    }

    /// Appends to the spool; gives back what it has no room for.
    fn append(&mut self, items: Vec<Item>) -> io::Result<Vec<Item>> {
        let mut rest = items.as_slice();
        while let Some(first) = rest.first() {
            let of_topic = rest.iter().take_while(|item| item.topic == first.topic).count();
            let (now, later) = rest.split_at(of_topic);
            let messages: Vec<&Message> = now.iter().map(|item| &item.message).collect();
            if !self.spool.append(&first.topic, &messages)? {
                break;
            }
            add(&self.status.records_spooled, now.len() as u64);
            self.spooled.extend(now.iter().map(|item| Arrival::Record(item.origin.clone())));
            rest = later;
        }
        Ok(rest.to_vec())
    }

    /// Makes durable what has arrived.
    fn commit(&mut self, clean: bool) -> io::Result<()> {
        self.next_commit = Instant::now() + Duration::from_millis(self.config.commit_ms);
        self.spool.sync()?;
        let spooled: Vec<Arrival> = self.spooled.drain(..).collect();
        spooled.into_iter().for_each(|arrival| self.count(arrival));
        if self.positions.is_dirty() || clean {
            self.positions.save(clean)?;
        }
        self.spool.release(self.positions.spool())?;
        set(&self.status.spool_bytes, self.spool.bytes());
        set(&self.status.records_dropped, self.spool.dropped());
        self.status.record();
        Ok(())
    }

    async fn stop(mut self, mut inputs: Inputs) -> Result<(), String> {
        let deadline = Instant::now() + STOP_PATIENCE;
        // What listeners have taken from their senders goes to the disk.
        inputs.live.close();
        while let Some(parcel) = inputs.live.recv().await {
            if let Parcel::Items(items) = parcel {
                let mut all = self.stalled.take().unwrap_or_default();
                all.extend(items);
                self.stalled = Some(all);
                self.append_stalled().map_err(|error| disk("the spool", &error))?;
            }
        }
        drop(inputs);
        while !self.sent.is_empty() && Instant::now() < deadline {
            let front = self.sent.front_mut().and_then(|sent| sent.delivery.as_mut());
            if let Some(delivery) = front {
                match tokio::time::timeout_at(deadline, delivery).await {
                    Err(_) => break,
                    Ok(outcome) => {
                        let sent = self.sent.pop_front().expect("it was in front");
                        self.settled(sent, outcome);
                    }
                }
            }
            self.settle();
        }
        let clean = self.sent.is_empty() && self.failed.is_empty();
        self.commit(clean).map_err(|error| disk("positions", &error))
    }
}

/// Whether sending the same record again can't help.
fn is_hopeless(error: &ClientError) -> bool {
    match error {
        ClientError::RecordTooLarge { .. } => true,
        ClientError::Refused { code, .. } => matches!(
            *code,
            ErrorCode::MESSAGE_TOO_LARGE | ErrorCode::RECORD_LIST_TOO_LARGE | ErrorCode::INVALID_RECORD
        ),
        _ => false,
    }
}

fn disk(what: &str, error: &io::Error) -> String {
    format!("{what} can't be kept: {error}")
}
