//! Which rows of a model's answer a row of an input can reach, as the query's plan proves it.
//!
//! For each place where a table is read, and each column of the answer, the proof is an expression over that table's row:
//! *whatever the other rows are, an answer's row that comes, goes or changes with this row has just that value in the
//! column.* It is carried upward from the scans through every step of the plan. A step it is not known of proves nothing,
//! so that what is missing here costs time and never rows.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, JoinType, TableReference};
use datafusion::error::Result;
use datafusion::logical_expr::{Distinct, Expr, Join, LogicalPlan, Operator, Volatility};

/// What was found out about a query.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Every place where a table is read, in the order of the plan's leaves.
    pub(super) scans: Vec<Scan>,
    /// Tables that are read in subqueries: their rows may reach anything.
    pub(super) in_subqueries: Vec<TableReference>,
    /// A function whose value is not settled by its arguments.
    pub(super) unsettled: Option<String>,
}

/// A place where a table is read.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) table: TableReference,
    /// For columns of the answer, by index: the value of the rows that a row of the table can reach.
    pub(super) reaches: Held,
}

/// Columns of a step's rows, with the expression over the scanned row that they are known to equal.
pub(super) type Held = BTreeMap<usize, Expr>;

/// What is held of each scan below a step.
type Traced = Vec<(usize, Held)>;

impl Reach {
    pub(super) fn of(plan: &LogicalPlan) -> Result<Reach> {
        let mut reach = Reach::default();
        for (scan, held) in reach.trace(plan)? {
            reach.scans[scan].reaches = held;
        }
        Ok(reach)
    }

