//! Which partition a record goes to, when its sender doesn't say (P).
//!
//! With a key: Java's murmur2 of it, so that all clients agree. Without: one partition at a time, the next one
//! after a batch's worth of bytes (KIP-794), which makes full batches. Called by the producer.

use std::collections::BTreeMap;

use loggos_protocol::ids::{PartitionId, TopicName};

const SEED: u32 = 0x9747_b28c;
const MIX: u32 = 0x5bd1_e995;

/// Murmur2 as `org.apache.kafka.common.utils.Utils.murmur2` computes it.
pub fn murmur2(key: &[u8]) -> u32 {
    let mut hash = SEED ^ (key.len() as u32);
    let (words, tail) = key.as_chunks::<4>();
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(MIX);
        word ^= word >> 24;
        hash = hash.wrapping_mul(MIX) ^ word.wrapping_mul(MIX);
    }
    for (place, byte) in tail.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * place);
    }
    if !tail.is_empty() {
        hash = hash.wrapping_mul(MIX);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MIX);
    hash ^ (hash >> 15)
}

/// The partition of a key among `count`, as Java's default partitioner chooses it.
///
/// # Panics
/// When `count` is not positive.
pub fn of_key(key: &[u8], count: i32) -> PartitionId {
    PartitionId::new((murmur2(key) & 0x7fff_ffff) as i32 % count)
}

/// Remembers where records without a key go.
#[derive(Debug)]
pub struct Sticky {
    switch_after: usize,
    topics: BTreeMap<TopicName, Current>,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    partition: PartitionId,
    bytes: usize,
}

impl Sticky {
    /// Goes on to the next partition after `switch_after` bytes.
    pub const fn new(switch_after: usize) -> Self {
        Self { switch_after, topics: BTreeMap::new() }
    }

    /// A partition of `available` (ascending) for a record of `bytes`; `chance` decides where a topic begins.
    /// `None` when nothing is available.
    pub fn choose(
        &mut self,
        topic: &TopicName,
        available: &[PartitionId],
        bytes: usize,
        chance: usize,
    ) -> Option<PartitionId> {
        let first = *available.get(chance % available.len().max(1))?;
        let switch_after = self.switch_after;
        let current = match self.topics.get_mut(topic) {
            Some(current) => current,
            None => self.topics.entry(topic.clone()).or_insert(Current { partition: first, bytes: 0 }),
        };
        let stays = current.bytes < switch_after && available.binary_search(&current.partition).is_ok();
        if !stays {
            let next =
                available.iter().find(|&&partition| partition > current.partition).or(available.first())?;
            *current = Current { partition: *next, bytes: 0 };
        }
        current.bytes += bytes;
        Some(current.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_as_in_java() {
        // From UtilsTest.testMurmur2 of Kafka.
        let cases: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (key, expected) in cases {
            assert_eq!(murmur2(key.as_bytes()) as i32, expected, "{key}");
        }
    }

    #[test]
    fn keyless_records_go_round_in_lumps() {
        let mut sticky = Sticky::new(10);
        let topic = TopicName::from("t");
        let all: Vec<PartitionId> = (0..3).map(PartitionId::new).collect();
        let mut chosen = |available: &[PartitionId]| {
            sticky.choose(&topic, available, 5, 1).expect("something is available").raw()
        };
        let seen: Vec<i32> = (0..8).map(|_| chosen(&all)).collect();
        assert_eq!(seen, [1, 1, 2, 2, 0, 0, 1, 1]);
        assert_eq!(chosen(&all[..1]), 0, "a partition without a leader is left at once");
        assert_eq!(sticky.choose(&topic, &[], 5, 1), None);
    }
}
