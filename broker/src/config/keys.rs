//! Kafka's config names that Loggos knows, each with type, default, and the broker-wide name that gives a topic's
//! its default. What is honoured, what is only kept and reported, stands in docs/configuration.md.

/// What a value looks like; the numbers are Kafka's `ConfigType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// Any text.
    Text,
    /// 32 bits, at least the bound.
    Int(i64),
    /// 64 bits, at least the bound.
    Long(i64),
    /// A fraction.
    Double,
    /// Words, separated by commas, each one of these; any if there are none.
    List(&'static [&'static str]),
    /// One of these words.
    Word(&'static [&'static str]),
}

impl Kind {
    /// The number on Kafka's wire.
    pub const fn wire(self) -> i8 {
        match self {
            Self::Boolean => 1,
            Self::Text | Self::Word(_) => 2,
            Self::Int(_) => 3,
            Self::Long(_) => 5,
            Self::Double => 6,
            Self::List(_) => 7,
        }
    }
}

/// One config.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What a value looks like.
    pub kind: Kind,
    /// What holds where nobody says anything.
    pub default: &'static str,
    /// For a topic's: the broker-wide names that come before the default, the first one winning, each with the
    /// factor that turns its unit into this one's.
    pub broker: &'static [(&'static str, i64)],
    /// What it means, in a sentence.
    pub doc: &'static str,
}

const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    broker: &'static [(&'static str, i64)],
    doc: &'static str,
) -> Key {
    Key { name, kind, default, broker, doc }
}

const MINUTE: i64 = 60_000;
const HOUR: i64 = 3_600_000;

