//! Reads a source into bronze tables until told to stop.
//!
//! Each table has a lane (`lane.rs`) that decodes, writes and commits beside the others. This file deals the records out,
//! says when to commit, and follows how far the tables are.
//!
//! **What is in flight is bounded**: a table that cannot take more for a while is held back and the others go on, nothing is
//! fetched while the lanes hold as many bytes of records as they may, and tables with many rows staged commit early when
//! all of them together take too much memory. **The source is told of a position only after it is durable.** **A table
//! that fails does not hold the others up**: what may mend itself is tried again from the table's own marker, and what will
//! not stops that table alone.

mod pending;
mod table;
mod telling;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use pending::{CHUNK_BYTES, CHUNK_ROWS, Pending};
use table::{State, Table, Uncommitted};

use super::lane::{Lane, Report, Work};
use super::makers::Makers;
use super::{Breaker, Dialect, Event, Observer, Standing, Tripped, Turning};
use crate::bronze::{BronzeDefinition, BronzeTable};
use crate::config::Percent;
use crate::error::{Error, Kind, Result, Situation};
use crate::evolution::Evolution;
use crate::ids::TableName;
use crate::offsets::{Offsets, Positions, TopicPartition};
use crate::row::RowShape;
use crate::source::{self, FetchLimits, Fetched, Source, Start};
use crate::table::Lake;

/// How many chunks a lane may have waiting.
const CHUNKS_WAITING: usize = 4;

/// Tables opened at the same time.
const OPENED_AT_ONCE: usize = 16;

/// How long a failed table waits until it is tried again: at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(30);

/// How often a drain tries a table again, which has an end and somebody waiting for it.
const DRAIN_TRIES: u32 = 6;

/// How long a table may have no room for more before the others go on without it. What the client had read ahead of it
/// is read again then, so that it is not done for each chunk that has to wait.
const HOLD_BACK_AFTER: Duration = Duration::from_millis(100);

/// A commit that has not written its files by then may take long.
const LONG_COMMIT: Duration = Duration::from_secs(1);

/// How long to look for records before looking up.
const LOOK_UP_EVERY: Duration = Duration::from_millis(200);

/// Which topics go to which bronze table, and how.
#[derive(Debug, Clone)]
pub struct Route {
    pub topic: String,
    pub table: TableName,
    pub shape: Option<Arc<RowShape>>,
    pub evolution: Evolution,
    /// The share of rejected records above which the table is stopped.
    pub stop_above: Option<Percent>,
    pub partition: Vec<String>,
    pub properties: BTreeMap<String, String>,
}

impl Route {
    /// How its bronze table is made.
    pub(super) fn definition(&self) -> BronzeDefinition {
        BronzeDefinition {
            name: self.table.clone(),
            shape: self.shape.clone(),
            evolution: self.evolution,
            partition: self.partition.clone(),
            properties: self.properties.clone(),
        }
    }
}

/// A table's rows are committed when any of these is reached.
#[derive(Debug, Clone)]
pub struct CommitTriggers {
    pub every: Duration,
    pub rows: usize,
    pub bytes: usize,
    /// What all tables together may hold in memory: records up to a quarter of it, which take twice as much while they
    /// become rows, and rows that are not in a file yet up to a half.
    pub memory: usize,
}

impl CommitTriggers {
    /// How much is read and handed over at once: little beside what there is room for.
    fn chunk_bytes(&self) -> usize {
        CHUNK_BYTES.min(self.memory / 32).max(64 << 10)
    }
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

#[derive(Debug, thiserror::Error)]
pub(super) enum IngestError {
    #[error("the task that writes table `{table}` has ended")]
    LaneEnded { table: TableName },

    #[error("table `{table}` has stopped: {tripped}")]
    TooManyRejected { table: TableName, tripped: Tripped },

