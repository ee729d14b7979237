//! Folds a bronze table's changes into the latest row of each key.
//!
//! In comes a bronze snapshot, out goes a silver snapshot whose marker names it. It does not know Kafka.
//!
//! **A silver table is a function of its bronze table**: late, repeated and re-read events give the same rows as events
//! that came once and in order. A run reads the new files only (`events`), and the last event of each key decides; what
//! was merged before comes in where it could make a difference (`run`). Rows that break a rule go to a table of their own
//! (`gate`). **Deletes, inserts and the marker are one
//! commit**, guarded by the marker it started from: of two builders at once, one wins and the other throws its files
//! away.

mod before;
mod events;
mod fold;
mod gate;
mod keys;
mod lookup;
mod order;
mod run;
mod statement;
mod upkeep;
mod versioned;
mod versions;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::MemTable;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::amendment::Amendments;
use crate::definition::{Definition, Difference};
use crate::engine::{self, Engine};
use crate::error::{Kind, Situation};
use crate::fingerprint::fingerprint;
use crate::ids::TableName;
use crate::layout;
use crate::quality::{Broken, Finding, QUARANTINE_SUFFIX, Rule, TARGET, ask_whole, failures, listed};
use crate::table::{Amount, At, Lake, Table, TableDefinition, TableView};
use gate::Side;
pub use lookup::{Lookups, Seen, check_lookups, in_order, lookups, lookups_seen};
use order::{Frontier, Stragglers, Truncation};
use run::{Base, Run, Staged};
pub use statement::Statement;
use versions::IS_DELETED;

/// What reads a few rows here and there (old values for a gold table, a look-up) reads the pages they are in, so that a page
/// should not hold many more. It is a fifth of what is usual; still smaller ones gain little more, and footers grow.
const PAGE_ROWS: u32 = 4000;

/// The marker's key in snapshot summaries and table properties.
pub const MARKER: &str = "icestream.bronze";

/// When a row was written.
const MERGED_AT: &str = "_merged_at";

/// How a silver table comes out of its bronze table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilverModel {
    pub table: TableName,
    pub from: TableName,
    /// The columns that identify a row; empty for the fields of the message key.
    pub keys: Vec<String>,
    pub on_delete: OnDelete,
    pub scd: Scd,
    pub ignore_nulls: IgnoreNulls,
    /// A SELECT over `changes`; `None` for all columns as they are.
    pub sql: Option<String>,
    /// What its rows must be.
    pub expect: Vec<Rule>,
}

impl SilverModel {
    /// Where rows are kept that break one of its rules, and events that have no value for a key.
    pub fn quarantine(&self) -> TableName {
        self.table.with_suffix(QUARANTINE_SUFFIX)
    }

    /// Which rows are there for their source, neither of the past nor deleted, as SQL; empty for all.
    pub(crate) fn live_rows(&self) -> &'static str {
        match (&self.scd, self.on_delete) {
            (Scd::Two { .. }, _) => "_is_current",
            (Scd::One, OnDelete::Mark) => "NOT _is_deleted",
            (Scd::One, OnDelete::Remove) => "",
        }
    }

    /// Tells whether rows were made by this very model.
    fn fingerprint(&self, side: Side) -> String {
        let scd = match &self.scd {
            Scd::One => None,
            Scd::Two { track_history } => Some(format!("2 {}", track_history.join(","))),
        };
        let from = self.from.to_string();
        let (keys, on_delete) = (self.keys.join(","), format!("{:?}", self.on_delete));
        let sql = self.sql.as_deref().unwrap_or_default();
        let ignored = match &self.ignore_nulls {
            IgnoreNulls::Nowhere => None,
            IgnoreNulls::Everywhere => Some("nulls ignored".to_string()),
            IgnoreNulls::In(columns) => Some(format!("nulls ignored in {}", columns.join(","))),
        };
        let parts = [from.as_str(), &keys, &on_delete, sql].into_iter();
        let rules = side.fingerprint(self);
        let rules = rules.iter().map(String::as_str);
        fingerprint(parts.chain(scd.as_deref()).chain(ignored.as_deref()).chain(rules))
    }

    fn definition(&self, side: Side) -> Definition {
        let mut parts = vec![
            ("from", self.from.to_string()),
            ("on_delete", if self.on_delete == OnDelete::Mark { "mark" } else { "remove" }.to_string()),
            ("scd", if self.scd == Scd::One { "1" } else { "2" }.to_string()),
            ("sql", self.sql.clone().unwrap_or_else(|| DEFAULT_SQL.to_string())),
        ];
        let mut list = |name, columns: &[String]| {
            if !columns.is_empty() {
                parts.push((name, columns.join(", ")));
            }
        };
        list("keys", &self.keys);
        if let Scd::Two { track_history } = &self.scd {
            list("track_history", track_history);
        }
        list("expect", &side.fingerprint(self));
        match &self.ignore_nulls {
            IgnoreNulls::Nowhere => {}
            IgnoreNulls::Everywhere => list("ignore_null_updates", &["true".to_string()]),
            IgnoreNulls::In(columns) => list("ignore_null_updates", columns),
        }
        Definition::new(self.fingerprint(side), parts)
    }
}

