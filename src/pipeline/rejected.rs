//! Rejected records: which there are and why, and decoding them again when what was wrong is put right.
//!
//! **A replay gives exactly the row that ingestion would have given**: the record goes through the same decoder and the
//! same builder, and takes over what bronze kept of it. **The rejected rows and those that take their place are one
//! commit**, guarded by the count of such commits: of two replays at once, one has to look again and finds the work done.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Int32Array, RecordBatch, TimestampMicrosecondArray, UInt64Array,
};
use arrow::compute::{cast, concat_batches, take, take_record_batch};
use arrow::datatypes::DataType;
use bytes::Bytes;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use roaring::RoaringTreemap;
use serde::Serialize;

use super::Dialect;
use super::offsets::literal;
use super::rows::{files_of, longs, note_places, texts};
use crate::amendment::{self, Amendments};
use crate::batch::ChangeBatchBuilder;
use crate::bronze;
use crate::change::{Decoded, RawRecord};
use crate::clock::Clock;
use crate::config::Config;
use crate::decode;
use crate::engine::{self, Engine};
use crate::error::{Kind, Result, Situation};
use crate::evolution::{Form, TableImages};
use crate::ids::TableName;
use crate::layout::{self, UTC};
use crate::offsets::TopicPartition;
use crate::table::{self, At, Lake, Premise, SchemaChange, Table, TableView};

/// How often a replay looks again when somebody else took rows out meanwhile.
const ATTEMPTS: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum RejectedError {
    #[error("table `{table}` holds no rejected record `{at}/{offset}`")]
    NoSuchRecord { table: TableName, at: TopicPartition, offset: i64 },

    #[error("other commands took rows out of table `{table}` {ATTEMPTS} times while its rejected records were decoded")]
    Contention { table: TableName },

    #[error("the rejected records of table `{table}` cannot be decoded again")]
    Batch {
        table: TableName,
        #[source]
        source: arrow::error::ArrowError,
    },
}

impl Situation for RejectedError {
    fn kind(&self) -> Kind {
        match self {
            RejectedError::NoSuchRecord { .. } => Kind::Config,
            RejectedError::Contention { .. } => Kind::Conflict,
            RejectedError::Batch { .. } => Kind::Bug,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            RejectedError::NoSuchRecord { table, .. } => {
                Some(format!("`icestream rejected list {table}` lists them; a replayed one is rejected no more"))
            }
            RejectedError::Contention { .. } => Some("try again".to_string()),
            RejectedError::Batch { .. } => None,
        }
    }

    fn state(&self) -> Option<String> {
        match self {
            RejectedError::NoSuchRecord { .. } => None,
            _ => Some("nothing was replaced".to_string()),
        }
    }
}

/// A record's place in Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordPlace {
    pub at: TopicPartition,
    pub offset: i64,
}

impl std::fmt::Display for RecordPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.at, self.offset)
    }
}

impl std::str::FromStr for RecordPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.rsplitn(3, '/');
        let numbers =
            parts.next().and_then(|offset| offset.parse().ok()).zip(parts.next().and_then(|p| p.parse().ok()));
        match (numbers, parts.next()) {
            (Some((offset, partition)), Some(topic)) if !topic.is_empty() => {
                Ok(RecordPlace { at: TopicPartition::new(topic, partition), offset })
            }
            _ => Err("write `topic/partition/offset`, such as `shop.public.orders/0/4711`".to_string()),
        }
    }
}

/// Records that were rejected for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasonCount {
    pub reason: String,
    pub records: u64,
    /// The first and the last by time, and their times in microseconds since 1970.
    pub first: (RecordPlace, Option<i64>),
    pub last: (RecordPlace, Option<i64>),
}

/// A rejected record as bronze keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedRecord {
    pub place: RecordPlace,
    pub timestamp_us: Option<i64>,
    pub ingested_us: Option<i64>,
    pub epoch: i32,
    pub key: Option<String>,
    pub reason: String,
    /// The payload, byte for byte.
    pub raw: Option<Bytes>,
}

