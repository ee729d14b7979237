//! How far tables have read their topics, and moving that by hand.
//!
//! **A move is a commit of its own**, whose premise is the marker it was planned on: whoever ingests meanwhile makes it
//! fail, and is made to look again by it. **Bronze's identity stays unique**: a move back over rows the table holds either
//! deletes them in the same commit, to be read again, or raises the epoch, because they are other records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::error::ArrowError;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use super::{Route, route};
use crate::amendment::{self, Amendments};
use crate::backfilled::{self, Backfilled, BackfilledError};
use crate::bronze::{self, BronzeTable};
use crate::clock::Clock;
use crate::config::Config;
use crate::engine::{self, Engine};
use crate::error::{Kind, Result, Situation};
use crate::ids::TableName;
use crate::layout;
use crate::offsets::{self, Beginning, Offsets, OffsetsError, Positions, RecordMark, TopicPartition};
use crate::source::{Bounds, KafkaAdmin};
use crate::table::{self, At, Lake, Premise, ScanFile, Table, WrittenFile};

/// The offset of a row that stands for no record.
const NO_RECORD: i64 = -1;

/// Positions are made of digits and what stands between them.
const PAST_ALL_POSITIONS: &str = "~";

/// The summary key that says which command made a commit by hand.
const MOVED_BY: &str = "icestream.moved-by";

#[derive(Debug, thiserror::Error)]
pub enum OffsetsMoveError {
    #[error("bronze table `{table}` has a marker that cannot be read")]
    Marker {
        table: TableName,
        #[source]
        source: OffsetsError,
    },

    #[error("the row with which an epoch of table `{table}` ends cannot be made")]
    End {
        table: TableName,
        #[source]
        source: ArrowError,
    },

    #[error("bronze table `{table}` has a marker that cannot be read")]
    Backfilled {
        table: TableName,
        #[source]
        source: BackfilledError,
    },

    #[error("no topic that the project reads goes to table `{table}`")]
    NoTopics { table: TableName },

    #[error("topic `{topic}` has no partition {partition} on the brokers")]
    NoPartition { topic: String, partition: i32 },

    #[error("offset {to} is not in `{at}`, which holds {} to {}", bounds.first, bounds.end)]
    Outside { at: TopicPartition, to: i64, bounds: Bounds },

    #[error("table `{table}` holds {rows} rows of `{at}` from offset {to} on, and would get them twice")]
    RowsHeld { table: TableName, at: TopicPartition, to: i64, rows: u64 },

    #[error("table `{table}` has read `{at}` up to offset {next} already")]
    HasMarker { table: TableName, at: TopicPartition, next: i64 },

    #[error("the offsets of table `{table}` moved while they were looked at")]
    Moved {
        table: TableName,
        #[source]
        source: table::Error,
    },

    #[error("table `{table}` was not written by Kafka Connect's Iceberg sink: no snapshot has `{SINK_OFFSETS}…`")]
    NotOfConnect { table: TableName },

    #[error("no commit of the sink to `{table}` says through which time the table is complete")]
    NoCompleteTime { table: TableName, group: Option<String> },

    #[error("group `{group}` has committed nothing of the topics that go to these tables")]
    NothingCommitted { group: String },
}

