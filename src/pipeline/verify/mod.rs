//! Proves that nothing is missing: each table is held against what it was made from.
//!
//! - In: the tables of a project, its models and, where it can be asked, the broker.
//! - Out: a [`Report`]: for each table what was checked, how much of it, and the first rows that are not what they should
//!   be.
//! - It changes nothing, and trusts nothing that it checks: silver is compared with a fold of bronze (`history`, `fold`)
//!   that shares no code with the merge, gold with its query over the snapshots its marker names.
//!
//! A table is looked at as it was when its turn came, and what it is compared with as its marker names it. So others may
//! go on writing meanwhile.

mod broker;
mod bronze;
mod epochs;
mod fold;
mod gold;
mod history;
mod model;
mod report;
mod rows;
mod settled;
mod silver;
mod slice;
mod structure;

use std::collections::BTreeMap;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

pub use broker::Broker;
pub use report::{At, Check, Difference, Kind, Report, TableReport, Verdict};

use super::Models;
use crate::engine::{self, Engine};
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::ids::TableName;
use crate::layout;
use crate::silver::SilverModel;
use crate::table::{self, Lake, Table};

/// How often a table that changes is looked at again, when something seems wrong.
const MOST_LOOKS: usize = 3;

/// What is to be looked at, and how closely.
#[derive(Debug, Clone)]
pub struct Options {
    /// About how many keys of each silver table; `None` for all.
    pub sample: Option<u64>,
    pub seed: u64,
    /// How many differences of a check are told one by one.
    pub show: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { sample: Some(10_000), seed: 0, show: 20 }
    }
}

/// Whether topics are read again, to hold bronze against them.
pub enum Topics<'a> {
    /// Nobody wants it, or there is no broker: why.
    Skipped(String),
    /// The project reads files.
    Files,
    /// What goes wrong with the broker is a reason to skip that part, unless it is wanted by all means.
    At { broker: Box<Broker<'a>>, must_answer: bool },
}

/// What is verified: a project's tables, and the models they are made by.
pub struct Project<'a> {
    pub lake: &'a Lake,
    pub engine: &'a Engine,
    /// The namespace of the bronze tables.
    pub bronze: &'a str,
    pub models: &'a Models,
}

struct Verifier<'a> {
    lake: &'a Lake,
    engine: &'a Engine,
    options: &'a Options,
    topics: Topics<'a>,
}

/// A table, and what it is in the project.
enum Layer<'a> {
    Bronze,
    Silver(&'a SilverModel),
    Gold(&'a crate::gold::GoldModel),
}

impl Layer<'_> {
    fn name(&self) -> &'static str {
        match self {
            Layer::Bronze => "bronze",
            Layer::Silver(_) => "silver",
            Layer::Gold(_) => "gold",
        }
    }
}

/// The tables that can be verified: the bronze tables there are, and those of the models.
pub async fn tables(project: &Project<'_>) -> Result<Vec<TableName>> {
    Ok(layers(project).await?.into_keys().collect())
}

async fn layers<'a>(project: &Project<'a>) -> Result<BTreeMap<TableName, Layer<'a>>> {
    let mut layers = BTreeMap::new();
    for name in project.lake.tables(project.bronze).await? {
        // Somebody else may keep tables there, too.
        let table = project.lake.table_if_exists(&name).await?;
        if table.is_some_and(|table| table.schema().is_ok_and(|schema| schema.index_of(layout::ERROR).is_ok())) {
            layers.insert(name, Layer::Bronze);
        }
    }
    for model in &project.models.silver {
        layers.insert(model.table.clone(), Layer::Silver(model));
        layers.insert(model.quarantine(), Layer::Silver(model));
    }
    for model in &project.models.gold {
        layers.insert(model.table.clone(), Layer::Gold(model));
    }
    Ok(layers)
}

/// Looks at the tables that are wanted, those of bronze first. `step` is told of each before its turn comes.
pub async fn verify(
    project: &Project<'_>,
    options: &Options,
    topics: Topics<'_>,
    is_wanted: impl Fn(&TableName) -> bool,
    step: impl Fn(&TableName),
) -> Result<Report> {
    let verifier = Verifier { lake: project.lake, engine: project.engine, options, topics };
    let mut report = Report { seed: options.seed, sample: options.sample, tables: Vec::new() };
    let layers = layers(project).await?;
    for wanted in ["bronze", "silver", "gold"] {
        for (name, layer) in layers.iter().filter(|(name, layer)| layer.name() == wanted && is_wanted(name)) {
            step(name);
            // A table that is not made yet has nothing to prove.
            let Some((table, checks)) = verifier.look_at(layer, name).await? else { continue };
            report.tables.push(TableReport {
                table: name.to_string(),
                layer: layer.name(),
                snapshot_id: table.snapshot_id(),
                checks,
            });
        }
    }
    Ok(report)
}

