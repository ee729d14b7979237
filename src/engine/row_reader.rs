//! Reads data files one at a time: some columns of their live rows, in the order of the rows.
//!
//! For those who must know which file and row they look at, or want a few fields of a wide struct: a query has neither.

use std::future::Future;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::common::config::ParquetOptions;
use datafusion::datasource::listing::FileRange;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, lit};
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::prelude::SessionContext;
use futures::stream::{BoxStream, StreamExt};
use roaring::RoaringTreemap;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::columns::FieldIdAdapterFactory;
use super::data_file::{DataFile, DataFileReaderFactory};
use super::error::{Error, Result};
use super::position_scan::PositionOpener;
use super::provider::position_fields;
use crate::table::{ScanFile, TableView};

/// A file is read in pieces of about this size, so that one large file keeps every core busy.
const PIECE_BYTES: u64 = 16 << 20;

/// Reads some columns of a table's files.
pub(crate) struct RowReader {
    view: TableView,
    schema: SchemaRef,
    options: ParquetOptions,
    batch_size: usize,
    readers: Arc<DataFileReaderFactory>,
    columns: Arc<FieldIdAdapterFactory>,
    with_positions: bool,
}

/// A part of a file: the row groups that begin in these bytes.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// The number of the file, as it was handed in.
    pub(crate) file: usize,
    pub(crate) bytes: u64,
    range: Option<FileRange>,
}

impl Piece {
    /// Where in the file it begins.
    pub(crate) fn start(&self) -> i64 {
        self.range.as_ref().map_or(0, |range| range.start)
    }
}

impl RowReader {
    /// `columns` are the table's, in any order; of a struct, they may hold some of the fields. A column of texts may be
    /// asked for as views: who keeps few of many rows spares copying the others, and has to copy those, since views hold
    /// on to all that was read.
    pub(crate) fn new(session: &SessionContext, view: &TableView, columns: Vec<FieldRef>) -> Self {
        let state = session.state_ref();
        let state = state.read();
        let cache = session.runtime_env().cache_manager.get_file_metadata_cache();
        RowReader {
            view: view.clone(),
            schema: Arc::new(Schema::new(columns)),
            options: state.default_table_options().parquet.global,
            batch_size: state.config().batch_size(),
            readers: Arc::new(DataFileReaderFactory::new(cache)),
            columns: Arc::new(FieldIdAdapterFactory::new(view.name().clone())),
            with_positions: false,
        }
    }

    /// Adds each row's position in its file as the last column.
    pub(crate) fn with_positions(mut self) -> Self {
        self.with_positions = true;
        self
    }

    /// The live rows of a piece. `between` leaves out row groups and pages where no value of that column can be in the
    /// range; what is read may still hold others.
    pub(crate) async fn read(
        &self,
        file: &ScanFile,
        piece: &Piece,
        deleted: Option<Arc<RoaringTreemap>>,
        between: Option<(&str, ScalarValue, ScalarValue)>,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let positions = if self.with_positions { position_fields().to_vec() } else { Vec::new() };
        let schema = TableSchema::new(self.schema.clone(), positions);
        let width = self.schema.fields().len();
        let mut wanted: Vec<usize> = (0..width).collect();
        // The place of a row is its file and its position; the file is known.
        wanted.extend(self.with_positions.then_some(width + 1));
        let opener = Arc::new(PositionOpener {
            partition: 0,
            projection: ProjectionExprs::from_indices(&wanted, schema.table_schema()),
            predicate: between.map(|(column, low, high)| self.between(column, low, high)).transpose()?,
            schema,
            batch_size: self.batch_size,
            limit: None,
            options: self.options.clone(),
            metrics: ExecutionPlanMetricsSet::new(),
            readers: self.readers.clone(),
            columns: self.columns.clone(),
            with_positions: self.with_positions,
            only_needed_leaves: true,
        });
        let (store, path) = self.view.storage().store(&file.path)?;
        let data_file = DataFile::new(file.path.clone(), store, deleted);
        let mut planned = data_file.into_partitioned_file(path, file.size);
        planned.range = piece.range.clone();
        let data_file = DataFile::of(&planned)?;
        let stream = opener.open(planned, data_file).await?;
        Ok(stream.map(|batch| batch.map_err(Error::from)).boxed())
    }

