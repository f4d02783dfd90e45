//! A group that its members run themselves, as the broker's tools show it: read from the registry, and never written.
//! Called by `table` and `offsets`.

use std::time::Instant;

use loggos_client::registry::SeenGroup;
use loggos_protocol::ids::{Generation, MemberId};
use loggos_protocol::kafka::consumer_protocol::{self, Partitions};
use loggos_protocol::registry::group::{ConsumerRecord, OffsetRecord};
use loggos_protocol::registry::record::Record;

use super::machine::{Machine, Setting};
use super::record::{CONSUMER, HeadRecord, Kind, MemberRecord};
use super::shelf::Offsets;

/// What is shown as its strategy.
const STRATEGY: &str = "registry";

/// The group as tools of classic groups show it.
pub(super) fn shown(setting: &Setting, seen: &SeenGroup, now: Instant) -> Machine {
    let mut head = HeadRecord::new(Kind::Classic, Generation::new(0));
    head.protocol_type = CONSUMER.to_owned();
    head.protocol = Some(STRATEGY.to_owned());
    let members = seen.members.iter().map(|(id, bytes)| {
        // An owner is a stream of a member: the member's id and the stream's number.
        let is_mine = |owner: &[u8]| {
            let rest = owner.strip_prefix(id.as_str().as_bytes());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"-"))
        };
        let mut held = Partitions::new();
        for ((topic, partition), _) in seen.owners.iter().filter(|(_, owner)| is_mine(owner)) {
            held.entry(topic.clone()).or_default().push(*partition);
        }
        member(id, bytes, &held)
    });
    Machine::restore(setting, head, members.collect(), now)
}

fn member(id: &MemberId, bytes: &[u8], held: &Partitions) -> MemberRecord {
    let consumer = ConsumerRecord::from_bytes(bytes);
    MemberRecord {
        consumer: consumer.unwrap_or_else(|_| ConsumerRecord::new(Default::default(), "static", -1)),
        id: id.clone(),
        instance: None,
        client_id: id.as_str().to_owned(),
        client_host: String::new(),
        session_timeout_ms: 0,
        rebalance_timeout_ms: 0,
        protocols: Vec::new(),
        assignment: consumer_protocol::write_assignment(held),
        reconciling: None,
    }
}

/// What it has committed.
pub(super) fn offsets(seen: &SeenGroup) -> Offsets {
    let read = seen.offsets.iter();
    read.filter_map(|(place, bytes)| Some((place.clone(), OffsetRecord::read(bytes)?))).collect()
}
