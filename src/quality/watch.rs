//! Rules about rows, asked of batches of rows before they are written.

use arrow::array::RecordBatch;
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::Schema;

use super::{Broken, Finding, Origin, Rule};
use crate::engine::{Condition, Engine, Error, Judge, Result, unknown_column};
use crate::ids::TableName;

/// Looks at rows with certain columns; others that come along are not looked at.
pub(crate) struct Watch {
    judge: Judge,
    columns: Vec<String>,
}

impl Watch {
    /// For those of the rules that are about rows.
    pub(crate) async fn plan<'a>(
        engine: &Engine,
        rules: impl IntoIterator<Item = &'a Rule>,
        columns: &Schema,
    ) -> Result<Self> {
        let condition = |rule: &Rule| Some(Condition { sql: rule.condition()?, is_settled: rule.action.removes() });
        let conditions: Vec<Condition> = rules.into_iter().filter_map(condition).collect();
        let judge = Judge::plan(engine, &conditions, columns).await?;
        Ok(Watch { judge, columns: columns.fields().iter().map(|field| field.name().clone()).collect() })
    }

    /// For each rule about rows, those that break it.
    pub(crate) fn broken(&self, rows: &RecordBatch) -> Result<Vec<BooleanBuffer>> {
        let columns = self.columns.iter().map(|name| rows.schema().index_of(name));
        let looked_at = columns.collect::<Result<Vec<_>, _>>().and_then(|columns| rows.project(&columns));
        self.judge.broken(&looked_at.map_err(datafusion::error::DataFusionError::from)?)
    }
}

/// What was found of the rows that came by.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    checked: u64,
    /// Of each rule about rows, how many break it, and the first event of one where that is known.
    broken: Vec<(u64, Option<Origin>)>,
}

impl Tally {
    /// Of some rows; `first` finds the first event of those that are set.
    pub(crate) fn of(broken: &[BooleanBuffer], rows: usize, first: impl Fn(&BooleanBuffer) -> Option<Origin>) -> Self {
        let broken = broken.iter().map(|broken| (broken.count_set_bits() as u64, first(broken)));
        Tally { checked: rows as u64, broken: broken.collect() }
    }

    pub(crate) fn join(&mut self, other: Tally) {
        self.checked += other.checked;
        if self.broken.is_empty() {
            self.broken = other.broken;
            return;
        }
        for ((count, first), (more, other)) in self.broken.iter_mut().zip(other.broken) {
            *count += more;
            *first = [first.take(), other].into_iter().flatten().min();
        }
    }

    /// For each rule about rows, how many rows were looked at and how many break it.
    pub(crate) fn findings(&self, table: &TableName, rules: &[Rule]) -> Vec<Finding> {
        let counts = self.broken.iter().map(|(count, _)| *count).chain(std::iter::repeat(0));
        let of_rows = rules.iter().filter(|rule| rule.condition().is_some());
        of_rows.zip(counts).map(|(rule, failed)| Finding::of(table, rule, self.checked, failed)).collect()
    }

    /// Adds to broken rules which event was the first to break them.
    pub(crate) fn name_firsts(&self, broken: &mut [Broken], rules: &[Rule]) {
        let of_rows = rules.iter().filter(|rule| rule.condition().is_some());
        for (rule, (_, first)) in of_rows.zip(&self.broken) {
            if let Some(broken) = broken.iter_mut().find(|broken| broken.rule == rule.name) {
                broken.first.clone_from(first);
            }
        }
    }
}

/// The rules of a table that cannot be asked of rows with these columns, by their index, and why.
pub(crate) async fn unfit_rules(engine: &Engine, rules: &[Rule], columns: &Schema) -> Vec<(usize, Error)> {
    let mut unfit = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let named = rule.columns().into_iter().find(|column| columns.index_of(column).is_err());
        let problem = match named {
            Some(column) => Some(unknown_column(column, columns)),
            None => Watch::plan(engine, [rule], columns).await.err(),
        };
        unfit.extend(problem.map(|problem| (index, problem)));
    }
    unfit
}