impl Verifier<'_> {
    /// Looks at a table. What seems wrong while others write to it is looked at again: files may be gone because nobody
    /// needs them any more.
    async fn look_at(&self, layer: &Layer<'_>, name: &TableName) -> Result<Option<(Table, Vec<Check>)>> {
        let mut looked_at = None;
        for _ in 0..MOST_LOOKS {
            let Some(table) = self.lake.table_if_exists(name).await? else { return Ok(None) };
            if looked_at.as_ref().is_some_and(|(before, _): &(Table, _)| before.snapshot_id() == table.snapshot_id()) {
                break;
            }
            let checks = self.checks(layer, &table).await;
            let is_right = |checks: &Vec<Check>| checks.iter().all(|check| check.verdict != Verdict::Differs);
            let is_done = checks.as_ref().is_ok_and(is_right);
            looked_at = Some((table, checks));
            if is_done {
                break;
            }
        }
        looked_at.map(|(table, checks)| Ok((table, checks?))).transpose()
    }

    async fn checks(&self, layer: &Layer<'_>, table: &Table) -> Result<Vec<Check>> {
        let mut checks = Vec::new();
        let (files, is_readable) = structure::files(self, table).await?;
        checks.extend([files, structure::markers(self, table)]);
        if let Layer::Bronze = layer {
            checks.push(bronze::growth(self, table));
        }
        if !is_readable {
            let why = "its rows cannot be read while files are missing or broken";
            let rest: &[&str] = match layer {
                Layer::Bronze => &["offsets", "broker"],
                Layer::Silver(_) => &["fold"],
                Layer::Gold(_) => &["recomputed"],
            };
            checks.extend(rest.iter().map(|check| Check::skipped(check, why)));
            return Ok(checks);
        }
        match layer {
            Layer::Bronze => {
                let (check, held) = bronze::offsets(self, table).await?;
                checks.push(check);
                checks.push(match &self.topics {
                    Topics::Skipped(why) => Check::skipped(broker::CHECK, why.as_str()),
                    Topics::Files => Check::skipped(broker::CHECK, "the project reads files, and no topics"),
                    Topics::At { broker, must_answer } => {
                        match broker::against_topics(self, broker, table, &held).await {
                            Err(error) if error.kind() == ErrorKind::Unavailable && !must_answer => {
                                Check::skipped(broker::CHECK, error.chain().join(": "))
                            }
                            outcome => outcome?,
                        }
                    }
                });
            }
            Layer::Silver(model) => {
                checks.extend(structure::keys(self, model, table).await?);
                checks.push(unless_failed("fold", silver::against_bronze(self, model, table).await)?);
            }
            Layer::Gold(model) => {
                checks.push(unless_failed("recomputed", gold::against_inputs(self, model, table).await)?);
            }
        }
        Ok(checks)
    }
}

/// What a table was made from may be broken: that is no reason not to look at the others. What trying again may mend is.
fn unless_failed(check: &'static str, outcome: Result<Check>) -> Result<Check> {
    match outcome {
        Err(error) if !error.kind().is_retryable() => {
            let mut tally = report::Tally::new(check, "rows", 1);
            tally.add(Difference {
                expected: Some("what it was made from, to compare with".to_string()),
                found: Some(error.chain().join(": ")),
                ..Difference::new(Kind::Missing)
            });
            Ok(tally.finish())
        }
        outcome => outcome,
    }
}

/// A key as text, where there is one.
fn key_text(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// What can go wrong with a slice.
#[derive(Debug)]
enum Failure {
    Engine(engine::Error),
    Other(Error),
}

impl Failure {
    fn is_out_of_memory(&self) -> bool {
        matches!(self, Failure::Engine(engine::Error::OutOfMemory { .. }))
    }
}

impl From<engine::Error> for Failure {
    fn from(error: engine::Error) -> Self {
        Failure::Engine(error)
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        Failure::Engine(error.into())
    }
}

impl From<ArrowError> for Failure {
    fn from(error: ArrowError) -> Self {
        Failure::Engine(DataFusionError::from(error).into())
    }
}

impl From<crate::silver::Error> for Failure {
    fn from(error: crate::silver::Error) -> Self {
        match error {
            crate::silver::Error::Query { source, .. } => Failure::Engine(source),
            other => Failure::Other(other.into()),
        }
    }
}

impl From<table::Error> for Failure {
    fn from(error: table::Error) -> Self {
        Failure::Other(error.into())
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Engine(error) => error.into(),
            Failure::Other(error) => error,
        }
    }
}
