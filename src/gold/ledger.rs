//! A group's new row from its old one and the rows that came and went, without a look at the rest of the input.
//!
//! What a refresh by groups pays for is reading the input again. But a count or a sum is what it was, plus what came,
//! less what went, and a greatest value stays where it is until it is taken away. So where the answer keeps what it is
//! made of, the changes are aggregated as the model does it, once those that came and once those that went, and the old
//! row of each group is carried forward.
//!
//! **The rule.** One scan changed, and the rows that are aggregated are linear in it: each comes from one row of the
//! scan, and from nothing else that changed (`part`). Each aggregate is a count, a sum of integers or decimals, a least
//! or a greatest value, and it and each group expression stand in a column of the answer, under casts that keep the value
//! or fail (`keeps`). Doubles are out: their sums depend on the order. Anything else that a column holds is computed
//! from these by the model's own expressions.
//!
//! **What the changes cannot tell leaves a group open** (`Fate::Open`), and it is computed from the input: whether any
//! row is left, whether a sum of nothing is null, what comes after an extreme that went, whether a group that HAVING
//! kept out is there. A step it does not know proves nothing: what is missing here costs time and never rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options, concat_batches, filter, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, JoinType, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::functions_aggregate::count::count;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{
    Aggregate, Distinct, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Projection, lit,
};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use super::accounts::{Accounts, Book, Entry, Fate, Side, counts};
use super::reach::{is_exact, replace_scans};
use super::touched::{Keys, note_places};
use crate::engine::{IcebergTableProvider, Result};
use crate::table::{Difference, TableView};

/// A refresh holds the changes' groups, their old rows and their new ones.
const COPIES: usize = 3;

/// No column of a model has such a name.
const ROWS: &str = "rows of the group";

/// A model whose rows can be carried forward.
#[derive(Debug)]
pub(super) struct Ledger<'a> {
    whole: &'a LogicalPlan,
    aggregate: &'a Aggregate,
    /// The scan that changed.
    scan: usize,
    /// Where the answer keeps each column of the aggregate.
    kept: Vec<Kept>,
    entries: Vec<Entry>,
    /// Whether rows of the aggregate may be missing in the answer.
    is_filtered: bool,
}

/// The answer's column that keeps a column of a step below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    column: usize,
    null_is_zero: bool,
}

/// What a refresh by changes came to.
pub(super) struct Balance {
    /// The answer's rows that are new.
    pub(super) rows: LogicalPlan,
    /// Where the old rows lie that have to go, by file.
    pub(super) doomed: BTreeMap<String, RoaringTreemap>,
    /// Groups that are to be computed from the input.
    pub(super) open: Option<Keys>,
    /// How many groups the changes alone settled.
    pub(super) settled: u64,
    _held: MemoryReservation,
}

impl<'a> Ledger<'a> {
    /// For a model of which one scan changed; or why its rows cannot be carried forward.
    pub(super) fn of(whole: &'a LogicalPlan, scan: usize, gold: &Schema) -> Result<Self, &'static str> {
        let columns = whole.schema().fields().iter().enumerate();
        let mut kept: Vec<Option<Kept>> = columns
            .map(|(column, field)| {
                let stored = gold.field_with_name(field.name()).ok()?.data_type();
                let is_kept = is_exact(field.data_type()) && keeps(field.data_type(), stored);
                is_kept.then_some(Kept { column, null_is_zero: false })
            })
            .collect();
        let mut is_filtered = false;
        let mut step = whole;
        let aggregate = loop {
            step = match step {
                LogicalPlan::Aggregate(aggregate) => break aggregate,
                LogicalPlan::Projection(projection) => {
                    kept = kept_below(projection, &kept);
                    &projection.input
                }
                LogicalPlan::Filter(having) => {
                    is_filtered = true;
                    &having.input
                }
                LogicalPlan::SubqueryAlias(alias) => &alias.input,
                LogicalPlan::Sort(sort) if sort.fetch.is_none() => &sort.input,
                _ => return Err("the query is not one aggregation with columns made of it"),
            }
        };
        let groups = aggregate.group_expr.len();
        if groups == 0 || aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
            return Err("it has not one row for each group");
        }
        if part(&aggregate.input, &mut 0, scan) != Part::Linear {
            return Err("an aggregated row may be made of several rows that changed");
        }
        let fields = aggregate.schema.fields().iter();
        if !fields.take(groups).all(|field| is_exact(field.data_type())) {
            return Err("equal values of a group may be written in several ways");
        }
        let entries: Option<Vec<Entry>> =
            (0..aggregate.aggr_expr.len()).map(|index| Entry::of(aggregate, index)).collect();
        let Some(mut entries) = entries else {
            return Err("an aggregate cannot be told from its old value and the changes");
        };
        let kept: Option<Vec<Kept>> = kept.into_iter().collect();
        let Some(kept) = kept else {
            return Err("not every group column and aggregate stands in a column of the answer");
        };
        for (index, kept) in kept.iter().enumerate().filter(|(_, kept)| kept.null_is_zero) {
            match index.checked_sub(groups).map(|index| &mut entries[index]) {
                Some(Entry::Sum { null_is_zero, .. }) => *null_is_zero = kept.null_is_zero,
                _ => return Err("a column of the answer hides whether a value is null"),
            }
        }
        Ok(Ledger { whole, aggregate, scan, kept, entries, is_filtered })
    }

