//! One run over a table of versions: the new events go on from what each key's row was, or, where that is not to be
//! had, from all its events before.
//!
//! A key is folded from all its events when a new one is not past all that was merged of it, lacks values (or has nulls
//! that the model ignores), or is before a truncation. All its versions are replaced then.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::{cast, concat_batches, interleave};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::ident;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use roaring::RoaringTreemap;

use super::events::{Depth, EventRef, Events, Images, Newest, Rows, Step, What};
use super::gate::{Gate, Passed};
use super::order::{Place, Truncation};
use super::run::{Base, Fate, Hits, Owned, Run, Staged, Whole, add_to, arrow_failed, set_of};
use super::versions::{Before, IS_CURRENT, IS_DELETED, Source, Timeline, VALID_FROM, VALID_TO, Version};
use super::{Error, MERGED_AT, Merged, OnDelete, Result, Scd, SilverModel, row_schema};
use crate::engine::{self, Piece, RowReader, in_parallel, pieces};
use crate::layout;
use crate::table::{DataWriter, ScanFile, Table, TableView, WrittenFile};

/// Says which step a row that the model gives is of.
pub(super) const EVENT: &str = "_event";

/// Steps that are gone through at a time.
const CHUNK_ROWS: usize = 8192;

/// Columns of a version that say what became of it, whatever its row was.
const MADE_ANEW: [&str; 5] = [VALID_FROM, VALID_TO, IS_CURRENT, IS_DELETED, MERGED_AT];

/// Rows from many batches, column by column.
#[derive(Clone)]
struct Pool {
    schema: SchemaRef,
    /// For each column, its array in each batch.
    parts: Vec<Vec<ArrayRef>>,
    batches: usize,
}

/// Some rows of a pool, and the batches that they are in.
struct Picked {
    batches: Vec<usize>,
    /// For each row, which of these it is in, and where.
    rows: Vec<Source>,
}

impl Pool {
    fn new(schema: SchemaRef) -> Self {
        Pool { parts: vec![Vec::new(); schema.fields().len()], schema, batches: 0 }
    }

    /// Adds a batch, brought to the schema's types; a column that it lacks is null. Columns that are made anew are not
    /// held.
    fn add(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        for (field, parts) in self.schema.fields().iter().zip(&mut self.parts) {
            if MADE_ANEW.contains(&field.name().as_str()) {
                continue;
            }
            parts.push(match batch.column_by_name(field.name()) {
                Some(column) if column.data_type() == field.data_type() => column.clone(),
                Some(column) => cast(column, field.data_type())?,
                None => arrow::array::new_null_array(field.data_type(), batch.num_rows()),
            });
        }
        self.batches += 1;
        Ok(())
    }

    /// Takes batches out, as if they had never been added.
    fn remove(&mut self, batches: Range<usize>) {
        self.batches -= batches.len();
        self.parts.iter_mut().filter(|parts| !parts.is_empty()).for_each(|parts| drop(parts.drain(batches.clone())));
    }

    /// Rows that are chosen together lie in few of the batches; a look at the others, for each column, is spared.
    fn choose(&self, rows: impl Iterator<Item = Source>) -> Picked {
        let mut number_of = vec![usize::MAX; self.batches];
        let mut batches = Vec::new();
        let rows = rows.map(|(batch, row)| {
            if number_of[batch] == usize::MAX {
                number_of[batch] = batches.len();
                batches.push(batch);
            }
            (number_of[batch], row)
        });
        Picked { rows: rows.collect(), batches }
    }

    fn column(&self, at: usize, of: &Picked) -> Result<ArrayRef, ArrowError> {
        let parts: Vec<&dyn Array> = of.batches.iter().map(|batch| self.parts[at][*batch].as_ref()).collect();
        interleave(&parts, &of.rows)
    }

