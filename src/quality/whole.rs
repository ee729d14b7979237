//! Rules about a whole table, asked of it as it is or would be.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::error::DataFusionError;

use super::{Finding, Rule, Test, quote};
use crate::engine::{self, Engine, Error, IcebergTableProvider, Result};
use crate::ids::TableName;
use crate::table::{At, Lake, TableView};

impl Rule {
    /// Whether it is asked of all rows of the table at once, as they are stored.
    pub(crate) fn is_of_stored_rows(&self) -> bool {
        matches!(self.test, Test::Unique { .. } | Test::Relationship { .. })
    }
}

/// Asks those of the rules that are about all stored rows; of these, `only` says which are looked at (all, where it is
/// empty).
pub(crate) async fn ask_whole(
    lake: &Lake,
    engine: &Engine,
    table: &TableName,
    rules: &[Rule],
    rows: &TableView,
    only: &str,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for rule in rules.iter().filter(|rule| rule.is_of_stored_rows()) {
        let other = match &rule.test {
            Test::Relationship { table: other, .. } if other == table => Some(rows.clone()),
            Test::Relationship { table: other, .. } => {
                lake.table_if_exists(other).await?.map(|table| table.view(At::Head)).transpose()?
            }
            _ => None,
        };
        let (checked, failed) = ask(engine, rule, rows, only, other).await?;
        findings.push(Finding::of(table, rule, checked, failed));
    }
    Ok(findings)
}

/// How many rows were looked at, and how many of them break the rule. `other` is the table that a relationship leads to,
/// if it is there.
async fn ask(
    engine: &Engine,
    rule: &Rule,
    rows: &TableView,
    only: &str,
    other: Option<TableView>,
) -> Result<(u64, u64)> {
    let with = |columns: &[&String]| {
        let known = columns.iter().map(|column| format!("{} IS NOT NULL", quote(column)));
        let all: Vec<String> = (!only.is_empty()).then(|| only.to_string()).into_iter().chain(known).collect();
        all.join(" AND ")
    };
    let sql = match &rule.test {
        Test::Unique { columns } => {
            let of = columns.iter().map(|column| quote(column)).collect::<Vec<_>>().join(", ");
            let known = with(&columns.iter().collect::<Vec<_>>());
            format!(
                "SELECT sum(same), sum(CASE WHEN same > 1 THEN same ELSE 0 END) \
                 FROM (SELECT count(*) AS same FROM rows WHERE {known} GROUP BY {of}) AS groups"
            )
        }
        Test::Relationship { column, to, .. } => {
            let (value, known) = (quote(column), with(&[column]));
            match &other {
                Some(_) => format!(
                    "SELECT count(*), count(*) FILTER (WHERE known.value IS NULL) \
                     FROM (SELECT {value} AS value FROM rows WHERE {known}) AS own LEFT JOIN \
                     (SELECT DISTINCT {to} AS value FROM other) AS known ON own.value = known.value",
                    to = quote(to)
                ),
                None => format!("SELECT count(*) AS own, count(*) AS missing FROM rows WHERE {known}"),
            }
        }
        Test::That(_) | Test::NotNull { .. } | Test::AcceptedValues { .. } | Test::Freshness { .. } => {
            return Ok((0, 0));
        }
    };
    let session = engine.session();
    session.register_table("rows", Arc::new(IcebergTableProvider::new(rows.clone())))?;
    if let Some(other) = other {
        session.register_table("other", Arc::new(IcebergTableProvider::new(other)))?;
    }
    let batches = engine::plan(&session, &sql).await?.collect().await?;
    let count = |column: usize| -> Result<u64> {
        let batch = batches.iter().find(|batch| batch.num_rows() == 1);
        let batch = batch.ok_or_else(|| Error::Internal { problem: "a count gave no row".to_string() })?;
        let counts = cast(batch.column(column), &DataType::Int64).map_err(DataFusionError::from)?;
        Ok(counts.as_primitive::<Int64Type>().iter().flatten().next().unwrap_or(0) as u64)
    };
    Ok((count(0)?, count(1)?))
}
