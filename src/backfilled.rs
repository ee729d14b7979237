//! Which offsets came into a bronze table by backfills, as the marker in its snapshots says it.
//!
//! Ingestion's marker says how far a topic was read from the front on. A backfill adds what lies anywhere else: before the
//! offset at which ingestion began, or of topics that nobody ingests yet. It never moves ingestion's marker; the offsets it
//! has done with stand here, in the same commit as their rows. Ingestion leaves them out when it comes to them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::offsets::{OffsetRange, TopicPartition};
use crate::table::Table;

/// The marker's key in snapshot summaries and table properties.
pub const MARKER: &str = "icestream.backfilled";

/// Offsets of one partition, as ranges that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<(i64, i64)>", from = "Vec<(i64, i64)>")]
pub struct RangeSet {
    /// Where each begins, and the first offset that is no longer in it.
    ranges: BTreeMap<i64, i64>,
}

/// Per epoch, topic and partition, the offsets that backfills have done with. Text that nobody of ours wrote is an error:
/// what was not known to be there would come twice.
///
/// Its text form is JSON with sorted keys: `{"0":{"shop.public.orders":{"0":[[0,4711],[5000,6000]]}}}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Backfilled {
    epochs: BTreeMap<i32, BTreeMap<String, BTreeMap<i32, RangeSet>>>,
}

impl RangeSet {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = OffsetRange> {
        self.ranges.iter().map(|(from, next)| OffsetRange { from: *from, next: *next })
    }

    /// How many offsets are in it.
    pub fn count(&self) -> i64 {
        self.iter().map(|range| range.next - range.from).sum()
    }

    pub fn contains(&self, offset: i64) -> bool {
        self.ranges.range(..=offset).next_back().is_some_and(|(_, next)| offset < *next)
    }

    pub fn insert(&mut self, range: OffsetRange) {
        let OffsetRange { mut from, mut next } = range;
        if next <= from {
            return;
        }
        // Those that begin no later than it ends may touch it; they do not overlap each other, so that the rest does not.
        while let Some((known_from, known_next)) = self.ranges.range(..=next).next_back().map(|(a, b)| (*a, *b)) {
            if known_next < from {
                break;
            }
            self.ranges.remove(&known_from);
            (from, next) = (from.min(known_from), next.max(known_next));
        }
        self.ranges.insert(from, next);
    }

    pub fn extend(&mut self, other: &RangeSet) {
        other.iter().for_each(|range| self.insert(range));
    }

    /// What of a range is in it.
    pub fn within(&self, range: OffsetRange) -> RangeSet {
        let before = self.ranges.range(..=range.from).next_back().map(|(from, _)| *from).unwrap_or(range.from);
        let touched = self.ranges.range(before.min(range.from)..range.next.max(before));
        let mut within = RangeSet::default();
        for (from, next) in touched {
            within.insert(OffsetRange { from: range.from.max(*from), next: range.next.min(*next) });
        }
        within
    }

    /// What of a range is not in it.
    pub fn missing(&self, range: OffsetRange) -> RangeSet {
        let (mut missing, mut from) = (RangeSet::default(), range.from);
        for held in self.within(range).iter() {
            missing.insert(OffsetRange { from, next: held.from });
            from = held.next;
        }
        missing.insert(OffsetRange { from, next: range.next });
        missing
    }

    /// Takes out everything from an offset on.
    pub fn cut(&mut self, from: i64) {
        let behind = self.ranges.split_off(&from);
        drop(behind);
        if let Some((_, next)) = self.ranges.iter_mut().next_back() {
            *next = (*next).min(from);
        }
    }
}

impl From<RangeSet> for Vec<(i64, i64)> {
    fn from(set: RangeSet) -> Self {
        set.ranges.into_iter().collect()
    }
}

impl From<Vec<(i64, i64)>> for RangeSet {
    fn from(ranges: Vec<(i64, i64)>) -> Self {
        let mut set = RangeSet::default();
        ranges.into_iter().for_each(|(from, next)| set.insert(OffsetRange { from, next }));
        set
    }
}

impl FromIterator<OffsetRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = OffsetRange>>(ranges: I) -> Self {
        let mut set = RangeSet::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a marker of backfills: {problem}")]
pub struct BackfilledError {
    text: String,
    problem: String,
}

impl Backfilled {
    pub fn parse(text: &str) -> Result<Self, BackfilledError> {
        serde_json::from_str(text)
            .map_err(|error| BackfilledError { text: text.chars().take(200).collect(), problem: error.to_string() })
    }

    /// As of the head the table was loaded at.
    pub fn of(table: &Table) -> Result<Self, BackfilledError> {
        table.marker(MARKER).map_or(Ok(Backfilled::default()), |text| Backfilled::parse(&text))
    }

