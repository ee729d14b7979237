//! The file source behind a scan of an Iceberg table.
//!
//! It is DataFusion's Parquet source, which keeps the projection, the predicate, the metrics and the way files without
//! deletes are read, with two additions at the moment a file is opened: a file that a filter found meanwhile (a join's
//! keys, a top-k's threshold) cannot match is not opened at all, and a file that DataFusion cannot read alone, or would not
//! share out evenly, goes to [`PositionOpener`].

use std::any::Any;
use std::fmt;
use std::future::ready;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::config::{ConfigOptions, TableParquetOptions};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{
    FileOpenFuture, FileOpener, FileScanConfig, FileScanConfigBuilder, FileSource, ParquetSource,
};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr, conjunction};
use datafusion::physical_expr_common::physical_expr::{is_dynamic_physical_expr, snapshot_generation};
use datafusion::physical_plan::filter_pushdown::{FilterPushdownPropagation, PushedDown};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder};
use datafusion::physical_plan::{DisplayFormatType, SortOrderPushdownResult};
use futures::{FutureExt, StreamExt};
use object_store::ObjectStore;

use super::columns::FieldIdAdapterFactory;
use super::data_file::{DataFile, DataFileReaderFactory};
use super::position_scan::PositionOpener;
use super::prune;

/// Counts the files that were planned and then not opened, because a filter had become known in between.
pub(crate) const FILES_SKIPPED: &str = "files_skipped_at_open";

#[derive(Clone)]
pub(crate) struct IcebergSource {
    parquet: ParquetSource,
    batch_size: Option<usize>,
    readers: Arc<DataFileReaderFactory>,
    columns: Arc<FieldIdAdapterFactory>,
    with_positions: bool,
    /// What the deleted positions take from the memory budget for as long as the plan lives.
    reservation: Option<Arc<MemoryReservation>>,
}

impl IcebergSource {
    pub(crate) fn new(
        schema: TableSchema,
        options: TableParquetOptions,
        readers: Arc<DataFileReaderFactory>,
        columns: Arc<FieldIdAdapterFactory>,
    ) -> Self {
        let hint = options.global.metadata_size_hint;
        let mut parquet = ParquetSource::new(schema)
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(readers.clone());
        if let Some(hint) = hint {
            parquet = parquet.with_metadata_size_hint(hint);
        }
        IcebergSource { parquet, batch_size: None, readers, columns, with_positions: false, reservation: None }
    }

    /// The table schema's last columns are the file's location and the row's position.
    pub(crate) fn with_positions(mut self, with_positions: bool) -> Self {
        self.with_positions = with_positions;
        self
    }

    pub(crate) fn with_reservation(mut self, reservation: Option<Arc<MemoryReservation>>) -> Self {
        self.reservation = reservation;
        self
    }

    fn around(&self, parquet: ParquetSource) -> Arc<dyn FileSource> {
        Arc::new(IcebergSource { parquet, ..self.clone() })
    }
}

fn parquet_source(source: &Arc<dyn FileSource>) -> Result<ParquetSource> {
    let source = source.as_any().downcast_ref::<ParquetSource>().cloned();
    source.ok_or_else(|| DataFusionError::Internal("a Parquet source turned into another one".to_string()))
}

