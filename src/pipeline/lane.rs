//! One bronze table's way from raw records to commits.
//!
//! A lane decodes, builds columns and writes Parquet while the source is being read, so that a commit only has to close
//! a file, or to write a small one. It is told what to do in order; what it was told before it fell behind no longer counts.
//!
//! It has two halves, each a task, so that neither waits for the other: one makes records rows, the other writes and commits
//! them. What the first hands to the second is in the order that it was told, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

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

/// So many chunks may be rows and wait for a commit to end, or for a file.
const CHUNKS_MADE: usize = 4;

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

/// What the half that writes is told.
enum Step {
    /// What was staged or made before no longer counts. The answer is what rows are made with from here on.
    Afresh {
        answer: oneshot::Sender<Columns>,
    },
    Made(Made),
    /// Records could not be made rows.
    Failed(Error),
    Commit,
    Reopen,
    Recall {
        at: TopicPartition,
        mark: RecordMark,
        done: oneshot::Sender<()>,
    },
}

/// What both halves know.
#[derive(Default)]
struct Shared {
    /// Memory of rows that are on their way to the half that writes, and of those it has that are not in a file.
    made: AtomicUsize,
    staged: AtomicUsize,
    /// Whether what is told builds on something that is no longer there.
    is_stale: AtomicBool,
}

impl Shared {
    fn took(&self, bytes: usize) -> Report {
        let staged = self.made.load(Ordering::Relaxed) + self.staged.load(Ordering::Relaxed);
        Report::Took { bytes, staged }
    }

    fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }
}

pub(super) struct Lane {
    maker: Maker,
    writer: Writer,
}

/// The half that makes records rows.
struct Maker {
    /// Nothing while it is not known where to read on.
    columns: Option<Columns>,
    makers: Makers,
    shared: Arc<Shared>,
}

/// The half that writes rows and commits them.
struct Writer {
    bronze: BronzeTable,
    clock: Clock,
    dialect: Dialect,
    ranges: BTreeMap<TopicPartition, OffsetRange>,
    /// The last record of each of them.
    last: BTreeMap<TopicPartition, RecordMark>,
    counts: ChangeCounts,
    shared: Arc<Shared>,
}

impl Lane {
    pub(super) fn new(bronze: BronzeTable, clock: Clock, dialect: Dialect, makers: Makers) -> Self {
        let shared = Arc::new(Shared::default());
        let maker = Maker { columns: None, makers, shared: shared.clone() };
        let (ranges, last, counts) = (BTreeMap::new(), BTreeMap::new(), ChangeCounts::default());
        Lane { maker, writer: Writer { bronze, clock, dialect, ranges, last, counts, shared } }
    }

    /// Works until nobody tells it anything more.
    pub(super) async fn run(self, inbox: mpsc::Receiver<Work>, tell: impl Fn(Report) + Clone + Send + Sync + 'static) {
        let (steps, of_writer) = mpsc::channel(CHUNKS_MADE);
        // It ends with this.
        let mut halves = JoinSet::new();
        halves.spawn(self.maker.run(inbox, steps, tell.clone()));
        self.writer.run(of_writer, tell).await;
    }
}

impl Maker {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Work>,
        steps: mpsc::Sender<Step>,
        tell: impl Fn(Report) + Send + Sync,
    ) {
        while let Some(work) = inbox.recv().await {
            let step = match work {
                Work::Start { positions, afresh } => {
                    if afresh {
                        let (answer, answered) = oneshot::channel();
                        if steps.send(Step::Afresh { answer }).await.is_err() {
                            return;
                        }
                        // Without an answer, something has failed, which was told.
                        self.columns = answered.await.ok();
                    }
                    self.start(positions).err().map(Step::Failed)
                }
                Work::Records { records, positions, bytes } => {
                    let made = self.make(records, positions).await.transpose();
                    if let Some(Ok(made)) = &made {
                        self.shared.made.fetch_add(made.bytes, Ordering::Relaxed);
                    }
                    tell(self.shared.took(bytes));
                    made.map(|made| made.map_or_else(Step::Failed, Step::Made))
                }
                Work::Commit => Some(Step::Commit),
                Work::Reopen => Some(Step::Reopen),
                Work::Recall { at, mark, done } => Some(Step::Recall { at, mark, done }),
            };
            if let Some(step) = step
                && steps.send(step).await.is_err()
            {
                return;
            }
        }
    }

    fn start(&mut self, positions: Positions) -> Result<()> {
        let Some(columns) = &mut self.columns else { return Ok(()) };
        for (partition, from) in positions {
            columns.builder.start(partition, from)?;
        }
        Ok(())
    }

    /// Makes columns of a chunk, unless it builds on what is no longer there.
    async fn make(&mut self, records: Vec<RawRecord>, positions: Positions) -> Result<Option<Made>> {
        let columns = self.columns.take().filter(|_| !self.shared.is_stale());
        let Some(mut columns) = columns else { return Ok(None) };
        let making = self.makers.run(move || {
            let made = columns.make(records, &positions);
            (columns, made)
        });
        let (columns, made) = making.await.ok_or(LaneError::Ended)?;
        let made = made?;
        self.columns = Some(columns);
        Ok(Some(made))
    }
}