/// What a model without SQL selects.
const DEFAULT_SQL: &str = "SELECT * FROM changes";

/// In which columns of the source a null says nothing: a row that is there keeps the value it had. A row that is made
/// anew, after a delete or a truncation, keeps nothing of the one before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum IgnoreNulls {
    #[default]
    Nowhere,
    /// In all but the keys.
    Everywhere,
    In(Vec<String>),
}

impl IgnoreNulls {
    /// The columns, of those there are.
    fn columns(&self, columns: &[Arc<Field>], keys: &[String]) -> Vec<String> {
        let names = columns.iter().map(|column| column.name()).filter(|name| !keys.contains(name));
        match self {
            IgnoreNulls::Nowhere => Vec::new(),
            IgnoreNulls::Everywhere => names.cloned().collect(),
            IgnoreNulls::In(wanted) => names.filter(|name| wanted.contains(name)).cloned().collect(),
        }
    }
}

/// Whether a row's past is kept: which type of slowly changing dimension a table is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scd {
    /// A row is what it is now.
    #[default]
    One,
    /// A row for each version, from when to when. A version begins when one of these columns changes; empty for all
    /// but the keys.
    Two { track_history: Vec<String> },
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
    /// How long it took, from reading the changes on.
    pub elapsed: Duration,
    /// What each rule says of the rows that the run made.
    pub findings: Vec<Finding>,
    /// Rows that went into quarantine, and that were dropped.
    pub rows_quarantined: u64,
    pub rows_dropped: u64,
    /// Events that have no value for a key.
    pub null_keys: u64,
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

    #[error(
        "silver table `{table}`: `ignore_null_updates_columns` names `{column}`, which is not a column of `{from}`; \
             there are {columns}"
    )]
    UnknownIgnored { table: TableName, from: TableName, column: String, columns: String },

    #[error("silver table `{table}`: the model does not select its key `{key}` as it is")]
    KeyNotSelected { table: TableName, key: String },

    #[error("silver table `{table}` was not merged: its rows would break {}", listed(broken))]
    Broken { table: TableName, broken: Vec<Broken>, findings: Vec<Finding> },

    #[error("silver table `{table}`: {problem}")]
    Model { table: TableName, problem: String },

    #[error("silver models look each other up in a circle: {circle}")]
    Circle { table: TableName, circle: String },

    #[error("silver table `{table}` looks rows up in `{lookup}`, which is not there")]
    LookupMissing { table: TableName, lookup: TableName },

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
            | Error::UnknownIgnored { .. }
            | Error::KeyNotSelected { .. }
            | Error::Model { .. }
            | Error::Circle { .. }
            | Error::LookupMissing { .. }
            | Error::ModelChanged { .. }
            | Error::Foreign { .. } => Kind::Config,
            Error::Broken { .. } => Kind::Quality,
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
            Error::UnknownIgnored { .. } => {
                "columns are named as the source has them, not as the SELECT calls them".to_string()
            }
            Error::KeyNotSelected { key, .. } => format!("add `{key}` to the SELECT, unchanged"),
            Error::Circle { .. } => "join one of them in gold instead".to_string(),
            Error::LookupMissing { lookup, .. } => {
                format!("build it first: `icestream build {}`", lookup.name())
            }
            Error::ModelChanged { table } => {
                format!(
                    "`icestream plan` shows what changed; `icestream build --full {}` builds it anew from bronze",
                    table.name()
                )
            }
            Error::Foreign { .. } => "give the model another table name, or drop that table".to_string(),
            Error::Broken { .. } => {
                "mend the source, or change what the rule does by its `else` in the model; the next build asks again"
                    .to_string()
            }
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
    /// Without it, the next run folds everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    merged: Option<Merged>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    lookups: BTreeMap<String, Seen>,
}

