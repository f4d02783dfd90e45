//! Read barriers: up to where must a read have applied that is to see all that was acknowledged before it began
//! (design 1.9).
//!
//! On the leader: at once while its lease holds, else after a round of heartbeats *begun after the read* has been
//! acknowledged by majorities. Elsewhere: ask the leader, then wait until that much is applied. Many reads share one
//! round and one question.

use std::collections::BTreeMap;

use super::post::Post;
use super::standing::Standing;
use super::{Engine, Step};
use crate::paxos::ballot::{ServerId, Slot};
use crate::paxos::event::{Action, Actions, ReadId};
use crate::paxos::message::Message;
use crate::paxos::moment::Moment;

/// Reads waiting in one place, above which further ones are refused.
const READS_LIMIT: usize = 65_536;
/// How often a question is asked before its reads are refused.
const TRIES_LIMIT: u32 = 5;

/// Who wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reader {
    Here(ReadId),
    There { server: ServerId, id: u64 },
}

/// Reads at a leader that wait for a round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Barriers {
    waiting: Vec<Reader>,
    /// The round under way, the slot noted when it began, and those who wait for it.
    asked: Option<(u64, Slot, Vec<Reader>)>,
}

impl Barriers {
    /// Leadership is over.
    pub fn abandon(self, actions: &mut Actions, post: &Post) {
        let asked = self.asked.map(|(_, _, readers)| readers).unwrap_or_default();
        for reader in asked.into_iter().chain(self.waiting) {
            refuse(reader, actions, post);
        }
    }
}

/// Reads at a follower.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Questions {
    last: u64,
    waiting: Vec<ReadId>,
    asked: Option<Question>,
    /// Answered: to be served once so much is applied.
    answered: BTreeMap<Slot, Vec<ReadId>>,
}

/// A question to the leader.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    id: u64,
    reads: Vec<ReadId>,
    sent: Moment,
    tries: u32,
}

impl Engine {
    /// A client of this server wants to read.
    pub(super) fn read(&mut self, step: &mut Step<'_>, id: ReadId) {
        if matches!(self.standing, Standing::Leading(_)) {
            self.admit_reader(step, Reader::Here(id));
        } else if self.view.leader.is_none()
            || self.is_witness()
            || self.questions.waiting.len() >= READS_LIMIT
        {
            step.act(Action::ReadRefused(id));
        } else {
            self.questions.waiting.push(id);
            self.ask(step);
        }
    }

    /// Another server asks on behalf of its clients.
    pub(super) fn on_read_index(&mut self, step: &mut Step<'_>, from: ServerId, id: u64) {
        let reader = Reader::There { server: from, id };
        if matches!(self.standing, Standing::Leading(_)) {
            self.admit_reader(step, reader);
        } else {
            refuse(reader, step.actions, &self.post);
        }
    }

    fn admit_reader(&mut self, step: &mut Step<'_>, reader: Reader) {
        let Standing::Leading(leading) = &mut self.standing else { return };
        let lease = leading.lease_until(&self.configs, &self.learner, &self.options);
        if leading.started && self.options.lease_reads && step.at() < lease {
            answer(reader, self.learner.chosen_upto(), step.actions, &self.post);
        } else if leading.barriers.waiting.len() >= READS_LIMIT {
            refuse(reader, step.actions, &self.post);
        } else {
            leading.barriers.waiting.push(reader);
            self.barriers_on(step);
        }
    }