impl Writer {
    async fn run(mut self, mut steps: mpsc::Receiver<Step>, tell: impl Fn(Report)) {
        while let Some(step) = steps.recv().await {
            match step {
                Step::Afresh { answer } => {
                    self.forget().await;
                    match self.columns() {
                        Ok(columns) => {
                            self.shared.is_stale.store(false, Ordering::Relaxed);
                            // Who asked has ended if it is not there any more.
                            drop(answer.send(columns));
                        }
                        Err(error) => self.fail(error, &tell).await,
                    }
                }
                Step::Made(made) => {
                    let bytes = made.bytes;
                    if !self.is_stale()
                        && let Err(error) = self.write(made, &tell).await
                    {
                        self.fail(error, &tell).await;
                    }
                    self.shared.made.fetch_sub(bytes, Ordering::Relaxed);
                    self.shared.staged.store(self.bronze.staged_bytes(), Ordering::Relaxed);
                    tell(self.shared.took(0));
                }
                Step::Failed(_) | Step::Commit if self.is_stale() => {}
                Step::Failed(error) => self.fail(error, &tell).await,
                Step::Commit => {
                    if let Err(error) = self.commit(true, &tell).await {
                        self.fail(error, &tell).await;
                    }
                }
                Step::Recall { at, mark, done } => {
                    self.forget().await;
                    if let Err(error) = self.bronze.recall(&at, mark).await {
                        tracing::error!(table = %self.bronze.name(), %error, "a start will not notice the other topic");
                    }
                    drop(done);
                }
                Step::Reopen => {
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

    fn is_stale(&self) -> bool {
        self.shared.is_stale()
    }

    fn columns(&self) -> Result<Columns> {
        let epoch = self.bronze.epoch()?;
        let builder = ChangeBatchBuilder::new(self.bronze.images()?, epoch, self.clock.clone())
            .with_placeholder(self.dialect.placeholder.clone());
        let backfilled = self.bronze.backfilled().clone();
        Ok(Columns { decoder: Decoder::new(self.dialect.format), builder, backfilled, epoch })
    }

    /// Writes what was made of a chunk into a file.
    async fn write(&mut self, made: Made, tell: &impl Fn(Report)) -> Result<()> {
        let Made { batch, last, .. } = made;
        let mut staging = self.bronze.stage(&batch).await?;
        if staging == Staging::CommitFirst {
            self.commit(false, tell).await?;
            if self.is_stale() {
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

    async fn commit(&mut self, is_asked_for: bool, tell: &impl Fn(Report)) -> Result<()> {
        let ranges = std::mem::take(&mut self.ranges);
        let last = std::mem::take(&mut self.last);
        let counts = std::mem::take(&mut self.counts);
        if ranges.is_empty() {
            tell(Report::Committed { commit: None, reached: Positions::new(), is_asked_for });
            return Ok(());
        }
        // Whoever waits for room need not wait for the catalog.
        let shared = self.shared.clone();
        let written = || {
            shared.staged.store(0, Ordering::Relaxed);
            tell(shared.took(0));
        };
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
        self.shared.staged.store(0, Ordering::Relaxed);
        self.ranges.clear();
        self.last.clear();
        self.counts = ChangeCounts::default();
        self.shared.is_stale.store(true, Ordering::Relaxed);
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
        let Columns { decoder, builder, backfilled, epoch } = self;
        let is_backfilled = |record: &RawRecord| {
            let ranges = backfilled.ranges(*epoch, &record.topic, record.partition);
            ranges.is_some_and(|ranges| ranges.contains(record.offset))
        };
        let records = records.into_iter().filter(|record| backfilled.is_empty() || !is_backfilled(record));
        builder.push_all(records.map(|record| decoder.decode(record)))?;
        for (partition, next) in positions {
            builder.advance(partition, *next);
        }
        let batch = builder.finish()?;
        Ok(Made { bytes: batch.rows.get_array_memory_size(), batch, last })
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