/// What a run must know of the changes before it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Merged {
    frontier: Frontier,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    truncation: Option<Truncation>,
    /// All of them and when they happened, where versions end by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    truncations: Vec<(Truncation, i64)>,
    /// Columns that some event held a placeholder for.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    unavailable: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Stragglers::is_empty")]
    stragglers: Stragglers,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A partition whose last event, at `offset`, is behind what was merged of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FallenBack {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

/// The partitions of which a silver table has merged later events than their last one: a connector sends again what it has
/// sent before and will catch up, or its source was restored to an earlier state, and what comes is late from now on.
pub fn fallen_back(table: &Table) -> Result<Vec<FallenBack>> {
    let merged = Marker::of(table)?.and_then(|(_, marker)| marker.merged).unwrap_or_default();
    Ok(merged.fallen_back())
}

impl Merged {
    fn fallen_back(&self) -> Vec<FallenBack> {
        let of =
            |(topic, partition, offset): (&str, i32, i64)| FallenBack { topic: topic.to_string(), partition, offset };
        self.stragglers.iter().map(of).collect()
    }

    /// Adds what was seen of other keys of the same changes.
    fn join(&mut self, other: Merged) {
        self.frontier.join(other.frontier);
        self.truncation = self.truncation.take().max(other.truncation);
        let new =
            other.truncations.into_iter().filter(|(of, _)| !self.truncations.iter().any(|(known, _)| known == of));
        let new: Vec<_> = new.collect();
        self.truncations.extend(new);
        self.unavailable.extend(other.unavailable);
    }
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

/// The columns that a silver table's files are sorted by: its keys, and where versions are kept, when each began. Empty
/// for a table that nothing was merged into.
pub fn sort_columns(silver: &Table) -> Result<Vec<String>> {
    let mut columns = Marker::of(silver)?.map(|(_, marker)| marker.keys).unwrap_or_default();
    let schema = silver.schema()?;
    columns.extend((!columns.is_empty()).then(|| "_valid_from".to_string()));
    columns.retain(|column| schema.index_of(column).is_ok());
    Ok(columns)
}

/// What a silver table says it has merged; `None` when nothing was built yet.
pub fn progress(silver: &Table) -> Result<Option<Progress>> {
    let marker = Marker::of(silver)?.map(|(_, marker)| marker);
    Ok(marker.map(|of| Progress { bronze: of.bronze, snapshot_id: of.snapshot, sequence: of.sequence }))
}

/// What the rows of a silver table, or of its quarantine, were made from.
#[derive(Debug, Clone)]
pub struct MadeFrom {
    /// Which bronze table: one made anew under the old name has another.
    pub bronze: Uuid,
    pub snapshot_id: i64,
    /// Fixed when the table was first built, also where the model leaves them to the messages.
    pub keys: Vec<String>,
    pub lookups: BTreeMap<TableName, Seen>,
    /// Whether it was this very model that made them.
    pub by_this_model: bool,
}

/// What a table of the model says it was made from; `None` when nothing was built yet.
pub fn made_from(model: &SilverModel, table: &Table) -> Result<Option<MadeFrom>> {
    let Some((_, marker)) = Marker::of(table)? else { return Ok(None) };
    let side = if *table.name() == model.quarantine() { Side::Quarantine } else { Side::Table };
    Ok(Some(MadeFrom {
        bronze: marker.bronze,
        snapshot_id: marker.snapshot,
        keys: marker.keys.clone(),
        lookups: lookups_seen(table)?,
        by_this_model: marker.model == model.fingerprint(side),
    }))
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

/// How much of bronze a run folds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Extent {
    /// What is new.
    #[default]
    New,
    /// What is new, and everything of the keys that have an event which was ingested at this time or later (microseconds
    /// since 1970), whatever their rows are now.
    Since(i64),
    /// Everything, also by another model than before.
    Everything,
}

/// Brings a silver table up to its bronze table's head.
pub async fn merge(lake: &Lake, engine: &Engine, model: &SilverModel, lookups: &Lookups) -> Result<Outcome> {
    build(lake, engine, model, lookups, Extent::New).await
}

/// Folds all of bronze anew, also by another model than before. The rows there are stay until the new ones take their
/// place in one commit.
pub async fn rebuild(lake: &Lake, engine: &Engine, model: &SilverModel, lookups: &Lookups) -> Result<Outcome> {
    build(lake, engine, model, lookups, Extent::Everything).await
}

/// Where a silver table stands against its model and its bronze table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// Nothing was built yet.
    New,
    /// It holds everything that bronze has.
    UpToDate,
    /// Bronze has changes that go on top of what it holds.
    Behind,
    /// Bronze was made anew, rolled back or rewound: what was merged is nothing to go on from.
    CutOff,
    /// It was built by another model, and only a rebuild takes this one up.
    OtherModel,
    /// It holds rows that were not built here. The first run would replace them.
    Foreign,
}

impl Stand {
    fn of(
        model: &SilverModel,
        side: Side,
        silver: Option<&Table>,
        known: Option<&Marker>,
        bronze: &Table,
        view: &TableView,
    ) -> Self {
        match (silver, known) {
            (None, _) => Stand::New,
            (Some(silver), None) if silver.summary().records == Some(0) => Stand::New,
            (Some(_), None) => Stand::Foreign,
            (_, Some(known)) if known.model != model.fingerprint(side) => Stand::OtherModel,
            (_, Some(known)) if known.bronze == bronze.uuid() && view.has_rows_of(known.snapshot) => Stand::UpToDate,
            (_, Some(known)) if known.leads_to(bronze, view) => Stand::Behind,
            (_, Some(_)) => Stand::CutOff,
        }
    }
}

/// What a run would find.
#[derive(Debug)]
pub struct Preview {
    pub stand: Stand,
    /// In what the model differs from the one that the table was built by; empty when it is the same, or when the table
    /// does not say.
    pub differences: Vec<Difference>,
    /// What it would read of bronze; for a table that another model built, what a rebuild would.
    pub reads: Amount,
    /// The table as it is.
    pub table: Option<Table>,
}

/// Looks at what a run would do, without doing it. `None` while there is no bronze table.
pub async fn preview(lake: &Lake, model: &SilverModel) -> Result<Option<Preview>> {
    let Some(bronze) = lake.table_if_exists(&model.from).await? else { return Ok(None) };
    let view = bronze.view(At::Head)?;
    let table = lake.table_if_exists(&model.table).await?;
    let known = table.as_ref().map(Marker::of).transpose()?.flatten().map(|(_, marker)| marker);
    let stand = Stand::of(model, Side::Table, table.as_ref(), known.as_ref(), &bronze, &view);
    let built_by = table.as_ref().zip(known.as_ref()).and_then(|(table, known)| Definition::of(table, &known.model));
    let reads = match (stand, &known) {
        (Stand::UpToDate | Stand::Foreign, _) => Amount::default(),
        (Stand::Behind, Some(Marker { sequence, merged: Some(_), .. })) => view.added_since(*sequence).amount().await?,
        _ => view.amount().await?,
    };
    let differences = built_by.map(|before| before.differences(&model.definition(Side::Table))).unwrap_or_default();
    Ok(Some(Preview { stand, differences, reads, table }))
}

/// Times that a run is made anew because files it deletes from were put together under it. Compaction leaves a table
/// alone for longer than a run takes, unless somebody compacts it far too often.
const RUNS_MAX: usize = 5;

/// Brings a silver table up to its bronze table's head, in one commit. A run whose rows were moved meanwhile, and not
/// merged by another builder, is made anew.
pub async fn build(
    lake: &Lake,
    engine: &Engine,
    model: &SilverModel,
    lookups: &Lookups,
    extent: Extent,
) -> Result<Outcome> {
    let mut runs = 1;
    loop {
        let before = markers(lake, model).await?;
        let outcome = build_once(lake, engine, model, lookups, extent).await?;
        if !matches!(outcome, Outcome::Yielded) || runs == RUNS_MAX || before != markers(lake, model).await? {
            return Ok(outcome);
        }
        runs += 1;
        tracing::debug!(table = %model.table, layer = "silver", attempt = runs, "rows were moved under a run");
    }
}

/// What a model's two tables say of themselves.
async fn markers(lake: &Lake, model: &SilverModel) -> Result<[Option<String>; 2]> {
    let marker =
        async |table| Ok::<_, Error>(lake.table_if_exists(table).await?.and_then(|table| table.marker(MARKER)));
    Ok([marker(&model.table).await?, marker(&model.quarantine()).await?])
}

async fn build_once(
    lake: &Lake,
    engine: &Engine,
    model: &SilverModel,
    lookups: &Lookups,
    extent: Extent,
) -> Result<Outcome> {
    let started = tokio::time::Instant::now();
    let Some(bronze) = lake.table_if_exists(&model.from).await? else { return Ok(Outcome::Nothing) };
    let view = bronze.view(At::Head)?;
    let lookups = lookups.of(model)?;
    if view.snapshot_id().is_none() {
        ensure_empty(lake, engine, model, &view, &lookups).await?;
        return Ok(Outcome::Nothing);
    }
    let quarantine = SilverModel { table: model.quarantine(), ..model.clone() };
    let stage = |model, side| stage(lake, engine, model, side, &bronze, &lookups, extent);
    let table = stage(model, Side::Table).await?;
    // The quarantine is committed first, so that it is never behind the table: nothing has to be looked at where the
    // table has nothing new.
    if table.is_none() && extent == Extent::New {
        return Ok(Outcome::Nothing);
    }
    let null_keys = table.as_ref().map_or(0, |table| table.staged.null_keys);
    let before = async {
        let findings = match &table {
            Some(table) => ask(lake, engine, model, &table.staged).await?,
            None => Vec::new(),
        };
        let is_wanted =
            model.quarantines() || null_keys > 0 || lake.table_if_exists(&quarantine.table).await?.is_some();
        let staged = if is_wanted { stage(&quarantine, Side::Quarantine).await? } else { None };
        let outcome = match staged {
            Some(staged) => staged.commit(Vec::new()).await?,
            None => Outcome::Nothing,
        };
        Ok::<_, Error>((findings, outcome))
    };
    let (findings, table) = match (before.await, table) {
        // Whoever committed the quarantine commits the table as well, or has died and left it to the next run.
        (Ok((_, Outcome::Yielded)), Some(table)) => {
            table.discard().await;
            return Ok(Outcome::Yielded);
        }
        (Ok((findings, _)), Some(table)) => (findings, table),
        (Ok((_, outcome)), None) => return Ok(outcome),
        (Err(error), table) => {
            if let Some(table) = table {
                table.discard().await;
            }
            return Err(error);
        }
    };
    let first_null_key = table.staged.first_null_key.clone();
    let fallen_back = table.staged.merged.fallen_back();
    let outcome = table.commit(findings).await?;
    if let Outcome::Merged(commit) = &outcome {
        tracing::info!(
            table = %model.table, layer = "silver", snapshot_id = commit.snapshot_id, rows = commit.rows_written,
            rows_deleted = commit.rows_deleted, rows_quarantined = commit.rows_quarantined,
            rows_dropped = commit.rows_dropped, elapsed_ms = started.elapsed().as_millis() as u64, "merged"
        );
        if let Some(first) = first_null_key {
            tracing::warn!(
                table = %model.table, layer = "silver", rows = commit.null_keys, topic = first.topic,
                partition = first.partition, offset_first = first.offset, quarantine = %quarantine.table,
                "events without a value for the key are in quarantine"
            );
        }
        for FallenBack { topic, partition, offset } in fallen_back {
            tracing::warn!(
                table = %model.table, layer = "silver", topic, partition, offset,
                "the source's positions fell back: events are sent again, or the source was restored"
            );
        }
        for finding in commit.findings.iter().filter(|finding| finding.rows_failed > 0) {
            tracing::warn!(
                target: TARGET,
                table = %model.table, layer = "silver", rule = finding.rule, severity = finding.severity,
                rows = finding.rows_failed, "rows break a rule"
            );
        }
    }
    Ok(outcome)
}

/// Asks the rules of what is about to be committed. One that must hold and does not is an error.
async fn ask(lake: &Lake, engine: &Engine, model: &SilverModel, staged: &Staged) -> Result<Vec<Finding>> {
    let mut findings = staged.passed.tally.findings(&model.table, &model.expect);
    if model.expect.iter().any(Rule::is_of_stored_rows) {
        let rows = staged.view_of_all().await?;
        let asked = ask_whole(lake, engine, &model.table, &model.expect, &rows, model.live_rows()).await;
        findings.extend(asked.map_err(|source| Error::Query { table: model.table.clone(), source })?);
    }
    let mut broken = failures(&findings);
    if broken.is_empty() {
        return Ok(findings);
    }
    staged.passed.tally.name_firsts(&mut broken, &model.expect);
    Err(Error::Broken { table: model.table.clone(), broken, findings })
}

/// What a run made of one of a model's tables, before it is committed.
struct Prepared<'a> {
    run: Run<'a>,
    staged: Staged,
    known: Option<String>,
    next: Marker,
}

