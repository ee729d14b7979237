//! What the test binaries share: a lake to test in, rows to write, and a plain way to read them back.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use icestream::clock::Clock;
use icestream::ids::TableName;
use icestream::table::catalog::sqlite::SqliteCatalog;
use icestream::table::storage::{Storage, StorageOptions};
use icestream::table::{At, Committed, Lake, ScanFile, Table, TableDefinition, WrittenFile};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringTreemap;

/// A lake with a namespace of its own, so that cases do not meet.
pub struct World {
    pub lake: Lake,
    pub namespace: String,
    /// What has to live as long as the lake.
    pub keep: Option<tempfile::TempDir>,
}

impl World {
    pub fn table(&self, name: &str) -> TableName {
        TableName::new(self.namespace.clone(), name).unwrap()
    }

    pub async fn create(&self, name: &str) -> Table {
        self.create_with(name, &[], &[]).await
    }

    pub async fn create_with(&self, name: &str, partition: &[&str], properties: &[(&str, &str)]) -> Table {
        self.create_as(name, schema(), partition, properties).await
    }

    pub async fn create_as(
        &self,
        name: &str,
        schema: Schema,
        partition: &[&str],
        properties: &[(&str, &str)],
    ) -> Table {
        self.lake
            .create(&TableDefinition {
                name: self.table(name),
                schema: Arc::new(schema),
                partition: partition.iter().map(|field| field.to_string()).collect(),
                properties: properties.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            })
            .await
            .unwrap()
    }
}

pub async fn sqlite_lake(folder: &std::path::Path) -> Lake {
    let storage = Storage::new(StorageOptions::default()).unwrap();
    let warehouse = format!("file://{}/warehouse", folder.display());
    let catalog = SqliteCatalog::open("lake", folder.join("catalog.db"), warehouse, storage.clone()).await.unwrap();
    Lake::new(Arc::new(catalog), storage, Clock::system())
}

pub async fn sqlite_world() -> World {
    let folder = tempfile::tempdir().unwrap();
    World { lake: sqlite_lake(folder.path()).await, namespace: "shop".to_string(), keep: Some(folder) }
}

pub fn schema() -> Schema {
    Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("qty", DataType::Int32, true),
        Field::new("note", DataType::Utf8, true),
    ])
}

/// Rows `(id, qty)` with a note made from both.
pub fn rows(of: impl IntoIterator<Item = (i64, i32)>) -> RecordBatch {
    let (ids, qtys): (Vec<i64>, Vec<i32>) = of.into_iter().unzip();
    let notes: Vec<String> = ids.iter().zip(&qtys).map(|(id, qty)| format!("note {id}/{qty}")).collect();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(Int64Array::from(ids)), Arc::new(Int32Array::from(qtys)), Arc::new(StringArray::from(notes))];
    RecordBatch::try_new(Arc::new(schema()), columns).unwrap()
}

pub async fn write(table: &Table, batch: &RecordBatch) -> Vec<WrittenFile> {
    let mut writer = table.writer(None).unwrap();
    writer.write(batch).await.unwrap();
    writer.finish().await.unwrap()
}

pub async fn append(table: &Table, of: impl IntoIterator<Item = (i64, i32)>) -> Committed {
    let files = write(table, &rows(of)).await;
    table.change().append(files).commit().await.unwrap()
}

/// Every live row as `id -> qty`, each id once.
pub async fn read(table: &Table) -> BTreeMap<i64, i64> {
    read_at(table, At::Head).await
}

pub async fn read_at(table: &Table, at: At) -> BTreeMap<i64, i64> {
    let mut found = BTreeMap::new();
    for (_, _, id, qty) in live_rows(table, at).await {
        assert!(found.insert(id, qty).is_none(), "id {id} is there twice");
    }
    found
}

/// Every live row as (file, position, id, qty), by a reader that shares no code with the product's. A file without the
/// column `qty` has it null.
pub async fn live_rows(table: &Table, at: At) -> Vec<(ScanFile, u64, i64, i64)> {
    let view = table.view(at).unwrap();
    let files = view.files(None).await.unwrap();
    let deleted = view.deleted_positions(&files).await.unwrap();
    let mut found = Vec::new();
    for file in files {
        let gone = deleted.get(&file.path).cloned().unwrap_or_default();
        let bytes = table.lake().storage().read(&file.path).await.unwrap();
        let mut position = 0u64;
        for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            let longs = |name: &str| match batch.column_by_name(name) {
                Some(column) => {
                    let column = cast(column, &DataType::Int64).unwrap();
                    column.as_any().downcast_ref::<Int64Array>().unwrap().clone()
                }
                None => Int64Array::new_null(batch.num_rows()),
            };
            let (ids, qtys) = (longs("id"), longs("qty"));
            for row in 0..batch.num_rows() {
                if !gone.contains(position) {
                    let qty = if qtys.is_null(row) { -1 } else { qtys.value(row) };
                    found.push((file.clone(), position, ids.value(row), qty));
                }
                position += 1;
            }
        }
        assert_eq!(position, file.record_count);
    }
    found
}

/// The positions of the given ids, file by file.
pub async fn positions_of(table: &Table, ids: &[i64]) -> Vec<(ScanFile, RoaringTreemap)> {
    let mut by_file: BTreeMap<String, (ScanFile, RoaringTreemap)> = BTreeMap::new();
    for (file, position, id, _) in live_rows(table, At::Head).await {
        if ids.contains(&id) {
            by_file.entry(file.path.clone()).or_insert_with(|| (file, RoaringTreemap::new())).1.insert(position);
        }
    }
    by_file.into_values().collect()
}

/// Deletes rows by position in a commit of its own.
pub async fn delete(table: &Table, ids: &[i64]) -> Committed {
    let view = table.view(At::Head).unwrap();
    let deletes = table.write_deletes(&positions_of(table, ids).await).await.unwrap();
    table.change().row_delta(&view, Vec::new(), deletes).commit().await.unwrap()
}

pub fn total(table: &Table, key: &str) -> String {
    let snapshots = table.snapshots();
    let current = snapshots.iter().find(|snapshot| snapshot.is_current).expect("a snapshot");
    current.summary.get(key).cloned().unwrap_or_else(|| "-".to_string())
}
