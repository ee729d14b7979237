//! One bronze table's way from raw records to commits, as a task of its own.
//!
//! A lane decodes, builds columns and writes Parquet while the source is being read, so that a commit only has to close
//! a file, or to write a small one. It is told what to do in order; what it was told before it fell behind no longer counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::Dialect;
use super::makers::Makers;
use crate::backfilled::Backfilled;
use crate::batch::ChangeBatchBuilder;
use crate::bronze::{BronzeCommit, BronzeTable, Outcome, Staging};
use crate::change::{ChangeBatch, ChangeCounts, RawRecord};
use crate::clock::Clock;
use crate::decode::Decoder;
use crate::error::{Error, Kind, Result, Situation};
use crate::offsets::{OffsetRange, Offsets, Positions, RecordMark, TopicPartition};

/// What a lane is told.
pub(super) enum Work {
    /// Read on from these positions. With `afresh`, whatever was staged or told before is forgotten.
    Start { positions: Positions, afresh: bool },
    /// Records in the order of offsets within a partition, and how far their partitions were read with them.
    Records { records: Vec<RawRecord>, positions: Positions, bytes: usize },
    /// Make everything told so far durable.
    Commit,
    /// Forget what is staged and look up how far the table is.
    Reopen,
    /// Forget what is staged, and keep by which record the partition's log was known. `done` is dropped after that.
    Recall { at: TopicPartition, mark: RecordMark, done: oneshot::Sender<()> },
}

/// What a lane tells.
pub(super) enum Report {
    /// So many bytes of records are off its hands; so many are taken by rows that are not in a file yet.
    Took { bytes: usize, staged: usize },
    /// A lane commits without being asked when rows need other columns than those that are staged.
    Committed { commit: Option<Box<BronzeCommit>>, reached: Positions, is_asked_for: bool },
    /// This is how far the table is; everything after it has to be given again.
    At(Offsets),
    /// Nothing that was staged is left.
    Failed(Error),
}

/// Makes columns of records.
struct Columns {
    decoder: Decoder,
    builder: ChangeBatchBuilder,
    /// What is left out, because backfills have brought it already.
    backfilled: Arc<Backfilled>,
    epoch: i32,
}

/// What became of a chunk, and the last record of each partition in it.
struct Made {
    batch: ChangeBatch,
    bytes: usize,
    last: Vec<(TopicPartition, RecordMark)>,
}

pub(super) struct Lane {
    bronze: BronzeTable,
    /// Not here while it works on a chunk.
    columns: Option<Columns>,
    /// Columns that are not in a file yet: they are written while the next chunk is made columns.
    made: Option<Made>,
    clock: Clock,
    dialect: Dialect,
    makers: Makers,
    ranges: BTreeMap<TopicPartition, OffsetRange>,
    /// The last record of each of them.
    last: BTreeMap<TopicPartition, RecordMark>,
    counts: ChangeCounts,
    /// Whether what it is told builds on something it no longer has.
    is_stale: bool,
}

impl Lane {
    pub(super) fn new(bronze: BronzeTable, clock: Clock, dialect: Dialect, makers: Makers) -> Result<Self> {
        Ok(Lane {
            columns: None,
            made: None,
            bronze,
            clock,
            dialect,
            makers,
            ranges: BTreeMap::new(),
            last: BTreeMap::new(),
            counts: ChangeCounts::default(),
            is_stale: false,
        })
    }

