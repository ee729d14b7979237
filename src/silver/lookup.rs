//! Lookups: other silver tables that a model joins, so that its rows say more than their own changes do.
//!
//! - **A lookup gives at most one row for a change**: it is joined by the whole of its key, and by `_is_current` where it
//!   keeps versions. So a model that has lookups still gives a row for a row.
//! - **It is a LEFT JOIN**, because the row that is looked up may come later than the one that looks.
//! - **All models of a run see a lookup at one snapshot**, the one that the run itself has brought it to. A change of the
//!   row that was looked up does not touch rows that have looked; the marker says which snapshots those saw.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Ident, JoinConstraint, JoinOperator, ObjectNamePart, Select, TableFactor, Value,
    visit_expressions,
};
use serde::{Deserialize, Serialize};

use super::versions::IS_CURRENT;
use super::{Error, Marker, Result, Scd, SilverModel, fold};
use crate::ids::TableName;
use crate::table::{At, Lake, Table, TableView};

/// The name of the changes in a model's SELECT, where it gives them no other.
const CHANGES: &str = "changes";

/// What a model's SELECT reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sources {
    /// What the SELECT calls the changes.
    pub(super) changes: String,
    pub(super) lookups: Vec<Lookup>,
}

/// A joined table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lookup {
    pub(super) table: TableName,
    /// What the SELECT calls it.
    name: String,
    on: Expr,
}

impl Sources {
    /// What stands behind FROM, if a silver model can have that.
    pub(super) fn of(select: &Select) -> Result<Sources, String> {
        let from_changes = "a silver model selects FROM changes, and from nothing else but lookups: \
                            `LEFT JOIN silver_table AS name ON …`";
        let [from] = select.from.as_slice() else { return Err(from_changes.to_string()) };
        let changes = match named(&from.relation) {
            Some((parts, alias)) if parts == [CHANGES] => alias.unwrap_or_else(|| CHANGES.to_string()),
            _ => return Err(from_changes.to_string()),
        };
        let mut lookups: Vec<Lookup> = Vec::new();
        for join in &from.joins {
            let Some((parts, alias)) = named(&join.relation) else {
                return Err("a lookup is another silver table, by its name".to_string());
            };
            let table = match parts.as_slice() {
                [namespace, name] => TableName::new(namespace, name).map_err(|error| error.to_string())?,
                _ => return Err(format!("the lookup `{}` is not named in full: `namespace.table`", parts.join("."))),
            };
            let on = match &join.join_operator {
                JoinOperator::Left(JoinConstraint::On(on)) | JoinOperator::LeftOuter(JoinConstraint::On(on)) => {
                    on.clone()
                }
                _ => {
                    return Err(format!(
                        "the lookup `{table}` is no `LEFT JOIN … ON …`: another join would lose rows for good that come \
                         before those they look up"
                    ));
                }
            };
            let name = alias.unwrap_or_else(|| table.name().to_string());
            if name == changes || lookups.iter().any(|other| other.name == name) {
                return Err(format!("two of its tables are called `{name}`; give one another name with AS"));
            }
            lookups.push(Lookup { table, name, on });
        }
        Ok(Sources { changes, lookups })
    }
}

impl Lookup {
    /// Why more than one row of the table may be found for a change; `None` when that cannot be.
    fn doubt(&self, keys: &[String], keeps_versions: bool) -> Option<String> {
        let mut conditions = Vec::new();
        conjuncts(&self.on, &mut conditions);
        let is_bound = |key: &String| conditions.iter().any(|condition| self.is_bound(condition, key));
        if !keys.iter().all(is_bound) {
            let wanted: Vec<String> = keys.iter().map(|key| format!("{}.{key} = …", self.name)).collect();
            return Some(format!(
                "the lookup `{}` has to be joined by its whole key, so that a change finds one row at most: `ON {}`",
                self.table,
                wanted.join(" AND ")
            ));
        }
        let is_current = |condition: &&Expr| self.is_current(condition);
        if keeps_versions && !conditions.iter().any(is_current) {
            return Some(format!(
                "the lookup `{}` keeps versions, and a change has to find one row at most: add `AND {}._is_current`",
                self.table, self.name
            ));
        }
        None
    }

