//! Reads a data file row by row position: without the rows that are deleted, with `_file` and `_pos` where they are asked
//! for, and of a row group the share that is asked for.
//!
//! DataFusion 53 has no way to ask the Parquet reader for row numbers, so this opens files on its own; row groups and
//! pages are left out by the same statistics, bloom filters and page index, with the same code.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{BooleanArray, BooleanBufferBuilder};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::ScalarValue;
use datafusion::common::config::ParquetOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{
    PagePruningAccessPlanFilter, ParquetAccessPlan, RowGroupAccess, RowGroupAccessPlanFilter,
    coerce_int96_to_resolution,
};
use datafusion::datasource::physical_plan::{ParquetFileMetrics, ParquetFileReaderFactory};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_expr::expressions::{Column, lit};
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::utils::reassign_expr_columns;
use datafusion::physical_expr::{PhysicalExpr, PhysicalExprSimplifier, conjunction_opt, split_conjunction};
use datafusion::physical_expr_adapter::PhysicalExprAdapterFactory;
use datafusion::physical_optimizer::pruning::PruningPredicate;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask, RowNumber};
use parquet::file::metadata::RowGroupMetaData;
use roaring::RoaringTreemap;

use super::columns::{FieldIdAdapterFactory, field_id};
use super::data_file::{DataFile, DataFileReaderFactory};
use super::provider::{FILE_COLUMN, POSITION_COLUMN};
use super::prune;
use super::share::{Share, shares};

/// The reader's own name for the row number: a file may have a column called `_pos`.
const ROW_NUMBER: &str = "icestream.row_number";

/// Deletes that leave runs shorter than this are filtered out of what was decoded; longer runs are stepped over by the
/// reader, which costs about 85 ns for each run and column, against less than 1 ns for each row.
const LONG_RUN_ROWS: u64 = 128;

/// Opens the files of one partition of a scan.
pub(crate) struct PositionOpener {
    pub(crate) partition: usize,
    pub(crate) projection: ProjectionExprs,
    pub(crate) predicate: Option<Arc<dyn PhysicalExpr>>,
    pub(crate) schema: TableSchema,
    pub(crate) batch_size: usize,
    pub(crate) limit: Option<usize>,
    pub(crate) options: ParquetOptions,
    pub(crate) metrics: ExecutionPlanMetricsSet,
    pub(crate) readers: Arc<DataFileReaderFactory>,
    pub(crate) columns: Arc<FieldIdAdapterFactory>,
    pub(crate) with_positions: bool,
    /// Of a struct, read the fields that `schema` has, and not all that the file has.
    pub(crate) only_needed_leaves: bool,
    /// Whether a range that begins or ends within a row group has a share of its rows; else whoever has its first byte has
    /// all of them.
    pub(crate) shares_row_groups: bool,
}

