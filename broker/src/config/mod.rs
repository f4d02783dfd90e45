//! The configs in force: a topic's own come first, then what the registry says of this broker and of all brokers,
//! then what this process was started with, then the defaults.
//!
//! Called by the api, which reports them, and by `partition`, which obeys them.

pub mod keys;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::log::LogConfig;
use crate::partition::throttle::Throttled;

pub use keys::{BROKER_KEYS, FORGOTTEN, Key, Kind, TOPIC_KEYS, broker_key, check, topic_key};

/// Configs as people write them.
pub type Configs = BTreeMap<String, String>;

/// Where a value comes from; the numbers are Kafka's `ConfigSource`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The topic's own.
    Topic,
    /// The registry's for this broker.
    Broker,
    /// The registry's for all brokers.
    AllBrokers,
    /// This process was started with it.
    Start,
    /// Nobody says otherwise.
    Default,
}

impl Source {
    /// The number on Kafka's wire.
    pub const fn wire(self) -> i8 {
        match self {
            Self::Topic => 1,
            Self::Broker => 2,
            Self::AllBrokers => 3,
            Self::Start => 4,
            Self::Default => 5,
        }
    }
}

/// One candidate for a value: where it comes from, under which name, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it comes from.
    pub source: Source,
    /// The name that it has there.
    pub name: &'static str,
    /// The value, in the unit of that name.
    pub value: String,
    /// What turns it into the asked config's unit.
    factor: i64,
}

/// What this process was started with, and what the registry says of brokers.
#[derive(Clone, Debug, Default)]
pub struct BrokerConfigs {
    /// `--set`.
    pub start: Configs,
    /// The registry's for this broker.
    pub own: Configs,
    /// The registry's for all brokers.
    pub all: Configs,
}

impl BrokerConfigs {
    /// Says in a sentence what is wrong with `--set`.
    ///
    /// # Errors
    /// An unknown name, or a value that can't be.
    pub fn from_start(start: Configs) -> Result<Self, String> {
        for (name, value) in &start {
            let known = broker_key(name).or_else(|| synonym(name));
            match known {
                Some(key) => check(&Key { name: key.name, ..*key }, value)
                    .map_err(|problem| format!("--set {name}={value}: {problem}"))?,
                None => {
                    return Err(format!("--set {name}={value}: Loggos has no broker config of that name"));
                }
            }
        }
        Ok(Self { start, ..Self::default() })
    }

    /// All candidates for a broker config, the one in force first.
    pub fn broker(&self, key: &'static Key) -> Vec<Candidate> {
        let mut found = self.under(key.name, 1);
        let value = key.default.to_owned();
        found.push(Candidate { source: Source::Default, name: key.name, value, factor: 1 });
        found
    }

    /// All candidates for a topic config, the one in force first.
    pub fn topic(&self, own: &Configs, key: &'static Key) -> Vec<Candidate> {
        let mut found = Vec::new();
        if let Some(value) = own.get(key.name) {
            found.push(Candidate { source: Source::Topic, name: key.name, value: value.clone(), factor: 1 });
        }
        for (name, factor) in key.broker {
            found.extend(self.under(name, *factor));
        }
        let value = key.default.to_owned();
        found.push(Candidate { source: Source::Default, name: key.name, value, factor: 1 });
        found
    }

    fn under(&self, name: &'static str, factor: i64) -> Vec<Candidate> {
        let places =
            [(Source::Broker, &self.own), (Source::AllBrokers, &self.all), (Source::Start, &self.start)];
        let found = places.into_iter().filter_map(|(source, configs)| {
            configs.get(name).map(|value| Candidate { source, name, value: value.clone(), factor })
        });
        found.collect()
    }

    /// A broker config's number; bounds were checked when it was set.
    pub fn number(&self, name: &str) -> i64 {
        let Some(key) = broker_key(name) else { return 0 };
        self.broker(key).first().map_or(0, Candidate::number)
    }

    /// A broker config's yes or no.
    pub fn flag(&self, name: &str) -> bool {
        self.text(name) == "true"
    }

    /// A broker config's text.
    pub fn text(&self, name: &str) -> String {
        let Some(key) = broker_key(name) else { return String::new() };
        self.broker(key).into_iter().next().map(|found| found.value).unwrap_or_default()
    }

    /// A broker config's time.
    pub fn duration(&self, name: &str) -> Duration {
        Duration::from_millis(self.number(name).max(0).unsigned_abs())
    }
}

/// A topic's config that a broker-wide name gives the default of.
fn synonym(name: &str) -> Option<&'static Key> {
    TOPIC_KEYS.iter().find(|key| key.broker.iter().any(|(broker, _)| *broker == name))
}

impl Candidate {
    /// The value in the asked config's unit.
    pub fn converted(&self) -> String {
        match (self.factor, self.value.parse::<i64>()) {
            (1, _) | (_, Err(_)) => self.value.clone(),
            (_, Ok(number)) if number < 0 => number.to_string(),
            (factor, Ok(number)) => number.saturating_mul(factor).to_string(),
        }
    }

