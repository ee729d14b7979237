//! How far a stage has read its topics, as the marker in a bronze table's snapshot says it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The marker's key in snapshot summaries and table properties.
pub const MARKER: &str = "icestream.offsets";

/// Per topic and partition, the next offset to read.
///
/// Its text form is JSON with sorted keys, so that equal offsets are equal texts:
/// `{"shop.public.orders":{"id":"…","next":{"0":42,"1":7}}}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offsets {
    topics: BTreeMap<String, TopicOffsets>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicOffsets {
    /// Kafka's own id of the topic, where the broker told it: a topic made anew under the old name has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub next: BTreeMap<i32, i64>,
}

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

/// Per partition, the next offset to read.
pub type Positions = BTreeMap<TopicPartition, i64>;

/// A half-open range `from..next` of one partition's offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetRange {
    pub from: i64,
    pub next: i64,
}

/// How a range relates to what is already committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contiguity {
    /// The range starts where the marker stands.
    Follows,
    /// Another owner committed past the range's start: discard, and read on from the marker.
    Behind { marker: i64 },
    /// Offsets between the marker and the range are missing: stop.
    Gap { marker: i64 },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an offsets marker: {problem}")]
pub struct OffsetsError {
    text: String,
    problem: String,
}

impl Offsets {
    pub fn parse(text: &str) -> Result<Self, OffsetsError> {
        serde_json::from_str(text)
            .map_err(|error| OffsetsError { text: text.chars().take(200).collect(), problem: error.to_string() })
    }

    pub fn next(&self, topic: &str, partition: i32) -> Option<i64> {
        self.topics.get(topic)?.next.get(&partition).copied()
    }

    pub fn set(&mut self, topic: &str, partition: i32, next: i64) {
        self.topics.entry(topic.to_string()).or_default().next.insert(partition, next);
    }

    pub fn topics(&self) -> impl Iterator<Item = (&str, &TopicOffsets)> {
        self.topics.iter().map(|(topic, offsets)| (topic.as_str(), offsets))
    }

    pub fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Whether `range` can be committed on top of this marker. A partition not seen before takes any start.
    pub fn contiguity(&self, topic: &str, partition: i32, range: OffsetRange) -> Contiguity {
        match self.next(topic, partition) {
            None => Contiguity::Follows,
            Some(marker) if marker == range.from => Contiguity::Follows,
            Some(marker) if marker > range.from => Contiguity::Behind { marker },
            Some(marker) => Contiguity::Gap { marker },
        }
    }
}

impl TopicPartition {
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        TopicPartition { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

impl fmt::Display for Offsets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Maps of strings and integers always serialise.
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_reads_back_and_orders_its_keys() {
        let mut offsets = Offsets::default();
        offsets.set("shop.public.orders", 1, 7);
        offsets.set("shop.public.orders", 0, 42);
        let text = offsets.to_string();
        assert_eq!(text, r#"{"shop.public.orders":{"next":{"0":42,"1":7}}}"#);
        assert_eq!(Offsets::parse(&text).unwrap(), offsets);
        assert!(Offsets::parse("{").is_err());
    }

    #[test]
    fn a_range_follows_falls_behind_or_leaves_a_gap() {
        let mut offsets = Offsets::default();
        offsets.set("t", 0, 10);
        let range = |from| OffsetRange { from, next: from + 5 };
        assert_eq!(offsets.contiguity("t", 0, range(10)), Contiguity::Follows);
        assert_eq!(offsets.contiguity("t", 0, range(9)), Contiguity::Behind { marker: 10 });
        assert_eq!(offsets.contiguity("t", 0, range(11)), Contiguity::Gap { marker: 10 });
        assert_eq!(offsets.contiguity("t", 1, range(3)), Contiguity::Follows);
    }
}
