//! The SQL of a fold: from a table of events to the latest row of each key.

use std::fmt::Write;

use datafusion::sql::sqlparser::ast::{Expr, GroupByExpr, Ident, SelectItem, SetExpr, Statement, TableFactor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

/// A key's events in stream order, newest first.
const NEWEST_FIRST: &str = "_epoch DESC NULLS LAST, _position DESC NULLS LAST, _offset DESC";

/// Columns every silver row carries besides the model's own.
const SYSTEM_COLUMNS: [&str; 2] = ["_position", "_source_ts"];
const DELETED_COLUMN: &str = "_is_deleted";

/// Everything before it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Truncation {
    pub(super) epoch: i64,
    pub(super) position: String,
}

pub(super) struct Fold<'a> {
    pub(super) columns: Vec<&'a str>,
    pub(super) keys: Vec<&'a str>,
    /// Columns that some event holds a placeholder for: their last sent value counts.
    pub(super) unavailable: &'a [String],
    pub(super) marks_deletes: bool,
    /// Whether to fold only the keys in `touched`.
    pub(super) only_touched: bool,
    pub(super) truncation: Option<&'a Truncation>,
}

impl Fold<'_> {
    /// The latest row of each key out of `bronze.history`.
    pub(super) fn sql(&self) -> String {
        let keys = list(&self.keys, quote);
        let mut sql = format!(
            "WITH events AS (\n  SELECT {}, _op, _epoch, _position, _offset, _source_ts, _unavailable, after\n  \
             FROM bronze.history WHERE _error IS NULL AND _op IN ('c', 'u', 'r', 'd'){}\n)",
            key_list(&self.keys),
            self.after_truncation(),
        );
        let touched = match self.only_touched {
            true => format!(" LEFT SEMI JOIN touched ON {}", equal(&self.keys, "events", "touched")),
            false => String::new(),
        };
        let _ = write!(
            sql,
            ",\nranked AS (\n  SELECT events.*, row_number() OVER (PARTITION BY {keys} ORDER BY {NEWEST_FIRST}) AS _rank\n  \
             FROM events{touched}\n),\nlast AS (SELECT * FROM ranked WHERE _rank = 1)"
        );
        // A row that is only marked as deleted shows what its last event before the delete said.
        if self.marks_deletes {
            let _ = write!(
                sql,
                ",\nimage AS (\n  SELECT * FROM (SELECT {keys}, after, row_number() OVER (PARTITION BY {keys} ORDER BY \
                 {NEWEST_FIRST}) AS _image_rank FROM ranked WHERE _op <> 'd') AS images WHERE _image_rank = 1\n)"
            );
        }
        let kept: Vec<&String> = self.unavailable.iter().filter(|name| self.columns.contains(&name.as_str())).collect();
        for (index, name) in kept.iter().enumerate() {
            let _ = write!(
                sql,
                ",\nkept_{index} AS (\n  SELECT * FROM (SELECT {keys}, after[{text}] AS _kept, row_number() OVER \
                 (PARTITION BY {keys} ORDER BY {NEWEST_FIRST}) AS _kept_rank FROM ranked WHERE _op <> 'd' AND \
                 (_unavailable IS NULL OR NOT array_has(_unavailable, {text}))) AS sent WHERE _kept_rank = 1\n)",
                text = literal(name),
            );
        }
        let image = if self.marks_deletes { "image" } else { "last" };
        let selected = list(&self.columns, |column| {
            if self.keys.contains(&column) {
                return format!("last.{name} AS {name}", name = quote(column));
            }
            let from = match kept.iter().position(|name| *name == column) {
                // When nothing newer was sent, what the last event says (a null) is as good as any.
                Some(index) => format!("kept_{index}._kept"),
                None => format!("{image}.after[{}]", literal(column)),
            };
            format!("{from} AS {}", quote(column))
        });
        let _ = write!(sql, "\nSELECT {selected}, {}", list(&SYSTEM_COLUMNS, |column| format!("last.{column}")));
        if self.marks_deletes {
            let _ = write!(sql, ", last._op = 'd' AS {DELETED_COLUMN}");
        }
        sql.push_str("\nFROM last");
        if self.marks_deletes {
            let _ = write!(sql, "\nJOIN image ON {}", equal(&self.keys, "last", "image"));
        }
        for index in 0..kept.len() {
            let alias = format!("kept_{index}");
            let _ = write!(sql, "\nLEFT JOIN {alias} ON {}", equal(&self.keys, "last", &alias));
        }
        if !self.marks_deletes {
            sql.push_str("\nWHERE last._op <> 'd'");
        }
        sql
    }

    fn after_truncation(&self) -> String {
        match self.truncation {
            None => String::new(),
            Some(Truncation { epoch, position }) => format!(
                " AND (coalesce(_epoch, 0) > {epoch} OR (coalesce(_epoch, 0) = {epoch} AND _position > {}))",
                literal(position)
            ),
        }
    }
}

/// The keys that the new changes are about.
pub(super) fn touched_sql(keys: &[&str]) -> String {
    format!(
        "SELECT DISTINCT {} FROM bronze.new_changes WHERE _error IS NULL AND _op IN ('c', 'u', 'r', 'd')",
        key_list(keys)
    )
}

/// Where the rows of the touched keys are now.
pub(super) fn doomed_sql(keys: &[&str]) -> String {
    format!(
        "SELECT _file, _pos FROM silver.\"target$rows\" AS target LEFT SEMI JOIN touched ON {}",
        equal(keys, "target", "touched")
    )
}

