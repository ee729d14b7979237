//! Rows that a query gave, taken apart, and the places of rows in their files.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use roaring::RoaringTreemap;

use crate::engine::{FILE_COLUMN, POSITION_COLUMN};
use crate::error::Result;
use crate::table::{ScanFile, TableView};

/// A column's values as text.
pub(super) fn texts(column: &ArrayRef) -> Vec<Option<String>> {
    let Ok(column) = cast(column, &DataType::Utf8) else { return Vec::new() };
    column.as_string::<i32>().iter().map(|text| text.map(str::to_string)).collect()
}

/// A column's values as whole numbers; a time's are microseconds since 1970.
pub(super) fn longs(column: &ArrayRef) -> Vec<Option<i64>> {
    let Ok(column) = cast(column, &DataType::Int64) else { return Vec::new() };
    column.as_primitive::<Int64Type>().iter().collect()
}

/// Adds the places of a batch's rows, by file.
pub(super) fn note_places(batch: &RecordBatch, places: &mut BTreeMap<String, RoaringTreemap>) {
    let (Some(files), Some(positions)) = (batch.column_by_name(FILE_COLUMN), batch.column_by_name(POSITION_COLUMN))
    else {
        return;
    };
    for (file, position) in texts(files).into_iter().zip(longs(positions)) {
        if let (Some(file), Some(position)) = (file, position) {
            places.entry(file).or_default().insert(position as u64);
        }
    }
}

/// The files of a view that rows were found in, with the rows.
pub(super) async fn files_of(
    view: &TableView,
    mut places: BTreeMap<String, RoaringTreemap>,
) -> Result<Vec<(ScanFile, RoaringTreemap)>> {
    let files = view.files(None).await?;
    Ok(files.into_iter().filter_map(|file| places.remove(&file.path).map(|rows| (file, rows))).collect())
}
