//! What a bronze table holds of a history already, record by record.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::error::DataFusionError;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use crate::amendment::Amendments;
use crate::backfilled::{Backfilled, RangeSet};
use crate::bronze::{self, Basis};
use crate::engine::{self, Engine};
use crate::error::Result;
use crate::offsets::{OffsetRange, Positions, TopicPartition};
use crate::pipeline::offsets::{literal, marker_of};
use crate::pipeline::rows::longs;
use crate::table::{At, Table};

/// What becomes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    New,
    /// A row of it is in the table. Noting that a backfill met it spares the next one to.
    Row,
    /// A backfill has done with it before.
    Done,
    /// Ingestion has not come to it yet, and will.
    Ahead,
}

/// What a table holds of the partitions of a history.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) basis: Basis,
    partitions: BTreeMap<TopicPartition, Partition>,
}

/// What it holds of one partition.
#[derive(Debug, Default)]
pub(super) struct Partition {
    /// Where ingestion reads on, if it has begun.
    next: Option<i64>,
    done: RangeSet,
    rows: RoaringTreemap,
}

impl Held {
    /// Looks at a table, which may not be there yet. `first` is the first offset that matters of each partition.
    pub(super) async fn look(
        table: Option<&Table>,
        engine: &Engine,
        epoch: Option<i32>,
        first: &Positions,
    ) -> Result<Self> {
        let Some(table) = table else {
            let not_begun = first.keys().cloned().collect();
            let basis = Basis { epoch: epoch.unwrap_or(0), rewinds: 0, not_begun };
            let partitions = first.keys().map(|at| (at.clone(), Partition::default())).collect();
            return Ok(Held { basis, partitions });
        };
        let current = bronze::epoch(table)?;
        let epoch = epoch.unwrap_or(current);
        let failed = |source| bronze::Error::Backfilled { table: table.name().clone(), source };
        let (offsets, backfilled) = (marker_of(table)?, Backfilled::of(table).map_err(failed)?);
        let basis = Basis { epoch, rewinds: Amendments::of(table).rewinds, not_begun: Vec::new() };
        let mut held = Held { basis, partitions: BTreeMap::new() };
        for at in first.keys() {
            // Of an earlier life of the topic nothing is left for ingestion to read.
            let next = match epoch == current {
                true => offsets.next(&at.topic, at.partition),
                false => Some(i64::MAX),
            };
            if next.is_none() {
                held.basis.not_begun.push(at.clone());
            }
            let done = backfilled.ranges(epoch, &at.topic, at.partition).cloned().unwrap_or_default();
            held.partitions.insert(at.clone(), Partition { next, done, rows: RoaringTreemap::new() });
        }
        held.look_at_rows(table, engine, epoch, first).await?;
        Ok(held)
    }

    async fn look_at_rows(&mut self, table: &Table, engine: &Engine, epoch: i32, first: &Positions) -> Result<()> {
        if table.snapshot_id().is_none() || first.is_empty() {
            return Ok(());
        }
        let mut topics: BTreeMap<&str, i64> = BTreeMap::new();
        for (at, from) in first {
            let least = topics.entry(&at.topic).or_insert(*from);
            *least = (*least).min(*from);
        }
        let of = |(topic, from): (&&str, &i64)| format!("(_topic = {} AND _offset >= {from})", literal(topic));
        let any: Vec<String> = topics.iter().map(of).collect();
        let session = engine.session();
        engine::register(&session, table.name(), table.view(At::Head)?)?;
        let sql = format!(
            "SELECT _topic, _topic_partition, _offset FROM {} WHERE coalesce(_epoch, 0) = {epoch} AND ({})",
            table.name(),
            any.join(" OR ")
        );
        let mut rows = engine::query(&session, &sql).await?;
        while let Some(batch) = rows.try_next().await.map_err(engine::Error::from)? {
            let topics = cast(batch.column(0), &DataType::Utf8)
                .map_err(|error| engine::Error::from(DataFusionError::from(error)))?;
            let topics = topics.as_string::<i32>();
            let (partitions, offsets) = (longs(batch.column(1)), longs(batch.column(2)));
            let mut from = 0;
            while from < batch.num_rows() {
                // Rows come in runs of one partition.
                let (topic, partition) = (topics.value(from), partitions[from]);
                let is_same = |row: &usize| topics.value(*row) == topic && partitions[*row] == partition;
                let until = (from..batch.num_rows()).take_while(is_same).last().map_or(from, |row| row) + 1;
                let at = TopicPartition::new(topic, partition.unwrap_or_default() as i32);
                if let Some(held) = self.partitions.get_mut(&at) {
                    let offsets = offsets[from..until].iter().flatten();
                    held.rows.extend(offsets.filter_map(|offset| u64::try_from(*offset).ok()));
                }
                from = until;
            }
        }
        Ok(())
    }

    pub(super) fn partition(&self, at: &TopicPartition) -> Option<&Partition> {
        self.partitions.get(at)
    }

    /// What of a range neither a backfill has done with, nor ingestion will come to.
    pub(super) fn missing(&self, at: &TopicPartition, range: OffsetRange) -> RangeSet {
        let Some(partition) = self.partitions.get(at) else { return RangeSet::from_iter([range]) };
        let next = range.next.min(partition.next.unwrap_or(i64::MAX));
        partition.done.missing(OffsetRange { next, ..range })
    }

    /// How many rows of a range are there that no backfill has met.
    pub(super) fn count_rows(&self, at: &TopicPartition, range: OffsetRange) -> u64 {
        let Some(partition) = self.partitions.get(at) else { return 0 };
        let missing = partition.done.missing(range);
        missing.iter().map(|range| partition.count_within(range)).sum()
    }

    pub(super) fn fate(&self, at: &TopicPartition, offset: i64) -> Fate {
        self.partitions.get(at).map_or(Fate::New, |partition| partition.fate(offset))
    }
}

impl Partition {
    pub(super) fn fate(&self, offset: i64) -> Fate {
        if self.done.contains(offset) {
            Fate::Done
        } else if self.next.is_some_and(|next| offset >= next) {
            Fate::Ahead
        } else if u64::try_from(offset).is_ok_and(|offset| self.rows.contains(offset)) {
            Fate::Row
        } else {
            Fate::New
        }
    }

    /// Whether ingestion has not come to an offset yet, and will.
    pub(super) fn is_ahead(&self, offset: i64) -> bool {
        self.next.is_some_and(|next| offset >= next)
    }

    /// Whether all of a range is there.
    pub(super) fn has_all(&self, range: OffsetRange) -> bool {
        let mut missing = self.done.missing(range).iter().collect::<Vec<_>>();
        missing.retain(|OffsetRange { from, next }| {
            let (Ok(from), Ok(next)) = (u64::try_from(*from), u64::try_from(*next)) else { return true };
            self.rows.range_cardinality(from..next) < next - from
        });
        missing.is_empty()
    }

    /// How many offsets of a range are there, or were read and held no row.
    pub(super) fn count_within(&self, range: OffsetRange) -> u64 {
        let done = self.done.within(range);
        let rows = |range: OffsetRange| match (u64::try_from(range.from), u64::try_from(range.next)) {
            (Ok(from), Ok(next)) => self.rows.range_cardinality(from..next),
            _ => 0,
        };
        done.count() as u64 + rows(range) - done.iter().map(rows).sum::<u64>()
    }

    pub(super) fn next(&self) -> Option<i64> {
        self.next
    }
}
