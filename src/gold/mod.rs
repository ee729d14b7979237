//! Computes gold tables from silver and gold tables.
//!
//! In come the tables that a run's models read, each at one snapshot; out goes one commit per model that replaces its
//! rows, or those of the groups that changed rows reach, and names the snapshots. It does not know keys, operations or
//! bronze.
//!
//! **A gold table is a function of its inputs**: a run whose inputs did not move costs a look at their heads and commits
//! nothing, and refreshing bit by bit gives what computing everything gives. What cannot be proven to be so is computed
//! in full, and says why. **All models of a run read the same snapshots**, and of each other what the run made. **Models
//! run in the order of what they read**; a circle among them is an error.

mod accounts;
mod inputs;
mod ledger;
mod reach;
mod touched;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Field, Schema};
use datafusion::dataframe::DataFrame;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};

pub use inputs::Inputs;

use crate::definition::{self, Definition, Difference};
use crate::engine::{self, Engine};
use crate::error::{Kind, Situation};
use crate::fingerprint::fingerprint;
use crate::ids::TableName;
use crate::quality::{Broken, Finding, Rule, TARGET, Tally, Watch, ask_whole, failures, listed};
use crate::table::{
    At, EvolvedSchema, Lake, Premise, ScanFile, SchemaChange, Table, TableDefinition, TableView, WrittenFile,
};
use inputs::Input;
use touched::Touched;

/// The marker's key in snapshot summaries and table properties.
pub const MARKER: &str = "icestream.inputs";

/// Stands in the marker for an input that has no snapshot yet, as it does in Iceberg's own metadata.
pub const NEVER_WRITTEN: i64 = -1;

/// A data file of a gold table with this many delete files is slow to read; the table is then written anew.
const MAX_DELETE_FILES: usize = 32;

/// Times that a run is made anew because the table's files were put together under it.
const RUNS_MAX: usize = 5;

/// How a gold table is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoldModel {
    pub table: TableName,
    pub sql: String,
    /// The columns that tell a row's group, where only groups that changed are computed; empty where all of them are.
    pub group_by: Vec<String>,
    /// What its rows must be.
    pub expect: Vec<Rule>,
}

/// A refresh that is durable.
#[derive(Debug, Clone)]
pub struct GoldCommit {
    pub table: TableName,
    pub snapshot_id: Option<i64>,
    pub inputs: BTreeMap<TableName, i64>,
    /// Rows written.
    pub rows: u64,
    pub refreshed: Refreshed,
    /// How long it took from the look at its inputs on.
    pub elapsed: Duration,
    /// What each rule says of the rows.
    pub findings: Vec<Finding>,
}

/// How much of a table a refresh computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refreshed {
    /// Everything, as the model asks for.
    Full,
    /// Everything, though the model names groups.
    FullBecause(WhyFull),
    /// The groups that changes reach: so many followed from their old rows and the changes alone, and so many were
    /// computed from the inputs.
    Groups { rows_deleted: u64, settled: u64, computed: u64 },
}

impl fmt::Display for Refreshed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refreshed::Full => f.write_str("in full"),
            Refreshed::FullBecause(why) => write!(f, "in full: {why}"),
            Refreshed::Groups { settled, computed, .. } => {
                write!(f, "changed groups: {settled} from the changes alone, {computed} from the inputs")
            }
        }
    }
}

/// Why a model that names its groups was computed in full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhyFull {
    #[error("it is built for the first time")]
    First,
    #[error("the model changed")]
    ModelChanged,
    #[error("its columns change")]
    ColumnsChange,
    #[error("the snapshot of `{input}` that it was made from is gone")]
    SnapshotGone { input: TableName },
    #[error("`{input}` held nothing yet when it was made")]
    WasEmpty { input: TableName },
    #[error("the columns of `{input}` changed")]
    OtherSchema { input: TableName },
    #[error("most of `{input}` changed")]
    MostChanged { input: TableName },
    #[error("a row of `{input}` may reach any group: no group column can be told from it")]
    ReachesAll { input: TableName },
    #[error("what `{function}` gives is not settled by its arguments")]
    Unsettled { function: String },
    #[error("a column of its own hides the place of a row")]
    PlacesHidden,
    #[error("too many deletes have gathered in its files")]
    ManyDeletes,
}

