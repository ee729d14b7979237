//! One run over a table of versions: the new events go on from what each key's row was, or, where that is not to be
//! had, from all its events before.
//!
//! A key is folded from all its events when a new one is not past all that was merged of it, lacks values (or has nulls
//! that the model ignores), or is before a truncation. All its versions are replaced then.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::{cast, concat_batches, interleave};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use datafusion::execution::memory_pool::MemoryConsumer;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use super::events::{Depth, EventRef, Events, Images, Newest, Rows, Step, What};
use super::gate::{Gate, Passed};
use super::order::{Place, Truncation};
use super::run::{Base, Fate, Owned, Run, Staged, Whole, arrow_failed, set_of};
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
struct Pool {
    schema: SchemaRef,
    /// For each column, its array in each batch.
    parts: Vec<Vec<ArrayRef>>,
}

impl Pool {
    /// The batches brought to the schema's types; a column that a batch lacks is null. Columns that are made anew are
    /// not held.
    fn new(schema: SchemaRef, batches: &[RecordBatch]) -> Result<Self, ArrowError> {
        let mut parts = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            let of_batch = |batch: &RecordBatch| match batch.column_by_name(field.name()) {
                Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
                Some(column) => cast(column, field.data_type()),
                None => Ok(arrow::array::new_null_array(field.data_type(), batch.num_rows())),
            };
            parts.push(match MADE_ANEW.contains(&field.name().as_str()) {
                true => Vec::new(),
                false => batches.iter().map(of_batch).collect::<Result<_, _>>()?,
            });
        }
        Ok(Pool { schema, parts })
    }

    fn column(&self, at: usize, rows: &[Source]) -> Result<ArrayRef, ArrowError> {
        interleave(&self.parts[at].iter().map(|part| part.as_ref()).collect::<Vec<_>>(), rows)
    }

    /// Whether the rows of each pair differ in one of the columns. Those that differ in one are not looked at again.
    fn differ(&self, pairs: &[(Source, Source)], columns: &[usize]) -> Result<Vec<bool>, ArrowError> {
        let mut differ = vec![false; pairs.len()];
        if pairs.is_empty() {
            return Ok(differ);
        }
        let mut open: Vec<usize> = (0..pairs.len()).collect();
        for &column in columns {
            let (new, old): (Vec<Source>, Vec<Source>) = open.iter().map(|at| pairs[*at]).unzip();
            let (new, old) = (self.column(column, &new)?, self.column(column, &old)?);
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
    /// By the key's rank.
    before: Vec<Before>,
    rows: Vec<RecordBatch>,
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
        let ranks = Arc::new(newest.ranks());
        // What comes out has the same columns whatever goes in.
        let frame = self.model_over(Rows::default(), true).await?;
        let gate = self.gate(&frame).await?;
        let schema = versions_schema(&gate.table_schema(&row_schema(&frame, &self.keys)));
        let staged = self.staged(staged, silver, &schema, base, &merged).await?;
        staged.merged.join(merged);
        let newest = Arc::new(newest);
        let replaces_all = staged.replaces_all;
        let found = async {
            let known = match replaces_all {
                true => Known::default(),
                false => self.known(staged, &newest, fates, &ranks).await?,
            };
            Ok::<_, Error>((staged, known, elapsed_ms()))
        };
        // What is made needs one core for a while, and what is read both.
        let made = async {
            let (steps, output, passed) = self.made(&newest, &ranks, truncations, &gate).await?;
            Ok::<_, Error>((steps, output, passed, elapsed_ms()))
        };
        // Both to their ends: what one of them still does would hold memory that the next attempt needs.
        let (found, made) = tokio::join!(found, made);
        let ((staged, known, found_ms), (steps, output, passed, made_ms)) = (found?, made?);
        staged.passed.join(passed);
        drop(newest);
        let made = steps.iter().filter(|step| matches!(step.what, What::Row(_))).count();
        let held = MemoryConsumer::new(format!("versions for {}", self.model.table))
            .register(&self.session.runtime_env().memory_pool);
        let bytes = output.iter().chain(&known.rows).map(RecordBatch::get_array_memory_size).sum();
        held.try_grow(bytes).map_err(|error| self.failed(error.into()))?;
        let mut of_step: Vec<Option<Source>> = vec![None; made];
        for (index, batch) in output.iter().enumerate() {
            let column = batch.column_by_name(EVENT).and_then(|column| column.as_primitive_opt::<Int64Type>());
            let of_row = column.ok_or_else(|| failed(ArrowError::SchemaError(format!("the model lost `{EVENT}`"))))?;
            for (row, step) in of_row.values().iter().enumerate() {
                of_step[*step as usize] = Some((known.rows.len() + index, row));
            }
        }
        let schema = staged.schema()?;
        let batches: Vec<RecordBatch> = known.rows.into_iter().chain(output).collect();
        let pool = Pool::new(schema, &batches).map_err(failed)?;
        drop(batches);
        let tracked = tracked(self.model, &self.keys, &pool.schema)?;
        let now = self.lake.clock().now_us();
        let on_delete = self.model.on_delete;
        let count = steps.len();
        let work = Work { steps, rows: of_step, before: known.before, ranks, on_delete, pool, tracked, now };
        staged.written.extend(self.write_versions(staged, work).await?);
        tracing::debug!(
            table = %self.model.table, steps = count, made_ms, found_ms, written_ms = elapsed_ms(),
            "went through the versions"
        );
        Ok(())
    }

    /// The events as steps, and what the model makes of them.
    async fn made(
        &self,
        newest: &Arc<Newest>,
        ranks: &Arc<Vec<u32>>,
        truncations: BTreeMap<Truncation, i64>,
        gate: &Gate,
    ) -> Result<(Vec<Step>, Vec<RecordBatch>, Passed)> {
        let (of, ranks, columns, keys) = (newest.clone(), ranks.clone(), self.columns.clone(), self.keys.clone());
        let with_origin = self.images().with_origin;
        let task = tokio::task::spawn_blocking(move || {
            let steps = of.steps(&ranks, &truncations);
            let rows = of.rows_of(&steps, &Images { columns: &columns, keys: &keys, with_origin })?;
            Ok((steps, rows))
        });
        let ended = task.await.map_err(|error| self.failed(engine::Error::Internal { problem: error.to_string() }))?;
        let (steps, rows) = ended.map_err(|error: ArrowError| self.failed(arrow_failed(error)))?;
        let frame = self.model_over(rows, true).await?;
        let mut output = frame.collect().await.map_err(|error| self.failed(error.into()))?;
        let mut all_passed = Passed::default();
        for batch in &mut output {
            let (rows, passed) = gate.pass(batch).map_err(|source| self.failed(source))?;
            *batch = rows;
            all_passed.join(passed);
        }
        // What the rows were made from is not needed any more.
        self.session.deregister_table("changes").map_err(|error| self.failed(error.into()))?;
        Ok((steps, output, all_passed))
    }

    /// Which keys have to be folded from all their events.
    async fn keys_to_fold(
        &self,
        newest: Newest,
        new_files: &[ScanFile],
        base: &Base,
        merged: &Merged,
    ) -> Result<(Newest, Vec<Fate>)> {
        let firsts = newest.firsts(&self.columns);
        let furthest = base.merged.frontier.furthest();
        let mut fates = vec![Fate::Row; newest.keys.len()];
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
    async fn known(&self, staged: &mut Staged, newest: &Arc<Newest>, fates: Vec<Fate>, ranks: &[u32]) -> Result<Known> {
        let fates = Arc::new(fates);
        let fields = staged.view.arrow_schema().fields().clone();
        let is_read = |field: &&FieldRef| field.name() == VALID_FROM || !MADE_ANEW.contains(&field.name().as_str());
        let columns: Vec<FieldRef> = fields.iter().filter(is_read).cloned().collect();
        let whole = Whole { columns: columns.clone(), is_wanted: goes_on };
        let times = [IS_CURRENT, VALID_FROM, VALID_TO];
        let found = self.probe(&staged.view, newest, &fates, &times, Some(whole)).await?;
        let mut known = Known { before: vec![Before::default(); newest.keys.len()], rows: Vec::new() };
        // The rows to go on from in each file, in order, and whose they are.
        let mut wanted: Vec<(ScanFile, Vec<(u64, u32)>)> = Vec::new();
        for (file, hits) in found.hits {
            let (mut doomed, mut current) = (Vec::new(), Vec::new());
            for (rows, extra) in hits {
                let time = |at: usize| Ok(cast(&extra[at], &DataType::Int64)?.as_primitive::<Int64Type>().clone());
                let times: Result<(Int64Array, Int64Array), ArrowError> = time(1).and_then(|from| Ok((from, time(2)?)));
                let (from, to) = times.map_err(|error| self.failed(arrow_failed(error)))?;
                for (row, (position, number)) in rows.into_iter().enumerate() {
                    let fate = fates[number as usize];
                    if fate == Fate::Fold {
                        doomed.push(position);
                        continue;
                    }
                    let before = &mut known.before[ranks[number as usize] as usize];
                    for times in [&from, &to] {
                        before.until = before.until.max(times.is_valid(row).then(|| times.value(row)));
                    }
                    if goes_on(&extra, row, fate) {
                        current.push((position, number));
                    }
                }
            }
            doomed.extend(current.iter().map(|(position, _)| *position));
            staged.doom(file.clone(), set_of(doomed));
            if !current.is_empty() {
                current.sort_unstable();
                wanted.push((file, current));
            }
        }
        let rows = match found.whole {
            Some(rows) => rows,
            None => self.rows_at(&staged.view, columns, wanted).await?,
        };
        for (numbers, batch) in rows {
            let from = batch.column_by_name(VALID_FROM).map(|from| cast(from, &DataType::Int64)).transpose();
            let Some(from) = from.map_err(|error| self.failed(arrow_failed(error)))? else { continue };
            let from = from.as_primitive::<Int64Type>();
            for (row, number) in numbers.into_iter().enumerate() {
                known.before[ranks[number as usize] as usize].current =
                    Some(((known.rows.len(), row), from.value(row)));
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
    async fn write_versions(&self, staged: &Staged, work: Work) -> Result<Vec<WrittenFile>> {
        let (silver, evolved) = (&staged.silver, staged.evolved.as_ref());
        let at_once = (work.steps.len() / super::run::ROWS_TO_SPLIT).clamp(1, self.engine.threads());
        let parts: Vec<Part> = work.cut(&work.whole(), at_once).collect();
        let work = Arc::new(work);
        let task = |part: Part| {
            let (silver, evolved, work) = (silver.clone(), evolved.cloned(), work.clone());
            async move { Ok(work.write(part, silver.writer(evolved.as_ref())?).await) }
        };
        let (mut written, mut failure) = (Vec::new(), None);
        in_parallel(at_once, parts, task, |outcome: Result<Vec<WrittenFile>, engine::Error>| match outcome {
            Ok(files) => written.extend(files),
            Err(error) => drop(failure.get_or_insert(error)),
        })
        .await
        .map_err(|error| self.failed(error))?;
        match failure {
            None => Ok(written),
            Some(error) => {
                silver.discard(&written).await;
                Err(self.failed(error))
            }
        }
    }
}

/// Whether a row is what its key goes on from. It comes with whether it is current.
fn goes_on(with: &[ArrayRef], row: usize, fate: Fate) -> bool {
    let is_current = with.first().and_then(|column| column.as_boolean_opt());
    fate != Fate::Fold && is_current.is_some_and(|current| current.is_valid(row) && current.value(row))
}

/// What the versions are made of.
struct Work {
    steps: Vec<Step>,
    /// For each step that makes a row, in order, where that is.
    rows: Vec<Option<Source>>,
    before: Vec<Before>,
    ranks: Arc<Vec<u32>>,
    on_delete: OnDelete,
    pool: Pool,
    /// The columns whose change makes a version.
    tracked: Vec<usize>,
    now: i64,
}

/// The steps of some keys, and the rows that they make.
#[derive(Clone)]
struct Part {
    steps: Range<usize>,
    rows: Range<usize>,
}

impl Work {
    fn whole(&self) -> Part {
        Part { steps: 0..self.steps.len(), rows: 0..self.rows.len() }
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

    async fn write(&self, part: Part, mut writer: DataWriter) -> Result<Vec<WrittenFile>, engine::Error> {
        match self.write_to(part, &mut writer).await {
            Ok(()) => Ok(writer.finish().await?),
            Err(error) => {
                writer.discard().await;
                Err(error)
            }
        }
    }

    async fn write_to(&self, part: Part, writer: &mut DataWriter) -> Result<(), engine::Error> {
        // Little at a time, which then is near.
        for part in self.cut(&part, part.steps.len().div_ceil(CHUNK_ROWS)) {
            let versions = self.versions(part).map_err(arrow_failed)?;
            if versions.is_empty() {
                continue;
            }
            writer.write(&batch_of(&self.pool, &versions, self.now).map_err(arrow_failed)?).await?;
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    fn versions(&self, part: Part) -> Result<Vec<Version>, ArrowError> {
        let Work { steps, rows, before, ranks, on_delete, pool, tracked, .. } = self;
        let (steps, rows, on_delete) = (&steps[part.steps], &rows[part.rows], *on_delete);
        let timeline = Timeline { steps, rows, before, ranks, on_delete };
        let compared = timeline.compared();
        let pairs: Vec<(Source, Source)> = compared.iter().flatten().copied().collect();
        let mut differ = pool.differ(&pairs, tracked)?.into_iter();
        let changes = compared.iter().map(|pair| pair.is_some() && differ.next().unwrap_or(false));
        Ok(timeline.versions(&changes.collect::<Vec<_>>()))
    }
}

fn batch_of(pool: &Pool, versions: &[Version], now: i64) -> Result<RecordBatch, ArrowError> {
    let sources: Vec<Source> = versions.iter().map(|version| version.source).collect();
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
        _ => pool.column(at, &sources),
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