    fn trace(&mut self, plan: &LogicalPlan) -> Result<Traced> {
        self.note_expressions(plan)?;
        if let LogicalPlan::TableScan(scan) = plan {
            let mut held = Held::new();
            // Where a row lies is not what it says, and `$rows` would not find the old ones.
            if scan.fetch.is_none() && !scan.table_name.table().contains('$') {
                for (index, field) in scan.projected_schema.fields().iter().enumerate() {
                    if is_exact(field.data_type()) {
                        let column = Column::new(Some(scan.table_name.clone()), field.name());
                        held.insert(index, Expr::Column(column));
                    }
                }
            }
            self.scans.push(Scan { table: scan.table_name.clone(), reaches: Held::new() });
            return Ok(vec![(self.scans.len() - 1, held)]);
        }
        if let LogicalPlan::Join(join) = plan {
            let (left, right) = (self.trace(&join.left)?, self.trace(&join.right)?);
            return Ok(joined(join, left, right));
        }
        if let LogicalPlan::Union(union) = plan {
            // Where types differ, values are converted, and the plan does not tell yet to what.
            let type_in = |input: &LogicalPlan, index: usize| input.schema().field(index).data_type().clone();
            let is_alike = |index: &usize| {
                let mut types = union.inputs.iter().map(|input| type_in(input, *index));
                let first = types.next();
                types.all(|data_type| Some(data_type) == first)
            };
            let mut traced = Traced::new();
            for input in &union.inputs {
                traced.extend(self.trace(input)?);
            }
            for (_, held) in &mut traced {
                held.retain(|index, _| is_alike(index));
            }
            return Ok(traced);
        }
        let mut traced = Traced::new();
        for input in plan.inputs() {
            traced.extend(self.trace(input)?);
        }
        for (_, held) in &mut traced {
            let below = std::mem::take(held);
            *held = match plan {
                LogicalPlan::SubqueryAlias(_) | LogicalPlan::Repartition(_) => below,
                LogicalPlan::Distinct(Distinct::All(_)) => below,
                LogicalPlan::Sort(sort) if sort.fetch.is_none() => below,
                LogicalPlan::Filter(filter) => {
                    let mut held = below;
                    for (left, right) in equal_columns(std::iter::once(&filter.predicate)) {
                        let of = |column| filter.input.schema().maybe_index_of_column(column);
                        if let (Some(left), Some(right)) = (of(left), of(right)) {
                            let data_type = |index: usize| filter.input.schema().field(index).data_type();
                            if are_alike(data_type(left), data_type(right)) {
                                carry_over(&mut held, left, right);
                                carry_over(&mut held, right, left);
                            }
                        }
                    }
                    held
                }
                LogicalPlan::Projection(projection) => rewritten(&projection.expr, &below, projection.input.as_ref()),
                LogicalPlan::Aggregate(aggregate) => {
                    match aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
                        true => Held::new(),
                        false => {
                            let mut held = rewritten(&aggregate.group_expr, &below, aggregate.input.as_ref());
                            held.retain(|index, _| is_exact(aggregate.schema.field(*index).data_type()));
                            held
                        }
                    }
                }
                LogicalPlan::Window(window) => {
                    let partitions: Option<Vec<&Vec<Expr>>> = window.window_expr.iter().map(partition_of).collect();
                    let is_partition = |index: usize| {
                        let (qualifier, field) = window.input.schema().qualified_field(index);
                        let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
                        partitions.as_ref().is_some_and(|all| all.iter().all(|exprs| exprs.contains(&column)))
                    };
                    let mut held = below;
                    held.retain(|index, _| is_partition(*index));
                    held
                }
                _ => Held::new(),
            };
        }
        Ok(traced)
    }

    fn note_expressions(&mut self, plan: &LogicalPlan) -> Result<()> {
        plan.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(call) = expr
                    && call.func.signature().volatility != Volatility::Immutable
                {
                    self.unsettled = Some(call.func.name().to_string());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        plan.apply_subqueries(|subquery| {
            let within = Reach::of(subquery)?;
            self.in_subqueries.extend(within.scans.into_iter().map(|scan| scan.table));
            self.in_subqueries.extend(within.in_subqueries);
            self.unsettled = self.unsettled.take().or(within.unsettled);
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(())
    }
}

/// Puts something in the place of each scan, with its number as in [`Reach::scans`].
pub(super) fn replace_scans(
    plan: LogicalPlan,
    mut replace: impl FnMut(usize, LogicalPlan) -> Result<Option<LogicalPlan>>,
) -> Result<LogicalPlan> {
    let mut number = 0;
    plan.transform_down(|node| {
        if !matches!(node, LogicalPlan::TableScan(_)) {
            return Ok(Transformed::no(node));
        }
        number += 1;
        match replace(number - 1, node.clone())? {
            // What was put there holds the scan again.
            Some(other) => Ok(Transformed::new(other, true, TreeNodeRecursion::Jump)),
            None => Ok(Transformed::no(node)),
        }
    })
    .data()
}

/// What is held of the rows that a join puts together.
fn joined(join: &Join, left: Traced, right: Traced) -> Traced {
    let (left_schema, right_schema) = (join.left.schema(), join.right.schema());
    let width = left_schema.fields().len();
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    let on = join.on.iter().filter_map(|(left, right)| Some((as_column(left)?, as_column(right)?)));
    for (one, other) in on.chain(equal_columns(join.filter.iter())) {
        let found = |left: &Column, right: &Column| {
            Some((left_schema.maybe_index_of_column(left)?, right_schema.maybe_index_of_column(right)?))
        };
        if let Some((left, right)) = found(one, other).or_else(|| found(other, one))
            && are_alike(left_schema.field(left).data_type(), right_schema.field(right).data_type())
        {
            pairs.push((left, right));
        }
    }
    // A row without a partner comes with nulls in the other side's columns; only what stays filled can be told. A side
    // that is filled up lends its rows' values to the partner's columns, by the equality that made them partners.
    let (left_stays, right_stays) = match join.join_type {
        JoinType::Inner => (true, true),
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti => (true, false),
        JoinType::Right | JoinType::RightSemi | JoinType::RightAnti => (false, true),
        _ => (false, false),
    };
    // One null on the right of a NOT IN takes every row away.
    let (left_stays, right_stays) = if join.null_aware { (false, false) } else { (left_stays, right_stays) };
    let right_offset = match join.join_type {
        JoinType::RightSemi | JoinType::RightAnti => 0,
        _ => width,
    };
    let is_inner = join.join_type == JoinType::Inner;
    let mut traced = Traced::new();
    for (scan, below) in left {
        let mut held = Held::new();
        if left_stays {
            held.extend(below.iter().map(|(index, expr)| (*index, expr.clone())));
        }
        if right_stays && (is_inner || !left_stays) {
            for (left, right) in &pairs {
                if let Some(expr) = below.get(left) {
                    held.entry(right_offset + right).or_insert_with(|| expr.clone());
                }
            }
        }
        traced.push((scan, held));
    }
    for (scan, below) in right {
        let mut held = Held::new();
        if right_stays {
            held.extend(below.iter().map(|(index, expr)| (right_offset + index, expr.clone())));
        }
        if left_stays && (is_inner || !right_stays) {
            for (left, right) in &pairs {
                if let Some(expr) = below.get(right) {
                    held.entry(*left).or_insert_with(|| expr.clone());
                }
            }
        }
        traced.push((scan, held));
    }
    traced
}

/// What is held of computed columns: those that are made of held columns alone.
fn rewritten(exprs: &[Expr], below: &Held, input: &LogicalPlan) -> Held {
    let held = exprs.iter().enumerate().filter_map(|(index, expr)| {
        let mut is_held = true;
        let mut has_column = false;
        let over_scan = expr.clone().transform_up(|expr| {
            Ok(match &expr {
                Expr::Column(column) => {
                    has_column = true;
                    match input.schema().maybe_index_of_column(column).and_then(|index| below.get(&index)) {
                        Some(scanned) => Transformed::yes(scanned.clone()),
                        None => {
                            is_held = false;
                            Transformed::no(expr)
                        }
                    }
                }
                Expr::Alias(alias) => Transformed::yes(alias.expr.as_ref().clone()),
                expr_of_a_row => {
                    is_held &= is_of_a_row(expr_of_a_row);
                    Transformed::no(expr)
                }
            })
        });
        let over_scan = over_scan.data().ok()?;
        (is_held && has_column).then_some((index, over_scan))
    });
    held.collect()
}

/// Whether an expression's value comes from its parts alone.
fn is_of_a_row(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::Literal(..)
            | Expr::BinaryExpr(_)
            | Expr::Like(_)
            | Expr::SimilarTo(_)
            | Expr::Not(_)
            | Expr::IsNotNull(_)
            | Expr::IsNull(_)
            | Expr::IsTrue(_)
            | Expr::IsFalse(_)
            | Expr::IsUnknown(_)
            | Expr::IsNotTrue(_)
            | Expr::IsNotFalse(_)
            | Expr::IsNotUnknown(_)
            | Expr::Negative(_)
            | Expr::Between(_)
            | Expr::Case(_)
            | Expr::Cast(_)
            | Expr::TryCast(_)
            | Expr::ScalarFunction(_)
            | Expr::InList(_)
    )
}

fn carry_over(held: &mut Held, from: usize, to: usize) {
    if let Some(expr) = held.get(&from).cloned() {
        held.entry(to).or_insert(expr);
    }
}

fn as_column(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        _ => None,
    }
}

