//! One broker: the shell around the production code's decisions, as thin as `partition` and `registration` are, with
//! the mistakes that can be planted in it.

use std::collections::BTreeSet;
use std::time::Duration;

use loggos_broker::partition::divergence::{Asked, Remedy, Verdict, asks_from, judge, remedy};
use loggos_broker::partition::lease::{Lease, Moment};
use loggos_broker::partition::replication::{Fetched, IsrChange, Policy, Replication, Role};
use loggos_protocol::ids::{BrokerEpoch, BrokerId, LeaderEpoch, Offset};

use super::disk::{Disk, Record};
use super::registry::Snapshot;

/// Records of one answer.
const ANSWER_RECORDS: usize = 5;
pub const LAG_MS: i64 = 400;

/// A mistake that is planted to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    AsksBeforeItIsFlushed,
    ServesWithoutJudging,
    CutsToTheHighWatermark,
    KeepsItsEpochAfterARestart,
    ElectsUncleanly,
    ForgetsWhoJoins,
    JoinsFromAnyLife,
    StaysInSyncWithoutADisk,
    AcknowledgesWithoutALease,
    ExposesWhatIsNotFlushed,
    IgnoresTheMinimumInSync,
    ShowsMoreThanIsCommitted,
    BelievesOldViews,
    BelievesOldAnswers,
}

impl Mutant {
    pub const ALL: [Self; 14] = [
        Self::AsksBeforeItIsFlushed,
        Self::ServesWithoutJudging,
        Self::CutsToTheHighWatermark,
        Self::KeepsItsEpochAfterARestart,
        Self::ElectsUncleanly,
        Self::ForgetsWhoJoins,
        Self::JoinsFromAnyLife,
        Self::StaysInSyncWithoutADisk,
        Self::AcknowledgesWithoutALease,
        Self::ExposesWhatIsNotFlushed,
        Self::IgnoresTheMinimumInSync,
        Self::ShowsMoreThanIsCommitted,
        Self::BelievesOldViews,
        Self::BelievesOldAnswers,
    ];
}

/// A fetch.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub number: u64,
    pub from: BrokerId,
    pub life: BrokerEpoch,
    pub epoch: LeaderEpoch,
    pub asked: Asked,
}

/// Its answer.
#[derive(Clone, Debug)]
pub struct Tell {
    pub ask: Ask,
    pub verdict: Verdict,
    pub start: i64,
    pub high_watermark: i64,
    pub records: Vec<Record>,
}

/// A producer that waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    pub offset: i64,
    pub value: u64,
    pub epoch: LeaderEpoch,
}

/// A running broker.
pub struct Process {
    pub me: BrokerId,
    /// Counts processes, over all brokers.
    pub incarnation: u64,
    pub replication: Replication,
    pub lease: Lease,
    pub session: u64,
    pub life: BrokerEpoch,
    /// Registered, and served by its views.
    pub present: bool,
    pub view: Option<Snapshot>,
    pub waiting: Vec<Waiting>,
    pub asking: Option<(u64, i64)>,
    pub min_in_sync: usize,
    pub mutant: Option<Mutant>,
    views_believed: i32,
}

