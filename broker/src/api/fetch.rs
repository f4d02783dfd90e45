//! Fetch: slices of segment files from each partition, waited for until there are enough bytes or the time is up.
//! Walk 2 of docs/ARCHITECTURE.md.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use loggos_protocol::ids::{BrokerEpoch, BrokerId, LeaderEpoch, Offset, PartitionId, TopicId, TopicName};
use loggos_protocol::kafka::fetch_response::{FetchAnswer, FetchedPartition, FetchedTopic, encode_fetch};
use loggos_protocol::kafka::messages::FetchRequest;
use loggos_protocol::kafka::{ErrorCode, Request, RequestHeader};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::fetch_session::{MemberKey, Session, Sessions, Wanted};
use super::{Answer, Context, Outcome, names};
use crate::log::LogSlice;
use crate::partition::{self, Asker, Partition};

/// The first version that names topics by their ids.
const TOPIC_IDS: i16 = 13;
/// The first version in which consumers say where they are (KIP-392).
const RACKS: i16 = 11;
/// The epoch of a request that ends its session, or has none.
const FINAL_EPOCH: i32 = -1;
/// The longest that a fetch waits, whatever it says.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a fetch has found in one partition.
type Found = FetchedPartition<LogSlice>;

pub(super) fn begin(context: Arc<Context>, sessions: Arc<Sessions>, request: Request) -> Answer {
    let arrived = Instant::now();
    match request.decode::<FetchRequest>() {
        Ok(body) => {
            Answer::later(async move { handle(&context, &sessions, &request.header, body, arrived).await })
        }
        Err(error) => Answer::Now(Outcome::Close(error.to_string())),
    }
}

async fn handle(
    context: &Context,
    sessions: &Sessions,
    header: &RequestHeader,
    body: FetchRequest,
    arrived: Instant,
) -> Outcome {
    let session = match session_for(sessions, header, &body).await {
        Ok(session) => session,
        Err(code) => return answer(header, code, 0, Vec::new()),
    };
    let mut session = session.lock().await;
    let is_full = body.session_epoch <= 0;
    let rack = (header.version >= RACKS && !body.rack_id.is_empty()).then(|| body.rack_id.to_string());
    let asker = asker_of(header, &body, rack.is_some());
    session.follows = matches!(asker, Asker::Follower(..));
    update(context, header, &body, &mut session);
    let limits = Limits {
        max_bytes: usize::try_from(body.max_bytes)
            .unwrap_or(0)
            .min(usize::try_from(context.table.configs().number("fetch.max.bytes")).unwrap_or(usize::MAX)),
        min_bytes: usize::try_from(body.min_bytes).unwrap_or(0),
        asker,
        rack,
        tells_marks: session.follows && context.has_rack(),
        is_full,
    };
    let wait = Duration::from_millis(u64::try_from(body.max_wait_ms).unwrap_or(0)).min(PATIENCE);
    let mut found = collect(context, &mut session, &limits, arrived + wait).await;
    if let Err(outcome) = check(&session, &mut found).await {
        return outcome;
    }
    let id = session.id;
    answer(header, ErrorCode::NONE, id, group(found))
}

/// What bounds an answer.
struct Limits {
    max_bytes: usize,
    min_bytes: usize,
    asker: Asker,
    /// Where a consumer is that would rather read from near by.
    rack: Option<String>,
    /// Whether a follower is told at once how far the high watermark is: consumers near it wait for that.
    tells_marks: bool,
    /// Whether every partition is answered for, and not only those with news.
    is_full: bool,
}

async fn session_for(
    sessions: &Sessions,
    header: &RequestHeader,
    body: &FetchRequest,
) -> Result<Arc<Mutex<Session>>, ErrorCode> {
    let without = || Arc::new(Mutex::new(Session::new(0)));
    if header.version < 7 || body.session_epoch == FINAL_EPOCH {
        if body.session_id != 0 {
            sessions.end(body.session_id).await;
        }
        return Ok(without());
    }
    if body.session_epoch == 0 {
        if body.session_id != 0 {
            sessions.end(body.session_id).await;
        }
        return Ok(sessions.begin(rand::random_range(1..i32::MAX)).await);
    }
    sessions.resume(body.session_id, body.session_epoch).await
}

