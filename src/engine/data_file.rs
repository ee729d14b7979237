//! Reads the bytes of data files.
//!
//! A scan's files may lie in several buckets or folders, so each file carries its own store along; DataFusion's registry
//! of stores by URL is not used.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetMetaData;
use datafusion::datasource::physical_plan::{ParquetFileMetrics, ParquetFileReaderFactory};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::cache::cache_manager::{CachedFileMetadataEntry, FileMetadataCache};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use parquet::arrow::ARROW_SCHEMA_META_KEY;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::{AsyncFileReader, ParquetObjectReader};
use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    FileMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataBuilder, ParquetMetaDataReader,
};
use parquet::schema::types::ColumnDescriptor;
use roaring::RoaringTreemap;

/// What a file of a scan carries along besides its path and size.
#[derive(Debug)]
pub(crate) struct DataFile {
    /// As the table's metadata names it.
    pub(crate) location: String,
    store: Arc<dyn ObjectStore>,
    /// Positions of rows that are deleted; `None` when there are none.
    pub(crate) deleted: Option<Arc<RoaringTreemap>>,
}

impl DataFile {
    pub(crate) fn new(location: String, store: Arc<dyn ObjectStore>, deleted: Option<Arc<RoaringTreemap>>) -> Self {
        DataFile { location, store, deleted }
    }

    /// The file as DataFusion plans it.
    pub(crate) fn into_partitioned_file(self, path: Path, size: u64) -> PartitionedFile {
        // The cache of footers tells files apart by path, size and time. Iceberg never writes a path twice, but two
        // buckets may hold the same path, so the time is a digest of the full location.
        let mut hasher = DefaultHasher::new();
        self.location.hash(&mut hasher);
        let last_modified =
            DateTime::from_timestamp((hasher.finish() >> 24) as i64 & 0xff_ffff_ffff, 0).unwrap_or_default();
        let meta = ObjectMeta { location: path, last_modified, size, e_tag: None, version: None };
        PartitionedFile::new_from_meta(meta).with_extensions(Arc::new(self))
    }

    pub(crate) fn of(file: &PartitionedFile) -> Result<Arc<DataFile>> {
        let carried = file.extensions.clone().and_then(|carried| carried.downcast::<DataFile>().ok());
        carried.ok_or_else(|| DataFusionError::Internal(format!("`{}` came without its store", file.path())))
    }
}

#[derive(Debug)]
pub(crate) struct DataFileReaderFactory {
    cache: Arc<dyn FileMetadataCache>,
}

impl DataFileReaderFactory {
    pub(crate) fn new(cache: Arc<dyn FileMetadataCache>) -> Self {
        DataFileReaderFactory { cache }
    }
}

impl ParquetFileReaderFactory for DataFileReaderFactory {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let data_file = DataFile::of(&file)?;
        let meta = file.object_meta;
        let metrics = ParquetFileMetrics::new(partition_index, meta.location.as_ref(), metrics);
        let inner = ParquetObjectReader::new(data_file.store.clone(), meta.location.clone()).with_file_size(meta.size);
        Ok(Box::new(DataFileReader { inner, meta, metrics, metadata_size_hint, cache: self.cache.clone() }))
    }
}

struct DataFileReader {
    inner: ParquetObjectReader,
    meta: ObjectMeta,
    metrics: ParquetFileMetrics,
    metadata_size_hint: Option<usize>,
    cache: Arc<dyn FileMetadataCache>,
}

