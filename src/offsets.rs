//! How far a stage has read its topics, as the marker in a bronze table's snapshot says it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::change::RawRecord;
use crate::fingerprint;

/// The marker's key in snapshot summaries and table properties.
pub const MARKER: &str = "icestream.offsets";

/// The key, in the same places, of the operator's count of how often the topic behind a table was made anew. Rows written
/// from then on carry it as `_epoch`. Not there: 0.
pub const EPOCH: &str = "icestream.epoch";

/// Per topic and partition, the next offset to read.
///
/// Its text form is JSON with sorted keys, so that equal offsets are equal texts:
/// `{"shop.public.orders":{"next":{"0":42,"1":7},"last":{"0":[41,1767225600000,"72d14ae7c77fe736"]}}}`.
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
    /// The last record before `next`, by which a topic made anew under the old name is told from the old one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub last: BTreeMap<i32, RecordMark>,
    /// Where the epochs began that were raised, the oldest first. Older markers do not say it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub began: BTreeMap<i32, Vec<Beginning>>,
    /// Offsets that somebody moved the marker past, which nobody has read: `[epoch, first, behind the last]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub passed: BTreeMap<i32, Vec<(i32, i64, i64)>>,
}

/// Where in a partition an epoch began. Its text form is `[epoch, at, ended, is_same_topic]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(i32, i64, i64, bool)", from = "(i32, i64, i64, bool)")]
pub struct Beginning {
    pub epoch: i32,
    /// The first offset that is read in it.
    pub at: i64,
    /// Behind the last offset that is left of the epoch before.
    pub ended: i64,
    /// Whether the offsets of both are those of one topic; else the topic was made anew in between.
    pub is_same_topic: bool,
}

/// By what a record is known again. Its text form is `[offset, milliseconds since 1970 or null, "hash"]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(i64, Option<i64>, String)", try_from = "(i64, Option<i64>, String)")]
pub struct RecordMark {
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    /// Of the key and the payload.
    pub hash: u64,
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

    /// By what the last record before [`Offsets::next`] is known again, if that was written down.
    pub fn last(&self, topic: &str, partition: i32) -> Option<RecordMark> {
        self.topics.get(topic)?.last.get(&partition).copied()
    }

    /// Moves a partition to an offset, whatever was read before it.
    pub fn set(&mut self, topic: &str, partition: i32, next: i64) {
        let offsets = self.topics.entry(topic.to_string()).or_default();
        offsets.next.insert(partition, next);
        offsets.last.remove(&partition);
        // An epoch that reads what is before its beginning began there.
        if let Some(began) = offsets.began.get_mut(&partition).and_then(|began| began.last_mut()) {
            began.at = began.at.min(next);
        }
    }

    /// Moves a partition within an epoch, and writes down what nobody has read thereby. What it goes back to will be read.
    pub fn relocate(&mut self, topic: &str, partition: i32, epoch: i32, to: i64) {
        let from = self.next(topic, partition).unwrap_or(0);
        self.set(topic, partition, to);
        let offsets = self.topics.entry(topic.to_string()).or_default();
        let passed = offsets.passed.entry(partition).or_default();
        passed.retain_mut(|(of, first, end)| {
            if *of == epoch {
                *end = (*end).min(to);
            }
            first < end
        });
        passed.extend((from < to).then_some((epoch, from, to)));
        offsets.passed.retain(|_, passed| !passed.is_empty());
    }

