//! Folds a bronze table's changes into the latest row of each key.
//!
//! In comes a bronze snapshot, out goes a silver snapshot whose marker names it. It does not know Kafka.
//!
//! **A silver table is a function of its bronze table**: a run finds the keys that the new changes touch and folds all
//! their events again, in position order, so that late, repeated and re-read events give the same rows as events that
//! came once and in order. **Deletes, inserts and the marker are one commit**, guarded by the marker it started from: of
//! two builders at once, one wins and the other throws its files away.

mod fold;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::amendment::Amendments;
use crate::engine::{self, Engine};
use crate::error::{Kind, Situation};
use crate::fingerprint::fingerprint;
use crate::ids::TableName;
use crate::layout;
use crate::table::{At, Lake, Premise, SchemaChange, Table, TableDefinition, TableView, WrittenFile};

/// The marker's key in snapshot summaries and table properties.
pub const MARKER: &str = "icestream.bronze";

/// How a silver table comes out of its bronze table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilverModel {
    pub table: TableName,
    pub from: TableName,
    /// The columns that identify a row; empty for the fields of the message key.
    pub keys: Vec<String>,
    pub on_delete: OnDelete,
    /// A SELECT over `changes`; `None` for all columns as they are.
    pub sql: Option<String>,
}

/// What becomes of a row whose key was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDelete {
    /// It goes.
    Remove,
    /// It stays as it last was, with `_is_deleted` true.
    Mark,
}

/// A merge that is durable.
#[derive(Debug, Clone)]
pub struct SilverCommit {
    pub table: TableName,
    pub snapshot_id: Option<i64>,
    pub bronze_snapshot_id: i64,
    pub rows_written: u64,
    pub rows_deleted: u64,
}

/// What became of a run.
#[derive(Debug, Clone)]
pub enum Outcome {
    Merged(SilverCommit),
    /// Bronze is where it was at the last merge, or there is no bronze table yet.
    Nothing,
    /// Another builder merged meanwhile.
    Yielded,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("silver table `{table}`: the rows of `{from}` are JSON text, and a merge needs columns")]
    NoColumns { table: TableName, from: TableName },

    #[error("silver table `{table}`: no message of `{from}` has a key, and the model names none")]
    NoKeys { table: TableName, from: TableName },

    #[error("silver table `{table}`: its key `{key}` is not a column of `{from}`; there are {columns}")]
    UnknownKey { table: TableName, from: TableName, key: String, columns: String },

    #[error("silver table `{table}`: the model does not select its key `{key}` as it is")]
    KeyNotSelected { table: TableName, key: String },

    #[error(
        "silver table `{table}`: {count} changes have no value for the key; the first is {topic}/{partition} at offset {offset}"
    )]
    NullKey { table: TableName, count: i64, topic: String, partition: i64, offset: i64 },

    #[error("silver table `{table}`: {problem}")]
    Model { table: TableName, problem: String },

    #[error("silver table `{table}` was built by another model")]
    ModelChanged { table: TableName },

    #[error("table `{table}` holds rows that icestream did not build")]
    Foreign { table: TableName },

    #[error("silver table `{table}` has a marker that cannot be read: `{text}`")]
    Marker { table: TableName, text: String },

    #[error("silver table `{table}`: its query failed")]
    Query {
        table: TableName,
        #[source]
        source: engine::Error,
    },

    #[error(transparent)]
    Table(#[from] crate::table::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Situation for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::NoColumns { .. }
            | Error::NoKeys { .. }
            | Error::UnknownKey { .. }
            | Error::KeyNotSelected { .. }
            | Error::Model { .. }
            | Error::ModelChanged { .. }
            | Error::Foreign { .. } => Kind::Config,
            Error::NullKey { .. } => Kind::Input,
            Error::Marker { .. } => Kind::Corrupt,
            Error::Query { source, .. } => source.kind(),
            Error::Table(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NoColumns { from, .. } => format!("declare the columns in `catalog/{}.yaml`", from.name()),
            Error::NoKeys { .. } => {
                "name the key columns: `keys: [id]` in the model, or `key: [id]` in `catalog/`".to_string()
            }
            Error::UnknownKey { .. } => "name a column of the table as key".to_string(),
            Error::KeyNotSelected { key, .. } => format!("add `{key}` to the SELECT, unchanged"),
            Error::ModelChanged { table } => {
                format!("to build it anew from bronze, run `icestream drop {table} --purge --yes` first")
            }
            Error::Foreign { .. } => "give the model another table name, or drop that table".to_string(),
            Error::NullKey { .. } => "key a table by columns that every row has".to_string(),
            Error::Query { source, .. } => return source.hint(),
            Error::Table(error) => return error.hint(),
            Error::Model { .. } | Error::Marker { .. } => return None,
        })
    }

    fn state(&self) -> Option<String> {
        match self {
            Error::Table(error) => error.state(),
            _ => Some("the table is as it was; safe to run again".to_string()),
        }
    }
}