impl Prepared<'_> {
    async fn commit(self, findings: Vec<Finding>) -> Result<Outcome> {
        self.run.commit(self.staged, self.known, &self.next, findings).await
    }

    async fn discard(self) {
        self.staged.silver.discard(&self.staged.written).await;
    }
}

/// Writes what one of a model's tables lacks; `None` when that is nothing.
async fn stage<'a>(
    lake: &'a Lake,
    engine: &'a Engine,
    model: &'a SilverModel,
    side: Side,
    bronze: &Table,
    lookups: &BTreeMap<TableName, TableView>,
    extent: Extent,
) -> Result<Option<Prepared<'a>>> {
    let view = bronze.view(At::Head)?;
    let Some(bronze_snapshot_id) = view.snapshot_id() else { return Ok(None) };
    let silver = lake.table_if_exists(&model.table).await?;
    let (old_text, known) = silver.as_ref().map(Marker::of).transpose()?.flatten().unzip();
    let stand = Stand::of(model, side, silver.as_ref(), known.as_ref(), bronze, &view);
    // Where the table's own model is the same, it is the names of rules that changed.
    let extent = if stand == Stand::OtherModel && side == Side::Quarantine { Extent::Everything } else { extent };
    let anew = extent == Extent::Everything;
    match stand {
        Stand::Foreign => return Err(Error::Foreign { table: model.table.clone() }),
        Stand::OtherModel if !anew => return Err(Error::ModelChanged { table: model.table.clone() }),
        Stand::UpToDate if extent == Extent::New => return Ok(None),
        Stand::CutOff if !anew => tracing::warn!(
            table = %model.table, bronze = %model.from, layer = "silver",
            "bronze was made anew, rolled back or rewound: folding all of it"
        ),
        _ => {}
    }
    let known = known.filter(|_| !anew);
    let base = known.as_ref().filter(|_| matches!(stand, Stand::Behind | Stand::UpToDate));
    let keys = known.as_ref().map(|known| known.keys.clone());
    let seen = lookup::seen(base.map(|base| &base.lookups), lookups);
    let base = base.and_then(|base| Some(Base { sequence: base.sequence, merged: base.merged.clone()? }));
    let sequence = view.sequence_number();
    let Some(run) = Run::new(lake, engine, (model, side), view, keys, extent, lookups).await? else { return Ok(None) };
    let staged = run.stage(silver, base).await?;
    if stand == Stand::UpToDate && staged.changes_nothing() {
        return Ok(None);
    }
    let next = Marker {
        bronze: bronze.uuid(),
        snapshot: bronze_snapshot_id,
        sequence,
        model: model.fingerprint(side),
        keys: run.keys.clone(),
        rewinds: Amendments::of(bronze).rewinds,
        merged: Some(staged.merged.clone()),
        lookups: seen,
    };
    Ok(Some(Prepared { run, staged, known: old_text, next }))
}