    /// Carries the groups forward that changes reach; `None` where the stored rows are not what they should be, or too
    /// many groups changed to hold them.
    pub(super) async fn balance(
        &self,
        session: &SessionContext,
        difference: &Difference,
        gold: &TableView,
    ) -> Result<Option<Balance>> {
        let consumer = MemoryConsumer::new("groups that changed");
        let held = consumer.register(&session.runtime_env().memory_pool);
        let groups = self.aggregate.group_expr.len();
        let fields = &self.aggregate.schema.fields()[..groups];
        let mut book = Book::new(fields.iter().map(|field| field.data_type().clone()))?;
        let mut sides = Vec::with_capacity(2);
        for view in [&difference.added, &difference.removed] {
            let Some(batch) = collect(self.aggregated(session, view)?, &held).await? else { return Ok(None) };
            let known = self.aggregate.schema.fields().iter().zip(batch.columns());
            if known.into_iter().any(|(field, column)| field.data_type() != column.data_type()) {
                return Ok(None);
            }
            sides.push((book.page(&batch.columns()[..groups], true)?, batch));
        }
        // A group value that its column cannot hold is for the model itself to fail by.
        let Some(keys) = self.keys(session, book.keys(None)?)? else { return Ok(None) };
        let columns: Vec<usize> = self.kept.iter().map(|kept| kept.column).collect();
        let old = keys.rows_in(self.whole.schema(), gold, &columns)?;
        let Some(old) = collect(DataFrame::new(session.state(), old), &held).await? else { return Ok(None) };
        let stored = old.columns()[2..].iter().zip(self.aggregate.schema.fields());
        let Ok(columns) = stored.map(|(column, field)| exactly(column, field.data_type())).collect() else {
            return Ok(None);
        };
        let columns: Vec<ArrayRef> = columns;
        let page = book.page(&columns[..groups], false)?;
        let size = book.groups.len();
        let [(came, added), (went, removed)] = &sides[..] else { return Ok(None) };
        let accounts = Accounts {
            entries: &self.entries,
            is_filtered: self.is_filtered,
            came: counts(&came.aligned(added.column(groups + self.rows_at()), size)?),
            old: Side::new(&page, &columns[groups..], size)?,
            added: Side::new(came, &added.columns()[groups..], size)?,
            removed: Side::new(went, &removed.columns()[groups..], size)?,
        };
        let (values, fates) = accounts.settle()?;

        let mut doomed = BTreeMap::new();
        let rows = page.groups.iter().map(|group| group.is_some_and(|group| fates[group] != Fate::Same));
        let old = filter_record_batch(&old, &BooleanArray::from_iter(rows.map(Some)));
        note_places(&old.map_err(DataFusionError::from)?, &mut doomed);
        let is = |fate: Fate| -> Vec<bool> { fates.iter().map(|of_group| *of_group == fate).collect() };
        let open = match is(Fate::Open) {
            open if open.contains(&true) => match self.keys(session, book.keys(Some(&open))?)? {
                Some(keys) => Some(keys),
                None => return Ok(None),
            },
            _ => None,
        };
        let settled = fates.iter().filter(|fate| **fate != Fate::Open).count() as u64;
        let rows = self.rows(session, book.keys(None)?, values, &is(Fate::New))?;
        Ok(Some(Balance { rows, doomed, open, settled, _held: held }))
    }

