//! What ingestion tells its observer besides commits.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Ingest;
use crate::ids::TableName;
use crate::pipeline::{Event, InHand, Layer, Standing};

/// How often to tell what is in hand.
const TELL_EVERY: Duration = Duration::from_secs(5);

impl Ingest<'_> {
    /// A table that failed has done what it failed at.
    pub(super) fn recovered(&mut self, index: usize) {
        let table = &mut self.tables[index];
        if !std::mem::replace(&mut table.is_well, true) {
            let name = table.name.clone();
            self.fares(name, Standing::Well);
        }
    }

    pub(super) fn fares(&self, table: TableName, how: Standing) {
        (self.observer)(&Event::Fares { layer: Layer::Bronze, table, how });
    }

    /// Tells what is in hand, and which tables recovered without anything to commit.
    pub(super) fn tell_in_hand(&mut self) {
        if self.told_in_hand.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        self.told_in_hand = Some(Instant::now());
        for index in 0..self.tables.len() {
            let table = &self.tables[index];
            if table.is_reading() && table.pending.is_empty() && !table.has_uncommitted() && !table.is_committing() {
                self.recovered(index);
            }
        }
        let mut lag: BTreeMap<TableName, i64> = BTreeMap::new();
        for (at, end) in self.source.known_ends() {
            // What is not read any more hears of no end either.
            if let (Some(index), Some(next)) = (self.by_topic.get(&at.topic), self.durable.get(&at))
                && !self.tables[*index].is_stopped()
            {
                // The end is as old as the client's last word of it, and reading may be past that.
                *lag.entry(self.tables[*index].name.clone()).or_default() += (end - next).max(0);
            }
        }
        let bytes = self.bytes_in_flight() + self.bytes_staged();
        (self.observer)(&Event::Reading(InHand { lag, bytes }));
    }
}