impl Situation for OffsetsMoveError {
    fn kind(&self) -> Kind {
        match self {
            OffsetsMoveError::Marker { .. } | OffsetsMoveError::Backfilled { .. } => Kind::Corrupt,
            OffsetsMoveError::Moved { .. } => Kind::Conflict,
            OffsetsMoveError::End { .. } => Kind::Bug,
            _ => Kind::Config,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            OffsetsMoveError::End { .. } => return None,
            OffsetsMoveError::Marker { .. } => {
                format!("look at the table property `{}`; icestream writes it as JSON", offsets::MARKER)
            }
            OffsetsMoveError::Backfilled { .. } => {
                format!("look at the table property `{}`; icestream writes it as JSON", backfilled::MARKER)
            }
            OffsetsMoveError::NoTopics { .. } => {
                "check `source.kafka.topics`, and `topic` in the table's file in `catalog/`".to_string()
            }
            OffsetsMoveError::NoPartition { .. } => "`icestream offsets show` lists the partitions".to_string(),
            OffsetsMoveError::Outside { .. } => "`--to earliest` and `--to latest` always fit".to_string(),
            OffsetsMoveError::RowsHeld { .. } => {
                "`offsets reset … --rewind` deletes those rows and reads them again; `--epoch` keeps them, for a topic \
                 that was deleted and made anew"
                    .to_string()
            }
            OffsetsMoveError::HasMarker { .. } => "`--force` moves it all the same".to_string(),
            OffsetsMoveError::Moved { .. } => "stop whatever ingests into the table, or try again".to_string(),
            OffsetsMoveError::NotOfConnect { .. } => {
                "name the table that the sink writes to, or use `--from-group`".to_string()
            }
            OffsetsMoveError::NoCompleteTime { group, .. } => {
                let group = group.as_deref().unwrap_or("GROUP");
                format!(
                    "let it commit once while every partition gets records; or stop it when its last commit is done and take \
                     its group's offsets as they are: `--from-group {group}`"
                )
            }
            OffsetsMoveError::NothingCommitted { .. } => {
                "check the group's name; the sink's own is `cg-control-<connector>` or `connect-<connector>`"
                    .to_string()
            }
        })
    }

    fn state(&self) -> Option<String> {
        Some("nothing was moved".to_string())
    }
}

/// What the brokers hold of the topics a project reads or has read.
#[derive(Debug, Clone, Default)]
pub struct Log {
    bounds: BTreeMap<TopicPartition, Bounds>,
    /// Whether topics are still those that were read, where their records tell.
    same: BTreeMap<String, bool>,
}

impl Log {
    /// Asks for the topics of the configuration and those that `known` has offsets of.
    pub async fn look(kafka: &KafkaAdmin, config: &Config, known: &[&Offsets]) -> Result<Self> {
        let known: BTreeSet<&str> = known.iter().flat_map(|offsets| offsets.topics().map(|(topic, _)| topic)).collect();
        let mut partitions = kafka.partitions().await?;
        partitions.retain(|at| config.reads_topic(&at.topic) || known.contains(&*at.topic));
        Ok(Log { bounds: kafka.bounds(partitions).await?, same: BTreeMap::new() })
    }

    /// Looks whether topics are still those that were read, by the last record of each partition.
    pub async fn recognise(&mut self, kafka: &KafkaAdmin, known: &Offsets) -> Result<()> {
        let mut read: BTreeMap<TopicPartition, RecordMark> = BTreeMap::new();
        for (topic, of) in known.topics() {
            let is_there = self.partitions().any(|at| *at.topic == *topic);
            for (partition, mark) in of.last.iter().filter(|_| is_there) {
                let at = TopicPartition::new(topic, *partition);
                match self.bounds(&at) {
                    Some(bounds) if (bounds.first..bounds.end).contains(&mark.offset) => drop(read.insert(at, *mark)),
                    // Records that are too old are gone, and tell nothing.
                    Some(bounds) if mark.offset < bounds.first => {}
                    // A topic neither becomes shorter nor loses partitions.
                    _ => drop(self.same.insert(topic.to_string(), false)),
                }
            }
        }
        let asked = read.iter().map(|(at, mark)| (at.clone(), mark.offset)).collect();
        for (at, found) in kafka.marks(&asked).await? {
            let Some(mark) = read.get(&at).filter(|mark| mark.offset == found.offset) else { continue };
            *self.same.entry(at.topic.to_string()).or_insert(true) &= found == *mark;
        }
        Ok(())
    }

    pub fn bounds(&self, at: &TopicPartition) -> Option<Bounds> {
        self.bounds.get(at).copied()
    }

    pub fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.bounds.keys()
    }
}

/// How a table's marker and a partition relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ok,
    /// Nothing was read yet of what is there: reading starts at the beginning.
    NotStarted,
    /// Records left the topic before they were read.
    Expired,
    /// The topic ends before the marker: it was probably made anew.
    PastEnd,
    /// The brokers have no such partition.
    Gone,
    /// The brokers were not asked.
    Unknown,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::NotStarted => "not started",
            State::Expired => "expired",
            State::PastEnd => "past end",
            State::Gone => "gone",
            State::Unknown => "unknown",
        }
    }
}

/// How far a table has read one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionPosition {
    pub at: TopicPartition,
    /// The next offset to read.
    pub next: Option<i64>,
    pub bounds: Option<Bounds>,
    pub state: State,
}