    /// Which of [`Self::aggregated`]'s aggregates counts all rows.
    fn rows_at(&self) -> usize {
        let counts_all = |entry: &Entry| *entry == Entry::Count { of_all: true };
        self.entries.iter().position(counts_all).unwrap_or(self.entries.len())
    }

    /// The model's own aggregation, over some rows of the scan in place of all, and how many rows each group has.
    fn aggregated(&self, session: &SessionContext, rows: &TableView) -> Result<DataFrame> {
        let input = replace_scans(self.aggregate.input.as_ref().clone(), |number, plan| match plan {
            LogicalPlan::TableScan(scan) if number == self.scan => {
                let rows = provider_as_source(Arc::new(IcebergTableProvider::new(rows.clone())));
                LogicalPlanBuilder::scan(scan.table_name, rows, scan.projection)?.build().map(Some)
            }
            _ => Ok(None),
        })?;
        let mut aggregates = self.aggregate.aggr_expr.clone();
        if self.rows_at() == self.entries.len() {
            aggregates.push(count(lit(1)).alias(ROWS));
        }
        let aggregate = Aggregate::try_new(Arc::new(input), self.aggregate.group_expr.clone(), aggregates)?;
        Ok(DataFrame::new(session.state(), LogicalPlan::Aggregate(aggregate)))
    }

    /// Group values as the answer's columns have them; `None` where they do not fit.
    fn keys(&self, session: &SessionContext, groups: Vec<ArrayRef>) -> Result<Option<Keys>> {
        let answer = self.whole.schema();
        let columns: Vec<usize> = self.kept[..groups.len()].iter().map(|kept| kept.column).collect();
        let values: Result<Vec<ArrayRef>, ArrowError> =
            columns.iter().zip(&groups).map(|(column, of)| exactly(of, answer.field(*column).data_type())).collect();
        match values {
            Ok(values) => Ok(Some(Keys::new(columns, session, values)?)),
            Err(_) => Ok(None),
        }
    }

    /// The model's columns over aggregates that are already known.
    fn rows(
        &self,
        session: &SessionContext,
        groups: Vec<ArrayRef>,
        values: Vec<ArrayRef>,
        wanted: &[bool],
    ) -> Result<LogicalPlan> {
        let schema = &self.aggregate.schema;
        let wanted = BooleanArray::from(wanted.to_vec());
        let columns: Result<Vec<ArrayRef>, ArrowError> =
            groups.iter().chain(&values).map(|column| filter(column, &wanted)).collect();
        let name = |index: usize| format!("entry {index}");
        let fields = schema
            .fields()
            .iter()
            .enumerate()
            .map(|(index, field)| Field::new(name(index), field.data_type().clone(), field.is_nullable()));
        let fields: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let batch = columns.and_then(|columns| RecordBatch::try_new(fields.clone(), columns));
        let table = MemTable::try_new(fields, vec![vec![batch.map_err(DataFusionError::from)?]])?;
        let table = session.read_table(Arc::new(table))?.into_unoptimized_plan();
        let named = schema.iter().enumerate().map(|(index, (qualifier, field))| {
            Expr::Column(Column::new_unqualified(name(index))).alias_qualified(qualifier.cloned(), field.name())
        });
        let known = LogicalPlanBuilder::from(table).project(named.collect::<Vec<_>>())?.build()?;
        // There are projections alone above the aggregation, and their like.
        let rows = self.whole.clone().transform_down(|step| match step {
            LogicalPlan::Aggregate(_) => Ok(Transformed::new(known.clone(), true, TreeNodeRecursion::Jump)),
            other => Ok(Transformed::no(other)),
        });
        Ok(rows.data()?)
    }
}