impl PositionOpener {
    pub(crate) async fn open(
        self: Arc<Self>,
        file: PartitionedFile,
        data_file: Arc<DataFile>,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let file_metrics = ParquetFileMetrics::new(self.partition, file.object_meta.location.as_ref(), &self.metrics);
        let range = file.range.clone();
        let mut reader = self.reader(&file)?;
        let metadata = self.reader_metadata(&mut reader).await?;
        let mut schema = metadata.schema().clone();
        if self.needs_positions() && schema.index_of(ROW_NUMBER).is_err() {
            // Where the reader is told types, its schema lacks the row number that its batches have.
            let fields = schema.fields().iter().cloned().chain([row_number()]).collect::<Fields>();
            schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
        }
        let mut leaves_of = None;
        if self.only_needed_leaves {
            let (narrow, leaves) = narrowed(self.schema.file_schema(), &schema);
            (schema, leaves_of) = (narrow, Some(leaves));
        }

        let adapter = self.columns.create(self.schema.file_schema().clone(), schema.clone())?;
        let simplifier = PhysicalExprSimplifier::new(&schema);
        let adapt = |expr| simplifier.simplify(adapter.rewrite(self.place_positions(expr, &data_file, &schema)?)?);
        let projection = self.projection.clone().try_map_exprs(adapt)?;
        // Row numbers have no statistics in the file.
        let predicate = self.predicate.as_ref().and_then(|predicate| {
            let parts = split_conjunction(predicate).into_iter();
            conjunction_opt(
                parts.filter(|part| !(self.with_positions && prune::mentions(part, POSITION_COLUMN))).cloned(),
            )
        });
        let predicate = predicate.map(adapt).transpose()?;

        let footer = metadata.metadata().clone();
        let row_groups = footer.row_groups();
        let mut builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata.clone());
        let parquet_schema = footer.file_metadata().schema_descr();
        let shares = match &range {
            Some(range) if self.shares_row_groups => {
                let offset = |offset: i64| u64::try_from(offset).unwrap_or(0);
                shares(&footer, file.object_meta.size, &(offset(range.start)..offset(range.end)))
            }
            _ => vec![Share { row_groups: 0..row_groups.len(), rows: None }],
        };
        let mut plan = ParquetAccessPlan::new_none(row_groups.len());
        shares.iter().flat_map(|share| share.row_groups.clone()).for_each(|index| plan.scan(index));
        let mut plan = RowGroupAccessPlanFilter::new(plan);
        if let (Some(range), false) = (&range, self.shares_row_groups) {
            plan.prune_by_range(row_groups, range);
        }
        let pruning = predicate.as_ref().and_then(|predicate| {
            let pruning = PruningPredicate::try_new(predicate.clone(), schema.clone()).ok()?;
            (!pruning.always_true()).then_some(pruning)
        });
        if let Some(pruning) = &pruning {
            if self.options.pruning {
                plan.prune_by_statistics(&schema, parquet_schema, row_groups, pruning, &file_metrics);
            }
            if self.options.bloom_filter_on_read && !plan.is_empty() {
                plan.prune_by_bloom_filters(&schema, &mut builder, pruning, &file_metrics).await;
            }
        }
        let mut plan = plan.build();
        if self.options.enable_page_index
            && let Some(predicate) = &predicate
        {
            let pages = PagePruningAccessPlanFilter::new(predicate, schema.clone());
            plan = pages.prune_plan_with_page_index(plan, &schema, parquet_schema, &footer, &file_metrics);
        }
        let in_file = parquet_schema.root_schema().get_fields().len();
        let roots = projection.column_indices().into_iter().filter(|index| *index < in_file);
        let mask = match &leaves_of {
            Some(leaves) => {
                ProjectionMask::leaves(parquet_schema, roots.filter_map(|root| leaves.get(root)).flatten().copied())
            }
            None => ProjectionMask::roots(parquet_schema, roots),
        };
        let mut builder = Some(builder);
        let mut streams = Vec::with_capacity(shares.len());
        for share in shares {
            let mut plan = of_share(&plan, &share);
            let live = data_file.deleted.as_ref().and_then(|deleted| take_away(deleted, row_groups, &share, &mut plan));
            narrow(row_groups, &share, &mut plan);
            if plan.row_group_indexes().is_empty() {
                continue;
            }
            let builder = match builder.take() {
                Some(builder) => builder,
                None => ParquetRecordBatchStreamBuilder::new_with_metadata(self.reader(&file)?, metadata.clone()),
            };
            streams.push(self.rows(builder.with_projection(mask.clone()), plan, live, &schema, &projection)?);
        }
        Ok(match (streams.pop(), streams.is_empty()) {
            (Some(only), true) => only,
            (last, _) => futures::stream::iter(streams.into_iter().chain(last)).flatten().boxed(),
        })
    }

    /// What a plan lets through, without the rows that do not live, as the scan has it.
    fn rows(
        &self,
        mut builder: ParquetRecordBatchStreamBuilder<Box<dyn AsyncFileReader>>,
        plan: ParquetAccessPlan,
        mut live: Option<LiveRows>,
        schema: &Schema,
        projection: &ProjectionExprs,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let row_group_indexes = plan.row_group_indexes();
        let footer = builder.metadata().clone();
        if let Some(selection) = plan.into_overall_row_selection(footer.row_groups())? {
            builder = builder.with_row_selection(selection);
        }
        // Rows that are filtered out afterwards must not count; whoever reads the stream stops at the limit too.
        if let (Some(limit), None) = (self.limit, &live) {
            builder = builder.with_limit(limit);
        }
        let stream = builder.with_row_groups(row_group_indexes).with_batch_size(self.batch_size).build()?;

        // The stream's own schema leaves out the row number, though its batches end with it.
        let mut read = stream.schema().fields().to_vec();
        read.extend(schema.fields().iter().filter(|field| field.name() == ROW_NUMBER).cloned());
        let read = Arc::new(Schema::new(read));
        let projection = projection.clone().try_map_exprs(|expr| reassign_expr_columns(expr, &read))?;
        let projector = projection.make_projector(&read)?;
        let output = Arc::new(self.projection.project_schema(self.schema.table_schema())?);
        let stream = stream.map_err(DataFusionError::from).map(move |batch| {
            let mut batch = batch?;
            if let Some(live) = live.as_mut().and_then(|live| live.among_next(batch.num_rows())) {
                batch = filter_record_batch(&batch, &live)?;
            }
            let (_, columns, rows) = projector.project_batch(&batch)?.into_parts();
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            Ok(RecordBatch::try_new_with_options(output.clone(), columns, &options)?)
        });
        Ok(stream.boxed())
    }

    fn reader(&self, file: &PartitionedFile) -> Result<Box<dyn AsyncFileReader>> {
        let hint = self.options.metadata_size_hint;
        Ok(self.readers.create_reader(self.partition, file.clone(), hint, &self.metrics)?)
    }

    async fn reader_metadata(&self, reader: &mut Box<dyn AsyncFileReader>) -> Result<ArrowReaderMetadata> {
        let footer = reader.get_metadata(None).await?;
        let mut options = ArrowReaderOptions::new();
        let plain = ArrowReaderMetadata::try_new(footer.clone(), options.clone())?;
        // The only Iceberg timestamps are in microseconds, and those of older Spark are stored as 96 bits.
        let coerced = coerce_int96_to_resolution(plain.parquet_schema(), plain.schema(), &TimeUnit::Microsecond);
        if coerced.is_none() && !self.needs_positions() {
            return Ok(plain);
        }
        if let Some(schema) = coerced {
            options = options.with_schema(Arc::new(schema));
        }
        if self.needs_positions() {
            options = options.with_virtual_columns(vec![row_number()])?;
        }
        Ok(ArrowReaderMetadata::try_new(footer, options)?)
    }

    fn needs_positions(&self) -> bool {
        self.with_positions && self.projection.expr_iter().any(|expr| prune::mentions(&expr, POSITION_COLUMN))
    }

    /// Puts the file's location in the place of `_file` and the reader's row number in the place of `_pos`.
    fn place_positions(
        &self,
        expr: Arc<dyn PhysicalExpr>,
        data_file: &DataFile,
        schema: &Schema,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        if !self.with_positions {
            return Ok(expr);
        }
        let row_number = schema.fields().len().saturating_sub(1);
        expr.transform_up(|expr| {
            Ok(match expr.as_any().downcast_ref::<Column>().map(Column::name) {
                Some(FILE_COLUMN) => Transformed::yes(lit(ScalarValue::from(data_file.location.as_str()))),
                Some(POSITION_COLUMN) => Transformed::yes(Arc::new(Column::new(ROW_NUMBER, row_number))),
                _ => Transformed::no(expr),
            })
        })
        .data()
    }
}