    /// Whether a condition says that the key is something that does not depend on the looked-up row itself.
    fn is_bound(&self, condition: &Expr, key: &str) -> bool {
        let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = condition else { return false };
        let is = |key_side: &Expr, other: &Expr| self.column(key_side).as_deref() == Some(key) && !self.is_in(other);
        is(left, right) || is(right, left)
    }

    fn is_current(&self, condition: &Expr) -> bool {
        let is_flag = |expr: &Expr| self.column(expr).as_deref() == Some(IS_CURRENT);
        let is_true = |expr: &Expr| matches!(expr, Expr::Value(value) if value.value == Value::Boolean(true));
        match condition {
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
                is_flag(left) && is_true(right) || is_true(left) && is_flag(right)
            }
            Expr::IsTrue(inner) => is_flag(inner),
            other => is_flag(other),
        }
    }

    /// The column of this table that an expression is, when it is nothing more.
    fn column(&self, expr: &Expr) -> Option<String> {
        match unnested(expr) {
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [table, column] if folded(table) == self.name => Some(folded(column)),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether an expression may read this table. A column that does not say whose it is may be anyone's.
    fn is_in(&self, expr: &Expr) -> bool {
        let found = visit_expressions(expr, |part| match part {
            Expr::CompoundIdentifier(parts) if parts.first().is_some_and(|table| folded(table) != self.name) => {
                ControlFlow::Continue(())
            }
            Expr::CompoundIdentifier(_) | Expr::Identifier(_) | Expr::Subquery(_) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        found.is_break()
    }
}

fn conjuncts<'a>(expr: &'a Expr, found: &mut Vec<&'a Expr>) {
    match unnested(expr) {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            conjuncts(left, found);
            conjuncts(right, found);
        }
        other => found.push(other),
    }
}

fn unnested(expr: &Expr) -> &Expr {
    match expr {
        Expr::Nested(inner) => unnested(inner),
        other => other,
    }
}

/// A table's name part by part, and what it is called.
fn named(relation: &TableFactor) -> Option<(Vec<String>, Option<String>)> {
    let TableFactor::Table { name, alias, args: None, .. } = relation else { return None };
    let parts = name.0.iter().map(|part| match part {
        ObjectNamePart::Identifier(ident) => Some(folded(ident)),
        ObjectNamePart::Function(_) => None,
    });
    let alias = alias.as_ref().map(|alias| folded(&alias.name));
    Some((parts.collect::<Option<_>>()?, alias))
}

/// A name as SQL understands it: without quotes, case makes no difference.
pub(super) fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// The tables that a model looks rows up in.
pub fn lookups(model: &SilverModel) -> Result<Vec<TableName>> {
    Ok(sources(model)?.lookups.into_iter().map(|lookup| lookup.table).collect())
}

pub(super) fn sources(model: &SilverModel) -> Result<Sources> {
    let Some(sql) = &model.sql else {
        return Ok(Sources { changes: CHANGES.to_string(), lookups: Vec::new() });
    };
    fold::sources(sql).map_err(|problem| Error::Model { table: model.table.clone(), problem })
}

fn no_silver_table(name: &TableName) -> String {
    format!("`{name}` is no silver table of this project, and only those can be looked up")
}

/// Makes sure that a model's lookups, which are among `models`, give one row for a change at most.
pub fn check_lookups(model: &SilverModel, models: &[SilverModel]) -> Result<()> {
    for lookup in sources(model)?.lookups {
        let problem = match models.iter().find(|other| other.table == lookup.table) {
            // Without keys in its model, it has those of the messages, which the table tells once it is made.
            Some(other) if other.keys.is_empty() => None,
            Some(other) => lookup.doubt(&other.keys, other.scd != Scd::One),
            None => Some(no_silver_table(&lookup.table)),
        };
        if let Some(problem) = problem {
            return Err(Error::Model { table: model.table.clone(), problem });
        }
    }
    Ok(())
}

/// The models in an order in which each comes after those it looks rows up in. A model that cannot be read has no lookups
/// here; it says so when its turn comes.
pub fn in_order(models: &[SilverModel]) -> Result<Vec<&SilverModel>> {
    let mut waiting: Vec<(&SilverModel, BTreeSet<TableName>)> = Vec::new();
    for model in models {
        let lookups = lookups(model).unwrap_or_default();
        let among = lookups.into_iter().filter(|lookup| models.iter().any(|other| other.table == *lookup));
        waiting.push((model, among.collect()));
    }
    let mut ordered: Vec<&SilverModel> = Vec::new();
    while !waiting.is_empty() {
        let is_done = |lookup: &TableName| ordered.iter().any(|done| done.table == *lookup);
        let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(_, lookups)| lookups.iter().all(is_done));
        if ready.is_empty() {
            let table = rest[0].0.table.clone();
            return Err(Error::Circle { table, circle: circle(&rest) });
        }
        ordered.extend(ready.into_iter().map(|(model, _)| model));
        waiting = rest;
    }
    Ok(ordered)
}

