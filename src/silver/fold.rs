//! The SQL of a fold: from a table of events to the latest row of each key.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, GroupByExpr, Ident, Query, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, Statement,
    WildcardAdditionalOptions, visit_expressions,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::gate::ORIGIN;
use super::lookup::{Sources, folded};
use super::order::Truncation;
use crate::layout;
use crate::quality::{literal, quote};

/// A key's events in stream order, newest first.
const NEWEST_FIRST: &str = "_epoch DESC NULLS LAST, _position DESC NULLS LAST, _offset DESC, _topic DESC, \
                            _topic_partition DESC";

/// Events of rows, which have keys.
const IS_CHANGE: &str = "_error IS NULL AND _op IN ('c', 'u', 'r', 'd')";

/// The key of the first message that has one; one row as soon as there is any change.
pub(super) const FIRST_KEY: &str = "SELECT _key FROM bronze.history WHERE _error IS NULL AND _op IN ('c', 'u', 'r', 'd') \
                                    ORDER BY _key IS NULL, _topic_partition, _offset LIMIT 1";

/// The columns that events hold placeholders for. What is missing of a row before the change is no row's value.
pub(super) const UNAVAILABLE: &str = "SELECT DISTINCT name FROM (SELECT unnest(_unavailable) AS name FROM bronze.history \
                                      WHERE _unavailable IS NOT NULL) AS names WHERE NOT starts_with(name, 'before.') \
                                      ORDER BY name";

/// Columns every silver row carries besides the model's own.
const SYSTEM_COLUMNS: [&str; 2] = ["_position", "_source_ts"];
const DELETED_COLUMN: &str = "_is_deleted";

pub(super) struct Fold<'a> {
    pub(super) columns: Vec<&'a str>,
    pub(super) keys: Vec<&'a str>,
    /// Columns that some event holds a placeholder for: their last sent value counts.
    pub(super) unavailable: &'a [String],
    /// Columns in which a null says nothing while the row is there.
    pub(super) ignores: &'a [String],
    pub(super) marks_deletes: bool,
    pub(super) truncation: Option<&'a Truncation>,
    /// Whether a row says where the event that made it stands.
    pub(super) with_origin: bool,
}