/// What a silver snapshot was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    /// Which bronze table: one made anew under the old name has another.
    bronze: Uuid,
    snapshot: i64,
    /// Finds the changes after it, also when that snapshot was expired.
    sequence: i64,
    model: String,
    /// Fixed when the table was first built, also where the model leaves them to the messages.
    keys: Vec<String>,
    /// How often bronze had been rewound: what a later rewind takes out is in no new file.
    #[serde(default, skip_serializing_if = "is_zero")]
    rewinds: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// How far a silver table has merged its bronze table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Which bronze table: one made anew under the old name has another.
    pub bronze: Uuid,
    pub snapshot_id: i64,
    /// The number of that snapshot's commit.
    pub sequence: i64,
}

/// What a silver table says it has merged; `None` when nothing was built yet.
pub fn progress(silver: &Table) -> Result<Option<Progress>> {
    let marker = Marker::of(silver)?.map(|(_, marker)| marker);
    Ok(marker.map(|of| Progress { bronze: of.bronze, snapshot_id: of.snapshot, sequence: of.sequence }))
}

impl Marker {
    fn of(table: &Table) -> Result<Option<(String, Marker)>> {
        let Some(text) = table.marker(MARKER) else { return Ok(None) };
        match serde_json::from_str(&text) {
            Ok(marker) => Ok(Some((text, marker))),
            Err(_) => Err(Error::Marker { table: table.name().clone(), text }),
        }
    }

    fn text(&self) -> String {
        // Numbers and strings always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether the rows made from this are still what a merge of newer changes can build on: `view` is of the same
    /// table, and further on in the same line.
    fn leads_to(&self, bronze: &Table, view: &TableView) -> bool {
        bronze.uuid() == self.bronze
            && view.sequence_number() >= self.sequence
            && view.descends_from(self.snapshot) != Some(false)
            && Amendments::of(bronze).rewinds == self.rewinds
    }
}

/// Brings a silver table up to its bronze table's head.
pub async fn merge(lake: &Lake, engine: &Engine, model: &SilverModel) -> Result<Outcome> {
    let Some(bronze) = lake.table_if_exists(&model.from).await? else { return Ok(Outcome::Nothing) };
    let view = bronze.view(At::Head)?;
    let Some(bronze_snapshot_id) = view.snapshot_id() else {
        ensure_empty(lake, engine, model, &view).await?;
        return Ok(Outcome::Nothing);
    };
    let silver = lake.table_if_exists(&model.table).await?;
    let known = match &silver {
        Some(silver) => Marker::of(silver)?,
        None => None,
    };
    // The first run replaces what is there, so there must be no rows.
    if let (Some(silver), None) = (&silver, &known)
        && silver.summary().records != Some(0)
    {
        return Err(Error::Foreign { table: model.table.clone() });
    }
    let model_name = fingerprint([
        model.from.to_string().as_str(),
        &model.keys.join(","),
        &format!("{:?}", model.on_delete),
        model.sql.as_deref().unwrap_or_default(),
    ]);
    if let Some((_, known)) = &known {
        if known.model != model_name {
            return Err(Error::ModelChanged { table: model.table.clone() });
        }
        if known.bronze == bronze.uuid() && known.snapshot == bronze_snapshot_id {
            return Ok(Outcome::Nothing);
        }
    }
    let (old_text, known) = known.unzip();
    let base = known.as_ref().filter(|known| known.leads_to(&bronze, &view));
    if base.is_none() && known.is_some() {
        tracing::warn!(
            table = %model.table, bronze = %model.from, layer = "silver",
            "bronze was made anew, rolled back or rewound: folding all of it"
        );
    }
    let (sequence, keys) = (view.sequence_number(), known.as_ref().map(|known| known.keys.clone()));
    let Some(merge) = Merge::plan(engine, model, view, keys, base.map_or(0, |base| base.sequence)).await? else {
        return Ok(Outcome::Nothing);
    };
    let next = Marker {
        bronze: bronze.uuid(),
        snapshot: bronze_snapshot_id,
        sequence,
        model: model_name,
        keys: merge.keys.clone(),
        rewinds: Amendments::of(&bronze).rewinds,
    };
    let silver = match silver {
        Some(silver) => merge.widen(silver).await?,
        None => lake.ensure(&merge.definition()).await?,
    };
    merge.commit(silver, lake.clock().now_us(), old_text, &next).await
}

/// One run over one table.
struct Merge<'a> {
    model: &'a SilverModel,
    session: SessionContext,
    keys: Vec<String>,
    /// The rows that take the place of whatever the touched keys have now.
    rows: DataFrame,
    /// Nothing is left of the old rows when the run folds everything.
    replaces_all: bool,
}