/// The statement that the next run over a table stands for. `None` while bronze, or a table it looks rows up in, has
/// nothing.
pub async fn statement(lake: &Lake, engine: &Engine, model: &SilverModel) -> Result<Option<Statement>> {
    let Some(bronze) = lake.table_if_exists(&model.from).await? else { return Ok(None) };
    let view = bronze.view(At::Head)?;
    let Some(to) = view.snapshot_id() else { return Ok(None) };
    let silver = lake.table_if_exists(&model.table).await?;
    let known = silver.as_ref().map(Marker::of).transpose()?.flatten().map(|(_, marker)| marker);
    let stand = Stand::of(model, Side::Table, silver.as_ref(), known.as_ref(), &bronze, &view);
    let merged = known.as_ref().filter(|_| matches!(stand, Stand::Behind | Stand::UpToDate));
    let from = merged.map(|known| known.snapshot).filter(|snapshot| view.knows(*snapshot));
    let mut notes = Vec::new();
    if from.is_none() && merged.is_some() {
        notes.push("the snapshot that was merged last has been expired, so this folds everything".to_string());
    }
    let keys = merged.map(|known| known.keys.clone());
    let mut lookups = Lookups::default();
    lookups.pin(lake, model).await?;
    if lookups.missing(model)?.is_some() {
        return Ok(None);
    }
    let lookups = lookups.of(model)?;
    if !lookups.is_empty() {
        notes.push("rows look up others as these are now; rows merged before show what those were then".to_string());
    }
    let Some(run) = Run::new(lake, engine, (model, Side::Table), view, keys, Extent::New, &lookups).await? else {
        return Ok(None);
    };
    let schemas = lookups.iter().map(|(name, view)| (name.clone(), view.arrow_schema())).collect();
    let schema = plan(engine, model, &run.columns.iter().cloned().collect(), &schemas).await?;
    let pins = lookups.iter().filter_map(|(name, view)| Some((name.clone(), view.snapshot_id()?))).collect();
    let versions = matches!(model.scd, Scd::Two { .. });
    let hidden: &[&str] = if versions { &[versioned::EVENT] } else { &[] };
    let rows = model.rows_that_pass(select(model, &run.keys, hidden)?);
    let translated = engine::trino::to_trino(&rows, &pins);
    notes.extend(translated.notes);
    if !model.expect.is_empty() {
        notes.push("rules that only `warn` or `fail`, and the quarantine, are not part of it".to_string());
    }
    let names = |fields: &[usize]| fields.iter().map(|at| schema.field(*at).name().clone()).collect::<Vec<_>>();
    let tracked = names(&versioned::tracked(model, &run.keys, &schema)?);
    let output = schema.fields().iter().map(|field| field.name().as_str()).filter(|name| *name != MERGED_AT);
    let writing = statement::Writing {
        model,
        select: translated.sql,
        keys: run.keys.iter().map(String::as_str).collect(),
        columns: run.columns.iter().map(|column| column.name().as_str()).collect(),
        output: output.collect(),
        tracked: tracked.iter().map(String::as_str).collect(),
        unavailable: &run.unavailable().await?,
        ignores: run.ignores(),
        from,
        to,
    };
    Ok(Some(writing.statement(notes)))
}