impl Fold<'_> {
    /// The latest row of each key in `touched`, out of `bronze.history`.
    pub(super) fn sql(&self) -> String {
        let keys = list(&self.keys, quote);
        let order = "_epoch, _position, _offset, _topic, _topic_partition, _source_ts, _unavailable, after";
        let truncation = self.after_truncation();
        let mut sql = format!(
            "WITH events AS (\n  SELECT {}, _op, {order}\n  FROM bronze.history WHERE {IS_CHANGE}{truncation}\n  \
             UNION ALL\n  SELECT {}, 'd' AS _op, {order}\n  FROM bronze.history WHERE {}{truncation}\n)",
            key_list(&self.keys),
            left_key_list(&self.keys),
            leaves_key(&self.keys),
        );
        let op_before = match self.ignores.is_empty() {
            true => String::new(),
            false => format!(", lead(_op) OVER (PARTITION BY {keys} ORDER BY {NEWEST_FIRST}) AS _op_before"),
        };
        let touched = format!(" LEFT SEMI JOIN touched ON {}", equal(&self.keys, "events", "touched"));
        let _ = write!(
            sql,
            ",\nranked AS (\n  SELECT events.*, row_number() OVER (PARTITION BY {keys} ORDER BY {NEWEST_FIRST}) AS \
             _rank{op_before}\n  FROM events{touched}\n),\nlast AS (SELECT * FROM ranked WHERE _rank = 1)"
        );
        // A row that is only marked as deleted shows what its last event before the delete said.
        if self.marks_deletes {
            let _ = write!(
                sql,
                ",\nimage AS (\n  SELECT * FROM (SELECT {keys}, after, row_number() OVER (PARTITION BY {keys} ORDER BY \
                 {NEWEST_FIRST}) AS _image_rank FROM ranked WHERE _op <> 'd') AS images WHERE _image_rank = 1\n)"
            );
        }
        let is_kept = |name: &str| [self.unavailable, self.ignores].into_iter().flatten().any(|kept| kept == name);
        let kept: Vec<&str> = self.columns.iter().copied().filter(|name| is_kept(name)).collect();
        for (index, name) in kept.iter().enumerate() {
            // A row that begins has nothing to keep: its null is one.
            let says = match self.ignores.iter().any(|ignored| ignored == name) {
                true => format!(" AND (after[{}] IS NOT NULL OR coalesce(_op_before, 'd') = 'd')", literal(name)),
                false => String::new(),
            };
            let _ = write!(
                sql,
                ",\nkept_{index} AS (\n  SELECT * FROM (SELECT {keys}, after[{text}] AS _kept, row_number() OVER \
                 (PARTITION BY {keys} ORDER BY {NEWEST_FIRST}) AS _kept_rank FROM ranked WHERE _op <> 'd' AND \
                 (_unavailable IS NULL OR NOT array_has(_unavailable, {text})){says}) AS sent WHERE _kept_rank = 1\n)",
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
        if self.with_origin {
            let parts = [layout::TOPIC, layout::PARTITION, layout::OFFSET];
            let parts: Vec<String> = parts.iter().map(|part| format!("'{part}', last.{part}")).collect();
            let _ = write!(sql, ", named_struct({}) AS {ORIGIN}", parts.join(", "));
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

/// Why a SELECT cannot be a silver model.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    Shape(String),
    /// It does not select this key as it is.
    Key(String),
}

/// Adds the columns every silver row carries to a model's SELECT, and hidden ones that go along until rows are written.
pub(super) fn with_system_columns(
    sql: &str,
    keys: &[String],
    marks_deletes: bool,
    hidden: &[&str],
) -> Result<String, Unfit> {
    let (mut query, sources) = plain_select(sql).map_err(Unfit::Shape)?;
    let SetExpr::Select(select) = query.body.as_mut() else {
        return Err(Unfit::Shape("a silver model is a plain SELECT".to_string()));
    };
    let wildcard = |item: &SelectItem| match item {
        SelectItem::Wildcard(_) => Some(sources.lookups.is_empty()),
        SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
            Some(name.to_string().to_lowercase() == sources.changes)
        }
        SelectItem::QualifiedWildcard(..) => Some(false),
        _ => None,
    };
    let wildcards: Vec<bool> = select.projection.iter().filter_map(wildcard).collect();
    if wildcards.contains(&false) {
        // A lookup has the columns that every silver row carries, too.
        let problem = format!("with lookups, name their columns; `{}.*` is all of the changes", sources.changes);
        return Err(Unfit::Shape(problem));
    }
    if !wildcards.is_empty() {
        return Ok(query.to_string());
    }
    // A key that is computed would not be found again by the key of the next change.
    let column_name = |expr: &Expr| column_name(expr, &sources);
    let is_key = |item: &SelectItem, key: &str| match item {
        SelectItem::UnnamedExpr(of) => column_name(of).as_deref() == Some(key),
        SelectItem::ExprWithAlias { expr, alias } => alias.value == key && column_name(expr).as_deref() == Some(key),
        _ => false,
    };
    if let Some(key) = keys.iter().find(|key| !select.projection.iter().any(|item| is_key(item, key))) {
        return Err(Unfit::Key(key.clone()));
    }
    let deleted = marks_deletes.then_some(DELETED_COLUMN);
    for column in SYSTEM_COLUMNS.into_iter().chain(deleted).chain(hidden.iter().copied()) {
        let is_there = select.projection.iter().any(|item| match item {
            SelectItem::UnnamedExpr(of) => column_name(of).as_deref() == Some(column),
            SelectItem::ExprWithAlias { alias, .. } => alias.value == column,
            _ => false,
        });
        if !is_there {
            let name = Ident::with_quote('"', column);
            select.projection.push(SelectItem::UnnamedExpr(match sources.lookups.is_empty() {
                true => Expr::Identifier(name),
                false => Expr::CompoundIdentifier(vec![Ident::with_quote('"', sources.changes.as_str()), name]),
            }));
        }
    }
    Ok(query.to_string())
}

/// What a model does with the columns of the changes, as far as its SELECT shows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Columns that it gives as they are, and what it calls them.
    given: Vec<(String, String)>,
    gives_all: bool,
    /// What its columns are called, where it says so.
    names: BTreeSet<String>,
    /// Names that may be those of columns it reads.
    read: BTreeSet<String>,
    reads_all: bool,
    /// Whether a change may have no row.
    pub(super) filters: bool,
}

impl Usage {
    pub(super) fn of_everything() -> Self {
        Usage { gives_all: true, reads_all: true, ..Usage::default() }
    }

    /// What it calls a column that it gives as it is.
    pub(super) fn given_as(&self, column: &str) -> Option<String> {
        let given = self.given.iter().find(|(of, _)| of == column).map(|(_, name)| name.clone());
        given.or_else(|| self.gives_all.then(|| column.to_string()))
    }

    /// Whether one of its columns has this name.
    pub(super) fn gives(&self, name: &str) -> bool {
        self.reads_all || self.names.contains(name)
    }

    /// Whether it may read a column. Rather one too many than one too few.
    pub(super) fn reads(&self, column: &str) -> bool {
        self.reads_all || self.read.contains(column)
    }
}

pub(super) fn usage(sql: &str) -> Result<Usage, String> {
    let (query, sources) = plain_select(sql)?;
    let mut usage = Usage::default();
    let SetExpr::Select(select) = query.body.as_ref() else { return Ok(usage) };
    for item in &select.projection {
        match item {
            SelectItem::Wildcard(options) | SelectItem::QualifiedWildcard(_, options) => {
                usage.reads_all = true;
                usage.gives_all |= *options == WildcardAdditionalOptions::default();
            }
            SelectItem::UnnamedExpr(expr) => {
                if let Some(name) = folded_column(expr, &sources) {
                    usage.names.insert(name.clone());
                    usage.given.push((name.clone(), name));
                }
            }
            SelectItem::ExprWithAlias { expr, alias } => {
                usage.names.insert(folded(alias));
                if let Some(name) = folded_column(expr, &sources) {
                    usage.given.push((name, folded(alias)));
                }
            }
        }
    }
    let _ = visit_expressions(&query, |expr| {
        let parts = match expr {
            Expr::Identifier(name) => std::slice::from_ref(name),
            Expr::CompoundIdentifier(parts) => parts,
            _ => &[],
        };
        usage.read.extend(parts.iter().flat_map(|part| [folded(part), part.value.clone()]));
        ControlFlow::<()>::Continue(())
    });
    usage.filters = select.selection.is_some() || select.qualify.is_some() || select.top.is_some();
    Ok(usage)
}

/// The column of the changes that an expression is, by the name that SQL knows it by.
fn folded_column(expr: &Expr, sources: &Sources) -> Option<String> {
    match expr {
        Expr::Identifier(name) => Some(folded(name)),
        Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [relation, name] if folded(relation) == sources.changes => Some(folded(name)),
            _ => None,
        },
        _ => None,
    }
}