    /// Answers readers whose round is confirmed, and begins a round for those that came meanwhile.
    pub(super) fn barriers_on(&mut self, step: &mut Step<'_>) {
        let Standing::Leading(leading) = &mut self.standing else { return };
        let confirmed = leading.tenure.confirmed_round(self.configs.open(self.learner.chosen_upto()));
        let barriers = &mut leading.barriers;
        if let Some((_, slot, readers)) = barriers.asked.take_if(|(round, _, _)| *round <= confirmed) {
            for reader in readers {
                answer(reader, slot, step.actions, &self.post);
            }
        }
        if leading.started && barriers.asked.is_none() && !barriers.waiting.is_empty() {
            // Before the own `LeaderStart` is applied the end of the chosen prefix is not known.
            let readers = std::mem::take(&mut barriers.waiting);
            barriers.asked = Some((leading.tenure.round() + 1, self.learner.chosen_upto(), readers));
            self.begin_round(step);
        }
    }

    /// Asks the leader for all reads that wait, one question at a time.
    fn ask(&mut self, step: &mut Step<'_>) {
        let questions = &mut self.questions;
        if questions.asked.is_some() || questions.waiting.is_empty() {
            return;
        }
        questions.last += 1;
        let (id, reads) = (questions.last, std::mem::take(&mut questions.waiting));
        questions.asked = Some(Question { id, reads, sent: step.at(), tries: 0 });
        self.post.send(step.actions, self.view.leader, Message::ReadIndex { id });
    }

    pub(super) fn on_read_index_ok(&mut self, step: &mut Step<'_>, id: u64, slot: Slot) {
        let Some(question) = self.questions.asked.take_if(|question| question.id == id) else { return };
        self.questions.answered.entry(slot).or_default().extend(question.reads);
        self.questions_applied(step, self.learner.chosen_upto());
        self.ask(step);
    }

    pub(super) fn on_read_index_no(&mut self, step: &mut Step<'_>, id: u64) {
        let Some(question) = self.questions.asked.take_if(|question| question.id == id) else { return };
        for read in question.reads {
            step.act(Action::ReadRefused(read));
        }
        self.ask(step);
    }

    /// So much is applied here.
    pub(super) fn questions_applied(&mut self, step: &mut Step<'_>, upto: Slot) {
        while let Some(entry) = self.questions.answered.first_entry()
            && *entry.key() <= upto
        {
            for read in entry.remove() {
                step.act(Action::ReadReady(read));
            }
        }
    }

    /// The leader changed: what was asked of the old one can't be answered.
    pub(super) fn refuse_questions(&mut self, step: &mut Step<'_>) {
        let questions = std::mem::take(&mut self.questions);
        self.questions.last = questions.last;
        let asked = questions.asked.map(|question| question.reads).unwrap_or_default();
        let answered = questions.answered.into_values().flatten();
        for read in asked.into_iter().chain(questions.waiting).chain(answered) {
            step.act(Action::ReadRefused(read));
        }
    }

    /// Time has passed: the question or its answer may be lost.
    pub(super) fn ask_on(&mut self, step: &mut Step<'_>) {
        let deadline = self.question_deadline();
        let leader = self.view.leader;
        let Some(question) = &mut self.questions.asked else { return };
        if deadline > step.at() {
            return;
        }
        question.tries += 1;
        question.sent = step.at();
        let id = question.id;
        if question.tries > TRIES_LIMIT {
            self.on_read_index_no(step, id);
        } else {
            self.post.send(step.actions, leader, Message::ReadIndex { id });
        }
    }

    pub(super) fn question_deadline(&self) -> Moment {
        self.questions
            .asked
            .as_ref()
            .map_or(Moment::NEVER, |question| question.sent.after(self.options.resend))
    }
}

fn answer(reader: Reader, slot: Slot, actions: &mut Actions, post: &Post) {
    match reader {
        // A leader has applied all that it knows to be chosen.
        Reader::Here(id) => actions.push(Action::ReadReady(id)),
        Reader::There { server, id } => post.send(actions, server, Message::ReadIndexOk { id, slot }),
    }
}

fn refuse(reader: Reader, actions: &mut Actions, post: &Post) {
    match reader {
        Reader::Here(id) => actions.push(Action::ReadRefused(id)),
        Reader::There { server, id } => post.send(actions, server, Message::ReadIndexNo { id }),
    }
}
