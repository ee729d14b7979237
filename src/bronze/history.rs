//! Adds rows of a history: offsets that lie anywhere but where ingestion reads on.
//!
//! **The offsets that were done with and their rows are one commit**, which succeeds only while nobody else has done with
//! any of them, nothing was taken out of the table, and ingestion has not begun with a partition that it had not begun
//! with. Ingestion's marker is looked at, and not touched.

use std::collections::BTreeMap;

use super::{BronzeCommit, BronzeTable, Outcome, Result};
use crate::amendment::{self, Amendments};
use crate::backfilled::{self, Backfilled, RangeSet};
use crate::change::ChangeCounts;
use crate::offsets::{self, OffsetRange, Offsets, TopicPartition};
use crate::table::{Broken, Premise};

/// What a table was when it was looked at which offsets of a history it holds.
#[derive(Debug, Clone, Default)]
pub struct Basis {
    /// Which life of its topics the history is of.
    pub epoch: i32,
    /// How often rows had been taken out of it.
    pub rewinds: u64,
    /// The partitions that ingestion had not begun with.
    pub not_begun: Vec<TopicPartition>,
}

impl BronzeTable {
    /// Commits what is staged, as rows of a history, with the offsets that are done with by it. Nothing is staged
    /// afterwards, whatever the outcome. [`Outcome::Behind`] means that somebody else had done with some of them, or that
    /// the table is not what it was: look again which of them it holds.
    pub async fn add_history(
        &mut self,
        basis: &Basis,
        ranges: &BTreeMap<TopicPartition, RangeSet>,
        counts: ChangeCounts,
    ) -> Result<Outcome> {
        let table = self.made().await?;
        let (epoch, rewinds, begun) = (basis.epoch, basis.rewinds, basis.not_begun.clone());
        let premise = Premise::new()
            .marker_holds(amendment::MARKER, move |found| {
                let of = |text| serde_json::from_str::<Amendments>(text).unwrap_or_default();
                let found = found.map(of).unwrap_or_default().rewinds;
                match found == rewinds {
                    true => Ok(()),
                    false => Err(other(amendment::MARKER, format!("{rewinds} rewinds"), format!("{found}"))),
                }
            })
            .marker_holds(offsets::MARKER, move |found| {
                let offsets = found.map_or(Ok(Offsets::default()), Offsets::parse);
                let offsets = offsets.map_err(|error| Broken::Other(error.to_string()))?;
                let has_begun = |at: &&TopicPartition| offsets.next(&at.topic, at.partition).is_some();
                match begun.iter().find(has_begun) {
                    None => Ok(()),
                    Some(at) => Err(other(offsets::MARKER, format!("nothing of `{at}`"), "some".to_string())),
                }
            })
            .marker(backfilled::MARKER, {
                let ranges = ranges.clone();
                move |found| done_with(found, epoch, &ranges)
            });
        match self.commit_staged(table, premise, counts, || ()).await? {
            Ok(commit) => Ok(Outcome::Committed(BronzeCommit { offsets: self.offsets()?, ..commit })),
            Err(error) => {
                self.refresh().await?;
                tracing::warn!(
                    table = %self.name(), layer = "bronze", %error,
                    "the table is not what it was: looking again what it holds"
                );
                Ok(Outcome::Behind(self.offsets()?))
            }
        }
    }
}

/// The marker after these offsets were done with, if none of them was before.
fn done_with(
    found: Option<&str>,
    epoch: i32,
    ranges: &BTreeMap<TopicPartition, RangeSet>,
) -> std::result::Result<String, Broken> {
    let mut backfilled = parse(found)?;
    for (at, done) in ranges {
        for range in done.iter() {
            let known = backfilled.ranges(epoch, &at.topic, at.partition).map(|known| known.within(range));
            if let Some(twice) = known.as_ref().and_then(|known| known.iter().next()) {
                let OffsetRange { from, next } = twice;
                let expected = format!("no offset of `{at}` from {} to {}", range.from, range.next - 1);
                return Err(other(backfilled::MARKER, expected, format!("{from} to {}", next - 1)));
            }
        }
        backfilled.insert(epoch, at, done);
    }
    Ok(backfilled.to_string())
}

