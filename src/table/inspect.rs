//! What a table looks like, for people: its snapshots, its files, its size.

use std::collections::BTreeMap;

use iceberg::spec::{DataContentType, ManifestContentType, TableMetadata};

use super::error::Result;
use super::{Table, manifest, partition, schema};

/// One snapshot of a table's history.
#[derive(Debug, Clone)]
pub struct SnapshotRow {
    pub id: i64,
    pub parent: Option<i64>,
    pub sequence: i64,
    pub committed_ms: i64,
    pub operation: String,
    pub is_current: bool,
    /// The schema it was made under.
    pub schema_id: Option<i32>,
    pub summary: BTreeMap<String, String>,
}

/// One live file.
#[derive(Debug, Clone)]
pub struct FileRow {
    pub path: String,
    pub content: &'static str,
    pub partition: String,
    pub rows: u64,
    pub bytes: u64,
    /// The age of its rows: deletes of this number or later may apply to them.
    pub sequence_number: Option<i64>,
}

/// One column, top-level.
#[derive(Debug, Clone)]
pub struct ColumnInfo {
    pub id: i32,
    pub name: String,
    /// As Iceberg writes it.
    pub column_type: String,
    pub required: bool,
    pub doc: Option<String>,
}

/// A table in a line. Rows and files as the head's summary counts them: rows of data files, deleted or not.
#[derive(Debug, Clone)]
pub struct Summary {
    pub snapshot_id: Option<i64>,
    pub committed_ms: Option<i64>,
    pub snapshots: usize,
    pub data_files: Option<u64>,
    pub delete_files: Option<u64>,
    pub records: Option<u64>,
    pub position_deletes: Option<u64>,
    pub bytes: Option<u64>,
    pub partition: String,
    pub sort: String,
}

pub(super) fn columns(metadata: &TableMetadata) -> Vec<ColumnInfo> {
    let fields = metadata.current_schema().as_struct().fields().iter();
    fields
        .map(|field| ColumnInfo {
            id: field.id,
            name: field.name.clone(),
            column_type: schema::show(&field.field_type),
            required: field.required,
            doc: field.doc.clone(),
        })
        .collect()
}

pub(super) fn partition_columns(metadata: &TableMetadata) -> Vec<String> {
    let sources = metadata.partition_specs_iter().flat_map(|spec| spec.fields().iter().map(|field| field.source_id));
    let names = sources.filter_map(|id| metadata.current_schema().name_by_field_id(id));
    names.map(str::to_string).collect()
}

pub(super) fn snapshots(metadata: &TableMetadata) -> Vec<SnapshotRow> {
    let current = metadata.current_snapshot_id();
    let mut rows: Vec<SnapshotRow> = metadata
        .snapshots()
        .map(|snapshot| SnapshotRow {
            id: snapshot.snapshot_id(),
            parent: snapshot.parent_snapshot_id(),
            sequence: snapshot.sequence_number(),
            committed_ms: snapshot.timestamp_ms(),
            operation: snapshot.summary().operation.as_str().to_string(),
            schema_id: snapshot.schema_id(),
            is_current: current == Some(snapshot.snapshot_id()),
            summary: snapshot.summary().additional_properties.clone().into_iter().collect(),
        })
        .collect();
    rows.sort_by_key(|row| (row.sequence, row.committed_ms));
    rows
}

pub(super) async fn files(table: &Table) -> Result<Vec<FileRow>> {
    let metadata = table.metadata();
    let Some(snapshot) = metadata.current_snapshot() else { return Ok(Vec::new()) };
    let file_io = table.lake.storage().file_io();
    let mut rows = Vec::new();
    for manifest_file in manifest::load_list(table.name(), file_io, snapshot, metadata).await? {
        let spec = metadata.partition_spec_by_id(manifest_file.partition_spec_id);
        for entry in manifest::load(table.name(), file_io, &manifest_file).await? {
            if !entry.is_alive() {
                continue;
            }
            let file = &entry.data_file;
            let partition = match spec {
                Some(spec) => {
                    let fields = partition::described(spec, metadata.current_schema(), file.partition()).into_iter();
                    fields.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("/")
                }
                None => String::new(),
            };
            let content = match (manifest_file.content, file.content_type()) {
                (ManifestContentType::Data, _) => "data",
                (_, DataContentType::EqualityDeletes) => "equality deletes",
                _ => "position deletes",
            };
            rows.push(FileRow {
                path: file.file_path().to_string(),
                content,
                partition,
                rows: file.record_count(),
                bytes: file.file_size_in_bytes(),
                sequence_number: entry.sequence_number(),
            });
        }
    }
    Ok(rows)
}

pub(super) fn summary(table: &Table) -> Summary {
    let metadata = table.metadata();
    let snapshot = metadata.current_snapshot();
    let total = |key: &str| -> Option<u64> {
        match snapshot {
            Some(snapshot) => snapshot.summary().additional_properties.get(key)?.parse().ok(),
            None => Some(0),
        }
    };
    let spec = metadata.default_partition_spec();
    let fields = spec.fields().iter().map(|field| {
        let source = metadata.current_schema().name_by_field_id(field.source_id).unwrap_or("?");
        match field.transform {
            iceberg::spec::Transform::Identity => source.to_string(),
            iceberg::spec::Transform::Bucket(count) => format!("bucket({count}, {source})"),
            iceberg::spec::Transform::Truncate(width) => format!("truncate({width}, {source})"),
            transform => format!("{transform}({source})"),
        }
    });
    let sort = metadata.default_sort_order().fields.iter().map(|field| {
        let source = metadata.current_schema().name_by_field_id(field.source_id).unwrap_or("?");
        format!("{source} {} {}", field.direction, field.null_order)
    });
    Summary {
        snapshot_id: metadata.current_snapshot_id(),
        committed_ms: snapshot.map(|snapshot| snapshot.timestamp_ms()),
        snapshots: metadata.snapshots().len(),
        data_files: total("total-data-files"),
        delete_files: total("total-delete-files"),
        records: total("total-records"),
        position_deletes: total("total-position-deletes"),
        bytes: total("total-files-size"),
        partition: fields.collect::<Vec<_>>().join(", "),
        sort: sort.collect::<Vec<_>>().join(", "),
    }
}