impl<'a> Merge<'a> {
    /// Plans a run over the changes after `since`; 0 folds everything. `None` when there is no change at all.
    async fn plan(
        engine: &Engine,
        model: &'a SilverModel,
        view: TableView,
        keys: Option<Vec<String>>,
        since: i64,
    ) -> Result<Option<Self>> {
        let failed = |source: engine::Error| Error::Query { table: model.table.clone(), source };
        let columns = row_columns(model, &view)?;
        let session = engine.session();
        let bronze = TableName::new("bronze", "history").map_err(crate::table::Error::from)?;
        let new_changes = TableName::new("bronze", "new_changes").map_err(crate::table::Error::from)?;
        engine::register(&session, &bronze, view.clone()).map_err(failed)?;
        engine::register(&session, &new_changes, view.added_since(since)).map_err(failed)?;
        let mut merge = Merge {
            model,
            keys: Vec::new(),
            rows: session.read_empty().map_err(|error| failed(error.into()))?,
            session,
            replaces_all: since == 0,
        };
        merge.keys = match keys {
            Some(keys) => keys,
            None if !model.keys.is_empty() => model.keys.clone(),
            None => match merge.keys_of_messages().await? {
                Some(keys) => keys,
                None => return Ok(None),
            },
        };
        check_keys_known(model, &merge.keys, &columns)?;
        merge.check_keys().await?;
        let truncation = merge.last_truncation("bronze.history").await?;
        if merge.last_truncation("bronze.new_changes").await?.is_some() {
            merge.replaces_all = true;
        }
        if !merge.replaces_all {
            merge.collect_touched().await?;
        }
        let unavailable = merge.unavailable_columns().await?;
        let fold = fold::Fold {
            columns: columns.iter().map(|column| column.name().as_str()).collect(),
            keys: merge.keys.iter().map(String::as_str).collect(),
            unavailable: &unavailable,
            marks_deletes: model.on_delete == OnDelete::Mark,
            only_touched: !merge.replaces_all,
            truncation: truncation.as_ref(),
        };
        let changes = merge.frame(&fold.sql()).await?;
        merge.session.register_table("changes", changes.into_view()).map_err(|error| failed(error.into()))?;
        merge.rows = merge.frame(&select(model, &merge.keys)?).await?;
        Ok(Some(merge))
    }

    async fn frame(&self, sql: &str) -> Result<DataFrame> {
        engine::plan(&self.session, sql).await.map_err(|source| self.failed(source))
    }

    async fn rows_of(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        self.frame(sql).await?.collect().await.map_err(|error| self.failed(error.into()))
    }

    fn failed(&self, source: engine::Error) -> Error {
        Error::Query { table: self.model.table.clone(), source }
    }

