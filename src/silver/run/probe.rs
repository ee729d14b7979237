//! Where the rows of keys are in the target.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{FieldRef, Int64Type};
use datafusion::common::ScalarValue;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use super::{Fate, Run, Staged, arrow_failed, fates_is};
use crate::engine::{Piece, RowReader, in_parallel, pieces};
use crate::silver::Result;
use crate::silver::events::Newest;
use crate::silver::keys::KeySet;
use crate::table::{ScanFile, TableView};

/// The rows of a batch that are of keys: each one's position and the key's number; and columns of theirs.
pub(in crate::silver) type Hits = (Vec<(u64, u32)>, Vec<ArrayRef>);

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
        for (file, hits) in self.probe(&staged.view, newest, fates, &[]).await? {
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
    ) -> Result<Vec<(ScanFile, Vec<Hits>)>> {
        let mut sorted: Vec<u32> =
            (0..fates.len() as u32).filter(|number| !fates_is(fates, *number, Fate::Leave)).collect();
        if sorted.is_empty() {
            return Ok(Vec::new());
        }
        newest.keys.sort(&mut sorted);
        let key = self.keys[0].as_str();
        let files = view.files(None).await?;
        let spans = self.spans(view, &files, &newest.keys, &sorted)?;
        let (files, spans): (Vec<ScanFile>, Vec<(u32, u32)>) =
            files.into_iter().zip(spans).filter_map(|(file, span)| Some((file, span?))).unzip();
        let schema = view.arrow_schema();
        let names = self.keys.iter().map(String::as_str).chain(with.iter().copied());
        let columns = names.map(|name| {
            let missing = |error| self.failed_arrow(error);
            Ok(Arc::new(schema.field_with_name(name).map_err(missing)?.clone()))
        });
        let columns = columns.collect::<Result<Vec<FieldRef>>>()?;
        let key_type = columns[0].data_type().clone();
        let reader = Arc::new(RowReader::new(&self.session, view, columns).with_positions());
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
        let work = |(piece, file, gone, (key, low, high)): (Piece, ScanFile, _, (String, _, _))| {
            let (reader, shape) = (reader.clone(), self.shape.clone());
            let (newest, fates, width) = (newest.clone(), fates.clone(), self.keys.len());
            async move {
                let mut batches = reader.read(&file, &piece, gone, Some((&key, low, high))).await?;
                let mut found: Vec<Hits> = Vec::new();
                while let Some(batch) = batches.try_next().await? {
                    let (positions, columns) = match batch.columns().split_last() {
                        Some((positions, columns)) => (positions.as_primitive::<Int64Type>(), columns),
                        None => continue,
                    };
                    let keys = shape.keys(&columns[..width]).map_err(arrow_failed)?;
                    let (mut rows, mut hits) = (Vec::new(), Vec::new());
                    newest.keys.for_each_match(&keys, |row, number| {
                        if fates[number] != Fate::Leave {
                            rows.push(row as u32);
                            hits.push((positions.value(row) as u64, number as u32));
                        }
                    });
                    if hits.is_empty() {
                        continue;
                    }
                    let rows = UInt32Array::from(rows);
                    let of_hits = columns[width..].iter().map(|column| take(column, &rows, None));
                    found.push((hits, of_hits.collect::<Result<_, _>>().map_err(arrow_failed)?));
                }
                Ok((piece.file, found))
            }
        };
        let mut found: BTreeMap<usize, Vec<Hits>> = BTreeMap::new();
        let take = |(file, hits): (usize, Vec<Hits>)| found.entry(file).or_default().extend(hits);
        in_parallel(self.engine.threads(), parts, work, take).await.map_err(|error| self.failed(error))?;
        Ok(found
            .into_iter()
            .filter(|(_, hits)| !hits.is_empty())
            .map(|(file, hits)| (files[file].clone(), hits))
            .collect())
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

/// Positions as a set, which is much faster made of sorted ones.
pub(in crate::silver) fn set_of(mut positions: Vec<u64>) -> RoaringTreemap {
    positions.sort_unstable();
    positions.dedup();
    RoaringTreemap::from_sorted_iter(positions.iter().copied()).unwrap_or_else(|_| positions.into_iter().collect())
}

pub(in crate::silver) fn with_deletes(files: &[ScanFile]) -> Vec<ScanFile> {
    files.iter().filter(|file| !file.deletes.is_empty()).cloned().collect()
}
