//! From SQL text to rows: what it reads, whether it may run, and its answer.

use std::collections::BTreeSet;

use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::TableReference;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::dataframe::DataFrame;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::{Expr, LogicalPlan, cast};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast;

use super::error::{Error, Result, nearest};
use super::literals::with_exact_literals;
use super::session::{CATALOG, ROWS_SUFFIX};
use crate::ids::TableName;

const INFORMATION_SCHEMA: &str = "information_schema";

/// The tables a query reads, each once, so that only those have to be loaded. Names of common table expressions are not
/// among them, and `ns."orders$rows"` counts as `ns.orders`.
pub fn referenced_tables(sql: &str) -> Result<Vec<TableName>> {
    let mut names = BTreeSet::new();
    for reference in references(&parse(sql)?)? {
        names.insert(table_name(&reference)?);
    }
    Ok(names.into_iter().collect())
}

/// Plans a query over the tables a session knows, without running it.
pub async fn plan(context: &SessionContext, sql: &str) -> Result<DataFrame> {
    let statement = parse(sql)?;
    for reference in references(&statement)? {
        // An unknown namespace is an error there, and no other than an unknown table here.
        if !context.table_exist(reference.clone()).unwrap_or(false) {
            return Err(unknown_table(context, &reference));
        }
    }
    let plan = context.state().statement_to_plan(statement).await?;
    let only_reads = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    if only_reads.verify_plan(&plan).is_err() {
        return Err(Error::NotAQuery { statement: first_word(sql) });
    }
    let plan = with_exact_literals(plan)?;
    with_room_for_sorts(with_plain_types(context.execute_logical_plan(plan).await?)?)
}

/// How many sorts at a time the session's setting leaves room for.
const SORTS: usize = 3;

/// Each sort of a plan sets memory aside before it knows how little it may have to sort. Where there are many, they set less
/// aside, so that it is half of what there is at most.
fn with_room_for_sorts(frame: DataFrame) -> Result<DataFrame> {
    let mut sorts = 0;
    frame.logical_plan().apply_with_subqueries(|plan| {
        sorts += usize::from(matches!(plan, LogicalPlan::Sort(_) | LogicalPlan::Window(_)));
        Ok(TreeNodeRecursion::Continue)
    })?;
    if sorts <= SORTS {
        return Ok(frame);
    }
    let (mut state, plan) = frame.into_parts();
    let execution = &mut state.config_mut().options_mut().execution;
    execution.sort_spill_reservation_bytes = execution.sort_spill_reservation_bytes * SORTS / sorts;
    Ok(DataFrame::new(state, plan))
}

/// Runs a query over the tables a session knows. Errors that come while the rows do are DataFusion's;
/// [`Error::from`] explains them.
pub async fn query(context: &SessionContext, sql: &str) -> Result<SendableRecordBatchStream> {
    Ok(plan(context, sql).await?.execute_stream().await?)
}

fn parse(sql: &str) -> Result<Statement> {
    let mut statements = DFParserBuilder::new(sql).build()?.parse_statements()?;
    let count = statements.len();
    let statement = match (statements.pop_front(), count) {
        (Some(statement), 1) => statement,
        (None, _) => return Err(Error::Empty),
        _ => return Err(Error::SeveralStatements { count }),
    };
    match is_query(&statement) {
        true => Ok(statement),
        false => Err(Error::NotAQuery { statement: first_word(sql) }),
    }
}

fn is_query(statement: &Statement) -> bool {
    match statement {
        Statement::Statement(statement) => matches!(statement.as_ref(), ast::Statement::Query(_)),
        Statement::Explain(explain) => is_query(&explain.statement),
        _ => false,
    }
}

fn first_word(sql: &str) -> String {
    let word = sql.split(|c: char| !c.is_ascii_alphabetic()).find(|word| !word.is_empty());
    word.unwrap_or_default().to_uppercase()
}

fn references(statement: &Statement) -> Result<Vec<TableReference>> {
    let (mut references, _) = resolve_table_references(statement, true)?;
    references.retain(|reference| reference.schema() != Some(INFORMATION_SCHEMA));
    Ok(references)
}

fn table_name(reference: &TableReference) -> Result<TableName> {
    let not_a_name = || Error::NotATableName { name: reference.to_string() };
    if reference.catalog().is_some_and(|catalog| catalog != CATALOG) {
        return Err(not_a_name());
    }
    let namespace = reference.schema().ok_or_else(not_a_name)?;
    let name = reference.table();
    TableName::new(namespace, name.strip_suffix(ROWS_SUFFIX).unwrap_or(name)).map_err(|_| not_a_name())
}

fn unknown_table(context: &SessionContext, reference: &TableReference) -> Error {
    if let Err(error) = table_name(reference) {
        return error;
    }
    let mut known = Vec::new();
    if let Some(catalog) = context.catalog(CATALOG) {
        for namespace in catalog.schema_names() {
            let schema = catalog.schema(&namespace);
            let tables = schema.map(|schema| schema.table_names()).unwrap_or_default();
            known.extend(tables.into_iter().map(|table| format!("{namespace}.{table}")));
        }
    }
    let table = format!("{}.{}", reference.schema().unwrap_or_default(), reference.table());
    let nearest = nearest(&table, known);
    Error::UnknownTable { table, nearest }
}

/// Some functions answer in types that neither Iceberg nor most readers know; the rows leave in plain ones.
fn with_plain_types(frame: DataFrame) -> Result<DataFrame> {
    let schema = frame.schema().clone();
    if schema.fields().iter().all(|field| plain_type(field.data_type()).is_none()) {
        return Ok(frame);
    }
    let columns = schema.iter().map(|(qualifier, field)| {
        let column = Expr::from((qualifier, field));
        match plain_type(field.data_type()) {
            Some(plain) => cast(column, plain).alias_qualified(qualifier.cloned(), field.name()),
            None => column,
        }
    });
    Ok(frame.select(columns.collect::<Vec<_>>())?)
}

fn plain_type(data_type: &DataType) -> Option<DataType> {
    let plain_field = |field: &Field| plain_type(field.data_type()).map(|plain| field.clone().with_data_type(plain));
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => Some(DataType::Utf8),
        DataType::BinaryView | DataType::LargeBinary => Some(DataType::Binary),
        DataType::Dictionary(_, value) => Some(plain_type(value).unwrap_or_else(|| value.as_ref().clone())),
        DataType::List(field) => plain_field(field).map(|field| DataType::List(field.into())),
        DataType::LargeList(field) | DataType::ListView(field) | DataType::LargeListView(field) => {
            Some(DataType::List(plain_field(field).map_or_else(|| field.clone(), Into::into)))
        }
        DataType::Struct(fields) if fields.iter().any(|field| plain_type(field.data_type()).is_some()) => {
            let plain = fields.iter().map(|field| plain_field(field).map_or_else(|| field.clone(), Into::into));
            Some(DataType::Struct(plain.collect::<Fields>()))
        }
        _ => None,
    }
}