    /// The names in the first message key there is; `None` when there is no change yet.
    async fn keys_of_messages(&self) -> Result<Option<Vec<String>>> {
        let sql = "SELECT _key FROM bronze.history WHERE _error IS NULL AND _op IN ('c', 'u', 'r', 'd') \
             ORDER BY _key IS NULL, _topic_partition, _offset LIMIT 1";
        let no_keys = || Error::NoKeys { table: self.model.table.clone(), from: self.model.from.clone() };
        let batches = self.rows_of(sql).await?;
        let Some(key) = texts(&batches, 0).into_iter().next() else { return Ok(None) };
        let text = key.ok_or_else(no_keys)?;
        match serde_json::from_str::<serde_json::Value>(&text) {
            Ok(serde_json::Value::Object(fields)) if !fields.is_empty() => Ok(Some(fields.keys().cloned().collect())),
            _ => Err(no_keys()),
        }
    }

    async fn check_keys(&self) -> Result<()> {
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        let batches = self.rows_of(&fold::null_keys_sql(&keys)).await?;
        let longs = |column: usize| longs(&batches, column).into_iter().next();
        let (Some(count), Some(partition), Some(offset)) = (longs(0), longs(2), longs(3)) else { return Ok(()) };
        let topic = texts(&batches, 1).into_iter().flatten().next().unwrap_or_default();
        Err(Error::NullKey { table: self.model.table.clone(), count, topic, partition, offset })
    }

    async fn last_truncation(&self, of: &str) -> Result<Option<fold::Truncation>> {
        let sql = format!(
            "SELECT _epoch, _position FROM {of} WHERE _op = 't' AND _error IS NULL AND _position IS NOT NULL \
             ORDER BY _epoch DESC NULLS LAST, _position DESC LIMIT 1"
        );
        let batches = self.rows_of(&sql).await?;
        let epoch = longs(&batches, 0).into_iter().next();
        let position = texts(&batches, 1).into_iter().flatten().next();
        Ok(position.map(|position| fold::Truncation { epoch: epoch.unwrap_or(0), position }))
    }

    /// Keeps the keys of the new changes as table `touched`.
    async fn collect_touched(&self) -> Result<()> {
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        let frame = self.frame(&fold::touched_sql(&keys)).await?;
        let planned = Arc::new(frame.schema().as_arrow().clone());
        let batches = frame.collect().await.map_err(|error| self.failed(error.into()))?;
        // A union's batches may know less about nulls than its plan does.
        let schema = batches.first().map_or(planned, RecordBatch::schema);
        let table = MemTable::try_new(schema, vec![batches]).map_err(|error| self.failed(error.into()))?;
        self.session.register_table("touched", Arc::new(table)).map_err(|error| self.failed(error.into()))?;
        Ok(())
    }

    /// Columns whose value some event did not send.
    async fn unavailable_columns(&self) -> Result<Vec<String>> {
        let sql = "SELECT DISTINCT unnest(_unavailable) AS name FROM bronze.history WHERE _unavailable IS NOT NULL";
        let mut names: Vec<String> = texts(&self.rows_of(sql).await?, 0).into_iter().flatten().collect();
        // What is missing of a row before the change is no row's value.
        names.retain(|name| !name.starts_with("before."));
        names.sort();
        Ok(names)
    }

    fn row_schema(&self) -> Schema {
        row_schema(&self.rows, &self.keys)
    }

    fn definition(&self) -> TableDefinition {
        definition(self.model, self.row_schema())
    }

    async fn widen(&self, silver: Table) -> Result<Table> {
        let change = SchemaChange::to_fit(silver.schema()?.as_ref(), &self.row_schema());
        match silver.evolve(&change)? {
            Some(evolved) => Ok(silver.change().schema(evolved).commit().await?.table),
            None => Ok(silver),
        }
    }

