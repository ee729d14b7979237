//! Reads a source into bronze tables until told to stop.
//!
//! **The source is never read past what memory may hold**: batches are committed by time, rows or bytes, whichever comes
//! first, and nothing is fetched meanwhile. **The source is told of a position only after it is durable.**

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Event, Observer};
use crate::batch::ChangeBatchBuilder;
use crate::bronze::{BronzeDefinition, BronzeTable, Outcome};
use crate::change::ChangeBatch;
use crate::clock::Clock;
use crate::decode::{self, Format};
use crate::error::Result;
use crate::ids::TableName;
use crate::layout::bronze_schema;
use crate::offsets::{Offsets, Positions, TopicPartition};
use crate::row::RowShape;
use crate::source::{FetchLimits, Source, Start};
use crate::table::Lake;

/// Which topics go to which bronze table, and how.
#[derive(Debug, Clone)]
pub struct Route {
    pub topic: String,
    pub table: TableName,
    pub shape: Option<Arc<RowShape>>,
    pub partition: Vec<String>,
    pub properties: BTreeMap<String, String>,
}

/// A batch is committed when any of these is reached.
#[derive(Debug, Clone)]
pub struct CommitTriggers {
    pub every: Duration,
    pub rows: usize,
    pub bytes: usize,
}

/// When to stop. Changing it takes effect at the next fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Until {
    /// Go on.
    Forever,
    /// Commit what is there and end.
    Now,
    /// End once everything before these offsets is durable.
    Reached(Positions),
}

#[derive(Debug, Clone, Default)]
pub struct IngestReport {
    pub rows: u64,
    pub rejected: u64,
    pub commits: u64,
    pub positions: Positions,
}

/// A source on its way into bronze tables.
pub struct Ingest {
    source: Box<dyn Source>,
    tables: Vec<IngestTable>,
    /// The table of each topic, as an index.
    by_topic: BTreeMap<Arc<str>, usize>,
    triggers: CommitTriggers,
    format: Format,
    clock: Clock,
    observer: Observer,
    /// How far the source was read.
    read: Positions,
    /// How far bronze is durable.
    durable: Positions,
    report: IngestReport,
}

struct IngestTable {
    bronze: BronzeTable,
    shape: Option<Arc<RowShape>>,
    topics: BTreeSet<Arc<str>>,
    builder: ChangeBatchBuilder,
}

impl IngestTable {
    fn fresh_builder(&self, clock: &Clock) -> ChangeBatchBuilder {
        ChangeBatchBuilder::new(self.shape.clone(), 0, clock.clone())
    }
}

impl Ingest {
    /// Opens the tables of every topic the source has, and takes up reading where their markers stand.
    pub async fn start(
        lake: &Lake,
        mut source: Box<dyn Source>,
        route: impl Fn(&str) -> Option<Route>,
        format: Format,
        triggers: CommitTriggers,
        observer: Observer,
    ) -> Result<Self> {
        let clock = lake.clock().clone();
        let mut tables: Vec<IngestTable> = Vec::new();
        let mut by_topic: BTreeMap<Arc<str>, usize> = BTreeMap::new();
        let partitions = source.partitions().await?;
        for partition in &partitions {
            if by_topic.contains_key(&partition.topic) {
                continue;
            }
            let Some(route) = route(&partition.topic) else { continue };
            let index = match tables.iter().position(|table| *table.bronze.name() == route.table) {
                Some(index) => index,
                None => {
                    let definition = BronzeDefinition {
                        name: route.table.clone(),
                        schema: bronze_schema(route.shape.as_deref()),
                        partition: route.partition.clone(),
                        properties: route.properties.clone(),
                    };
                    let bronze = BronzeTable::open(lake, &definition).await?;
                    let builder = ChangeBatchBuilder::new(route.shape.clone(), 0, clock.clone());
                    tables.push(IngestTable { bronze, shape: route.shape, topics: BTreeSet::new(), builder });
                    tables.len() - 1
                }
            };
            tables[index].topics.insert(partition.topic.clone());
            by_topic.insert(partition.topic.clone(), index);
        }
        let mut ingest = Ingest {
            source,
            tables,
            by_topic,
            triggers,
            format,
            clock,
            observer,
            read: Positions::new(),
            durable: Positions::new(),
            report: IngestReport::default(),
        };
        for index in 0..ingest.tables.len() {
            let offsets = ingest.tables[index].bronze.offsets()?;
            let of_table: Vec<TopicPartition> = partitions
                .iter()
                .filter(|partition| ingest.by_topic.get(&partition.topic) == Some(&index))
                .cloned()
                .collect();
            ingest.assign(index, &of_table, &offsets).await?;
        }
        Ok(ingest)
    }

    /// How far the source goes now: what a drain reads to.
    pub async fn end(&mut self) -> Result<Positions> {
        Ok(self.source.end_offsets().await?)
    }