    /// What of a partition an epoch has not read, although its marker is past it.
    pub fn passed(&self, topic: &str, partition: i32, epoch: i32) -> impl Iterator<Item = OffsetRange> + use<'_> {
        let passed = self.topics.get(topic).and_then(|offsets| offsets.passed.get(&partition));
        let of_epoch = passed.into_iter().flatten().filter(move |(of, ..)| *of == epoch);
        of_epoch.map(|(_, from, next)| OffsetRange { from: *from, next: *next })
    }

    /// Writes down where in a partition an epoch begins. Moving it there is another matter.
    pub fn begin(&mut self, topic: &str, partition: i32, beginning: Beginning) {
        self.topics.entry(topic.to_string()).or_default().began.entry(partition).or_default().push(beginning);
    }

    /// Where in a partition an epoch began, if that was written down.
    pub fn began(&self, topic: &str, partition: i32, epoch: i32) -> Option<Beginning> {
        let began = self.topics.get(topic)?.began.get(&partition)?;
        began.iter().rfind(|beginning| beginning.epoch == epoch).copied()
    }

    /// Moves a partition on past what was read. `last` is the last record of that; none, where offsets without records
    /// were passed.
    pub fn advance(&mut self, topic: &str, partition: i32, next: i64, last: Option<RecordMark>) {
        let offsets = self.topics.entry(topic.to_string()).or_default();
        offsets.next.insert(partition, next);
        if let Some(last) = last {
            offsets.last.insert(partition, last);
        }
    }

    /// Goes back to a record that was read, by which the log is to be known again. `false` when it stood there already,
    /// or is none of those before [`Offsets::next`].
    pub fn recall(&mut self, topic: &str, partition: i32, last: RecordMark) -> bool {
        let Some(offsets) = self.topics.get_mut(topic) else { return false };
        let is_read = offsets.next.get(&partition).is_some_and(|next| last.offset < *next);
        is_read && offsets.last.insert(partition, last) != Some(last)
    }

    /// Forgets which topic it was that these offsets are of, as when another took its name.
    pub fn forget_id(&mut self, topic: &str) {
        if let Some(offsets) = self.topics.get_mut(topic) {
            offsets.id = None;
        }
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

impl RecordMark {
    pub fn of(record: &RawRecord) -> Self {
        // A key that is missing is not one of no bytes, and a byte that moves from one to the other shows.
        let part = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(-1, |bytes| bytes.len() as i64).to_be_bytes();
        let bytes = |bytes: &'_ Option<bytes::Bytes>| bytes.clone().unwrap_or_default();
        let (key, payload) = (bytes(&record.key), bytes(&record.payload));
        let parts: [&[u8]; 4] = [&part(&record.key), &key, &part(&record.payload), &payload];
        RecordMark { offset: record.offset, timestamp_ms: record.timestamp_ms, hash: fingerprint::hash(parts) }
    }
}

impl From<Beginning> for (i32, i64, i64, bool) {
    fn from(of: Beginning) -> Self {
        (of.epoch, of.at, of.ended, of.is_same_topic)
    }
}

impl From<(i32, i64, i64, bool)> for Beginning {
    fn from((epoch, at, ended, is_same_topic): (i32, i64, i64, bool)) -> Self {
        Beginning { epoch, at, ended, is_same_topic }
    }
}

impl From<RecordMark> for (i64, Option<i64>, String) {
    fn from(mark: RecordMark) -> Self {
        (mark.offset, mark.timestamp_ms, format!("{:016x}", mark.hash))
    }
}

impl TryFrom<(i64, Option<i64>, String)> for RecordMark {
    type Error = String;

    fn try_from((offset, timestamp_ms, hash): (i64, Option<i64>, String)) -> Result<Self, String> {
        let hash = u64::from_str_radix(&hash, 16).map_err(|_| format!("`{hash}` is not a hash"))?;
        Ok(RecordMark { offset, timestamp_ms, hash })
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

    fn record(offset: i64, key: Option<&'static str>, payload: Option<&'static str>) -> RawRecord {
        RawRecord {
            topic: "t".into(),
            partition: 0,
            offset,
            timestamp_ms: Some(1_767_225_600_000),
            key: key.map(Into::into),
            payload: payload.map(Into::into),
        }
    }

    #[test]
    fn the_last_record_stands_in_the_marker_until_the_partition_is_moved() {
        let mut offsets = Offsets::default();
        let mark = RecordMark::of(&record(41, Some("k"), Some("v")));
        offsets.advance("t", 0, 42, Some(mark));
        offsets.advance("t", 0, 44, None);
        let text = offsets.to_string();
        insta::assert_snapshot!(text, @r#"{"t":{"next":{"0":44},"last":{"0":[41,1767225600000,"20a5be645d9139c0"]}}}"#);
        assert_eq!(Offsets::parse(&text).unwrap().last("t", 0), Some(mark));
        let older = RecordMark { offset: 17, ..mark };
        for (topic, partition, of, expected) in [
            ("t", 0, mark, false),
            ("t", 0, older, true),
            ("t", 0, older, false),
            ("t", 1, older, false),
            ("u", 0, older, false),
        ] {
            assert_eq!(offsets.recall(topic, partition, of), expected, "{topic}/{partition} {of:?}");
        }
        assert!(!offsets.recall("t", 0, RecordMark { offset: 44, ..mark }), "it was not read yet");
        assert_eq!((offsets.next("t", 0), offsets.last("t", 0)), (Some(44), Some(older)));
        offsets.set("t", 0, 7);
        assert_eq!(offsets.to_string(), r#"{"t":{"next":{"0":7}}}"#);
        assert!(Offsets::parse(r#"{"t":{"next":{"0":7},"last":{"0":[6,null,"x"]}}}"#).is_err());
    }

    #[test]
    fn where_epochs_began_stands_in_the_marker() {
        let mut offsets = Offsets::parse(r#"{"t":{"next":{"0":9}}}"#).unwrap();
        assert_eq!(offsets.began("t", 0, 1), None);
        let beginning = |epoch, at, ended, is_same_topic| Beginning { epoch, at, ended, is_same_topic };
        offsets.begin("t", 0, beginning(1, 0, 9, false));
        offsets.set("t", 0, 0);
        offsets.advance("t", 0, 7, None);
        offsets.begin("t", 0, beginning(2, 4, 4, true));
        offsets.set("t", 0, 4);
        let text = offsets.to_string();
        assert_eq!(text, r#"{"t":{"next":{"0":4},"began":{"0":[[1,0,9,false],[2,4,4,true]]}}}"#);
        assert_eq!(Offsets::parse(&text).unwrap(), offsets);
        // Moved on it began where it did; moved back before that, it begins there.
        for (to, at) in [(6, 4), (3, 3)] {
            offsets.set("t", 0, to);
            assert_eq!(offsets.began("t", 0, 2), Some(beginning(2, at, 4, true)), "{to}");
        }
        assert_eq!(offsets.began("t", 0, 1), Some(beginning(1, 0, 9, false)));
        assert_eq!((offsets.began("t", 0, 3), offsets.began("t", 1, 2), offsets.began("u", 0, 2)), (None, None, None));
    }

    #[test]
    fn what_was_passed_over_stands_in_the_marker_until_it_is_read() {
        let mut offsets = Offsets::parse(r#"{"t":{"next":{"0":9}}}"#).unwrap();
        let check = |offsets: &Offsets, epoch, expected: &[(i64, i64)]| {
            let offsets = Offsets::parse(&offsets.to_string()).unwrap();
            let passed: Vec<_> = offsets.passed("t", 0, epoch).map(|range| (range.from, range.next)).collect();
            assert_eq!(passed, expected, "{offsets}");
        };
        offsets.relocate("t", 0, 0, 20);
        offsets.advance("t", 0, 25, None);
        offsets.relocate("t", 0, 0, 30);
        check(&offsets, 0, &[(9, 20), (25, 30)]);
        offsets.relocate("t", 0, 0, 15);
        check(&offsets, 0, &[(9, 15)]);
        offsets.relocate("t", 0, 1, 12);
        check(&offsets, 0, &[(9, 15)]);
        check(&offsets, 1, &[]);
        offsets.relocate("t", 0, 0, 9);
        assert_eq!(offsets.to_string(), r#"{"t":{"next":{"0":9}}}"#);
        let mut none = Offsets::default();
        none.relocate("t", 0, 0, 7);
        insta::assert_snapshot!(none, @r#"{"t":{"next":{"0":7},"passed":{"0":[[0,0,7]]}}}"#);
    }

    #[test]
    fn every_byte_of_a_record_counts() {
        let of = |key, payload| RecordMark::of(&record(0, key, payload)).hash;
        let all = [
            of(None, None),
            of(Some(""), None),
            of(None, Some("")),
            of(Some(""), Some("")),
            of(Some("a"), Some("b")),
            of(Some("ab"), Some("")),
            of(Some("\0"), Some("")),
        ];
        assert_eq!(std::collections::BTreeSet::from(all).len(), all.len());
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