/// What a model reads.
pub(super) fn sources(sql: &str) -> Result<Sources, String> {
    plain_select(sql).map(|(_, sources)| sources)
}

/// The column of the changes that an expression is, when it is nothing more.
fn column_name(expr: &Expr, sources: &Sources) -> Option<String> {
    match expr {
        Expr::Identifier(name) => Some(name.value.clone()),
        Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [relation, name] if folded(relation) == sources.changes => Some(name.value.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// The query of a model, if it is one SELECT over `changes` that gives a row for a row.
fn plain_select(sql: &str) -> Result<(Box<Query>, Sources), String> {
    let mut statements = Parser::parse_sql(&GenericDialect {}, sql).map_err(|error| error.to_string())?;
    let (Some(Statement::Query(query)), true) = (statements.pop(), statements.is_empty()) else {
        return Err("write one SELECT over `changes`".to_string());
    };
    if query.with.is_some() || query.order_by.is_some() || query.limit_clause.is_some() || query.fetch.is_some() {
        return Err("a silver model is a plain SELECT: WITH, ORDER BY and LIMIT have no meaning in it".to_string());
    }
    let SetExpr::Select(select) = query.body.as_ref() else {
        return Err("a silver model is a plain SELECT: UNION and VALUES have no meaning in it".to_string());
    };
    let groups = match &select.group_by {
        GroupByExpr::All(_) => true,
        GroupByExpr::Expressions(expressions, _) => !expressions.is_empty(),
    };
    if groups || select.distinct.is_some() || select.having.is_some() {
        return Err("a silver model has one row for each key: GROUP BY, HAVING and DISTINCT belong in gold".to_string());
    }
    let sources = Sources::of(select)?;
    Ok((query, sources))
}

fn key_value(key: &str) -> String {
    format!("coalesce(after[{text}], before[{text}])", text = literal(key))
}

/// Updates that take a row from one key to another: for the key they leave, they are deletes. A source that captures by
/// primary key sends a delete and a create instead; this is for models keyed by other columns.
fn leaves_key(keys: &[&str]) -> String {
    let before = |key: &str| format!("before[{}]", literal(key));
    let known: Vec<String> = keys.iter().map(|key| format!("{} IS NOT NULL", before(key))).collect();
    let differs: Vec<String> =
        keys.iter().map(|key| format!("{} IS DISTINCT FROM {}", before(key), key_value(key))).collect();
    format!("_error IS NULL AND _op = 'u' AND {} AND ({})", known.join(" AND "), differs.join(" OR "))
}

fn left_key_list(keys: &[&str]) -> String {
    list(keys, |key| format!("before[{}] AS {}", literal(key), quote(key)))
}

fn key_list(keys: &[&str]) -> String {
    list(keys, |key| format!("{} AS {}", key_value(key), quote(key)))
}

pub(super) fn equal(keys: &[&str], left: &str, right: &str) -> String {
    let pairs: Vec<String> =
        keys.iter().map(|key| format!("{left}.{name} = {right}.{name}", name = quote(key))).collect();
    pairs.join(" AND ")
}

pub(super) fn list(names: &[&str], show: impl Fn(&str) -> String) -> String {
    names.iter().map(|name| show(name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_gets_the_system_columns() {
        let keys = ["id".to_string()];
        let check = |sql: &str, marks: bool| match with_system_columns(sql, &keys, marks, &[]) {
            Ok(sql) => sql,
            Err(unfit) => format!("{unfit:?}"),
        };
        insta::assert_snapshot!(
            check("SELECT id, lower(status) AS status FROM changes", false),
            @r#"SELECT id, lower(status) AS status, "_position", "_source_ts" FROM changes"#
        );
        insta::assert_snapshot!(
            check("SELECT id, _position FROM changes WHERE id > 5", true),
            @r#"SELECT id, _position, "_source_ts", "_is_deleted" FROM changes WHERE id > 5"#
        );
        insta::assert_snapshot!(check("SELECT * FROM changes", true), @"SELECT * FROM changes");
        insta::assert_snapshot!(check("SELECT lower(id) AS id FROM changes", false), @r#"Key("id")"#);
        insta::assert_snapshot!(check("SELECT other AS id FROM changes", false), @r#"Key("id")"#);
        // A lookup carries the same columns, so it has to be said whose they are.
        let lookup = "LEFT JOIN silver.customers AS cu ON cu.id = c.customer_id";
        insta::assert_snapshot!(
            check(&format!("SELECT c.id, cu.country FROM changes AS c {lookup}"), true),
            @r#"SELECT c.id, cu.country, "c"."_position", "c"."_source_ts", "c"."_is_deleted" FROM changes AS c LEFT JOIN silver.customers AS cu ON cu.id = c.customer_id"#
        );
        insta::assert_snapshot!(
            check(&format!("SELECT c.*, cu.country FROM changes AS c {lookup}"), false),
            @"SELECT c.*, cu.country FROM changes AS c LEFT JOIN silver.customers AS cu ON cu.id = c.customer_id"
        );
        insta::assert_snapshot!(check(&format!("SELECT cu.id FROM changes AS c {lookup}"), false), @r#"Key("id")"#);
        insta::assert_snapshot!(
            check(&format!("SELECT * FROM changes AS c {lookup}"), false),
            @r#"Shape("with lookups, name their columns; `c.*` is all of the changes")"#
        );
        insta::assert_snapshot!(
            check(&format!("SELECT c.id, cu.* FROM changes AS c {lookup}"), false),
            @r#"Shape("with lookups, name their columns; `c.*` is all of the changes")"#
        );
    }

    #[test]
    fn what_a_model_does_with_columns_is_seen() {
        let check = |sql: &str| {
            let usage = usage(sql).unwrap();
            let of = |column: &str| match (usage.reads(column), usage.given_as(column)) {
                (false, _) => "-".to_string(),
                (true, None) => "?".to_string(),
                (true, Some(name)) => name,
            };
            let filters = if usage.filters { " filters" } else { "" };
            format!("{} {} {}{filters}", of("id"), of("note"), of("Odd"))
        };
        let lookup = "LEFT JOIN silver.customers AS cu ON cu.id = c.note";
        let all = [
            check("SELECT * FROM changes"),
            check("SELECT * EXCEPT (note) FROM changes"),
            check("SELECT id, lower(note) AS note FROM changes"),
            check("SELECT ID, note AS Text, \"Odd\" FROM changes WHERE id > 5"),
            check("SELECT id, Odd FROM changes WHERE note <> ''"),
            check(&format!("SELECT c.*, cu.country FROM changes AS c {lookup}")),
            check(&format!("SELECT c.id, cu.note AS country, cu.\"Odd\" FROM changes AS c {lookup}")),
        ];
        insta::assert_snapshot!(all.join("\n"), @r"
        id note Odd
        ? ? ?
        id ? -
        id text Odd filters
        id ? ? filters
        id note Odd
        id ? ?
        ");
    }

    #[test]
    fn a_model_that_is_no_plain_select_is_refused() {
        let refused = [
            "SELECT id FROM changes; SELECT 1",
            "SELECT id FROM orders",
            "SELECT id FROM changes, changes",
            "SELECT count(*) FROM changes GROUP BY id",
            "SELECT id FROM changes ORDER BY id",
            "SELECT id FROM changes UNION SELECT 1",
            "DELETE FROM changes",
        ];
        let problems: Vec<String> = refused.iter().map(|sql| plain_select(sql).unwrap_err()).collect();
        insta::assert_snapshot!(problems.join("\n"), @r"
        write one SELECT over `changes`
        a silver model selects FROM changes, and from nothing else but lookups: `LEFT JOIN silver_table AS name ON …`
        a silver model selects FROM changes, and from nothing else but lookups: `LEFT JOIN silver_table AS name ON …`
        a silver model has one row for each key: GROUP BY, HAVING and DISTINCT belong in gold
        a silver model is a plain SELECT: WITH, ORDER BY and LIMIT have no meaning in it
        a silver model is a plain SELECT: UNION and VALUES have no meaning in it
        write one SELECT over `changes`
        ");
    }
}
