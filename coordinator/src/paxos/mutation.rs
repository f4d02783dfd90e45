//! Errors planted on purpose. A simulator and a model checker that let one of these pass prove nothing; the tests
//! in `tests/mutants.rs` and `tests/model_checking.rs` switch each on and demand to see it caught (design 6.1).
//!
//! Outside tests (feature `mutants` off) [`Mutations`] has no state and every question is answered "no" at compile
//! time.

/// The planted errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// A promise is sent before it is on disk.
    PromiseNotDurable,
    /// A vote is sent before it is on disk.
    VoteNotDurable,
    /// A promise made by accepting is written in the vote's record only, not in the promise block.
    PromiseInRecordOnly,
    /// The commit index is applied to values that were accepted at an older ballot.
    CommitIndexIgnoresBallot,
    /// Recovery takes the value of the lowest ballot reported, not of the highest.
    RecoveryPicksLowest,
    /// An acceptor that may have lost votes says that it accepted nothing.
    DamageCountsAsEmpty,
    /// A server without memory votes again under its old identity once it has seen an instance complete.
    RejoinAfterOneInstance,
    /// A leader proposes under a new membership without its majority's promises.
    NoPhaseOneAtNewVoters,
    /// The lease is counted from the time the acknowledgement came in.
    LeaseFromReceipt,
    /// A restarted acceptor forgets at once that it may have granted a lease.
    NoWaitAfterRestart,
    /// The lease is used on after a transfer was begun.
    LeaseKeptDuringTransfer,
    /// An acceptor takes proposals below its promise.
    AcceptBelowPromise,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::PromiseNotDurable,
        Self::VoteNotDurable,
        Self::PromiseInRecordOnly,
        Self::CommitIndexIgnoresBallot,
        Self::RecoveryPicksLowest,
        Self::DamageCountsAsEmpty,
        Self::RejoinAfterOneInstance,
        Self::NoPhaseOneAtNewVoters,
        Self::LeaseFromReceipt,
        Self::NoWaitAfterRestart,
        Self::LeaseKeptDuringTransfer,
        Self::AcceptBelowPromise,
    ];
}

/// The error planted in one engine, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mutations {
    #[cfg(any(test, feature = "mutants"))]
    planted: Option<Mutation>,
}

impl Mutations {
    /// No error.
    pub const NONE: Self = Self {
        #[cfg(any(test, feature = "mutants"))]
        planted: None,
    };

    /// Plants one error.
    #[cfg(any(test, feature = "mutants"))]
    pub const fn only(mutation: Mutation) -> Self {
        Self { planted: Some(mutation) }
    }

    /// Whether this error was planted.
    #[cfg(any(test, feature = "mutants"))]
    pub fn has(self, mutation: Mutation) -> bool {
        self.planted == Some(mutation)
    }

    /// Whether this error was planted: never.
    #[cfg(not(any(test, feature = "mutants")))]
    pub const fn has(self, _mutation: Mutation) -> bool {
        false
    }
}
