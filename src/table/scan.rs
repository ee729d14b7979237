//! A table at one snapshot, ready to be read: which data files may hold the rows, and which of their rows are deleted.
//!
//! Pruning is the reader's business and statistics are ours: a [`Prune`] looks at bounds in the columns' *current*
//! types, so that a column that was widened since a file was written compares right. It is asked twice, for manifests
//! and for files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef as ArrowSchemaRef;
use futures::stream::{self, StreamExt, TryStreamExt};
use iceberg::spec::{
    DataContentType, DataFile, DataFileFormat, ManifestContentType, ManifestFile, Schema, SchemaRef, SnapshotRef,
    TableMetadata,
};

use serde::Serialize;
use tokio::sync::OnceCell;

use super::error::{Error, Result};
use super::statistics::{FileStatistics, ManifestStatistics};
use super::storage::Storage;
use super::{manifest, schema};
use crate::ids::TableName;

pub use super::deletes::DeletedPositions;

/// Manifests read at the same time while planning.
const MANIFESTS_AT_ONCE: usize = 16;

/// Which state of a table to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum At {
    #[default]
    Head,
    Snapshot(i64),
    /// The state that was current at this time, milliseconds since 1970.
    TimeMs(i64),
}

/// How much there is to read: data files, their rows (those that are deleted, too) and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    pub files: u64,
    pub rows: u64,
    pub bytes: u64,
}

/// A table at one snapshot. Cheap to clone.
#[derive(Clone)]
pub struct TableView(Arc<Inner>);

struct Inner {
    table: TableName,
    storage: Storage,
    metadata: Arc<TableMetadata>,
    snapshot: Option<SnapshotRef>,
    schema: SchemaRef,
    arrow_schema: ArrowSchemaRef,
    /// Only files of commits after this sequence number.
    after: Option<i64>,
    /// Only these rows.
    selection: Option<Selection>,
    loaded: Loaded,
}

/// Some rows of a snapshot: files, and the positions in them that are left out.
pub(super) struct Selection {
    pub(super) files: Vec<ScanFile>,
    pub(super) left_out: DeletedPositions,
}

/// What was read of the snapshot so far. It never changes, and most views are asked more than once.
#[derive(Default)]
struct Loaded {
    list: OnceCell<Vec<ManifestFile>>,
    files: Mutex<HashMap<String, Arc<Vec<ScanFile>>>>,
    deletes: OnceCell<DeleteIndex>,
}

/// A data file of a snapshot, with the delete files that apply to it.
#[derive(Debug, Clone)]
pub struct ScanFile {
    pub path: String,
    pub size: u64,
    pub record_count: u64,
    pub deletes: Vec<Arc<DeleteFile>>,
    pub(super) data: Arc<DataFile>,
    pub(super) spec_id: i32,
    /// The age of its rows, which a rewrite does not change.
    pub(super) sequence: i64,
    /// The commit that added it.
    pub(super) added: i64,
    /// The manifest that lists the file: while it is in the head's list, the file is live.
    pub(super) manifest: Arc<str>,
}

impl ScanFile {
    /// The delete files that are about this file alone.
    pub fn own_deletes(&self) -> impl Iterator<Item = &Arc<DeleteFile>> {
        self.deletes.iter().filter(|delete| delete.covers.as_deref() == Some(self.path.as_str()))
    }
}

/// A position-delete file.
#[derive(Debug)]
pub struct DeleteFile {
    pub path: String,
    pub rows: u64,
    /// The one data file it covers, where the writer said so.
    pub covers: Option<String>,
    pub(super) data: DataFile,
    pub(super) spec_id: i32,
    pub(super) sequence: i64,
    pub(super) manifest: Arc<str>,
}

/// Column statistics of a set of containers (manifests or files): arrays with one element per container, in the
/// column's current Arrow type. A null element is not known; `None` is not known for any.
pub trait ColumnStatistics {
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lower(&self, column: &str) -> Option<ArrayRef>;

    fn upper(&self, column: &str) -> Option<ArrayRef>;

    /// `UInt64`.
    fn null_counts(&self, column: &str) -> Option<ArrayRef>;

    /// `UInt64`.
    fn row_counts(&self) -> Option<ArrayRef>;