/// What became of a run.
#[derive(Debug, Clone)]
pub enum Outcome {
    Refreshed(GoldCommit),
    /// The inputs are where they were at the last refresh, or one that is awaited is not there yet.
    Nothing,
    /// Another builder refreshed meanwhile.
    Yielded,
    /// This model of the run, which it reads, did not get through.
    HeldBack {
        by: TableName,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("gold models read each other in a circle: {circle}")]
    Circle { circle: String },

    #[error("gold table `{table}` reads `{input}`, which does not exist")]
    InputMissing { table: TableName, input: TableName },

    #[error("table `{table}` holds rows that icestream did not build")]
    Foreign { table: TableName },

    #[error("gold table `{table}`: the model has no column `{column}` to group by; there are {columns}")]
    UnknownGroup { table: TableName, column: String, columns: String },

    #[error("gold table `{table}` was not refreshed: its rows would break {}", listed(broken))]
    Broken { table: TableName, broken: Vec<Broken>, findings: Vec<Finding> },

    #[error("gold table `{table}`: its query failed")]
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
            Error::Circle { .. } | Error::InputMissing { .. } | Error::Foreign { .. } | Error::UnknownGroup { .. } => {
                Kind::Config
            }
            Error::Broken { .. } => Kind::Quality,
            Error::Query { source, .. } => source.kind(),
            Error::Table(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Circle { .. } => Some("let one of them read silver tables only".to_string()),
            Error::InputMissing { .. } => {
                Some("tables are named in full, `shop_silver.orders`; `icestream tables` lists them".to_string())
            }
            Error::Foreign { .. } => Some("give the model another table name, or drop that table".to_string()),
            Error::UnknownGroup { .. } => Some("`group_by` names columns of the model's own table".to_string()),
            Error::Broken { .. } => {
                Some("mend what it reads, or its query, or let the rule `warn`; the next build asks again".to_string())
            }
            Error::Query { source, .. } => source.hint(),
            Error::Table(error) => error.hint(),
        }
    }

    fn state(&self) -> Option<String> {
        match self {
            Error::Table(error) => error.state(),
            _ => Some("the table is as it was; safe to run again".to_string()),
        }
    }
}

/// What a gold snapshot was computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    model: String,
    inputs: BTreeMap<String, i64>,
}

impl Marker {
    /// Whether the table was made by this model, from the very rows that its inputs have now.
    fn is_up_to_date(&self, model: &str, views: &BTreeMap<TableName, TableView>) -> bool {
        let is_same = |(name, view): (&TableName, &TableView)| {
            self.inputs.get(&name.to_string()).is_some_and(|snapshot| is_at(view, *snapshot))
        };
        self.model == model && self.inputs.len() == views.len() && views.iter().all(is_same)
    }

    fn text(&self) -> String {
        // Maps of strings and numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl GoldModel {
    fn fingerprint(&self) -> String {
        fingerprint([self.sql.as_str()])
    }

    fn definition(&self) -> Definition {
        Definition::new(self.fingerprint(), [("sql", self.sql.clone())])
    }

    fn failed(&self, source: engine::Error) -> Error {
        Error::Query { table: self.table.clone(), source }
    }
}

/// Whether the view has the rows of a snapshot that a marker names.
fn is_at(view: &TableView, snapshot: i64) -> bool {
    match snapshot {
        NEVER_WRITTEN => view.snapshot_id().is_none(),
        snapshot => view.has_rows_of(snapshot),
    }
}

/// The snapshots that a gold table was computed from, by input; -1 for one that had none. `None` when it was not built.
pub fn inputs(gold: &Table) -> Option<BTreeMap<String, i64>> {
    Some(serde_json::from_str::<Marker>(&gold.marker(MARKER)?).ok()?.inputs)
}

/// Where a gold table stands against its model and what it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stand {
    /// Nothing was built yet.
    New,
    UpToDate,
    /// These of its inputs have moved since, or are others.
    Moved(Vec<TableName>),
    /// Another query built it. In what it differs, where the table says that.
    OtherModel(Vec<Difference>),
    /// It holds rows that were not built here.
    Foreign,
}

