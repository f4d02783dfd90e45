//! The engine's part of a snapshot: the memberships that still matter at the slot that it stands for.
//!
//! Given out with `TakeSnapshot`, handed back with `SnapshotReceived`; at a start the shell makes
//! `Recovered::configs` of it with [`decode`].

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::ballot::{ServerId, Slot};
use super::membership::{Config, ConfigHistory, MEMBERS_LIMIT, Member, Role};

/// The form of these bytes.
const VERSION: u8 = 1;
/// The longest address.
const ADDRESS_LIMIT: usize = 1024;
/// The most memberships: one may be pending, a few linger in the window.
const ENTRIES_LIMIT: usize = 1024;

/// The bytes of a history.
pub fn encode(configs: &ConfigHistory) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    out.put_u32(configs.entries().len() as u32);
    for (slot, config) in configs.entries() {
        out.put_u64(slot.raw());
        out.put_u16(config.next_id.raw());
        out.put_u32(config.members.len() as u32);
        for member in &config.members {
            out.put_u16(member.id.raw());
            out.put_u8(match member.role {
                Role::Voter => 0,
                Role::Learner => 1,
                Role::Witness => 2,
            });
            out.put_u16(member.bulk_port);
            out.put_u64(member.token);
            put_text(&mut out, &member.peer);
            put_text(&mut out, &member.client);
        }
    }
    out.freeze()
}

/// The history in these bytes, for a window of `alpha`; `None` if they are no such thing.
pub fn decode(mut bytes: Bytes, alpha: u64) -> Option<ConfigHistory> {
    let version = bytes.try_get_u8().ok()?;
    let count = bytes.try_get_u32().ok()? as usize;
    if version != VERSION || count > ENTRIES_LIMIT {
        return None;
    }
    let mut entries = Vec::new();
    for _ in 0..count {
        let slot = Slot::new(bytes.try_get_u64().ok()?);
        entries.push((slot, Arc::new(take_config(&mut bytes)?)));
    }
    if bytes.has_remaining() { None } else { ConfigHistory::from_entries(entries, alpha) }
}

fn take_config(bytes: &mut Bytes) -> Option<Config> {
    let next_id = ServerId::new(bytes.try_get_u16().ok()?);
    let count = bytes.try_get_u32().ok()? as usize;
    if count > MEMBERS_LIMIT {
        return None;
    }
    let mut members = Vec::new();
    for _ in 0..count {
        let id = ServerId::new(bytes.try_get_u16().ok()?);
        let role = match bytes.try_get_u8().ok()? {
            0 => Role::Voter,
            1 => Role::Learner,
            2 => Role::Witness,
            _ => return None,
        };
        let bulk_port = bytes.try_get_u16().ok()?;
        let token = bytes.try_get_u64().ok()?;
        let (peer, client) = (take_text(bytes)?, take_text(bytes)?);
        members.push(Member { id, role, peer, bulk_port, client, token });
    }
    Some(Config { members, next_id })
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u32(text.len() as u32);
    out.put_slice(text.as_bytes());
}

fn take_text(bytes: &mut Bytes) -> Option<String> {
    let length = bytes.try_get_u32().ok()? as usize;
    if length > ADDRESS_LIMIT || length > bytes.remaining() {
        return None;
    }
    String::from_utf8(bytes.split_to(length).to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn history() -> ConfigHistory {
        let member = |id: u16, role| Member {
            id: ServerId::new(id),
            role,
            peer: format!("host{id}:2888"),
            bulk_port: 3888,
            client: format!("host{id}:2181"),
            token: u64::from(id) * 7,
        };
        let first = Config::founding(vec![member(1, Role::Voter), member(2, Role::Learner)]);
        let mut history = ConfigHistory::founding(first, 8);
        let second = Config::founding(vec![member(1, Role::Voter), member(3, Role::Witness)]);
        history.push(Slot::new(17), Arc::new(second));
        history
    }

    #[test]
    fn a_history_comes_back_as_it_was() {
        assert_eq!(decode(encode(&history()), 8), Some(history()));
    }

    proptest! {
        #[test]
        fn bytes_that_were_cut_or_made_up_are_refused_without_harm(
            cut in 0usize..400, noise in proptest::collection::vec(any::<u8>(), 0..80)
        ) {
            let whole = encode(&history());
            if cut < whole.len() {
                prop_assert_eq!(decode(whole.slice(..cut), 8), None);
            }
            decode(Bytes::from(noise), 8);
        }
    }
}