    fn between(&self, column: &str, low: ScalarValue, high: ScalarValue) -> Result<Arc<dyn PhysicalExpr>> {
        let at = self.schema.index_of(column).map_err(DataFusionError::from)?;
        let of = || Arc::new(Column::new(column, at)) as Arc<dyn PhysicalExpr>;
        let at_least = Arc::new(BinaryExpr::new(of(), Operator::GtEq, lit(low)));
        let at_most = Arc::new(BinaryExpr::new(of(), Operator::LtEq, lit(high)));
        Ok(Arc::new(BinaryExpr::new(at_least, Operator::And, at_most)))
    }
}

/// Cuts files into pieces, the largest first.
pub(crate) fn pieces(files: &[ScanFile]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (file, ScanFile { size, .. }) in files.iter().enumerate() {
        let parts = size.div_ceil(PIECE_BYTES).max(1);
        for part in 0..parts {
            let bound = |part: u64| (size * part / parts) as i64;
            let range = (parts > 1).then(|| FileRange { start: bound(part), end: bound(part + 1) });
            pieces.push(Piece { file, bytes: size / parts, range });
        }
    }
    pieces.sort_by_key(|piece: &Piece| std::cmp::Reverse(piece.bytes));
    pieces
}

/// Does the work for each item on tasks of their own, some at a time, and hands on each result as it comes. The first
/// error ends it.
pub(crate) async fn in_parallel<I, T, F>(
    at_once: usize,
    items: impl IntoIterator<Item = I>,
    work: impl Fn(I) -> F,
    mut take: impl FnMut(T),
) -> Result<()>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut items = items.into_iter();
    loop {
        while running.len() < at_once.max(1)
            && let Some(item) = items.next()
        {
            running.spawn(work(item));
        }
        match running.join_next().await {
            Some(Ok(result)) => take(result?),
            Some(Err(error)) => return Err(Error::Internal { problem: error.to_string() }),
            None => return Ok(()),
        }
    }
}

/// The same for work that has much to hand over: `take` gets it as it comes, while more is being made.
pub(crate) async fn as_it_comes<I, T, F>(
    at_once: usize,
    items: impl IntoIterator<Item = I>,
    work: impl Fn(I, mpsc::Sender<T>) -> F,
    mut take: impl FnMut(T),
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, mut made) = mpsc::channel(at_once.max(1) * 4);
    let mut running = JoinSet::new();
    let mut items = items.into_iter();
    loop {
        while running.len() < at_once.max(1)
            && let Some(item) = items.next()
        {
            running.spawn(work(item, sender.clone()));
        }
        tokio::select! {
            biased;
            ended = running.join_next() => match ended {
                Some(Ok(result)) => result?,
                Some(Err(error)) => return Err(Error::Internal { problem: error.to_string() }),
                None => break,
            },
            Some(some) = made.recv() => take(some),
        }
    }
    while let Ok(some) = made.try_recv() {
        take(some);
    }
    Ok(())
}

/// A struct column with those of its fields only; `None` where the column is not there or no struct.
pub(crate) fn struct_with(schema: &Schema, column: &str, fields: &[&str]) -> Option<FieldRef> {
    let field = schema.field_with_name(column).ok()?;
    let DataType::Struct(all) = field.data_type() else { return None };
    let kept = all.iter().filter(|field| fields.contains(&field.name().as_str())).cloned().collect();
    Some(Arc::new(field.clone().with_data_type(DataType::Struct(kept))))
}