    async fn commit(self, silver: Table, now_us: i64, from: Option<String>, next: &Marker) -> Result<Outcome> {
        let started = tokio::time::Instant::now();
        let written = self.write_rows(&silver, now_us).await?;
        let view = silver.view(At::Head)?;
        let doomed = match self.replaces_all {
            true => Vec::new(),
            // The rows are looked for in the very state that the commit stands on.
            false => {
                engine::register(&self.session, &target_name()?, view.clone()).map_err(|error| self.failed(error))?;
                self.doomed_rows(&view).await?
            }
        };
        let rows_deleted = doomed.iter().map(|(_, positions)| positions.len()).sum();
        let rows_written = written.iter().map(WrittenFile::rows).sum();
        let deletes = silver.write_deletes(&doomed).await?;
        let staged: Vec<WrittenFile> = written.iter().chain(deletes.files()).cloned().collect();
        let premise = Premise::new().marker_moves(MARKER, from, next.text()).head_is(silver.snapshot_id());
        let change = match self.replaces_all {
            true => silver.change().replace_all(written),
            false => silver.change().row_delta(&view, written, deletes),
        };
        match change.premise(premise).commit().await {
            Ok(committed) => {
                tracing::info!(
                    table = %self.model.table, layer = "silver", snapshot_id = committed.snapshot_id,
                    rows = rows_written, rows_deleted, elapsed_ms = started.elapsed().as_millis() as u64, "merged"
                );
                Ok(Outcome::Merged(SilverCommit {
                    table: self.model.table.clone(),
                    snapshot_id: committed.snapshot_id,
                    bronze_snapshot_id: next.snapshot,
                    rows_written,
                    rows_deleted,
                }))
            }
            Err(error) if error.is_premise_broken() => {
                silver.discard(&staged).await;
                tracing::info!(table = %self.model.table, layer = "silver", %error, "yielded to another builder");
                Ok(Outcome::Yielded)
            }
            Err(error) => {
                if !matches!(error, crate::table::Error::Unresolved { .. }) {
                    silver.discard(&staged).await;
                }
                Err(error.into())
            }
        }
    }

    async fn write_rows(&self, silver: &Table, now_us: i64) -> Result<Vec<WrittenFile>> {
        let now = datafusion::scalar::ScalarValue::TimestampMicrosecond(Some(now_us), Some(layout::UTC.into()));
        let frame = self.rows.clone().with_column("_merged_at", datafusion::prelude::lit(now));
        let stream = match frame {
            Ok(frame) => frame.execute_stream().await,
            Err(error) => Err(error),
        };
        let mut stream = stream.map_err(|error| self.failed(error.into()))?;
        let mut writer = silver.writer(None)?;
        loop {
            let outcome = match stream.try_next().await {
                Ok(Some(batch)) => writer.write(&batch).await.map_err(Error::from),
                Ok(None) => break,
                Err(error) => Err(self.failed(error.into())),
            };
            if let Err(error) = outcome {
                writer.discard().await;
                return Err(error);
            }
        }
        Ok(writer.finish().await?)
    }

    /// Where the touched keys' present rows are.
    async fn doomed_rows(&self, view: &TableView) -> Result<Vec<(crate::table::ScanFile, RoaringTreemap)>> {
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        let batches = self.rows_of(&fold::doomed_sql(&keys)).await?;
        let mut positions: BTreeMap<String, RoaringTreemap> = BTreeMap::new();
        for (path, position) in texts(&batches, 0).into_iter().zip(longs(&batches, 1)) {
            if let Some(path) = path {
                positions.entry(path).or_default().insert(position as u64);
            }
        }
        let files = view.files(None).await?;
        Ok(files.into_iter().filter_map(|file| positions.remove(&file.path).map(|rows| (file, rows))).collect())
    }
}

/// The columns a model's table will have, when the row images of its bronze table have these. No table is looked at.
pub async fn plan(engine: &Engine, model: &SilverModel, columns: &Fields) -> Result<Schema> {
    let failed = |source: engine::Error| Error::Query { table: model.table.clone(), source };
    let columns: Vec<Arc<Field>> = columns.iter().cloned().collect();
    check_keys_known(model, &model.keys, &columns)?;
    let system = [Field::new("_position", DataType::Utf8, true), Field::new("_source_ts", layout::instant(), true)];
    let deleted = (model.on_delete == OnDelete::Mark).then(|| Field::new("_is_deleted", DataType::Boolean, true));
    let changes = columns.iter().cloned().chain(system.into_iter().chain(deleted).map(Arc::new));
    let changes = Schema::new(changes.collect::<Vec<_>>());
    let changes = MemTable::try_new(Arc::new(changes), vec![Vec::new()]).map_err(|error| failed(error.into()))?;
    let session = engine.session();
    session.register_table("changes", Arc::new(changes)).map_err(|error| failed(error.into()))?;
    let rows = engine::plan(&session, &select(model, &model.keys)?).await.map_err(failed)?;
    // Types are only made to meet when the plan is laid out for running.
    rows.clone().create_physical_plan().await.map_err(|error| failed(error.into()))?;
    Ok(row_schema(&rows, &model.keys))
}