    /// For each container, `Some(false)` when none of `values` (in the column's type) can be in it.
    fn contains_any(&self, column: &str, values: &ArrayRef) -> Option<Vec<Option<bool>>>;
}

/// Decides which containers may hold a row of interest.
pub trait Prune: Send + Sync {
    /// One element per container; `false` leaves it out.
    fn keep(&self, statistics: &dyn ColumnStatistics) -> Vec<bool>;
}

impl TableView {
    pub(super) fn new(
        table: &TableName,
        storage: &Storage,
        metadata: &Arc<TableMetadata>,
        at: At,
    ) -> Result<TableView> {
        let snapshot = match at {
            At::Head => metadata.current_snapshot().cloned(),
            At::Snapshot(id) => Some(find_snapshot(table, metadata, id)?),
            At::TimeMs(time) => Some(snapshot_at(table, metadata, time)?),
        };
        // The head is read under the table's current schema, also when the last snapshot was made under an older one;
        // an old state under the schema it had.
        let schema = match (&snapshot, at) {
            (Some(snapshot), At::Snapshot(_) | At::TimeMs(_)) => snapshot
                .schema(metadata)
                .map_err(|error| Error::corrupt(table, "a snapshot names a schema that is not there", error))?,
            _ => metadata.current_schema().clone(),
        };
        let arrow_schema = schema::to_arrow(table, &schema)?;
        Ok(TableView(Arc::new(Inner {
            table: table.clone(),
            storage: storage.clone(),
            metadata: metadata.clone(),
            snapshot,
            schema,
            arrow_schema,
            after: None,
            selection: None,
            loaded: Loaded::default(),
        })))
    }

    /// The same snapshot, but only the files that commits after the given sequence number added. Rows that a rewrite
    /// moved since may be among them.
    pub fn added_since(&self, sequence_number: i64) -> TableView {
        self.only(Some(sequence_number), None)
    }

    /// The same rows under the columns that the table has now.
    pub(super) fn under_current_schema(&self) -> Result<TableView> {
        let mut inner = self.inner(self.0.after, None);
        inner.schema = inner.metadata.current_schema().clone();
        inner.arrow_schema = schema::to_arrow(&inner.table, &inner.schema)?;
        Ok(TableView(Arc::new(inner)))
    }

    /// Only some rows, under the same schema or another one.
    pub(super) fn selecting(&self, selection: Selection, schema: Option<SchemaRef>) -> Result<TableView> {
        let mut inner = self.inner(None, Some(selection));
        if let Some(schema) = schema {
            inner.arrow_schema = schema::to_arrow(&inner.table, &schema)?;
            inner.schema = schema;
        }
        Ok(TableView(Arc::new(inner)))
    }

    fn only(&self, after: Option<i64>, selection: Option<Selection>) -> TableView {
        TableView(Arc::new(self.inner(after, selection)))
    }

    fn inner(&self, after: Option<i64>, selection: Option<Selection>) -> Inner {
        let inner = &self.0;
        Inner {
            table: inner.table.clone(),
            storage: inner.storage.clone(),
            metadata: inner.metadata.clone(),
            snapshot: inner.snapshot.clone(),
            schema: inner.schema.clone(),
            arrow_schema: inner.arrow_schema.clone(),
            after,
            selection,
            loaded: Loaded::default(),
        }
    }

    pub fn name(&self) -> &TableName {
        &self.0.table
    }

    /// `None` for a table nothing was ever written to.
    pub fn snapshot_id(&self) -> Option<i64> {
        self.0.snapshot.as_ref().map(|snapshot| snapshot.snapshot_id())
    }

    /// Whether the snapshot is this one or came before it in its line. `None` when expiry has cut the line first.
    pub fn descends_from(&self, snapshot_id: i64) -> Option<bool> {
        let mut snapshot = self.0.snapshot.as_ref();
        while let Some(current) = snapshot {
            if current.snapshot_id() == snapshot_id {
                return Some(true);
            }
            snapshot = match current.parent_snapshot_id() {
                Some(parent) => self.0.metadata.snapshot_by_id(parent),
                // Only the first commit never had one: other engines' expiry takes it away.
                None if current.sequence_number() > 1 => None,
                None => return Some(false),
            };
        }
        None
    }