impl Stand {
    /// `inputs` are as they are now; `None` for one that is not there.
    pub fn of(model: &GoldModel, gold: Option<&Table>, inputs: &BTreeMap<TableName, Option<Table>>) -> Stand {
        let Some(gold) = gold else { return Stand::New };
        let Some(text) = gold.marker(MARKER) else {
            return if gold.summary().records == Some(0) { Stand::New } else { Stand::Foreign };
        };
        let Ok(known) = serde_json::from_str::<Marker>(&text) else { return Stand::OtherModel(Vec::new()) };
        if known.model != model.fingerprint() {
            let before = Definition::of(gold, &known.model);
            return Stand::OtherModel(before.map(|of| of.differences(&model.definition())).unwrap_or_default());
        }
        let has_moved =
            |(name, input): &(&TableName, &Option<Table>)| match (known.inputs.get(&name.to_string()), input) {
                (None, _) => true,
                (Some(&NEVER_WRITTEN), input) => input.as_ref().is_some_and(|input| input.snapshot_id().is_some()),
                (Some(snapshot), input) => !input.as_ref().is_some_and(|input| input.has_rows_of(*snapshot)),
            };
        let moved: Vec<TableName> = inputs.iter().filter(has_moved).map(|(name, _)| name.clone()).collect();
        if moved.is_empty() { Stand::UpToDate } else { Stand::Moved(moved) }
    }
}

/// A gold model as a statement in Trino's dialect, over its inputs as they are now.
#[derive(Debug, Clone)]
pub struct Statement {
    pub sql: String,
    /// What could not be said in the dialect.
    pub notes: Vec<String>,
}

/// The statement that a refresh in full stands for.
pub async fn statement(lake: &Lake, model: &GoldModel) -> Result<Statement> {
    let mut pins = BTreeMap::new();
    for input in engine::referenced_tables(&model.sql).map_err(|source| model.failed(source))? {
        let missing = || Error::InputMissing { table: model.table.clone(), input: input.clone() };
        let table = lake.table_if_exists(&input).await?.ok_or_else(missing)?;
        pins.extend(table.snapshot_id().map(|snapshot| (input, snapshot)));
    }
    let engine::trino::Translated { sql, notes } = engine::trino::to_trino(&model.sql, &pins);
    let told: String = notes.iter().map(|note| format!("-- NOTE: {note}\n")).collect();
    let how = match model.group_by.as_slice() {
        [] => String::new(),
        columns => format!("-- A run computes only the groups ({}) that changed rows reach.\n", columns.join(", ")),
    };
    let table = &model.table;
    let sql = format!(
        "-- {table}: all of it, from its inputs as they are now.\n{how}{told}CREATE OR REPLACE TABLE {table} AS\n{sql};\n"
    );
    Ok(Statement { sql, notes })
}

/// The models in an order in which each comes after those it reads.
pub fn in_order(models: &[GoldModel]) -> Result<Vec<&GoldModel>> {
    let mut reads: BTreeMap<&TableName, BTreeSet<TableName>> = BTreeMap::new();
    for model in models {
        let failed = |source| Error::Query { table: model.table.clone(), source };
        let inputs = engine::referenced_tables(&model.sql).map_err(failed)?;
        let among_models = inputs.into_iter().filter(|input| models.iter().any(|other| other.table == *input));
        reads.insert(&model.table, among_models.collect());
    }
    let mut ordered: Vec<&GoldModel> = Vec::new();
    let mut done: BTreeSet<&TableName> = BTreeSet::new();
    while ordered.len() < models.len() {
        let ready: Vec<&GoldModel> = models
            .iter()
            .filter(|model| !done.contains(&model.table))
            .filter(|model| reads[&model.table].iter().all(|input| done.contains(input)))
            .collect();
        if ready.is_empty() {
            return Err(Error::Circle { circle: circle(&reads, &done) });
        }
        done.extend(ready.iter().map(|model| &model.table));
        ordered.extend(ready);
    }
    Ok(ordered)
}

