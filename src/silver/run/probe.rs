//! Where the rows of keys are in the target.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, FieldRef, Int64Type, Schema};
use arrow::error::ArrowError;
use datafusion::common::ScalarValue;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use super::{Fate, Run, Staged, arrow_failed, fates_is};
use crate::engine::{Piece, RowReader, in_parallel, pieces};
use crate::silver::Result;
use crate::silver::events::Newest;
use crate::silver::keys::{KeyColumn, KeySet};
use crate::table::{ScanFile, TableView};

/// Where one row in so many or more is looked for, hardly a page has none of them: what is to be read of those rows is
/// then read at once, and not by a second look at the same pages.
const DENSE: u64 = 16;

/// The rows of a batch that are of keys: each one's position and the key's number; and columns of theirs.
pub(in crate::silver) type Hits = (Vec<(u64, u32)>, Vec<ArrayRef>);

/// Whose rows they are, in their order, and the rows.
pub(in crate::silver) type Owned = (Vec<u32>, RecordBatch);

/// Rows that are wanted whole.
#[derive(Clone)]
pub(in crate::silver) struct Whole {
    pub(in crate::silver) columns: Vec<FieldRef>,
    /// Which of the rows, by the columns that come with each and what becomes of its key.
    pub(in crate::silver) is_wanted: fn(&[ArrayRef], usize, Fate) -> bool,
}

/// What was found of the keys.
#[derive(Default)]
pub(in crate::silver) struct Found {
    pub(in crate::silver) hits: Vec<(ScanFile, Vec<Hits>)>,
    /// The rows that are wanted whole; `None` where they are too few among others to have been read at once.
    pub(in crate::silver) whole: Option<Vec<Owned>>,
}