/// Walks along the lookups of models that all wait for others, until a table comes up again.
fn circle(waiting: &[(&SilverModel, BTreeSet<TableName>)]) -> String {
    let mut walk: Vec<&TableName> = Vec::new();
    let mut next = waiting.first().map(|(model, _)| &model.table);
    while let Some(table) = next {
        if let Some(start) = walk.iter().position(|seen| *seen == table) {
            let around = walk[start..].iter().chain([&table]).map(|table| format!("`{table}`"));
            return around.collect::<Vec<_>>().join(" looks up ");
        }
        walk.push(table);
        let of_table = waiting.iter().find(|(model, _)| model.table == *table);
        let is_waiting = |lookup: &&TableName| waiting.iter().any(|(model, _)| model.table == **lookup);
        next = of_table.and_then(|(_, lookups)| lookups.iter().find(is_waiting));
    }
    String::new()
}

/// The tables that the models of a run look rows up in, each at the snapshot it had when it was first asked for.
#[derive(Default)]
pub struct Lookups {
    tables: BTreeMap<TableName, Option<Pinned>>,
}

struct Pinned {
    view: TableView,
    /// What its rows are keyed by; `None` while it has none.
    keys: Option<Vec<String>>,
}

impl Lookups {
    /// Looks at the tables that a model needs. Their own models have to be through by then.
    pub async fn pin(&mut self, lake: &Lake, model: &SilverModel) -> Result<()> {
        for name in lookups(model)? {
            if self.tables.contains_key(&name) {
                continue;
            }
            let pinned = match lake.table_if_exists(&name).await? {
                Some(table) => {
                    let keys = Marker::of(&table)?.map(|(_, marker)| marker.keys);
                    if keys.is_none() && table.summary().records != Some(0) {
                        return Err(Error::Model { table: model.table.clone(), problem: no_silver_table(&name) });
                    }
                    Some(Pinned { view: table.view(At::Head)?, keys })
                }
                None => None,
            };
            self.tables.insert(name, pinned);
        }
        Ok(())
    }

    /// The first of the tables that a model needs and that are not there.
    pub fn missing(&self, model: &SilverModel) -> Result<Option<TableName>> {
        Ok(lookups(model)?.into_iter().find(|name| !matches!(self.tables.get(name), Some(Some(_)))))
    }

    /// What a model looks rows up in. A table's own keys are asked once more, whatever its model says today.
    pub(super) fn of(&self, model: &SilverModel) -> Result<BTreeMap<TableName, TableView>> {
        let mut views = BTreeMap::new();
        for lookup in sources(model)?.lookups {
            let Some(Some(Pinned { view, keys })) = self.tables.get(&lookup.table) else {
                return Err(Error::LookupMissing { table: model.table.clone(), lookup: lookup.table });
            };
            let keeps_versions = view.arrow_schema().field_with_name(IS_CURRENT).is_ok();
            if let Some(problem) = keys.as_ref().and_then(|keys| lookup.doubt(keys, keeps_versions)) {
                return Err(Error::Model { table: model.table.clone(), problem });
            }
            views.insert(lookup.table, view.clone());
        }
        Ok(views)
    }
}

