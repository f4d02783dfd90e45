//! From the broker's configs to what groups' machines obey. Called by `table`.

use std::sync::Arc;

use super::assignor::Topics;
use super::consumer_state::ConsumerLimits;
use super::machine::{Migration, Setting};
use super::state::Limits;
use crate::config::BrokerConfigs;

/// What a machine is to obey.
pub(super) fn setting_of(configs: &BrokerConfigs, topics: Arc<Topics>) -> Setting {
    let count = |name: &str| usize::try_from(configs.number(name)).unwrap_or(usize::MAX);
    let policy = configs.text("group.consumer.migration.policy").to_lowercase();
    Setting {
        classic: Limits {
            session_min: configs.duration("group.min.session.timeout.ms"),
            session_max: configs.duration("group.max.session.timeout.ms"),
            members: count("group.max.size"),
            initial_delay: configs.duration("group.initial.rebalance.delay.ms"),
        },
        consumer: ConsumerLimits {
            session: configs.duration("group.consumer.session.timeout.ms"),
            interval: configs.duration("group.consumer.heartbeat.interval.ms"),
            members: count("group.consumer.max.size"),
        },
        migration: Migration {
            upgrade: policy == "bidirectional" || policy == "upgrade",
            downgrade: policy == "bidirectional" || policy == "downgrade",
        },
        topics,
    }
}