    fn number(&self) -> i64 {
        self.converted().parse().unwrap_or_default()
    }
}

/// A topic's configs, as the broker obeys them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// What its logs honour.
    pub log: LogConfig,
    /// `max.message.bytes`.
    pub max_message_bytes: usize,
    /// `min.insync.replicas`.
    pub min_insync_replicas: usize,
    /// Whether records get the time of their append.
    pub append_time: bool,
    /// `message.timestamp.before.max.ms`.
    pub before_max_ms: i64,
    /// `message.timestamp.after.max.ms`.
    pub after_max_ms: i64,
    /// Whether consumers see what is appended and not yet flushed.
    pub exposes_appended: bool,
    /// `leader.replication.throttled.replicas`.
    pub leader_throttled: Throttled,
    /// `follower.replication.throttled.replicas`.
    pub follower_throttled: Throttled,
}

impl TopicConfig {
    /// Settles a topic's configs.
    pub fn new(own: &Configs, broker: &BrokerConfigs) -> Self {
        let first = |name: &str| {
            let key = topic_key(name).expect("the names below are in the table");
            broker
                .topic(own, key)
                .into_iter()
                .next()
                .map(|found| (found.source, found.converted()))
                .expect("a default")
        };
        let text = |name: &str| first(name).1;
        let number = |name: &str| text(name).parse::<i64>().unwrap_or_default();
        let positive = |name: &str| number(name).max(0).unsigned_abs();
        let optional = |name: &str| Some(number(name)).filter(|number| *number >= 0);
        // Who asks for a time alone means that time, and not "at once".
        let by_time_alone =
            first("flush.ms").0 != Source::Default && first("flush.messages").0 == Source::Default;
        let log = LogConfig {
            segment_bytes: positive("segment.bytes"),
            segment_ms: number("segment.ms"),
            index_interval_bytes: positive("index.interval.bytes"),
            retention_ms: optional("retention.ms"),
            retention_bytes: optional("retention.bytes").map(i64::unsigned_abs),
            expires: text("cleanup.policy").split(',').any(|word| word.trim() == "delete"),
            flush_messages: if by_time_alone { i64::MAX.unsigned_abs() } else { positive("flush.messages") },
            flush_ms: number("flush.ms"),
            producer_expiration_ms: broker.number("producer.id.expiration.ms"),
        };
        Self {
            log,
            max_message_bytes: usize::try_from(number("max.message.bytes")).unwrap_or(usize::MAX),
            min_insync_replicas: usize::try_from(number("min.insync.replicas")).unwrap_or(1),
            append_time: text("message.timestamp.type") == "LogAppendTime",
            before_max_ms: number("message.timestamp.before.max.ms"),
            after_max_ms: number("message.timestamp.after.max.ms"),
            exposes_appended: text("loggos.expose") == "appended",
            leader_throttled: Throttled::parse(&text("leader.replication.throttled.replicas")),
            follower_throttled: Throttled::parse(&text("follower.replication.throttled.replicas")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configs(pairs: &[(&str, &str)]) -> Configs {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_nearest_value_wins_and_units_are_converted() {
        let start = configs(&[("log.retention.hours", "2"), ("log.segment.bytes", "1000000")]);
        let mut broker = BrokerConfigs::from_start(start).expect("right");
        let topic = TopicConfig::new(&configs(&[("segment.bytes", "5000")]), &broker);
        assert_eq!((topic.log.retention_ms, topic.log.segment_bytes), (Some(7_200_000), 5000));
        broker.all = configs(&[("log.retention.ms", "-1")]);
        assert_eq!(TopicConfig::new(&Configs::new(), &broker).log.retention_ms, None);
    }

    #[test]
    fn a_time_alone_to_flush_is_that_time_and_not_at_once() {
        let broker = BrokerConfigs::default();
        let flush = |pairs: &[(&str, &str)]| {
            let log = TopicConfig::new(&configs(pairs), &broker).log;
            (log.flush_messages, log.flush_ms)
        };
        assert_eq!(flush(&[]), (1, i64::MAX));
        assert_eq!(flush(&[("flush.messages", "1000")]), (1000, i64::MAX));
        assert_eq!(flush(&[("flush.ms", "500")]), (i64::MAX as u64, 500));
        assert_eq!(flush(&[("flush.ms", "500"), ("flush.messages", "10")]), (10, 500));
    }

    #[test]
    fn an_unknown_or_wrong_start_config_is_refused_by_name() {
        let refused = |pair| BrokerConfigs::from_start(configs(&[pair])).expect_err("refused");
        assert!(refused(("num.partitions", "many")).contains("num.partitions"));
        assert!(refused(("nonsense", "1")).contains("nonsense"));
    }
}