    /// Whether the rows of each pair differ in one of the columns. Those that differ in one are not looked at again.
    fn differ(&self, pairs: &[(Source, Source)], columns: &[usize]) -> Result<Vec<bool>, ArrowError> {
        let mut differ = vec![false; pairs.len()];
        if pairs.is_empty() {
            return Ok(differ);
        }
        let mut open: Vec<usize> = (0..pairs.len()).collect();
        for &column in columns {
            let of = |side: fn(&(Source, Source)) -> Source| self.choose(open.iter().map(|at| side(&pairs[*at])));
            let (new, old) = (self.column(column, &of(|pair| pair.0))?, self.column(column, &of(|pair| pair.1))?);
            if new.data_type().is_nested() {
                let converter = RowConverter::new(vec![SortField::new(new.data_type().clone())])?;
                let (new, old) = (converter.convert_columns(&[new])?, converter.convert_columns(&[old])?);
                open.iter().zip(new.iter().zip(old.iter())).for_each(|(at, (new, old))| differ[*at] = new != old);
            } else {
                let found = distinct(&new, &old)?;
                open.iter().zip(found.values().iter()).for_each(|(at, found)| differ[*at] = found);
            }
            open.retain(|at| !differ[*at]);
            if open.is_empty() {
                break;
            }
        }
        Ok(differ)
    }
}

/// Where in the target what is known of the keys lies.
#[derive(Default)]
struct Known {
    /// By the key's number.
    before: Vec<Before>,
    rows: Vec<RecordBatch>,
}

/// What a piece of a file has of the keys.
#[derive(Default)]
struct OfPiece {
    /// Rows that make way.
    doomed: RoaringTreemap,
    /// Whose row began or ended when.
    times: Vec<(u32, i64)>,
    /// Where the rows are that keys go on from, and whose, if they were not read at once.
    current: Vec<(u64, u32)>,
    /// These rows.
    rows: Vec<Owned>,
}

impl OfPiece {
    /// The rows come with when they began and ended.
    fn note(&mut self, hits: Hits, fates: &[Fate]) -> Result<(), ArrowError> {
        let Hits { rows, with, whole } = hits;
        let times = with.iter().map(|times| Ok(cast(times, &DataType::Int64)?.as_primitive::<Int64Type>().clone()));
        let times = times.collect::<Result<Vec<_>, ArrowError>>()?;
        for (row, (position, number)) in rows.into_iter().enumerate() {
            let fate = fates[number as usize];
            let goes_on = goes_on(&with, row, fate);
            if goes_on || fate == Fate::Fold {
                add_to(&mut self.doomed, position);
            }
            if fate != Fate::Fold {
                let last = times.iter().filter(|times| times.is_valid(row)).map(|times| times.value(row)).max();
                self.times.extend(last.map(|last| (number, last)));
            }
            if goes_on && whole.is_none() {
                self.current.push((position, number));
            }
        }
        self.rows.extend(whole);
        Ok(())
    }
}

