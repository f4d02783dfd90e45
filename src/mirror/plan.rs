//! What is mirrored where (P): which topics, under which name, whose share a partition is, what a gap in the source
//! asks for, whether a topic has come from where it would go. Called by `source` and `groups`.

use loggos_protocol::ids::{Offset, PartitionId, TopicName};
use regex::Regex;
use serde::{Deserialize, Serialize};

/// The longest gap that is filled, record by record.
pub const GAP_LIMIT: i64 = 10_000_000;
/// The header of a record that stands for an offset that the source has no record at.
pub const GAP_HEADER: &str = "loggos.mirror.gap";
/// The group under which a cluster keeps where its mirrored topics have come from.
pub const ORIGINS_GROUP: &str = "__loggos_mirror";

/// Which topics, and what they are called there.
#[derive(Clone, Debug)]
pub struct Selection {
    topics: Regex,
    exclude: Option<Regex>,
    prefix: String,
}

impl Selection {
    /// Patterns match whole names; the error is a sentence.
    pub fn new(topics: &str, exclude: Option<&str>, prefix: &str) -> Result<Self, String> {
        if !prefix.is_empty() && !TopicName::is_valid(prefix) {
            return Err(format!("prefix: '{prefix}' can't begin a topic's name"));
        }
        let exclude = exclude.map(|pattern| whole("exclude", pattern)).transpose()?;
        Ok(Self { topics: whole("topics", topics)?, exclude, prefix: prefix.to_owned() })
    }

    /// The name that a topic gets, if it is asked for. Topics that clusters keep for themselves never are.
    pub fn target(&self, topic: &TopicName) -> Option<TopicName> {
        let name = topic.as_str();
        let asked = self.topics.is_match(name)
            && !self.exclude.as_ref().is_some_and(|exclude| exclude.is_match(name))
            && !name.starts_with("__");
        let target = format!("{}{name}", self.prefix);
        (asked && TopicName::is_valid(&target)).then(|| TopicName::new(target))
    }
}

/// A pattern that matches names as a whole; the error is a sentence.
pub fn whole(option: &str, pattern: &str) -> Result<Regex, String> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| format!("{option}: {error}"))
}

/// One of several mirrors that divide the partitions among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which of them, from 1.
    pub mine: u32,
    /// How many there are.
    pub of: u32,
}

impl Share {
    /// Reads `2/3`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(mine, of)| Some((mine.parse().ok()?, of.parse().ok()?)));
        match parts {
            Some((mine, of)) if mine >= 1 && mine <= of => Ok(Self { mine, of }),
            _ => Err(format!("'{text}' is no share: it must be like 2/3, the second of three")),
        }
    }

    /// Whether a partition is this one's to mirror.
    pub fn has(self, topic: &TopicName, partition: PartitionId) -> bool {
        let sum =
            topic.as_str().bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        sum.wrapping_add(partition.raw().unsigned_abs()) % self.of == self.mine - 1
    }
}

/// What must happen before the record at `next` of the source can be written at the target's `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It fits.
    Write,
    /// So many offsets have no record: compaction, or a transaction's marker.
    Fill(i64),
    /// Too many of them.
    TooFar(i64),
    /// The target is ahead already: the record is there, or the target has another writer.
    Behind,
}

/// Compares where the target ends with what comes next.
pub fn step(end: Offset, next: Offset) -> Step {
    match next.raw() - end.raw() {
        0 => Step::Write,
        gap if gap < 0 => Step::Behind,
        gap if gap <= GAP_LIMIT => Step::Fill(gap),
        gap => Step::TooFar(gap),
    }
}

/// Where a mirrored topic has come from: kept as the metadata of an offset of [`ORIGINS_GROUP`] in the target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The clusters that it has passed, the first one first.
    pub clusters: Vec<String>,
}

impl Origin {
    /// What a commit's metadata says.
    pub fn parse(metadata: &str) -> Option<Self> {
        serde_json::from_str(metadata).ok()
    }

    /// After one more cluster.
    pub fn through(&self, cluster: &str) -> Self {
        let mut clusters = self.clusters.clone();
        clusters.push(cluster.to_owned());
        Self { clusters }
    }

    /// Whether mirroring it to `cluster` would bring it back to where it was.
    pub fn has_passed(&self, cluster: &str) -> bool {
        self.clusters.iter().any(|passed| passed == cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_whole_names_and_prefixes_tell_sources_apart() {
        let selection = Selection::new("orders|pay.*", Some("pay-test"), "eu.").expect("patterns");
        let target = |name: &str| selection.target(&TopicName::from(name)).map(|name| name.to_string());
        assert_eq!(target("orders").as_deref(), Some("eu.orders"));
        assert_eq!(target("payments").as_deref(), Some("eu.payments"));
        assert_eq!(target("orders2"), None);
        assert_eq!(target("pay-test"), None);
        let all = Selection::new(".*", None, "").expect("a pattern");
        assert_eq!(all.target(&TopicName::from("__consumer_offsets")), None);
        assert!(Selection::new("(", None, "").is_err());
    }

    #[test]
    fn a_topic_never_goes_back_to_a_cluster_that_it_has_passed() {
        let at_b = Origin::default().through("a");
        let at_c = at_b.through("b");
        assert!(at_c.has_passed("a") && at_c.has_passed("b") && !at_c.has_passed("c"));
        let text = serde_json::to_string(&at_c).expect("JSON");
        assert_eq!(Origin::parse(&text), Some(at_c));
        assert_eq!(Origin::parse("somebody's words"), None);
    }

    #[test]
    fn offsets_are_compared_before_anything_is_written() {
        let at = |end, next| step(Offset::new(end), Offset::new(next));
        assert_eq!(at(5, 5), Step::Write);
        assert_eq!(at(5, 8), Step::Fill(3));
        assert_eq!(at(8, 5), Step::Behind);
        assert_eq!(at(0, GAP_LIMIT + 1), Step::TooFar(GAP_LIMIT + 1));
    }

    proptest! {
        #[test]
        fn every_partition_is_exactly_one_mirror_s(name in "[a-z]{1,8}", partition in 0i32..100, of in 1u32..8) {
            let topic = TopicName::from(name.as_str());
            let shares = (1..=of).map(|mine| Share { mine, of });
            prop_assert_eq!(shares.filter(|share| share.has(&topic, PartitionId::new(partition))).count(), 1);
        }
    }
}