    pub fn is_empty(&self) -> bool {
        self.epochs.is_empty()
    }

    pub fn ranges(&self, epoch: i32, topic: &str, partition: i32) -> Option<&RangeSet> {
        self.epochs.get(&epoch)?.get(topic)?.get(&partition)
    }

    /// The partitions of an epoch that have any.
    pub fn partitions(&self, epoch: i32) -> impl Iterator<Item = (TopicPartition, &RangeSet)> {
        let topics = self.epochs.get(&epoch).into_iter().flatten();
        topics.flat_map(|(topic, of)| of.iter().map(|(part, set)| (TopicPartition::new(topic.as_str(), *part), set)))
    }

    pub fn insert(&mut self, epoch: i32, at: &TopicPartition, ranges: &RangeSet) {
        if !ranges.is_empty() {
            let topics = self.epochs.entry(epoch).or_default();
            topics.entry(at.topic.to_string()).or_default().entry(at.partition).or_default().extend(ranges);
        }
    }

    /// Forgets that anything of a partition from an offset on was done with, as its rows are to be read again.
    pub fn cut(&mut self, epoch: i32, at: &TopicPartition, from: i64) {
        let Some(topics) = self.epochs.get_mut(&epoch) else { return };
        let Some(partitions) = topics.get_mut(&*at.topic) else { return };
        if let Some(ranges) = partitions.get_mut(&at.partition) {
            ranges.cut(from);
        }
        partitions.retain(|_, ranges| !ranges.is_empty());
        topics.retain(|_, partitions| !partitions.is_empty());
        self.epochs.retain(|_, topics| !topics.is_empty());
    }
}

impl fmt::Display for Backfilled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Maps of strings and numbers always serialise.
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(from: i64, next: i64) -> OffsetRange {
        OffsetRange { from, next }
    }

    #[test]
    fn the_marker_reads_back_and_a_rewind_cuts_it() {
        let mut backfilled = Backfilled::default();
        let (first, second) = (TopicPartition::new("t", 0), TopicPartition::new("t", 1));
        backfilled.insert(0, &first, &[range(5, 9), range(0, 4), range(4, 5)].into_iter().collect());
        backfilled.insert(0, &second, &[range(0, 2), range(7, 9)].into_iter().collect());
        backfilled.insert(1, &second, &RangeSet::default());
        let text = backfilled.to_string();
        assert_eq!(text, r#"{"0":{"t":{"0":[[0,9]],"1":[[0,2],[7,9]]}}}"#);
        assert_eq!(Backfilled::parse(&text).unwrap(), backfilled);
        backfilled.cut(0, &second, 8);
        backfilled.cut(0, &first, 0);
        backfilled.cut(1, &second, 0);
        assert_eq!(backfilled.to_string(), r#"{"0":{"t":{"1":[[0,2],[7,8]]}}}"#);
        backfilled.cut(0, &second, 0);
        assert!(backfilled.is_empty());
        insta::assert_snapshot!(Backfilled::parse("[1]").unwrap_err(), @"`[1]` is not a marker of backfills: invalid type: sequence, expected a map at line 1 column 0");
    }

    proptest! {
        #[test]
        fn ranges_are_the_offsets_that_were_put_in(
            ranges in prop::collection::vec((0..40i64, 0..12i64), 0..12),
            asked in (0..40i64, 0..20i64),
            cut in 0..50i64,
        ) {
            let mut set: RangeSet = ranges.iter().map(|(from, length)| range(*from, from + length)).collect();
            let mut offsets: BTreeSet<i64> = ranges.iter().flat_map(|(from, length)| *from..from + length).collect();
            let all = |set: &RangeSet| set.iter().flat_map(|of| of.from..of.next).collect::<BTreeSet<i64>>();
            prop_assert_eq!(&all(&set), &offsets);
            prop_assert_eq!(set.count() as usize, offsets.len());
            let ends: Vec<(i64, i64)> = set.clone().into();
            prop_assert!(ends.windows(2).all(|two| two[0].1 < two[1].0), "{:?}", ends);
            for offset in -1..60 {
                prop_assert_eq!(set.contains(offset), offsets.contains(&offset));
            }
            let asked = range(asked.0, asked.0 + asked.1);
            let (held, missing): (BTreeSet<i64>, BTreeSet<i64>) =
                (asked.from..asked.next).partition(|offset| offsets.contains(offset));
            prop_assert_eq!(all(&set.within(asked)), held);
            prop_assert_eq!(all(&set.missing(asked)), missing);
            set.cut(cut);
            offsets.retain(|offset| *offset < cut);
            prop_assert_eq!(all(&set), offsets);
        }
    }
}