    /// Columns in table order; every field carries its id as `PARQUET:field_id`, nested ones too.
    pub fn arrow_schema(&self) -> ArrowSchemaRef {
        self.0.arrow_schema.clone()
    }

    pub fn storage(&self) -> &Storage {
        &self.0.storage
    }

    /// The number of the commit that made the snapshot: each commit's is higher than those before. 0 for a table
    /// nothing was ever written to.
    pub fn sequence_number(&self) -> i64 {
        self.0.snapshot.as_ref().map_or(0, |snapshot| snapshot.sequence_number())
    }

    /// How many commits came after the one that added a file.
    pub fn commits_since(&self, file: &ScanFile) -> u64 {
        u64::try_from(self.sequence_number().saturating_sub(file.added)).unwrap_or(0)
    }

    pub(super) fn iceberg_schema(&self) -> &Schema {
        &self.0.schema
    }

    pub(super) fn metadata(&self) -> &TableMetadata {
        &self.0.metadata
    }

    /// Another snapshot of the table, as it was; `None` when it is not there (any more).
    pub(super) fn earlier(&self, snapshot_id: i64) -> Result<Option<TableView>> {
        let inner = &self.0;
        if inner.metadata.snapshot_by_id(snapshot_id).is_none() {
            return Ok(None);
        }
        TableView::new(&inner.table, &inner.storage, &inner.metadata, At::Snapshot(snapshot_id)).map(Some)
    }

    /// The data files that may hold matching rows, in the order of their manifests.
    pub async fn files(&self, prune: Option<&dyn Prune>) -> Result<Vec<ScanFile>> {
        if let Some(selection) = &self.0.selection {
            let mut files = selection.files.clone();
            self.prune_files(&mut files, prune);
            return Ok(files);
        }
        let (data, deletes): (Vec<ManifestFile>, Vec<ManifestFile>) = self
            .list()
            .await?
            .iter()
            .filter(|manifest| manifest::may_hold_live_files(manifest))
            .filter(|manifest| {
                // A file is never younger than the manifest that lists it.
                manifest.content == ManifestContentType::Deletes
                    || self.0.after.is_none_or(|after| manifest.sequence_number > after)
            })
            .cloned()
            .partition(|manifest| manifest.content == ManifestContentType::Data);
        let data = self.prune_manifests(data, prune);
        let mut files = self.data_files(data).await?;
        self.prune_files(&mut files, prune);
        if !deletes.is_empty() && !files.is_empty() {
            self.attach_deletes(deletes, &mut files).await?;
        }
        Ok(files)
    }

    /// How much there is to read.
    pub async fn amount(&self) -> Result<Amount> {
        let mut amount = Amount::default();
        for file in self.files(None).await? {
            amount.files += 1;
            amount.rows += file.record_count;
            amount.bytes += file.size;
        }
        Ok(amount)
    }

    /// How many data and delete manifests a plan has to look at.
    pub async fn manifest_counts(&self) -> Result<(usize, usize)> {
        let list = self.list().await?;
        let data = list.iter().filter(|manifest| manifest.content == ManifestContentType::Data).count();
        Ok((data, list.len() - data))
    }

    /// Statistics of chosen files, for an optimiser.
    pub fn statistics<'a>(&'a self, files: &'a [ScanFile]) -> Box<dyn ColumnStatistics + 'a> {
        Box::new(FileStatistics::new(self, files))
    }

    /// Whether rows of the file may be gone.
    pub fn may_lack_rows(&self, file: &ScanFile) -> bool {
        let left_out = self.0.selection.as_ref().is_some_and(|selection| selection.left_out.contains_key(&file.path));
        left_out || !file.deletes.is_empty()
    }

    /// The positions deleted in each of the files, by data file path. Each delete file is read once.
    pub async fn deleted_positions(&self, files: &[ScanFile]) -> Result<DeletedPositions> {
        if let Some(selection) = &self.0.selection {
            return Ok(selection.left_out.clone());
        }
        super::deletes::read(&self.0.table, &self.0.storage, files).await
    }

    async fn list(&self) -> Result<&[ManifestFile]> {
        let inner = &self.0;
        let Some(snapshot) = &inner.snapshot else { return Ok(&[]) };
        let load = || manifest::load_list(&inner.table, inner.storage.file_io(), snapshot, &inner.metadata);
        Ok(inner.loaded.list.get_or_try_init(load).await?)
    }

