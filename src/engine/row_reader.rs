//! Reads data files one at a time: some columns of their live rows, in the order of the rows.
//!
//! For those who must know which file and row they look at, or want a few fields of a wide struct: a query has neither.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, FieldRef, Int64Type, Schema, SchemaRef};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use datafusion::common::config::ParquetOptions;
use datafusion::datasource::listing::FileRange;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, lit};
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::prelude::SessionContext;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::page_index::offset_index::PageLocation;
use roaring::RoaringTreemap;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::columns::{self, FieldIdAdapterFactory, Recipe};
use super::data_file::{DataFile, DataFileReaderFactory};
use super::error::{Error, Result};
use super::pick::{self, ChunkPages, ReadBytes};
use super::position_scan::PositionOpener;
use super::provider::position_fields;
use crate::table::{ScanFile, TableView};

/// A file is read in pieces of about this size, so that one large file keeps every core busy.
const PIECE_BYTES: u64 = 16 << 20;

/// So many rows are made a batch of, when they are picked.
const PICKED_AT_ONCE: usize = 1 << 16;

/// Batches that little is left of are put together until they have so many bytes.
const JOINED_BYTES: usize = 64 << 20;

/// Reads some columns of a table's files.
#[derive(Clone)]
pub(crate) struct RowReader {
    view: TableView,
    schema: SchemaRef,
    options: ParquetOptions,
    batch_size: usize,
    readers: Arc<DataFileReaderFactory>,
    columns: Arc<FieldIdAdapterFactory>,
    with_positions: bool,
}

/// Where a column is in a file.
enum Pick {
    Missing,
    Leaf {
        leaf: usize,
        /// What the Parquet reader makes of it, and what is made of that.
        read_as: DataType,
        recipe: Recipe,
    },
}

/// What to read of a column of a row group.
struct Chunk<'a> {
    chunk: &'a ColumnChunkMetaData,
    rows: usize,
    locations: Option<&'a [PageLocation]>,
    ranges: Vec<Range<u64>>,
}

/// Which rows that were found at these places are at places that follow each other among the wanted ones, and from which
/// of those on. A file need not be as the table says: what was not wanted is left out.
fn runs_among(wanted: &[u64], found: &[i64]) -> Vec<(usize, Range<usize>)> {
    let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
    for (row, at) in found.iter().enumerate() {
        let at = *at as u64;
        match runs.last_mut() {
            Some((first, run)) if run.end == row && wanted.get(*first + run.len()) == Some(&at) => run.end += 1,
            _ => runs.extend(wanted.binary_search(&at).ok().map(|first| (first, row..row + 1))),
        }
    }
    runs
}

/// The pages of each column that is there, for rows of a row group.
fn chunks<'a>(footer: &'a ParquetMetaData, group: usize, picks: &[Pick], rows: &[u32]) -> Vec<Chunk<'a>> {
    let index = footer.offset_index().and_then(|index| index.get(group));
    let of_group = footer.row_group(group);
    let leaves = picks.iter().filter_map(|pick| match pick {
        Pick::Leaf { leaf, .. } => Some(*leaf),
        Pick::Missing => None,
    });
    let chunk = |leaf: usize| {
        let chunk = of_group.column(leaf);
        let locations = index.and_then(|index| index.get(leaf)).map(|index| index.page_locations().as_slice());
        let locations = locations.filter(|locations| !locations.is_empty());
        let (start, length) = chunk.byte_range();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        match locations {
            None => ranges.push(start..start + length),
            Some(locations) => {
                // What is before the first page is its dictionary.
                let begins = locations[0].offset.max(0) as u64;
                ranges.extend((begins > start).then_some(start..begins));
                for (at, location) in locations.iter().enumerate() {
                    let bound = |row: i64| rows.partition_point(|wanted| i64::from(*wanted) < row);
                    let next = locations.get(at + 1).map_or(rows.len(), |next| bound(next.first_row_index));
                    if bound(location.first_row_index) == next {
                        continue;
                    }
                    let from = location.offset.max(0) as u64;
                    let until = from + location.compressed_page_size.max(0) as u64;
                    match ranges.last_mut() {
                        Some(last) if last.end == from => last.end = until,
                        _ => ranges.push(from..until),
                    }
                }
            }
        }
        Chunk { chunk, rows: of_group.num_rows().max(0) as usize, locations, ranges }
    };
    leaves.map(chunk).collect()
}