/// One row when a new change lacks a key: how many do, and where the first is.
pub(super) fn null_keys_sql(keys: &[&str]) -> String {
    let missing: Vec<String> = keys.iter().map(|key| format!("{} IS NULL", key_value(key))).collect();
    format!(
        "SELECT count(*) AS count, first_value(_topic ORDER BY _topic, _partition, _offset) AS topic, \
         first_value(_partition ORDER BY _topic, _partition, _offset) AS partition, \
         first_value(_offset ORDER BY _topic, _partition, _offset) AS first_offset \
         FROM bronze.new_changes WHERE _error IS NULL AND _op IN ('c', 'u', 'r', 'd') AND ({}) HAVING count(*) > 0",
        missing.join(" OR ")
    )
}

/// Adds the columns every silver row carries to a model's SELECT.
pub(super) fn with_system_columns(sql: &str, marks_deletes: bool) -> Result<String, String> {
    let mut statements = Parser::parse_sql(&GenericDialect {}, sql).map_err(|error| error.to_string())?;
    let (Some(Statement::Query(mut query)), true) = (statements.pop(), statements.is_empty()) else {
        return Err("write one SELECT over `changes`".to_string());
    };
    if query.with.is_some() || query.order_by.is_some() || query.limit_clause.is_some() || query.fetch.is_some() {
        return Err("a silver model is a plain SELECT: WITH, ORDER BY and LIMIT have no meaning in it".to_string());
    }
    let SetExpr::Select(select) = query.body.as_mut() else {
        return Err("a silver model is a plain SELECT: UNION and VALUES have no meaning in it".to_string());
    };
    let groups = match &select.group_by {
        GroupByExpr::All(_) => true,
        GroupByExpr::Expressions(expressions, _) => !expressions.is_empty(),
    };
    if groups || select.distinct.is_some() || select.having.is_some() {
        return Err("a silver model has one row for each key: GROUP BY, HAVING and DISTINCT belong in gold".to_string());
    }
    let from_changes = match select.from.as_slice() {
        [only] if only.joins.is_empty() => {
            matches!(&only.relation, TableFactor::Table { name, .. } if name.to_string() == "changes")
        }
        _ => false,
    };
    if !from_changes {
        return Err("a silver model selects FROM changes, and from nothing else".to_string());
    }
    let has_all = select
        .projection
        .iter()
        .any(|item| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)));
    if !has_all {
        let deleted = marks_deletes.then_some(DELETED_COLUMN);
        for column in SYSTEM_COLUMNS.into_iter().chain(deleted) {
            let is_there = select.projection.iter().any(|item| match item {
                SelectItem::UnnamedExpr(Expr::Identifier(name)) => name.value == column,
                SelectItem::ExprWithAlias { alias, .. } => alias.value == column,
                _ => false,
            });
            if !is_there {
                select.projection.push(SelectItem::UnnamedExpr(Expr::Identifier(Ident::with_quote('"', column))));
            }
        }
    }
    Ok(query.to_string())
}

fn key_value(key: &str) -> String {
    format!("coalesce(after[{text}], before[{text}])", text = literal(key))
}

fn key_list(keys: &[&str]) -> String {
    list(keys, |key| format!("{} AS {}", key_value(key), quote(key)))
}

fn equal(keys: &[&str], left: &str, right: &str) -> String {
    let pairs: Vec<String> =
        keys.iter().map(|key| format!("{left}.{name} = {right}.{name}", name = quote(key))).collect();
    pairs.join(" AND ")
}

fn list(names: &[&str], show: impl Fn(&str) -> String) -> String {
    names.iter().map(|name| show(name)).collect::<Vec<_>>().join(", ")
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_gets_the_system_columns() {
        let check = |sql: &str, marks: bool| with_system_columns(sql, marks).unwrap_or_else(|problem| problem);
        insta::assert_snapshot!(
            check("SELECT id, lower(status) AS status FROM changes", false),
            @r#"SELECT id, lower(status) AS status, "_position", "_source_ts" FROM changes"#
        );
        insta::assert_snapshot!(
            check("SELECT id, _position FROM changes WHERE id > 5", true),
            @r#"SELECT id, _position, "_source_ts", "_is_deleted" FROM changes WHERE id > 5"#
        );
        insta::assert_snapshot!(check("SELECT * FROM changes", true), @"SELECT * FROM changes");
    }

    #[test]
    fn a_model_that_is_no_plain_select_is_refused() {
        let refused = [
            "SELECT id FROM changes; SELECT 1",
            "SELECT id FROM orders",
            "SELECT id FROM changes JOIN x USING (id)",
            "SELECT count(*) FROM changes GROUP BY id",
            "SELECT id FROM changes ORDER BY id",
            "SELECT id FROM changes UNION SELECT 1",
            "DELETE FROM changes",
        ];
        let problems: Vec<String> = refused.iter().map(|sql| with_system_columns(sql, false).unwrap_err()).collect();
        insta::assert_snapshot!(problems.join("\n"), @r"
        write one SELECT over `changes`
        a silver model selects FROM changes, and from nothing else
        a silver model selects FROM changes, and from nothing else
        a silver model has one row for each key: GROUP BY, HAVING and DISTINCT belong in gold
        a silver model is a plain SELECT: WITH, ORDER BY and LIMIT have no meaning in it
        a silver model is a plain SELECT: UNION and VALUES have no meaning in it
        write one SELECT over `changes`
        ");
    }
}
