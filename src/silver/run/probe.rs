//! Where the rows of keys are in the target.

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
use crate::table::{ColumnStatistics, ScanFile, TableView};

/// Where one row in so many or more is looked for, hardly a page has none of them: what is to be read of those rows is
/// then read at once, and not by a second look at the same pages.
const DENSE: u64 = 16;

/// The rows of a batch that are of keys.
pub(in crate::silver) struct Hits {
    /// Each one's position, and the key's number.
    pub(in crate::silver) rows: Vec<(u64, u32)>,
    /// The columns that were asked for.
    pub(in crate::silver) with: Vec<ArrayRef>,
    /// Those that are wanted whole; `None` where they are too few among others to have been read at once.
    pub(in crate::silver) whole: Option<Owned>,
}

/// Whose rows they are, in their order, and the rows.
pub(in crate::silver) type Owned = (Vec<u32>, RecordBatch);

/// Rows that are wanted whole.
#[derive(Clone)]
pub(in crate::silver) struct Whole {
    pub(in crate::silver) columns: Vec<FieldRef>,
    /// Which of the rows, by the columns that come with each and what becomes of its key.
    pub(in crate::silver) is_wanted: fn(&[ArrayRef], usize, Fate) -> bool,
    /// Which files may have such rows.
    pub(in crate::silver) may_be_in: fn(&dyn ColumnStatistics) -> Vec<bool>,
}

/// Rows of a file that make way for others, and such that just go.
#[derive(Default)]
struct Doomed {
    positions: RoaringTreemap,
    gone: u64,
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
        let of = fates.clone();
        let keep = move |doomed: &mut Doomed, hits: Hits| {
            doomed.gone += hits.rows.iter().filter(|(_, number)| fates_is(&of, *number, Fate::Gone)).count() as u64;
            hits.rows.iter().for_each(|(position, _)| add_to(&mut doomed.positions, *position));
            Ok(())
        };
        for (file, doomed) in self.probe(&staged.view, newest, fates, &[], None, keep).await? {
            gone += doomed.gone;
            replaced += doomed.positions.len() - doomed.gone;
            staged.doom(file, doomed.positions);
        }
        Ok((replaced, gone))
    }

    /// Finds the rows of the keys in the target, with some columns of theirs. Gives what `keep` makes of each piece of a
    /// file in which there are any.
    pub(in crate::silver) async fn probe<T: Default + Send + 'static>(
        &self,
        view: &TableView,
        newest: &Arc<Newest>,
        fates: &Arc<Vec<Fate>>,
        with: &[&str],
        whole: Option<Whole>,
        keep: impl Fn(&mut T, Hits) -> Result<(), ArrowError> + Clone + Send + Sync + 'static,
    ) -> Result<Vec<(ScanFile, T)>> {
        let sorted = (0..fates.len() as u32).filter(|number| !fates_is(fates, *number, Fate::Leave));
        let sorted: Vec<u32> = sorted.collect();
        if sorted.is_empty() {
            return Ok(Vec::new());
        }
        let key = self.keys[0].as_str();
        let files = view.files(None).await?;
        let spans = self.spans(view, &files, &newest.keys, &sorted)?;
        let (files, spans): (Vec<ScanFile>, Vec<(u32, u32)>) =
            files.into_iter().zip(spans).filter_map(|(file, span)| Some((file, span?))).unzip();
        let has_wanted = match &whole {
            Some(whole) => (whole.may_be_in)(view.statistics(&files).as_ref()),
            None => vec![false; files.len()],
        };
        let rows: u64 = files.iter().zip(&has_wanted).filter(|(_, has)| **has).map(|(file, _)| file.record_count).sum();
        let whole = whole.filter(|_| sorted.len() as u64 * DENSE >= rows);
        let look = |whole| Look::new(self, view, newest, fates, with, whole).map(Arc::new);
        let (plain, thorough) = (look(None)?, whole.map(|whole| look(Some(whole))).transpose()?);
        let deleted = view.deleted_positions(&with_deletes(&files)).await?;
        let key_type = plain.columns.read[0].data_type().clone();
        let mut parts = Vec::new();
        for piece in pieces(&files) {
            let (file, (first, last)) = (files[piece.file].clone(), spans[piece.file]);
            let ends = newest.key_columns(&[first, last]).map_err(|error| self.failed_arrow(error))?;
            let ends = cast(&ends[0], &key_type).map_err(|error| self.failed_arrow(error))?;
            let end = |row| ScalarValue::try_from_array(&ends, row).map_err(|error| self.failed(error.into()));
            let gone = deleted.get(&file.path).cloned();
            let look = thorough.as_ref().filter(|_| has_wanted[piece.file]).unwrap_or(&plain).clone();
            parts.push((piece, file, look, gone, (key.to_string(), end(0)?, end(1)?)));
        }
        let work = |(piece, file, look, gone, (key, low, high)): (Piece, ScanFile, Arc<Look>, _, (String, _, _))| {
            let (shape, keep) = (self.shape.clone(), keep.clone());
            async move {
                let mut batches = look.reader.read(&file, &piece, gone, Some((&key, low, high))).await?;
                let mut kept = None;
                while let Some(batch) = batches.try_next().await? {
                    let Some((positions, read)) = batch.columns().split_last() else { continue };
                    let columns = look.columns.of(read);
                    let keys = shape.keys(&columns[..look.keys]).map_err(arrow_failed)?;
                    let hits = look.at(&keys, positions, &columns[look.keys..]).map_err(arrow_failed)?;
                    if let Some(hits) = hits {
                        keep(kept.get_or_insert_default(), hits).map_err(arrow_failed)?;
                    }
                }
                Ok((file, kept))
            }
        };
        let mut found = Vec::new();
        let take = |(file, kept): (ScanFile, Option<T>)| found.extend(kept.map(|kept| (file, kept)));
        in_parallel(self.engine.threads(), parts, work, take).await.map_err(|error| self.failed(error))?;
        Ok(found)
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
    columns: Columns,
    reader: RowReader,
}