impl Entry {
    fn of(aggregate: &Aggregate, index: usize) -> Option<Entry> {
        let call = call(&aggregate.aggr_expr[index])?;
        let params = &call.params;
        if params.distinct || !params.order_by.is_empty() || params.null_treatment.is_some() {
            return None;
        }
        let data_type = aggregate.schema.field(aggregate.group_expr.len() + index).data_type();
        match (call.func.name(), params.args.as_slice()) {
            ("count", args) => {
                let is_never_null = |arg: &Expr| matches!(arg, Expr::Literal(value, _) if !value.is_null());
                Some(Entry::Count { of_all: params.filter.is_none() && args.iter().all(is_never_null) })
            }
            ("sum", [_]) => {
                let counts_the_same = |other: &Expr| {
                    let Some(other) = self::call(other) else { return false };
                    other.func.name() == "count" && other.params == *params
                };
                let counted_by = aggregate.aggr_expr.iter().position(counts_the_same);
                let adds_up = matches!(data_type, DataType::Int64 | DataType::UInt64 | DataType::Decimal128(..));
                adds_up.then_some(Entry::Sum { counted_by, null_is_zero: false })
            }
            ("min", [_]) if is_exact(data_type) => Some(Entry::Least),
            ("max", [_]) if is_exact(data_type) => Some(Entry::Greatest),
            _ => None,
        }
    }
}

fn call(expr: &Expr) -> Option<&AggregateFunction> {
    match expr {
        Expr::AggregateFunction(call) => Some(call),
        Expr::Alias(alias) => call(&alias.expr),
        _ => None,
    }
}

/// Which columns below a projection are kept by what it makes of them.
fn kept_below(projection: &Projection, kept: &[Option<Kept>]) -> Vec<Option<Kept>> {
    let input = projection.input.schema();
    let mut below: Vec<Option<Kept>> = vec![None; input.fields().len()];
    for (expr, kept) in projection.expr.iter().zip(kept) {
        let (Some(kept), Some((index, null_is_zero))) = (kept, kept_column(expr, input)) else { continue };
        let kept = Kept { null_is_zero: kept.null_is_zero || null_is_zero, ..*kept };
        if below[index].is_none_or(|known| known.null_is_zero && !kept.null_is_zero) {
            below[index] = Some(kept);
        }
    }
    below
}

/// The column whose value an expression keeps, and whether it puts 0 in the place of null.
fn kept_column(expr: &Expr, input: &DFSchema) -> Option<(usize, bool)> {
    let is_kept = |part: &Expr| {
        let (from, to) = (part.get_type(input), expr.get_type(input));
        from.is_ok_and(|from| to.is_ok_and(|to| keeps(&from, &to)))
    };
    match expr {
        Expr::Column(column) => Some((input.maybe_index_of_column(column)?, false)),
        Expr::Alias(alias) => kept_column(&alias.expr, input),
        Expr::Cast(cast) if is_kept(&cast.expr) => kept_column(&cast.expr, input),
        Expr::ScalarFunction(call) if call.func.name() == "coalesce" => match call.args.as_slice() {
            [value, instead] if is_zero(instead) && is_kept(value) => {
                kept_column(value, input).map(|(index, _)| (index, true))
            }
            _ => None,
        },
        _ => None,
    }
}

fn is_zero(expr: &Expr) -> bool {
    match expr {
        Expr::Cast(cast) => is_zero(&cast.expr),
        Expr::Literal(value, _) => {
            let is_number = value.data_type().is_integer() || matches!(value.data_type(), DataType::Decimal128(..));
            is_number && value.cast_to(&DataType::Int64).is_ok_and(|value| value == ScalarValue::Int64(Some(0)))
        }
        _ => false,
    }
}

/// Whether a cast gives the same value in other clothes, or fails: then it can be taken back.
fn keeps(from: &DataType, to: &DataType) -> bool {
    match (from, to) {
        _ if from == to => true,
        (DataType::Decimal128(_, from), DataType::Decimal128(_, to)) => from <= to,
        (from, DataType::Decimal128(_, scale)) => from.is_integer() && *scale >= 0,
        // What a time zone is called does not move the instant.
        (DataType::Timestamp(from, Some(_)), DataType::Timestamp(to, Some(_))) => from == to,
        (from, to) => from.is_integer() && to.is_integer(),
    }
}

