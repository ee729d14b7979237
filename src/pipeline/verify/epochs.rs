//! Which epochs' rows are of the records that a topic has now, and which offsets each of them should have.
//!
//! An epoch ends where the next one is raised. While the topic is still the same one, the rows of both are of its records:
//! an offset that both read has a row in each. Of a topic that was made anew the records of before are nowhere any more,
//! so that nothing is said of the rows that were made of them but how many they are.

use std::collections::BTreeMap;

use super::bronze::Held;
use crate::backfilled::{Backfilled, RangeSet};
use crate::bronze;
use crate::error::Result;
use crate::offsets::{Beginning, OffsetRange, Offsets, TopicPartition};
use crate::table::Table;

/// How a table's topics were read, epoch by epoch.
pub(super) struct Epochs {
    pub(super) now: i32,
    pub(super) offsets: Offsets,
    backfilled: Backfilled,
}

/// Which offsets of a partition an epoch should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) epoch: i32,
    /// Ingestion's; empty where it read nothing.
    pub(super) read: OffsetRange,
    /// What of that somebody moved the marker past.
    pub(super) passed: RangeSet,
    pub(super) backfilled: RangeSet,
}

/// Why rows of earlier epochs are not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Apart {
    /// The topic was made anew when this epoch began.
    MadeAnew { epoch: i32 },
    /// It is not known where this epoch began.
    Unsaid { epoch: i32 },
}

impl Epochs {
    /// As of the head the table was loaded at, with the marker it has there.
    pub(super) fn of(table: &Table, offsets: Offsets) -> Result<Self> {
        let failed = |source| bronze::Error::Backfilled { table: table.name().clone(), source };
        Ok(Epochs { now: bronze::epoch(table)?, offsets, backfilled: Backfilled::of(table).map_err(failed)? })
    }

    /// The partitions that this epoch read something of, or got something of by a backfill.
    pub(super) fn partitions(&self) -> Vec<TopicPartition> {
        let read = self.offsets.topics();
        let read = read.flat_map(|(topic, of)| of.next.keys().map(move |part| TopicPartition::new(topic, *part)));
        let mut all: Vec<TopicPartition> = read.chain(self.backfilled.partitions(self.now).map(|(at, _)| at)).collect();
        all.sort();
        all.dedup();
        all
    }

    /// The epochs whose rows are of the topic that there is, the present one first, and why there are no more of them.
    pub(super) fn spans(&self, at: &TopicPartition) -> (Vec<Span>, Option<Apart>) {
        let mut spans = Vec::new();
        let (mut epoch, mut next) = (self.now, self.offsets.next(&at.topic, at.partition).unwrap_or(0));
        loop {
            let began = self.offsets.began(&at.topic, at.partition, epoch);
            let from = began.map_or(0, |began| began.at);
            let backfilled = self.backfilled.ranges(epoch, &at.topic, at.partition).cloned().unwrap_or_default();
            let mut passed = RangeSet::default();
            self.offsets.passed(&at.topic, at.partition, epoch).for_each(|range| passed.insert(range));
            spans.push(Span { epoch, read: OffsetRange { from, next: next.max(from) }, passed, backfilled });
            match began {
                Some(Beginning { ended, is_same_topic: true, .. }) => (epoch, next) = (epoch - 1, ended),
                Some(_) => return (spans, Some(Apart::MadeAnew { epoch })),
                None if epoch > 0 => return (spans, Some(Apart::Unsaid { epoch })),
                None => return (spans, None),
            }
        }
    }

    /// Behind the last offset that an epoch read of a partition, and the first one, where they are known.
    pub(super) fn limits(&self, at: &TopicPartition, epoch: i32) -> (Option<i64>, Option<i64>) {
        let from = self.offsets.began(&at.topic, at.partition, epoch).map(|began| began.at);
        let next = match epoch == self.now {
            true => Some(self.offsets.next(&at.topic, at.partition).unwrap_or(0)),
            false => self.offsets.began(&at.topic, at.partition, epoch + 1).map(|began| began.ended),
        };
        (from, next)
    }

