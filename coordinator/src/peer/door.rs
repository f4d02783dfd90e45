//! Connections that others begin: their frames go to the driver, their questions to whoever can answer.
//!
//! Before the server belongs to a cell, only questions are answered, from its card. Called by `start`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Heard;
use super::handshake::{Answer, Card, Channel, Hello, Question, Welcome};
use super::wire::Wire;
use crate::paxos::codec::decode_envelope;
use crate::paxos::event::Identity;

/// Connections of others at one time: two of each member, and questions.
const CONNECTIONS_MAX: usize = 512;
/// Who dials says what it wants by then.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// A question is answered by then.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Out of descriptors, accepting rests for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A question with the way back.
#[derive(Debug)]
pub(crate) struct Asked {
    pub question: Question,
    pub answer: oneshot::Sender<Answer>,
}

/// Who stands behind the door.
#[derive(Clone, Debug)]
pub(crate) enum Behind {
    /// A server without a cell: its card.
    Card(Box<Card>),
    /// A member at work.
    Member { identity: Identity, bulk_port: u16, frames: mpsc::Sender<Heard>, questions: mpsc::Sender<Asked> },
}

/// The door: who stands behind it changes once.
pub(crate) type Door = Arc<RwLock<Behind>>;

/// Accepts on `listener` until it is dropped with its task.
pub(crate) async fn accept(listener: TcpListener, door: Door) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "can't accept a peer");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let door = Arc::clone(&door);
        connections.spawn(async move {
            if let Err(error) = serve(stream, &door).await {
                tracing::debug!(%error, "a peer's connection ended");
            }
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, door: &Door) -> io::Result<()> {
    let mut wire = Wire::new(stream)?;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let hello = timeout(HELLO_DEADLINE, wire.frame()).await.map_err(late)??;
    let hello = Hello::decode(hello).map_err(io::Error::other)?;
    if hello.channel == Channel::Question {
        let question = timeout(HELLO_DEADLINE, wire.frame()).await.map_err(late)??;
        let question = Question::decode(question).map_err(io::Error::other)?;
        let answer = timeout(ANSWER_DEADLINE, answer(question, door)).await.map_err(late)?;
        return wire.send(&answer.encode()).await;
    }
    let Behind::Member { identity, bulk_port, frames, .. } = door.read().clone() else {
        return Err(io::Error::other("no member of a cell yet"));
    };
    // Also to strangers: they learn that they have dialled the wrong server.
    let (cell, server, incarnation) = (identity.cell, identity.server, identity.incarnation);
    let welcome = Welcome { cell, server, incarnation, bulk_port };
    wire.send(&welcome.encode()).await?;
    if hello.cell != identity.cell {
        return Err(io::Error::other("a server of another cell"));
    }
    loop {
        let envelope = decode_envelope(wire.frame().await?).map_err(io::Error::other)?;
        let fits = envelope.cell == identity.cell
            && envelope.to == identity.server
            && envelope.from == hello.from
            && envelope.from_incarnation == hello.incarnation;
        if fits && frames.send(Heard::Frame(envelope)).await.is_err() {
            return Ok(());
        }
    }
}

async fn answer(question: Question, door: &Door) -> Answer {
    let questions = match door.read().clone() {
        Behind::Card(card) if question == Question::Who => return Answer::Card(card),
        Behind::Card(_) => return Answer::Refused("this server belongs to no cell yet".to_owned()),
        Behind::Member { questions, .. } => questions,
    };
    let (answer, answered) = oneshot::channel();
    if questions.send(Asked { question, answer }).await.is_err() {
        return Answer::Refused("the server stops".to_owned());
    }
    answered.await.unwrap_or_else(|_| Answer::Refused("the server stops".to_owned()))
}