/// Takes up the partitions that a request names.
fn update(context: &Context, header: &RequestHeader, body: &FetchRequest, session: &mut Session) {
    let by_id = header.version >= TOPIC_IDS;
    let name_of = |name: &loggos_protocol::kafka::messages::TopicName| {
        if by_id { TopicName::new("") } else { names::topic(name) }
    };
    for topic in &body.forgotten_topics_data {
        for partition in &topic.partitions {
            let id = if by_id { TopicId::new(topic.topic_id) } else { TopicId::NONE };
            session.forget(&(name_of(&topic.topic), id, PartitionId::new(*partition)));
        }
    }
    for topic in &body.topics {
        let topic_id = if by_id { TopicId::new(topic.topic_id) } else { TopicId::NONE };
        let name = name_of(&topic.topic);
        for asked in &topic.partitions {
            let id = PartitionId::new(asked.partition);
            let wanted = Wanted {
                topic: name.clone(),
                topic_id,
                partition: id,
                offset: Offset::new(asked.fetch_offset),
                max_bytes: usize::try_from(asked.partition_max_bytes).unwrap_or(0),
                believed: LeaderEpoch::new(asked.current_leader_epoch),
                last_fetched: LeaderEpoch::new(asked.last_fetched_epoch),
            };
            let partition =
                if by_id { context.table.get_by_id(topic_id, id) } else { context.table.get(&name, id) };
            session.set(wanted, partition);
        }
    }
    // A partition that was not here when the session began may be by now.
    let absent: Vec<Wanted> = session
        .members
        .values()
        .filter(|member| member.partition.is_none())
        .map(|member| member.wanted.clone())
        .collect();
    for wanted in absent {
        let found = if by_id {
            context.table.get_by_id(wanted.topic_id, wanted.partition)
        } else {
            context.table.get(&wanted.topic, wanted.partition)
        };
        session.set(wanted, found);
    }
}

/// Who asks.
fn asker_of(header: &RequestHeader, body: &FetchRequest, has_rack: bool) -> Asker {
    let (id, life) = if header.version >= 15 {
        (body.replica_state.replica_id.0, body.replica_state.replica_epoch)
    } else {
        (body.replica_id.0, -1)
    };
    match id {
        0.. => Asker::Follower(BrokerId::new(id), BrokerEpoch::new(life)),
        _ if has_rack => Asker::NearConsumer,
        _ => Asker::Consumer,
    }
}

/// Looks at what is due until there is enough, or until `deadline`.
async fn collect(
    context: &Context,
    session: &mut Session,
    limits: &Limits,
    deadline: Instant,
) -> BTreeMap<MemberKey, Found> {
    let mut found: BTreeMap<MemberKey, Found> = BTreeMap::new();
    let mut bytes = 0;
    loop {
        let must_answer = look(context, session, limits, &mut found, &mut bytes);
        if must_answer || bytes >= limits.min_bytes.max(1) || Instant::now() >= deadline {
            break;
        }
        if limits.min_bytes == 0 {
            break;
        }
        let watch = Arc::clone(&session.watch);
        if tokio::time::timeout_at(deadline, watch.moved()).await.is_err() {
            break;
        }
        session.take_moved();
    }
    if !limits.is_full {
        // What is said only when it's news.
        found.retain(|key, one| {
            let told = session.members.get(key).and_then(|member| member.told);
            let says = one.records.is_some() || one.diverging.is_some() || one.preferred.is_some();
            says || !one.error.is_none() || told != Some(marks(one))
        });
    }
    for (key, one) in &found {
        if let Some(member) = session.members.get_mut(key) {
            member.told = Some(marks(one));
        }
    }
    found
}

/// What moves without records.
const fn marks(one: &Found) -> (Offset, Offset) {
    (one.high_watermark, one.log_start)
}