    /// Works until nobody tells it anything more.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Work>, tell: impl Fn(Report)) {
        while let Some(work) = inbox.recv().await {
            match work {
                Work::Start { positions, afresh } => {
                    if let Err(error) = self.start(positions, afresh).await {
                        self.fail(error, &tell).await;
                    }
                }
                Work::Records { records, positions, bytes } => {
                    if !self.is_stale
                        && let Err(error) = self.take(records, positions, &tell).await
                    {
                        self.fail(error, &tell).await;
                    }
                    tell(Report::Took { bytes, staged: self.staged_bytes() });
                }
                Work::Commit if self.is_stale => {}
                Work::Commit => {
                    if let Err(error) = self.commit(&tell).await {
                        self.fail(error, &tell).await;
                    }
                }
                Work::Recall { at, mark, done } => {
                    self.forget().await;
                    if let Err(error) = self.bronze.recall(&at, mark).await {
                        tracing::error!(table = %self.bronze.name(), %error, "a start will not notice the other topic");
                    }
                    drop(done);
                }
                Work::Reopen => {
                    self.forget().await;
                    match self.offsets().await {
                        Ok(offsets) => tell(Report::At(offsets)),
                        Err(error) => tell(Report::Failed(error)),
                    }
                }
            }
        }
        self.bronze.discard().await;
    }

    async fn start(&mut self, positions: Positions, afresh: bool) -> Result<()> {
        if afresh {
            self.forget().await;
            self.is_stale = false;
        }
        let mut columns = self.columns()?;
        for (partition, from) in positions {
            columns.builder.start(partition, from)?;
        }
        self.columns = Some(columns);
        Ok(())
    }

    fn columns(&mut self) -> Result<Columns> {
        if let Some(columns) = self.columns.take() {
            return Ok(columns);
        }
        let epoch = self.bronze.epoch()?;
        let builder = ChangeBatchBuilder::new(self.bronze.images()?, epoch, self.clock.clone())
            .with_placeholder(self.dialect.placeholder.clone());
        let backfilled = self.bronze.backfilled().clone();
        Ok(Columns { decoder: Decoder::new(self.dialect.format), builder, backfilled, epoch })
    }

    /// Makes columns of a chunk, and meanwhile writes those of the chunk before.
    async fn take(&mut self, records: Vec<RawRecord>, positions: Positions, tell: &impl Fn(Report)) -> Result<()> {
        let mut columns = self.columns()?;
        let makers = self.makers.clone();
        let making = makers.run(move || {
            let made = columns.make(records, &positions);
            (columns, made)
        });
        let (making, written) = tokio::join!(making, self.write(tell));
        let (columns, made) = making.ok_or(LaneError::Ended)?;
        written?;
        let made = made?;
        if !self.is_stale {
            (self.columns, self.made) = (Some(columns), Some(made));
        }
        Ok(())
    }

    /// Writes what was made of the last chunk into a file.
    async fn write(&mut self, tell: &impl Fn(Report)) -> Result<()> {
        let Some(Made { batch, last, .. }) = self.made.take() else { return Ok(()) };
        let mut staging = self.bronze.stage(&batch).await?;
        if staging == Staging::CommitFirst {
            self.commit_written(false, tell).await?;
            if self.is_stale {
                return Ok(());
            }
            staging = self.bronze.stage(&batch).await?;
        }
        if staging != Staging::Staged {
            tell(Report::At(self.bronze.offsets()?));
            self.forget().await;
            return Ok(());
        }
        for (partition, range) in batch.ranges {
            let known =
                self.ranges.entry(partition.clone()).or_insert(OffsetRange { from: range.from, next: range.from });
            // What is committed has to be one range; a commit of anything else would lose or double rows.
            if known.next != range.from {
                return Err(LaneError::Torn { partition, next: known.next, from: range.from }.into());
            }
            known.next = range.next;
        }
        self.last.extend(last);
        self.counts += batch.counts;
        Ok(())
    }

    fn staged_bytes(&self) -> usize {
        self.bronze.staged_bytes() + self.made.as_ref().map_or(0, |made| made.bytes)
    }

    async fn commit(&mut self, tell: &impl Fn(Report)) -> Result<()> {
        self.write(tell).await?;
        match self.is_stale {
            true => Ok(()),
            false => self.commit_written(true, tell).await,
        }
    }

    async fn commit_written(&mut self, is_asked_for: bool, tell: &impl Fn(Report)) -> Result<()> {
        let ranges = std::mem::take(&mut self.ranges);
        let last = std::mem::take(&mut self.last);
        let counts = std::mem::take(&mut self.counts);
        if ranges.is_empty() {
            tell(Report::Committed { commit: None, reached: Positions::new(), is_asked_for });
            return Ok(());
        }
        // Whoever waits for room need not wait for the catalog.
        let written = || tell(Report::Took { bytes: 0, staged: 0 });
        match self.bronze.commit_telling(&ranges, &last, counts, written).await? {
            Outcome::Committed(commit) => {
                let reached = ranges.into_iter().map(|(partition, range)| (partition, range.next)).collect();
                tell(Report::Committed { commit: Some(Box::new(commit)), reached, is_asked_for });
            }
            Outcome::Behind(offsets) => {
                self.forget().await;
                tell(Report::At(offsets));
            }
        }
        Ok(())
    }

    async fn fail(&mut self, error: Error, tell: &impl Fn(Report)) {
        self.forget().await;
        tell(Report::Failed(error));
    }

    async fn forget(&mut self) {
        self.bronze.discard().await;
        (self.columns, self.made) = (None, None);
        self.ranges.clear();
        self.last.clear();
        self.counts = ChangeCounts::default();
        self.is_stale = true;
    }

    async fn offsets(&mut self) -> Result<Offsets> {
        self.bronze.refresh().await?;
        Ok(self.bronze.offsets()?)
    }
}

impl Columns {
    fn make(&mut self, records: Vec<RawRecord>, positions: &Positions) -> Result<Made> {
        let mut last: Vec<(TopicPartition, RecordMark)> = Vec::new();
        for record in records.iter().rev() {
            if !last.iter().any(|(at, _)| at.partition == record.partition && at.topic == record.topic) {
                last.push((TopicPartition::new(record.topic.clone(), record.partition), RecordMark::of(record)));
            }
        }
        for record in records {
            if !self.backfilled.is_empty() && self.is_backfilled(&record) {
                continue;
            }
            self.builder.push(self.decoder.decode(record))?;
        }
        for (partition, next) in positions {
            self.builder.advance(partition, *next);
        }
        let batch = self.builder.finish()?;
        Ok(Made { bytes: batch.rows.get_array_memory_size(), batch, last })
    }

    fn is_backfilled(&self, record: &RawRecord) -> bool {
        let ranges = self.backfilled.ranges(self.epoch, &record.topic, record.partition);
        ranges.is_some_and(|ranges| ranges.contains(record.offset))
    }
}

#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error("the threads that decode records have ended")]
    Ended,

    #[error("rows of `{partition}` from offset {from} were to follow those up to {next}")]
    Torn { partition: TopicPartition, next: i64, from: i64 },
}

impl Situation for LaneError {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }
}