    pub(super) fn is_backfilled(&self, at: &TopicPartition, epoch: i32, offset: i64) -> bool {
        self.backfilled.ranges(epoch, &at.topic, at.partition).is_some_and(|ranges| ranges.contains(offset))
    }
}

impl Span {
    pub(super) fn has(&self, offset: i64) -> bool {
        let is_read = (self.read.from..self.read.next).contains(&offset) && !self.passed.contains(offset);
        is_read || self.backfilled.contains(offset)
    }
}

/// Says of which rows there is nothing to compare them with.
pub(super) fn apart(epochs: &Epochs, held: &Held) -> Vec<String> {
    let mut counts: BTreeMap<(&str, Apart), (u64, i32)> = BTreeMap::new();
    for (epoch, partitions) in held.range(..epochs.now) {
        for (at, offsets) in partitions {
            let (spans, why) = epochs.spans(at);
            let Some(why) = why.filter(|_| spans.iter().all(|span| span.epoch != *epoch)) else { continue };
            // One that says where an epoch ended stands for no record.
            let rows = offsets.range_cardinality(..=i64::MAX as u64);
            let (count, last) = counts.entry((&at.topic, why)).or_insert((0, *epoch));
            (*count, *last) = (*count + rows, (*last).max(*epoch));
        }
    }
    let note = |((topic, why), (rows, last)): ((&str, Apart), (u64, i32))| {
        let epochs = match last {
            0 => "of epoch 0".to_string(),
            last => format!("of epochs up to {last}"),
        };
        match why {
            Apart::MadeAnew { epoch } => format!(
                "{rows} rows {epochs} are not compared: `{topic}` was made anew when epoch {epoch} began, and its records of \
                 before are gone"
            ),
            Apart::Unsaid { epoch } => format!(
                "{rows} rows {epochs} are not compared: the marker does not say where in `{topic}` epoch {epoch} began"
            ),
        }
    };
    counts.into_iter().filter(|(_, (rows, _))| *rows > 0).map(note).collect()
}

#[cfg(test)]
mod tests {
    use roaring::RoaringTreemap;

    use super::*;

    fn epochs(now: i32, offsets: &str, backfilled: &str) -> Epochs {
        let (offsets, backfilled) = (Offsets::parse(offsets).unwrap(), Backfilled::parse(backfilled).unwrap());
        Epochs { now, offsets, backfilled }
    }