/// The file's columns, each struct with those of its fields only that the table's columns have; and the leaves of each.
/// A struct that has none of them stays whole: somebody may want to know where it is null.
fn narrowed(logical: &Schema, physical: &Schema) -> (SchemaRef, Vec<Vec<usize>>) {
    let mut wanted = HashSet::new();
    logical.fields().filter_leaves(|_, leaf| {
        wanted.extend(field_id(leaf));
        true
    });
    let (mut roots, mut leaves) = (Vec::new(), Vec::new());
    let mut first = 0;
    for root in physical.fields() {
        let (mut all, mut some) = (Vec::new(), Vec::new());
        let kept = Fields::from(vec![root.clone()]).filter_leaves(|index, leaf| {
            let keep = field_id(leaf).is_some_and(|id| wanted.contains(&id));
            all.push(first + index);
            some.extend(keep.then_some(first + index));
            keep
        });
        first += all.len();
        let is_struct = matches!(root.data_type(), DataType::Struct(_));
        let (root, of_root) = match kept.first() {
            Some(kept) if is_struct => (kept.clone(), some),
            _ => (root.clone(), all),
        };
        roots.push(root);
        leaves.push(of_root);
    }
    (Arc::new(Schema::new_with_metadata(roots, physical.metadata().clone())), leaves)
}

fn row_number() -> FieldRef {
    Arc::new(Field::new(ROW_NUMBER, DataType::Int64, false).with_extension_type(RowNumber))
}

