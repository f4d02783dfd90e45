//! Keeps a session's lease: asks the ensemble again and again, and tells what follows.
//!
//! The question is `sync`. Its answer comes from the ensemble's leader, so it proves that the leader knows of us,
//! which a local read doesn't, and Loggos' coordinator takes it for a sign of life as it takes a ping. (The pings
//! of the client library would do as well, but their answers are its own affair.) Called by `LockService`.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::LeaseView;
use super::lease::Lease;
use crate::registry::{RegistryError, Session};

/// A session's time-out is as long as so many questions.
const QUESTIONS: u32 = 5;
/// The shortest pause between two questions.
const PAUSE_MIN: Duration = Duration::from_millis(20);

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
        let keeping = Keeping { session, grace, linger, started, lease, generation, tell };
        (Self(tokio::spawn(keeping.run())), told)
    }
}

struct Keeping {
    session: Session,
    grace: Duration,
    linger: Duration,
    started: Instant,
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
                self.lease.answered(sent, self.started.elapsed());
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