impl PartitionPosition {
    fn new(at: TopicPartition, next: Option<i64>, log: Option<&Log>) -> Self {
        let bounds = log.and_then(|log| log.bounds(&at));
        let state = match (log, bounds, next) {
            (None, ..) => State::Unknown,
            (_, None, _) => State::Gone,
            (_, Some(bounds), None) if bounds.first < bounds.end => State::NotStarted,
            (_, Some(bounds), Some(next)) if next < bounds.first => State::Expired,
            (_, Some(bounds), Some(next)) if next > bounds.end => State::PastEnd,
            _ => State::Ok,
        };
        PartitionPosition { at, next, bounds, state }
    }

    /// How many offsets are there to be read. Some may hold no record: transactions and compaction leave such.
    pub fn lag(&self) -> Option<i64> {
        let bounds = self.bounds.filter(|_| self.state != State::PastEnd)?;
        Some(bounds.end - self.next.unwrap_or(bounds.first).max(bounds.first))
    }

    /// Where the next record would be read from.
    pub fn reads_from(&self) -> Option<i64> {
        let bounds = self.bounds?;
        Some(self.next.unwrap_or(bounds.first).max(bounds.first))
    }
}

/// The marker of a bronze table.
pub fn marker_of(table: &Table) -> Result<Offsets> {
    let Some(text) = table.marker(offsets::MARKER) else { return Ok(Offsets::default()) };
    Ok(Offsets::parse(&text).map_err(|source| OffsetsMoveError::Marker { table: table.name().clone(), source })?)
}

/// Every partition that a table has read, or will read by the configuration, in order.
pub fn positions(config: &Config, table: &TableName, offsets: &Offsets, log: Option<&Log>) -> Vec<PartitionPosition> {
    let of_marker =
        offsets.topics().flat_map(|(topic, of)| of.next.keys().map(move |part| TopicPartition::new(topic, *part)));
    let mut partitions: BTreeSet<TopicPartition> = of_marker.collect();
    partitions
        .extend(log.iter().flat_map(|log| log.partitions()).filter(|at| goes_to(config, &at.topic, table)).cloned());
    let position = |at: TopicPartition| {
        let next = offsets.next(&at.topic, at.partition);
        PartitionPosition::new(at, next, log)
    };
    partitions.into_iter().map(position).collect()
}

/// Whether the project reads a topic into this table.
fn goes_to(config: &Config, topic: &str, table: &TableName) -> bool {
    config.reads_topic(topic) && route(config, topic).is_some_and(|route| route.table == *table)
}

/// The bronze tables that the project's topics go to, by name, whether they are there or not.
pub fn routed_tables(config: &Config, log: &Log) -> BTreeSet<TableName> {
    let topics: BTreeSet<&str> =
        log.partitions().map(|at| &*at.topic).filter(|topic| config.reads_topic(topic)).collect();
    topics.into_iter().filter_map(|topic| Some(route(config, topic)?.table)).collect()
}

/// Where to move a marker to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Earliest,
    Latest,
    Offset(i64),
    /// The first record of this time or later, milliseconds since 1970.
    TimeMs(i64),
}

impl Target {
    /// The offset it means in each of these partitions.
    pub async fn resolve(self, partitions: &[TopicPartition], log: &Log, kafka: &KafkaAdmin) -> Result<Positions> {
        let at_time = match self {
            Target::TimeMs(time) => kafka.offsets_at(time, partitions.to_vec()).await?,
            _ => Positions::new(),
        };
        let offset = |at: &TopicPartition| -> Result<i64> {
            let bounds = log.bounds(at).ok_or_else(|| no_partition(at))?;
            Ok(match self {
                Target::Earliest => bounds.first,
                Target::Latest => bounds.end,
                Target::Offset(offset) => offset,
                Target::TimeMs(_) => at_time.get(at).copied().unwrap_or(bounds.end).clamp(bounds.first, bounds.end),
            })
        };
        partitions.iter().map(|at| Ok((at.clone(), offset(at)?))).collect()
    }
}

fn no_partition(at: &TopicPartition) -> OffsetsMoveError {
    OffsetsMoveError::NoPartition { topic: at.topic.to_string(), partition: at.partition }
}

