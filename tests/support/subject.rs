//! A table together with what must be in it.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field, Schema};
use icestream::row::ColumnType;
use icestream::table::{At, SchemaChange, Table, WrittenFile};
use serde_json::Value;

use crate::canonical::{Row, batch, columns, json_rows, select, sorted, without_ids};
use crate::support::World;

pub struct Subject {
    pub table: Table,
    /// The rows by their `id`, the table's first column.
    pub rows: BTreeMap<i64, Row>,
}

/// Columns as `catalog/` files name their types; the first is required.
pub fn columns_of(types: &[(&str, &str)]) -> Schema {
    let field = |(position, (name, text)): (usize, &(&str, &str))| {
        Field::new(*name, text.parse::<ColumnType>().unwrap().to_arrow(), position > 0)
    };
    Schema::new(types.iter().enumerate().map(field).collect::<Vec<_>>())
}

impl Subject {
    pub async fn new(world: &World, name: &str, columns: Schema, partition: &[&str], set: &[(&str, &str)]) -> Self {
        Subject::on(world.create_as(name, columns, partition, set).await)
    }

    /// A table that has no rows yet.
    pub fn on(table: Table) -> Self {
        Subject { table, rows: BTreeMap::new() }
    }

    pub fn expect(&mut self, rows: &[Row]) {
        for row in rows {
            assert!(self.rows.insert(row["id"].as_i64().unwrap(), row.clone()).is_none());
        }
    }

    /// The present rows of some ids, with a change to each.
    pub fn changed(&self, ids: &[i64], change: impl Fn(&mut Row)) -> Vec<Row> {
        let mut rows: Vec<Row> = ids.iter().map(|id| self.rows[id].clone()).collect();
        rows.iter_mut().for_each(change);
        rows
    }

    /// Writes rows under the current schema, one file per partition.
    pub async fn write(&self, rows: &[Row]) -> Vec<WrittenFile> {
        let mut writer = self.table.writer(None).unwrap();
        writer.write(&batch(&without_ids(&self.table.schema().unwrap()), rows)).await.unwrap();
        writer.finish().await.unwrap()
    }

    /// Appends rows given as a JSON array of objects.
    pub async fn append(&mut self, rows: Value) {
        let rows = json_rows(rows);
        let files = self.write(&rows).await;
        self.table = self.table.change().append(files).commit().await.unwrap().table;
        self.expect(&rows);
    }

    pub async fn delete(&mut self, ids: &[i64]) {
        self.table = crate::support::delete(&self.table, ids).await.table;
        self.rows.retain(|id, _| !ids.contains(id));
    }

    /// Deletes the rows and inserts what has become of them, in one commit.
    pub async fn update(&mut self, ids: &[i64], change: impl Fn(&mut Row)) {
        let rows = self.changed(ids, change);
        let view = self.table.view(At::Head).unwrap();
        let deletes = self.table.write_deletes(&crate::support::positions_of(&self.table, ids).await).await.unwrap();
        let added = self.write(&rows).await;
        self.table = self.table.change().row_delta(&view, added, deletes).commit().await.unwrap().table;
        self.rows.retain(|id, _| !ids.contains(id));
        self.expect(&rows);
    }

    /// Stores all live rows anew, in one file per partition.
    pub async fn compact(&mut self) {
        let view = self.table.view(At::Head).unwrap();
        let old = view.files(None).await.unwrap();
        let rows: Vec<Row> = self.rows.values().cloned().collect();
        let added = self.write(&rows).await;
        self.table = self.table.change().rewrite(&view, old, added).commit().await.unwrap().table;
    }

    pub async fn evolve(&mut self, change: SchemaChange) {
        let evolved = self.table.evolve(&change).unwrap().unwrap();
        self.table = self.table.change().schema(evolved).commit().await.unwrap().table;
    }

    /// Gives a column of every row another name, or takes it away.
    pub fn rename(&mut self, from: &str, to: Option<&str>) {
        for row in self.rows.values_mut() {
            if let (Some(value), Some(to)) = (row.shift_remove(from), to) {
                row.insert(to.to_string(), value);
            }
        }
    }

    /// What every engine must say.
    pub fn expected(&self) -> Vec<Value> {
        self.expected_of(|_| true)
    }

    pub fn expected_of(&self, is_wanted: impl Fn(i64) -> bool) -> Vec<Value> {
        let columns = columns(&self.table);
        let row = |row: &Row| columns.iter().map(|name| row.get(name).cloned().unwrap_or(Value::Null)).collect();
        sorted(self.rows.iter().filter(|(id, _)| is_wanted(**id)).map(|(_, of)| row(of)).collect())
    }

    /// Our own engine must find exactly the rows of these ids, condition by condition.
    pub async fn check_conditions(&self, conditions: &[(&str, &[i64])]) {
        let mut wrong = Vec::new();
        for (condition, expected) in conditions {
            let found = select(&self.table, Some(condition)).await;
            if found != self.expected_of(|id| expected.contains(&id)) {
                let ids: Vec<&Value> = found.iter().map(|row| &row[0]).collect();
                wrong.push(format!("{condition}: {ids:?} and not {expected:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// An optional column, for a schema change.
pub fn column(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}
