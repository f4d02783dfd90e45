//! Lock-delay (Burrows 2006 §2.4): when a session expires, its ephemeral nodes stay for a while, so that whoever
//! takes a lock next can be sure that what the old holder had on its way has arrived or never will.
//!
//! A session asks for it by setting the data of [`LINGER`] to a number of milliseconds. The node is nobody's and
//! stands in no list: it shows each session its own wish. Waiters, stock recipes among them, see a node that stays;
//! a clean end, by delete or close, takes it out at once. Called by `apply`, `sessions` and the driver's tick.

use bytes::Bytes;
use loggos_protocol::ids::SessionId;
use loggos_protocol::zookeeper::{ErrorCode, Stat};

use super::Tree;
use super::node::Owner;

/// Where a session says how long its nodes shall linger.
pub const LINGER: &str = "/zookeeper/loggos/linger";
/// The longest time that nodes linger, as Chubby's lock-delay.
const LINGER_MAX_MS: u32 = 60_000;

impl Tree {
    /// What [`LINGER`] shows a session.
    pub fn linger(&self, session: SessionId) -> (Bytes, Stat) {
        let linger_ms = self.sessions.get(&session).map_or(0, |session| session.linger_ms);
        let text = linger_ms.to_string();
        let data_length = i32::try_from(text.len()).unwrap_or(i32::MAX);
        (text.into(), Stat { data_length, ..Stat::default() })
    }

    /// At most `limit` nodes whose time to linger is over at `now_ms`.
    pub fn lingered(&self, now_ms: i64, limit: usize) -> Vec<String> {
        let over = self.lingering.iter().take_while(|(until_ms, _)| *until_ms <= now_ms);
        over.take(limit).map(|(_, path)| path.to_string()).collect()
    }

    pub(super) fn set_linger(&mut self, session: SessionId, data: Option<&Bytes>) -> Result<Stat, ErrorCode> {
        let text = data.and_then(|data| std::str::from_utf8(data).ok());
        let linger_ms = text.and_then(|text| text.parse().ok()).filter(|ms| *ms <= LINGER_MAX_MS);
        let linger_ms = linger_ms.ok_or(ErrorCode::BAD_ARGUMENTS)?;
        self.sessions.get_mut(&session).ok_or(ErrorCode::SESSION_EXPIRED)?.linger_ms = linger_ms;
        Ok(self.linger(session).1)
    }

    /// An ephemeral node has lost its session, and stays for now.
    pub(super) fn let_linger(&mut self, path: &str, session: SessionId, linger_ms: u32) {
        let until_ms = self.time_ms.saturating_add(linger_ms.into());
        if let Some(node) = Self::for_change(&mut self.nodes, path) {
            node.owner = Owner::Lingering { session, until_ms };
            self.lingering.insert((until_ms, path.into()));
        }
    }
}
