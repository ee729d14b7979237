//! The rule that stops a table when too many of its records are rejected.
//!
//! It is a pure rule over counts: who asks it stops the one table, and keeps the others going. It remembers nothing
//! beyond the process: a restart tries again.

use std::collections::VecDeque;

use crate::change::ChangeCounts;
use crate::config::Percent;

/// The records that are looked back at. What is older no longer counts.
const WINDOW: u64 = 10_000;

/// Fewer records than this are judged as if there were so many, the rest of them good: one bad record at the very start
/// is not "100 % rejected", and six in a row are more than 5 % whatever comes next.
const LEAST: u64 = 100;

/// Why a table was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tripped {
    pub rejected: u64,
    pub records: u64,
    pub limit: Percent,
}

/// Watches one table.
#[derive(Debug, Clone)]
pub struct Breaker {
    limit: Option<Percent>,
    batches: VecDeque<(u64, u64)>,
    rejected: u64,
    records: u64,
    tripped: Option<Tripped>,
}

impl Breaker {
    /// `None` never trips.
    pub fn new(limit: Option<Percent>) -> Self {
        Breaker { limit, batches: VecDeque::new(), rejected: 0, records: 0, tripped: None }
    }

    /// Takes account of a batch. Gives why the table is to stop, from the batch on that is too much.
    pub fn observe(&mut self, counts: &ChangeCounts) -> Option<Tripped> {
        let limit = self.limit?;
        let (rejected, records) = (counts.rejected, counts.changes + counts.rejected);
        self.batches.push_back((rejected, records));
        self.rejected += rejected;
        self.records += records;
        while let Some((rejected, records)) = self.batches.front()
            && self.records - records >= WINDOW
        {
            self.rejected -= rejected;
            self.records -= records;
            self.batches.pop_front();
        }
        if self.tripped.is_none() && limit.is_below(self.rejected, self.records.max(LEAST)) {
            self.tripped = Some(Tripped { rejected: self.rejected, records: self.records, limit });
        }
        self.tripped
    }

    pub fn tripped(&self) -> Option<Tripped> {
        self.tripped
    }
}

impl std::fmt::Display for Tripped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Tripped { rejected, records, limit } = self;
        write!(f, "{rejected} of the last {records} records were rejected; `rejects.stop_above` is {limit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs batches of (good, bad) through a breaker and says at which it trips.
    fn check(limit: Option<&str>, batches: &[(u64, u64)], trips_at: Option<usize>) {
        let mut breaker = Breaker::new(limit.map(|limit| limit.parse().unwrap()));
        let outcomes: Vec<bool> = batches
            .iter()
            .map(|(good, bad)| {
                breaker.observe(&ChangeCounts { changes: *good, rejected: *bad, ..Default::default() }).is_some()
            })
            .collect();
        assert_eq!(outcomes.iter().position(|tripped| *tripped), trips_at, "{limit:?} {batches:?}");
        // Once stopped, it stays so.
        assert!(outcomes.iter().skip_while(|tripped| !**tripped).all(|tripped| *tripped));
        assert_eq!(breaker.tripped().is_some(), trips_at.is_some());
    }

    #[test]
    fn a_table_stops_above_the_limit_and_not_at_it() {
        check(Some("5%"), &[(950, 50)], None);
        check(Some("5%"), &[(949, 51)], Some(0));
        check(Some("5%"), &[(0, 0), (1000, 0), (1000, 90), (900, 100)], Some(3));
        check(None, &[(0, 1_000_000)], None);
        check(Some("100%"), &[(0, 1_000_000)], None);
    }

    #[test]
    fn few_records_are_judged_as_if_they_were_a_hundred() {
        check(Some("5%"), &[(0, 1), (0, 4)], None);
        check(Some("5%"), &[(0, 5), (0, 1)], Some(1));
        check(Some("5%"), &[(0, 5), (94, 1)], Some(1));
        check(Some("0%"), &[(99, 0), (0, 1)], Some(1));
        check(Some("0%"), &[(0, 1)], Some(0));
    }

    #[test]
    fn what_is_long_past_does_not_count() {
        // 4 % in all, and 8 % of the last ten thousand.
        check(Some("5%"), &[(10_000, 0), (9_200, 800)], Some(1));
        // Bad once, and good ever since: each window is below the limit.
        check(Some("5%"), &[(9_600, 400), (10_000, 0), (9_600, 400), (10_000, 0)], None);
        // A batch that reaches into the window counts whole.
        check(Some("5%"), &[(5_700, 300), (6_000, 0), (5_700, 300)], None);
        check(Some("5%"), &[(5_700, 300), (3_900, 0), (5_400, 500)], Some(2));
    }

    #[test]
    fn it_says_why() {
        let mut breaker = Breaker::new(Some("2.5%".parse().unwrap()));
        let counts = ChangeCounts { changes: 900, rejected: 100, tombstones: 50, ..Default::default() };
        let why = breaker.observe(&counts).unwrap();
        insta::assert_snapshot!(why.to_string(), @"100 of the last 1000 records were rejected; `rejects.stop_above` is 2.5%");
    }
}