/// Walks along what is read until a table comes up again.
fn circle(reads: &BTreeMap<&TableName, BTreeSet<TableName>>, done: &BTreeSet<&TableName>) -> String {
    let mut walk: Vec<&TableName> = Vec::new();
    let mut next = reads.keys().copied().find(|table| !done.contains(table));
    while let Some(table) = next {
        if let Some(start) = walk.iter().position(|seen| *seen == table) {
            let mut names: Vec<String> = walk[start..].iter().map(|table| format!("`{table}`")).collect();
            names.push(format!("`{table}`"));
            return names.join(" reads ");
        }
        walk.push(table);
        next = reads.get(table).and_then(|inputs| inputs.iter().find(|input| !done.contains(input)));
    }
    String::new()
}

/// The indexes of the columns that tell a row's group, in what a model's query gives.
pub fn groups(model: &GoldModel, columns: &Schema) -> Result<Vec<usize>> {
    let index = |column: &String| {
        columns.index_of(column).map_err(|_| {
            let names: Vec<String> = columns.fields().iter().map(|field| format!("`{}`", field.name())).collect();
            let (table, columns) = (model.table.clone(), names.join(", "));
            Error::UnknownGroup { table, column: column.clone(), columns }
        })
    };
    model.group_by.iter().map(index).collect()
}

/// Brings a gold table up to what the run reads, if that has changed.
///
/// A run whose table had its files put together meanwhile is made anew.
pub async fn refresh(lake: &Lake, engine: &Engine, model: &GoldModel, inputs: &mut Inputs) -> Result<Outcome> {
    let marker =
        async || Ok::<_, Error>(lake.table_if_exists(&model.table).await?.and_then(|gold| gold.marker(MARKER)));
    let mut runs = 1;
    loop {
        let before = marker().await?;
        let outcome = refresh_once(lake, engine, model, inputs).await?;
        if !matches!(outcome, Outcome::Yielded) || runs == RUNS_MAX || before != marker().await? {
            return Ok(outcome);
        }
        runs += 1;
        tracing::debug!(table = %model.table, layer = "gold", attempt = runs, "rows were moved under a run");
    }
}

async fn refresh_once(lake: &Lake, engine: &Engine, model: &GoldModel, inputs: &mut Inputs) -> Result<Outcome> {
    let mut views: BTreeMap<TableName, TableView> = BTreeMap::new();
    for name in engine::referenced_tables(&model.sql).map_err(|source| model.failed(source))? {
        match inputs.input(model, &name).await? {
            Input::View(view) => views.insert(name, view.clone()),
            Input::Awaited => {
                inputs.still_awaited(&model.table);
                return Ok(Outcome::Nothing);
            }
            Input::NotMade => return Ok(Outcome::HeldBack { by: name }),
        };
    }
    let snapshots = views.iter().map(|(name, view)| (name.to_string(), view.snapshot_id().unwrap_or(NEVER_WRITTEN)));
    let next = Marker { model: model.fingerprint(), inputs: snapshots.collect() };
    let gold = lake.table_if_exists(&model.table).await?;
    let known_text = gold.as_ref().and_then(|gold| gold.marker(MARKER));
    if let (Some(gold), None) = (&gold, &known_text)
        && gold.summary().records != Some(0)
    {
        return Err(Error::Foreign { table: model.table.clone() });
    }
    // One that cannot be read is as good as none: everything is computed.
    let known: Option<Marker> = known_text.as_ref().and_then(|text| serde_json::from_str(text).ok());
    if let (Some(gold), Some(known)) = (&gold, &known)
        && known.is_up_to_date(&next.model, &views)
    {
        inputs.made(gold)?;
        return Ok(Outcome::Nothing);
    }
    if let Some(known) = &known
        && read_further(lake, known, &views).await?
    {
        return Ok(Outcome::Yielded);
    }
    let run = Run::plan(engine, model, views, known, next).await?;
    match run.commit(lake, engine, gold, known_text).await? {
        Some((table, commit)) => {
            inputs.made(&table)?;
            Ok(Outcome::Refreshed(commit))
        }
        None => Ok(Outcome::Yielded),
    }
}