impl Run<'_> {
    /// Adds where the rows of the keys are in the target. They are looked for in the very state that the commit stands
    /// on. Gives how many make way for others, and how many just go.
    pub(super) async fn find(
        &self,
        staged: &mut Staged,
        newest: &Arc<Newest>,
        fates: &Arc<Vec<Fate>>,
    ) -> Result<(u64, u64)> {
        let (mut replaced, mut gone) = (0, 0);
        for (file, hits) in self.probe(&staged.view, newest, fates, &[], None).await?.hits {
            let hits = || hits.iter().flat_map(|(rows, _)| rows);
            let of_gone = hits().filter(|(_, number)| fates_is(fates, *number, Fate::Gone)).count() as u64;
            gone += of_gone;
            replaced += hits().count() as u64 - of_gone;
            staged.doom(file, set_of(hits().map(|(position, _)| *position).collect()));
        }
        Ok((replaced, gone))
    }

    /// Finds the rows of the keys in the target: for each file, where they are, whose, and some columns of theirs.
    pub(in crate::silver) async fn probe(
        &self,
        view: &TableView,
        newest: &Arc<Newest>,
        fates: &Arc<Vec<Fate>>,
        with: &[&str],
        whole: Option<Whole>,
    ) -> Result<Found> {
        if fates.iter().all(|fate| *fate == Fate::Leave) {
            return Ok(Found::default());
        }
        let sorted = newest.keys.in_order().iter().copied();
        let sorted: Vec<u32> = sorted.filter(|number| !fates_is(fates, *number, Fate::Leave)).collect();
        let key = self.keys[0].as_str();
        let files = view.files(None).await?;
        let spans = self.spans(view, &files, &newest.keys, &sorted)?;
        let (files, spans): (Vec<ScanFile>, Vec<(u32, u32)>) =
            files.into_iter().zip(spans).filter_map(|(file, span)| Some((file, span?))).unzip();
        let rows: u64 = files.iter().map(|file| file.record_count).sum();
        let whole = whole.filter(|_| sorted.len() as u64 * DENSE >= rows);
        let schema = view.arrow_schema();
        let names = self.keys.iter().map(String::as_str).chain(with.iter().copied());
        let columns = names.map(|name| {
            let missing = |error| self.failed_arrow(error);
            Ok(Arc::new(schema.field_with_name(name).map_err(missing)?.clone()))
        });
        let mut columns = columns.collect::<Result<Vec<FieldRef>>>()?;
        let key_type = columns[0].data_type().clone();
        let look =
            Look { fates: fates.clone(), newest: newest.clone(), keys: self.keys.len(), with: with.len(), whole };
        columns.extend(look.whole.iter().flat_map(|whole| whole.columns.iter()).map(viewed));
        let columns = Columns::new(columns);
        let reader = Arc::new(RowReader::new(&self.session, view, columns.read.clone()).with_positions());
        let deleted = view.deleted_positions(&with_deletes(&files)).await?;
        let mut parts = Vec::new();
        for piece in pieces(&files) {
            let (file, (first, last)) = (files[piece.file].clone(), spans[piece.file]);
            let ends = newest.key_columns(&[first, last]).map_err(|error| self.failed_arrow(error))?;
            let ends = cast(&ends[0], &key_type).map_err(|error| self.failed_arrow(error))?;
            let end = |row| ScalarValue::try_from_array(&ends, row).map_err(|error| self.failed(error.into()));
            let gone = deleted.get(&file.path).cloned();
            parts.push((piece, file, gone, (key.to_string(), end(0)?, end(1)?)));
        }
        let reads_whole = look.whole.is_some();
        let (look, columns) = (Arc::new(look), Arc::new(columns));
        let work = |(piece, file, gone, (key, low, high)): (Piece, ScanFile, _, (String, _, _))| {
            let (reader, shape) = (reader.clone(), self.shape.clone());
            let (look, columns) = (look.clone(), columns.clone());
            async move {
                let mut batches = reader.read(&file, &piece, gone, Some((&key, low, high))).await?;
                let (mut hits, mut whole) = (Vec::new(), Vec::new());
                while let Some(batch) = batches.try_next().await? {
                    let Some((positions, read)) = batch.columns().split_last() else { continue };
                    let columns = columns.of(read);
                    let keys = shape.keys(&columns[..look.keys]).map_err(arrow_failed)?;
                    let (of_batch, rows) = look.at(&keys, positions, &columns[look.keys..]).map_err(arrow_failed)?;
                    hits.extend((!of_batch.0.is_empty()).then_some(of_batch));
                    whole.extend(rows);
                }
                Ok((piece.file, hits, whole))
            }
        };
        let (mut found, mut rows): (BTreeMap<usize, Vec<Hits>>, Vec<Owned>) = Default::default();
        let take = |(file, hits, whole): (usize, Vec<Hits>, Vec<Owned>)| {
            found.entry(file).or_default().extend(hits);
            rows.extend(whole);
        };
        in_parallel(self.engine.threads(), parts, work, take).await.map_err(|error| self.failed(error))?;
        let found = found.into_iter().filter(|(_, hits)| !hits.is_empty());
        let hits = found.map(|(file, hits)| (files[file].clone(), hits)).collect();
        Ok(Found { hits, whole: reads_whole.then_some(rows) })
    }

    /// For each file, the first and the last of the sorted keys that may be in it; `None` when none can.
    pub(super) fn spans(
        &self,
        view: &TableView,
        files: &[ScanFile],
        set: &KeySet,
        sorted: &[u32],
    ) -> Result<Vec<Option<(u32, u32)>>> {
        let whole = sorted.first().copied().zip(sorted.last().copied());
        let statistics = view.statistics(files);
        let key = &self.keys[0];
        let (Some(lower), Some(upper)) = (statistics.lower(key), statistics.upper(key)) else {
            return Ok(vec![whole; files.len()]);
        };
        let first = self.shape.of_first_column().map_err(|error| self.failed_arrow(error))?;
        let bounds = |column: ArrayRef| first.keys(&[column]).map_err(|error| self.failed_arrow(error));
        let (lower, upper) = (bounds(lower)?, bounds(upper)?);
        Ok((0..files.len()).map(|file| set.between(sorted, &lower, &upper, file)).collect())
    }
}

