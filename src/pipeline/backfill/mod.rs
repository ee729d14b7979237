//! Adds history to bronze tables, record by record where it is missing.
//!
//! In come the files of topics, or ranges of a log that still has them; out go commits of rows with the offsets that are done with. **A record comes once**,
//! whether ingestion brought it, an earlier backfill or this one from another file: a table is asked which offsets it
//! holds, and the premise of each commit is that nobody has changed that meanwhile; else the table is asked again.
//! **Nothing but the table remembers how far a backfill came**: one that was killed is started again, and skips what is
//! there. What lies where ingestion has not come to yet is left to it.
//!
//! Files are read several at once, their bytes on a task of their own and what becomes of them on the makers' threads
//! (`reader.rs`); one task per table writes and commits (`writer.rs`). **A file that cannot be read to its end is told
//! with its place; the other files go on.**

mod error;
mod files;
mod held;
mod log;
mod ranges;
mod reader;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use self::error::BackfillError;
use self::files::{Read, read_all};
use self::held::Held;
pub use self::ranges::Wanted;
use self::reader::{Reading, Seen, Tombstones, Work};
use self::writer::{Round, Staged, Writer};
use super::makers::Makers;
use super::{Breaker, CommitTriggers, Dialect, Observer, Route};
use crate::bronze::BronzeTable;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ids::TableName;
use crate::offsets::{OffsetRange, Positions, TopicPartition};
use crate::source::{HistoryFile, Identity, Source};
use crate::table::Lake;

/// Tables filled at the same time: while one commits, another is read.
const TABLES_AT_ONCE: usize = 2;

/// How often a table is looked at again because others changed it, each time after they did. They end some time.
const MOST_ROUNDS: u32 = 100;

/// How often what does not answer is tried again.
const TRIES: u32 = 6;
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// Is told by how many bytes of files the whole is further; less than none where some are read again.
pub type Tick = Arc<dyn Fn(i64) + Send + Sync>;

/// The history of one table.
pub struct TableHistory {
    pub route: Route,
    from: Origin,
}

/// Opens a log to be read from wherever it is told.
pub type OpenLog = Arc<dyn Fn() -> Result<Box<dyn Source>> + Send + Sync>;

type Files = Vec<(Identity, Arc<HistoryFile>)>;

/// Where a history comes from.
enum Origin {
    /// By partition and offset.
    Files(Files),
    Log {
        ranges: BTreeMap<TopicPartition, OffsetRange>,
        open: OpenLog,
    },
}

/// Files by the table they go to, and those that go nowhere.
#[derive(Debug, Default)]
pub struct Sorted {
    pub tables: Vec<TableHistory>,
    /// Their names do not say which records they hold.
    pub nameless: Vec<HistoryFile>,
    /// No table is for their topics.
    pub unrouted: BTreeSet<String>,
}

/// Puts files to the tables they are for.
pub fn sort(files: Vec<HistoryFile>, route: impl Fn(&str) -> Option<Route>) -> Sorted {
    let mut sorted = Sorted::default();
    let mut tables: BTreeMap<TableName, (Route, Files)> = BTreeMap::new();
    for file in files {
        let Some(identity) = file.identity.clone() else {
            sorted.nameless.push(file);
            continue;
        };
        match route(&identity.at.topic) {
            Some(route) => {
                let table = tables.entry(route.table.clone()).or_insert((route, Vec::new()));
                table.1.push((identity, Arc::new(file)));
            }
            None => drop(sorted.unrouted.insert(identity.at.topic.to_string())),
        }
    }
    let history = |(route, mut files): (Route, Files)| {
        files.sort_by(|a, b| a.0.cmp(&b.0));
        TableHistory { route, from: Origin::Files(files) }
    };
    sorted.tables = tables.into_values().map(history).collect();
    sorted
}

impl fmt::Debug for TableHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableHistory").field("table", &self.route.table).finish_non_exhaustive()
    }
}

impl TableHistory {
    /// Ranges of a log, all of topics that go to one table.
    pub fn of_log(route: Route, ranges: BTreeMap<TopicPartition, OffsetRange>, open: OpenLog) -> Self {
        TableHistory { route, from: Origin::Log { ranges, open } }
    }

    /// How much there is to be read: bytes of files, or offsets of a log.
    pub fn amount(&self) -> u64 {
        match &self.from {
            Origin::Files(files) => files.iter().map(|(_, file)| file.bytes).sum(),
            Origin::Log { ranges, .. } => ranges.values().map(|range| (range.next - range.from).max(0) as u64).sum(),
        }
    }