/// What becomes of rows that a move back passes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsPassed {
    /// There may be none.
    Refuse,
    /// They are deleted, and come again.
    Delete,
    /// They stay, and what comes is of the next epoch.
    NextEpoch,
    /// They are deleted, and come again as of the next epoch, in which nothing of earlier ones is left.
    Anew,
}

/// One partition's move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    pub at: TopicPartition,
    pub from: Option<i64>,
    pub to: i64,
    /// Rows of this epoch that the table holds from `to` on.
    pub rows: u64,
}

/// A table's move, as it would be done.
#[derive(Debug)]
pub struct MovePlan {
    pub table: TableName,
    pub moves: Vec<Move>,
    /// The epoch now, and the one to come.
    pub epoch: (i32, i32),
    rows_passed: RowsPassed,
    /// Whether the topics are still those that were read, where that can be told.
    same: BTreeMap<String, bool>,
    /// `None` for a table that has to be made.
    head: Option<Table>,
    route: Option<Route>,
}

impl MovePlan {
    /// Plans to move a table's marker to `targets`.
    pub async fn new(
        lake: &Lake,
        engine: &Engine,
        config: &Config,
        table: &TableName,
        targets: &Positions,
        log: &Log,
        rows_passed: RowsPassed,
    ) -> Result<Self> {
        let head = lake.table_if_exists(table).await?;
        let (offsets, epoch) = match &head {
            Some(head) => (marker_of(head)?, bronze::epoch(head)?),
            None => (Offsets::default(), 0),
        };
        let held = match &head {
            Some(head) => rows_from(head, engine, targets, epoch).await?,
            None => BTreeMap::new(),
        };
        let mut moves = Vec::new();
        for (at, to) in targets {
            let bounds = log.bounds(at).ok_or_else(|| no_partition(at))?;
            if *to < bounds.first || *to > bounds.end {
                return Err(OffsetsMoveError::Outside { at: at.clone(), to: *to, bounds }.into());
            }
            let rows = held.get(at).copied().unwrap_or(0);
            if rows > 0 && rows_passed == RowsPassed::Refuse {
                return Err(OffsetsMoveError::RowsHeld { table: table.clone(), at: at.clone(), to: *to, rows }.into());
            }
            let from = offsets.next(&at.topic, at.partition);
            moves.push(Move { at: at.clone(), from, to: *to, rows });
        }
        let next_epoch = match rows_passed {
            RowsPassed::NextEpoch | RowsPassed::Anew => epoch + 1,
            RowsPassed::Refuse | RowsPassed::Delete => epoch,
        };
        let route = targets.keys().find_map(|at| route(config, &at.topic).filter(|route| route.table == *table));
        Ok(MovePlan {
            table: table.clone(),
            moves,
            epoch: (epoch, next_epoch),
            rows_passed,
            same: log.same.clone(),
            head,
            route,
        })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.epoch.0 == self.epoch.1 && self.moves.iter().all(|a_move| a_move.from == Some(a_move.to))
    }

    /// Rows that will be deleted.
    pub fn rows_deleted(&self) -> u64 {
        match self.rows_passed {
            RowsPassed::Delete | RowsPassed::Anew => self.moves.iter().map(|a_move| a_move.rows).sum(),
            RowsPassed::Refuse | RowsPassed::NextEpoch => 0,
        }
    }

    /// Whether silver forgets the rows that are not read again.
    pub fn begins_anew(&self) -> bool {
        self.rows_passed == RowsPassed::Anew
    }