impl Look {
    fn new(
        run: &Run<'_>,
        view: &TableView,
        newest: &Arc<Newest>,
        fates: &Arc<Vec<Fate>>,
        with: &[&str],
        whole: Option<Whole>,
    ) -> Result<Self> {
        let schema = view.arrow_schema();
        let names = run.keys.iter().map(String::as_str).chain(with.iter().copied());
        let columns = names.map(|name| {
            let missing = |error| run.failed_arrow(error);
            Ok(Arc::new(schema.field_with_name(name).map_err(missing)?.clone()))
        });
        let mut columns = columns.collect::<Result<Vec<FieldRef>>>()?;
        columns.extend(whole.iter().flat_map(|whole| whole.columns.iter()).map(viewed));
        let columns = Columns::new(columns);
        let reader = RowReader::new(&run.session, view, columns.read.clone()).with_positions();
        let (newest, fates) = (newest.clone(), fates.clone());
        Ok(Look { newest, fates, keys: run.keys.len(), with: with.len(), whole, columns, reader })
    }

    /// The rows of a batch that are of the keys; `None` when none is.
    fn at(&self, keys: &KeyColumn, positions: &ArrayRef, columns: &[ArrayRef]) -> Result<Option<Hits>, ArrowError> {
        let positions = positions.as_primitive::<Int64Type>();
        let (mut rows, mut hits) = (Vec::new(), Vec::new());
        self.newest.keys.for_each_match(keys, |row, number| {
            if self.fates[number] != Fate::Leave {
                rows.push(row as u32);
                hits.push((positions.value(row) as u64, number as u32));
            }
        });
        if hits.is_empty() {
            return Ok(None);
        }
        let (with, others) = columns.split_at(self.with);
        let at = UInt32Array::from(rows);
        let with = with.iter().map(|column| take(column, &at, None)).collect::<Result<Vec<_>, _>>()?;
        let Some(Whole { columns: wanted, is_wanted, .. }) = &self.whole else {
            return Ok(Some(Hits { rows: hits, with, whole: None }));
        };
        let of_hits = (0..hits.len()).filter(|row| is_wanted(&with, *row, self.fates[hits[*row].1 as usize]));
        let (numbers, rows): (Vec<u32>, Vec<u32>) = of_hits.map(|row| (hits[row].1, at.value(row))).unzip();
        let rows = UInt32Array::from(rows);
        let others = others.iter().zip(wanted).map(|(column, wanted)| {
            let rows = take(column, &rows, None)?;
            if rows.data_type() == wanted.data_type() { Ok(rows) } else { cast(&rows, wanted.data_type()) }
        });
        let others = others.collect::<Result<Vec<_>, ArrowError>>()?;
        let schema = Arc::new(Schema::new(wanted.clone()));
        let whole = Some((numbers, RecordBatch::try_new(schema, others)?));
        Ok(Some(Hits { rows: hits, with, whole }))
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

/// Adds a position, which is most often past all that are there.
pub(in crate::silver) fn add_to(positions: &mut RoaringTreemap, position: u64) {
    if positions.try_push(position).is_err() {
        positions.insert(position);
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