/// The pairs of columns that a condition says are equal.
fn equal_columns<'a>(conditions: impl Iterator<Item = &'a Expr>) -> impl Iterator<Item = (&'a Column, &'a Column)> {
    let mut pairs = Vec::new();
    let mut open: Vec<&Expr> = conditions.collect();
    while let Some(condition) = open.pop() {
        let Expr::BinaryExpr(binary) = condition else { continue };
        match binary.op {
            Operator::And => open.extend([binary.left.as_ref(), binary.right.as_ref()]),
            Operator::Eq | Operator::IsNotDistinctFrom => {
                pairs.extend(as_column(&binary.left).zip(as_column(&binary.right)));
            }
            _ => {}
        }
    }
    pairs.into_iter()
}

fn partition_of(expr: &Expr) -> Option<&Vec<Expr>> {
    match expr {
        Expr::Alias(alias) => partition_of(&alias.expr),
        Expr::WindowFunction(window) => Some(&window.params.partition_by),
        _ => None,
    }
}

/// Types of which equal values are the same value, and that a table stores as they are. Zeros and NaNs are not the
/// first; times finer than microseconds are not the second.
pub(super) fn is_exact(data_type: &DataType) -> bool {
    match data_type {
        DataType::Timestamp(unit, _) | DataType::Time64(unit) => *unit != TimeUnit::Nanosecond,
        DataType::Boolean
        | DataType::Utf8
        | DataType::Binary
        | DataType::FixedSizeBinary(_)
        | DataType::Date32
        | DataType::Time32(_)
        | DataType::Decimal128(..) => true,
        other => other.is_integer(),
    }
}