/// What a topic can be given.
pub const TOPIC_KEYS: &[Key] = &[
    key(
        "cleanup.policy",
        Kind::List(&["delete", "compact"]),
        "delete",
        &[("log.cleanup.policy", 1)],
        "Whether old segments are deleted; a compacted topic is kept whole until compaction exists.",
    ),
    key(
        "compression.gzip.level",
        Kind::Int(-1),
        "-1",
        &[],
        "Kept and reported; batches stay as they were produced.",
    ),
    key(
        "compression.lz4.level",
        Kind::Int(1),
        "9",
        &[],
        "Kept and reported; batches stay as they were produced.",
    ),
    key(
        "compression.type",
        Kind::Word(&["producer"]),
        "producer",
        &[("compression.type", 1)],
        "Batches stay as producers compressed them.",
    ),
    key(
        "compression.zstd.level",
        Kind::Int(-131_072),
        "3",
        &[],
        "Kept and reported; batches stay as they were produced.",
    ),
    key(
        "delete.retention.ms",
        Kind::Long(0),
        "86400000",
        &[("log.cleaner.delete.retention.ms", 1)],
        "How long a compacted topic keeps tombstones.",
    ),
    key(
        "file.delete.delay.ms",
        Kind::Long(0),
        "60000",
        &[("log.segment.delete.delay.ms", 1)],
        "Kept and reported; files go at once, and whoever reads one goes on.",
    ),
    key(
        "flush.messages",
        Kind::Long(1),
        "1",
        &[("log.flush.interval.messages", 1)],
        "Records after which they are flushed, and so exposed; 1 is at once, together with whatever else waits.",
    ),
    key(
        "flush.ms",
        Kind::Long(0),
        "9223372036854775807",
        &[("log.flush.interval.ms", 1)],
        "How long a record may wait for others before it is flushed, and so exposed.",
    ),
    key(
        "follower.replication.throttled.replicas",
        Kind::Text,
        "",
        &[],
        "Which replicas are copied at a bounded rate while they catch up: PARTITION:BROKER,… or *.",
    ),
    key(
        "index.interval.bytes",
        Kind::Int(0),
        "4096",
        &[("log.index.interval.bytes", 1)],
        "Bytes of log per index entry.",
    ),
    key(
        "leader.replication.throttled.replicas",
        Kind::Text,
        "",
        &[],
        "Which leaders give at a bounded rate to followers that catch up: PARTITION:BROKER,… or *.",
    ),
    key("local.retention.bytes", Kind::Long(-2), "-2", &[], "Kept and reported; there is one tier."),
    key("local.retention.ms", Kind::Long(-2), "-2", &[], "Kept and reported; there is one tier."),
    key(
        "loggos.expose",
        Kind::Word(&["flushed", "appended"]),
        "flushed",
        &[("loggos.expose", 1)],
        "What consumers see and producers wait for: flushed records, or appended ones as Kafka has it.",
    ),
    key(
        "max.compaction.lag.ms",
        Kind::Long(1),
        "9223372036854775807",
        &[("log.cleaner.max.compaction.lag.ms", 1)],
        "Kept and reported until compaction exists.",
    ),
    key(
        "max.message.bytes",
        Kind::Int(0),
        "1048588",
        &[("message.max.bytes", 1)],
        "The largest batch, in bytes.",
    ),
    key(
        "message.timestamp.after.max.ms",
        Kind::Long(0),
        "3600000",
        &[("log.message.timestamp.after.max.ms", 1)],
        "How far in the future a record's time may lie.",
    ),
    key(
        "message.timestamp.before.max.ms",
        Kind::Long(0),
        "9223372036854775807",
        &[("log.message.timestamp.before.max.ms", 1)],
        "How far in the past a record's time may lie.",
    ),
    key(
        "message.timestamp.type",
        Kind::Word(&["CreateTime", "LogAppendTime"]),
        "CreateTime",
        &[("log.message.timestamp.type", 1)],
        "Whose clock gives records their time.",
    ),
    key(
        "min.cleanable.dirty.ratio",
        Kind::Double,
        "0.5",
        &[("log.cleaner.min.cleanable.ratio", 1)],
        "Kept and reported until compaction exists.",
    ),
    key(
        "min.compaction.lag.ms",
        Kind::Long(0),
        "0",
        &[("log.cleaner.min.compaction.lag.ms", 1)],
        "Kept and reported until compaction exists.",
    ),
    key(
        "min.insync.replicas",
        Kind::Int(1),
        "1",
        &[("min.insync.replicas", 1)],
        "Replicas that must be in sync for acks=all to be taken.",
    ),
    key(
        "preallocate",
        Kind::Boolean,
        "false",
        &[("log.preallocate", 1)],
        "Kept and reported; space is reserved as segments grow.",
    ),
    key("remote.storage.enable", Kind::Word(&["false"]), "false", &[], "There is one tier."),
    key(
        "retention.bytes",
        Kind::Long(-1),
        "-1",
        &[("log.retention.bytes", 1)],
        "Bytes per partition beyond which old segments go; -1 is no bound.",
    ),
    key(
        "retention.ms",
        Kind::Long(-1),
        "604800000",
        &[("log.retention.ms", 1), ("log.retention.minutes", MINUTE), ("log.retention.hours", HOUR)],
        "How long records are kept; -1 is for ever.",
    ),
    key(
        "segment.bytes",
        Kind::Int(14),
        "1073741824",
        &[("log.segment.bytes", 1)],
        "The largest segment file.",
    ),
    key(
        "segment.index.bytes",
        Kind::Int(4),
        "10485760",
        &[("log.index.size.max.bytes", 1)],
        "Kept and reported; an index is as large as its segment needs.",
    ),
    key(
        "segment.jitter.ms",
        Kind::Long(0),
        "0",
        &[("log.roll.jitter.ms", 1), ("log.roll.jitter.hours", HOUR)],
        "Kept and reported.",
    ),
    key(
        "segment.ms",
        Kind::Long(1),
        "604800000",
        &[("log.roll.ms", 1), ("log.roll.hours", HOUR)],
        "How old a segment's first record may get before a new segment begins.",
    ),
    key(
        "unclean.leader.election.enable",
        Kind::Boolean,
        "false",
        &[("unclean.leader.election.enable", 1)],
        "Whether a replica that isn't in sync may lead when no other is left, at the price of records.",
    ),
];

/// Names that Kafka 4 no longer has and old tools still send: taken and forgotten.
pub const FORGOTTEN: &[&str] =
    &["message.format.version", "message.downconversion.enable", "message.timestamp.difference.max.ms"];

