//! What a table of versions has of the keys of a run.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Int64Type, Schema};
use arrow::error::ArrowError;
use datafusion::execution::memory_pool::MemoryConsumer;
use roaring::RoaringTreemap;

use super::MADE_ANEW;
use crate::engine::{Piece, RowReader, in_parallel, pieces};
use crate::silver::Result;
use crate::silver::events::Newest;
use crate::silver::run::{Fate, Hits, Run, Staged, add_to, arrow_failed};
use crate::silver::versions::{Before, VALID_FROM, VALID_TO};
use crate::table::ScanFile;

/// Where in the target what is known of the keys lies.
#[derive(Default)]
pub(super) struct Known {
    /// By the key's number.
    pub(super) before: Vec<Before>,
    pub(super) rows: Vec<RecordBatch>,
}

/// The rows of a file that are of keys, in order: where each is, and the number of its key.
struct Places {
    file: ScanFile,
    positions: Vec<u64>,
    numbers: Vec<u32>,
}

/// What a piece of a file has of the keys: the position of each row, and its key's number.
type Found = Vec<(u64, u32)>;

/// The positions of the pieces of a file and the numbers of their keys, in order; apart from them, the positions of those
/// keys that `folds` says.
fn in_order(mut pieces: Vec<Found>, folds: impl Fn(u32) -> bool) -> (Vec<u64>, Vec<u32>, RoaringTreemap) {
    // Those of a piece are in order, and so are all of them behind each other.
    if !pieces.iter().flatten().is_sorted() {
        pieces = vec![pieces.concat()];
        pieces[0].sort_unstable();
    }
    let count = pieces.iter().map(Vec::len).sum();
    let (mut positions, mut numbers) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut apart = RoaringTreemap::new();
    for (position, number) in pieces.into_iter().flatten() {
        if folds(number) {
            add_to(&mut apart, position);
        } else {
            positions.push(position);
            numbers.push(number);
        }
    }
    (positions, numbers, apart)
}

/// What a place takes while it is put in order and looked up.
const BYTES_OF_PLACE: usize = 2 * size_of::<(u64, u32)>();

/// What row groups take that are as large as most writers make them.
const BYTES_OF_ROW_GROUP: u64 = 128 << 20;

/// What a piece of a file has of the keys that go on.
#[derive(Default)]
struct OfPiece {
    /// Rows that make way.
    doomed: RoaringTreemap,
    /// Whose row began or ended when.
    times: Vec<(u32, i64)>,
    /// Where the rows are that keys go on from, whose, and when they began.
    positions: Vec<u64>,
    numbers: Vec<u32>,
    froms: Vec<i64>,
    /// These rows, each batch with the place of its first among them.
    rows: Vec<(usize, RecordBatch)>,
}