/// The columns a model's table will have, when the row images of its bronze table and its lookups have these. No table is
/// looked at.
pub async fn plan(
    engine: &Engine,
    model: &SilverModel,
    columns: &Fields,
    lookups: &BTreeMap<TableName, SchemaRef>,
) -> Result<Schema> {
    let failed = |source: engine::Error| Error::Query { table: model.table.clone(), source };
    let columns: Vec<Arc<Field>> = columns.iter().cloned().collect();
    check_columns_known(model, &model.keys, &columns)?;
    let system = [Field::new("_position", DataType::Utf8, true), Field::new("_source_ts", layout::instant(), true)];
    let deleted = (model.on_delete == OnDelete::Mark).then(|| Field::new("_is_deleted", DataType::Boolean, true));
    let changes = columns.iter().cloned().chain(system.into_iter().chain(deleted).map(Arc::new));
    let changes = Schema::new(changes.collect::<Vec<_>>());
    let changes = MemTable::try_new(Arc::new(changes), vec![Vec::new()]).map_err(|error| failed(error.into()))?;
    let session = engine.session();
    session.register_table("changes", Arc::new(changes)).map_err(|error| failed(error.into()))?;
    for (name, schema) in lookups {
        engine::register_empty(&session, name, schema.clone()).map_err(failed)?;
    }
    let rows = engine::plan(&session, &select(model, &model.keys, &[])?).await.map_err(failed)?;
    // Types are only made to meet when the plan is laid out for running.
    rows.clone().create_physical_plan().await.map_err(|error| failed(error.into()))?;
    check_names(model, &rows)?;
    let schema = row_schema(&rows, &model.keys);
    Ok(match model.scd {
        Scd::One => schema,
        Scd::Two { .. } => {
            versioned::tracked(model, &model.keys, &schema)?;
            versioned::versions_schema(&schema)
        }
    })
}