/// Which rejected records to look at.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// One record.
    pub only: Option<RecordPlace>,
    /// Those whose reason has this text in it, whatever the case of letters.
    pub reason: Option<String>,
}

impl Selection {
    fn condition(&self) -> String {
        let mut condition = "_error IS NOT NULL".to_string();
        if let Some(RecordPlace { at, offset }) = &self.only {
            condition.push_str(&format!(
                " AND _topic = {} AND _topic_partition = {} AND _offset = {offset}",
                literal(&at.topic),
                at.partition
            ));
        }
        if let Some(reason) = &self.reason {
            condition.push_str(&format!(" AND strpos(lower(_error), {}) > 0", literal(&reason.to_lowercase())));
        }
        condition
    }
}

/// The reasons, the most frequent first.
pub async fn reasons(table: &Table, engine: &Engine, selection: &Selection) -> Result<Vec<ReasonCount>> {
    // The first and the last of a group as one row each: functions over several columns may pick from several rows.
    let sql = format!(
        "WITH ranked AS (SELECT _error, _topic, _topic_partition, _offset, _timestamp, \
         count(*) OVER (PARTITION BY _error) AS records, \
         row_number() OVER (PARTITION BY _error ORDER BY _timestamp NULLS FIRST, _topic, _topic_partition, _offset) AS up, \
         row_number() OVER (PARTITION BY _error ORDER BY _timestamp DESC NULLS LAST, _topic DESC, \
         _topic_partition DESC, _offset DESC) AS down FROM {} WHERE {}) \
         SELECT _error, records, up, _topic, _topic_partition, _offset, _timestamp FROM ranked WHERE up = 1 OR down = 1 \
         ORDER BY records DESC, _error, up",
        table.name(),
        selection.condition()
    );
    let mut found: Vec<ReasonCount> = Vec::new();
    for batch in rows(table, engine, &sql).await? {
        let columns = Columns::of(&batch);
        let records = batch.column_by_name("records").map(longs).unwrap_or_default();
        for row in 0..batch.num_rows() {
            let (reason, place) = (columns.error[row].clone().unwrap_or_default(), columns.place(row));
            let end = (place, columns.timestamp[row]);
            match found.last_mut().filter(|last| last.reason == reason) {
                Some(last) => last.last = end,
                None => {
                    let records = records.get(row).copied().flatten().unwrap_or(0).unsigned_abs();
                    found.push(ReasonCount { reason, records, first: end.clone(), last: end });
                }
            }
        }
    }
    Ok(found)
}

/// The records, the newest first.
pub async fn records(
    table: &Table,
    engine: &Engine,
    selection: &Selection,
    limit: usize,
) -> Result<Vec<RejectedRecord>> {
    let sql = format!(
        "SELECT {RECORD_COLUMNS} FROM {} WHERE {} \
         ORDER BY _timestamp DESC NULLS LAST, _topic, _topic_partition, _offset DESC LIMIT {limit}",
        table.name(),
        selection.condition()
    );
    let mut found = Vec::new();
    for batch in rows(table, engine, &sql).await? {
        let columns = Columns::of(&batch);
        found.extend((0..batch.num_rows()).map(|row| columns.record(row)));
    }
    Ok(found)
}

/// How many rows are rejected.
pub async fn count(view: TableView, engine: &Engine) -> Result<u64> {
    let session = engine.session();
    let name = view.name().clone();
    engine::register(&session, &name, view)?;
    let sql = format!("SELECT count(*) AS rows FROM {name} WHERE _error IS NOT NULL");
    let batches: Vec<RecordBatch> =
        engine::query(&session, &sql).await?.try_collect().await.map_err(engine::Error::from)?;
    let counts = batches.iter().filter_map(|batch| longs(batch.column(0)).into_iter().flatten().next());
    Ok(counts.sum::<i64>().unsigned_abs())
}

/// One record.
pub async fn record(table: &Table, engine: &Engine, place: &RecordPlace) -> Result<RejectedRecord> {
    let selection = Selection { only: Some(place.clone()), reason: None };
    let found = records(table, engine, &selection, 1).await?.pop();
    let missing =
        || RejectedError::NoSuchRecord { table: table.name().clone(), at: place.at.clone(), offset: place.offset };
    Ok(found.ok_or_else(missing)?)
}