/// Whether what compares equal is equal, and one can stand for the other.
fn are_alike(left: &DataType, right: &DataType) -> bool {
    is_exact(left) && (left == right || (left.is_integer() && right.is_integer()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::RecordBatch;
    use arrow::datatypes::{Field, Schema};

    use super::*;
    use crate::engine::{Engine, EngineOptions};

    /// What a row of each scanned table tells of the answer's columns.
    async fn told(sql: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions { memory_bytes: 64 << 20, threads: 1, spill_dir: folder.path().to_path_buf() };
        let session = Engine::new(&options).unwrap().session();
        for (name, columns) in [
            ("a", [("id", DataType::Int32), ("x", DataType::Utf8), ("ratio", DataType::Float64)]),
            ("b", [("id", DataType::Int64), ("y", DataType::Utf8), ("at", DataType::Date32)]),
        ] {
            let fields = columns.map(|(name, data_type)| Field::new(name, data_type, true));
            let empty = RecordBatch::new_empty(Arc::new(Schema::new(fields.to_vec())));
            session.register_batch(name, empty).unwrap();
        }
        let frame = session.sql(sql).await.unwrap();
        let reach = Reach::of(frame.logical_plan()).unwrap();
        let name = |index: &usize| frame.schema().field(*index).name().clone();
        let scans = reach.scans.iter().map(|scan| {
            let columns: Vec<String> = scan.reaches.iter().map(|(at, expr)| format!("{}={expr}", name(at))).collect();
            format!("{}({})", scan.table, columns.join(" "))
        });
        let within = reach.in_subqueries.iter().map(|table| format!("{table}?"));
        let unsettled = reach.unsettled.iter().map(|name| format!("{name}!"));
        scans.chain(within).chain(unsettled).collect::<Vec<_>>().join(", ")
    }

    #[tokio::test]
    async fn what_is_held_is_carried_through_every_step_and_no_further_than_is_proven() {
        for (sql, expected) in [
            ("SELECT x, count(*) AS n FROM a GROUP BY x", "a(x=a.x)"),
            ("SELECT upper(x) AS u, id + 1 AS i FROM a", "a(u=upper(a.x) i=a.id + Int64(1))"),
            // Equal numbers with a point are not one value.
            ("SELECT ratio, count(*) AS n FROM a GROUP BY ratio", "a()"),
            ("SELECT 'all' AS g, count(*) AS n FROM a", "a()"),
            ("SELECT x, id FROM a ORDER BY id", "a(x=a.x id=a.id)"),
            ("SELECT x, id FROM a ORDER BY id LIMIT 3", "a()"),
            ("SELECT DISTINCT x FROM a", "a(x=a.x)"),
            ("SELECT DISTINCT ON (x) x, id FROM a ORDER BY x, id", "a()"),
            ("SELECT x, id, count(*) AS n FROM a GROUP BY ROLLUP (x, id)", "a()"),
            ("SELECT x, rank() OVER (PARTITION BY x ORDER BY id) AS r, id FROM a", "a(x=a.x)"),
            ("SELECT x, rank() OVER (ORDER BY id) AS r FROM a", "a()"),
            ("SELECT a.id, x, y FROM a JOIN b ON a.id = b.id", "a(id=a.id x=a.x), b(id=b.id y=b.y)"),
            ("SELECT a.id, y FROM a, b WHERE a.id = b.id", "a(id=a.id), b(id=b.id y=b.y)"),
            ("SELECT a.id, y FROM a JOIN b ON a.id < b.id", "a(id=a.id), b(y=b.y)"),
            ("SELECT a.id, b.id AS bid, y FROM a LEFT JOIN b ON a.id = b.id", "a(id=a.id), b(id=b.id)"),
            ("SELECT a.id, b.id AS bid, x FROM a RIGHT JOIN b ON a.id = b.id", "a(bid=a.id), b(bid=b.id)"),
            ("SELECT a.id, b.id AS bid FROM a FULL JOIN b ON a.id = b.id", "a(), b()"),
            ("SELECT x FROM a LEFT JOIN b ON x = y", "a(x=a.x), b(x=b.y)"),
            ("SELECT x FROM a LEFT SEMI JOIN b ON x = y", "a(x=a.x), b(x=b.y)"),
            ("SELECT x FROM a LEFT ANTI JOIN b ON x = y", "a(x=a.x), b(x=b.y)"),
            ("SELECT x FROM a UNION ALL SELECT y FROM b", "a(x=a.x), b(x=b.y)"),
            ("SELECT id FROM a UNION ALL SELECT id FROM b", "a(), b()"),
            ("SELECT x FROM a EXCEPT SELECT y FROM b", "a(x=a.x), b(x=b.y)"),
            ("SELECT x FROM a WHERE id IN (SELECT id FROM b)", "a(x=a.x), b?"),
            ("SELECT x, (SELECT max(y) FROM b) AS m FROM a", "a(x=a.x), b?"),
            ("SELECT x, now() AS at FROM a", "a(x=a.x), now!"),
            ("SELECT x, random() AS r FROM a", "a(x=a.x), random!"),
            ("WITH c AS (SELECT x AS z FROM a) SELECT l.z FROM c l JOIN c r ON l.z = r.z", "a(z=a.x), a(z=a.x)"),
            ("SELECT unnest(make_array(x)) AS e, x FROM a", "a()"),
        ] {
            assert_eq!(told(sql).await, expected, "{sql}");
        }
    }
}
