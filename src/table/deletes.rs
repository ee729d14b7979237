//! Position deletes: reading which rows of a file are gone, and writing files that say so.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type, Schema as ArrowSchema};
use futures::stream::{self, StreamExt, TryStreamExt};
use iceberg::spec::{DataContentType, DataFileBuilder, DataFileFormat, Datum, PartitionSpecRef, Struct, TableMetadata};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::{ParquetObjectReader, ParquetRecordBatchStreamBuilder};
use parquet::arrow::{PARQUET_FIELD_ID_META_KEY, ProjectionMask};
use parquet::file::properties::EnabledStatistics;
use roaring::RoaringTreemap;

use super::error::{Error, Result};
use super::parquet_file::ParquetFile;
use super::scan::{DeleteFile, ScanFile};
use super::storage::{Storage, situation};
use super::writer::{WriteTarget, WrittenFile, parquet_builder, write_error};
use crate::ids::TableName;

const PATH_FIELD_ID: i32 = 2_147_483_546;
const POSITION_FIELD_ID: i32 = 2_147_483_545;

/// Positions written at a time.
const CHUNK_ROWS: u64 = 65_536;

/// Delete files read at the same time.
const FILES_AT_ONCE: usize = 8;

/// Deleted row positions by data file path. A file without deletes has no entry.
pub type DeletedPositions = HashMap<String, Arc<RoaringTreemap>>;

pub(super) async fn read(table: &TableName, storage: &Storage, files: &[ScanFile]) -> Result<DeletedPositions> {
    // A delete file may cover many data files; each is read once and only for those that it applies to.
    let mut wanted: BTreeMap<&str, (&Arc<DeleteFile>, Vec<&str>)> = BTreeMap::new();
    for file in files {
        for delete in &file.deletes {
            wanted.entry(&delete.path).or_insert_with(|| (delete, Vec::new())).1.push(&file.path);
        }
    }
    let wanted: Vec<(Arc<DeleteFile>, Vec<String>)> = wanted
        .into_values()
        .map(|(delete, paths)| (delete.clone(), paths.into_iter().map(str::to_string).collect()))
        .collect();
    let found: Vec<HashMap<String, RoaringTreemap>> = stream::iter(wanted)
        .map(|(delete, paths)| async move { read_one(table, storage, &delete, &paths).await })
        .buffer_unordered(FILES_AT_ONCE)
        .try_collect()
        .await?;
    let mut merged: HashMap<String, RoaringTreemap> = HashMap::new();
    for (path, positions) in found.into_iter().flatten() {
        match merged.get_mut(&path) {
            Some(known) => *known |= positions,
            None => {
                merged.insert(path, positions);
            }
        }
    }
    Ok(merged.into_iter().map(|(path, positions)| (path, Arc::new(positions))).collect())
}