/// Reads the members that are due; whether an error is among them, which is told at once.
fn look(
    context: &Context,
    session: &mut Session,
    limits: &Limits,
    found: &mut BTreeMap<MemberKey, Found>,
    bytes: &mut usize,
) -> bool {
    session.take_moved();
    let mut must_answer = false;
    for key in std::mem::take(&mut session.due) {
        let Some(member) = session.members.get(&key) else { continue };
        if found.get(&key).is_some_and(|known| known.records.is_some()) {
            // It has moved on since it was read: the next request looks again.
            session.due.insert(key);
            continue;
        }
        let left = limits.max_bytes.saturating_sub(*bytes);
        let throttled = match (limits.asker, &member.partition) {
            (Asker::Follower(follower, _), Some(partition)) => {
                partition.is_throttled_for(context.me, follower)
            }
            _ => false,
        };
        let room = if throttled && !context.table.may_give() { (0, false) } else { (left, *bytes == 0) };
        let mut one = read(member.partition.as_deref(), &member.wanted, room, limits.asker);
        if throttled {
            context.table.gave(one.records.as_ref().map_or(0, LogSlice::len));
        }
        if let (Some(rack), Some(partition)) = (&limits.rack, &member.partition)
            && one.error.is_none()
            && let Some(near) = context.nearest(partition, member.wanted.offset, rack)
        {
            (one.preferred, one.records) = (Some(near), None);
        }
        must_answer |= !one.error.is_none() || one.diverging.is_some() || one.preferred.is_some();
        must_answer |= limits.tells_marks && member.told != Some(marks(&one));
        let len = one.records.as_ref().map_or(0, LogSlice::len);
        *bytes += len;
        if len > 0 || room.0 == 0 {
            // There may be more where this came from.
            session.due.insert(key.clone());
        }
        if !one.error.is_none() {
            session.due.insert(key.clone());
        }
        found.insert(key, one);
    }
    must_answer
}

fn read(
    partition: Option<&Partition>,
    wanted: &Wanted,
    (left, at_least_one): (usize, bool),
    asker: Asker,
) -> Found {
    let none = Offset::new(-1);
    let mut found = Found {
        partition: wanted.partition,
        error: ErrorCode::NONE,
        high_watermark: none,
        log_start: none,
        diverging: None,
        leader: None,
        preferred: None,
        records: None,
    };
    let Some(partition) = partition else {
        found.error = if wanted.topic_id == TopicId::NONE {
            ErrorCode::UNKNOWN_TOPIC_OR_PARTITION
        } else {
            ErrorCode::UNKNOWN_TOPIC_ID
        };
        return found;
    };
    let want = partition::Wanted {
        offset: wanted.offset,
        last_epoch: wanted.last_fetched,
        max_bytes: wanted.max_bytes.min(left),
        at_least_one,
        asker,
    };
    match partition.read(want, wanted.believed) {
        Ok(read) => {
            found.high_watermark = read.high_watermark;
            found.log_start = read.log_start;
            found.diverging = read.diverging;
            found.records = read.slice;
        }
        Err(code) => {
            found.error = code;
            if code == ErrorCode::OFFSET_OUT_OF_RANGE {
                found.log_start = partition.log().log_start();
                found.high_watermark = partition.high_watermark();
            } else if code == ErrorCode::NOT_LEADER_OR_FOLLOWER || code == ErrorCode::FENCED_LEADER_EPOCH {
                found.leader = Some(partition.leader());
            }
        }
    }
    found
}

/// Checks bytes from before this start at their first read, away from the network's threads.
async fn check(session: &Session, found: &mut BTreeMap<MemberKey, Found>) -> Result<(), Outcome> {
    for (key, one) in found {
        let Some(mut slice) = one.records.take_if(|slice| !slice.is_checked()) else { continue };
        let checked = tokio::task::spawn_blocking(move || (slice.check(), slice)).await;
        match checked {
            Ok((Ok(()), slice)) => one.records = Some(slice),
            Ok((Err(error), _)) => {
                one.error = partition::code_of(&error);
                if let Some(member) = session.members.get(key)
                    && let Some(partition) =
                        member.partition.as_ref().filter(|_| one.error == ErrorCode::CORRUPT_MESSAGE)
                {
                    partition.note_damage(member.wanted.offset);
                }
            }
            Err(_) => return Err(Outcome::Close("a read was interrupted".to_owned())),
        }
    }
    Ok(())
}

fn group(found: BTreeMap<MemberKey, Found>) -> Vec<FetchedTopic<LogSlice>> {
    let mut topics: Vec<FetchedTopic<LogSlice>> = Vec::new();
    for ((name, id, _), partition) in found {
        match topics.last_mut().filter(|last| last.name == name && last.id == id) {
            Some(last) => last.partitions.push(partition),
            None => topics.push(FetchedTopic { name, id, partitions: vec![partition] }),
        }
    }
    topics
}

fn answer(
    header: &RequestHeader,
    error: ErrorCode,
    session_id: i32,
    topics: Vec<FetchedTopic<LogSlice>>,
) -> Outcome {
    Outcome::Reply(encode_fetch(header, FetchAnswer { error, session_id, topics }))
}