/// The rules of a model that cannot be asked of its rows, by their index, and why; `table` has the columns that
/// [`plan`] says.
pub async fn unfit_rules(engine: &Engine, model: &SilverModel, table: &Schema) -> Vec<(usize, engine::Error)> {
    crate::quality::unfit_rules(engine, &model.expect, &gate::rule_columns(table)).await
}

/// The columns of a model's quarantine; `table` has those that [`plan`] says.
pub fn quarantine_schema(table: &Schema) -> Schema {
    gate::quarantine_schema(table)
}

/// Makes the table of a captured table that had no rows yet, so that gold models can read it, and
/// its quarantine's, which audits may read. Without known keys it has
/// to wait for the first message.
async fn ensure_empty(
    lake: &Lake,
    engine: &Engine,
    model: &SilverModel,
    bronze: &TableView,
    lookups: &BTreeMap<TableName, TableView>,
) -> Result<()> {
    let Ok(columns) = row_columns(model, bronze) else { return Ok(()) };
    if !model.keys.is_empty() {
        let lookups = lookups.iter().map(|(name, view)| (name.clone(), view.arrow_schema())).collect();
        let schema = plan(engine, model, &columns.into_iter().collect(), &lookups).await?;
        lake.ensure(&definition(model, schema.clone())).await?;
        if model.quarantines() {
            let quarantine = SilverModel { table: model.quarantine(), ..model.clone() };
            lake.ensure(&definition(&quarantine, quarantine_schema(&schema))).await?;
        }
    }
    Ok(())
}