    /// Commits the move, if the table is where it was when it was planned. `by` says in the history what did it.
    pub async fn apply(self, lake: &Lake, engine: &Engine, clock: &Clock, by: &str) -> Result<()> {
        let no_topics = || OffsetsMoveError::NoTopics { table: self.table.clone() };
        let table = match &self.head {
            Some(table) => table.clone(),
            None => make(lake, self.route.as_ref().ok_or_else(no_topics)?).await?,
        };
        let old = table.marker(offsets::MARKER);
        let mut next = marker_of(&table)?;
        if self.epoch.0 != self.epoch.1 {
            self.begin_epoch(&mut next);
        }
        for Move { at, to, .. } in &self.moves {
            match self.epoch.0 == self.epoch.1 {
                true => next.relocate(&at.topic, at.partition, self.epoch.1, *to),
                false => next.set(&at.topic, at.partition, *to),
            }
            if self.rows_passed == RowsPassed::NextEpoch {
                next.forget_id(&at.topic);
            }
        }
        let mut premise = Premise::new().marker_moves(offsets::MARKER, old, next.to_string());
        if self.epoch.0 != self.epoch.1 {
            premise = premise.marker_moves(offsets::EPOCH, table.marker(offsets::EPOCH), self.epoch.1.to_string());
        }
        if let Some((old, next)) = self.backfilled(&table)? {
            premise = premise.marker_moves(backfilled::MARKER, Some(old), next);
        }
        let mut change = table.change().note(MOVED_BY, by);
        let mut staged = Vec::new();
        let mut end = Vec::new();
        if self.begins_anew() {
            end = self.write_end(&table, clock).await?;
            staged.extend(end.clone());
        }
        if self.rows_deleted() > 0 || !end.is_empty() {
            let known = Amendments::of(&table);
            let after = Amendments { rewinds: known.rewinds + 1, ..known };
            premise = premise.marker_moves(amendment::MARKER, table.marker(amendment::MARKER), after.text());
            let targets = self.moves.iter().map(|a_move| (a_move.at.clone(), a_move.to)).collect();
            let view = table.view(At::Head)?;
            let doomed = places(&table, engine, &is_from(&targets, self.epoch.0)).await?;
            let deletes = table.write_deletes(&doomed).await?;
            staged.extend(deletes.files().to_vec());
            change = change.row_delta(&view, end, deletes);
        }
        match change.premise(premise).commit().await {
            Ok(_) => {
                tracing::info!(table = %self.table, rows_deleted = self.rows_deleted(), "moved the offsets");
                Ok(())
            }
            Err(error) => {
                if !matches!(error, table::Error::Unresolved { .. }) {
                    table.discard(&staged).await;
                }
                match error.is_premise_broken() {
                    true => Err(OffsetsMoveError::Moved { table: self.table.clone(), source: error }.into()),
                    false => Err(error.into()),
                }
            }
        }
    }
}

impl MovePlan {
    /// Writes down where in each partition the next epoch begins. In those that are not moved it goes on where the one
    /// before has come to.
    fn begin_epoch(&self, offsets: &mut Offsets) {
        let read =
            offsets.topics().flat_map(|(topic, of)| of.next.iter().map(move |(part, next)| (topic, *part, *next)));
        let mut begins: BTreeMap<TopicPartition, (i64, i64, bool)> =
            read.map(|(topic, part, next)| (TopicPartition::new(topic, part), (next, next, true))).collect();
        let is_anew = self.rows_passed == RowsPassed::Anew;
        for Move { at, from, to, .. } in &self.moves {
            let read = from.unwrap_or(0);
            // Where no record tells whether the topic is the same, whoever moves it does.
            begins.insert(at.clone(), (*to, if is_anew { read.min(*to) } else { read }, is_anew));
        }
        for (partition, (at, ended, is_said_same)) in begins {
            let is_same_topic = self.same.get(&*partition.topic).copied().unwrap_or(is_said_same);
            let beginning = Beginning { epoch: self.epoch.1, at, ended, is_same_topic };
            offsets.begin(&partition.topic, partition.partition, beginning);
        }
    }

    /// Writes a truncation with which the epoch ends. It is no record of the topic: its offset says so.
    async fn write_end(&self, table: &Table, clock: &Clock) -> Result<Vec<WrittenFile>> {
        let Some(Move { at, .. }) = self.moves.first() else { return Ok(Vec::new()) };
        let now: TimestampMicrosecondArray = [clock.now_us()].into_iter().map(Some).collect();
        let columns: [(&str, ArrayRef); 7] = [
            (layout::TOPIC, Arc::new(StringArray::from_iter_values([&*at.topic]))),
            (layout::PARTITION, Arc::new(Int32Array::from_iter_values([at.partition]))),
            (layout::OFFSET, Arc::new(Int64Array::from_iter_values([NO_RECORD]))),
            (layout::INGESTED_AT, Arc::new(now.with_timezone(layout::UTC))),
            (layout::OP, Arc::new(StringArray::from_iter_values(["t"]))),
            (layout::POSITION, Arc::new(StringArray::from_iter_values([PAST_ALL_POSITIONS]))),
            (layout::EPOCH, Arc::new(Int32Array::from_iter_values([self.epoch.0]))),
        ];
        let row = RecordBatch::try_from_iter(columns)
            .map_err(|source| OffsetsMoveError::End { table: self.table.clone(), source })?;
        let mut writer = table.writer(None)?;
        match writer.write(&row).await {
            Ok(()) => Ok(writer.finish().await?),
            Err(error) => {
                writer.discard().await;
                Err(error.into())
            }
        }
    }

