//! What a table of versions has of the keys of a run.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, FieldRef, Int64Type, UInt64Type};
use arrow::error::ArrowError;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use super::MADE_ANEW;
use crate::engine::{Piece, RowReader, in_parallel, pieces};
use crate::silver::Result;
use crate::silver::events::Newest;
use crate::silver::run::{Fate, Hits, Owned, Run, Staged, Whole, add_to, arrow_failed, set_of};
use crate::silver::versions::{Before, VALID_FROM, VALID_TO};
use crate::table::{ColumnStatistics, ScanFile, TableView};

/// Where in the target what is known of the keys lies.
#[derive(Default)]
pub(super) struct Known {
    /// By the key's number.
    pub(super) before: Vec<Before>,
    pub(super) rows: Vec<RecordBatch>,
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
    /// Looks up the keys in the target: rows that make way are noted as doomed, and versions to go on from are read.
    pub(super) async fn known(&self, staged: &mut Staged, newest: &Arc<Newest>, fates: Vec<Fate>) -> Result<Known> {
        let fates = Arc::new(fates);
        let fields = staged.view.arrow_schema().fields().clone();
        let is_read = |field: &&FieldRef| field.name() == VALID_FROM || !MADE_ANEW.contains(&field.name().as_str());
        let columns: Vec<FieldRef> = fields.iter().filter(is_read).cloned().collect();
        let whole = Whole { columns: columns.clone(), is_wanted: goes_on, may_be_in: may_go_on };
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

/// Whether a row is what its key goes on from. It comes with when it began and ended.
fn goes_on(with: &[ArrayRef], row: usize, fate: Fate) -> bool {
    fate != Fate::Fold && with.get(1).is_some_and(|ended| ended.is_null(row))
}

/// Which files may have such a row: where no end is missing, none.
fn may_go_on(statistics: &dyn ColumnStatistics) -> Vec<bool> {
    let Some(counts) = statistics.null_counts(VALID_TO) else { return vec![true; statistics.len()] };
    let counts = counts.as_primitive::<UInt64Type>();
    (0..statistics.len()).map(|at| counts.is_null(at) || counts.value(at) > 0).collect()
}
