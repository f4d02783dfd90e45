//! Keeps a session's lease: asks the ensemble again and again, and tells what follows.
//!
//! The question is `sync`: its answer comes from the ensemble's leader, which that of a local read doesn't. (Pings
//! would do as well, but their answers are the client library's own affair.) A server that isn't the leader hands on
//! whom it has heard every few tens of milliseconds. So the answer to one question proves that the leader heard of
//! the question *before* it, and the lease counts from that one. Called by `LockService`.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::LeaseView;
use super::lease::Lease;
use crate::registry::{RegistryError, Session};

/// A session's time-out is as long as so many questions.
const QUESTIONS: u32 = 6;
/// The shortest pause between two questions: a server has handed on whom it heard by then.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The task.
pub(super) struct Keeper(JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Keeper {
    /// Starts it; the session was answered just now.
    pub async fn start(
        session: Session,
        grace: Duration,
        linger: Duration,
    ) -> (Self, watch::Receiver<LeaseView>) {
        let started = Instant::now();
        wish(&session, linger).await;
        let lease = Lease::new(session.timeout(), grace, Duration::ZERO);
        let generation = *session.generation().borrow();
        let (tell, told) = watch::channel(LeaseView { generation, state: lease.state() });
        let asked = Duration::ZERO;
        let keeping = Keeping { session, grace, linger, started, asked, lease, generation, tell };
        (Self(tokio::spawn(keeping.run())), told)
    }
}

struct Keeping {
    session: Session,
    grace: Duration,
    linger: Duration,
    started: Instant,
    /// When the last question was sent that was answered; or when the session began, which the leader knows.
    asked: Duration,
    lease: Lease,
    generation: u64,
    tell: watch::Sender<LeaseView>,
}

impl Keeping {
    async fn run(mut self) {
        let mut generations = self.session.generation();
        loop {
            let sent = self.started.elapsed();
            let pause = (self.session.timeout() / QUESTIONS).max(PAUSE_MIN);
            let asked = self.session.clone();
            let mut question = Box::pin(async move { asked.sync().await });
            let mut answer = None;
            // One question at a time; the lease's end isn't missed while it waits for its answer.
            while answer.is_none() {
                tokio::select! {
                    outcome = &mut question => answer = Some(outcome),
                    () = until(self.started, self.lease.next_deadline()) => self.pass(),
                    _ = generations.changed() => break,
                }
            }
            let generation = *generations.borrow_and_update();
            // An answer to a question of the old session says nothing of the new one.
            if let Some(Ok(())) = answer
                && generation == self.generation
            {
                self.lease.answered(self.asked, self.started.elapsed());
                self.asked = sent;
            }
            self.pass();
            self.renew(generation).await;
            let next = tokio::time::Instant::from_std(self.started + sent + pause);
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(next) => break,
                    () = until(self.started, self.lease.next_deadline()) => self.pass(),
                    _ = generations.changed() => break,
                }
            }
            let generation = *generations.borrow_and_update();
            self.renew(generation).await;
        }
    }

    /// Time has passed: says so if it matters.
    fn pass(&mut self) {
        self.lease.tick(self.started.elapsed());
        self.say();
    }

    fn say(&self) {
        let view = LeaseView { generation: self.generation, state: self.lease.state() };
        self.tell.send_if_modified(|told| {
            let news = *told != view;
            if news {
                tracing::info!(state = ?view.state, generation = view.generation, "the lease");
            }
            *told = view;
            news
        });
    }

    /// There is a new session: the old one's end is told before it.
    async fn renew(&mut self, generation: u64) {
        if generation == self.generation {
            return;
        }
        self.lease.lost();
        self.say();
        let sent = self.started.elapsed();
        wish(&self.session, self.linger).await;
        self.generation = generation;
        self.asked = sent;
        self.lease = Lease::new(self.session.timeout(), self.grace, sent);
        self.say();
    }
}

/// Asks for lock-delay, where there is such a thing.
async fn wish(session: &Session, linger: Duration) {
    if linger.is_zero() {
        return;
    }
    match session.set_linger(linger).await {
        Ok(()) => {}
        Err(RegistryError::Absent) => tracing::warn!("this ensemble has no lock-delay"),
        Err(error) => tracing::warn!(%error, "lock-delay could not be asked for"),
    }
}

/// Until a time on the keeper's clock; for ever if there is none.
async fn until(started: Instant, at: Option<Duration>) {
    match at {
        Some(at) => tokio::time::sleep_until(tokio::time::Instant::from_std(started + at)).await,
        None => std::future::pending().await,
    }
}