/// Whether backfills have done with nothing of these ranges that was not known to whoever read them.
pub(super) fn nothing_new(
    found: Option<&str>,
    epoch: i32,
    ranges: &[(TopicPartition, OffsetRange)],
    known: &Backfilled,
) -> std::result::Result<(), Broken> {
    if found.is_none() && known.is_empty() {
        return Ok(());
    }
    let found = parse(found)?;
    for (at, range) in ranges {
        let within =
            |of: &Backfilled| of.ranges(epoch, &at.topic, at.partition).map(|of| of.within(*range)).unwrap_or_default();
        let (known, found) = (within(known), within(&found));
        if known != found {
            let show = |set: RangeSet| format!("{} offsets of `{at}`", set.count());
            return Err(other(backfilled::MARKER, show(known), show(found)));
        }
    }
    Ok(())
}

fn parse(found: Option<&str>) -> std::result::Result<Backfilled, Broken> {
    found.map_or(Ok(Backfilled::default()), Backfilled::parse).map_err(|error| Broken::Other(error.to_string()))
}

fn other(key: &str, expected: String, found: String) -> Broken {
    Broken::Marker { key: key.to_string(), expected, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> TopicPartition {
        TopicPartition::new("t", 0)
    }

    fn set(ranges: &[(i64, i64)]) -> RangeSet {
        ranges.iter().map(|(from, next)| OffsetRange { from: *from, next: *next }).collect()
    }

    #[test]
    fn offsets_are_done_with_once() {
        let mut marker: Option<String> = None;
        let check = |marker: &Option<String>, epoch, ranges: &[(i64, i64)]| {
            done_with(marker.as_deref(), epoch, &[(at(), set(ranges))].into()).map_err(|broken| broken.to_string())
        };
        for (epoch, ranges, expected) in [
            (0, vec![(0, 10)], Ok(r#"{"0":{"t":{"0":[[0,10]]}}}"#)),
            (0, vec![(20, 30), (10, 12)], Ok(r#"{"0":{"t":{"0":[[0,12],[20,30]]}}}"#)),
            (
                0,
                vec![(12, 15), (29, 31)],
                Err(
                    "marker `icestream.backfilled` is now 29 to 29, and this change stood on no offset of `t/0` from 29 to 30",
                ),
            ),
            (1, vec![(0, 1)], Ok(r#"{"0":{"t":{"0":[[0,12],[20,30]]}},"1":{"t":{"0":[[0,1]]}}}"#)),
        ] {
            let found = check(&marker, epoch, &ranges);
            assert_eq!(found.as_deref().map_err(String::as_str), expected);
            marker = found.ok().or(marker);
        }
    }

    #[test]
    fn whoever_ingests_has_to_know_what_was_done_with_in_its_range() {
        let marker = |ranges: &[(i64, i64)]| {
            let mut backfilled = Backfilled::default();
            backfilled.insert(0, &at(), &set(ranges));
            backfilled
        };
        let check = |known: &[(i64, i64)], found: &[(i64, i64)], range: (i64, i64)| {
            let range = OffsetRange { from: range.0, next: range.1 };
            nothing_new(Some(&marker(found).to_string()), 0, &[(at(), range)], &marker(known)).is_ok()
        };
        assert!(check(&[], &[(0, 10)], (10, 20)));
        assert!(check(&[(0, 15)], &[(0, 15)], (10, 20)));
        assert!(check(&[(0, 15)], &[(0, 15), (30, 40)], (10, 20)));
        assert!(!check(&[(0, 15)], &[(0, 16)], (10, 20)));
        assert!(!check(&[(0, 15)], &[], (10, 20)));
        assert!(nothing_new(None, 0, &[], &Backfilled::default()).is_ok());
    }
}
