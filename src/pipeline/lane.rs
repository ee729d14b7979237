//! One bronze table's way from raw records to commits, as a task of its own.
//!
//! A lane decodes, builds columns and writes Parquet while the source is being read, so that a commit only has to close
//! a file. It is told what to do in order; what it was told before it fell behind no longer counts.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use crate::batch::ChangeBatchBuilder;
use crate::bronze::{BronzeCommit, BronzeTable, Outcome};
use crate::change::{ChangeCounts, RawRecord};
use crate::decode::{Decoder, Format};
use crate::error::{Error, Result};
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
}

/// What a lane tells.
pub(super) enum Report {
    /// So many bytes of records are off its hands; so many are staged in files that are not closed.
    Took {
        bytes: usize,
        staged: usize,
    },
    Committed {
        commit: Option<BronzeCommit>,
        reached: Positions,
    },
    /// This is how far the table is; everything after it has to be given again.
    At(Offsets),
    /// Nothing that was staged is left.
    Failed(Error),
}

pub(super) struct Lane {
    bronze: BronzeTable,
    builder: ChangeBatchBuilder,
    fresh_builder: Box<dyn Fn() -> ChangeBatchBuilder + Send>,
    decoder: Decoder,
    ranges: BTreeMap<TopicPartition, OffsetRange>,
    /// The last record of each of them.
    last: BTreeMap<TopicPartition, RecordMark>,
    counts: ChangeCounts,
    /// Whether what it is told builds on something it no longer has.
    is_stale: bool,
}

impl Lane {
    pub(super) fn new(
        bronze: BronzeTable,
        fresh_builder: impl Fn() -> ChangeBatchBuilder + Send + 'static,
        format: Format,
    ) -> Self {
        Lane {
            bronze,
            builder: fresh_builder(),
            fresh_builder: Box::new(fresh_builder),
            decoder: Decoder::new(format),
            ranges: BTreeMap::new(),
            last: BTreeMap::new(),
            counts: ChangeCounts::default(),
            is_stale: false,
        }
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
                        && let Err(error) = self.take(records, positions).await
                    {
                        self.fail(error, &tell).await;
                    }
                    tell(Report::Took { bytes, staged: self.bronze.staged_bytes() });
                }
                Work::Commit if self.is_stale => {}
                Work::Commit => match self.commit().await {
                    Ok(report) => tell(report),
                    Err(error) => self.fail(error, &tell).await,
                },
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
        for (partition, from) in positions {
            self.builder.start(partition, from)?;
        }
        Ok(())
    }

    async fn take(&mut self, records: Vec<RawRecord>, positions: Positions) -> Result<()> {
        let mut marked: Vec<TopicPartition> = Vec::new();
        for record in records.iter().rev() {
            let is_marked = |at: &TopicPartition| at.partition == record.partition && at.topic == record.topic;
            if !marked.iter().any(is_marked) {
                let at = TopicPartition::new(record.topic.clone(), record.partition);
                self.last.insert(at.clone(), RecordMark::of(record));
                marked.push(at);
            }
        }
        for record in records {
            self.builder.push(self.decoder.decode(record))?;
        }
        for (partition, next) in &positions {
            self.builder.advance(partition, *next);
        }
        let batch = self.builder.finish()?;
        for (partition, range) in batch.ranges {
            self.ranges.entry(partition).and_modify(|known| known.next = range.next).or_insert(range);
        }
        self.counts += batch.counts;
        Ok(self.bronze.stage(&batch.rows).await?)
    }

    async fn commit(&mut self) -> Result<Report> {
        let ranges = std::mem::take(&mut self.ranges);
        let last = std::mem::take(&mut self.last);
        let counts = std::mem::take(&mut self.counts);
        if ranges.is_empty() {
            return Ok(Report::Committed { commit: None, reached: Positions::new() });
        }
        match self.bronze.commit(&ranges, &last, counts).await? {
            Outcome::Committed(commit) => {
                let reached = ranges.into_iter().map(|(partition, range)| (partition, range.next)).collect();
                Ok(Report::Committed { commit: Some(commit), reached })
            }
            Outcome::Behind(offsets) => {
                self.forget().await;
                Ok(Report::At(offsets))
            }
        }
    }

    async fn fail(&mut self, error: Error, tell: &impl Fn(Report)) {
        self.forget().await;
        tell(Report::Failed(error));
    }

    async fn forget(&mut self) {
        self.bronze.discard().await;
        self.builder = (self.fresh_builder)();
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