async fn rows(table: &Table, engine: &Engine, sql: &str) -> Result<Vec<RecordBatch>> {
    let session = engine.session();
    engine::register(&session, table.name(), table.view(At::Head)?)?;
    Ok(engine::query(&session, sql).await?.try_collect().await.map_err(engine::Error::from)?)
}

const RECORD_COLUMNS: &str = "_topic, _topic_partition, _offset, _timestamp, _ingested_at, _epoch, _key, _error, _raw";

/// A batch's columns taken apart; those it does not have are empty.
struct Columns {
    topic: Vec<Arc<str>>,
    partition: Vec<i32>,
    offset: Vec<i64>,
    timestamp: Vec<Option<i64>>,
    ingested: Vec<Option<i64>>,
    epoch: Vec<i32>,
    key: Vec<Option<String>>,
    error: Vec<Option<String>>,
    raw: Option<BinaryArray>,
}

impl Columns {
    fn of(batch: &RecordBatch) -> Self {
        let text = |name: &str| batch.column_by_name(name).map(texts).unwrap_or_default();
        let long = |name: &str| batch.column_by_name(name).map(longs).unwrap_or_default();
        let small = |name: &str| -> Vec<i32> {
            long(name).into_iter().map(|value| value.and_then(|value| value.try_into().ok()).unwrap_or(0)).collect()
        };
        let raw = batch.column_by_name(layout::RAW).and_then(|raw| cast(raw, &DataType::Binary).ok());
        // Topics repeat, row after row.
        let mut last: Arc<str> = "".into();
        let topics = text(layout::TOPIC).into_iter().map(|topic| {
            let topic = topic.unwrap_or_default();
            if *last != *topic {
                last = topic.into();
            }
            last.clone()
        });
        Columns {
            topic: topics.collect(),
            partition: small(layout::PARTITION),
            offset: long(layout::OFFSET).into_iter().map(|offset| offset.unwrap_or(0)).collect(),
            timestamp: long(layout::TIMESTAMP),
            ingested: long(layout::INGESTED_AT),
            epoch: small(layout::EPOCH),
            key: text(layout::KEY),
            error: text(layout::ERROR),
            raw: raw.map(|raw| raw.as_binary::<i32>().clone()),
        }
    }

    fn place(&self, row: usize) -> RecordPlace {
        RecordPlace { at: TopicPartition::new(self.topic[row].clone(), self.partition[row]), offset: self.offset[row] }
    }

    fn record(&self, row: usize) -> RejectedRecord {
        let raw = self.raw.as_ref().filter(|raw| raw.is_valid(row));
        RejectedRecord {
            place: self.place(row),
            timestamp_us: self.timestamp[row],
            ingested_us: self.ingested[row],
            epoch: self.epoch[row],
            key: self.key[row].clone(),
            reason: self.error[row].clone().unwrap_or_default(),
            raw: raw.map(|raw| Bytes::copy_from_slice(raw.value(row))),
        }
    }
}

/// What a replay did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReplayReport {
    /// Records that became rows.
    pub replayed: u64,
    /// Records that hold no change, as the decoder sees them now. Their rejected rows are gone, as if they had just come.
    pub consumed: u64,
    /// Records that are rejected again, for the reasons of now.
    pub still_rejected: BTreeMap<String, u64>,
    /// Payloads handed in for records that are not rejected, or no more.
    pub not_rejected: Vec<String>,
    pub snapshot_id: Option<i64>,
}

impl ReplayReport {
    fn changes_anything(&self) -> bool {
        self.replayed + self.consumed > 0
    }
}

/// What to replay, and with what.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    pub selection: Selection,
    /// Payloads to take in place of the ones that were read. When there are some, no other record is replayed.
    pub payloads: BTreeMap<RecordPlace, Bytes>,
    pub dry_run: bool,
}