/// What a plan says of the row groups of a share.
fn of_share(plan: &ParquetAccessPlan, share: &Share) -> ParquetAccessPlan {
    let row_groups = plan.inner().iter().enumerate().map(|(index, access)| match share.row_groups.contains(&index) {
        true => access.clone(),
        false => RowGroupAccess::Skip,
    });
    ParquetAccessPlan::new(row_groups.collect())
}

/// The row groups that a plan does not leave out, with the positions of their rows.
fn scanned<'a>(
    row_groups: &'a [RowGroupMetaData],
    plan: &'a ParquetAccessPlan,
) -> impl Iterator<Item = (usize, Range<u64>)> + 'a {
    let mut next = 0;
    let all = row_groups.iter().enumerate().map(move |(index, row_group)| {
        let start = next;
        next += row_group.num_rows().max(0) as u64;
        (index, start..next)
    });
    all.filter(|(index, _)| plan.should_scan(*index))
}

/// Has a plan read the rows of a share only.
fn narrow(row_groups: &[RowGroupMetaData], share: &Share, plan: &mut ParquetAccessPlan) {
    let Some(rows) = &share.rows else { return };
    for (index, group) in scanned(row_groups, plan).collect::<Vec<_>>() {
        plan.scan_selection(index, selection(&group, std::iter::once(rows.clone())));
    }
}

/// Runs of positions, as the reader of a row group takes them.
fn selection(group: &Range<u64>, runs: impl Iterator<Item = Range<u64>>) -> RowSelection {
    let of_group = |run: Range<u64>| (run.start - group.start) as usize..(run.end - group.start) as usize;
    RowSelection::from_consecutive_ranges(runs.map(of_group), (group.end - group.start) as usize)
}

/// Takes the deleted rows of a share out of a plan: by not reading them, or, where that would mean many short steps, by the
/// filter that is returned.
fn take_away(
    deleted: &Arc<RoaringTreemap>,
    row_groups: &[RowGroupMetaData],
    share: &Share,
    plan: &mut ParquetAccessPlan,
) -> Option<LiveRows> {
    let mut read = VecDeque::new();
    let mut with_deletes = Vec::new();
    for (index, group) in scanned(row_groups, plan).collect::<Vec<_>>() {
        let rows = share.rows.clone().unwrap_or(group.clone());
        let gone = deleted.range_cardinality(rows.clone());
        if gone == rows.end - rows.start {
            plan.skip(index);
            continue;
        }
        if gone > 0 {
            with_deletes.push((index, group, rows.clone()));
        }
        read.push_back(rows);
    }
    // The page index may have taken rows away already; then the rows that come have no simple order any more.
    let is_whole = plan.inner().iter().all(|access| !matches!(access, RowGroupAccess::Selection(_)));
    if is_whole && are_short(with_deletes.iter().map(|(_, _, rows)| rows), deleted) {
        return Some(LiveRows { deleted: deleted.clone(), runs: read });
    }
    for (index, group, rows) in with_deletes {
        plan.scan_selection(index, selection(&group, runs_without(deleted, &rows)));
    }
    None
}

/// Whether the runs of live rows are short. It looks at no more of them than that takes: there may be millions.
fn are_short<'a>(groups: impl Iterator<Item = &'a Range<u64>> + Clone, deleted: &RoaringTreemap) -> bool {
    let rows: u64 = groups.clone().map(|group| group.end - group.start).sum();
    let many = (rows / LONG_RUN_ROWS) as usize;
    groups.flat_map(|group| runs_without(deleted, group)).nth(many).is_some()
}

/// The runs of live rows within a range of positions.
fn runs_without<'a>(deleted: &'a RoaringTreemap, within: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'a> {
    let (mut next, end) = (within.start, within.end);
    // The last says where the others end.
    let gone = runs_in(deleted, within).chain(std::iter::once(end..end));
    gone.filter_map(move |gone| {
        let kept = next..gone.start;
        next = gone.end;
        (!kept.is_empty()).then_some(kept)
    })
}

/// The runs of positions within a range. A set may hold all but a few rows of a file: it is not gone through one by one.
fn runs_in<'a>(positions: &'a RoaringTreemap, within: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'a> {
    let Range { start, end } = *within;
    let parts = positions.bitmaps().filter_map(move |(high, bitmap)| {
        let first = u64::from(high) << u32::BITS;
        let mut rest = bitmap.iter();
        rest.advance_to(u32::try_from(start.saturating_sub(first)).ok()?);
        let runs = std::iter::from_fn(move || rest.next_range());
        Some(runs.map(move |run| first + u64::from(*run.start())..first + u64::from(*run.end()) + 1))
    });
    parts.flatten().take_while(move |run| run.start < end).map(move |run| run.start..run.end.min(end))
}