    fn prune_manifests(&self, manifests: Vec<ManifestFile>, prune: Option<&dyn Prune>) -> Vec<ManifestFile> {
        let Some(prune) = prune else { return manifests };
        let keep = prune.keep(&ManifestStatistics::new(self, &manifests));
        let mut keep = keep.into_iter();
        let mut manifests = manifests;
        manifests.retain(|_| keep.next().unwrap_or(true));
        manifests
    }

    fn prune_files(&self, files: &mut Vec<ScanFile>, prune: Option<&dyn Prune>) {
        let Some(prune) = prune else { return };
        let mut keep = prune.keep(&FileStatistics::new(self, files)).into_iter();
        files.retain(|_| keep.next().unwrap_or(true));
    }

    async fn data_files(&self, manifests: Vec<ManifestFile>) -> Result<Vec<ScanFile>> {
        let per_manifest: Vec<Arc<Vec<ScanFile>>> = stream::iter(manifests)
            .map(|manifest_file| async move {
                if let Some(files) = self.loaded_files().get(&manifest_file.manifest_path) {
                    return Ok::<_, Error>(files.clone());
                }
                let (view, path) = (self.clone(), manifest_file.manifest_path.clone());
                // Avro decoding is work: let it use every core.
                let files = Arc::new(spawned(async move { view.data_files_of(&manifest_file).await }).await?);
                self.loaded_files().insert(path, files.clone());
                Ok(files)
            })
            .buffered(MANIFESTS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(per_manifest.iter().flat_map(|files| files.iter().cloned()).collect())
    }

    fn loaded_files(&self) -> MutexGuard<'_, HashMap<String, Arc<Vec<ScanFile>>>> {
        self.0.loaded.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn data_files_of(&self, manifest_file: &ManifestFile) -> Result<Vec<ScanFile>> {
        let entries = manifest::load(&self.0.table, self.0.storage.file_io(), manifest_file).await?;
        let path: Arc<str> = manifest_file.manifest_path.as_str().into();
        let mut files = Vec::new();
        for entry in entries.iter().filter(|entry| entry.is_alive()) {
            let data = &entry.data_file;
            let sequence = entry.sequence_number().unwrap_or(0);
            if self.0.after.is_some_and(|after| sequence <= after) {
                continue;
            }
            if data.file_format() != DataFileFormat::Parquet {
                return Err(Error::Unsupported {
                    table: self.0.table.clone(),
                    feature: format!("{} data files", data.file_format()),
                });
            }
            files.push(ScanFile {
                path: data.file_path().to_string(),
                size: data.file_size_in_bytes(),
                record_count: data.record_count(),
                deletes: Vec::new(),
                data: Arc::new(data.clone()),
                spec_id: manifest_file.partition_spec_id,
                sequence,
                added: entry.file_sequence_number.unwrap_or(manifest_file.sequence_number),
                manifest: path.clone(),
            });
        }
        Ok(files)
    }

    async fn attach_deletes(&self, manifests: Vec<ManifestFile>, files: &mut [ScanFile]) -> Result<()> {
        let load = async || {
            let deletes = load_deletes(&self.0.table, &self.0.storage, manifests).await?;
            DeleteIndex::new(&self.0.table, deletes)
        };
        let index = self.0.loaded.deletes.get_or_try_init(load).await?;
        for file in files {
            file.deletes = index.applying_to(file);
        }
        Ok(())
    }
}

async fn spawned<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Protocol { what: "a planning task".to_string(), answer: error.to_string() }),
    }
}

fn find_snapshot(table: &TableName, metadata: &TableMetadata, id: i64) -> Result<SnapshotRef> {
    metadata.snapshot_by_id(id).cloned().ok_or_else(|| Error::Change {
        table: table.clone(),
        problem: format!("there is no snapshot {id}; it may have been expired"),
    })
}