impl Run<'_> {
    /// One pass of a run, over the keys of a range.
    pub(super) async fn stage_versions(
        &self,
        mut newest: Newest,
        new_files: &[ScanFile],
        base: Option<&Base>,
        merged: Merged,
        silver: Option<Table>,
        staged: &mut Option<Staged>,
    ) -> Result<()> {
        let failed = |error: ArrowError| self.failed(arrow_failed(error));
        let started = tokio::time::Instant::now();
        let elapsed_ms = || started.elapsed().as_millis() as u64;
        newest.seen.unavailable.extend(merged.unavailable.iter().cloned());
        let mut fates = vec![Fate::Row; newest.keys.len()];
        if self.mends(base) {
            fates.fill(Fate::Fold);
            newest.forget_events();
            newest = self.with_history(newest, &fates, &[]).await?;
        } else if let Some(base) = base {
            let (known, of_keys) = self.keys_to_fold(newest, new_files, base, &merged).await?;
            (newest, fates) = (known, of_keys);
            if fates.contains(&Fate::Fold) {
                newest = self.with_history(newest, &fates, new_files).await?;
            }
        }
        let truncations: BTreeMap<_, _> = merged.truncations.iter().cloned().collect();
        // What comes out has the same columns whatever goes in.
        let frame = self.model_over_parts(Rows::default(), Vec::new(), true).await?;
        let gate = self.gate(&frame).await?;
        let schema = versions_schema(&gate.table_schema(&row_schema(&frame, &self.keys)));
        let staged = self.staged(staged, silver, &schema, base, &merged).await?;
        staged.merged.join(merged);
        let newest = Arc::new(newest);
        let replaces_all = staged.replaces_all;
        let found = async {
            let known = match replaces_all {
                true => Known::default(),
                false => self.known(staged, &newest, fates).await?,
            };
            Ok::<_, Error>((staged, known, elapsed_ms()))
        };
        // What steps there are is found by one core, and what is read by both.
        let made = async {
            let (steps, rows) = self.steps(&newest, truncations).await?;
            Ok::<_, Error>((steps, rows, elapsed_ms()))
        };
        // Both to their ends: what one of them still does would hold memory that the next attempt needs.
        let (found, made) = tokio::join!(found, made);
        let ((staged, known, found_ms), (steps, rows, steps_ms)) = (found?, made?);
        // The rows hold the events' columns, until they are written.
        let held = self.alone(newest)?.into_held();
        let bytes = known.rows.iter().map(RecordBatch::get_array_memory_size).sum();
        let of_known = MemoryConsumer::new(format!("versions for {}", self.model.table))
            .register(&self.session.runtime_env().memory_pool);
        of_known.try_grow(bytes).map_err(|error| self.failed(error.into()))?;
        let mut pool = Pool::new(staged.schema()?);
        known.rows.iter().try_for_each(|batch| pool.add(batch)).map_err(failed)?;
        let tracked = tracked(self.model, &self.keys, &pool.schema)?;
        let now = self.lake.clock().now_us();
        let on_delete = self.model.on_delete;
        let count = steps.len();
        let work = Work { steps, rows: rows.len(), before: known.before, on_delete, pool, tracked, now, gate };
        let (written, passed) = self.write_versions(staged, work, rows).await?;
        staged.written.extend(written);
        staged.passed.join(passed);
        drop(held);
        tracing::debug!(
            table = %self.model.table, steps = count, steps_ms, found_ms, written_ms = elapsed_ms(),
            "went through the versions"
        );
        Ok(())
    }

    /// The events as steps, and what they say rows are.
    async fn steps(&self, newest: &Arc<Newest>, truncations: BTreeMap<Truncation, i64>) -> Result<(Vec<Step>, Rows)> {
        let (of, columns, keys) = (newest.clone(), self.columns.clone(), self.keys.clone());
        let with_origin = self.images().with_origin;
        let task = tokio::task::spawn_blocking(move || {
            let steps = of.steps(&truncations);
            let rows = of.rows_of(&steps, &Images { columns: &columns, keys: &keys, with_origin })?;
            Ok((steps, rows))
        });
        let ended = task.await.map_err(|error| self.failed(engine::Error::Internal { problem: error.to_string() }))?;
        ended.map_err(|error: ArrowError| self.failed(arrow_failed(error)))
    }

    /// What the model makes of rows, part by part, in the order of the rows.
    async fn model_rows(&self, rows: Rows, parts: &[Part]) -> Result<Vec<ModelRows>> {
        let failed = |error: DataFusionError| self.failed(error.into());
        let ranges = parts.iter().map(|part| part.rows.clone()).collect();
        let frame = self.model_over_parts(rows, ranges, true).await?;
        if goes_row_by_row(frame.logical_plan()).map_err(failed)? {
            let streams = frame.execute_stream_partitioned().await.map_err(failed)?;
            let streams: Vec<ModelRows> =
                streams.into_iter().map(|rows| rows.map_err(engine::Error::from).boxed()).collect();
            if streams.len() == parts.len() {
                return Ok(streams);
            }
            return Err(self.failed(out_of_order()));
        }
        let frame = frame.sort(vec![ident(EVENT).sort(true, false)]).map_err(failed)?;
        let batches = frame.collect().await.map_err(failed)?;
        let mut streams = Vec::with_capacity(parts.len());
        for part in parts {
            let mut of_part = Vec::new();
            for batch in &batches {
                let events = numbers(batch).map_err(|error| self.failed(error))?;
                let events = events.values();
                let bound = |row: usize| events.partition_point(|event| (*event as usize) < row);
                let (from, until) = (bound(part.rows.start), bound(part.rows.end));
                of_part.extend((from < until).then(|| Ok(batch.slice(from, until - from))));
            }
            streams.push(futures::stream::iter(of_part).boxed());
        }
        Ok(streams)
    }

    /// Which keys have to be folded from all their events.
    async fn keys_to_fold(
        &self,
        newest: Newest,
        new_files: &[ScanFile],
        base: &Base,
        merged: &Merged,
    ) -> Result<(Newest, Vec<Fate>)> {
        let mut fates = vec![Fate::Row; newest.keys.len()];
        if newest.all_are_past() && !newest.may_lack() && merged.truncations.is_empty() {
            return Ok((newest, fates));
        }
        let firsts = newest.firsts(&self.columns);
        let furthest = base.merged.frontier.furthest();
        let mut doubtful: Vec<Option<EventRef>> = vec![None; newest.keys.len()];
        let mut earliest: Option<Place> = None;
        for (number, (first, lacks)) in firsts.into_iter().enumerate() {
            let Some(first) = first else { continue };
            let place = newest.place_of(first);
            if lacks || merged.truncations.iter().any(|(truncation, _)| truncation.takes(&place)) {
                fates[number] = Fate::Fold;
            } else if furthest.is_some_and(|furthest| !place.is_past(furthest)) {
                doubtful[number] = Some(first);
                if earliest.as_ref().is_none_or(|earliest| !place.reaches(earliest)) {
                    earliest = Some(place.to_place());
                }
            }
        }
        let Some(earliest) = earliest else { return Ok((newest, fates)) };
        let newest = Arc::new(newest);
        for number in self.overtaken(&newest, doubtful, new_files, earliest).await? {
            fates[number as usize] = Fate::Fold;
        }
        Ok((self.alone(newest)?, fates))
    }

    /// Adds the events from before of the keys that are folded.
    async fn with_history(&self, newest: Newest, fates: &[Fate], new_files: &[ScanFile]) -> Result<Newest> {
        let new: HashSet<&str> = new_files.iter().map(|file| file.path.as_str()).collect();
        let mut files = self.view.files(None).await?;
        files.retain(|file| !new.contains(file.path.as_str()));
        let newest = Arc::new(newest);
        let (set, folded) =
            (newest.clone(), Arc::new(fates.iter().map(|fate| *fate == Fate::Fold).collect::<Vec<_>>()));
        let of_folded = move |events: &Events| {
            let mut keep = vec![false; events.len()];
            events.for_each_row_of(&set.keys, |row, number| keep[row] |= folded[number]);
            Some(BooleanArray::from(keep))
        };
        let mut found = Vec::new();
        self.each_batch_of(
            &self.view,
            &files,
            Depth::Versions,
            of_folded,
            |events| events,
            |events| found.push(events),
        )
        .await?;
        let mut newest = self.alone(newest)?;
        let folded: Vec<bool> = fates.iter().map(|fate| *fate == Fate::Fold).collect();
        for events in found.into_iter().filter(|events| events.len() > 0) {
            newest.hold_more(events.bytes()).map_err(|error| self.failed(error.into()))?;
            newest.add_earlier(events, &folded);
        }
        Ok(newest)
    }

    /// The tasks that shared it have ended.
    fn alone(&self, newest: Arc<Newest>) -> Result<Newest> {
        let shared = || engine::Error::Internal { problem: "a task outlived its work".to_string() };
        Arc::try_unwrap(newest).map_err(|_| self.failed(shared()))
    }

    /// Looks up the keys in the target: rows that make way are noted as doomed, and versions to go on from are read.
    async fn known(&self, staged: &mut Staged, newest: &Arc<Newest>, fates: Vec<Fate>) -> Result<Known> {
        let fates = Arc::new(fates);
        let fields = staged.view.arrow_schema().fields().clone();
        let is_read = |field: &&FieldRef| field.name() == VALID_FROM || !MADE_ANEW.contains(&field.name().as_str());
        let columns: Vec<FieldRef> = fields.iter().filter(is_read).cloned().collect();
        let whole = Whole { columns: columns.clone(), is_wanted: goes_on };
        let of = fates.clone();
        let keep = move |found: &mut OfPiece, hits| found.note(hits, &of);
        let found = self.probe(&staged.view, newest, &fates, &[VALID_FROM, VALID_TO], Some(whole), keep).await?;
        let mut known = Known { before: vec![Before::default(); newest.keys.len()], rows: Vec::new() };
        let (mut rows, mut wanted) = (Vec::new(), Vec::new());
        for (file, of_piece) in found {
            for (number, time) in of_piece.times {
                let until = &mut known.before[number as usize].until;
                *until = time.max(*until);
            }
            rows.extend(of_piece.rows);
            wanted.extend((!of_piece.current.is_empty()).then(|| (file.clone(), of_piece.current)));
            staged.doom(file, of_piece.doomed);
        }
        rows.extend(self.rows_at(&staged.view, columns, in_files(wanted)).await?);
        for (numbers, batch) in rows {
            let from = batch.column_by_name(VALID_FROM).map(|from| cast(from, &DataType::Int64)).transpose();
            let Some(from) = from.map_err(|error| self.failed(arrow_failed(error)))? else { continue };
            let from = from.as_primitive::<Int64Type>();
            for (row, number) in numbers.into_iter().enumerate() {
                let before = &mut known.before[number as usize];
                (before.current, before.from) = (Some((known.rows.len() as u32, row as u32)), from.value(row));
            }
            known.rows.push(batch);
        }
        Ok(known)
    }

    /// Reads rows whole: those at places of files, in order, with whose they are.
    async fn rows_at(
        &self,
        view: &TableView,
        columns: Vec<FieldRef>,
        wanted: Vec<(ScanFile, Vec<(u64, u32)>)>,
    ) -> Result<Vec<Owned>> {
        let files: Vec<ScanFile> = wanted.iter().map(|(file, _)| file.clone()).collect();
        let reader = Arc::new(RowReader::new(&self.session, view, columns).with_positions());
        let others: Vec<Arc<RoaringTreemap>> = wanted
            .iter()
            .map(|(file, rows)| {
                // What is read of a file is what is not deleted of it.
                let mut others = RoaringTreemap::new();
                others.insert_range(0..file.record_count);
                Arc::new(others - set_of(rows.iter().map(|(position, _)| *position).collect()))
            })
            .collect();
        let parts = pieces(&files).into_iter().map(|piece| {
            let (file, others) = (wanted[piece.file].0.clone(), others[piece.file].clone());
            (piece, file, others)
        });
        let parts: Vec<(Piece, ScanFile, Arc<RoaringTreemap>)> = parts.collect();
        let work = |(piece, file, others): (Piece, ScanFile, Arc<RoaringTreemap>)| {
            let reader = reader.clone();
            async move {
                let rows: Vec<RecordBatch> =
                    reader.read(&file, &piece, Some(others), None).await?.try_collect().await?;
                let rows: Vec<RecordBatch> = rows.into_iter().filter(|batch| batch.num_rows() > 0).collect();
                // Few are left of a batch; together they are one again.
                match rows.first().map(RecordBatch::schema) {
                    Some(schema) => Ok((piece.file, Some(concat_batches(&schema, &rows).map_err(arrow_failed)?))),
                    None => Ok((piece.file, None)),
                }
            }
        };
        let mut rows = Vec::new();
        let take = |(file, batch): (usize, Option<RecordBatch>)| {
            let Some(mut batch) = batch else { return };
            let positions = batch.remove_column(batch.num_columns() - 1);
            let of_file: &[(u64, u32)] = &wanted[file].1;
            let mut at = 0;
            let numbers = positions.as_primitive::<Int64Type>().values().iter().filter_map(|position| {
                at += of_file[at..].partition_point(|(of, _)| *of < *position as u64);
                of_file.get(at).map(|(_, number)| *number)
            });
            rows.push((numbers.collect(), batch));
        };
        in_parallel(self.engine.threads(), parts, work, take).await.map_err(|error| self.failed(error))?;
        Ok(rows)
    }

    /// Makes and writes the versions, the keys in as many parts as there are cores.
    async fn write_versions(&self, staged: &Staged, work: Work, rows: Rows) -> Result<(Vec<WrittenFile>, Passed)> {
        let (silver, evolved) = (&staged.silver, staged.evolved.as_ref());
        let at_once = (work.steps.len() / super::run::ROWS_TO_SPLIT).clamp(1, self.engine.threads());
        let parts: Vec<Part> = work.cut(&work.whole(), at_once).collect();
        let rows = self.model_rows(rows, &parts).await?;
        let work = Arc::new(work);
        let task = |(part, rows): (Part, ModelRows)| {
            let (silver, evolved, work) = (silver.clone(), evolved.cloned(), work.clone());
            async move { Ok(work.write(part, rows, silver.writer(evolved.as_ref())?).await) }
        };
        let (mut written, mut passed, mut failure) = (Vec::new(), Passed::default(), None);
        let parts = parts.into_iter().zip(rows);
        in_parallel(at_once, parts, task, |outcome: Result<(Vec<WrittenFile>, Passed), engine::Error>| match outcome {
            Ok((files, of_part)) => {
                written.extend(files);
                passed.join(of_part);
            }
            Err(error) => drop(failure.get_or_insert(error)),
        })
        .await
        .map_err(|error| self.failed(error))?;
        // What the rows were made from is not needed any more.
        let forgotten = self.session.deregister_table("changes").map_err(engine::Error::from);
        match failure.or(forgotten.err()) {
            None => Ok((written, passed)),
            Some(error) => {
                silver.discard(&written).await;
                Err(self.failed(error))
            }
        }
    }
}

