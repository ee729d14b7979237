//! Conditions over a row, asked of batches of rows as they pass by.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, Schema};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::TreeNode;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::physical_expr::PhysicalExpr;

use super::error::{Error, Result, nearest};
use super::{Engine, query};

/// What conditions call the rows.
const ROWS: &str = "rows";

/// A SQL condition over a row.
#[derive(Debug, Clone)]
pub(crate) struct Condition {
    pub(crate) sql: String,
    /// Whether it must say the same of the same row at any time.
    pub(crate) is_settled: bool,
}

/// Conditions that were planned over the columns of some rows.
#[derive(Debug)]
pub(crate) struct Judge {
    conditions: Vec<Arc<dyn PhysicalExpr>>,
}

impl Judge {
    /// The batches that are judged must have these columns.
    pub(crate) async fn plan(engine: &Engine, conditions: &[Condition], columns: &Schema) -> Result<Self> {
        let mut planned = Vec::with_capacity(conditions.len());
        for condition in conditions {
            planned.push(plan(engine, condition, columns).await?);
        }
        Ok(Judge { conditions: planned })
    }

    /// For each condition, the rows that break it: those for which it is false. One that is null breaks nothing, as with
    /// CHECK in SQL.
    pub(crate) fn broken(&self, rows: &RecordBatch) -> Result<Vec<BooleanBuffer>> {
        let broken = |condition: &Arc<dyn PhysicalExpr>| {
            let holds = condition.evaluate(rows)?.into_array(rows.num_rows())?;
            let holds: &BooleanArray = holds.as_boolean();
            let is_false = !holds.values();
            Ok(match holds.nulls() {
                Some(nulls) => &is_false & nulls.inner(),
                None => is_false,
            })
        };
        self.conditions.iter().map(broken).collect()
    }
}

/// For a column that is not among those there are.
pub(crate) fn unknown_column(column: &str, columns: &Schema) -> Error {
    let known: Vec<String> = columns.fields().iter().map(|field| field.name().clone()).collect();
    Error::UnknownColumn { column: column.to_string(), nearest: nearest(column, known.iter().cloned()), known }
}

/// Plans a condition over a row with these columns.
async fn plan(engine: &Engine, condition: &Condition, columns: &Schema) -> Result<Arc<dyn PhysicalExpr>> {
    let Condition { sql: condition, is_settled } = condition;
    let last_line = condition.lines().count().max(1) as u64 + 1;
    let session = engine.session();
    let table = MemTable::try_new(Arc::new(columns.clone()), vec![Vec::new()])?;
    session.register_table(ROWS, Arc::new(table))?;
    // A comment at the end must not swallow the parenthesis.
    let frame = query::plan(&session, &format!("SELECT ({condition}\n) FROM {ROWS}")).await;
    let frame = frame.map_err(|error| unwrapped(error, last_line))?;
    let not_of_a_row = || Error::Unplannable {
        problem: "a rule looks at one row: aggregates, window functions and subqueries have no meaning in it"
            .to_string(),
    };
    let LogicalPlan::Projection(projection) = frame.logical_plan() else { return Err(not_of_a_row()) };
    let ([expr], LogicalPlan::TableScan(_)) = (projection.expr.as_slice(), projection.input.as_ref()) else {
        return Err(not_of_a_row());
    };
    let is_subquery = |expr: &Expr| matches!(expr, Expr::InSubquery(_) | Expr::Exists(_) | Expr::ScalarSubquery(_));
    if expr.exists(|expr| Ok(is_subquery(expr)))? {
        return Err(not_of_a_row());
    }
    let is_unsettled = |expr: &Expr| match expr {
        Expr::ScalarFunction(call) => call.func.signature().volatility != Volatility::Immutable,
        _ => false,
    };
    if *is_settled && expr.exists(|expr| Ok(is_unsettled(expr)))? {
        return Err(Error::Unplannable {
            problem: "which rows a table has cannot depend on when it is asked: leave out functions such as `now()`"
                .to_string(),
        });
    }
    let found = frame.schema().field(0).data_type();
    if *found != DataType::Boolean {
        return Err(Error::Unplannable {
            problem: format!("a rule is true or false, and this is a value of type {found}"),
        });
    }
    let columns = DFSchema::try_from_qualified_schema(ROWS, columns)?;
    Ok(session.create_physical_expr(expr.clone().unalias(), &columns)?)
}

