//! Whoever acknowledges still has its session at that instant, so that nobody can have been elected because it seemed
//! dead: the lease ends before the session can (Gray & Cheriton 1989, decision 0013).

use super::super::registry::Registry;

pub fn check(registry: &Registry, session: u64) {
    assert!(registry.is_live(session), "an acknowledgement under a session that is over");
}