/// The places in pieces of files, put together for each file and in order.
fn in_files(pieces: Vec<(ScanFile, Vec<(u64, u32)>)>) -> Vec<(ScanFile, Vec<(u64, u32)>)> {
    let mut files: Vec<(ScanFile, Vec<(u64, u32)>)> = Vec::new();
    for (file, places) in pieces {
        match files.iter_mut().find(|(known, _)| known.path == file.path) {
            Some((_, known)) => known.extend(places),
            None => files.push((file, places)),
        }
    }
    files.iter_mut().for_each(|(_, places)| places.sort_unstable());
    files
}

/// What the model makes of rows, with each one's number, in order.
type ModelRows = BoxStream<'static, Result<RecordBatch, engine::Error>>;

/// Whether each row that comes out is made of one that goes in, and they stay in order.
fn goes_row_by_row(plan: &LogicalPlan) -> Result<bool, DataFusionError> {
    let (mut scans, mut others) = (0, 0);
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::TableScan(_) => scans += 1,
            LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => {}
            _ => others += 1,
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(scans == 1 && others == 0)
}

/// Of which step each row is.
fn numbers(batch: &RecordBatch) -> Result<Int64Array, engine::Error> {
    let column = batch.column_by_name(EVENT).and_then(|column| column.as_primitive_opt::<Int64Type>());
    column.cloned().ok_or_else(|| arrow_failed(ArrowError::SchemaError(format!("the model lost `{EVENT}`"))))
}