    fn files(&self) -> &[(Identity, Arc<HistoryFile>)] {
        match &self.from {
            Origin::Files(files) => files,
            Origin::Log { .. } => &[],
        }
    }

    /// The first offset of each partition.
    fn first(&self) -> Positions {
        let mut first = Positions::new();
        if let Origin::Log { ranges, .. } = &self.from {
            return ranges.iter().map(|(at, range)| (at.clone(), range.from)).collect();
        }
        for (Identity { at, from }, _) in self.files() {
            first.entry(at.clone()).or_insert(*from);
        }
        first
    }

    /// Each file, and the offset of the next one of its partition, if there is one.
    fn with_next(&self) -> impl Iterator<Item = (&Identity, &Arc<HistoryFile>, Option<i64>)> {
        let files = self.files();
        files.iter().enumerate().map(|(index, (identity, file))| {
            let behind = files[index + 1..].iter().take_while(|(next, _)| next.at == identity.at);
            let next = behind.map(|(next, _)| next.from).find(|from| *from > identity.from);
            (identity, file, next)
        })
    }
}

/// What a table holds of one partition's history, before anything is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    pub table: TableName,
    pub at: TopicPartition,
    pub files: usize,
    pub bytes: u64,
    /// Of the files, those that need not be read.
    pub files_there: usize,
    pub bytes_there: u64,
    /// The first offset, and the first of the last file, or the one behind the last of a log.
    pub first: i64,
    pub last: i64,
    /// Of a log, how many offsets are to be read.
    pub offsets: u64,
    /// How many offsets from the first on the table has already.
    pub offsets_there: u64,
    /// Where ingestion reads on; what lies behind is left to it.
    pub ingests_from: Option<i64>,
}

/// What was done to one table.
#[derive(Debug, Clone, Default)]
pub struct TableReport {
    pub rows: u64,
    pub rejected: u64,
    pub commits: u64,
    /// Records that were read and were there.
    pub there: u64,
    /// Records that ingestion will come to.
    pub ahead: u64,
    pub files: usize,
    /// Of the files, those that were not read because all their records were there, or are left to ingestion.
    pub files_skipped: usize,
    pub bytes: u64,
    /// Of the records in them, unpacked.
    pub bytes_unpacked: u64,
    /// Files that do not come to the next one's offset, or of which it is not known which offsets their lines have: those
    /// are numbered in a row.
    pub files_with_gaps: usize,
}

/// What a backfill did.
#[derive(Debug, Default)]
pub struct BackfillReport {
    pub tables: BTreeMap<TableName, TableReport>,
    /// Whether everything was read that can be.
    pub is_complete: bool,
    /// Files that cannot be read to their end.
    pub broken: Vec<(String, Error)>,
    /// Tables that were not filled.
    pub failed: Vec<(TableName, Error)>,
}

/// Fills tables with history.
pub struct Backfill<'a> {
    lake: &'a Lake,
    engine: &'a Engine,
    dialect: Dialect,
    triggers: CommitTriggers,
    observer: Observer,
    makers: Makers,
    /// Which life of the topics the history is of; the present one of tables that have had one only.
    epoch: Option<i32>,
    /// Whether the sink left out records without a value, where that is known.
    tombstones_left_out: Option<bool>,
}

/// What became of a table in a round.
struct Found {
    seen: Seen,
    skipped: usize,
    is_complete: bool,
    broken: Vec<(String, Error)>,
}

impl<'a> Backfill<'a> {
    pub fn new(
        lake: &'a Lake,
        engine: &'a Engine,
        dialect: Dialect,
        triggers: CommitTriggers,
        epoch: Option<i32>,
        observer: Observer,
    ) -> Result<Self> {
        let makers = Makers::start().map_err(|source| super::ingest::IngestError::NoThreads { source })?;
        Ok(Backfill { lake, engine, dialect, triggers, observer, makers, epoch, tombstones_left_out: None })
    }

    /// With what is known of the sink: whether it left out records without a value.
    pub fn with_tombstones(self, left_out: Option<bool>) -> Self {
        Backfill { tombstones_left_out: left_out, ..self }
    }