/// Whether a gold table was made from a later snapshot of an input than this run reads: another builder started after it.
async fn read_further(lake: &Lake, known: &Marker, views: &BTreeMap<TableName, TableView>) -> Result<bool> {
    for (name, view) in views {
        let Some(snapshot) = known.inputs.get(&name.to_string()).filter(|snapshot| **snapshot != NEVER_WRITTEN) else {
            continue;
        };
        if view.knows(*snapshot) {
            continue;
        }
        if let Some(table) = lake.table_if_exists(name).await?
            && table.view(At::Head)?.knows(*snapshot)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// One refresh of one table.
struct Run<'a> {
    model: &'a GoldModel,
    session: SessionContext,
    views: BTreeMap<TableName, TableView>,
    frame: DataFrame,
    groups: Vec<usize>,
    known: Option<Marker>,
    next: Marker,
}

/// Files that a refresh is about to commit.
struct Staged {
    rows: Vec<WrittenFile>,
    deletes: crate::table::WrittenDeletes,
    /// The rows that the deletes are about.
    doomed: Vec<(ScanFile, RoaringTreemap)>,
    tally: Tally,
}

impl Staged {
    fn files(&self) -> Vec<WrittenFile> {
        self.rows.iter().chain(self.deletes.files()).cloned().collect()
    }
}

impl<'a> Run<'a> {
    async fn plan(
        engine: &Engine,
        model: &'a GoldModel,
        views: BTreeMap<TableName, TableView>,
        known: Option<Marker>,
        next: Marker,
    ) -> Result<Self> {
        let session = engine.session();
        for (name, view) in &views {
            engine::register(&session, name, view.clone()).map_err(|source| model.failed(source))?;
        }
        let frame = engine::plan(&session, &model.sql).await.map_err(|source| model.failed(source))?;
        let groups = groups(model, frame.schema().as_arrow())?;
        Ok(Run { model, session, views, frame, groups, known, next })
    }

    async fn commit(
        self,
        lake: &Lake,
        engine: &Engine,
        gold: Option<Table>,
        known: Option<String>,
    ) -> Result<Option<(Table, GoldCommit)>> {
        let started = tokio::time::Instant::now();
        let nullable = self.frame.schema().as_arrow().fields().iter().map(|field| {
            // What a query happens to prove about nulls today must not bind the table.
            Field::new(field.name(), field.data_type().clone(), true)
        });
        let schema = Schema::new(nullable.collect::<Vec<_>>());
        let gold = match gold {
            Some(gold) => gold,
            None => {
                let definition = TableDefinition {
                    name: self.model.table.clone(),
                    schema: Arc::new(schema.clone()),
                    partition: Vec::new(),
                    properties: HashMap::new(),
                };
                lake.ensure(&definition).await?
            }
        };
        let evolved = gold.evolve(&SchemaChange::to_fit(gold.schema()?.as_ref(), &schema))?;
        let view = gold.view(At::Head)?;
        let touched = match self.model.group_by.is_empty() {
            true => None,
            false => Some(self.touched(&view, evolved.is_some()).await?),
        };
        let touched = match touched {
            None => Err(Refreshed::Full),
            Some(Err(why)) => Err(Refreshed::FullBecause(why)),
            Some(Ok(touched)) => Ok(touched),
        };
        let staged = self.stage(engine, &gold, &view, touched.as_ref().ok(), evolved.as_ref()).await?;
        let findings = match self.ask(lake, engine, &view, &staged, touched.is_ok(), evolved.as_ref()).await {
            Ok(findings) => findings,
            Err(error) => {
                gold.discard(&staged.files()).await;
                return Err(error);
            }
        };
        let refreshed = match &touched {
            Ok(touched) => Refreshed::Groups {
                rows_deleted: staged.deletes.files().iter().map(WrittenFile::rows).sum(),
                settled: touched.settled(),
                computed: touched.computed(),
            },
            Err(full) => full.clone(),
        };
        let rows = staged.rows.iter().map(WrittenFile::rows).sum();
        let files = staged.files();
        let mut change = match &touched {
            Ok(_) => gold.change().row_delta(&view, staged.rows, staged.deletes),
            Err(_) => gold.change().replace_all(staged.rows),
        };
        if let Some(evolved) = evolved {
            change = change.schema(evolved);
        }
        let definition = self.model.definition();
        if !definition.is_of(&gold) {
            change = change.set_property(definition::PROPERTY, definition.text());
        }
        let premise = Premise::new().marker_moves(MARKER, known, self.next.text()).rows_are_of(gold.snapshot_id());
        change = findings.iter().map(Finding::note).fold(change, |change, (name, count)| change.note(name, count));
        match change.premise(premise).commit().await {
            Ok(committed) => {
                for finding in findings.iter().filter(|finding| finding.rows_failed > 0) {
                    tracing::warn!(
                        target: TARGET,
                        table = %self.model.table, layer = "gold", rule = finding.rule, severity = finding.severity,
                        rows = finding.rows_failed, "rows break a rule"
                    );
                }
                let elapsed = started.elapsed();
                tracing::info!(
                    table = %self.model.table, layer = "gold", snapshot_id = committed.snapshot_id, rows,
                    elapsed_ms = elapsed.as_millis() as u64, how = %refreshed, "refreshed"
                );
                let inputs =
                    self.views.iter().map(|(name, view)| (name.clone(), view.snapshot_id().unwrap_or(NEVER_WRITTEN)));
                let commit = GoldCommit {
                    table: self.model.table.clone(),
                    snapshot_id: committed.snapshot_id,
                    inputs: inputs.collect(),
                    rows,
                    refreshed,
                    elapsed,
                    findings: findings
                        .into_iter()
                        .map(|finding| Finding { snapshot_id: committed.snapshot_id, ..finding })
                        .collect(),
                };
                Ok(Some((committed.table, commit)))
            }
            Err(error) => {
                if !matches!(error, crate::table::Error::Unresolved { .. }) {
                    gold.discard(&files).await;
                }
                if error.is_premise_broken() { Ok(None) } else { Err(error.into()) }
            }
        }
    }

    /// The groups to be computed, or why that is all of them.
    async fn touched(&self, gold: &TableView, columns_change: bool) -> Result<Result<Touched, WhyFull>> {
        let Some(known) = &self.known else { return Ok(Err(WhyFull::First)) };
        if known.model != self.next.model {
            return Ok(Err(WhyFull::ModelChanged));
        }
        if columns_change {
            return Ok(Err(WhyFull::ColumnsChange));
        }
        if [engine::FILE_COLUMN, engine::POSITION_COLUMN].iter().any(|name| gold.arrow_schema().index_of(name).is_ok())
        {
            return Ok(Err(WhyFull::PlacesHidden));
        }
        if gold.files(None).await?.iter().any(|file| file.deletes.len() >= MAX_DELETE_FILES) {
            return Ok(Err(WhyFull::ManyDeletes));
        }
        let found = touched::find(&self.session, &self.frame, &self.groups, known, &self.views, gold).await;
        found.map_err(|source| self.model.failed(source))
    }

    /// Writes the rows, and the deletes of those they replace where that is not all.
    async fn stage(
        &self,
        engine: &Engine,
        gold: &Table,
        view: &TableView,
        touched: Option<&Touched>,
        evolved: Option<&EvolvedSchema>,
    ) -> Result<Staged> {
        let failed = |source| self.model.failed(source);
        let watch = Watch::plan(engine, &self.model.expect, self.frame.schema().as_arrow()).await.map_err(failed)?;
        let Some(touched) = touched else {
            let (rows, tally) = self.write(gold, self.frame.clone(), evolved, &watch).await?;
            return Ok(Staged { rows, deletes: Default::default(), doomed: Vec::new(), tally });
        };
        let doomed = touched.present(&self.session, &self.frame, view).await.map_err(failed)?;
        let rows = touched.rows(&self.session, &self.frame).map_err(failed)?;
        let (rows, tally) = self.write(gold, rows, None, &watch).await?;
        match gold.write_deletes(&doomed).await {
            Ok(deletes) => Ok(Staged { rows, deletes, doomed, tally }),
            Err(error) => {
                gold.discard(&rows).await;
                Err(error.into())
            }
        }
    }

    /// Asks the rules of what is about to be committed.
    async fn ask(
        &self,
        lake: &Lake,
        engine: &Engine,
        view: &TableView,
        staged: &Staged,
        is_part: bool,
        evolved: Option<&EvolvedSchema>,
    ) -> Result<Vec<Finding>> {
        let rules = &self.model.expect;
        let mut findings = staged.tally.findings(&self.model.table, rules);
        if rules.iter().any(Rule::is_of_stored_rows) {
            let rows = match is_part {
                true => view.with_staged(&staged.doomed, &staged.rows, evolved).await?,
                false => view.of_staged(&staged.rows, evolved)?,
            };
            let asked = ask_whole(lake, engine, &self.model.table, rules, &rows, "").await;
            findings.extend(asked.map_err(|source| self.model.failed(source))?);
        }
        let broken = failures(&findings);
        match broken.is_empty() {
            true => Ok(findings),
            false => Err(Error::Broken { table: self.model.table.clone(), broken, findings }),
        }
    }

    async fn write(
        &self,
        gold: &Table,
        rows: DataFrame,
        evolved: Option<&EvolvedSchema>,
        watch: &Watch,
    ) -> Result<(Vec<WrittenFile>, Tally)> {
        let failed = |error: datafusion::error::DataFusionError| self.model.failed(error.into());
        let (mut writer, mut tally) = (gold.writer(evolved)?, Tally::default());
        let mut stream = rows.execute_stream().await.map_err(failed)?;
        loop {
            let outcome = match stream.try_next().await {
                Ok(Some(batch)) => match watch.broken(&batch) {
                    Ok(broken) => {
                        tally.join(Tally::of(&broken, batch.num_rows(), |_| None));
                        writer.write(&batch).await.map_err(Error::from)
                    }
                    Err(source) => Err(self.model.failed(source)),
                },
                Ok(None) => return Ok((writer.finish().await?, tally)),
                Err(error) => Err(failed(error)),
            };
            if let Err(error) = outcome {
                writer.discard().await;
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, sql: &str) -> GoldModel {
        GoldModel {
            table: format!("shop_gold.{name}").parse().unwrap(),
            sql: sql.to_string(),
            group_by: Vec::new(),
            expect: Vec::new(),
        }
    }

    #[test]
    fn a_model_comes_after_what_it_reads() {
        let models = [
            model("a", "SELECT * FROM shop_gold.b JOIN shop_gold.c USING (id)"),
            model("b", "SELECT * FROM shop_gold.c"),
            model("c", "SELECT * FROM shop_silver.orders"),
        ];
        let order: Vec<&str> = in_order(&models).unwrap().iter().map(|model| model.table.name()).collect();
        assert_eq!(order, ["c", "b", "a"]);
    }

    #[test]
    fn a_circle_is_named() {
        let models = [
            model("a", "SELECT * FROM shop_gold.b"),
            model("b", "SELECT * FROM shop_gold.a"),
            model("c", "SELECT * FROM shop_gold.a"),
        ];
        insta::assert_snapshot!(
            in_order(&models).unwrap_err().to_string(),
            @"gold models read each other in a circle: `shop_gold.a` reads `shop_gold.b` reads `shop_gold.a`"
        );
    }
}