impl<'a> Chunk<'a> {
    fn with(self, read: &mut impl Iterator<Item = Bytes>) -> ChunkPages<'a> {
        let Chunk { chunk, rows, locations, ranges } = self;
        let bytes = ranges.iter().map(|range| range.start).zip(read).collect();
        ChunkPages { chunk, rows, locations, bytes: Arc::new(ReadBytes(bytes)) }
    }
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
    /// `columns` are the table's, in any order; of a struct, they may hold some of the fields.
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
            // As `rows_at` has it.
            shares_row_groups: false,
        });
        let (store, path) = self.view.storage().store(&file.path)?;
        let data_file = DataFile::new(file.path.clone(), store, deleted);
        let mut planned = data_file.into_partitioned_file(path, file.size);
        planned.range = piece.range.clone();
        let data_file = DataFile::of(&planned)?;
        let stream = opener.open(planned, data_file).await?;
        Ok(stream.map(|batch| batch.map_err(Error::from)).boxed())
    }

    /// The rows of a piece at these positions of its file, which rise; each batch with the place of its first row among
    /// the positions.
    ///
    /// Their values are taken from the pages, and nothing is made of the rows around them; where pages are not of the
    /// usual kind, all rows are read and the others left out.
    pub(crate) async fn rows_at(
        &self,
        file: &ScanFile,
        piece: &Piece,
        positions: &[u64],
    ) -> Result<Vec<(usize, RecordBatch)>> {
        if positions.is_empty() {
            return Ok(Vec::new());
        }
        match self.picked(file, piece, positions).await? {
            Some(rows) => Ok(rows),
            None => self.rows_among(file, piece, positions).await,
        }
    }

    pub(super) async fn picked(
        &self,
        file: &ScanFile,
        piece: &Piece,
        positions: &[u64],
    ) -> Result<Option<Vec<(usize, RecordBatch)>>> {
        let (store, path) = self.view.storage().store(&file.path)?;
        let planned = DataFile::new(file.path.clone(), store, None).into_partitioned_file(path, file.size);
        let mut reader = self.readers.create_reader(0, planned, None, &ExecutionPlanMetricsSet::new())?;
        let footer = reader.get_metadata(None).await.map_err(DataFusionError::from)?;
        let read_as = ArrowReaderMetadata::try_new(footer.clone(), ArrowReaderOptions::new());
        let Some(picks) = self.picks(&read_as.map_err(DataFusionError::from)?) else { return Ok(None) };
        let (mut rows, mut first) = (Vec::new(), 0);
        for (number, group) in footer.row_groups().iter().enumerate() {
            let begins = first;
            first += group.num_rows().max(0) as u64;
            let bound = |row| positions.partition_point(|position| *position < row);
            let (from, until) = (bound(begins), bound(first));
            let is_here = piece.range.as_ref().is_none_or(|range| {
                let chunk = group.column(0);
                let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
                (range.start..range.end).contains(&start)
            });
            if from == until || !is_here {
                continue;
            }
            let Ok(wanted) = positions[from..until].iter().map(|position| u32::try_from(position - begins)).collect()
            else {
                return Ok(None);
            };
            let wanted: Vec<u32> = wanted;
            let chunks = chunks(&footer, number, &picks, &wanted);
            if !chunks.iter().all(|chunk| pick::knows_encodings(chunk.chunk)) {
                return Ok(None);
            }
            let ranges = chunks.iter().flat_map(|chunk| chunk.ranges.iter().cloned()).collect();
            let mut read = reader.get_byte_ranges(ranges).await.map_err(DataFusionError::from)?.into_iter();
            let pages: Vec<ChunkPages<'_>> = chunks.into_iter().map(|chunk| chunk.with(&mut read)).collect();
            for (of_batch, wanted) in wanted.chunks(PICKED_AT_ONCE).enumerate() {
                let mut columns = Vec::with_capacity(picks.len());
                let mut pages = pages.iter();
                for (field, pick) in self.schema.fields().iter().zip(&picks) {
                    let column = match pick {
                        Pick::Missing => Some(new_null_array(field.data_type(), wanted.len())),
                        Pick::Leaf { read_as, recipe, .. } => {
                            let picked = pages.next().map(|pages| pick::pick(pages, read_as, wanted)).transpose();
                            let picked = picked.map_err(DataFusionError::from)?.flatten();
                            picked.map(|column| recipe.apply(&column)).transpose().map_err(DataFusionError::from)?
                        }
                    };
                    let Some(column) = column else { return Ok(None) };
                    columns.push(column);
                    tokio::task::consume_budget().await;
                }
                let options = RecordBatchOptions::new().with_row_count(Some(wanted.len()));
                let batch = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options);
                let batch = batch.map_err(DataFusionError::from)?;
                rows.push((from + of_batch * PICKED_AT_ONCE, batch));
            }
        }
        Ok(Some(rows))
    }

    /// Where the columns are in a file; `None` where values of one of them cannot be looked up.
    fn picks(&self, file: &ArrowReaderMetadata) -> Option<Vec<Pick>> {
        let descriptor = file.parquet_schema();
        let pick = |field: &FieldRef| {
            let (Some(root), recipe) = columns::placed(field, file.schema())? else { return Some(Pick::Missing) };
            let leaf = (0..descriptor.num_columns()).find(|leaf| descriptor.get_column_root_idx(*leaf) == root)?;
            let read_as = file.schema().field(root).data_type().clone();
            pick::can_pick(&descriptor.column(leaf), &read_as).then_some(Pick::Leaf { leaf, read_as, recipe })
        };
        self.schema.fields().iter().map(pick).collect()
    }

    async fn rows_among(&self, file: &ScanFile, piece: &Piece, positions: &[u64]) -> Result<Vec<(usize, RecordBatch)>> {
        // What is read of a file is what is not deleted of it.
        let wanted = RoaringTreemap::from_sorted_iter(positions.iter().copied());
        let Ok(wanted) = wanted else { return Err(Error::Internal { problem: "positions that fall".to_string() }) };
        let mut others = RoaringTreemap::new();
        others.insert_range(0..file.record_count);
        others -= wanted;
        let stream = self.clone().with_positions().read(file, piece, Some(Arc::new(others)), None).await?;
        let mut stream = stream.try_filter(|batch| std::future::ready(batch.num_rows() > 0));
        let (mut rows, mut some, mut bytes) = (Vec::new(), Vec::new(), 0);
        loop {
            let batch = stream.try_next().await?;
            // Few are left of a batch; together they are one again.
            let is_enough = batch.is_none() || bytes >= JOINED_BYTES;
            if let Some(schema) = some.first().filter(|_| is_enough).map(RecordBatch::schema) {
                let mut joined = concat_batches(&schema, &some).map_err(DataFusionError::from)?;
                let at = joined.remove_column(joined.num_columns() - 1);
                let runs = runs_among(positions, at.as_primitive::<Int64Type>().values());
                rows.extend(runs.into_iter().map(|(first, run)| (first, joined.slice(run.start, run.len()))));
                some.clear();
                bytes = 0;
            }
            let Some(batch) = batch else { return Ok(rows) };
            bytes += batch.get_array_memory_size();
            some.push(batch);
        }
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