    /// What would be done to a table.
    pub async fn look(&self, history: &TableHistory) -> Result<Vec<Outlook>> {
        let table = self.lake.table_if_exists(&history.route.table).await?;
        let held = self.held(table.as_ref(), history).await?;
        let mut outlooks: Vec<Outlook> = Vec::new();
        for (identity, file, next) in history.with_next() {
            let at = &identity.at;
            if outlooks.last().is_none_or(|outlook| outlook.at != *at) {
                let partition = held.partition(at);
                outlooks.push(Outlook {
                    table: history.route.table.clone(),
                    at: at.clone(),
                    files: 0,
                    bytes: 0,
                    files_there: 0,
                    bytes_there: 0,
                    first: identity.from,
                    last: identity.from,
                    offsets: 0,
                    offsets_there: partition.map_or(0, |partition| {
                        partition.count_within(OffsetRange { from: identity.from, next: i64::MAX })
                    }),
                    ingests_from: partition.and_then(|partition| partition.next()).filter(|next| *next < i64::MAX),
                });
            }
            if let Some(outlook) = outlooks.last_mut() {
                outlook.files += 1;
                outlook.bytes += file.bytes;
                outlook.last = identity.from;
                if is_there(&held, identity, next) {
                    outlook.files_there += 1;
                    outlook.bytes_there += file.bytes;
                }
            }
        }
        if let Origin::Log { ranges, .. } = &history.from {
            outlooks.extend(ranges.iter().map(|(at, range)| Outlook {
                table: history.route.table.clone(),
                at: at.clone(),
                files: 0,
                bytes: 0,
                files_there: 0,
                bytes_there: 0,
                first: range.from,
                last: range.next,
                offsets: held.missing(at, *range).count() as u64,
                offsets_there: held.partition(at).map_or(0, |partition| partition.count_within(*range)),
                ingests_from: held.partition(at).and_then(|partition| partition.next()).filter(|next| *next < i64::MAX),
            }));
        }
        Ok(outlooks)
    }

    /// Fills all of them, until `stop` says to commit what is there and end.
    pub async fn run(&self, tables: &[TableHistory], tick: &Tick, stop: &watch::Receiver<bool>) -> BackfillReport {
        let fill = |history| async move {
            let mut report = TableReport::default();
            let outcome = self.fill(history, &mut report, tick, stop).await;
            (history.route.table.clone(), report, outcome)
        };
        let mut filled = stream::iter(tables).map(fill).buffer_unordered(TABLES_AT_ONCE);
        let mut report = BackfillReport { is_complete: true, ..BackfillReport::default() };
        while let Some((table, of_table, outcome)) = filled.next().await {
            report.tables.insert(table.clone(), of_table);
            match outcome {
                Ok(found) => {
                    report.is_complete &= found.is_complete && found.broken.is_empty();
                    report.broken.extend(found.broken);
                }
                Err(error) => {
                    tracing::error!(%table, %error, "a table was not filled; the others go on");
                    report.is_complete = false;
                    report.failed.push((table, error));
                }
            }
        }
        report.broken.sort_by(|a, b| a.0.cmp(&b.0));
        report
    }

    /// Goes over a table until all that can be read of its history is in it.
    async fn fill(
        &self,
        history: &TableHistory,
        report: &mut TableReport,
        tick: &Tick,
        stop: &watch::Receiver<bool>,
    ) -> Result<Found> {
        let mut breaker = Breaker::new(history.route.stop_above);
        let (mut rounds, mut failures) = (0, 0);
        loop {
            let ticked = Arc::new(AtomicI64::new(0));
            let outcome = self.round(history, report, &mut breaker, tick, &ticked, stop).await;
            let wait = match outcome {
                Ok((Round::Done, found)) => {
                    report.files_skipped = found.skipped;
                    report.files_with_gaps = found.seen.with_gaps;
                    report.bytes_unpacked += found.seen.bytes;
                    report.there += found.seen.there;
                    report.ahead = found.seen.ahead;
                    report.files = history.files().len();
                    report.bytes = history.files().iter().map(|(_, file)| file.bytes).sum();
                    return Ok(found);
                }
                Ok((Round::Again, found)) => {
                    report.bytes_unpacked += found.seen.bytes;
                    rounds += 1;
                    if rounds >= MOST_ROUNDS {
                        return Err(BackfillError::Busy { table: history.route.table.clone() }.into());
                    }
                    Duration::ZERO
                }
                Err(error) if error.kind().is_retryable() && failures < TRIES && !*stop.borrow() => {
                    failures += 1;
                    let wait = RETRY_FIRST * 2u32.pow(failures);
                    let (table, wait_ms) = (&history.route.table, wait.as_millis() as u64);
                    tracing::warn!(%table, %error, wait_ms, "a table was not filled; trying again");
                    wait
                }
                Err(error) => return Err(error),
            };
            // What is read again is not further on.
            tick(-ticked.load(Ordering::Relaxed));
            tokio::time::sleep(wait).await;
        }
    }