impl Process {
    pub fn new(
        me: BrokerId,
        incarnation: u64,
        disk: &Disk,
        min_in_sync: usize,
        mutant: Option<Mutant>,
    ) -> Self {
        let mut replication = Replication::new(me, Offset::new(disk.flushed), Offset::new(disk.end));
        let exposes_appended = mutant == Some(Mutant::ExposesWhatIsNotFlushed);
        replication.set_policy(Policy { exposes_appended, min_in_sync });
        Self {
            me,
            incarnation,
            replication,
            lease: Lease::default(),
            session: 0,
            life: BrokerEpoch::new(-1),
            present: false,
            view: None,
            waiting: Vec::new(),
            asking: None,
            min_in_sync,
            mutant,
            views_believed: 1_000,
        }
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub fn leads(&self, now: i64) -> bool {
        let leased = self.lease.holds(Moment::new(now)) || self.is(Mutant::AcknowledgesWithoutALease);
        self.present && self.replication.leads() && leased
    }

    pub fn epoch(&self) -> LeaderEpoch {
        self.replication.role().leader_epoch
    }

    /// As `Table::apply` and `Partition::set_role`.
    pub fn take_view(&mut self, view: &Snapshot, disk: &mut Disk, now: i64) {
        let known = self.view.as_ref().and_then(|view| view.partition.state_version);
        let is_older = view.partition.state_version < known;
        if is_older && !self.is(Mutant::BelievesOldViews) {
            return;
        }
        self.view = Some(view.clone());
        self.take_role(disk, now);
    }

    pub fn take_role(&mut self, disk: &mut Disk, now: i64) {
        let Some(view) = self.view.clone() else { return };
        let partition = &view.partition;
        let is_stale = partition.leader == self.me && partition.is_older_than(self.life);
        let is_stale = is_stale && !self.is(Mutant::KeepsItsEpochAfterARestart);
        let (led, before) = (self.replication.leads(), self.epoch());
        self.views_believed += 1;
        let version = if self.is(Mutant::BelievesOldViews) {
            self.views_believed
        } else {
            partition.state_version.unwrap_or(-1)
        };
        let role = Role {
            leader: if is_stale { BrokerId::NONE } else { partition.leader },
            leader_epoch: partition.leader_epoch,
            isr: partition.isr.iter().copied().collect(),
            replicas: partition.replicas.clone(),
            version,
        };
        let too_few = role.isr.len() < self.min_in_sync;
        if !self.replication.set_role(role, Moment::new(now)) {
            return;
        }
        if self.replication.leads() && self.epoch() > before {
            disk.begin_epoch(self.epoch());
        }
        if (led && !self.replication.leads()) || (too_few && !self.is(Mutant::IgnoresTheMinimumInSync)) {
            self.waiting.clear();
        }
    }

    pub fn confirm(&mut self, sent: i64, timeout: i64) {
        let timeout = Duration::from_millis(timeout.unsigned_abs());
        self.lease.confirm(Moment::new(sent), timeout);
    }

    /// The answers that are due: what may be acknowledged, and what is refused.
    pub fn settle(&mut self, now: i64) -> Vec<Waiting> {
        let progress = self.replication.progress();
        let leads = self.leads(now);
        let enough = progress.enough || self.is(Mutant::IgnoresTheMinimumInSync);
        let (reached, waiting): (Vec<_>, Vec<_>) =
            self.waiting.iter().partition(|waiting| waiting.offset < progress.high_watermark.raw());
        self.waiting = waiting;
        if leads && enough { reached } else { Vec::new() }
    }

    pub fn produce(&mut self, disk: &mut Disk, value: u64, now: i64) -> bool {
        let enough = self.replication.in_sync_count() >= self.min_in_sync;
        if !self.leads(now) || !(enough || self.is(Mutant::IgnoresTheMinimumInSync)) {
            return false;
        }
        let epoch = self.epoch();
        self.waiting.push(Waiting { offset: disk.end, value, epoch });
        disk.append(Record { epoch, value });
        self.replication.appended(Offset::new(disk.end), Moment::new(now));
        true
    }

    /// What there is to ask of the leader.
    pub fn ask(&mut self, disk: &Disk, number: u64, now: i64) -> Option<(BrokerId, Ask)> {
        let role = self.replication.role();
        let follows =
            role.leader != BrokerId::NONE && role.leader != self.me && role.replicas.contains(&self.me);
        if !self.present || !follows {
            return None;
        }
        let exposes = self.is(Mutant::AsksBeforeItIsFlushed) || self.is(Mutant::ExposesWhatIsNotFlushed);
        let offset = asks_from(Offset::new(disk.end), Offset::new(disk.flushed), exposes)?;
        let life = if self.is(Mutant::JoinsFromAnyLife) { BrokerEpoch::new(1) } else { self.life };
        let asked = Asked { offset, last_epoch: disk.latest_epoch() };
        self.asking = Some((number, now));
        Some((role.leader, Ask { number, from: self.me, life, epoch: role.leader_epoch, asked }))
    }

    /// As `Partition::read` for a follower.
    pub fn answer(&mut self, disk: &Disk, ask: Ask, now: i64) -> Option<Tell> {
        if !self.leads(now) || ask.epoch != self.epoch() {
            return None;
        }
        let mut verdict = judge(ask.asked, disk);
        if self.is(Mutant::ServesWithoutJudging) && ask.asked.offset.raw() <= disk.end {
            verdict = Verdict::Serve;
        }
        let mut records = Vec::new();
        if verdict == Verdict::Serve {
            let by = Fetched { broker: ask.from, life: ask.life, end: ask.asked.offset };
            self.replication.fetched(by, Moment::new(now));
            records = disk.read(ask.asked.offset.raw(), disk.end, ANSWER_RECORDS);
        }
        let high_watermark = self.replication.high_watermark().raw();
        Some(Tell { ask, verdict, start: disk.start, high_watermark, records })
    }

    /// As `follower::take_one`; whether something was cut.
    pub fn take(&mut self, disk: &mut Disk, tell: &Tell, now: i64) -> bool {
        if self.asking.is_some_and(|(number, _)| number == tell.ask.number) {
            self.asking = None;
        }
        if self.replication.leads() || tell.ask.epoch != self.epoch() || tell.ask.life.raw() > self.life.raw()
        {
            return false;
        }
        let log = (&*disk, disk.latest_epoch());
        let mut what = remedy(tell.ask.asked, tell.verdict, Offset::new(tell.start), log);
        let cuts = matches!(what, Remedy::TruncateTo(_) | Remedy::RestartAt(_));
        if self.is(Mutant::CutsToTheHighWatermark) && cuts {
            let mark = self.replication.high_watermark().raw().max(disk.start);
            what = Remedy::TruncateTo(Offset::new(mark));
        }
        if self.is(Mutant::BelievesOldAnswers) && what == Remedy::Ignore && tell.verdict != Verdict::Serve {
            let asked = Asked { offset: Offset::new(disk.end), last_epoch: disk.latest_epoch() };
            what = remedy(asked, tell.verdict, Offset::new(tell.start), (&*disk, disk.latest_epoch()));
        }
        match what {
            Remedy::Ignore => return false,
            Remedy::TruncateTo(to) => disk.truncate(to.raw()),
            Remedy::RestartAt(at) => disk.restart_at(at.raw()),
            Remedy::Append => {
                for (at, record) in (tell.ask.asked.offset.raw()..).zip(&tell.records) {
                    if at == disk.end {
                        disk.append(*record);
                    }
                }
                self.replication.appended(Offset::new(disk.end), Moment::new(now));
                self.replication.leader_says(Offset::new(tell.high_watermark));
                disk.move_start(tell.start);
                return false;
            }
        }
        self.replication.truncated(Offset::new(disk.end));
        true
    }

    /// As `isr::due`: the change, and the lives that it depends on.
    pub fn isr_change(&mut self, now: i64) -> Option<(IsrChange, Vec<(BrokerId, i32)>)> {
        let view = self.view.clone()?;
        if !self.present {
            return None;
        }
        let any_life = self.is(Mutant::JoinsFromAnyLife);
        let life_of = |broker: BrokerId| {
            let (life, _, _) = view.brokers.get(&broker)?;
            Some(if any_life { BrokerEpoch::new(1) } else { *life })
        };
        let asked = self.replication.pending_change().cloned();
        let change = match asked {
            Some(change) => change,
            None if self.is(Mutant::ForgetsWhoJoins) => {
                self.replication.clone().isr_change(Moment::new(now), LAG_MS, life_of)?
            }
            None => self.replication.isr_change(Moment::new(now), LAG_MS, life_of)?,
        };
        let lives = if any_life { Vec::new() } else { change.joining.clone() };
        let lives =
            lives.iter().filter_map(|(broker, _)| view.brokers.get(broker).map(|known| (*broker, known.1)));
        let lives = lives.collect();
        Some((change, lives))
    }

    pub fn isr(&self) -> &BTreeSet<BrokerId> {
        &self.replication.role().isr
    }
}