async fn read_one(
    table: &TableName,
    storage: &Storage,
    delete: &DeleteFile,
    paths: &[String],
) -> Result<HashMap<String, RoaringTreemap>> {
    let damaged = |error: parquet::errors::ParquetError| -> Error {
        situation(&error)
            .unwrap_or_else(|| Error::corrupt(table, format!("delete file `{}` cannot be read", delete.path), error))
    };
    let (store, path) = storage.store(&delete.path)?;
    let mut reader = ParquetObjectReader::new(store, path).with_file_size(delete.data.file_size_in_bytes());
    let metadata = ArrowReaderMetadata::load_async(&mut reader, ArrowReaderOptions::new()).await.map_err(damaged)?;
    let metadata = with_numbered_texts(metadata).map_err(damaged)?;
    let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata);
    let schema = builder.parquet_schema();
    let column = |id: i32, name: &str| {
        let leaves = schema.columns().iter().enumerate();
        let found = leaves
            .filter(|(_, leaf)| {
                let info = leaf.self_type().get_basic_info();
                if info.has_id() { info.id() == id } else { info.name() == name }
            })
            .map(|(index, _)| index)
            .next();
        found.ok_or_else(|| Error::Corrupt {
            table: table.clone(),
            problem: format!("delete file `{}` has no column `{name}`", delete.path),
            source: None,
        })
    };
    let (path_column, position_column) = (column(PATH_FIELD_ID, "file_path")?, column(POSITION_FIELD_ID, "pos")?);
    // A file about one data file need not say so on every row.
    let only_positions = delete.covers.is_some();
    let leaves = if only_positions { vec![position_column] } else { vec![path_column, position_column] };
    let mask = ProjectionMask::leaves(schema, leaves);
    let mut batches = builder.with_projection(mask).with_batch_size(65_536).build().map_err(damaged)?;
    let mut found: HashMap<String, RoaringTreemap> = HashMap::new();
    while let Some(batch) = batches.try_next().await.map_err(damaged)? {
        let shape_error = || Error::Corrupt {
            table: table.clone(),
            problem: format!("delete file `{}` has columns of other types than path and position", delete.path),
            source: None,
        };
        let positions_index = if only_positions || position_column < path_column { 0 } else { 1 };
        let positions = cast(batch.column(positions_index), &DataType::Int64).map_err(|_| shape_error())?;
        let positions = positions.as_any().downcast_ref::<Int64Array>().ok_or_else(shape_error)?;
        if positions.null_count() > 0 || positions.values().iter().any(|position| *position < 0) {
            return Err(shape_error());
        }
        if let (true, Some(path)) = (only_positions, &delete.covers) {
            add(found.entry(path.clone()).or_default(), positions.values());
            continue;
        }
        let numbered = cast(batch.column(1 - positions_index), &numbered_text()).map_err(|_| shape_error())?;
        let numbered = numbered.as_dictionary_opt::<Int32Type>().ok_or_else(shape_error)?;
        let texts = numbered.values().as_string_opt::<i32>().ok_or_else(shape_error)?;
        if numbered.null_count() > 0 {
            return Err(shape_error());
        }
        let mut rest: &[i64] = positions.values();
        for run in numbered.keys().values().chunk_by(|one, next| one == next) {
            let (of_run, others) = rest.split_at(run.len());
            rest = others;
            let path = texts.value(run[0] as usize);
            match found.get_mut(path) {
                Some(positions) => add(positions, of_run),
                None if paths.iter().any(|wanted| wanted == path) => {
                    add(found.entry(path.to_string()).or_default(), of_run);
                }
                None => {}
            }
        }
    }
    found.retain(|path, _| paths.contains(path));
    Ok(found)
}

fn add(set: &mut RoaringTreemap, positions: &[i64]) {
    let as_unsigned = positions.iter().map(|position| *position as u64);
    // They come sorted, unless another engine wrote them otherwise.
    if set.append(as_unsigned.clone()).is_err() {
        set.extend(as_unsigned);
    }
}

fn numbered_text() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// Has texts come as numbers into a list of them. A path has a hundred bytes, and stands on as many rows as its file has
/// deleted ones.
fn with_numbered_texts(metadata: ArrowReaderMetadata) -> parquet::errors::Result<ArrowReaderMetadata> {
    let numbered = |field: &FieldRef| match field.data_type() {
        DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(numbered_text())),
        _ => field.clone(),
    };
    let schema = metadata.schema();
    let fields: Vec<FieldRef> = schema.fields().iter().map(numbered).collect();
    let schema = Arc::new(ArrowSchema::new_with_metadata(fields, schema.metadata().clone()));
    ArrowReaderMetadata::try_new(metadata.metadata().clone(), ArrowReaderOptions::new().with_schema(schema))
}

/// Writes position-delete files for the given rows. One file per data file, so that a reader of one file opens one
/// delete file; or one per partition where the table's `write.delete.granularity` says `partition`.
///
/// They go under the data file's own partition spec: readers match by partition and spec.
pub(super) async fn write(
    target: &WriteTarget,
    metadata: &TableMetadata,
    rows: &[(ScanFile, RoaringTreemap)],
) -> Result<Vec<WrittenFile>> {
    let by_partition = target.properties.get("write.delete.granularity").is_some_and(|value| value == "partition");
    // By index: with references in them the compiler could not tell that the future may go to another thread.
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut group_of: HashMap<(i32, Struct), usize> = HashMap::new();
    for (index, (file, _)) in rows.iter().enumerate().filter(|(_, (_, positions))| !positions.is_empty()) {
        if by_partition {
            let key = (file.spec_id, file.data.partition().clone());
            match group_of.get(&key) {
                Some(group) => groups[*group].push(index),
                None => {
                    group_of.insert(key, groups.len());
                    groups.push(vec![index]);
                }
            }
        } else {
            groups.push(vec![index]);
        }
    }
    stream::iter(groups)
        .map(|group| async move {
            let mut group: Vec<&(ScanFile, RoaringTreemap)> = group.into_iter().map(|index| &rows[index]).collect();
            // The specification wants rows sorted by path, then position.
            group.sort_by(|left, right| left.0.path.cmp(&right.0.path));
            let first = &group[0].0;
            let spec = metadata.partition_spec_by_id(first.spec_id).ok_or_else(|| Error::Corrupt {
                table: target.table.clone(),
                problem: format!("data file `{}` has a partition spec that is not there", first.path),
                source: None,
            })?;
            write_one(target, spec, first.data.partition().clone(), &group).await
        })
        .buffered(FILES_AT_ONCE)
        .try_collect()
        .await
}