    #[test]
    fn each_epoch_of_the_topic_there_is_should_have_what_it_read() {
        let check = |epochs: &Epochs, spans: &[(i32, i64, i64)], why: Option<Apart>| {
            let (found, apart) = epochs.spans(&TopicPartition::new("t", 0));
            let found: Vec<_> = found.iter().map(|span| (span.epoch, span.read.from, span.read.next)).collect();
            assert_eq!((found.as_slice(), apart), (spans, why));
        };
        check(&epochs(0, r#"{"t":{"next":{"0":9}}}"#, "{}"), &[(0, 0, 9)], None);
        check(&epochs(0, "{}", r#"{"0":{"t":{"0":[[2,5]]}}}"#), &[(0, 0, 0)], None);
        // Restored at 4, and read anew from 2 on.
        let same = r#"{"t":{"next":{"0":9},"began":{"0":[[1,4,4,true],[2,2,7,true]]}}}"#;
        check(&epochs(2, same, "{}"), &[(2, 2, 9), (1, 4, 7), (0, 0, 4)], None);
        // An epoch of which nothing is left.
        let none = r#"{"t":{"next":{"0":9},"began":{"0":[[1,4,4,true],[2,2,2,true]]}}}"#;
        check(&epochs(2, none, "{}"), &[(2, 2, 9), (1, 4, 4), (0, 0, 4)], None);
        let anew = r#"{"t":{"next":{"0":9},"began":{"0":[[1,0,50,false],[2,5,5,true]]}}}"#;
        check(&epochs(2, anew, "{}"), &[(2, 5, 9), (1, 0, 5)], Some(Apart::MadeAnew { epoch: 1 }));
        // By a marker that is older than that it says where epochs begin.
        check(&epochs(1, r#"{"t":{"next":{"0":9}}}"#, "{}"), &[(1, 0, 9)], Some(Apart::Unsaid { epoch: 1 }));
        let later = r#"{"t":{"next":{"0":9},"began":{"0":[[2,5,5,true]]}}}"#;
        check(&epochs(2, later, "{}"), &[(2, 5, 9), (1, 0, 5)], Some(Apart::Unsaid { epoch: 1 }));
    }

    #[test]
    fn what_a_backfill_has_done_with_is_of_its_epoch() {
        let offsets = r#"{"t":{"next":{"0":9},"began":{"0":[[1,4,4,true]]}}}"#;
        let epochs = epochs(1, offsets, r#"{"0":{"t":{"0":[[6,8]]}},"1":{"t":{"0":[[1,2]],"1":[[0,3]]}}}"#);
        let (spans, _) = epochs.spans(&TopicPartition::new("t", 0));
        let having = |offset| spans.iter().filter(|span| span.has(offset)).map(|span| span.epoch).collect::<Vec<_>>();
        let all: Vec<Vec<i32>> = (0..10).map(having).collect();
        let expected: [&[i32]; 10] = [&[0], &[1, 0], &[0], &[0], &[1], &[1], &[1, 0], &[1, 0], &[1], &[]];
        assert_eq!(all, expected);
        let partitions = epochs.partitions();
        assert_eq!(partitions, [TopicPartition::new("t", 0), TopicPartition::new("t", 1)]);
    }

    #[test]
    fn what_was_passed_over_has_rows_where_a_backfill_brought_them() {
        let offsets = r#"{"t":{"next":{"0":9},"began":{"0":[[1,2,6,true]]},"passed":{"0":[[0,1,4],[1,5,7]]}}}"#;
        let epochs = epochs(1, offsets, r#"{"1":{"t":{"0":[[6,7]]}}}"#);
        let (spans, _) = epochs.spans(&TopicPartition::new("t", 0));
        let having = |offset| spans.iter().filter(|span| span.has(offset)).map(|span| span.epoch).collect::<Vec<_>>();
        let expected: [&[i32]; 10] = [&[0], &[], &[1], &[1], &[1, 0], &[0], &[1], &[1], &[1], &[]];
        assert_eq!((0..10).map(having).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn rows_that_nothing_is_left_to_compare_with_are_counted() {
        let check = |offsets: &str, told: &[&str]| {
            let rows = |offsets: &[u64]| {
                let offsets: RoaringTreemap = offsets.iter().copied().collect();
                BTreeMap::from([(TopicPartition::new("t", 0), offsets)])
            };
            // The last one of epoch 1 says where it ended.
            let held = Held::from([(0, rows(&[0, 1, 2])), (1, rows(&[0, 1, u64::MAX])), (2, rows(&[5]))]);
            assert_eq!(apart(&epochs(2, offsets, "{}"), &held), told);
        };
        check(r#"{"t":{"next":{"0":9},"began":{"0":[[1,3,3,true],[2,2,2,true]]}}}"#, &[]);
        check(
            r#"{"t":{"next":{"0":9},"began":{"0":[[1,0,3,false],[2,2,2,true]]}}}"#,
            &[
                "3 rows of epoch 0 are not compared: `t` was made anew when epoch 1 began, and its records of before are gone",
            ],
        );
        check(
            r#"{"t":{"next":{"0":9},"began":{"0":[[1,0,3,true],[2,0,2,false]]}}}"#,
            &[
                "5 rows of epochs up to 1 are not compared: `t` was made anew when epoch 2 began, and its records of before \
               are gone",
            ],
        );
        check(
            r#"{"t":{"next":{"0":9}}}"#,
            &["5 rows of epochs up to 1 are not compared: the marker does not say where in `t` epoch 2 began"],
        );
    }
}