/// What is looked for in each batch.
struct Look {
    newest: Arc<Newest>,
    fates: Arc<Vec<Fate>>,
    /// How many of the columns are the key's, and how many come with each row.
    keys: usize,
    with: usize,
    whole: Option<Whole>,
}

impl Look {
    /// The rows of a batch that are of the keys, and of those the ones that are wanted whole.
    fn at(
        &self,
        keys: &KeyColumn,
        positions: &ArrayRef,
        columns: &[ArrayRef],
    ) -> Result<(Hits, Option<Owned>), ArrowError> {
        let positions = positions.as_primitive::<Int64Type>();
        let (mut rows, mut hits) = (Vec::new(), Vec::new());
        self.newest.keys.for_each_match(keys, |row, number| {
            if self.fates[number] != Fate::Leave {
                rows.push(row as u32);
                hits.push((positions.value(row) as u64, number as u32));
            }
        });
        if hits.is_empty() {
            return Ok(((hits, Vec::new()), None));
        }
        let (with, others) = columns.split_at(self.with);
        let at = UInt32Array::from(rows);
        let with = with.iter().map(|column| take(column, &at, None)).collect::<Result<Vec<_>, _>>()?;
        let Some(Whole { columns: wanted, is_wanted }) = &self.whole else { return Ok(((hits, with), None)) };
        let of_hits = (0..hits.len()).filter(|row| is_wanted(&with, *row, self.fates[hits[*row].1 as usize]));
        let (numbers, rows): (Vec<u32>, Vec<u32>) = of_hits.map(|row| (hits[row].1, at.value(row))).unzip();
        let rows = UInt32Array::from(rows);
        let others = others.iter().zip(wanted).map(|(column, wanted)| {
            let rows = take(column, &rows, None)?;
            if rows.data_type() == wanted.data_type() { Ok(rows) } else { cast(&rows, wanted.data_type()) }
        });
        let others = others.collect::<Result<Vec<_>, ArrowError>>()?;
        let schema = Arc::new(Schema::new(wanted.clone()));
        Ok(((hits, with), Some((numbers, RecordBatch::try_new(schema, others)?))))
    }
}

/// Columns that are asked for, maybe more than once, and read once.
struct Columns {
    read: Vec<FieldRef>,
    /// For each that is asked for, which of those that are read it is.
    places: Vec<usize>,
}

impl Columns {
    fn new(asked: Vec<FieldRef>) -> Self {
        let mut read: Vec<FieldRef> = Vec::new();
        let places = asked.into_iter().map(|field| {
            read.iter().position(|known| known.name() == field.name()).unwrap_or_else(|| {
                read.push(field);
                read.len() - 1
            })
        });
        let places = places.collect();
        Columns { read, places }
    }

    fn of(&self, read: &[ArrayRef]) -> Vec<ArrayRef> {
        self.places.iter().map(|place| read[*place].clone()).collect()
    }
}

/// The column as it is read: of its texts, most are passed over.
fn viewed(field: &FieldRef) -> FieldRef {
    match field.data_type() {
        DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => field.clone(),
    }
}

/// Positions as a set, which is much faster made of sorted ones.
pub(in crate::silver) fn set_of(mut positions: Vec<u64>) -> RoaringTreemap {
    positions.sort_unstable();
    positions.dedup();
    RoaringTreemap::from_sorted_iter(positions.iter().copied()).unwrap_or_else(|_| positions.into_iter().collect())
}

pub(in crate::silver) fn with_deletes(files: &[ScanFile]) -> Vec<ScanFile> {
    files.iter().filter(|file| !file.deletes.is_empty()).cloned().collect()
}