/// Decodes a table's rejected records again, and puts the rows they make in their place.
pub async fn replay(
    lake: &Lake,
    engine: &Engine,
    config: &Config,
    table: &TableName,
    replay: &Replay,
) -> Result<ReplayReport> {
    for _ in 0..ATTEMPTS {
        let table = lake.table(table).await?;
        let made = Replayed::make(&table, engine, config, replay).await?;
        if replay.dry_run || !made.report.changes_anything() {
            made.discard(&table).await;
            return Ok(made.report);
        }
        if let Some(report) = made.commit(&table).await? {
            return Ok(report);
        }
        tracing::info!(table = %table.name(), "other rows were taken out meanwhile; looking again");
    }
    Err(RejectedError::Contention { table: table.clone() }.into())
}

/// Rows made of rejected records, written but not committed.
struct Replayed {
    report: ReplayReport,
    view: TableView,
    schema: Option<table::EvolvedSchema>,
    files: Vec<table::WrittenFile>,
    /// The rejected rows that go.
    places: BTreeMap<String, RoaringTreemap>,
}

impl Replayed {
    async fn make(table: &Table, engine: &Engine, config: &Config, replay: &Replay) -> Result<Self> {
        let declared = config.tables.iter().find(|declared| declared.name == table.name().name());
        let shape = declared.and_then(|declared| declared.shape.clone()).map(Arc::new);
        let evolution = declared.map_or(config.evolution, |declared| declared.evolution);
        let mut decoder = Decoder {
            table: table.name().clone(),
            images: bronze::images(table, shape, evolution)?,
            dialect: super::dialect(config),
            now_us: table.lake().clock().now_us(),
            clock: table.lake().clock().clone(),
        };
        let view = table.view(At::Head)?;
        let session = engine.session();
        engine::register(&session, table.name(), view.clone())?;
        let name = table.name();
        let mut condition = replay.selection.condition();
        if let (Some(first), Some(last)) = (
            replay.payloads.keys().map(|place| place.offset).min(),
            replay.payloads.keys().map(|place| place.offset).max(),
        ) {
            condition.push_str(&format!(" AND _offset BETWEEN {first} AND {last}"));
        }
        let sql = format!(
            "SELECT {RECORD_COLUMNS}, _file, _pos FROM {}.\"{}$rows\" WHERE {condition} \
             ORDER BY _epoch NULLS FIRST, _topic, _topic_partition, _offset",
            name.namespace(),
            name.name()
        );
        // A first look says which columns the rows need, since files are written under the columns of all of them.
        let mut made = Replayed::new(view.clone());
        let mut stream = engine::query(&session, &sql).await?;
        while let Some(batch) = next(&mut stream).await? {
            if let Some(rows) = made.take(&batch, &decoder, replay, &mut Vec::new())?
                && let Form::Columns(needed) = Form::of_table(rows.schema_ref().fields(), |_| false)
            {
                decoder.images.form = match &decoder.images.form {
                    Form::Columns(columns) => Form::Columns(columns.merge(&needed).columns),
                    _ => Form::Columns(needed),
                };
            }
        }
        let wanted = layout::bronze_schema_with(decoder.images.form.data_type());
        let evolved = table.evolve(&SchemaChange::to_fit(table.schema()?.as_ref(), &wanted))?;

        let mut made = Replayed::new(view);
        let mut not_seen: Vec<&RecordPlace> = replay.payloads.keys().collect();
        let mut writer = if replay.dry_run { None } else { Some(table.writer(evolved.as_ref())?) };
        let mut stream = engine::query(&session, &sql).await?;
        loop {
            let written = match next(&mut stream).await {
                Ok(None) => break,
                Ok(Some(batch)) => match made.take(&batch, &decoder, replay, &mut not_seen) {
                    Ok(rows) => match (&mut writer, rows) {
                        (Some(writer), Some(rows)) => writer.write(&rows).await.map_err(Into::into),
                        _ => Ok(()),
                    },
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                if let Some(writer) = writer {
                    writer.discard().await;
                }
                return Err(error);
            }
        }
        if let Some(writer) = writer {
            made.files = writer.finish().await?;
        }
        made.schema = evolved;
        made.report.not_rejected = not_seen.into_iter().map(ToString::to_string).collect();
        Ok(made)
    }

    fn new(view: TableView) -> Self {
        Replayed { report: ReplayReport::default(), view, schema: None, files: Vec::new(), places: BTreeMap::new() }
    }

    /// Decodes a batch of rejected rows: notes what becomes of each, and gives the rows made.
    fn take(
        &mut self,
        batch: &RecordBatch,
        decoder: &Decoder,
        replay: &Replay,
        not_seen: &mut Vec<&RecordPlace>,
    ) -> Result<Option<RecordBatch>> {
        let columns = Columns::of(batch);
        let mut records: Vec<(u64, RejectedRecord)> = Vec::new();
        for row in 0..batch.num_rows() {
            let mut record = columns.record(row);
            if !replay.payloads.is_empty() {
                let Some(payload) = replay.payloads.get(&record.place) else { continue };
                record.raw = Some(payload.clone());
                not_seen.retain(|place| **place != record.place);
            }
            records.push((row as u64, record));
        }
        let (mut kept, mut replaced) = (Vec::new(), Vec::new());
        // A builder refuses an offset that it has passed, and each epoch has its own.
        for run in records.chunk_by(|(_, left), (_, right)| left.epoch == right.epoch) {
            let made = decoder.rows(run.iter().map(|(_, record)| record))?;
            let fates = fates(&made);
            let mut good: Vec<(u64, &RejectedRecord)> = Vec::new();
            for (row, record) in run {
                match fates.get(&record.place) {
                    Some(Fate::Row(index)) => {
                        good.push((*index, record));
                        self.report.replayed += 1;
                    }
                    None => self.report.consumed += 1,
                    Some(Fate::Rejected(reason)) => {
                        *self.report.still_rejected.entry(reason.clone()).or_default() += 1;
                        continue;
                    }
                }
                replaced.push(*row);
            }
            if !good.is_empty() {
                kept.push(decoder.as_ingested(&made, &good)?);
            }
        }
        let broken = |source| decoder.broken(source);
        note_places(&take_record_batch(batch, &UInt64Array::from(replaced)).map_err(broken)?, &mut self.places);
        match kept.first() {
            Some(first) => Ok(Some(concat_batches(&first.schema(), &kept).map_err(broken)?)),
            None => Ok(None),
        }
    }

    async fn discard(&self, table: &Table) {
        table.discard(&self.files).await;
    }

    /// Commits, or gives nothing when rows were taken out of the table since it was looked at.
    async fn commit(mut self, table: &Table) -> Result<Option<ReplayReport>> {
        let doomed = files_of(&self.view, std::mem::take(&mut self.places)).await?;
        let deletes = table.write_deletes(&doomed).await?;
        let staged: Vec<table::WrittenFile> = self.files.iter().chain(deletes.files()).cloned().collect();
        let known = Amendments::of(table);
        let after = Amendments { replays: known.replays + 1, ..known };
        let premise = Premise::new().marker_moves(amendment::MARKER, table.marker(amendment::MARKER), after.text());
        let mut change = table.change().row_delta(&self.view, self.files, deletes).premise(premise);
        if let Some(schema) = self.schema {
            change = change.schema(schema);
        }
        match change.commit().await {
            Ok(committed) => {
                tracing::info!(
                    table = %table.name(), replayed = self.report.replayed, consumed = self.report.consumed,
                    snapshot_id = committed.snapshot_id, "replayed rejected records"
                );
                Ok(Some(ReplayReport { snapshot_id: committed.snapshot_id, ..self.report }))
            }
            Err(error) => {
                if !matches!(error, table::Error::Unresolved { .. }) {
                    table.discard(&staged).await;
                }
                if error.is_premise_broken() { Ok(None) } else { Err(error.into()) }
            }
        }
    }
}

async fn next(stream: &mut SendableRecordBatchStream) -> Result<Option<RecordBatch>> {
    Ok(stream.try_next().await.map_err(engine::Error::from)?)
}

/// What a record became. One that is not among the rows was consumed.
enum Fate {
    /// The row of this index.
    Row(u64),
    Rejected(String),
}

fn fates(made: &RecordBatch) -> HashMap<RecordPlace, Fate> {
    let columns = Columns::of(made);
    let fate = |row: usize| match &columns.error[row] {
        Some(reason) => Fate::Rejected(reason.clone()),
        None => Fate::Row(row as u64),
    };
    (0..made.num_rows()).map(|row| (columns.place(row), fate(row))).collect()
}

/// Makes rows as ingestion does.
struct Decoder {
    table: TableName,
    images: TableImages,
    dialect: Dialect,
    clock: Clock,
    now_us: i64,
}

impl Decoder {
    fn rows<'a>(&self, records: impl Iterator<Item = &'a RejectedRecord>) -> Result<RecordBatch> {
        // The epoch is each record's own; see `as_ingested`.
        let mut builder = ChangeBatchBuilder::new(self.images.clone(), 0, self.clock.clone())
            .with_placeholder(self.dialect.placeholder.clone());
        for record in records {
            let raw = RawRecord {
                topic: record.place.at.topic.clone(),
                partition: record.place.at.partition,
                offset: record.place.offset,
                timestamp_ms: record.timestamp_us.map(|us| us.div_euclid(1000)),
                key: record.key.clone().map(Bytes::from),
                payload: record.raw.clone(),
            };
            let mut decoded = decode::decode(raw, self.dialect.format);
            // Bronze has the key as the decoder wrote it.
            if let Decoded::Change(event) = &mut decoded {
                event.key.clone_from(&record.key);
            }
            builder.push(decoded)?;
        }
        Ok(builder.finish()?.rows)
    }