/// Makes the table of a captured table that had no rows yet, so that gold models can read it. Without known keys it has
/// to wait for the first message.
async fn ensure_empty(lake: &Lake, engine: &Engine, model: &SilverModel, bronze: &TableView) -> Result<()> {
    let Ok(columns) = row_columns(model, bronze) else { return Ok(()) };
    if !model.keys.is_empty() {
        let schema = plan(engine, model, &columns.into_iter().collect()).await?;
        lake.ensure(&definition(model, schema)).await?;
    }
    Ok(())
}

fn definition(model: &SilverModel, schema: Schema) -> TableDefinition {
    TableDefinition {
        name: model.table.clone(),
        schema: Arc::new(schema),
        partition: Vec::new(),
        properties: HashMap::new(),
    }
}

/// The model's SELECT with the columns every silver row carries.
fn select(model: &SilverModel, keys: &[String]) -> Result<String> {
    let Some(sql) = &model.sql else { return Ok("SELECT * FROM changes".to_string()) };
    fold::with_system_columns(sql, keys, model.on_delete == OnDelete::Mark).map_err(|unfit| match unfit {
        fold::Unfit::Shape(problem) => Error::Model { table: model.table.clone(), problem },
        fold::Unfit::Key(key) => Error::KeyNotSelected { table: model.table.clone(), key },
    })
}

fn check_keys_known(model: &SilverModel, keys: &[String], columns: &[Arc<Field>]) -> Result<()> {
    let Some(key) = keys.iter().find(|key| !columns.iter().any(|column| column.name() == *key)) else { return Ok(()) };
    let names: Vec<String> = columns.iter().map(|column| format!("`{}`", column.name())).collect();
    Err(Error::UnknownKey {
        table: model.table.clone(),
        from: model.from.clone(),
        key: key.clone(),
        columns: names.join(", "),
    })
}

fn row_schema(rows: &DataFrame, keys: &[String]) -> Schema {
    let fields = rows.schema().as_arrow().fields().iter().map(|field| {
        let required = keys.iter().any(|key| key == field.name());
        Field::new(field.name(), field.data_type().clone(), !required)
    });
    let merged_at = Field::new("_merged_at", layout::instant(), true);
    Schema::new(fields.chain([merged_at]).collect::<Vec<_>>())
}

fn target_name() -> Result<TableName> {
    Ok(TableName::new("silver", "target").map_err(crate::table::Error::from)?)
}

/// The columns of a row image.
fn row_columns(model: &SilverModel, view: &TableView) -> Result<Vec<Arc<Field>>> {
    let no_columns = || Error::NoColumns { table: model.table.clone(), from: model.from.clone() };
    let schema = view.arrow_schema();
    let after = schema.field_with_name(layout::AFTER).map_err(|_| no_columns())?;
    match after.data_type() {
        DataType::Struct(fields) => Ok(fields.iter().cloned().collect()),
        _ => Err(no_columns()),
    }
}

fn texts(batches: &[RecordBatch], column: usize) -> Vec<Option<String>> {
    let mut found = Vec::new();
    for batch in batches {
        let Ok(array) = cast(batch.column(column), &DataType::Utf8) else { continue };
        if let Some(array) = array.as_any().downcast_ref::<StringArray>() {
            found.extend(array.iter().map(|text| text.map(str::to_string)));
        }
    }
    found
}

fn longs(batches: &[RecordBatch], column: usize) -> Vec<i64> {
    let mut found = Vec::new();
    for batch in batches {
        let Ok(array) = cast(batch.column(column), &DataType::Int64) else { continue };
        if let Some(array) = array.as_any().downcast_ref::<Int64Array>() {
            found.extend(array.iter().flatten());
        }
    }
    found
}