impl AsyncFileReader for DataFileReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        self.metrics.bytes_scanned.add((range.end - range.start) as usize);
        self.inner.get_bytes(range)
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, parquet::errors::Result<Vec<Bytes>>> {
        self.metrics.bytes_scanned.add(ranges.iter().map(|range| (range.end - range.start) as usize).sum());
        self.inner.get_byte_ranges(ranges)
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move {
            if let Some(entry) = self.cache.get(&self.meta.location)
                && entry.is_valid_for(&self.meta)
                && let Some(cached) = entry.file_metadata.as_any().downcast_ref::<CachedParquetMetaData>()
            {
                return Ok(cached.parquet_metadata().clone());
            }
            let size = self.meta.size;
            let metadata = ParquetMetaDataReader::new()
                // With the page index, because a cached footer has to serve every later reader.
                .with_page_index_policy(PageIndexPolicy::Optional)
                .with_prefetch_hint(self.metadata_size_hint)
                .load_and_finish(&mut *self, size)
                .await?;
            let metadata = Arc::new(without_traps(metadata)?);
            let entry = Arc::new(CachedParquetMetaData::new(metadata.clone()));
            self.cache.put(&self.meta.location, CachedFileMetadataEntry::new(self.meta.clone(), entry));
            Ok(metadata)
        }
        .boxed()
    }
}

/// The footer without two things that mislead the reader.
///
/// - The Arrow schema that Arrow writers embed: it would bring back types the table does not have (`large_string`,
///   dictionaries) and hide the field ids of the Parquet schema where the embedded one has none.
/// - Bloom filters of decimals stored as fixed-size bytes: DataFusion 53 probes them with 16 bytes whatever the
///   column's width is, finds nothing and drops row groups that do match.
fn without_traps(metadata: ParquetMetaData) -> Result<ParquetMetaData, ParquetError> {
    let file = metadata.file_metadata();
    let schema = file.schema_descr_ptr();
    let kept = file
        .key_value_metadata()
        .map(|entries| entries.iter().filter(|entry| entry.key != ARROW_SCHEMA_META_KEY).cloned().collect());
    let file = FileMetaData::new(
        file.version(),
        file.num_rows(),
        file.created_by().map(str::to_string),
        kept,
        schema.clone(),
        file.column_orders().cloned(),
    );
    let mut old = metadata.into_builder();
    let (column_index, offset_index) = (old.take_column_index(), old.take_offset_index());
    let mut row_groups = old.take_row_groups();
    if schema.columns().iter().any(|column| has_short_decimals(column)) {
        for row_group in &mut row_groups {
            for column in row_group.columns_mut() {
                if has_short_decimals(column.column_descr()) && column.bloom_filter_offset().is_some() {
                    let builder = column.clone().into_builder();
                    *column = builder.set_bloom_filter_offset(None).set_bloom_filter_length(None).build()?;
                }
            }
        }
    }
    Ok(ParquetMetaDataBuilder::new(file)
        .set_row_groups(row_groups)
        .set_column_index(column_index)
        .set_offset_index(offset_index)
        .build())
}

fn has_short_decimals(column: &ColumnDescriptor) -> bool {
    let is_decimal = matches!(column.logical_type_ref(), Some(LogicalType::Decimal { .. }))
        || column.converted_type() == ConvertedType::DECIMAL;
    is_decimal && column.physical_type() == PhysicalType::FIXED_LEN_BYTE_ARRAY && column.type_length() != 16
}

#[cfg(test)]
mod tests {
    use datafusion::execution::cache::cache_manager::CachedFileMetadataEntry;
    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn the_same_path_in_two_buckets_is_two_files_to_the_cache() {
        let planned = |location: &str| {
            let file = DataFile::new(location.to_string(), Arc::new(InMemory::new()), None);
            file.into_partitioned_file(Path::from("data/1.parquet"), 100).object_meta
        };
        let footer = ParquetMetaDataBuilder::new(FileMetaData::new(1, 0, None, None, empty_schema(), None)).build();
        let footer = Arc::new(CachedParquetMetaData::new(Arc::new(footer)));
        let entry = CachedFileMetadataEntry::new(planned("s3://one/data/1.parquet"), footer);
        assert!(entry.is_valid_for(&planned("s3://one/data/1.parquet")));
        assert!(!entry.is_valid_for(&planned("s3://two/data/1.parquet")));
    }

    fn empty_schema() -> parquet::schema::types::SchemaDescPtr {
        let root = parquet::schema::types::Type::group_type_builder("root").build().unwrap();
        Arc::new(parquet::schema::types::SchemaDescriptor::new(Arc::new(root)))
    }
}
