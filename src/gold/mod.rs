//! Computes gold tables from silver and gold tables.
//!
//! In come the present snapshots of the tables a model reads, out goes one commit that replaces the model's rows and
//! names those snapshots. It does not know keys, operations or bronze.
//!
//! **A gold table is a function of its inputs**: a run whose inputs did not move costs a look at their heads and commits
//! nothing. **Models run in the order of what they read**; a circle among them is an error.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use crate::engine::{self, Engine};
use crate::error::{Kind, Situation};
use crate::fingerprint::fingerprint;
use crate::ids::TableName;
use crate::table::{At, Lake, Premise, SchemaChange, Table, TableDefinition};

/// The marker's key in snapshot summaries and table properties.
pub const MARKER: &str = "icestream.inputs";

/// Stands in the marker for an input that has no snapshot yet, as it does in Iceberg's own metadata.
const NEVER_WRITTEN: i64 = -1;

/// How a gold table is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoldModel {
    pub table: TableName,
    pub sql: String,
}

/// A refresh that is durable.
#[derive(Debug, Clone)]
pub struct GoldCommit {
    pub table: TableName,
    pub snapshot_id: Option<i64>,
    pub inputs: BTreeMap<TableName, i64>,
    pub rows: u64,
}

/// What became of a run.
#[derive(Debug, Clone)]
pub enum Outcome {
    Refreshed(GoldCommit),
    /// The inputs are where they were at the last refresh, or one that is awaited is not there yet.
    Nothing,
    /// Another builder refreshed meanwhile.
    Yielded,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("gold models read each other in a circle: {circle}")]
    Circle { circle: String },

    #[error("gold table `{table}` reads `{input}`, which does not exist")]
    InputMissing { table: TableName, input: TableName },

    #[error("table `{table}` holds rows that icestream did not build")]
    Foreign { table: TableName },

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
            Error::Circle { .. } | Error::InputMissing { .. } | Error::Foreign { .. } => Kind::Config,
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

/// The snapshots that a gold table was computed from, by input; -1 for one that had none. `None` when it was not built.
pub fn inputs(gold: &Table) -> Option<BTreeMap<String, i64>> {
    Some(serde_json::from_str::<Marker>(&gold.marker(MARKER)?).ok()?.inputs)
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

/// Computes a gold table anew, if what it reads has changed. A table of `awaited` may not be there yet.
pub async fn refresh(
    lake: &Lake,
    engine: &Engine,
    model: &GoldModel,
    awaited: &BTreeSet<TableName>,
) -> Result<Outcome> {
    let failed = |source: engine::Error| Error::Query { table: model.table.clone(), source };
    let session = engine.session();
    let mut inputs: BTreeMap<TableName, i64> = BTreeMap::new();
    for name in engine::referenced_tables(&model.sql).map_err(failed)? {
        let Some(input) = lake.table_if_exists(&name).await? else {
            if awaited.contains(&name) {
                return Ok(Outcome::Nothing);
            }
            return Err(Error::InputMissing { table: model.table.clone(), input: name });
        };
        let view = input.view(At::Head)?;
        inputs.insert(name.clone(), view.snapshot_id().unwrap_or(NEVER_WRITTEN));
        engine::register(&session, &name, view).map_err(failed)?;
    }
    let marker = Marker {
        model: fingerprint([model.sql.as_str()]),
        inputs: inputs.iter().map(|(table, snapshot)| (table.to_string(), *snapshot)).collect(),
    };
    // Maps of strings and numbers always serialise.
    let next = serde_json::to_string(&marker).unwrap_or_default();
    let gold = lake.table_if_exists(&model.table).await?;
    let known = gold.as_ref().and_then(|gold| gold.marker(MARKER));
    if known.as_ref() == Some(&next) {
        return Ok(Outcome::Nothing);
    }
    if let (Some(gold), None) = (&gold, &known)
        && gold.summary().records != Some(0)
    {
        return Err(Error::Foreign { table: model.table.clone() });
    }
    let frame = engine::plan(&session, &model.sql).await.map_err(failed)?;
    let nullable = frame.schema().as_arrow().fields().iter().map(|field| {
        // What a query happens to prove about nulls today must not bind the table.
        Field::new(field.name(), field.data_type().clone(), true)
    });
    let schema = Schema::new(nullable.collect::<Vec<_>>());
    let gold = match gold {
        Some(gold) => gold,
        None => {
            let definition = TableDefinition {
                name: model.table.clone(),
                schema: Arc::new(schema.clone()),
                partition: Vec::new(),
                properties: HashMap::new(),
            };
            lake.ensure(&definition).await?
        }
    };
    let started = tokio::time::Instant::now();
    let evolved = gold.evolve(&SchemaChange::to_fit(gold.schema()?.as_ref(), &schema))?;
    let mut writer = gold.writer(evolved.as_ref())?;
    let mut stream = frame.execute_stream().await.map_err(|error| failed(error.into()))?;
    loop {
        let outcome = match stream.try_next().await {
            Ok(Some(batch)) => writer.write(&batch).await.map_err(Error::from),
            Ok(None) => break,
            Err(error) => Err(failed(error.into())),
        };
        if let Err(error) = outcome {
            writer.discard().await;
            return Err(error);
        }
    }
    let files = writer.finish().await?;
    let rows = files.iter().map(|file| file.rows()).sum();
    let mut change = gold
        .change()
        .replace_all(files.clone())
        .premise(Premise::new().marker_moves(MARKER, known, next).head_is(gold.snapshot_id()));
    if let Some(evolved) = evolved {
        change = change.schema(evolved);
    }
    match change.commit().await {
        Ok(committed) => {
            tracing::info!(
                table = %model.table, layer = "gold", snapshot_id = committed.snapshot_id, rows,
                elapsed_ms = started.elapsed().as_millis() as u64, "refreshed"
            );
            Ok(Outcome::Refreshed(GoldCommit {
                table: model.table.clone(),
                snapshot_id: committed.snapshot_id,
                inputs,
                rows,
            }))
        }
        Err(error) => {
            if !matches!(error, crate::table::Error::Unresolved { .. }) {
                gold.discard(&files).await;
            }
            if error.is_premise_broken() { Ok(Outcome::Yielded) } else { Err(error.into()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, sql: &str) -> GoldModel {
        GoldModel { table: format!("shop_gold.{name}").parse().unwrap(), sql: sql.to_string() }
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
