//! Where the rows of keys are in the target.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{FieldRef, Int64Type};
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

/// The rows of a batch that are of keys.
pub(in crate::silver) struct Hits {
    /// Each one's position, and the key's number.
    pub(in crate::silver) rows: Vec<(u64, u32)>,
    /// The columns that were asked for.
    pub(in crate::silver) with: Vec<ArrayRef>,
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
        for (file, doomed) in self.probe(&staged.view, newest, fates, &[], keep).await? {
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
        let look = Arc::new(Look::new(self, view, newest, fates, with)?);
        let deleted = view.deleted_positions(&with_deletes(&files)).await?;
        let key_type = look.read[0].data_type().clone();
        let mut parts = Vec::new();
        for piece in pieces(&files) {
            let (file, (first, last)) = (files[piece.file].clone(), spans[piece.file]);
            let ends = newest.key_columns(&[first, last]).map_err(|error| self.failed_arrow(error))?;
            let ends = cast(&ends[0], &key_type).map_err(|error| self.failed_arrow(error))?;
            let end = |row| ScalarValue::try_from_array(&ends, row).map_err(|error| self.failed(error.into()));
            let gone = deleted.get(&file.path).cloned();
            parts.push((piece, file, gone, (key.to_string(), end(0)?, end(1)?)));
        }
        let work = |(piece, file, gone, (key, low, high)): (Piece, ScanFile, _, (String, _, _))| {
            let (look, shape, keep) = (look.clone(), self.shape.clone(), keep.clone());
            async move {
                let mut batches = look.reader.read(&file, &piece, gone, Some((&key, low, high))).await?;
                let mut kept = None;
                while let Some(batch) = batches.try_next().await? {
                    let Some((positions, columns)) = batch.columns().split_last() else { continue };
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
    /// The key's columns, and those that come with each row.
    read: Vec<FieldRef>,
    keys: usize,
    reader: RowReader,
}

impl Look {
    fn new(
        run: &Run<'_>,
        view: &TableView,
        newest: &Arc<Newest>,
        fates: &Arc<Vec<Fate>>,
        with: &[&str],
    ) -> Result<Self> {
        let schema = view.arrow_schema();
        let names = run.keys.iter().map(String::as_str).chain(with.iter().copied());
        let read = names.map(|name| {
            let missing = |error| run.failed_arrow(error);
            Ok(Arc::new(schema.field_with_name(name).map_err(missing)?.clone()))
        });
        let read = read.collect::<Result<Vec<FieldRef>>>()?;
        let reader = RowReader::new(&run.session, view, read.clone()).with_positions();
        let (newest, fates) = (newest.clone(), fates.clone());
        Ok(Look { newest, fates, read, keys: run.keys.len(), reader })
    }

    /// The rows of a batch that are of the keys; `None` when none is.
    fn at(&self, keys: &KeyColumn, positions: &ArrayRef, with: &[ArrayRef]) -> Result<Option<Hits>, ArrowError> {
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
        let at = UInt32Array::from(rows);
        let with = with.iter().map(|column| take(column, &at, None)).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(Hits { rows: hits, with }))
    }
}

/// Adds a position, which is most often past all that are there.
pub(in crate::silver) fn add_to(positions: &mut RoaringTreemap, position: u64) {
    if positions.try_push(position).is_err() {
        positions.insert(position);
    }
}

pub(in crate::silver) fn with_deletes(files: &[ScanFile]) -> Vec<ScanFile> {
    files.iter().filter(|file| !file.deletes.is_empty()).cloned().collect()
}