/// Which snapshots of a lookup the rows of a table have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// When all rows were last folded: the oldest that a row may be from.
    pub first: i64,
    pub last: i64,
}

/// Which snapshots of its lookups a table's rows have seen.
pub fn lookups_seen(table: &Table) -> Result<BTreeMap<TableName, Seen>> {
    let known = Marker::of(table)?.map(|(_, marker)| marker.lookups).unwrap_or_default();
    Ok(known.into_iter().filter_map(|(name, seen)| Some((name.parse().ok()?, seen))).collect())
}

/// What a table's marker says of its lookups, when it said `before`; nothing is left from before when all is folded anew.
pub(super) fn seen(
    before: Option<&BTreeMap<String, Seen>>,
    lookups: &BTreeMap<TableName, TableView>,
) -> BTreeMap<String, Seen> {
    let of = |(name, view): (&TableName, &TableView)| {
        let (name, last) = (name.to_string(), view.snapshot_id().unwrap_or(NEVER_WRITTEN));
        let first = before.and_then(|before| before.get(&name)).map_or(last, |seen| seen.first);
        (name, Seen { first, last })
    };
    lookups.iter().map(of).collect()
}

/// Stands for the snapshot of a table that has none yet.
const NEVER_WRITTEN: i64 = -1;

#[cfg(test)]
mod tests {
    use super::super::{IgnoreNulls, OnDelete};
    use super::*;

    fn model(table: &str, keys: &[&str], scd: Scd, sql: &str) -> SilverModel {
        SilverModel {
            table: format!("silver.{table}").parse().unwrap(),
            from: "bronze.any".parse().unwrap(),
            keys: keys.iter().map(|key| key.to_string()).collect(),
            on_delete: OnDelete::Remove,
            ignore_nulls: IgnoreNulls::Nowhere,
            scd,
            sql: Some(sql.to_string()),
            expect: Vec::new(),
        }
    }

    fn plain(table: &str) -> SilverModel {
        model(table, &["id"], Scd::One, "SELECT * FROM changes")
    }

