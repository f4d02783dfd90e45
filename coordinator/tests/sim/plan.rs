//! What one seed decides before anything happens: the cell's shape, its options, and how often what fails.

use std::time::Duration;

use loggos_coordinator::paxos::event::Options;
use loggos_coordinator::paxos::mutation::Mutations;
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::clocks::True;
use crate::network::Weather;

/// One second of true time.
pub const SECOND: True = 1_000_000;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One direction of one link carries nothing for a while.
    CutOneWay,
    /// One server is cut off from some others.
    CutPartly,
    /// Two halves can't hear each other.
    CutFully,
    /// The next proposals don't come through, and their senders are cut off: competing values are left behind.
    Ambush,
    /// A process is killed.
    Crash,
    /// All processes are killed.
    CrashAll,
    /// A process stands still.
    Pause,
    /// A monotonic clock leaps ahead.
    ClockJump,
    /// A date is set anew.
    WallJump,
    /// A disk is slow for a while.
    SlowDisk,
    /// The next write fails, and with it the server.
    FailedWrite,
    /// A process is killed and a part of its ledger rots.
    BitRot,
    /// A disk is lost; a server with an empty one asks to be let in.
    DiskLoss,
    /// Leadership is handed over.
    Transfer,
    /// An operator changes the membership.
    Reconfigure,
    /// A new machine asks to be let in.
    Spare,
}

/// Everything that is decided beforehand.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Founders that vote and hold the state.
    pub founders: u16,
    /// Whether a witness is among the founders, besides.
    pub witness: bool,
    /// Machines that ask to be let in over time.
    pub spares: u16,
    /// Clients.
    pub clients: u32,
    /// The engines' settings.
    pub options: Options,
    /// The network.
    pub weather: Weather,
    /// Between two faults, on average.
    pub gap: True,
    /// What fails how often.
    pub faults: Vec<(Fault, u32)>,
    /// The faults' end.
    pub duration: True,
    /// How much clock rates differ from true time at most, in parts per million.
    pub drift_ppm: i64,
    /// Whether clocks may leave the bound that leases rely on.
    pub wild_clocks: bool,
    /// How long a durable write takes, at least and at most.
    pub disk: (True, True),
    /// Bytes of a snapshot that travel at once.
    pub chunk: usize,
    /// A planted error.
    pub mutations: Mutations,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(rng: &mut SmallRng, mutations: Mutations) -> Self {
        let founders = [1, 2, 3, 3, 3, 5][rng.random_range(0..6)];
        let witness = founders == 2;
        let wild_clocks = rng.random_bool(0.15);
        let growing = founders == 1 || rng.random_bool(0.3);
        let spares = if growing { 5_u16.saturating_sub(founders).max(1) } else { rng.random_range(0..2) };
        let window = [1, 2, 4, 8, 32][rng.random_range(0..5)];
        let often =
            |rng: &mut SmallRng, most: u32| if rng.random_bool(0.6) { rng.random_range(1..=most) } else { 0 };
        let mut faults = vec![
            (Fault::CutOneWay, often(rng, 10)),
            (Fault::CutPartly, often(rng, 8)),
            (Fault::CutFully, often(rng, 6)),
            (Fault::Ambush, often(rng, 10)),
            (Fault::Crash, often(rng, 12)),
            (Fault::CrashAll, often(rng, 1)),
            (Fault::Pause, often(rng, 8)),
            (Fault::ClockJump, if wild_clocks { 4 } else { 0 }),
            (Fault::WallJump, often(rng, 4)),
            (Fault::SlowDisk, often(rng, 5)),
            (Fault::FailedWrite, often(rng, 3)),
            (Fault::BitRot, often(rng, 5)),
            (Fault::DiskLoss, often(rng, 3)),
            (Fault::Transfer, often(rng, 8)),
            (Fault::Reconfigure, often(rng, 8)),
            (Fault::Spare, if spares > 0 { 12 } else { 0 }),
        ];
        faults.retain(|(_, weight)| *weight > 0);
        let rate = |rng: &mut SmallRng, most: f64| {
            if rng.random_bool(0.5) { rng.random_range(0.0..most) } else { 0.0 }
        };
        Self {
            founders,
            witness,
            spares,
            clients: rng.random_range(2..6),
            options: Options {
                window,
                alpha: window * [1, 1, 2, 4][rng.random_range(0..4)],
                batch_entries: rng.random_range(1..8),
                snapshot_entries: rng.random_range(20..300),
                keep_slots: [0, 3, 30][rng.random_range(0..3)],
                lease_reads: rng.random_bool(0.7),
                replace_after: Duration::from_secs(rng.random_range(3..8)),
                auto_promote: rng.random_bool(0.9),
                ..Options::default()
            },
            weather: Weather {
                loss: rate(rng, 0.15),
                duplication: rate(rng, 0.15),
                delay: rng.random_range(50..5_000),
                jitter: rng.random_range(0..20_000),
                long: rate(rng, 0.01),
            },
            gap: rng.random_range(SECOND / 10..SECOND),
            faults,
            duration: rng.random_range(8..20) * SECOND,
            // Two clocks that are as much too fast and too slow differ by twice as much.
            drift_ppm: if wild_clocks { 100_000 } else { rng.random_range(0..=5_000) },
            wild_clocks,
            disk: (rng.random_range(20..200), rng.random_range(200..8_000)),
            chunk: rng.random_range(200..5_000),
            mutations,
        }
    }
}