/// Casts, or fails where a value would not be kept.
fn exactly(column: &ArrayRef, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    cast_with_options(column, data_type, &CastOptions { safe: false, ..CastOptions::default() })
}

/// What the rows of a step are to the rows of the scan that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// They are what they were.
    Constant,
    /// Each comes from one row of the scan, and would come from it whatever the other rows were.
    Linear,
    Unknown,
}

fn part(plan: &LogicalPlan, scans: &mut usize, changed: usize) -> Part {
    if let LogicalPlan::TableScan(scan) = plan {
        *scans += 1;
        return match *scans - 1 == changed {
            false => Part::Constant,
            // Where a row lies, `$rows` would say of the rows that changed alone.
            true if scan.fetch.is_some() || scan.table_name.table().contains('$') => Part::Unknown,
            true => Part::Linear,
        };
    }
    let inputs: Vec<Part> = plan.inputs().into_iter().map(|input| part(input, scans, changed)).collect();
    match (plan, inputs.as_slice()) {
        (LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_), [input]) => *input,
        (LogicalPlan::Join(join), [left, right]) => match (left, right, join.join_type) {
            (Part::Constant, Part::Constant, _) => Part::Constant,
            (Part::Linear, Part::Constant, JoinType::Inner | JoinType::Left) => Part::Linear,
            (Part::Linear, Part::Constant, JoinType::LeftSemi | JoinType::LeftAnti) => Part::Linear,
            (Part::Constant, Part::Linear, JoinType::Inner | JoinType::Right) => Part::Linear,
            (Part::Constant, Part::Linear, JoinType::RightSemi | JoinType::RightAnti) => Part::Linear,
            _ => Part::Unknown,
        },
        // A step that could choose otherwise next time, such as a limit, is not constant.
        (LogicalPlan::EmptyRelation(_) | LogicalPlan::Values(_), []) => Part::Constant,
        (LogicalPlan::Union(_) | LogicalPlan::Distinct(Distinct::All(_)), inputs) if all_constant(inputs) => {
            Part::Constant
        }
        (LogicalPlan::Aggregate(aggregate), [Part::Constant]) => {
            let is_settled =
                |expr: &Expr| call(expr).is_some_and(|call| ["count", "sum", "min", "max"].contains(&call.func.name()));
            let is_settled = aggregate.aggr_expr.iter().all(is_settled)
                && aggregate.schema.fields().iter().all(|field| is_exact(field.data_type()));
            if is_settled { Part::Constant } else { Part::Unknown }
        }
        _ => Part::Unknown,
    }
}

fn all_constant(inputs: &[Part]) -> bool {
    inputs.iter().all(|input| *input == Part::Constant)
}

