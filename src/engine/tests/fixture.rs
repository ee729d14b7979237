//! A folder with data files, and sessions that read them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::SessionContext;
use parquet::arrow::{ArrowWriter, PARQUET_FIELD_ID_META_KEY};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};

use crate::engine::{Engine, EngineOptions, Error, plan, register};
use crate::ids::TableName;
use crate::table::TableView;

pub(super) struct Lake {
    folder: tempfile::TempDir,
    pub(super) engine: Engine,
}

impl Lake {
    pub(super) fn new() -> Self {
        Self::with(2, 256 * 1024 * 1024)
    }

    pub(super) fn with(threads: usize, memory_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spill_dir = folder.path().join("spill");
        let engine = Engine::new(&EngineOptions { memory_bytes, threads, spill_dir }).unwrap();
        Lake { folder, engine }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a data file as Iceberg writers do: field ids in the Parquet schema.
    pub(super) fn write(&self, name: &str, batch: &RecordBatch) -> PathBuf {
        self.write_with(name, batch, WriterProperties::builder())
    }

    pub(super) fn write_with(&self, name: &str, batch: &RecordBatch, properties: WriterPropertiesBuilder) -> PathBuf {
        let path = self.path(name);
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties.build())).unwrap();
        // In small steps, so that small pages can be cut.
        for start in (0..batch.num_rows()).step_by(100) {
            writer.write(&batch.slice(start, 100.min(batch.num_rows() - start))).unwrap();
        }
        writer.close().unwrap();
        path
    }

    /// A session with one table, `shop.orders`, over files and the positions deleted in each.
    pub(super) fn session(&self, schema: &SchemaRef, files: &[(PathBuf, Vec<u64>)]) -> SessionContext {
        let context = self.engine.session();
        add(&context, "shop.orders", schema, files);
        context
    }
}

/// The one place that knows how a table comes to be.
pub(super) fn add(context: &SessionContext, name: &str, schema: &SchemaRef, files: &[(PathBuf, Vec<u64>)]) {
    let name: TableName = name.parse().unwrap();
    register(context, &name, TableView::from_files(name.clone(), schema.clone(), files.to_vec())).unwrap();
}

pub(super) fn whole(paths: impl IntoIterator<Item = PathBuf>) -> Vec<(PathBuf, Vec<u64>)> {
    paths.into_iter().map(|path| (path, Vec::new())).collect()
}

pub(super) fn location(path: &Path) -> String {
    format!("file://{}", path.display())
}

pub(super) fn field(id: i32, name: &str, data_type: DataType) -> FieldRef {
    let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_string(), id.to_string())]);
    Arc::new(Field::new(name, data_type, true).with_metadata(metadata))
}

pub(super) fn schema(fields: impl IntoIterator<Item = FieldRef>) -> SchemaRef {
    Arc::new(Schema::new(fields.into_iter().collect::<Vec<_>>()))
}

pub(super) fn batch(columns: impl IntoIterator<Item = (FieldRef, ArrayRef)>) -> RecordBatch {
    let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    RecordBatch::try_new(schema(fields), arrays).unwrap()
}

/// One line per row, values separated by `|`.
pub(super) fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("-").with_display_error(true);
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            lines.push(columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|"));
        }
    }
    lines
}

pub(super) async fn try_rows(context: &SessionContext, sql: &str) -> Result<Vec<String>, Error> {
    let batches = plan(context, sql).await?.collect().await?;
    Ok(lines(&batches))
}

pub(super) async fn rows(context: &SessionContext, sql: &str) -> Vec<String> {
    try_rows(context, sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

pub(super) async fn sorted_rows(context: &SessionContext, sql: &str) -> Vec<String> {
    let mut rows = rows(context, sql).await;
    rows.sort();
    rows
}

pub(super) async fn failure(context: &SessionContext, sql: &str) -> String {
    let error = try_rows(context, sql).await.expect_err(sql);
    crate::error::Error::from(error).render()
}

pub(super) struct Ran {
    pub(super) rows: Vec<String>,
    plan: Arc<dyn ExecutionPlan>,
}

/// Runs a query and keeps its plan, to be asked what it did.
pub(super) async fn run(context: &SessionContext, sql: &str) -> Ran {
    let plan = plan(context, sql).await.unwrap().create_physical_plan().await.unwrap();
    let batches = collect(plan.clone(), context.task_ctx()).await.unwrap();
    Ran { rows: lines(&batches), plan }
}

impl Ran {
    pub(super) fn scans(&self) -> Vec<Arc<dyn ExecutionPlan>> {
        let (mut scans, mut open) = (Vec::new(), vec![self.plan.clone()]);
        while let Some(plan) = open.pop() {
            if plan.name() == "DataSourceExec" {
                scans.push(plan.clone());
            }
            open.extend(plan.children().into_iter().cloned());
        }
        scans
    }

    /// Sums a metric over the scans.
    pub(super) fn metric(&self, name: &str) -> usize {
        let of_scan = |scan: &Arc<dyn ExecutionPlan>| {
            scan.metrics().and_then(|metrics| metrics.sum_by_name(name)).map_or(0, |value| value.as_usize())
        };
        self.scans().iter().map(of_scan).sum()
    }

    /// Pairs of what was left out and what was kept.
    pub(super) fn pruned(&self, name: &str) -> (usize, usize) {
        let (mut pruned, mut matched) = (0, 0);
        for scan in self.scans() {
            for metric in scan.metrics().unwrap().iter().filter(|metric| metric.value().name() == name) {
                if let datafusion::physical_plan::metrics::MetricValue::PruningMetrics { pruning_metrics, .. } =
                    metric.value()
                {
                    pruned += pruning_metrics.pruned();
                    matched += pruning_metrics.matched();
                }
            }
        }
        (pruned, matched)
    }

    /// The distinct files of the scans' plans.
    pub(super) fn files(&self) -> usize {
        let config = |scan: &Arc<dyn ExecutionPlan>| {
            use datafusion::datasource::{physical_plan::FileScanConfig, source::DataSourceExec};
            let scan = scan.as_any().downcast_ref::<DataSourceExec>().unwrap();
            scan.data_source().as_any().downcast_ref::<FileScanConfig>().map(|config| config.file_groups.clone())
        };
        let groups = self.scans().iter().filter_map(config).flatten().collect::<Vec<_>>();
        let paths: std::collections::HashSet<_> =
            groups.iter().flat_map(|group| group.files()).map(|f| f.path().clone()).collect();
        paths.len()
    }

    pub(super) fn partitions(&self) -> usize {
        self.scans().iter().map(|scan| scan.properties().output_partitioning().partition_count()).sum()
    }
}