    async fn held(&self, table: Option<&crate::table::Table>, history: &TableHistory) -> Result<Held> {
        if let Some(table) = table {
            let (name, current) = (table.name().clone(), crate::bronze::epoch(table)?);
            match self.epoch {
                None if current > 0 => return Err(BackfillError::EpochUnknown { table: name, current }.into()),
                Some(epoch) if epoch > current => {
                    return Err(BackfillError::EpochToCome { table: name, epoch, current }.into());
                }
                _ => {}
            }
        }
        Held::look(table, self.engine, self.epoch, &history.first()).await
    }

    /// Looks at what the table holds, and reads what it lacks.
    async fn round(
        &self,
        history: &TableHistory,
        report: &mut TableReport,
        breaker: &mut Breaker,
        tick: &Tick,
        ticked: &Arc<AtomicI64>,
        stop: &watch::Receiver<bool>,
    ) -> Result<(Round, Found)> {
        let bronze = BronzeTable::open(self.lake, &history.route.definition()).await?;
        let held = Arc::new(self.held(bronze.table(), history).await?);
        let mut found = Found { seen: Seen::default(), skipped: 0, is_complete: true, broken: Vec::new() };
        let mut files = Vec::new();
        for (identity, file, next) in history.with_next() {
            if is_there(&held, identity, next) {
                found.skipped += 1;
                ticked.fetch_add(file.bytes as i64, Ordering::Relaxed);
                tick(file.bytes as i64);
            } else {
                files.push(Work { identity: identity.clone(), file: file.clone(), next });
            }
        }
        let is_log = matches!(history.from, Origin::Log { .. });
        if files.is_empty() && !is_log {
            return Ok((Round::Done, found));
        }
        let threads = self.engine.threads();
        let (send, made) = mpsc::channel(threads);
        let (images, built_for) = watch::channel(Arc::new(bronze.images()?));
        let reading = Reading {
            makers: self.makers.clone(),
            dialect: self.dialect.clone(),
            clock: self.lake.clock().clone(),
            epoch: held.basis.epoch,
            images: built_for,
            stop: stop.clone(),
            send,
            tick: tick.clone(),
            ticked: ticked.clone(),
            tombstones: Arc::new(Tombstones::new(self.tombstones_left_out)),
        };
        let writer = Writer {
            bronze,
            basis: held.basis.clone(),
            breaker,
            report,
            triggers: &self.triggers,
            observer: &self.observer,
            images,
            taken: BTreeMap::new(),
            staged: Staged::default(),
        };
        let mut readers = JoinSet::new();
        match &history.from {
            Origin::Files(_) => drop(readers.spawn(read_all(reading.clone(), files, threads, held.clone()))),
            Origin::Log { ranges, open } => {
                let (reading, source, ranges, held) = (reading.clone(), open()?, ranges.clone(), held.clone());
                readers.spawn(async move {
                    match log::read_log(reading, source, ranges, held).await {
                        Ok((seen, is_complete)) => Read { seen, is_complete, ..Read::default() },
                        Err(error) => Read { is_complete: false, error: Some(error), ..Read::default() },
                    }
                });
            }
        }
        drop(reading);
        let round = writer.run(made).await;
        while let Some(read) = readers.join_next().await {
            // One that panicked has told so, and whatever it read counts for nothing.
            let Ok(read) = read else { return Err(BackfillError::ThreadsEnded.into()) };
            found.seen += read.seen;
            found.is_complete &= read.is_complete;
            found.broken.extend(read.broken);
            if let (Some(error), Ok(_)) = (read.error, &round) {
                return Err(error);
            }
        }
        Ok((round?, found))
    }
}

/// Whether a file need not be read: all of it is there, or it is ingestion's.
fn is_there(held: &Held, identity: &Identity, next: Option<i64>) -> bool {
    let Some(partition) = held.partition(&identity.at) else { return false };
    let whole = next.map(|next| OffsetRange { from: identity.from, next });
    partition.is_ahead(identity.from) || whole.is_some_and(|whole| partition.has_all(whole))
}