/// What a broker can be given besides the topics' defaults.
pub const BROKER_KEYS: &[Key] = &[
    key(
        "auto.create.topics.enable",
        Kind::Boolean,
        "true",
        &[],
        "Whether asking for an unknown topic's metadata makes it.",
    ),
    key(
        "auto.leader.rebalance.enable",
        Kind::Boolean,
        "true",
        &[],
        "Whether preferred replicas get their partitions back by themselves.",
    ),
    key("connections.max.idle.ms", Kind::Long(1), "600000", &[], "How long a silent connection is kept."),
    key("default.replication.factor", Kind::Int(1), "1", &[], "Replicas of a topic whose creator says -1."),
    key("delete.topic.enable", Kind::Boolean, "true", &[], "Whether topics can be deleted."),
    key("fetch.max.bytes", Kind::Int(1024), "57671680", &[], "The most that one fetch gives."),
    key(
        "follower.replication.throttled.rate",
        Kind::Long(0),
        "9223372036854775807",
        &[],
        "Bytes a second at which this broker copies the replicas that their topics say are throttled.",
    ),
    key(
        "leader.imbalance.check.interval.seconds",
        Kind::Long(1),
        "300",
        &[],
        "How often it is looked whether preferred replicas lead.",
    ),
    key(
        "leader.imbalance.per.broker.percentage",
        Kind::Int(0),
        "10",
        &[],
        "Of a hundred partitions that a broker should lead, how many others may.",
    ),
    key(
        "leader.replication.throttled.rate",
        Kind::Long(0),
        "9223372036854775807",
        &[],
        "Bytes a second that this broker gives to followers of the replicas that their topics say are throttled.",
    ),
    key(
        "group.consumer.heartbeat.interval.ms",
        Kind::Int(1),
        "5000",
        &[],
        "How often members of consumer groups show life.",
    ),
    key(
        "group.consumer.max.size",
        Kind::Int(1),
        "2147483647",
        &[],
        "Members that a consumer group may have.",
    ),
    key(
        "group.consumer.migration.policy",
        Kind::Word(&["bidirectional", "upgrade", "downgrade", "disabled"]),
        "bidirectional",
        &[],
        "Which groups change their protocol while they are in use.",
    ),
    key(
        "group.consumer.session.timeout.ms",
        Kind::Int(1),
        "45000",
        &[],
        "How long a member of a consumer group may be silent.",
    ),
    key(
        "group.initial.rebalance.delay.ms",
        Kind::Int(0),
        "0",
        &[],
        "How long an empty group waits for more members.",
    ),
    key(
        "group.max.session.timeout.ms",
        Kind::Int(1),
        "1800000",
        &[],
        "The longest silence that a member may ask for.",
    ),
    key("group.max.size", Kind::Int(1), "2147483647", &[], "Members that a group may have."),
    key(
        "group.min.session.timeout.ms",
        Kind::Int(1),
        "6000",
        &[],
        "The shortest silence that a member may ask for.",
    ),
    key("log.flush.interval.messages", Kind::Long(1), "1", &[], "flush.messages of topics that don't say."),
    key(
        "log.flush.interval.ms",
        Kind::Long(0),
        "9223372036854775807",
        &[],
        "flush.ms of topics that don't say.",
    ),
    key("log.retention.bytes", Kind::Long(-1), "-1", &[], "retention.bytes of topics that don't say."),
    key(
        "log.retention.check.interval.ms",
        Kind::Long(1),
        "300000",
        &[],
        "How often retention is looked after.",
    ),
    key("log.retention.hours", Kind::Int(-1), "168", &[], "retention.ms of topics that don't say, in hours."),
    key("log.retention.minutes", Kind::Int(-1), "10080", &[], "The same in minutes, which wins."),
    key(
        "log.retention.ms",
        Kind::Long(-1),
        "604800000",
        &[],
        "The same in milliseconds, which wins over both.",
    ),
    key("log.roll.hours", Kind::Int(1), "168", &[], "segment.ms of topics that don't say, in hours."),
    key("log.roll.ms", Kind::Long(1), "604800000", &[], "The same in milliseconds, which wins."),
    key("log.segment.bytes", Kind::Int(14), "1073741824", &[], "segment.bytes of topics that don't say."),
    key(
        "log.cleanup.policy",
        Kind::List(&["delete", "compact"]),
        "delete",
        &[],
        "cleanup.policy of topics that don't say.",
    ),
    key(
        "log.index.interval.bytes",
        Kind::Int(0),
        "4096",
        &[],
        "index.interval.bytes of topics that don't say.",
    ),
    key(
        "log.message.timestamp.after.max.ms",
        Kind::Long(0),
        "3600000",
        &[],
        "message.timestamp.after.max.ms of topics that don't say.",
    ),
    key(
        "log.message.timestamp.before.max.ms",
        Kind::Long(0),
        "9223372036854775807",
        &[],
        "message.timestamp.before.max.ms of topics that don't say.",
    ),
    key(
        "log.message.timestamp.type",
        Kind::Word(&["CreateTime", "LogAppendTime"]),
        "CreateTime",
        &[],
        "message.timestamp.type of topics that don't say.",
    ),
    key(
        "loggos.checkpoint.interval.ms",
        Kind::Long(10),
        "10000",
        &[],
        "How often the logs' checkpoint is written.",
    ),
    key(
        "loggos.expose",
        Kind::Word(&["flushed", "appended"]),
        "flushed",
        &[],
        "loggos.expose of topics that don't say.",
    ),
    key(
        "loggos.group.offsets.max",
        Kind::Int(1),
        "200000",
        &[],
        "Committed offsets that all groups may have; each broker has its share.",
    ),
    key(
        "loggos.journal",
        Kind::Word(&["direct", "none"]),
        "direct",
        &[],
        "Whether appends go through the commit journal, or each flush syncs each segment.",
    ),
    key("loggos.journal.bytes", Kind::Long(8 << 20), "268435456", &[], "The size of the commit journal."),
    key(
        "loggos.scrub.bytes.per.second",
        Kind::Long(0),
        "4194304",
        &[],
        "How fast what is flushed is read again and checked for rot; 0 is not at all.",
    ),
    key("max.connections", Kind::Int(1), "2147483647", &[], "Connections at one time."),
    key("message.max.bytes", Kind::Int(0), "1048588", &[], "max.message.bytes of topics that don't say."),
    key("min.insync.replicas", Kind::Int(1), "1", &[], "min.insync.replicas of topics that don't say."),
    key("num.partitions", Kind::Int(1), "1", &[], "Partitions of a topic whose creator says -1."),
    key(
        "offsets.retention.check.interval.ms",
        Kind::Long(1),
        "600000",
        &[],
        "How often expired offsets are looked for.",
    ),
    key(
        "offsets.retention.minutes",
        Kind::Int(1),
        "10080",
        &[],
        "How long offsets outlive their group's last member.",
    ),
    key("offset.metadata.max.bytes", Kind::Int(0), "4096", &[], "The longest note with a committed offset."),
    key(
        "producer.id.expiration.ms",
        Kind::Int(1),
        "86400000",
        &[],
        "How long a silent producer's sequence is remembered.",
    ),
    key(
        "replica.lag.time.max.ms",
        Kind::Long(1),
        "30000",
        &[],
        "How long a follower may lag and be in sync.",
    ),
    key("request.timeout.ms", Kind::Int(1), "30000", &[], "How long an administrator's request may take."),
    key("socket.request.max.bytes", Kind::Int(1), "104857600", &[], "The largest request."),
    key(
        "unclean.leader.election.enable",
        Kind::Boolean,
        "false",
        &[],
        "unclean.leader.election.enable of topics that don't say.",
    ),
];