/// The rows of a frame in one batch; `None` when the memory budget has no room for them.
async fn collect(frame: DataFrame, held: &MemoryReservation) -> Result<Option<RecordBatch>> {
    let mut stream = frame.execute_stream().await?;
    let mut batches = Vec::new();
    while let Some(batch) = stream.try_next().await? {
        if held.try_grow(COPIES * batch.get_array_memory_size()).is_err() {
            return Ok(None);
        }
        batches.push(batch);
    }
    Ok(Some(concat_batches(&stream.schema(), &batches).map_err(DataFusionError::from)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{self, Engine, EngineOptions};

    /// Why a model is not carried forward when `a` changes, or what it is made of.
    async fn ledger_of(sql: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions { memory_bytes: 64 << 20, threads: 1, spill_dir: folder.path().to_path_buf() };
        let session = Engine::new(&options).unwrap().session();
        for name in ["a", "b"] {
            let fields = [
                ("id", DataType::Int32),
                ("x", DataType::Utf8),
                ("price", DataType::Decimal128(12, 2)),
                ("ratio", DataType::Float64),
            ];
            let fields = fields.map(|(name, data_type)| Field::new(name, data_type, true));
            let empty = RecordBatch::new_empty(Arc::new(Schema::new(fields.to_vec())));
            session.register_batch(name, empty).unwrap();
        }
        let frame = engine::plan(&session, sql).await.unwrap();
        let reach = super::super::reach::Reach::of(frame.logical_plan()).unwrap();
        let scans: Vec<usize> = (0..reach.scans.len()).filter(|scan| reach.scans[*scan].table.table() == "a").collect();
        assert_eq!(scans.len(), 1, "{sql}");
        match Ledger::of(frame.logical_plan(), scans[0], frame.schema().as_arrow()) {
            Err(why) => why.to_string(),
            Ok(ledger) => {
                let kept: Vec<String> = ledger.kept.iter().map(|kept| kept.column.to_string()).collect();
                format!("{} {:?}{}", kept.join(" "), ledger.entries, if ledger.is_filtered { " filtered" } else { "" })
            }
        }
    }

    #[tokio::test]
    async fn a_model_is_carried_forward_when_it_keeps_what_it_is_made_of() {
        let several = "an aggregated row may be made of several rows that changed";
        let unkept = "not every group column and aggregate stands in a column of the answer";
        let untold = "an aggregate cannot be told from its old value and the changes";
        let shape = "the query is not one aggregation with columns made of it";
        let sum = "Sum { counted_by: None, null_is_zero: false }";
        for (sql, expected) in [
            ("SELECT x, count(*) AS n FROM a GROUP BY x", "0 1 [Count { of_all: true }]"),
            ("SELECT count(x) AS n, x FROM a GROUP BY x", "1 0 [Count { of_all: false }]"),
            ("SELECT x, count(*) FILTER (WHERE id > 1) AS n FROM a GROUP BY x", "0 1 [Count { of_all: false }]"),
            ("SELECT x, count(DISTINCT id) AS n FROM a GROUP BY x", untold),
            ("SELECT x, sum(ratio) AS n FROM a GROUP BY x", untold),
            ("SELECT x, avg(price) AS n FROM a GROUP BY x", untold),
            ("SELECT x, max(ratio) AS n FROM a GROUP BY x", untold),
            ("SELECT x, array_agg(id ORDER BY id) AS n FROM a GROUP BY x", untold),
            ("SELECT x, sum(price) AS s FROM a GROUP BY x", &format!("0 1 [{sum}]")),
            (
                "SELECT x, sum(id) AS s, count(id) AS n, count(price) AS m FROM a GROUP BY x",
                "0 1 2 3 [Sum { counted_by: Some(1), null_is_zero: false }, Count { of_all: false }, Count { of_all: false }]",
            ),
            (
                "SELECT x, sum(id) AS s, count(id) FILTER (WHERE id > 1) AS n FROM a GROUP BY x",
                &format!("0 1 2 [{sum}, Count {{ of_all: false }}]"),
            ),
            ("SELECT x, min(id) AS l, max(x) AS m FROM a GROUP BY x", "0 1 2 [Least, Greatest]"),
            // Narrower types fail where the value does not fit; rounded ones do not.
            ("SELECT x, CAST(sum(price) AS decimal(5, 2)) AS s FROM a GROUP BY x", &format!("0 1 [{sum}]")),
            ("SELECT x, CAST(sum(price) AS decimal(20, 4)) AS s FROM a GROUP BY x", &format!("0 1 [{sum}]")),
            ("SELECT x, CAST(sum(price) AS decimal(20, 1)) AS s FROM a GROUP BY x", unkept),
            ("SELECT x, CAST(sum(price) AS bigint) AS s FROM a GROUP BY x", unkept),
            ("SELECT x, CAST(sum(price) AS double) AS s FROM a GROUP BY x", unkept),
            ("SELECT x, CAST(sum(id) AS int) AS s FROM a GROUP BY x", &format!("0 1 [{sum}]")),
            ("SELECT x, TRY_CAST(sum(id) AS int) AS s FROM a GROUP BY x", unkept),
            ("SELECT CAST(id AS varchar) AS i, sum(id) AS s FROM a GROUP BY id", unkept),
            ("SELECT id + 1 AS i, sum(id) AS s FROM a GROUP BY id", unkept),
            ("SELECT id + 1 AS i, sum(id) AS s FROM a GROUP BY id + 1", &format!("0 1 [{sum}]")),
            ("SELECT x, sum(id) + 1 AS s FROM a GROUP BY x", unkept),
            ("SELECT x, sum(id) + 1 AS s, sum(id) AS t FROM a GROUP BY x", &format!("0 2 [{sum}]")),
            ("SELECT x, sum(id) AS s FROM a GROUP BY x HAVING sum(id) > 1", &format!("0 1 [{sum}] filtered")),
            ("SELECT x, count(*) AS n FROM a GROUP BY x HAVING sum(id) > 1", unkept),
            (
                "SELECT x, coalesce(sum(id), 0) AS s FROM a GROUP BY x",
                "0 1 [Sum { counted_by: None, null_is_zero: true }]",
            ),
            ("SELECT x, coalesce(sum(id), 0) AS s, sum(id) AS t FROM a GROUP BY x", &format!("0 2 [{sum}]")),
            ("SELECT x, coalesce(sum(id), 1) AS s FROM a GROUP BY x", unkept),
            (
                "SELECT x, coalesce(max(id), 0) AS s FROM a GROUP BY x",
                "a column of the answer hides whether a value is null",
            ),
            ("SELECT count(*) AS n FROM a", "it has not one row for each group"),
            ("SELECT x, id, count(*) AS n FROM a GROUP BY ROLLUP (x, id)", "it has not one row for each group"),
            (
                "SELECT ratio, count(*) AS n FROM a GROUP BY ratio",
                "equal values of a group may be written in several ways",
            ),
            ("SELECT x, id FROM a", shape),
            ("SELECT x, count(*) AS n FROM a GROUP BY x ORDER BY n LIMIT 2", shape),
            ("SELECT DISTINCT x, count(*) AS n FROM a GROUP BY x", shape),
            ("SELECT x, count(*) AS n, rank() OVER (ORDER BY x) AS r FROM a GROUP BY x", shape),
            (
                "SELECT x, n FROM (SELECT x, count(*) AS n FROM a GROUP BY x) s WHERE n > 1",
                "0 1 [Count { of_all: true }] filtered",
            ),
            ("SELECT x, n FROM (SELECT x, count(*) AS n FROM a GROUP BY x) s JOIN b USING (x)", shape),
            ("SELECT x, count(*) AS n FROM (SELECT DISTINCT x, id FROM a) s GROUP BY x", several),
            ("SELECT x, count(*) AS n FROM (SELECT x FROM a LIMIT 5) s GROUP BY x", several),
            ("SELECT x, count(*) AS n FROM (SELECT x FROM a UNION ALL SELECT x FROM b) s GROUP BY x", several),
            ("SELECT b.x, count(*) AS n FROM a JOIN b ON a.id = b.id GROUP BY b.x", "0 1 [Count { of_all: true }]"),
            (
                "SELECT b.x, count(*) AS n FROM a LEFT JOIN b ON a.id = b.id GROUP BY b.x",
                "0 1 [Count { of_all: true }]",
            ),
            ("SELECT b.x, count(*) AS n FROM b LEFT JOIN a ON a.id = b.id GROUP BY b.x", several),
            ("SELECT b.x, count(*) AS n FROM a RIGHT JOIN b ON a.id = b.id GROUP BY b.x", several),
            (
                "SELECT b.x, count(*) AS n FROM b RIGHT JOIN a ON a.id = b.id GROUP BY b.x",
                "0 1 [Count { of_all: true }]",
            ),
            ("SELECT b.x, count(*) AS n FROM a FULL JOIN b ON a.id = b.id GROUP BY b.x", several),
            (
                "SELECT x, count(*) AS n FROM a LEFT ANTI JOIN b ON a.id = b.id GROUP BY x",
                "0 1 [Count { of_all: true }]",
            ),
            ("SELECT x, count(*) AS n FROM b LEFT ANTI JOIN a ON a.id = b.id GROUP BY x", several),
            (
                "SELECT x, count(*) AS n FROM a JOIN (SELECT id, max(price) AS p FROM b GROUP BY id) m ON a.id = m.id GROUP BY x",
                "0 1 [Count { of_all: true }]",
            ),
            ("SELECT x, count(*) AS n FROM a JOIN (SELECT id FROM b LIMIT 2) m ON a.id = m.id GROUP BY x", several),
        ] {
            assert_eq!(ledger_of(sql).await, expected, "{sql}");
        }
    }
}