    /// The marker of backfills before and after: what lies behind a move is to be read again, where it comes by.
    fn backfilled(&self, table: &Table) -> Result<Option<(String, String)>> {
        let failed = |source| OffsetsMoveError::Backfilled { table: self.table.clone(), source };
        let Some(old) = table.marker(backfilled::MARKER) else { return Ok(None) };
        let mut next = Backfilled::parse(&old).map_err(failed)?;
        if self.rows_passed != RowsPassed::NextEpoch {
            self.moves.iter().for_each(|Move { at, to, .. }| next.cut(self.epoch.0, at, *to));
        }
        Ok(Some((old, next.to_string())))
    }
}

async fn make(lake: &Lake, route: &Route) -> Result<Table> {
    Ok(BronzeTable::open(lake, &route.definition()).await?.made().await?)
}

/// The rows from these offsets on, of one epoch.
fn is_from(targets: &Positions, epoch: i32) -> String {
    let of = |(at, to): (&TopicPartition, &i64)| {
        format!("(_topic = {} AND _topic_partition = {} AND _offset >= {to})", literal(&at.topic), at.partition)
    };
    let any: Vec<String> = targets.iter().map(of).collect();
    format!(
        "coalesce(_epoch, 0) = {epoch} AND ({})",
        if any.is_empty() { "false".to_string() } else { any.join(" OR ") }
    )
}

async fn rows_from(
    table: &Table,
    engine: &Engine,
    targets: &Positions,
    epoch: i32,
) -> Result<BTreeMap<TopicPartition, u64>> {
    let session = engine.session();
    engine::register(&session, table.name(), table.view(At::Head)?)?;
    let sql = format!(
        "SELECT _topic, _topic_partition, count(*) AS rows FROM {} WHERE {} GROUP BY _topic, _topic_partition",
        table.name(),
        is_from(targets, epoch)
    );
    let mut rows = BTreeMap::new();
    for batch in engine::query(&session, &sql).await?.try_collect::<Vec<_>>().await.map_err(engine::Error::from)? {
        let column = |name: &str| batch.column_by_name(name).map(super::rows::texts).unwrap_or_default();
        let (topics, partitions, counts) = (column("_topic"), column("_topic_partition"), column("rows"));
        for ((topic, partition), count) in topics.into_iter().zip(partitions).zip(counts) {
            let (Some(topic), Some(partition), Some(count)) = (topic, partition, count) else { continue };
            let at = TopicPartition::new(topic, partition.parse().unwrap_or_default());
            rows.insert(at, count.parse().unwrap_or_default());
        }
    }
    Ok(rows)
}

/// Where the rows that a condition holds for are.
pub(super) async fn places(table: &Table, engine: &Engine, condition: &str) -> Result<Vec<(ScanFile, RoaringTreemap)>> {
    let view = table.view(At::Head)?;
    let session = engine.session();
    engine::register(&session, table.name(), view.clone())?;
    let name = table.name();
    let sql = format!("SELECT _file, _pos FROM {}.\"{}$rows\" WHERE {condition}", name.namespace(), name.name());
    let mut positions: BTreeMap<String, RoaringTreemap> = BTreeMap::new();
    let mut rows = engine::query(&session, &sql).await?;
    while let Some(batch) = rows.try_next().await.map_err(engine::Error::from)? {
        super::rows::note_places(&batch, &mut positions);
    }
    super::rows::files_of(&view, positions).await
}

pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Plans to take over what a consumer group has committed, for the tables that `wanted` names, or all.
pub async fn plan_import(
    lake: &Lake,
    engine: &Engine,
    config: &Config,
    log: &Log,
    found: &Positions,
    tables: &BTreeSet<TableName>,
    force: bool,
) -> Result<Vec<MovePlan>> {
    let mut plans = Vec::new();
    for table in tables {
        let of_table = found.iter().filter(|(at, _)| goes_to(config, &at.topic, table));
        let targets: Positions = of_table.map(|(at, next)| (at.clone(), *next)).collect();
        if targets.is_empty() {
            continue;
        }
        let plan = MovePlan::new(lake, engine, config, table, &targets, log, RowsPassed::Refuse).await?;
        let known = plan.moves.iter().find_map(|a_move| Some((a_move, a_move.from?)));
        if let Some((a_move, next)) = known.filter(|_| !force) {
            return Err(OffsetsMoveError::HasMarker { table: table.clone(), at: a_move.at.clone(), next }.into());
        }
        plans.push(plan);
    }
    Ok(plans)
}

/// The key under which Kafka Connect's Iceberg sink keeps the control topic's offsets: `…<control topic>.<group>`.
const SINK_OFFSETS: &str = "kafka.connect.offsets.";

/// The time through which all records are in the table, as the sink's releases call it.
const SINK_COMPLETE: [&str; 2] = ["kafka.connect.valid-through-ts", "kafka.connect.vtts"];

/// What Kafka Connect's Iceberg sink left in the newest snapshot it made.
///
/// The offsets there are the *control* topic's. Those of the source topics are in the consumer group that the key names:
/// they say what the workers have written and announced, some of which the table may not have yet. The valid-through time
/// says what it does have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkMark {
    /// What the key may mean as group: a topic's name may have dots as well.
    pub groups: Vec<String>,
    /// Every record of this time or before is in the table.
    pub valid_through_ms: Option<i64>,
}

impl SinkMark {
    pub fn of(table: &Table) -> Result<Self> {
        let not_of_connect = || OffsetsMoveError::NotOfConnect { table: table.name().clone() };
        let snapshots = table.snapshots();
        let mut marks = snapshots.iter().rev().filter_map(|snapshot| Self::in_summary(&snapshot.summary));
        let newest = marks.next().ok_or_else(not_of_connect)?;
        // Only a commit that every partition had records for says it; what an older one said still holds.
        let valid_through_ms = newest.valid_through_ms.or_else(|| marks.find_map(|mark| mark.valid_through_ms));
        Ok(SinkMark { valid_through_ms, ..newest })
    }

    fn in_summary(summary: &BTreeMap<String, String>) -> Option<Self> {
        let rest = summary.keys().find_map(|key| key.strip_prefix(SINK_OFFSETS))?;
        let groups =
            rest.match_indices('.').map(|(dot, _)| rest[dot + 1..].to_string()).filter(|group| !group.is_empty());
        let time = SINK_COMPLETE.iter().find_map(|key| parse_time(summary.get(*key)?));
        Some(SinkMark { groups: groups.collect(), valid_through_ms: time })
    }

    /// Where to read on so that no record is missed: where the sink's group stands, or earlier, where the table is not
    /// known to have all of that.
    pub async fn positions(
        &self,
        table: &TableName,
        log: &Log,
        kafka: impl Fn(&str) -> Result<KafkaAdmin>,
    ) -> Result<Positions> {
        let partitions: Vec<TopicPartition> = log.partitions().cloned().collect();
        for group in &self.groups {
            let admin = kafka(group)?;
            let committed = admin.committed(partitions.clone()).await?;
            if committed.is_empty() {
                continue;
            }
            let Some(time) = self.valid_through_ms else {
                return Err(
                    OffsetsMoveError::NoCompleteTime { table: table.clone(), group: Some(group.clone()) }.into()
                );
            };
            let asked = committed.keys().cloned().collect();
            let complete = admin.offsets_at(time, asked).await?;
            let earlier = |(at, next): (TopicPartition, i64)| {
                let next = complete.get(&at).map_or(next, |complete| next.min(*complete));
                (at, next)
            };
            return Ok(committed.into_iter().map(earlier).collect());
        }
        let group = self.groups.last().cloned().unwrap_or_default();
        Err(OffsetsMoveError::NothingCommitted { group }.into())
    }
}

