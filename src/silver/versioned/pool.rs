//! Rows from many batches, to be picked from.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::{cast, concat, interleave};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};

use super::MADE_ANEW;
use crate::silver::versions::Source;

/// Rows from many batches, column by column.
#[derive(Clone)]
pub(super) struct Pool {
    pub(super) schema: SchemaRef,
    /// For each column, its array in each batch.
    parts: Vec<Vec<ArrayRef>>,
    pub(super) batches: usize,
    /// How many there are in all that were added.
    pub(super) rows: usize,
}

/// Where rows mostly follow each other for so many or more, they are taken run by run.
const ROWS_OF_RUN: usize = 16;

/// Some rows of a pool.
pub(super) enum Picked {
    /// The batches that they are in; then for each row, which of these, and where.
    Rows { batches: Vec<usize>, rows: Vec<Source> },
    /// In which batch each run of them is, and where.
    Runs(Vec<(usize, Range<usize>)>),
}

impl Pool {
    pub(super) fn new(schema: SchemaRef) -> Self {
        Pool { parts: vec![Vec::new(); schema.fields().len()], schema, batches: 0, rows: 0 }
    }

    /// Adds a batch, brought to the schema's types; a column that it lacks is null. Columns that are made anew are not
    /// held.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
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
        self.rows += batch.num_rows();
        Ok(())
    }

    /// Takes batches out, as if they had never been added.
    pub(super) fn remove(&mut self, batches: Range<usize>) {
        self.batches -= batches.len();
        self.parts.iter_mut().filter(|parts| !parts.is_empty()).for_each(|parts| drop(parts.drain(batches.clone())));
    }

    pub(super) fn choose(&self, rows: impl Iterator<Item = Source> + Clone) -> Picked {
        let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
        let mut count = 0;
        for (batch, row) in rows.clone() {
            count += 1;
            match runs.last_mut() {
                Some((known, run)) if (*known, run.end) == (batch, row) => run.end += 1,
                _ => runs.push((batch, row..row + 1)),
            }
        }
        if runs.len() * ROWS_OF_RUN <= count {
            return Picked::Runs(runs);
        }
        // Rows that are chosen together lie in few of the batches; a look at the others, for each column, is spared.
        let mut number_of = vec![usize::MAX; self.batches];
        let mut batches = Vec::new();
        let rows = rows.map(|(batch, row)| {
            if number_of[batch] == usize::MAX {
                number_of[batch] = batches.len();
                batches.push(batch);
            }
            (number_of[batch], row)
        });
        Picked::Rows { rows: rows.collect(), batches }
    }

    pub(super) fn column(&self, at: usize, of: &Picked) -> Result<ArrayRef, ArrowError> {
        let parts = &self.parts[at];
        match of {
            Picked::Rows { batches, rows } => {
                let parts: Vec<&dyn Array> = batches.iter().map(|batch| parts[*batch].as_ref()).collect();
                interleave(&parts, rows)
            }
            Picked::Runs(runs) => {
                let runs = runs.iter().map(|(batch, run)| parts[*batch].slice(run.start, run.len()));
                let runs: Vec<ArrayRef> = runs.collect();
                match runs.as_slice() {
                    [only] => Ok(only.clone()),
                    several => concat(&several.iter().map(ArrayRef::as_ref).collect::<Vec<_>>()),
                }
            }
        }
    }

    /// Whether the rows of each pair differ in one of the columns. Those that differ in one are not looked at again.
    pub(super) fn differ(&self, pairs: &[(Source, Source)], columns: &[usize]) -> Result<Vec<bool>, ArrowError> {
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
