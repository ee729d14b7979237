//! Writes what readers make into a bronze table, and commits it with the offsets that are done with by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, BooleanArray};
use arrow::compute::filter_record_batch;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::reader::Made;
use super::{BackfillError, TableReport};
use crate::backfilled::RangeSet;
use crate::bronze::{Basis, BronzeTable, Outcome, Staging};
use crate::change::{ChangeBatch, ChangeCounts};
use crate::error::Result;
use crate::evolution::TableImages;
use crate::layout;
use crate::offsets::TopicPartition;
use crate::pipeline::ingest::IngestError;
use crate::pipeline::rows::longs;
use crate::pipeline::{Breaker, CommitTriggers, Event, Observer};

/// By how much more is committed at once than by ingestion: nobody waits for a history to be visible, and larger files
/// are better ones.
const LARGER: usize = 8;

/// What a kill takes back at most.
const COMMIT_EVERY: Duration = Duration::from_secs(60);

/// How a round over a table ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    Done,
    /// The table is no longer what it was when it was looked at.
    Again,
}

pub(super) struct Writer<'a> {
    pub(super) bronze: BronzeTable,
    pub(super) basis: Basis,
    pub(super) breaker: &'a mut Breaker,
    pub(super) report: &'a mut TableReport,
    pub(super) triggers: &'a CommitTriggers,
    pub(super) observer: &'a Observer,
    pub(super) images: watch::Sender<Arc<TableImages>>,
    /// All that was written in this round, whether it is committed or not: two files may hold the same record.
    pub(super) taken: BTreeMap<TopicPartition, RangeSet>,
    pub(super) staged: Staged,
}

/// What the next commit makes durable.
#[derive(Default)]
pub(super) struct Staged {
    done: BTreeMap<TopicPartition, RangeSet>,
    counts: ChangeCounts,
    records: usize,
    bytes: usize,
    since: Option<Instant>,
}

impl Writer<'_> {
    /// Writes until nobody makes anything more, and commits that.
    pub(super) async fn run(mut self, mut made: mpsc::Receiver<Made>) -> Result<Round> {
        let outcome = self.write(&mut made).await;
        self.bronze.discard().await;
        outcome
    }

    async fn write(&mut self, made: &mut mpsc::Receiver<Made>) -> Result<Round> {
        loop {
            let due = self.staged.since.map_or(COMMIT_EVERY, |since| COMMIT_EVERY.saturating_sub(since.elapsed()));
            let round = match tokio::time::timeout(due, made.recv()).await {
                Ok(Some(made)) => self.take(made).await?,
                Ok(None) => return self.commit().await,
                Err(_) => self.commit().await?,
            };
            if round == Round::Again {
                return Ok(Round::Again);
            }
        }
    }

    async fn take(&mut self, made: Made) -> Result<Round> {
        let Made { mut batch, at, mut done, bytes } = made;
        let taken = self.taken.entry(at.clone()).or_default();
        let twice: RangeSet = done.iter().flat_map(|range| taken.within(range).iter().collect::<Vec<_>>()).collect();
        if !twice.is_empty() {
            self.report.there += leave_out(&mut batch, &twice)?;
            done = done.iter().flat_map(|range| taken.missing(range).iter().collect::<Vec<_>>()).collect();
        }
        taken.extend(&done);
        let mut staging = self.bronze.stage(&batch).await?;
        if staging == Staging::CommitFirst {
            if self.commit().await? == Round::Again {
                return Ok(Round::Again);
            }
            staging = self.bronze.stage(&batch).await?;
        }
        if staging != Staging::Staged {
            return Ok(Round::Again);
        }
        let staged = &mut self.staged;
        staged.since.get_or_insert_with(Instant::now);
        staged.done.entry(at).or_default().extend(&done);
        staged.counts += batch.counts;
        staged.records += batch.rows.num_rows();
        staged.bytes += bytes;
        let is_due = staged.records >= self.triggers.rows.saturating_mul(LARGER)
            || staged.bytes >= self.triggers.bytes.saturating_mul(LARGER)
            || self.bronze.staged_bytes() > self.triggers.memory / 4
            || staged.since.is_some_and(|since| since.elapsed() >= COMMIT_EVERY);
        match is_due {
            true => self.commit().await,
            false => Ok(Round::Done),
        }
    }

    async fn commit(&mut self) -> Result<Round> {
        let Staged { done, counts, .. } = std::mem::take(&mut self.staged);
        if done.values().all(RangeSet::is_empty) {
            return Ok(Round::Done);
        }
        fail::fail_point!("backfill-before-commit");
        let commit = match self.bronze.add_history(&self.basis, &done, counts).await? {
            Outcome::Committed(commit) => commit,
            Outcome::Behind(_) => return Ok(Round::Again),
        };
        fail::fail_point!("backfill-after-commit");
        self.report.rows += commit.rows;
        self.report.rejected += commit.counts.rejected;
        self.report.commits += 1;
        let images = self.bronze.images()?;
        if images.form != self.images.borrow().form {
            // Those who make rows build them for the columns there are now.
            self.images.send_replace(Arc::new(images));
        }
        let tripped = self.breaker.observe(&commit.counts);
        let table = commit.table.clone();
        (self.observer)(&Event::Ingested(commit));
        match tripped {
            Some(tripped) => Err(IngestError::TooManyRejected { table, tripped }.into()),
            None => Ok(Round::Done),
        }
    }
}

/// Takes rows of these offsets out of a batch of one partition, and says how many they were.
fn leave_out(batch: &mut ChangeBatch, twice: &RangeSet) -> Result<u64> {
    let failed = |source| BackfillError::Rows { source };
    let missing = || failed(arrow::error::ArrowError::SchemaError("rows without offsets".to_string()));
    let offsets = longs(batch.rows.column_by_name(layout::OFFSET).ok_or_else(missing)?);
    let kept: BooleanArray =
        offsets.iter().map(|offset| Some(!offset.is_some_and(|offset| twice.contains(offset)))).collect();
    let errors = batch.rows.column_by_name(layout::ERROR).ok_or_else(missing)?;
    let rejected = (0..kept.len()).filter(|row| !kept.value(*row) && errors.is_valid(*row)).count() as u64;
    let left_out = (kept.len() - kept.true_count()) as u64;
    batch.counts.rejected -= rejected;
    batch.counts.changes -= left_out - rejected;
    batch.rows = filter_record_batch(&batch.rows, &kept).map_err(failed)?;
    Ok(left_out)
}