impl FileSource for IcebergSource {
    fn create_file_opener(
        &self,
        store: Arc<dyn ObjectStore>,
        base: &FileScanConfig,
        partition: usize,
    ) -> Result<Arc<dyn FileOpener>> {
        let batch_size = self.batch_size.or(base.batch_size);
        let batch_size = batch_size.ok_or_else(|| DataFusionError::Internal("a scan has no batch size".to_string()))?;
        // With a limit and without an order to keep, DataFusion reads only row groups of which it believes every row
        // matches, and counts nulls and rows outside the access plan among them.
        let config = FileScanConfigBuilder::new(base.object_store_url.clone(), Arc::new(self.parquet.clone()))
            .with_limit(base.limit)
            .with_preserve_order(true)
            .with_expr_adapter(Some(self.columns.clone()))
            .build();
        let plain = self.parquet.create_file_opener(store, &config, partition)?;
        let schema = self.parquet.table_schema().clone();
        let metrics = self.parquet.metrics().clone();
        let predicate = self.parquet.filter();
        let skipped = MetricBuilder::new(&metrics).counter(FILES_SKIPPED, partition);
        let projection = self.parquet.projection().cloned();
        let projection = projection.ok_or_else(|| DataFusionError::Internal("a scan has no projection".to_string()))?;
        let positions = PositionOpener {
            partition,
            projection,
            predicate: predicate.clone(),
            schema: schema.clone(),
            batch_size,
            limit: base.limit,
            options: self.parquet.table_parquet_options().global.clone(),
            metrics,
            readers: self.readers.clone(),
            columns: self.columns.clone(),
            with_positions: self.with_positions,
            only_needed_leaves: false,
            shares_row_groups: true,
        };
        let dynamic = predicate.filter(is_dynamic_physical_expr);
        Ok(Arc::new(IcebergOpener { plain, positions: Arc::new(positions), dynamic, schema, skipped }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn table_schema(&self) -> &TableSchema {
        self.parquet.table_schema()
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        match parquet_source(&self.parquet.with_batch_size(batch_size)) {
            Ok(parquet) => Arc::new(IcebergSource { parquet, batch_size: Some(batch_size), ..self.clone() }),
            Err(_) => Arc::new(IcebergSource { batch_size: Some(batch_size), ..self.clone() }),
        }
    }

    fn filter(&self) -> Option<Arc<dyn PhysicalExpr>> {
        self.parquet.filter()
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        self.parquet.projection()
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        self.parquet.metrics()
    }

    fn file_type(&self) -> &str {
        "iceberg"
    }

    fn fmt_extra(&self, format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        self.parquet.fmt_extra(format, f)
    }

    /// Takes filters for pruning only. They are evaluated above the scan, on the table's own types, so that a file of
    /// another type or without the column cannot make a difference.
    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn FileSource>>> {
        let answer = FilterPushdownPropagation::with_parent_pushdown_result(vec![PushedDown::No; filters.len()]);
        if filters.is_empty() {
            return Ok(answer);
        }
        let predicate = conjunction(self.parquet.filter().into_iter().chain(filters));
        Ok(answer.with_updated_node(self.around(self.parquet.with_predicate(predicate))))
    }

    fn try_pushdown_projection(&self, projection: &ProjectionExprs) -> Result<Option<Arc<dyn FileSource>>> {
        match self.parquet.try_pushdown_projection(projection)? {
            Some(source) => Ok(Some(self.around(parquet_source(&source)?))),
            None => Ok(None),
        }
    }

    fn try_pushdown_sort(
        &self,
        _order: &[PhysicalSortExpr],
        _properties: &EquivalenceProperties,
    ) -> Result<SortOrderPushdownResult<Arc<dyn FileSource>>> {
        Ok(SortOrderPushdownResult::Unsupported)
    }
}

struct IcebergOpener {
    plain: Arc<dyn FileOpener>,
    positions: Arc<PositionOpener>,
    /// The predicate, when parts of it become known only while the query runs.
    dynamic: Option<Arc<dyn PhysicalExpr>>,
    schema: TableSchema,
    skipped: Count,
}

impl FileOpener for IcebergOpener {
    fn open(&self, mut file: PartitionedFile) -> Result<FileOpenFuture> {
        let data_file = DataFile::of(&file)?;
        // DataFusion gives a range to files that it has not cut, too.
        let size = i64::try_from(file.object_meta.size).unwrap_or(i64::MAX);
        file.range = file.range.filter(|range| range.start > 0 || range.end < size);
        let (dynamic, statistics) = (self.dynamic.clone(), file.statistics.clone());
        let (schema, skipped) = (self.schema.table_schema().clone(), self.skipped.clone());
        let is_plain = !self.positions.with_positions && data_file.deleted.is_none() && file.range.is_none();
        let opening = match is_plain {
            true => self.plain.open(file)?,
            false => self.positions.clone().open(file, data_file).boxed(),
        };
        Ok(async move {
            let (Some(filter), Some(statistics)) = (dynamic, statistics) else { return opening.await };
            let mut known = snapshot_generation(&filter);
            if !prune::may_match(&filter, &schema, &statistics) {
                skipped.add(1);
                return Ok(futures::stream::empty().boxed());
            }
            let rows = opening.await?;
            if is_plain {
                // It stops by itself.
                return Ok(rows);
            }
            let goes_on = move |_: &Result<RecordBatch>| {
                let now = snapshot_generation(&filter);
                let goes_on = now == known || prune::may_match(&filter, &schema, &statistics);
                known = now;
                ready(goes_on)
            };
            Ok(rows.take_while(goes_on).boxed())
        }
        .boxed())
    }
}