/// The number after the last of a batch, whose numbers rise, within these bounds.
fn next_after(numbers: &[i64], from: usize, until: usize) -> Result<usize, engine::Error> {
    let bounds = numbers.first().copied().zip(numbers.last().map(|last| *last + 1));
    let Some((first, next)) = bounds else { return Ok(from) };
    let rise = numbers.is_sorted_by(|one, other| one < other);
    match rise && first >= from as i64 && next <= until as i64 {
        true => Ok(next as usize),
        false => Err(out_of_order()),
    }
}

fn out_of_order() -> engine::Error {
    engine::Error::Internal { problem: "the model's rows came in another order than they were made".to_string() }
}

/// Whether a row is what its key goes on from. It comes with when it began and ended.
fn goes_on(with: &[ArrayRef], row: usize, fate: Fate) -> bool {
    fate != Fate::Fold && with.get(1).is_some_and(|ended| ended.is_null(row))
}

/// What the versions are made of.
struct Work {
    steps: Vec<Step>,
    /// How many of them make rows.
    rows: usize,
    before: Vec<Before>,
    on_delete: OnDelete,
    /// The rows that keys go on from.
    pool: Pool,
    /// The columns whose change makes a version.
    tracked: Vec<usize>,
    now: i64,
    gate: Arc<Gate>,
}

