//! A query of ours in Trino's dialect, as far as it has words for it.
//!
//! Types and casts are renamed, and tables are pinned to snapshots. What is written the same may mean something else, so a
//! function counts as known only when both give the same for the same arguments; others are told, not guessed at.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    AccessExpr, CastKind, DataType, Expr, ObjectName, ObjectNamePart, Statement, visit_expressions_mut,
    visit_relations_mut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

use crate::ids::TableName;

/// A query in the other dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translated {
    pub sql: String,
    /// What could not be said, or may mean something else there.
    pub notes: Vec<String>,
}

/// Functions that give the same in both. `concat`, `greatest` and `least` are none: they treat nulls differently.
const SAME: [&str; 59] = [
    "abs",
    "approx_distinct",
    "avg",
    "bool_and",
    "bool_or",
    "ceil",
    "ceiling",
    "coalesce",
    "concat_ws",
    "corr",
    "count",
    "covar_pop",
    "covar_samp",
    "cume_dist",
    "current_date",
    "current_timestamp",
    "date_trunc",
    "dense_rank",
    "exp",
    "extract",
    "first_value",
    "floor",
    "lag",
    "last_value",
    "lead",
    "length",
    "ln",
    "log10",
    "log2",
    "lower",
    "lpad",
    "ltrim",
    "max",
    "min",
    "mod",
    "now",
    "nth_value",
    "ntile",
    "nullif",
    "percent_rank",
    "pi",
    "power",
    "rank",
    "replace",
    "reverse",
    "round",
    "row_number",
    "rpad",
    "rtrim",
    "sign",
    "split_part",
    "sqrt",
    "starts_with",
    "stddev",
    "strpos",
    "substr",
    "sum",
    "trim",
    "upper",
];

/// Separates a table's name from the snapshot it is read at, until the statement is text.
const PIN: &str = "__read_at_";

/// Translates a query that our own parser took; `pins` says at which snapshots tables are read.
pub fn to_trino(sql: &str, pins: &BTreeMap<TableName, i64>) -> Translated {
    let mut notes = BTreeSet::new();
    let parsed = Parser::parse_sql(&GenericDialect {}, sql);
    let Some(mut statement) = parsed.ok().and_then(|mut statements| statements.pop()) else {
        notes.insert("the query is shown as it is written: it could not be taken apart".to_string());
        return Translated { sql: sql.to_string(), notes: notes.into_iter().collect() };
    };
    let _ = visit_expressions_mut(&mut statement, |expression| {
        translate(expression, &mut notes);
        ControlFlow::<()>::Continue(())
    });
    let _ = visit_relations_mut(&mut statement, |name| {
        pin(name, pins);
        ControlFlow::<()>::Continue(())
    });
    Translated { sql: with_pins(&statement), notes: notes.into_iter().collect() }
}

fn translate(expression: &mut Expr, notes: &mut BTreeSet<String>) {
    match expression {
        Expr::Cast { kind, data_type, .. } => {
            match kind {
                CastKind::DoubleColon => *kind = CastKind::Cast,
                CastKind::SafeCast => *kind = CastKind::TryCast,
                CastKind::Cast | CastKind::TryCast => {}
            }
            match data_type {
                DataType::String(_) | DataType::Text => *data_type = DataType::Varchar(None),
                DataType::Float(_) | DataType::Float32 => *data_type = DataType::Real,
                DataType::Float64 | DataType::Float8 => *data_type = DataType::Custom(name_of("double"), Vec::new()),
                DataType::Int64 => *data_type = DataType::BigInt(None),
                DataType::Int32 => *data_type = DataType::Int(None),
                DataType::Bytea | DataType::Binary(_) => *data_type = DataType::Varbinary(None),
                _ => {}
            }
        }
        Expr::Function(function) => {
            let name = function.name.to_string().to_lowercase();
            if !SAME.contains(&name.as_str()) {
                notes.insert(format!("Trino may have no function `{name}` that does the same"));
            }
        }
        Expr::CompoundFieldAccess { access_chain, .. }
            if access_chain.iter().any(|access| matches!(access, AccessExpr::Subscript(_))) =>
        {
            notes.insert(format!("in Trino, a field of a row is written with a dot: `{expression}`"));
        }
        _ => {}
    }
}

fn name_of(name: &str) -> ObjectName {
    ObjectName(vec![ObjectNamePart::Identifier(name.into())])
}

fn pin(name: &mut ObjectName, pins: &BTreeMap<TableName, i64>) {
    let parts: Vec<&str> = name.0.iter().filter_map(|part| Some(part.as_ident()?.value.as_str())).collect();
    let [.., namespace, table] = parts.as_slice() else { return };
    let Ok(table) = TableName::new(*namespace, *table) else { return };
    if let (Some(snapshot), Some(ObjectNamePart::Identifier(last))) = (pins.get(&table), name.0.last_mut()) {
        last.value = format!("{}{PIN}{snapshot}", table.name());
        last.quote_style = None;
    }
}

fn with_pins(statement: &Statement) -> String {
    let text = statement.to_string();
    let mut parts = text.split(PIN);
    let mut whole = parts.next().unwrap_or_default().to_string();
    for part in parts {
        whole.push_str(" FOR VERSION AS OF ");
        whole.push_str(part);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_word_in_trino_gets_it_and_the_rest_is_told() {
        let pins = [("shop_silver.orders".parse().unwrap(), 42)].into();
        let check = |sql: &str| {
            let Translated { sql, notes } = to_trino(sql, &pins);
            notes.into_iter().fold(sql, |text, note| format!("{text}\n-- {note}"))
        };
        insta::assert_snapshot!(
            check("SELECT id, total::string AS t, CAST(x AS double) AS x FROM shop_silver.orders AS o WHERE upper(s) = 'A'"),
            @"SELECT id, CAST(total AS VARCHAR) AS t, CAST(x AS DOUBLE) AS x FROM shop_silver.orders FOR VERSION AS OF 42 AS o WHERE upper(s) = 'A'"
        );
        insta::assert_snapshot!(
            check("SELECT md5(name) AS m, a['b'] AS b FROM shop_silver.orders JOIN shop_gold.x USING (id)"),
            @"
        SELECT md5(name) AS m, a['b'] AS b FROM shop_silver.orders FOR VERSION AS OF 42 JOIN shop_gold.x USING(id)
        -- Trino may have no function `md5` that does the same
        -- in Trino, a field of a row is written with a dot: `a['b']`
        "
        );
        insta::assert_snapshot!(check("SELECT 1 +"), @"
        SELECT 1 +
        -- the query is shown as it is written: it could not be taken apart
        ");
    }
}
