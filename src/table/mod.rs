//! The table layer: the only place that reads and writes Iceberg.
//!
//! In come data and delete files with a premise; out go committed snapshots, views to scan, schema changes and
//! maintenance. It does not know where rows came from or what they mean.
//!
//! - [`Lake`] names the catalog and the storage; [`Table`] is one table at the head it was loaded at.
//! - [`Change`] gathers what a commit changes; committing is a compare-and-swap that checks its premise on every
//!   attempt (`commit/`).
//! - [`TableView`] is one snapshot to read (`scan.rs`); `engine/` turns it into a DataFusion table.
//! - `catalog/` moves heads, `storage/` moves bytes.
//!
//! **Every commit is a compare-and-swap.** **What a snapshot says about itself (its markers) is committed with it.**
//! **Files belong to nobody until a commit names them, so a crash leaves orphans and never half a table.**

pub mod catalog;
pub mod commit;
mod compact;
mod deletes;
mod difference;
pub mod error;
mod expire;
mod inspect;
mod lineage;
#[cfg(test)]
mod loose;
mod manifest;
mod metrics;
mod orphans;
mod parquet_file;
mod partition;
mod scan;
mod schema;
mod soundness;
mod staged;
mod statistics;
pub mod storage;
mod writer;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{Schema as ArrowSchema, SchemaRef as ArrowSchemaRef};
use iceberg::spec::{FormatVersion, PartitionSpecRef, SortOrder, TableMetadata};
use roaring::RoaringTreemap;

pub use commit::{Change, CommitPolicy, Committed, Premise};
pub use compact::{Compaction, CompactionPolicy, FileGroup};
pub use difference::{Difference, Since};
pub use error::{Broken, Error, Result};
pub use expire::{Expired, Expiry};
pub use inspect::{ColumnInfo, FileRow, SnapshotRow, Summary};
pub use orphans::Orphan;
pub use partition::check_field as check_partition_field;
pub use scan::{Amount, At, ColumnStatistics, DeleteFile, DeletedPositions, Prune, ScanFile, TableView};
pub use schema::{ColumnStep, EvolvedSchema, SchemaChange, type_name};
pub use soundness::{Fault, MarkerPlaces, Soundness};
pub use writer::{DataWriter, WrittenFile};

use crate::clock::Clock;
use crate::ids::{TableName, check_column};
use catalog::{Catalog, Head, NewTable};
use storage::Storage;
use writer::WriteTarget;

/// A catalog, the storage its tables are in, and a clock. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lake(Arc<LakeParts>);

#[derive(Debug)]
struct LakeParts {
    catalog: Arc<dyn Catalog>,
    storage: Storage,
    clock: Clock,
}

/// A table to be made.
#[derive(Debug, Clone)]
pub struct TableDefinition {
    pub name: TableName,
    /// A field's metadata entry `doc` becomes its documentation; fields that are not nullable become required.
    pub schema: ArrowSchemaRef,
    /// As users write it: `day(_ingested_at)`, `bucket(16, id)`.
    pub partition: Vec<String>,
    pub properties: HashMap<String, String>,
}

impl Lake {
    pub fn new(catalog: Arc<dyn Catalog>, storage: Storage, clock: Clock) -> Self {
        Lake(Arc::new(LakeParts { catalog, storage, clock }))
    }

    pub fn catalog(&self) -> &Arc<dyn Catalog> {
        &self.0.catalog
    }

    pub fn storage(&self) -> &Storage {
        &self.0.storage
    }

    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    pub async fn table(&self, name: &TableName) -> Result<Table> {
        let head = self.catalog().head(name, None).await?;
        Ok(Table { lake: self.clone(), head })
    }