/// Places are those of the condition, not of the query around it.
fn unwrapped(error: Error, last_line: u64) -> Error {
    match error {
        // It is the parenthesis around it that is in the way.
        Error::Syntax { position: Some((line, _)), problem } if line >= last_line => {
            Error::Syntax { position: None, problem: problem.replace("found )", "found the end") }
        }
        Error::Syntax { position: Some((line, column)), problem } => {
            let column = column.saturating_sub(if line == 1 { "SELECT (".len() as u64 } else { 0 });
            match column {
                0 => Error::Syntax { position: None, problem },
                column => Error::Syntax { position: Some((line, column)), problem },
            }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Decimal128Array, StringArray};
    use arrow::datatypes::Field;

    use super::*;
    use crate::engine::EngineOptions;
    use crate::error::Situation;

    fn rows() -> RecordBatch {
        let total = Decimal128Array::from(vec![Some(999), Some(-1), None]).with_precision_and_scale(10, 2).unwrap();
        let status = StringArray::from(vec![Some("paid"), None, Some("lost")]);
        let schema = Schema::new(vec![
            Field::new("total", DataType::Decimal128(10, 2), true),
            Field::new("status", DataType::Utf8, true),
        ]);
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(total), Arc::new(status)]).unwrap()
    }

    fn settled(condition: &str) -> Condition {
        Condition { sql: condition.to_string(), is_settled: true }
    }

    fn engine(folder: &tempfile::TempDir) -> Engine {
        let spill_dir = folder.path().to_path_buf();
        Engine::new(&EngineOptions { memory_bytes: 64 << 20, threads: 1, spill_dir }).unwrap()
    }

    #[tokio::test]
    async fn a_row_breaks_a_condition_that_is_false_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(&folder);
        for (condition, expected) in [
            ("total >= 0", [false, true, false]),
            ("total = 9.99", [false, true, false]),
            ("status IN ('paid', 'shipped') -- or new", [false, false, true]),
            ("status IS NOT NULL", [false, true, false]),
            ("CAST(total AS VARCHAR) IN ('9.99')", [false, true, false]),
            ("true", [false, false, false]),
            ("NOT true", [true, true, true]),
            ("rows.total >= 0 OR \"status\" = 'x'", [false, false, false]),
        ] {
            let judge = Judge::plan(&engine, &[settled(condition)], &rows().schema()).await.unwrap();
            let broken = judge.broken(&rows()).unwrap().remove(0);
            assert_eq!(broken.iter().collect::<Vec<_>>(), expected, "{condition}");
        }
    }

    #[tokio::test]
    async fn what_is_no_condition_over_a_row_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(&folder);
        let mut told = Vec::new();
        for condition in [
            "totl > 0",
            "total",
            "NULL",
            "sum(total) > 0",
            "row_number() OVER () > 0",
            "total IN (SELECT total FROM rows)",
            "total >",
            "total + status > 0",
            "now() > '2020-01-01'",
            "",
        ] {
            let error = Judge::plan(&engine, &[settled(condition)], &rows().schema()).await.unwrap_err();
            told.push(format!(
                "{condition}: {error}{}",
                error.hint().map(|hint| format!("; {hint}")).unwrap_or_default()
            ));
        }
        insta::assert_snapshot!(told.join("\n"), @"
        totl > 0: there is no column `totl`; did you mean `total`?
        total: the query cannot be planned: a rule is true or false, and this is a value of type Decimal128(10, 2)
        NULL: the query cannot be planned: a rule is true or false, and this is a value of type Null
        sum(total) > 0: the query cannot be planned: a rule looks at one row: aggregates, window functions and subqueries have no meaning in it
        row_number() OVER () > 0: the query cannot be planned: a rule looks at one row: aggregates, window functions and subqueries have no meaning in it
        total IN (SELECT total FROM rows): the query cannot be planned: a rule looks at one row: aggregates, window functions and subqueries have no meaning in it
        total >: the SQL has a mistake: expected an expression, found the end
        total + status > 0: the query cannot be planned: cannot coerce arithmetic expression Decimal128(10, 2) + Utf8 to valid types
        now() > '2020-01-01': the query cannot be planned: which rows a table has cannot depend on when it is asked: leave out functions such as `now()`
        : the SQL has a mistake: expected an expression, found the end
        ");
    }
}