/// Tells the live rows from the deleted ones as rows go by.
struct LiveRows {
    deleted: Arc<RoaringTreemap>,
    /// The runs of rows that are still to come, as positions in the file.
    runs: VecDeque<Range<u64>>,
}

impl LiveRows {
    /// Which of the next rows live; `None` when all of them do.
    fn among_next(&mut self, rows: usize) -> Option<BooleanArray> {
        let mut live = BooleanBufferBuilder::new(rows);
        live.append_n(rows, true);
        let (mut done, mut any_deleted) = (0, false);
        while done < rows
            && let Some(run) = self.runs.front_mut()
        {
            let end = run.end.min(run.start + (rows - done) as u64);
            for position in runs_in(&self.deleted, &(run.start..end)).flatten() {
                live.set_bit(done + (position - run.start) as usize, false);
                any_deleted = true;
            }
            done += (end - run.start) as usize;
            run.start = end;
            if run.is_empty() {
                self.runs.pop_front();
            }
        }
        any_deleted.then(|| BooleanArray::new(live.finish(), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_those_of_the_positions_one_by_one() {
        let edge = u64::from(u32::MAX);
        let check = |runs: &[(u64, u64)], within: (u64, u64), expected: &[(u64, u64)]| {
            let mut positions = RoaringTreemap::new();
            for (start, end) in runs {
                positions.insert_range(*start..*end);
            }
            let mut found: Vec<(u64, u64)> = Vec::new();
            for run in runs_in(&positions, &(within.0..within.1)) {
                match found.last_mut() {
                    // Where the set's parts meet.
                    Some(last) if last.1 == run.start => last.1 = run.end,
                    _ => found.push((run.start, run.end)),
                }
            }
            assert_eq!(found, expected, "{runs:?} within {within:?}");
        };
        check(&[], (0, 10), &[]);
        check(&[(0, 10)], (0, 10), &[(0, 10)]);
        check(&[(0, 10)], (3, 5), &[(3, 5)]);
        check(&[(0, 3), (5, 6), (8, 20)], (2, 10), &[(2, 3), (5, 6), (8, 10)]);
        check(&[(0, 3), (20, 30)], (3, 20), &[]);
        check(&[(0, 200_000)], (65_535, 131_073), &[(65_535, 131_073)]);
        check(&[(edge - 1, edge + 3)], (0, edge + 2), &[(edge - 1, edge + 2)]);
        check(&[(0, 5), (edge + 7, edge + 9)], (edge + 2, edge + 20), &[(edge + 7, edge + 9)]);
    }

    #[test]
    fn what_is_left_of_a_row_group() {
        let check = |gone: &[u64], group: (u64, u64), expected: &[(u64, u64)]| {
            let deleted = RoaringTreemap::from_iter(gone);
            let left = runs_without(&deleted, &(group.0..group.1));
            let left: Vec<(u64, u64)> = left.map(|run| (run.start, run.end)).collect();
            assert_eq!(left, expected, "{gone:?} of {group:?}");
        };
        check(&[], (5, 9), &[(5, 9)]);
        check(&[5, 8], (5, 9), &[(6, 8)]);
        check(&[4, 6, 7, 9], (5, 9), &[(5, 6), (8, 9)]);
        check(&[5, 6, 7, 8], (5, 9), &[]);
    }

    #[test]
    fn runs_are_short_by_their_mean() {
        let check = |gone: &[u64], groups: &[(u64, u64)], expected: bool| {
            let deleted = RoaringTreemap::from_iter(gone);
            let groups: Vec<Range<u64>> = groups.iter().map(|(start, end)| *start..*end).collect();
            assert_eq!(are_short(groups.iter(), &deleted), expected, "{gone:?} of {groups:?}");
        };
        check(&[], &[], false);
        check(&[0], &[(0, 128)], false);
        check(&[1], &[(0, 128)], true);
        check(&[1], &[(0, 255)], true);
        check(&[1], &[(0, 256)], false);
        check(&[1, 3], &[(0, 256)], true);
        check(&[1, 300], &[(0, 256), (256, 512)], false);
        check(&[1, 3, 300], &[(0, 256), (256, 512)], true);
        check(&(0..200).collect::<Vec<_>>(), &[(0, 256)], false);
    }
}