    /// Reads a table's partitions from its marker on.
    async fn assign(&mut self, index: usize, partitions: &[TopicPartition], offsets: &Offsets) -> Result<()> {
        let starts: BTreeMap<TopicPartition, Start> = partitions
            .iter()
            .map(|partition| {
                let start = match offsets.next(&partition.topic, partition.partition) {
                    Some(next) => Start::At(next),
                    None => Start::Beginning,
                };
                (partition.clone(), start)
            })
            .collect();
        for (partition, from) in self.source.assign(&starts).await? {
            self.tables[index].builder.start(partition.clone(), from)?;
            self.read.insert(partition.clone(), from);
            self.durable.insert(partition, from);
        }
        Ok(())
    }

    /// Reads and commits until `until` says otherwise.
    pub async fn run(mut self, mut until: watch::Receiver<Until>) -> Result<IngestReport> {
        let mut oldest: Option<Instant> = None;
        loop {
            let goal = until.borrow_and_update().clone();
            let is_done = match &goal {
                Until::Forever => false,
                Until::Now => true,
                Until::Reached(positions) => {
                    positions.iter().all(|(partition, end)| self.read.get(partition).is_none_or(|next| next >= end))
                }
            };
            if is_done {
                self.commit().await?;
                // A commit may have found that another owner was faster, and gone back.
                if goal == Until::Now || self.reached(&goal) {
                    self.report.positions = self.durable;
                    return Ok(self.report);
                }
                oldest = None;
                continue;
            }
            self.fetch(oldest).await?;
            if oldest.is_none() && self.tables.iter().any(|table| table.builder.has_progress()) {
                oldest = Some(Instant::now());
            }
            if self.is_due(oldest) {
                self.commit().await?;
                oldest = None;
            }
        }
    }

    fn reached(&self, goal: &Until) -> bool {
        match goal {
            Until::Reached(positions) => {
                positions.iter().all(|(partition, end)| self.durable.get(partition).is_none_or(|next| next >= end))
            }
            _ => false,
        }
    }

    fn is_due(&self, oldest: Option<Instant>) -> bool {
        let (rows, bytes) = self
            .tables
            .iter()
            .fold((0, 0), |(rows, bytes), table| (rows + table.builder.rows(), bytes + table.builder.bytes()));
        rows >= self.triggers.rows
            || bytes >= self.triggers.bytes
            || oldest.is_some_and(|oldest| oldest.elapsed() >= self.triggers.every)
    }

    async fn fetch(&mut self, oldest: Option<Instant>) -> Result<()> {
        const LOOK_UP_EVERY: Duration = Duration::from_millis(200);
        let left = oldest.map_or(LOOK_UP_EVERY, |oldest| self.triggers.every.saturating_sub(oldest.elapsed()));
        let limits = FetchLimits {
            records: 10_000.min(self.triggers.rows.max(1)),
            bytes: (16 << 20).min(self.triggers.bytes.max(1)),
            wait: left.min(LOOK_UP_EVERY),
        };
        let fetched = self.source.fetch(limits).await?;
        for record in fetched.records {
            let Some(index) = self.by_topic.get(&record.topic) else { continue };
            self.tables[*index].builder.push(decode::decode(record, self.format))?;
        }
        for (partition, next) in fetched.positions {
            if let Some(index) = self.by_topic.get(&partition.topic) {
                self.tables[*index].builder.advance(&partition, next);
                self.read.insert(partition, next);
            }
        }
        Ok(())
    }

    /// Commits every table that has something, all at once.
    async fn commit(&mut self) -> Result<()> {
        let mut batches: Vec<Option<ChangeBatch>> = Vec::with_capacity(self.tables.len());
        for table in &mut self.tables {
            batches.push(if table.builder.has_progress() { Some(table.builder.finish()?) } else { None });
        }
        let commits = self.tables.iter_mut().zip(&batches).map(|(table, batch)| async move {
            match batch {
                Some(batch) => table.bronze.commit(batch).await.map(Some),
                None => Ok(None),
            }
        });
        let outcomes = join_all(commits).await;
        let mut advanced = Positions::new();
        let mut behind = Vec::new();
        // What is durable is told before an error of another table ends the run.
        let mut first_error = None;
        for (index, (outcome, batch)) in outcomes.into_iter().zip(batches).enumerate() {
            match outcome {
                Ok(None) => {}
                Ok(Some(Outcome::Committed(commit))) => {
                    for (partition, range) in batch.iter().flat_map(|batch| &batch.ranges) {
                        advanced.insert(partition.clone(), range.next);
                    }
                    self.report.rows += commit.rows;
                    self.report.rejected += commit.counts.rejected;
                    self.report.commits += 1;
                    (self.observer)(&Event::Ingested(commit));
                }
                Ok(Some(Outcome::Behind(offsets))) => behind.push((index, offsets)),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        if !advanced.is_empty() {
            self.durable.extend(advanced.clone());
            self.source.durable(&advanced).await;
        }
        if let Some(error) = first_error {
            return Err(error.into());
        }
        for (index, offsets) in behind {
            let topics = &self.tables[index].topics;
            let partitions: Vec<TopicPartition> =
                self.read.keys().filter(|partition| topics.contains(&partition.topic)).cloned().collect();
            self.tables[index].builder = self.tables[index].fresh_builder(&self.clock);
            self.assign(index, &partitions, &offsets).await?;
        }
        Ok(())
    }
}