    fn check(joins: &str) -> String {
        let history = Scd::Two { track_history: Vec::new() };
        let orders = model("orders", &["id"], Scd::One, &format!("SELECT c.id FROM changes AS c {joins}"));
        let all = [
            plain("customers"),
            model("prices", &["country", "product_id"], Scd::One, "SELECT * FROM changes"),
            model("history", &["id"], history, "SELECT * FROM changes"),
            orders.clone(),
        ];
        match check_lookups(&orders, &all) {
            Ok(()) => "fine".to_string(),
            Err(Error::Model { problem, .. }) => problem,
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_lookup_gives_one_row_at_most() {
        for joins in [
            "",
            "LEFT JOIN silver.customers ON customers.id = c.customer_id",
            "LEFT OUTER JOIN silver.customers AS cu ON (c.customer_id = cu.id AND cu.is_active)",
            "LEFT JOIN Silver.Customers CU ON cu.ID = coalesce(c.customer_id, 0)",
            "LEFT JOIN silver.customers cu ON cu.id = c.customer_id \
             LEFT JOIN silver.prices p ON p.country = cu.country AND p.product_id = c.product_id",
            "LEFT JOIN silver.history h ON h.id = c.id AND h._is_current",
            "LEFT JOIN silver.history h ON h.id = c.id AND h._is_current = true",
            "LEFT JOIN silver.history h ON h._is_current IS TRUE AND h.id = c.id",
            "LEFT JOIN silver.customers a ON a.id = c.seller LEFT JOIN silver.customers b ON b.id = c.buyer",
        ] {
            assert_eq!(check(joins), "fine", "{joins}");
        }
        let refused = [
            "LEFT JOIN silver.customers cu ON cu.email = c.email",
            "LEFT JOIN silver.customers cu ON cu.id > c.customer_id",
            "LEFT JOIN silver.customers cu ON cu.id = c.customer_id OR cu.id = 1",
            "LEFT JOIN silver.customers cu ON cu.id = cu.parent_id",
            "LEFT JOIN silver.customers cu ON cu.id = customer_id",
            "LEFT JOIN silver.prices p ON p.product_id = c.product_id",
            "LEFT JOIN silver.history h ON h.id = c.id",
            "LEFT JOIN silver.history h ON h.id = c.id AND NOT h._is_current",
            "JOIN silver.customers cu ON cu.id = c.customer_id",
            "LEFT JOIN silver.customers cu USING (id)",
            "CROSS JOIN silver.customers",
            ", silver.customers",
            "LEFT JOIN customers ON customers.id = c.id",
            "LEFT JOIN (SELECT * FROM silver.customers) cu ON cu.id = c.id",
            "LEFT JOIN silver.unknown u ON u.id = c.id",
            "LEFT JOIN gold.totals t ON t.id = c.id",
            "LEFT JOIN silver.customers c ON c.id = c.customer_id",
        ];
        let problems: Vec<String> = refused.iter().map(|joins| check(joins)).collect();
        insta::assert_snapshot!(problems.join("\n"), @"
        the lookup `silver.customers` has to be joined by its whole key, so that a change finds one row at most: `ON cu.id = …`
        the lookup `silver.customers` has to be joined by its whole key, so that a change finds one row at most: `ON cu.id = …`
        the lookup `silver.customers` has to be joined by its whole key, so that a change finds one row at most: `ON cu.id = …`
        the lookup `silver.customers` has to be joined by its whole key, so that a change finds one row at most: `ON cu.id = …`
        the lookup `silver.customers` has to be joined by its whole key, so that a change finds one row at most: `ON cu.id = …`
        the lookup `silver.prices` has to be joined by its whole key, so that a change finds one row at most: `ON p.country = … AND p.product_id = …`
        the lookup `silver.history` keeps versions, and a change has to find one row at most: add `AND h._is_current`
        the lookup `silver.history` keeps versions, and a change has to find one row at most: add `AND h._is_current`
        the lookup `silver.customers` is no `LEFT JOIN … ON …`: another join would lose rows for good that come before those they look up
        the lookup `silver.customers` is no `LEFT JOIN … ON …`: another join would lose rows for good that come before those they look up
        the lookup `silver.customers` is no `LEFT JOIN … ON …`: another join would lose rows for good that come before those they look up
        a silver model selects FROM changes, and from nothing else but lookups: `LEFT JOIN silver_table AS name ON …`
        the lookup `customers` is not named in full: `namespace.table`
        a lookup is another silver table, by its name
        `silver.unknown` is no silver table of this project, and only those can be looked up
        `gold.totals` is no silver table of this project, and only those can be looked up
        two of its tables are called `c`; give one another name with AS
        ");
    }

    #[test]
    fn a_model_comes_after_its_lookups() {
        let joined = |table: &str, lookup: &str| {
            let sql = format!("SELECT c.* FROM changes c LEFT JOIN silver.{lookup} l ON l.id = c.id");
            model(table, &["id"], Scd::One, &sql)
        };
        let order = |models: &[SilverModel]| match in_order(models) {
            Ok(models) => models.iter().map(|model| model.table.name()).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(order(&[joined("a", "b"), joined("b", "d"), plain("c"), plain("d")]), "c d b a");
        assert_eq!(order(&[joined("a", "elsewhere")]), "a");
        insta::assert_snapshot!(
            order(&[plain("c"), joined("a", "b"), joined("b", "d"), joined("d", "b")]),
            @"silver models look each other up in a circle: `silver.b` looks up `silver.d` looks up `silver.b`"
        );
        insta::assert_snapshot!(
            order(&[joined("a", "a")]),
            @"silver models look each other up in a circle: `silver.a` looks up `silver.a`"
        );
    }
}