impl OfPiece {
    /// `times` are when rows, from the first of these on, began and ended.
    fn note(&mut self, times: &RecordBatch, positions: &[u64], numbers: &[u32]) -> Result<(), ArrowError> {
        let column = |name| {
            let column = times.column_by_name(name);
            let column = column.ok_or_else(|| ArrowError::SchemaError(format!("`{name}` was not read")))?;
            Ok::<_, ArrowError>(cast(column, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
        };
        let (from, to) = (column(VALID_FROM)?, column(VALID_TO)?);
        for (row, (position, number)) in positions.iter().zip(numbers).take(times.num_rows()).enumerate() {
            let last = [&from, &to].into_iter().filter(|times| times.is_valid(row)).map(|times| times.value(row));
            self.times.extend(last.max().map(|last| (*number, last)));
            // A row that has not ended is what its key goes on from.
            if to.is_null(row) {
                add_to(&mut self.doomed, *position);
                self.positions.push(*position);
                self.numbers.push(*number);
                self.froms.push(from.value(row));
            }
        }
        Ok(())
    }
}

impl Run<'_> {
    /// Looks up the keys in the target: rows that make way are noted as doomed, and versions to go on from are read.
    ///
    /// Keys are read of all rows; of those that are of the keys, when they began and ended; the rest of a row, but for its
    /// key, where that goes on from it.
    pub(super) async fn known(&self, staged: &mut Staged, newest: &Arc<Newest>, fates: Vec<Fate>) -> Result<Known> {
        let fates = Arc::new(fates);
        let keep = |found: &mut Found, hits: Hits| {
            found.extend(hits.rows);
            Ok(())
        };
        let found = self.probe(&staged.view, newest, &fates, &[], keep).await?;
        let count: usize = found.iter().map(|(_, places)| places.len()).sum();
        let of_places = MemoryConsumer::new(format!("rows of {}", self.model.table))
            .register(&self.session.runtime_env().memory_pool);
        of_places.try_grow(count * BYTES_OF_PLACE).map_err(|error| self.failed(error.into()))?;
        let fields = staged.view.arrow_schema().fields().clone();
        let reader = |is_read: &dyn Fn(&FieldRef) -> bool| {
            let columns: Vec<FieldRef> = fields.iter().filter(|field| is_read(field)).cloned().collect();
            Arc::new(RowReader::new(&self.session, &staged.view, columns))
        };
        let times = reader(&|field| [VALID_FROM, VALID_TO].contains(&field.name().as_str()));
        let whole = reader(&|field| !MADE_ANEW.contains(&field.name().as_str()) && !self.is_key_as_sent(field));
        let keys = Arc::new(self.keys_as_sent(&fields));
        let mut files: Vec<Arc<Places>> = Vec::new();
        for (file, pieces) in by_file(found) {
            let (positions, numbers, doomed) = in_order(pieces, |number| fates[number as usize] == Fate::Fold);
            // All versions of these make way, whatever they are.
            staged.doom(file.clone(), doomed);
            files.push(Arc::new(Places { file, positions, numbers }));
        }
        let scanned: Vec<ScanFile> = files.iter().map(|places| places.file.clone()).collect();
        let work = |piece: Piece| {
            let (places, times, whole) = (files[piece.file].clone(), times.clone(), whole.clone());
            let (newest, keys) = (newest.clone(), keys.clone());
            async move {
                let Places { file, positions, numbers } = &*places;
                let mut of_piece = OfPiece::default();
                for (first, times) in times.rows_at(file, &piece, positions).await? {
                    of_piece.note(&times, &positions[first..], &numbers[first..]).map_err(arrow_failed)?;
                }
                for (first, rows) in whole.rows_at(file, &piece, &of_piece.positions).await? {
                    let numbers = &of_piece.numbers[first..first + rows.num_rows()];
                    let rows = with_keys(rows, &keys, &newest, numbers).map_err(arrow_failed)?;
                    of_piece.rows.push((first, rows));
                }
                Ok((piece.file, of_piece))
            }
        };
        let mut known = Known { before: vec![Before::default(); newest.keys.len()], rows: Vec::new() };
        let take = |(file, of_piece): (usize, OfPiece)| {
            for (number, time) in of_piece.times {
                let until = &mut known.before[number as usize].until;
                *until = time.max(*until);
            }
            staged.doom(scanned[file].clone(), of_piece.doomed);
            for (first, batch) in of_piece.rows {
                let of_batch = first..first + batch.num_rows();
                let of_rows = of_piece.numbers[of_batch.clone()].iter().zip(&of_piece.froms[of_batch]);
                for (row, (number, from)) in of_rows.enumerate() {
                    let before = &mut known.before[*number as usize];
                    (before.current, before.from) = (Some((known.rows.len() as u32, row as u32)), *from);
                }
                known.rows.push(batch);
            }
        };
        let (pieces, cores) = (pieces(&scanned), self.engine.threads());
        // While one waits for its bytes, the others have what to do: where there is room for one more.
        let ahead = of_places.new_empty();
        let largest = scanned.iter().map(|file| file.size).max().unwrap_or(0).min(BYTES_OF_ROW_GROUP);
        let is_room = pieces.len() > cores && ahead.try_grow(largest as usize).is_ok();
        in_parallel(cores + usize::from(is_room), pieces, work, take).await.map_err(|error| self.failed(error))?;
        Ok(known)
    }

    /// Whether a column of the table is a key as the source sends it, so that a change to the key tells it.
    fn is_key_as_sent(&self, field: &FieldRef) -> bool {
        let is_it = |column: &&FieldRef| column.name() == field.name() && column.data_type() == field.data_type();
        self.keys.contains(field.name()) && self.columns.iter().any(|column| is_it(&column))
    }

    /// Those columns of the table, each with which key it is.
    fn keys_as_sent(&self, table: &Fields) -> Vec<(usize, FieldRef)> {
        let found = |(at, name): (usize, &String)| Some((at, table.find(name)?.1.clone()));
        self.keys.iter().enumerate().filter_map(found).filter(|(_, field)| self.is_key_as_sent(field)).collect()
    }
}

/// The rows of these keys with those columns that were not read, because their keys tell them.
fn with_keys(
    rows: RecordBatch,
    as_sent: &[(usize, FieldRef)],
    newest: &Newest,
    numbers: &[u32],
) -> Result<RecordBatch, ArrowError> {
    if as_sent.is_empty() {
        return Ok(rows);
    }
    let keys = newest.key_columns(numbers)?;
    let (mut fields, mut columns) = (rows.schema().fields().to_vec(), rows.columns().to_vec());
    for (at, field) in as_sent {
        fields.push(Arc::new(Field::new(field.name(), keys[*at].data_type().clone(), true)));
        columns.push(keys[*at].clone());
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}

/// What was found in pieces of files, put together for each file, the pieces in order.
fn by_file(mut pieces: Vec<(ScanFile, Found)>) -> Vec<(ScanFile, Vec<Found>)> {
    pieces.sort_by_key(|(_, places)| places.first().copied());
    let mut files: Vec<(ScanFile, Vec<Found>)> = Vec::new();
    for (file, places) in pieces {
        match files.iter_mut().find(|(known, _)| known.path == file.path) {
            Some((_, known)) => known.push(places),
            None => files.push((file, vec![places])),
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_order_whatever_the_order_of_their_pieces() {
        let folds = |number| number == 7;
        for pieces in [
            vec![vec![(2, 5), (4, 7)], vec![], vec![(8, 1), (9, 7), (11, 0)]],
            vec![vec![(8, 1), (9, 7), (11, 0)], vec![(2, 5), (4, 7)]],
            vec![vec![(11, 0), (2, 5), (9, 7)], vec![(8, 1), (4, 7)]],
        ] {
            let (positions, numbers, apart) = in_order(pieces, folds);
            assert_eq!((positions, numbers), (vec![2, 8, 11], vec![5, 1, 0]));
            assert_eq!(apart, [4, 9].into());
        }
        let (positions, numbers, apart) = in_order(Vec::new(), folds);
        assert!(positions.is_empty() && numbers.is_empty() && apart.is_empty());
    }
}