async fn write_one(
    target: &WriteTarget,
    spec: &PartitionSpecRef,
    partition: Struct,
    group: &[&(ScanFile, RoaringTreemap)],
) -> Result<WrittenFile> {
    let field = |name: &str, data_type: DataType, id: i32| {
        let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_string(), id.to_string())]);
        Field::new(name, data_type, false).with_metadata(metadata)
    };
    let schema = Arc::new(ArrowSchema::new(vec![
        field("file_path", DataType::Utf8, PATH_FIELD_ID),
        field("pos", DataType::Int64, POSITION_FIELD_ID),
    ]));
    let path = target.data_file_location("", "-deletes");
    // Paths are compared whole: their bounds are never cut. No position is there twice.
    let properties = parquet_builder(target)?
        .set_column_dictionary_enabled("pos".into(), false)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_statistics_truncate_length(None)
        .set_column_index_truncate_length(None)
        .build();
    let mut rows = ParquetFile::create(&target.file_io, path.clone(), schema.clone(), properties).await?;
    let mut count = 0u64;
    let mut bounds: Option<(i64, i64)> = None;
    for (file, positions) in group {
        let mut remaining = positions.iter().peekable();
        let paths = positions.len().min(CHUNK_ROWS) as usize;
        let paths = StringArray::from_iter_values(std::iter::repeat_n(file.path.as_str(), paths));
        while remaining.peek().is_some() {
            let chunk: Vec<i64> = remaining.by_ref().take(paths.len()).map(|position| position as i64).collect();
            if let (Some(first), Some(last)) = (chunk.first(), chunk.last()) {
                let (low, high) = bounds.unwrap_or((*first, *last));
                bounds = Some((low.min(*first), high.max(*last)));
            }
            count += chunk.len() as u64;
            let columns: Vec<ArrayRef> = vec![Arc::new(paths.slice(0, chunk.len())), Arc::new(Int64Array::from(chunk))];
            let batch = RecordBatch::try_new(schema.clone(), columns).map_err(|error| write_error(&path, error))?;
            rows.write(&batch).await?;
        }
    }
    rows.finish().await?;
    let (low, high) = bounds.unwrap_or((0, 0));
    let (first, last) = (&group[0].0.path, &group[group.len() - 1].0.path);
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::PositionDeletes)
        .file_path(path.clone())
        .file_format(DataFileFormat::Parquet)
        .partition(partition)
        .partition_spec_id(spec.spec_id())
        .record_count(count)
        .file_size_in_bytes(rows.written_bytes())
        .value_counts(HashMap::from([(PATH_FIELD_ID, count), (POSITION_FIELD_ID, count)]))
        .null_value_counts(HashMap::from([(PATH_FIELD_ID, 0), (POSITION_FIELD_ID, 0)]))
        .lower_bounds(HashMap::from([(PATH_FIELD_ID, Datum::string(first)), (POSITION_FIELD_ID, Datum::long(low))]))
        .upper_bounds(HashMap::from([(PATH_FIELD_ID, Datum::string(last)), (POSITION_FIELD_ID, Datum::long(high))]));
    if group.len() == 1 {
        builder.referenced_data_file(Some(first.clone()));
    }
    let file = builder.build().map_err(|error| write_error(&path, error))?;
    Ok(WrittenFile { file, spec_id: spec.spec_id() })
}
