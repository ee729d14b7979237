//! Which columns of a query's answer follow from what it reads, and which depend on more: on a function such as `now()`,
//! or on a table that is not as it was.

use std::collections::BTreeSet;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};

/// What a column is made of.
#[derive(Debug, Default)]
struct Origin {
    tables: BTreeSet<String>,
    function: Option<String>,
}

/// The name of the first function, anywhere in a plan, that may answer otherwise next time.
pub(super) fn unsettled(plan: &LogicalPlan) -> Option<String> {
    let mut found = None;
    // Looking fails nowhere.
    let _ = plan.apply_with_subqueries(|node| {
        for expr in node.expressions() {
            found = found.take().or_else(|| function_of(&expr));
        }
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    found
}

fn function_of(expr: &Expr) -> Option<String> {
    let mut found = None;
    let _ = expr.apply(|part| {
        if let Expr::ScalarFunction(call) = part
            && call.func.signature().volatility != Volatility::Immutable
        {
            found = Some(format!("{}()", call.func.name()));
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

/// The columns of a silver model's answer that do not follow from the changes alone, when the tables it looks rows up in
/// are left aside; and a reason why it is not known which rows there are, if that is so.
pub(super) fn open_columns(plan: &LogicalPlan) -> (BTreeSet<String>, Option<String>) {
    let changes = name_of_changes(plan);
    let is_open = |origin: &Origin| origin.function.is_some() || origin.tables.iter().any(|table| *table != changes);
    let open = (0..plan.schema().fields().len()).filter(|at| is_open(&origin(plan, *at)));
    let open = open.map(|at| plan.schema().field(at).name().clone()).collect();
    (open, open_filter(plan, &changes))
}

fn open_filter(plan: &LogicalPlan, changes: &str) -> Option<String> {
    let mut found = None;
    let _ = plan.apply(|node| {
        if let LogicalPlan::Filter(filter) = node {
            let tables = filter.predicate.column_refs().into_iter().filter_map(|column| column.relation.as_ref());
            let other = tables.map(|table| table.table()).find(|table| *table != changes);
            found = found.take().or_else(|| other.map(|table| format!("`{table}`"))).or(function_of(&filter.predicate));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found.map(|what| format!("which rows there are depends on {what}"))
}

/// What the query calls the changes.
fn name_of_changes(plan: &LogicalPlan) -> String {
    let mut name = "changes".to_string();
    let _ = plan.apply(|node| {
        if let LogicalPlan::SubqueryAlias(alias) = node
            && matches!(alias.input.as_ref(), LogicalPlan::TableScan(scan) if scan.table_name.table() == "changes")
        {
            name = alias.alias.table().to_string();
        }
        Ok(TreeNodeRecursion::Continue)
    });
    name
}

fn origin(plan: &LogicalPlan, at: usize) -> Origin {
    match plan {
        LogicalPlan::Projection(projection) => {
            let mut whole = Origin { function: function_of(&projection.expr[at]), ..Origin::default() };
            for column in projection.expr[at].column_refs() {
                let of_column = match projection.input.schema().index_of_column(column) {
                    Ok(index) => origin(&projection.input, index),
                    Err(_) => Origin { tables: BTreeSet::from([column.to_string()]), function: None },
                };
                whole.tables.extend(of_column.tables);
                whole.function = whole.function.or(of_column.function);
            }
            whole
        }
        LogicalPlan::Filter(filter) => origin(&filter.input, at),
        _ => {
            let (table, field) = plan.schema().qualified_field(at);
            let table = table.map_or_else(|| field.name().clone(), |table| table.table().to_string());
            Origin { tables: BTreeSet::from([table]), function: None }
        }
    }
}