/// The steps of some keys, and the rows that they make.
#[derive(Clone)]
struct Part {
    steps: Range<usize>,
    rows: Range<usize>,
}

impl Work {
    fn whole(&self) -> Part {
        Part { steps: 0..self.steps.len(), rows: 0..self.rows }
    }

    /// Parts of about as many steps, each with all steps of its keys.
    fn cut(&self, part: &Part, count: usize) -> impl Iterator<Item = Part> + '_ {
        let Part { steps, rows } = part.clone();
        let (mut from, mut made) = (steps.start, rows.start);
        (1..=count).map(move |index| {
            let mut to = (steps.start + steps.len() * index / count).max(from);
            while to > from && to < steps.end && self.steps[to].key == self.steps[to - 1].key {
                to += 1;
            }
            let makes_row = |step: &&Step| matches!(step.what, What::Row(_));
            let rows = made..made + self.steps[from..to].iter().filter(makes_row).count();
            made = rows.end;
            Part { steps: std::mem::replace(&mut from, to)..to, rows }
        })
    }

    /// The steps of those keys at the beginning of a part whose rows before one are all theirs.
    fn settled(&self, part: &Part, before: usize) -> Part {
        let Part { steps, rows } = part.clone();
        let (mut settled, mut made) =
            (Part { steps: steps.start..steps.start, rows: rows.start..rows.start }, rows.start);
        for at in steps.clone() {
            if at > steps.start && self.steps[at].key != self.steps[at - 1].key {
                (settled.steps.end, settled.rows.end) = (at, made);
            }
            if matches!(self.steps[at].what, What::Row(_)) {
                if made >= before {
                    return settled;
                }
                made += 1;
            }
        }
        part.clone()
    }

    async fn write(
        &self,
        part: Part,
        rows: ModelRows,
        mut writer: DataWriter,
    ) -> Result<(Vec<WrittenFile>, Passed), engine::Error> {
        match self.write_to(part, rows, &mut writer).await {
            Ok(passed) => Ok((writer.finish().await?, passed)),
            Err(error) => {
                writer.discard().await;
                Err(error)
            }
        }
    }

    /// Writes the versions of keys as soon as all their rows have come: they are near then, and soon forgotten.
    async fn write_to(
        &self,
        part: Part,
        mut rows: ModelRows,
        writer: &mut DataWriter,
    ) -> Result<Passed, engine::Error> {
        let (mut pool, mut passed) = (self.pool.clone(), Passed::default());
        let mut left = part.clone();
        // For each row from the first that is left: where it is, once it has come and unless it was left out.
        let mut places: VecDeque<Option<Source>> = VecDeque::new();
        loop {
            let batch = rows.try_next().await?;
            let come = match &batch {
                None => part.rows.end,
                Some(batch) => {
                    let numbers_come = numbers(batch)?;
                    let come = next_after(numbers_come.values(), left.rows.start + places.len(), part.rows.end)?;
                    let (batch, of_batch) = self.gate.pass(batch)?;
                    passed.join(of_batch);
                    for (row, number) in numbers(&batch)?.values().iter().enumerate() {
                        places.resize(*number as usize - left.rows.start, None);
                        places.push_back(Some((pool.batches, row)));
                    }
                    pool.add(&batch).map_err(arrow_failed)?;
                    come
                }
            };
            places.resize(come - left.rows.start, None);
            let settled = self.settled(&left, come);
            for part in self.cut(&settled, settled.steps.len().div_ceil(CHUNK_ROWS)) {
                let of_part: Vec<Option<Source>> = places.drain(..part.rows.len()).collect();
                let versions = self.versions(part, &of_part, &pool).map_err(arrow_failed)?;
                if !versions.is_empty() {
                    writer.write(&batch_of(&pool, &versions, self.now).map_err(arrow_failed)?).await?;
                }
                tokio::task::consume_budget().await;
            }
            (left.steps.start, left.rows.start) = (settled.steps.end, settled.rows.end);
            if batch.is_none() {
                return Ok(passed);
            }
            // Batches that nothing is left of.
            let known = self.pool.batches;
            let first = places.iter().flatten().map(|(batch, _)| *batch).min().unwrap_or(pool.batches);
            pool.remove(known..first);
            places.iter_mut().flatten().for_each(|(batch, _)| *batch -= first - known);
        }
    }

    fn versions(&self, part: Part, rows: &[Option<Source>], pool: &Pool) -> Result<Vec<Version>, ArrowError> {
        let Work { steps, before, on_delete, tracked, .. } = self;
        let (steps, on_delete) = (&steps[part.steps], *on_delete);
        let timeline = Timeline { steps, rows, before, on_delete };
        let compared = timeline.compared();
        let pairs: Vec<(Source, Source)> = compared.iter().flatten().copied().collect();
        let mut differ = pool.differ(&pairs, tracked)?.into_iter();
        let changes = compared.iter().map(|pair| pair.is_some() && differ.next().unwrap_or(false));
        Ok(timeline.versions(&changes.collect::<Vec<_>>()))
    }
}