    #[error("the threads that decode records cannot be started")]
    NoThreads {
        #[source]
        source: std::io::Error,
    },
}

impl Situation for IngestError {
    fn kind(&self) -> Kind {
        match self {
            IngestError::LaneEnded { .. } => Kind::Bug,
            IngestError::TooManyRejected { .. } => Kind::Quality,
            IngestError::NoThreads { .. } => Kind::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            IngestError::LaneEnded { .. } | IngestError::NoThreads { .. } => None,
            IngestError::TooManyRejected { table, .. } => {
                Some(format!("`icestream rejected list {}` says why; what was read is kept", table.name()))
            }
        }
    }
}

/// Says where a topic's records go.
type Router<'a> = Box<dyn Fn(&str) -> Option<Route> + Send + Sync + 'a>;

/// A source on its way into bronze tables.
pub struct Ingest<'a> {
    source: Box<dyn Source>,
    lake: &'a Lake,
    route: Router<'a>,
    tables: Vec<Table>,
    /// The table of each topic, as an index.
    by_topic: BTreeMap<Arc<str>, usize>,
    triggers: CommitTriggers,
    dialect: Dialect,
    makers: Makers,
    observer: Observer,
    /// How far the source was read.
    read: Positions,
    /// How far bronze is durable.
    durable: Positions,
    report: IngestReport,
    told_in_hand: Option<Instant>,
    /// Why tables could not be opened. Their topics are not read.
    refused: Vec<Error>,
    tell: mpsc::UnboundedSender<(usize, Report)>,
    reports: mpsc::UnboundedReceiver<(usize, Report)>,
}

impl<'a> Ingest<'a> {
    /// Opens the tables of every topic the source has, and takes up reading where their markers stand.
    pub async fn start(
        lake: &'a Lake,
        mut source: Box<dyn Source>,
        route: impl Fn(&str) -> Option<Route> + Send + Sync + 'a,
        dialect: impl Into<Dialect>,
        triggers: CommitTriggers,
        observer: Observer,
    ) -> Result<Self> {
        let partitions = source.partitions().await?;
        let (tell, reports) = mpsc::unbounded_channel();
        let mut ingest = Ingest {
            source,
            lake,
            route: Box::new(route),
            tables: Vec::new(),
            by_topic: BTreeMap::new(),
            triggers,
            dialect: dialect.into(),
            makers: Makers::start().map_err(|source| IngestError::NoThreads { source })?,
            observer,
            read: Positions::new(),
            durable: Positions::new(),
            report: IngestReport::default(),
            told_in_hand: None,
            refused: Vec::new(),
            tell,
            reports,
        };
        for (index, offsets) in ingest.open(&partitions).await? {
            let of_table = ingest.of_table(index, &partitions);
            ingest.take_up(index, &of_table, &offsets).await?;
        }
        Ok(ingest)
    }

    /// How far the source goes now: what a drain reads to.
    pub async fn end(&mut self) -> Result<Positions> {
        Ok(self.source.end_offsets().await?)
    }