/// The topic config of that name.
pub fn topic_key(name: &str) -> Option<&'static Key> {
    TOPIC_KEYS.iter().find(|key| key.name == name)
}

/// The broker config of that name.
pub fn broker_key(name: &str) -> Option<&'static Key> {
    BROKER_KEYS.iter().find(|key| key.name == name)
}

/// Says in a sentence what is wrong with a value, if anything is.
pub fn check(key: &Key, value: &str) -> Result<(), String> {
    let number = |least: i64, most: i64| match value.parse::<i64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(()),
        Ok(_) => Err(format!("{}={value} must be at least {least}", key.name)),
        Err(_) => Err(format!("{}={value} is not a whole number", key.name)),
    };
    match key.kind {
        Kind::Boolean if matches!(value, "true" | "false") => Ok(()),
        Kind::Boolean => Err(format!("{}={value} is neither true nor false", key.name)),
        Kind::Int(least) => number(least, i32::MAX.into()),
        Kind::Long(least) => number(least, i64::MAX),
        Kind::Double if value.parse::<f64>().is_ok_and(f64::is_finite) => Ok(()),
        Kind::Double => Err(format!("{}={value} is not a number", key.name)),
        Kind::Word(words) if !words.contains(&value) => {
            Err(format!("{}={value} is not one of {}", key.name, words.join(", ")))
        }
        Kind::List(words) => {
            let wrong =
                value.split(',').map(str::trim).find(|word| !word.is_empty() && !words.contains(word));
            match wrong {
                Some(word) if !words.is_empty() => {
                    Err(format!("{}: {word} is not one of {}", key.name, words.join(", ")))
                }
                _ => Ok(()),
            }
        }
        Kind::Text | Kind::Word(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_allowed_and_every_broker_name_is_a_name() {
        for key in TOPIC_KEYS.iter().chain(BROKER_KEYS) {
            assert_eq!(check(key, key.default), Ok(()), "{}", key.name);
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_the_name() {
        let wrong = |name, value| check(topic_key(name).expect("known"), value).expect_err("wrong");
        assert!(wrong("retention.ms", "soon").contains("retention.ms=soon"));
        assert!(wrong("retention.ms", "-2").contains("at least -1"));
        assert!(wrong("cleanup.policy", "delete,shred").contains("shred"));
        assert!(wrong("message.timestamp.type", "mine").contains("LogAppendTime"));
    }
}
