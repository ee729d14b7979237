//! Tables out of Parquet files that lie around, for the tests of readers: real manifests over files of any shape, also
//! such as our own writer would never make.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use iceberg::TableUpdate;
use iceberg::arrow::arrow_schema_to_schema;
use iceberg::spec::{
    DataContentType, DataFileBuilder, DataFileFormat, MAIN_BRANCH, ManifestContentType, Operation, Snapshot,
    SnapshotReference, SnapshotRetention, Struct, Summary, TableMetadata,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringTreemap;
use serde_json::json;
use uuid::Uuid;

use super::manifest::ManifestPlace;
use super::scan::{At, ScanFile, TableView};
use super::storage::{Storage, StorageOptions};
use super::writer::WriteTarget;
use super::{deletes, metrics};
use crate::ids::TableName;

impl TableView {
    /// A view of an unpartitioned table of these files, with these positions deleted in each.
    pub(crate) fn from_files(name: TableName, schema: SchemaRef, files: Vec<(PathBuf, Vec<u64>)>) -> Self {
        let made = make(name, schema, files);
        match tokio::runtime::Handle::try_current() {
            Ok(_) => futures::executor::block_on(made),
            Err(_) => tokio::runtime::Runtime::new().unwrap().block_on(made),
        }
    }
}

async fn make(name: TableName, schema: SchemaRef, files: Vec<(PathBuf, Vec<u64>)>) -> TableView {
    let storage = Storage::new(StorageOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap().keep();
    let location = format!("file://{}", folder.display());
    let schema = Arc::new(arrow_schema_to_schema(&schema).unwrap());
    let metadata: TableMetadata = serde_json::from_value(json!({
        "format-version": 2,
        "table-uuid": Uuid::new_v4(),
        "location": location,
        "last-sequence-number": 0,
        "last-updated-ms": 0,
        "last-column-id": schema.highest_field_id(),
        "schemas": [schema.as_ref()],
        "current-schema-id": 0,
        "partition-specs": [{ "spec-id": 0, "fields": [] }],
        "default-spec-id": 0,
        "last-partition-id": 999,
        "sort-orders": [{ "order-id": 0, "fields": [] }],
        "default-sort-order-id": 0,
    }))
    .unwrap();
    let spec = metadata.default_partition_spec().clone();
    let target = WriteTarget {
        table: name.clone(),
        file_io: storage.file_io().clone(),
        location,
        schema: schema.clone(),
        spec: spec.clone(),
        properties: Default::default(),
    };

    let mut scan_files = Vec::new();
    for (path, deleted) in files {
        let file = std::fs::File::open(&path).unwrap();
        let size = file.metadata().unwrap().len();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let mut builder = DataFileBuilder::default();
        builder
            .content(DataContentType::Data)
            .file_path(format!("file://{}", path.display()))
            .file_format(DataFileFormat::Parquet)
            .partition(Struct::empty())
            .partition_spec_id(0)
            .file_size_in_bytes(size);
        metrics::describe(&mut builder, reader.metadata(), &schema, metrics::NanCounts::new(reader.schema()));
        let data = builder.build().unwrap();
        let file = ScanFile {
            path: data.file_path().to_string(),
            size,
            record_count: data.record_count(),
            deletes: Vec::new(),
            data: Arc::new(data),
            spec_id: 0,
            sequence: 1,
            added: 1,
            manifest: "".into(),
        };
        scan_files.push((file, RoaringTreemap::from_iter(deleted)));
    }
    let written = deletes::write(&target, &metadata, &scan_files).await.unwrap();

    let place =
        ManifestPlace { file_io: storage.file_io(), metadata: &metadata, commit_id: Uuid::new_v4(), snapshot_id: 1 };
    let mut manifests = Vec::new();
    if !scan_files.is_empty() {
        let (_, mut writer) = place.writer(ManifestContentType::Data, &schema, &spec).unwrap();
        scan_files.iter().for_each(|(file, _)| writer.add_file(file.data.as_ref().clone(), -1).unwrap());
        manifests.push(writer.write_manifest_file().await.unwrap());
    }
    if !written.is_empty() {
        let (_, mut writer) = place.writer(ManifestContentType::Deletes, &schema, &spec).unwrap();
        written.iter().for_each(|file| writer.add_file(file.file.clone(), -1).unwrap());
        manifests.push(writer.write_manifest_file().await.unwrap());
    }
    let list = place.write_list(manifests, None, 1, 1).await.unwrap();
    let snapshot = Snapshot::builder()
        .with_snapshot_id(1)
        .with_sequence_number(1)
        .with_timestamp_ms(1)
        .with_manifest_list(list)
        .with_summary(Summary { operation: Operation::Append, additional_properties: Default::default() })
        .with_schema_id(0)
        .build();
    let reference = SnapshotReference::new(1, SnapshotRetention::branch(None, None, None));
    let updates = [
        TableUpdate::AddSnapshot { snapshot },
        TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.to_string(), reference },
    ];
    let builder =
        updates.into_iter().fold(metadata.into_builder(None), |builder, update| update.apply(builder).unwrap());
    TableView::new(&name, &storage, &Arc::new(builder.build().unwrap().metadata), At::Head).unwrap()
}