/// A time as Java writes it, which leaves out seconds that are zero.
fn parse_time(text: &str) -> Option<i64> {
    let whole = text.strip_suffix('Z').filter(|time| time.len() == "2026-01-31T00:00".len());
    let whole = whole.map(|time| format!("{time}:00Z"));
    let time = chrono::DateTime::parse_from_rfc3339(whole.as_deref().unwrap_or(text)).ok()?;
    Some(time.timestamp_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_and_a_partition_relate_in_every_way() {
        let at = TopicPartition::new("t", 0);
        let log = Log { bounds: [(at.clone(), Bounds { first: 10, end: 20 })].into(), ..Log::default() };
        let check = |next: Option<i64>, state: State, lag: Option<i64>| {
            let position = PartitionPosition::new(at.clone(), next, Some(&log));
            assert_eq!((position.state, position.lag()), (state, lag), "{next:?}");
        };
        check(None, State::NotStarted, Some(10));
        check(Some(9), State::Expired, Some(10));
        check(Some(10), State::Ok, Some(10));
        check(Some(20), State::Ok, Some(0));
        check(Some(21), State::PastEnd, None);
        let elsewhere = TopicPartition::new("t", 1);
        let empty = Log { bounds: [(elsewhere.clone(), Bounds { first: 7, end: 7 })].into(), ..Log::default() };
        let unread = PartitionPosition::new(elsewhere.clone(), None, Some(&empty));
        assert_eq!((unread.state, unread.lag()), (State::Ok, Some(0)));
        let gone = PartitionPosition::new(elsewhere.clone(), Some(5), Some(&log));
        assert_eq!((gone.state, gone.lag()), (State::Gone, None));
        let unasked = PartitionPosition::new(elsewhere, Some(5), None);
        assert_eq!((unasked.state, unasked.lag()), (State::Unknown, None));
    }

    #[test]
    fn the_sink_s_mark_is_read_from_its_summary() {
        let check = |entries: &[(&str, &str)], groups: &[&str], time: Option<i64>| {
            let summary = entries.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            let mark = SinkMark::in_summary(&summary);
            let groups = groups.iter().map(|group| group.to_string()).collect::<Vec<_>>();
            let expected = SinkMark { groups, valid_through_ms: time };
            assert_eq!(mark, if entries.is_empty() { None } else { Some(expected) });
        };
        check(&[], &[], None);
        let offsets = ("kafka.connect.offsets.control-iceberg.connect-orders", "{\"0\":17}");
        check(&[offsets], &["connect-orders"], None);
        let time = ("kafka.connect.valid-through-ts", "2026-01-31T10:20:30.250Z");
        check(&[offsets, time], &["connect-orders"], Some(1_769_854_830_250));
        check(&[offsets, ("kafka.connect.vtts", "2026-01-31T10:20Z")], &["connect-orders"], Some(1_769_854_800_000));
        let dotted = ("kafka.connect.offsets.shop.control.cg-control-orders.v2", "{}");
        check(&[dotted], &["control.cg-control-orders.v2", "cg-control-orders.v2", "v2"], None);
    }

    #[test]
    fn errors_say_what_to_do() {
        let table: TableName = "shop_bronze.orders".parse().unwrap();
        let at = TopicPartition::new("shop.public.orders", 0);
        let held = OffsetsMoveError::RowsHeld { table: table.clone(), at: at.clone(), to: 5, rows: 12 };
        insta::assert_snapshot!(crate::error::Error::from(held).render(), @"
        error: table `shop_bronze.orders` holds 12 rows of `shop.public.orders/0` from offset 5 on, and would get them twice
          nothing was moved
          hint: `offsets reset … --rewind` deletes those rows and reads them again; `--epoch` keeps them, for a topic that was deleted and made anew
        ");
        let outside = OffsetsMoveError::Outside { at, to: 5, bounds: Bounds { first: 7, end: 9 } };
        insta::assert_snapshot!(crate::error::Error::from(outside).render(), @"
        error: offset 5 is not in `shop.public.orders/0`, which holds 7 to 9
          nothing was moved
          hint: `--to earliest` and `--to latest` always fit
        ");
        let partial = OffsetsMoveError::NoCompleteTime { table, group: Some("connect-orders".to_string()) };
        insta::assert_snapshot!(crate::error::Error::from(partial).render(), @"
        error: no commit of the sink to `shop_bronze.orders` says through which time the table is complete
          nothing was moved
          hint: let it commit once while every partition gets records; or stop it when its last commit is done and take its group's offsets as they are: `--from-group connect-orders`
        ");
    }
}
