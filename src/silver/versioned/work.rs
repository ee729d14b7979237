//! Versions are made of steps and rows, and written: the keys in as many parts as there are cores.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::ident;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use super::EVENT;
use super::pool::Pool;
use crate::engine::{self, in_parallel};
use crate::layout;
use crate::silver::events::{Rows, Step, What};
use crate::silver::gate::{Gate, Passed};
use crate::silver::run::{ROWS_TO_SPLIT, Run, Staged, arrow_failed};
use crate::silver::versions::{Before, IS_CURRENT, IS_DELETED, Source, Timeline, VALID_FROM, VALID_TO, Version};
use crate::silver::{MERGED_AT, OnDelete, Result};
use crate::table::{DataWriter, Table, WrittenFile};

/// Steps that are gone through at a time.
const CHUNK_ROWS: usize = 8192;

impl Run<'_> {
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

    /// Makes and writes the versions, the keys in as many parts as there are cores.
    pub(super) async fn write_versions(
        &self,
        staged: &Staged,
        work: Work,
        rows: Rows,
    ) -> Result<(Vec<WrittenFile>, Passed)> {
        let (silver, evolved) = (&staged.silver, staged.evolved.as_ref());
        let at_once = (work.steps.len() / ROWS_TO_SPLIT).clamp(1, self.engine.threads());
        let parts: Vec<Part> = work.cut(&work.whole(), at_once).collect();
        let rows = self.model_rows(rows, &parts).await?;
        // No more of the table's versions can end than were read.
        let apart = work.pool.rows >= ROWS_TO_SPLIT;
        let work = Arc::new(work);
        let task = |(part, rows): (Part, ModelRows)| {
            let (silver, evolved, work) = (silver.clone(), evolved.cloned(), work.clone());
            async move {
                let writer = || silver.writer(evolved.as_ref());
                let (new, ended) = (writer()?, apart.then(writer).transpose()?);
                let writers = Writers { silver, new, ended };
                Ok(work.write(part, rows, writers).await)
            }
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

/// Where versions are written to.
struct Writers {
    silver: Table,
    new: DataWriter,
    /// Versions that the table has and that end, where there are many: in files of their own, which those who ask for
    /// current rows can pass over.
    ended: Option<DataWriter>,
}

impl Writers {
    /// Writes versions of which those from the first so many batches of the pool end.
    async fn write(
        &mut self,
        pool: &Pool,
        known: usize,
        versions: Vec<Version>,
        now: i64,
    ) -> Result<(), engine::Error> {
        let batch = |versions: &[Version]| batch_of(pool, versions, now).map_err(arrow_failed);
        let Some(of_ended) = &mut self.ended else {
            if !versions.is_empty() {
                self.new.write(&batch(&versions)?).await?;
            }
            return Ok(());
        };
        // Those of each kind lie as they are to be written, and need not be put together row by row.
        let [mut ended, mut new] = [(); 2].map(|()| Vec::with_capacity(versions.len()));
        for version in versions {
            if version.source.0 < known { &mut ended } else { &mut new }.push(version);
        }
        if !ended.is_empty() {
            of_ended.write(&batch(&ended)?).await?;
        }
        if !new.is_empty() {
            self.new.write(&batch(&new)?).await?;
        }
        Ok(())
    }

    /// Closes the files of both. When one of them cannot be closed, none is left.
    async fn finish(self) -> Result<Vec<WrittenFile>, engine::Error> {
        let Some(ended) = self.ended else { return Ok(self.new.finish().await?) };
        // While the storage takes the bytes of one, the other is brought to its end.
        match tokio::join!(ended.finish(), self.new.finish()) {
            (Ok(mut written), Ok(new)) => {
                written.extend(new);
                Ok(written)
            }
            (Err(error), Err(_)) => Err(error.into()),
            (Ok(written), Err(error)) | (Err(error), Ok(written)) => {
                self.silver.discard(&written).await;
                Err(error.into())
            }
        }
    }

    async fn discard(self) {
        self.new.discard().await;
        if let Some(ended) = self.ended {
            ended.discard().await;
        }
    }
}

/// What the versions are made of.
pub(super) struct Work {
    pub(super) steps: Vec<Step>,
    /// How many of them make rows.
    pub(super) rows: usize,
    pub(super) before: Vec<Before>,
    pub(super) on_delete: OnDelete,
    /// The rows that keys go on from.
    pub(super) pool: Pool,
    /// The columns whose change makes a version.
    pub(super) tracked: Vec<usize>,
    pub(super) now: i64,
    pub(super) gate: Arc<Gate>,
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
        mut writers: Writers,
    ) -> Result<(Vec<WrittenFile>, Passed), engine::Error> {
        match self.write_to(part, rows, &mut writers).await {
            Ok(passed) => Ok((writers.finish().await?, passed)),
            Err(error) => {
                writers.discard().await;
                Err(error)
            }
        }
    }

    /// Writes the versions of keys as soon as all their rows have come: they are near then, and soon forgotten.
    async fn write_to(&self, part: Part, mut rows: ModelRows, writers: &mut Writers) -> Result<Passed, engine::Error> {
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
                writers.write(&pool, self.pool.batches, versions, self.now).await?;
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