    /// Opens the tables of topics that were not known before. Gives those that are new, and how far they are.
    async fn open(&mut self, partitions: &[TopicPartition]) -> Result<Vec<(usize, Offsets)>> {
        let mut routes: Vec<(Route, BTreeSet<Arc<str>>)> = Vec::new();
        for TopicPartition { topic, .. } in partitions {
            if self.by_topic.contains_key(topic) {
                continue;
            }
            let Some(route) = (self.route)(topic) else { continue };
            if let Some(index) = self.tables.iter().position(|table| table.name == route.table) {
                self.tables[index].topics.insert(topic.clone());
                self.by_topic.insert(topic.clone(), index);
                continue;
            }
            match routes.iter_mut().find(|(known, _)| known.table == route.table) {
                Some((_, topics)) => drop(topics.insert(topic.clone())),
                None => routes.push((route, [topic.clone()].into())),
            }
        }
        let (lake, dialect, makers) = (self.lake, &self.dialect, &self.makers);
        let observer = &self.observer;
        let opened = stream::iter(routes).map(|(route, topics)| async move {
            let name = route.table.clone();
            let opened = async {
                let bronze = BronzeTable::open(lake, &route.definition()).await?;
                let offsets = bronze.offsets()?;
                Ok::<_, Error>((
                    route,
                    topics,
                    Lane::new(bronze, lake.clock().clone(), dialect.clone(), makers.clone()),
                    offsets,
                ))
            };
            let opened = opened.await;
            observer(&Event::Turned(Turning::Ingest));
            (name, opened)
        });
        let opened: Vec<_> = opened.buffered(OPENED_AT_ONCE).collect().await;
        let mut found = Vec::new();
        for (name, opened) in opened {
            let (route, topics, lane, offsets) = match opened {
                Ok(opened) => opened,
                Err(error) if error.kind() == Kind::Unavailable => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "a table cannot be opened; the others go on");
                    self.fares(name, Standing::Stopped(error.kind()));
                    self.refused.push(error);
                    continue;
                }
            };
            let index = self.tables.len();
            self.by_topic.extend(topics.iter().map(|topic| (topic.clone(), index)));
            self.fares(name.clone(), Standing::Well);
            let (work, inbox) = mpsc::channel(CHUNKS_WAITING + 1);
            let tell = self.tell.clone();
            // Nobody listens any more when reading has ended.
            let task = tokio::spawn(lane.run(inbox, move |report| drop(tell.send((index, report)))));
            self.tables.push(Table {
                name,
                topics,
                work,
                task,
                pending: Pending::new(self.triggers.chunk_bytes()),
                bytes_waiting: 0,
                bytes_staged: 0,
                uncommitted: Uncommitted::default(),
                committing_since: None,
                full_since: None,
                is_paused: false,
                joining: BTreeSet::new(),
                state: State::Reading,
                failures: 0,
                is_well: true,
                breaker: Breaker::new(route.stop_above),
            });
            found.push((index, offsets));
        }
        Ok(found)
    }

    fn of_table(&self, index: usize, partitions: &[TopicPartition]) -> Vec<TopicPartition> {
        let topics = &self.tables[index].topics;
        partitions.iter().filter(|partition| topics.contains(&partition.topic)).cloned().collect()
    }

    /// Reads a table's partitions from its marker on.
    async fn assign(
        &mut self,
        index: usize,
        partitions: &[TopicPartition],
        offsets: &Offsets,
        afresh: bool,
    ) -> Result<()> {
        let starts: BTreeMap<TopicPartition, Start> = partitions
            .iter()
            .map(|partition| {
                let start = match offsets.next(&partition.topic, partition.partition) {
                    Some(next) => Start::At { next, last: offsets.last(&partition.topic, partition.partition) },
                    None => Start::Beginning,
                };
                (partition.clone(), start)
            })
            .collect();
        let positions = self.source.assign(&starts).await?;
        self.read.extend(positions.clone());
        self.durable.extend(positions.clone());
        self.hold_back(index, false)?;
        let table = &mut self.tables[index];
        // The lane is idle or skips what is queued, so that there is room soon. Without an answer it has ended.
        let _ = table.work.send(Work::Start { positions, afresh }).await;
        table.state = State::Reading;
        Ok(())
    }

    /// Starts to read a table. One that cannot be read from where it stands is stopped alone.
    async fn take_up(&mut self, index: usize, partitions: &[TopicPartition], offsets: &Offsets) -> Result<()> {
        match self.assign(index, partitions, offsets, true).await {
            Err(error) if error.kind() == Kind::Unavailable => Err(error),
            Err(error) => {
                self.stop(index, error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Reads and commits until `until` says otherwise.
    pub async fn run(mut self, mut until: watch::Receiver<Until>) -> Result<IngestReport> {
        let mut is_told = true;
        loop {
            (self.observer)(&Event::Turned(Turning::Ingest));
            self.tell_in_hand();
            let goal = until.borrow_and_update().clone();
            let is_read = self.is_read(&goal);
            self.look_after_tables(is_read);
            self.hold_back_or_go_on()?;
            if is_read && self.is_settled(&goal) && self.is_durable(&goal) {
                (self.observer)(&Event::Ended(Turning::Ingest));
                return self.finish();
            }
            let limits = FetchLimits {
                records: CHUNK_ROWS.min(self.triggers.rows.max(1)),
                bytes: self.triggers.chunk_bytes().min(self.triggers.bytes.max(1)),
                wait: LOOK_UP_EVERY,
            };
            let may_fetch = !is_read && !self.is_busy() && !self.waits_for_room();
            let wake = self.next_wake();
            tokio::select! {
                biased;
                report = self.reports.recv() => {
                    // There is a sender as long as there is this.
                    if let Some((index, report)) = report {
                        self.hear(index, report, &goal).await?;
                    }
                }
                changed = until.changed(), if is_told => is_told = changed.is_ok(),
                fetched = self.source.fetch(limits), if may_fetch => match fetched {
                    Ok(fetched) => self.deal(fetched).await?,
                    Err(error) => match error.topic().and_then(|topic| self.by_topic.get(topic)).copied() {
                        Some(index) => {
                            if let source::Error::Replaced { at, mark: Some(mark), .. } = &error {
                                self.tables[index].recall(at.clone(), *mark).await;
                            }
                            self.stop(index, error.into());
                        }
                        None => return Err(error.into()),
                    },
                },
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Whether nothing more needs to be read.
    fn is_read(&self, goal: &Until) -> bool {
        match goal {
            Until::Forever => self.tables.iter().all(Table::is_stopped) && !self.tables.is_empty(),
            Until::Now => true,
            Until::Reached(ends) => self.reaches(&self.read, ends),
        }
    }

    fn is_durable(&self, goal: &Until) -> bool {
        match goal {
            Until::Reached(ends) => self.reaches(&self.durable, ends),
            _ => true,
        }
    }

    /// Partitions of other owners, and of tables that have stopped, are nobody's concern here.
    fn reaches(&self, positions: &Positions, ends: &Positions) -> bool {
        ends.iter().all(|(partition, end)| {
            let is_stopped = self.by_topic.get(&partition.topic).is_none_or(|index| self.tables[*index].is_stopped());
            is_stopped || positions.get(partition).is_none_or(|next| next >= end)
        })
    }

    /// Whether everything read is durable or given up.
    fn is_settled(&self, goal: &Until) -> bool {
        self.tables.iter().all(|table| match table.state {
            State::Reading => table.pending.is_empty() && !table.has_uncommitted() && !table.is_committing(),
            // Nothing of it is staged, and whoever reads next starts from its marker.
            State::Opening | State::Waiting(_) => *goal == Until::Now,
            State::Stopped(_) => true,
        })
    }

    fn bytes_in_flight(&self) -> usize {
        // What a stopped table was given is skipped, or its lane has ended and will never say so.
        let tables = self.tables.iter().filter(|table| !table.is_stopped());
        tables.map(Table::bytes_in_flight).sum()
    }

    /// Memory of rows that are not in a file yet.
    fn bytes_staged(&self) -> usize {
        self.tables.iter().filter(|table| !table.is_stopped()).map(|table| table.bytes_staged).sum()
    }

    /// Whether as much is read as there may be until more of it is written. Records take more room than their bytes until
    /// they are rows, and rows take theirs until they are committed.
    fn is_busy(&self) -> bool {
        let is_committing = self.tables.iter().any(|table| table.is_committing() && !table.is_stopped());
        self.bytes_in_flight() >= self.triggers.memory / 4
            || is_committing && self.bytes_staged() >= self.triggers.memory / 2
    }

    /// Commits what is due, and asks tables again that have waited long enough.
    fn look_after_tables(&mut self, is_read: bool) {
        let now = Instant::now();
        for index in 0..self.tables.len() {
            if self.tables[index].task.is_finished() && !self.tables[index].is_stopped() {
                self.stop(index, IngestError::LaneEnded { table: self.tables[index].name.clone() }.into());
            }
        }
        for table in &mut self.tables {
            if let State::Waiting(at) = table.state
                && at <= now
            {
                table.reopen();
            }
            let Uncommitted { rows, bytes, since } = &table.uncommitted;
            let is_due = *rows >= self.triggers.rows
                || *bytes >= self.triggers.bytes
                || since.is_some_and(|since| since.elapsed() >= self.triggers.every);
            if since.is_some() && (is_due || is_read || !table.joining.is_empty()) {
                table.begin_commit();
            } else if !table.joining.is_empty() && table.is_reading() && !table.is_committing() {
                table.reopen();
            }
        }
        if self.is_busy() {
            // Small chunks are better than none: what waits for more to come would wait for good.
            for table in &mut self.tables {
                table.hand_over(true);
            }
        }
        self.make_room();
    }

    /// Commits the largest tables early when all of them together take too much memory.
    fn make_room(&mut self) {
        // What is being committed is as good as gone, but for the few chunks behind it. If it takes long, the others have
        // the room that it leaves.
        let (mut going, mut staying) = (0, 0);
        for table in self.tables.iter().filter(|table| !table.is_stopped()) {
            let of = match table.committing_since {
                Some(since) if since.elapsed() < LONG_COMMIT => &mut going,
                Some(_) => &mut staying,
                None => continue,
            };
            *of += table.bytes_staged;
        }
        let mut staged = self.bytes_staged().saturating_sub(going + staying);
        let limit = (self.triggers.memory / 8 * 3).min((self.triggers.memory / 2).saturating_sub(staying));
        while staged > limit {
            let may_commit = |table: &&mut Table| {
                table.is_reading() && !table.is_committing() && table.has_uncommitted() && table.bytes_staged > 0
            };
            let Some(largest) = self.tables.iter_mut().filter(may_commit).max_by_key(|table| table.bytes_staged) else {
                break;
            };
            tracing::debug!(table = %largest.name, staged, "committing early to free memory");
            largest.begin_commit();
            if !largest.is_committing() {
                // It has more to do before, and tells when that is done.
                break;
            }
            staged = staged.saturating_sub(largest.bytes_staged);
        }
    }

    /// Nothing more is read while a table has no room for it. If that lasts, the table is held back and the others go on,
    /// until it has taken what it has.
    fn hold_back_or_go_on(&mut self) -> Result<()> {
        let room = (self.triggers.memory / 4).saturating_sub(self.bytes_in_flight());
        for index in 0..self.tables.len() {
            let table = &mut self.tables[index];
            if table.is_paused {
                // There is nothing to wait for that would make a small chunk larger.
                table.hand_over(true);
            }
            let has_room = table.is_reading() && table.joining.is_empty() && !table.is_full(room);
            table.full_since = if has_room { None } else { table.full_since.or_else(|| Some(Instant::now())) };
            let lasts = table.full_since.is_some_and(|since| since.elapsed() >= HOLD_BACK_AFTER);
            // What waits for its place in the log has nothing to take meanwhile.
            if has_room || lasts || !table.is_reading() || !table.joining.is_empty() {
                self.hold_back(index, !has_room)?;
            }
        }
        Ok(())
    }

    /// Whether what is read next may be of a table that has no room for it.
    fn waits_for_room(&self) -> bool {
        self.tables.iter().any(|table| table.full_since.is_some() && !table.is_paused)
    }

    fn hold_back(&mut self, index: usize, is_paused: bool) -> Result<()> {
        if self.tables[index].is_paused != is_paused {
            let partitions: Vec<TopicPartition> = self.read.keys().cloned().collect();
            let partitions = self.of_table(index, &partitions);
            match is_paused {
                true => self.source.pause(&partitions)?,
                false => self.source.resume(&partitions)?,
            }
            self.tables[index].is_paused = is_paused;
        }
        Ok(())
    }

    /// When something has to be done even if nothing happens.
    fn next_wake(&self) -> Instant {
        let due = |table: &Table| {
            let held_back = table.full_since.filter(|_| !table.is_paused).map(|since| since + HOLD_BACK_AFTER);
            let done = match (&table.state, table.uncommitted.since) {
                (State::Waiting(at), _) => Some(*at),
                (State::Reading, Some(since)) if !table.is_committing() => Some(since + self.triggers.every),
                _ => None,
            };
            held_back.into_iter().chain(done).min()
        };
        // What is due and cannot be done yet waits for a lane, which will tell.
        let (soonest, latest) = (Instant::now() + LOOK_UP_EVERY / 20, Instant::now() + LOOK_UP_EVERY * 5);
        self.tables.iter().filter_map(due).min().map_or(latest, |wake| wake.clamp(soonest, latest))
    }

    /// Deals records out to their tables.
    async fn deal(&mut self, fetched: Fetched) -> Result<()> {
        let Fetched { records, positions, gained, lost } = fetched;
        for record in records {
            let Some(index) = self.by_topic.get(&record.topic) else { continue };
            let table = &mut self.tables[*index];
            if !table.is_reading() {
                continue;
            }
            let bytes = record.payload.as_ref().map_or(0, |payload| payload.len())
                + record.key.as_ref().map_or(0, |key| key.len());
            table.pending.push(record, bytes);
            table.uncommitted.rows += 1;
            table.uncommitted.bytes += bytes;
            if table.pending.has_full_chunk() {
                table.hand_over(false);
            }
        }
        let now = Instant::now();
        for (partition, next) in positions {
            let Some(index) = self.by_topic.get(&partition.topic) else { continue };
            let table = &mut self.tables[*index];
            if table.is_reading() {
                table.uncommitted.since.get_or_insert(now);
                table.pending.reached(partition.clone(), next);
                self.read.insert(partition, next);
            }
        }
        self.lose(&lost);
        self.gain(gained).await
    }

    /// What was read of these partitions is committed, as much as is handed over at once, or found to be another owner's by
    /// then.
    fn lose(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            self.read.remove(partition);
            self.durable.remove(partition);
            if let Some(index) = self.by_topic.get(&partition.topic) {
                let table = &mut self.tables[*index];
                table.joining.remove(partition);
                table.begin_commit();
            }
        }
    }

    async fn gain(&mut self, partitions: Vec<TopicPartition>) -> Result<()> {
        if partitions.is_empty() {
            return Ok(());
        }
        let mut rest: Vec<TopicPartition> = partitions.clone();
        rest.retain(|partition| !self.read.contains_key(partition));
        for (index, offsets) in self.open(&partitions).await? {
            let of_table = self.of_table(index, &partitions);
            rest.retain(|partition| !of_table.contains(partition));
            self.take_up(index, &of_table, &offsets).await?;
        }
        for partition in rest {
            if let Some(index) = self.by_topic.get(&partition.topic) {
                self.tables[*index].joining.insert(partition);
            }
        }
        Ok(())
    }

    async fn hear(&mut self, index: usize, report: Report, goal: &Until) -> Result<()> {
        match report {
            Report::Took { bytes, staged } => {
                let table = &mut self.tables[index];
                table.bytes_waiting = table.bytes_waiting.saturating_sub(bytes);
                // What was told before a failure and comes after it is of rows that are gone.
                if table.is_reading() {
                    table.bytes_staged = staged;
                }
                table.hand_over(false);
            }
            Report::Committed { commit, reached, is_asked_for } => {
                let table = &mut self.tables[index];
                table.failures = 0;
                if is_asked_for {
                    table.committing_since = None;
                }
                let mine = |(partition, _): &(TopicPartition, i64)| self.durable.contains_key(partition);
                let advanced: Positions = reached.into_iter().filter(mine).collect();
                self.durable.extend(advanced.clone());
                if !advanced.is_empty() {
                    fail::fail_point!("ingest-before-durable");
                    self.source.durable(&advanced).await;
                }
                if let Some(commit) = commit {
                    self.report.rows += commit.rows;
                    self.report.rejected += commit.counts.rejected;
                    self.report.commits += 1;
                    let table = &mut self.tables[index];
                    // What was read of a partition before it was lost and gained again may still wait for its commit.
                    let is_all = table.pending.is_empty() && !table.has_uncommitted() && !table.is_committing();
                    let joining = match is_all {
                        true => std::mem::take(&mut table.joining).into_iter().collect(),
                        false => Vec::new(),
                    };
                    let offsets = commit.offsets.clone();
                    let tripped = self.tables[index].breaker.observe(&commit.counts);
                    (self.observer)(&Event::Ingested(*commit));
                    // What was under way when the table was stopped is well done, and the table is stopped all the same.
                    if self.tables[index].is_stopped() {
                        return Ok(());
                    }
                    self.recovered(index);
                    if let Some(tripped) = tripped {
                        let table = self.tables[index].name.clone();
                        self.stop(index, IngestError::TooManyRejected { table, tripped }.into());
                        return Ok(());
                    }
                    if !joining.is_empty()
                        && let Err(error) = self.assign(index, &joining, &offsets, false).await
                    {
                        self.tables[index].joining.extend(joining);
                        self.fail(index, error, goal);
                    }
                }
            }
            Report::At(_) | Report::Failed(_) if self.tables[index].is_stopped() => {}
            Report::At(offsets) => {
                let table = &mut self.tables[index];
                table.pending.clear();
                table.uncommitted = Uncommitted::default();
                (table.committing_since, table.bytes_staged) = (None, 0);
                let joining = std::mem::take(&mut table.joining);
                let mut partitions: BTreeSet<TopicPartition> = self.read.keys().cloned().collect();
                partitions.extend(joining);
                let partitions = self.of_table(index, &partitions.into_iter().collect::<Vec<_>>());
                if let Err(error) = self.assign(index, &partitions, &offsets, true).await {
                    self.fail(index, error, goal);
                }
            }
            Report::Failed(error) => self.fail(index, error, goal),
        }
        Ok(())
    }

    /// Waits with a table, or stops it, whichever its error asks for.
    fn fail(&mut self, index: usize, error: Error, goal: &Until) {
        let table = &mut self.tables[index];
        table.pending.clear();
        table.uncommitted = Uncommitted::default();
        (table.committing_since, table.bytes_staged) = (None, 0);
        table.failures += 1;
        let may_wait = *goal == Until::Forever || table.failures < DRAIN_TRIES;
        if !error.kind().is_retryable() || !may_wait {
            return self.stop(index, error);
        }
        table.is_well = false;
        let (name, kind) = (table.name.clone(), error.kind());
        let wait = RETRY_FIRST.saturating_mul(1 << (table.failures - 1).min(10)).min(RETRY_MOST);
        tracing::warn!(table = %table.name, %error, wait_ms = wait.as_millis() as u64, "a table failed; trying again");
        table.state = State::Waiting(Instant::now() + wait);
        self.fares(name, Standing::TriedAgain(kind));
    }

    fn stop(&mut self, index: usize, error: Error) {
        let table = &mut self.tables[index];
        if table.is_stopped() {
            return;
        }
        tracing::error!(table = %table.name, %error, "a table has stopped; the others go on");
        let (name, kind) = (table.name.clone(), error.kind());
        table.pending.clear();
        table.uncommitted = Uncommitted::default();
        table.committing_since = None;
        table.is_well = false;
        // It forgets what it has; its answer is for nobody. Where it has no room to be told, it keeps a few chunks.
        let _ = table.work.try_send(Work::Reopen);
        table.state = State::Stopped(error);
        self.fares(name, Standing::Stopped(kind));
    }

    /// The report, or the first error that stopped a table.
    fn finish(&mut self) -> Result<IngestReport> {
        let stopped = self.tables.iter_mut().map(|table| std::mem::replace(&mut table.state, State::Reading));
        let mut errors = std::mem::take(&mut self.refused);
        errors.extend(stopped.filter_map(|state| if let State::Stopped(error) = state { Some(error) } else { None }));
        if !errors.is_empty() {
            // What a retry may mend is worth less to know than what it will not.
            errors.sort_by_key(|error| error.kind() == Kind::Unavailable);
            return Err(errors.swap_remove(0));
        }
        self.report.positions = std::mem::take(&mut self.durable);
        Ok(std::mem::take(&mut self.report))
    }
}