fn batch_of(pool: &Pool, versions: &[Version], now: i64) -> Result<RecordBatch, ArrowError> {
    let rows = pool.choose(versions.iter().map(|version| version.source));
    let instants = |of: &dyn Fn(&Version) -> Option<i64>| -> ArrayRef {
        let values = versions.iter().map(of);
        Arc::new(TimestampMicrosecondArray::from_iter(values).with_timezone(layout::UTC))
    };
    let flags = |of: &dyn Fn(&Version) -> bool| -> ArrayRef {
        Arc::new(BooleanArray::from_iter(versions.iter().map(|version| Some(of(version)))))
    };
    let columns = pool.schema.fields().iter().enumerate().map(|(at, field)| match field.name().as_str() {
        VALID_FROM => Ok(instants(&|version| Some(version.from))),
        VALID_TO => Ok(instants(&|version| version.to)),
        IS_CURRENT => Ok(flags(&|version| version.to.is_none())),
        IS_DELETED => Ok(flags(&|version| version.is_deleted)),
        MERGED_AT => Ok(instants(&|_| Some(now))),
        _ => pool.column(at, &rows),
    });
    RecordBatch::try_new(pool.schema.clone(), columns.collect::<Result<_, _>>()?)
}

/// The columns whose change makes a version.
pub(super) fn tracked(model: &SilverModel, keys: &[String], schema: &Schema) -> Result<Vec<usize>> {
    let Scd::Two { track_history } = &model.scd else { return Ok(Vec::new()) };
    let missing = |name: &String| Error::Model {
        table: model.table.clone(),
        problem: format!("`track_history` names `{name}`, which the model does not select"),
    };
    if !track_history.is_empty() {
        return track_history.iter().map(|name| schema.index_of(name).map_err(|_| missing(name))).collect();
    }
    let own = |name: &str| layout::is_own_name(name) || keys.iter().any(|key| key == name);
    Ok((0..schema.fields().len()).filter(|at| !own(schema.field(*at).name())).collect())
}

/// The columns of a table of versions whose model gives these.
pub(super) fn versions_schema(rows: &Schema) -> Schema {
    let mut fields: Vec<FieldRef> = rows.fields().iter().filter(|field| field.name() != EVENT).cloned().collect();
    let own = [
        Field::new(VALID_FROM, layout::instant(), true),
        Field::new(VALID_TO, layout::instant(), true),
        Field::new(IS_CURRENT, DataType::Boolean, true),
    ];
    let merged_at = fields.pop();
    fields.extend(own.map(Arc::new));
    fields.extend(merged_at);
    Schema::new(fields)
}