    /// The good rows, with what the record's first row said of it, and the time of the replay.
    fn as_ingested(&self, made: &RecordBatch, good: &[(u64, &RejectedRecord)]) -> Result<RecordBatch> {
        let indexes = UInt64Array::from_iter_values(good.iter().map(|(index, _)| *index));
        let instants = |of: &dyn Fn(&RejectedRecord) -> Option<i64>| -> ArrayRef {
            let times: TimestampMicrosecondArray = good.iter().map(|(_, record)| of(record)).collect();
            Arc::new(times.with_timezone(UTC))
        };
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(made.num_columns());
        for (field, column) in made.schema().fields().iter().zip(made.columns()) {
            columns.push(match field.name().as_str() {
                layout::INGESTED_AT => instants(&|record| record.ingested_us.or(Some(self.now_us))),
                layout::REPLAYED_AT => instants(&|_| Some(self.now_us)),
                layout::EPOCH => Arc::new(Int32Array::from_iter_values(good.iter().map(|(_, record)| record.epoch))),
                _ => take(column, &indexes, None).map_err(|source| self.broken(source))?,
            });
        }
        Ok(RecordBatch::try_new(made.schema(), columns).map_err(|source| self.broken(source))?)
    }

    fn broken(&self, source: arrow::error::ArrowError) -> RejectedError {
        RejectedError::Batch { table: self.table.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_and_a_topic_may_hold_anything() {
        for text in ["shop.public.orders/0/4711", "t/12/0"] {
            assert_eq!(text.parse::<RecordPlace>().unwrap().to_string(), text);
        }
        for bad in ["", "orders", "orders/0", "/0/1", "orders/x/1", "orders/0/x", "orders/0/"] {
            assert!(bad.parse::<RecordPlace>().is_err(), "{bad} should be refused");
        }
    }

    #[test]
    fn a_selection_is_sql_whatever_the_texts_hold() {
        let only = Some("o'hara/1/2".parse().unwrap());
        let selection = Selection { only, reason: Some("Isn't a Number".to_string()) };
        insta::assert_snapshot!(selection.condition(), @"_error IS NOT NULL AND _topic = 'o''hara' AND _topic_partition = 1 AND _offset = 2 AND strpos(lower(_error), 'isn''t a number') > 0");
    }
}