fn snapshot_at(table: &TableName, metadata: &TableMetadata, time_ms: i64) -> Result<SnapshotRef> {
    let entry = metadata.history().iter().rev().find(|entry| entry.timestamp_ms() <= time_ms);
    let entry = entry.ok_or_else(|| Error::Change {
        table: table.clone(),
        problem: match metadata.history().first() {
            Some(first) => format!("its history starts at {}, after the time asked for", show_ms(first.timestamp_ms())),
            None => "nothing was ever written to it".to_string(),
        },
    })?;
    find_snapshot(table, metadata, entry.snapshot_id)
}

fn show_ms(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .map(|time| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
        .unwrap_or_else(|| format!("{ms} ms"))
}

/// Every live delete file of the given manifests.
pub(super) async fn load_deletes(
    table: &TableName,
    storage: &Storage,
    manifests: Vec<ManifestFile>,
) -> Result<Vec<Arc<DeleteFile>>> {
    let per_manifest: Vec<Vec<Arc<DeleteFile>>> = stream::iter(manifests)
        .map(|manifest_file| {
            let (table, storage) = (table.clone(), storage.clone());
            spawned(async move {
                let entries = manifest::load(&table, storage.file_io(), &manifest_file).await?;
                let path: Arc<str> = manifest_file.manifest_path.as_str().into();
                let alive = entries.iter().filter(|entry| entry.is_alive()).map(|entry| {
                    Arc::new(DeleteFile {
                        path: entry.file_path().to_string(),
                        rows: entry.record_count(),
                        covers: covered_file(&entry.data_file),
                        data: entry.data_file.clone(),
                        spec_id: manifest_file.partition_spec_id,
                        sequence: entry.sequence_number().unwrap_or(0),
                        manifest: path.clone(),
                    })
                });
                Ok(alive.collect())
            })
        })
        .buffered(MANIFESTS_AT_ONCE)
        .try_collect()
        .await?;
    Ok(per_manifest.into_iter().flatten().collect())
}

/// The data file a position-delete file is about: as its writer says, or as equal bounds of the path column prove.
fn covered_file(delete: &DataFile) -> Option<String> {
    if let Some(path) = delete.referenced_data_file() {
        return Some(path);
    }
    const PATH_FIELD: i32 = 2_147_483_546;
    let text = |datum: &iceberg::spec::Datum| match datum.literal() {
        iceberg::spec::PrimitiveLiteral::String(text) => Some(text.clone()),
        _ => None,
    };
    let lower = delete.lower_bounds().get(&PATH_FIELD).and_then(text)?;
    let upper = delete.upper_bounds().get(&PATH_FIELD).and_then(text)?;
    // Equal bounds of a cut length may be a common prefix only.
    (lower == upper && lower.ends_with(".parquet")).then_some(lower)
}

/// Finds the delete files of a data file: those that name it, and those of its partition, if they are not older.
struct DeleteIndex {
    by_file: HashMap<String, Vec<Arc<DeleteFile>>>,
    by_partition: HashMap<(i32, iceberg::spec::Struct), Vec<Arc<DeleteFile>>>,
}

impl DeleteIndex {
    fn new(table: &TableName, deletes: Vec<Arc<DeleteFile>>) -> Result<Self> {
        let mut index = DeleteIndex { by_file: HashMap::new(), by_partition: HashMap::new() };
        for delete in deletes {
            let feature = match (delete.data.content_type(), delete.data.file_format()) {
                (DataContentType::PositionDeletes, DataFileFormat::Parquet) => None,
                (DataContentType::EqualityDeletes, _) => Some("equality deletes".to_string()),
                (_, format) => Some(format!("position deletes in {format} files")),
            };
            if let Some(feature) = feature {
                return Err(Error::Unsupported { table: table.clone(), feature });
            }
            match &delete.covers {
                Some(path) => index.by_file.entry(path.clone()).or_default().push(delete),
                None => {
                    let partition = (delete.spec_id, delete.data.partition().clone());
                    index.by_partition.entry(partition).or_default().push(delete);
                }
            }
        }
        Ok(index)
    }

    fn applying_to(&self, file: &ScanFile) -> Vec<Arc<DeleteFile>> {
        let named = self.by_file.get(&file.path).into_iter().flatten();
        let partition = self.by_partition.get(&(file.spec_id, file.data.partition().clone())).into_iter().flatten();
        named.chain(partition).filter(|delete| delete.sequence >= file.sequence).cloned().collect()
    }
}