    pub async fn table_if_exists(&self, name: &TableName) -> Result<Option<Table>> {
        match self.table(name).await {
            Ok(table) => Ok(Some(table)),
            Err(Error::TableMissing { .. } | Error::NamespaceMissing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a table; one of the same name must not exist.
    pub async fn create(&self, definition: &TableDefinition) -> Result<Table> {
        let new = new_table(definition)?;
        let head = self.catalog().create(new).await?;
        tracing::info!(table = %definition.name, location = head.metadata.location(), "created table");
        Ok(Table { lake: self.clone(), head })
    }

    /// Loads the table, or makes it when it is missing. Of several callers at once, one makes it and all get it.
    pub async fn ensure(&self, definition: &TableDefinition) -> Result<Table> {
        if let Some(table) = self.table_if_exists(&definition.name).await? {
            return Ok(table);
        }
        match self.create(definition).await {
            Err(Error::TableExists { .. }) => self.table(&definition.name).await,
            outcome => outcome,
        }
    }

    /// Every Iceberg table of the namespace, by name; none where the namespace is missing.
    pub async fn tables(&self, namespace: &str) -> Result<Vec<TableName>> {
        match self.catalog().tables(namespace).await {
            Err(Error::NamespaceMissing { .. }) => Ok(Vec::new()),
            outcome => outcome,
        }
    }

    /// Forgets the table. With `purge`, every file any of its snapshots names is deleted afterwards. Gives how many.
    pub async fn drop_table(&self, name: &TableName, purge: bool) -> Result<usize> {
        let files = match purge {
            true => {
                let table = self.table(name).await?;
                table.check_owns_files("delete its files")?;
                orphans::reachable_files(&table).await?
            }
            false => Default::default(),
        };
        self.catalog().drop_table(name).await?;
        tracing::info!(table = %name, purged_files = files.len(), "dropped table");
        for path in &files {
            self.forget_file(path).await;
        }
        Ok(files.len())
    }

    /// Deletes a file nobody needs. When that fails it stays an orphan, which harms nobody.
    async fn forget_file(&self, path: &str) {
        if let Err(error) = self.storage().file_io().delete(path).await {
            tracing::debug!(%path, %error, "could not delete a file that is not needed any more");
        }
    }
}

fn new_table(definition: &TableDefinition) -> Result<NewTable> {
    let table = &definition.name;
    for field in definition.schema.fields() {
        check_column(field.name())?;
    }
    let schema = schema::from_arrow(table, &definition.schema)?;
    let partition_spec = partition::parse(table, &schema, &definition.partition)?;
    let mut properties = HashMap::from([
        // What every commit leaves behind stays bounded.
        ("write.metadata.delete-after-commit.enabled".to_string(), "true".to_string()),
        ("write.metadata.previous-versions-max".to_string(), "20".to_string()),
        ("write.parquet.compression-codec".to_string(), "zstd".to_string()),
        ("write.delete.mode".to_string(), "merge-on-read".to_string()),
    ]);
    properties.extend(definition.properties.clone());
    Ok(NewTable {
        table: table.clone(),
        schema,
        partition_spec,
        sort_order: SortOrder::unsorted_order(),
        properties,
        location: None,
    })
}

/// A table at the head it was loaded at. Cheap to clone; [`Table::refresh`] moves to the present head.
#[derive(Debug, Clone)]
pub struct Table {
    lake: Lake,
    head: Head,
}

/// Position-delete files and the data files they are about.
#[derive(Debug, Clone, Default)]
pub struct WrittenDeletes {
    files: Vec<WrittenFile>,
    of: Vec<ScanFile>,
    /// Delete files that say nothing which these do not.
    instead_of: Vec<Arc<DeleteFile>>,
}

impl WrittenDeletes {
    pub fn files(&self) -> &[WrittenFile] {
        &self.files
    }

    pub fn and(mut self, other: WrittenDeletes) -> Self {
        self.files.extend(other.files);
        self.of.extend(other.of);
        self.instead_of.extend(other.instead_of);
        self
    }
}

impl Table {
    pub fn name(&self) -> &TableName {
        &self.head.table
    }

    pub fn lake(&self) -> &Lake {
        &self.lake
    }

    pub fn location(&self) -> &str {
        self.metadata().location()
    }

    /// Where the head's metadata file is: what other engines open the table by.
    pub fn metadata_location(&self) -> &str {
        &self.head.metadata_location
    }

    pub fn properties(&self) -> &HashMap<String, String> {
        self.metadata().properties()
    }

    pub fn snapshot_id(&self) -> Option<i64> {
        self.metadata().current_snapshot_id()
    }

    pub fn schema_id(&self) -> i32 {
        self.metadata().current_schema_id()
    }

    /// The current schema; every field carries its id as `PARQUET:field_id`.
    pub fn schema(&self) -> Result<ArrowSchemaRef> {
        schema::to_arrow(self.name(), self.metadata().current_schema())
    }

    /// A marker as of the head: what the newest commit that knew it said.
    pub fn marker(&self, key: &str) -> Option<String> {
        commit::marker(self.metadata(), key)
    }

    /// Moves to the present head. Costs one question to the catalog when nothing happened since.
    pub async fn refresh(&mut self) -> Result<()> {
        self.head = self.lake.catalog().head(self.name(), Some(&self.head)).await?;
        Ok(())
    }

    pub fn view(&self, at: At) -> Result<TableView> {
        TableView::new(self.name(), self.lake.storage(), &self.head.metadata, at)
    }

    /// An older snapshot under the columns that the table has now: those that came later are null in it.
    pub fn view_as_now(&self, snapshot_id: i64) -> Result<TableView> {
        self.view(At::Snapshot(snapshot_id))?.under_current_schema()
    }

    /// Whether the snapshot is still there.
    pub fn has_snapshot(&self, snapshot_id: i64) -> bool {
        self.metadata().snapshot_by_id(snapshot_id).is_some()
    }

    /// Starts a change on this head.
    pub fn change(&self) -> Change {
        Change::new(self.clone())
    }

    /// What the schema is after `change`; `None` when nothing is left to do.
    pub fn evolve(&self, change: &SchemaChange) -> Result<Option<EvolvedSchema>> {
        EvolvedSchema::resolve(self.name(), self.metadata(), change)
    }

    /// A writer for rows under the current schema, or under an evolved one that is to be committed with them.
    pub fn writer(&self, evolved: Option<&EvolvedSchema>) -> Result<DataWriter> {
        DataWriter::new(self.write_target(evolved, self.metadata().default_partition_spec()))
    }

    /// Writes position-delete files for rows found in a view of this table.
    pub async fn write_deletes(&self, rows: &[(ScanFile, RoaringTreemap)]) -> Result<WrittenDeletes> {
        let target = self.write_target(None, self.metadata().default_partition_spec());
        let files = deletes::write(&target, self.metadata(), rows).await?;
        let of = rows.iter().filter(|(_, positions)| !positions.is_empty()).map(|(file, _)| file.clone()).collect();
        Ok(WrittenDeletes { files, of, instead_of: Vec::new() })
    }

    /// Writes position-delete files that take the place of those each file has: `rows` are all of its deleted rows, with
    /// those that were deleted before. Delete files about several data files stay.
    pub async fn write_deletes_anew(&self, rows: &[(ScanFile, RoaringTreemap)]) -> Result<WrittenDeletes> {
        let mut written = self.write_deletes(rows).await?;
        written.instead_of = written.of.iter().flat_map(ScanFile::own_deletes).cloned().collect();
        Ok(written)
    }

    /// Deletes files that were written and not committed.
    pub async fn discard(&self, files: &[WrittenFile]) {
        for file in files {
            self.lake.forget_file(file.path()).await;
        }
    }

    /// Forgets old snapshots and deletes the files only they needed.
    pub async fn expire(&self, expiry: &Expiry) -> Result<Expired> {
        expire::run(self, expiry).await
    }

    /// The snapshots that an expiry would forget.
    pub fn expirable(&self, expiry: &Expiry) -> Vec<i64> {
        expire::doomed(self.metadata(), expiry, self.lake.clock().now_ms())
    }

    /// How many manifests the head has, and how many it would have once the small ones are put together.
    pub async fn manifests_to_merge(&self) -> Result<(usize, usize)> {
        commit::manifests_to_merge(self).await
    }

    /// Files below the table's location that no snapshot names, older than `older_than_ms`.
    pub async fn orphans(&self, older_than_ms: i64) -> Result<Vec<Orphan>> {
        orphans::find(self, older_than_ms).await
    }

    /// Deletes the files that [`Table::orphans`] finds, and gives them. Nothing can bring them back.
    pub async fn remove_orphans(&self, older_than_ms: i64) -> Result<Vec<Orphan>> {
        orphans::remove(self, older_than_ms).await
    }

    /// The snapshots of the table, oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotRow> {
        inspect::snapshots(self.metadata())
    }

    /// The live data and delete files of the head.
    pub async fn files(&self) -> Result<Vec<FileRow>> {
        inspect::files(self).await
    }

    pub fn columns(&self) -> Vec<ColumnInfo> {
        inspect::columns(self.metadata())
    }

    /// The columns that files are laid out by, now or ever before, each by its path. None of them can be widened.
    pub fn partition_columns(&self) -> Vec<String> {
        inspect::partition_columns(self.metadata())
    }

    pub fn uuid(&self) -> uuid::Uuid {
        self.metadata().uuid()
    }

    pub fn summary(&self) -> Summary {
        inspect::summary(self)
    }

    fn metadata(&self) -> &TableMetadata {
        &self.head.metadata
    }

    /// A table that shares files with another says so, and none of them may be deleted.
    fn check_owns_files(&self, action: &str) -> Result<()> {
        if self.properties().get("gc.enabled").is_none_or(|value| value != "false") {
            return Ok(());
        }
        let problem =
            format!("cannot {action}: its property `gc.enabled` is false, so they may belong to another table");
        Err(Error::Change { table: self.name().clone(), problem })
    }

    fn write_target(&self, evolved: Option<&EvolvedSchema>, spec: &PartitionSpecRef) -> WriteTarget {
        debug_assert_eq!(self.metadata().format_version(), FormatVersion::V2);
        WriteTarget {
            table: self.name().clone(),
            file_io: self.lake.storage().file_io().clone(),
            location: self.location().to_string(),
            schema: evolved.map_or_else(|| self.metadata().current_schema().clone(), |evolved| evolved.schema.clone()),
            spec: spec.clone(),
            properties: Arc::new(self.properties().clone()),
        }
    }
}

impl EvolvedSchema {
    /// The evolved schema's columns; every field carries its id as `PARQUET:field_id`.
    pub fn arrow(&self, table: &TableName) -> Result<Arc<ArrowSchema>> {
        schema::to_arrow(table, &self.schema)
    }
}