fn definition(model: &SilverModel, schema: Schema) -> TableDefinition {
    TableDefinition {
        name: model.table.clone(),
        schema: Arc::new(schema),
        partition: Vec::new(),
        properties: storage(),
    }
}

/// How silver tables are stored, as properties of theirs.
pub fn storage() -> HashMap<String, String> {
    HashMap::from([("write.parquet.page-row-limit".to_string(), PAGE_ROWS.to_string())])
}

/// The model's SELECT with the columns every silver row carries, and hidden ones.
pub fn select(model: &SilverModel, keys: &[String], hidden: &[&str]) -> Result<String> {
    let Some(sql) = &model.sql else { return Ok(DEFAULT_SQL.to_string()) };
    fold::with_system_columns(sql, keys, model.on_delete == OnDelete::Mark, hidden).map_err(|unfit| match unfit {
        fold::Unfit::Shape(problem) => Error::Model { table: model.table.clone(), problem },
        fold::Unfit::Key(key) => Error::KeyNotSelected { table: model.table.clone(), key },
    })
}

fn check_columns_known(model: &SilverModel, keys: &[String], columns: &[Arc<Field>]) -> Result<()> {
    let unknown =
        |names: &[String]| names.iter().find(|name| !columns.iter().any(|column| column.name() == *name)).cloned();
    let known = || columns.iter().map(|column| format!("`{}`", column.name())).collect::<Vec<_>>().join(", ");
    let (table, from) = (model.table.clone(), model.from.clone());
    if let Some(key) = unknown(keys) {
        return Err(Error::UnknownKey { table, from, key, columns: known() });
    }
    match &model.ignore_nulls {
        IgnoreNulls::In(names) => match unknown(names) {
            Some(column) => Err(Error::UnknownIgnored { table, from, column, columns: known() }),
            None => Ok(()),
        },
        IgnoreNulls::Nowhere | IgnoreNulls::Everywhere => Ok(()),
    }
}

/// The columns of a lookup may be called like those of the changes, and those of a table may not.
fn check_names(model: &SilverModel, rows: &DataFrame) -> Result<()> {
    let names: Vec<&String> = rows.schema().fields().iter().map(|field| field.name()).collect();
    let Some(name) = names.iter().enumerate().find_map(|(at, name)| names[..at].contains(name).then_some(name)) else {
        return Ok(());
    };
    let problem = format!("two of its columns are called `{name}`; give one another name with AS");
    Err(Error::Model { table: model.table.clone(), problem })
}

fn row_schema(rows: &DataFrame, keys: &[String]) -> Schema {
    let fields = rows.schema().as_arrow().fields().iter().map(|field| {
        let required = keys.iter().any(|key| key == field.name());
        Field::new(field.name(), field.data_type().clone(), !required)
    });
    let merged_at = Field::new(MERGED_AT, layout::instant(), true);
    Schema::new(fields.chain([merged_at]).collect::<Vec<_>>())
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
